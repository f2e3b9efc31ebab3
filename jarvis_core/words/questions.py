"""Tells questions from what is to be done, in French and English."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*['’]?")

ASKING = frozenset({
    "qui", "que", "quoi", "quel", "quelle", "quels", "quelles", "lequel", "laquelle", "lesquels", "lesquelles",
    "quand", "où", "comment", "pourquoi", "combien", "est-il", "est-elle", "sont-ils", "sont-elles",
    "a-t-il", "a-t-elle", "as-tu", "es-tu", "what", "what's", "which", "who", "who's", "whom", "whose", "when",
    "when's", "where", "where's", "why", "how", "how's", "is", "isn't", "are", "aren't", "am", "was", "were",
    "do", "does", "did", "has", "have", "had",
})  # fmt: skip
"""Words with which a question begins, in small letters."""
LEADING = frozenset(
    ("à", "de", "d'", "y", "en", "avec", "pour", "depuis", "dans", "sur", "chez", "et", "mais", "dis", "alors")
)
"""Words that may stand before one of them in French: "à quelle heure", "depuis quand", "et comment"."""
MARKS = ("?", "？", "؟")
QUOTES = " \t\r\n\u00a0\u202f\"'»”’)]"


def is_question(text: str) -> bool:
    """Whether *text* ends in a question mark, or begins with a word that asks."""
    if text.rstrip(QUOTES).endswith(MARKS):
        return True
    words = [found[0].lower().replace("’", "'") for found, _ in zip(_WORD.finditer(text), range(3), strict=False)]
    while words and words[0] in LEADING:
        words = words[1:]
    return bool(words) and (words[0] in ASKING or words[0].startswith(("qu'", "est-ce")))
