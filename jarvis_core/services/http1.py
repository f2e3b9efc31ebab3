"""
One HTTP/1.1 connection (RFC 9112), and the answer that is read from it as it arrives.

One request at a time goes over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, cast

HEAD_LIMIT_BYTES = 64 << 10
CHUNK_HEAD_LIMIT_BYTES = 1_024
HIGH_WATER_BYTES = 256 << 10
"""Of a body that nobody has read: then no more is taken from the network."""
HEX = b"0123456789abcdefABCDEF"
TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What the name of a header is made of (RFC 9110, 5.6.2)."""


class Disconnected(ConnectionError):
    """The connection broke."""


class ClosedIdle(Disconnected):
    """A connection that had been kept broke before any of the answer came: most likely it was being closed already."""


class NotHttp(Exception):
    """What came is not HTTP/1.1."""


class Owner(Protocol):
    """Who has the connections."""

    def keep(self, connection: Connection) -> None:
        """Have *connection* for the next request."""
        ...

    def forget(self, connection: Connection) -> None:
        """Let go of *connection*, which is closed."""
        ...


class Response:
    """
    An answer, from its head on.

    To be released when it was read to its end, which keeps the connection for the next one, or else closed.
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
        """By their names in lower case; several of one name are joined by commas."""
        self.content_type = ""
        """Without parameters, in lower case."""
        self.at_end = False
        """Whether all of the body has been read or lies ready to be."""
        self.parts = 0
        """In how many the body has come, as far as it was read; of a chunked one, its chunks and more."""
        self._connection = connection
        self._parts: list[bytes] = []
        self._unread = 0
        self._failure: tuple[type[Exception], str] | None = None
        """Raised anew each time: an error that is kept keeps alive all who have caught it."""
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
        """Close the connection at once, unless it was released; whoever reads sees that it is lost."""
        self._connection.break_off(self)
        self.fail(Disconnected, "closed here")

    # For the connection that it comes over.

    def add(self, part: bytes) -> None:
        """Take what came of the body."""
        before, self._unread = self._unread, self._unread + len(part)
        self._parts.append(part)
        if before <= HIGH_WATER_BYTES < self._unread:
            self._connection.pause()

    def fail(self, failure: type[Exception], why: str) -> None:
        """There is no more to come, and should be."""
        if not self.at_end and self._failure is None:
            self._failure = (failure, why)
            self.wake()

    def wake(self) -> None:
        """Have whoever waits look again."""
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
    """One connection, and the answer that comes over it."""

    transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self.idle_since = 0.0
        """When it was last kept, on the loop's clock; 0 until then."""
        self._owner = owner
        self._response: Response | None = None
        self._rest = b""
        """What came and could not be understood yet."""
        self._at = 0
        """Up to where ``_rest`` has been taken: to cut it for each of many small chunks would copy it as often."""
        self._step: Callable[[Connection, Response], bool] = Connection._head
        self._left = 0
        """What is still to come of the body, or of its chunk, in bytes."""
        self._around = 0
        """What came around the answer, interim answers and trailers, in bytes."""
        self._persistent = True
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> Response:
        """Send *request*; its answer is still to come."""
        self._response = response = Response(self)
        self._step = Connection._head
        self._persistent = True
        self._around = 0
        if self.transport.is_closing():
            # ``connection_lost`` may have been called already, and nobody would tell.
            self.close(ClosedIdle, "closed before it was asked")
        else:
            self.transport.write(request)
        return response

    def close(self, failure: type[Exception] = Disconnected, why: str = "closed here") -> None:
        """Close the connection at once; the answer that is still to come fails."""
        self.transport.abort()
        response, self._response = self._response, None
        if response is not None:
            response.fail(failure, why)

    def pause(self) -> None:
        """Take no more from the network for now."""
        if not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def go_on(self, response: Response) -> None:
        """Take from the network again, for *response*."""
        if self._paused and self._response is response and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def break_off(self, response: Response) -> None:
        """Close the connection if it is still *response*'s."""
        if self._response is response:
            self.close()

    def release(self, response: Response) -> None:
        """Take leave of *response*, and be there for the next one where that may be."""
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
            # Nobody has asked: whatever this is, the next answer could not be told from it.
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

    # The steps: each takes what it can from ``_rest``, and returns whether the next one may go on.

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
            # Somebody on the way may have understood it otherwise (RFC 9112, 6.1).
            self._persistent = False
        response.headers = headers
        response.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        response.status = status
        return True

    def _framing(self, status: int, headers: Mapping[str, str]) -> Callable[[Connection, Response], bool]:
        """Return how the body is to be read (RFC 9112, 6.3)."""
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
        size = self._line(CHUNK_HEAD_LIMIT_BYTES)
        if size is None:
            return False
        if not size or size.strip(HEX):
            size = size.partition(b";")[0].rstrip(b" \t")
            if not size or size.strip(HEX):
                raise NotHttp("the size of a chunk is no number")
        if len(size) > 15:
            raise NotHttp("a chunk is too long")
        left = int(size, 16)
        start, end = self._at, self._at + left
        if left and self._rest.startswith(b"\r\n", end):  # all of it is here, as nearly always
            response.add(self._rest[start:end])
            self._at = end + 2
            return self._at < len(self._rest)
        self._left = left
        self._step = Connection._chunk if left else Connection._trailer
        return True

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
            response.add(part)

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
        """Have what comes around the answer end some time."""
        self._around += length
        if self._around > HEAD_LIMIT_BYTES:
            raise NotHttp("what comes around the answer does not end")
