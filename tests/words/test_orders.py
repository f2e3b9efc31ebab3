"""Questions and orders to a house, told from what else is said."""

from __future__ import annotations

import pytest

from jarvis_core.words.orders import is_order, is_question

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
S'il te plaît, ouvre les volets
Jarvis, allume le four
Turn on the kitchen light
Set the lamp to 40%
Please could you now close the door
""".strip().splitlines()
NEITHER = """
Dis bonjour
Whatever you like
Isolate the kitchen
Mon vélo est au garage
Souviens-toi que mon vélo est au garage
Donne-moi une recette de crêpes
Tell me a joke
Remember that my bike is in the garage
Count to ten
12
?!
""".strip().splitlines()


@pytest.mark.parametrize("text", QUESTIONS)
def test_question(text: str) -> None:
    """A question ends in a question mark, or begins with a word that asks."""
    assert is_question(text)


@pytest.mark.parametrize("text", ORDERS)
def test_order(text: str) -> None:
    """An order begins with a verb with which a house is ordered about, and is no question."""
    assert (is_order(text), is_question(text)) == (True, False)


@pytest.mark.parametrize("text", [*NEITHER, "", " "])
def test_neither(text: str) -> None:
    """What is told, and what is asked of the assistant itself, is neither."""
    assert (is_order(text), is_question(text)) == (False, False)
