"""Recalls that are given up in the middle of their search: what other requests write is not lost for it."""

from __future__ import annotations

import asyncio

import aiohttp
import psycopg
import pytest

from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import assert_no_defect
from tests.system.conftest import MakeServer

pytestmark = pytest.mark.every_python

MEMORIES = 60
CLIENTS = 8
QUESTIONS = 15
"""Of each client."""


async def test_recalls_that_are_given_up(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """A search that a turn does not wait for to the end costs it its memories, and nobody an acknowledged message."""
    bridges.mode = BridgesMode(shape="ndjson", faults={"/api/embeddings": Fault(status=500)})
    server = make_server(DATABASE_URL=database, MEMORY_RECALL_TIMEOUT_S="0.008", DB_MAX_CONNECTIONS="4")
    await asyncio.to_thread(server.start)
    told: list[str] = []

    async def talk(client: aiohttp.ClientSession, number: int) -> None:
        conversation_id = None
        for place in range(QUESTIONS):
            question = f"where is the key number {number} {place}"
            body = {"content": question, "conversation_id": conversation_id}
            async with client.post("/api/chat", json=body) as response:
                answer = await response.json()
            assert response.status == 200, answer
            conversation_id = answer["conversation_id"]
            told.append(question)

    async with aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=0)) as client:
        for number in range(MEMORIES):
            async with client.post(
                "/api/memory/add", json={"content": f"the key number {number} is under stone {number}"}
            ) as response:
                assert response.status == 200
        await asyncio.gather(*(talk(client, number) for number in range(CLIENTS)))
    assert "a turn begins without memories" in server.stderr, "some were given up"
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        rows = await (await connection.execute("select content from messages where role = 'user'")).fetchall()
        running = await (await connection.execute("select count(*) from turns where status = 'running'")).fetchone()
    assert sorted(content for (content,) in rows) == sorted(told)
    assert running == (0,)
    assert await asyncio.to_thread(server.stop) == 0
    assert_no_defect(server)
