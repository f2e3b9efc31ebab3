"""Many channels to one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jarvis_core.codec.clip import Samples

OPPOSITE = -0.5
"""Correlation below which a channel is taken for another one with its sign turned: a microphone wired the other way."""
SETTLED = -0.3
"""Above which one that was turned is turned back."""


class Mixer:
    """
    Makes the mean of all channels, piece by piece.

    Of a channel that has the opposite sign of the loudest one, nothing would be left in the mean of both: it is turned.
    What was heard so far counts, so that no sign changes with every breath.
    """

    def __init__(self, channels: int) -> None:
        self._signs = np.ones(channels, np.float32)
        self._products = np.zeros((channels, channels))
        """Of each channel with each, over all that was mixed."""

    def mix(self, rows: npt.NDArray[np.float32]) -> Samples:
        """Return the mean of *rows*, the next piece of each channel."""
        if len(rows) == 1:
            return np.ascontiguousarray(rows[0])
        # In a row each: what takes turns in memory is three times as slow to work on.
        rows = np.ascontiguousarray(rows)
        self._turn(rows)
        scale = np.float32(1 / len(rows))
        mono: Samples = rows[0] * (self._signs[0] * scale)
        for sign, row in zip(self._signs[1:], rows[1:], strict=True):
            mono += row * (sign * scale)
        return mono

    def _turn(self, rows: npt.NDArray[np.float32]) -> None:
        self._products += rows @ rows.T
        energies = np.diagonal(self._products)
        loudest = int(np.argmax(energies))
        scales = np.sqrt(energies * energies[loudest])
        correlations = np.divide(self._products[loudest], scales, out=np.zeros_like(scales), where=scales > 0)
        turned = np.where(self._signs * self._signs[loudest] < 0, correlations < SETTLED, correlations < OPPOSITE)
        self._signs = np.where(turned, -self._signs[loudest], self._signs[loudest]).astype(np.float32)
