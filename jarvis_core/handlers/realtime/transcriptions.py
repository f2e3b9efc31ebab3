"""
Transcribes the committed recordings of one session.

A committed recording becomes a user's message once it is transcribed, which takes a while, in a task of its own: the
client may go on sending, and a ``response.create`` that comes meanwhile is deferred. Recordings become messages in the
order in which they were committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine

from jarvis_core import log
from jarvis_core.errors import InvalidRequest, Overloaded, RequestError
from jarvis_core.handlers.failure import INTERNAL
from jarvis_core.handlers.realtime.audio import Recording
from jarvis_core.handlers.realtime.dialogue import MESSAGE_LIMIT_CHARS, Dialogue
from jarvis_core.handlers.realtime.hearing import EarlyTranscript
from jarvis_core.handlers.realtime.output import event_error
from jarvis_core.handlers.realtime.refusals import AlreadyActive
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.wire import (
    DurationUsage,
    ResponseCreate,
    SessionBody,
    TranscriptionCompletedEvent,
    TranscriptionDeltaEvent,
    TranscriptionFailedEvent,
)
from jarvis_core.models import Caller
from jarvis_core.speech.transcription import Heard, Transcriber
from jarvis_core.turns.receipt import TurnTimer

logger = log.get(__name__)

ASIDES_LIMIT = 4
"""Responses out of band that a session has at a time."""
TRANSCRIPTIONS_LIMIT = 4
"""Recordings of one session that are being transcribed; more are refused."""

Respond = Callable[[ResponseCreate], Awaitable[None]]
"""Begins a response, or tells the client why not; raises no error that a client can cause."""


class PendingTranscriptions:
    """
    The recordings of one session that are being transcribed, in their order, and the response that waits for them.

    Owns a task for each recording.
    """

    def __init__(
        self, transcriber: Transcriber, caller: Caller, socket: Socket, dialogue: Dialogue, handling: asyncio.Lock
    ) -> None:
        self.language: str | None = None
        """The language of the last recording, or of what was written since."""
        self.message_id: str | None = None
        """The message that the last recording with words became."""
        self._transcriber = transcriber
        self._caller = caller
        self._socket = socket
        self._dialogue = dialogue
        self._handling = handling
        """The session's lock, held while a transcript changes the session."""
        self._tasks: list[asyncio.Task[None]] = []
        self._deferred: ResponseCreate | None = None
        self._deferred_asides: list[ResponseCreate] = []

    def admit(self) -> None:
        """Raise ``Overloaded`` where as many recordings are being transcribed as may."""
        if len(self._tasks) >= TRANSCRIPTIONS_LIMIT:
            raise Overloaded("Too many recordings are being listened to; wait for their words.", retry_after_s=1)

    def begin(
        self,
        item_id: str,
        recording: Recording,
        early: EarlyTranscript | None,
        config: SessionBody,
        respond: Respond,
        answer: Respond | None,
        timer: TurnTimer,
        *,
        unasked: bool = False,
    ) -> None:
        """
        Transcribe *recording* in a task, unless it was *early*; the transcript becomes the message *item_id*.

        *respond* begins the response that was deferred, *answer* one for the message itself (*unasked* also where nothing was
        said). They are held per recording, not
        by this object: a bound method of the session would make a reference cycle.
        """
        before = self._tasks[-1] if self._tasks else None
        words = self._words(item_id, recording, early, config)
        task = asyncio.get_running_loop().create_task(
            self._finish(item_id, words, config, respond, answer, timer, before, unasked=unasked)
        )
        self._tasks.append(task)

    def defer(self, event: ResponseCreate, *, aside: bool = False) -> bool:
        """
        Defer *event* while recordings are being transcribed, and return whether it is; raises ``AlreadyActive`` where
        another one is deferred, or as many as may that are out of band (*aside*).
        """
        if not self._tasks:
            return False
        if aside:
            if len(self._deferred_asides) >= ASIDES_LIMIT:
                raise AlreadyActive("As many responses out of band wait for the words as may.")
            self._deferred_asides.append(event)
            return True
        if self._deferred is not None:
            raise AlreadyActive("A response waits for the words already.")
        self._deferred = event
        return True

    def take_deferred(self) -> ResponseCreate | None:
        """Return the deferred response, if any, and defer it no longer."""
        deferred, self._deferred = self._deferred, None
        return deferred

    def hand_over(self) -> list[asyncio.Task[None]]:
        """Return the tasks, which go on without the socket and need a new owner; drops the deferred response."""
        self._deferred = None
        self._deferred_asides.clear()
        return self._tasks

    async def _words(
        self, item_id: str, recording: Recording, early: EarlyTranscript | None, config: SessionBody
    ) -> Heard:
        """Return the transcript of *recording*, the early one where that did not fail, and tell its words as they come."""
        told = False

        async def tell(words: str) -> None:
            nonlocal told
            told = True
            await self._socket.emit(lambda seq: TranscriptionDeltaEvent(f"event_{seq}", seq, item_id, words))

        try:
            if early is not None:
                with contextlib.suppress(RequestError):
                    return await early.heard(tell)
            return await self._transcriber.transcribe_pcm(
                recording.parts,
                recording.format.encoding,
                recording.format.rate,
                self._caller,
                language=config.audio.input.transcription.language,
                # What was told of an early transcript that failed is not told again.
                tell=None if told else tell,
                clean=config.audio.input.noise_reduction is not None,
            )
        finally:
            recording.close()

    async def _finish(
        self,
        item_id: str,
        words: Coroutine[None, None, Heard],
        config: SessionBody,
        respond: Respond,
        answer: Respond | None,
        timer: TurnTimer,
        before: asyncio.Task[None] | None,
        *,
        unasked: bool,
    ) -> None:
        """
        Wait for the words, and for the earlier recordings; store the message, then begin the response that was deferred.
        """
        heard: Heard | None = None
        failure: RequestError | None = None
        try:
            heard = await words
            timer.note_words()
        except RequestError as exc:
            failure = exc.bare()
        except Exception:
            logger.exception("a recording was not heard through a defect", session=config.id)
            failure = INTERNAL
        if before is not None and not before.done():
            await asyncio.wait([before])
        async with self._handling:
            try:
                if heard is not None:
                    await self._store_transcript(item_id, heard, config, timer)
            except RequestError as exc:
                failure = exc.bare()
            except Exception:
                # A deferred response waits for the end of this, also after a defect.
                logger.exception("words were not stored through a defect", session=config.id)
                failure = INTERNAL
            if failure is not None:
                body = event_error(failure, None)
                await self._socket.emit(lambda seq: TranscriptionFailedEvent(f"event_{seq}", seq, item_id, body))
            self._tasks = [task for task in self._tasks if task is not asyncio.current_task()]
            if not self._tasks:
                asides, self._deferred_asides = self._deferred_asides, []
                for aside in asides:
                    await respond(aside)
            if not self._tasks and (deferred := self.take_deferred()) is not None:
                if failure is not None and self._dialogue.pending is None:
                    await self._socket.complain(failure, deferred.event_id)
                else:
                    await respond(deferred)
            elif heard is None or failure is not None or answer is None:
                return
            elif unasked or (heard.text and self._dialogue.pending):
                await answer(ResponseCreate())

    async def _store_transcript(self, item_id: str, heard: Heard, config: SessionBody, timer: TurnTimer) -> None:
        """Store the transcript as the user's message, and tell the client."""
        text = text_without_nul(heard.text)
        if len(text) > MESSAGE_LIMIT_CHARS:
            raise InvalidRequest(f"The recording says more than {MESSAGE_LIMIT_CHARS} characters.")
        # Of an item that was deleted meanwhile the words are told, as they may have been in part, and not stored.
        if text and config.type == "realtime" and self._dialogue.has_shown(item_id):
            await self._dialogue.store("user", text, item_id, timer)
            self.language = heard.language or self.language
            self.message_id = item_id
        conversation_id = self._dialogue.conversation_id
        await self._socket.emit(
            lambda seq: TranscriptionCompletedEvent(
                f"event_{seq}",
                seq,
                item_id,
                text,
                DurationUsage(heard.duration_ms / 1_000),
                conversation_id,
                heard.language,
                heard.enhanced,
                heard.language_confidence,
            )
        )


def text_without_nul(text: str) -> str:
    """Return *text* without NUL, which cannot be stored, and without white space around it."""
    return text.replace("\0", "").strip()
