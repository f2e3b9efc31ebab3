"""kill -9 under load, again and again: what clients were told is there after each restart, and nothing is left running."""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import time
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.system.conftest import MakeServer
from tests.system.faults.audit import Audit, count_running
from tests.system.faults.clients import TALKERS, run_clients
from tests.system.faults.dose import KILLS, SEED
from tests.system.faults.ledger import Calls, Ledger, answer_to, asked_of_bridges
from tests.system.server import wait_gone

CHECKPOINT_S = 1.0
SLACK_S = 0.6
"""For a checkpoint to be stored, on a machine with other work."""
START_LIMIT_S = 15.0
"""Generous, for a machine with other work; what it is without is under 3 s, and printed."""


async def retry_keys(ledger: Ledger, client: aiohttp.ClientSession) -> None:
    """Ask once more whatever was asked under a key and not answered, as their clients would."""
    for question in sorted(ledger.unanswered):
        body = {"content": question, "conversation_id": None}
        async with client.post("/api/chat", json=body, headers={"Idempotency-Key": question}) as response:
            answer = await response.json()
        if response.status != 200 or ledger.keys.setdefault(question, answer["id"]) != answer["id"]:
            ledger.accuse(
                f"retry of {question!r}", f"{response.status} {answer}, and it was {ledger.keys.get(question)}"
            )
            continue
        ledger.answered(answer, question, keyed=True)


@pytest.mark.parametrize("embedded", [True, False], ids=["database killed too", "database of its own"])
async def test_kill_under_load(
    make_server: MakeServer,
    bridges: FakeBridges,
    directory: Path,
    database: str,
    embedded: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    After kill -9 at a random moment under load all that clients were told is in the history, and no turn is running.

    Answers that were being streamed keep what had arrived up to a second before; a request under a key that had no
    answer gets the one that it began, and no second one.
    """
    print(f"\nFAULTS_SEED={SEED}, {KILLS if embedded else 1} rounds")  # noqa: T201 - shown where the test fails
    caplog.set_level(logging.CRITICAL, "aiohttp.server")  # the fake's own: of connections that were left
    dice = random.Random(SEED + embedded)
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.02)
    bridges.reply = lambda body: answer_to(asked_of_bridges(body))
    data = directory / "killed"  # its own: the audit looks at all that is stored
    server = make_server(DATA_DIR=str(data)) if embedded else make_server(DATABASE_URL=database)
    conninfo = f"host={data}/postgres-run port=5432 user=jarvis dbname=jarvis" if embedded else database
    await asyncio.to_thread(server.start)
    wrong: list[str] = []
    starts_s = []
    cut = kept = messages = 0
    for number in range(KILLS if embedded else 1):
        ledger = Ledger(mortal=True)
        bridges.forget()
        load = asyncio.create_task(run_clients(TALKERS, server.url, ledger, dice, 60))
        await asyncio.sleep(dice.uniform(1.7, 2.8))
        family = server.family()
        killed_at = time.monotonic()
        await asyncio.to_thread(server.kill)
        load.cancel()
        await asyncio.wait([load])
        assert await asyncio.to_thread(wait_gone, family) == set()
        started = time.monotonic()
        await asyncio.to_thread(server.start)
        starts_s.append(time.monotonic() - started)
        if running := await count_running(conninfo):
            ledger.accuse("database", f"{running} turns run that nobody runs")
        async with aiohttp.ClientSession(server.url) as client:
            await retry_keys(ledger, client)
            calls = Calls(bridges.streams, lambda body: asked_of_bridges(msgspec.json.decode(body)))
            audit = Audit(ledger, client, conninfo, calls)
            await audit.run(killed_at=killed_at, checkpointed_s=CHECKPOINT_S + SLACK_S)
        wrong += [f"round {number}: {one}" for one in ledger.wrong]
        open_turns = [one for one in ledger.turns.values() if one.status is None]
        cut += len(open_turns)
        kept += sum(bool(one.seen(killed_at - CHECKPOINT_S - SLACK_S)) for one in open_turns)
        messages += len(ledger.messages)
    print(  # noqa: T201
        f"  {messages} messages, {cut} turns cut, {kept} of them with text that had to be kept;"
        f" starts: median {statistics.median(starts_s):.2f} s, longest {max(starts_s):.2f} s"
    )
    assert not wrong, "\n".join(wrong)
    assert cut > 0, "the server was killed in the middle of answers"
    assert kept > 0, "some of which had to be kept"
    assert max(starts_s) < START_LIMIT_S
    assert await asyncio.to_thread(server.stop) == 0
