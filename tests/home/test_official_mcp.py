"""Our client of the Model Context Protocol, held against a server written with the official package."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from jarvis_core.models import Caller, ToolOutput
from jarvis_core.services.mcp import McpServer
from jarvis_core.settings import McpServer as Settings
from tests.fakes.openai_compatible import FakeModelServer, ModelCalls
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import serving
from tests.system.server import free_port

OFFICIAL = Path(__file__).with_name("official_mcp.py")
START_LIMIT_S = 30.0
CALLER = Caller("ann")


@pytest.fixture(scope="module", params=["", "json", "stateless", "json stateless"], ids=lambda kind: kind or "events")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the server, as it may be set up."""
    port = free_port()
    arguments = [os.environ["MCP_PYTHON"], str(OFFICIAL), str(port), *request.param.split()]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def kept(url: str) -> AsyncIterator[McpServer]:
    """Lend the adapter."""
    server = McpServer("official", Settings(url=url))
    keeping = asyncio.create_task(server.keep())
    try:
        async with asyncio.timeout(10):
            await server.looked.wait()
        yield server
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await server.close()


async def call(server: McpServer, name: str, arguments: bytes) -> ToolOutput:
    """Have a tool called."""
    [tool] = [one for one in server.tools if one.own_name == name]
    async with asyncio.timeout(10):
        return await server.call(tool, Raw(arguments), CALLER)


async def test_list_and_call(url: str) -> None:
    """Tools are listed with what they say of themselves, called, and their failures told."""
    async with kept(url) as server:
        assert (server.state, server.trouble) == ("healthy", "")
        marked = {tool.own_name: tool.read_only for tool in server.tools}
        assert (marked["add"], marked["slow"], marked["fail"]) == (True, False, False)
        assert await call(server, "add", b'{"a": 2, "b": 40}') == ToolOutput("42")
        assert await call(server, "slow", b'{"seconds": 0.2}') == ToolOutput("done")
        failed = await call(server, "fail", b"{}")
        assert (failed.failed, "fail" in failed.text) == (True, True)
        assert (await call(server, "add", b'{"a": "x"}')).failed


async def test_list_changes(url: str, request: pytest.FixtureRequest) -> None:
    """A tool that the server learns while it is asked is soon known, where it keeps sessions."""
    async with kept(url) as server:
        name = f"learnt_{len(server.tools)}"
        assert await call(server, "learn", b'{"name": "%s"}' % name.encode()) == ToolOutput("learnt")
        if "stateless" in request.node.callspec.id:
            return  # nobody is told
        async with asyncio.timeout(10):
            while name not in {tool.own_name for tool in server.tools}:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)


async def test_through_the_core(url: str, postgres_conninfo: str) -> None:
    """The model of a turn calls the server's tool through the core, and is told what came of it."""

    def reply(body: dict[str, Any]) -> str | ModelCalls:
        told = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        return f"Told: {told[0]}" if told else ModelCalls((("official__add", '{"a": 2, "b": 40}'),))

    async with FakeModelServer() as model:
        model.reply = reply
        environment = {"LLM_URL": f"{model.url}/v1", "LLM_MODEL": "small", "MCP_SERVERS": f"official={url}"}
        name = f"official_{url.partition('127.0.0.1:')[2].partition('/')[0]}"
        serving_it = serving(postgres_conninfo, name, **environment)
        server, _ = await asyncio.to_thread(serving_it.__enter__)
        try:
            assert " tools of official (MCP_SERVERS)" in server.stdout
            async with Api(server.url) as user:
                turn = await user.say("How much is 2 and 40?")
                health = (await user.get("/health")).json
        finally:
            await asyncio.to_thread(serving_it.__exit__, None, None, None)
    assert turn["content"] == "Told: 42"
    assert health["tools"]["official"]["state"] == "healthy"
