"""Texts that go round in circles are known, and what is said twice or three times is not one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jarvis_core.words.repetition import LEAST_CHARS, LONGEST_CHARS, SHORTEST_CHARS, repeats

SENTENCE = "Je suis à la maison, et je ne peux pas vous aider avec cela pour le moment. "
PROSE = "".join(
    f"Sentence {number} is about something else, such as the number {number * number}. " for number in range(60)
)


@pytest.mark.parametrize("phrase", [SENTENCE, "1. Pain\n2. Lait\n", "x" * 150 + "y" * 150 + " "])
@pytest.mark.parametrize("before", ["", PROSE])
def test_loops(phrase: str, before: str) -> None:
    """A phrase again and again is a loop, whatever its length, whatever went before, and wherever in it the text ends."""
    text = before + phrase * (4 + (LEAST_CHARS // len(phrase)) + 1)
    for cut in (0, 1, min(7, len(phrase))):
        assert repeats(text[: len(text) - cut])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Non.",
        PROSE,
        SENTENCE * 3,
        PROSE + "We wish you a merry Christmas, " * 3 + "and a happy New Year!",
        "|---|---|" * 100,
        "0, " * 300,
        "ha " * 300,
        "\n".join(f"{number} × 7 = {number * 7}" for number in range(1, 60)),
        SENTENCE * 6 + "But then something else happened, and nobody had expected it.",
        "y".join("x" * length for length in range(40)),
    ],
)
def test_no_loops(text: str) -> None:
    """Refrains, tables, rules and rows of noughts are none, nor is what went round once and has gone on."""
    assert not repeats(text)


@given(st.text("ab ", min_size=SHORTEST_CHARS, max_size=LONGEST_CHARS - 2), st.text(max_size=30))
def test_any_phrase(phrase: str, before: str) -> None:
    """Whatever comes back often enough is a loop."""
    phrase = f"{phrase}c"  # so that there is no shorter one in it
    if len({letter for letter in phrase if letter.isalpha()}) >= 2:
        assert repeats(before + phrase * (5 + LEAST_CHARS // len(phrase)))
