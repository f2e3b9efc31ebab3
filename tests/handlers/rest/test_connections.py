"""Clients below HTTP: slow, broken off, pipelined."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api, in_flight
from tests.system.server import Server

BODY = b'{"content": "doucement"}'
HEAD = b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@asynccontextmanager
async def connected(server: tuple[Server, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Lend a connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server[0].port)
    try:
        yield reader, writer
    finally:
        writer.close()


def statuses(answers: bytes) -> list[int]:
    """Return the status of each answer on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


async def wait_in_flight(api: Api, number: float) -> None:
    async with asyncio.timeout(3):
        while await in_flight(api) != number:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)


async def test_slow_body(api: Api, open_server: tuple[Server, int]) -> None:
    """A body that comes byte by byte is answered, and nobody waits for it meanwhile."""
    async with connected(open_server) as (reader, writer):
        writer.write(HEAD)
        for place in range(len(BODY)):
            writer.write(BODY[place : place + 1])
            await writer.drain()
            if place % 8 == 0:
                async with asyncio.timeout(1):
                    assert (await api.get("/health")).status == 200
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_many_bodies_that_never_come(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """Hundreds of clients that never finish their bodies keep nobody else waiting, and are forgotten when they leave."""
    idle = await in_flight(api)
    writers = []
    for _ in range(300):
        _, writer = await asyncio.open_connection("127.0.0.1", open_server[0].port)
        writer.write(HEAD + BODY[:5])
        writers.append(writer)
    await wait_in_flight(api, idle + 300)
    async with asyncio.timeout(1):
        assert (await api.say("vite"))["status"] == "completed"
    for writer in writers:
        writer.close()
    await wait_in_flight(api, idle)
    assert bridges.requests_seen["/api/llm/generate"] == 1


async def test_client_that_leaves_in_its_body(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """A request that is broken off in its body is no turn, and no noise in the log."""
    idle = await in_flight(api)
    before = len(open_server[0].stderr)
    async with connected(open_server) as (_, writer):
        writer.write(HEAD + BODY[:5])
        await wait_in_flight(api, idle + 1)
    await wait_in_flight(api, idle)
    assert bridges.requests_seen["/api/llm/generate"] == 0
    assert open_server[0].stderr[before:] == ""


async def test_client_that_leaves_its_turn_is_no_defect(
    api: Api, bridges: FakeBridges, open_server: tuple[Server, int]
) -> None:
    """A client that leaves while its turn runs leaves nothing behind: no request in flight, nothing in the log."""
    idle = await in_flight(api)
    before = len(open_server[0].stderr)
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    async with connected(open_server) as (_, writer):
        writer.write(HEAD + BODY)
        await bridges.gate.reached()
    await bridges.stream_closed()
    await wait_in_flight(api, idle)
    assert open_server[0].stderr[before:] == ""


async def test_one_connection_for_many_requests(bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """Requests that are sent without waiting for answers are answered in order, errors too."""
    async with connected(open_server) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /no HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD + BODY)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), 5)
    assert statuses(answers) == [200, 404, 200, 200]


async def test_connection_after_a_refused_body(api: Api, open_server: tuple[Server, int]) -> None:
    """A body that is refused unread does not become the next request of its connection."""
    async with connected(open_server) as (reader, writer):
        smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(smuggled) + smuggled)
        writer.write(b"GET /no HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), 5)
    assert statuses(answers) in ([415, 404], [415])
