"""
Writes docs/settings.md and config/jarvis.toml from jarvis_core/settings.py.

The meaning of a setting is the text under its field, its examples stand in its annotation. ``--check`` writes nothing
and exits with 1 where a file is not what it would write.
"""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Meta

from jarvis_core import settings
from jarvis_core.settings import Secret, Settings, environment_names

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "settings.md"
FILE = REPOSITORY / "config" / "jarvis.toml"

LONG_CHARS = 60
"""A longer default is shown in the file alone."""
NO_LIMIT = 86_400
"""The upper end of times: a day, which nobody needs to be told of."""

PAGE_HEAD = """\
# Settings

This page lists every setting of the core: how it is called in the environment and in a settings file, what it may be,
what it is where you set nothing, and what it does. `make docs` writes it from `jarvis_core/settings.py`.

A value comes from the environment, else from the TOML file that `JARVIS_CONFIG` (or `--config`) names, else it is the
default. `config/jarvis.toml` has all settings, ready to uncomment. Lists are comma-separated in the environment; an empty
variable counts as unset. A malformed value, or a name that the file may not have, stops the start with one line that
names it.

```sh
DEFAULT_LANGUAGE=en make run
JARVIS_CONFIG=config/jarvis.toml make run
```
"""

FILE_HEAD = """\
# Every setting of Jarvis Core, each with its default; remove the # before those that you change.
#
#   JARVIS_CONFIG=config/jarvis.toml make run
#
# A value comes from the environment, else from this file, else it is the default. After each value: the environment's
# name, what it may be, the meaning; "unset" where there is no default and the value here is an example. Lists are
# comma-separated in the environment; an empty variable counts as unset. A malformed value, or a name that this file
# may not have, stops the start with one line that names it. `make docs` writes this file from jarvis_core/settings.py.
"""


class Setting(NamedTuple):
    """One setting."""

    section: str
    name: str
    variables: tuple[str, ...]
    default: Any
    examples: list[Any]
    kind: str
    """What it may be."""
    meaning: str

    @property
    def shown_default(self) -> str:
        """Its default for a table."""
        if self.default is None:
            return "unset"
        text = as_toml(self.default)
        return "see `config/jarvis.toml`" if len(text) > LONG_CHARS else f"`{text}`"


def sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """Give each section's name, what it is about, and its settings."""
    meanings = read_meanings()
    for section in msgspec.structs.fields(Settings):
        found = []
        for field in msgspec.structs.fields(section.type):
            metas = [one for one in field.type.__metadata__ if isinstance(one, Meta)]
            meaning = meanings[section.type.__name__, field.name]
            examples = [example for meta in metas for example in meta.examples or ()]
            found.append(
                Setting(
                    section.name,
                    field.name,
                    environment_names(field.type),
                    {} if field.default is msgspec.NODEFAULT else field.default,
                    examples,
                    kind_of(field.type),
                    meaning,
                )
            )
        yield section.name, (inspect.getdoc(section.type) or "").replace("``", "`"), found


def read_meanings() -> dict[tuple[str, str], str]:
    """Return the text under each field of the structs in settings.py; raises ``KeyError`` later where one has none."""
    tree = ast.parse(inspect.getsource(settings))
    meanings = {}
    for struct in tree.body:
        if isinstance(struct, ast.ClassDef):
            for field, text in zip(struct.body, struct.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                ):
                    meanings[struct.name, field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return meanings


def kind_of(annotation: Any) -> str:
    """Say what values an annotation takes."""
    metas = [one for one in annotation.__metadata__ if isinstance(one, Meta)]
    inner = annotation.__origin__
    if type(None) in typing.get_args(inner):
        [inner] = [one for one in typing.get_args(inner) if one is not type(None)]
    low = next((meta.ge for meta in metas if meta.ge is not None), None)
    high = next((meta.le for meta in metas if meta.le is not None), None)
    if typing.get_origin(inner) is typing.Literal:
        return " or ".join(f"`{one}`" for one in typing.get_args(inner))
    if typing.get_origin(inner) is tuple:
        return "list of texts"
    if typing.get_origin(inner) is dict:
        return "list of `name=url`"
    if inner is float and high == NO_LIMIT:
        return "seconds" if low is None else f"seconds, at least {low}"
    if inner in (int, float):
        word = "whole number" if inner is int else "number"
        return f"{word}, {low} to {high}"
    if inner is bool:
        return "`true` or `false`"
    longest = next((meta.max_length for meta in metas if meta.max_length is not None), None)
    text = "secret text" if inner is Secret else "text"
    return text if longest is None else f"{text}, at most {longest} characters"


def as_toml(value: Any) -> str:
    """Write a default as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {as_toml(one)}" for name, one in value.items()) + "}"
    # JSON's strings are TOML's too.
    return msgspec.json.encode(value).decode() if isinstance(value, str) else str(value)


def page() -> str:
    """Write docs/settings.md."""
    parts = [PAGE_HEAD]
    for name, about, found in sections():
        parts.append(
            f"\n## {name}\n\n{about}\n\n| Environment | In `[{name}]` | May be | Default | Meaning |\n|---|---|---|---|---|\n"
        )
        for one in found:
            variables = " or ".join(f"`{variable}`" for variable in one.variables)
            cells = (variables, f"`{one.name}`", one.kind, one.shown_default, one.meaning.replace("``", "`"))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def file() -> str:
    """Write config/jarvis.toml."""
    parts = [FILE_HEAD]
    for name, about, found in sections():
        parts.append(f"\n# {about.replace('`', '')}\n[{name}]\n")
        for one in found:
            unset = one.default is None
            value = as_toml(one.examples[0] if unset else one.default)
            variables = " or ".join(one.variables) + (" (unset)" if unset else "")
            kind, meaning = one.kind.replace("`", '"'), one.meaning.replace("``", '"')
            parts.append(f"#{one.name} = {value}  # {variables}: {kind}. {meaning}\n")
    return "".join(parts)


def main() -> int:
    """Write both, or check them."""
    stale = [(path, text) for path, text in ((PAGE, page()), (FILE, file())) if _read(path) != text]
    if sys.argv[1:] == ["--check"]:
        for path, _ in stale:
            sys.stderr.write(f"{path.relative_to(REPOSITORY)} is not what settings.py says: make docs\n")
        return 1 if stale else 0
    for path, text in stale:
        path.write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
