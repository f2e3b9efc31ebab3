"""Streams that are resampled: what is heard of them, how soon, and however they are cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from jarvis_core.codec.resampling import resampler

Floats = npt.NDArray[np.float32]
OUT_HZ = 16_000
RATES = [8_000, 12_000, 24_000, 32_000, 44_100, 48_000]


def tone(rate_hz: int, tone_hz: float) -> Floats:
    """Return a second of a tone."""
    return np.sin(2 * np.pi * tone_hz * np.arange(rate_hz) / rate_hz, dtype=np.float32)


def resampled(rate_hz: int, samples: Floats, piece: int = 480) -> Floats:
    """Return *samples* at 16 kHz, as far as they are known, given in pieces."""
    stream = resampler(rate_hz, OUT_HZ)
    return np.concatenate([stream.resample(samples[at : at + piece]) for at in range(0, len(samples), piece)])


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("tone_hz", [100, 1_000, 3_400])
def test_tone(rate_hz: int, tone_hz: int) -> None:
    """A tone stays as high, as loud, and in its place."""
    found = resampled(rate_hz, tone(rate_hz, tone_hz))
    expected = tone(OUT_HZ, tone_hz)[: len(found)]
    assert np.abs(found - expected)[200:].max() < 0.01


@pytest.mark.parametrize(("rate_hz", "tone_hz"), [(24_000, 9_000), (32_000, 10_000), (48_000, 9_000), (48_000, 20_000)])
def test_what_is_too_high(rate_hz: int, tone_hz: int) -> None:
    """A tone that 16 kHz cannot hold is gone, and does not come back as another."""
    found = resampled(rate_hz, tone(rate_hz, tone_hz))[300:-300]
    assert np.sqrt(np.mean(np.square(found))) < 1e-3


@pytest.mark.parametrize("rate_hz", [8_000, 24_000, 48_000])
def test_at_once(rate_hz: int) -> None:
    """No more than 3 ms of what came are held back, however small the pieces."""
    stream = resampler(rate_hz, OUT_HZ)
    given = found = 0
    for size in [1, 7, 120, 480, 3, 2_400] * 20:
        found += len(stream.resample(np.zeros(size, np.float32)))
        given += size
        assert -0.1 <= 1_000 * given / rate_hz - 1_000 * found / OUT_HZ <= 3.1


@pytest.mark.parametrize("rate_hz", RATES)
def test_however_it_is_cut(rate_hz: int) -> None:
    """Pieces of any size give what the whole gives."""
    noise = np.random.default_rng(0).normal(0, 0.1, rate_hz).astype(np.float32)
    whole = resampled(rate_hz, noise, rate_hz)
    for piece in (1_000, 333):
        found = resampled(rate_hz, noise, piece)
        length = min(len(found), len(whole))
        assert np.abs(found[:length] - whole[:length]).max() < 1e-5
