"""A client's own request for an answer, passed on to a server that speaks OpenAI's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import msgspec
from msgspec import Raw, Struct

from jarvis_core.errors import ContextTooLong, InvalidRequest, RequestError
from jarvis_core.models import Completion, ToolCall
from jarvis_core.services.answers.completions import CompletionStream
from jarvis_core.services.answers.server_errors import ServerError
from jarvis_core.services.answers.stream import Piece
from jarvis_core.services.contract import Delta
from jarvis_core.services.transport import Refused

CALLS_LIMIT = 128
"""Of one answer; what a server tells of more is left out."""
GO_TOGETHER = {"tools": ("tool_choice", "parallel_tool_calls"), "functions": ("function_call",)}
"""Parameters that mean nothing without another."""
CLIENTS_FAULT = (400, 413, 422)
"""Statuses with which a server refuses what the client wrote."""
COUNT_LIMIT = 2**53

_encoder = msgspec.json.Encoder()


class ForwardedRequest:
    """What is asked for, by what is left out of it by now."""

    def __init__(self, completion: Completion, model: str, *, without: set[str]) -> None:
        self._completion = completion
        self._fields: dict[str, object] = {
            "model": model,
            "messages": completion.messages,
            **completion.parameters,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.refused: list[str] = []
        """The client's own parameters that were left out."""
        for name in without:
            self._fields.pop(name, None)

    def body(self) -> bytes:
        """Return it as JSON."""
        return _encoder.encode(self._fields)

    def leave_out(self, error: ServerError) -> bool:
        """Leave out what *error* refuses, unless it is needed; return whether it is another request now."""
        if (error.status and error.status not in CLIENTS_FAULT) or error.is_context:
            return False
        name = next((name for name in self._fields if name not in ("model", "messages") and error.refuses(name)), None)
        if name is None or name in self._completion.needed:
            return False
        value = self._fields.pop(name)
        if name == "max_tokens" and "max_completion_tokens" in error.words:
            self._fields["max_completion_tokens"] = value
            return True
        if name in self._completion.parameters:
            others = [one for one in GO_TOGETHER.get(name, ()) if self._fields.pop(one, None) is not None]
            self.refused += [name, *others]
        return True

    def complaint(self, error: ServerError, told: RequestError) -> RequestError:
        """Return the request's error for *error*, of which another caller would be *told*."""
        if error.is_context:
            return ContextTooLong(told.details)
        needed = next((name for name in sorted(self._completion.needed) if error.refuses(name)), None)
        if needed is not None:
            rule = (
                f"is refused by the model's server: {error.words}"
                if error.words
                else "is refused by the model's server"
            )
            return InvalidRequest(f"$.{needed}: {rule}", details={**(told.details or {}), "path": f"$.{needed}"})
        if isinstance(told, Refused) and told.status in CLIENTS_FAULT:
            return InvalidRequest(told.message, details=told.details)
        return told


class _Call(Struct):
    """A call, as far as it has been told."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class ForwardedStream(CompletionStream):
    """The answer to a client's own request: also what it wants called, and what the prompt counted."""

    def __init__(self, *args: Any, left_out: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.left_out = left_out
        self.prompt_tokens = 0
        self._calls: dict[int, _Call] = {}

    @property
    def calls(self) -> Sequence[ToolCall]:
        """What the model wants done, in order."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        return [ToolCall(call.id or f"call_{place}", call.name, call.arguments) for place, call in enumerate(calls)]

    def _take_rest(self, delta: Delta, *, whole: bool = False) -> str:
        told = delta.tool_calls
        if isinstance(told, list):
            for place, one in enumerate(cast("list[object]", told)):
                if isinstance(one, dict):
                    self._take_call(cast("dict[str, Any]", one), place)
        elif isinstance(delta.function_call, dict):
            self._take_call({"function": delta.function_call}, 0)
        return super()._take_rest(delta, whole=whole)

    def _take_call(self, told: dict[str, Any], place: int) -> None:
        """Take a piece of a call, or a whole one; servers that send whole ones may leave out the index."""
        index = told.get("index")
        if not isinstance(index, int):
            index = place
        call = self._calls.get(index)
        if call is None:
            if len(self._calls) >= CALLS_LIMIT:
                return
            call = self._calls[index] = _Call()
        if isinstance(told.get("id"), str) and told["id"]:
            call.id = told["id"]
        function = told.get("function")
        if isinstance(function, dict):
            if isinstance(function.get("name"), str) and function["name"]:
                call.name = function["name"]
            arguments = function.get("arguments")
            if isinstance(arguments, dict):  # Ollama's own way, and that of servers that copied it
                arguments = _encoder.encode(arguments).decode()
            if isinstance(arguments, str):
                call.arguments += arguments
                # Writing a call is no silence, and no flood either.
                self._brought += 1
                if not self._begun:
                    self._begin()
                self._hide(len(arguments))

    def _count(self, usage: object) -> None:
        super()._count(usage)
        counted = cast("dict[str, Any]", usage).get("prompt_tokens") if isinstance(usage, dict) else None
        if isinstance(counted, int | float) and not isinstance(counted, bool) and 0 <= counted < COUNT_LIMIT:
            self.prompt_tokens = int(counted)


class PlainAnswer:
    """The answer of a model that is asked with a prompt alone; *left_out* names what it was not told."""

    def __init__(self, pieces: AsyncIterator[Piece], left_out: Sequence[str]) -> None:
        self._pieces = pieces
        self.left_out = left_out
        self.calls: Sequence[ToolCall] = ()
        self.prompt_tokens = 0

    def pieces(self) -> AsyncIterator[Piece]:
        """Give the answer."""
        return self._pieces


def parameters_beside(parameters: dict[str, Raw], understood: frozenset[str]) -> list[str]:
    """Return the names of *parameters* that are not *understood*."""
    return [name for name in parameters if name not in understood]
