"""Folding: the same word is the same, whoever writes it, in French and English; and what must not be the same is not."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jarvis_core.words.normalization import (
    JOINER,
    MARKS_LIMIT,
    WORD_LIMIT_CHARS,
    fingerprint,
    fold,
    gist,
    sounds_of,
    stem,
    stream_safe,
    terms_of,
)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Cœur", "coeur"),
        ("ÉLÈVE ÇA où", "eleve ca ou"),
        ("Straße", "strasse"),
        ("Æon œuvre", "aeon oeuvre"),
        ("l’été", "l'ete"),
        ("ﬁn", "fin"),
        ("Łódź Øre", "lodz ore"),
        ("İstanbul", "istanbul"),
        ("42 €", "42 €"),
        ("", ""),
    ],
)
def test_fold(text: str, folded: str) -> None:
    """Case, accents and ligatures do not count, composed or decomposed; and folding twice changes nothing more."""
    assert fold(text) == folded
    assert fold(unicodedata.normalize("NFD", text)) == folded
    assert fold(folded) == folded


@pytest.mark.parametrize(
    "forms",
    [
        "manger mange mangé mangée mangez",
        "allergie allergies allergy allergic allergique",
        "family families famille familles",
        "love loves loved loving",
        "travail travaille travailler travaillait travaillé",
        "animal animaux animals",
        "favourite favorite favourites",
        "colour color colours",
        "organise organize organised organising organisation organization",
        "study studies studied studying",
        "heureux heureuse",
        "doctor docteur doctors docteurs",
        "city cities",
        "party parties",
        "cousin cousine cousins cousines",
        "bus buses",
        "jeu jeux",
        "cœur coeur Cœurs",
        "play plays played playing",
        "run runs running",
        "habite habitait habiter",
        "recommend recommended recommends",
        "Gaëlle Gaelle GAËLLE",
    ],
)
def test_forms_share_a_stem(forms: str) -> None:
    """Forms of one word are found by one another."""
    assert len({tuple(terms_of(form)) for form in forms.split()}) == 1


@pytest.mark.parametrize(
    "words",
    [
        "Anna Anne",
        "Paris Lyon",
        "frère sœur",
        "car bar",
        "mardi mars",
        "12 13",
        "June July",
        "chat chou",
        "père mère",
        "Lea Leo",
        "rent rend",
        "party part",
    ],
)
def test_different_words_have_different_stems(words: str) -> None:
    """Words that mean something else are not thrown together."""
    one, other = words.split()
    assert terms_of(one) != terms_of(other)


def test_words_that_tell_nothing_are_left_out() -> None:
    """What stands in every sentence is no term, but what tells something in the other language is one."""
    assert terms_of("Quel est le nom de la sœur de l'oncle ?") == terms_of("nom soeur oncle")
    assert terms_of("What is the name of my uncle's sister?") == terms_of("name uncle sister")
    assert terms_of("car son or pour but") == ["car", "son", "or", "pour", "but"]
    assert terms_of("J'aime le thé en été") == ["aim", "the", "ete"]
    assert terms_of("après à où") == terms_of("apres a ou") == terms_of("  …?! ") == []


@pytest.mark.parametrize(
    ("text", "found_by"),
    [
        ("code AB-1234", "ab1234"),
        ("code AB-1234", "ab"),
        ("appelle le 06 12 34 56 78", "0612345678"),
        ("appelle le 06 12 34 56 78", "78"),
        ("routeur 192.168.1.10", "192168110"),
        ("plaque FR_22-xz", "fr22xz"),
        ("x9", "x9"),
    ],
)
def test_codes_and_numbers(text: str, found_by: str) -> None:
    """A number or code is found whole, whatever stands between its parts, and by each part; never by a stem."""
    assert found_by in terms_of(text)
    assert set(terms_of(found_by)) <= set(terms_of(text))


def test_terms_stand_as_often_as_in_the_text() -> None:
    """A term counts each time that it is there."""
    assert terms_of("thé vert, thé noir").count("the") == 2
    assert terms_of("noir c'est noir").count("noir") == 2


@pytest.mark.parametrize(
    "text", ["a" * 50_000, "é" * 50_000, "a1" * 25_000, "a-" * 25_000, "1 " * 25_000, "\ud800x\0y"]
)
def test_odd_texts(text: str) -> None:
    """Texts of any kind give terms of a bounded length, which PostgreSQL can store."""
    for term in terms_of(text):
        assert 0 < len(term) <= WORD_LIMIT_CHARS
        assert term.encode()
        assert "\0" not in term
    assert len(fingerprint(text)) == len(gist(text)) == 16


def test_stems_are_stable() -> None:
    """What is looked for is not folded further than what is stored: short words, codes and digits stay whole."""
    for word in ("les", "06", "ab1234", "x", "été"):
        assert stem(fold(word)) == fold(word)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("J'aime le café.", "j'aime le CAFÉ"),
        ("Mon cœur, ma vie", "mon coeur ma vie !"),
        ("Paul's dog", "paul’s  dog"),
        ("  a\tb\n", "A b"),
    ],
)
def test_same_words_have_the_same_fingerprint(one: str, other: str) -> None:
    """Case, accents, spaces and punctuation make no other fact."""
    assert fingerprint(one) == fingerprint(other)


DIFFERENT_FACTS = [
    ("my number is 12", "my number is 13"),
    ("mon code est 12-34", "mon code est 12-35"),
    ("I owe Bob 5 €", "I owe Bob 5 $"),
    ("the answer is -5", "the answer is 5"),
    ("it weighs 1.5 kg", "it weighs 15 kg"),
    ("I learn C", "I learn C++"),
    ("I am fine 🙂", "I am fine 🙁"),
    ("Anna vient", "Anna vient ?"),
    ("Paul called Marie", "Marie called Paul"),
    ("I moved from Paris to Lyon", "I moved from Lyon to Paris"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT_FACTS)
def test_different_facts_have_different_fingerprints(one: str, other: str) -> None:
    """Numbers, signs and the order of words make another fact."""
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I like coffee", "I really like coffee"),
        ("I'm allergic to nuts", "I am very allergic to nuts"),
        ("My favourite colour is blue", "my favorite color is blue!"),
        ("Remember that the gate is locked", "The gate is locked"),
        ("Please note that the gate is locked", "the gate is locked"),
        ("J'aime le café", "j'aime vraiment le café"),
        ("Retiens que la porte est fermée", "La porte est fermée."),
        ("N'oublie pas qu'Anna vient demain", "Anna vient demain"),
        ("Ma sœur est très gentille", "ma soeur est gentille"),
        ("I don't eat fish", "I do not eat fish"),
    ],
)
def test_nearly_the_same_words_have_the_same_gist(one: str, other: str) -> None:
    """Articles, emphasis, spelling and "remember that" make no other fact, if the vectors agree."""
    assert gist(one) == gist(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *DIFFERENT_FACTS,
        ("I eat fish", "I do not eat fish"),
        ("Je mange du poisson", "Je ne mange pas de poisson"),
        ("I live in Paris", "I live in Lyon"),
        ("Ma sœur s'appelle Anna", "Ma sœur s'appelle Anne"),
        ("my brother's number", "my sister's number"),
        ("I live with Anna", "I live without Anna"),
        ("I was vegetarian", "I am vegetarian"),
        ("I like tea", "I like tea with sugar"),
        ("My brother lives in Rome", "My brothers live in Rome"),
        ("her phone is blue", "his phone is blue"),
        ("Elle mange tard", "Elle a mangé tard"),
        ("le train de Lyon", "le train pour Lyon"),
        ("J'aime le thé", "J'aime le café"),
        ("J'aime le thé", "J'aime le"),
        ("the red door", "the blue door"),
        ("Remember the milk", "the milk"),
        ("I never smoke", "I smoke"),
        ("J'ai un chat", "J'ai deux chats"),
    ],
)
def test_different_facts_have_different_gists(one: str, other: str) -> None:
    """However near their vectors are, these are two facts: one of them would be lost."""
    assert gist(one) != gist(other)


@pytest.mark.parametrize(
    ("name", "misspelt"),
    [
        ("Gaëlle", "Gael"),
        ("Mathieu", "Matthieu"),
        ("Sébastien", "Sebastian"),
        ("Sébastien", "Sebasten"),
        ("Catherine", "Kathrine"),
        ("Schwarzenegger", "Shwartzeneger"),
        ("Françoise", "Fransoise"),
        ("Philippe", "Filipe"),
        ("Kevin", "Kevyn"),
        ("Hamish", "Hamsih"),
    ],
)
def test_misspelt_names_share_a_sound(name: str, misspelt: str) -> None:
    """A name that was only heard leads to the one that is stored."""
    (one,), (other,) = terms_of(name), terms_of(misspelt)
    assert set(sounds_of(one)) & set(sounds_of(other))


@pytest.mark.parametrize("term", ["", "lea", "ab1234", "1234567", "x9"])
def test_codes_and_short_words_are_never_guessed(term: str) -> None:
    """A code that nearly fits is another code."""
    assert sounds_of(term) == []


@pytest.mark.parametrize("marks", [0, 1, MARKS_LIMIT, MARKS_LIMIT + 1, 3 * MARKS_LIMIT, 3 * MARKS_LIMIT + 1, 1_000])
def test_runs_of_marks_end(marks: int) -> None:
    """No run of marks is longer than any language needs, and all of the text is still there."""
    text = "a" + "\u0301\u0323" * (marks // 2) + "\u0301" * (marks % 2) + "b"
    safe = stream_safe(text)
    runs = [len(run) for run in re.findall("[\u0301\u0323]+", safe)]
    assert max(runs, default=0) <= MARKS_LIMIT
    assert safe.replace(JOINER, "") == text
    assert (safe == text) == (marks <= MARKS_LIMIT)
    assert fold(text) == "ab"


@given(st.text(st.characters(codec="utf-8"), max_size=200) | st.text("ae\u0301\u0323\u0344\u0f73\u3099", max_size=400))
def test_safe_is_the_same_text(text: str) -> None:
    """Only joiners are added, once is enough, and a text without long runs stays as it is."""
    safe = stream_safe(text)
    assert safe.replace(JOINER, "") == text.replace(JOINER, "")
    assert stream_safe(safe) == safe
