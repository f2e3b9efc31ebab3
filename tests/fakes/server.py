"""The server under every fake: start and stop, the record of what was asked, and control from outside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakSet

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from .faults import Fault, choose, misbehave
from .streams import FaultyMode, Gate, ModelStream, Player, Script, StreamMode

ModeT = TypeVar("ModeT", bound=FaultyMode)

KEPT_REQUESTS = 2000
"""The record keeps at least so many of the last requests, at most twice as many; ``requests_seen`` counts all."""

BODY_LIMIT_BYTES = 64 * 1024 * 1024
"""Larger requests get 413."""

HTML_405 = (
    "<!doctype html>\n<html lang=en>\n<title>405 Method Not Allowed</title>\n<h1>Method Not Allowed</h1>\n"
    "<p>The method is not allowed for the requested URL.</p>\n"
)

STREAM = web.RequestKey("stream", ModelStream)
"""Where a model call's request keeps its record."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    received_at: float
    """Monotonic, when the body was complete."""
    client_port: int
    """Tells the connections apart."""

    @property
    def json(self) -> Any:
        """The decoded body; raises ``msgspec.DecodeError``."""
        return msgspec.json.decode(self.body)


class Refusal(Exception):
    """Ends a request with an error answer in the neighbour's own shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class FakeServer(Generic[ModeT]):
    """
    An HTTP server on 127.0.0.1 whose ``mode`` may be set at any time; it counts for the requests that arrive later.

    Enter it (``async with``) to listen. Subclasses name their ``routes``, the paths whose calls are model streams, and
    the shape of their errors.
    """

    model_paths: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, mode: ModeT, *, port: int = 0) -> None:
        self._faults_left: dict[str, int] = {}
        self.mode = mode
        self.port = port
        """0 until it listens, unless one was asked for."""
        self.gate = Gate()
        self.requests: list[Recorded] = []
        self.requests_seen: Counter[str] = Counter()
        """How many requests came to each path, whatever was answered."""
        self.streams: list[ModelStream] = []
        """The model calls, oldest first; kept like ``requests``."""
        self.open_streams = 0
        """Model calls being answered now."""
        self.peak_streams = 0
        """The most that were open at once."""
        self._arrived = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._return: asyncio.Task[None] | None = None
        self._used: WeakSet[asyncio.Transport] = WeakSet()

    def routes(self) -> list[web.RouteDef]:
        """Name the neighbour's endpoints."""
        raise NotImplementedError

    def error_response(self, status: int, message: str) -> web.Response:
        """Make an error in the neighbour's own shape; most say ``{"error": message}``."""
        return json_response({"error": message}, status=status)

    @property
    def mode(self) -> ModeT:
        """How it behaves; setting it also makes the faults count their times anew."""
        return self._mode

    @mode.setter
    def mode(self, mode: ModeT) -> None:
        self._mode = mode
        self._faults_left = {path: fault.times for path, fault in mode.faults.items() if fault.times is not None}

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """TCP connections at present, idle ones too."""
        server = self._runner.server if self._runner else None
        return len(server.connections) if server else 0

    def is_connected(self, client_port: int) -> bool:
        """Whether the connection from *client_port* is open."""
        server = self._runner.server if self._runner else None
        transports = [connection.transport for connection in server.connections] if server else []
        return any(one is not None and one.get_extra_info("peername")[1] == client_port for one in transports)

    @property
    def last_stream_closed_at(self) -> float | None:
        """When the loss of the last stream that its client left was noticed (monotonic)."""
        left = (stream.ended_at for stream in self.streams if stream.outcome == "client_left")
        return max((at for at in left if at is not None), default=None)

    def last(self, path: str) -> Recorded:
        """Return the latest request below *path*: others may come by themselves, for health or for vectors."""
        return next(request for request in reversed(self.requests) if request.path.startswith(path))

    async def seen(self, path: str, times: int = 1, timeout_s: float = 5.0) -> None:
        """Wait until *path* was asked so many *times*, whatever was or will be answered; raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            while self.requests_seen[path] < times:
                self._arrived.clear()
                await self._arrived.wait()

    async def stream_closed(self, timeout_s: float = 5.0) -> float:
        """
        Wait until the client has left the newest model stream, and return when that was noticed (monotonic).

        Waits for a stream to start when there was none. Raises ``TimeoutError``, and ``AssertionError`` when the stream
        ended in another way.
        """
        async with asyncio.timeout(timeout_s):
            while not self.streams:
                self._arrived.clear()
                await self._arrived.wait()
            stream = self.streams[-1]
            await stream.wait_ended(timeout_s)
        if stream.outcome != "client_left" or stream.ended_at is None:
            raise AssertionError(f"the client did not leave the stream: {stream.outcome}")
        return stream.ended_at

    def forget(self) -> None:
        """Drop the record of requests and finished streams."""
        self.requests.clear()
        self.requests_seen.clear()
        self.streams = [stream for stream in self.streams if stream.outcome == "open"]
        self.peak_streams = self.open_streams

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._serve], client_max_size=BODY_LIMIT_BYTES)
        app.add_routes(self.routes())
        app.router.add_route("*", "/_control", self._control)
        app.router.add_post("/_control/{action}", self._act)
        app.router.add_get("/_state", self._state)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        await self.come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self.streams:
            stream.end("stopped")
        if self._return is not None:
            self._return.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._return
        await self.go_away()
        if self._runner is not None:
            await self._runner.cleanup()

    async def go_away(self) -> None:
        """Stop listening and drop every connection: what connects now is refused."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        self.drop_connections()
        # A connection counts until its handler has run to its end, which cancelled handlers soon do.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while self.open_connections:  # noqa: ASYNC110  # the server has no event for it
                    await asyncio.sleep(0.001)

    async def come_back(self) -> None:
        """Listen again on the same port."""
        if self._site is not None or self._runner is None:
            return
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=1024, reuse_address=True)
        await site.start()
        self._site = site
        self.port = site.port

    def drop_connections(self) -> None:
        """Close every connection, idle or in use, without a word."""
        for stream in self.streams:
            stream.end("cut")
        server = self._runner.server if self._runner else None
        for connection in server.connections if server else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def play(self, request: web.Request, mode: StreamMode, script: Script, text: str) -> web.StreamResponse:
        """Stream *text* as the answer to *request*, a model call."""
        return await Player(request, mode, script, self.gate, request[STREAM]).play(text)

    @web.middleware
    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/_"):
            return await handler(request)
        body = await request.read()
        reused = self._record(request, body)
        if request.path not in self.model_paths:
            return await self._answer(request, handler, reused=reused)
        stream = request[STREAM] = self._open_stream(body)
        try:
            return await self._answer(request, handler, reused=reused)
        except (asyncio.CancelledError, ConnectionError):
            stream.end("client_left")
            raise
        finally:
            severed = request.transport is None or request.transport.is_closing()
            stream.end("cut" if severed else "served")
            self.open_streams -= 1

    def _open_stream(self, body: bytes) -> ModelStream:
        stream = ModelStream(body)
        if len(self.streams) >= 2 * KEPT_REQUESTS:
            del self.streams[:KEPT_REQUESTS]
        self.streams.append(stream)
        self.open_streams += 1
        self.peak_streams = max(self.peak_streams, self.open_streams)
        return stream

    def _record(self, request: web.Request, body: bytes) -> bool:
        """Record *request* and tell whether its connection has served one before."""
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        if len(self.requests) >= 2 * KEPT_REQUESTS:
            del self.requests[:KEPT_REQUESTS]
        self.requests_seen[request.path] += 1
        self._arrived.set()
        self.requests.append(
            Recorded(
                method=request.method,
                path=request.path,
                query=request.query_string,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=body,
                received_at=time.monotonic(),
                client_port=peer[1] if peer else 0,
            )
        )
        if transport is None:
            return False
        reused = transport in self._used
        self._used.add(transport)
        return reused

    async def _answer(self, request: web.Request, handler: Handler, *, reused: bool) -> web.StreamResponse:
        fault = self._take_fault(request.path)
        try:
            if fault is None:
                return await handler(request)
            if fault.delay_s and fault.kind != "trickle":
                await asyncio.sleep(fault.delay_s)
            if fault.kind == "none" and fault.status:
                return self._fail(fault)
            return await misbehave(fault, request, handler, reused=reused)
        except Refusal as refusal:
            return self.error_response(refusal.status, refusal.message)
        except web.HTTPMethodNotAllowed:
            return web.Response(status=405, text=HTML_405, content_type="text/html")
        except web.HTTPNotFound:
            return self.error_response(404, "Not found")

    def _take_fault(self, path: str) -> Fault | None:
        prefix = choose(self._mode.faults, path)
        if prefix is None:
            return None
        left = self._faults_left.get(prefix)
        if left is not None:
            if left <= 0:
                return None
            self._faults_left[prefix] = left - 1
        return self._mode.faults[prefix]

    def _fail(self, fault: Fault) -> web.Response:
        response = self.error_response(fault.status, fault.message or f"failing with {fault.status} as told")
        if fault.retry_after_s is not None:
            response.headers["Retry-After"] = str(fault.retry_after_s)
        return response

    async def _control(self, request: web.Request) -> web.Response:
        """POST sets the mode (what is absent gets its default), PATCH changes the named fields, GET tells it."""
        fields = msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
        try:
            if request.method == "POST":
                self.mode = msgspec.convert(fields, type(self._mode))
            elif request.method == "PATCH":
                self.mode = msgspec.convert(msgspec.to_builtins(self._mode) | fields, type(self._mode))
        except msgspec.ValidationError as error:
            return json_response({"error": str(error)}, status=400)
        return json_response(self._mode)

    async def _act(self, request: web.Request) -> web.Response:
        """Do what cannot be a mode; the number in ``?n=`` is deltas for step and seconds for away."""
        number = float(request.query.get("n", "1"))
        match request.match_info["action"]:
            case "release":
                self.gate.release()
            case "shut":
                self.gate.shut()
            case "step":
                self.gate.step(int(number))
            case "forget":
                self.forget()
            case "drop":
                asyncio.get_running_loop().call_later(0.02, self.drop_connections)
            case "away":
                self._return = asyncio.create_task(self._be_away(number))
            case unknown:
                return json_response({"error": f"no action {unknown}"}, status=404)
        return json_response({"done": True})

    async def _be_away(self, duration_s: float) -> None:
        await asyncio.sleep(0.02)
        await self.go_away()
        await asyncio.sleep(duration_s)
        await self.come_back()

    async def _state(self, request: web.Request) -> web.Response:
        del request
        last = {recorded.path: recorded.body.decode(errors="replace")[:200_000] for recorded in self.requests}
        return json_response(
            {
                "requests_seen": dict(self.requests_seen),
                "last_bodies": last,
                "open_connections": self.open_connections,
                "open_streams": self.open_streams,
                "peak_streams": self.peak_streams,
                "gate_waiting": self.gate.waiting,
                "outcomes": dict(Counter(stream.outcome for stream in self.streams)),
                "last_stream_closed_at": self.last_stream_closed_at,
                "deltas_sent": self.streams[-1].deltas_sent if self.streams else 0,
                "now": time.monotonic(),
            }
        )


def json_response(value: object, status: int = 200) -> web.Response:
    """Answer with *value* as JSON in UTF-8, its characters not escaped."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
