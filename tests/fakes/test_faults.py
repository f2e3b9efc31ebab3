"""What goes wrong instead of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from .faults import Fault, FaultKind
from .python_bridges import BridgesMode, FakeBridges

GENERATE = "/api/llm/generate"
ASK = {"prompt": "un deux trois quatre", "stream": True}
Client = aiohttp.ClientSession


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    async with FakeBridges() as server:
        yield server


async def send(client: Client, server: FakeBridges, body: object = ASK) -> tuple[int, str, bytes]:
    async with client.post(server.url + GENERATE, json=body) as response:
        return response.status, response.headers.get("Content-Type", ""), await response.read()


def broken(kind: FaultKind, path: str = GENERATE, **options: Any) -> BridgesMode:
    return BridgesMode(faults={path: Fault(kind, **options)})


@pytest.mark.parametrize(
    ("kind", "content_type", "body"),
    [
        ("empty", "application/json", b""),
        ("null", "application/json", b"null"),
        ("list", "application/json", b"[]"),
        ("wrong_shape", "application/json", b'{"unexpected": true}'),
        ("nonsense", "application/json", b"this is {not JSON"),
        ("wrong_type", "application/octet-stream", b"\x00\x01\x02\x03binary"),
    ],
)
async def test_made_up_answers(
    bridges: FakeBridges, client: Client, kind: FaultKind, content_type: str, body: bytes
) -> None:
    """Each made-up answer is a 200 with its own label and body."""
    bridges.mode = broken(kind)
    assert await send(client, bridges) == (200, content_type, body)


async def test_html_instead_of_json(bridges: FakeBridges, client: Client) -> None:
    """A proxy's page of HTML comes with the status that was asked for."""
    bridges.mode = broken("html", status=502)
    status, content_type, body = await send(client, bridges)
    assert (status, content_type) == (502, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_error_status(bridges: FakeBridges, client: Client, status: int) -> None:
    """An error is JSON in the neighbour's shape, without Retry-After unless it is asked for."""
    bridges.mode = broken("none", status=status, message="no")
    async with client.post(bridges.url + GENERATE, json=ASK) as response:
        assert (response.status, await response.json()) == (status, {"error": "no"})
        assert "Retry-After" not in response.headers
    bridges.mode = broken("none", status=status, retry_after_s=7)
    async with client.post(bridges.url + GENERATE, json=ASK) as response:
        assert response.headers["Retry-After"] == "7"


async def test_times_and_prefixes(bridges: FakeBridges, client: Client) -> None:
    """A fault strikes so many times, the longest prefix decides, and a mode set again counts anew."""
    mode = BridgesMode(faults={"/": Fault(status=503), GENERATE: Fault(status=500, times=2)})
    for _ in range(2):
        bridges.mode = mode
        assert [(await send(client, bridges))[0] for _ in range(3)] == [500, 500, 200]
    async with client.get(bridges.url + "/ready") as response:
        assert response.status == 503


@pytest.mark.parametrize("kind", ["close", "reset"])
async def test_closes_without_an_answer(bridges: FakeBridges, client: Client, kind: FaultKind) -> None:
    """The connection ends after the request arrived, with a FIN or with a reset."""
    bridges.mode = broken(kind)
    expected = aiohttp.ClientOSError if kind == "reset" else aiohttp.ServerDisconnectedError
    with pytest.raises(expected):
        await send(client, bridges)
    assert bridges.requests_seen[GENERATE] == 1


async def test_stale_kept_alive_connection(bridges: FakeBridges) -> None:
    """The second request on a connection finds it closed; on a fresh one it is answered."""
    bridges.mode = broken("close_reused")
    reader, writer = await asyncio.open_connection("127.0.0.1", bridges.port)
    body = b'{"prompt":"oui"}'
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    writer.write(request % (GENERATE.encode(), len(body), body))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    await reader.readexactly(int(length[1]))
    writer.write(request % (GENERATE.encode(), len(body), body))
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    await writer.wait_closed()
    first, second = bridges.requests
    assert first.client_port == second.client_port


async def test_closes_after_the_answer(bridges: FakeBridges) -> None:
    """The answer is whole and promises nothing about closing, and then the connection is closed."""
    bridges.mode = broken("close_after", "/ready")
    reader, writer = await asyncio.open_connection("127.0.0.1", bridges.port)
    writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 2)
    assert answer.endswith(b'{"status":"ready","version":"1.0.0"}')
    assert b"connection: close" not in answer.lower()
    writer.close()
    await writer.wait_closed()


async def test_truncated_json_and_short_body(bridges: FakeBridges, client: Client) -> None:
    """Half an answer is a complete message once, and under the length of the whole the other time."""
    body = {"prompt": "un deux"}
    bridges.mode = broken("truncated")
    status, _, half = await send(client, bridges, body)
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(half)
    bridges.mode = broken("short_body")
    with pytest.raises(aiohttp.ClientPayloadError):
        await send(client, bridges, body)


async def test_garbage(bridges: FakeBridges, client: Client) -> None:
    """What answers may not speak HTTP."""
    bridges.mode = broken("garbage")
    with pytest.raises(aiohttp.ClientResponseError):
        await send(client, bridges)


async def test_huge_line(bridges: FakeBridges, client: Client) -> None:
    """A body of the asked size has no line break."""
    bridges.mode = broken("huge_line", size_bytes=1 << 20, content_type="application/x-ndjson")
    status, content_type, body = await send(client, bridges)
    assert (status, content_type, len(body), b"\n" in body) == (200, "application/x-ndjson", 1 << 20, False)


async def test_trickle(bridges: FakeBridges) -> None:
    """Bytes keep coming and the whole never ends."""
    bridges.mode = broken("trickle", delay_s=0.005)
    async with Client(timeout=aiohttp.ClientTimeout(total=0.5, sock_read=0.3)) as client:
        with pytest.raises(TimeoutError) as caught:
            await send(client, bridges)
    assert not isinstance(caught.value, aiohttp.SocketTimeoutError), "no wait between two bytes was long"


async def test_redirect(bridges: FakeBridges, client: Client) -> None:
    """A client that follows the redirect is seen at the other path."""
    bridges.mode = broken("redirect")
    async with client.post(bridges.url + GENERATE, json=ASK, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "/elsewhere")
    await send(client, bridges)
    assert bridges.requests_seen["/elsewhere"] == 1


async def test_hang_and_leave(bridges: FakeBridges, client: Client) -> None:
    """A hung call answers nothing, and the client's leaving is noticed at once."""
    bridges.mode = broken("hang")
    call = asyncio.create_task(send(client, bridges))
    await bridges.seen(GENERATE)
    assert (bridges.open_streams, call.done()) == (1, False)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    left_at = time.monotonic()
    assert await bridges.stream_closed(1) - left_at < 0.5
    assert bridges.open_streams == 0


async def test_late_answer(bridges: FakeBridges, client: Client) -> None:
    """A delay comes before the head of the answer."""
    bridges.mode = broken("none", delay_s=0.1)
    started_at = time.monotonic()
    async with client.post(bridges.url + GENERATE, json=ASK) as response:
        assert time.monotonic() - started_at >= 0.1
        assert response.status == 200
