"""Tells questions, and orders to a house, from what else is said, in French and English."""

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
ORDERING = frozenset({
    "allume", "allumer", "allumez", "éteins", "éteindre", "éteignez", "ouvre", "ouvrir", "ouvrez", "ferme", "fermer",
    "fermez", "mets", "mettre", "mettez", "règle", "régler", "réglez", "active", "activer", "activez", "désactive",
    "désactiver", "désactivez", "baisse", "baisser", "baissez", "monte", "monter", "montez", "augmente", "augmenter",
    "augmentez", "diminue", "diminuer", "diminuez", "réduis", "réduire", "réduisez", "tamise", "tamiser", "change",
    "changer", "changez", "lance", "lancer", "lancez", "démarre", "démarrer", "démarrez", "arrête", "arrêter", "arrêtez",
    "coupe", "couper", "coupez", "verrouille", "verrouiller", "déverrouille", "déverrouiller", "bascule", "basculer",
    "joue", "jouer", "jouez", "chauffe", "aspire",
    "turn", "switch", "open", "close", "shut", "set", "dim", "brighten", "lower", "raise", "increase", "decrease",
    "activate", "deactivate", "enable", "disable", "start", "stop", "pause", "play", "lock", "unlock", "toggle", "put", "heat", "cool", "vacuum",
})  # fmt: skip
"""Verbs with which a house is ordered about, in small letters."""
POLITE = frozenset({
    "s'il", "te", "vous", "plaît", "plait", "stp", "svp", "jarvis", "veuillez", "peux-tu", "pouvez-vous", "tu", "peux", "pourrais-tu",
    "ok", "dis", "et", "maintenant", "alors",
    "please", "can", "could", "would", "will", "you", "kindly", "hey", "now", "and", "then", "just",
})  # fmt: skip
"""Words that may stand before one of them."""
ORDER_WORDS = 8
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


def is_order(text: str) -> bool:
    """Whether *text* begins with a verb with which a house is ordered about, after "please" and its like."""
    for found, _ in zip(_WORD.finditer(text), range(ORDER_WORDS), strict=False):
        word = found[0].lower().replace("’", "'")
        if word in ORDERING:
            return True
        if word not in POLITE:
            return False
    return False
