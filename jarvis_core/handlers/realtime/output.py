"""Turns a response into events for its session: text as it arrives, or the voice that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import msgspec

from jarvis_core.conversation.ledger import Ledger
from jarvis_core.errors import RequestError
from jarvis_core.handlers.events import EventError, Metadata, SpokenOutput, SpokenTurnEvents, TurnEvents
from jarvis_core.handlers.failure import status_of
from jarvis_core.handlers.realtime.wire import ErrorEvent
from jarvis_core.models import Caller
from jarvis_core.speech.narration import Cursor, Narration, Phase
from jarvis_core.speech.synthesis import SpeechOptions, Synthesizer
from jarvis_core.turns.log import Reader, Step, Turn

VOICE_DONE = Cursor(Phase.VOICE_DONE)


class Event:
    """An event to send: its place in the response, its step, and its encoder."""

    __slots__ = ("place", "sound_ms", "step", "write")

    def __init__(self, place: Cursor, step: Step | None, write: Writer, sound_ms: float = 0.0) -> None:
        self.place = place
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

    async def events(self, after: Cursor) -> AsyncGenerator[Event, None]:
        """Yield the entries of the turn's log; a place holds the log's position."""
        reader = Reader(self.turn, after.at)
        events = TurnEvents(self.turn, metadata=self.metadata)
        while True:
            taken = await reader.next()
            for position, entry in taken:
                step = entry if isinstance(entry, Step) else None
                yield Event(Cursor(Phase.TEXT, position), step, lambda seq, entry=entry: events.json(seq, entry))
            if not taken or taken[-1][1] is Step.ENDED:
                return
            if reader.behind:
                # Neither a send nor ``next`` yields to the loop here: let other tasks run.
                await asyncio.sleep(0)

    def silence(self, reason: str) -> None:
        """Do nothing: the text ends with its turn."""


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
        self._audio = audio
        self._events = SpokenTurnEvents(turn, audio, lambda: self._narration.silenced, metadata=metadata)

    @property
    def silenced(self) -> str | None:
        """Why the voice was stopped before its end; None where it was not."""
        return self._narration.silenced

    async def events(self, after: Cursor) -> AsyncGenerator[Event, None]:
        """Yield the narration's entries."""
        events = self._events
        async with aclosing(self._narration.entries(after)) as entries:
            async for place, entry in entries:
                if entry is Step.TEXT_DONE and after < VOICE_DONE:
                    yield Event(VOICE_DONE, None, events.audio_done_json)
                if isinstance(entry, bytes):
                    sound_ms = 500 * len(entry) / self._audio.format.rate
                    yield Event(place, None, lambda seq, samples=entry: events.audio_json(seq, samples), sound_ms)
                    await asyncio.sleep(0)
                elif isinstance(entry, RequestError):
                    yield Event(place, None, lambda seq, error=entry: _complaint(seq, error))
                else:
                    step = entry if isinstance(entry, Step) else None
                    if step is Step.ENDED and self._narration.voice is not None:
                        self._audio.voice = self._narration.voice
                    yield Event(place, step, lambda seq, entry=entry: events.json(seq, entry))

    def silence(self, reason: str) -> None:
        """Stop the voice at once."""
        self._narration.silence(reason)


def _complaint(seq: int, error: RequestError) -> bytes:
    return msgspec.json.encode(ErrorEvent(f"event_{seq}", seq, event_error(error, None)))
