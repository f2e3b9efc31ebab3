"""A clip in windows that a neighbour can take at once, and whether anybody speaks in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jarvis_core.codec.clip import RATE_HZ, Samples

FRAME_SAMPLES = RATE_HZ * 30 // 1_000
HOP_SAMPLES = RATE_HZ * 10 // 1_000

SPEECH_LEVEL = 0.002
"""RMS of a frame (-54 dBFS) below which nothing is spoken: the noise of a quiet room with a cheap microphone."""

SPEECH_FRAMES = 3
"""The shortest word takes longer than two."""

SHORTEST_SAMPLES = RATE_HZ // 10

SEARCHED_SHARE = 0.3
"""Of a window, at its end: where it may be cut."""


def is_silent(samples: Samples) -> bool:
    """Tell whether nobody can be speaking in *samples* at 16 kHz; a constant offset is not heard."""
    if len(samples) < SHORTEST_SAMPLES:
        return True
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return int(np.count_nonzero(frames.std(axis=1) > SPEECH_LEVEL)) < SPEECH_FRAMES


def cut_windows(samples: Samples, window_s: float) -> Iterator[tuple[int, Samples]]:
    """
    Give the start of each window and its samples; together they are the whole clip at 16 kHz.

    Each is at most *window_s* seconds long and ends where the last part of it is quietest.
    """
    longest = max(FRAME_SAMPLES, int(window_s * RATE_HZ))
    start = 0
    while len(samples) - start > longest:
        searched = max(FRAME_SAMPLES, int(longest * SEARCHED_SHARE))
        end = start + longest - searched + _quietest(samples[start + longest - searched : start + longest])
        yield start, samples[start:end]
        start = end
    if start < len(samples):
        yield start, samples[start:]


def _quietest(samples: Samples) -> int:
    """Return the middle of the quietest frame, the last one of several."""
    energies = samples[: len(samples) // HOP_SAMPLES * HOP_SAMPLES].reshape(-1, HOP_SAMPLES).var(axis=1)
    hops = FRAME_SAMPLES // HOP_SAMPLES
    sums = np.convolve(energies, np.ones(hops), mode="valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return last * HOP_SAMPLES + FRAME_SAMPLES // 2
