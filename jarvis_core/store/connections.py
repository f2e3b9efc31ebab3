"""
The connections of one life of the database: who may have one, who waits for one, and what is made of those given back.

When the database goes away its connections are given up together, and new ones made for its next life. Nothing of the
old ones then holds up the return: neither the driver's waits between attempts to connect, nor statements that nobody will
answer any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import psycopg
import psycopg_pool
from psycopg.rows import TupleRow

from jarvis_core import cancellation
from jarvis_core.errors import JarvisError
from jarvis_core.fair_queue import FairQueue
from jarvis_core.shares import NOBODY, current_user
from jarvis_core.store.prepared import Parameters, PreparedStatements
from jarvis_core.store.session import Session, Setting, greet, set_locally
from jarvis_core.tasks import start_in

WAITING_LIMIT = 2_000
"""More requests than this do not wait for a connection, nor more than three quarters of it of one user: they are refused at once."""
IDLE = psycopg.pq.TransactionStatus.IDLE
IDLE_LIMIT_S = 600.0
"""Connections that were not needed for so long are closed, but for one."""


class GivenUp(JarvisError):
    """The connections were given up; nothing was sent to the database."""


class PoolTimeout(JarvisError):
    """No connection became free in time; nothing was sent to the database."""


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection that is told to who opened it, as is the failure to make one."""

    session = Session()
    """What is at its other end."""
    _prepared_statements: PreparedStatements | None = None

    @classmethod
    async def connect(  # type: ignore[override]  # the driver's has the options spelled out
        cls,
        conninfo: str = "",
        *,
        opened_by: weakref.ref[Connections] | None = None,
        settings: Sequence[Setting] = (),
        pooled: bool = False,
        **options: Any,
    ) -> Self:
        """
        Connect for whom it is *opened_by*; raises ``psycopg.Error``, and ``TimeoutError`` when that is closed.

        *options* are the driver's, and with *settings* those of ``meet``, which then has as long as the driver had.
        """
        opener = None if opened_by is None else opened_by()
        if opener is None:
            return await super().connect(conninfo, **options)
        async with cancellation.timeout(None) as limit:
            opener.connecting.add(limit)
            try:
                if opener.closed:
                    raise TimeoutError
                connection = await super().connect(conninfo, **options)
                if settings:
                    await connection.meet(settings, pooled=pooled, limit_s=options["connect_timeout"])
            except psycopg.Error:
                opener.failed = True
                opener.on_failure(opener)
                raise
            finally:
                opener.connecting.discard(limit)
        opener.made.add(connection)
        return connection

    async def meet(self, settings: Sequence[Setting], *, pooled: bool, limit_s: float) -> None:
        """
        Find out who is at the other end, and have the session be as *settings* say; *pooled* where that is known.

        It is broken off after *limit_s* seconds, and closed where that, or whatever else, goes wrong.
        """
        timer = asyncio.get_running_loop().call_later(max(limit_s, 0.0), self.break_off)
        try:
            self.session = await greet(self, settings, pooled=pooled)
        except BaseException:
            await self.close()
            raise
        finally:
            timer.cancel()

    async def run(self, statement: str, parameters: Parameters) -> list[TupleRow]:
        """Run one statement in a transaction of its own, and return its rows; closes the connection when cancelled."""
        if self.session.pooled:
            (rows,) = await self.run_in_one_trip([(statement, parameters)])
            return rows
        try:
            return await self.prepared.run(statement, parameters)
        except asyncio.CancelledError:
            # The server was told to stop, and its answer is still to come.
            await self.close()
            raise

    async def run_in_one_trip(self, statements: Sequence[tuple[str, Parameters]]) -> list[list[TupleRow]]:
        """Run *statements* in one transaction and one trip, and return the rows of each; closes it when cancelled."""
        try:
            # Without a sync between them they are one transaction:
            # https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING
            async with self.pipeline():
                await self.set_up_transaction()
                cursors = [await self.execute(statement, parameters) for statement, parameters in statements]
            return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]
        except asyncio.CancelledError:
            # In a pipeline (psycopg 3.3) it may be left in the midst of it: what the next one writes would be answered as
            # done, and undone when that one leaves it.
            await self.close()
            raise

    async def set_up_transaction(self) -> None:
        """Have the transaction that has just begun be like any other."""
        if self.session.settings:
            await self.execute(*set_locally(self.session.settings))

    @property
    def prepared(self) -> PreparedStatements:
        """Its statements, for who has borrowed it."""
        if self._prepared_statements is None:
            self._prepared_statements = PreparedStatements(self)
        return self._prepared_statements

    async def close(self) -> None:
        """Close it, unless the server has."""
        # Its statements refer to it: let go of, all are freed at once, not by a collector that comes seldom.
        statements, self._prepared_statements = self._prepared_statements, None
        if statements is not None:
            statements.close()
        await super().close()

    def looks_idle(self) -> bool:
        """
        Whether it is open and waits for something to do.

        An idle server has nothing to say but its farewell, so a look whether there is something to read is enough: a
        system call where a round trip would cost as much as a query.
        """
        if self.pgconn.transaction_status != IDLE:  # a closed one's is unknown
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    def looks_open(self) -> bool:
        """Whether the server has not closed it."""
        if self.closed:
            return False
        with socket.socket(fileno=os.dup(self.fileno())) as end:
            try:
                return bool(end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except BlockingIOError:
                return True
            except OSError:
                return False

    def break_off(self) -> None:
        """
        Make whoever waits for the server on it see the end at once.

        Cancelling them would not do: the driver then asks the server to stop, and waits for it.
        """
        if not self.closed:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)


class Connections:
    """
    At most *limit* connections, lent to one request at a time; who comes later waits in a queue, the users in turn.

    *options* are the driver's; *on_failure* is called with these when one could not be made, which is then tried again
    for *reconnect_limit_s* seconds.
    """

    def __init__(
        self,
        conninfo: str,
        options: dict[str, Any],
        *,
        limit: int,
        reconnect_limit_s: float,
        on_failure: Callable[[Connections], None],
    ) -> None:
        self.on_failure = on_failure
        self.closed = False
        self.failed = False
        """Whether one could not be made; those who wait for it would wait for long."""
        self.made: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.connecting: set[cancellation.Timeout] = set()
        self.without_timeout: set[Connection] = set()
        """Lent for statements without a deadline."""
        # The queue is here and not the driver's: its own leaves a cycle of some 40 objects behind for each who stopped
        # waiting (psycopg-pool 3.3), cannot tell a busy database from one that is away, and knows no users.
        self._queue = FairQueue(limit, waiting_limit=WAITING_LIMIT)
        self._returning: set[asyncio.Task[None]] = set()
        # Nothing of a life is left in cycles: there may be many, and the collector comes seldom.
        self_weakly = weakref.ref(self)

        async def check(connection: Connection) -> None:
            owner = self_weakly()
            if owner is not None:
                await owner._check(connection)

        self._pool: psycopg_pool.AsyncConnectionPool[Connection] = psycopg_pool.AsyncConnectionPool(
            conninfo,
            connection_class=Connection,
            kwargs={**options, "opened_by": self_weakly},
            min_size=1,
            max_size=limit,
            max_idle=IDLE_LIMIT_S,
            # It tries again after 1, 2, 4 … s, which spares a server that has no connection to spare. One that was away
            # is not missed for it: for its next life there is another pool.
            reconnect_timeout=reconnect_limit_s,
            open=False,
            check=check,
            name="jarvis-core",
            num_workers=1,
        )

    async def open(self) -> None:
        """Begin to connect; waits for nothing."""
        await self._pool.open()

    async def close(self, timeout_s: float) -> None:
        """
        Close every idle connection, and those in use when they are given back; those without a deadline now.

        Who waits gets ``GivenUp``. Waits at most *timeout_s* seconds for what is under way.
        """
        self.closed = True
        self._queue.dismiss(GivenUp)
        for limit in self.connecting:
            limit.reschedule(0)
        for connection in self.without_timeout:
            connection.break_off()
        await self._pool.close(timeout=timeout_s)

    async def borrow(self, timeout_s: float) -> Connection:
        """
        Return a connection, to be given back.

        Raises ``GivenUp``, ``PoolTimeout`` after *timeout_s* seconds, and ``QueueFull`` at once.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if self.closed:
            raise GivenUp
        # Places are not counted by user, so nobody needs to know whose one is, but where there is none.
        if not self._queue.take(NOBODY):
            try:
                await self._queue.wait(current_user.get(), deadline)
            except TimeoutError as exc:
                raise PoolTimeout from exc
        try:
            return await self.borrow_idle(max(deadline - loop.time(), 0.0))
        except BaseException:
            self._queue.give_back(NOBODY)
            raise

    async def give_back(self, connection: Connection) -> None:
        """Let others have *connection*, or its place when it is broken; whoever is cancelled meanwhile gives it back too."""
        try:
            await self.give_back_idle(connection)
        finally:
            self._queue.give_back(NOBODY)

    def any_idle(self) -> bool:
        """Whether a connection is idle that the server has not closed."""
        return any(connection.looks_idle() for connection in self.made)

    def any_open(self) -> bool:
        """Whether there is a connection that the server has not closed, whatever it does."""
        return any(connection.looks_open() for connection in self.made)

    async def borrow_idle(self, timeout_s: float) -> Connection:
        """As ``borrow``, but past the queue, for who saw that one is idle; to be returned by ``give_back_idle``."""
        # The driver waits by ``asyncio.wait_for``, which before Python 3.12 forgets a cancellation that comes together with
        # what is waited for: a task that was told to end would go on for good.
        requests = cancellation.requests()
        try:
            connection = await self._pool.getconn(timeout=timeout_s)
        except (psycopg_pool.PoolClosed, psycopg_pool.PoolTimeout) as exc:
            cancellation.raise_if_requested(since=requests)
            raise (GivenUp if isinstance(exc, psycopg_pool.PoolClosed) else PoolTimeout) from exc
        try:
            cancellation.raise_if_requested(since=requests)
        except asyncio.CancelledError:
            await self.give_back_idle(connection)
            raise
        return connection

    async def give_back_idle(self, connection: Connection) -> None:
        """Return what ``borrow_idle`` lent; whoever is cancelled meanwhile gives it back too."""
        if connection.closed:
            await connection.close()
        if self._pool._waiting or self._pool._lock.locked():
            # Cancelled while it hands the connection over, the driver (psycopg-pool 3.3.3) loses it, and leaves who was
            # to have it waiting for good. Otherwise it does not wait, and nobody can be cancelled in it.
            await asyncio.shield(start_in(self._returning, self._pool.putconn(connection)))
        else:
            await self._pool.putconn(connection)

    async def _check(self, connection: Connection) -> None:
        """Refuse a connection that the server closed while it was idle, and drop all others with it."""
        if not connection.looks_idle():
            await connection.close()
            await self._pool.drain()
            raise psycopg.OperationalError("the server has closed the connection")
