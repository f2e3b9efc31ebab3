"""
Calls of tools that a model writes as JSON into its text: ``{"name": "HassTurnOn", "parameters": {}}``.

Read a character at a time, as the text arrives.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

NAMES = ("name", "function", "tool", "tool_name", "function_name", "action", "recipient_name")
ARGUMENTS = ("parameters", "arguments", "args", "kwargs", "input", "tool_input", "action_input", "params")
CALLS = ("tool_calls", "function_call", "tool_uses", "tool_call", "function_calls")
FIRST_KEYS = (*NAMES, *ARGUMENTS, *CALLS, "type", "id")
"""What the JSON of a call begins with."""
CALL_LIMIT_CHARS = 16_384
"""Longer JSON is taken for what its beginning is."""

_BEGUN = re.compile(r"(?:\[\s{0,20})?(?:\{\s{0,20}(?:[\"']([A-Za-z_]*)(?:([\"'])\s{0,20})?)?)?")
_BEGINS = re.compile(r"(?:\[\s{0,20})?\{\s{0,20}[\"']([A-Za-z_]+)[\"']\s{0,20}:")
_NAMED = re.compile(rf"[\"'](?:{'|'.join(NAMES)})[\"']\s*:\s*[\"'{{]")
_GIVEN = re.compile(rf"[\"'](?:{'|'.join(ARGUMENTS)})[\"']\s*(?::|$)")
_CALLED = re.compile(rf"[\"'](?:{'|'.join(CALLS)})[\"']\s*:\s*[\[{{]")


def begins_call(text: str) -> bool | None:
    """Whether *text*, which begins with a bracket, may be a call; None where more of it is needed."""
    if (begins := _BEGINS.match(text)) is not None:
        return begins[1] in FIRST_KEYS
    begun = _BEGUN.fullmatch(text)
    if begun is None:
        return False
    key = begun[1] or ""
    return None if (key in FIRST_KEYS if begun[2] else any(one.startswith(key) for one in FIRST_KEYS)) else False


class JsonEnd:
    """Finds the end of the JSON that a text begins with."""

    __slots__ = ("_at", "_depth", "_escaped", "_quote")

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def find(self, text: str) -> int:
        """Return where it ends in *text*, which begins as it did the last time; 0 where it does not yet."""
        for at in range(self._at, len(text)):
            character = text[at]
            if self._escaped:
                self._escaped = False
            elif self._quote:
                if character == "\\":
                    self._escaped = True
                elif character == self._quote:
                    self._quote = ""
            elif character in "\"'":
                self._quote = character
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._at = at + 1
                    return self._at
        self._at = len(text)
        return 0


def names_tool(text: str) -> bool:
    """Whether *text* begins like the JSON of a call; what is cut off behind may be its arguments."""
    return _NAMED.search(text) is not None


def is_call(text: str) -> bool:
    """Whether *text* is the JSON of a call, or the beginning of one that was cut."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return bool((_NAMED.search(text) and _GIVEN.search(text)) or _CALLED.search(text))
    return _is_call(value)


def _is_call(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_call, value))
    if not isinstance(value, dict):
        return False
    if any(isinstance(value.get(key), dict | list) for key in CALLS):
        return True
    name = next((value[key] for key in NAMES if key in value), None)
    if isinstance(name, dict):
        return _is_call(name)
    return isinstance(name, str) and any(key in value and _are_arguments(key, value[key]) for key in ARGUMENTS)


def _are_arguments(key: str, value: Any) -> bool:
    """Whether a field is a call's arguments, and not any other that a user may have asked for under this name."""
    if isinstance(value, str):
        return key.endswith("_input") or value.lstrip()[:1] in ("{", "[")
    return value is None or isinstance(value, dict | list)
