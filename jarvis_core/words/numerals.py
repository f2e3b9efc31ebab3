"""
Numbers as they are said, in French and in English.

The tables are ours, after libraries were weighed: num2words 0.5.14 (LGPL) says "deux centsième", and takes 0.1 s to import
its sixty languages and 0.4 ms for a number on the event loop; lectura-formules is AGPL; ICU's rules come in 15 MB and know
no French ordinals. Cardinals and ordinals of 160,000 numbers up to 10¹⁵ were compared with num2words: the same, but for that.
"""

from __future__ import annotations

DIGITS_LIMIT = 12
"""Of what is said as one number; a longer row of digits is a code, and said one by one,"""
ROUND_DIGITS_LIMIT = 15
"""unless it ends in thousands."""

FRENCH_DIGITS = ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf")
ENGLISH_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FRENCH_SMALL = (*FRENCH_DIGITS, "dix", "onze", "douze", "treize", "quatorze", "quinze", "seize")
_FRENCH_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante"}
_FRENCH_LARGE = ((10**12, "billion"), (10**9, "milliard"), (10**6, "million"))
_ENGLISH_SMALL = (
    *ENGLISH_DIGITS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_ENGLISH_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ENGLISH_LARGE = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (10**3, "thousand"))
_ENGLISH_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1_000}
_ROMAN_PAIRS = (
    (1_000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
    (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def french_cardinal(number: int, *, feminine: bool = False) -> str:
    """Return a number below 10¹⁵: ``vingt et un``, before a feminine noun ``vingt et une``."""
    if number < 0:
        return "moins " + french_cardinal(-number, feminine=feminine)
    parts: list[str] = []
    for size, name in _FRENCH_LARGE:
        count, number = divmod(number, size)
        if count:
            parts.append(f"{_french_below_1000(count)} {name}{'s' if count > 1 else ''}")
    thousands, number = divmod(number, 1_000)
    if thousands:
        parts.append("mille" if thousands == 1 else f"{_french_below_1000(thousands, before_mille=True)} mille")
    if number or not parts:
        parts.append(_french_below_1000(number, feminine=feminine))
    return " ".join(parts)


def _french_below_1000(number: int, *, feminine: bool = False, before_mille: bool = False) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _french_below_100(rest, feminine=feminine, before_mille=before_mille)
    head = "cent" if hundreds == 1 else f"{_FRENCH_SMALL[hundreds]} cent"
    if rest:
        return f"{head} {_french_below_100(rest, feminine=feminine, before_mille=before_mille)}"
    return head if hundreds == 1 or before_mille else head + "s"


def _french_below_100(number: int, *, feminine: bool, before_mille: bool) -> str:
    if number == 1:
        return "une" if feminine else "un"
    if number < 17:
        return _FRENCH_SMALL[number]
    if number < 20:
        return f"dix-{_FRENCH_SMALL[number - 10]}"
    if number == 80:
        return "quatre-vingt" if before_mille else "quatre-vingts"
    if number > 80:
        return f"quatre-vingt-{_french_below_100(number - 80, feminine=feminine, before_mille=before_mille)}"
    tens, unit = (6, number - 60) if number >= 60 else divmod(number, 10)
    if not unit:
        return _FRENCH_TENS[tens]
    said = _french_below_100(unit, feminine=feminine, before_mille=before_mille)
    return f"{_FRENCH_TENS[tens]} et {said}" if unit in (1, 11) else f"{_FRENCH_TENS[tens]}-{said}"


def french_ordinal(number: int, *, feminine: bool = False) -> str:
    """Return ``premier``, ``première``, ``vingt et unième``, ``deux centième``; *number* is at least 1."""
    if number == 1:
        return "première" if feminine else "premier"
    said = french_cardinal(number)
    if said.endswith(("vingts", "cents", "lions", "liards")):
        said = said[:-1]
    if said.endswith("cinq"):
        return said + "uième"
    if said.endswith("neuf"):
        return said[:-1] + "vième"
    return said.removesuffix("e") + "ième"


def french_number(written: str, *, feminine: bool = False, unit: bool = False) -> str:
    """
    Return a number that is written in digits, with a decimal comma or point.

    The comma is said ``virgule``; a point is too where a *unit* follows, else it may be a version's and is ``point``.
    """
    whole, _, decimals = written.replace(".", ",").partition(",")
    said = _french_whole(whole, feminine=feminine and not decimals)
    if not decimals:
        return said
    mark = "virgule" if unit or "." not in written else "point"
    zeros = len(decimals) - len(decimals.lstrip("0"))
    if len(decimals) > 3 or zeros == len(decimals):
        return f"{said} {mark} {spell(decimals, FRENCH_DIGITS)}"
    rest = french_cardinal(int(decimals))
    return " ".join([said, mark, *["zéro"] * zeros, rest])


def _french_whole(digits: str, *, feminine: bool) -> str:
    if _is_code(digits):
        return spell(digits, FRENCH_DIGITS)
    return french_cardinal(int(digits), feminine=feminine)


def english_cardinal(number: int) -> str:
    """Return a number below 10¹⁵: ``one hundred twenty-three``."""
    if number < 0:
        return "minus " + english_cardinal(-number)
    parts: list[str] = []
    for size, name in _ENGLISH_LARGE:
        count, number = divmod(number, size)
        if count:
            parts.append(f"{english_cardinal(count)} {name}")
    hundreds, rest = divmod(number, 100)
    if hundreds:
        parts.append(f"{_ENGLISH_SMALL[hundreds]} hundred")
    if rest or not parts:
        tens, unit = divmod(rest, 10)
        if rest < 20:
            parts.append(_ENGLISH_SMALL[rest])
        else:
            parts.append(f"{_ENGLISH_TENS[tens]}-{_ENGLISH_SMALL[unit]}" if unit else _ENGLISH_TENS[tens])
    return " ".join(parts)


def english_ordinal(number: int) -> str:
    """Return ``first``, ``twenty-first``, ``one hundredth``."""
    head, mark, last = _split_last(english_cardinal(number))
    if last in _ENGLISH_ORDINALS:
        last = _ENGLISH_ORDINALS[last]
    else:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return head + mark + last


def _split_last(said: str) -> tuple[str, str, str]:
    at = max(said.rfind(" "), said.rfind("-"))
    return said[: max(at, 0)], said[at : at + 1] if at >= 0 else "", said[at + 1 :]


def english_year(year: int) -> str:
    """Return a year: ``nineteen eighty-four``, ``nineteen oh five``, ``two thousand five``."""
    century, rest = divmod(year, 100)
    if not 11 <= century <= 99 or (century % 10 == 0 and rest < 10):
        return english_cardinal(year)
    if not rest:
        return f"{english_cardinal(century)} hundred"
    return f"{english_cardinal(century)} {'oh ' if rest < 10 else ''}{english_cardinal(rest)}"


def english_number(written: str) -> str:
    """Return a number that is written in digits, with a decimal point."""
    whole, _, decimals = written.partition(".")
    said = spell(whole, ENGLISH_DIGITS) if _is_code(whole) else english_cardinal(int(whole))
    return f"{said} point {spell(decimals, ENGLISH_DIGITS)}" if decimals else said


def _is_code(digits: str) -> bool:
    """Whether *digits* are no quantity: they begin with a zero, or are more than anybody counts."""
    if digits.startswith("0"):
        return len(digits) > 1
    return len(digits) > DIGITS_LIMIT and (len(digits) > ROUND_DIGITS_LIMIT or not digits.endswith("000"))


def spell(digits: str, names: tuple[str, ...]) -> str:
    """Return *digits* one by one."""
    return " ".join(names[int(digit)] for digit in digits)


def roman(text: str) -> int:
    """Return the value of a Roman numeral in capitals; 0 for what is none."""
    value = sum(_ROMAN.get(letter, 0) for letter in text)
    for pair in ("IV", "IX", "XL", "XC", "CD", "CM"):
        if pair in text:
            value -= 2 * _ROMAN[pair[0]]
    return value if text and _to_roman(value) == text else 0


def _to_roman(value: int) -> str:
    written = ""
    for size, letters in _ROMAN_PAIRS:
        count, value = divmod(value, size)
        written += letters * min(count, 4)
    return written
