"""
The pool of PostgreSQL connections, and the one place where the database's errors become ours.

Matched by class and SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), never by text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import psycopg.conninfo
import psycopg_pool
from psycopg.rows import TupleRow

from jarvis_core import log
from jarvis_core.errors import Overloaded, RequestError, Unavailable
from jarvis_core.settings import Database

logger = log.get(__name__)

Parameters = Sequence[Any] | Mapping[str, Any]

RETRY_AFTER_S = 2
WAITING_LIMIT = 1_000
"""More requests than this do not wait for a connection: they are refused at once."""
GRACE_S = 1.0
"""How much longer than a statement may run the server has to say that it has stopped it."""

AWAY = (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg.OperationalError, psycopg.InterfaceError)


class Pool:
    """
    A bounded pool of connections to one database.

    At most ``max_connections`` are open; who comes later waits for at most ``timeout_s``, as does every statement.
    Who waits longer, or would be more than the ``WAITING_LIMIT``-th, gets ``Overloaded`` where the database is only busy.
    """

    def __init__(self, settings: Database, conninfo: str) -> None:
        self._timeout_s = settings.timeout_s
        self._conninfo = conninfo
        # The queue is here and not the driver's: its own leaves a cycle of some 40 objects behind for each who stopped
        # waiting (psycopg-pool 3.3), and cannot tell a busy database from one that is away.
        self._free = asyncio.Semaphore(settings.max_connections)
        self._waiting = 0
        self._pool = psycopg_pool.AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=settings.max_connections,
            timeout=settings.timeout_s,
            # Its own 300 s double the wait after each failure: a database that was away for long would be missed for
            # as long again. After this it is the next request that tries.
            reconnect_timeout=settings.timeout_s,
            open=False,
            check=self._check,
            name="jarvis-core",
            num_workers=1,
            kwargs={
                "autocommit": True,
                "prepare_threshold": 1,
                "connect_timeout": max(1, round(settings.timeout_s)),
                "application_name": "jarvis-core",
                "options": f"-c timezone=UTC -c statement_timeout={round(settings.timeout_s * 1_000)}",
            },
        )
        self.healthy = False
        """Whether the last attempt to use the database succeeded."""

    @staticmethod
    def check_address(conninfo: str) -> None:
        """Raise ``ValueError`` when *conninfo* is no address of a PostgreSQL server; never names a secret in it."""
        try:
            psycopg.conninfo.conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError as exc:
            # libpq's own words quote what it could not read, which may hold the password.
            raise ValueError("must be a postgresql:// address or a libpq conninfo string") from exc

    async def open(self) -> None:
        """Connect; raises ``Unavailable`` when the database does not answer within the deadline."""
        with _translated(self):
            await self._pool.open(wait=True, timeout=self._timeout_s)

    async def close(self) -> None:
        """Close every connection, waiting at most the deadline for those in use."""
        await self._pool.close(timeout=self._timeout_s)

    async def fetch_all(self, statement: str, parameters: Parameters = ()) -> list[TupleRow]:
        """Run one statement in a transaction of its own and return its rows."""
        async with self._lend() as connection:
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchall()

    async def fetch_one(self, statement: str, parameters: Parameters = ()) -> TupleRow | None:
        """Run one statement in a transaction of its own and return its first row, if any."""
        async with self._lend() as connection:
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchone()

    async def execute(self, statement: str, parameters: Parameters = ()) -> None:
        """Run one statement in a transaction of its own."""
        async with self._lend() as connection:
            await connection.execute(statement, parameters)

    async def fetch_in_one_trip(self, statements: Sequence[tuple[str, Parameters]]) -> list[list[TupleRow]]:
        """
        Run *statements* in one transaction and one round trip, and return the rows of each.

        Each sees what those before it wrote, and what others had committed when it began.
        """
        async with self._lend() as connection:
            # Without a sync between them they are one transaction:
            # https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING
            async with connection.pipeline():
                cursors = [await connection.execute(statement, parameters) for statement, parameters in statements]
            return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]

    @asynccontextmanager
    async def unhurried(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """Lend a connection outside of any transaction, whose statements may take as long as they take."""
        async with self._lend(unhurried=True) as connection:
            await connection.execute("set statement_timeout = 0")
            try:
                yield connection
            finally:
                if not connection.closed:
                    await connection.execute(f"set statement_timeout = {round(self._timeout_s * 1_000)}")

    @asynccontextmanager
    async def transaction(self, *, unhurried: bool = False) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """
        Lend a connection in one transaction, committed when the block ends without an error.

        *unhurried* ones may take as long as they take; their statements lift the server's own deadline themselves.
        """
        async with self._lend(unhurried=unhurried) as connection, connection.transaction():
            yield connection

    async def ping(self) -> bool:
        """Whether the database answers, learnt by asking it; waits at most as long as a query may."""
        with contextlib.suppress(RequestError):  # noted when it was translated
            await self.fetch_one("select 1")
        return self.healthy

    @asynccontextmanager
    async def _lend(self, *, unhurried: bool = False) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        await self._take_turn()
        try:
            with _translated(self):
                async with self._pool.connection() as connection:
                    if unhurried:
                        yield connection
                        return
                    # The server stops what takes too long; one that does not answer at all is given up here.
                    timer = asyncio.get_running_loop().call_later(self._timeout_s + GRACE_S, _break_off, connection)
                    try:
                        yield connection
                    finally:
                        timer.cancel()
        finally:
            self._free.release()

    async def _take_turn(self) -> None:
        """Wait until a connection is ours to take; raises ``Overloaded``."""
        if not self._free.locked():
            await self._free.acquire()
            return
        if self._waiting >= WAITING_LIMIT:
            raise self._kept_waiting()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError as exc:
            raise self._kept_waiting() from exc
        finally:
            self._waiting -= 1

    def _kept_waiting(self) -> RequestError:
        if self.healthy:
            return Overloaded("The database has more work than it can do.", retry_after_s=RETRY_AFTER_S)
        return _away()

    async def _check(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        """
        Refuse a connection that the server closed while it was idle, and drop all others with it.

        An idle server has nothing to say but its farewell, so a look whether there is something to read is enough: a
        system call where a round trip would cost as much as a query.
        """
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if poll.poll(0):
            await connection.close()
            await self._pool.drain()
            raise psycopg.OperationalError("the server has closed the connection")


def _away() -> Unavailable:
    return Unavailable("The database is not available.", retry_after_s=RETRY_AFTER_S)


def _break_off(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    """Make whoever waits for the server on *connection* see the end of it at once."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


class _translated:  # noqa: N801 - reads as a phrase where it is used; a class costs less than a generator here
    """Turn the database's absence into ``Unavailable``; other errors of the driver are defects and pass through."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _traceback: object) -> None:
        if kind is None:
            self._pool.healthy = True
            return
        if isinstance(exc, AWAY):
            if self._pool.healthy:
                logger.warning("the database is away", error=str(exc).strip().partition("\n")[0])
            self._pool.healthy = False
            raise _away() from exc
