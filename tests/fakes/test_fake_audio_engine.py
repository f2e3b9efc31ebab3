"""The fake audio engine: what it does to audio, and how it fails."""

from __future__ import annotations

import array
import base64
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from .audio_engine import AudioEngineMode, FakeAudioEngine
from .content import noise
from .faults import Fault

CLIP = noise(0.1, 16_000)
Client = aiohttp.ClientSession


@pytest.fixture
async def engine() -> AsyncIterator[FakeAudioEngine]:
    async with FakeAudioEngine() as server:
        yield server


async def post(client: Client, engine: FakeAudioEngine, path: str, body: object) -> tuple[int, dict[str, Any]]:
    async with client.post(engine.url + path, json=body) as response:
        answer = await response.json()
        assert isinstance(answer, dict)
        return response.status, answer


async def process(client: Client, engine: FakeAudioEngine) -> bytes:
    _, answer = await post(client, engine, "/process", {"audio_data": base64.b64encode(CLIP).decode()})
    return base64.b64decode(answer["audio_data"])


async def test_process(engine: FakeAudioEngine, client: Client) -> None:
    """The samples come back changed, as many as went in, and were heard."""
    changed = array.array("f", await process(client, engine))
    assert changed == array.array("f", (0.5 * value for value in array.array("f", CLIP)))
    assert (engine.heard[0].samples, engine.heard[0].duration_s) == (1_600, 0.1)
    _, answer = await post(client, engine, "/dsp", {"samples": [0.5, -1, 0]})
    assert answer == {"samples": [0.25, -0.5, 0.0]}
    async with client.get(engine.url + "/stats") as response:
        stats = await response.json()
    assert (stats["processed_frames"], len(stats)) == (1_603, 6)


@pytest.mark.parametrize(
    ("effect", "size"),
    [("short", 3_200), ("long", 7_040), ("empty", 0), ("odd", 6_401), ("clip", 6_400), ("nan", 6_400)],
)
async def test_wrong_answers(engine: FakeAudioEngine, client: Client, effect: str, size: int) -> None:
    """Answers can be of the wrong size, beyond ±1 or not numbers."""
    engine.mode = AudioEngineMode(effect=effect)  # type: ignore[arg-type]
    changed = await process(client, engine)
    assert len(changed) == size
    if effect == "clip":
        assert min(map(abs, array.array("f", changed))) >= 1
    if effect == "nan":
        assert all(map(math.isnan, array.array("f", changed)))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/process", {}),
        ("/process", {"audio_data": "not base64!"}),
        ("/process", {"audio_data": "AAA="}),
        ("/process", []),
        ("/dsp", {"samples": ["x"]}),
    ],
)
async def test_bad_input(engine: FakeAudioEngine, client: Client, path: str, body: object) -> None:
    """Bad input is a 400 with an error."""
    status, answer = await post(client, engine, path, body)
    assert (status, isinstance(answer["error"], str)) == (400, True)


async def test_health_and_faults(engine: FakeAudioEngine, client: Client) -> None:
    """It can be unhealthy, or hang."""
    async with client.get(engine.url + "/health") as response:
        assert response.status == 200
    engine.mode = AudioEngineMode(healthy=False, faults={"/process": Fault("hang")})
    async with client.get(engine.url + "/health") as response:
        assert response.status == 503
    with pytest.raises(TimeoutError):
        await client.post(engine.url + "/process", json={}, timeout=aiohttp.ClientTimeout(total=0.1))
    assert engine.requests_seen["/process"] == 1
