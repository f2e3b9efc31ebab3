"""SIGTERM while clients and neighbours stand still: nobody keeps the server from its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import aiohttp
import msgspec
import pytest

from tests.codec.sounds import tone
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.system.conftest import MakeServer
from tests.system.server import Server

pytestmark = pytest.mark.every_python

TRANSCRIBE = "/api/voice/transcribe"
SYNTHESIZE = "/api/voice/synthesize"
DRAIN_S = 0.7
SLACK_S = 4.0
"""About a second after the drain time, and more on a machine with much other work."""
STORY = ("Une phrase parmi d'autres. " * 185).strip()


def post(server: Server, path: str, body: bytes, declared_bytes: int, *headers: str) -> socket.socket:
    """Send the start of a request, and read nothing."""
    connection = socket.socket()
    connection.settimeout(5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.connect(("127.0.0.1", server.port))
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {declared_bytes}", *headers]
    connection.sendall("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body)
    return connection


def stall(server: Server) -> socket.socket:
    """Send four bytes of an upload."""
    return post(server, TRANSCRIBE, b"RIFF", 1_000, "Content-Type: audio/wav")


async def hang(server: Server, bridges: FakeBridges) -> socket.socket:
    """Send a recording to which the neighbour does not answer."""
    body = tone(1.0).tobytes()
    connection = post(server, TRANSCRIBE, body, len(body), "Content-Type: application/octet-stream")
    await bridges.seen("/api/stt/transcribe", 1)
    return connection


async def listen(server: Server, bridges: FakeBridges) -> socket.socket:
    """Ask for speech as it is made, and do not read it."""
    body = msgspec.json.encode({"text": STORY, "format": "f32"})
    connection = post(server, SYNTHESIZE, body, len(body), "Accept: audio/*", "Content-Type: application/json")
    await bridges.seen("/api/tts/synthesize", 2)
    return connection


async def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], str]:
    """Return status, headers and the code of the error that is answered, to the end of the connection."""
    data = b""
    while part := await asyncio.to_thread(connection.recv, 65_536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(first.split()[1]), headers, msgspec.json.decode(body)["code"]


async def test_who_stands_still_is_left_at_the_end_of_the_drain_time(
    make_server: MakeServer, bridges: FakeBridges, database: str
) -> None:
    """
    A stalled upload and a hanging neighbour are answered 503 when the drain time is over, and the exit is 0.

    Speech whose client does not read breaks off. Until then health, readiness and metrics are answered.
    """
    bridges.mode = BridgesMode(faults={"/api/stt": Fault("hang")})
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S=str(DRAIN_S))
    await asyncio.to_thread(server.start)
    with stall(server) as stalled, await hang(server, bridges) as hanging, await listen(server, bridges):
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        async with aiohttp.ClientSession(server.url) as client:
            for path, status in (("/health", 200), ("/metrics", 200), ("/ready", 503)):
                async with client.get(path) as response:
                    assert response.status == status
        answers = await asyncio.gather(answer_of(stalled), answer_of(hanging))
        assert await asyncio.to_thread(server.wait, 10) == 0
    assert DRAIN_S < time.monotonic() - started < DRAIN_S + SLACK_S
    for status, headers, code in answers:
        assert (status, code, headers["retry-after"]) == (503, "unavailable", "5")
        assert "x-request-id" in headers
    assert "Traceback" not in server.stderr


async def test_what_is_new_may_go_elsewhere(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """While a turn drains, new ones and new sockets are refused in a way that tells a proxy to ask another core."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S="60")
    await asyncio.to_thread(server.start)
    async with aiohttp.ClientSession(server.url) as client:
        running = asyncio.create_task(client.post("/api/chat", json={"content": "the last one"}))
        await bridges.gate.reached()
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            while (await client.get("/ready")).status != 503:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        async with client.post("/api/chat", json={"content": "too late"}) as refused:
            assert (refused.status, refused.headers["x-jarvis-stopping"]) == (503, "1")
        upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        async with client.get("/ws", headers={**upgrade, "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}) as refused:
            assert (refused.status, refused.headers["x-jarvis-stopping"]) == (503, "1")
        bridges.gate.release()
        answer = await running
        assert (answer.status, "x-jarvis-stopping" in answer.headers) == (200, False)
    assert await asyncio.to_thread(server.wait, 10) == 0
    assert bridges.requests_seen["/api/llm/generate"] == 1


async def test_second_signal_leaves_them_at_once(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """A second SIGTERM waits for nobody, whatever the drain time is."""
    server = make_server(DATABASE_URL=database, DRAIN_TIMEOUT_S="60")
    await asyncio.to_thread(server.start)
    with stall(server), await listen(server, bridges):
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert server.running
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 10) == 0
    assert time.monotonic() - started < SLACK_S
    assert "Traceback" not in server.stderr
