"""
Where a sentence can be spoken in two pieces: behind the mark that ends a clause, or before a word that begins one.

French, English and German at once. What is parted elsewhere is heard to be: only where nothing else would come in time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

FEWEST_WORDS = 4
MOST_WORDS = 8
"""Of a first clause, where it can be chosen."""
FARTHEST_WORDS = 14
"""Behind so many words a first clause may still end; then it is the whole sentence."""
WORDS_BEHIND = 2
"""How many words are left at least."""
WORDS_BEHIND_MARK = 4
"""The same of a mark: a shorter rest is spoken with what is before it."""

BEGINNERS = frozenset({
    "parce", "mais", "et", "ou", "car", "donc", "puis", "quand", "lorsque", "lorsqu", "si", "qui", "que", "qu", "dont", "où",
    "pour", "afin", "comme", "pendant", "avant", "après", "depuis", "sans", "avec", "grâce", "tandis", "alors", "puisque",
    "because", "but", "and", "or", "so", "when", "while", "which", "that", "who", "if", "since", "until", "before", "after",
    "where", "with", "although", "though", "than", "unless",
    "und", "oder", "aber", "weil", "denn", "wenn", "dass", "damit", "während", "obwohl", "nachdem", "bevor",
})  # fmt: skip
"""Words before which a clause may end."""

_TOKEN = re.compile(r"\S+")
_UNPARTED = re.compile(r"[|`]|\]\(|://")
"""Tables, code, links and addresses are one."""


class _Kind(IntEnum):
    """How well a sentence can be parted at a place."""

    SPACE = 0
    BEGINNER = 1
    MARK = 2


class _Place(NamedTuple):
    at: int
    """Where the second piece begins."""
    words: int
    """How many the first piece has."""
    kind: _Kind


def first_clause(text: str, *, whole: bool) -> int:
    """
    Return where the first piece of a sentence ends, which is to be spoken soon.

    *text* is the sentence as far as it is there; *whole* is whether that is all. Returns 0 where that is not known yet. Does
    not depend on how much more there is.
    """
    if _UNPARTED.search(text):
        return len(text) if whole else 0
    count = sum(map(_is_word, _TOKEN.findall(text)))
    # Of a word that may still grow nothing is known.
    known = count if whole else count - 1
    places = [place for place in _places(text) if place.words >= FEWEST_WORDS and place.words + WORDS_BEHIND <= known]
    near = [place for place in places if place.words <= MOST_WORDS and place.kind > _Kind.SPACE]
    marked = next((place for place in near if place.kind is _Kind.MARK), None)
    if marked is not None and marked.words + WORDS_BEHIND_MARK <= known:
        return marked.at
    if known >= MOST_WORDS + WORDS_BEHIND or (whole and known > MOST_WORDS):
        if near:
            return (marked or near[-1]).at
        far = (place for place in places if MOST_WORDS < place.words <= FARTHEST_WORDS and place.kind > _Kind.SPACE)
        if found := next(far, None):
            return found.at
    return len(text) if whole else 0


def part(text: str, most_chars: int) -> int:
    """Return where a sentence is parted such that its first piece has about *most_chars* code points; its end where it is short."""
    if len(text.rstrip()) <= 6 * most_chars // 5 or _UNPARTED.search(text):
        return len(text)
    count = sum(map(_is_word, _TOKEN.findall(text)))
    places = [place for place in _places(text) if 2 <= place.words <= count - WORDS_BEHIND]
    short = [place for place in places if place.at <= most_chars]
    longer = [place for place in places if most_chars < place.at <= 3 * most_chars // 2]
    for kind in (_Kind.MARK, _Kind.BEGINNER):
        if found := [place for place in short if place.kind is kind and 3 * place.at >= 2 * most_chars]:
            return found[-1].at
    for kind in (_Kind.MARK, _Kind.BEGINNER):
        if nearest := next((place for place in longer if place.kind is kind), None):
            return nearest.at
    parted = [place for place in short if place.kind > _Kind.SPACE] or short or places
    return parted[-1 if short else 0].at if parted else len(text)


def _places(text: str) -> Iterator[_Place]:
    """Give each place at which a word begins, and how well the text can be parted there."""
    before = None
    words = 0
    for token in _TOKEN.finditer(text):
        if before is not None and words:
            gap = text[before.end() : token.start()]
            if before[0][-1] in ",;:，；：—–" or before[0] == "-":
                yield _Place(token.start(), words, _Kind.MARK)
            elif before[0][-1].isalpha() and token[0][0].isalpha() and not {"\xa0", "\u202f"} & set(gap):
                # Not between two such words: "pour que", "and when".
                begins = _begins_clause(token[0]) and not _begins_clause(before[0])
                yield _Place(token.start(), words, _Kind.BEGINNER if begins else _Kind.SPACE)
        words += _is_word(token[0])
        before = token


def _begins_clause(word: str) -> bool:
    return re.split(r"['’]", word.lower(), maxsplit=1)[0] in BEGINNERS


def _is_word(token: str) -> bool:
    return any(map(str.isalnum, token))
