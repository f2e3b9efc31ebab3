"""What may stand in a title."""

from __future__ import annotations

import pytest

from jarvis_core.words.titles import clean_title, is_title

GOOD = ["Recettes", "à  deux espaces", "👨‍👩‍👧", "שלום\u200f!", "نامه\u200cها", "😀" * 3]
BAD = {
    "une\nligne": "une ligne",
    "sonne\x07": "sonne",
    "\x1b[31mrouge": "[31mrouge",
    "c1\x9b31m": "c131m",
    "fin\u2028de ligne": "fin de ligne",
    "facture\u202efdp.exe": "facturefdp.exe",
    "a\u2066b\u2069": "ab",
    "\x7f": "…",
    "a \x00 b": "a b",
}


@pytest.mark.parametrize("title", GOOD)
def test_letters_marks_and_joiners(title: str) -> None:
    """Whatever words are written with is a title, and stays as it is."""
    assert is_title(title)
    assert clean_title(title) == title


@pytest.mark.parametrize(("title", "cleaned"), BAD.items(), ids=map(ascii, BAD))
def test_what_acts_on_the_line(title: str, cleaned: str) -> None:
    """Controls, line ends and overrides of the direction are no title's, and are left out of those that have them."""
    assert not is_title(title)
    assert clean_title(title) == cleaned
    assert is_title(cleaned)
