"""
The spoken form of a text: "Il fait -5 °C" becomes "Il fait moins cinq degrés Celsius".

It acts in the core, before whichever voice: one that spells out nothing itself reads minus five as five, and one that does
reads words no worse than digits. The text that a client is shown stays as it was written. French and English have rules; in
another language only the signs that no voice says are left out. Each rule reads the text once: a sentence without numbers
costs 0.03 ms, one full of them 0.4 ms, and the first one in a language 20 ms, which ``load_rules`` takes elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from jarvis_core.words.languages import language_code
from jarvis_core.words.markup import is_spoken

LIMIT_CHARS = 5_000
"""No voice takes more at once."""
SCRIPTS = ("LATIN", "GREEK", "MICRO", "OHM")
"""What the voices of those languages read; of other scripts they say "Chinese letter", one by one."""
LETTERS_KEPT = 4_096

_UNSAID = re.compile("[~±≈≠≤≥→←↔⇒↑↓√∞^⁻]")
"""Signs that a voice without rules does not know."""
_SPACE_BEFORE_STOP = re.compile(r" +(?=[.,](?: |$))")
_LONE_STOP = re.compile(r"(?<=[.!?…,;:])(?: ?[.,;:](?= |$))+|^[ .,;:!?…]+")
"""What stays of a sentence whose letters were left out."""
_LATIN = str.maketrans("。！？，、；：", ".!?,,;:")
_STOPS = (".", "!", "?", "…")
_RUN = re.compile(r"([^\w\s.])\1{2,}")
"""A sign over and over, which is no more than one."""


RULED = ("fr", "en")
_rules: dict[str, Callable[[str], str]] = {}
"""By the codes of the languages that were spoken so far."""


def are_rules_loaded(language: str | None) -> bool:
    """Whether a text in *language* can be read at once."""
    code = language_code(language) if language else None
    return code not in RULED or code in _rules


def load_rules(language: str | None) -> Callable[[str], str] | None:
    """Return the rules of *language*, None where it has none; their patterns are compiled the first time."""
    code = (language_code(language) or "") if language else ""
    if code not in _rules:
        if code == "fr":
            from jarvis_core.words.spoken_french import spoken_french

            _rules[code] = spoken_french
        elif code == "en":
            from jarvis_core.words.spoken_english import spoken_english

            _rules[code] = spoken_english
    return _rules.get(code)


def spoken_form(text: str, language: str | None) -> str:
    """
    Return how *text*, of which nothing is markup any more, is read aloud in *language*; empty where nothing can be said.

    Linear in its length, and at most ``LIMIT_CHARS``.
    """
    rules = load_rules(language)
    if rules is None:
        said = _UNSAID.sub(" ", text)
    else:
        if not text.isascii():
            readable = "".join(filter(_can_be_said, text))
            text = _LONE_STOP.sub("", readable.translate(_LATIN)) if readable != text else text
        said = rules(_RUN.sub(r"\1", text))
    said = _SPACE_BEFORE_STOP.sub("", " ".join(said.split())).replace("( ", "(").replace(" ()", "")
    if not any(map(is_spoken, said)):
        return ""
    if text.rstrip().endswith(_STOPS) and not said.endswith(_STOPS):
        said += "."
    return said if len(said) <= LIMIT_CHARS else said[:LIMIT_CHARS].rpartition(" ")[0]


@lru_cache(LETTERS_KEPT)
def _can_be_said(character: str) -> bool:
    return not character.isalpha() or unicodedata.name(character, "").startswith(SCRIPTS)
