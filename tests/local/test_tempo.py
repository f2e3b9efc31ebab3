"""Tempo: speech in less or more time, at its own pitch."""

from __future__ import annotations

import numpy as np
import pytest

from jarvis_core.local.tempo import change_tempo
from tests.codec.sounds import AUDIO, amplitude, peak_hz, silence, tone

RATE_HZ = 24_000


@pytest.mark.parametrize("tempo", [0.5, 0.8, 1.0, 1.1, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("hz", [110.0, 440.0, 1_000.0])
def test_tone(hz: float, tempo: float) -> None:
    """A tone is as high and as loud as it was, from its beginning to its end, and takes exactly so much of the time."""
    made = change_tempo(tone(3.0, rate_hz=RATE_HZ, hz=hz), tempo, RATE_HZ)
    assert len(made) == round(3.0 * RATE_HZ / tempo)
    assert peak_hz(made, RATE_HZ) == pytest.approx(hz, abs=1.0)
    assert amplitude(made) == pytest.approx(0.5, rel=0.02)
    assert np.abs(made).max() < 0.52
    for end in (made[:600], made[-600:]):
        assert np.abs(end).max() > 0.4


@pytest.mark.parametrize("tempo", [0.5, 2.0])
def test_order_is_kept(tempo: float) -> None:
    """Sound and silence take turns as they did, each in its share of the time."""
    sound = np.concatenate([tone(1.0, rate_hz=RATE_HZ), silence(1.0, RATE_HZ), tone(1.0, rate_hz=RATE_HZ, hz=880.0)])
    made = change_tempo(sound, tempo, RATE_HZ)
    first, pause, last = np.array_split(made, 3)
    edge = RATE_HZ // 20
    assert peak_hz(first[edge:-edge], RATE_HZ) == pytest.approx(440.0, abs=3.0)
    assert np.abs(pause[edge:-edge]).max() < 0.01
    assert peak_hz(last[edge:-edge], RATE_HZ) == pytest.approx(880.0, abs=3.0)


def test_speech_keeps_its_loudness() -> None:
    """Speech is as loud as it was, and nothing beyond full scale comes of it."""
    values = np.frombuffer((AUDIO / "fx16k_fr_1.wav").read_bytes()[44:], "<i2")
    speech = values.astype(np.float32) * np.float32(1 / 32_768)
    for tempo in (0.5, 0.9, 1.2, 2.0):
        made = change_tempo(speech, tempo, 16_000)
        assert np.sqrt(np.mean(made**2)) == pytest.approx(np.sqrt(np.mean(speech**2)), rel=0.1)
        assert np.abs(made).max() < 1.2 * np.abs(speech).max()


@pytest.mark.parametrize("samples", [0, 1, 100, 719, 720, 721, 1_440, 1_441])
@pytest.mark.parametrize("tempo", [0.5, 1.0, 2.0, 3.0])
def test_next_to_nothing(samples: int, tempo: float) -> None:
    """What is too short for a window is cut, or left as it is, and never an error."""
    made = change_tempo(np.full(samples, 0.5, np.float32), tempo, RATE_HZ)
    assert len(made) <= max(samples, round(samples / tempo))
    assert np.isfinite(made).all()
