"""Languages: known by their codes."""

from __future__ import annotations

import pytest

from jarvis_core.words.languages import ENGLISH_NAMES, LANGUAGE_NAMES, OTHER_CODES, language_code, language_of


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("fr", "fr"),
        ("fr-FR", "fr"),
        ("fr_FR", "fr"),
        ("EN", "en"),
        ("zh-Hans-CN", "zh"),
        ("auto", None),
        ("AUTO", None),
        ("und", None),
        ("mul-Latn", None),
        ("nb", "no"),
        ("nb-NO", "no"),
        ("nob", "no"),
        ("nn", "nn"),
        ("nno", "nn"),
        ("iw", "he"),
        ("iw_IL", "he"),
        ("heb", "he"),
        ("in", "id"),
        ("ji", "yi"),
        ("jv", "jw"),
        ("fra", "fr"),
        ("fre", "fr"),
        ("FRA-CA", "fr"),
        ("eng", "en"),
        ("deu", "de"),
        ("ger", "de"),
        ("nld", "nl"),
        ("dut", "nl"),
        ("zho", "zh"),
        ("chi", "zh"),
        ("cmn-Hans", "zh"),
        ("por", "pt"),
        ("fil", "tl"),
        ("haw", "haw"),
        ("yue", "yue"),
        ("french", "fr"),
        ("English", "en"),
        (" fr ", "fr"),
        ("xx", "xx"),
        ("klingon", "klingon"),
        ("", ""),
    ],
)
def test_language_code(language: str, code: str | None) -> None:
    """A language is known by the code in front; "auto" is none."""
    assert language_code(language) == code


def test_no_code_is_another_ones() -> None:
    """Each other code stands for one of two letters that stands for itself, and every language that has a name is among them."""
    assert all(language_code(code) == code and len(code) == 2 for code in OTHER_CODES.values())
    assert set(LANGUAGE_NAMES) <= set(OTHER_CODES.values())
    assert set(ENGLISH_NAMES.values()) == set(LANGUAGE_NAMES)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Quelle heure est-il ?", "fr"),
        ("What time is it?", "en"),
        ("Allume la lumière", "fr"),
        ("Fifteen plus twenty-seven equals forty-two.", "en"),
        ("QU'EST-CE QUE C'EST ?", "fr"),
        ("I'd like to know who wrote this", "en"),
        ("Wie heißt du?", "de"),
        ("¿Qué hora es?", "es"),
        ("Che ore sono adesso?", "it"),
        ("Paul", None),
        ("", None),
        ("12:30", None),
        ("東京", None),
    ],
)
def test_language_of_words(text: str, language: str | None) -> None:
    """The most common words of a language tell it; without any nothing is found."""
    assert language_of(text, ("fr", "en", "de", "es", "it")) == language


def test_only_languages_of_the_house() -> None:
    """A text is in none of another language, also where there is no list of words for it."""
    assert language_of("What time is it?", ("fr",)) is None
    assert language_of("What time is it?", ("ja", "en")) == "en"
    assert language_of("What time is it?", ()) is None
