"""
Takes the times of a turn, each once; the receipt shows the same numbers wherever it is shown.

They are of this process' clock: on another worker, or read from the store, a receipt only shows what was taken before.
"""

from __future__ import annotations

import time

from jarvis_core.metrics import Histogram
from jarvis_core.models import Receipt


class TurnTimer:
    """Takes the times of one turn that began at *began_s* of ``time.perf_counter``; without it none is taken."""

    __slots__ = ("_began_s", "receipt", "unstored")

    def __init__(self, began_s: float | None = None) -> None:
        self._began_s = began_s
        self.receipt = Receipt()
        self.unstored = False
        """Whether the receipt has changed since it was given to be stored."""

    def note_words(self) -> None:
        """Take note that the words of the speech are known."""
        self.receipt.transcription_ms = self._elapsed_ms()

    def note_first_token(self) -> None:
        """Take note of the model's first text."""
        self.receipt.first_token_ms = self._elapsed_ms()

    def note_first_sentence(self) -> None:
        """Take note that the voice has something to say; only the first time counts."""
        if self.receipt.first_sentence_ms is None:
            self.receipt.first_sentence_ms = self._elapsed_ms()

    def note_first_sound(self) -> bool:
        """Take note that sound of the answer was sent; return whether it is the first."""
        receipt = self.receipt
        if self._began_s is None or receipt.voice_ms is not None:
            return False
        receipt.voice_ms = self._elapsed_ms()
        if receipt.end_of_turn_ms is not None and receipt.voice_ms is not None:
            receipt.voice_to_voice_ms = round(receipt.end_of_turn_ms + receipt.voice_ms, 1)
        self.unstored = True
        return True

    def note_end(self) -> None:
        """Take note that the model has said all; what the receipt has now is stored with the turn's end."""
        self.receipt.total_ms = self._elapsed_ms()
        self.unstored = False

    def _elapsed_ms(self) -> float | None:
        return None if self._began_s is None else elapsed_ms(self._began_s)


def elapsed_ms(since_s: float) -> float:
    """Return the milliseconds since *since_s* of ``time.perf_counter``, to a tenth."""
    return round(1_000 * (time.perf_counter() - since_s), 1)


def server_timing(receipt: Receipt) -> bytes:
    """Return what an answer over HTTP tells of *receipt* in its head (https://www.w3.org/TR/server-timing/)."""
    parts = (("recall", receipt.recall_ms), ("first_token", receipt.first_token_ms), ("total", receipt.total_ms))
    return ", ".join([f"{part};dur={duration_ms}" for part, duration_ms in parts if duration_ms is not None]).encode()


def observe_answer(histogram: Histogram, receipt: Receipt) -> None:
    """Count the times of an answer whose text is whole."""
    if receipt.first_token_ms is None:
        return
    histogram.observe("first_token", receipt.first_token_ms / 1_000)
    for part, duration_ms in (
        ("end_of_turn", receipt.end_of_turn_ms),
        ("transcription", receipt.transcription_ms),
        ("recall", receipt.recall_ms),
        ("total", receipt.total_ms),
    ):
        if duration_ms is not None:
            histogram.observe(part, duration_ms / 1_000)


def observe_voice(histogram: Histogram, receipt: Receipt) -> None:
    """Count the times of an answer whose first sound was sent."""
    for part, duration_ms in (
        ("first_sentence", receipt.first_sentence_ms),
        ("voice", receipt.voice_ms),
        ("voice_to_voice", receipt.voice_to_voice_ms),
    ):
        if duration_ms is not None:
            histogram.observe(part, duration_ms / 1_000)
