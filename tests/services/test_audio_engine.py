"""The audio engine: used while it is well and in time, asked by copies alone while it is not."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest

from jarvis_core.services.audio_engine import FAILURES, AudioEngine
from jarvis_core.services.python_bridges import probe
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours
from tests.fakes.audio_engine import AudioEngineMode, FakeAudioEngine
from tests.fakes.content import encode_base64, tone
from tests.fakes.faults import Fault, FaultKind

pytestmark = pytest.mark.every_python

PROCESS = "/process"
SECONDS = 0.5
SAMPLES = tone(SECONDS, 16_000)
AUDIO = encode_base64(SAMPLES).encode()
LONG_S = 60.0
"""A length over which the engine may take half a minute."""


@pytest.fixture
async def server() -> AsyncIterator[FakeAudioEngine]:
    """Run an engine that changes nothing."""
    async with FakeAudioEngine(mode=AudioEngineMode(gain=1.0)) as server:
        yield server


@pytest.fixture
async def transport(server: FakeAudioEngine) -> AsyncIterator[Transport]:
    """Give the way to it."""
    transport = Transport("audio_engine", server.url, Neighbours(breaker_open_s=0.3), failures=FAILURES)
    yield transport
    await transport.close()


@pytest.fixture
async def engine(transport: Transport) -> AsyncIterator[AudioEngine]:
    """Give the engine; it is tried again 0.3 s after it has failed."""
    engine = AudioEngine(transport, Neighbours(audio_engine_timeout_s=60))
    yield engine
    await engine.close()


async def enhance(engine: AudioEngine, duration_s: float = SECONDS) -> bytes | None:
    """Have the clip enhanced; *duration_s* is how long it is said to be."""
    return await engine.enhance(AUDIO, duration_s)


async def well(engine: AudioEngine) -> None:
    """Send clips until one is enhanced."""
    async with asyncio.timeout(5):
        while await enhance(engine) is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def state_of(transport: Transport) -> str:
    """Return what was learnt last."""
    return transport.health.state


async def test_enhanced(server: FakeAudioEngine, engine: AudioEngine) -> None:
    """The samples go out and come back in base64."""
    answer = await enhance(engine)
    assert answer is not None
    assert base64.b64decode(answer, validate=True) == SAMPLES
    assert server.requests[-1].json == {"audio_data": AUDIO.decode()}
    assert server.requests[-1].headers["content-type"] == "application/json"
    assert "authorization" not in server.requests[-1].headers


FAILING: tuple[FaultKind, ...] = ("hang", "close", "nonsense", "null", "nested", "wrong_type", "short_body")


@pytest.mark.parametrize(
    "fault", [*map(Fault, FAILING), Fault(status=500), Fault(status=429)], ids=lambda fault: fault.status or fault.kind
)
async def test_failing(server: FakeAudioEngine, engine: AudioEngine, transport: Transport, fault: Fault) -> None:
    """A failure of any kind is no answer and no error; the next clip does not ask, and a copy finds it well again."""
    server.mode = AudioEngineMode(faults={PROCESS: fault})
    assert await enhance(engine, 0.1) is None
    seen = server.requests_seen[PROCESS]
    assert await enhance(engine) is None
    assert server.requests_seen[PROCESS] == seen
    server.mode = AudioEngineMode()
    await well(engine)
    assert server.requests_seen[PROCESS] == seen + 2
    assert state_of(transport) == "healthy"


async def test_patience(server: FakeAudioEngine, engine: AudioEngine) -> None:
    """A clip waits a quarter of a second and half its length, and no longer than the setting says."""
    server.mode = AudioEngineMode(faults={PROCESS: Fault(delay_s=0.6)})
    assert await enhance(engine, 2.0) is not None
    assert await enhance(engine, 0.1) is None


async def test_patience_has_a_limit(server: FakeAudioEngine, transport: Transport) -> None:
    """However long the clip is, the setting bounds the wait."""
    engine = AudioEngine(transport, Neighbours(audio_engine_timeout_s=0.2))
    server.mode = AudioEngineMode(faults={PROCESS: Fault("hang")})
    async with asyncio.timeout(10):
        assert await enhance(engine, LONG_S) is None
    await engine.close()


async def test_one_copy_at_a_time(server: FakeAudioEngine, engine: AudioEngine) -> None:
    """While a copy waits for the engine clips pass by, and no other copy is sent."""
    server.mode = AudioEngineMode(faults={PROCESS: Fault("hang")})
    assert await enhance(engine, 0.1) is None
    await asyncio.sleep(0.35)
    for _ in range(5):
        assert await enhance(engine, LONG_S) is None
        await asyncio.sleep(0.08)
    await server.seen(PROCESS, 2)
    assert server.requests_seen[PROCESS] == 2
    assert server.open_connections == 1


async def test_unusable_answers(server: FakeAudioEngine, engine: AudioEngine, transport: Transport) -> None:
    """An answer that somebody rejects is noted, and the engine is asked again: it kept nobody waiting."""
    assert await enhance(engine) is not None
    engine.reject("half of it is missing")
    assert state_of(transport) == "degraded"
    assert await enhance(engine) is not None
    assert server.requests_seen[PROCESS] == 2
    assert state_of(transport) == "healthy"


async def test_known_to_be_away(server: FakeAudioEngine, engine: AudioEngine, transport: Transport) -> None:
    """Where its health check has failed no clip waits for it, from the first one on; it is found out when it is back."""
    server.mode = AudioEngineMode(faults={"/health": Fault(status=503)})
    await probe(transport)
    assert await enhance(engine) is None
    assert server.requests_seen[PROCESS] == 0
    await well(engine)
    assert server.requests_seen[PROCESS] == 2


async def test_away_and_back(server: FakeAudioEngine, engine: AudioEngine) -> None:
    """An engine that goes away fails the clip it had and no other; it is used again when it is back."""
    assert await enhance(engine) is not None
    server.mode = AudioEngineMode(faults={PROCESS: Fault("hang")})
    asking = asyncio.create_task(enhance(engine, LONG_S))
    await server.seen(PROCESS, 2)
    await server.go_away()
    async with asyncio.timeout(5):
        assert await asking is None
        assert await enhance(engine, LONG_S) is None
        server.mode = AudioEngineMode()
        await server.come_back()
        await well(engine)


async def test_close_while_a_copy_waits(server: FakeAudioEngine, transport: Transport) -> None:
    """Closing gives up the copy that waits, and leaves no task behind."""
    tasks = asyncio.all_tasks()
    engine = AudioEngine(transport, Neighbours())
    server.mode = AudioEngineMode(faults={PROCESS: Fault("hang")})
    assert await enhance(engine, 0.1) is None
    await asyncio.sleep(0.35)
    assert await enhance(engine, LONG_S) is None
    await server.seen(PROCESS, 2)
    async with asyncio.timeout(2):
        await engine.close()
        await engine.close()
    mine = {task for task in asyncio.all_tasks() - tasks if "audio_engine" in repr(task.get_coro())}
    assert not mine
