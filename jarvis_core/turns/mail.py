"""The messages between workers about turns and sessions: small, and repeated by a worker that misses an answer."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import Struct

from jarvis_core.models import Heard, Receipt, Status


class Follow(Struct, tag="f", array_like=True, frozen=True):
    """Asks for the text of *turn* from the code point *at* on."""

    turn: str
    user: str
    at: int


class Leave(Struct, tag="l", array_like=True, frozen=True):
    """The sender has no reader of *turn* any more."""

    turn: str


class Cancel(Struct, tag="c", array_like=True, frozen=True):
    """Asks for the turn's end."""

    turn: str
    user: str
    reason: str
    heard: Heard | None = None


class Progress(Struct, tag="p", array_like=True, frozen=True):
    """The text from the code point *at* on."""

    turn: str
    at: int
    text: str
    memories: list[str]
    answer_at: int = 0
    """How much of all that was said is not the answer."""


class Ended(Struct, tag="e", array_like=True, frozen=True):
    """The last of the text, and how the turn ended."""

    turn: str
    at: int
    text: str
    status: Status
    reason: str
    error: tuple[str, str] | None
    """Code and message."""
    tokens: int
    model: str
    memories: list[str]
    ended_at: datetime
    answer_at: int = 0
    receipt: Receipt | None = None
    has_calls: bool = False
    """Whether there are calls that are the client's to see: the store tells of them."""
    prompt_tokens: int = 0


class Unknown(Struct, tag="u", array_like=True, frozen=True):
    """The turn does not run here: the store knows how it ended."""

    turn: str


class Alive(Struct, tag="a", array_like=True, frozen=True):
    """The sender lives, and sends the text of *turns*."""

    turns: list[str]


class TakeSession(Struct, tag="t", array_like=True, frozen=True):
    """Asks for the session of a response whose client has come back to *worker*, which gets the answer."""

    question: int
    worker: str
    turn: str
    user: str
    after: int
    """The number of the last event that the client has seen."""
    hops: int = 0
    """How many workers have passed the question on to where the session went."""


class SessionTaken(Struct, tag="s", array_like=True, frozen=True):
    """A ``SessionSnapshot``; None where the sender does not have the session."""

    question: int
    snapshot: bytes | None


Message = TakeSession | SessionTaken | Follow | Leave | Cancel | Progress | Ended | Unknown | Alive

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode
