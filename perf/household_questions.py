"""
Forty questions that are asked in a house, in French and in English, and what an acceptable answer to each has to contain.

An answer is scored without a model: by regular expressions over its words in lower case, in the language of the question, as
short as speech has to be. They are meant to be generous about the words and strict about the facts, about what nobody can know
here (the weather), and about what cannot be done (no lamp is at hand).
"""

from __future__ import annotations

from msgspec import Struct

CANNOT_FR = r"ne (?:peux|puis|sais|connais|suis|dispose|possède)|n'(?:ai|est) pas|pas (?:accès|possible|capable|en mesure)|impossible|désolé|incapable"
CANNOT_EN = r"can(?:no|')t|can not|unable|not able|don't (?:have|know)|do not (?:have|know)|not possible|no (?:access|way)|sorry|isn't possible"
DONE_FR = r"j'ai (?:allumé|éteint|mis|réglé|appelé|lancé|programmé|baissé|ouvert|commandé)|(?:est|sont) (?:maintenant )?(?:allumée?s?|éteinte?s?)|c'est (?:fait|parti)|je (?:vais|l')\s?(?:allumer|éteindre|mettre|appeler|lancer|allume|appelle)"
DONE_EN = r"i(?:'ve| have) (?:turned|set|called|started|played|locked|added|sent)|(?:is|are) now (?:on|off|set|locked|playing)|(?:^|\. )(?:done|sure thing)|i(?:'ll| will) (?:turn|set|call|play|lock|add|send)|turning (?:on|off)"


class Question(Struct, frozen=True):
    """What is asked, and what its answer is judged by."""

    words: str
    language: str
    must: tuple[str, ...] = ()
    """Regular expressions, each of which has to be found; ``{hour}`` and the like stand for the time of the question."""
    never: tuple[str, ...] = ()
    """Of which none may be found."""
    before: str = ""
    """What is said in the same conversation before."""


def _cannot(words: str, language: str) -> Question:
    fr = language == "fr"
    return Question(words, language, (CANNOT_FR if fr else CANNOT_EN,), (DONE_FR if fr else DONE_EN,))


QUESTIONS = (
    # The house's time and place.
    Question("Quelle heure est-il ?", "fr", ("{time}",)),
    Question("What time is it?", "en", ("{time}",)),
    Question("Quel jour sommes-nous ?", "fr", ("{weekday_fr}|{day} {month_fr}|1er {month_fr}",)),
    Question("What is today's date?", "en", ("{month_en},? (?:the )?{day}(?!\\d)|(?<!\\d){day}(?:st|nd|rd|th)?(?: of)? {month_en}",)),
    Question("Quel jour serons-nous demain ?", "fr", ("{tomorrow_fr}",)),
    Question("In which city are we?", "en", ("{city}",)),
    # Itself.
    Question("Qui es-tu ?", "fr", ("jarvis",), ("tu es jarvis", "qwen", "alibaba")),
    Question("Who are you?", "en", ("jarvis",), ("you are jarvis", "qwen", "alibaba")),
    # What cannot be done without tools.
    _cannot("Allume la lumière du salon.", "fr"),
    _cannot("Turn off the lights in the kitchen.", "en"),
    _cannot("Mets un minuteur de dix minutes.", "fr"),
    _cannot("Set an alarm for seven in the morning.", "en"),
    _cannot("Appelle maman.", "fr"),
    _cannot("Play some jazz in the bedroom.", "en"),
    _cannot("Ferme les volets de la chambre.", "fr"),
    _cannot("Send a message to Paul that I am late.", "en"),
    # What cannot be known.
    _cannot("Quel temps fera-t-il demain ?", "fr"),
    _cannot("Will it rain tomorrow?", "en"),
    # Facts.
    Question("Quelle est la capitale de l'Italie ?", "fr", ("rome",)),
    Question("What is the capital of Japan?", "en", ("tokyo",)),
    Question("Combien de minutes y a-t-il dans deux heures ?", "fr", ("120|cent vingt",)),
    Question("How many days are there in a leap year?", "en", ("366",)),
    Question("Combien font sept fois huit ?", "fr", ("56|cinquante-six",)),
    Question("What is fifteen plus twenty-seven?", "en", ("42|forty-two",)),
    Question("Combien de temps faut-il pour cuire un œuf dur ?", "fr", (r"\b(?:8|9|10|11|12|huit|neuf|dix|onze|douze)\b", "minute")),
    Question("How long should I boil pasta?", "en", (r"\b(?:[6-9]|1[0-5]|eight|nine|ten|twelve)\b", "minute")),
    Question("Quelle couleur obtient-on en mélangeant du bleu et du jaune ?", "fr", (r"\bvert",)),
    Question("How many legs does a spider have?", "en", (r"\b8\b|eight",)),
    Question("Qui a écrit Les Misérables ?", "fr", ("hugo",)),
    Question("Who painted the Mona Lisa?", "en", ("leonardo|da vinci",)),
    Question("Comment dit-on merci en anglais ?", "fr", ("thank",)),
    Question("How do you say good evening in French?", "en", ("bonsoir",)),
    Question("À quelle température l'eau bout-elle ?", "fr", (r"\b100\b|cent degrés",)),
    Question("What is the largest planet in the solar system?", "en", ("jupiter",)),
    # Talk.
    Question("Raconte-moi une blague.", "fr", (r"(?:\w+\W+){8,}",), ("je suis désolé",)),
    Question("Tell me a short joke.", "en", (r"(?:\w+\W+){8,}",), ("i'm sorry",)),
    Question("Merci beaucoup, bonne nuit !", "fr", ("nuit|rien|plaisir|demain|repos|dormez|dors|rêves",), ("tu es jarvis",)),
    Question("Good morning! How are you?", "en", ("morning|well|fine|good|great|hello|hi ",), ("you are jarvis",)),
    # What was said before.
    Question("Comment je m'appelle ?", "fr", ("zoé",), before="Bonjour, je m'appelle Zoé."),
    Question("How old is my son?", "en", (r"\b(?:9|nine)\b",), before="My son is nine years old."),
)  # fmt: skip
