"""Markup: what of a written sentence can be said."""

from __future__ import annotations

import random
import time

import pytest

from jarvis_core.words.markup import SIGNS, speakable

FAMILY = "👨\u200d👩\u200d👧\u200d👦"
ALPHABET = [
    *"aéÉMpZ19 .!?…,;:«»\"'()*-_—\n。漢€%&<>[]|#~^=+/@①½²→", " ", "\u00a0", "\u202f", "...", "e\u0301", "👍🏽", FAMILY, "**", "\n- ",
    "](", "http://", "www.", "&amp;", "<b>", "<!--", "-->", "|--|",
]  # fmt: skip


def has_speech(text: str) -> bool:
    """Tell whether there is something to say."""
    return any(character.isalnum() or character in SIGNS for character in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bonjour, l'ami.  Ça va ?\n", "Bonjour, l'ami. Ça va ?"),
        ("**Attention** : c'est *très* ~~mal~~ __chaud__ (et _beau_).", "Attention : c'est très mal chaud (et beau)."),
        ("**Bonjour. ", "Bonjour."),
        ("Lancez `main.py` ou ``x``.", "Lancez main.py ou x."),
        ("## Titre\n", "Titre"),
        ("- Pommes\n", "Pommes"),
        ("  * *Poires*\n", "Poires"),
        ("+ Noix", "Noix"),
        ("• Figues", "Figues"),
        ("> > Cité", "Cité"),
        ("- [x] Fait", "x Fait"),
        ("1. **Pommes** rouges", "1. Pommes rouges"),
        ("— Tu viens ?", "Tu viens ?"),
        ('Voir [le site](https://exemple.fr/a_(b) "titre"), [là](x).', "Voir le site, là."),
        ("![Une photo](photo.png)", "Une photo"),
        ("ici](https://exemple.fr).", "ici."),
        ("[![Une photo](photo.png)](https://exemple.fr)", "Une photo"),
        (
            "Allez sur https://exemple.fr/a?b=c. Écrivez à moi@exemple.fr",
            "Allez sur exemple.fr. Écrivez à moi@exemple.fr",
        ),
        ("Super 😊 ! Merci " + FAMILY + " ❤\ufe0f 👍🏽 🇫🇷.", "Super ! Merci."),
        ('« Viens », dit-il, “oui” "non".', "Viens, dit-il, oui non."),
        (
            "J’ai 3,14 € ou 3.14 $, 10 % à -5 °C l\u2019après-midi.",
            "J’ai 3,14 € ou 3.14 $, 10 % à -5 °C l\u2019après-midi.",
        ),
        ("-5 degrés", "-5 degrés"),
        ("10\u00a0000\u202fkm² et ½", "10000 km² et ½"),
        ("2*3 = 6 et 2 * 3 = 6", "2 × 3 = 6 et 2 × 3 = 6"),
        ("snake_case en C# → A\u200bB ✓ #1", "snake case en C# → AB #1"),
        ("| a | b |", "a, b"),
        ("a | b | c", "a, b, c"),
        ("|:-:|---|", ""),
        ("+-----+", ""),
        ("Titre\n=====", "Titre"),
        ("Une ligne<br>et <b>une</b> autre, 3 < 5", "Une ligne et une autre, 3 < 5"),
        ("e\u0301te\u0301", "e\u0301te\u0301"),
        ("你好，「我」。", "你好，我。"),
        ("Bon... voyons…", "Bon... voyons…"),
        ("```python\n", ""),
        ("print(1)\n```\n", "print(1)"),
        ("[](https://exemple.fr)", ""),
        ("", ""),
        (" \n", ""),
        ("« — » ... !", ""),
        ("---\n", ""),
        ("---\n\nVoilà.", "Voilà."),
        ("|---|:--:|", ""),
        ("🎉 ❤\ufe0f", ""),
        # Addresses, entities, notes
        ("<https://exemple.fr/x> et www.exemple.fr", "exemple.fr et exemple.fr"),
        ("Ouvrez http://localhost:8100/docs !", "Ouvrez localhost !"),
        ("exemple.fr/aide", "exemple.fr"),
        ("Tom &amp; Lucie &lt;3 &eacute;t&#233; &#x41; &nbsp;R&D &inconnu;", "Tom & Lucie <3 été A R&D &inconnu;"),
        ("<!-- caché --> vu", "vu"),
        ("une note[^1], une autre[2]", "une note, une autre"),
        # Signs that mean something
        ("5 ± 2, x ≥ 3, ~5 et ≈ 6", "5 ± 2, x ≥ 3, ~5 et ≈ 6"),
        ("a -> b => c <-> d, x >= 5, y <= 3, z != 2, 1 +/- 0", "a → b ⇒ c ↔ d, x ≥ 5, y ≤ 3, z ≠ 2, 1 ± 0"),
        ("~~faux~~ ~ rien", "faux rien"),
        ("© 2024 ® ™ ✓", "2024"),
        # Digits and letters of any form
        ("① Pommes ② Poires ⑫ ❸", "1. Pommes 2 Poires 12 3"),
        ("❶Pommes", "1. Pommes"),
        ("٣ pommes, १२ poires et ５ noix", "3 pommes, 12 poires et 5 noix"),
        ("1\u202f234\u202f567 et 1'234'567 et 1 234", "1234567 et 1234567 et 1 234"),
        ("06\u202f12\u202f34", "06 12 34"),
        ("𝐇𝐞𝐥𝐥𝐨 Ｗｏｒｌｄ, Ⅳ, XXᵉ, nº 5, 20℃, ﬁn", "Hello World, IV, XXe, n° 5, 20°C, fin"),
        ("H₂O et x²", "H2O et x²"),
        ("1\ufe0f\u20e3 Pommes", "1 Pommes"),
        ("→", ""),
        ("± ≥ &", ""),
        ("€", "€"),
    ],
)
def test_speakable(text: str, said: str) -> None:
    """Markup, emoji, quotes and what cannot be said are left out; words, numbers and punctuation stay."""
    assert speakable(text) == said


@pytest.mark.parametrize("seed", range(5))
def test_speakable_is_clean(seed: int) -> None:
    """Whatever the text, what is said is one line without double spaces, markup, quotes or emoji, and says something or is empty."""
    dice = random.Random(seed)
    for _ in range(200):
        said = speakable("".join(dice.choices(ALPHABET, k=dice.randrange(60))))
        assert said == " ".join(said.split())
        assert not said or has_speech(said)
        assert not set(said) & set('*`«»"👍🏽\u200d\ufe0f\ud83d')


@pytest.mark.parametrize(
    "pattern",
    ["a", "&amp;", "<", "<!--", "](", "[a", "|", "| a ", "http://", "www.", "a.b", "~", "1'1", "①", "é", "-", "* "],
)
def test_cost_is_linear(pattern: str) -> None:
    """Twenty thousand characters in one line take well under a second, whatever they are."""
    started = time.process_time()
    speakable((pattern * 20_000)[:20_000])
    assert time.process_time() - started < 2  # 0.01 to 0.05 s measured; quadratic would be minutes
