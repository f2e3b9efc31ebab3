"""The log-mel spectrogram that Whisper's encoder was trained on (https://github.com/openai/whisper, ``log_mel_spectrogram``)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
BANDS = 80
LINEAR_HZ = 1_000.0
"""Up to here Slaney's mel scale is linear, with 15 mels; above there are 27 for each factor of 6.4."""
LINEAR_MELS = 15.0
LOG_STEP = 27.0
FLOOR = 1e-10
RANGE = 8.0
"""Powers of ten below the loudest band; quieter ones count as much as that."""


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a row for each of 80 bands with a number for every 10 ms of *samples*, at 16 kHz and about 0 on the whole."""
    import numpy as np

    padded = np.pad(samples, WINDOW_SAMPLES // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    # As many as there are hops: the last one is half beyond the end.
    frames = frames[: len(samples) // HOP_SAMPLES]
    spectrum = np.fft.rfft(frames * _hann(), axis=1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    logs = np.log10(np.maximum(power @ _filters(), FLOOR))
    logs = np.maximum(logs, logs.max() - RANGE)
    return np.ascontiguousarray(((logs + 4.0) / 4.0).T, dtype=np.float32)


@cache
def _hann() -> NDArray[np.float32]:
    """Return the periodic window."""
    import numpy as np

    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES), np.float32)


@cache
def _filters() -> NDArray[np.float32]:
    """Return the weight of each bin of the spectrum in each band: triangles of the same area, shape (201, 80)."""
    import numpy as np

    bins_hz = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / RATE_HZ)
    corners_hz = _to_hz(np.linspace(0.0, _to_mels(RATE_HZ / 2), BANDS + 2))
    low, middle, high = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    rising = (bins_hz[:, np.newaxis] - low) / (middle - low)
    falling = (high - bins_hz[:, np.newaxis]) / (high - middle)
    triangles = np.maximum(np.minimum(rising, falling), 0.0)
    return np.asarray(triangles * 2 / (high - low), np.float32)


def _to_mels(hz: float) -> float:
    import math

    if hz < LINEAR_HZ:
        return hz * LINEAR_MELS / LINEAR_HZ
    return LINEAR_MELS + LOG_STEP * math.log(hz / LINEAR_HZ) / math.log(6.4)


def _to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    above = LINEAR_HZ * np.exp((mels - LINEAR_MELS) * np.log(6.4) / LOG_STEP)
    return np.where(mels < LINEAR_MELS, mels * LINEAR_HZ / LINEAR_MELS, above)
