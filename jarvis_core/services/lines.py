"""Streams of JSON, a line an item: NDJSON, and server-sent events whose data is one line."""

from __future__ import annotations

from jarvis_core.errors import BadGateway

LINE_LIMIT_BYTES = 1 << 20


class LineBuffer:
    """
    Cuts a stream of bytes into JSON texts, without line ends and without ``data:``.

    Comments and other fields of server-sent events are left out. Bytes are cut at line feeds only, so a character that
    the network cut in two is whole again.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the texts that *chunk* completes; raises ``BadGateway`` on a line longer than 1 MiB."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE_LIMIT_BYTES:
            raise BadGateway(f"A neighbour sent a line of more than {LINE_LIMIT_BYTES >> 10} KiB.")
        return [text for line in lines if (text := _payload(line))]

    def end(self) -> list[bytes]:
        """Return the bytes after the last line feed."""
        rest, self._rest = self._rest, b""
        return [text] if (text := _payload(rest)) else []


def _payload(line: bytes) -> bytes:
    line = line.strip()
    if line.startswith(b"data:"):
        return line[5:].lstrip()
    # JSON texts here are objects; everything else is a comment, an event's name or its id.
    return line if line.startswith(b"{") else b""
