"""
Resamples a stream of sound without holding it back.

soxr's stream keeps up to 37 ms of sound at 24,000 Hz and 115 ms at 8,000 to itself before it gives any (measured with version
1.1.0, 21 and 63 ms on the average), by which each turn would end later. Where a few of one rate's samples are a few of the
other's, a filter of our own gives each sample two or three milliseconds after it came.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import soxr

Floats = npt.NDArray[np.float32]

TAPS = 96
"""Samples of the higher rate that make one of the output."""
BETA = 8.0
"""Of the Kaiser window: what is above half the lower rate is 80 dB down."""
EDGE = 0.95
"""Where the filter is at half its height, of half the lower rate."""
CYCLE_LIMIT = 4
"""Samples of one rate that are a whole number of the other's: more would cost more than they save."""


def resampler(from_hz: int, to_hz: int) -> Filter | SoxrStream:
    """Return what resamples one stream of mono sound."""
    shared = math.gcd(from_hz, to_hz)
    if max(from_hz, to_hz) // shared <= CYCLE_LIMIT:
        return Filter(from_hz // shared, to_hz // shared)
    return SoxrStream(from_hz, to_hz)


class Filter:
    """Gives *gives* samples for each *takes*, all of them of a window of the input."""

    def __init__(self, takes: int, gives: int) -> None:
        self._takes = takes
        half = TAPS // 2 if takes > gives else TAPS // 2 * takes // gives
        self._weights = _weights(takes, gives, half)
        self._rest: Floats = np.zeros(half, np.float32)
        """Input that is still needed: at first the silence before it."""

    def resample(self, samples: Floats) -> Floats:
        """Return what has become whole with *samples*."""
        sound = np.concatenate((self._rest, samples))
        width = len(self._weights)
        cycles = max(0, (len(sound) - width) // self._takes + 1)
        (size,) = sound.strides
        windows = np.lib.stride_tricks.as_strided(sound, (cycles, width), (self._takes * size, size))
        self._rest = sound[cycles * self._takes :].copy()
        found: Floats = np.ascontiguousarray(windows) @ self._weights
        return found.reshape(-1)


class SoxrStream:
    """Resamples at any ratio, and keeps some sound to itself."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")

    def resample(self, samples: Floats) -> Floats:
        """Return what has become whole with *samples*."""
        return np.asarray(self._stream.resample_chunk(samples), np.float32)


def _weights(takes: int, gives: int, half: int) -> Floats:
    """
    Return how much each sample of a window counts in each of the samples that come of it, shape (window, *gives*).

    A window begins *half* samples before the place of its first output, and ends as many behind that of its last.
    """
    width = 2 * half + takes
    places = half + np.arange(gives) * takes / gives
    distance = np.arange(width)[:, None] - places[None, :]
    cutoff = EDGE * min(1.0, gives / takes)
    inside = np.clip(1 - (distance / half) ** 2, 0, None)
    weights = cutoff * np.sinc(cutoff * distance) * np.i0(BETA * np.sqrt(inside)) / np.i0(BETA) * (inside > 0)
    return np.asarray(weights / weights.sum(axis=0), np.float32)
