"""What a session is made of, and how it is taken up again: by a session of this worker, or from a snapshot on another."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

import msgspec
from msgspec import Struct

from jarvis_core.errors import RequestError
from jarvis_core.handlers.realtime.asides import Asides
from jarvis_core.handlers.realtime.audio import InputBuffer
from jarvis_core.handlers.realtime.audio_input import AudioInput
from jarvis_core.handlers.realtime.config import SessionSettings
from jarvis_core.handlers.realtime.dialogue import Dialogue
from jarvis_core.handlers.realtime.hearing import Hearing
from jarvis_core.handlers.realtime.interruption import Interrupter
from jarvis_core.handlers.realtime.items import Items
from jarvis_core.handlers.realtime.responder import OnTurn, Responder
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.handlers.realtime.snapshot import MARKS_LIMIT, SessionSnapshot
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.transcriptions import PendingTranscriptions
from jarvis_core.handlers.realtime.wire import ClearedEvent, SessionBody
from jarvis_core.models import Caller
from jarvis_core.settings import Llm
from jarvis_core.speech.synthesis import Synthesizer
from jarvis_core.speech.transcription import Transcriber
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.log import Turn
from jarvis_core.turns.turns import Turns


class Shared(Protocol):
    """What the sessions of a worker share."""

    turns: Turns
    conversations: Conversations
    transcriber: Transcriber
    synthesizer: Synthesizer
    settings: Llm

    def own(self, task: asyncio.Task[None]) -> None:
        """Own a task that a session does not wait for, or whose socket is gone."""
        ...


class Parts(Struct, frozen=True, eq=False):
    """The parts of one session; none of them refers to another that refers back."""

    socket: Socket
    settings: SessionSettings
    dialogue: Dialogue
    items: Items
    input: AudioInput
    transcriptions: PendingTranscriptions
    response: ResponseStream
    interrupter: Interrupter
    responder: Responder

    def take_over(self, previous: Parts, after: int) -> None:
        """Continue the response of *previous*, of a session of this worker whose client has seen its events up to *after*."""
        # Critical section without an await: of two sessions that resume at once, the second takes over from the first.
        self.response.take_over(previous.response, after)
        self.dialogue.restore(previous.dialogue.state())
        self._configure(previous.settings, previous.transcriptions.language)
        self.socket.seq = after

    def restore(self, snapshot: SessionSnapshot, turn: Turn, after: int) -> None:
        """Continue the response *turn* of a session on another worker, from its *snapshot*."""
        self.dialogue.restore(snapshot.dialogue)
        self._configure(SessionSettings(snapshot.config), snapshot.heard_language)
        output = self.responder.output_of(turn, snapshot.response_config, snapshot.metadata)
        output.previous_item_id = snapshot.previous_item_id
        if snapshot.silenced is not None:
            output.silence(snapshot.silenced)
        if output.ledger is not None:
            output.ledger.spoken = snapshot.spoken
        self.response.restore(turn, output, snapshot.response_config, snapshot.marks)
        self.socket.seq = after

    def snapshot(self, after: int) -> SessionSnapshot | None:
        """Return a snapshot for another worker, whose client has seen the events up to *after*; None without a response."""
        response, output = self.response, self.response.output
        if response.turn is None or output is None:
            return None
        return SessionSnapshot(
            self.dialogue.conversation_id,
            self.settings.body,
            response.config,
            response.marks_seen(after)[-MARKS_LIMIT:],
            self.dialogue.state(),
            self.transcriptions.language,
            output.silenced,
            [] if output.ledger is None else output.ledger.spoken,
            output.metadata,
            output.previous_item_id,
        )

    def _configure(self, settings: SessionSettings, heard_language: str | None) -> None:
        self.settings.body = msgspec.structs.replace(settings.body, id=self.settings.body.id)
        self.transcriptions.language = heard_language
        self.input.lead(self.settings.body.audio.input.turn_detection)


def assemble(
    shared: Shared, caller: Caller, socket: Socket, config: SessionBody, handling: asyncio.Lock, on_turn: OnTurn
) -> Parts:
    """Return the parts of a new session; *handling* is held while an event or a transcript changes it."""
    turns, transcriber = shared.turns, shared.transcriber
    settings = SessionSettings(config)
    dialogue = Dialogue(shared.conversations, caller.user_id, config.conversation_id)
    tell_lost = partial(_tell_lost, shared, socket)
    buffer, hearing = InputBuffer(transcriber, tell_lost), Hearing(transcriber, tell_lost)
    response = ResponseStream(turns, socket, dialogue, config, hearing)
    interrupter = Interrupter(turns, caller, socket, settings, response, hearing)
    transcriptions = PendingTranscriptions(transcriber, caller, socket, dialogue, handling)
    return Parts(
        socket=socket,
        settings=settings,
        dialogue=dialogue,
        items=Items(turns, caller, socket, dialogue, response, interrupter),
        input=AudioInput(caller, socket, dialogue, buffer, hearing, transcriptions, interrupter, handling),
        transcriptions=transcriptions,
        response=response,
        interrupter=interrupter,
        responder=Responder(
            turns,
            shared.synthesizer,
            caller,
            socket,
            settings,
            dialogue,
            hearing,
            transcriptions,
            response,
            interrupter,
            handling,
            Asides(turns, socket),
            on_turn,
        ),
    )


def _tell_lost(shared: Shared, socket: Socket, error: RequestError) -> None:
    """Tell a client that its buffer was cleared, and why; not a method, which would make a reference cycle."""

    async def tell() -> None:
        await socket.complain(error, None)
        await socket.emit(lambda seq: ClearedEvent(f"event_{seq}", seq))

    shared.own(asyncio.get_running_loop().create_task(tell()))
