"""What the local stand-in tells of a model that thinks."""

from __future__ import annotations

import aiohttp

from jarvis_core.local.llama import ChatMessage, Delta, Done, Engine
from tests.fakes.openai_compatible import FakeModelServer, ModelServerMode


async def test_thinking_is_told_apart() -> None:
    """Thinking that llama.cpp tells apart is passed on as such, and as a sign of life."""
    mode = ModelServerMode(reasoning="hm hm", deltas=("Oui", "."))
    async with FakeModelServer(mode=mode) as server, aiohttp.ClientSession(server.url) as session:
        engine = Engine("small", "key", 1)
        engine._session = session
        pieces = [piece async for piece in engine.generate([ChatMessage("user", "Bonjour ?")], 0.5, 10)]
    assert pieces[:4] == [Delta("", "hm"), Delta("", " hm"), Delta("Oui"), Delta(".")]
    assert isinstance(pieces[4], Done)
    assert pieces[4].finish_reason == "stop"
