"""The server's side of one WebSocket: events out, numbered without holes and one at a time, and its closing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
from msgspec import Struct
from starlette.types import Message, Receive, Send

from jarvis_core.errors import RequestError
from jarvis_core.handlers.call import SEND_TIMEOUT_S
from jarvis_core.handlers.realtime_output import event_error
from jarvis_core.handlers.realtime_wire import ErrorEvent

CLOSE_TIMEOUT_S = 1.0
"""How long a client may take to read what is due to it before its socket is closed, and then the close itself."""

NORMAL = 1000
GOING_AWAY = 1001
POLICY = 1008
TOO_LARGE = 1009
DEFECT = 1011
TRY_AGAIN = 1013

_encoder = msgspec.json.Encoder()


class Socket:
    """One WebSocket; who sends holds ``sending`` from the event's number until it is sent."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.sending = asyncio.Lock()
        self.seq = 0
        """Of the last event."""
        self.code: int | None = None
        """What it is to be closed with."""
        self.gone = False
        """Whether there is nobody to send anything to."""
        self._receiving: asyncio.Future[Message] | None = None

    async def receive(self, receive: Receive) -> Message | None:
        """Wait for what the client sends; None when the socket is to be closed."""
        if self.code is not None:
            return None
        self._receiving = asyncio.ensure_future(receive())
        try:
            return await self._receiving
        except asyncio.CancelledError:
            # By ``close``, or by Granian when it stops.
            return None

    def close(self, code: int) -> None:
        """Have the socket closed with *code* by the task that serves it."""
        if self.code is None:
            self.code = code
            if self._receiving is not None:
                # Granian (2.8.7) does not send a close while a receive is pending.
                self._receiving.cancel()

    def lose(self) -> None:
        """Close the socket of a client that does not read; its response can be resumed as after any other loss."""
        self.gone = True
        self.close(POLICY)

    async def say_goodbye(self) -> None:
        """Send the close; waits ``CLOSE_TIMEOUT_S`` at most."""
        if self.code is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.send({"type": "websocket.close", "code": self.code, "reason": ""})

    async def emit(self, build: Callable[[int], Struct]) -> None:
        """Send the event that *build* makes of its number; a client that does not take it for long is lost."""
        if self.gone:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), self.sending:
                self.seq += 1
                await self.send({"type": "websocket.send", "text": _encoder.encode(build(self.seq)).decode()})
        except TimeoutError:
            self.lose()

    async def complain(self, error: RequestError, event_id: str | None) -> None:
        """Tell the client of *error*, caused by its event *event_id*."""
        body = event_error(error, event_id)
        await self.emit(lambda seq: ErrorEvent(f"event_{seq}", seq, body))
