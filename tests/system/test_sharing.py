"""Two machines with two workers each: any worker serves any turn, and no turn is lost with its worker."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import Event, iterate_events, read_events, text_of
from tests.handlers.realtime_client import open_socket
from tests.system.machines import Machine, Valkey, Worker, client_of, machine, network, relayed
from tests.system.server import free_port

TOLD_S = 5.0
"""How soon readers of a dead worker's turns are told of their end."""
SLACK_S = 1.0
"""For a machine with other work."""


@pytest.fixture(scope="module")
def database(postgres_conninfo: str) -> str:
    """Name the machines' database."""
    with psycopg.connect(postgres_conninfo, autocommit=True) as connection:
        connection.execute("create database sharing")
    return make_conninfo(postgres_conninfo, dbname="sharing")


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """Run a Redis that all machines reach."""
    valkey = Valkey()
    valkey.start()
    try:
        yield valkey
    finally:
        valkey.kill()


@pytest.fixture(scope="module")
def bridges_port() -> int:
    """Name the port of every test's bridges."""
    return free_port()


@pytest.fixture
async def bridges(bridges_port: int) -> AsyncIterator[FakeBridges]:
    """Run the neighbour; it streams word by word."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson"), port=bridges_port) as bridges:
        yield bridges


@pytest.fixture(scope="module")
def all_machines(directory: Path, database: str, bridges_port: int, valkey: Valkey) -> Iterator[list[Machine]]:
    """Run two machines for all tests; take ``machines``."""
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            place = stack.enter_context(network())
            environment = {
                "DATABASE_URL": database,
                "REDIS_URL": valkey.url(place.host),
                "PYTHON_BRIDGES_URL": stack.enter_context(relayed(place.host, bridges_port)),
                "DRAIN_TIMEOUT_S": "2",
            }
            made.append(machine(place, directory, environment))
            stack.callback(made[-1].kill)
            made[-1].launch()
        for one in made:
            one.wait_serving()
        yield made
        for one in made:
            assert one.stop() == 0


@pytest.fixture
def machines(all_machines: list[Machine], bridges: FakeBridges) -> Iterator[list[Machine]]:
    """Give two machines with two workers each; a defect in their logs fails the test."""
    logged = [len(one.server.stderr) for one in all_machines]
    yield all_machines
    for one, before in zip(all_machines, logged, strict=True):
        assert "Traceback" not in one.server.stderr[before:], one.server.stderr[before:]


async def all_workers(machines: list[Machine]) -> list[Worker]:
    return [worker for one in machines for worker in await one.workers()]


async def begin(client: aiohttp.ClientSession, until: str, **fields: Any) -> tuple[aiohttp.ClientResponse, list[Event]]:
    """Begin a streamed turn, and read it up to where its text is *until*."""
    response = await client.post("/api/chat", json={"content": "x", "stream": True, **fields})
    return response, await read_events(response, until=until)


async def state_of(client: aiohttp.ClientSession, turn_id: str) -> dict[str, Any]:
    async with client.get(f"/api/chat/response/{turn_id}") as response:
        assert response.status == 200, await response.text()
        state: dict[str, Any] = await response.json()
        return state


@pytest.mark.every_python
async def test_followed_and_cancelled_from_every_worker(machines: list[Machine], bridges: FakeBridges) -> None:
    """
    A turn is followed from each other worker, from the start and from the middle, and its state is to be had there.

    It is cancelled from another machine, which answers when the model's connection is closed; all readers see one end.
    """
    workers = await all_workers(machines)
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two ", "three"), hold_after=2)
    for owner, canceller in zip(workers, (*workers[2:], *workers[:2]), strict=True):
        async with AsyncExitStack() as stack:
            ours = await stack.enter_async_context(client_of(owner))
            response, events = await begin(ours, "one two ")
            turn_id = events[0].data["response"]["id"]
            followers = []
            for worker in workers:
                if worker is owner:
                    continue
                client = await stack.enter_async_context(client_of(worker))
                state = await state_of(client, turn_id)
                assert (state["status"], state["content"]) == ("running", "one two ")
                whole = await client.get(f"/api/chat/response/{turn_id}/events")
                seen = await read_events(whole, until="one two ")
                assert [(one.id, one.name) for one in seen[:3]] == [(one.id, one.name) for one in events[:3]]
                other = await stack.enter_async_context(client_of(worker))
                rest = await other.get(f"/api/chat/response/{turn_id}/events", params={"after": events[-1].id - 4})
                assert text_of(await read_events(rest, until="two ")) == "two "
                followers.append((whole, rest))
            stopper = await stack.enter_async_context(client_of(canceller))
            assert bridges.open_streams == 1
            async with stopper.post(f"/api/chat/response/{turn_id}/cancel") as cancelled:
                assert cancelled.status == 200, await cancelled.text()
                state = await cancelled.json()
            assert bridges.open_streams == 0
            assert (state["status"], state["content"]) == ("cancelled", "one two ")
            last = [event async for event in iterate_events(response)][-1]
            for pair in followers:
                for one in pair:
                    ending = [event async for event in iterate_events(one)][-1]
                    assert (ending.id, ending.name) == (last.id, "response.done")
                    assert ending.data["response"]["status"] == "cancelled"


async def test_idempotency_key_on_different_workers(machines: list[Machine], bridges: FakeBridges) -> None:
    """Requests with one key on all workers at once are one turn."""
    workers = await all_workers(machines)
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two"), hold_after=1)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(worker)) for worker in workers]
        asks = [
            asyncio.create_task(client.post("/api/chat", json={"content": "x"}, headers={"Idempotency-Key": "k"}))
            for client in clients
        ]
        await bridges.gate.reached()
        await asyncio.sleep(0.5)
        bridges.gate.release()
        answers = [await (await ask).json() for ask in asks]
        assert len({answer["id"] for answer in answers}) == 1
        assert {(answer["content"], answer["status"]) for answer in answers} == {("one two", "completed")}
        assert [one.path for one in bridges.requests].count("/api/llm/generate") == 1


async def test_deletion_on_another_worker(machines: list[Machine], bridges: FakeBridges) -> None:
    """Deleting a conversation on one worker cancels the turn that runs in it on another; then no worker knows of it."""
    workers = await all_workers(machines)
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two"), hold_after=1)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(worker)) for worker in workers]
        response, events = await begin(clients[0], "one ")
        turn = events[0].data["response"]
        async with clients[3].delete(f"/api/chat/conversation/{turn['conversation_id']}") as deleted:
            assert deleted.status == 200, await deleted.text()
        assert bridges.open_streams == 0
        assert [event async for event in iterate_events(response)][-1].data["response"]["status"] == "cancelled"
        for client in clients:
            async with client.get(f"/api/chat/response/{turn['id']}") as gone:
                assert gone.status == 404


@pytest.mark.every_python
async def test_last_reader_elsewhere(machines: list[Machine], bridges: FakeBridges) -> None:
    """A turn that is followed on another worker goes on when its own client leaves, and is cancelled when that one does."""
    first, second = await machines[0].workers(), await machines[1].workers()
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two ", "three"), hold_after=1)
    async with client_of(first[0]) as ours, client_of(second[0]) as theirs:
        response, events = await begin(ours, "one ")
        turn_id = events[0].data["response"]["id"]
        follower = await theirs.get(f"/api/chat/response/{turn_id}/events")
        await read_events(follower, until="one ")
        response.close()
        await asyncio.sleep(0.3)
        assert bridges.open_streams == 1
        follower.close()
        await bridges.stream_closed(timeout_s=10)
        async with client_of(first[0]) as again, asyncio.timeout(5):
            while (state := await state_of(again, turn_id))["status"] == "running":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert state["reason"] == "client_left"


@pytest.mark.parametrize("modality", ["text", "audio"])
async def test_socket_goes_on_elsewhere(machines: list[Machine], bridges: FakeBridges, modality: str) -> None:
    """
    A socket that was lost is taken up again on the other machine, and there again, with nothing missed or told twice.

    Also while the old socket still seems open, and after the response's end. The session goes on with its settings.
    """
    bridges.mode = BridgesMode(shape="ndjson", deltas=("One. ", "Two. ", "Three. ", "Four."), hold_after=1)
    a, b = (one.url for one in machines)
    async with AsyncExitStack() as stack:
        socket = await stack.enter_async_context(open_socket(a))
        await socket.send("session.update", session={"output_modalities": [modality], "instructions": "as a pirate"})
        asked = await socket.ask("count", metadata={"by": "me"})
        if modality == "text":
            await socket.until_text("One. ")
        for url, cut in ((b, True), (a, True), (b, False), (a, True)):
            lost = socket
            if cut:
                lost.abort()
            seen = list(lost.seen)
            again = {"resume": asked["id"], "after": seen[-1]["seq"]}
            socket = await stack.enter_async_context(open_socket(url, seen=seen, **again))
            created = await socket.receive()
            assert created["session"]["instructions"] == "as a pirate"
            if not cut:
                assert await lost.closed() == 1000
            bridges.gate.step()
            if modality == "text":
                said = len(socket.tally.text)
                while len(socket.tally.text) <= said and socket.tally.active:
                    await socket.receive()
        bridges.gate.release()
        if socket.tally.active:
            assert (await socket.done())["status"] == "completed"
        assert socket.tally.text == "One. Two. Three. Four."
        assert bool(socket.tally.sound) == (modality == "audio")
        ends = {event["type"]: event for event in socket.seen}
        assert ends["response.done"]["response"]["metadata"] == {"by": "me"}
        for name in ("conversation.item.added", "conversation.item.done"):
            assert ends[name]["item"]["id"] == asked["id"]
            assert ends[name]["previous_item_id"] == asked["user_message_id"]
        lost = socket
        lost.abort()
        again = {"resume": asked["id"], "after": lost.seen[-1]["seq"]}
        socket = await stack.enter_async_context(open_socket(b, seen=list(lost.seen), **again))
        await socket.receive()
        await socket.ask("go on")
        assert (await socket.done())["conversation_id"] == asked["conversation_id"]


async def test_response_without_a_session(machines: list[Machine]) -> None:
    """A response that no worker has a session of cannot be resumed on any of them; it is still to be had."""
    async with aiohttp.ClientSession() as client:
        async with client.post(f"{machines[0].url}/api/chat", json={"content": "x"}) as response:
            answer = await response.json()
        for one in machines:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"{one.url}/ws?resume={answer['id']}&after=3")
            assert refused.value.status == 404
            async with client.get(f"{one.url}/api/chat/response/{answer['id']}") as response:
                assert (await response.json())["content"] == answer["content"]


@pytest.mark.every_python
async def test_owner_dies(machines: list[Machine], bridges: FakeBridges, database: str) -> None:
    """
    When a machine is gone at once, the readers of its turns on the other are told the end within five seconds.

    The text up to the last checkpoint is kept, the living machine's turns go on, and the conversation is free.
    """
    first, second = await machines[0].workers(), await machines[1].workers()
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two ", "three"), hold_after=2)
    async with client_of(first[0]) as ours, client_of(second[0]) as theirs, client_of(second[1]) as living:
        _, events = await begin(ours, "one two ")
        turn = events[0].data["response"]
        survivor, _ = await begin(living, "one two ")
        follower = await theirs.get(f"/api/chat/response/{turn['id']}/events")
        await read_events(follower, until="one two ")
        await asyncio.sleep(1.2)  # a checkpoint
        died_at = time.monotonic()
        machines[0].kill()
        ending = [event async for event in iterate_events(follower)][-1]
        took_s = time.monotonic() - died_at
        assert ending.data["response"]["status"] == "incomplete"
        assert took_s < TOLD_S + SLACK_S, took_s
        state = await state_of(theirs, turn["id"])
        assert (state["status"], state["reason"], state["content"]) == ("incomplete", "server_stopped", "one two ")
        bridges.gate.release()
        assert text_of([event async for event in iterate_events(survivor)]) == "three"
        bridges.mode = BridgesMode()
        again = {"content": "again", "conversation_id": turn["conversation_id"]}
        async with theirs.post("/api/chat", json=again) as response:
            assert (await response.json())["status"] == "completed"
    await asyncio.to_thread(machines[0].start)


@pytest.mark.every_python
async def test_redis_is_lost(machines: list[Machine], bridges: FakeBridges, valkey: Valkey) -> None:
    """
    Without Redis turns go on where they run and are followed through the store; cancelling elsewhere is refused.

    When it is back all is as before.
    """
    first, second = await machines[0].workers(), await machines[1].workers()
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two ", "three"), hold_after=1)
    async with client_of(first[0]) as ours, client_of(second[0]) as theirs, client_of(second[1]) as asking:
        response, events = await begin(ours, "one ")
        turn_id = events[0].data["response"]["id"]
        follower = await theirs.get(f"/api/chat/response/{turn_id}/events")
        await read_events(follower, until="one ")
        valkey.kill()
        await asyncio.sleep(1.0)
        async with asking.get("/health") as health:
            body = await health.json()
        assert (health.status, body["status"], body["services"]["cache"]) == (200, "degraded", "unavailable")
        async with asking.post(f"/api/chat/response/{turn_id}/cancel") as cancelled:
            assert (cancelled.status, (await cancelled.json())["code"]) == (503, "unavailable")
        bridges.gate.release()
        assert text_of([event async for event in iterate_events(response)]) == "two three"
        assert text_of([event async for event in iterate_events(follower)]) == "two three"

        valkey.start()
        bridges.gate.shut()
        _, events = await begin(ours, "one ")
        async with asyncio.timeout(10):
            while True:
                async with asking.get("/health") as health:
                    if (await health.json())["services"]["cache"] == "healthy":
                        break
                await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # the other one's too
        async with asking.post(f"/api/chat/response/{events[0].data['response']['id']}/cancel") as cancelled:
            assert (cancelled.status, (await cancelled.json())["status"]) == (200, "cancelled")


TURNS = int(os.environ.get("JARVIS_KILL_TURNS", "60"))
ANSWER = " ".join(f"word{number}" for number in range(30))


async def test_random_kills(machines: list[Machine], bridges: FakeBridges, database: str) -> None:
    """
    Whichever workers are killed, each turn has exactly one end, and nothing that was acknowledged is lost.

    JARVIS_KILL_TURNS is how many turns are begun.
    """
    dice = random.Random(8)
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.03)
    bridges.reply = lambda _: ANSWER[: dice.choice((20, 60, len(ANSWER)))]
    created: dict[str, tuple[str, str]] = {}
    """Of turns that were acknowledged: the conversation and the message's id."""
    ended: dict[str, list[tuple[str, str]]] = {}

    async def ask(number: int) -> None:
        while len(created) < TURNS:
            one = machines[number % 2]
            try:
                asked = {"content": f"q {len(created)}", "stream": True}
                async with one.client() as (_, client), client.post("/api/chat", json=asked) as response:
                    await follow(response)
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)

    async def follow(response: aiohttp.ClientResponse) -> None:
        async for event in iterate_events(response):
            if event.name == "response.created":
                shown = event.data["response"]
                created[shown["id"]] = (shown["conversation_id"], shown["user_message_id"])
            elif event.name == "response.done":
                shown = event.data["response"]
                text = "".join(item["content"][0]["text"] for item in shown["output"])
                ended.setdefault(shown["id"], []).append((shown["status"], text))

    async def watch() -> None:
        """Follow turns from the other machine."""
        seen: set[str] = set()
        while not done.is_set():
            await asyncio.sleep(0.02)
            for turn_id in list(created.keys() - seen):
                seen.add(turn_id)
                try:
                    path = f"/api/chat/response/{turn_id}/events"
                    async with dice.choice(machines).client() as (_, client), client.get(path) as response:
                        await follow(response)
                except aiohttp.ClientError:
                    continue

    async def kill() -> None:
        while not done.is_set():
            await asyncio.sleep(dice.uniform(0.3, 0.9))
            processes = dice.choice(machines).processes()
            if processes and not done.is_set():
                victim = dice.choice(processes)
                if victim.alive:
                    os.kill(victim.pid, signal.SIGKILL)
                    killed.append(victim.pid)

    done = asyncio.Event()
    killed: list[int] = []
    others = [asyncio.create_task(watch()) for _ in range(3)] + [asyncio.create_task(kill())]
    await asyncio.gather(*(ask(number) for number in range(8)))
    done.set()
    await asyncio.wait(others, timeout=15)
    for task in others:
        task.cancel()
    assert killed

    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        async with asyncio.timeout(TOLD_S + 2 * SLACK_S + 5):
            while True:
                cursor = await connection.execute("select count(*) from turns where status = 'running'")
                if await cursor.fetchone() == (0,):
                    break
                await asyncio.sleep(0.1)
        cursor = await connection.execute(
            "select t.id::text, t.conversation_id::text, t.user_message_id::text, t.status,"
            " array(select m.content || '|' || m.status from messages m where m.id = t.id) from turns t"
        )
        turns = {row[0]: row[1:] for row in await cursor.fetchall()}
        cursor = await connection.execute(
            "select c.id::text, c.message_count, (select count(*) from messages m where m.conversation_id = c.id) from conversations c"
        )
        assert [row for row in await cursor.fetchall() if row[1] != row[2]] == []
        cursor = await connection.execute("select id::text from messages where role = 'user'")
        users = {row[0] for row in await cursor.fetchall()}
    lost = 0
    for turn_id, (conversation_id, message_id) in created.items():
        stored_conversation, stored_message, status, messages = turns[turn_id]
        assert (stored_conversation, stored_message) == (conversation_id, message_id)
        assert message_id in users
        assert status in ("completed", "incomplete")
        assert len(messages) <= 1
        ends = set(ended.get(turn_id, ()))
        if not any(end[0] == "completed" for end in ends):
            lost += 1
            continue
        # Whoever was told that it is whole finds it whole.
        assert {end for end in ends if end[0] == "completed"} == {(messages[0].rpartition("|")[0], "completed")[::-1]}
    assert lost > 0, "some turns lost their workers"
    assert len(ended) > TURNS / 2
