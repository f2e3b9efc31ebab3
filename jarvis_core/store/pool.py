"""
The pool of PostgreSQL connections, and the one place where the database's errors become ours.

Matched by class and SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), never by text.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow

from jarvis_core import log
from jarvis_core.errors import DeadlineExceeded, Overloaded, RequestError, StartError, Unavailable
from jarvis_core.fair_queue import QueueFull, refusal
from jarvis_core.settings import Database
from jarvis_core.store.address import parse
from jarvis_core.store.availability import Availability, Away
from jarvis_core.store.connections import Connection, Connections, PoolTimeout
from jarvis_core.store.prepared import Parameters

logger = log.get(__name__)
_seldom = log.LogThrottle()

T = TypeVar("T")

RETRY_AFTER_S = 2
GRACE_S = 1.0
"""How much longer than a statement may run the server has to say that it has stopped it."""
REPEAT_DELAYS_S = (0.02, 0.1)
"""Before a statement that the database undid for another's sake is repeated, about."""

LOST = {"57P01", "57P02", "57P03", "57P04", "57P05", "25P03"}
"""The server ends the session, and says why. So does class 08."""
UNDONE = {"40001", "40P01"}
LATE = {"57014", "25P04"}
READ_ONLY = "25006"
UNABLE = {"53100"}
"""The disk is full. So is class 58: it cannot be read or written."""
BUSY = {"55P03", "55006"}
"""What is asked for is locked. So is class 53: memory, connections, whatever is short."""


class Undone(Overloaded):
    """The database undid the whole transaction for another's sake: repeating it is safe, and makes sense."""


class Pool:
    """
    A bounded pool of connections to one database.

    At most ``max_connections`` are open; who comes later waits for at most ``timeout_s``, as does every statement.
    Whatever is asked raises ``Unavailable`` while the database is away, at once; ``Overloaded`` where it is only busy;
    ``DeadlineExceeded`` for a statement that it did not finish in time. Other errors of the driver are defects.
    """

    def __init__(self, settings: Database, address: str) -> None:
        self.max_connections = settings.max_connections
        self._timeout_s = settings.timeout_s
        self._availability = Availability(settings, parse(address))

    @property
    def healthy(self) -> bool:
        """Whether the database can be used, as far as is known."""
        return self._availability.healthy

    @property
    def losses(self) -> int:
        """How often the database has gone away."""
        return self._availability.losses

    async def open(self) -> None:
        """
        Connect; raises ``Unavailable`` when the database does not answer within the deadline.

        May be tried again. Raises ``StartError`` where it refuses what the address wants to have set.
        """
        try:
            await self._availability.open()
        except Away as exc:
            raise _away() from exc.__cause__
        except psycopg.Error as exc:
            raise StartError(f"DATABASE_URL: the database refuses its options: {exc.diag.message_primary}") from exc

    async def close(self) -> None:
        """Close every connection, those in use when they are given back."""
        await self._availability.close()

    async def fetch_all(self, statement: str, parameters: Parameters = (), *, patient: bool = False) -> list[TupleRow]:
        """
        Run one statement, a constant of this program, in a transaction of its own and return its rows.

        A *patient* one waits for a database that has just gone away, for a few seconds.
        """
        return await self._run(lambda connection: connection.run(statement, parameters), patient=patient)

    async def fetch_one(self, statement: str, parameters: Parameters = (), *, patient: bool = False) -> TupleRow | None:
        """Run one statement as ``fetch_all`` does and return its first row, if any."""
        rows = await self.fetch_all(statement, parameters, patient=patient)
        return rows[0] if rows else None

    async def execute(self, statement: str, parameters: Parameters = ()) -> None:
        """Run one statement as ``fetch_all`` does."""
        await self.fetch_all(statement, parameters)

    async def fetch_in_one_trip(self, statements: Sequence[tuple[str, Parameters]]) -> list[list[TupleRow]]:
        """
        Run *statements* in one transaction and one round trip, and return the rows of each.

        Each sees what those before it wrote, and what others had committed when it began.
        """

        return await self._run(lambda connection: connection.run_in_one_trip(statements))

    @asynccontextmanager
    async def without_timeout(self) -> AsyncIterator[Connection]:
        """
        Lend a connection outside of any transaction, whose statements may take as long as they take.

        Behind a pooler they take no longer than its server allows, and find nothing by its name alone: what is set is
        not set for them.
        """
        async with self._lend(without_timeout=True) as connection:
            if connection.session.pooled:
                yield connection
                return
            await connection.execute("set statement_timeout = 0")
            try:
                yield connection
            finally:
                if not connection.closed:
                    await connection.execute(f"set statement_timeout = {round(self._timeout_s * 1_000)}")

    @asynccontextmanager
    async def transaction(self, *, without_timeout: bool = False) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """
        Lend a connection in one transaction, committed when the block ends without an error.

        *without_timeout* ones may take as long as they take; their statements lift the server's own deadline themselves.
        """
        async with self._lend(without_timeout=without_timeout) as connection, connection.transaction():
            await connection.set_up_transaction()
            yield connection

    async def _run(self, run: Callable[[Connection], Awaitable[T]], *, patient: bool = False) -> T:
        """Run a whole transaction, again when the database undid it for another's sake."""
        for delay_s in REPEAT_DELAYS_S:
            try:
                async with self._lend(patient=patient) as connection:
                    return await run(connection)
            except Undone:
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))  # noqa: S311 - nothing to guess
        async with self._lend(patient=patient) as connection:
            return await run(connection)

    def _lend(self, *, without_timeout: bool = False, patient: bool = False) -> _Loan:
        return _Loan(self, without_timeout=without_timeout, patient=patient)

    async def _borrow(self, *, patient: bool) -> tuple[Connections, Connection]:
        try:
            return await self._availability.borrow(patient=patient)
        except Away as exc:
            raise _away() from exc
        except QueueFull as exc:
            if exc.greedy:
                raise refusal("the database", RETRY_AFTER_S, greedy=True) from exc
            raise (_busy() if self.healthy else _away()) from exc
        except PoolTimeout as exc:
            raise (_busy() if self.healthy else _away()) from exc

    def _translate(self, exc: psycopg.Error, connections: Connections, connection: Connection) -> RequestError | None:
        """Return our error for one of the driver's, None for a defect; take note of what it tells of the database."""
        state = exc.sqlstate
        if state is None:
            if not (connection.closed or isinstance(exc, psycopg.OperationalError)):
                return None
            self._availability.suspect(connections)
            return _away()
        if state in LOST or state.startswith("08"):
            self._availability.suspect(connections)
            return _away()
        if state in LATE:
            self._availability.ask()
            return DeadlineExceeded("The database did not answer in time.", retry_after_s=RETRY_AFTER_S)
        if state in UNDONE:
            return Undone("The database gave way to other requests.", retry_after_s=RETRY_AFTER_S)
        if state == READ_ONLY:
            # The address may lead to another server by now, which takes writes.
            self._availability.suspect(connections, renew=True)
            return _away()
        if state in UNABLE or state.startswith("58"):
            if (held_back := _seldom.held_back(state)) is not None:
                why = exc.diag.message_primary
                logger.error("the database cannot do its work", sqlstate=state, error=why, held_back=held_back)
            return Unavailable("The database cannot do this now.", retry_after_s=RETRY_AFTER_S)
        return _busy() if state in BUSY or state.startswith("53") else None


class _Loan(AbstractAsyncContextManager[Connection]):
    """A connection that is lent by a pool; each turn has two, and a generator would cost twice as much."""

    __slots__ = ("_connection", "_connections", "_patient", "_pool", "_timer", "_without_timeout")

    def __init__(self, pool: Pool, *, without_timeout: bool, patient: bool) -> None:
        self._pool = pool
        self._without_timeout = without_timeout
        self._patient = patient
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Connection:
        pool = self._pool
        lent = pool._availability.take() or await pool._borrow(patient=self._patient)
        self._connections, self._connection = lent
        if self._without_timeout:
            self._connections.without_timeout.add(self._connection)
        else:
            # The server stops what takes too long; one that does not answer at all is given up here.
            late_s = pool._timeout_s + GRACE_S
            self._timer = asyncio.get_running_loop().call_later(late_s, self._connection.break_off)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, connections, connection = self._pool, self._connections, self._connection
        try:
            if exc is None:
                pool._availability.note_answer(connections)
            elif isinstance(exc, psycopg.Error):
                error = pool._translate(exc, connections, connection)
                if error is not None:
                    raise error from exc
                pool._availability.note_answer(connections)
            elif isinstance(exc, asyncio.CancelledError):
                # What it was in the midst of is not for the next one.
                await connection.close()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._without_timeout:
                connections.without_timeout.discard(connection)
            if not connections.keep(connection):
                await connections.give_back(connection)


def _away() -> Unavailable:
    return Unavailable("The database is not available.", retry_after_s=RETRY_AFTER_S)


def _busy() -> Overloaded:
    return Overloaded("The database has more work than it can do.", retry_after_s=RETRY_AFTER_S)
