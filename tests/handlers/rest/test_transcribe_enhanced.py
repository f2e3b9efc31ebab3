"""``POST /api/voice/transcribe`` beside an audio engine: better where that is well, never worse where it is not."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from tests.codec.sounds import silence, tone, wav
from tests.fakes.audio_engine import AudioEngineMode, FakeAudioEngine
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.recordings import as_bytes, hear
from tests.system.server import Server

PROCESS = "/process"
SHORT = as_bytes(wav(tone(0.3)))
"""The engine may take 0.4 s over it."""
CLIP = as_bytes(wav(tone(2.0)))
LONG = as_bytes(wav(tone(40)))
"""The engine may take 20 s over it, which is longer than any test waits for an answer."""


def faulty(**options: Any) -> AudioEngineMode:
    return AudioEngineMode(faults={PROCESS: Fault(**options)})


def samples_of(bridges: FakeBridges) -> Any:
    """Return what the bridge was asked to transcribe last."""
    return np.frombuffer(base64.b64decode(bridges.last("/api/stt").json["audio_data"]), "<f4")


async def well(api: Api) -> None:
    """Send clips until one is enhanced: the engine is there, and known to be."""
    async with asyncio.timeout(5):
        while not (await hear(api, CLIP))["enhanced"]:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


async def test_enhanced(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine) -> None:
    """The bridge gets what the engine made of the clip, and the answer says so."""
    await well(enhanced)
    engine.mode = AudioEngineMode(gain=0.25)
    heard = await hear(enhanced, CLIP)
    assert (heard["enhanced"], heard["duration_ms"]) == (True, 2_000)
    assert engine.heard[-1].samples == listener.heard[-1].samples == 32_000
    assert abs(engine.heard[-1].peak - 0.5) < 0.01
    assert abs(listener.heard[-1].peak - 0.125) < 0.01


async def test_language_is_found_in_the_recording_as_it_came(
    enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine
) -> None:
    """
    Where the language is to be found the bridge gets the recording as it came, and beside it what the engine made of it.

    The reference bridges know nothing of the second one, and their words are those of the first.
    """
    await well(enhanced)
    engine.mode = AudioEngineMode(gain=0.25)
    heard = await hear(enhanced, CLIP._replace(query={"language": "auto"}))
    assert (heard["enhanced"], heard["language"]) == (False, "fr")
    assert abs(np.abs(samples_of(listener)).max() - 0.5) < 0.01
    clean = np.frombuffer(base64.b64decode(listener.last("/api/stt").json["enhanced_audio_data"]), "<f4")
    assert abs(np.abs(clean).max() - 0.125) < 0.01


async def test_every_window_is_enhanced(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine) -> None:
    """Each window of a long recording passes through the engine; one that does not makes the whole unenhanced."""
    await well(enhanced)
    engine.forget()
    long = as_bytes(wav(tone(112, rate_hz=4_000), 4_000, "u8"))
    assert (await hear(enhanced, long))["enhanced"]
    assert engine.requests_seen[PROCESS] == 2
    engine.mode = AudioEngineMode(faults={PROCESS: Fault(status=500, times=1)})
    assert not (await hear(enhanced, long))["enhanced"]


async def test_silence_is_not_enhanced(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine) -> None:
    """The engine is not asked about silence."""
    await well(enhanced)
    engine.forget()
    assert not (await hear(enhanced, as_bytes(wav(silence(1.0)))))["enhanced"]
    assert engine.requests_seen[PROCESS] == 0


async def test_clipping(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine) -> None:
    """What comes back beyond full scale is kept within it."""
    await well(enhanced)
    engine.mode = AudioEngineMode(effect="clip")
    assert (await hear(enhanced, CLIP))["enhanced"]
    assert np.abs(samples_of(listener)).max() == 1.0


@pytest.mark.parametrize("effect", ["short", "long", "empty", "nan", "odd", "not_base64"])
async def test_unusable(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine, effect: Any) -> None:
    """What is no answer to the clip is not used; the original is, and the engine is asked again next time."""
    await well(enhanced)
    engine.mode = AudioEngineMode(effect=effect)
    heard = await hear(enhanced, CLIP)
    assert (heard["enhanced"], heard["text"]) == (False, "a clip of 2.00 seconds")
    samples = samples_of(listener)
    assert len(samples) == 32_000
    assert abs(np.abs(samples).max() - 0.5) < 0.01
    engine.mode = AudioEngineMode()
    assert (await hear(enhanced, CLIP))["enhanced"]


@pytest.mark.parametrize(
    "mode",
    [
        faulty(kind="hang"),
        faulty(status=500),
        faulty(status=429),
        faulty(kind="nonsense"),
        faulty(kind="garbage"),
        faulty(kind="redirect"),
        faulty(kind="close"),
        faulty(kind="trickle"),
        faulty(delay_s=5),
    ],
    ids=lambda mode: mode.faults[PROCESS].kind + str(mode.faults[PROCESS].status or ""),
)
async def test_failing(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine, mode: AudioEngineMode) -> None:
    """Whatever the engine does instead of answering, the original is used; it is tried again in a while."""
    await well(enhanced)
    engine.mode = mode
    for _ in range(2):
        heard = await hear(enhanced, SHORT)
        assert (heard["enhanced"], heard["text"]) == (False, "a clip of 0.30 seconds")
        assert abs(np.abs(samples_of(listener)).max() - 0.5) < 0.01
    assert "/elsewhere" not in engine.requests_seen
    engine.mode = AudioEngineMode()
    await well(enhanced)


async def test_absent(enhanced: Api, listener: FakeBridges, enhanced_server: tuple[Server, int, int]) -> None:
    """Without an engine all is as without a setting for it, from the first clip on; one that appears is used."""
    for _ in range(3):
        heard = await hear(enhanced, SHORT)
        assert (heard["enhanced"], heard["text"]) == (False, "a clip of 0.30 seconds")
    assert (await enhanced.get("/health")).status == 200
    async with FakeAudioEngine(port=enhanced_server[2]) as engine:
        await well(enhanced)
        await engine.go_away()
        assert not (await hear(enhanced, SHORT))["enhanced"]
        await engine.come_back()
        await well(enhanced)
        assert (await enhanced.get("/health")).json["services"]["audio_engine"] == "healthy"


async def test_nobody_waits_a_second_time(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine) -> None:
    """
    Once the engine has failed no clip waits for it: whether it is back is found out with a copy of one.

    The engine hangs, and could take 20 s over the long clips: an answer that comes while it still holds one, or while
    it was not asked at all, did not wait.
    """
    await well(enhanced)
    engine.mode = faulty(kind="hang")
    assert not (await hear(enhanced, SHORT))["enhanced"]
    asked = engine.requests_seen[PROCESS]
    async with asyncio.timeout(8):
        while engine.requests_seen[PROCESS] == asked:
            heard = await hear(enhanced, LONG)
            assert (heard["enhanced"], heard["text"]) == (False, "a clip of 40.00 seconds")
    assert engine.requests_seen[PROCESS] == asked + 1
    for _ in range(2):
        assert not (await hear(enhanced, LONG))["enhanced"]
    assert engine.requests_seen[PROCESS] == asked + 1, "it is tried with one copy at a time"
    assert engine.open_connections == 1, "it holds that copy still"
    engine.mode = AudioEngineMode()
    engine.drop_connections()
    await well(enhanced)


async def test_recovery_by_a_copy(enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine) -> None:
    """An engine that is well again is found out by a copy, whose clip is heard as it is; the next one is enhanced."""
    await well(enhanced)
    engine.mode = faulty(status=500, times=1)
    assert not (await hear(enhanced, SHORT))["enhanced"]
    asked = engine.requests_seen[PROCESS]
    await well(enhanced)
    assert engine.requests_seen[PROCESS] == asked + 2, "the copy, and the first clip that is enhanced again"


@pytest.mark.every_python
async def test_client_leaves_while_the_engine_works(
    enhanced: Api, listener: FakeBridges, engine: FakeAudioEngine
) -> None:
    """A client that leaves takes its clip along, and the engine is not blamed for it."""
    await well(enhanced)
    engine.mode = faulty(kind="hang")
    seen = engine.requests_seen[PROCESS]
    asking = asyncio.create_task(hear(enhanced, LONG))
    await engine.seen(PROCESS, seen + 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(5):
        while engine.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    engine.mode = AudioEngineMode()
    assert (await hear(enhanced, CLIP))["enhanced"]
