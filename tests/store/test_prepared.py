"""Statements prepared on a connection, against the real database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from jarvis_core.store.connections import Connection
from jarvis_core.store.prepared import translated

pytestmark = pytest.mark.every_python

TYPES = """
select %(text)s::text, %(whole)s::bigint, %(part)s::float8, %(yes)s::boolean, %(nothing)s::text, %(bytes)s::bytea,
    %(many)s::text[], %(when)s::timestamptz, '0191d3a0-0000-7000-8000-000000000001'::uuid, %(text)s::text, 7 %% 4
"""


@pytest.fixture
async def connection(postgres_conninfo: str) -> AsyncIterator[Connection]:
    """A connection of its own."""
    connection = await Connection.connect(postgres_conninfo, autocommit=True, prepare_threshold=0)
    yield connection
    await connection.close()


async def test_values_of_every_type(connection: Connection) -> None:
    """What goes in comes out again as the type that it has, by name, in any order and more than once."""
    when = datetime(2026, 11, 25, 7, 30, tzinfo=UTC)
    values = {
        "when": when,
        "text": "L'été, « oui »",
        "whole": 2**40,
        "part": 0.25,
        "yes": True,
        "nothing": None,
        "bytes": b"\0\xff",
        "many": ["a", 'b"c', ""],
    }
    id_ = UUID("0191d3a0-0000-7000-8000-000000000001")
    row = ("L'été, « oui »", 2**40, 0.25, True, None, b"\0\xff", ["a", 'b"c', ""], when, id_, "L'été, « oui »", 3)
    for _ in range(2):
        assert await connection.prepared.run(TYPES, values) == [row]


async def test_values_of_another_type_than_before(connection: Connection) -> None:
    """A parameter may be of another type each time: a small number, a large one, none."""
    for value in (1, 100_000, 2**40, None, 1):
        assert await connection.prepared.run("select %s::bigint", [value]) == [(value,)]


async def test_rows_that_do_not_come_at_once(connection: Connection) -> None:
    """Many rows, and a parameter larger than the socket takes at once, arrive whole."""
    rows = await connection.prepared.run("select n, repeat('x', 100) from generate_series(1, %s) n", [20_000])
    assert [row[0] for row in rows] == list(range(1, 20_001))
    large = "é" * 8_000_000
    assert await connection.prepared.run("select %s::text", [large]) == [(large,)]
    assert await connection.prepared.run("create temporary table t (n integer)") == []
    assert await connection.prepared.run("insert into t select %s", [1]) == []


async def test_failures_leave_the_connection_usable(connection: Connection) -> None:
    """The server's errors are raised as the driver's, and the next statement runs."""
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.prepared.run("select 1 / %s::int", [0])
    with pytest.raises(psycopg.errors.UndefinedTable):
        await connection.prepared.run("select * from no_such_table")
    with pytest.raises(KeyError):
        await connection.prepared.run("select %(a)s::int", {"b": 1})
    with pytest.raises(psycopg.DataError):
        await connection.prepared.run("select %s::text", ["nul \0"])
    assert await connection.prepared.run("select 1 / %s::int", [1]) == [(1,)]


async def test_server_that_has_forgotten(connection: Connection) -> None:
    """What was prepared and is gone, after the driver's rollback or a pooler's reset, is prepared again."""
    for _ in range(3):
        assert await connection.prepared.run("select %s::int", [5]) == [(5,)]
        await connection.execute("deallocate all")


async def test_server_that_ends_the_session(connection: Connection, postgres_conninfo: str) -> None:
    """The reason why the server ended the session is what is raised; after that it is known as lost."""
    waiting = asyncio.create_task(connection.prepared.run("select pg_sleep(%s)", [30]))
    async with await psycopg.AsyncConnection.connect(postgres_conninfo, autocommit=True) as other:
        await until_active(other, connection.info.backend_pid)
        await other.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])
    with pytest.raises(psycopg.errors.AdminShutdown):
        await waiting
    with pytest.raises(psycopg.OperationalError):
        await connection.prepared.run("select 1")


async def test_broken_off(connection: Connection, postgres_conninfo: str) -> None:
    """Whoever waits on a connection that is broken off sees it at once."""
    waiting = asyncio.create_task(connection.prepared.run("select pg_sleep(%s)", [30]))
    async with await psycopg.AsyncConnection.connect(postgres_conninfo, autocommit=True) as other:
        await until_active(other, connection.info.backend_pid)
    connection.break_off()
    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(waiting, 5)


async def test_statement_that_nobody_waits_for(connection: Connection, postgres_conninfo: str) -> None:
    """The server stops a statement whose caller was cancelled."""
    pid = connection.info.backend_pid
    waiting = asyncio.create_task(connection.prepared.run("select pg_sleep(%s)", [30]))
    async with await psycopg.AsyncConnection.connect(postgres_conninfo, autocommit=True) as other:
        await until_active(other, pid)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until_active(other, pid, active=False)


async def test_taking_turns_with_the_driver(connection: Connection) -> None:
    """Statements run whatever the driver has run on the connection by itself before, and it may do so after them."""
    for number in range(3):
        assert await connection.prepared.run("select %s::int", [number]) == [(number,)]
        cursor = await connection.execute("select %s::int + 1", [number])
        assert await cursor.fetchone() == (number + 1,)
        async with connection.transaction():
            assert await connection.prepared.run("select %s::int", [number]) == [(number,)]
        async with connection.pipeline():
            cursors = [await connection.execute("select %s::int", [n]) for n in range(3)]
        assert [await cursor.fetchone() for cursor in cursors] == [(0,), (1,), (2,)]


async def test_what_nobody_waits_for_costs_nothing(connection: Connection, postgres_conninfo: str) -> None:
    """What a server says to an idle connection, and its hanging up, does not keep the loop busy."""
    await connection.execute("listen something")
    assert await connection.prepared.run("select 1") == [(1,)]
    pid = connection.info.backend_pid
    async with await psycopg.AsyncConnection.connect(postgres_conninfo, autocommit=True) as other:
        await other.execute("notify something")
        assert await idle_share() < 0.5
        assert await connection.prepared.run("select 2") == [(2,)]
        await other.execute("select pg_terminate_backend(%s)", [pid])
        assert await idle_share() < 0.5


async def idle_share() -> float:
    """Return what part of a core this process uses while it has nothing to do."""
    await asyncio.sleep(0.05)
    began, used = time.monotonic(), time.process_time()
    await asyncio.sleep(0.3)
    return (time.process_time() - used) / (time.monotonic() - began)


def open_files() -> set[Path]:
    """Return what this process has open."""
    return {*Path("/proc/self/fd").iterdir()}


async def test_closed_under_who_waits(connection: Connection, postgres_conninfo: str) -> None:
    """Whoever waits on a connection that is closed sees it at once, and nothing of it stays open."""
    before = open_files()
    own = await Connection.connect(postgres_conninfo, autocommit=True)
    waiting = asyncio.create_task(own.prepared.run("select pg_sleep(%s)", [30]))
    await until_active(connection, own.info.backend_pid)
    await own.close()
    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(waiting, 5)
    await asyncio.sleep(0)  # the loop closes a handle in its next round
    assert open_files() == before


def test_translation() -> None:
    """Names are numbered where they first stand; of both kinds of placeholders a statement has one."""
    assert translated("%(b)s, %(a)s, %(b)s %% 2") == (b"$1, $2, $1 % 2", ("b", "a"), 2)
    assert translated("%s, %s") == (b"$1, $2", (), 2)
    with pytest.raises(ValueError, match="either by name or by place"):
        translated("%s, %(a)s")


async def until_active(other: psycopg.AsyncConnection, pid: int, *, active: bool = True) -> None:
    """Wait until the session *pid* runs a statement, or none."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        cursor = await other.execute("select state = 'active' from pg_stat_activity where pid = %s", [pid])
        if ((await cursor.fetchone()) or (False,))[0] == active:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"the session is not {'active' if active else 'idle'}")
