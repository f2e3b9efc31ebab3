"""What is left of a server that was killed: no process, and everything that it had acknowledged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import psycopg

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import iterate_events, read_events
from tests.system.conftest import MakeServer
from tests.system.server import processes_naming, wait_gone


async def wait_checkpointed(conninfo: str, content: str) -> None:
    """Wait until the text so far of the only running turn is *content* in the database."""
    connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    async with connection, asyncio.timeout(5):
        while True:
            cursor = await connection.execute("select content from turns where status = 'running'")
            if await cursor.fetchall() == [(content,)]:
                return
            await asyncio.sleep(0.02)


async def test_kill(make_server: MakeServer, bridges: FakeBridges, directory: Path, data_directory: Path) -> None:
    """
    After kill -9 no child is left, and a restart has all that was acknowledged.

    The turn that ran is incomplete, with the text up to its last checkpoint.
    """
    server = make_server()
    server.start()
    first = (await asyncio.to_thread(server.ask, "POST", "/api/chat", {"content": "kept"})).body
    bridges.mode = BridgesMode(shape="ndjson", deltas=("said ", "before ", "the ", "end"), hold_after=2)
    async with aiohttp.ClientSession(server.url) as client:
        body = {"content": "cut", "conversation_id": first["conversation_id"], "stream": True}
        async with client.post("/api/chat", json=body) as response:
            head = await read_events(response, until="said before ")
            await wait_checkpointed(
                f"host={data_directory}/postgres-run port=5432 user=jarvis dbname=jarvis", "said before "
            )
            family = server.family()
            server.kill()
    assert wait_gone(family) == set()
    assert processes_naming(directory) == set()
    await bridges.stream_closed()

    server.start()
    messages = server.ask("GET", f"/api/chat/history/{first['conversation_id']}").body["messages"]
    assert [(message["role"], message["content"], message["status"]) for message in messages] == [
        ("user", "kept", "completed"),
        ("assistant", "You said: kept", "completed"),
        ("user", "cut", "completed"),
        ("assistant", "said before ", "incomplete"),
    ]
    state = server.ask("GET", f"/api/chat/response/{head[0].data['response']['id']}").body
    assert (state["status"], state["reason"], state["content"]) == ("incomplete", "server_stopped", "said before ")
    bridges.mode = BridgesMode()
    again = {"content": "go on", "conversation_id": first["conversation_id"]}
    assert (await asyncio.to_thread(server.ask, "POST", "/api/chat", again)).body["status"] == "completed"
    assert "said before " in bridges.last("/api/llm").json["prompt"]
    assert server.stop() == 0


async def test_kill_before_the_first_word(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """A question whose answer had not begun when the server was killed is there after a restart, and can be followed."""
    bridges.mode = BridgesMode(shape="json", hold_after=0)
    server = make_server(DATABASE_URL=database)
    server.start()
    body = {"content": "anybody?", "stream": True}
    async with aiohttp.ClientSession(server.url) as client, client.post("/api/chat", json=body) as response:
        await bridges.gate.reached()
        created = (await anext(iterate_events(response))).data["response"]
        server.kill()
    server.start()
    messages = server.ask("GET", f"/api/chat/history/{created['conversation_id']}").body["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [("user", "anybody?")]
    assert messages[0]["id"] == created["user_message_id"]
    assert server.ask("GET", f"/api/chat/response/{created['id']}").body["status"] == "incomplete"
    assert server.stop() == 0
