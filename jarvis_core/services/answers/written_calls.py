"""
Calls of tools that stand in a model's text, read: JSON in many shapes, and what templates have the name of the tool stand in.

``<tool_call>{"name": …, "arguments": …}</tool_call>``, ``[TOOL_CALLS]name[ARGS]{…}``, ``<function=name>{…}``,
``<function=name><parameter=key>value``, ``to=functions.name …{…}`` and a bare JSON that names a tool and its arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from jarvis_core.models import ToolCall
from jarvis_core.services.answers.native_calls import CALLS_LIMIT, make_call_id, plain_arguments
from jarvis_core.services.answers.tool_calls import ARGUMENTS, CALLS, NAMES

NESTING_LIMIT = 4
_NAMED = re.compile(
    r"(?:<function\s*=\s*|<invoke\s+name\s*=\s*|\bto\s*=\s*(?:functions\.)?|\[TOOL_CALLS\]\s*|sep[|｜]>\s*|\bcall:)"
    r"[\"']?([A-Za-z_][A-Za-z0-9_.-]{0,63})[\"']?"
)
_PARAMETER = re.compile(
    r"<parameter(?:\s*=\s*|\s+name\s*=\s*)[\"']?([^\s<>\"']{1,64})[\"']?\s*>(.*?)(?:</parameter>|(?=<parameter)|\Z)",
    re.DOTALL,
)
_BRACKET = re.compile(r"[{\[]")
_decoder = json.JSONDecoder()


def read_calls(texts: list[str]) -> list[ToolCall]:
    """Return the calls in *texts*, each of which a model wrote as one call or several; what cannot be read is left out."""
    found: list[ToolCall] = []
    for text in texts:
        for name, arguments in _read(text):
            found.append(ToolCall(make_call_id(), name, arguments))
            if len(found) == CALLS_LIMIT:
                return found
    return found


def _read(text: str) -> Iterator[tuple[str, str]]:
    values = list(_values(text))
    calls = [call for value in values for call in _calls_in(value)]
    if calls:
        yield from calls
        return
    named = list(_NAMED.finditer(text))
    if not named:
        return
    name = named[-1][1]
    parameters = {key: _value_of(value) for key, value in _PARAMETER.findall(text)}
    if parameters:
        yield name, msgspec.json.encode(parameters).decode()
    elif values and isinstance(values[0], dict):
        yield name, msgspec.json.encode(values[0]).decode()
    elif not values and _BRACKET.search(text, named[-1].end()) is None:
        yield name, "{}"


def _values(text: str) -> Iterator[Any]:
    """Give the JSON values in *text*, which has other text between them."""
    at = 0
    while (bracket := _BRACKET.search(text, at)) is not None:
        try:
            value, at = _decoder.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            at = bracket.end()
            continue
        yield value


def _calls_in(value: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > NESTING_LIMIT:
        return
    if isinstance(value, list):
        for one in cast("list[object]", value):
            yield from _calls_in(one, depth + 1)
        return
    if not isinstance(value, dict):
        return
    fields = cast("dict[str, object]", value)
    inner = next((fields[key] for key in CALLS if isinstance(fields.get(key), dict | list)), None)
    if inner is not None:
        yield from _calls_in(inner, depth + 1)
        return
    key = next((key for key in NAMES if key in fields), None)
    if key is None:
        return
    name = fields[key]
    if isinstance(name, dict):
        yield from _calls_in(name, depth + 1)
    elif isinstance(name, str) and name:
        given = next((fields[one] for one in ARGUMENTS if one in fields), None)
        text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
        yield name.removeprefix("functions."), plain_arguments(text)


def _value_of(text: str) -> object:
    text = text.strip()
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value
