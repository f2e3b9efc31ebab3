"""Numbers: how they are said in French and in English."""

from __future__ import annotations

import pytest

from jarvis_core.words.numerals import (
    english_cardinal,
    english_number,
    english_ordinal,
    english_year,
    french_cardinal,
    french_number,
    french_ordinal,
    roman,
)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zéro"),
        (16, "seize"),
        (17, "dix-sept"),
        (21, "vingt et un"),
        (22, "vingt-deux"),
        (60, "soixante"),
        (70, "soixante-dix"),
        (71, "soixante et onze"),
        (77, "soixante-dix-sept"),
        (80, "quatre-vingts"),
        (81, "quatre-vingt-un"),
        (91, "quatre-vingt-onze"),
        (99, "quatre-vingt-dix-neuf"),
        (100, "cent"),
        (101, "cent un"),
        (180, "cent quatre-vingts"),
        (200, "deux cents"),
        (201, "deux cent un"),
        (1_000, "mille"),
        (1_984, "mille neuf cent quatre-vingt-quatre"),
        (80_000, "quatre-vingt mille"),
        (200_000, "deux cent mille"),
        (1_000_000, "un million"),
        (80_000_000, "quatre-vingts millions"),
        (2_000_000_001, "deux milliards un"),
        (-5, "moins cinq"),
    ],
)
def test_french(number: int, said: str) -> None:
    """A number is written as the rules of 1835 have it: with hyphens below a hundred, and an s only at the end."""
    assert french_cardinal(number) == said


@pytest.mark.parametrize(
    ("number", "said"), [(1, "une"), (11, "onze"), (21, "vingt et une"), (81, "quatre-vingt-une"), (101, "cent une")]
)
def test_french_feminine(number: int, said: str) -> None:
    """Before a feminine noun a number that ends in un ends in une."""
    assert french_cardinal(number, feminine=True) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "premier"),
        (2, "deuxième"),
        (4, "quatrième"),
        (5, "cinquième"),
        (9, "neuvième"),
        (21, "vingt et unième"),
        (80, "quatre-vingtième"),
        (100, "centième"),
        (200, "deux centième"),
        (1_000, "millième"),
        (2_000_000, "deux millionième"),
    ],
)
def test_french_ordinals(number: int, said: str) -> None:
    """An ordinal is the number and -ième, without the s of vingts, cents and millions."""
    assert french_ordinal(number) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("3,14", "trois virgule quatorze"),
        ("0,05", "zéro virgule zéro cinq"),
        ("2,50", "deux virgule cinquante"),
        ("1,0", "un virgule zéro"),
        ("3,14159", "trois virgule un quatre un cinq neuf"),
        ("3.11", "trois point onze"),
        ("007", "zéro zéro sept"),
        ("123456789012", "cent vingt-trois milliards quatre cent cinquante-six millions sept cent quatre-vingt-neuf mille douze"),
        ("1234567890123", "un deux trois quatre cinq six sept huit neuf zéro un deux trois"),
        ("9" * 5_000, " ".join(["neuf"] * 5_000)),
    ],
)  # fmt: skip
def test_french_numbers(written: str, said: str) -> None:
    """Decimals are said as a number, or one by one where they are many; so are codes."""
    assert french_number(written) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (21, "twenty-one"),
        (100, "one hundred"),
        (342, "three hundred forty-two"),
        (1_001, "one thousand one"),
        (1_234_567, "one million two hundred thirty-four thousand five hundred sixty-seven"),
        (2_000_000_000, "two billion"),
        (-7, "minus seven"),
    ],
)
def test_english(number: int, said: str) -> None:
    """A number is said without "and"."""
    assert english_cardinal(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "first"), (2, "second"), (3, "third"), (5, "fifth"), (8, "eighth"), (9, "ninth"), (12, "twelfth"),
        (20, "twentieth"), (21, "twenty-first"), (100, "one hundredth"), (112, "one hundred twelfth"),
    ],
)  # fmt: skip
def test_english_ordinals(number: int, said: str) -> None:
    """The last word of an ordinal is one."""
    assert english_ordinal(number) == said


@pytest.mark.parametrize(
    ("year", "said"),
    [
        (1984, "nineteen eighty-four"), (1905, "nineteen oh five"), (1900, "nineteen hundred"), (2000, "two thousand"),
        (2005, "two thousand five"), (2010, "twenty ten"), (2024, "twenty twenty-four"), (1066, "one thousand sixty-six"),
        (476, "four hundred seventy-six"),
    ],
)  # fmt: skip
def test_years(year: int, said: str) -> None:
    """A year is said in two halves, but for those of the first decade of a millennium."""
    assert english_year(year) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("3.14", "three point one four"),
        ("0.05", "zero point zero five"),
        ("007", "zero zero seven"),
        ("42", "forty-two"),
    ],
)
def test_english_numbers(written: str, said: str) -> None:
    """Decimals and codes are said one by one."""
    assert english_number(written) == said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("XIV", 14),
        ("II", 2),
        ("LVIII", 58),
        ("MCMLXXXIV", 1984),
        ("IIII", 0),
        ("VX", 0),
        ("IM", 0),
        ("", 0),
        ("CIVIC", 0),
        ("A", 0),
    ],
)
def test_roman(text: str, value: int) -> None:
    """Only what a Roman could have carved is a numeral."""
    assert roman(text) == value
