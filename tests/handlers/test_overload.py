"""Ten times too much work: what is refused, what is answered all the same, and that nothing of it is lost."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import msgspec
import pytest
from websockets.asyncio.client import connect

from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, client_of
from tests.handlers.shown import eventually, gauge, state_of

pytestmark = pytest.mark.every_python

ASK = {"content": "un deux trois"}


async def running(client: aiohttp.ClientSession, turns: int) -> None:
    """Wait until so many turns run."""

    async def run() -> bool:
        return await gauge(client, "turns_running") == turns

    await eventually(run)


async def test_turn_limit(make_server: MakeServer, bridges: FakeBridges) -> None:
    """
    While as many turns run as may, one more is refused at once, and health and cancelling are answered.

    The refused one leaves nothing behind; the running ones end as if nothing had been.
    """
    server = make_server(TURN_LIMIT="3")
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    async with client_of(server) as client:
        asking = [asyncio.create_task(client.post("/api/chat", json=ASK)) for _ in range(3)]
        await running(client, 3)
        for body in (ASK, ASK | {"stream": True}):
            async with client.post("/api/chat", json=body) as refused:
                assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
                assert (await refused.json())["code"] == "overloaded"
        async with client.get("/api/chat/conversations") as listed:
            conversations = (await listed.json())["conversations"]
        assert len(conversations) == 3
        for path in ("/health", "/ready", "/metrics"):
            async with client.get(path) as answer:
                assert answer.status == 200
        assert [stream.outcome for stream in bridges.streams] == ["open"] * 3
        bridges.gate.release()
        for task in asking:
            async with await task as answer:
                assert (answer.status, (await answer.json())["status"]) == (200, "completed")
        assert await gauge(client, "turns_refused_total") == 2


async def test_request_limit(make_server: MakeServer, bridges: FakeBridges) -> None:
    """Above the limit of requests others are refused at once, but a turn can be cancelled, which makes room."""
    server = make_server(REQUEST_LIMIT="2")
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    async with client_of(server) as client:
        one, other = [asyncio.create_task(client.post("/api/chat", json=ASK | {"stream": True})) for _ in range(2)]
        streams = [await one, await other]
        await running(client, 2)
        async with client.get("/api/chat/conversations") as refused:
            assert (refused.status, (await refused.json())["code"]) == (503, "overloaded")
        async with client.get("/health") as answer:
            assert answer.status == 200
        created = msgspec.json.decode((await streams[0].content.readuntil(b"\n\n")).partition(b"data: ")[2])
        turn_id = created["response"]["id"]
        async with client.post(f"/api/chat/response/{turn_id}/cancel") as cancelled:
            assert (cancelled.status, (await cancelled.json())["status"]) == (200, "cancelled")
        await streams[0].read()

        async def has_room() -> bool:
            async with client.get("/api/chat/conversations") as answer:
                return answer.status == 200

        await eventually(has_room)
        assert (await state_of(client, turn_id))["status"] == "cancelled"
        bridges.gate.release()
        await streams[1].read()


async def test_socket_limit(make_server: MakeServer, bridges: FakeBridges) -> None:
    """One WebSocket too many is told why and closed with 1013; when another has left there is room."""
    server = make_server(WEBSOCKET_LIMIT="1")
    url = f"ws://127.0.0.1:{server.port}/ws"
    async with connect(url, proxy=None) as first:
        assert msgspec.json.decode(await first.recv())["type"] == "session.created"
        async with connect(url, proxy=None) as second:
            event = msgspec.json.decode(await second.recv())
            assert (event["type"], event["error"]["code"]) == ("error", "overloaded")
            await second.wait_closed()
            assert second.close_code == 1013

    async def has_room() -> bool:
        async with connect(url, proxy=None) as third:
            return bool(msgspec.json.decode(await third.recv())["type"] == "session.created")

    await eventually(has_room)


async def test_a_neighbour_that_fails_is_left_alone(make_server: MakeServer, bridges: FakeBridges) -> None:
    """After five failures in a row callers are told at once and when to come back; health says so, metrics count it."""
    server = make_server(BREAKER_OPEN_S="0.5", LLM_FIRST_TOKEN_TIMEOUT_S="0.2")
    bridges.mode = BridgesMode(faults={"/api/llm": Fault("hang")})
    async with client_of(server) as client:
        codes = []
        for _ in range(8):
            async with client.post("/api/chat", json=ASK) as answer:
                codes.append((await answer.json())["code"])
        assert codes == ["timeout"] * 5 + ["unavailable"] * 3
        async with client.get("/health") as health:
            assert (await health.json())["services"]["python_bridges"] != "healthy"
        async with client.get("/metrics") as metrics:
            text = await metrics.text()
        assert 'jarvis_breaker_openings_total{service="python_bridges"} 1.0' in text
        assert 'jarvis_breaker_open{service="python_bridges"} 1.0' in text
        bridges.mode = BridgesMode(shape="ndjson")

        async def is_back() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.post("/api/chat", json=ASK) as answer:
                    return answer.status == 200
            return False

        await eventually(is_back)
        async with client.get("/health") as health:
            assert (await health.json())["services"]["python_bridges"] == "healthy"
