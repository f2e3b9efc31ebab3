"""
Lends the connections of one life of the database, queues the requests that wait for one, and checks each that is returned.

When the database goes away, its connections are given up together; new ones are made for its next life. Then nothing of
the old ones delays the return: neither the driver's waits between attempts to connect, nor statements without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import weakref
from collections.abc import Callable, Sequence
from contextvars import Context
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
"""Requests that wait for a connection, at most three quarters of them of one user; more are refused at once."""
IDLE = psycopg.pq.TransactionStatus.IDLE
IDLE_LIMIT_S = 600.0
"""Closes connections that were not needed for so long, except one."""
AT_HAND_S = 1.0
"""How often connections at hand are given back to the driver's pool, which closes those that are idle or old."""


class GivenUp(JarvisError):
    """The connections were given up; nothing was sent to the database."""


class PoolTimeout(JarvisError):
    """No connection became free in time; nothing was sent to the database."""


class Connection(psycopg.AsyncConnection[TupleRow]):
    """Reports connect success or failure to the ``Connections`` that own it."""

    session = Session()
    """The server or pooler at the other end, and what its sessions are set to."""
    _prepared_statements: PreparedStatements | None = None
    _poll: select.poll | None = None

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
        Connect, and report to *opened_by*; raises ``psycopg.Error``, and ``TimeoutError`` when *opened_by* is closed.

        *options* are the driver's. With *settings*, ``meet`` follows, for at most the driver's ``connect_timeout``.
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
        Ask whether a pooler is at the other end (*pooled* where that is known), and apply *settings* to the session.

        Breaks the connection off after *limit_s* seconds; closes it on any error.
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
            # The driver asked the server to stop, and the answer is still to come.
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
            # A cancelled pipeline (psycopg 3.3) may stay open on the connection: the next borrower's writes would be
            # answered as done, and rolled back when that borrower leaves the pipeline.
            await self.close()
            raise

    async def set_up_transaction(self) -> None:
        """Apply the session's settings to the transaction that has just begun, where a pooler keeps none."""
        if self.session.settings:
            await self.execute(*set_locally(self.session.settings))

    @property
    def prepared(self) -> PreparedStatements:
        """Return the prepared statements of this connection, for its borrower."""
        if self._prepared_statements is None:
            self._prepared_statements = PreparedStatements(self)
        return self._prepared_statements

    async def close(self) -> None:
        """Close the connection, unless the server has."""
        # Break the cycle with the prepared statements: freed at once, not by the garbage collector, which runs rarely.
        statements, self._prepared_statements = self._prepared_statements, None
        if statements is not None:
            statements.close()
        await super().close()

    def looks_idle(self) -> bool:
        """
        Return whether the connection is open and idle.

        An idle server sends nothing but its farewell, so polling the socket is enough: a system call, where a round trip
        would cost as much as a query.
        """
        if self.pgconn.transaction_status != IDLE:  # the status of a closed connection is unknown
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def looks_open(self) -> bool:
        """Return whether the server keeps the connection open."""
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
        Shut the socket down: a task that waits for the server gets the end of the connection at once.

        Cancelling that task would not do: the driver then asks the server to stop, and waits for it.
        """
        if not self.closed:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)


class Connections:
    """
    Lends at most *limit* connections, each to one request at a time; later requests wait in a queue, their users in turn.

    *options* are the driver's. A failed connect is tried again for *reconnect_limit_s* seconds; *on_failure* is called
    with these ``Connections`` each time.
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
        """Whether a connect failed: requests that wait for it would wait for long."""
        self.made: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.connecting: set[cancellation.Timeout] = set()
        self.without_timeout: set[Connection] = set()
        """Lent for statements without a deadline."""
        # Use a queue of our own: the driver's (psycopg-pool 3.3) leaves a cycle of some 40 objects behind for each request
        # that stopped waiting, cannot tell a busy database from one that is away, and knows no users.
        self._queue = FairQueue(limit, waiting_limit=WAITING_LIMIT)
        self._at_hand: list[Connection] = []
        """Idle, the last one used last: the driver's pool, which lent them, takes 30 µs to take one back and lend it again."""
        self._putting_back: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()
        # Held weakly, to leave no cycles: there may be many lives, and the garbage collector runs rarely.
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
            # The driver tries again after 1, 2, 4 … s, which spares a server at its limit of connections. This delays no
            # server that was away: its next life has another pool.
            reconnect_timeout=reconnect_limit_s,
            open=False,
            check=check,
            name="jarvis-core",
            num_workers=1,
        )

    async def open(self) -> None:
        """Start connecting; does not wait."""
        await self._pool.open()

    async def close(self, timeout_s: float) -> None:
        """
        Close idle connections and those without a deadline now, the others when they are given back.

        Fails waiting requests with ``GivenUp``. Waits at most *timeout_s* seconds for connects under way.
        """
        self.closed = True
        self._queue.dismiss(GivenUp)
        for limit in self.connecting:
            limit.reschedule(0)
        for connection in self.without_timeout:
            connection.break_off()
        await self._put_back()
        await self._pool.close(timeout=timeout_s)

    def take(self) -> Connection | None:
        """Return a connection that is at hand, to be given back; None where it takes ``borrow``."""
        if self.closed or not self._is_at_hand() or not self._queue.take(NOBODY):
            return None
        return self._at_hand.pop()

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
        if self._is_at_hand():
            return self._at_hand.pop()
        try:
            return await self.borrow_idle(max(deadline - loop.time(), 0.0))
        except BaseException:
            self._queue.give_back(NOBODY)
            raise

    def keep(self, connection: Connection) -> bool:
        """Keep *connection* at hand and give its place back; returns whether that is done, or it takes ``give_back``."""
        if self.closed or self._pool._waiting or connection.pgconn.transaction_status != IDLE:
            return False
        self._at_hand.append(connection)
        if self._putting_back is None:
            loop = asyncio.get_running_loop()
            # In no context: it is nobody's.
            self._putting_back = loop.call_later(AT_HAND_S, self._start_putting_back, context=Context())
        self._queue.give_back(NOBODY)
        return True

    async def give_back(self, connection: Connection) -> None:
        """Return *connection*, or its place when it is broken; completes also when the caller is cancelled meanwhile."""
        try:
            await self.give_back_idle(connection)
        finally:
            self._queue.give_back(NOBODY)

    def _is_at_hand(self) -> bool:
        return bool(self._at_hand) and self._at_hand[-1].looks_idle()

    def _start_putting_back(self) -> None:
        start_in(self._returning, self._put_back())

    async def _put_back(self) -> None:
        """Give the connections at hand back to the driver's pool."""
        if self._putting_back is not None:
            self._putting_back.cancel()
            self._putting_back = None
        while self._at_hand:
            await self.give_back_idle(self._at_hand.pop())

    def any_idle(self) -> bool:
        """Return whether a connection is idle and open."""
        return any(connection.looks_idle() for connection in self.made)

    def any_open(self) -> bool:
        """Return whether a connection is open, idle or not."""
        return any(connection.looks_open() for connection in self.made)

    async def borrow_idle(self, timeout_s: float) -> Connection:
        """Borrow past the queue, after ``any_idle``; the caller returns the connection by ``give_back_idle``."""
        await self._put_back()
        # The driver uses ``asyncio.wait_for``, which before Python 3.12 loses a cancellation that arrives together with
        # the result: a cancelled task would run on for good.
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
        """Return what ``borrow_idle`` lent; completes also when the caller is cancelled meanwhile."""
        if connection.closed:
            await connection.close()
        if self._pool._waiting or self._pool._lock.locked():
            # Cancelled while it hands a connection over, the driver (psycopg-pool 3.3.3) loses the connection, and leaves
            # the request that was to get it waiting for good. In all other cases it does not wait, so cannot be cancelled.
            await asyncio.shield(start_in(self._returning, self._pool.putconn(connection)))
        else:
            await self._pool.putconn(connection)

    async def _check(self, connection: Connection) -> None:
        """Refuse a connection that the server closed while it was idle, and drop all others too."""
        if not connection.looks_idle():
            await connection.close()
            await self._pool.drain()
            raise psycopg.OperationalError("the server has closed the connection")
