"""Idempotency keys: a retry never makes a second turn, whatever became of the first try."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, MakeServer, client_of
from tests.handlers.events import Event, read_events, text_of
from tests.handlers.realtime_client import open_socket
from tests.handlers.shown import history, newest_conversation
from tests.system.server import Server

GENERATE = "/api/llm/generate"
UNKNOWN_ID = "01a20000-0000-7000-8000-000000000000"


async def say(client: aiohttp.ClientSession, key: str, content: str = "hello", **fields: object) -> tuple[int, Any]:
    """Ask under *key* and return the status and the body."""
    headers = {"Idempotency-Key": key}
    async with client.post("/api/chat", json={"content": content, **fields}, headers=headers) as response:
        return response.status, await response.json()


async def stream(client: aiohttp.ClientSession, key: str, content: str = "hello", **fields: object) -> list[Event]:
    """Ask under *key* for a stream and return its events."""
    body = {"content": content, "stream": True, **fields}
    async with client.post("/api/chat", json=body, headers={"Idempotency-Key": key}) as response:
        return await read_events(response)


async def test_many_at_once(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Twenty requests at once with one key, whole and streamed, are one turn and get the same answer."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two"), hold_after=1)
    whole = [asyncio.create_task(say(alice, "many")) for _ in range(14)]
    streamed = [asyncio.create_task(stream(alice, "many")) for _ in range(6)]
    await bridges.gate.reached()
    await asyncio.sleep(0.1)
    bridges.gate.release()
    status, answer = await whole[0]
    assert (status, answer["content"], answer["status"]) == (200, "one two", "completed")
    assert all(other == (200, answer) for other in await asyncio.gather(*whole))
    for events in await asyncio.gather(*streamed):
        assert events[-1].data["response"]["id"] == answer["id"]
        assert text_of(events) == "one two"
    assert bridges.requests_seen[GENERATE] == 1
    assert await history(alice, answer["conversation_id"]) == [
        ("user", "hello", "completed"),
        ("assistant", "one two", "completed"),
    ]
    assert (await newest_conversation(alice))["id"] == answer["conversation_id"]


async def test_later(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A later retry gets the stored answer, whole or as events, and nothing is added to a conversation that went on."""
    _, first = await say(alice, "later")
    _, second = await say(alice, "later-2", "and then?", conversation_id=first["conversation_id"])
    assert await say(alice, "later") == (200, first)
    assert await say(alice, "later-2", "and then?", conversation_id=first["conversation_id"]) == (200, second)
    events = await stream(alice, "later")
    assert text_of(events) == first["content"]
    assert (events[0].name, events[-1].name) == ("response.created", "response.done")
    assert bridges.requests_seen[GENERATE] == 2
    assert len(await history(alice, first["conversation_id"])) == 4


async def test_after_a_restart(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A retry after a restart of the server gets the stored answer too."""
    server = make_server()
    async with client_of(server) as client:
        status, first = await say(client, "restart")
        assert status == 200
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)
    async with client_of(server) as client:
        assert await say(client, "restart") == (200, first)
        assert text_of(await stream(client, "restart")) == first["content"]
    assert bridges.requests_seen[GENERATE] == 1


async def test_killed_before_the_first_word(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A retry after the server was killed before the model's first word is answered, in the same turn."""
    server = make_server()
    bridges.mode = BridgesMode(shape="json", hold_after=0)
    async with client_of(server) as client:
        body = {"content": "hello", "stream": True}
        async with client.post("/api/chat", json=body, headers={"Idempotency-Key": "killed"}):
            await bridges.gate.reached()
            await asyncio.to_thread(server.kill)
    bridges.mode = BridgesMode(shape="ndjson")
    await asyncio.to_thread(server.start)
    async with client_of(server) as client:
        status, answer = await say(client, "killed")
        assert (status, answer["content"]) == (200, "You said: hello")
        assert await history(client, answer["conversation_id"]) == [
            ("user", "hello", "completed"),
            ("assistant", "You said: hello", "completed"),
        ]


@pytest.mark.parametrize(
    "other",
    [
        {"content": "hello!"},
        {"temperature": 0.1},
        {"max_tokens": 5},
        {"system_prompt": "Sois bref."},
        {"use_memory": False},
        {"conversation_id": "the first's"},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_other_request(bridges: FakeBridges, alice: aiohttp.ClientSession, other: dict[str, Any]) -> None:
    """A key that was used for another request is a conflict, and nothing is asked or stored."""
    key = f"other-{next(iter(other))}"
    _, first = await say(alice, key)
    if "conversation_id" in other:
        other = {"conversation_id": first["conversation_id"]}
    status, error = await say(alice, key, **other)
    assert (status, error["code"]) == (409, "conflict")
    assert await say(alice, key, unknown_field=1) == (200, first)
    assert bridges.requests_seen[GENERATE] == 1
    assert len(await history(alice, first["conversation_id"])) == 2


async def test_key_of_another_user(
    bridges: FakeBridges, alice: aiohttp.ClientSession, bob: aiohttp.ClientSession
) -> None:
    """Users' keys are their own: the same key of another user is another turn."""
    _, hers = await say(alice, "shared", "from alice")
    status, his = await say(bob, "shared", "from bob")
    assert (status, his["content"]) == (200, "You said: from bob")
    assert his["id"] != hers["id"]
    assert await say(alice, "shared", "from alice") == (200, hers)
    assert bridges.requests_seen[GENERATE] == 2


@pytest.mark.every_python
@pytest.mark.parametrize("first_streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("retry_streams", [False, True], ids=["whole", "streamed"])
async def test_client_that_leaves(
    bridges: FakeBridges, alice: aiohttp.ClientSession, first_streams: bool, retry_streams: bool
) -> None:
    """A client that leaves its keyed turn does not cancel it, and its retry gets all of that turn's answer."""
    key = f"leaves-{first_streams}-{retry_streams}"
    bridges.mode = BridgesMode(shape="ndjson", deltas=("one ", "two ", "three"), hold_after=1)
    asking = asyncio.create_task(stream(alice, key) if first_streams else say(alice, key))
    await bridges.gate.reached()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert bridges.open_streams == 1
    retry = asyncio.create_task(stream(alice, key) if retry_streams else say(alice, key))
    await asyncio.sleep(0.1)
    bridges.gate.release()
    answer: Any = await retry
    if retry_streams:
        assert text_of(answer) == "one two three"
        conversation_id = answer[-1].data["response"]["conversation_id"]
    else:
        assert (answer[0], answer[1]["content"]) == (200, "one two three")
        conversation_id = answer[1]["conversation_id"]
    assert bridges.requests_seen[GENERATE] == 1
    assert await history(alice, conversation_id) == [
        ("user", "hello", "completed"),
        ("assistant", "one two three", "completed"),
    ]


async def test_failed(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A failed turn is run again under its key, each time as the same turn and without a second message of the user."""
    bridges.mode = BridgesMode(error_200=True)
    failures = [await say(alice, "failed") for _ in range(3)]
    assert {status for status, _ in failures} == {502}
    turns = {(error["details"]["response_id"], error["details"]["conversation_id"]) for _, error in failures}
    assert len(turns) == 1
    turn_id, conversation_id = turns.pop()
    assert await history(alice, conversation_id) == [("user", "hello", "completed")]
    assert bridges.requests_seen[GENERATE] == 3
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    retries = [asyncio.create_task(say(alice, "failed")) for _ in range(10)]
    await bridges.gate.reached()
    await asyncio.sleep(0.1)
    bridges.gate.release()
    for status, answer in await asyncio.gather(*retries):
        assert (status, answer["id"], answer["conversation_id"]) == (200, turn_id, conversation_id)
    assert bridges.requests_seen[GENERATE] == 4
    assert await history(alice, conversation_id) == [
        ("user", "hello", "completed"),
        ("assistant", "You said: hello", "completed"),
    ]


async def test_failed_stream(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A streamed turn that failed is run again under its key, and replayed as it ended then."""
    bridges.mode = BridgesMode(error_200=True)
    failed = await stream(alice, "failed-stream")
    assert failed[-1].data["response"]["status"] == "failed"
    bridges.mode = BridgesMode(shape="ndjson")
    again = await stream(alice, "failed-stream")
    assert again[-1].data["response"]["id"] == failed[-1].data["response"]["id"]
    assert (again[-1].data["response"]["status"], text_of(again)) == ("completed", "You said: hello")
    assert await stream(alice, "failed-stream") == await stream(alice, "failed-stream")
    assert bridges.requests_seen[GENERATE] == 2


async def test_cancelled(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """The retry of a turn that its user cancelled gets what it had said, and does not run it again."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("half ", "a word"), hold_after=1)
    asking = asyncio.create_task(say(alice, "cancelled"))
    await bridges.gate.reached()
    retry = asyncio.create_task(stream(alice, "cancelled"))
    body = {"content": "hello", "stream": True}
    async with alice.post("/api/chat", json=body, headers={"Idempotency-Key": "cancelled"}) as response:
        turn_id = (await read_events(response, until="half "))[0].data["response"]["id"]
        async with alice.post(f"/api/chat/response/{turn_id}/cancel") as cancelled:
            assert (await cancelled.json())["status"] == "cancelled"
    status, answer = await asking
    assert (status, answer["status"], answer["content"]) == (200, "cancelled", "half ")
    assert text_of(await retry) == "half "
    assert await say(alice, "cancelled") == (200, answer)
    assert bridges.requests_seen[GENERATE] == 1


@pytest.mark.parametrize("key", ["x" * 256, "clé", "a\tb"], ids=["too long", "not ASCII", "tab"])
async def test_bad_key(bridges: FakeBridges, alice: aiohttp.ClientSession, key: str) -> None:
    """A key that is not 1..255 printable ASCII characters is a bad request, and nothing is asked."""
    status, error = await say(alice, key)
    assert (status, error["code"], error["details"]["path"]) == (400, "invalid_request", "Idempotency-Key")
    assert bridges.requests_seen[GENERATE] == 0


@pytest.mark.parametrize("key", ["x" * 255, "0", '"quoted"', "a b !~"])
async def test_good_key(bridges: FakeBridges, alice: aiohttp.ClientSession, key: str) -> None:
    """Any other text is a key."""
    _, first = await say(alice, key)
    assert await say(alice, key) == (200, first)
    assert bridges.requests_seen[GENERATE] == 1


async def test_refused_request_keeps_the_key(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A request that was refused (400, 404 or 409) leaves its key unused, so that it can be put right."""
    status, _ = await say(alice, "refused", "hello", conversation_id=UNKNOWN_ID)
    assert status == 404
    status, _ = await say(alice, "refused", "")
    assert status == 400
    bridges.mode = BridgesMode(shape="ndjson", hold_after=0)
    body = {"content": "busy", "stream": True}
    async with alice.post("/api/chat", json=body) as response:
        await bridges.gate.reached()
        conversation_id = (await newest_conversation(alice))["id"]
        status, _ = await say(alice, "refused", "too early", conversation_id=conversation_id)
        assert status == 409
        bridges.gate.release()
        await read_events(response)
    status, answer = await say(alice, "refused", "now", conversation_id=conversation_id)
    assert (status, answer["content"]) == (200, "You said: now")


async def test_key_beside_a_socket(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """While a socket's response runs in its conversation a keyed turn is a conflict, and afterwards it is answered."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        asked = await socket.ask("from the socket")
        await bridges.gate.reached()
        status, _ = await say(alice, "beside", conversation_id=asked["conversation_id"])
        assert status == 409
        bridges.gate.release()
        await socket.done()
    status, answer = await say(alice, "beside", conversation_id=asked["conversation_id"])
    assert (status, answer["content"]) == (200, "You said: hello")
