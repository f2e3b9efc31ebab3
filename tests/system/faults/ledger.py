"""
The books of the clients: what each was told, and what it saw that must never be seen.

A question says how it is answered (``answer_to``), so that a wrong, cut or mixed-up answer can be told from a right one
without knowing which call of the model made it.
"""

from __future__ import annotations

import itertools
import statistics
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from tests.fakes.content import last_words
from tests.fakes.openai_compatible import content_text
from tests.fakes.streams import ModelStream

LENGTHS = (1, 8, 30, 120)
"""Words of an answer."""
CODES = {
    409: ("conflict",),
    429: ("rate_limited",),
    502: ("bad_gateway",),
    503: ("unavailable", "overloaded"),
    504: ("timeout",),
}
"""What a request may be refused with where all that fails is around the server."""
RETRY_LATER = ("rate_limited", "unavailable", "overloaded")
"""Codes that come with Retry-After."""
KEPT_ACCUSATIONS = 40

_rounds = itertools.count(1)


def answer_to(question: str) -> str:
    """Return what the model says to *question*: so many words, all of them this question's own."""
    mark = zlib.crc32(question.encode())
    return " ".join(f"mot{number}é·{mark:x}" for number in range(LENGTHS[mark % len(LENGTHS)]))


def asked_of_bridges(body: Mapping[str, Any]) -> str:
    """Return the question in a request to the bridges' model."""
    return last_words(body["prompt"])


def asked_of_model_server(body: Mapping[str, Any]) -> str:
    """
    Return the question in a request to an OpenAI-compatible model.

    It is the last line: a question that was not answered before it is part of the same message.
    """
    return content_text(body["messages"][-1]).strip().rpartition("\n")[2]


class Told(Struct, kw_only=True):
    """One turn, as its client knows it."""

    id: str
    conversation_id: str
    question: str
    status: str | None = None
    """How it ended, where the client was told."""
    reason: str | None = None
    text: str = ""
    """What it ended with."""
    deltas: list[tuple[float, str]] = []
    """With their times (monotonic)."""
    stopped_at: float | None = None
    """When its client left it, or was told that it is cancelled (monotonic)."""
    keyed: bool = False
    """Whether it goes on without its client, and may be run again."""

    @property
    def final(self) -> bool:
        """Whether what was told is what has to be found: an end that could not be stored yet is found later."""
        return self.status is not None and self.reason != "not_stored" and not (self.keyed and not self.text)

    def seen(self, until: float = float("inf")) -> str:
        """Return the text that had come up to *until* (monotonic)."""
        return "".join(text for at, text in self.deltas if at <= until)


class Ledger:
    """What all clients of one round were told."""

    def __init__(self, *, mortal: bool = False) -> None:
        self.mortal = mortal
        """Whether the server may be killed: then a connection that breaks is no accusation."""
        self.name = f"r{next(_rounds)}"
        """In every question, so that no two rounds ask the same."""
        self.numbers = itertools.count(1)
        """In every question, so that no two clients ask the same."""
        self.turns: dict[str, Told] = {}
        self.messages: dict[str, tuple[str, str]] = {}
        """Acknowledged messages of users: id to (conversation, text)."""
        self.memories: dict[str, str] = {}
        """Acknowledged memories: text to id."""
        self.keys: dict[str, str] = {}
        """Questions asked under a key of their own, to the turn that they got."""
        self.unanswered: set[str] = set()
        """Questions asked under a key, while they have no answer."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """By kind of client and what it got."""
        self.times_s: dict[str, list[float]] = {}
        """How long answers took, by kind."""
        self.wrong: list[str] = []
        """What must never be seen, was."""

    # What clients report.

    def created(self, response: Mapping[str, Any], question: str, *, keyed: bool = False) -> Told:
        """Take a ``response.created``: the user's message is acknowledged with it."""
        told = self._turn(response["id"], response["conversation_id"], question, keyed=keyed)
        self.messages[response["user_message_id"]] = (told.conversation_id, question)
        return told

    def done(self, response: Mapping[str, Any]) -> None:
        """Take a ``response.done``."""
        told = self.turns[response["id"]]
        told.status = response["status"]
        told.reason = (response["status_details"] or {}).get("reason")
        told.text = "".join(item["content"][0]["text"] for item in response["output"])

    def answered(self, body: Mapping[str, Any], question: str, *, keyed: bool = False) -> None:
        """Take the whole answer of ``POST /api/chat``."""
        told = self._turn(body["id"], body["conversation_id"], question, keyed=keyed)
        told.status, told.text = body["status"], body["content"]
        if told.status == "incomplete":
            # The answer does not name the reason, so it may be one that is mended later.
            told.reason = "not_stored"

    def failed(self, body: Mapping[str, Any], question: str, *, keyed: bool = False) -> None:
        """Take an error of a turn, whose details name what was acknowledged before the model failed."""
        details = body["details"] or {}
        if "response_id" in details:
            told = self._turn(details["response_id"], details["conversation_id"], question, keyed=keyed)
            told.status, told.text = "failed", ""
            if body["code"] == "unavailable":
                told.reason = "not_stored"

    def count(self, kind: str, outcome: str) -> None:
        """Count what a client got."""
        self.outcomes[kind, outcome] += 1

    def took(self, kind: str, time_s: float) -> None:
        """Note how long an answer took."""
        self.times_s.setdefault(kind, []).append(time_s)

    def accuse(self, who: str, why: str | BaseException) -> None:
        """Note what must not be."""
        if isinstance(why, BaseException):
            frames = traceback.extract_tb(why.__traceback__)
            why = f"{type(why).__name__}: {why}\n    at {'; '.join(f'{one.name}:{one.lineno}' for one in frames[-4:])}"
        if len(self.wrong) < KEPT_ACCUSATIONS:
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {who}: {why}")

    def refusal(self, status: int, headers: Mapping[str, str], body: Mapping[str, Any]) -> str:
        """Return the code of an error, which is of the form and one of the codes that errors have here."""
        assert body.keys() == {"error", "code", "details", "request_id"}, body
        assert body["code"] in CODES.get(status, ()), (status, body)
        assert body["request_id"] == headers["X-Request-ID"]
        assert "Retry-After" in headers or body["code"] not in RETRY_LATER, (status, body, dict(headers))
        code: str = body["code"]
        return code

    # What is said of it.

    def summary(self) -> str:
        """Return what was got, and how long it took, a line a kind."""
        lines = []
        for kind in sorted({kind for kind, _ in self.outcomes}):
            got = ", ".join(f"{what} {n}" for (one, what), n in sorted(self.outcomes.items()) if one == kind)
            times = sorted(self.times_s.get(kind, [0.0]))
            median, longest = statistics.median(times), times[-1]
            lines.append(f"  {kind:<12} median {median * 1e3:6.1f} ms, longest {longest:5.2f} s: {got}")
        return "\n".join(lines)

    def _turn(self, turn_id: str, conversation_id: str, question: str, *, keyed: bool) -> Told:
        told = self.turns.get(turn_id)
        if told is None:
            told = self.turns[turn_id] = Told(
                id=turn_id, conversation_id=conversation_id, question=question, keyed=keyed, deltas=[]
            )
        assert (told.conversation_id, told.question) == (conversation_id, question), "a turn is one question's"
        return told


class Calls:
    """The calls of a fake model, by the question that they were for."""

    def __init__(self, streams: Sequence[ModelStream], asked: Callable[[bytes], str]) -> None:
        self._by_question: dict[str, list[ModelStream]] = {}
        for stream in streams:
            self._by_question.setdefault(asked(stream.body), []).append(stream)

    def of(self, question: str) -> list[ModelStream]:
        """Return the calls for *question*."""
        return self._by_question.get(question, [])
