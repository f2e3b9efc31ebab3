#!/usr/bin/env bash
# Guess: num2words writes French ordinals as they are written: 80e is "quatre-vingtième", 200e is "deux centième".
# Seen: the ordinal's ending is put behind the cardinal, plural and all: "quatre-vingtsième", "deux centsième", "deux
#   millionsième". The cardinals are right ("quatre-vingts"), and so are the other ordinals ("quatre-vingt-unième").
# Versions: num2words 0.5.14, Python 3.11
# Why: a voice that reads numbers by it says a word that there is not at every 80, at whole hundreds and at whole millions.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input num2words==0.5.14
cd "$directory"

cat >main.py <<'EOF'
import sys

from num2words import num2words

SEEN = {
    1: ("un", "premier"),
    21: ("vingt et un", "vingt et unième"),
    80: ("quatre-vingts", "quatre-vingtsième"),
    81: ("quatre-vingt-un", "quatre-vingt-unième"),
    100: ("cent", "centième"),
    200: ("deux cents", "deux centsième"),
    2_000_000: ("deux millions", "deux millionsième"),
}
seen = {n: (num2words(n, lang="fr"), num2words(n, lang="fr", to="ordinal")) for n in SEEN}
for n, (cardinal, ordinal) in seen.items():
    print(f"{n}: {cardinal}, {ordinal}")
if seen != SEEN:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
