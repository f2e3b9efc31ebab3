"""A text that goes round in circles, as small models write it."""

from __future__ import annotations

LEAST_CHARS = 320
"""So much of the same, over and over: a refrain that is sung three times is shorter."""
LEAST_TIMES = 4
SHORTEST_CHARS, LONGEST_CHARS = 12, 400
"""Of what is repeated: a few words to a few sentences. One word again and again may be what was asked for."""
LEAST_LETTERS = 2
"""Different ones in it: lines and rows of noughts are drawn on purpose."""
MARK_CHARS = 24


def repeats(text: str) -> bool:
    """Whether *text* ends in a stretch that has come again and again, and nothing else with it."""
    tail = text[-LEAST_TIMES * LONGEST_CHARS :]
    mark = tail[-MARK_CHARS:]
    end = len(tail)
    for _ in range(LONGEST_CHARS):
        start = tail.rfind(mark, 0, end - 1)
        if start < 0:
            return False
        end = start + len(mark)
        period = len(tail) - end
        span = max(LEAST_CHARS, LEAST_TIMES * period)
        if span > len(tail):
            return False
        if tail[-span:-period] == tail[-span + period :]:
            letters = {letter for letter in tail[-period:] if letter.isalpha()}
            return period >= SHORTEST_CHARS and len(letters) >= LEAST_LETTERS
    return False
