"""The tools of servers, called by the model in a turn: through the real server, a model's server and a server of tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.mcp import EMPTY, FakeMcp, McpMode
from tests.fakes.openai_compatible import FakeModelServer, ModelCalls
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import serving
from tests.system.server import Server, free_port

TOKEN = "tools-token"
NAMES = {"home__echo", "home__switch", "home__slow", "home__big", "home__picture", "home__structured", "home__failing"}


class Parts:
    """The ports of the parts of one server."""

    def __init__(self, server: Server, model: int, home: int) -> None:
        self.server = server
        self.model = model
        self.home = home


@pytest.fixture(scope="session")
def tools_server(postgres_conninfo: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Run the server that has a server of tools, ``home``, which is away when it starts."""
    model, home = free_port(), free_port()
    file: Path = tmp_path_factory.mktemp("tools") / "jarvis.toml"
    file.write_text(
        f'[tools.servers.home]\nurl = "http://127.0.0.1:{home}/mcp"\ntoken = "{TOKEN}"\napproval = "always"\n'
        "[tools]\ntimeout_s = 1.0\n",
        encoding="utf-8",
    )
    environment = {"LLM_URL": f"http://127.0.0.1:{model}/v1", "LLM_MODEL": "small-model", "JARVIS_CONFIG": str(file)}
    with serving(postgres_conninfo, "handlers_tools", **environment) as (server, _):
        yield Parts(server, model, home)


@pytest.fixture
async def model(tools_server: Parts) -> AsyncIterator[FakeModelServer]:
    """Run the model."""
    async with FakeModelServer(port=tools_server.model) as model:
        yield model


@pytest.fixture
async def home(tools_server: Parts) -> AsyncIterator[FakeMcp]:
    """Run the server of tools."""
    async with FakeMcp(TOKEN, port=tools_server.home) as home:
        yield home


@pytest.fixture
async def user(tools_server: Parts, model: FakeModelServer, home: FakeMcp) -> AsyncIterator[Api]:
    """Ask the server once it has found its tools."""
    async with Api(tools_server.server.url) as user:
        await found(user, len(NAMES))
        # The test before had another one.
        await home.listened()
        home.calls.clear()
        yield user


async def found(user: Api, tools: int) -> None:
    """Wait until /health tells of so many tools."""
    async with asyncio.timeout(15):
        while (await user.get("/health")).json["tools"]["home"]["tools"] != tools:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)


def calling(*calls: tuple[str, str]) -> Any:
    """Make a model that calls, and then says what it was told."""

    def reply(body: dict[str, Any]) -> str | ModelCalls:
        told = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        return "Told: " + " | ".join(told) if told else ModelCalls(calls)

    return reply


async def test_found_by_itself(user: Api, tools_server: Parts) -> None:
    """The server of tools was away at the start, which the banner said; it was found by itself."""
    assert (
        "  missing:  the tools of home, which is looked for again: home is not available." in tools_server.server.stdout
    )
    assert (await user.get("/health")).json["tools"] == {"home": {"state": "healthy", "tools": len(NAMES)}}
    assert TOKEN not in tools_server.server.stderr


async def test_called(user: Api, model: FakeModelServer, home: FakeMcp) -> None:
    """The model is offered the tools as they are, calls one, is told what came of it, and answers; /metrics counts."""
    model.reply = calling(("home__echo", '{"text": "salut"}'))
    turn = await user.say("Répète salut")
    assert (turn["content"], turn["status"]) == ("Told: salut", "completed")
    assert home.calls == [("echo", {"text": "salut"})]
    offered = {tool["function"]["name"]: tool["function"] for tool in model.requests[0].json["tools"]}
    assert set(offered) == NAMES
    assert offered["home__echo"]["parameters"]["required"] == ["text"]
    kinds = [message["type"] for message in await user.messages(turn["conversation_id"])]
    assert kinds == ["message", "function_call", "function_call_output", "message"]
    metrics = (await user.get("/metrics")).body.decode()
    assert 'jarvis_tool_calls_total{outcome="finished",server="home",tool="home__echo"} 1.0' in metrics


async def test_arguments_that_do_not_fit(user: Api, model: FakeModelServer, home: FakeMcp) -> None:
    """A call whose arguments do not fit the server's schema is not made; the model is told."""
    model.reply = calling(("home__echo", '{"text": 7}'))
    assert "do not fit" in (await user.say("Répète"))["content"]
    assert home.calls == []


async def test_approval(user: Api, model: FakeModelServer, home: FakeMcp) -> None:
    """What may change something waits for a yes; with a no the model is told, and nothing is called."""
    model.reply = calling(("home__switch", "{}"))
    for approve in (False, True):
        turn = await user.say("Allume")
        assert (turn["status"], turn["reason"], home.calls) == ("incomplete", "approval_required", [])
        answer = await user.post(f"/api/chat/response/{turn['id']}/approve", {"approve": approve})
        assert answer.status == 200
        async with asyncio.timeout(5):
            while (state := await user.state(turn["id"]))["status"] != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert home.calls == ([("switch", {})] if approve else [])
        assert (state["content"] == "Told: done") is approve


@pytest.mark.parametrize("bad", ["cut", "html", "error", "status_500", "stall", "huge", "wrong_result"])
async def test_bad_call(user: Api, model: FakeModelServer, home: FakeMcp, bad: Any) -> None:
    """A server of tools that fails in the middle of a call is a result that the model is told; it is called once."""
    home.mode = McpMode(bad={"tools/call": bad})
    model.reply = calling(("home__echo", '{"text": "x"}'))
    turn = await user.say("Répète x")
    assert (turn["status"], turn["content"].startswith("Told: ")) == ("completed", True)
    assert home.calls == [("echo", {"text": "x"})]


async def test_list_changes(user: Api, model: FakeModelServer, home: FakeMcp) -> None:
    """A list that changes is soon the model's; a tool that is gone is told to it as unknown."""
    await home.listened()
    home.mode = McpMode(tools={"new": {"inputSchema": EMPTY, "annotations": {"readOnlyHint": True}}})
    await home.tell("notifications/tools/list_changed")
    await found(user, 1)
    model.reply = calling(("home__new", "{}"), ("home__echo", '{"text": "x"}'))
    turn = await user.say("Essaie")
    assert turn["content"].startswith("Told: done | There is no tool")
    assert home.calls == [("new", {})]
