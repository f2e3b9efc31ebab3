"""The pool behind a pooler, which lends the server's sessions to whoever comes next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from jarvis_core.errors import DeadlineExceeded, Unavailable
from jarvis_core.models import new_id
from jarvis_core.settings import Database
from jarvis_core.store.memories import MemoryStore
from jarvis_core.store.memory_vectors import MemoryVectors
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from tests.fakes.pgbouncer import PgBouncer, pgbouncer
from tests.store.test_memories import add, contents, direction
from tests.store.test_pool import becomes

CLEAN = """
select pg_backend_pid(), current_setting('statement_timeout'), current_setting('search_path'), current_setting('TimeZone'),
    (select count(*) from pg_prepared_statements), (select count(*) from pg_locks where locktype = 'advisory')
"""
POOL_SIZE = {"transaction": 3, "session": 16}
"""Of the server's sessions; in session mode each client has one for itself."""


@pytest.fixture(params=list(POOL_SIZE))
def pooler(request: pytest.FixtureRequest, database: str) -> Iterator[PgBouncer]:
    """Run PgBouncer in front of an empty database."""
    with pgbouncer(database, mode=request.param, pool_size=POOL_SIZE[request.param]) as pooler:
        yield pooler


@asynccontextmanager
async def opened(address: str, *, max_connections: int = 6, timeout_s: float = 5.0) -> AsyncIterator[Pool]:
    """Lend an open pool."""
    pool = Pool(Database(max_connections=max_connections, timeout_s=timeout_s), address)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


async def what_is_left(pooler: PgBouncer) -> list[tuple[Any, ...]]:
    """Return what a client finds in each session that the pooler lends, without its pid."""
    found: dict[int, tuple[Any, ...]] = {}
    async with AsyncExitStack() as stack:
        # A transaction each, so that each has another session.
        for _ in range(3):
            client = await psycopg.AsyncConnection.connect(pooler.url, prepare_threshold=None)
            await stack.enter_async_context(client)
            pid, *rest = await (await client.execute(CLEAN)).fetchone() or ()
            found[pid] = tuple(rest)
    assert len(found) == 3
    return list(found.values())


async def test_statements_are_not_mixed_up(pooler: PgBouncer) -> None:
    """Two workers' statements, as many at once as there is no room for, are each answered by what was asked for."""
    async with opened(pooler.url) as one, opened(pooler.url) as other:

        async def ask(pool: Pool, number: int) -> None:
            # Every one another text, and all of them the first, the second ... of their connection.
            asked = f"select {number}, %s::int, pg_sleep(%s)"
            assert await pool.fetch_one(asked, (number, random.random() / 500)) == (number, number, "")
            rows = await pool.fetch_in_one_trip([(f"select {number}", ()), (f"select -{number}", ())])
            assert rows == [[(number,)], [(-number,)]]
            async with pool.transaction() as connection:
                for sign in (1, -1):
                    cursor = await connection.execute(f"select {number} * %s::int".encode(), (sign,))
                    assert await cursor.fetchone() == (number * sign,)

        for _ in range(3):  # statements that come again are those that are prepared
            await asyncio.gather(*(ask(pool, number) for number in range(60) for pool in (one, other)))
    assert len(set(await what_is_left(pooler))) == 1


async def test_nothing_is_left_in_the_session(pooler: PgBouncer) -> None:
    """What is set, prepared and locked for a statement, a transaction or an index is not there for the next client."""
    before = await what_is_left(pooler)
    async with opened(f"{pooler.url}?options=-csearch_path%3Dpublic -cwork_mem%3D5MB") as pool:
        await migrate(pool)
        store = MemoryStore(pool, MemoryVectors(pool, index_from=1))
        await store.prepare()
        await add(store, "the key is under the mat", direction(10))
        await store.tend_indexes()
        assert await pool.fetch_all("select current_setting('statement_timeout'), current_setting('work_mem')") == [
            ("5s", "5MB")
        ]
    assert await what_is_left(pooler) == before
    assert {row[-2:] for row in before} == {(0, 0)}


async def test_deadline_of_a_statement(pooler: PgBouncer) -> None:
    """A statement that takes too long is stopped by the server, alone, in a trip with others and in a transaction."""
    async with opened(pooler.url, timeout_s=0.3) as pool:
        with pytest.raises(DeadlineExceeded):
            await pool.fetch_one("select pg_sleep(30)")
        with pytest.raises(DeadlineExceeded):
            await pool.fetch_in_one_trip([("select 1", ()), ("select pg_sleep(30)", ())])
        with pytest.raises(DeadlineExceeded):
            async with pool.transaction() as connection:
                await connection.execute("select pg_sleep(30)")
        assert await pool.fetch_one("select 1") == (1,)
        assert pool.losses == 0


async def test_times_are_utc(pooler: PgBouncer, database: str) -> None:
    """A point in time is read as UTC, whatever the time zone of the session is."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute(f"alter database {pooler.database} set timezone = 'Asia/Kathmandu'")
    async with opened(pooler.url) as pool:
        asked = "select %s::timestamptz, '2026-12-01 10:00:00.25+05:45'::timestamptz, null::timestamptz"
        when = datetime(2026, 12, 1, 12, tzinfo=UTC)
        (row,) = await pool.fetch_all(asked, (when,))
        assert row == (when, datetime(2026, 12, 1, 4, 15, 0, 250_000, tzinfo=UTC), None)
        assert [value.isoformat()[-6:] for value in row[:2]] == ["+00:00"] * 2


async def test_who_is_cancelled_cancels_nobody_else(pooler: PgBouncer) -> None:
    """Statements that nobody waits for any more are stopped, and no other one is stopped or answered in their place."""
    dice = random.Random(4)
    async with opened(pooler.url) as one, opened(pooler.url) as other:
        answered = 0

        async def ask(pool: Pool, number: int) -> None:
            nonlocal answered
            statement = f"select {number}, pg_sleep(%s)"
            assert (await pool.fetch_one(statement, (dice.uniform(0, 0.02),)) or ())[0] == number
            answered += 1

        async with asyncio.TaskGroup() as group:
            for number in range(300):
                task = group.create_task(ask(dice.choice((one, other)), number))
                if dice.random() < 0.4:
                    asyncio.get_running_loop().call_later(dice.uniform(0, 0.05), task.cancel)
                await asyncio.sleep(0.003)
        assert 100 < answered < 300
        assert (one.losses, other.losses) == (0, 0)


async def test_pooler_that_goes_away(pooler: PgBouncer) -> None:
    """A pooler that is killed is a database that is away, and one that is back is as before."""
    async with opened(pooler.url, timeout_s=0.6) as pool:
        assert await pool.fetch_one("select 1") == (1,)
        await asyncio.to_thread(pooler.kill)
        with pytest.raises(Unavailable):
            await pool.fetch_one("select 1")
        await becomes(pool, healthy=False)
        await asyncio.to_thread(pooler.start)
        await becomes(pool, healthy=True, within_s=10)
        assert await pool.fetch_one("select 1") == (1,)


async def test_sessions_that_the_server_ends(pooler: PgBouncer, database: str) -> None:
    """When the server ends its sessions behind the pooler, who asked is told so, and those after them are answered."""
    async with opened(pooler.url, timeout_s=2) as pool:
        asking = [asyncio.create_task(pool.fetch_one("select pg_sleep(1)")) for _ in range(2)]
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            async with asyncio.timeout(5):
                ended = 0
                while ended < 2:
                    cursor = await connection.execute(
                        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                        " where datname = current_database() and state = 'active' and query like '%pg_sleep%'"
                        " and pid <> pg_backend_pid()"
                    )
                    ended += (await cursor.fetchone() or (0,))[0]
        for one in asking:
            with pytest.raises(Unavailable):
                await one
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await pool.fetch_one("select 1") == (1,)
                    break
                except Unavailable:
                    await asyncio.sleep(0.02)


async def test_workers_that_start_together(database: str) -> None:
    """Several workers may make the tables at once, even where all of them have one session to share."""
    with pgbouncer(database, mode="transaction", pool_size=1) as pooler:
        async with AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(opened(pooler.url)) for _ in range(3)]
            await asyncio.gather(*(migrate(pool) for pool in pools))
            stores = [MemoryStore(pool, MemoryVectors(pool, index_from=1)) for pool in pools]
            await asyncio.gather(*(store.prepare() for store in stores))
            assert await pools[0].fetch_all("select count(distinct number) = count(*) from schema_versions") == [
                (True,)
            ]


async def test_indexes_behind_a_pooler(pooler: PgBouncer) -> None:
    """Indexes of vectors are made by who finds nobody at it, also where their tables and types are not looked for."""
    async with opened(pooler.url) as pool:
        await pool.execute("create schema jarvis")
        await pool.execute("create schema extensions")
        await pool.execute("create extension vector schema extensions")
    async with opened(f"{pooler.url}?schema=jarvis") as pool:
        await migrate(pool)
        store = MemoryStore(pool, MemoryVectors(pool, index_from=4))
        await store.prepare()
        assert store.vectors_available
        for number in range(8):
            await add(store, f"fact {number} {new_id()}", direction(number * 10.0))
        await store.tend_indexes()
        found = "select schemaname::text from pg_indexes where starts_with(indexname, 'memory_vectors_near_')"
        assert await pool.fetch_all(found) == [("jarvis",)]
        assert (await contents(store, "", direction(21)))[0].startswith("fact 2")
        await pool.execute("delete from memories")
        await store.tend_indexes()
        assert await pool.fetch_all(found) == []
