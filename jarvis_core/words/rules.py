"""Rules by which written text becomes spoken: patterns, and what is said for what they find, one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str] | str]

RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
"""Powers, as they are typed."""
FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
FILES = "html?|pdf|py|json|txt|md|toml|ya?ml|csv|zip|jpe?g|png|mp3|wav|js|css|sh|exe|local|lan|home"
"""What ends a file's name, or a name in the house; a point before it is said."""
DOMAINS = "com|org|net|fr|be|ch|ca|eu|de|uk|io|ai|dev|app|info|gouv|edu|gov|tv|me|us"
NUMERIC = re.compile(f"[\\d⁰¹²³⁴⁵⁶⁷⁸⁹{''.join(FRACTIONS)}]")
DOTTED_NAME = re.compile(rf"(?<![\w.])(?:[\w-]{{1,63}}\.)+(?:{DOMAINS}|{FILES})\b(?!\.\w)")
MAIL_NAME = re.compile(r"(?<![\w@.+-])(\w[\w.+-]*+)@(?=[\w-]+\.)")
ROMAN_OR_DIGIT = re.compile(r"\d|[IVX]+\b")
IP_ADDRESS = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{1,3}){3})(?![\d.]*\d)")
"""An address in the internet: four numbers."""
VERSION = re.compile(r"(?<![\d.,\w])[vV]?\d++(?:\.\d++){2,}")


def apply(rules: Iterable[Rule], text: str) -> str:
    """Return *text* after all *rules*."""
    for pattern, said in rules:
        text = pattern.sub(said, text)
    return text


def any_of(words: Iterable[str]) -> str:
    """Return the pattern of any of *words*, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def form_of(name: str, *, many: bool) -> str:
    """Return the singular or the plural of what is counted, written ``mètre* carré*`` or ``foot|feet``."""
    one, bar, more = name.lstrip("+").partition("|")
    if bar:
        return more if many else one
    return one.replace("*", "s" if many else "")


def spaced(found: re.Match[str], said: str) -> str:
    """Return what is said for *found*, apart from the letters on both sides."""
    text, start, end = found.string, *found.span()
    before = " " if start and text[start - 1].isalpha() else ""
    after = " " if end < len(text) and text[end].isalpha() else ""
    return f"{before}{said}{after}"
