"""The product from its first start to its stop, as its user sees it."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.content import without_time
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import read_events, text_of
from tests.system.conftest import MakeServer
from tests.system.server import Server, processes_naming, wait_gone


async def say(server: Server, content: str, **fields: object) -> dict[str, object]:
    status, body = await asyncio.to_thread(server.ask, "POST", "/api/chat", {"content": content, **fields})
    assert status == 200, body
    assert isinstance(body, dict)
    return body


async def test_first_light(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A conversation is answered, remembered in the next turn, and there after a stop and a start."""
    server = make_server()
    server.start()
    first = await say(server, "Je m'appelle Zoé.")
    assert (first["content"], first["status"]) == ("You said: Je m'appelle Zoé.", "completed")
    second = await say(server, "Comment je m'appelle ?", conversation_id=first["conversation_id"])
    asked = bridges.last("/api/llm").json
    assert "Je m'appelle Zoé." in asked["prompt"]
    assert "You said: Je m'appelle Zoé." in asked["prompt"]
    assert "Comment je m'appelle ?" in asked["prompt"]
    assert [without_time(message["content"]) for message in asked["messages"]] == [
        "Je m'appelle Zoé.",
        "You said: Je m'appelle Zoé.",
        "Comment je m'appelle ?",
    ]
    history = f"/api/chat/history/{first['conversation_id']}"
    before = server.ask("GET", history)
    assert [message["content"] for message in before.body["messages"]] == [
        "Je m'appelle Zoé.",
        first["content"],
        "Comment je m'appelle ?",
        second["content"],
    ]
    assert server.stop() == 0
    server.start()
    assert server.ask("GET", history) == before
    third = await say(server, "Et encore ?", conversation_id=first["conversation_id"])
    assert "Je m'appelle Zoé." in bridges.last("/api/llm").json["prompt"]
    assert third["conversation_id"] == first["conversation_id"]
    assert server.stop() == 0


@pytest.mark.every_python
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_leaves_nothing(make_server: MakeServer, directory: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end the server with exit code 0, its port free and no process left."""
    server = make_server()
    server.start()
    family = server.family()
    assert len(family) > 2, "the database runs as a child"
    server.signal(number)
    assert server.wait() == 0
    assert wait_gone(family, 0.5) == set()
    assert processes_naming(directory) == set()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", server.port))


async def test_replay_after_restart(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """A stream that was followed live is replayed after a restart: the same events and text, to the same last id."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("Il ", "était ", "une ", "fois 😀", "."))
    server = make_server(DATABASE_URL=database)
    server.start()
    body = {"content": "raconte", "stream": True}
    async with aiohttp.ClientSession(server.url) as client, client.post("/api/chat", json=body) as response:
        live = await read_events(response)
    assert server.stop() == 0
    server.start()
    path = f"/api/chat/response/{live[0].data['response']['id']}/events"
    async with aiohttp.ClientSession(server.url) as client:
        async with client.get(path) as response:
            replayed = await read_events(response)
        middle = live[-5].id - 3
        async with client.get(path, headers={"Last-Event-ID": str(middle)}) as response:
            rest = await read_events(response)
    assert text_of(replayed) == text_of(live) == "Il était une fois 😀."
    assert replayed[-1] == live[-1]
    assert [event.name for event in replayed if event.name != "response.output_text.delta"] == [
        event.name for event in live if event.name != "response.output_text.delta"
    ]
    assert rest[0].data["delta"] == "Il était une fois 😀."[-3:]
    assert rest[1:] == replayed[-len(rest) + 1 :]


@pytest.mark.every_python
async def test_running_turn_is_stopped_within_the_drain_time(
    make_server: MakeServer, bridges: FakeBridges, database: str
) -> None:
    """A turn that runs when SIGTERM comes gets DRAIN_TIMEOUT_S, is told and stored as incomplete, and the exit is 0."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("half ", "a ", "word"), stall_after=2)
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S="0.5")
    server.start()
    body = {"content": "go", "stream": True}
    async with aiohttp.ClientSession(server.url) as client, client.post("/api/chat", json=body) as response:
        head = await read_events(response, until="half a ")
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(3):
            rest = await read_events(response)
    assert await asyncio.to_thread(server.wait, 3) == 0
    assert rest[-1].name == "response.done"
    assert rest[-1].data["response"]["status"] == "incomplete"
    server.start()
    response_id = head[0].data["response"]["id"]
    state = server.ask("GET", f"/api/chat/response/{response_id}").body
    assert (state["status"], state["reason"], state["content"]) == ("incomplete", "server_stopped", "half a ")
    messages = server.ask("GET", f"/api/chat/history/{state['conversation_id']}").body["messages"]
    assert [(message["content"], message["status"]) for message in messages] == [
        ("go", "completed"),
        ("half a ", "incomplete"),
    ]
    assert server.stop() == 0


@pytest.mark.every_python
async def test_running_turn_may_end_within_the_drain_time(
    make_server: MakeServer, bridges: FakeBridges, database: str
) -> None:
    """A turn that ends by itself within the drain time is answered in full, although a stop was asked for."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S="10")
    server.start()
    asking = asyncio.create_task(say(server, "last words"))
    await bridges.gate.reached()
    server.signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        while (await asyncio.to_thread(server.ask, "GET", "/ready")).status != 503:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    bridges.gate.release()
    answer = await asking
    assert (answer["content"], answer["status"]) == ("You said: last words", "completed")
    assert await asyncio.to_thread(server.wait, 3) == 0


@pytest.mark.every_python
async def test_second_signal_ends_at_once(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """A second signal does not wait for running turns; they are stored, and the exit is 0."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S="60")
    server.start()
    asking = asyncio.create_task(say(server, "last words"))
    await bridges.gate.reached()
    server.signal(signal.SIGINT)
    await asyncio.sleep(0.2)
    assert server.running
    server.signal(signal.SIGINT)
    assert await asyncio.to_thread(server.wait, 5) == 0
    assert (await asking)["status"] == "incomplete"
    await bridges.stream_closed()
