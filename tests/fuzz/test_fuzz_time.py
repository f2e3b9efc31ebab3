"""
What a client's text costs, against its length: every function that such a text reaches, on the texts that cost it most.

Counted is the processor time of this thread, the least of several tries, at two lengths of which one is eight times the other: a
function that grows by the square takes 64 times as long, one that grows by n log n no more than eleven times. Lengths are
small, so that even the worst harms nobody.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import msgspec
import pytest

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import decode, text_field
from jarvis_core.handlers.wire import ChatRequest
from jarvis_core.store.memory_words import LONG_CHARS
from jarvis_core.words import sentences
from jarvis_core.words.markup import speakable
from jarvis_core.words.normalization import fingerprint, fold, gist, terms_of
from jarvis_core.words.spoken_form import spoken_form
from jarvis_core.words.titles import title_from
from tests.fuzz.conftest import CASES

SHORT_CHARS = 500
LONGER = 8
LIMIT_CHARS = 10_000
"""Of a message and of an entry: the longest text that is worked on in one piece."""
GROWTH_LIMIT = 24
"""Between n log n, with room for what a short call costs beside its text, and the square."""
LOOP_LIMIT_S = 0.020
"""No text of a client's holds the event loop for longer; a shared processor may take five times as long."""
NOISE_S = 200e-6
"""What takes less at the greater length is not looked at."""

MARKS = "\u0301\u0323"
PIECES = (
    "a", "a ", "a\n", "\n", "\r\n", " \n", "\n\n ", ".", "a.", "a. ", ". ", "… ", "M. ", "1", "1 ", "1.", "1,", "1 2", "-", "- ", "a-", "a-1", "'", "n't ",
    "it's ", "’", "é", "e\u0301", MARKS, "\u0344", "œ", "ß", "İ", "ﷺ", "漢", "漢。", "한", "👩‍👩‍👧 ", "🇫🇷", "<", "<b>", "</", "<!--", "&", "&amp;", "&#", "`", "``` ",
    "*", "**a", "_a_ ", "#", "# a\n", "|", "|-|\n", "[", "](", "[a](b) ", "http://a ", "http:", "a@b.", "\\", "(", "((", ")", '"', "{", "{}", "\t", "\u200b", "\u202e",
    "\u00a0", "1\u202f", "18h30 ", "XIV ", "-5 °C ", "½", "①", "٣", "a\u034f", "\u0000a", "ee", "ou", "ies ", "please ",
)  # fmt: skip
"""Repeated these make the texts."""


def _feed(text: str) -> None:
    splitter = sentences.SentenceSplitter()
    for start in range(0, len(text), 7):
        splitter.feed(text[start : start + 7])
    splitter.end()


def _decode(text: str) -> None:
    body = msgspec.json.encode({"content": text})
    if len(text) <= LIMIT_CHARS:
        decode(msgspec.json.Decoder(ChatRequest), body)


def _checked(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        text_field("$.content", text.replace("\0", ""))


def _spoken(text: str) -> None:
    # Sentence by sentence, as a voice gets them.
    for sentence in sentences.split(text):
        spoken_form(sentence, "fr")


ON_THE_LOOP_CHARS = dict.fromkeys(("fold", "terms_of", "fingerprint", "gist"), LONG_CHARS) | {"spoken_form": 300}
"""The longest text of each on the event loop, where that is not ``LIMIT_CHARS``: memories' words, and sentences."""
FUNCTIONS: dict[str, Callable[[str], object]] = {
    "fold": fold,
    "terms_of": terms_of,
    "fingerprint": fingerprint,
    "gist": gist,
    "title_from": title_from,
    "text_field": _checked,
    "decode": _decode,
    "speakable": speakable,
    "spoken_form": _spoken,
    "split": sentences.split,
    "feed": _feed,
}
"""Every one that a client's text, or a model's, reaches on the event loop."""


def cost_s(function: Callable[[str], object], text: str, tries: int) -> float:
    """Return the processor time of one call, the least of *tries*."""
    costs = []
    for _ in range(tries):
        begun = time.thread_time()
        function(text)
        costs.append(time.thread_time() - begun)
    return min(costs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_grows_with_length(name: str) -> None:
    """No function's time grows by the square of a text's length, whatever the text, nor holds the loop at the limit."""
    function = FUNCTIONS[name]
    slow: list[str] = []
    for piece in PIECES if CASES else PIECES[::3]:
        for frame in ("{}", "x {} x") if CASES else ("x {} x",):
            short = frame.format(piece * SHORT_CHARS)[:SHORT_CHARS]
            long = frame.format(piece * (SHORT_CHARS * LONGER))[: SHORT_CHARS * LONGER]
            # Once, and again only where that looks bad: somebody else's interrupts are no growth.
            for tries in (1, 5, 20):
                longer_s, short_s = cost_s(function, long, tries), cost_s(function, short, 2 * tries)
                grows = longer_s > NOISE_S and longer_s > GROWTH_LIMIT * short_s
                holds = longer_s * ON_THE_LOOP_CHARS.get(name, LIMIT_CHARS) / len(long) > 5 * LOOP_LIMIT_S
                if not (grows or holds):
                    break
            else:
                slow.append(f"{piece!r}: {short_s * 1e3:.2f} ms, and {longer_s * 1e3:.2f} for {LONGER} times as much")
    assert slow == []


@pytest.mark.parametrize("power", [1, 2])
def test_growth_is_seen(power: int) -> None:
    """What grows by the square is told from what grows with the length."""

    def work(text: str) -> None:
        for _ in range(len(text) ** power // 1_000 ** (power - 1)):
            pass

    ratio = cost_s(work, "x" * SHORT_CHARS * LONGER, 3) / cost_s(work, "x" * SHORT_CHARS, 5)
    assert (ratio > GROWTH_LIMIT) == (power == 2)
