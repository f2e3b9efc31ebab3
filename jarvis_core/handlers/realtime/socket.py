"""Sends events over one WebSocket, numbered without gaps and one at a time, and closes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
from msgspec import Struct
from starlette.types import Message, Receive, Send

from jarvis_core import cancellation
from jarvis_core.errors import RequestError
from jarvis_core.handlers.call import SEND_TIMEOUT_S
from jarvis_core.handlers.realtime.output import event_error
from jarvis_core.handlers.realtime.wire import ErrorEvent

CLOSE_TIMEOUT_S = 1.0
"""How long a client may take to read its last events before its socket is closed, and then to read the close."""

NORMAL = 1000
GOING_AWAY = 1001
POLICY = 1008
TOO_BIG = 1009
DEFECT = 1011
TRY_AGAIN = 1013

_encoder = msgspec.json.Encoder()


class Socket:
    """
    One WebSocket.

    A sender waits until the socket is ``free``, then numbers an event and begins to send it without an await in
    between. So events go out in the order of their numbers, which ASGI does not promise for concurrent sends. (Granian
    2.8.7 kept the order of 57,000, hundreds at a time, on one, two and four threads.)
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun: asyncio.Future[None] | None = None
        """The last send."""
        self._waiting = asyncio.Lock()
        """Serialises waiting for a send's end: Granian wakes one waiter per send."""
        self.seq = 0
        """The number of the last event."""
        self.code: int | None = None
        """The code to close it with, once it is to be closed."""
        self._error: RequestError | None = None
        """Why it is to be closed, where the client is to be told."""
        self.gone = False
        """Whether the client is gone, so that nothing is sent any more."""
        self.stalled = False
        """Whether that is because it does not read."""
        self._receiving: asyncio.Future[Message] | None = None

    async def receive(self, receive: Receive) -> Message | None:
        """Wait for the client's next message; None when the socket is to be closed."""
        if self.code is not None:
            return None
        self._receiving = asyncio.ensure_future(receive())
        try:
            return await self._receiving
        except asyncio.CancelledError:
            # By ``close``, or by Granian when it stops.
            cancellation.absorb()
            return None

    def close(self, code: int, error: RequestError | None = None) -> None:
        """Have the socket closed with *code*, and *error* told before that, by the task that serves it."""
        if self.code is None:
            self.code, self._error = code, error
            if self._receiving is not None:
                # Granian (2.8.7) does not send a close while a receive is pending.
                self._receiving.cancel()

    def lose(self) -> None:
        """Close the socket of a client that does not read; its response can be resumed as after any other loss."""
        self.gone = self.stalled = True
        self.close(POLICY)

    def leave(self) -> None:
        """Send nothing more; the client has gone, or the socket is closed."""
        self.gone = True
        if self._begun is not None and not self._begun.done():
            # Granian (2.8.7) would keep the connection for as long as its client neither reads nor goes.
            self._begun.cancel()

    async def say_goodbye(self, reason: str = "") -> None:
        """Send the error that it is closed for, if any, and the close; waits ``CLOSE_TIMEOUT_S`` at most for each."""
        if self._error is not None:
            reason = self._error.code
            with contextlib.suppress(TimeoutError):
                async with cancellation.timeout(CLOSE_TIMEOUT_S):
                    await self.complain(self._error, None)
        if self.code is not None:
            with contextlib.suppress(TimeoutError):
                async with cancellation.timeout(CLOSE_TIMEOUT_S):
                    await self.free()
                    await self._send({"type": "websocket.close", "code": self.code, "reason": reason})

    @property
    def is_free(self) -> bool:
        """Whether no send is going on, and no task waits for one to end."""
        return (self._begun is None or self._begun.done()) and not self._waiting.locked()

    async def free(self) -> None:
        """Wait until no send is going on, which lasts for as long as the client does not read."""
        async with self._waiting:
            if self._begun is not None and not self._begun.done():
                try:
                    await self._begun
                except asyncio.CancelledError:
                    # By ``leave``, or was it the task that waits?
                    task = asyncio.current_task()
                    if not self.gone or (task is not None and task.cancelling()):
                        raise

    def begin(self, text: str) -> None:
        """
        Begin to send *text*, while it is free; raises what the last send raised.

        Waiting for the end of every send took 15 µs of CPU more (``perf websockets``), because the server's thread then
        has to wake the loop. By the time of the next delta the last one has long been sent.
        """
        if self._begun is not None and not self._begun.cancelled():
            begun, self._begun = self._begun, None
            begun.result()
        self._begun = asyncio.ensure_future(self._send({"type": "websocket.send", "text": text}))

    async def emit(self, build: Callable[[int], Struct]) -> None:
        """
        Send the event that *build* makes of its number; loses the client where it has not read the last event for
        ``SEND_TIMEOUT_S``.
        """
        if self.gone:
            return
        try:
            if not self.is_free:
                async with cancellation.timeout(SEND_TIMEOUT_S):
                    await self.free()
        except TimeoutError:
            self.lose()
        if not self.gone:
            self.seq += 1
            self.begin(_encoder.encode(build(self.seq)).decode())

    async def complain(self, error: RequestError, event_id: str | None) -> None:
        """Tell the client of *error*, caused by its event *event_id*."""
        body = event_error(error, event_id)
        await self.emit(lambda seq: ErrorEvent(f"event_{seq}", seq, body))
