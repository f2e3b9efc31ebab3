"""
A text that is still being written, as sentences to be spoken one after another; French, English and German at once.

The results joined are the text itself, and they do not depend on the pieces in which it came. Only letters, digits and a
few signs (``markup.SIGNS``) are something to say; what stands between two of them is a gap, and all is decided in gaps, when
the character after one arrives:

- A line break ends a sentence, so a heading and each item of a list is one; ``。！？`` end one too.
- ``.``, ``!``, ``?`` and ``…``, with the quotes and brackets that close after them, end one before white space, unless
  the text goes on: with a lower-case letter ("« Viens ! » dit-il", "Bon... voyons", "etc. and"), or after a comma, colon
  or semicolon. So "iPhone" begins no sentence. A quote or code that opens begins one in any case, save after an ellipsis.
- White space, emoji and what closes stay with the sentence before; quotes, brackets, dashes and bullets that open go
  with the next. Nothing is given that has nothing to say, as long as such a run is shorter than half the limit.
- A full stop after an initial, an abbreviation, a number that begins the sentence ("1. Pommes") or an ordinal of German
  ("Am 3. Oktober") ends nothing. Judged to end one before a capital: "etc.", "Inc.", "p.m.", "av. J.-C.", "So do I.", "Sunset
  Blvd."; and never: "M.", "cf.", "U.S.", "plan B.", "au Blvd.".

The look-ahead is therefore the first character to say after the gap: "Bonjour." waits, with or without a space, a
line break or "«" after it, and "Bonjour. C" gives "Bonjour. ". Whoever knows that nothing follows for a while calls ``end``.
"""

from __future__ import annotations

import re
import unicodedata

from jarvis_core.words.markup import is_spoken

ABBREVIATIONS = frozenset({
    "Dr", "Drs", "Mr", "Mrs", "Ms", "Mx", "Messrs", "Prof", "Pr", "St", "Ste", "Sts", "Mt", "Rev", "Hon", "Gen", "Gén",
    "Col", "Capt", "Lt", "Sgt", "Adm", "Gov", "Sen", "Rep", "MM", "Mme", "Mmes", "Mlle", "Mlles", "Mgr", "bd", "e.g",
    "i.e", "cf", "vs", "v", "viz", "ca", "c.-à-d", "p.ex", "av", "apr", "op.cit", "p. ex", "Ft", "Maj", "Cpl", "Pres",
    "Supt", "fg", "fbg", "chem", "imp", "Sté", "bzw", "d.h", "d. h", "z", "z.B", "z. B", "u.a", "u. a", "i.d.R", "o.ä", "o. ä", "Hr", "Hrn", "Fr", "Frl",
    "Dipl", "inkl", "exkl", "zzgl", "evtl", "ggf", "vgl", "sog", "geb", "gest",
})  # fmt: skip
"""What never ends a sentence, without its last full stop; those in lower case also with a capital."""

BEFORE_NUMBERS = frozenset({
    "p", "pp", "n", "no", "nos", "nº", "vol", "t", "chap", "ch", "art", "fig", "sec", "sect", "éd", "ed", "tél", "tel",
    "réf", "ref", "env", "approx", "al", "op", "max", "min", "jan", "feb", "mar", "jun", "jul", "aug", "sep", "sept",
    "oct", "nov", "dec", "janv", "févr", "avr", "juil", "déc", "nr", "nrn", "s", "kap", "abb", "aufl", "str", "jg",
    "tab", "eq", "ver", "ext", "apt", "appt", "bât", "arr", "dép", "mrz", "okt", "dez", "lun", "ven",
    "thu", "fri",
})  # fmt: skip
"""What does not end a sentence before a digit; most are words that do otherwise ("un vol.", "No.")."""

STREETS = frozenset({"blvd", "boul", "ave", "rd", "ln", "hwy", "sq", "pl", "rte", "allée"})
"""French before a name, where they end nothing, and English behind one, where they may."""
ARTICLES = frozenset({"le", "la", "les", "du", "au", "aux", "un", "ce", "sur", "the", "on", "at"})

ENDING = frozenset({"I", "A.M", "P.M", "av. J.-C", "ap. J.-C", "apr. J.-C"})
"""What looks like initials and may end a sentence."""

_LINE_BREAK = re.compile(r"[\n\r\v\f\x85\u2028\u2029]\s*")
_END = re.compile(r"[.!?…‼⁇⁈⁉]\S*(?=\s)|[。！？｡]")
_OPENING = re.compile(r"(?<=[\s。！？｡」』）])(?:[«‹“‘„「『¿¡(\[{<—–•-]|[\"'`*_~#]++(?!\s))")
_QUOTES = "«‹“‘„「『¿¡\"'`"
_LIST_NUMBER = re.compile(r"[\W_]*(?:\d{1,3}|[IVX]{1,4}|[A-Za-z])")
_WORD = re.compile(r"(?:\b(?:[PpZzDdUuOo]\.\s|(?:av|apr?)\.\s(?=J\.-C$)))?[\w.-]+$")
_GERMAN_ORDINAL = re.compile(
    r"(?<!\bI )\b(?:[Aa]m|[Ii]m|[Vv]om|[Zz]u[mr]|[Bb]eim|[Dd]er|[Dd]e[mn]|[Dd]as|[Aa]b|[Bb]is|[Ss]eit|[Uu]nd|[Oo]der|"
    r"(?:[Ss]ein|[Ii]hr|[Mm]ein|[Uu]nser|[Jj]ed|[Dd]ies)(?:e[mnrs]?)?|[Ee]ine[mnr]|(?:Mon|Diens|Donners|Frei|Sams|Sonn)tag,?|Mittwoch,?)"
    r"\s\d{1,3}$"
)
"""A number behind a word that no other of the languages has there."""
_NAME = re.compile(r"[^\W\d_a-zà-ÿ][\w'’-]*|\d+(?:st|nd|rd|th)")
_BEFORE_STREET = re.compile(r"(?<=\s)(\S+)\s+\S+$")
_LONGEST_WORD_CHARS = 24
"""How far back an abbreviation is looked for."""

_PLACES = (
    (re.compile(r"(?:[;:—]|\s[–-])\s+|[；：]"), 2),
    (re.compile(r",\s+|[，、]"), 2),
    (re.compile(r"[^\S\xa0\u202f]++(?![\s!?:;…»%€])"), 1),
)
"""Where a sentence that is too long is cut, best first; the first two only in the second half of what is allowed."""

_REGIONAL = "".join(map(chr, range(0x1F1E6, 0x1F200)))
"""The letters of which two make a flag."""


class SentenceSplitter:
    """
    Cut one text into sentences while it comes; linear in its length.

    No sentence is longer than ``limit_chars`` code points, its white space included: a longer one is cut after a
    semicolon, colon, dash or comma, else at a space, else anywhere but within a grapheme. ``first_limit_chars`` bounds
    the first one (default: the same), where the first sound matters more than the melody of a long sentence.
    """

    def __init__(self, *, limit_chars: int = 300, first_limit_chars: int | None = None) -> None:
        first = limit_chars if first_limit_chars is None else min(first_limit_chars, limit_chars)
        if first < 1:
            raise ValueError("A sentence has at least one character.")
        self._limit, self._first_limit = limit_chars, first
        self._reset()

    def _reset(self) -> None:
        self._pending = ""
        self._gap = 0
        """Where the gap at the end of the pending text begins; 0 while there is nothing to say before it."""
        self._allowed = self._first_limit

    @property
    def pending(self) -> str:
        """The beginning of the next sentence, as far as it is there."""
        return self._pending

    def feed(self, text: str) -> list[str]:
        """Return the sentences that are certain now; often none."""
        sentences: list[str] = []
        start, gap, seen = 0, self._gap, len(self._pending)
        pending = self._pending + text
        for at in range(seen, len(pending)):
            cut = start
            if is_spoken(pending[at]):
                if start < gap < at and (ends := _find_end(pending[start:gap], pending[gap:at], pending[at])):
                    cut = gap + ends
                gap = at + 1
            if cut == start and at - start >= self._allowed:
                cut = start + _find_place(pending[start : at + 1], gap - 1 - start)
            if cut > start:
                sentences.append(pending[start:cut])
                start, self._allowed = cut, self._limit
        self._pending, self._gap = pending[start:], gap - start if gap > start else 0
        return sentences

    def end(self) -> list[str]:
        """Return what is left, if anything, and be ready for another text."""
        rest = [self._pending] if self._pending else []
        self._reset()
        return rest


def split(text: str, limit_chars: int = 300) -> list[str]:
    """Return the sentences of a whole text; joined they are the text."""
    splitter = SentenceSplitter(limit_chars=limit_chars)
    return splitter.feed(text) + splitter.end()


def _find_end(before: str, gap: str, after: str) -> int:
    """Return where in the gap the sentence before it ends, 0 if it goes on."""
    if line_break := _LINE_BREAK.search(gap):
        return line_break.end()
    end = _END.search(gap)
    if end is None:
        return 0
    opening = _OPENING.search(gap, end.end())
    cut = opening.start() if opening else len(gap)
    tail = gap[end.start() : cut]
    if end[0] in "。！？｡":
        return cut
    if any(mark in tail for mark in ",;:"):
        return 0
    ellipsis = "…" in tail or ".." in tail
    lone_stop = not ellipsis and not {"!", "?"} & set(tail) and not gap[: end.start()].strip("*_`")
    if lone_stop and _is_abbreviated(before, after):
        return 0
    if after.islower():
        return cut if opening and opening[0][0] in _QUOTES and not ellipsis else 0
    return cut


def _is_abbreviated(before: str, after: str) -> bool:
    """Return whether the full stop after ``before`` belongs to its last word."""
    if _LIST_NUMBER.fullmatch(before):
        return True
    tail = before[-_LONGEST_WORD_CHARS:]
    if tail[-1:].isdigit() and after.isalpha() and _GERMAN_ORDINAL.search(tail):
        return True
    found = _WORD.search(tail)
    if found is None:
        return False
    word = " ".join(found[0].lstrip("._-").split())
    lowered = word[:1].lower() + word[1:]
    if word in ENDING:
        return False
    if lowered in STREETS:
        named = _BEFORE_STREET.search(tail)
        return named is None or not _NAME.fullmatch(named[1]) or named[1].lower() in ARTICLES
    if word in ABBREVIATIONS or lowered in ABBREVIATIONS or (after.isdigit() and lowered in BEFORE_NUMBERS):
        return True
    letters = re.split(r"[.-]+", word)
    return letters[-1].isupper() and all(len(letter) == 1 for letter in letters)


def _find_place(text: str, last: int) -> int:
    """Return where to cut a text that is one over the limit, with ``last`` the last character to say in it."""
    limit = len(text) - 1
    first = next((at for at, character in enumerate(text) if is_spoken(character)), last)
    # Both sides of the cut have something to say, if there are two characters to say at all.
    low, high = (first + 1, last) if first < last else (max(1, min(first + 1, limit)), limit)
    for place, part in _PLACES:
        lowest = max(low, limit // 2) if part == 2 else low
        ends = [found.end() for found in place.finditer(text) if lowest <= found.end() <= high]
        if ends:
            return ends[-1]
    return next((cut for cut in range(high, low - 1, -1) if not _is_joined(text, cut)), high)


def _is_joined(text: str, cut: int) -> bool:
    """Return whether the characters on both sides belong to one grapheme; the common cases of Unicode's annex 29."""
    left, right = text[cut - 1], text[cut]
    flags = cut - len(text[:cut].rstrip(_REGIONAL))
    return (
        unicodedata.category(right) in ("Mn", "Mc", "Me")
        or "\u200d" in (left, right)
        or "\U0001f3fb" <= right <= "\U0001f3ff"  # colours of skin
        or "\U000e0020" <= right <= "\U000e007f"  # tags, as in the flag of Scotland
        or (right in _REGIONAL and flags % 2 == 1)
        or ("\ud800" <= left <= "\udbff" and "\udc00" <= right <= "\udfff")
        or (left == "\r" and right == "\n")
    )
