"""The sound that a session's client sends: into a buffer that it commits, or to a microphone that is listened to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import msgspec
from msgspec import UNSET, Struct

from jarvis_core.conversation.machine import Action, Kind
from jarvis_core.errors import RequestError
from jarvis_core.handlers.events import ContentPart, Item
from jarvis_core.handlers.realtime.audio import InputBuffer, Recording
from jarvis_core.handlers.realtime.config import manner_of
from jarvis_core.handlers.realtime.dialogue import Dialogue
from jarvis_core.handlers.realtime.hearing import EarlyTranscript, Hearing
from jarvis_core.handlers.realtime.interruption import Interrupter
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.transcriptions import PendingTranscriptions, Respond
from jarvis_core.handlers.realtime.wire import (
    CommittedEvent,
    SemanticVad,
    SessionBody,
    SpeechStartedEvent,
    SpeechStoppedEvent,
    TimeoutTriggeredEvent,
    TurnDetection,
)
from jarvis_core.models import Caller, new_id
from jarvis_core.turns.receipt import TurnTimer


class Answering(Struct, frozen=True):
    """
    How a session answers what is said.

    Given with each call, and held per recording: bound methods of the session in its parts would make reference cycles.
    """

    respond: Respond
    """Begins a response that the client asked for."""
    answer: Respond
    """Begins a response to a turn of speech, unless more is being said."""
    expect: Callable[[], None]
    """Prepares for an answer, because somebody speaks."""


class AudioInput:
    """Makes items of the sound of one session."""

    def __init__(
        self,
        caller: Caller,
        socket: Socket,
        dialogue: Dialogue,
        buffer: InputBuffer,
        hearing: Hearing,
        transcriptions: PendingTranscriptions,
        interrupter: Interrupter,
        handling: asyncio.Lock,
    ) -> None:
        self._caller = caller
        self._socket = socket
        self._dialogue = dialogue
        self._buffer = buffer
        self._hearing = hearing
        self._transcriptions = transcriptions
        self._interrupter = interrupter
        self._handling = handling
        """The session's lock, held while a turn of speech changes the session."""

    @property
    def begun(self) -> bool:
        """Whether there is sound that will be an item: its format stays."""
        return bool(self._buffer.length_bytes) or self._hearing.conversation.speaking

    @property
    def speaking(self) -> bool:
        """Whether a turn of speech is open."""
        return self._hearing.conversation.speaking

    def lead(self, detection: TurnDetection | None) -> None:
        """Find turns of speech as *detection* says from now on; None leaves them to the client."""
        if detection is not None:
            self._hearing.conversation.lead(manner_of(detection))

    async def settle(self, config: SessionBody) -> SessionBody:
        """
        Return *config* as it can be done: where no model tells the end of a turn, ``semantic_vad`` falls back to silence, and
        where there is no audio engine noise is not reduced.
        """
        given = config.audio.input
        if given.noise_reduction is not None and not self._hearing.suppresses_noise:
            given = msgspec.structs.replace(given, noise_reduction=None)
        if isinstance(given.turn_detection, SemanticVad):
            served = await self._hearing.knows_ends(self._caller)
            detection = msgspec.structs.replace(given.turn_detection, fallback=UNSET if served else "silence")
            given = msgspec.structs.replace(given, turn_detection=detection)
        return msgspec.structs.replace(config, audio=msgspec.structs.replace(config.audio, input=given))

    async def append(self, samples: bytes, config: SessionBody, answering: Answering) -> None:
        """Take samples, and do what they lead to; raises ``Overloaded``, ``RateLimited``, ``TooLarge`` or ``Unavailable``."""
        given = config.audio.input
        if given.turn_detection is None:
            self._buffer.append(samples, given.format)
            return
        try:
            async with aclosing(self._hearing.hear(samples, given.format)) as actions:
                async for action in actions:
                    async with self._handling:
                        await self._act(action, config, answering)
        except RequestError:
            # Half a turn of speech is none.
            self._hearing.clear()
            raise

    async def commit(self, config: SessionBody, answering: Answering) -> None:
        """Make an item of what came since the last one; raises ``CommitEmpty`` or ``Overloaded``."""
        timer = TurnTimer(time.perf_counter())
        self._transcriptions.admit()
        given = config.audio.input
        if given.turn_detection is None:
            recording, item_id = self._buffer.commit(given.format), new_id()
        else:
            recording, item_id = self._hearing.commit(), self._hearing.item_id or new_id()
            self._hearing.clear()
        await self._add(
            item_id,
            recording,
            None,
            config,
            answering,
            answer=given.create_response and config.type == "realtime",
            timer=timer,
        )

    def clear(self) -> None:
        """Drop all sound that is no item yet."""
        self._buffer.clear()
        self._hearing.clear()

    async def close(self) -> None:
        """Drop all sound, and listen no more."""
        self._buffer.clear()
        await self._hearing.close()

    async def _act(self, action: Action, config: SessionBody, answering: Answering) -> None:
        """Do what the conversation asks for."""
        match action.kind:
            case Kind.BEGIN:
                answering.expect()
                await self._begin_speech(action.start_ms)
            case Kind.INTERRUPT:
                await self._interrupter.interrupt("turn_detected")
            case Kind.ASK:
                self._hearing.ask_whether_over(action.start_ms, action.end_ms, self._caller)
            case Kind.LISTEN:
                given = config.audio.input
                language, clean = given.transcription.language, given.noise_reduction is not None
                self._hearing.listen_early(action.start_ms, action.end_ms, language, self._caller, clean=clean)
            case Kind.FORGET:
                self._hearing.forget_early()
            case Kind.COMMIT:
                await self._end_speech(action, config, answering)
            case Kind.TIME_OUT:
                await self._time_out(action, config, answering)
            case Kind.CUT:
                await self._end_speech(action, config, answering)
                await self._begin_speech(action.end_ms)

    async def _begin_speech(self, start_ms: int) -> None:
        self._hearing.expect_words()
        self._hearing.item_id = item_id = new_id()
        await self._socket.emit(lambda seq: SpeechStartedEvent(f"event_{seq}", seq, start_ms, item_id))

    async def _end_speech(self, action: Action, config: SessionBody, answering: Answering) -> None:
        """Make a turn of speech an item, and begin to answer it where it is over."""
        timer = TurnTimer(time.perf_counter())
        if action.kind is Kind.COMMIT:
            timer.receipt.end_of_turn_ms = action.silence_ms
            timer.receipt.end_probability = action.end_probability
        recording = self._hearing.recording(action.start_ms, action.end_ms)
        if action.kind is Kind.CUT:
            # It is of the turn up to its last pause, and not up to the cut.
            self._hearing.forget_early()
        early = self._hearing.take_early()
        item_id, self._hearing.item_id = self._hearing.item_id or new_id(), None
        await self._socket.emit(lambda seq: SpeechStoppedEvent(f"event_{seq}", seq, action.end_ms, item_id))
        detection = config.audio.input.turn_detection
        answer = action.kind is Kind.COMMIT and detection is not None and detection.create_response
        answer = answer and config.type == "realtime"
        await self._add(item_id, recording, early, config, answering, answer=answer, timer=timer)

    async def _time_out(self, action: Action, config: SessionBody, answering: Answering) -> None:
        """Make a silence an item, and have the assistant go on."""
        timer = TurnTimer(time.perf_counter())
        recording = self._hearing.recording(action.start_ms, action.end_ms)
        item_id, start_ms, end_ms = new_id(), action.start_ms, action.end_ms
        await self._socket.emit(lambda seq: TimeoutTriggeredEvent(f"event_{seq}", seq, start_ms, end_ms, item_id))
        detection = config.audio.input.turn_detection
        answer = detection is not None and detection.create_response and config.type == "realtime"
        await self._add(item_id, recording, None, config, answering, answer=answer, timer=timer, unasked=True)

    async def _add(
        self,
        item_id: str,
        recording: Recording,
        early: EarlyTranscript | None,
        config: SessionBody,
        answering: Answering,
        *,
        answer: bool,
        timer: TurnTimer,
        unasked: bool = False,
    ) -> None:
        """Show *recording* as an item, and begin to transcribe it; *unasked* it is answered without words too."""
        previous = self._dialogue.last_item_id
        await self._socket.emit(lambda seq: CommittedEvent(f"event_{seq}", seq, previous, item_id))
        await self._dialogue.show(
            self._socket, Item(item_id, "user", [ContentPart("input_audio", transcript=None)], "completed")
        )
        self._transcriptions.begin(
            item_id,
            recording,
            early,
            config,
            answering.respond,
            answering.answer if answer else None,
            timer,
            unasked=unasked,
        )
