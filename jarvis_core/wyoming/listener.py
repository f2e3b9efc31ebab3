"""The TCP port for satellites: opened with the server, drained and closed with it."""

from __future__ import annotations

import asyncio

from jarvis_core import log
from jarvis_core.errors import Overloaded, StartError
from jarvis_core.settings import Wyoming
from jarvis_core.shares import current_user
from jarvis_core.tasks import start_in
from jarvis_core.wyoming.connection import ClientLeft, Connection
from jarvis_core.wyoming.events import Failure
from jarvis_core.wyoming.frames import HEAD_LIMIT_BYTES
from jarvis_core.wyoming.satellite import Assistant, Satellite

logger = log.get(__name__)

CONNECTION_LIMIT = 64
"""Open connections in one worker: a household has a few satellites, each with one a request."""
BACKLOG = 64


class WyomingListener:
    """Listens, and serves each connection in a task of its own."""

    def __init__(self, assistant: Assistant, settings: Wyoming, *, shared: bool) -> None:
        self._assistant = assistant
        self._settings = settings
        self._shared = shared
        """Whether other workers listen on the same port."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused = 0
        """Connections that were refused as too many."""

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return len(self._tasks)

    async def open(self) -> None:
        """Begin to listen; raises ``StartError``."""
        host, port = self._settings.host, self._settings.port
        try:
            self._server = await asyncio.start_server(
                self._accept, host, port, limit=HEAD_LIMIT_BYTES, backlog=BACKLOG, reuse_port=self._shared
            )
        except OSError as exc:
            raise StartError(
                f"WYOMING_PORT: cannot listen on {host}, port {port}: {exc.strerror}; free it, or set another"
            ) from exc

    async def close(self) -> None:
        """Listen no more, and end every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start_in(self._tasks, self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        peer = writer.get_extra_info("peername")
        try:
            if len(self._tasks) > CONNECTION_LIMIT:
                self.refused += 1
                refusal = Overloaded(f"As many as {CONNECTION_LIMIT} connections are open; try again.")
                await connection.send("error", Failure(refusal.message, refusal.code))
                return
            current_user.set(self._assistant.key(peer[0] if peer else ""))
            await Satellite(self._assistant, connection).serve()
        except ClientLeft:
            pass
        except Exception:
            logger.exception("a satellite's connection failed through a defect")
        finally:
            await connection.close()
