"""Several workers under one parent: started together, replaced when they die, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import urllib.request
from pathlib import Path

import aiohttp
import pytest
from psycopg.conninfo import make_conninfo

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import iterate_events, read_events
from tests.system.conftest import MakeServer
from tests.system.server import Process, Server, processes_naming, wait_gone

REPLACED_S = 40.0


def start_all(server: Server) -> None:
    """Start *server*, and wait until all of its workers serve."""
    said = server.stdout.count("listens on")
    server.start()
    deadline = time.monotonic() + REPLACED_S
    while server.stdout.count("listens on") == said:
        assert time.monotonic() < deadline, server.stderr
        time.sleep(0.02)


def children(server: Server, word: str) -> set[Process]:
    """Return the processes of *server* with *word* in their command lines."""
    found = set()
    for process in server.family():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if word.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes() and process.pid != server.pid:
                found.add(process)
    return found


def wait_replaced(server: Server, before: set[Process], word: str) -> set[Process]:
    """Wait until there are as many as *before*, at least one of them new; return them all."""
    deadline = time.monotonic() + REPLACED_S
    while True:
        now = children(server, word)
        if len(now) == len(before) and now != before:
            return now
        assert time.monotonic() < deadline, server.stderr
        time.sleep(0.02)


@pytest.mark.every_python
async def test_workers_live_and_die(make_server: MakeServer, bridges: FakeBridges, data_directory: Path) -> None:
    """
    A worker or a Valkey that is killed is replaced at once, and on SIGTERM all workers let their turns end.

    Requests are answered meanwhile, and nothing is left at the end.
    """
    server = make_server(WORKERS="2", DATABASE_URL=None)
    await asyncio.to_thread(start_all, server)
    assert server.stdout.count("listens on") == 1
    assert "serving:  2 worker processes" in server.stdout
    workers = children(server, "jarvis_core.server")
    valkey = children(server, "valkey-server")
    assert (len(workers), len(valkey)) == (2, 1)
    killed = min(workers)
    signal_to(killed, signal.SIGKILL)
    signal_to(min(valkey), signal.SIGKILL)
    wait_replaced(server, valkey, "valkey-server")
    workers = wait_replaced(server, workers, "jarvis_core.server")
    assert killed not in workers
    assert server.ask("GET", "/health").status == 200
    probes = [one.path for one in bridges.requests].count("/health")
    assert probes <= 2, "one worker asks for all, and the one that takes its place"
    assert server.stdout.count("listens on") == 1
    for _ in range(20):
        assert server.ask("GET", "/ready").status == 200
    await asyncio.sleep(1.2)
    counted = {ready_requests(server) for _ in range(8)}
    assert len(counted) == 1, "whichever worker is asked answers for all"
    assert min(counted) >= 20
    # One turn on each of several connections: both workers have some.
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two"), hold_after=1)
    async with aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(force_close=True)) as client:
        responses = [await client.post("/api/chat", json={"content": "x", "stream": True}) for _ in range(8)]
        for response in responses:
            await read_events(response, until="one ")
        family = server.family()
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        bridges.gate.release()
        for response in responses:
            events = [event async for event in iterate_events(response)]
            assert events[-1].data["response"]["status"] == "completed"
    assert await asyncio.to_thread(server.wait, 40) == 0
    assert wait_gone(family) == set()
    assert processes_naming(data_directory) == set()
    assert "Traceback" not in server.stderr


def signal_to(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process that is there."""
    assert process.alive
    os.kill(process.pid, number)


def ready_requests(server: Server) -> float:
    """Return how many requests for /ready were counted."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    prefix = 'jarvis_http_requests_total{method="GET",route="/ready",status="200"} '
    return next(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


async def test_parent_is_killed(make_server: MakeServer, bridges: FakeBridges, data_directory: Path) -> None:
    """
    Workers, database and Valkey end with a parent that is killed, and the next start closes their turns at once.

    A second SIGTERM ends all that without waiting for turns.
    """
    server = make_server(WORKERS="2", DATABASE_URL=None, DRAIN_TIMEOUT_S="60")
    await asyncio.to_thread(start_all, server)
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two"), hold_after=1)
    turns = []
    async with aiohttp.ClientSession(server.url) as client:
        responses = [await client.post("/api/chat", json={"content": "x", "stream": True}) for _ in range(2)]
        for response in responses:
            events = await read_events(response, until="one ")
            turns.append(events[0].data["response"]["id"])
        family = server.family()
        await asyncio.to_thread(server.kill)
        for response in responses:
            response.close()
    assert wait_gone(family) == set()
    assert processes_naming(data_directory) == set()

    await asyncio.to_thread(start_all, server)
    for turn in turns:
        state = server.ask("GET", f"/api/chat/response/{turn}").body
        assert (state["status"], state["reason"]) == ("incomplete", "server_stopped")
    async with aiohttp.ClientSession(server.url) as client:
        response = await client.post("/api/chat", json={"content": "x", "stream": True})
        await read_events(response, until="one ")
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert server.running
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 40) == 0
        assert time.monotonic() - started < 5
        events = [event async for event in iterate_events(response)]
        assert events[-1].data["response"]["status"] == "incomplete"


def test_workers_that_cannot_start(make_server: MakeServer, directory: Path, database: str) -> None:
    """What keeps every worker from its start is told once, in one line, and the exit code is 1."""
    server = make_server(WORKERS="3", DATABASE_URL=make_conninfo(database, options="-cfrobnicate=1"))
    server.launch()
    assert server.wait() == 1
    assert server.stderr == (
        "jarvis-core: DATABASE_URL: the database refuses its options:"
        ' unrecognized configuration parameter "frobnicate"\n'
    )
    assert server.stdout == ""
    assert processes_naming(directory) == set()
