"""The local stand-in's ear for the end of a turn: its features, its answers, and what it refuses."""

from __future__ import annotations

import base64
import importlib.util
import io
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from jarvis_core.errors import StartError
from jarvis_core.local.catalogue import CATALOGUE, NOWHERE, TURN_END
from jarvis_core.local.launcher import LocalBridges
from jarvis_core.local.log_mel import log_mel
from jarvis_core.local.weights import ensure, resolve
from tests.local.quiet import complaints
from tests.system.server import REPOSITORY

CACHE = REPOSITORY / ".cache" / "models"
CLIPS = REPOSITORY / "tests" / "fixtures" / "audio"
RATE_HZ = 16_000

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "faster_whisper")),
        reason="the local engines are not installed",
    ),
]


@pytest.fixture(scope="module")
def bridges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBridges]:
    log_path = tmp_path_factory.mktemp("turns") / "log"
    bridges = LocalBridges(turn_end_path=ensure(CATALOGUE["smart-turn-v3.2"], CACHE), log_path=log_path)
    bridges.start()
    yield bridges
    bridges.stop()
    assert complaints(log_path) == []


@pytest.fixture
async def client(bridges: LocalBridges) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(bridges.url, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


def clip(name: str) -> NDArray[np.float32]:
    """Return a recording without the silence behind it, and then 0.2 s of a room."""
    with wave.open(str(CLIPS / f"{name}.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32_768
    spoken = samples[: np.flatnonzero(np.abs(samples) > 0.02)[-1]]
    room = np.random.default_rng(0).normal(0, 0.0005, RATE_HZ // 5)
    return np.concatenate([spoken, room]).astype(np.float32)


async def judge(client: aiohttp.ClientSession, samples: NDArray[np.float32], **fields: object) -> tuple[int, Any]:
    body = {"audio_data": base64.b64encode(samples.tobytes()).decode(), "sample_rate": RATE_HZ, **fields}
    # In a file: the client warns of large bodies, and warnings are errors here.
    async with client.post("/api/turn/end", data=io.BytesIO(msgspec.json.encode(body))) as response:
        return response.status, await response.json()


async def probability(client: aiohttp.ClientSession, samples: NDArray[np.float32]) -> float:
    status, body = await judge(client, samples)
    assert status == 200, body
    found: float = body["probability"]
    return found


def test_features() -> None:
    """The features are those that Whisper's own are, of speech and of nothing."""
    from faster_whisper.feature_extractor import FeatureExtractor

    for samples in (clip("fx16k_fr_0"), clip("fx16k_en_2"), np.zeros(RATE_HZ, np.float32)):
        count = len(samples) // 160
        theirs = FeatureExtractor()(samples, padding=0)[:, :count]
        assert log_mel(samples).shape == theirs.shape == (80, count)
        assert np.abs(log_mel(samples) - theirs).max() < 1e-5


@pytest.mark.parametrize("name", ["fx16k_en_0", "fx16k_en_1", "fx16k_en_2", "fx16k_fr_0", "fx16k_fr_1", "fx16k_fr_2"])
async def test_sentences(client: aiohttp.ClientSession, name: str) -> None:
    """A sentence that is over is surely over, in both languages; what was said before it changes nothing."""
    sentence = clip(name)
    alone = await probability(client, sentence)
    assert alone > 0.9
    tired = np.concatenate([clip("fx16k_en_0")] * 3 + [sentence])
    eight = tired[-8 * RATE_HZ :]
    assert await probability(client, tired) == pytest.approx(await probability(client, eight), abs=1e-6)


@pytest.mark.parametrize(("name", "until_s"), [("fx16k_en_0", 2.3), ("fx16k_fr_0", 2.4), ("fx16k_fr_2", 2.4)])
async def test_in_the_middle(client: aiohttp.ClientSession, name: str, until_s: float) -> None:
    """In the middle of a sentence it is not."""
    assert await probability(client, clip(name)[: round(until_s * RATE_HZ)]) < 0.5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"audio_data": "%"}, "audio_data"),
        ({"audio_data": ""}, "audio_data"),
        ({"audio_data": "AAAA"}, "audio_data"),
        ({"audio_data": base64.b64encode(np.full(9, np.nan, "<f4").tobytes()).decode()}, "audio_data"),
        ({"sample_rate": 8_000}, "sample_rate"),
        ({"sample_rate": "fast"}, "sample_rate"),
    ],
)
async def test_bad_requests(client: aiohttp.ClientSession, fields: dict[str, object], named: str) -> None:
    """What is no sound is a 400 that names the field."""
    status, body = await judge(client, np.zeros(1_600, np.float32), **fields)
    assert status == 400
    assert named in body["error"]


async def test_silence_and_noise(client: aiohttp.ClientSession) -> None:
    """Anything that is sound has an answer between 0 and 1."""
    for samples in (np.zeros(1, np.float32), np.ones(20 * RATE_HZ, np.float32), np.full(800, 1e5, np.float32)):
        assert 0 <= await probability(client, samples) <= 1


def test_own_model(tmp_path: Path) -> None:
    """A user's own model is a path; what is no ONNX is named, and nothing is fetched where it may not be."""
    own = tmp_path / "own.onnx"
    own.write_bytes(b"GGUF of another kind")
    with pytest.raises(StartError, match=r"LOCAL_TURN_MODEL=.*is not an ONNX model file"):
        resolve(str(own), tmp_path, TURN_END)
    own.write_bytes(b"\x08\x08 and more")
    assert resolve(str(own), tmp_path, TURN_END) == own
    with pytest.raises(StartError, match="may not be fetched"):
        resolve("smart-turn-v3.2", tmp_path, TURN_END, sources=NOWHERE)


async def test_without_a_model(tmp_path: Path) -> None:
    """A stand-in without the model says so."""
    bridges = LocalBridges(log_path=tmp_path / "log")
    bridges.start()
    try:
        async with aiohttp.ClientSession(bridges.url) as client:
            status, _ = await judge(client, np.zeros(1_600, np.float32))
            assert status == 501
    finally:
        bridges.stop()
