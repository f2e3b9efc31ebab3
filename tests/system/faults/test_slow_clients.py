"""Clients that connect and say nothing, never come to an end, or send a byte at a time: they keep nobody from an answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.conftest import assert_no_defect
from tests.handlers.shown import eventually, open_files
from tests.system.conftest import MakeServer
from tests.system.server import Server

pytestmark = pytest.mark.every_python

SILENT = 2_500
"""More than the server's own backlog."""
SILENT_BYTES = 64 << 10
"""What a connection may cost."""
PATIENCE_S = 0.5
LATE_S = 5.0
"""On a machine with other work."""
IMPATIENT = f"""
import functools, sys
from jarvis_core import server
from jarvis_core.handlers import call
call.BODY_PAUSE_S = {PATIENCE_S}
server.HTTP1Settings = functools.partial(server.HTTP1Settings, header_read_timeout={round(PATIENCE_S * 1_000)})
from jarvis_core.__main__ import main
sys.exit(main([]))
"""
MIB = 1 << 20
MESSAGE_LIMIT_BYTES = 64 * MIB
"""What is kept of a WebSocket's message that is not whole, by the server below us."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and the servers it starts, have enough files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SILENT + 1_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def impatient(directory: Path, database: str, bridges: FakeBridges) -> AsyncIterator[Server]:
    """Run a server that waits for a client ``PATIENCE_S``."""
    environment = {"DATABASE_URL": database, "PYTHON_BRIDGES_URL": bridges.url}
    server = Server(directory, environment, interpreter=(sys.executable, "-c", IMPATIENT))
    try:
        await asyncio.to_thread(server.start)
        yield server
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)
    finally:
        server.kill()


async def is_answered(server: Server) -> None:
    """Fail unless a newcomer is answered."""
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(total=LATE_S)) as client:
        async with client.get("/health") as response:
            assert response.status == 200
        async with client.post("/api/chat", json={"content": "anybody?"}) as response:
            assert (await response.json())["content"] == "You said: anybody?"


@pytest.mark.usefixtures("many_files")
async def test_thousands_that_say_nothing(make_server: MakeServer, database: str) -> None:
    """Thousands of silent connections cost little, keep nobody out, and leave nothing when they go."""
    server = make_server(DATABASE_URL=database)
    await asyncio.to_thread(server.start)
    await is_answered(server)
    files, memory_bytes = open_files(server), server.resident_bytes()
    writers = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in range(SILENT)]
    await is_answered(server)
    assert open_files(server) >= SILENT
    assert server.resident_bytes() - memory_bytes < SILENT * SILENT_BYTES
    for writer in writers:
        writer.close()
    await eventually(lambda: no_more_files(server, files + 5))
    assert await asyncio.to_thread(server.stop) == 0


async def no_more_files(server: Server, files: int) -> bool:
    """Whether no more files are open."""
    return open_files(server) <= files


HALF_HEAD = b"POST /api/chat HTTP/1.1\r\nHost: x\r\n"
HEAD = HALF_HEAD + b"Content-Type: application/json\r\nContent-Length: 9000\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "drop", "answer"),
    [
        (HALF_HEAD, b"", b""),
        (HALF_HEAD, b"x-more: 1\r\n", b""),
        (HEAD, b"", b"HTTP/1.1 400"),
        (HEAD, b" ", b"HTTP/1.1 400"),
        (HEAD.replace(b"Content-Length: 9000", b"Transfer-Encoding: chunked"), b"1\r\n \r\n", b"HTTP/1.1 400"),
    ],
    ids=["half a head", "a head without an end", "no body", "a body byte by byte", "chunks without an end"],
)
async def test_requests_that_never_end(impatient: Server, start: bytes, drop: bytes, answer: bytes) -> None:
    """A request that never comes to its end is given up: in its head without, in its body with an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    writer.write(start)
    started = time.monotonic()
    drip = asyncio.create_task(send_drops(writer, drop))
    try:
        await is_answered(impatient)
        async with asyncio.timeout(PATIENCE_S + LATE_S):
            with contextlib.suppress(ConnectionResetError):
                said = await reader.read(12)
                assert said == answer
        assert time.monotonic() - started >= PATIENCE_S * 0.9
    finally:
        drip.cancel()
        await asyncio.wait([drip])
        writer.close()


async def send_drops(writer: asyncio.StreamWriter, drop: bytes) -> None:
    """Send a little, again and again."""
    while drop:
        await asyncio.sleep(0.05)
        writer.write(drop)


def frame(payload: bytes, *, first: bool) -> bytes:
    """Return a fragment of a text message after which more is to come (https://www.rfc-editor.org/rfc/rfc6455#section-5.2)."""
    return bytes([1 if first else 0, 0x80 | 127]) + struct.pack(">Q", len(payload)) + bytes(4) + payload


async def test_message_that_never_ends(make_server: MakeServer, database: str) -> None:
    """Fragments of a message without an end are kept up to a limit, and let go of with their connection."""
    server = make_server(DATABASE_URL=database)
    await asyncio.to_thread(server.start)
    await is_answered(server)
    memory_bytes = server.resident_bytes()
    key = os.urandom(16).hex()[:22].encode() + b"=="
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        for number in range(2 * MESSAGE_LIMIT_BYTES // MIB):
            writer.write(frame(b"a" * MIB, first=number == 0))
            await writer.drain()
            assert server.resident_bytes() - memory_bytes < 2 * MESSAGE_LIMIT_BYTES
        raise AssertionError("a message may not be as long as that")
    await is_answered(server)
    writer.close()
    await eventually(lambda: gave_back(server, memory_bytes))
    assert await asyncio.to_thread(server.stop) == 0


async def gave_back(server: Server, memory_bytes: int) -> bool:
    """Whether there is about as much memory in use as before."""
    return server.resident_bytes() < memory_bytes + MESSAGE_LIMIT_BYTES // 2
