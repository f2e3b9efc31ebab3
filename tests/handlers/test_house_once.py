"""What the house was told to do is done once, whatever becomes of the server, the house and the client meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from jarvis_core.tools.house import UNCLEAR
from tests.fakes.faults import Fault
from tests.fakes.home_assistant import FakeHomeAssistant, HomeAssistantMode
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, client_of
from tests.system.server import Server

TOKEN = "a.long-lived.token"
GENERATE = "/api/llm/generate"
TOGGLE = "Bascule la lumière du salon"


@pytest.fixture
async def home() -> AsyncIterator[FakeHomeAssistant]:
    """Run the house."""
    async with FakeHomeAssistant(TOKEN) as home:
        yield home


@pytest.fixture
async def server(make_server: MakeServer, home: FakeHomeAssistant) -> Server:
    """Run a server of the test's own with that house; it is patient with it."""
    settings = {"HOME_ASSISTANT_URL": home.url, "HOME_ASSISTANT_TOKEN": TOKEN}
    return await asyncio.to_thread(make_server, **settings, HOME_TIMEOUT_S="5", BREAKER_OPEN_S="0.1")


async def say(client: aiohttp.ClientSession, content: str = TOGGLE) -> tuple[int, Any]:
    """Ask under one key and return the status and the body."""
    async with client.post("/api/chat", json={"content": content}, headers={"Idempotency-Key": "key"}) as response:
        return response.status, await response.json()


def told(bridges: FakeBridges) -> bool:
    """Whether the model was told that the outcome is not known."""
    return UNCLEAR in bridges.last(GENERATE).json["prompt"]


async def test_killed_in_the_middle(server: Server, home: FakeHomeAssistant, bridges: FakeBridges) -> None:
    """After kill -9 while the house acts a retry by key asks the model, which is told; the house is asked for what is new."""
    home.mode = HomeAssistantMode(held=True)
    async with client_of(server) as client:
        asking = asyncio.create_task(say(client))
        await home.gate.reached()
        await asyncio.to_thread(server.kill)
        with pytest.raises(aiohttp.ClientError):
            await asking
    home.mode = HomeAssistantMode()
    await asyncio.to_thread(server.start)
    async with client_of(server) as client:
        status, answer = await say(client)
        assert (status, answer["content"], told(bridges)) == (200, f"You said: {TOGGLE}", True)
        assert home.acts == [("toggle", "salon")]
        async with client.post("/api/chat", json={"content": TOGGLE}) as response:
            assert (await response.json())["model"] == "home-assistant"
    assert home.acts == 2 * [("toggle", "salon")]


async def test_stopped_in_the_middle(server: Server, home: FakeHomeAssistant, bridges: FakeBridges) -> None:
    """The same where the server is stopped in good order, twice, and the model fails in between."""
    server.environment["DRAIN_TIMEOUT_S"] = "0.2"
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    home.mode = HomeAssistantMode(held=True)
    async with client_of(server) as client:
        asking = asyncio.create_task(say(client))
        await home.gate.reached()
        assert await asyncio.to_thread(server.stop) == 0
        assert (await asking)[1]["reason"] == "server_stopped"
    home.mode = HomeAssistantMode()
    bridges.mode = BridgesMode(shape="ndjson", faults={GENERATE: Fault(status=500)})
    await asyncio.to_thread(server.start)
    async with client_of(server) as client:
        assert (await say(client))[0] == 502
        bridges.mode = BridgesMode(shape="ndjson")
        assert (await say(client))[1]["content"] == f"You said: {TOGGLE}"
    assert told(bridges)
    assert home.acts == [("toggle", "salon")]


async def test_lost_answer(server: Server, home: FakeHomeAssistant, bridges: FakeBridges) -> None:
    """Where the house did it, was lost, and the model failed, a retry by key does not have it done again."""
    bridges.mode = BridgesMode(shape="ndjson", faults={GENERATE: Fault(status=500)})
    home.mode = HomeAssistantMode(lost="after")
    async with client_of(server) as client:
        assert (await say(client))[0] == 502
        assert not told(bridges)
        bridges.mode, home.mode = BridgesMode(shape="ndjson"), HomeAssistantMode()
        assert (await say(client))[1]["content"] == f"You said: {TOGGLE}"
    assert told(bridges)
    assert home.acts == [("toggle", "salon")]


@pytest.mark.parametrize("why", ["away", "unmatched"])
async def test_nothing_done(server: Server, home: FakeHomeAssistant, bridges: FakeBridges, why: str) -> None:
    """Where the house certainly did nothing, and the model failed, a retry by key asks the house again."""
    bridges.mode = BridgesMode(shape="ndjson", faults={GENERATE: Fault(status=500)})
    if why == "away":
        await home.go_away()
    else:
        home.mode = HomeAssistantMode(response_type="strange")
    content = TOGGLE if why == "away" else "Allume le four"
    async with client_of(server) as client:
        assert (await say(client, content))[0] == 502
        await home.come_back()
        home.mode = HomeAssistantMode()
        bridges.mode = BridgesMode(shape="ndjson")
        answer = (await say(client, content))[1]
    assert answer["model"] == "home-assistant"
    assert home.acts == ([("toggle", "salon")] if why == "away" else [])


async def test_banner(server: Server, home: FakeHomeAssistant) -> None:
    """The start tells of the house; of one that is away, too, which is found again by itself."""
    assert f"  yours:    Home Assistant at {home.url}, asked before the language model" in server.stdout.splitlines()
    await asyncio.to_thread(server.stop)
    await home.go_away()
    await asyncio.to_thread(server.start)
    assert (
        f"  missing:  Home Assistant at {home.url}, which is looked for again: home_assistant is not available."
        in server.stdout
    )
    await home.come_back()
    async with asyncio.timeout(15):
        while await asyncio.to_thread(state_of_house, server) != "healthy":  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.1)


def state_of_house(server: Server) -> str:
    """Return how the house is, as /health has it."""
    return str(server.ask("GET", "/health").body["tools"]["home_assistant"]["state"])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_open_house(make_server: MakeServer, home: FakeHomeAssistant, workers: str) -> None:
    """Where there is a house and no credentials, only this machine is served, and the start says why."""
    settings = {"HOME_ASSISTANT_URL": home.url, "HOME_ASSISTANT_TOKEN": TOKEN, "WORKERS": workers}
    server = make_server(HOST="", **settings)
    # With several workers the first one is ready before all of them are.
    server.wait_until(lambda: "  try: " in server.stdout)
    assert [line for line in server.stdout.splitlines() if line.startswith("  alone:    only this machine")]
    assert [line for line in server.stdout.splitlines() if "Home Assistant at" in line]
    assert addresses(server) == {"127.0.0.1"}


def test_house_open_to_others(make_server: MakeServer, home: FakeHomeAssistant) -> None:
    """Whoever has it listen elsewhere is told in plain words what that means."""
    server = make_server(HOST="0.0.0.0", HOME_ASSISTANT_URL=home.url, HOME_ASSISTANT_TOKEN=TOKEN)
    assert "may move what is in the house" in server.stderr
    assert addresses(server) == {"0.0.0.0"}


def addresses(server: Server) -> set[str]:
    """Return where something listens on the port of *server*."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    listening = [field[1].split(":") for field in fields if field[3] == "0A"]
    return {
        ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
        for host, port in listening
        if int(port, 16) == server.port
    }
