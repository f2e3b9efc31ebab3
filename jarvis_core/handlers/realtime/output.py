"""Turns a response into events for its session: text as it arrives, or the voice that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import msgspec

from jarvis_core.conversation.ledger import Ledger
from jarvis_core.errors import RequestError
from jarvis_core.handlers.call_events import call_item
from jarvis_core.handlers.events import EventError, Metadata, SpokenOutput, SpokenTurnEvents, TurnEvents
from jarvis_core.handlers.failure import status_of
from jarvis_core.handlers.realtime.audio import bytes_per_second
from jarvis_core.handlers.realtime.wire import ConversationItemEvent, ErrorEvent
from jarvis_core.models import Caller
from jarvis_core.speech.narration import Cursor, Narration, Phase
from jarvis_core.speech.synthesis import SpeechOptions, Synthesizer
from jarvis_core.turns.log import CLOSING, OPENING, CallEntry, CallStep, Reader, Step, Turn

VOICE_DONE = Cursor(Phase.VOICE_DONE)
OPENED_AT = 2
"""The log's position of the first step of ``OPENING``, behind the turn's creation."""
BESIDE_BYTES = 1
"""Of a place: the item's event of the conversation, which follows that of the response. No step has sound."""
BESIDE = {Step.ITEM_ADDED: "conversation.item.added", Step.ITEM_DONE: "conversation.item.done"}
"""What else is told with a step: a response's item is also one of the conversation."""
BESIDE_CALL = {CallStep.ADDED: "conversation.item.added", CallStep.DONE: "conversation.item.done"}


SEEN = {
    Cursor(Phase.OPENING, OPENING.index(Step.ITEM_ADDED)): Step.ITEM_ADDED,
    Cursor(Phase.CLOSING, CLOSING.index(Step.ITEM_DONE)): Step.ITEM_DONE,
}
"""By the place of the last event that a client has seen of a spoken response: the step whose event beside it is missing."""


class Event:
    """An event to send: its place in the response, its step, and its encoder."""

    __slots__ = ("item_id", "place", "sound_ms", "step", "write")

    def __init__(
        self, place: Cursor, step: Step | None, write: Writer, sound_ms: float = 0.0, item_id: str | None = None
    ) -> None:
        self.place = place
        self.item_id = item_id
        """Of a call's item that becomes the conversation's last."""
        self.step = step
        """None for a delta and the like."""
        self.write = write
        self.sound_ms = sound_ms
        """How long the sound in it is."""


class Writer(Protocol):
    """Returns the JSON of an event with the number *seq*."""

    def __call__(self, seq: int) -> bytes: ...


class Output(Protocol):
    """The events of one response for one session, which resumes after the place of the last event that it has sent."""

    turn: Turn

    ledger: Ledger | None
    """What was said of it as sound; None where it is text."""
    metadata: Metadata | None
    """What the client gave it."""
    previous_item_id: str | None
    """The item before the assistant's; known when that begins."""

    @property
    def silenced(self) -> str | None:
        """Why the output was stopped before its end; None where it was not."""
        ...

    def events(self, after: Cursor) -> AsyncGenerator[Event, None]:
        """Yield the events after the place *after*, to the end."""
        ...

    def silence(self, reason: str) -> None:
        """Stop output that goes on after the turn has ended; *reason* is as a turn's."""
        ...


def event_error(error: RequestError, event_id: str | None) -> EventError:
    """Return *error*, caused by the client's event *event_id*, as events tell it."""
    kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    return EventError(kind, error.code, error.message, (error.details or {}).get("path"), event_id)


class TextOutput:
    """Sends the text as it arrives."""

    def __init__(self, turn: Turn, metadata: Metadata | None) -> None:
        self.turn = turn
        self.metadata = metadata
        self.silenced: str | None = None
        self.ledger: Ledger | None = None
        self.previous_item_id: str | None = None
        self._events = TurnEvents(turn, metadata=metadata, calls_complete=True)

    async def events(self, after: Cursor) -> AsyncGenerator[Event, None]:
        """Yield the entries of the turn's log; a place holds the log's position."""
        reader = Reader(self.turn, after.at)
        events = self._events
        if not after.sound_bytes and (step := self._step_at(after.at)) in BESIDE:
            yield _beside(self, events, after, step)
        while True:
            taken = await reader.next()
            for position, entry in taken:
                step = entry if isinstance(entry, Step) else None
                place = Cursor(Phase.TEXT, position)
                yield Event(place, step, lambda seq, entry=entry: events.json(seq, entry))
                if step in BESIDE and self.turn.conversation_id:
                    yield _beside(self, events, place, step)
                elif isinstance(entry, CallEntry) and entry.step in BESIDE_CALL:
                    yield _beside_call(self, place, entry)
            if not taken or taken[-1][1] is Step.ENDED:
                return
            if reader.behind:
                # Neither a send nor ``next`` yields to the loop here: let other tasks run.
                await asyncio.sleep(0)

    def silence(self, reason: str) -> None:
        """Do nothing: the text ends with its turn."""

    def _step_at(self, position: int) -> Step | None:
        """Return the step at the end of what the client has seen; the log of a turn that runs elsewhere may still be empty."""
        if position == OPENED_AT and not self.turn.ended:
            return Step.ITEM_ADDED
        return self.turn.step_at(position)


class AudioOutput:
    """Sends the voice and the text that it reads."""

    def __init__(
        self,
        turn: Turn,
        synthesizer: Synthesizer,
        options: SpeechOptions,
        audio: SpokenOutput,
        caller: Caller,
        metadata: Metadata | None,
    ) -> None:
        self.turn = turn
        self.metadata = metadata
        self._narration = Narration(turn, synthesizer, options, caller)
        self.ledger: Ledger | None = self._narration.ledger
        self.previous_item_id: str | None = None
        self._audio = audio
        self._events = SpokenTurnEvents(
            turn, audio, lambda: self._narration.silenced, self._narration.transcript, metadata=metadata
        )

    @property
    def silenced(self) -> str | None:
        """Why the voice was stopped before its end; None where it was not."""
        return self._narration.silenced

    async def events(self, after: Cursor) -> AsyncGenerator[Event, None]:
        """Yield the narration's entries."""
        events = self._events
        if self.turn.opened and (step := SEEN.get(after)) is not None:
            yield _beside(self, events, after, step)
        async with aclosing(self._narration.entries(after)) as entries:
            async for place, entry in entries:
                if entry is Step.TEXT_DONE and after < VOICE_DONE:
                    yield Event(VOICE_DONE, None, events.audio_done_json)
                if entry is (Step.TEXT_DONE if self.turn.opened else Step.ENDED):
                    # A voice tells of calls once it has said what was said before them.
                    for number, call in enumerate(self.turn.call_entries(), 1):
                        called = Cursor(Phase.VOICE_DONE, number)
                        if after < called:
                            yield Event(called, None, lambda seq, call=call: events.json(seq, call))
                            if call.step in BESIDE_CALL:
                                yield _beside_call(self, called, call)
                if isinstance(entry, bytes):
                    sound_ms = 1_000 * len(entry) / bytes_per_second(self._audio.format)
                    yield Event(place, None, lambda seq, samples=entry: events.audio_json(seq, samples), sound_ms)
                    await asyncio.sleep(0)
                elif isinstance(entry, RequestError):
                    yield Event(place, None, lambda seq, error=entry: _complaint(seq, error))
                else:
                    step = entry if isinstance(entry, Step) else None
                    if step is Step.ENDED and self._narration.voice is not None:
                        self._audio.voice = self._narration.voice
                    yield Event(place, step, lambda seq, entry=entry: events.json(seq, entry))
                    if step in BESIDE and self.turn.conversation_id:
                        yield _beside(self, events, place, step)

    def silence(self, reason: str) -> None:
        """Stop the voice at once."""
        self._narration.silence(reason)


def _beside(output: Output, events: TurnEvents, place: Cursor, step: Step) -> Event:
    """Return the event of the conversation that follows the response's event of *step*."""
    turn = output.turn

    def write(seq: int) -> bytes:
        item = events.item(done=step is Step.ITEM_DONE)
        return msgspec.json.encode(
            ConversationItemEvent(
                BESIDE[step], f"event_{seq}", seq, turn.conversation_id, output.previous_item_id, item
            )
        )

    return Event(Cursor(place.phase, place.at, BESIDE_BYTES), None, write)


def _beside_call(output: Output, place: Cursor, entry: CallEntry) -> Event:
    """Return the event of the conversation that follows the response's event of a call's item."""
    turn, call = output.turn, entry.call
    before = [one.id for one in turn.calls if one.shown][: entry.place]
    if turn.opened and call.text_at:
        before.insert(turn.message_index, turn.id)
    previous = before[-1] if before else output.previous_item_id

    def write(seq: int) -> bytes:
        item = call_item(call, done=entry.step is CallStep.DONE)
        name = BESIDE_CALL[entry.step]
        return msgspec.json.encode(
            ConversationItemEvent(name, f"event_{seq}", seq, turn.conversation_id, previous, item)
        )

    return Event(Cursor(place.phase, place.at, BESIDE_BYTES), None, write, item_id=call.id)


def _complaint(seq: int, error: RequestError) -> bytes:
    return msgspec.json.encode(ErrorEvent(f"event_{seq}", seq, event_error(error, None)))
