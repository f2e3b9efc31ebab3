"""Holds what a command printed against what its page shows."""

from __future__ import annotations

import re
from typing import Any

STABLE = {"code", "deleted", "format", "merged", "mode", "object", "path", "role", "status", "type"}
"""Fields whose values a page shows as they are; of others it shows what kind of value they have."""
GAP = "…"
"""On a line of its own: any lines; within one: any characters."""


def differences(shown: Any, actual: Any, path: str = "$") -> list[str]:
    """
    Return what is otherwise in *actual* than in *shown*: fields that are missing or new, and values of another kind.

    A list of several kinds is held against all that the page shows in its place.
    """
    if isinstance(shown, dict) and isinstance(actual, dict):
        found = [f"{path}.{name} is not there" for name in shown.keys() - actual.keys()]
        found += [f"{path}.{name} is not shown" for name in actual.keys() - shown.keys()]
        for name in shown.keys() & actual.keys():
            if name in STABLE and not isinstance(shown[name], dict) and shown[name] != actual[name]:
                found.append(f"{path}.{name} is {actual[name]!r}, shown is {shown[name]!r}")
            found += differences(shown[name], actual[name], f"{path}.{name}")
        return found
    if isinstance(shown, list) and isinstance(actual, list):
        if bool(shown) != bool(actual):
            return [f"{path} has {len(actual)} entries, shown are {len(shown)}"]
        nearest = [
            min((differences(one, value, f"{path}[{n}]") for one in shown), key=len) for n, value in enumerate(actual)
        ]
        return [difference for differing in nearest for difference in differing]
    kinds = _kind(shown), _kind(actual)
    return [] if kinds[0] == kinds[1] else [f"{path} is {kinds[1]}, shown is {kinds[0]}"]


def reads_like(shown: str, actual: str) -> bool:
    """Whether *actual* is the text *shown*, with anything in the place of each ``…``."""
    lines = []
    for line in shown.strip().splitlines():
        if line.strip() == GAP:
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(".*".join(map(re.escape, line.rstrip().split(GAP))) + r"[ ]*\n")
    return re.fullmatch("".join(lines), actual.strip() + "\n") is not None


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"
