"""Sentences: where a text that is still being written is cut."""

from __future__ import annotations

import random
import re
import time

import pytest

from jarvis_core.words.markup import SIGNS
from jarvis_core.words.sentences import SentenceSplitter, split

FAMILY = "👨\u200d👩\u200d👧\u200d👦"

FRENCH = [
    "Bonjour. |Comment ça va ? |Très bien !",
    "Bonjour ! |Comment allez-vous ?",
    "« Bonjour ! » dit-il. |Puis il sortit.",
    "« Bonjour\u00a0! » dit-il en souriant.",
    "« Viens. » |Il partit.",
    "«\u202fViens\u202f!\u202f» |Il partit.",
    "« Quoi ?» |Elle rit.",
    "Il cria : « Au secours ! », Marie accourut.",
    "— Tu viens ? |— Non ! |— Dommage.",
    "- Tu viens ? |- Non ! |- Dommage.",
    "M. Dupont et Mme Martin sont là. |MM. Durand aussi.",
    "Mlle. Rose, Mme. Blanc et le Dr. Noir arrivent. |Le Dr Petit part.",
    "Voir p. ex. Paris, c.-à-d. La capitale, cf. Michelin. |Fin.",
    "P.\u00a0ex. Paris. |Fin.",
    "Il y en a env. 300, cf. vol. 3, p. 12, art. 5 et n° 7. |Voilà.",
    "Des pommes, des poires, etc. et puis rien. |Des noix, etc. |Voilà tout.",
    "Né en 52 av. J.-C. |Mort en 12 apr. J.-C. à Rome. |J.-C. Van Damme joue.",
    "Il habite av. St. Michel. |Elle aussi.",
    "C'est M.? |Oui. |C'est M... |Ah. |(Le plan B). |Il part.",
    "Ici _M. Dupont_ arrive. |**Mme**. Martin aussi. |**Fin. ** |Bon.",
    "J. R. R. Tolkien et G. W. Bush. |Deux noms.",
    "Pi vaut 3,14 ou 3.14, pas 1.000 ni 1 000. |Voilà.",
    "Python 3.11.7 est sorti à 10 h 30, ou 10.30. |Tant mieux.",
    "Allez sur exemple.fr ou https://a.exemple.fr/b?c=d. |Ouvrez index.html ! |Écrivez à moi@exemple.fr. |Merci.",
    "Bon... voyons. |Bon… voyons. |Bon ... voyons.",
    "Attends... |Il arrive. |Attends… |Élise aussi. |Ah ! |Œuvre. |Ça. |À bientôt.",
    "Quoi ?! |Non !!! |Si ? ! |Bon.",
    "Il y en a trois. |20 ans plus tard, rien. |-5 degrés.",
    "Il a dit oui (enfin !) et puis non. |(Il est parti.) |Bon.",
    "Il dit […] que oui. |[…] Puis non.",
    "Super ! 😊 |Et toi ? 👍🏽 " + FAMILY + " |Moi aussi 🎉 je viens. 🇫🇷",
    "Utilisez grep. |`ls` liste les fichiers.",
    "Voici **Paris.** |**Rome** est loin. |*Naples* aussi.",
    "C'est fini.Vraiment. |Oui ?Non.",
    "Il vaut 5 €. |C'est 10 %. |Bien. |€ 5, c'est peu.",
]

ENGLISH = [
    "Hello. |How are you? |Fine!",
    '"Stop." |He left.',
    "“Stop!” |He left. |“Why?” she asked.",
    '"Stop!" he said. |"Go," she said. |"Fine."',
    "(He left.) |Then she did. |'Why?' |Who knows.",
    "Dr. Smith, Mr. Jones, Mrs. Hall, Ms. Lee and Prof. King met in St. Louis. |They left.",
    "Fruit, e.g. Apples, i.e. Food. |E.g. Pears. |Smith vs. Jones, viz. Us.",
    "The U.S. Navy and the U.K. Army. |J. R. R. Tolkien wrote. |J.R.R. Tolkien too.",
    "At 5 p.m. it rains, at 9 a.m. too. |We met at 5 p.m. |Then we left at 6 P.M. |All of us.",
    "So do I. |He left with plan B. Then she came.",
    "See No. 5, vol. 2, p. 7 and fig. 3, Sept. 3. |No. |It is closed.",
    "Smith et al. (2019) say so. |Others do not.",
    "Apple Inc. is big. |He works for Apple Inc. |She does not.",
    "It is 3.14, 1,000.50 or .5 of it. |Version 3.11.7 is out. |Is it?",
    "Open main.py. |Then see example.com. |It is so. iPhone is one word. iPhone again.",
    "Well... let us see. |Wait... |He comes. |Wait… |3 minutes.",
    "What?! |No!!! |Yes?? |¿Que? |¡Si!",
    "He paused... “oh” he said. |He said. |“oh” was all.",
    "Fruit (apples, pears, etc. (all ripe)) here. |Yes.",
]

GERMAN = [
    "Am 3. Oktober ist Feiertag. |Dann nicht.",
    "Heute ist der 21. Mai. |Im 19. Jahrhundert war das so. |Gut.",
    "Vom 3. bis 5. Juni, zum 50. Geburtstag und am Montag, 3. Juli. |Schön.",
    "Sonntag, 2. Advent. |Beim 1. Mal ging es, sein 2. Versuch auch. |Ja.",
    "Wohnung Nr. 7 in der Berliner Str. 12 ist frei. |Gut.",
    "Obst, z. B. Äpfel, d. h. Boskop, u. a. Birnen, bzw. Nüsse, inkl. Schale. |Ja.",
    "Hr. Müller und Fr. Schmidt, geb. Weber, kommen. |Gut.",
    "Siehe S. 5, Kap. 2 und Abb. 3. |Gut.",
]
"""What stays whole though a French or English sentence would end there."""

STREETS = [
    "Il habite au 12, Blvd. Saint-Michel. |Elle aussi.",
    "Allez Blvd. Saint-Germain. |Le Blvd. Voltaire est loin. |Fin.",
    "Près du Fg. Saint-Antoine, pl. Bellecour et rte. Nationale. |Fin.",
    "I live on Sunset Blvd. |She lives on 5th Ave. |They left the Ave. Montaigne hotel.",
    "I am 30. |Next year I will be 31. |So be it.",
    "Il en a 3. |Paul aussi. |She has 3. |Paul too.",
    "Fort Ft. Worth, Maj. Tom and Cpl. Jones. |Apt. 4, ext. 12. |Fine.",
]

LINES = [
    "Une ligne\n|Une autre,\n|encore\r\n\r\n|fin",
    "# Titre\n\n|Texte. |Suite.\n",
    "Voici :\n|1. Pommes\n|2. Poires. |Bonnes.\n|10) Noix\n\n|a. Un\n|IV. Deux\n|**3**. Trois",
    "Liste :\n\n|- Pommes\n|- *Poires* !\n|* Noix\n|• Figues\n\n|> Fin",
    "---\n\nUn\n\n|---\n\nDeux\n---\n",
    "M.\n|Dupont",
    "  \n Bonjour. |Oui.\u2028|Non.  \n ",
]

OTHER = [
    "你好。|我是贾维斯！|「你好。」|他说？|是",
    "東京。|ok。|はい",
    "Да. |Нет, да. да.",
    "",
    " ",
    "...",
    "« — »\n\n!",
]


ALPHABET = [
    *"aéÉMpZ19 .!?…,;:«»\"'()*-_—\n。漢€%", " ", " ", "\u00a0", "\u202f", "\r\n", "... ", ". ", "M. ", "p. ex. ", "J.-C. ",
    "1. ", "Bonjour", "mot ", "e\u0301", "👍🏽", FAMILY, "🇫🇷", "❤\ufe0f", "\ud83d\ude00", "**", "\n- ",
]  # fmt: skip


def has_speech(text: str) -> bool:
    """Tell whether there is something to say."""
    return any(character.isalnum() or character in SIGNS for character in text)


def feed(splitter: SentenceSplitter, text: str, dice: random.Random | None = None) -> list[str]:
    """Feed a character at a time, or in random pieces, some of them empty."""
    sentences = []
    at = 0
    while at < len(text):
        size = dice.choice((0, 1, 1, 2, 3, 7, 40)) if dice else 1
        sentences += splitter.feed(text[at : at + size])
        at += size
    return sentences + splitter.end()


@pytest.mark.parametrize("marked", [*FRENCH, *ENGLISH, *GERMAN, *STREETS, *LINES, *OTHER])
def test_sentences(marked: str) -> None:
    """Each text is cut at the bars and nowhere else, whether it comes whole or a character at a time."""
    text = marked.replace("|", "")
    expected = marked.split("|") if marked else []
    assert split(text) == expected
    assert feed(SentenceSplitter(), text) == expected


@pytest.mark.parametrize("seed", range(20))
def test_any_text_however_it_is_cut(seed: int) -> None:
    """Nothing is lost, the pieces do not matter, the limit holds, and there is something to say in each."""
    dice = random.Random(seed)
    for _ in range(60):
        text = "".join(dice.choices(ALPHABET, k=dice.randrange(200)))
        limit_chars = dice.choice((1, 2, 10, 40, 300))
        sentences = split(text, limit_chars)
        assert "".join(sentences) == text
        assert all(0 < len(sentence) <= limit_chars for sentence in sentences)
        assert feed(SentenceSplitter(limit_chars=limit_chars), text, dice) == sentences
        silences = re.split(f"[^\\W_]|[{SIGNS}]", text)
        if len(silences) > 1 and max(map(len, silences)) < limit_chars / 2:
            assert all(map(has_speech, sentences))


def test_first_limit() -> None:
    """The first sentence may be bounded on its own, the others are not; after an end the next text has a first again."""
    splitter = SentenceSplitter(limit_chars=40, first_limit_chars=20)
    text = "Un deux trois, quatre cinq six, sept huit. Un deux trois, quatre cinq."
    expected = ["Un deux trois, ", "quatre cinq six, sept huit. ", "Un deux trois, quatre cinq."]
    for _ in range(2):
        assert splitter.feed(text) + splitter.end() == expected
    assert SentenceSplitter(limit_chars=10, first_limit_chars=99).feed("a" * 30) == ["a" * 10] * 2


@pytest.mark.parametrize("limits", [(0, None), (-1, 5), (5, 0)])
def test_limits_are_positive(limits: tuple[int, int | None]) -> None:
    """A limit below one is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one"):
        SentenceSplitter(limit_chars=limits[0], first_limit_chars=limits[1])


# Streaming


@pytest.mark.parametrize(
    ("before", "decisive", "first"),
    [
        ("Bonjour. ", "C", "Bonjour. "),
        ("Bonjour ! 😊 ", "C", "Bonjour ! 😊 "),
        ("Bonjour.\n\n", "c", "Bonjour.\n\n"),
        ("Bonjour.\n- ", "c", "Bonjour.\n"),
        ("« Viens. » ", "I", "« Viens. » "),
        ("Bonjour. « ", "c", "Bonjour. "),
        ("Bonjour. — ", "C", "Bonjour. "),
        ("M. Dupont. ", "I", "M. Dupont. "),
        ("Bon... voyons. ", "3", "Bon... voyons. "),
        ("Il vaut 3.14.", "5", ""),
        ("Il vaut 3. ", "5", "Il vaut 3. "),
        ("Fin. ", "p", ""),
        ("你好。", "我", "你好。"),
    ],
)
def test_given_as_soon_as_certain(before: str, decisive: str, first: str) -> None:
    """The first sentence comes with the first character to say after it, not sooner and not later."""
    splitter = SentenceSplitter()
    early = [sentence for character in before for sentence in splitter.feed(character)]
    assert early == []
    assert splitter.feed(decisive) == ([first] if first else [])


def test_end_gives_the_rest() -> None:
    """What waits for more is given at the end, once; then another text may come."""
    splitter = SentenceSplitter()
    assert splitter.feed("Bonjour.") == []
    assert splitter.feed(" ") == []
    assert splitter.end() == ["Bonjour. "]
    assert splitter.end() == []
    assert splitter.feed("Salut. Toi") == ["Salut. "]
    assert splitter.end() == ["Toi"]


def test_nothing_waits_beyond_the_limit() -> None:
    """A text without an end is given as soon as it is one over the limit."""
    splitter = SentenceSplitter(limit_chars=50)
    waiting = 0
    for character in "mot, sans fin et " * 100 + "x" * 500 + " " * 500:
        waiting += 1 - sum(map(len, splitter.feed(character)))
        assert waiting <= 50


@pytest.mark.parametrize(
    "pattern", ["Bonjour à tous, mes amis. ", " ", "a", "a. ", ". ", "e\u0301", "🇫🇷", "a" + "-" * 200, "M. p. ex. "]
)
def test_cost_is_linear(pattern: str) -> None:
    """100,000 characters one at a time, or at once, take well under a second, whatever they are."""
    text = (pattern * 100_000)[:100_000]
    started = time.process_time()
    sentences = feed(SentenceSplitter(), text)
    assert split(text) == sentences
    assert time.process_time() - started < 2  # 0.1 to 0.4 s measured; quadratic would be minutes


# Sentences that are too long


@pytest.mark.parametrize(
    "marked",
    [
        "un deux trois, quatre ; |cinq, six sept huit neuf",
        "un deux trois, quatre : |cinq, six sept huit neuf",
        "un deux, trois quatre — |cinq, six sept huit neuf",
        "un deux - trois - |cinq, six, sept. |Huit",
        "un deux trois quatre, |cinq six sept huit",
        "un, deux trois quatre cinq |six sept huit",
        "un deux trois à 10:30, |ou 3,1415926535 3,14",
        "un deux trois quatre 10 |000\u00a0000 de francs",
        "un deux trois quatre |vraiment\u00a0! |Oui",
        "un deux trois quatre |vraiment ! |Oui",
        "un deux trois quatre cinq |10 % de tout",
        "a" * 30 + "|" + "a" * 30 + "|aa",
        "a" * 29 + "|a ",
        "a" * 30 + "|aa. |Bon",
        "漢" * 20 + "，|" + "漢" * 20,
    ],
)
def test_best_place(marked: str) -> None:
    """It is cut after a semicolon, colon or dash, else a comma, both not too early, else at a space, else anywhere."""
    assert split(marked.replace("|", ""), 30) == marked.split("|")


@pytest.mark.parametrize(
    "grapheme", ["e\u0301", "👍🏽", FAMILY, "🇫🇷", "❤\ufe0f", "1\ufe0f\u20e3", "\ud83d\ude00", "\r\n"]
)
@pytest.mark.parametrize("lead", ["", "x", "xx"])
def test_graphemes_are_whole(grapheme: str, lead: str) -> None:
    """No grapheme is cut in two when nothing else is there to cut at."""
    text = lead + grapheme * 40
    sentences = split(text, 15)
    assert "".join(sentences) == text
    assert max(map(len, sentences)) <= 15
    assert all(re.fullmatch(f"(?:x|{grapheme})*", sentence) for sentence in sentences)
