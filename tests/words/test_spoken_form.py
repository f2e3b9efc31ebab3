"""The spoken form: two corpora of everyday sentences, and what must hold of any text."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from jarvis_core.words.markup import speakable
from jarvis_core.words.spoken_form import LIMIT_CHARS, spoken_form

CORPORA = Path(__file__).parents[1] / "fixtures" / "spoken_form"
"""Per language a line for each text: as it is written, a tabulator, and what a voice is to say."""


def lines_of(language: str) -> list[tuple[str, str]]:
    lines = (CORPORA / f"{language}.tsv").read_text(encoding="utf-8").split("\n")
    return [(written, said) for written, _, said in (line.partition("\t") for line in lines if line)]


def say(written: str, language: str | None) -> str:
    return spoken_form(speakable(written), language)


def test_corpora_are_whole() -> None:
    """There are two hundred lines in each language, all different."""
    for language in ("fr", "en"):
        lines = lines_of(language)
        assert len({written for written, _ in lines}) == len(lines) >= 200


@pytest.mark.parametrize(("written", "said"), lines_of("fr"))
def test_french(written: str, said: str) -> None:
    """Each line of the corpus is read as it says."""
    assert say(written, "fr") == said


@pytest.mark.parametrize(("written", "said"), lines_of("en"))
def test_english(written: str, said: str) -> None:
    """Each line of the corpus is read as it says."""
    assert say(written, "en") == said


@pytest.mark.parametrize("language", ["fr", "en"])
def test_what_is_spoken_already_stays(language: str) -> None:
    """A text that was read once is read the same again: nothing of it is left to a voice's own guesses."""
    for _, said in lines_of(language):
        assert spoken_form(said, language) == said
        assert not any(character.isdigit() for character in said)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Il fait − 5 °C, ou - 5 °C.", "Il fait moins cinq degrés Celsius, ou moins cinq degrés Celsius."),
        ("-5/-3 °C (−3)", "moins cinq, moins trois degrés Celsius (moins trois)"),
        ("200 km-300 km, 10 €-20 €, 12h-14h, 14-18h", "deux cents kilomètres à trois cents kilomètres, dix euros à vingt euros, douze heures à quatorze heures, quatorze à dix-huit heures"),
        ("3/4 h, 2 1/2 tasses, 2½ kg", "trois quarts d'heure, deux tasses et demie, deux virgule cinq kilos"),
        ("M. et Mme Dupont, Mr Dupont, Dr. House", "Monsieur et Madame Dupont, Monsieur Dupont, Docteur House"),
        ("avenue George V, lycée Henri-IV, Pie XII, vol. IV, t. II", "avenue George cinq, lycée Henri quatre, Pie douze, volume quatre, tome deux"),
        ("2x/jour, 10 min/jour, 3 kg/personne", "deux fois par jour, dix minutes par jour, trois kilos par personne"),
        ("1,5 M d'habitants, 3 millions de km, 2,5 millions €", "un virgule cinq million d'habitants, trois millions de kilomètres, deux virgule cinq millions d'euros"),
        ("4x4, Covid-19, J-3, mi-2024", "quatre-quatre, Covid-dix-neuf, J moins trois, mi-deux mille vingt-quatre"),
        ("50/50, 10/10, 24/7, le 24/12", "cinquante cinquante, dix sur dix, vingt-quatre heures sur vingt-quatre, le vingt-quatre décembre"),
        ("jean.dupont@exemple.fr", "jean point dupont arobase exemple point fr"),
        ("1.234,50 € et 1.500 € et 3,- €", "mille deux cent trente-quatre euros cinquante et mille cinq cents euros et trois euros"),
        ("9,81 m/s², 10⁻³, x²", "neuf virgule quatre-vingt-un mètres par seconde au carré, dix puissance moins trois, x au carré"),
        ("€ 5, c'est peu, et 0,50 € aussi", "cinq euros, c'est peu, et cinquante centimes aussi"),
        ("Il a dit « 21 », puis 1,2,3", "Il a dit vingt et un, puis un, deux, trois"),
        ("S.N.C.F., U.S.A. et J.-C.", "S.N.C.F., U.S.A. et J.-C."),
    ],
)  # fmt: skip
def test_more_french(written: str, said: str) -> None:
    """Siblings of the corpus' lines."""
    assert say(written, "fr-FR") == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Then Peter I think left, every step I take, the part I like.", "Then Peter I think left, every step I take, the part I like."),
        ("World War I was, Elizabeth I of England, Part I, George V", "World War one was, Elizabeth the first of England, Part one, George the fifth"),
        ("An IV drip, Vol. II", "An IV drip, Volume two"),
        ("$10-$20, -$5, 20-25%, 5 °C - 10 °C", "ten dollars to twenty dollars, minus five dollars, twenty to twenty-five percent, five degrees Celsius to ten degrees Celsius"),
        ("7.30pm, 10:00 a.m.-5:00 p.m. and 12am", "seven thirty PM, ten AM to five PM and twelve AM"),
        ("mid-1990s, the '20s, wait 90s", "mid-nineteen nineties, the twenties, wait ninety seconds"),
        ("May 3-5, Sat. 5, 8/10/2024, 25/12/2024", "May third to fifth, Saturday five, August tenth, twenty twenty-four, December twenty-fifth, twenty twenty-four"),
        ("50/50, 9 out of 10, 2 1/2 cups, 24/7", "fifty fifty, nine out of ten, two and a half cups, twenty-four seven"),
        ("F-16, B-52s, 3-year-old, Route 66", "F-sixteen, B-fifty-two s, three-year-old, Route sixty-six"),
        ("1-800-555-1234 or +44 20 7946 0958", "one, eight zero zero, five five five, one two three four or plus four four, two zero, seven nine four six, zero nine five eight"),
        ("Dr. Martin Luther King Jr. Blvd. is long.", "Doctor Martin Luther King Junior Boulevard is long."),
        ("Mr. and Mrs. Jones at No. 10 Downing St.", "Mister and Missus Jones at Number ten Downing Street."),
        ("3/day, 10 min/day, $5/user", "three per day, ten minutes per day, five dollars per user"),
        ("x >= 5, y != 3, a -> b", "x at least five, y is not equal to three, a to b"),
    ],
)  # fmt: skip
def test_more_english(written: str, said: str) -> None:
    """Siblings of the corpus' lines."""
    assert say(written, "en-GB") == said


@pytest.mark.parametrize(
    ("written", "language", "said"),
    [
        ("Es sind -5 °C, ± 2, 3 → 4, 50 % & mehr.", "de", "Es sind -5 °C, 2, 3 4, 50 % & mehr."),
        ("Bild ① und ٣", "de", "Bild 1 und 3"),
        ("今日は5度です。", "ja", "今日は5度です。"),
        ("Il fait -5 °C.", None, "Il fait -5 °C."),
        ("Il fait -5 °C.", "auto", "Il fait -5 °C."),
    ],
)
def test_other_languages(written: str, language: str | None, said: str) -> None:
    """A language without rules keeps its digits; signs that its voice may not know are left out, as ever."""
    assert say(written, language) == said


@pytest.mark.parametrize("text", ["", "…", "日本語", "привет", "مرحبا", "→ ± ≥", "---", "🎉"])
def test_nothing_to_say(text: str) -> None:
    """What a French or English voice can say nothing of is empty: it would spell "Chinese letter"."""
    assert say(text, "fr") == say(text, "en") == ""


def test_other_letters_are_left_out() -> None:
    """Of a text in two scripts a voice says what it can; Greek letters are known to both."""
    assert say("Le mot 日本 (Nihon) et π", "fr") == "Le mot (Nihon) et π"


PIECES = [
    "-5", " ", "°C", "18h30", "1/2", "½", "XIV", "Louis ", "1 234", "3,50 €", "$5", "%", "&", "→", "≥", "etc.", "M. ", "12", ".", ",",
    "a", "é", "漢", "06 12 34 56 78", "2024-05-03", "x²", "@", "#", "/", "(", "n° ", "km/h", "Ier", "7j/7", "10-15", ":", "~",
]  # fmt: skip


@pytest.mark.parametrize("language", ["fr", "en", "de"])
def test_any_text(language: str) -> None:
    """Whatever the text, what is said is one line without double spaces, no longer than a voice takes, and never fails."""
    dice = random.Random(16)
    for _ in range(1_000):
        said = say("".join(dice.choices(PIECES, k=dice.randrange(40))), language)
        assert said == " ".join(said.split())
        assert len(said) <= LIMIT_CHARS
        assert language == "de" or not any(character.isdigit() for character in said)


@pytest.mark.parametrize(
    "pattern",
    ["9", "0", "1 ", "1,", "1.", "-5 ", "1/2 ", "a.", "M. ", "18h30 ", "1 234 ", "x@", "€5 ", "IV", "½", "°", "1-", "12 janv. ", "5 km/h ", "Louis XIV "],
)  # fmt: skip
def test_cost_is_linear(pattern: str) -> None:
    """Ten thousand characters take a tenth of a second, whatever they are: a sentence has 300."""
    text = (pattern * 10_000)[:10_000]
    for language in ("fr", "en"):
        started = time.process_time()
        assert len(spoken_form(text, language)) <= LIMIT_CHARS
        assert time.process_time() - started < 2  # 0.02 to 0.1 s measured; quadratic would be minutes
