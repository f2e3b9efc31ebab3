"""The server behind a real PgBouncer, as it may have been set up for other programs."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import msgspec
import psycopg
import pytest

from tests.fakes.pgbouncer import pgbouncer
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import assert_no_defect
from tests.system.conftest import MakeServer
from tests.system.faults.audit import Audit, wait_settled
from tests.system.faults.clients import TALKERS, Canceller, Client, Leaver, Reader, Rememberer, Retrier, run_clients
from tests.system.faults.dose import LOAD_S, SEED
from tests.system.faults.ledger import Calls, Ledger, answer_to, asked_of_bridges
from tests.system.faults.test_kill_rounds import CHECKPOINT_S, SLACK_S, retry_keys
from tests.system.server import Process, Server

TLS = Path(__file__).parents[2] / "fixtures" / "tls"
POOL_SIZE = {"transaction": 3, "session": 16}
"""Of the server's sessions: fewer than the workers have connections, where those share them."""
CLIENTS: dict[type[Client], int] = {**TALKERS, Rememberer: 3, Canceller: 2, Leaver: 1, Reader: 1}
MORTALS: Mapping[str, Mapping[type[Client], int]] = {
    "1": TALKERS,
    # Who retries is told on one worker what another says, and, when that one dies, as much as it had heard of it.
    "2": {kind: count for kind, count in TALKERS.items() if kind is not Retrier},
}
"""Who asks while a worker is killed, by how many there are."""
CONNECTIONS = {"DB_MAX_CONNECTIONS": "8"}


def bridges_that_say_what_is_asked(bridges: FakeBridges) -> None:
    """Have every answer be its question's own."""
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.02)
    bridges.reply = lambda body: answer_to(asked_of_bridges(body))


async def check(
    server: Server, bridges: FakeBridges, database: str, ledger: Ledger, killed_at: float | None = None
) -> None:
    """Hold what the clients were told against what is stored."""
    if running := await wait_settled(database):
        ledger.accuse("database", f"{running} turns run that nobody runs")
    async with aiohttp.ClientSession(server.url) as client:
        await retry_keys(ledger, client)
        calls = Calls(bridges.streams, lambda body: asked_of_bridges(msgspec.json.decode(body)))
        await Audit(ledger, client, database, calls).run(killed_at=killed_at, checkpointed_s=CHECKPOINT_S + SLACK_S)
    print(ledger.summary())  # noqa: T201 - shown where the test fails
    assert not ledger.wrong, "\n".join(ledger.wrong)


def worker_of(server: Server) -> Process:
    """Return one of the worker processes."""
    return next(
        one
        for one in sorted(server.family())
        if b"jarvis_core.server" in Path(f"/proc/{one.pid}/cmdline").read_bytes() and one.pid != server.pid
    )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("mode", list(POOL_SIZE))
async def test_load_and_kills(
    make_server: MakeServer,
    bridges: FakeBridges,
    database: str,
    mode: str,
    workers: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Behind a pooler, under parallel turns, cancels and kills, nothing that was told is lost, and nothing mixed up.

    The one worker is killed with its parent, one of two alone.
    """
    print(f"\nFAULTS_SEED={SEED}")  # noqa: T201
    caplog.set_level(logging.CRITICAL, "aiohttp.server")
    bridges_that_say_what_is_asked(bridges)
    dice = random.Random(SEED)
    with pgbouncer(database, mode=mode, pool_size=POOL_SIZE[mode]) as pooler:
        server = make_server(DATABASE_URL=pooler.url, WORKERS=workers, **CONNECTIONS)
        await asyncio.to_thread(server.start)
        ledger = Ledger()
        await run_clients(CLIENTS, server.url, ledger, dice, LOAD_S / 2)
        await check(server, bridges, database, ledger)
        assert len(ledger.turns) > 10
        assert_no_defect(server)

        ledger = Ledger(mortal=True)
        load = asyncio.create_task(run_clients(MORTALS[workers], server.url, ledger, dice, LOAD_S))
        await asyncio.sleep(dice.uniform(0.5, 0.8) * LOAD_S)
        killed_at = time.monotonic()
        if workers == "1":
            await asyncio.to_thread(server.kill)
            load.cancel()
            await asyncio.wait([load])
            await asyncio.to_thread(server.start)
        else:
            os.kill(worker_of(server).pid, signal.SIGKILL)
            await load
        await check(server, bridges, database, ledger, killed_at)
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)


async def test_pooler_restarts_under_load(
    make_server: MakeServer, bridges: FakeBridges, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler that is killed under load, and started again, costs what a database costs that was away for a moment."""
    caplog.set_level(logging.CRITICAL, "aiohttp.server")
    bridges_that_say_what_is_asked(bridges)
    dice = random.Random(SEED)
    with pgbouncer(database, mode="transaction") as pooler:
        server = make_server(DATABASE_URL=pooler.url, DB_TIMEOUT_S="1", **CONNECTIONS)
        await asyncio.to_thread(server.start)
        ledger = Ledger()
        load = asyncio.create_task(run_clients(CLIENTS, server.url, ledger, dice, LOAD_S))
        for _ in range(2):
            await asyncio.sleep(LOAD_S / 4)
            await asyncio.to_thread(pooler.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(pooler.start)
        await load
        await check(server, bridges, database, ledger)
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)


def test_address_of_another_program(make_server: MakeServer, directory: Path, database: str) -> None:
    """
    An address for another program's driver, over TLS and through a pooler, into a schema of one's own, is understood.

    With the extensions where neither looks for them.
    """
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create schema extensions")
        connection.execute("create extension vector schema extensions")
        connection.execute("create schema house")
    certificate, key = (Path(shutil.copy(TLS / name, directory)) for name in ("own.pem", "own.key"))
    key.chmod(0o644)  # for whom PgBouncer runs as
    tls = {
        "client_tls_sslmode": "require",
        "client_tls_cert_file": str(certificate),
        "client_tls_key_file": str(key),
    }
    with pgbouncer(database, mode="transaction", settings=tls) as pooler:
        address = pooler.url.replace("postgresql:", "postgresql+asyncpg:")
        server = make_server(
            DATABASE_URL=f"{address}?ssl=require&pgbouncer=true&schema=house&prepared_statement_cache_size=0"
        )
        server.start()
        told = server.ask("POST", "/api/memory/add", {"content": "the key is under the mat"})
        assert told.status == 200
        found = server.ask("POST", "/api/memory/search", {"query": "where is the key"}).body
        assert [one["content"] for one in found["results"]] == ["the key is under the mat"]
        assert server.ask("GET", "/health").body["services"]["database"] == "healthy"
        assert "TLSv1" in str(pooler.ask("show clients"))
        assert server.stop() == 0
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "select distinct table_schema::text from information_schema.tables"
            " where table_name in ('memories', 'memory_vectors', 'turns', 'workers')"
        ).fetchall()
    assert rows == [("house",)]
