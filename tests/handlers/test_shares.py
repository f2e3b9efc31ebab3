"""One user fills what all share, and another is served in turn; the limits of all together are in test_overload.py."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.codec.sounds import tone, wav
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, client_of
from tests.handlers.shown import eventually, gauge
from tests.system.server import Server

ANN, BEN = "anns-secret-key", "bens-secret-key"
KEYS = f"ann:{ANN},ben:{BEN}"
GENERATE = "/api/llm/generate"
TRANSCRIBE = "/api/stt/transcribe"
FIRST = Fault(delay_s=2, times=1)
"""The first answer takes so long that all others have come meanwhile, and wait."""
MANY = 8


def two_users(server: Server, *, open_to_all: bool) -> list[aiohttp.ClientSession]:
    """Make clients of two users, who are two addresses where the server is open."""
    if not open_to_all:
        return [client_of(server, key) for key in (ANN, BEN)]
    addresses = ("192.0.2.1", "2001:db8::1")
    return [aiohttp.ClientSession(server.url, headers={"X-Forwarded-For": address}) for address in addresses]


async def chat(client: aiohttp.ClientSession, content: str) -> None:
    """Say something, and get an answer."""
    async with client.post("/api/chat", json={"content": content}) as response:
        assert response.status == 200, await response.text()
        assert (await response.json())["status"] == "completed"


async def hear(client: aiohttp.ClientSession, duration_s: float) -> None:
    """Have a recording heard."""
    body, headers = wav(tone(duration_s)), {"Content-Type": "audio/wav"}
    async with client.post("/api/voice/transcribe", data=body, headers=headers) as response:
        assert response.status == 200, await response.text()


async def wait_for(client: aiohttp.ClientSession, what: str, count: int) -> bool:
    """Whether so many requests wait for *what*."""
    async with client.get("/metrics") as response:
        return f'jarvis_waiting{{service="{what}"}} {count:.1f}\n' in await response.text()


@pytest.mark.parametrize("open_to_all", [False, True], ids=["by key", "by address"])
async def test_model_answers_users_in_turn(make_server: MakeServer, bridges: FakeBridges, *, open_to_all: bool) -> None:
    """While a user's turns wait for the model, another's is the next but one to be answered; all of them are."""
    who = {"TRUSTED_PROXIES": "127.0.0.1"} if open_to_all else {"API_KEYS": KEYS}
    server = make_server(LLM_CONCURRENCY="1", **who)
    bridges.mode = BridgesMode(shape="ndjson", faults={GENERATE: FIRST})
    ann, ben = two_users(server, open_to_all=open_to_all)
    async with ann, ben:
        asking = [asyncio.create_task(chat(ann, f"ann {number}")) for number in range(MANY)]
        await eventually(lambda: wait_for(ann, "model", MANY - 1))
        asking.append(asyncio.create_task(chat(ben, "ben")))
        await asyncio.gather(*asking)
    asked = ["ben" in request.json["prompt"] for request in bridges.requests if request.path == GENERATE]
    assert len(asked) == MANY + 1
    assert asked.index(True) == 2, "after the one that is being answered, and one of the other user's"


async def test_speech_model_hears_users_in_turn(make_server: MakeServer, bridges: FakeBridges) -> None:
    """While a user's recordings wait to be heard, another's is the next but one to be heard."""
    server = make_server(SPEECH_CONCURRENCY="1", API_KEYS=KEYS)
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: FIRST})
    ann, ben = two_users(server, open_to_all=False)
    async with ann, ben:
        asking = [asyncio.create_task(hear(ann, 0.5)) for _ in range(MANY)]
        await eventually(lambda: wait_for(ann, "listening", MANY - 1))
        asking.append(asyncio.create_task(hear(ben, 0.25)))
        await asyncio.gather(*asking)
    lengths = [round(clip.duration_s, 2) for clip in bridges.heard]
    assert len(lengths) == MANY + 1
    assert lengths.index(0.25) == 2


async def test_share_of_turns(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A user who has as many turns as one may is told so, with 429; another's turn is begun, and all are answered."""
    server = make_server(TURN_LIMIT="8", API_KEYS=KEYS)
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    ann, ben = two_users(server, open_to_all=False)
    async with ann, ben:

        async def are_running() -> bool:
            return await gauge(ann, "turns_running") == len(asking)

        asking = [asyncio.create_task(chat(ann, "hello")) for _ in range(7)]
        await eventually(are_running)
        async with ann.post("/api/chat", json={"content": "one more"}) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
            assert (await refused.json())["code"] == "rate_limited"
        asking.append(asyncio.create_task(chat(ben, "hello")))
        await eventually(are_running)
        bridges.gate.release()
        await asyncio.gather(*asking)
