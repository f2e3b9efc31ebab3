"""
Normalises words so that spellings of one word in French or English become one term.

One set of rules serves both languages, because neither an entry nor a question names its language, and people mix them.
A rule that changes a word of the other language does no harm, because entries and questions are changed alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import compress, pairwise
from typing import Literal

WORD_LIMIT_CHARS = 64
"""Length of a term; longer ones are cut: no person types them."""
JOINER = "\u034f"
"""COMBINING GRAPHEME JOINER: shows nothing, and ends a run of marks."""
LETTERS = str.maketrans(
    {"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ħ": "h", "ı": "i", "’": "'", "ʼ": "'"}
    | {JOINER: ""}
)
"""Letters that Unicode does not decompose."""

STOP_WORDS = frozenset({
    "a", "about", "after", "again", "ai", "aie", "aient", "ait", "all", "alors", "also", "am", "any", "apres",
    "après", "are", "aren", "as", "at", "au", "aucun", "aujourd", "aussi", "autre", "aux", "avaient", "avais",
    "avait", "avant", "avec", "avez", "aviez", "avoir", "avons", "ayant", "be", "because", "been", "before",
    "being", "both", "by", "c", "ca", "can", "ce", "ceci", "cela", "celle", "celles", "celui", "ces", "cet",
    "cette", "ceux", "chaque", "ci", "comme", "comment", "could", "couldn", "d", "dans", "de", "des", "did", "didn",
    "do", "does", "doesn", "doing", "don", "donc", "dont", "du", "during", "dès", "each", "elle", "elles", "en",
    "encore", "entre", "es", "est", "et", "etaient", "etais", "etait", "etant", "etc", "etes", "etre", "eu", "eux",
    "fait", "faites", "few", "for", "from", "further", "had", "hadn", "has", "hasn", "have", "haven", "having",
    "he", "her", "here", "hers", "herself", "him", "himself", "his", "how", "hui", "i", "if", "il", "ils", "in",
    "into", "is", "isn", "it", "its", "itself", "j", "je", "just", "l", "la", "laquelle", "le", "lequel", "les",
    "lesquelles", "lesquels", "let", "leur", "leurs", "ll", "lui", "là", "m", "ma", "mais", "me", "meme", "memes",
    "mes", "mien", "mienne", "moi", "mon", "more", "most", "my", "myself", "même", "mêmes", "n", "ne", "no", "nor",
    "nos", "not", "notre", "nous", "now", "of", "off", "on", "once", "only", "ont", "other", "ou", "our", "ours",
    "ourselves", "out", "over", "own", "où", "par", "parce", "pas", "peu", "peut", "please", "plus", "pourquoi",
    "puis", "qu", "quand", "que", "quel", "quelle", "quelles", "quels", "qui", "quoi", "re", "s", "sa", "same",
    "sans", "se", "sera", "serait", "ses", "shan", "she", "should", "shouldn", "si", "sien", "sienne", "so", "soi",
    "some", "sommes", "sont", "sous", "such", "suis", "sur", "t", "ta", "te", "tes", "than", "that", "the", "their",
    "theirs", "them", "themselves", "then", "there", "these", "they", "this", "those", "through", "to", "toi",
    "too", "tous", "tout", "toute", "toutes", "tres", "trop", "très", "tu", "un", "under", "une", "until", "up",
    "ve", "vers", "very", "voici", "voila", "voilà", "vos", "votre", "vous", "was", "wasn", "we", "were", "weren",
    "what", "when", "where", "which", "while", "who", "whom", "whose", "why", "will", "with", "won", "would",
    "wouldn", "y", "you", "your", "yours", "yourself", "yourselves", "à", "ça", "étaient", "étais", "était",
    "étant", "êtes", "être",
})  # fmt: skip
"""
Stop words of both languages, as they are written with and without accents.

Leaves out words that mean something in the other language (car, son, or, pour, but) or with other accents: ``the`` is
not ``thé``.
"""

WEAK_WORDS = frozenset({
    "the", "an", "le", "la", "les", "l", "un", "une", "des", "really", "actually", "simply", "very", "please", "vraiment",
    "très", "tres", "stp", "svp",
})  # fmt: skip
"""
Words by which entries with the same meaning may differ: articles and emphasis. Not ``a``, which makes ``elle a mangé``
past tense.
"""
REQUEST = re.compile(
    r"^(?:please |jarvis,? )*(?:(?:remember|note|don't forget) that |(?:retiens|note|sache|souviens-toi|n'oublie pas)(?: bien)? qu(?:e |'))"
)
"""How a fact is introduced that is to be remembered."""

CONTRACTIONS = (
    (re.compile(r"\b(can)'?t\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\bi'm\b"), "i am"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"\b(it|he|she|that|there|what|who|where)'s\b"), r"\1 is"),
)

WORD = re.compile(r"[^\W_]+")
COMPOUND = re.compile(r"(?<![^\W_])(?:[^\W_]+[-./:_@+])+[^\W_]+|(?<!\d)\d{1,4}(?:[ \u00a0\u202f]\d{2,4}){2,}(?!\d)")
"""Codes that are written in parts and looked for as one: AB-1234, 06 12 34 56 78, 192.168.1.10."""
TELLING = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,:/-]\d+)*|[^\W_]+|[^\w\s.,;:!'\"()\[\]{}«»“”…‐-―/\\-]")
"""Words, numbers as they are written, and signs that make a difference: C++, 5 €, 20 %, a question, an emoji."""


MARKS_LIMIT = 30
"""Combining marks in a row that any language needs, with plenty to spare (UAX #15, Stream-Safe Text Format)."""
EXPANSION_LIMIT = 4
"""How many characters one may stand for, over a whole text."""
IS_BASE = bytes([1, *[0] * 255])
"""From a combining class: 1 for what is no mark."""
MARKS = re.compile(rb"[^\0]{%d}(?=[^\0])" % MARKS_LIMIT)


def stream_safe(text: str) -> str:
    """
    Return *text* with a joiner in each run of more than ``MARKS_LIMIT`` combining marks.

    Normalizing sorts the marks of a run, by insertion in the standard library: in time by the square of the run's length.
    """
    if len(text) <= MARKS_LIMIT or text.isascii():
        return text
    classes = bytes(map(unicodedata.combining, text))
    cuts = [found.end() for found in MARKS.finditer(classes)]
    if not cuts:
        return text
    return JOINER.join(text[start:end] for start, end in pairwise((0, *cuts, len(text))))


def fold(text: str) -> str:
    """Return *text* in small letters without accents or ligatures: Cœur, COEUR and cœur are the same."""
    if text.isascii():
        return text.lower()
    text = stream_safe(text)
    form: Literal["NFKD", "NFD"] = "NFKD"
    if len(unicodedata.normalize(form, text)) > EXPANSION_LIMIT * len(text) + MARKS_LIMIT:
        # A sign of Arabic stands for eighteen letters: a text of nothing else is left as it is written.
        form = "NFD"
    text = unicodedata.normalize(form, unicodedata.normalize(form, text).casefold())
    bases = bytes(map(unicodedata.combining, text)).translate(IS_BASE)
    return "".join(compress(text, bases)).translate(LETTERS)


def _composed(text: str) -> str:
    """Return *text* in small letters, each with its accents in one character."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", stream_safe(text)).casefold()


def terms_of(text: str) -> list[str]:
    """
    Return the terms of *text* in their order, with repetitions: stems of words, numbers, codes.

    Stop words are left out.
    """
    words = WORD.findall(_composed(text))
    terms = [term for word in words if word not in STOP_WORDS for term in _terms_of_word(word)]
    terms += _compounds(fold(text))
    return terms


@lru_cache(maxsize=1 << 15)
def _terms_of_word(word: str) -> tuple[str, ...]:
    # One word as a rule; a letter may be folded to two.
    return tuple(stem(part[:WORD_LIMIT_CHARS]) for part in WORD.findall(fold(word)))


def stem(word: str) -> str:
    """Return the part of a folded word that its forms share; codes and numbers stay as they are."""
    if len(word) < 4 or not word.isalpha():
        return word
    word = _singular(word)
    word = _spelling(word)
    for ending, replacement, least in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word[: len(word) - len(ending)] + replacement
            break
    if len(word) >= 4 and word[-1] == "e":
        word = word[:-1]
    if word[-1] in "iy" and word[-2] not in VOWELS:
        # family, familles; but party is not part
        word = word[:-1] if len(word) >= 6 else word[:-1] + "i"
    if len(word) >= 4 and word[-1] == word[-2] and word[-1] not in VOWELS:
        word = word[:-1]
    return word


ENDINGS = (
    # (ending, its replacement, how many letters must be left): the first that fits is applied.
    ("issements", "", 3),
    ("issement", "", 3),
    ("issaient", "", 3),
    ("issait", "", 3),
    ("issent", "", 3),
    ("issant", "", 3),
    ("issez", "", 3),
    ("atrices", "at", 3),
    ("atrice", "at", 3),
    ("ateur", "at", 3),
    ("ation", "", 5),
    ("ation", "at", 3),
    ("ator", "at", 3),
    ("erait", "", 4),
    ("eront", "", 4),
    ("aient", "", 4),
    ("ement", "", 4),
    ("iques", "", 5),
    ("ique", "", 5),
    ("ical", "", 5),
    ("ique", "ic", 3),
    ("euse", "", 4),
    ("eux", "", 4),
    ("eur", "", 4),
    ("ness", "", 4),
    ("era", "", 4),
    ("ait", "", 4),
    ("ais", "", 4),
    ("ant", "", 4),
    ("ing", "", 3),
    ("ied", "i", 3),
    ("ees", "", 3),
    ("ic", "", 5),
    ("or", "", 4),
    ("ly", "", 5),
    ("ee", "", 3),
    ("ed", "", 3),
    ("er", "", 3),
    ("ez", "", 3),
    ("ir", "", 4),
)


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-2]
    if word.endswith("eaux"):
        return word[:-1]
    if word.endswith("aux") and len(word) > 4:
        return word[:-3] + "al"
    if word.endswith(("sses", "ches", "shes", "xes", "zes")):
        return word[:-2]
    if word.endswith("oux") or (word.endswith("eux") and len(word) == 4):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _spelling(word: str) -> str:
    """Return the American spelling of words such as favourite and organise."""
    if len(word) >= 6:
        for british, american in (("our", "or"), ("isa", "iza"), ("ise", "ize"), ("isi", "izi")):
            word = word.replace(british, american)
    return word


def _compounds(folded: str) -> Iterator[str]:
    for found in COMPOUND.findall(folded):
        joined = "".join(WORD.findall(found))
        if any(char.isdigit() for char in joined):
            yield joined[:WORD_LIMIT_CHARS]


def fingerprint(text: str) -> bytes:
    """Return 16 bytes that are the same for texts of the same words, however they are written."""
    return _digest(_telling(fold(text)) or text.split())


def gist(text: str) -> bytes:
    """
    Return a hash of 16 bytes that two texts share when they may mean the same; their vectors have to confirm it.

    Such texts have the same words in the same order, but for articles, emphasis and spelling. Vectors alone do not tell
    ``my number is 12`` from ``13`` (0.957 with a 384-dimension e5), ``I live in Paris`` from ``Lyon`` (0.913), or who
    called whom (0.994), and a wrong merge loses a fact.
    """
    lower = REQUEST.sub("", _composed(text).replace("’", "'").strip())
    for pattern, replacement in CONTRACTIONS:
        lower = pattern.sub(replacement, lower)
    telling = _telling(lower)
    words = [_spelling(fold(word)) for word in telling if word not in WEAK_WORDS]
    return _digest(words or telling or text.split())


def _telling(folded: str) -> list[str]:
    return TELLING.findall(folded)


def _digest(words: list[str]) -> bytes:
    return blake2b("\0".join(words).encode("utf-8", "replace"), digest_size=16).digest()


SOUNDS = (
    ("ph", "f"),
    ("qu", "k"),
    ("ck", "k"),
    ("sch", "s"),
    ("sh", "s"),
    ("ch", "s"),
    ("ce", "s"),
    ("ci", "s"),
    ("cy", "s"),
    ("ge", "j"),
    ("gi", "j"),
    ("c", "k"),
    ("q", "k"),
    ("z", "s"),
    ("x", "s"),
    ("w", "v"),
    ("h", ""),
)
VOWELS = frozenset("aeiouy")


def sounds_of(term: str) -> list[str]:
    """
    Return the keys that *term* shares with its likely misspellings; none where it must be written exactly.

    One key is the sound of the consonants. Words of five letters and more also have the word with each letter left out
    in turn: two words share such a key where a letter was changed, lost, added or swapped with the next.
    """
    if len(term) < 4 or not term.isalpha():
        return []
    word = term
    for written, heard in SOUNDS:
        word = word.replace(written, heard)
    heard_as = ""
    for place, char in enumerate(word):
        key = "A" if char in VOWELS and place == 0 else "" if char in VOWELS else char
        if key and heard_as[-1:] != key:
            heard_as += key
    keys = {f"{heard_as}.", term}
    if len(term) >= 5:
        keys.update(term[:place] + term[place + 1 :] for place in range(min(len(term), GUESSED_LETTERS)))
    return sorted(keys)


GUESSED_LETTERS = 16
"""In longer words a letter further on must be right."""
