"""Workers that share a database: who is taken for dead, and what becomes of the turns of those who are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jarvis_core.models import Status, new_id
from jarvis_core.processes.child import Identity, lives, own_identity
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.store.heartbeats import HeartbeatStore
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import Beginning, TurnStore
from jarvis_core.turns import heartbeats as presence_module
from jarvis_core.turns.heartbeats import Heartbeats

OWNER = "ann"
ELSEWHERE = Identity("another machine", 7, 1)


async def begin(pool: Pool, worker_id: str | None, text: str = "") -> Beginning:
    """Begin a turn as *worker_id* (None: as an older version), with *text* in its checkpoint."""
    store = TurnStore(pool, worker_id)
    turn = Beginning(OWNER, new_id(), new_id(), new_id(), "Bonjour", "A title", 1_000)
    await store.begin(turn)
    await store.checkpoint([(turn.turn_id, text, "m")])
    if worker_id is None:
        await pool.execute("update turns set worker = null where id = %s", (turn.turn_id,))
    return turn


async def state(pool: Pool, turn: Beginning) -> tuple[str, str | None, str]:
    """Return status, reason and text."""
    record = await TurnStore(pool).fetch(OWNER, turn.turn_id)
    return record.status, record.reason, record.content


CLOSED = (Status.INCOMPLETE, "server_stopped")


async def join(pool: Pool, identity: Identity = ELSEWHERE, *, silent_s: float = 0) -> str:
    """Put a worker on the list that was last seen *silent_s* seconds ago; return its id."""
    worker_id = new_id()
    await HeartbeatStore(pool, worker_id, identity).beat()
    await pool.execute("update workers set seen_at = now() - %s * interval '1 s' where id = %s", (silent_s, worker_id))
    return worker_id


def me(pool: Pool, *, alone: bool = False, embedded: bool = False) -> Heartbeats:
    """Give a worker of this process."""
    return Heartbeats(HeartbeatStore(pool, new_id(), own_identity()), alone=alone, embedded=embedded)


@asynccontextmanager
async def keeping(presence: Heartbeats) -> AsyncIterator[None]:
    """Let it beat meanwhile."""
    task = asyncio.create_task(presence.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def killed_process() -> Identity:
    """Return the identity of a process of this machine that has ended."""
    machine = own_identity().machine
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = Identity(machine, process.pid, start_of(process.pid))
        assert lives(started.pid, started.started)
        process.kill()
    return started


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat twenty times as often."""
    monkeypatch.setattr(presence_module, "BEAT_INTERVAL_S", 0.05)


async def test_turns_of_a_silent_worker_are_closed(pool: Pool, quick: None) -> None:
    """The turns of a worker that has been silent for longer than the lease end as incomplete with their texts."""
    dead, quiet = await join(pool, silent_s=60), await join(pool, silent_s=1)
    with_text, without, living = await begin(pool, dead, "Sal"), await begin(pool, dead), await begin(pool, quiet, "x")
    worker = me(pool)
    await worker.arrive()
    assert (await state(pool, with_text))[0] == Status.RUNNING, "at first nobody knows whether the database was away"
    async with asyncio.timeout(5), keeping(worker):
        while (await state(pool, with_text))[0] == Status.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await state(pool, with_text) == (*CLOSED, "Sal")
    assert await state(pool, without) == (*CLOSED, "")
    assert await state(pool, living) == (Status.RUNNING, None, "x")
    messages, _ = await ConversationStore(pool).fetch_history(OWNER, with_text.conversation_id, limit=9, after=0)
    assert [(one.content, one.status) for one in messages] == [
        ("Bonjour", Status.COMPLETED),
        ("Sal", Status.INCOMPLETE),
    ]
    counts = [
        (await ConversationStore(pool).fetch(OWNER, one.conversation_id)).message_count for one in (with_text, without)
    ]
    assert counts == [2, 1]


async def test_silence_of_the_database_is_nobodys_death(
    pool: Pool, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose own beats were not in time takes nobody for dead: the others may not have been heard either."""
    turn = await begin(pool, await join(pool, silent_s=60), "Sal")
    store = HeartbeatStore(pool, new_id(), own_identity())
    beat = store.beat

    async def slow_beat() -> object:
        await asyncio.sleep(0.1)
        return await beat()

    store.beat = slow_beat  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(presence_module, "SLOW_BEAT_S", 0.09)
    async with keeping(Heartbeats(store, alone=False, embedded=False)):
        await asyncio.sleep(1.5)
    assert (await state(pool, turn))[0] == Status.RUNNING


async def test_who_is_heard_again_lives(pool: Pool) -> None:
    """A worker that was late when somebody looked, and beats before that one acts, keeps its turns."""
    late = await join(pool, silent_s=60)
    turn = await begin(pool, late)
    store = HeartbeatStore(pool, new_id(), own_identity())
    seen_at, others = await store.beat()
    assert [(other.id, other.late) for other in others] == [(late, True)]
    await HeartbeatStore(pool, late, ELSEWHERE).beat()
    assert await store.reap([late], seen_at) == 0
    assert (await state(pool, turn))[0] == Status.RUNNING


async def test_killed_on_the_same_machine(pool: Pool) -> None:
    """The turns of a process that has ended are closed when another one of its machine starts, others' are not."""
    turn = await begin(pool, await join(pool, killed_process()), "Sal")
    sibling, distant = await begin(pool, await join(pool, own_identity())), await begin(pool, await join(pool))
    await me(pool).arrive()
    assert await state(pool, turn) == (*CLOSED, "Sal")
    assert (await state(pool, sibling))[0] == (await state(pool, distant))[0] == Status.RUNNING


async def test_killed_sibling_is_noticed_at_the_next_beat(pool: Pool, quick: None) -> None:
    """A worker's death is noticed by another one of its machine at its next beat."""
    worker = me(pool)
    await worker.arrive()
    turn = await begin(pool, await join(pool, killed_process()), "Sal")
    async with keeping(worker):
        await asyncio.sleep(0.2)
    assert await state(pool, turn) == (*CLOSED, "Sal")


async def test_alone_on_an_embedded_database(pool: Pool) -> None:
    """On a database that is its own a single worker closes at once whatever was left running, and is on no list."""
    turns = [await begin(pool, worker, "Sal") for worker in (None, new_id(), await join(pool))]
    worker = me(pool, alone=True, embedded=True)
    await worker.arrive()
    assert {await state(pool, turn) for turn in turns} == {(*CLOSED, "Sal")}
    assert await pool.fetch_all("select 1 from workers") == []
    await worker.keep()
    await worker.leave()


async def test_embedded_with_several_workers(pool: Pool) -> None:
    """On an embedded database a worker that starts closes what an earlier run left, and not its living siblings'."""
    left = [await begin(pool, worker, "Sal") for worker in (None, new_id(), await join(pool))]
    sibling = await begin(pool, await join(pool, own_identity()))
    await me(pool, embedded=True).arrive()
    assert {await state(pool, turn) for turn in left} == {(*CLOSED, "Sal")}
    assert (await state(pool, sibling))[0] == Status.RUNNING


async def test_older_versions_turns_wait(pool: Pool) -> None:
    """On a shared database a turn of an older version may still run, for as long as a turn may."""
    turn = await begin(pool, None)
    store = HeartbeatStore(pool, new_id(), own_identity())
    assert await store.close_strays() == 0
    await pool.execute("update turns set started_at = now() - interval '11 minutes'")
    assert await store.close_strays() == 1
    assert (await state(pool, turn))[:2] == CLOSED


async def test_leaving(pool: Pool) -> None:
    """A worker that stops is no longer on the list."""
    worker = me(pool)
    await worker.arrive()
    assert len(await pool.fetch_all("select 1 from workers")) == 1
    await worker.leave()
    assert await pool.fetch_all("select 1 from workers") == []


async def test_buried_once(pool: Pool) -> None:
    """Of several workers that reap a dead one at once, one closes its turns, and each turn gets one message."""
    dead = await join(pool, silent_s=60)
    turns = [await begin(pool, dead, "Sal") for _ in range(20)]
    stores = [HeartbeatStore(pool, new_id(), own_identity()) for _ in range(4)]
    assert sorted(await asyncio.gather(*(store.reap([dead]) for store in stores))) == [0, 0, 0, 20]
    assert await pool.fetch_all(
        "select count(*) from messages where id = any(%s::uuid[])", ([t.turn_id for t in turns],)
    ) == [(20,)]
