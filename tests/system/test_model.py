"""The whole product with nothing but itself: its own database, and a real language model on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import aiohttp
import pytest

from jarvis_core.local import weights
from tests.handlers.events import read_events, text_of
from tests.system.server import REPOSITORY, Server, processes_naming, wait_gone

MODEL = "smollm2-135m"
CACHE = REPOSITORY / ".cache" / "models"
ANSWER_LIMIT_S = 60.0


@pytest.mark.model
async def test_alone(directory: Path) -> None:
    """
    Without any neighbour the product answers by itself, streams, stores, and leaves no process, stopped or killed.

    What so small a model says is nobody's concern; that it says something, and stops when told to, is.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the local engine is not installed")
    await asyncio.to_thread(weights.ensure, weights.CATALOGUE[MODEL], CACHE)
    data = directory / "alone"
    data.mkdir(mode=0o711)
    (data / "models").symlink_to(CACHE)
    server = Server(directory, {"DATA_DIR": str(data), "LOCAL_LLM_MODEL": MODEL, "LLM_TEMPERATURE": "0"})
    try:
        await asyncio.to_thread(server.start)
        family = server.family()
        assert f"  embedded: language model {MODEL}" in server.stdout
        timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
        async with aiohttp.ClientSession(server.url, timeout=timeout) as client:
            async with client.post("/api/chat", json={"content": "What is the capital of France?"}) as response:
                first = await response.json()
            assert (response.status, first["status"], first["model"]) == (200, "completed", MODEL), first
            assert "Paris" in first["content"]
            assert first["tokens"] > 0
            body = {"content": "Count to ten.", "conversation_id": first["conversation_id"], "stream": True}
            async with client.post("/api/chat", json={**body, "max_tokens": 8}) as response:
                events = await read_events(response)
            ended = events[-1].data["response"]
            assert (ended["status"], ended["usage"]["output_tokens"]) == ("incomplete", 8)
            assert text_of(events) == ended["output"][0]["content"][0]["text"]
            assert ended["status_details"]["reason"] == "max_output_tokens"
            async with client.get(f"/api/chat/history/{first['conversation_id']}") as response:
                history = await response.json()
            assert [message["content"] for message in history["messages"]] == [
                "What is the capital of France?",
                first["content"],
                "Count to ten.",
                text_of(events),
            ]
        assert await asyncio.to_thread(server.stop) == 0
        assert wait_gone(family) == processes_naming(data) == set()
        await asyncio.to_thread(server.start)
        family = server.family()
        server.kill()
        assert wait_gone(family) == processes_naming(data) == set()
    finally:
        server.kill()
