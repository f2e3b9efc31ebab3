"""The end of a socket with the token that it was opened with."""

from __future__ import annotations

import asyncio
import time

import jwt
import pytest

from jarvis_core.handlers.realtime import expiry
from jarvis_core.handlers.realtime.expiry import Expiry
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer
from tests.handlers.realtime_client import open_socket

SECRET = "0123456789abcdef0123456789abcdef"


def token(lifetime_s: int) -> tuple[str, int]:
    """Sign a token for zoé; return it and its ``exp``."""
    exp = int(time.time()) + lifetime_s
    return jwt.encode({"sub": "zoé", "exp": exp}, SECRET), exp


@pytest.mark.behaviour("socket.expiry")
async def test_socket_ends_with_its_token(make_server: MakeServer, bridges: FakeBridges) -> None:
    """An idle socket is told why and closed with 1008 at its token's ``exp``; one with a longer token stays open."""
    server = make_server(JWT_SECRET=SECRET)
    short, exp = token(2)
    long, _ = token(3_600)
    async with open_socket(server.url, key=long) as other, open_socket(server.url, key=short) as socket:
        error = await socket.error()
        assert time.time() >= exp
        assert (error["type"], error["code"]) == ("invalid_request_error", "session_expired")
        assert "expired" in error["message"]
        assert await socket.closed() == 1008
        assert socket.connection.close_reason == "session_expired"
        assert socket.seen[-1]["type"] == "error"
        assert (await other.add("encore là"))["status"] == "completed"


async def test_response_outlives_its_socket(make_server: MakeServer, bridges: FakeBridges) -> None:
    """What is being said when the token ends goes on, and a new token of the same user gets the rest of it."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("un ", "deux"), hold_after=1)
    server = make_server(JWT_SECRET=SECRET)
    short, _ = token(2)
    async with open_socket(server.url, key=short) as socket:
        asked = await socket.ask("compte")
        await socket.until_text("un ")
        await socket.error()
        assert await socket.closed() == 1008
    seen = [event for event in socket.seen if event["type"] != "error"]
    new, _ = token(3_600)
    async with open_socket(server.url, key=new, resume=asked["id"], after=seen[-1]["seq"], seen=seen) as resumed:
        bridges.gate.release()
        response = await resumed.done()
    assert response["output"][0]["content"][0]["text"] == "un deux"


async def test_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no end is not waited for; a far end is looked at again and again, as the world's clock may be set."""
    ended: list[str] = []
    forever = Expiry(float("inf"), lambda: ended.append("forever"))
    forever.start()
    assert forever._timer is None
    monkeypatch.setattr(expiry, "LOOK_INTERVAL_S", 0.01)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    over = asyncio.Event()
    far = Expiry(now + 1_000_000, over.set)
    far.start()
    await asyncio.sleep(0.05)
    assert not over.is_set()
    now += 1_000_000
    async with asyncio.timeout(10):
        await over.wait()
    far.stop()
    assert ended == []
