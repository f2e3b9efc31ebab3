"""A microphone's way to the process that listens: what comes of pieces, and how often they are worth a question."""

from __future__ import annotations

import wave
from collections.abc import AsyncIterator

import pytest

from jarvis_core.codec.client import STEP_MS, Codec
from jarvis_core.processes.subprocess_pool import Message, Session
from tests.codec.sounds import AUDIO


@pytest.fixture
async def codec() -> AsyncIterator[Codec]:
    """Lend a codec."""
    lent = Codec(limit=1)
    yield lent
    await lent.close()


def samples() -> bytes:
    """Return two seconds of speech, 16 bits at 16 kHz."""
    with wave.open(str(AUDIO / "fx16k_fr_1.wav")) as file:
        found: bytes = file.readframes(32_000)
    return found


@pytest.mark.parametrize(("rate_hz", "late_ms"), [(16_000, 0), (24_000, 2)])
async def test_small_pieces_are_put_together(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, rate_hz: int, late_ms: int
) -> None:
    """Pieces of 5 ms are asked about once a step, and each step is known with the piece that makes it whole."""
    asked: list[int] = []
    call = Session.call

    async def counted(session: Session, header: bytes, payloads: list[bytes], *, timeout_s: float) -> Message:
        asked.append(len(payloads[0]))
        return await call(session, header, payloads, timeout_s=timeout_s)

    monkeypatch.setattr(Session, "call", counted)
    sound = samples()[: 2 * rate_hz]
    whole = codec.listen("pcm16", rate_hz)
    expected = [step async for heard in whole.hear(sound) for step in heard.steps]
    asked.clear()
    microphone = codec.listen("pcm16", rate_hz)
    steps: list[tuple[float, float]] = []
    step_bytes = rate_hz // 100
    for start in range(0, len(sound), step_bytes):
        steps += [step async for heard in microphone.hear(sound[start : start + step_bytes]) for step in heard.steps]
        # The resampler waits for two milliseconds.
        assert len(steps) >= (1_000 * (start + step_bytes) / 2 / rate_hz - late_ms) // STEP_MS
    assert [step[0] for step in steps] == pytest.approx([step[0] for step in expected], abs=1e-3)
    assert len(asked) <= 2 * len(steps)
    assert sum(asked) >= len(sound) - 2 * rate_hz * STEP_MS // 1_000
