"""A server of tools: what is taken from its list, what its calls tell, and what becomes of both where it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw

from jarvis_core.errors import RequestError
from jarvis_core.models import Caller, Tool, ToolOutput
from jarvis_core.services import mcp
from jarvis_core.services.mcp import McpServer, names_of
from jarvis_core.settings import McpServer as Settings
from jarvis_core.settings import Secret
from tests.fakes.faults import Fault
from tests.fakes.mcp import EMPTY, PATH, TOOLS, FakeMcp, McpMode

CALLER = Caller("ann")
ARGUMENTS = Raw(b'{"text":"h\xc3\xa9llo"}')


@pytest.fixture
async def fake() -> AsyncIterator[FakeMcp]:
    """Run the server."""
    async with FakeMcp() as fake:
        yield fake


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is waited for come soon."""
    monkeypatch.setattr(mcp, "LIST_TIMEOUT_S", 0.5)
    monkeypatch.setattr(mcp, "AWAY_DELAYS_S", (0.1,))
    monkeypatch.setattr(mcp, "LISTEN_PAUSE_S", 0.1)
    monkeypatch.setattr(mcp, "CHANGE_PAUSE_S", 0.0)


@asynccontextmanager
async def kept(fake: FakeMcp, **settings: Any) -> AsyncIterator[McpServer]:
    """Lend the adapter of *fake* once it was looked at; afterwards no connection is open."""
    server = McpServer("home", Settings(url=fake.mcp_url, **settings))
    keeping = asyncio.create_task(server.keep())
    try:
        async with asyncio.timeout(5):
            await server.looked.wait()
        yield server
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await server.close()
    async with asyncio.timeout(5):
        while fake.open_connections:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0.01)


async def until(server: McpServer, names: set[str]) -> None:
    """Wait until the server's own names of its tools are *names*."""
    async with asyncio.timeout(5):
        while {tool.own_name for tool in server.tools} != names:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


def tool(server: McpServer, name: str) -> Tool:
    """Return a tool by the server's own name of it."""
    return next(one for one in server.tools if one.own_name == name)


async def call(server: McpServer, name: str, arguments: Raw = ARGUMENTS) -> ToolOutput:
    """Have a tool called."""
    async with asyncio.timeout(5):
        return await server.call(tool(server, name), arguments, CALLER)


@pytest.mark.parametrize("answers", ["json", "events"])
@pytest.mark.parametrize("sessions", [True, False])
async def test_list_and_call(fake: FakeMcp, answers: Any, sessions: bool) -> None:
    """Tools are listed and called, whether answers come as one JSON or as events, with sessions or without."""
    fake.mode = McpMode(answers=answers, sessions=sessions)
    async with kept(fake) as server:
        assert (server.state, server.trouble) == ("healthy", "")
        assert [one.own_name for one in server.tools] == list(TOOLS)
        echo = tool(server, "echo")
        assert (echo.name, echo.server, echo.description, echo.read_only) == (
            "home__echo", "home", "Say a text again.", True,
        )  # fmt: skip
        assert bytes(echo.parameters).startswith(b'{"type":"object","properties":{"text"')
        assert await call(server, "echo") == ToolOutput("héllo")
        assert await call(server, "failing") == ToolOutput("no", failed=True)
        assert await call(server, "structured") == ToolOutput('{"n":1}')
        pictured = (await call(server, "picture")).text
        assert pictured.split("\n") == [
            "[image/png that is no text]",
            "words",
            "file:///b",
            "[of the future that is no text]",
        ]
        assert len((await call(server, "big")).text) == 1 << 20
        assert fake.calls[0] == ("echo", {"text": "héllo"})
        assert not {one.needs_approval for one in server.tools} - {False}
    if sessions:
        assert (fake.sessions, fake.methods[-1]) == (set(), "DELETE")
    if sessions and answers == "events":
        assert {"jsonrpc": "2.0", "id": "ping-1", "result": {}} in fake.replies
        assert {one["error"]["code"] for one in fake.replies if "error" in one} == {-32601}


async def test_approval_and_allowed(fake: FakeMcp) -> None:
    """What does not only read needs approval where that is set; only what is allowed is offered."""
    async with kept(fake, approval="always", allowed=("echo", "switch", "unheard of")) as server:
        assert [(one.own_name, one.needs_approval) for one in server.tools] == [("echo", False), ("switch", True)]


async def test_pages(fake: FakeMcp) -> None:
    """A list of several pages is read to its end; one without end is not."""
    fake.mode = McpMode(page=2)
    async with kept(fake) as server:
        assert len(server.tools) == len(TOOLS)


async def test_unusable_tools_are_left_out(fake: FakeMcp) -> None:
    """A tool with a schema that no model's server takes, or that is too long, is left out; the others stay."""
    fake.mode = McpMode(
        tools={
            "array": {"inputSchema": {"type": "array"}},
            "none": {"inputSchema": None},
            "wrong": {"inputSchema": "x"},
            "typeless": {"inputSchema": {}},
            "long": {"inputSchema": {**EMPTY, "description": "x" * 200_000}},
            "described": {"inputSchema": EMPTY, "description": 7},
            "good": {"inputSchema": EMPTY, "description": None, "title": "x", "outputSchema": {}, "annotations": {}},
        }
    )
    async with kept(fake) as server:
        assert [one.name for one in server.tools] == ["home__good"]


def test_names() -> None:
    """Names are of the characters and the length that models' servers take, and told apart."""
    assert names_of("home", ["turn_on"]) == ["home__turn_on"]
    names = names_of("home", ["a.b", "a/b", "x" * 80, "x" * 81, "é", "😀"])
    assert len(set(names)) == 6
    assert all(0 < len(name) <= 64 and set(name) <= mcp.PLAIN for name in names)
    assert names == names_of("home", ["a.b", "a/b", "x" * 80, "x" * 81, "é", "😀"])


async def test_list_changes(fake: FakeMcp) -> None:
    """A change that the server tells of is soon known."""
    async with kept(fake) as server:
        await fake.listened()
        fake.mode = McpMode(tools={"new": {"inputSchema": EMPTY}})
        await fake.tell("notifications/tools/list_changed")
        await until(server, {"new"})


@pytest.mark.parametrize("listens", [True, False])
async def test_list_is_refreshed(fake: FakeMcp, monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    """A change of which nobody tells is known after a while, and so is a server that has gone."""
    monkeypatch.setattr(mcp, "REFRESH_INTERVAL_S", 0.1)
    fake.mode = McpMode(listens=listens)
    async with kept(fake) as server:
        fake.mode = McpMode(listens=listens, tools={"new": {"inputSchema": EMPTY}})
        await until(server, {"new"})
        await fake.go_away()
        await until(server, set())
        states = [server.state]
        await fake.come_back()
        await until(server, {"new"})
        assert [*states, server.state] == ["unavailable", "healthy"]


async def test_away_at_the_start(fake: FakeMcp) -> None:
    """A server that is away at the start is found again by itself."""
    await fake.go_away()
    async with kept(fake) as server:
        assert (list(server.tools), server.state) == ([], "unavailable")
        assert server.trouble == "home is not available."
        await fake.come_back()
        await until(server, set(TOOLS))
        assert server.trouble == ""


async def test_lost_session(fake: FakeMcp) -> None:
    """A server that was restarted has forgotten the session: the call is made in a new one, once."""
    async with kept(fake) as server:
        fake.sessions.clear()
        assert await call(server, "echo") == ToolOutput("héllo")
        assert fake.calls == [("echo", {"text": "héllo"})]


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_unauthorised(token: str | None) -> None:
    """A token that is not taken is told, without the token, and there are no tools."""
    async with FakeMcp("right") as fake, kept(fake, token=None if token is None else Secret(token)) as server:
        assert (list(server.tools), server.state) == ([], "unavailable")
        assert "credentials" in server.trouble
        assert "wrong" not in server.trouble
        fake.token = token
        await until(server, set(TOOLS))


@pytest.mark.parametrize("method", ["initialize", "tools/list"])
@pytest.mark.parametrize(
    "bad", ["html", "no_json", "no_result", "wrong_result", "wrong_id", "error", "stall", "half", "cut", "huge", "status_500", "status_400"]
)  # fmt: skip
async def test_bad_start(fake: FakeMcp, method: str, bad: Any) -> None:
    """Whatever is wrong with the first answers, there are no tools, the trouble has a sentence, and it heals."""
    fake.mode = McpMode(bad={method: bad})
    async with kept(fake) as server:
        assert (list(server.tools), server.state) == ([], "unavailable")
        assert server.trouble.endswith((".", ").")) or bad == "error"
        fake.mode = McpMode()
        await until(server, set(TOOLS))


async def test_without_tools(fake: FakeMcp) -> None:
    """A server that says that it has no tools is told of."""
    fake.mode = McpMode(capable=False)
    async with kept(fake) as server:
        assert server.trouble == "home has no tools."


@pytest.mark.parametrize(
    "bad", ["html", "no_json", "no_result", "wrong_result", "wrong_id", "error", "half", "cut", "huge", "status_500", "status_400"]
)  # fmt: skip
async def test_bad_call(fake: FakeMcp, bad: Any) -> None:
    """A call whose answer is wrong is an error, and was sent once."""
    async with kept(fake) as server:
        fake.mode = McpMode(bad={"tools/call": bad})
        with pytest.raises(RequestError):
            await call(server, "switch", Raw(b"{}"))
        assert fake.calls == [("switch", {})]
        fake.mode = McpMode()
        assert (await call(server, "switch", Raw(b"{}"))).text == "done"


@pytest.mark.parametrize("kind", ["close", "reset", "garbage", "short_body"])
async def test_faults_in_a_call(fake: FakeMcp, kind: Any) -> None:
    """A connection that breaks in the middle of a call is an error, and the call is not made again."""
    async with kept(fake) as server:
        before = fake.requests_seen[PATH]
        fake.mode = McpMode(faults={PATH: Fault(kind, times=1)})
        with pytest.raises(RequestError):
            await call(server, "switch", Raw(b"{}"))
        assert fake.requests_seen[PATH] == before + 1


@pytest.mark.every_python
@pytest.mark.parametrize("mode", [McpMode(), McpMode(bad={"tools/call": "stall"})], ids=["slow", "stalls"])
async def test_cancelled(fake: FakeMcp, mode: McpMode) -> None:
    """A call that is given up closes its connection."""
    async with kept(fake) as server:
        fake.mode = mode
        calling = asyncio.create_task(server.call(tool(server, "slow" if not mode.bad else "echo"), ARGUMENTS, CALLER))
        async with asyncio.timeout(5):
            while not fake.calls:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        port = fake.last(PATH).client_port
        calling.cancel()
        await asyncio.wait([calling])
        async with asyncio.timeout(5):
            while fake.is_connected(port):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
