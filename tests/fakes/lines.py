"""The bridges' stream: ``{"text": delta}`` lines and a last one with ``"done": true``, plain or as events."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class LineScript:
    """Writes the parts of one answer; *count* makes the fields with the counts from the number of tokens."""

    def __init__(
        self,
        *,
        events: bool,
        model: str,
        count: Callable[[int], dict[str, object]],
        thinking: tuple[str, ...] = (),
        finish_reason: str | None = None,
        error_object: bool = False,
    ) -> None:
        self._events = events
        self._model = model
        self._count = count
        self._thinking = thinking
        self._finish_reason = finish_reason
        self._error_object = error_object
        self.content_type = "text/event-stream" if events else "application/x-ndjson"

    def opening(self) -> bytes:
        """Write what was thought."""
        return b"".join(self._line(msgspec.json.encode({"text": "", "thinking": words})) for words in self._thinking)

    def delta(self, text: str) -> bytes:
        """Write ``{"text": …}``."""
        return self._line(msgspec.json.encode({"text": text}))

    def error(self, message: str) -> bytes:
        """Write ``{"error": …}``."""
        return self._line(msgspec.json.encode({"error": {"message": message} if self._error_object else message}))

    def empty(self) -> bytes:
        """Write a line without a character."""
        return self.delta("")

    def raw(self, line: str) -> bytes:
        """Write *line* as it is."""
        return self._line(line.encode())

    def ping(self) -> bytes:
        """Write a comment; plain lines have none."""
        return b": ping\n\n" if self._events else b""

    def closing(self, deltas: int) -> bytes:
        """Write the last line; a delta is a token."""
        reason = {} if self._finish_reason is None else {"finish_reason": self._finish_reason}
        return self._line(msgspec.json.encode({"done": True, "model": self._model} | reason | self._count(deltas)))

    def _line(self, payload: bytes) -> bytes:
        return b"data: " + payload + b"\n\n" if self._events else payload + b"\n"
