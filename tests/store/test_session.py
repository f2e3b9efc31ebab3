"""Sessions as the address wants them: its options, its schema, and extensions wherever they were put."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jarvis_core.errors import StartError
from jarvis_core.settings import Database
from jarvis_core.store.memories import MemoryStore
from jarvis_core.store.memory_vectors import MemoryVectors
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from tests.store.test_memories import add, contents, direction

IN_SCHEMA = "select table_schema::text from information_schema.tables where table_name = 'memory_vectors'"


@asynccontextmanager
async def opened(conninfo: str, **more: str) -> AsyncIterator[Pool]:
    """Lend an open pool on a database whose address says *more*."""
    pool = Pool(Database(max_connections=2), make_conninfo(conninfo, **more) if more else conninfo)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def house(database: str) -> str:
    """Give the conninfo of a database with a schema ``house``, and the extensions in a schema that nobody looks into."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("create schema house")
        await connection.execute('create schema "the extensions"')
        for name in ("vector", "pg_trgm"):
            await connection.execute(f'create extension {name} schema "the extensions"'.encode())
    return database


async def test_options_beside_ours(database: str) -> None:
    """What the address sets is set, and so is what every session has; the deadline of statements is ours."""
    options = "-c work_mem=5MB -c statement_timeout=0 -c TimeZone=Asia/Kathmandu --enable-seqscan=off"
    asked = (
        "select current_setting('work_mem'), current_setting('enable_seqscan'), current_setting('statement_timeout'),"
    )
    async with opened(database, options=options) as pool:
        for _ in range(3):
            rows = await pool.fetch_all(f"{asked} current_setting('TimeZone'), current_setting('application_name')")
            assert rows == [("5MB", "off", "5s", "UTC", "jarvis-core")]


async def test_pooler_that_is_said_to_be_there(database: str) -> None:
    """Where the address says that a pooler is between, no session is set up, and each transaction sets up itself."""
    async with opened(f"{database} pgbouncer=true options='-c work_mem=5MB'") as pool:
        assert await pool.fetch_all("select current_setting('work_mem')") == [("5MB",)]
        async with pool.without_timeout() as connection:
            cursor = await connection.execute(
                "select current_setting('work_mem'), current_setting('statement_timeout')"
            )
            assert await cursor.fetchone() == ("4MB", "0")
        async with pool.transaction() as connection:
            cursor = await connection.execute(
                "select current_setting('work_mem'), current_setting('statement_timeout')"
            )
            assert await cursor.fetchone() == ("5MB", "5s")


async def test_name_of_the_application(database: str) -> None:
    """An address may say how its sessions are called."""
    async with opened(database, application_name="house") as pool:
        assert await pool.fetch_all("select current_setting('application_name')") == [("house",)]


@pytest.mark.parametrize(
    ("path", "tables"), [("house", "house"), (None, "public"), ("nowhere, house", "house"), ("public, house", "public")]
)
async def test_extensions_in_another_schema(house: str, path: str | None, tables: str) -> None:
    """
    Tables stand in the schema that was asked for, and extensions are used where they are.

    Semantic search, misspelt words and indexes work as they do where all is in one schema.
    """
    async with opened(house, **({} if path is None else {"options": f"-csearch_path={path.replace(' ', '')}"})) as pool:
        await migrate(pool)
        store = MemoryStore(pool, MemoryVectors(pool, index_from=4))
        await store.prepare()
        assert store.vectors_available
        assert await pool.fetch_all(IN_SCHEMA) == [(tables,)]
        for degrees in range(0, 80, 10):
            await add(store, f"fact of {degrees} degrees", direction(degrees))
        await add(store, "the plumber is called Zbigniew", direction(180))
        assert (await contents(store, "", direction(31)))[0] == "fact of 30 degrees"
        assert await contents(store, "Zbignew") == ["the plumber is called Zbigniew"]
        await store.tend_indexes()
        assert list(store._vectors._indexed) == [("ann", 1)]
        assert (await contents(store, "", direction(31)))[0] == "fact of 30 degrees"


async def test_schema_that_is_not_there(house: str) -> None:
    """Where no schema of those asked for is there, the start ends with a line, and no tables are made elsewhere."""
    async with opened(house, options="-csearch_path=nowhere") as pool:
        with pytest.raises(StartError, match="no schema of the search_path"):
            await migrate(pool)
        rows = await pool.fetch_all("select 1 from information_schema.tables where table_name = 'schema_versions'")
        assert rows == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("-cfrobnicate=1", '"frobnicate"'),
        ("-cwork_mem=much", '"work_mem"'),
        ("-clog_connections=on", "log_connections"),
    ],
)
async def test_options_that_are_refused(database: str, options: str, named: str) -> None:
    """What the server does not let be set ends the start at once, with a line that names it."""
    with pytest.raises(StartError, match=named):
        async with opened(database, options=options):
            pass
