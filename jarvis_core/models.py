"""The domain: conversations, messages, what a model is asked and what it says."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal, Protocol

import uuid_utils
from msgspec import Struct

HEX_AND_DASH = frozenset("0123456789abcdefABCDEF-")

Role = Literal["system", "user", "assistant"]


class Status(enum.StrEnum):
    """How a turn stands, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    """The model said all that it wanted to say."""
    INCOMPLETE = "incomplete"
    """Cut short: ``max_tokens``, a lost or stalled stream, the server's end."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """Nothing was generated, because of an error."""


class Caller(Struct, frozen=True):
    """Who asks."""

    user_id: str
    username: str = ""


class Conversation(Struct, frozen=True):
    """A stored conversation."""

    id: str
    title: str
    summary: str | None
    created_at: datetime
    updated_at: datetime
    message_count: int
    archived: bool


class Message(Struct, frozen=True):
    """A stored message; an assistant's has the id of its turn."""

    id: str
    conversation_id: str
    role: Role
    content: str
    timestamp: datetime
    tokens: int | None
    """What the model generated; null for what a user wrote."""
    model: str | None
    status: Status


class TurnRecord(Struct, frozen=True):
    """A turn as the store has it."""

    id: str
    conversation_id: str
    user_message_id: str
    status: Status
    reason: str | None
    """Why it ended so: ``stop``, ``max_tokens``, ``stream_lost``, ``stalled``, ``server_stopped``, an error's code …"""
    content: str
    tokens: int
    model: str
    memories: list[str]
    started_at: datetime
    ended_at: datetime | None
    error: str | None
    """For a person, where the turn failed."""


class IdempotencyKey(Struct, frozen=True):
    """A caller's own name for a request, so that a retry is known as one."""

    text: str
    request_hash: bytes
    """Of what was asked; another request under the same key is a mistake."""


class Utterance(Struct, frozen=True):
    """One message of a prompt."""

    role: Role
    content: str


class Prompt(Struct, frozen=True):
    """What a model is asked."""

    system: str
    history: list[Utterance]
    """Earlier messages, oldest first; whoever sends them takes the latest that fit."""
    content: str
    """The newest message of the user; never shortened."""
    temperature: float
    max_tokens: int


class Finish(Struct, frozen=True):
    """How a model's stream ended; its last item."""

    reason: Literal["stop", "length", "lost", "stalled", "deadline"]
    """``stop`` is the model's own end; all others cut it short."""
    tokens: int | None = None
    """Generated; None where the neighbour did not say."""
    model: str = ""


class LanguageModel(Protocol):
    """What answers: an adapter under ``services/``."""

    history_limit_chars: int
    """More history than this many code points is never used."""

    def generate(self, prompt: Prompt, caller: Caller) -> AbstractAsyncContextManager[AsyncIterator[str | Finish]]:
        """
        Ask the model; the iterator gives pieces of text as they arrive, and a ``Finish`` last.

        Entering waits for the neighbour's first sign of an answer. Leaving closes the neighbour's connection unless
        the answer was read to its end. Raises ``Unavailable``, ``BadGateway``, ``DeadlineExceeded`` or
        ``InvalidRequest``; once text has arrived a loss is a ``Finish`` instead.
        """
        ...


def new_id() -> str:
    """Return a UUIDv7: sorts by the time it was made."""
    return str(uuid_utils.uuid7())


def is_id(text: str) -> bool:
    """Whether *text* is written as a UUID in its canonical form."""
    return (
        len(text) == 36
        and text[8] == text[13] == text[18] == text[23] == "-"
        and text.count("-") == 4
        and HEX_AND_DASH.issuperset(text)
    )
