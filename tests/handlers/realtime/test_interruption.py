"""How an answer is interrupted: the order of falling silent, of keeping what was heard, and of telling the end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from jarvis_core.conversation.ledger import Ledger
from jarvis_core.conversation.machine import Conversation, Manner
from jarvis_core.handlers.realtime.config import SessionSettings, default_config
from jarvis_core.handlers.realtime.interruption import Interrupter
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.models import Caller, Heard
from jarvis_core.settings import Llm

SETTINGS = SessionSettings(default_config("sess_1", None, Llm(), "audio"))


class SlowStore:
    """Turns whose store takes its time."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.stopped = False

    async def stop(self, turn: Any, *, reason: str, heard: Heard) -> None:
        self.stopped = True
        turn.ended = True
        self.asked.set()
        await self.answers.wait()
        turn.heard_ms = heard.ms

    async def truncate(self, *_: object, **__: object) -> None:
        self.asked.set()
        await self.answers.wait()


class SpokenTurn:
    """A turn of which more is to be spoken."""

    def __init__(self, *, ended: bool) -> None:
        self.id, self.ended = "turn", ended
        self.heard_ms: int | None = None

    def text(self) -> str:
        return "Bonjour."


class Voice:
    """An output that remembers why it was stopped."""

    def __init__(self, turn: SpokenTurn) -> None:
        self.turn, self.ledger, self.silenced = turn, Ledger(), ""

    def silence(self, reason: str) -> None:
        self.silenced = reason


class Ears:
    """The microphone of a session in whose first second the assistant is heard."""

    def __init__(self) -> None:
        self.conversation, self.time_ms = Conversation(Manner()), 1_000.0
        self.conversation.begin_answer()
        self.conversation.send_sound(5_000, 0)


async def check(*, ended: bool) -> None:
    """Interrupt a turn, and look at what holds while the store has not answered."""
    store, voice, ears = SlowStore(), Voice(SpokenTurn(ended=ended)), Ears()
    response = ResponseStream(*(cast("Any", None),) * 4, cast("Any", ears))
    response.output = cast("Any", voice)
    interrupter = Interrupter(
        cast("Any", store), Caller("alice"), cast("Any", None), SETTINGS, response, cast("Any", ears)
    )
    task = asyncio.create_task(interrupter.interrupt("turn_detected"))
    async with asyncio.timeout(5):
        await store.asked.wait()
        assert voice.silenced == "turn_detected"
        assert store.stopped is not ended
        assert not response.end_free
        store.answers.set()
        await task
    assert response.end_free


@pytest.mark.behaviour("barge_in.at_once")
async def test_silent_before_the_store_answers() -> None:
    """An answer whose text is whole falls silent at once, and its end waits until what was heard is stored."""
    await check(ended=True)


async def test_a_running_turn_too() -> None:
    """So does one that the model is still writing."""
    await check(ended=False)
