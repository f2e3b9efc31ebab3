"""Server-sent events below ``/v1``: ``data:`` and, where OpenAI's have one, ``event:``; the head goes out with the first of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from jarvis_core import cancellation
from jarvis_core.errors import RequestError, Unavailable
from jarvis_core.handlers import failure
from jarvis_core.handlers.call import BoundedSends, Call, ClientLeft
from jarvis_core.handlers.openai.wire import ErrorAnswer
from jarvis_core.tasks import Preempted, unless

CONTENT_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")
UNBUFFERED = (b"x-accel-buffering", b"no")
HEARTBEAT_S = 15.0
"""A comment this often keeps proxies from closing a quiet stream."""
HEARTBEAT = b": still here\n\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(body: Any) -> bytes:
    """Return *body* as an event without a name."""
    return b"data: %s\n\n" % _encode(body)


def named_event(name: str, body: Any) -> bytes:
    """Return *body* as an event with the *name* that its ``type`` has too."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode(body))


def error_event(error: RequestError) -> bytes:
    """Return *error* as the event that OpenAI's clients raise."""
    return event(ErrorAnswer(failure.openai_fields(error)))


Send = Callable[[bytes], Awaitable[None]]
"""Sends whole events."""


class EventStream:
    """
    An answer of events, whose head goes out with the first of them; enter it (``async with``).

    Sends a comment while nothing else is sent for ``HEARTBEAT_S``.
    """

    def __init__(self, call: Call, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._call = call
        self._headers = headers
        self._sends = BoundedSends()
        self._loop = asyncio.get_running_loop()
        self._last_sent_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None
        """The send of a comment, once there was one."""

    async def __aenter__(self) -> Self:
        await self._sends.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()
        await self._sends.__aexit__(kind, exc, trace)

    @property
    def stalled(self) -> bool:
        """Whether the client has read nothing for too long."""
        return self._sends.expired

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send *data*, whole events; raises ``ClientStalled`` out of the block where nobody reads."""
        if self._timer is None:
            await self._begin()
        if self._beat is not None:
            await asyncio.wait([self._beat])
        self._last_sent_s = self._loop.time()
        await self._sends.wait(self._call.send({"type": "http.response.body", "body": data, "more_body": more}))

    async def _begin(self) -> None:
        call = self._call
        call.status = 200
        own = (CONTENT_TYPE, UNBUFFERED, (b"x-request-id", call.request_id.encode()))
        await call.send(
            {"type": "http.response.start", "status": 200, "headers": [*own, *self._headers, *call.headers]}
        )
        self._timer = self._loop.call_later(HEARTBEAT_S, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        due_s = self._last_sent_s + HEARTBEAT_S
        if now < due_s:
            self._timer = self._loop.call_at(due_s, self._check)
            return
        self._last_sent_s = now
        self._timer = self._loop.call_later(HEARTBEAT_S, self._check)
        if self._beat is None or self._beat.done():
            self._beat = self._loop.create_task(self._send_heartbeat())

    async def _send_heartbeat(self) -> None:
        await self._call.send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})


async def send_all(
    call: Call,
    produce: Callable[[Send], Coroutine[None, None, None]],
    end: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """
    Send what *produce* gives to the function that it is called with, and *end*; cancels it when the client leaves, which is
    ``ClientLeft``.

    An error before the first event is raised, and is an answer of its own; later it is an event before *end*. *headers* may be
    added to until then.
    """
    watcher = asyncio.get_running_loop().create_task(call.left())
    try:
        await unless(watcher, _send_all(call, produce, end, headers, watcher))
    except Preempted:
        raise ClientLeft from None
    finally:
        watcher.cancel()


async def _send_all(
    call: Call,
    produce: Callable[[Send], Coroutine[None, None, None]],
    end: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    watcher: asyncio.Future[None],
) -> None:
    async with EventStream(call, headers) as stream:
        try:
            await produce(stream.send)
        except RequestError as error:
            if not call.status:
                raise
            end = error_event(error) + end
        except asyncio.CancelledError:
            if watcher.done() or stream.stalled or not call.status:
                raise
            # By a stop of the server, which waits a moment for its clients to be told.
            cancellation.absorb()
            end = error_event(Unavailable("The server is stopping.")) + end
        await stream.send(end, more=False)
