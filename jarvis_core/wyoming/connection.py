"""One client's connection: what it sends, read a little ahead; what it is sent; and whether it is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from msgspec import Struct

from jarvis_core import cancellation
from jarvis_core.wyoming.events import Ping
from jarvis_core.wyoming.frames import HEAD_LIMIT_BYTES, BadFrame, Frame, encode_frame, read_frame

T = TypeVar("T")

AHEAD_FRAMES = 1
"""
Frames that are read while an earlier one is being worked on, beside the one that comes; behind them the client's own
buffers fill. So a connection holds 1.5 MiB at most, and all of them 96.
"""
IDLE_TIMEOUT_S = 600.0
"""A connection over which nothing comes for so long is closed."""
SEND_TIMEOUT_S = 30.0
"""How long a client may leave its connection so full that nothing more can be sent."""
PART_TIMEOUT_S = 1.0
"""How long a client that is told an error may go on sending before its connection is gone."""
BEAT_S = 2.0
"""While something is worked on the client hears from us at least so often: satellites hang up in silence."""


class ClientLeft(Exception):
    """The client has closed its connection, or does not read."""


class Connection:
    """A stream of frames in both directions; to be closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        loop = asyncio.get_running_loop()
        self._ahead: asyncio.Queue[Frame | BadFrame | None] = asyncio.Queue(AHEAD_FRAMES)
        self._left: asyncio.Future[None] = loop.create_future()
        self._reading = loop.create_task(self._read())

    async def _read(self) -> None:
        last: BadFrame | None = None
        try:
            while True:
                async with cancellation.timeout(IDLE_TIMEOUT_S):
                    frame = await read_frame(self._reader)
                if frame is None:
                    break
                await self._ahead.put(frame)
        except BadFrame as exc:
            last = exc
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            pass
        if last is None:
            self._left.set_result(None)
        await self._ahead.put(last)

    async def next(self) -> Frame | None:
        """Wait for the next frame, None where the client has left; raises ``BadFrame``."""
        taken = await self._ahead.get()
        if isinstance(taken, BadFrame):
            raise taken
        return taken

    async def send(self, kind: str, data: Struct | None = None, payload: bytes = b"") -> None:
        """Send an event; raises ``ClientLeft``."""
        try:
            self._writer.write(encode_frame(kind, data, payload))
            async with cancellation.timeout(SEND_TIMEOUT_S):
                await self._writer.drain()
        except (OSError, TimeoutError) as exc:
            raise ClientLeft from exc

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """
        Return what *work* returns, or raise what it raises; the client is told meanwhile that it goes on.

        Raises ``ClientLeft`` where the client leaves; *work* is then cancelled and has ended.
        """
        task = asyncio.get_running_loop().create_task(work)
        try:
            while True:
                waiting: tuple[asyncio.Future[Any], ...] = task, self._left
                await asyncio.wait(waiting, timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                if self._left.done():
                    raise ClientLeft
                await self.send("ping", Ping())
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # retrieved, also where the client left first
            # Its error refers to this frame.
            del task

    async def close(self) -> None:
        """Close it, and wait until nothing of it runs."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        try:
            if not self._left.done():
                await self._part()
        finally:
            self._writer.transport.abort()

    async def _part(self) -> None:
        """
        Have the client read to our end before the connection is gone.

        Closed over what it has sent and nobody has read, the kernel would reset it (RFC 2525, 2.17), and what it was told
        last would be lost.
        """
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write_eof()
            async with cancellation.timeout(PART_TIMEOUT_S):
                while await self._reader.read(HEAD_LIMIT_BYTES):
                    pass
