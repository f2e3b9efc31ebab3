"""
Sends requests over one HTTP/1.1 connection (RFC 9112), one at a time, and reads each answer as it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, cast

HEAD_LIMIT_BYTES = 64 << 10
CHUNK_HEAD_LIMIT_BYTES = 1_024
SHORT_SIZE_DIGITS = 8
"""Of the size of a chunk, as servers write it."""
HIGH_WATER_BYTES = 256 << 10
"""Stops reading from the network while so much of a body is unread."""
HEX = b"0123456789abcdefABCDEF"
TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The characters of a header's name (RFC 9110, 5.6.2)."""


class Disconnected(ConnectionError):
    """The connection broke."""


class ClosedIdle(Disconnected):
    """A kept connection broke before any of the answer came: most likely the server was closing it already."""


class NotHttp(Exception):
    """The answer is not HTTP/1.1."""


class Owner(Protocol):
    """Owns connections."""

    def keep(self, connection: Connection) -> None:
        """Keep *connection* for the next request."""
        ...

    def forget(self, connection: Connection) -> None:
        """Drop *connection*, which is closed."""
        ...


class Response:
    """
    Reads one answer, from its head on.

    Its reader calls ``release`` after the end, which keeps the connection for the next request, or else ``close``.
    """

    __slots__ = (
        "_connection",
        "_failure",
        "_parts",
        "_unread",
        "_waiter",
        "at_end",
        "content_type",
        "headers",
        "parts",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        """0 until the head is here."""
        self.headers: dict[str, str] = {}
        """By names in lower case; values of the same name are joined by commas."""
        self.content_type = ""
        """Without parameters, in lower case."""
        self.at_end = False
        """Whether all of the body has arrived."""
        self.parts = 0
        """The number of parts in which the body arrived, as far as it was read; at least one for each chunk."""
        self._connection = connection
        self._parts: list[bytes] = []
        self._unread = 0
        self._failure: tuple[type[Exception], str] | None = None
        """The class and message of an error that is raised anew each time: a kept error keeps its callers' frames alive."""
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """Wait for the next bytes of the body, empty at its end; raises ``Disconnected``, and ``NotHttp``."""
        while not self._parts:
            if self.at_end:
                return b""
            await self._change()
        self.parts += len(self._parts)
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self._unread > HIGH_WATER_BYTES:
            self._connection.go_on(self)
        self._unread = 0
        return data

    async def wait_head(self) -> None:
        """Wait until ``status`` and ``headers`` are here; raises ``Disconnected``, and ``NotHttp``."""
        while not self.status:
            await self._change()

    def release(self) -> None:
        """Let the next request have the connection."""
        self._connection.release(self)

    def close(self) -> None:
        """Close the connection at once, unless it was released; a waiting reader gets ``Disconnected``."""
        self._connection.break_off(self)
        self.fail(Disconnected, "closed here")

    # Called by the connection.

    def add(self, parts: list[bytes]) -> None:
        """Add the next parts of the body."""
        before = self._unread
        self._unread += sum(map(len, parts))
        self._parts += parts
        if before <= HIGH_WATER_BYTES < self._unread:
            self._connection.pause()

    def fail(self, failure: type[Exception], why: str) -> None:
        """End the answer before its end: reads raise *failure*, after the parts that have arrived."""
        if not self.at_end and self._failure is None:
            self._failure = (failure, why)
            self.wake()

    def wake(self) -> None:
        """Wake the reader."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _change(self) -> None:
        if self._failure is not None:
            failure, why = self._failure
            raise failure(why)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Connection(asyncio.Protocol):
    """Parses the answers of one connection."""

    transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self.idle_since = 0.0
        """When the connection was last kept, on the loop's clock; 0 until then."""
        self._owner = owner
        self._response: Response | None = None
        self._rest = b""
        """Bytes that arrived and are not parsed yet, from ``_at`` on."""
        self._at = 0
        """The parsed length of ``_rest``, which is not cut for each of many small chunks: each cut copies it."""
        self._step: Callable[[Connection, Response], bool] = Connection._head
        self._left = 0
        """Bytes still to come of the body, or of its chunk."""
        self._around = 0
        """Bytes that came around the answer: interim answers and trailers."""
        self._persistent = True
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> Response:
        """Send *request*, and return its answer, which is still to come."""
        self._response = response = Response(self)
        self._step = Connection._head
        self._persistent = True
        self._around = 0
        if self.transport.is_closing():
            # ``connection_lost`` may have been called already, and is not called again.
            self.close(ClosedIdle, "closed before it was asked")
        else:
            self.transport.write(request)
        return response

    def close(self, failure: type[Exception] = Disconnected, why: str = "closed here") -> None:
        """Close the connection at once, and fail the answer that is still to come."""
        self.transport.abort()
        response, self._response = self._response, None
        if response is not None:
            response.fail(failure, why)

    def pause(self) -> None:
        """Stop reading from the network."""
        if not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def go_on(self, response: Response) -> None:
        """Read from the network again, for *response*."""
        if self._paused and self._response is response and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def break_off(self, response: Response) -> None:
        """Close the connection, if *response* still has it."""
        if self._response is response:
            self.close()

    def release(self, response: Response) -> None:
        """Take the connection back from *response*: keep it for the next request, or close it where it cannot be kept."""
        if self._response is not response:
            return
        self.go_on(response)
        self._response = None
        if self._persistent and response.at_end and not self._rest and not self.transport.is_closing():
            self._owner.keep(self)
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or response.at_end:
            # Bytes without a request: the next answer could not be told from them.
            self.transport.abort()
            return
        self._rest = self._rest + data if self._rest else data
        self._at = 0
        try:
            while self._step(self, response):
                pass
        except NotHttp as exc:
            self.close(NotHttp, str(exc))
            return
        self._rest = self._rest[self._at :]
        response.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.forget(self)
        response, self._response = self._response, None
        if response is None:
            return
        if self._step is Connection._until_close and exc is None:
            response.at_end = True
            response.wake()
        else:
            nothing_came = self._step is Connection._head and not self._rest and not self._around
            failure = ClosedIdle if self.idle_since and nothing_came else Disconnected
            response.fail(failure, str(exc) if exc is not None else "the neighbour closed the connection")

    # The steps: each parses what it can of ``_rest``, and returns whether the next step can go on.

    def _head(self, response: Response) -> bool:
        start, rest = self._at, self._rest
        end = rest.find(b"\r\n\r\n", start, start + HEAD_LIMIT_BYTES + 4)
        if end < 0:
            if len(rest) - start >= HEAD_LIMIT_BYTES + 4:
                raise NotHttp(f"the head is longer than {HEAD_LIMIT_BYTES >> 10} KiB")
            line_end = rest.find(b"\n", start)
            if not b"HTTP/1.".startswith(rest[start : start + 7]) or (line_end > 0 and rest[line_end - 1] != 13):
                raise NotHttp("it does not begin as HTTP/1.1 does")
            return False
        head = rest[start:end]
        self._at = end + 4
        first, *lines = head.split(b"\r\n")
        code = first[9:12]
        if (
            first[:7] != b"HTTP/1."
            or first[7:9] not in (b"0 ", b"1 ")
            or not (len(code) == 3 and code.isdigit() and code >= b"100")
            or first[12:13] not in (b"", b" ")
        ):
            raise NotHttp("the status line is none")
        if not head.count(b"\r") == head.count(b"\n") == len(lines) or b"\0" in head:
            raise NotHttp("a line of the head has a control character in it")
        status = int(code)
        if status == 101:
            raise NotHttp("it changes the protocol without being asked to")
        if status < 200:
            self._count(end + 4 - start)
            return True  # an interim answer; the real one follows
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name.translate(None, TOKEN):
                raise NotHttp("a line of the head is no header")
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise NotHttp("the body is compressed without being asked to")
        self._step = self._framing(status, headers)
        options, old = headers.get("connection", "").lower(), first[7:8] == b"0"
        if "close" in options or (old and "keep-alive" not in options):
            self._persistent = False
        if "transfer-encoding" in headers and (old or "content-length" in headers):
            # A proxy on the way may have read another length (RFC 9112, 6.1).
            self._persistent = False
        response.headers = headers
        response.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        response.status = status
        return True

    def _framing(self, status: int, headers: Mapping[str, str]) -> Callable[[Connection, Response], bool]:
        """Return the step that reads the body (RFC 9112, 6.3)."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if status in (204, 304):
            self._left = 0
            return Connection._sized
        if coding is not None:
            if coding.lower() != "chunked":
                raise NotHttp("the transfer coding is unknown")
            return Connection._chunk_head
        if length is None:
            self._persistent = False
            return Connection._until_close
        lengths = {one.strip(" \t") for one in length.split(",")}
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit() and len(length) <= 18):
            raise NotHttp("the length of the body is no number")
        self._left = int(length)
        return Connection._sized

    def _sized(self, response: Response) -> bool:
        self._take(response)
        if not self._left:
            response.at_end = True
        return False

    def _until_close(self, response: Response) -> bool:
        self._left = len(self._rest) - self._at
        self._take(response)
        return False

    def _chunk_head(self, response: Response) -> bool:
        if self._take_whole_chunks(response):
            return False
        size = self._line(CHUNK_HEAD_LIMIT_BYTES)
        if size is None:
            return False
        if not size or size.strip(HEX):
            size = size.partition(b";")[0].rstrip(b" \t")
            if not size or size.strip(HEX):
                raise NotHttp("the size of a chunk is no number")
        if len(size) > 15:
            raise NotHttp("a chunk is too long")
        self._left = int(size, 16)
        self._step = Connection._chunk if self._left else Connection._trailer
        return True

    def _take_whole_chunks(self, response: Response) -> bool:
        """Take the plain chunks that are here from beginning to end, as nearly all are; return whether nothing is left."""
        rest, start = self._rest, self._at
        chunks = []
        while (line_end := rest.find(b"\r\n", start, start + SHORT_SIZE_DIGITS + 2)) > start:
            size = rest[start:line_end]
            if size.strip(HEX):
                break
            end = line_end + 2 + int(size, 16)
            if end == line_end + 2 or not rest.startswith(b"\r\n", end):
                break
            chunks.append(rest[line_end + 2 : end])
            start = end + 2
        if chunks:
            self._at = start
            response.add(chunks)
        return start == len(rest)

    def _chunk(self, response: Response) -> bool:
        self._take(response)
        if self._left or len(self._rest) < self._at + 2:
            return False
        if not self._rest.startswith(b"\r\n", self._at):
            raise NotHttp("a chunk is longer than it says")
        self._at += 2
        self._step = Connection._chunk_head
        return True

    def _trailer(self, response: Response) -> bool:
        line = self._line(HEAD_LIMIT_BYTES)
        if line is None:
            return False
        if line:
            self._count(len(line) + 2)
            return True
        response.at_end = True
        return False

    def _take(self, response: Response) -> None:
        part = self._rest[self._at : self._at + self._left]
        if part:
            self._at += len(part)
            self._left -= len(part)
            response.add([part])

    def _line(self, limit: int) -> bytes | None:
        start = self._at
        end = self._rest.find(b"\r\n", start, start + limit + 2)
        if end < 0:
            if len(self._rest) - start >= limit + 2:
                raise NotHttp("a line between the chunks is too long")
            return None
        self._at = end + 2
        return self._rest[start:end]

    def _count(self, length: int) -> None:
        """Count bytes around the answer; raises ``NotHttp`` over ``HEAD_LIMIT_BYTES``."""
        self._around += length
        if self._around > HEAD_LIMIT_BYTES:
            raise NotHttp("what comes around the answer does not end")
