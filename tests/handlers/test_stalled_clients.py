"""Clients that ask for much and read nothing, before a server with little patience."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, assert_no_defect, client_of
from tests.handlers.realtime_client import open_socket
from tests.handlers.rest.api import Api
from tests.handlers.shown import eventually
from tests.system.server import Server

pytestmark = pytest.mark.every_python

PATIENCE_S = 0.5
IMPATIENT = f"""
import sys
from jarvis_core.handlers import call
call.SEND_TIMEOUT_S = {PATIENCE_S}
from jarvis_core.__main__ import main
sys.exit(main([]))
"""
ANSWER = " ".join(900 * ["\x01" * 1_000])
"""Six bytes each as JSON: more than the kernel takes for a client that does not read (about 4 MB)."""
STORY = ("Une phrase parmi d'autres. " * 185).strip()
"""Its speech is 22 MB."""


@pytest.fixture
async def impatient(directory: Path, database: str, bridges: FakeBridges) -> AsyncIterator[Server]:
    """Run a server that waits for a client ``PATIENCE_S``."""
    # Slow enough for an event to be sent by itself.
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.001)
    bridges.reply = lambda _: ANSWER
    environment = {"DATABASE_URL": database, "PYTHON_BRIDGES_URL": bridges.url, "LLM_MAX_TOKENS": "32000"}
    server = Server(directory, environment, interpreter=(sys.executable, "-c", IMPATIENT))
    try:
        await asyncio.to_thread(server.start)
        yield server
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)
    finally:
        server.kill()


async def gauge(api: Api, name: str) -> float:
    """Return a value of /metrics."""
    text = (await api.get("/metrics")).body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"jarvis_{name} "))


async def comes_to(api: Api, name: str, value: float) -> None:
    """Wait until a value of /metrics is *value*."""
    async with asyncio.timeout(10):
        while await gauge(api, name) != value:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


def ask(server: Server, path: str, accept: str, body: object) -> socket.socket:
    """Send a request, and read nothing."""
    data = msgspec.json.encode(body)
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Accept: {accept}", "Content-Type: application/json"]
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall("\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data)
    return connection


async def test_clients_that_do_not_read(impatient: Server) -> None:
    """Speech, events and a socket are given up for clients that stay and do not read; a socket's turn can be resumed."""
    async with Api(impatient.url) as api:
        with (
            ask(impatient, "/api/voice/synthesize", "audio/*", {"text": STORY, "format": "f32"}),
            ask(impatient, "/api/chat", "text/event-stream", {"content": "go"}),
        ):
            await comes_to(api, "http_in_flight", 3)
            async with open_socket(impatient.url) as client:
                response = await client.ask("go")
                await comes_to(api, "http_in_flight", 1)
                await comes_to(api, "websockets", 0)
        after = client.seen[-1]["seq"]
        async with open_socket(impatient.url, seen=client.seen, resume=response["id"], after=after) as client:
            assert (await client.done())["status"] == "completed"
            assert client.tally.text == ANSWER


def timers(port: int) -> list[str]:
    """Return the kernel's timer of each of the server's connections: 02 is that of looking whether the client is there."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return [row[5].partition(":")[0] for row in rows if int(row[1].partition(":")[2], 16) == port and row[3] == "01"]


async def test_lost_clients_are_noticed(make_server: MakeServer) -> None:
    """The kernel looks now and then whether an idle client is still there, of HTTP and of WebSockets."""
    server = make_server()

    async def are_looked_at() -> bool:
        async with client_of(server) as client, client.ws_connect("/ws") as socket:
            await socket.receive()
            async with client.get("/health") as answer:
                assert answer.status == 200
            return timers(server.port) == ["02", "02"]

    # The server listens a moment before it tells the kernel so.
    await eventually(are_looked_at)
