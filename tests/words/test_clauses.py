"""Sentences that are parted for the voice: the pieces are clauses, whichever way the text came."""

from __future__ import annotations

import random

import pytest

from jarvis_core.words.clauses import FEWEST_WORDS, MOST_WORDS, first_clause, part

PARTED = [
    "Demain matin il fera beau, | et l'après-midi il pleuvra un peu.",
    "The sky looks blue | because air scatters the short waves of sunlight more than the long ones.",
    "Pour cuire un œuf dur, | comptez environ dix minutes à partir de l'ébullition.",
    "Il faut dix minutes dans l'eau bouillante | pour que le jaune soit dur comme il faut.",
    "Ich habe das Licht ausgemacht, | weil du gleich schlafen gehen willst.",
    "Here is what you need : | four eggs, milk, flour and a pinch of salt.",
    "Le résultat est de 3,5 grammes | et il en faut encore deux de plus aujourd'hui.",
]
"""Where a first piece ends."""

WHOLE = [
    "Oui, bien sûr.",
    "Il est dix heures et quart.",
    "Bonjour, Camille, comment allez-vous ce matin ?",
    "Bonjour tout le monde, il fait beau.",
    "| lundi, mardi | mercredi et jeudi | vendredi, samedi | dimanche et lundi |",
    "Voir https://example.org/une,page,bien,longue et puis encore beaucoup de mots derrière elle.",
    "",
]
"""What is too short, or is one."""


@pytest.mark.parametrize("shown", PARTED)
def test_first_clause(shown: str) -> None:
    """A first clause has four to eight words, and ends behind a mark or before a word that begins another one."""
    first, _, rest = shown.partition("| ")
    assert FEWEST_WORDS <= len(first.replace(" :", "").split()) <= MOST_WORDS
    assert first_clause(first + rest, whole=True) == len(first)


@pytest.mark.parametrize("sentence", WHOLE)
def test_nothing_to_part(sentence: str) -> None:
    """Short sentences, tables and addresses stay whole."""
    assert first_clause(sentence, whole=True) == part(sentence, 60 if "|" not in sentence else 20) == len(sentence)


def written(seed: int) -> str:
    """Return what somebody might write."""
    dice = random.Random(seed)
    words = [
        dice.choice(("la", "maison", "et", "que", "bleue", "12", "- ", "parce")) for _ in range(dice.randrange(20))
    ]
    return " ".join(word + dice.choice(("", "", "", "", ",", " :")) for word in words)


@pytest.mark.parametrize(
    "sentence", [one.replace("| ", "") for one in PARTED] + WHOLE + [written(seed) for seed in range(60)]
)
def test_as_it_comes(sentence: str) -> None:
    """The first clause of a sentence that is being written is the one that it has when it is written; or not known yet."""
    whole = first_clause(sentence, whole=True)
    ends = [first_clause(sentence[:count], whole=False) for count in range(len(sentence) + 1)]
    assert {*ends} <= {0, whole}
    assert ends == sorted(ends), "what is known stays so"


def test_known_early() -> None:
    """It is known four words behind its mark, long before the sentence ends."""
    first = "Demain matin il fera beau, "
    assert first_clause(f"{first}et il pleuvra", whole=False) == 0
    assert first_clause(f"{first}et il pleuvra un p", whole=False) == len(first)


@pytest.mark.parametrize("most_chars", [30, 40, 60, 90, 200])
def test_part(most_chars: int) -> None:
    """However long a sentence is, its pieces have about the length that is wanted, and no number is taken from its unit."""
    sentence = (
        "Les phares guident les bateaux depuis plus de 2 300 ans , et celui d'Alexandrie, haut de 135 mètres, était visible à "
        "près de 50 kilomètres lorsque le temps était clair sur la mer."
    )
    pieces = []
    while sentence:
        end = part(sentence, most_chars)
        assert end > 0
        pieces.append(sentence[:end])
        sentence = sentence[end:]
    assert all(len(piece) <= 1.5 * most_chars for piece in pieces), pieces
    assert all(len(piece.split()) >= 2 for piece in pieces)
    assert not any(piece.rstrip()[-1].isdigit() or piece[0].isdigit() for piece in pieces)
