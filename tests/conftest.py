"""One PostgreSQL server for the whole run, a fresh database for each test that asks."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jarvis_core.local.postgres import EmbeddedPostgres
from jarvis_core.settings import Database
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from tests.fakes.relay import DatabaseRelay

MAX_CONNECTIONS = 200
"""Of the server: the tests' pools and those of servers that tests start."""

MEMORY_BYTES = 1 << 30
"""What must be free to have the server's files in memory, where a database is made in a tenth of the time."""

_numbers = itertools.count(1)


LONGEST = ("tests/local/test_speech.py", "tests/system/", "tests/docs/", "tests/fuzz/", "tests/local/")
"""Files that take long begin first, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by how long their files take, and leave them in their order otherwise."""
    order = {place: number for number, place in enumerate(LONGEST)}
    items.sort(key=lambda item: next((order[one] for one in LONGEST if item.nodeid.startswith(one)), len(order)))


@pytest.fixture(scope="session")
def postgres_conninfo() -> Iterator[str]:
    """Run one server, and give the conninfo of its database ``jarvis``, which tests leave empty."""
    # Not pytest's own directory: as root the server runs as nobody, who may not enter that one.
    directory = Path(tempfile.mkdtemp(prefix="jarvis-test-", dir=_fastest_directory()))
    directory.chmod(0o711)
    server = EmbeddedPostgres(directory / "data", max_connections=MAX_CONNECTIONS)
    try:
        conninfo = server.start()
        with psycopg.connect(conninfo, autocommit=True) as connection:
            # Nothing here outlives the run.
            connection.execute("alter system set fsync = off")
            # Tests connect as roles that they make.
            (directory / "data" / "postgres" / "pg_hba.conf").write_text("local all all trust\n")
            connection.execute("select pg_reload_conf()")
        yield conninfo
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture
def database(postgres_conninfo: str) -> Iterator[str]:
    """Give the conninfo of an empty database of the test's own; who opens it migrates it."""
    with _new_database(postgres_conninfo) as conninfo:
        yield conninfo


@pytest.fixture(scope="session")
def shared_database(postgres_conninfo: str) -> Iterator[str]:
    """Give the conninfo of the database behind ``pool``, which is quicker to empty than to make anew."""
    with _new_database(postgres_conninfo) as conninfo:
        yield conninfo


@pytest.fixture
async def pool(shared_database: str) -> AsyncIterator[Pool]:
    """Give an open pool on a migrated database without any rows."""
    pool = Pool(Database(max_connections=4), shared_database)
    await pool.open()
    try:
        await migrate(pool)
        rows = await pool.fetch_all(
            "select table_name from information_schema.tables"
            " where table_schema = 'public' and table_name <> 'schema_versions'"
        )
        await pool.execute(f"truncate {', '.join(name for (name,) in rows)}")
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def relay(database: str) -> AsyncIterator[DatabaseRelay]:
    """Give the same database through a relay that can be away, hang and lose its connections."""
    async with DatabaseRelay(database) as relay:
        yield relay


@contextmanager
def _new_database(conninfo: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"create database {name} strategy file_copy")
    try:
        yield make_conninfo(conninfo, dbname=name)
    finally:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")


def _fastest_directory() -> str:
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        state = os.statvfs(memory)
        if state.f_bavail * state.f_frsize >= MEMORY_BYTES and not state.f_flag & os.ST_NOEXEC:
            return str(memory)
    return "/tmp"
