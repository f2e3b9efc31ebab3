"""What the tests of memory ask the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api

ADD, SEARCH, LIST = "/api/memory/add", "/api/memory/search", "/api/memory/list"
EMBED, BATCH, GENERATE = "/api/embeddings/embed", "/api/embeddings/embed-batch", "/api/llm/generate"
LATE_S = 10.0


def embedded_texts(bridges: FakeBridges) -> list[tuple[str, str]]:
    """Return (text, input type) of the calls for one vector; the background may ask for those of another test."""
    asked = [request.json for request in bridges.requests if request.path == EMBED]
    return [(one["text"], one["input_type"]) for one in asked]


def entry(memory: Any) -> str:
    """Return the path of an entry."""
    return f"/api/memory/entry/{memory if isinstance(memory, str) else memory['id']}"


async def add(api: Api, content: str, **fields: object) -> Any:
    """Keep *content*, and return the body of the answer, which is a success."""
    answer = await api.post(ADD, {"content": content, **fields})
    assert answer.status == 200, answer.body
    return answer.json


async def search(api: Api, query: str, **fields: object) -> Any:
    """Search, and return the body of the answer, which is a success."""
    answer = await api.post(SEARCH, {"query": query, **fields})
    assert answer.status == 200, answer.body
    body = answer.json
    scores = [one["score"] for one in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= part <= 1 for one in body["results"] for part in (one["score"], *one["why"].values()))
    assert body["total"] >= len(body["results"])
    return body


async def found(api: Api, query: str, **fields: object) -> list[str]:
    """Return the contents of what is found, the best first."""
    return [one["content"] for one in (await search(api, query, **fields))["results"]]


async def listed(api: Api) -> list[str]:
    """Return the contents of all entries, the newest first."""
    answer = (await api.get(f"{LIST}?limit=200")).json
    assert answer["total"] == len(answer["memories"])
    return [one["content"] for one in answer["memories"]]


async def nearness(api: Api, query: str, content: str) -> float:
    """Return what the vectors say for the entry *content*; -1 where it is not found."""
    results = (await search(api, query))["results"]
    return next((float(one["why"]["semantic"]) for one in results if one["content"] == content), -1.0)


async def until(check: Callable[[], Awaitable[object]]) -> None:
    """Ask again and again until *check* holds; raises ``TimeoutError``."""
    async with asyncio.timeout(LATE_S):
        while not await check():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.03)
