"""Migrations: once each, whoever else applies them, and all or nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager

import psycopg
import pytest

from jarvis_core.errors import StartError
from jarvis_core.settings import Database
from jarvis_core.store import migrations
from jarvis_core.store.migrations import migrate, schema_files
from jarvis_core.store.pool import Pool

Files = list[tuple[int, str, str]]


@asynccontextmanager
async def opened(conninfo: str) -> AsyncIterator[Pool]:
    """Lend an open pool on an unmigrated database."""
    pool = Pool(Database(max_connections=2), conninfo)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


async def tables(pool: Pool) -> set[str]:
    """Return the names of all tables."""
    rows = await pool.fetch_all("select table_name::text from information_schema.tables where table_schema = 'public'")
    return {row[0] for row in rows}


async def applied(pool: Pool) -> list[int]:
    """Return the numbers of the migrations that were applied."""
    return [row[0] for row in await pool.fetch_all("select number from schema_versions order by number")]


def migrate_in_process(conninfo: str) -> None:
    """Migrate, in a process of its own."""

    async def main() -> None:
        async with opened(conninfo) as pool:
            await migrate(pool)

    asyncio.run(main())


@pytest.fixture
def add_file(monkeypatch: pytest.MonkeyPatch) -> Files:
    """Give a list of migrations that stand behind the real ones."""
    files: Files = []
    real = schema_files()
    monkeypatch.setattr(migrations, "schema_files", lambda: real + files)
    return files


def test_files_are_numbered() -> None:
    """Migrations are numbered from 1 without a gap."""
    files = schema_files()
    assert [number for number, _, _ in files] == list(range(1, len(files) + 1))
    assert all(name.startswith(f"{number:04d}_") and sql.strip() for number, name, sql in files)


async def test_migrating_twice(database: str) -> None:
    """Migrating an empty database makes the tables, and migrating it again changes nothing."""
    async with opened(database) as pool:
        await migrate(pool)
        assert {"conversations", "messages", "turns"} <= await tables(pool)
        before = await pool.fetch_all("select * from schema_versions order by number")
        await migrate(pool)
        assert await pool.fetch_all("select * from schema_versions order by number") == before
        assert await applied(pool) == [number for number, _, _ in schema_files()]


async def test_migrating_together(database: str) -> None:
    """Many that start together on one empty database all find it migrated, each migration applied once."""
    async with opened(database) as one, opened(database) as two, opened(database) as three:
        async with asyncio.timeout(20):
            await asyncio.gather(*(migrate(pool) for pool in (one, two, three, one, two)))
        assert await applied(one) == [number for number, _, _ in schema_files()]


async def test_migrating_in_several_processes(database: str) -> None:
    """Processes that start together do not disturb one another either."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as executor:
        async with asyncio.timeout(30):
            await asyncio.gather(*(loop.run_in_executor(executor, migrate_in_process, database) for _ in range(2)))
    async with opened(database) as pool:
        assert await applied(pool) == [number for number, _, _ in schema_files()]


async def test_waiting_longer_than_a_statement_may(database: str) -> None:
    """Who waits for another's migration waits as long as it takes, beyond the deadline of a statement."""
    pool = Pool(Database(max_connections=2, timeout_s=0.2), database)
    await pool.open()
    try:
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("select pg_advisory_xact_lock(%s)", (migrations.LOCK_KEY,))
            task = asyncio.create_task(migrate(pool))
            await asyncio.sleep(0.5)
            assert not task.done()
            await other.rollback()
            async with asyncio.timeout(5):
                await task
    finally:
        await pool.close()


async def test_newer_schema_is_refused(database: str) -> None:
    """A database that a newer version migrated is refused with one line that says so, and stays as it is."""
    async with opened(database) as pool:
        await migrate(pool)
        await pool.execute("insert into schema_versions (number, name) values (999, '0999_later.sql')")
        with pytest.raises(StartError, match="schema 999, made by a newer jarvis-core") as caught:
            await migrate(pool)
        assert "\n" not in str(caught.value)
        assert (await applied(pool))[-1] == 999


async def test_failing_migration_leaves_nothing(database: str, add_file: Files) -> None:
    """A migration that fails in the middle leaves nothing behind, and those before it stay."""
    number = len(schema_files()) + 1
    add_file.append((number, f"{number:04d}_bad.sql", "create table half (id integer); select 1 / 0;"))
    async with opened(database) as pool:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await migrate(pool)
        assert "half" not in await tables(pool)
        assert await applied(pool) == list(range(1, number))
        add_file[0] = (number, f"{number:04d}_good.sql", "create table half (id integer); create table other (id int);")
        await migrate(pool)
        assert {"half", "other"} <= await tables(pool)
        assert await applied(pool) == list(range(1, number + 1))


async def test_slow_migration(database: str, add_file: Files) -> None:
    """A migration may take longer than a statement may."""
    number = len(schema_files()) + 1
    add_file.append((number, f"{number:04d}_slow.sql", "select pg_sleep(0.4); create table slow (id integer);"))
    pool = Pool(Database(max_connections=2, timeout_s=0.2), database)
    await pool.open()
    try:
        await migrate(pool)
        assert "slow" in await tables(pool)
    finally:
        await pool.close()


async def test_user_without_rights(database: str) -> None:
    """A user who may not make tables is told so in one line that names the setting."""
    async with opened(database) as pool:
        await pool.execute("drop role if exists reader_of_tests")
        await pool.execute("create role reader_of_tests login")
    try:
        restricted = psycopg.conninfo.make_conninfo(database, user="reader_of_tests")
        async with opened(restricted) as pool:
            with pytest.raises(StartError, match=r"^DATABASE_URL: [^\n]*$"):
                await migrate(pool)
    finally:
        async with opened(database) as pool:
            await pool.execute("drop role reader_of_tests")


async def test_old_server(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too old is refused before anything is made."""
    monkeypatch.setattr(migrations, "OLDEST_SERVER", sys.maxsize)
    async with opened(database) as pool:
        with pytest.raises(StartError, match="too old"):
            await migrate(pool)
        assert not await tables(pool)
