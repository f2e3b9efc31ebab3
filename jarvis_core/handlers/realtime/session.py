"""A session over one WebSocket: handles its client's events."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Protocol

import msgspec
from msgspec import UNSET
from starlette.types import Receive, Send

from jarvis_core import cancellation
from jarvis_core.access.connections import FRAME_BYTES
from jarvis_core.errors import Conflict, InvalidRequest, NotFound, Overloaded, RateLimited, RequestError, TooLarge
from jarvis_core.handlers.admission import Admitted
from jarvis_core.handlers.call import decode, text_field
from jarvis_core.handlers.events import Item, Metadata, SpokenOutput, item_of
from jarvis_core.handlers.realtime.audio import InputBuffer, from_base64
from jarvis_core.handlers.realtime.audio_input import Answering, AudioInput
from jarvis_core.handlers.realtime.config import configured, default_config
from jarvis_core.handlers.realtime.dialogue import MESSAGE_LIMIT_CHARS, Dialogue, part_of
from jarvis_core.handlers.realtime.hearing import Hearing
from jarvis_core.handlers.realtime.interruption import Interrupter
from jarvis_core.handlers.realtime.lenient import take
from jarvis_core.handlers.realtime.output import AudioOutput, Output, TextOutput
from jarvis_core.handlers.realtime.refusals import AlreadyActive, NothingToCancel, NotRetrievable
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.handlers.realtime.session_config import ResponseConfig
from jarvis_core.handlers.realtime.snapshot import MARKS_LIMIT, SessionSnapshot
from jarvis_core.handlers.realtime.socket import CLOSE_TIMEOUT_S, NORMAL, POLICY, TOO_BIG, TRY_AGAIN, Socket
from jarvis_core.handlers.realtime.transcriptions import PendingTranscriptions
from jarvis_core.handlers.realtime.wire import (
    AudioAppend,
    AudioClear,
    AudioCommit,
    ClearedEvent,
    ClientEvent,
    ClientItem,
    EventHead,
    HandledEvent,
    ItemCreate,
    ItemRetrieve,
    ItemTruncate,
    Modality,
    ResponseCancel,
    ResponseCreate,
    RetrievedEvent,
    SessionBody,
    SessionEvent,
    SessionUpdate,
)
from jarvis_core.models import new_id
from jarvis_core.settings import Llm
from jarvis_core.speech.synthesis import SpeechOptions, Synthesizer
from jarvis_core.speech.transcription import Transcriber
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.log import Turn
from jarvis_core.turns.turns import Ask, Turns

EVENT_LIMIT_BYTES = 1 << 20
AUDIO_LIMIT_BYTES = 15 << 20
"""Samples in one event. Granian refuses a frame of more than 16 MiB and closes the socket."""
APPEND_LIMIT_BYTES = AUDIO_LIMIT_BYTES * 4 // 3 + 1_024
"""The same in base64, with the rest of the event."""
APPEND = "input_audio_buffer.append"

CHARGED = (ItemCreate, ResponseCreate, AudioCommit)
"""Events that count as requests: each stores a message or asks a neighbour."""
UNFINISHED_RETRY_S = 5
REFUSALS_LIMIT = 20
"""Events in a row that are refused for their rate; at the next one the socket is closed."""

TEXT_PARTS = ("input_text", "output_text", "text")

_decoder = msgspec.json.Decoder(ClientEvent)
_head_decoder = msgspec.json.Decoder(EventHead)


class Sessions(Protocol):
    """The parts that sessions share, and the owner of those whose socket is gone."""

    turns: Turns
    conversations: Conversations
    transcriber: Transcriber
    synthesizer: Synthesizer
    settings: Llm

    async def charge(self, admitted: Admitted) -> None:
        """Count a request that a caller makes over an open socket; raises ``RateLimited``."""
        ...

    def give_grace(self, session: Session) -> asyncio.Task[None]:
        """Start a task in which *session* gives up its turn after the resume grace."""
        ...

    def own(self, task: asyncio.Task[None]) -> None:
        """Own a task that a session does not wait for, or whose socket is gone."""
        ...

    def keep(self, session: Session, turn: Turn) -> None:
        """Let *turn* be resumed from *session*."""
        ...

    def forget(self, session: Session, turn: Turn) -> None:
        """Let *turn* no longer be resumed."""
        ...


class Session:
    """One client's conversation over one socket; may continue the response of an earlier session."""

    def __init__(
        self,
        realtime: Sessions,
        admitted: Admitted,
        conversation_id: str | None,
        send: Send,
        *,
        modality: Modality = "text",
    ) -> None:
        self.id = f"sess_{new_id()}"
        self.caller = admitted.caller
        self._admitted = admitted
        self.received_bytes = 0
        """What has come as whole messages, with ``FRAME_BYTES`` for each."""
        self._parting: RequestError | None = None
        """Why the client is let go, for an error that is none of its events'."""
        self._refusals = 0
        """Events in a row that were refused for the caller's rate."""
        self._realtime = realtime
        self._turns = realtime.turns
        self._socket = Socket(send)
        self._dialogue = Dialogue(realtime.conversations, self.caller.user_id, conversation_id)
        self._config = default_config(self.id, conversation_id, realtime.settings, modality)
        tell_lost = partial(_tell_lost, realtime, self._socket)
        hearing = Hearing(realtime.transcriber, tell_lost)
        self._response = ResponseStream(self._socket, self._dialogue, self._config, hearing)
        self._grace: asyncio.Task[None] | None = None
        self._handling = asyncio.Lock()
        """Held while an event or a transcript changes the session."""
        self._later: asyncio.Task[None] | None = None
        """Answers what was said while a response was active that was not interrupted."""
        self._transcriptions = PendingTranscriptions(
            realtime.transcriber, self.caller, self._socket, self._dialogue, self._handling
        )
        self._interrupter = Interrupter(self._turns, self.caller, self._socket, self._response, hearing)
        self._input = AudioInput(
            self.caller,
            self._socket,
            self._dialogue,
            InputBuffer(realtime.transcriber, tell_lost),
            hearing,
            self._transcriptions,
            self._interrupter,
            self._handling,
        )

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id, once there is one."""
        return self._dialogue.conversation_id

    @property
    def peer(self) -> tuple[str, int] | None:
        """The other end of its connection."""
        return self._admitted.peer

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what it is sent."""
        return self._socket.stalled

    @property
    def holder(self) -> str:
        """Whose it is: a user, or an address where the server is open."""
        return self._admitted.key

    def refuse_message(self, unfinished_bytes: int, limit_bytes: int, *, alone: bool) -> None:
        """Have the socket closed for a message without an end, too long *alone*, or with those of others."""
        details = {"limit_bytes": limit_bytes}
        if alone:
            self._parting = TooLarge(f"A message is over {limit_bytes} bytes and has no end.", details=details)
        else:
            self._parting = Overloaded(
                f"Messages without an end are over {limit_bytes} bytes; this one has {unfinished_bytes}.",
                details=details,
                retry_after_s=UNFINISHED_RETRY_S,
            )
        self.close(TOO_BIG if alone else TRY_AGAIN)

    @property
    def turn(self) -> Turn | None:
        """The turn of the current or last response; None once another session has it or the grace is over."""
        return self._response.turn

    async def run(self, receive: Receive) -> None:
        """Serve the socket until it closes."""
        await self._show_config("session.created")
        self._response.resume()
        while (message := await self._socket.receive(receive)) is not None:
            if message["type"] == "websocket.disconnect":
                return
            await self._receive(message.get("text"), message.get("bytes"))
        await self.say_goodbye()

    def close(self, code: int, error: RequestError | None = None) -> None:
        """Have the socket closed with *code*, and *error* told before that, by the task that serves it."""
        self._socket.close(code, error)

    async def complain(self, error: RequestError) -> None:
        """Send *error*, which was caused by none of the client's events."""
        await self._socket.complain(error, None)

    async def say_goodbye(self) -> None:
        """
        Send the rest of a response that has ended, then close the socket; waits three times ``CLOSE_TIMEOUT_S`` at most.
        """
        await self._response.say_goodbye()
        if self._parting is not None:
            with contextlib.suppress(TimeoutError):
                async with cancellation.timeout(CLOSE_TIMEOUT_S):
                    await self.complain(self._parting)
        await self._socket.say_goodbye("" if self._parting is None else self._parting.code)

    async def leave(self) -> None:
        """
        Stop sending; the response can be resumed during the grace, because its end may not have arrived.

        Committed recordings still become messages: the client was told that they would.
        """
        self._socket.leave()
        if self._later is not None:
            self._later.cancel()
        await self._input.close()
        for task in self._transcriptions.hand_over():
            self._realtime.own(task)
        await self._response.stop()
        if self.turn is not None:
            self._grace = self._realtime.give_grace(self)

    async def give_up(self, grace_s: float) -> None:
        """Detach from the turn after *grace_s* seconds; cancelled where another session takes it over."""
        await asyncio.sleep(grace_s)
        self._grace = None
        turn, self._response.turn = self.turn, None
        if turn is not None:
            self._realtime.forget(self, turn)
            await self._turns.detach(turn)

    async def take_over(self, previous: Session, after: int) -> None:
        """
        Continue the response of *previous*, a session of this worker, whose client has seen its events up to *after*.
        """
        self._response.ledgers = previous._response.ledgers
        # Critical section without an await: of two sessions that resume at once, the second takes over from the first.
        self._response.take_over(previous._response, after)
        if previous._grace is not None:
            previous._grace.cancel()
            previous._grace = None
        dialogue = previous._dialogue
        self._dialogue.restore(dialogue.last_item_id, dialogue.pending, dialogue.asked)
        self._transcriptions.language = previous._transcriptions.language
        self._config = msgspec.structs.replace(previous._config, id=self.id)
        self._input.lead(self._config.audio.input.turn_detection)
        self._socket.seq = after
        if self.turn is not None:
            self._realtime.keep(self, self.turn)
        previous.close(NORMAL)
        await previous._response.stop()

    async def hand_over(self, after: int) -> SessionSnapshot | None:
        """
        Return a snapshot for a session on another worker, whose client has seen the events up to *after*, and close
        this one.

        Detaches from the turn after the grace: by then the other worker follows it.
        """
        if self.turn is None or self._response.output is None:
            return None
        snapshot = SessionSnapshot(
            self.conversation_id,
            self._config,
            self._response.config,
            self._response.marks_seen(after)[-MARKS_LIMIT:],
            self._dialogue.last_item_id,
            self._dialogue.pending,
            self._dialogue.asked,
            self._transcriptions.language,
            self._response.output.silenced,
            [] if self._response.output.ledger is None else self._response.output.ledger.spoken,
            self._response.output.metadata,
            self._response.output.previous_item_id,
        )
        self._realtime.forget(self, self.turn)
        self.close(NORMAL)
        await self._response.stop()
        return snapshot

    def restore(self, snapshot: SessionSnapshot, turn: Turn, after: int) -> None:
        """Continue the response *turn* of a session on another worker, from its *snapshot*."""
        self._turns.attach(turn)
        self._dialogue.restore(snapshot.last_item_id, snapshot.pending, snapshot.asked)
        self._transcriptions.language = snapshot.heard_language
        self._config = msgspec.structs.replace(snapshot.config, id=self.id)
        self._input.lead(self._config.audio.input.turn_detection)
        output = self._output_of(turn, snapshot.response_config, snapshot.metadata)
        output.previous_item_id = snapshot.previous_item_id
        if snapshot.silenced is not None:
            output.silence(snapshot.silenced)
        if output.ledger is not None:
            output.ledger.spoken = snapshot.spoken
        self._response.restore(turn, output, snapshot.response_config, snapshot.marks)
        self._socket.seq = after
        self._realtime.keep(self, turn)

    async def _show_config(self, name: str) -> None:
        config = msgspec.structs.replace(self._config, conversation_id=self.conversation_id)
        await self._socket.emit(lambda seq: SessionEvent(name, f"event_{seq}", seq, config))

    async def _receive(self, text: str | None, binary: bytes | None) -> None:
        event_id = None
        try:
            if text is None:
                self.received_bytes += len(binary or b"") + FRAME_BYTES
                if len(binary or b"") > AUDIO_LIMIT_BYTES:
                    raise _too_long(AUDIO_LIMIT_BYTES)
                await self._input.append(binary or b"", self._config, self._answering())
                return
            raw = text.encode(errors="surrogatepass")
            self.received_bytes += len(raw) + FRAME_BYTES
            head = EventHead()
            with contextlib.suppress(RequestError):
                head = decode(_head_decoder, raw)
            event_id = head.event_id
            limit_bytes = APPEND_LIMIT_BYTES if head.type == APPEND else EVENT_LIMIT_BYTES
            if len(raw) > limit_bytes:
                raise _too_long(limit_bytes)
            event = decode(_decoder, raw)
            if isinstance(event, AudioAppend):
                await self._input.append(from_base64(event.audio), self._config, self._answering())
                return
            if isinstance(event, CHARGED):
                await self._charge()
            async with self._handling:
                await self._handle(event)
        except RequestError as error:
            await self._socket.complain(error, event_id)

    async def _charge(self) -> None:
        """
        Count an event as a request; raises ``RateLimited``, and closes the socket after ``REFUSALS_LIMIT`` refusals in
        a row.
        """
        try:
            await self._realtime.charge(self._admitted)
        except RateLimited:
            self._refusals += 1
            if self._refusals > REFUSALS_LIMIT:
                self.close(POLICY)
            raise
        self._refusals = 0

    async def _handle(self, event: HandledEvent) -> None:
        match event:
            case SessionUpdate():
                await self._configure(event)
            case ItemCreate():
                await self._add_item(event.item)
            case ItemRetrieve():
                await self._retrieve(event)
            case ResponseCreate():
                await self._respond(event)
            case ResponseCancel():
                await self._cancel(event)
            case ItemTruncate():
                await self._interrupter.truncate(event)
            case AudioCommit():
                await self._input.commit(self._config, self._answering())
            case AudioClear():
                self._input.clear()
                await self._socket.emit(lambda seq: ClearedEvent(f"event_{seq}", seq))

    async def _configure(self, event: SessionUpdate) -> None:
        """Apply the valid settings, send all settings as they are now, and an error for each invalid value."""
        config, errors = configured(self._config, event.session, "$.session")
        if self._input.begun and config.audio.input.format != self._config.audio.input.format:
            config.audio.input.format = self._config.audio.input.format
            rule = "cannot change while the buffer has audio: commit or clear it"
            errors.append(InvalidRequest.field("$.session.audio.input.format", rule))
        self._config = config
        self._input.lead(config.audio.input.turn_detection)
        await self._show_config("session.updated")
        for error in errors:
            await self._socket.complain(error, event.event_id)

    async def _add_item(self, item: ClientItem) -> None:
        for number, part in enumerate(item.content):
            if part.type not in TEXT_PARTS:
                raise InvalidRequest.field(
                    f"$.item.content[{number}].type", "must be input_text; audio goes into the input audio buffer"
                )
            text_field(f"$.item.content[{number}].text", part.text or "")
        text = "\n".join(part.text or "" for part in item.content)
        if len(text) > MESSAGE_LIMIT_CHARS:
            raise InvalidRequest.field("$.item.content", f"must have at most {MESSAGE_LIMIT_CHARS} characters")
        self._dialogue.claim(item.id)
        message_id = await self._dialogue.store(item.role, text)
        shown = Item(item.id or message_id, item.role, [part_of(item.role, text)], "completed")
        await self._dialogue.show(self._socket, shown, message_id)

    async def _retrieve(self, event: ItemRetrieve) -> None:
        """Tell the client of an item as it is now: of an answer what was heard, of a recording its words."""
        try:
            turn = await self._turns.find(self.caller, event.item_id)
        except NotFound:
            item = await self._dialogue.find(event.item_id)
        else:
            if turn.conversation_id != self.conversation_id:
                raise NotRetrievable(event.item_id)
            item = item_of(turn, spoken=turn.id in self._response.ledgers)
        await self._socket.emit(lambda seq: RetrievedEvent(f"event_{seq}", seq, item))

    async def _respond(self, event: ResponseCreate) -> None:
        if self._response.active:
            raise AlreadyActive("A response is active; wait for response.done or cancel it.")
        config, metadata = self._config, None
        if event.response is not None:
            config, metadata = self._config_of_response(event.response)
        if self._transcriptions.defer(event):
            return
        if self._dialogue.pending is None:
            raise InvalidRequest("There is no message to answer; create one first.", details={"path": "$.type"})
        await self._response.wait_sent()
        self._dialogue.asked = message_id, content = self._dialogue.pending
        ask = Ask(
            content=content,
            conversation_id=self.conversation_id,
            system_prompt=config.instructions,
            temperature=config.temperature,
            max_tokens=None if config.max_output_tokens == "inf" else config.max_output_tokens,
            stored_message_id=message_id,
        )
        turn = await self._turns.start(ask, self.caller)
        self._turns.attach(turn)
        last = self.turn
        self._dialogue.pending = None
        self._response.begin(turn, self._output_of(turn, config, metadata), config)
        self._realtime.keep(self, turn)
        if last is not None:
            self._realtime.forget(self, last)
            await self._turns.detach(last)

    def _config_of_response(self, given: object) -> tuple[SessionBody, Metadata | None]:
        """Return the settings and metadata of a response that was asked for with *given*; raises ``InvalidRequest``."""
        asked, errors = take(ResponseConfig, given, "$.response")
        if asked.input is not UNSET:
            raise InvalidRequest.field("$.response.input", "is not served; use conversation.item.create")
        if asked.conversation not in (UNSET, "auto"):
            raise InvalidRequest.field("$.response.conversation", 'only "auto" is served: the answer would be stored')
        config, wrong = configured(self._config, given, "$.response")
        if errors or wrong:
            raise (errors or wrong)[0]
        return config, asked.metadata if isinstance(asked.metadata, dict) else None

    def _output_of(self, turn: Turn, config: SessionBody, metadata: Metadata | None) -> Output:
        if config.output_modalities != ["audio"]:
            return TextOutput(turn, metadata)
        wanted = config.audio.output
        options = SpeechOptions(
            wanted.format.encoding,
            wanted.voice,
            self._transcriptions.language,
            wanted.speed,
            sample_rate_hz=wanted.format.rate,
            strict=False,
        )
        shown = SpokenOutput(wanted.format, wanted.voice)
        return AudioOutput(turn, self._realtime.synthesizer, options, shown, self.caller, metadata)

    def _answering(self) -> Answering:
        return Answering(self._respond_or_complain, self._answer)

    async def _answer(self, event: ResponseCreate) -> None:
        """Answer what was said, unless more is being said: then it is answered together."""
        if self._input.speaking:
            return
        if self._response.active:
            if self._later is None or self._later.done():
                self._later = asyncio.get_running_loop().create_task(self._answer_later(event))
            return
        await self._respond_or_complain(event)

    async def _answer_later(self, event: ResponseCreate) -> None:
        await self._response.wait_sent()
        async with self._handling:
            if self._dialogue.pending is not None:
                await self._answer(event)

    async def _respond_or_complain(self, event: ResponseCreate) -> None:
        if self._socket.gone:
            return
        try:
            await self._respond(event)
        except RequestError as error:
            await self._socket.complain(error, event.event_id)

    async def _cancel(self, event: ResponseCancel) -> None:
        response = self._response
        if not response.active and event.response_id is None:
            deferred = self._transcriptions.take_deferred()
            if deferred is not None:
                error = Conflict("The response was cancelled before it was created.")
                await self._socket.complain(error, deferred.event_id)
                return
        if not response.active or response.turn is None or event.response_id not in (None, response.turn.id):
            raise NothingToCancel
        await self._interrupter.interrupt("cancelled")


def _tell_lost(realtime: Sessions, socket: Socket, error: RequestError) -> None:
    """Tell a client that its buffer was cleared, and why; not a method, which would make a reference cycle."""

    async def tell() -> None:
        await socket.complain(error, None)
        await socket.emit(lambda seq: ClearedEvent(f"event_{seq}", seq))

    realtime.own(asyncio.get_running_loop().create_task(tell()))


def _too_long(limit_bytes: int) -> TooLarge:
    return TooLarge(f"An event of this kind has at most {limit_bytes} bytes.", details={"limit_bytes": limit_bytes})
