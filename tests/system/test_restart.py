"""The embedded database dies while the server runs: clients are told, it is started again, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from tests.system.conftest import MakeServer
from tests.system.server import Process, Server, family_of, processes_naming, wait_gone

BACK_LIMIT_S = 40.0
"""A second or two on an idle machine."""


def postmaster(data_directory: Path) -> int:
    """Return the pid of the database's first process."""
    return int((data_directory / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


async def compute(conninfo: str) -> set[Process]:
    """Leave a session that computes, notices nothing and has what was the server's memory; return its process."""
    connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    pid = connection.info.backend_pid
    # In one expression that looks at nothing: the session would go on for minutes after its server's end.
    statement = "select count(*) from generate_series(1, 100000) a, generate_series(1, 100000) b where a # b = -1"
    connection.pgconn.send_query(statement.encode())
    assert connection.pgconn.flush() == 0
    await asyncio.sleep(0.2)
    connection.pgconn.finish()
    return family_of(pid)


async def until_answered(client: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[set[int], set[int]]:
    """Say *body* until it is answered; return which statuses refusals and readiness had until then."""
    refusals: set[int] = set()
    readiness: set[int] = set()
    deadline = time.monotonic() + BACK_LIMIT_S
    while True:
        async with client.post("/api/chat", json=body) as response:
            answer = await response.json()
            if response.status == 200:
                return refusals, readiness
            refusals.add(response.status)
            assert answer["code"] == "unavailable", answer
            assert int(response.headers["retry-after"]) > 0
        async with client.get("/ready") as response:
            readiness.add(response.status)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_database_is_killed(make_server: MakeServer, directory: Path, data_directory: Path) -> None:
    """
    After kill -9 of the database, or of a session, requests get 503 at once, and soon work again with all that was kept.

    A session that outlived it does not keep it from its start. When the server is killed while its database is being
    started again, no process is left.
    """
    server = make_server()
    await asyncio.to_thread(server.start)
    conninfo = f"host={data_directory}/postgres-run port=5432 user=jarvis dbname=jarvis"
    async with aiohttp.ClientSession(server.url) as client:
        async with client.post("/api/chat", json={"content": "kept"}) as response:
            conversation_id = (await response.json())["conversation_id"]
        orphan = await compute(conninfo)
        first = postmaster(data_directory)
        assert orphan
        assert all(process.alive for process in orphan)
        os.kill(first, signal.SIGKILL)
        refusals, readiness = await until_answered(client, {"content": "back"})
        assert refusals == {503}
        assert 503 in readiness
        assert postmaster(data_directory) != first
        assert await asyncio.to_thread(wait_gone, orphan) == set()

        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            session = connection.info.backend_pid
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            cursor = await connection.execute(
                "select pid from pg_stat_activity where application_name = 'jarvis-core' and pid <> %s limit 1",
                (session,),
            )
            row = await cursor.fetchone()
            assert row is not None
            os.kill(row[0], signal.SIGKILL)
        await until_answered(client, {"content": "back again", "conversation_id": conversation_id})
        async with client.get(f"/api/chat/history/{conversation_id}") as response:
            said = [message["content"] for message in (await response.json())["messages"]]
    assert said == ["kept", "You said: kept", "back again", "You said: back again"]
    assert server.stderr.count("a service died and is started again") == 1
    assert "Traceback" not in server.stderr

    family = server.family()
    os.kill(postmaster(data_directory), signal.SIGKILL)
    await asyncio.sleep(0.03)
    family |= server.family()
    server.kill()
    assert await asyncio.to_thread(wait_gone, family) == set()
    assert await asyncio.to_thread(wait_gone, processes_naming(directory)) == set()
    await asyncio.to_thread(server.start)
    assert await asyncio.to_thread(server.stop) == 0


def title_of(process: Process) -> bytes:
    """Return what a process calls itself."""
    return Path(f"/proc/{process.pid}/cmdline").read_bytes()


def refuses(server: Server) -> bool:
    """Whether nobody listens any more."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.every_python
async def test_second_signal_while_the_database_stops(make_server: MakeServer, data_directory: Path) -> None:
    """A signal to a server that waits for its database's end ends it now, as the clean stop that it is; nothing is left."""
    server = make_server()
    await asyncio.to_thread(server.start)
    family = server.family()
    (writer,) = (one for one in family if b"checkpointer" in title_of(one))
    os.kill(writer.pid, signal.SIGSTOP)  # the database does not end without its last checkpoint
    try:
        server.signal(signal.SIGTERM)
        deadline = time.monotonic() + BACK_LIMIT_S
        while not refuses(server):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert server.running
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        assert time.monotonic() - started < 5
    finally:
        os.kill(writer.pid, signal.SIGCONT)
    assert await asyncio.to_thread(wait_gone, family) == set()
    assert "Traceback" not in server.stderr
