"""The database goes away and comes back: what answers all the same, what is refused, and what is there afterwards."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from jarvis_core.models import new_id
from jarvis_core.store.pool import GRACE_S
from tests.codec.sounds import tone
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.fakes.relay import DatabaseRelay
from tests.handlers.conftest import assert_no_defect
from tests.handlers.events import Event, iterate_events, read_events, text_of
from tests.handlers.realtime_client import open_socket
from tests.handlers.shown import eventually, history, state_of
from tests.system.faults.dose import WAYS
from tests.system.server import Server

pytestmark = pytest.mark.every_python

DB_TIMEOUT_S = 0.5
SLACK_S = 2.0
"""On a machine with other work."""
LIMIT_S = 2 * DB_TIMEOUT_S + GRACE_S + SLACK_S
"""A wait for a connection, a statement that is given up, and the slack."""
RECOVERY_S = 10.0
END_S = 3 * LIMIT_S
"""Until a client is told that the end of its turn is not stored: it is tried three times."""


@pytest.fixture
async def server(directory: Path, bridges: FakeBridges, relay: DatabaseRelay) -> AsyncIterator[Server]:
    """Run a server behind the relay, with little patience for its database."""
    environment = {
        "DATABASE_URL": relay.conninfo,
        "PYTHON_BRIDGES_URL": bridges.url,
        "DB_TIMEOUT_S": str(DB_TIMEOUT_S),
        "LLM_STALL_TIMEOUT_S": "60",
    }
    server = Server(directory, environment)
    try:
        await asyncio.to_thread(server.start)
        yield server
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)
    finally:
        server.kill()


async def lose(relay: DatabaseRelay, how: str) -> None:
    """Have the database away: refused, or silent."""
    if how == "refused":
        await relay.go_away()
    else:
        relay.hang()


async def say(client: aiohttp.ClientSession, content: str, conversation_id: str | None = None) -> dict[str, Any]:
    """Chat, and return the answer, which is a success."""
    async with client.post("/api/chat", json={"content": content, "conversation_id": conversation_id}) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
    return answer


async def begin(client: aiohttp.ClientSession, content: str) -> tuple[aiohttp.ClientResponse, Event]:
    """Chat as events, and return the answer with its first event."""
    response = await client.post("/api/chat", json={"content": content, "stream": True})
    return response, await anext(iterate_events(response))


def needing_the_database(conversation_id: str, memory_id: str) -> list[tuple[str, str, object]]:
    """
    Return every request that cannot be answered without it.

    What changes something may be done all the same: a host that was silent may have been given it.
    """
    conversation, entry = f"/api/chat/conversation/{conversation_id}", f"/api/memory/entry/{memory_id}"
    response = f"/api/chat/response/{new_id()}"
    return [
        ("POST", "/api/chat", {"content": "is anybody there?"}),
        ("POST", "/api/chat", {"content": "and here?", "conversation_id": conversation_id, "stream": True}),
        ("GET", "/api/chat/conversations", None),
        ("GET", "/api/chat/conversations?q=word", None),
        ("POST", "/api/chat/conversation", {"title": "new"}),
        ("PATCH", conversation, {"title": "other"}),
        ("DELETE", conversation, None),
        ("GET", f"/api/chat/history/{conversation_id}", None),
        ("GET", response, None),
        ("GET", f"{response}/events", None),
        ("POST", f"{response}/cancel", None),
        ("POST", "/api/memory/add", {"content": "the boiler is in the cellar"}),
        ("POST", "/api/memory/search", {"query": "boiler"}),
        ("GET", "/api/memory/list", None),
        ("GET", entry, None),
        ("PATCH", entry, {"importance": 0.9}),
        ("DELETE", entry, None),
    ]


async def assert_refused(client: aiohttp.ClientSession, method: str, path: str, body: object, *codes: str) -> None:
    """Fail unless the request is answered 503 in time, with one of these *codes*."""
    started = time.monotonic()
    async with client.request(method, path, json=body) as response:
        answer = await response.json()
    assert response.status == 503, (method, path, answer)
    assert answer["code"] in codes, (method, path, answer)
    assert int(response.headers["Retry-After"]) > 0
    assert time.monotonic() - started < LIMIT_S, (method, path)


async def assert_goes_on(client: aiohttp.ClientSession) -> None:
    """Fail unless what does not need the database is answered as ever, and health says what is missing."""
    async with client.get("/health") as response:
        health = await response.json()
    assert (response.status, health["status"], health["services"]["database"]) == (503, "unhealthy", "unavailable")
    async with client.get("/ready") as response:
        assert (response.status, (await response.json())["reasons"]) == (503, ["database unavailable"])
    for path in ("/metrics", "/openapi.json", "/api/voice/voices", "/api/voice/languages"):
        async with client.get(path) as response:
            assert response.status == 200, path
    async with client.post("/api/voice/synthesize", json={"text": "Bonjour."}) as response:
        assert response.status == 200, await response.text()
    headers = {"Content-Type": "application/octet-stream"}
    async with client.post("/api/voice/transcribe", data=tone(0.5).tobytes(), headers=headers) as response:
        assert (response.status, (await response.json())["text"]) == (200, "a clip of 0.50 seconds")


async def is_ready(client: aiohttp.ClientSession) -> bool:
    """Whether requests are taken."""
    async with client.get("/ready") as response:
        return response.status == 200


@pytest.mark.parametrize("how", WAYS)
async def test_database_away_and_back(server: Server, relay: DatabaseRelay, bridges: FakeBridges, how: str) -> None:
    """
    Without its database every route that needs it answers 503 in time, the others go on, and running turns are told.

    When it is back all goes on by itself, and what ended meanwhile is stored as it ended.
    """
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(server.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client,
        open_socket(server.url) as socket,
    ):
        victim, before = await say(client, "victim"), await say(client, "before")
        async with client.post("/api/memory/add", json={"content": "the key is under the stone"}) as response:
            memory_id = (await response.json())["id"]
        item = await socket.add("over the socket")
        bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
        finishing, finishing_event = await begin(client, "one two three")
        cancelled, cancelled_event = await begin(client, "four five six")
        finished_id = finishing_event.data["response"]["id"]
        cancelled_id = cancelled_event.data["response"]["id"]
        await bridges.gate.reached(2)

        await lose(relay, how)
        requests = needing_the_database(victim["conversation_id"], memory_id)
        # At first nobody can tell a database that is silent from one that is busy.
        await asyncio.gather(*(assert_refused(client, *one, "unavailable", "overloaded") for one in requests))
        await asyncio.gather(*(assert_refused(client, *one, "unavailable") for one in requests))
        await assert_goes_on(client)
        await socket.send("conversation.item.create", item={**MESSAGE, "content": [{**TEXT, "text": "lost"}]})
        assert (await socket.error())["code"] == "unavailable"

        started = time.monotonic()
        async with client.post(f"/api/chat/response/{cancelled_id}/cancel") as response:
            state = await response.json()
        assert (response.status, state["reason"], state["content"]) == (200, "not_stored", "You said:")
        assert time.monotonic() - started < END_S
        bridges.gate.release()
        events = await read_events(finishing)
        assert text_of(events) == "You said: one two three"
        end = events[-1].data["response"]
        assert (end["status"], end["status_details"]["reason"]) == ("incomplete", "not_stored")
        cancelled.close()

        bridges.mode = BridgesMode(shape="ndjson")
        await relay.come_back()
        await eventually(lambda: is_ready(client), RECOVERY_S)
        assert (await say(client, "after", before["conversation_id"]))["content"] == "You said: after"
        await socket.send("response.create")
        created = await socket.created()
        assert (created["user_message_id"], (await socket.done())["status"]) == (item["id"], "completed")
        for turn_id, status, text in (
            (finished_id, "completed", "You said: one two three"),
            (cancelled_id, "cancelled", "You said:"),
        ):
            await eventually(partial(ended_as, client, turn_id, status), RECOVERY_S)
            state = await state_of(client, turn_id)
            assert (state["status"], state["content"], state["error"]) == (status, text, None)
            stored = await history(client, state["conversation_id"])
            assert stored[1:] == [("assistant", text, status)]
        async with client.get("/api/chat/conversations") as response:
            titles = [one["title"] for one in (await response.json())["conversations"]]
        assert {"before", "four five six", "one two three", "over the socket"} <= set(titles)


MESSAGE = {"type": "message", "role": "user"}
TEXT = {"type": "input_text"}


async def ended_as(client: aiohttp.ClientSession, turn_id: str, status: str) -> bool:
    """Whether a turn is shown to have ended so."""
    return bool((await state_of(client, turn_id))["status"] == status)


async def test_connections_that_break_all_the_time(server: Server, relay: DatabaseRelay) -> None:
    """A network that drops every connection now and then costs 503 at most, and nothing that was acknowledged."""
    answers: list[dict[str, Any]] = []
    numbers = itertools.count()
    stop = asyncio.Event()

    async def drop() -> None:
        pause_s = 0.03
        while not stop.is_set():
            await relay.drop_connections()
            await asyncio.sleep(pause_s)
            # On a machine that is busy no turn would ever get through.
            pause_s *= 1.02

    async def ask(client: aiohttp.ClientSession, name: str) -> None:
        conversation_id = None
        while not stop.is_set():
            body = {"content": f"{name} {next(numbers)}", "conversation_id": conversation_id}
            async with client.post("/api/chat", json=body) as response:
                answer = await response.json()
            assert response.status in (200, 409, 503), answer
            if response.status == 200:
                conversation_id = answer["conversation_id"]
                answers.append({**answer, "question": body["content"]})
            elif response.status == 409:
                conversation_id = None

    async with aiohttp.ClientSession(server.url) as client:
        tasks = [asyncio.create_task(drop()), *(asyncio.create_task(ask(client, f"n{one}")) for one in range(4))]
        await asyncio.sleep(1.5)
        async with asyncio.timeout(RECOVERY_S):
            while not any(answer["status"] == "completed" for answer in answers):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*tasks)
        await eventually(lambda: is_ready(client), RECOVERY_S)
        # Those that were told that their end was not stored yet come last, and may have to wait for it.
        for answer in sorted(answers, key=lambda answer: bool(answer["status"] != "completed")):
            if answer["status"] != "completed":
                assert answer["status"] == "incomplete", answer
                await eventually(partial(ended_as, client, answer["id"], "completed"), RECOVERY_S)
            messages = await history(client, answer["conversation_id"])
            place = messages.index(("user", answer["question"], "completed"))
            assert messages[place + 1] == ("assistant", answer["content"], "completed")
