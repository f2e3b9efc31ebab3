"""
Speech at another tempo and the same pitch: waveform similarity overlap-add (Verhelst and Roelands, 1993).

Kokoro's own speed is a wish: no sound of it takes less than a fortieth of a second, so that at speed 2 sentences took from
0.48 to 0.62 of their time, in sounds of equal length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP_S = 0.015
"""Between two windows in what is made, half of a window: a period and a half of the deepest voice."""
SEARCHED_S = 0.008
"""How far around its place the best window is looked for, to either side: a period of most voices."""


def change_tempo(audio: NDArray[np.float32], tempo: float, rate_hz: int) -> NDArray[np.float32]:
    """Return *audio* played *tempo* times as fast: exactly so much shorter or longer."""
    import numpy as np

    length = round(len(audio) / tempo)
    step, reach = round(STEP_S * rate_hz), round(SEARCHED_S * rate_hz)
    if tempo == 1 or length < 2 * step or len(audio) < 2 * step:
        return audio if tempo == 1 else audio[:length].copy()
    window = (0.5 - 0.5 * np.cos(np.pi * np.arange(2 * step) / step)).astype(np.float32)
    around = reach + 3 * step
    padded = np.concatenate([np.zeros(reach + step, np.float32), audio, np.zeros(around, np.float32)])
    made = np.zeros(length + 4 * step, np.float32)
    # Windows begin one step early, so that the first sample has two of them as all others.
    follows: NDArray[np.float32] | None = None
    for number in range(length // step + 2):
        place = reach + round(number * step * tempo)
        if place + reach + 2 * step > len(padded):
            place = len(padded) - reach - 2 * step
        if follows is not None:
            candidates = padded[place - reach : place + reach + step]
            place += int(np.argmax(_likeness(candidates, follows))) - reach
        made[number * step : (number + 2) * step] += padded[place : place + 2 * step] * window
        # What would have come next is what the next window has to be like.
        follows = padded[place + step : place + 2 * step]
        if len(follows) < step:
            break
    return made[step : step + length]


def _likeness(candidates: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how like *wanted* is what begins at each place of *candidates*, whatever its loudness."""
    import numpy as np

    products = np.correlate(candidates, wanted, "valid")
    energies = np.cumsum(np.concatenate([[0.0], candidates.astype(np.float64) ** 2]))
    energies = energies[len(wanted) :] - energies[: len(energies) - len(wanted)]
    likeness: NDArray[np.float32] = (products / np.sqrt(np.maximum(energies, 1e-9))).astype(np.float32)
    return likeness
