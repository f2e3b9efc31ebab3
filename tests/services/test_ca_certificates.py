"""Neighbours with ``https``: whom they are trusted by, and when that is read."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jarvis_core.errors import Unavailable
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours

FILES = Path(__file__).parents[1] / "fixtures" / "tls"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nvoix"
STATS = """
import jarvis_core.services.transport, aiohttp.connector as connector, ssl
contexts = connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED, ssl.create_default_context()
print(*(context.cert_store_stats()["x509"] for context in contexts))
"""


@pytest.fixture
async def neighbour() -> AsyncIterator[str]:
    """Run a neighbour that speaks TLS with a certificate of its own, and give its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FILES / "own.pem", FILES / "own.key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield f"HTTPS://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("authority", ["own.pem"], indirect=True)
@pytest.mark.usefixtures("authority")
async def test_known_authority(neighbour: str) -> None:
    """A neighbour whose certificate an authority of the system has signed is asked."""
    transport = Transport("bridges", neighbour, Neighbours())
    try:
        assert (await transport.call("GET", "/", timeout_s=5)).body == b"voix"
    finally:
        await transport.close()


@pytest.mark.parametrize("authority", ["p521.pem"], indirect=True)
@pytest.mark.usefixtures("authority")
async def test_unknown_authority(neighbour: str) -> None:
    """One whose certificate nobody knows is not."""
    transport = Transport("bridges", neighbour, Neighbours())
    try:
        with pytest.raises(Unavailable):
            await transport.call("GET", "/", timeout_s=5)
    finally:
        await transport.close()


def test_read_when_needed() -> None:
    """Importing the adapters reads no authorities, and leaves others' contexts as they are."""
    environment = {**os.environ, "SSL_CERT_FILE": str(FILES / "own.pem"), "SSL_CERT_DIR": "/nonexistent"}
    told = subprocess.run(
        [sys.executable, "-c", STATS], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert told.stdout.split() == ["0", "0", "1"]
