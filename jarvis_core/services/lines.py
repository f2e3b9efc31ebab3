"""
Streams of JSON: server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), a line an item (NDJSON), or
one JSON for all.

Which of them it is shows by itself: what servers say in Content-Type is often something else.
"""

from __future__ import annotations

import msgspec

from jarvis_core.errors import BadGateway
from jarvis_core.services.contract import NONSENSE

LINE_LIMIT_BYTES = 1 << 20
ANSWER_LIMIT_BYTES = 4 << 20
"""Of JSON on several lines."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DONE = b"[DONE]"
FIELDS = (b":", b"id", b"retry", b"event", b"data")
"""What begins a line of an event stream that has no data."""


class LineBuffer:
    """
    Cuts a stream of bytes into JSON texts, without line ends and without ``data:``.

    An event of several lines of data is one text. Comments and other fields are left out, and counted. A character that the
    network cut in two is whole again. After an ``error`` nothing more is given.
    """

    __slots__ = (
        "_after_cr",
        "_by_line",
        "_data",
        "_event",
        "_held",
        "_held_bytes",
        "_json_lines",
        "_partial",
        "_partial_bytes",
        "_started",
        "error",
        "skipped",
        "strange",
    )

    def __init__(self) -> None:
        self.error: bytes | None = None
        """What came as an error's event, or in a field of that name."""
        self.skipped = 0
        """Lines that said nothing."""
        self.strange = b""
        """The first line that belongs to no stream of JSON."""
        self._partial: list[bytes] = []
        """What follows the last line end."""
        self._partial_bytes = 0
        self._data: bytes | None = None
        """Of the event that has not ended."""
        self._event = b""
        self._held: list[bytes] = []
        """The lines of JSON that takes several."""
        self._held_bytes = 0
        self._json_lines = False
        """Whether JSON without ``data:`` came a line an item: then none takes several."""
        self._by_line = False
        """Whether each line of data is an event, as where no blank lines are sent."""
        self._after_cr = False
        self._started = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the texts that *chunk* completes; raises ``BadGateway`` on a line longer than 1 MiB."""
        if (
            chunk[:6] == b"data: "
            and chunk[-2:] == b"\n\n"
            and self._data is None
            and not (self._partial or self._event)
        ):
            # Whole events of one line each, as nearly always.
            texts = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(texts) and b"\r" not in chunk and b"" not in texts and self._is_plain():
                self._started = True
                return texts
        if b"\r" in chunk or self._after_cr:
            chunk = self._with_line_feeds(chunk)
        head, feed, rest = chunk.rpartition(b"\n")
        texts = []
        if feed:
            if self._partial:
                head = b"".join((*self._partial, head))
                self._partial.clear()
                self._partial_bytes = 0
            for line in head.split(b"\n"):
                self._take(line, texts)
        if rest:
            self._partial.append(rest)
            self._partial_bytes += len(rest)
            if self._partial_bytes > LINE_LIMIT_BYTES:
                raise too_long(LINE_LIMIT_BYTES)
        return texts

    def end(self) -> list[bytes]:
        """Return what follows the last line end."""
        texts: list[bytes] = []
        if self._partial:
            self._take(b"".join(self._partial), texts)
            self._partial.clear()
        self._dispatch(texts)
        if self._held and self.error is None:
            texts.append(b"\n".join(self._held))
            self._held.clear()
        return texts

    def _is_plain(self) -> bool:
        return not (self._held or self._after_cr) and self.error is None

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            if not chunk:
                self._after_cr = False
                return b""
        self._after_cr = chunk[-1:] == b"\r"
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, line: bytes, texts: list[bytes]) -> None:
        if self.error is not None:
            return
        if not self._started:
            self._started = True
            line = line.removeprefix(BYTE_ORDER_MARK)
        line = line.strip()
        if not line:
            self._dispatch(texts)
        elif self._held:
            self._hold(line)
        elif line.startswith(b"data:"):
            self._add(line[5:].lstrip(), texts)
        elif line[:1] in (b"{", b"[") and self._data is None:
            if self._json_lines or line == DONE or line.endswith((b"}", b"]")):
                self._json_lines = True
                texts.append(line)
            else:
                self._hold(line)
        elif line.startswith(b"event:"):
            self._event = line[6:].strip().lower()
        elif line.startswith(b"error:"):
            self.error = line[6:].strip() or b"error"
        else:
            self.skipped += 1
            if not self.strange and not line.startswith(FIELDS):
                self.strange = line[:1_000]

    def _add(self, data: bytes, texts: list[bytes]) -> None:
        """Take a line of data, most often an event's only one."""
        if not data:
            self.skipped += 1
            return
        if self._data is not None and (self._data == DONE or _is_json(self._data)):
            # Of no use to each other: the blank line between them is missing.
            self._by_line = not self._event
            self._dispatch(texts)
        if self._data is not None:
            data = self._data + b"\n" + data
            if len(data) > LINE_LIMIT_BYTES:
                raise too_long(LINE_LIMIT_BYTES)
        self._data = data
        if self._by_line:
            self._dispatch(texts)

    def _hold(self, line: bytes) -> None:
        self._held.append(line)
        self._held_bytes += len(line)
        if self._held_bytes > ANSWER_LIMIT_BYTES:
            self._held.clear()  # or the error would hold them, wherever it is kept
            raise too_long(ANSWER_LIMIT_BYTES)

    def _dispatch(self, texts: list[bytes]) -> None:
        data, self._data = self._data, None
        event, self._event = self._event, b""
        if data is None or self.error is not None:
            return
        if b"error" in event or b"exception" in event:
            self.error = data
        else:
            texts.append(data)


def too_long(limit_bytes: int) -> BadGateway:
    """Return the error for a line or an answer of more than *limit_bytes*."""
    return BadGateway(f"A neighbour sent a line of more than {limit_bytes >> 10} KiB.")


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except NONSENSE:
        return False
    return True
