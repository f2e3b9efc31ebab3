"""
A reader of server-sent events that does what the HTML standard says a browser does
(https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).

So it knows nothing of how the core writes them, and finds out where the core departs from the standard.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

LINE_END = re.compile("\r\n|\n|\r")


class Message(NamedTuple):
    """What a page's ``onmessage`` gets."""

    type: str
    data: str
    last_event_id: str


class EventSource:
    """Interprets a stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self.last_event_id = ""
        """What a browser sends as Last-Event-ID when it comes back."""
        self.reconnection_time_ms: int | None = None
        self.comments: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Message]:
        """Return the messages that *chunk* completes; what is incomplete at the end of a stream is never given."""
        self._rest += self._decoder.decode(chunk)
        messages = []
        start = 0
        for end in LINE_END.finditer(self._rest):
            if end.group() == "\r" and end.end() == len(self._rest):
                # A line feed that belongs to it may follow in the next piece.
                break
            message = self._interpret(self._rest[start : end.start()])
            if message is not None:
                messages.append(message)
            start = end.end()
        self._rest = self._rest[start:]
        return messages

    def _interpret(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(":")
        if not name and colon:
            self.comments.append(value)
            return None
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.reconnection_time_ms = int(value)
        return None

    def _dispatch(self) -> Message | None:
        self.last_event_id = self._id
        data, kind = self._data, self._type
        self._data, self._type = [], ""
        return Message(kind or "message", "\n".join(data), self.last_event_id) if data else None
