"""
What was said of an answer, and how much of it was heard.

Sound leaves here faster than it is heard. For each sentence that was sent as sound the ledger holds where its text ends and
how long its sound is; so a place in the sound is a place in the text, at the end of a word.
"""

from __future__ import annotations

import re
from itertools import accumulate

from msgspec import Struct

_word = re.compile(r"\S+\s*")

PAUSES = {",": 3.0, ";": 4.0, ":": 4.0, ".": 6.0, "!": 6.0, "?": 6.0, "…": 6.0}
"""How long a pause is in letters: voices rest at these signs."""
DIGIT_LETTERS = 4.0
"""How long a digit is in letters."""


class Spoken(Struct, array_like=True):
    """A sentence that was sent as sound."""

    text: str
    end_chars: int
    """Where it ends in the answer's text, in code points."""
    duration_ms: float
    sent_ms: float = 0.0
    """How much of its sound was sent."""


class Ledger:
    """The sentences of one answer in the order in which they were sent."""

    def __init__(self, spoken: list[Spoken] | None = None) -> None:
        self.spoken = spoken or []
        self.answer_at = 0
        """Code points before the answer: what was given, and then taken back."""

    def begin(self, text: str, end_chars: int, duration_ms: float, sent_ms: float = 0.0) -> None:
        """Add a sentence of which sound is sent next; one that is sent again, to a client that came back, replaces the first."""
        while self.spoken and self.spoken[-1].end_chars >= end_chars:
            self.spoken.pop()
        self.spoken.append(Spoken(text, end_chars, duration_ms, sent_ms))

    def send(self, duration_ms: float) -> None:
        """Add sound of the last sentence that was sent."""
        last = self.spoken[-1]
        last.sent_ms = min(last.duration_ms, last.sent_ms + duration_ms)

    @property
    def sent_ms(self) -> float:
        """Return how much sound was sent."""
        return sum(one.sent_ms for one in self.spoken)

    def heard_chars(self, heard_ms: float) -> int:
        """
        Return how many code points of the answer were heard with the first *heard_ms* of its sound, to the end of a word.

        Sentences without sound (a table's rule) count with the one before them. All is heard with all of the sound.
        """
        return max(0, self._end_chars(heard_ms) - self.answer_at)

    def _end_chars(self, heard_ms: float) -> int:
        if heard_ms <= 0:
            return 0
        left_ms = heard_ms
        end_chars = 0
        for one in self.spoken:
            in_it_ms = min(left_ms, one.sent_ms)
            if in_it_ms < one.duration_ms - 1:
                begin = one.end_chars - len(one.text)
                within = _chars_within(one.text, in_it_ms / one.duration_ms)
                return begin + within if within else end_chars
            left_ms -= in_it_ms
            end_chars = one.end_chars
            if one is not self.spoken[-1]:
                # What is between two sentences is heard with the second.
                end_chars -= len(one.text) - len(one.text.rstrip())
        return end_chars


def _chars_within(text: str, share: float) -> int:
    """Return how many code points of *text* are said in the first *share* of its sound, whole words only."""
    words = [found.group() for found in _word.finditer(text)]
    if not words:
        return 0
    ends = list(accumulate(_letters(word) for word in words))
    lead = len(text) - sum(map(len, words))
    said = sum(1 for end in ends if end <= share * ends[-1])
    return lead + len("".join(words[:said]).rstrip()) if said else 0


def _letters(word: str) -> float:
    """Return how long a word is, in letters."""
    return 1.0 + sum(
        PAUSES.get(sign, 0.0) if not sign.isalnum() else DIGIT_LETTERS if sign.isdigit() else 1.0 for sign in word
    )
