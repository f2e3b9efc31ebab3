"""
From a path to a handler by dictionary, and from whatever happens there to an answer.

No path is matched by a regular expression: a path without a variable is one look-up, one with a variable (always a whole
segment, the last or the last but one) one or two more. Everything that every answer has (request id, CORS, the error
body, the counters) is put here, once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from jarvis_core import cancellation, log
from jarvis_core.errors import MethodNotAllowed, NotFound, Overloaded, RequestError, Unavailable
from jarvis_core.handlers import failure
from jarvis_core.handlers.admission import Admission
from jarvis_core.handlers.call import SECURITY_HEADERS, Call, ClientLeft, ClientStalled, Reply, broken_body
from jarvis_core.handlers.long_answers import SLICE_BYTES, LongAnswers, send_slices
from jarvis_core.handlers.origin import SAFE_METHODS
from jarvis_core.handlers.query import QueryField
from jarvis_core.metrics import Metrics, RouteMetrics

logger = log.get(__name__)

ACCESS = "jarvis_core.access"
"""The logger with a line for each request, at the level debug."""
access = logging.getLogger(ACCESS)

HEARD = frozenset({b"host", b"x-request-id", b"origin", b"authorization", b"content-length", b"transfer-encoding"})
"""The headers that are looked at here."""
CANCEL_TIMEOUT_S = 0.5
"""How long calls that a stop has cancelled may take to tell their clients."""
RETRY_AFTER_S = 5
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
"""What a page may ask of a path that is none, to be told so."""

Handler = Callable[[Call], Awaitable[Reply | None]]
"""Answers a call; returns None when it has sent the answer itself."""
WebSocketHandler = Callable[[Scope, Receive, Send], Awaitable[None]]


class Route(NamedTuple):
    """One method on one path, with what the OpenAPI document says of it."""

    method: str
    path: str
    """With at most one variable, written ``{id}``."""
    handler: Handler
    summary: str
    description: str = ""
    """What the summary leaves out."""
    public: bool = False
    """Whether it needs no credentials."""
    exempt_from_limits: bool = False
    """Whether it is answered however much there is to do, as public ones are."""
    request: Any = None
    """The struct of the JSON body."""
    response: Any = None
    """The struct of the JSON answer with status 200; None where it is not JSON."""
    media_type: str = "application/json"
    query: tuple[QueryField, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    """(name, description) of each header of its own."""
    other: tuple[tuple[int, Any, str], ...] = ()
    """(status, struct, description) of other answers than errors."""
    uploads: tuple[str, ...] = ()
    """Media types of bodies that may come in place of JSON."""
    media: tuple[str, ...] = ()
    """Media types, other than JSON, of the answer with status 200."""


class _Target:
    """A route as it is served."""

    __slots__ = ("counters", "exempt_from_limits", "handler", "public")

    def __init__(self, route: Route, counters: RouteMetrics) -> None:
        self.handler = route.handler
        self.public = route.public
        self.exempt_from_limits = route.exempt_from_limits
        self.counters = counters


class Router:
    """The ASGI application below Starlette's lifespan: finds the handler, answers, counts."""

    def __init__(
        self,
        routes: list[Route],
        websockets: Mapping[str, WebSocketHandler],
        *,
        admission: Admission,
        metrics: Metrics,
        request_limit: int,
        answers_limit_bytes: int,
    ) -> None:
        self._request_limit = request_limit
        self.long_answers = LongAnswers(answers_limit_bytes)
        self.stalled: set[tuple[str, int]] = set()
        """The other ends of connections that do not read what they asked for, until somebody closes these."""
        self.refused = 0
        """Requests that were refused as too many."""
        self._static: dict[str, dict[str, _Target]] = {}
        self._variable: dict[tuple[str, str], dict[str, _Target]] = {}
        """(what is before the variable, what is after it) to the methods."""
        self._websockets = websockets
        self._admission = admission
        self._metrics = metrics
        self._calls: set[asyncio.Task[Any] | None] = set()
        """What runs for routes that are not public: a stop waits for these."""
        self._stopped = False
        self._unknown = metrics.route("", "unknown")
        # Unique with the others of this process and, by the random part, of all processes.
        self._request_prefix = os.urandom(6).hex()
        self._request_count = 0
        for route in routes:
            target = _Target(route, metrics.route(route.method, route.path))
            if "{" in route.path:
                before, _, rest = route.path.partition("{")
                key = (before, rest.partition("}")[2])
                self._variable.setdefault(key, {})[route.method] = target
            else:
                self._static.setdefault(route.path, {})[route.method] = target
        for methods in (*self._static.values(), *self._variable.values()):
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Serve one HTTP request or WebSocket."""
        # It passes on a coroutine and is none: one less to go through for each request, and each time it is woken.
        if scope["type"] == "http":
            return self._serve(scope, receive, send)
        return self._serve_websocket(scope, receive, send)

    async def drain(self, timeout_s: float) -> None:
        """
        Wait for the running calls; after *timeout_s* seconds they are cancelled.

        Those whose clients were sent nothing yet are answered 503, as are all that come later; the others break off.
        Public routes go on being answered.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (tasks := [task for task in self._calls if task is not None]) and loop.time() < deadline:
            await asyncio.wait(tasks, timeout=deadline - loop.time())
        self._stopped = True
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)

    def _find_variable(self, path: str) -> tuple[dict[str, _Target] | None, str]:
        """Return the methods of *path* and the value of its variable, an id in the small letters that we write."""
        before, slash, last = path.rpartition("/")
        if last:
            methods = self._variable.get((before + slash, ""))
            if methods is not None:
                return methods, last.lower()
            head, slash, middle = before.rpartition("/")
            if middle:
                methods = self._variable.get((head + slash, "/" + last))
                if methods is not None:
                    return methods, middle.lower()
        return None, ""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # One coroutine for all of a request; what waits for nothing, and is not in the way of every one, is beside it.
        started_s = time.perf_counter()
        metrics = self._metrics
        hosts = self._admission.hosts
        metrics.in_flight += 1
        request_id, host, origin, authorization, has_body = _read_head(scope["headers"])
        if not request_id:
            request_id = self._new_request_id()
        log.request_id.set(request_id)
        counters = self._unknown
        methods, path_param = self._static.get(scope["path"]), ""
        if methods is None:
            methods, path_param = self._find_variable(scope["path"])
        call = Call(scope, receive, send, request_id, path_param, started_s)
        if origin:
            call.headers = [*SECURITY_HEADERS, *self._admission.origins.headers(origin)]
        method = scope["method"]
        task: asyncio.Task[Any] | None = None
        share: str | None = None
        """Under which an admitted call is counted."""
        failed = False
        held = ""
        """The caller's key, where the answer is a long one."""
        try:
            try:
                if hosts is not None and host not in hosts.passed:
                    hosts.check(host)
                target = methods.get(method) if methods is not None else None
                if target is not None:
                    counters = target.counters
                    if not target.public:
                        share = await self._admission.admit(
                            call, authorization, origin, counted=not target.exempt_from_limits
                        )
                        task = self._own_call(target)
                    reply = await target.handler(call)
                    held = self._hold(call, reply, method)
                else:
                    reply = self._reply_without_handler(methods, method, origin, call)
            except ClientStalled:
                self._note_stalled(call)
                return
            except asyncio.CancelledError:
                if not self._stopped:
                    raise
                if call.status:
                    return
                cancellation.absorb()
                reply = _failure(_stopping(), call)
            except (RequestError, ClientLeft) as error:
                reply = _reply_to(error, call)
                if reply is None:
                    return
                failed = isinstance(error, RequestError)
            except Exception:
                logger.exception("a request failed through a defect", method=scope["method"], path=scope["path"])
                reply = _failure(failure.INTERNAL, call)
            try:
                if reply is not None:
                    call.status = reply.status
                    if call.body_pending and (has_body or (failed and method not in SAFE_METHODS)):
                        # Whoever is still sending, a recording with a token that has expired, is to see why it is refused;
                        # and of a long answer nothing arrives where a body that nobody asked for lies unread.
                        await call.discard_body()
                    headers = [*reply.headers, (b"x-request-id", request_id.encode()), *call.headers]
                    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
                    if held:
                        await send_slices(call, reply)
                    else:
                        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else reply.body})
            except ClientStalled:
                self._note_stalled(call)
            finally:
                duration_s = time.perf_counter() - started_s
                counters.observe(call.status, duration_s)
        finally:
            metrics.in_flight -= 1
            if held and reply is not None:
                self.long_answers.release(held, len(reply.body))
            if share is not None:
                self._calls.discard(task)
                self._admission.leave(share)
        if access.isEnabledFor(logging.DEBUG):
            log.get(ACCESS).debug(
                "answered",
                method=scope["method"],
                path=scope["path"],
                status=call.status,
                duration_s=round(duration_s, 6),
            )

    def _own_call(self, target: _Target) -> asyncio.Task[Any] | None:
        """Have a stop wait for the running task; raises ``Unavailable`` after one, and ``Overloaded``."""
        if self._stopped:
            raise _stopping()
        if len(self._calls) >= self._request_limit and not target.exempt_from_limits:
            self.refused += 1
            raise Overloaded("Too many requests are being answered.", retry_after_s=1)
        task = asyncio.current_task()
        self._calls.add(task)
        return task

    def _reply_without_handler(
        self, methods: dict[str, _Target] | None, method: str, origin: bytes, call: Call
    ) -> Reply:
        """Answer a preflight; raises ``NotFound`` for a path that is none, and ``MethodNotAllowed``."""
        if method == "OPTIONS" and origin:
            # Of an unknown path too: a page whose preflight fails is not shown why.
            return _preflight(methods or METHODS, call, allowed=self._admission.origins.allows(origin))
        if methods is None:
            raise NotFound("There is no such path.")
        raise MethodNotAllowed(f"{method} is not a method of this path.", allow=", ".join(sorted(methods)))

    def _hold(self, call: Call, reply: Reply | None, method: str) -> str:
        """Count *reply* where it is a long one, and return under whose key; raises ``RateLimited`` and ``Overloaded``."""
        if reply is None or len(reply.body) <= SLICE_BYTES or method == "HEAD":
            return ""
        key = self._admission.key(call)
        self.long_answers.hold(key, len(reply.body))
        return key

    def _note_stalled(self, call: Call) -> None:
        # Over HTTP/2 the connection has other requests, which may be read.
        if call.peer is not None and call.scope["http_version"].startswith("1"):
            self.stalled.add(call.peer)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = next((_sound_request_id(value) for key, value in scope["headers"] if key == b"x-request-id"), "")
        log.request_id.set(request_id or self._new_request_id())
        handler = self._websockets.get(scope["path"])
        if handler is not None:
            await handler(scope, receive, send)
            return
        await receive()
        await failure.refuse_handshake(send, NotFound("There is no such path."), scope["path"])

    def _new_request_id(self) -> str:
        self._request_count += 1
        return f"{self._request_prefix}-{self._request_count:x}"


def _read_head(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, bytes, bytes, bytes, bool]:
    """Return the request id (empty where it is not sound), Host, Origin, Authorization, and whether a body is announced."""
    request_id = ""
    host = origin = authorization = b""
    has_body = False
    for key, value in headers:
        if key not in HEARD:
            pass
        elif key == b"host":
            host = value
        elif key == b"x-request-id":
            request_id = _sound_request_id(value)
        elif key == b"origin":
            origin = value
        elif key == b"authorization":
            # The lines of a header are one (RFC 9110, 5.3): of two credentials neither is taken.
            authorization = authorization + b", " + value if authorization else value
        else:
            has_body = value != b"0"
    return request_id, host, origin, authorization, has_body


def _reply_to(error: RequestError | ClientLeft, call: Call) -> Reply | None:
    """Return the answer to a request that failed with *error*; None where nobody waits for one."""
    if isinstance(error, RequestError):
        return _failure(error, call)
    return None if call.status or not call.body_pending else _failure(broken_body(), call)


def _failure(error: RequestError, call: Call) -> Reply:
    body = failure.body_of(error, call.request_id, call.scope["path"])
    return Reply(body, failure.status_of(error), headers=failure.headers_of(error))


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping.", retry_after_s=RETRY_AFTER_S)


def _preflight(methods: Iterable[str], call: Call, *, allowed: bool) -> Reply:
    return Reply(
        b"",
        204,
        headers=[
            (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
            (b"access-control-allow-headers", call.header(b"access-control-request-headers").encode("latin-1") or b"*"),
            (b"access-control-max-age", b"600"),
        ]
        if allowed
        else [],
    )


def _sound_request_id(value: bytes) -> str:
    """Return the caller's request id if it is 1..128 printable ASCII characters, else nothing."""
    if 0 < len(value) <= 128 and value.isascii() and (text := value.decode()).isprintable():
        return text
    return ""
