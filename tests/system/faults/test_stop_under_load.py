"""SIGTERM under load, and while the database is away: everybody is told how it ended, and finds it so afterwards."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time

import aiohttp
import msgspec
import pytest

from jarvis_core.store.pool import GRACE_S
from jarvis_core.turns.recorder import LATE_ENDS_S
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.fakes.relay import DatabaseRelay
from tests.handlers.conftest import assert_no_defect
from tests.handlers.events import Event, iterate_events, read_events
from tests.system.conftest import MakeServer
from tests.system.faults.audit import Audit, count_running
from tests.system.faults.clients import OverSocket, Rememberer, Streamed, Whole, run_clients
from tests.system.faults.dose import SEED, WAYS
from tests.system.faults.ledger import Calls, Ledger, answer_to, asked_of_bridges
from tests.system.server import Server

pytestmark = pytest.mark.every_python

DRAIN_S = 1.0
SLACK_S = 3.0
"""On a machine with other work; it is about a second without."""
LOAD_S = 1.2
DB_TIMEOUT_S = 0.5
STORE_S = 3 * (2 * DB_TIMEOUT_S + GRACE_S) + LATE_ENDS_S
"""Three attempts to store an end, each with a wait for a connection and a statement that is given up, and one more."""


async def is_draining(server: Server) -> None:
    """Fail unless the server says soon that it takes no more requests, and takes none."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(server.url, timeout=timeout) as client:
        deadline = time.monotonic() + DRAIN_S / 2
        while True:
            async with client.get("/ready") as response:
                body = await response.json()
            if response.status == 503 and "draining" in body["reasons"]:
                break
            assert time.monotonic() < deadline, body
        async with client.post("/api/chat", json={"content": "one more"}) as response:
            assert (response.status, (await response.json())["code"]) == (503, "unavailable")
        async with client.get("/health") as response:
            assert response.status in (200, 503)


async def test_stop_under_load(
    make_server: MakeServer, bridges: FakeBridges, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Every turn that runs when the server is told to stop ends for its client within the drain time, whole or incomplete.

    The exit code is 0, and after the next start all is as it was told.
    """
    caplog.set_level(logging.CRITICAL, "aiohttp.server")  # the fake's own: of connections that were left
    print(f"\nFAULTS_SEED={SEED}")  # noqa: T201 - shown where the test fails
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.02)
    bridges.reply = lambda body: answer_to(asked_of_bridges(body))
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S=str(DRAIN_S))
    await asyncio.to_thread(server.start)
    ledger = Ledger(mortal=True)
    kinds = {Whole: 4, Streamed: 4, OverSocket: 4, Rememberer: 1}
    load = asyncio.create_task(run_clients(kinds, server.url, ledger, random.Random(SEED), 60))
    await asyncio.sleep(LOAD_S)
    started = time.monotonic()
    server.signal(signal.SIGTERM)
    await is_draining(server)
    assert await asyncio.to_thread(server.wait) == 0
    took_s = time.monotonic() - started
    await asyncio.sleep(0.3)  # what was sent last is still being read
    load.cancel()
    await asyncio.wait([load])
    assert not ledger.wrong, "\n".join(ledger.wrong)
    assert took_s < DRAIN_S + SLACK_S
    assert [one for one in ledger.turns.values() if one.status is None] == [], "everybody was told the end"
    assert any(one.reason == "server_stopped" for one in ledger.turns.values()), "some did not end in time"
    assert bridges.open_streams == 0
    await asyncio.to_thread(server.start)
    async with aiohttp.ClientSession(server.url) as client:
        calls = Calls(bridges.streams, lambda body: asked_of_bridges(msgspec.json.decode(body)))
        await Audit(ledger, client, database, calls).run()
    assert not ledger.wrong, "\n".join(ledger.wrong)
    assert await asyncio.to_thread(server.stop) == 0
    assert_no_defect(server)


@pytest.mark.parametrize("how", WAYS)
async def test_stop_while_the_database_is_away(
    make_server: MakeServer, bridges: FakeBridges, relay: DatabaseRelay, database: str, how: str
) -> None:
    """
    A server whose database is away stops in time, tells its clients that the ends were not stored, and exits with 0.

    After the next start nothing runs, and the users' messages are there.
    """
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    server = make_server(DATABASE_URL=relay.conninfo, DRAIN_TIMEOUT_S=str(DRAIN_S), DB_TIMEOUT_S=str(DB_TIMEOUT_S))
    await asyncio.to_thread(server.start)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(server.url, timeout=timeout) as client:
        streams = [await begin(client, f"question {number}") for number in range(3)]
        await bridges.gate.reached(3)
        if how == "refused":
            await relay.go_away()
        else:
            relay.hang()
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        ends = [(await read_events(response))[-1] for response, _ in streams]
        assert await asyncio.to_thread(server.wait, 30) == 0
        took_s = time.monotonic() - started
    print(f"  stopped after {took_s:.1f} s")  # noqa: T201 - shown where the test fails
    assert took_s < DRAIN_S + STORE_S + SLACK_S
    for end in ends:
        assert end.name == "response.done"
        response = end.data["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("incomplete", "not_stored")
        assert response["output"][0]["content"][0]["text"] == "You said:"
    await relay.come_back()
    await asyncio.to_thread(server.start)
    assert await count_running(database) == 0
    for _, created in streams:
        response = created.data["response"]
        state = (await asyncio.to_thread(server.ask, "GET", f"/api/chat/response/{response['id']}")).body
        assert state.get("status") == "incomplete", state
        assert "You said:".startswith(state["content"])
        path = f"/api/chat/history/{response['conversation_id']}"
        messages = (await asyncio.to_thread(server.ask, "GET", path)).body["messages"]
        assert messages[0]["id"] == response["user_message_id"]
    assert await asyncio.to_thread(server.stop) == 0
    assert_no_defect(server)


async def begin(client: aiohttp.ClientSession, content: str) -> tuple[aiohttp.ClientResponse, Event]:
    """Chat as events, and return the answer with its first event."""
    response = await client.post("/api/chat", json={"content": content, "stream": True})
    return response, await anext(iterate_events(response))
