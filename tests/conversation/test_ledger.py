"""What was heard of an answer: whole words, whatever was played when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jarvis_core.conversation.ledger import Ledger

SENTENCES = ("Bonjour à tous. ", "Il est 18 h 30, et il fait beau. ", "Sortons !")
TEXT = "".join(SENTENCES)


def spoken(sent_ms: float = 1 << 30) -> Ledger:
    """Return the ledger of the sentences, 100 ms for each code point, of which so much was sent."""
    ledger = Ledger()
    end = 0
    for sentence in SENTENCES:
        end += len(sentence)
        if sent_ms > 0:
            ledger.begin(sentence, end, 100 * len(sentence))
            ledger.send(min(sent_ms, 100 * len(sentence)))
        sent_ms -= 100 * len(sentence)
    return ledger


@given(st.floats(0, 10_000), st.floats(0, 10_000))
def test_whole_words(first_ms: float, second_ms: float) -> None:
    """What was heard ends behind a word, grows with the time, and is all in the end."""
    ledger = spoken()
    less, more = (ledger.heard_chars(one) for one in sorted((first_ms, second_ms)))
    assert less <= more <= len(TEXT)
    heard = TEXT[:less]
    assert heard == heard.rstrip()
    assert not less or TEXT[less : less + 1] in ("", " ")
    assert ledger.heard_chars(ledger.sent_ms) == len(TEXT)
    assert ledger.heard_chars(0) == 0


@given(st.floats(0, 6_000))
def test_near_to_what_was_played(heard_ms: float) -> None:
    """The text that counts as heard is at most a word behind what was played."""
    chars = spoken().heard_chars(heard_ms)
    assert abs(100 * chars - heard_ms) <= 900


def test_sound_that_was_not_sent() -> None:
    """No more is heard than was sent, also in the middle of a sentence."""
    ledger = spoken(1_600 + 1_000)
    assert ledger.sent_ms == 2_600
    assert TEXT[: ledger.heard_chars(60_000)] == "Bonjour à tous. Il est"
    assert ledger.heard_chars(60_000) == ledger.heard_chars(2_600)


def test_sent_again() -> None:
    """A sentence that is sent again, to a client that came back, counts once."""
    ledger = spoken(2_000)
    ledger.begin(SENTENCES[1], len("".join(SENTENCES[:2])), 3_300, 400)
    ledger.send(2_900)
    assert ledger.sent_ms == 1_600 + 3_300
    assert TEXT[: ledger.heard_chars(4_900)] == "".join(SENTENCES[:2])


@pytest.mark.parametrize("text", ["   ", "—"])
def test_nothing_to_say(text: str) -> None:
    """What has no words is heard with what is around it."""
    ledger = Ledger()
    ledger.begin("Oui. ", 5, 500)
    ledger.send(500)
    ledger.begin(text, 5 + len(text), 0)
    assert ledger.heard_chars(500) == 5 + len(text)
    assert ledger.heard_chars(100) in (0, 4)
