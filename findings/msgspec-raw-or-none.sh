#!/usr/bin/env bash
# Guess: a field of type Raw | None takes any JSON value as it stands, and null too; if the two cannot stand together, the
#   decoder cannot be made, as with other unions that cannot be.
# Seen: the decoder is made, and refuses every value but null: "Expected `null`, got `object`". Raw alone takes all values,
#   null among them (as the bytes "null"), and Raw | UnsetType tells a field that is missing from one that is there.
# Versions: msgspec 0.22.0, Python 3.11
# Why: a field that is optional by this type decodes in every test without it, and fails with the first message that has it.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input msgspec==0.22.0
cd "$directory"

cat >main.py <<'EOF'
import sys

import msgspec
from msgspec import UNSET, Raw, UnsetType


class OrNone(msgspec.Struct):
    value: Raw | None = None


class OrUnset(msgspec.Struct):
    value: Raw | UnsetType = UNSET


def decoded(kind, text):
    try:
        value = msgspec.json.decode(text, type=kind).value
    except msgspec.ValidationError as exc:
        return str(exc)
    return bytes(value) if isinstance(value, Raw) else value


seen = {}
for kind in (OrNone, OrUnset):
    for text in ("{}", '{"value": null}', '{"value": {"a": 1}}', '{"value": 1}'):
        seen[kind.__name__, text] = decoded(kind, text)
        print(kind.__name__, text, "->", seen[kind.__name__, text])
as_before = [
    None,
    None,
    "Expected `null`, got `object` - at `$.value`",
    "Expected `null`, got `int` - at `$.value`",
    UNSET,
    b"null",
    b'{"a": 1}',
    b"1",
]
if list(seen.values()) != as_before:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
