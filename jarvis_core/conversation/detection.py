"""
Finds where speech begins, pauses and ends in a stream of steps of 32 ms.

Each step comes with the probability that it is speech and with its level. All places are counted in steps of the stream,
never by a clock: sound that arrives faster than it was recorded gives the same places.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

from msgspec import Struct

STEP_MS = 32
HYSTERESIS = 0.15
"""Speech that has begun goes on down to the threshold minus this, as in Silero's own iterator."""
CONFIRM_STEPS = 3
"""Steps of speech, of the last four, that begin it: a click is shorter, and "oui" takes six."""
INTERRUPT_STEPS = 6
"""Steps of speech, of the last seven, that begin it while the assistant is heard: about 200 ms."""
ECHO_LEVEL_DB = -35.0
"""
Below this level (dB of full scale) nothing begins while the assistant is heard.

Our voices have about -20 dB; a microphone hears them from a loudspeaker some 20 dB weaker.
"""
PAUSE_MS = 160
"""Silence after which speech may be over: its words are looked for early, and whether it is over is asked."""


class Thresholds(Struct, frozen=True):
    """What counts as speech and as its end; the names are the vocabulary's of ``server_vad``."""

    threshold: float = 0.5
    """0..1: the probability from which on a step begins speech."""
    silence_ms: int = 500
    """Silence that ends speech."""


class Waits(Struct, frozen=True):
    """How long it has to be silent, by how likely the speech is over as a model says, 0..1."""

    sure: float
    """From this probability on ``short_ms``,"""
    nearly: float
    """from this one on ``medium_ms``,"""
    short_ms: int
    medium_ms: int
    long_ms: int
    """else this."""

    def silence_ms(self, probability: float) -> int:
        """Return the silence that ends speech which is over with *probability*."""
        if probability >= self.sure:
            return self.short_ms
        return self.medium_ms if probability >= self.nearly else self.long_ms


class Phase(Enum):
    """Whether somebody speaks."""

    SILENT = "silent"
    SPEAKING = "speaking"
    PAUSING = "pausing"
    """Silent since ``PAUSE_MS`` or more, and not yet for long enough to be over."""


class Change(Enum):
    """What a step has changed."""

    BEGAN = "began"
    PAUSED = "paused"
    RESUMED = "resumed"
    ENDED = "ended"


class Detector:
    """Follows one stream; ``feed`` it every step."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.phase = Phase.SILENT
        self.position = 0
        """Steps that were fed."""
        self.onset = 0
        """The first step of the last speech."""
        self.last_voiced = 0
        """The step behind the last one of speech."""
        self.wait_ms = thresholds.silence_ms
        """Silence that ends the speech, as far as it is known in this pause."""
        self._recent: deque[bool] = deque(maxlen=INTERRUPT_STEPS + 1)
        """Whether the last steps were speech, while silent."""

    @property
    def spoken_ms(self) -> int:
        """Return how long the last speech was, with its pauses."""
        return (self.last_voiced - self.onset) * STEP_MS

    @property
    def silence_ms(self) -> int:
        """Return how long it has been silent since the last speech."""
        return (self.position - self.last_voiced) * STEP_MS

    def feed(self, probability: float, level_db: float, *, assistant_heard: bool) -> Change | None:
        """
        Take the next step; return what it has changed.

        While *assistant_heard*, speech begins only when it is long and loud enough to be no echo and no noise.
        """
        self.position += 1
        if self.phase is Phase.SILENT:
            return self._feed_silent(probability, level_db, assistant_heard=assistant_heard)
        if probability >= self.thresholds.threshold - HYSTERESIS:
            self.last_voiced = self.position
            self.wait_ms = self.thresholds.silence_ms
            if self.phase is Phase.PAUSING:
                self.phase = Phase.SPEAKING
                return Change.RESUMED
            return None
        if self.silence_ms >= self.wait_ms:
            self.end()
            return Change.ENDED
        if self.phase is Phase.SPEAKING and self.silence_ms >= PAUSE_MS:
            self.phase = Phase.PAUSING
            return Change.PAUSED
        return None

    def end(self) -> None:
        """Have the speech be over here, whatever its silence."""
        self.phase = Phase.SILENT
        self._recent.clear()

    def _feed_silent(self, probability: float, level_db: float, *, assistant_heard: bool) -> Change | None:
        loud_enough = not assistant_heard or level_db >= ECHO_LEVEL_DB
        self._recent.append(probability >= self.thresholds.threshold and loud_enough)
        needed = INTERRUPT_STEPS if assistant_heard else CONFIRM_STEPS
        window = list(self._recent)[-needed - 1 :]
        if not window[-1] or sum(window) < needed:
            return None
        self.phase = Phase.SPEAKING
        self.onset = self.position - len(window) + window.index(True)
        self.last_voiced = self.position
        self.wait_ms = self.thresholds.silence_ms
        self._recent.clear()
        return Change.BEGAN


def steps_of(duration_ms: float) -> int:
    """Return how many whole steps cover *duration_ms*."""
    return math.ceil(duration_ms / STEP_MS)
