"""Mixed load while everything around the server fails, differently every 200 ms."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from jarvis_core.container import TRIM_INTERVAL_S
from tests.fakes.audio_engine import FakeAudioEngine
from tests.fakes.openai_compatible import FakeModelServer
from tests.fakes.python_bridges import FakeBridges
from tests.fakes.relay import DatabaseRelay
from tests.fakes.server import FakeServer
from tests.handlers.conftest import assert_no_defect
from tests.handlers.shown import gauge, open_files
from tests.system.faults.audit import Audit, count_running, wait_settled
from tests.system.faults.clients import EVERYBODY, run_clients
from tests.system.faults.dose import LOAD_S, SEED
from tests.system.faults.ledger import Calls, Ledger, answer_to, asked_of_bridges, asked_of_model_server
from tests.system.faults.weather import OVER_LIMIT_BYTES, Weather
from tests.system.server import Server

pytestmark = pytest.mark.every_python

WARM_UP_S = min(LOAD_S / 2, 10.0)
FLOOD_S = 0.5
MEMORY_GROWTH = 1.10
"""How much more memory there may be afterwards than after the warm-up."""
TRIM_S = TRIM_INTERVAL_S + 1.5 if LOAD_S >= 30 else 0.7
"""After this the server has given back what a peak left, or, where there is no time to wait for that, sockets that were
dropped are out of their grace."""
UNTRIMMED_BYTES = 0 if LOAD_S >= 30 else 2 * OVER_LIMIT_BYTES
"""What it may not have given back yet."""
DATABASE_CONNECTIONS = 8

IMPATIENCE = {
    "CONNECT_TIMEOUT_S": "0.5",
    "LLM_FIRST_TOKEN_TIMEOUT_S": "0.4",
    "LLM_STALL_TIMEOUT_S": "0.4",
    "LLM_TOTAL_TIMEOUT_S": "5",
    "STT_TIMEOUT_S": "0.6",
    "TTS_TIMEOUT_S": "0.6",
    "EMBEDDINGS_TIMEOUT_S": "0.4",
    "AUDIO_ENGINE_TIMEOUT_S": "0.4",
    "DB_TIMEOUT_S": "1",
    "MEMORY_RECALL_TIMEOUT_S": "0.2",
    "BREAKER_OPEN_S": "0.2",
    "WS_RESUME_GRACE_S": "0.5",
    "DB_MAX_CONNECTIONS": str(DATABASE_CONNECTIONS),
}


class Sizes(msgspec.Struct):
    """What a server uses when nothing is asked of it."""

    tasks: float
    files: int
    """Without those to the database."""
    memory_bytes: int


async def settle(
    server: Server, client: aiohttp.ClientSession, relay: DatabaseRelay, fakes: list[FakeServer[Any]]
) -> Sizes:
    """Wait until nothing is asked of the server any more, and return what it uses then."""
    async with asyncio.timeout(20):
        while await gauge(client, "turns_running") or await gauge(client, "websockets"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while await gauge(client, "http_in_flight") > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for fake in fakes:
        fake.drop_connections()
    await asyncio.sleep(TRIM_S)
    return Sizes(
        tasks=await gauge(client, "tasks"),
        files=open_files(server) - relay.open_connections,
        memory_bytes=server.resident_bytes(),
    )


@pytest.mark.parametrize("behind", ["bridges", "model server"])
async def test_mixed_load_while_everything_fails(
    behind: str, directory: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Whatever fails: no 500, no wrong answer, no wait without an end; all that was told is in the history, and no task,
    file or memory is left behind.
    """
    print(f"\nFAULTS_SEED={SEED} ({behind}, {LOAD_S:g} s)")  # noqa: T201 - shown where the test fails, and by make faults
    caplog.set_level(logging.CRITICAL, "aiohttp.server")  # the fakes' own: of connections that were left on purpose
    async with AsyncExitStack() as stack:
        bridges = await stack.enter_async_context(FakeBridges())
        engine = await stack.enter_async_context(FakeAudioEngine())
        relay = await stack.enter_async_context(DatabaseRelay(database))
        model = await stack.enter_async_context(FakeModelServer()) if behind == "model server" else None
        bridges.reply = lambda body: answer_to(asked_of_bridges(body))
        environment = {
            "PYTHON_BRIDGES_URL": bridges.url,
            "AUDIO_ENGINE_URL": engine.url,
            "DATABASE_URL": relay.conninfo,
        }
        if model is not None:
            model.reply = lambda body: answer_to(asked_of_model_server(body))
            environment["LLM_URL"] = model.llm_url
        server = Server(directory, {**environment, **IMPATIENCE})
        stack.callback(server.kill)
        await asyncio.to_thread(server.start)
        client = await stack.enter_async_context(aiohttp.ClientSession(server.url))
        weather = Weather(SEED, bridges, engine, relay, model)
        ledger = Ledger()
        dice = random.Random(SEED)
        fakes: list[FakeServer[Any]] = [bridges, engine, *([model] if model is not None else [])]
        weather.flood()
        await run_clients(EVERYBODY, server.url, ledger, dice, FLOOD_S)
        sizes = []
        for duration_s in (WARM_UP_S, LOAD_S):
            async with weather.stormy():
                await run_clients(EVERYBODY, server.url, ledger, dice, duration_s)
            sizes.append(await settle(server, client, relay, fakes))
        before, after = sizes
        started = time.monotonic()
        running = await wait_settled(database)
        settled_s = time.monotonic() - started
        if running:
            ledger.accuse("database", f"{await count_running(database)} turns are running that nobody ends")
        streams = (model or bridges).streams
        asked = asked_of_bridges if model is None else asked_of_model_server
        calls = Calls(streams, lambda body: asked(msgspec.json.decode(body)))
        await Audit(ledger, client, database, calls).run()
        print(ledger.summary())  # noqa: T201
        print(  # noqa: T201
            f"  {len(ledger.turns)} turns, {len(ledger.messages)} messages, {len(ledger.memories)} memories;"
            f" {sum(weather.seen.values())} faults of {len(weather.seen)} kinds; settled after {settled_s:.1f} s;"
            f" {before} -> {after}"
        )
        assert not ledger.wrong, "\n".join(ledger.wrong)
        assert all(fake.open_streams == 0 for fake in (bridges, model) if fake is not None)
        assert after.tasks <= before.tasks + 1
        assert after.files <= before.files + 2
        assert after.memory_bytes <= before.memory_bytes * MEMORY_GROWTH + UNTRIMMED_BYTES
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)
