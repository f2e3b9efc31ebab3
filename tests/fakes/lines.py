"""The bridges' stream: ``{"text": delta}`` lines and a last one with ``"done": true``, plain or as events."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class LineScript:
    """Writes the parts of one answer; *count* makes the fields with the counts from the number of tokens."""

    def __init__(self, *, events: bool, model: str, count: Callable[[int], dict[str, object]]) -> None:
        self._events = events
        self._model = model
        self._count = count
        self.content_type = "text/event-stream" if events else "application/x-ndjson"

    def opening(self) -> bytes:
        """Nothing comes before the first delta."""
        return b""

    def delta(self, text: str) -> bytes:
        """Write ``{"text": …}``."""
        return self._line(msgspec.json.encode({"text": text}))

    def error(self, message: str) -> bytes:
        """Write ``{"error": …}``."""
        return self._line(msgspec.json.encode({"error": message}))

    def raw(self, line: str) -> bytes:
        """Write *line* as it is."""
        return self._line(line.encode())

    def ping(self) -> bytes:
        """Write a comment; plain lines have none."""
        return b": ping\n\n" if self._events else b""

    def closing(self, deltas: int) -> bytes:
        """Write the last line; a delta is a token."""
        return self._line(msgspec.json.encode({"done": True, "model": self._model} | self._count(deltas)))

    def _line(self, payload: bytes) -> bytes:
        return b"data: " + payload + b"\n\n" if self._events else payload + b"\n"
