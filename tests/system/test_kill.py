"""kill -9 under load: what clients were told is there after a restart, and nothing is left running."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import DELTA, iterate_events
from tests.handlers.realtime_client import open_socket
from tests.system.conftest import MakeServer
from tests.system.server import Server, wait_gone

ROUNDS = 5
CLIENTS = 4
"""Of each kind."""
ANSWER = " ".join(f"word{number}" for number in range(200))
"""The longest; others are its beginning."""
LENGTHS = (20, 60, len(ANSWER), len(ANSWER))
"""Of answers, in characters: some end before the server is killed, some do not."""
CHECKPOINT_S = 1.0
SLACK_S = 0.6
"""For a checkpoint to be stored, on a machine with other work."""

LOST = (aiohttp.ClientError, ConnectionClosed, ConnectionError, TimeoutError)


class Told:
    """What the server has told its clients."""

    def __init__(self) -> None:
        self.users: dict[str, tuple[str, str]] = {}
        """Of messages of users that were acknowledged: id to (conversation, text)."""
        self.responses: dict[str, str] = {}
        """Of responses that were created: id to conversation."""
        self.ended: dict[str, tuple[str, str]] = {}
        """Of responses that were done: id to (status, text)."""
        self.deltas: dict[str, list[tuple[float, str]]] = {}
        """Of responses: when each delta came."""

    def created(self, response: dict[str, Any], content: str) -> None:
        """Take a response.created."""
        self.responses[response["id"]] = response["conversation_id"]
        self.users[response["user_message_id"]] = (response["conversation_id"], content)
        self.deltas[response["id"]] = []

    def delta(self, response_id: str, text: str) -> None:
        """Take a delta."""
        self.deltas[response_id].append((time.monotonic(), text))

    def done(self, response: dict[str, Any]) -> None:
        """Take a response.done."""
        text = "".join(item["content"][0]["text"] for item in response["output"])
        self.ended[response["id"]] = (response["status"], text)

    def text_until(self, response_id: str, moment: float) -> str:
        """Return what had come of a response up to *moment* (monotonic)."""
        return "".join(text for at, text in self.deltas[response_id] if at <= moment)


async def ask_whole(server: Server, told: Told, name: str) -> None:
    """Ask for whole answers until the server is gone."""
    conversation_id = None
    async with aiohttp.ClientSession(server.url) as client:
        for number in range(1_000):
            body = {"content": f"{name} {number}", "conversation_id": conversation_id}
            async with client.post("/api/chat", json=body) as response:
                assert response.status == 200, await response.text()
                answer = await response.json()
            conversation_id = answer["conversation_id"]
            told.responses[answer["id"]] = conversation_id
            told.ended[answer["id"]] = (answer["status"], answer["content"])


async def ask_streamed(server: Server, told: Told, name: str) -> None:
    """Follow streams until the server is gone."""
    conversation_id = None
    async with aiohttp.ClientSession(server.url) as client:
        for number in range(1_000):
            content = f"{name} {number}"
            body = {"content": content, "conversation_id": conversation_id, "stream": True}
            async with client.post("/api/chat", json=body) as response:
                async for event in iterate_events(response):
                    if event.name == "response.created":
                        conversation_id = event.data["response"]["conversation_id"]
                        told.created(event.data["response"], content)
                    elif event.name == DELTA:
                        told.delta(event.data["response_id"], event.data["delta"])
                    elif event.name == "response.done":
                        told.done(event.data["response"])


async def ask_over_a_socket(server: Server, told: Told, name: str) -> None:
    """Talk over a WebSocket until the server is gone."""
    async with open_socket(server.url) as socket:
        for number in range(1_000):
            content = f"{name} {number}"
            item = await socket.add(content)
            told.users[item["id"]] = (socket.seen[-1]["conversation_id"], content)
            await socket.send("response.create")
            response = await socket.created()
            told.created(response, content)
            while (event := await socket.until(DELTA, "response.done"))["type"] == DELTA:
                told.delta(response["id"], event["delta"])
            told.done(event["response"])


async def until_lost(client: Any) -> None:
    """Run a client until its connection breaks."""
    with contextlib.suppress(*LOST):
        await client


async def messages_of(client: aiohttp.ClientSession, conversation_id: str) -> dict[str, tuple[str, str, str]]:
    """Return (role, content, status) by id."""
    async with client.get(f"/api/chat/history/{conversation_id}?limit=200") as response:
        assert response.status == 200, conversation_id
        messages = (await response.json())["messages"]
    return {message["id"]: (message["role"], message["content"], message["status"]) for message in messages}


async def assert_kept(server: Server, told: Told, killed_at: float) -> None:
    """Hold what the server has now against what it had told before it was killed."""
    async with aiohttp.ClientSession(server.url) as client:
        stored: dict[str, tuple[str, str, str]] = {}
        for conversation_id in {*told.responses.values(), *(conversation for conversation, _ in told.users.values())}:
            stored |= await messages_of(client, conversation_id)
        for message_id, (_, content) in told.users.items():
            assert stored[message_id] == ("user", content, "completed")
        for response_id, (status, text) in told.ended.items():
            assert stored[response_id] == ("assistant", text, status)
        for response_id in told.responses.keys() - told.ended.keys():
            async with client.get(f"/api/chat/response/{response_id}") as response:
                state = await response.json()
            # One whose end was stored, but not told any more, has ended as the model ended it.
            assert state["status"] in ("incomplete", "completed")
            assert ANSWER.startswith(state["content"])
            due = told.text_until(response_id, killed_at - CHECKPOINT_S - SLACK_S)
            assert state["content"].startswith(due), (len(state["content"]), len(due))
            if state["content"]:
                assert stored[response_id] == ("assistant", state["content"], state["status"])


@pytest.mark.parametrize("embedded", [True, False], ids=["database killed too", "database of its own"])
async def test_kill_under_load(
    make_server: MakeServer, bridges: FakeBridges, data_directory: Path, database: str, embedded: bool
) -> None:
    """
    After kill -9 at a random moment under load all that clients were told is in the history, and no turn is running.

    Answers that were being streamed keep what had arrived up to a second before.
    """
    dice = random.Random(9 + embedded)
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.02)
    bridges.reply = lambda _: ANSWER[: dice.choice(LENGTHS)]
    server = make_server() if embedded else make_server(DATABASE_URL=database)
    conninfo = f"host={data_directory}/postgres-run port=5432 user=jarvis dbname=jarvis" if embedded else database
    await asyncio.to_thread(server.start)
    cut = kept = 0
    for round_number in range(ROUNDS if embedded else 1):
        told = Told()
        kinds = (ask_whole, ask_streamed, ask_over_a_socket)
        clients = [
            asyncio.create_task(until_lost(ask(server, told, f"{ask.__name__} {round_number} {number}")))
            for ask in kinds
            for number in range(CLIENTS)
        ]
        await asyncio.sleep(dice.uniform(1.7, 2.8))
        family = server.family()
        killed_at = time.monotonic()
        await asyncio.to_thread(server.kill)
        await asyncio.gather(*clients)
        assert await asyncio.to_thread(wait_gone, family) == set()
        await asyncio.to_thread(server.start)
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            cursor = await connection.execute("select count(*) from turns where status = 'running'")
            assert await cursor.fetchone() == (0,)
        await assert_kept(server, told, killed_at)
        running = told.deltas.keys() - told.ended.keys()
        cut += len(running)
        kept += sum(bool(told.text_until(one, killed_at - CHECKPOINT_S - SLACK_S)) for one in running)
    assert await asyncio.to_thread(server.stop) == 0
    assert cut > 0, "the server was killed in the middle of answers"
    assert kept > 0, "some of which had to be kept"
