"""The pool: a database that is away, slow or silent, and that comes back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jarvis_core.errors import DeadlineExceeded, Overloaded, RequestError, Unavailable
from jarvis_core.settings import Database
from jarvis_core.shares import current_user
from jarvis_core.store import connections as connections_module
from jarvis_core.store.connections import Connection, Connections
from jarvis_core.store.pool import RETRY_AFTER_S, Pool
from tests.fakes.relay import DatabaseRelay

pytestmark = pytest.mark.every_python

TIMEOUT_S = 0.6
LATEST_S = TIMEOUT_S + 3.0
"""A generous bound on what must take about a deadline: this machine is busy."""


@asynccontextmanager
async def opened(conninfo: str, *, max_connections: int = 3, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Pool]:
    """Lend an open pool."""
    pool = Pool(Database(max_connections=max_connections, timeout_s=timeout_s), conninfo)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up a silent server soon."""
    monkeypatch.setattr("jarvis_core.store.pool.GRACE_S", 0.2)


@pytest.fixture
async def pool(relay: DatabaseRelay) -> AsyncIterator[Pool]:
    """Give an open pool through the relay."""
    async with opened(relay.conninfo) as pool:
        yield pool


async def fill(pool: Pool, connections: int = 3) -> None:
    """Make the pool open so many connections."""
    await asyncio.gather(*(pool.fetch_one("select pg_sleep(0.1)") for _ in range(connections)))


async def fails(pool: Pool) -> Unavailable:
    """Return the error of a query, which must come within the deadline."""
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await pool.fetch_one("select 1")
    assert time.monotonic() - started < LATEST_S
    assert not pool.healthy
    return caught.value


async def becomes(pool: Pool, *, healthy: bool, within_s: float = 5.0) -> None:
    """Wait until the pool takes its database for usable, or not, without asking it anything."""
    async with asyncio.timeout(within_s):
        while pool.healthy is not healthy:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def lost(pool: Pool, times: int = 1) -> None:
    """Wait until the database is known to have gone away so many times."""
    async with asyncio.timeout(5):
        while pool.losses < times:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def recovers(pool: Pool, within_s: float = 5.0) -> None:
    """Wait until queries work again."""
    await becomes(pool, healthy=True, within_s=within_s)
    assert await pool.fetch_one("select 1") == (1,)


async def test_queries(pool: Pool) -> None:
    """Statements give their rows, with parameters by position and by name."""
    assert pool.healthy
    assert await pool.fetch_one("select %s::int + 1", (1,)) == (2,)
    assert await pool.fetch_all("select generate_series(1, %(last)s::int)", {"last": 3}) == [(1,), (2,), (3,)]
    assert await pool.fetch_one("select 1 where false") is None
    await pool.execute("create table t (id integer)")
    assert await pool.fetch_all("select * from t") == []


async def test_several_statements_in_one_trip(pool: Pool) -> None:
    """Each statement gives its rows and sees what those before it did; all of them are one transaction."""
    await pool.execute("create table t (id integer primary key)")
    insert = "insert into t values (%s) returning id"
    one, none, both = await pool.fetch_in_one_trip(
        [(insert, (1,)), ("select set_config('t.x', 'y', true) where false", ()), ("select count(*) from t", ())]
    )
    assert (one, none, both) == ([(1,)], [], [(1,)])
    for _ in range(3):  # prepared statements behave alike
        with pytest.raises(psycopg.errors.UniqueViolation):
            await pool.fetch_in_one_trip([(insert, (2,)), (insert, (1,)), (insert, (3,))])
    assert await pool.fetch_all("select id from t") == [(1,)]
    await pool.fetch_in_one_trip([("select set_config('enable_seqscan', 'off', true)", ())])
    assert await pool.fetch_all("show enable_seqscan") == [("on",)]
    assert pool.healthy


async def test_slow_statement_in_one_trip(pool: Pool) -> None:
    """A statement that takes too long is stopped there too, and takes what was done before it with it."""
    await pool.execute("create table t (id integer)")
    with pytest.raises(DeadlineExceeded):
        await pool.fetch_in_one_trip([("insert into t values (1)", ()), ("select pg_sleep(5)", ())])
    assert await pool.fetch_all("select * from t") == []


async def test_unhurried(pool: Pool) -> None:
    """A statement without a timeout may take longer than others, and the next who has the connection may not."""
    for error in (None, psycopg.errors.DivisionByZero):
        try:
            async with pool.without_timeout() as connection:
                await connection.execute("select pg_sleep(%s)", (TIMEOUT_S + 0.5,))
                await connection.execute("select 1 / %s::int", (0 if error else 1,))
        except psycopg.errors.DivisionByZero:
            assert error
        assert await pool.fetch_all("show statement_timeout") == [("600ms",)]


async def insert_and_fail(pool: Pool) -> None:
    """Insert a row in a transaction that fails."""
    async with pool.transaction() as connection:
        await connection.execute("insert into t values (2)")
        await connection.execute("select 1 / 0")


async def test_transactions(pool: Pool) -> None:
    """A transaction is committed as a whole, or not at all."""
    await pool.execute("create table t (id integer)")
    async with pool.transaction() as connection:
        await connection.execute("insert into t values (1)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await insert_and_fail(pool)
    assert await pool.fetch_all("select * from t") == [(1,)]


async def test_times_are_utc(pool: Pool) -> None:
    """The session's time zone is UTC, whatever the server's is."""
    assert await pool.fetch_one("select current_setting('TimeZone')") == ("UTC",)


async def test_defects_pass_through(pool: Pool) -> None:
    """A statement that is wrong is a defect, and does not make the database look away."""
    with pytest.raises(psycopg.errors.UndefinedTable):
        await pool.fetch_one("select * from nowhere")
    assert pool.healthy


async def test_away_at_the_start(relay: DatabaseRelay) -> None:
    """A database that is away at the start is Unavailable within the deadline, and can be tried again."""
    await relay.go_away()
    pool = Pool(Database(timeout_s=TIMEOUT_S), relay.conninfo)
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await pool.open()
        assert time.monotonic() - started < LATEST_S
        assert not pool.healthy
    finally:
        await pool.close()


async def test_away_and_back(pool: Pool, relay: DatabaseRelay) -> None:
    """A database that goes away is Unavailable, with when to try again; when it is back, so is everything, at once."""
    await fill(pool)
    await relay.go_away()
    error = await fails(pool)
    assert error.retry_after_s == RETRY_AFTER_S
    assert relay.conninfo not in error.message
    # Long enough that a wait that doubles after each failure would be seen.
    await asyncio.sleep(1.3)
    await relay.come_back()
    started = time.monotonic()
    await recovers(pool, within_s=2)
    # 0.25 s between two attempts; the rest is for a machine with other work.
    assert time.monotonic() - started < 1
    assert await asyncio.gather(*(pool.fetch_one("select 1") for _ in range(20))) == [(1,)] * 20
    assert pool.losses == 1


async def test_away_is_told_at_once(pool: Pool, relay: DatabaseRelay) -> None:
    """While the database is away a request waits for nothing, and only the watcher tries to reach it."""
    await fill(pool)
    relay.hang()
    await becomes(pool, healthy=False)
    await relay.drop_connections()
    await lost(pool)
    seen = relay.connections_seen
    started = time.monotonic()
    errors = await asyncio.gather(*(pool.fetch_one("select 1") for _ in range(500)), return_exceptions=True)
    assert time.monotonic() - started < TIMEOUT_S
    assert all(isinstance(error, Unavailable) for error in errors)
    assert relay.connections_seen - seen <= 2


async def test_those_in_the_queue_are_told(relay: DatabaseRelay) -> None:
    """Who waits for a connection when the database goes away is told then, and not at the deadline."""
    async with opened(relay.conninfo, max_connections=1, timeout_s=30) as pool:
        holder = asyncio.create_task(pool.fetch_one("select pg_sleep(20)"))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(pool.fetch_one("select 1")) for _ in range(5)]
        await asyncio.sleep(0.1)
        await relay.go_away()
        async with asyncio.timeout(5):
            results = await asyncio.gather(holder, *waiting, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        await relay.come_back()
        await recovers(pool)


async def test_patience(relay: DatabaseRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is patient waits for a database that has just gone away, but not for one that has been away for long."""
    async with opened(relay.conninfo, timeout_s=5) as pool:
        await relay.go_away()
        await lost(pool)
        waiting = asyncio.create_task(pool.fetch_one("select 1", patient=True))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await relay.come_back()
        assert await waiting == (1,)
        monkeypatch.setattr("jarvis_core.store.availability.PATIENCE_S", 0.2)
        await relay.go_away()
        await lost(pool, times=2)
        await asyncio.sleep(0.3)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(pool.fetch_one("select 1", patient=True), 2)


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
async def test_an_idle_server_notices(pool: Pool, relay: DatabaseRelay, silent: bool) -> None:
    """A database that goes away while nobody asks for anything is noticed, within two seconds on an idle machine."""
    await fill(pool)
    if silent:
        relay.hang()
    else:
        await relay.go_away()
    started = time.monotonic()
    await becomes(pool, healthy=False)
    assert time.monotonic() - started < 3
    await relay.come_back()
    await recovers(pool, within_s=4)


async def test_silent_database(pool: Pool, relay: DatabaseRelay) -> None:
    """A database that takes statements and never answers is Unavailable within the deadline."""
    await fill(pool)
    relay.hang()
    await fails(pool)
    await asyncio.gather(*(fails(pool) for _ in range(5)))
    await relay.come_back()
    await recovers(pool)


async def test_silent_database_in_a_transaction(pool: Pool, relay: DatabaseRelay) -> None:
    """A transaction too ends when the database falls silent in the middle of it."""
    started = time.monotonic()

    async def fall_silent() -> None:
        async with pool.transaction() as connection:
            await connection.execute("select 1")
            relay.hang()
            await connection.execute("select 2")

    with pytest.raises(Unavailable):
        await fall_silent()
    assert time.monotonic() - started < LATEST_S


async def test_lost_connections_do_not_surface(pool: Pool, relay: DatabaseRelay) -> None:
    """Connections that were lost while idle cost the next requests nothing but new ones."""
    await fill(pool)
    seen = relay.connections_seen
    await relay.drop_connections()
    await asyncio.sleep(0.05)
    started = time.monotonic()
    for _ in range(6):
        assert await pool.fetch_one("select 1") == (1,)
    assert time.monotonic() - started < 1
    assert relay.connections_seen > seen
    await relay.drop_connections()
    await asyncio.sleep(0.05)
    assert len(await asyncio.gather(*(pool.fetch_one("select 1") for _ in range(6)))) == 6
    assert pool.healthy


async def test_lost_connections_are_freed_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing holds a connection that was lost while idle, though it had prepared statements: the collector comes seldom."""
    made: list[weakref.ref[Connection]] = []
    borrow = Connections.borrow

    async def noted(self: Connections, timeout_s: float) -> Connection:
        connection = await borrow(self, timeout_s)
        made.append(weakref.ref(connection))
        return connection

    monkeypatch.setattr(Connections, "borrow", noted)
    gc.disable()
    try:
        await pool.fetch_one("select %s::int", (1,))
        connection = made[0]()
        assert connection is not None
        connection.break_off()
        del connection
        async with asyncio.timeout(5):
            while made[0]() is not None:
                await pool.fetch_one("select %s::int", (1,))
                await asyncio.sleep(0.02)
    finally:
        gc.enable()


async def test_connections_at_hand(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was just given back is lent next; after a while those at hand are the driver's to keep or close."""
    monkeypatch.setattr(connections_module, "AT_HAND_S", 0.02)
    (first,) = await pool.fetch_all("select pg_backend_pid()")
    assert await pool.fetch_all("select pg_backend_pid()") == [first]
    available = pool._availability._connections
    assert available is not None
    async with asyncio.timeout(5):
        while available._at_hand or not available._pool._pool:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_connections_that_the_server_ended(pool: Pool, database: str) -> None:
    """The same holds where the server ended them and said so, as it does when it restarts."""
    await fill(pool)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        await other.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'jarvis-core'"
            " and datname = current_database()"
        )
    await asyncio.sleep(0.1)
    assert await asyncio.gather(*(pool.fetch_one("select 1") for _ in range(6))) == [(1,)] * 6


async def test_connection_lost_in_a_statement(pool: Pool, relay: DatabaseRelay) -> None:
    """A statement whose connection breaks is Unavailable, not repeated, and the next one works."""
    task = asyncio.create_task(pool.fetch_one("select pg_sleep(0.5)"))
    await asyncio.sleep(0.2)
    await relay.drop_connections()
    with pytest.raises(Unavailable):
        await task
    assert await pool.fetch_one("select 1") == (1,)
    assert pool.healthy


async def test_slow_statement(pool: Pool) -> None:
    """A statement that takes longer than the deadline is late, which is no sign that the database is away."""
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await pool.execute("select pg_sleep(30)")
    assert time.monotonic() - started < LATEST_S
    assert caught.value.retry_after_s == RETRY_AFTER_S
    assert pool.healthy
    assert await pool.fetch_one("select 1") == (1,)
    await asyncio.sleep(0.3)
    assert pool.healthy
    assert pool.losses == 0


async def test_all_connections_in_use(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a connection longer than the deadline is told then of too much work; who waits less gets one."""
    monkeypatch.setattr("jarvis_core.store.pool.GRACE_S", 5)

    async def hold(duration_s: float) -> None:
        async with pool.transaction() as connection:
            await connection.execute("select 1")
            await asyncio.sleep(duration_s)

    holders = [asyncio.create_task(hold(0.4)) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert await pool.fetch_one("select 1") == (1,)
    await asyncio.gather(*holders)
    holders = [asyncio.create_task(hold(TIMEOUT_S + 0.4)) for _ in range(3)]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    with pytest.raises(Overloaded):
        await pool.fetch_one("select 1")
    assert time.monotonic() - started < LATEST_S
    assert not any(holder.done() for holder in holders)
    assert pool.healthy, "a busy database is not away"
    assert await pool.fetch_one("select 2") == (2,), "whoever was told does not stand in the queue any more"
    await asyncio.gather(*holders)


async def test_cancelled_statement(pool: Pool) -> None:
    """A request that is cancelled while its statement runs gives its connection back."""
    for _ in range(5):
        task = asyncio.create_task(pool.execute("select pg_sleep(30)"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert await asyncio.gather(*(pool.fetch_one("select 1") for _ in range(6))) == [(1,)] * 6


async def test_connections_are_bounded(pool: Pool, relay: DatabaseRelay) -> None:
    """Many requests at once open no more connections than the limit, and all are answered."""
    assert await asyncio.gather(*(pool.fetch_one("select 1") for _ in range(200))) == [(1,)] * 200
    assert relay.open_connections <= 3


async def test_nothing_leaks(relay: DatabaseRelay) -> None:
    """A closed pool leaves no connection behind, and refuses work."""
    async with opened(relay.conninfo) as pool:
        await fill(pool)
    async with asyncio.timeout(2):
        while relay.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await pool.fetch_one("select 1")


# What the database says of itself

RAISE = "do $$ begin raise exception 'as told' using errcode = '{}'; end $$"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("57P01", Unavailable),  # admin_shutdown
        ("57P02", Unavailable),  # crash_shutdown
        ("57P03", Unavailable),  # cannot_connect_now
        ("08006", Unavailable),  # connection_failure
        ("25006", Unavailable),  # read_only_sql_transaction
        ("53100", Unavailable),  # disk_full
        ("58030", Unavailable),  # io_error
        ("58P01", Unavailable),  # undefined_file
        ("53200", Overloaded),  # out_of_memory
        ("53300", Overloaded),  # too_many_connections
        ("55P03", Overloaded),  # lock_not_available
        ("40001", Overloaded),  # serialization_failure
        ("40P01", Overloaded),  # deadlock_detected
        ("57014", DeadlineExceeded),  # query_canceled
    ],
)
async def test_troubles_of_the_database(pool: Pool, state: str, expected: type[RequestError]) -> None:
    """What goes wrong with the database is told as such, with when to try again, and the next statement works."""
    with pytest.raises(expected) as caught:
        await pool.execute(RAISE.format(state))
    assert type(caught.value).code == expected.code
    assert caught.value.retry_after_s == RETRY_AFTER_S
    assert "as told" not in caught.value.message
    assert await pool.fetch_one("select 1") == (1,)
    assert pool.healthy


@pytest.mark.parametrize("state", ["XX000", "22012", "42501", "54000", "26000"])
async def test_defects_stay_defects(pool: Pool, state: str) -> None:
    """What is wrong with a statement is not taken for trouble of the database."""
    with pytest.raises(psycopg.Error) as caught:
        await pool.execute(RAISE.format(state))
    assert caught.value.sqlstate == state
    assert pool.healthy


async def test_undone_for_another(pool: Pool) -> None:
    """A transaction that the database undid as a deadlock's victim is run again, as a whole, and only then told."""
    await pool.execute("create sequence runs")
    await pool.execute("create table t (id integer)")
    undo = (
        RAISE.format("40P01").replace("begin", "begin if nextval('runs') < 3 then").replace("end $$", "end if; end $$")
    )
    await pool.fetch_in_one_trip([("insert into t values (1)", ()), (undo, ())])
    assert await pool.fetch_all("select * from t") == [(1,)]
    assert await pool.fetch_one("select last_value from runs") == (3,)


async def test_a_database_that_takes_no_writes(database: str) -> None:
    """One that may only be read, as after a failover, is as good as away, until it takes writes again."""
    name = str(conninfo_to_dict(database)["dbname"])
    one = psycopg.AsyncConnection.connect(database, autocommit=True)
    async with opened(database, max_connections=1) as pool, await one as other:
        await pool.execute("create table t (id integer)")
        await other.execute(f"alter database {name} set default_transaction_read_only = on")
        await pool.execute("set default_transaction_read_only = on")
        with pytest.raises(Unavailable):
            await pool.execute("insert into t values (1)")
        await lost(pool)
        await other.execute("set default_transaction_read_only = off")
        await other.execute(f"alter database {name} set default_transaction_read_only = off")
        await recovers(pool)
        await pool.execute("insert into t values (1)")


async def test_a_session_that_takes_no_writes(database: str) -> None:
    """Connections that lead to a server which may only be read are made anew where new ones lead to another."""
    async with opened(database, max_connections=1) as pool:
        await pool.execute("create table t (id integer)")
        await pool.execute("set default_transaction_read_only = on")
        with pytest.raises(Unavailable):
            await pool.execute("insert into t values (1)")
        await recovers(pool)
        await pool.execute("insert into t values (1)")
        assert pool.losses == 0


async def test_no_new_connection_at_all(database: str) -> None:
    """A server that refuses new connections while those that we have are idle is not away."""
    role = f"full_{conninfo_to_dict(database)['dbname']}"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        await other.execute(f"create role {role} login")
        try:
            async with opened(make_conninfo(database, user=role), max_connections=2) as pool:
                await fill(pool, 2)
                await other.execute(f"alter role {role} connection limit 1")
                with pytest.raises(DeadlineExceeded):  # which has the database looked at
                    await pool.execute("select pg_sleep(30)")
                await asyncio.sleep(1.5)
                assert pool.losses == 0
                assert pool.healthy
                assert await pool.fetch_one("select 1") == (1,)
        finally:
            await other.execute(f"drop role {role}")


async def test_no_connection_to_spare(database: str) -> None:
    """A server that has fewer connections for us than we would like is used with those that it gives, and is not away."""
    role = f"limited_{conninfo_to_dict(database)['dbname']}"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        await other.execute(f"create role {role} login connection limit 2")
        try:
            async with opened(make_conninfo(database, user=role), max_connections=6, timeout_s=5) as pool:
                await asyncio.sleep(0.1)  # the first look at it is over
                work = [pool.fetch_one("select 1 from pg_sleep(0.05)") for _ in range(30)]
                assert await asyncio.gather(*work) == [(1,)] * 30
                assert pool.losses == 0
                await becomes(pool, healthy=True)
        finally:
            await other.execute(f"drop role {role}")


# More work than connections


async def hold(pool: Pool, times: int, seconds: float) -> list[asyncio.Task[object]]:
    """Keep so many connections busy."""
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(pool.fetch_one("select pg_sleep(%s)", (seconds,))) for _ in range(times)
    ]
    await asyncio.sleep(0.1)
    return tasks


async def test_waiting_is_bounded(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who would be one too many in the queue is refused at once, and those in it get their turn."""
    monkeypatch.setattr("jarvis_core.store.connections.WAITING_LIMIT", 1)
    async with opened(database, max_connections=1) as pool:
        holders = await hold(pool, 1, 0.3)
        waiting = asyncio.create_task(pool.fetch_one("select 2"))
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(Overloaded):
            await pool.fetch_one("select 1")
        assert time.monotonic() - started < 0.1
        assert await waiting == (2,)
        await asyncio.gather(*holders)


async def test_users_have_turns(database: str) -> None:
    """A statement of who asks little is run in its turn, and not after all that another user has sent before."""
    order: list[str] = []

    async def ask(pool: Pool, user: str) -> None:
        current_user.set(user)
        await pool.fetch_one("select 1")
        order.append(user)

    async with opened(database, max_connections=1) as pool:
        holders = await hold(pool, 1, 0.3)
        asking = [asyncio.create_task(ask(pool, "ann")) for _ in range(50)]
        await asyncio.sleep(0)
        asking.append(asyncio.create_task(ask(pool, "ben")))
        await asyncio.gather(*asking, *holders)
    assert order.index("ben") == 1
    assert order.count("ann") == 50


async def test_who_stops_waiting_leaves_no_gap(database: str) -> None:
    """Those who were cancelled while they waited, or worked, leave their places to others."""
    async with opened(database, max_connections=2) as pool:
        holders = await hold(pool, 2, 0.2)
        waiting = [asyncio.create_task(pool.fetch_one("select 1")) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in (*waiting[:15], holders[0]):
            task.cancel()
        results = await asyncio.gather(*waiting, *holders, return_exceptions=True)
        assert results[15:20] == [(1,)] * 5
        assert await asyncio.gather(*(pool.fetch_one("select 3") for _ in range(9))) == [(3,)] * 9


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_when_a_connection_is_given(database: str, steps: int) -> None:
    """Who is cancelled in the moment in which it is given a new connection is cancelled, and leaves it to others."""
    options = {"autocommit": True}
    connections = Connections(database, options, limit=2, reconnect_limit_s=5, on_failure=lambda _: None)

    async def work() -> None:
        connection = await connections.borrow(5)
        try:
            await asyncio.Event().wait()
        finally:
            await connections.give_back(connection)

    await connections.open()
    try:
        held = await connections.borrow(5)
        working = asyncio.create_task(work())
        async with asyncio.timeout(5):
            while len(connections.made) < 2:  # noqa: ASYNC110 - step by step to the moment
                await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working], timeout=5)
        assert working.cancelled()
        other = await connections.borrow(5)
        for connection in (held, other):
            await connections.give_back(connection)
    finally:
        await connections.close(5)


async def test_cancelled_at_any_moment(database: str) -> None:
    """Whatever moment requests are cancelled in, no connection is lost and nobody is left waiting for one."""
    dice = random.Random(7)

    async def ask(pool: Pool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(0.0005, 0.004)):
                await pool.fetch_in_one_trip([("select 1", ()), ("select pg_sleep(0.0005)", ())])

    async def ask_patiently(pool: Pool) -> float:
        started = time.monotonic()
        await pool.fetch_one("select 1")
        return time.monotonic() - started

    async with opened(database, max_connections=3, timeout_s=5) as pool:
        for _ in range(150):
            asking = [asyncio.create_task(ask(pool)) for _ in range(6)]
            assert max(await asyncio.gather(*(ask_patiently(pool) for _ in range(3)))) < 4
            await asyncio.gather(*asking)
        started = time.monotonic()
        await asyncio.gather(*(pool.fetch_one("select pg_sleep(0.5)") for _ in range(3)))
        assert time.monotonic() - started < 1.4, "all three connections are there"
