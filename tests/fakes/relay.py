"""A relay in front of a real PostgreSQL server: the network between, which fails when told to."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class DatabaseRelay:
    """
    Listens on 127.0.0.1 and passes everything on to the server behind *conninfo*.

    Enter it (``async with``) to listen; ``conninfo`` then leads through it.
    """

    def __init__(self, conninfo: str) -> None:
        self._target = conninfo
        fields = conninfo_to_dict(conninfo)
        self._socket = f"{fields['host']}/.s.PGSQL.{fields['port']}"
        self._server: asyncio.Server | None = None
        self._port = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._losing: bytes | None = None
        self._leaving: tuple[bytes, bool] | None = None
        self._farewell: asyncio.Task[None] | None = None
        self.left = asyncio.Event()
        """Set when it went away because of what was asked."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections_seen = 0
        """How many connections were accepted."""

    @property
    def conninfo(self) -> str:
        """The same database through the relay."""
        return make_conninfo(self._target, host="127.0.0.1", port=self._port, sslmode="disable")

    @property
    def open_connections(self) -> int:
        """Connections that are relayed now."""
        return len(self._tasks)

    async def go_away(self) -> None:
        """Refuse what connects from now on, and drop every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop_connections()

    async def come_back(self) -> None:
        """Listen again on the same port, and pass on again."""
        self._flowing.set()
        self._answering.set()
        self._losing = None
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    def hang(self) -> None:
        """Accept, but pass nothing on until ``come_back``: a host that went down, or a firewall."""
        self._flowing.clear()

    def keep_answers(self) -> None:
        """Pass on what is asked, but no answer until ``come_back``: what is asked for is done, and nobody learns of it."""
        self._answering.clear()

    def lose_answers(self, to: bytes = b"") -> None:
        """Pass on what is asked, and drop the connection in place of the answer to what has *to* in it, until ``come_back``."""
        self._losing = to

    def go_away_at(self, asked: bytes, *, keeping: bool = False) -> None:
        """Go away when something with *asked* in it is asked for; *keeping* the connections that there are, refuse new ones."""
        self._leaving = asked, keeping

    async def drop_connections(self) -> None:
        """Reset every connection without a word, and stay reachable."""
        for writer in self._writers:
            writer.transport.abort()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.go_away()

    def _leave(self, *, keeping: bool) -> None:
        self._leaving = None
        self.left.set()
        if self._server is not None:
            self._server.close()
            self._server = None
        if not keeping:
            self._farewell = asyncio.get_running_loop().create_task(self.drop_connections())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_seen += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        behind: asyncio.StreamWriter | None = None
        try:
            answers, behind = await asyncio.open_unix_connection(self._socket)
            deaf = asyncio.Event()
            up = asyncio.ensure_future(self._pass_on(reader, behind, asks=deaf))
            down = asyncio.ensure_future(self._pass_on(answers, writer, until=deaf))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the task ends here either way; a cancelled one was dropped on purpose
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            for one in (writer, behind):
                if one is not None:
                    one.close()
                    with contextlib.suppress(OSError):
                        await one.wait_closed()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        asks: asyncio.Event | None = None,
        until: asyncio.Event | None = None,
    ) -> None:
        """Pass on what comes; *asks* is set by what is to get no answer, and ends whoever passes on answers *until* then."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                if asks is not None and self._losing is not None and self._losing in data:
                    asks.set()
                if asks is not None and self._leaving is not None and self._leaving[0] in data:
                    self._leave(keeping=self._leaving[1])
                if until is not None:
                    await self._answering.wait()
                    if until.is_set():
                        return
                writer.write(data)
                await writer.drain()
