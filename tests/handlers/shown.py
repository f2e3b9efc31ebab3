"""What a running server shows of its turns over REST, and of itself to the machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.system.server import Server


async def history(client: aiohttp.ClientSession, conversation_id: str) -> list[tuple[str, str, str]]:
    """Return (role, content, status) of each message of a conversation, however many there are."""
    messages: list[dict[str, Any]] = []
    query = {"limit": "200"}
    while True:
        async with client.get(f"/api/chat/history/{conversation_id}", params=query) as response:
            assert response.status == 200, await response.text()
            page = await response.json()
        messages += page["messages"]
        if page["next_cursor"] is None:
            return [(message["role"], message["content"], message["status"]) for message in messages]
        query["cursor"] = page["next_cursor"]


async def newest_conversation(client: aiohttp.ClientSession) -> dict[str, Any]:
    """Return the conversation in which something happened last."""
    async with client.get("/api/chat/conversations?limit=1") as response:
        newest: dict[str, Any] = (await response.json())["conversations"][0]
    return newest


async def state_of(client: aiohttp.ClientSession, response_id: str) -> dict[str, Any]:
    """Return a turn."""
    async with client.get(f"/api/chat/response/{response_id}") as response:
        assert response.status == 200, await response.text()
        state: dict[str, Any] = await response.json()
    return state


async def ended(client: aiohttp.ClientSession, response_id: str) -> dict[str, Any]:
    """Wait until a turn has ended, and return it."""

    async def has_ended() -> bool:
        return bool((await state_of(client, response_id))["status"] != "running")

    await eventually(has_ended)
    return await state_of(client, response_id)


async def gauge(client: aiohttp.ClientSession, name: str) -> float:
    """Return the value of a metric without labels."""
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"jarvis_{name} ")))


def resident_bytes(server: Server) -> int:
    """Return how much memory the server's process has."""
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1_024 for line in status.splitlines() if line.startswith("VmRSS:"))


def open_files(server: Server) -> int:
    """Return how many files the server's process has open; a socket that it has by two descriptors is one."""
    open_ones = []
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            open_ones.append(str(descriptor.readlink()))
    sockets = {name for name in open_ones if name.startswith("socket:")}
    return len(sockets) + sum(not name.startswith("socket:") for name in open_ones)


async def eventually(holds: Callable[[], Awaitable[bool]], limit_s: float = 10.0) -> None:
    """Wait until *holds* says so, asking again and again; raises ``TimeoutError``."""
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110  # another process tells no event of ours
            await asyncio.sleep(0.02)
