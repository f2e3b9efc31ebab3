"""Questions, told from what is to be done."""

from __future__ import annotations

import pytest

from jarvis_core.words.questions import is_question

QUESTIONS = """
Quelle heure est-il ?
quelle heure est-il
À quelle heure part le train
Depuis quand pleut-il
Qu'est-ce que tu fais
Qu’est-ce que c’est
Est-ce que la lumière est allumée
Y a-t-il du lait
Dis, comment ça va
Et pourquoi pas
Il fait beau ?
« Il fait beau ? »
What time is it
what's the weather
Is the light on
How many lamps are on
Who is there
Turn on the light?
你好吗？
""".strip().splitlines()
ORDERS = """
Allume la lumière du salon
Éteins tout.
Mets la lampe à 30 %
Dis bonjour
Turn on the kitchen light
Set the lamp to 40%
Whatever you like
Isolate the kitchen
Les lumières, allume-les !
12
?!
""".strip().splitlines()


@pytest.mark.parametrize("text", QUESTIONS)
def test_question(text: str) -> None:
    """A question ends in a question mark, or begins with a word that asks."""
    assert is_question(text)


@pytest.mark.parametrize("text", ORDERS)
def test_order(text: str) -> None:
    """What is to be done is no question."""
    assert not is_question(text)


def test_empty() -> None:
    """Nothing is no question."""
    assert not is_question("")
