"""
Calls of tools as servers tell them beside the text, whole or in fragments.

Servers differ in all of it: fragments without ``index``, or with the same one for several calls; an id that is missing, empty,
the same for two calls, or sent again with each fragment; a name in pieces, or sent again; arguments in pieces, as an
object, as JSON within JSON, or none.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

import msgspec
from msgspec import Struct

from jarvis_core.models import ToolCall, new_id
from jarvis_core.services.contract import NONSENSE

CALLS_LIMIT = 64
"""More calls in one answer are left out."""
_ID = re.compile(r"[A-Za-z0-9_.:-]{9,64}")
"""Shorter ones are numbers that begin anew with each answer."""


class _Call(Struct):
    index: object
    id: str
    name: str = ""
    arguments: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are JSON to their end."""
        try:
            msgspec.json.decode(self.arguments)
        except NONSENSE:
            return False
        return True


class NativeCalls:
    """Puts the calls of one answer together; *offered* are the names of the tools."""

    def __init__(self, offered: Collection[str]) -> None:
        self._offered = offered
        self._calls: list[_Call] = []

    def take(self, told: object, *, whole: bool) -> int:
        """Take what a delta, or a *whole* message, tells of calls; return how much text that was."""
        if isinstance(told, dict):
            told = [told]
        if not isinstance(told, list):
            return 0
        return sum(self._take_one(cast("dict[str, Any]", one), whole=whole) for one in told if isinstance(one, dict))

    def _take_one(self, fields: dict[str, Any], *, whole: bool) -> int:
        function = fields.get("function")
        # The older "function_call" has no envelope; some servers leave it out of calls, too.
        inner = cast("dict[str, Any]", function) if isinstance(function, dict) else fields
        named = inner.get("name")
        if not isinstance(named, str):
            named = function if isinstance(function, str) else ""
        told_id = fields.get("id")
        identity = told_id if isinstance(told_id, str) else ""
        arguments = inner.get("arguments", inner.get("parameters"))
        call = None if whole else self._find(fields.get("index"), identity, named)
        if call is None:
            if len(self._calls) >= CALLS_LIMIT:
                return len(named)
            call = _Call(fields.get("index"), identity)
            self._calls.append(call)
        if identity and not call.id:
            call.id = identity
        self._add_name(call, named)
        return len(named) + _add_arguments(call, arguments)

    def _find(self, index: object, identity: str, name: str) -> _Call | None:
        """Return the call that a fragment goes on with; None where it begins another one."""
        if not self._calls:
            return None
        known = [call for call in self._calls if call.index == index] if index is not None else self._calls[-1:]
        if not known:
            return None
        call = known[-1]
        if identity and call.id and identity != call.id:
            same = [one for one in known if one.id == identity]
            return same[-1] if same else None
        begins_again = bool(name) and bool(call.arguments) and call.is_whole
        return None if begins_again else call

    def _add_name(self, call: _Call, name: str) -> None:
        if not name or name == call.name:
            return
        call.name = name if call.name in self._offered or not call.name else call.name + name

    def calls(self, *, cut: bool) -> list[ToolCall]:
        """Return the calls; where the answer was *cut*, those that are whole."""
        seen: set[str] = set()
        found = []
        for call in self._calls:
            if not call.name or (cut and not call.is_whole):
                continue
            identity = call.id if _ID.fullmatch(call.id) and call.id not in seen else make_call_id()
            seen.add(identity)
            found.append(ToolCall(identity, call.name, plain_arguments(call.arguments)))
        return found


def make_call_id() -> str:
    """Return an id for a call that came without one of its own."""
    return "call_" + new_id().replace("-", "")


def plain_arguments(text: str) -> str:
    """Return arguments without JSON around the JSON; ``{}`` where there are none."""
    text = text.strip()
    if text in ("", "null", '""'):
        return "{}"
    if text[0] == '"':
        try:
            inner = msgspec.json.decode(text)
        except NONSENSE:
            return text
        if isinstance(inner, str):
            return inner.strip() or "{}"
    return text


def _add_arguments(call: _Call, arguments: object) -> int:
    if arguments is None:
        return 0
    if isinstance(arguments, str):
        call.arguments += arguments
        return len(arguments)
    call.arguments = msgspec.json.encode(arguments).decode()
    return len(call.arguments)
