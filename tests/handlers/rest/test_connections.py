"""Clients below HTTP: slow, broken off, pipelined."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api, in_flight
from tests.system.server import Server

pytestmark = pytest.mark.every_python

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


# Heads


async def first_line(server: tuple[Server, int], sent: bytes) -> bytes:
    """Return the first line of what is answered; empty where nothing is."""
    async with connected(server) as (reader, writer), asyncio.timeout(10):
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            return await reader.readline()
    return b""


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 63_000 + b"\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 140_000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n", b"HTTP/1.1 431 "),
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 414 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b""),
    ],
    ids=["long", "too long", "too many fields", "too long a path", "HTTP/2 without TLS"],
)
async def test_heads(api: Api, open_server: tuple[Server, int], sent: bytes, answered: bytes) -> None:
    """A head has 64 KiB and 100 fields at most, and nobody speaks HTTP/2 without TLS; others are answered as before."""
    line = await first_line(open_server, sent)
    assert line.startswith(answered) if answered else not line
    assert (await api.get("/health")).status == 200


# Bodies that are no bodies


CHUNKED = b"Transfer-Encoding: chunked\r\n"
WHOLE = b'10\r\n{"content": "x"}\r\n'
BROKEN = {
    "no size": (CHUNKED, b"\r\n{}\r\n0\r\n\r\n"),
    "a size that is no number": (CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
    "a size beyond all numbers": (CHUNKED, b"f" * 17 + b"\r\n{}\r\n0\r\n\r\n"),
    "a later size that is no number": (CHUNKED, WHOLE + b"zz\r\n{}\r\n0\r\n\r\n"),
    "more data than the size says": (CHUNKED, b"2\r\n{}{}\r\n0\r\n\r\n"),
    "an extension without end": (CHUNKED, b"2;" + b"a" * 17_000 + b"\r\n{}\r\n0\r\n\r\n"),
    "a trailer that is none": (CHUNKED, WHOLE + b"0\r\nno trailer\r\n\r\n"),
    "too many trailers": (CHUNKED, WHOLE + b"0\r\n" + b"x-more: 1\r\n" * 200 + b"\r\n"),
    "no last chunk": (CHUNKED, WHOLE),
    "half a chunk": (CHUNKED, WHOLE[:8]),
    "less than was declared": (b"Content-Length: 50\r\n", b'{"content": "x"'),
}


@pytest.mark.parametrize("kind", [b"application/json", b"audio/wav", b"multipart/form-data; boundary=x"])
@pytest.mark.parametrize("case", BROKEN)
async def test_broken_body(
    api: Api, bridges: FakeBridges, open_server: tuple[Server, int], case: str, kind: bytes
) -> None:
    """A body that breaks off, or whose chunks are malformed, is 400 like any other mistake, and nothing is begun for it."""
    framing, body = BROKEN[case]
    path = b"/api/chat" if kind == b"application/json" else b"/api/voice/transcribe"
    idle = await in_flight(api)
    async with connected(open_server) as (reader, writer):
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nX-Request-ID: mine\r\n%b\r\n"
        writer.write(head % (path, kind, framing) + body)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
    head, _, told = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), answer
    assert b"\r\nx-request-id: mine\r\n" in head.lower() + b"\r\n"
    error = msgspec.json.decode(told)
    assert (error["code"], error["details"]["path"], error["request_id"]) == ("invalid_request", "body", "mine")
    assert bridges.requests_seen["/api/llm/generate"] == bridges.requests_seen["/api/stt/transcribe"] == 0
    await wait_in_flight(api, idle)


@pytest.mark.parametrize(("path", "length", "status"), [(b"/no", 10, 404), (b"/api/voice/transcribe", 1 << 30, 413)])
async def test_broken_body_of_what_is_refused(
    open_server: tuple[Server, int], path: bytes, length: int, status: int
) -> None:
    """What is refused whatever its body says is refused for that, also where the body breaks off."""
    async with connected(open_server) as (reader, writer):
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{" % (path, length))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
    assert statuses(answer) == [status]
    assert b"request_id" in answer


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
