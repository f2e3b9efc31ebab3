"""The beginning of an answer that may be thinking of which only the end is told."""

from __future__ import annotations

import pytest

from jarvis_core.services.answers.untold_thinking import UntoldThinking


def read(*pieces: str, cut: bool = False) -> tuple[str, int]:
    """Return what is to be read as the answer of *pieces*, and how much of them was thinking."""
    untold = UntoldThinking()
    for number, piece in enumerate(pieces):
        rest = untold.feed(piece)
        if rest is not None:
            return rest + "".join(pieces[number + 1 :]), untold.chars
    return untold.end(cut=cut), untold.chars


@pytest.mark.parametrize(
    ("text", "answer", "thinking"),
    [
        ("Okay, hm.</think>Oui.", "Oui.", 9),
        ("hm `</think>` hm</think>Oui.", "Oui.", 16),
        ("x" * 500 + "</think>Oui.", "Oui.", 500),
        ("Oui.", "Oui.", 0),
        ("<think>hm</think>Oui.", "<think>hm</think>Oui.", 0),
        ("\n<thinking>hm", "\n<thinking>hm", 0),
        ("<|channel|>analysis", "<|channel|>analysis", 0),
        ("<b>Oui</b>", "<b>Oui</b>", 0),
        ("", "", 0),
        ("hm</think>", "", 2),
    ],
)
def test_beginnings(text: str, answer: str, thinking: int) -> None:
    """What comes behind the end of thinking is the answer, else the whole is, however it is cut."""
    assert read(text) == (answer, thinking)
    assert read(*text) == (answer, thinking)
    for place in range(len(text)):
        assert read(text[:place], text[place:]) == (answer, thinking)


def test_cut() -> None:
    """What is cut off before the end of thinking is thinking."""
    assert read("Okay, ", "hm", cut=True) == ("", 8)
    assert read("Okay, ", "hm</think", cut=True) == ("", 15)
    assert read("Okay, ", "hm</think>Oui", cut=True) == ("Oui", 8)
