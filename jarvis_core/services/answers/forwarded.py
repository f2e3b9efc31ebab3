"""A client's own request for an answer, passed on to a server that speaks OpenAI's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from jarvis_core.errors import ContextTooLong, InvalidRequest, RequestError
from jarvis_core.models import Completion
from jarvis_core.services.answers.completions import CompletionStream
from jarvis_core.services.answers.server_errors import ServerError
from jarvis_core.services.answers.stream import Piece
from jarvis_core.services.transport import Refused

GO_TOGETHER = {"tools": ("tool_choice", "parallel_tool_calls"), "functions": ("function_call",)}
"""Parameters that mean nothing without another."""
CLIENTS_FAULT = (400, 413, 422)
"""Statuses with which a server refuses what the client wrote."""

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


class ForwardedStream(CompletionStream):
    """The answer to a client's own request: also what the prompt counted."""

    def __init__(self, *args: Any, left_out: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.left_out = left_out


class PlainAnswer:
    """The answer of a model that is asked with a prompt alone; *left_out* names what it was not told."""

    def __init__(self, pieces: AsyncIterator[Piece], left_out: Sequence[str]) -> None:
        self._pieces = pieces
        self.left_out = left_out
        self.prompt_tokens = 0

    def pieces(self) -> AsyncIterator[Piece]:
        """Give the answer."""
        return self._pieces


def parameters_beside(parameters: dict[str, Raw], understood: frozenset[str]) -> list[str]:
    """Return the names of *parameters* that are not *understood*."""
    return [name for name in parameters if name not in understood]
