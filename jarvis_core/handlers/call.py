"""An HTTP request as handlers get it, and the reply that they return."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Message, Receive, Scope, Send

from jarvis_core import cancellation
from jarvis_core.errors import InvalidJson, InvalidRequest, TooLarge, UnsupportedMediaType
from jarvis_core.models import Caller
from jarvis_core.tasks import Preempted, unless

T = TypeVar("T")

JSON = b"application/json"

SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""
On every answer (as OWASP's REST Security Cheat Sheet has it): nothing is kept by caches, taken for another type than it
says, or shown inside a page. Whether a host is reached by TLS alone is for its owner to say, in the proxy.
"""

BODY_PAUSE_S = 20.0
"""How long a client may take to send the next part of its request."""
BODY_RATE_BYTES_S = 1_000
"""How much of a body has to come each second, on the whole; a client that is late by ``BODY_PAUSE_S`` is given up."""
SEND_TIMEOUT_S = 30.0
"""How long a client may take nothing of an answer that is sent as it is made."""
DISCARD_LIMIT_BYTES = 64 << 20
DISCARD_PAUSE_S = 0.2
"""A client that sends nothing for so long may be waiting for the answer (``Expect: 100-continue``)."""
DISCARD_TIMEOUT_S = 10.0


class ClientLeft(Exception):
    """
    The client closed the connection, or does not read what it is sent.

    Where more of its body was to come (``Call.body_pending``), the client may still be connected: see ``broken_body``.
    """


class ClientStalled(ClientLeft):
    """The client is connected and does not read; its connection is to be closed, because it holds what was sent."""


class Reply:
    """A whole answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        content_type: bytes = JSON,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.body = body
        self.status = status
        self.headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]


class BoundedSends:
    """
    Bounds every send by ``SEND_TIMEOUT_S``: cancels the block (``async with``) and raises ``ClientStalled`` when a send
    takes longer.

    Granian's send waits for as long as the connection is open and nobody reads.
    """

    __slots__ = ("_loop", "_since", "_timeout", "_timer")

    def __init__(self) -> None:
        self._since: float | None = None
        """When the current send began; None between sends."""
        self._timeout = cancellation.timeout(None)
        self._loop = asyncio.get_running_loop()
        # One timer that looks at the clock when it fires costs less than a deadline armed anew for every send.
        self._timer = self._loop.call_later(SEND_TIMEOUT_S, self._check_progress)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        timeout = self._timeout
        del (
            self._timeout
        )  # it refers to the task, whose end may refer to this: together they would wait for the collector
        try:
            await timeout.__aexit__(kind, exc, trace)
        except TimeoutError as late:
            raise ClientStalled from late

    async def wait(self, sending: Awaitable[None]) -> None:
        """Wait for a send."""
        self._since = self._loop.time()
        await sending
        self._since = None

    @property
    def expired(self) -> bool:
        """Whether a send has taken too long, and the block is cancelled for it."""
        return self._timeout.expired()

    def _check_progress(self) -> None:
        now = self._loop.time()
        due = SEND_TIMEOUT_S + (now if self._since is None else self._since)
        if now >= due:
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(due, self._check_progress)


class Call:
    """One request, as a handler gets it."""

    __slots__ = (
        "_first_headers", "body_pending", "caller", "headers", "path_param", "receive", "request_id", "scope", "send",
        "started_s", "status",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, path_param: str, started_s: float
    ) -> None:
        self.scope = scope
        self._first_headers: dict[bytes, bytes] | None = None
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.path_param = path_param
        """The part of the path that the route leaves open; empty where it has none."""
        self.started_s = started_s
        """When it arrived, of ``time.perf_counter``."""
        self.caller: Caller = ANYBODY
        self.headers: Sequence[tuple[bytes, bytes]] = SECURITY_HEADERS
        """Headers that are added to the answer: those of every answer, for browsers' pages, and of the rate limit."""
        self.status = 0
        """Of an answer whose start the handler has sent itself; 0 before."""
        self.body_pending = True
        """Whether some of the body may still be to come."""

    @property
    def peer(self) -> tuple[str, int] | None:
        """The other end of the connection: the client's own, or a proxy's."""
        return peer_of(self.scope)

    def header(self, name: bytes) -> str:
        """Return the first header *name* (lower case), empty when there is none."""
        if self._first_headers is None:
            self._first_headers = {}
            for key, value in self.scope["headers"]:
                self._first_headers.setdefault(key, value)
        return str(self._first_headers.get(name, b""), "latin-1")

    def query(self) -> dict[str, str]:
        """Return the query's fields; raises ``InvalidRequest`` where it is not UTF-8 or has too many."""
        raw: bytes = self.scope["query_string"]
        if not raw:
            return {}
        try:
            return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50))
        except ValueError as exc:
            raise InvalidRequest.field("query", "is not a well-formed UTF-8 query") from exc

    def declared_length(self, limit_bytes: int) -> int:
        """Return how long the body says it is, *limit_bytes* if it does not; raises ``TooLarge`` over that."""
        declared = self.header(b"content-length")
        if not declared.isdigit():
            return limit_bytes
        if int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        return int(declared)

    async def body(self, limit_bytes: int) -> bytes:
        """
        Wait for the whole body.

        Raises ``TooLarge`` over *limit_bytes*, ``ClientLeft`` if it never comes, and ``InvalidRequest`` where nothing
        comes for ``BODY_PAUSE_S``, or less than ``BODY_RATE_BYTES_S``.
        """
        parts = await self.body_parts(limit_bytes, to_end=False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def body_parts(
        self, limit_bytes: int, arriving: Callable[[int], None] = lambda _length_bytes: None, *, to_end: bool = True
    ) -> list[bytes]:
        """
        Wait for the whole body and return it in the pieces that it came in; raises as ``body`` does.

        *arriving* is told how much has come with each piece, and may raise. Without *to_end* a body of the length that was
        declared is whole, and the server's word of that is left to whoever watches the client, which may be done once: where
        such a watch is cancelled before it had that word, the next one is told that the client has left (Granian 2.8.7).
        """
        self.declared_length(limit_bytes)
        parts: list[bytes] = []
        length = 0
        loop = asyncio.get_running_loop()
        pause_s = BODY_PAUSE_S
        while self.body_pending:
            # A client that sends a byte now and then would keep the request open for days, and one that has sent most of
            # it at once for hours: what came early earns no more than one pause.
            asked_at = loop.time()
            parts.append(await self._next_part(pause_s))
            earned_s = len(parts[-1]) / BODY_RATE_BYTES_S
            pause_s = min(pause_s - (loop.time() - asked_at) + earned_s, BODY_PAUSE_S)
            length += len(parts[-1])
            if length > limit_bytes:
                parts.clear()
                raise _too_large(limit_bytes)
            if self.body_pending and not to_end and self._is_whole(length):
                self.body_pending = False  # to be told so would take the server, and us, another turn
            arriving(length)
        return parts

    def _is_whole(self, length: int) -> bool:
        declared = self.header(b"content-length")
        return declared.isdigit() and int(declared) == length and not self.header(b"transfer-encoding")

    async def discard_body(self) -> None:
        """
        Read the rest of the body and discard it, so that a client that is still sending gets to see the answer.

        The connection is reset when it is answered and closed while more is coming. Gives up when ``DISCARD_PAUSE_S``
        bring nothing, when the body breaks off, and after ``DISCARD_TIMEOUT_S`` or ``DISCARD_LIMIT_BYTES``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DISCARD_TIMEOUT_S
        length = 0
        try:
            while self.body_pending and length < DISCARD_LIMIT_BYTES:
                async with cancellation.timeout_at(min(deadline, loop.time() + DISCARD_PAUSE_S)):
                    length += len(await self._next_part(BODY_PAUSE_S))
        except (TimeoutError, ClientLeft):
            pass
        finally:
            # Whatever else comes is ignored.
            self.body_pending = False

    async def _next_part(self, pause_s: float) -> bytes:
        try:
            async with cancellation.timeout(pause_s):
                message = await self.receive()
        except TimeoutError as exc:
            self.body_pending = False  # long enough was waited for it: the answer is not to wait for the rest
            if pause_s < BODY_PAUSE_S:
                raise InvalidRequest(f"The body comes too slowly: under {BODY_RATE_BYTES_S} bytes a second.") from exc
            raise InvalidRequest(f"The body stopped arriving: nothing came for {BODY_PAUSE_S:g} s.") from exc
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self.body_pending = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def decode(self, decoder: msgspec.json.Decoder[T], limit_bytes: int) -> T:
        """Return the JSON body as a struct; raises an error that names what is wrong with it."""
        return decode(decoder, await self.json_body(limit_bytes))

    async def json_body(self, limit_bytes: int) -> bytes:
        """Return the body, which is said to be JSON where anything is said; raises as ``body`` does, and where it is not."""
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMediaType(f"The body has to be application/json, not {kind}.")
        return await self.body(limit_bytes)

    def watch(self, left: Callable[[], None]) -> ClientWatch:
        """Have *left* called once the client has closed the connection; discards what it sends until then."""
        return ClientWatch(self, left)

    async def left(self) -> None:
        """Wait until the client has closed the connection; discards what it sends until then."""
        while (message := await self.receive())["type"] != "http.disconnect":
            self.body_pending = message.get("more_body", False)

    async def unless_left(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what *work* returns; cancels it and raises ``ClientLeft`` when the client leaves first."""
        watcher = asyncio.get_running_loop().create_task(self.left())
        try:
            return await unless(watcher, work)
        except Preempted:
            raise ClientLeft from None
        finally:
            watcher.cancel()


class ClientWatch:
    """
    Watches for the end of a client's connection until it is cancelled.

    It waits by a callback: a task for it would be a tenth of what the core itself does for a turn.
    """

    __slots__ = ("_call", "_left", "_loop", "_message", "over")

    def __init__(self, call: Call, left: Callable[[], None]) -> None:
        self.over = False
        """Whether the client has closed the connection."""
        self._call = call
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._receive()

    def cancel(self) -> None:
        """Watch no more."""
        self._message.remove_done_callback(self._take)
        self._message.cancel()

    def _receive(self) -> None:
        # Granian's are futures already (2.8.7).
        self._message: asyncio.Future[Message] = asyncio.ensure_future(self._call.receive(), loop=self._loop)
        self._message.add_done_callback(self._take)

    def _take(self, received: asyncio.Future[Message]) -> None:
        if received.cancelled():
            return
        message = received.result()
        if message["type"] == "http.disconnect":
            self.over = True
            self._left()
        else:
            self._call.body_pending = message.get("more_body", False)
            self._receive()


ANYBODY = Caller("")


def peer_of(scope: Scope) -> tuple[str, int] | None:
    """Return the other end of a request's connection."""
    client = scope.get("client")
    # Granian (2.8.7) gives the port as a text; in ASGI it is a number.
    return (client[0], int(client[1])) if client else None


def decode(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """Return *text* as a struct; raises ``InvalidJson``, or ``InvalidRequest`` naming the field."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as exc:
        # "Expected `str`, got `int` - at `$.content`"
        rule, _, path = str(exc).partition(" - at `")
        raise InvalidRequest.field(path.rstrip("`") or "$", rule) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson("The body is not JSON in UTF-8." if text else "The body is empty; JSON is needed.") from exc


def text_field(path: str, text: str) -> str:
    """Return *text* if it can be stored; raises ``InvalidRequest`` for NUL, lone surrogates or only white space."""
    if "\0" in text:
        raise InvalidRequest.field(path, "must not contain the character NUL")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise InvalidRequest.field(path, "must not contain lone surrogates") from exc
    if not text or text.isspace():
        raise InvalidRequest.field(path, "must not be blank")
    return text


def broken_body() -> InvalidRequest:
    """
    Return the error for a body that broke off.

    Granian (2.8.7) reports a body that breaks off, or whose chunks are malformed, as a client that has left, and
    answers 500 in plain text unless the application answers. An answer to a client that did leave does no harm.
    """
    return InvalidRequest.field("body", "broke off before its end, or its chunks are malformed")


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The body is over {limit_bytes} bytes.", details={"limit_bytes": limit_bytes})


def json_reply(encoder: msgspec.json.Encoder, body: Any) -> Reply:
    """Return *body* as a JSON reply with status 200."""
    return Reply(encoder.encode(body))
