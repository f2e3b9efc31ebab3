"""
One WebSocket's session: what its client sends, and what becomes of it.

A committed recording is a user's message once its words are known. That takes a while, in a task of its own: the client
may go on sending, and a ``response.create`` that comes meanwhile waits for the words. Recordings become messages in the
order in which they were committed.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

import msgspec
from msgspec import UNSET, Struct
from starlette.types import Message, Receive, Send

from jarvis_core import log
from jarvis_core.conversation import Conversations
from jarvis_core.errors import Conflict, InvalidRequest, Overloaded, RateLimited, RequestError
from jarvis_core.handlers.admission import Admitted
from jarvis_core.handlers.call import SEND_TIMEOUT_S, BoundedSend, ClientLeft, decode, text_field
from jarvis_core.handlers.events import ContentPart, Item, SpokenOutput
from jarvis_core.handlers.failure import INTERNAL
from jarvis_core.handlers.realtime_audio import InputBuffer, Recording, configured_audio, default_audio
from jarvis_core.handlers.realtime_left import MARKS_LIMIT, Left
from jarvis_core.handlers.realtime_output import AudioOutput, Output, TextOutput, event_error
from jarvis_core.handlers.realtime_wire import (
    AudioAppend,
    AudioClear,
    AudioCommit,
    ClearedEvent,
    ClientEvent,
    ClientItem,
    CommittedEvent,
    ConversationItemEvent,
    DurationUsage,
    ErrorEvent,
    EventHead,
    ItemCreate,
    ResponseCancel,
    ResponseCreate,
    SessionBody,
    SessionConfig,
    SessionEvent,
    SessionUpdate,
    TranscriptionCompletedEvent,
    TranscriptionFailedEvent,
)
from jarvis_core.models import Role, new_id
from jarvis_core.narration import START, Place
from jarvis_core.settings import Llm
from jarvis_core.speech import Heard, SpeechOptions, Synthesizer, Transcriber
from jarvis_core.turn import Ask, Turns
from jarvis_core.turn_log import Step, Turn

logger = log.get(__name__)

TEXT_LIMIT_BYTES = 1 << 20
BINARY_LIMIT_BYTES = 15 << 20
CLOSE_TIMEOUT_S = 1.0
"""How long a client may take to read what is due to it before its socket is closed, and then the close itself."""
MESSAGE_LIMIT_CHARS = 10_000
HEARINGS_LIMIT = 4
"""Recordings of one session that are being listened to; more are refused."""

NORMAL = 1000
GOING_AWAY = 1001
POLICY = 1008
TOO_LARGE = 1009
DEFECT = 1011
TRY_AGAIN = 1013

CHARGED = (ItemCreate, ResponseCreate, AudioCommit)
"""Events that count as a request: each stores something, or asks a neighbour."""
REFUSALS_LIMIT = 20
"""Events in a row that are refused for their rate; with the next one the socket is closed."""

TEXT_PARTS = ("input_text", "output_text", "text")

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ClientEvent)
_head_decoder = msgspec.json.Decoder(EventHead)


class Sessions(Protocol):
    """What a session needs of those who keep it."""

    turns: Turns
    conversations: Conversations
    transcriber: Transcriber
    synthesizer: Synthesizer
    settings: Llm

    async def charge(self, admitted: Admitted) -> None:
        """Count what somebody asks for over an open socket; raises ``RateLimited``."""
        ...

    def give_grace(self, session: Session) -> asyncio.Task[None]:
        """Have *session* give up its turn when the time to come back is over."""
        ...

    def own(self, task: asyncio.Task[None]) -> None:
        """Take over a task of a session whose socket is gone."""
        ...

    def keep(self, session: Session, turn: Turn) -> None:
        """Let *turn* be resumed from *session*."""
        ...

    def forget(self, session: Session, turn: Turn) -> None:
        """Let *turn* no longer be resumed."""
        ...


class Session:
    """One client's conversation over one socket; a new one goes on where another was left."""

    def __init__(self, realtime: Sessions, admitted: Admitted, conversation_id: str | None, send: Send) -> None:
        self.id = f"sess_{new_id()}"
        self.caller = admitted.caller
        self._admitted = admitted
        self._refusals = 0
        """Events in a row that were one too many for the caller's rate."""
        self.conversation_id = conversation_id
        self.turn: Turn | None = None
        """The response that runs, or the last one."""
        self._realtime = realtime
        self._turns = realtime.turns
        self._send = send
        self._lock = asyncio.Lock()
        self._seq = 0
        self._marks: list[tuple[int, Place]] = []
        """(seq, place) of each event of ``turn`` that was sent."""
        self._active = False
        self._output: Output | None = None
        """Of the active response, or the last one."""
        self._pump: asyncio.Task[None] | None = None
        self._grace: asyncio.Task[None] | None = None
        self._resume_at: Place | None = None
        self._receiving: asyncio.Future[Message] | None = None
        self._code: int | None = None
        """What the socket is to be closed with."""
        self._last_item_id: str | None = None
        self._pending: tuple[str, str] | None = None
        """(id, text) of the user's last message while nothing has answered it."""
        self._asked: tuple[str, str] | None = None
        """(id, text) of the message that ``turn`` answers."""
        self._handling = asyncio.Lock()
        """Held while an event, or words that were heard, change what the session is about."""
        self._buffer = InputBuffer(realtime.transcriber)
        self._hearings: list[asyncio.Task[None]] = []
        """Recordings whose words are not known yet, in their order."""
        self._deferred: ResponseCreate | None = None
        """A response that waits for those words."""
        self._heard_language: str | None = None
        self._gone = False
        settings = realtime.settings
        self._config = SessionBody(
            id=self.id,
            conversation_id=conversation_id,
            instructions=settings.system_prompt,
            output_modalities=["text"],
            max_output_tokens=settings.max_tokens,
            temperature=settings.temperature,
            audio=default_audio(),
        )
        self._response_config = self._config
        """With which ``turn`` was asked for."""

    async def run(self, receive: Receive) -> None:
        """Serve the socket until it closes."""
        await self._emit(lambda seq: SessionEvent("session.created", f"event_{seq}", seq, self._config))
        if self._resume_at is not None and self._output is not None and self.turn is not None:
            self._follow(self._output, self._resume_at)
        while self._code is None:
            self._receiving = asyncio.ensure_future(receive())
            try:
                message = await self._receiving
            except asyncio.CancelledError:
                # By ``close``, or by Granian when it stops.
                break
            if message["type"] == "websocket.disconnect":
                return
            await self._receive(message.get("text"), message.get("bytes"))
        await self.say_goodbye()

    def close(self, code: int) -> None:
        """Have the socket closed with *code* by the task that serves it."""
        if self._code is None:
            self._code = code
            if self._receiving is not None:
                # Granian (2.8.7) does not send a close while a receive is pending.
                self._receiving.cancel()

    async def say_goodbye(self) -> None:
        """Send what is due of a response that has ended, then close the socket; waits twice ``CLOSE_TIMEOUT_S`` at most."""
        if self._pump is not None and self.turn is not None and self.turn.ended:
            if self._output is not None and self._code == GOING_AWAY:
                # Nobody can resume it: what it has left to say comes in words.
                self._output.silence("server_stopped")
            await asyncio.wait([self._pump], timeout=CLOSE_TIMEOUT_S)
        await self._stop_pump()
        if self._code is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._send({"type": "websocket.close", "code": self._code, "reason": ""})

    async def leave(self) -> None:
        """
        Stop sending; a response can be resumed for a while, as its end may not have arrived.

        What was committed still becomes a message: the client was told that it would.
        """
        self._gone = True
        self._deferred = None
        self._buffer.clear()
        for hearing in self._hearings:
            self._realtime.own(hearing)
        await self._stop_pump()
        if self.turn is not None:
            self._grace = self._realtime.give_grace(self)

    async def give_up(self, grace_s: float) -> None:
        """Let go of the turn after *grace_s* seconds in which nobody took it over."""
        await asyncio.sleep(grace_s)
        self._grace = None
        turn, self.turn = self.turn, None
        if turn is not None:
            self._realtime.forget(self, turn)
            await self._turns.detach(turn)

    async def take_over(self, left: Session, after: int) -> None:
        """Go on with the response of the session *left*, whose client has seen its events up to *after*."""
        # Critical section: without an await, so that of two who come back at once the second takes over from the first.
        self.turn, left.turn = left.turn, None
        if left._grace is not None:
            left._grace.cancel()
            left._grace = None
        self._pending, self._asked, self._last_item_id = left._pending, left._asked, left._last_item_id
        self._output, self._heard_language = left._output, left._heard_language
        self._response_config = left._response_config
        self._config = msgspec.structs.replace(left._config, id=self.id)
        seen = bisect.bisect_right(left._marks, after, key=lambda mark: mark[0])
        self._marks = left._marks[:seen]
        self._seq = after
        self._resume_at = self._marks[-1][1] if self._marks else START
        if self.turn is not None:
            self._realtime.keep(self, self.turn)
        left.close(NORMAL)
        await left._stop_pump()

    async def part(self, after: int) -> Left | None:
        """
        Give up the response for a session on another worker, whose client has seen its events up to *after*.

        The turn is let go of a while later: by then that worker follows it.
        """
        if self.turn is None or self._output is None:
            return None
        seen = bisect.bisect_right(self._marks, after, key=lambda mark: mark[0])
        left = Left(
            self.conversation_id,
            self._config,
            self._response_config,
            self._marks[max(0, seen - MARKS_LIMIT) : seen],
            self._last_item_id,
            self._pending,
            self._asked,
            self._heard_language,
            self._output.silenced,
        )
        self._realtime.forget(self, self.turn)
        self.close(NORMAL)
        await self._stop_pump()
        return left

    def go_on(self, left: Left, turn: Turn, after: int) -> None:
        """Go on with the response *turn* of a session that was *left* on another worker."""
        self.turn = turn
        self._turns.attach(turn)
        self._pending, self._asked, self._last_item_id = left.pending, left.asked, left.last_item_id
        self._heard_language, self._marks = left.heard_language, left.marks
        self._config = msgspec.structs.replace(left.config, id=self.id)
        self._response_config = left.response_config
        self._output = self._output_of(turn, left.response_config)
        if left.silenced is not None:
            self._output.silence(left.silenced)
        self._seq = after
        self._resume_at = self._marks[-1][1] if self._marks else START
        self._realtime.keep(self, turn)

    async def complain(self, error: RequestError, event_id: str | None) -> None:
        """Tell the client of *error*, caused by its event *event_id*."""
        body = event_error(error, event_id)
        await self._emit(lambda seq: ErrorEvent(f"event_{seq}", seq, body))

    async def _emit(self, build: Callable[[int], Struct]) -> None:
        if self._gone:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), self._lock:
                self._seq += 1
                await self._send({"type": "websocket.send", "text": _encoder.encode(build(self._seq)).decode()})
        except TimeoutError:
            self._lose()

    def _lose(self) -> None:
        """Close the socket of a client that does not read; its response can be resumed as after any other loss."""
        self._gone = True
        self.close(POLICY)

    async def _receive(self, text: str | None, binary: bytes | None) -> None:
        if (binary is not None and len(binary) > BINARY_LIMIT_BYTES) or (
            text is not None and _bytes(text) > TEXT_LIMIT_BYTES
        ):
            self.close(TOO_LARGE)
            return
        event_id = None
        try:
            if text is None:
                self._buffer.append(binary or b"", self._config.audio.input.format.rate)
                return
            raw = text.encode(errors="surrogatepass")
            with contextlib.suppress(RequestError):
                event_id = decode(_head_decoder, raw).event_id
            event = decode(_decoder, raw)
            if isinstance(event, CHARGED):
                await self._charge()
            async with self._handling:
                await self._handle(event)
        except RequestError as error:
            await self.complain(error, event_id)

    async def _charge(self) -> None:
        """Count an event that makes work; raises ``RateLimited``, and closes the socket of a client that does not care."""
        try:
            await self._realtime.charge(self._admitted)
        except RateLimited:
            self._refusals += 1
            if self._refusals > REFUSALS_LIMIT:
                self.close(POLICY)
            raise
        self._refusals = 0

    async def _handle(self, event: ClientEvent) -> None:
        match event:
            case SessionUpdate():
                config = _configured(self._config, event.session, "$.session")
                if self._buffer.length_bytes and config.audio.input.format != self._config.audio.input.format:
                    raise InvalidRequest.field(
                        "$.session.audio.input.format", "cannot change while the buffer has audio: commit or clear it"
                    )
                self._config = config
                await self._emit(lambda seq: SessionEvent("session.updated", f"event_{seq}", seq, self._config))
            case ItemCreate():
                await self._add_item(event.item)
            case ResponseCreate():
                await self._respond(event)
            case ResponseCancel():
                await self._cancel(event)
            case AudioAppend():
                self._buffer.append_base64(event.audio, self._config.audio.input.format.rate)
            case AudioCommit():
                await self._commit()
            case AudioClear():
                self._buffer.clear()
                await self._emit(lambda seq: ClearedEvent(f"event_{seq}", seq))

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
        role: Role = item.role
        message_id = await self._store(role, text)
        if role == "user":
            self._pending = (message_id, text)
        parts = [ContentPart("output_text" if role == "assistant" else "input_text", text)]
        await self._show(Item(item.id or message_id, role, parts, "completed"))

    async def _store(self, role: Role, text: str, message_id: str | None = None) -> str:
        """Store a message in the conversation, which the first one makes; return its id."""
        conversation_id, message_id = await self._realtime.conversations.add_message(
            self.caller.user_id, self.conversation_id, role, text, message_id=message_id
        )
        if self.conversation_id is None:
            self.conversation_id = conversation_id
            self._config = msgspec.structs.replace(self._config, conversation_id=conversation_id)
        return message_id

    async def _show(self, item: Item) -> None:
        """Tell the client of an item that is the last of the conversation now."""
        previous, self._last_item_id = self._last_item_id, item.id
        conversation_id = self.conversation_id
        for name in ("conversation.item.added", "conversation.item.done"):
            await self._emit(
                lambda seq, name=name: ConversationItemEvent(name, f"event_{seq}", seq, conversation_id, previous, item)  # type: ignore[misc]
            )

    async def _respond(self, event: ResponseCreate) -> None:
        if self._active:
            raise InvalidRequest(
                "A response is active; wait for response.done or cancel it.", details={"path": "$.type"}
            )
        if event.response is not None and event.response.input is not None:
            raise InvalidRequest.field("$.response.input", "is not served; use conversation.item.create")
        config = self._config if event.response is None else _configured(self._config, event.response, "$.response")
        if self._hearings:
            if self._deferred is not None:
                raise InvalidRequest("A response waits for the words already.", details={"path": "$.type"})
            self._deferred = event
            return
        if self._pending is None:
            raise InvalidRequest("There is no message to answer; create one first.", details={"path": "$.type"})
        if self._pump is not None and not self._pump.done():
            # It may still be sending the last response.done.
            await asyncio.wait([self._pump])
        self._asked = message_id, content = self._pending
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
        last, self.turn = self.turn, turn
        if last is not None:
            self._realtime.forget(self, last)
            await self._turns.detach(last)
        self._realtime.keep(self, turn)
        self._pending = None
        self._marks = []
        self._response_config = config
        self._output = self._output_of(turn, config)
        self._follow(self._output, START)

    def _output_of(self, turn: Turn, config: SessionBody) -> Output:
        if config.output_modalities != ["audio"]:
            return TextOutput(turn)
        wanted = config.audio.output
        options = SpeechOptions(
            "pcm16", wanted.voice, self._heard_language, wanted.speed, sample_rate_hz=wanted.format.rate, strict=False
        )
        shown = SpokenOutput(wanted.format, wanted.voice)
        return AudioOutput(turn, self._realtime.synthesizer, options, shown, self.caller)

    async def _commit(self) -> None:
        """Make the buffer an item, and begin to listen to it."""
        if len(self._hearings) >= HEARINGS_LIMIT:
            raise Overloaded("Too many recordings are being listened to; wait for their words.", retry_after_s=1)
        recording = self._buffer.commit(self._config.audio.input.format.rate)
        item_id = new_id()
        previous = self._last_item_id
        await self._emit(lambda seq: CommittedEvent(f"event_{seq}", seq, previous, item_id))
        await self._show(Item(item_id, "user", [ContentPart("input_audio", transcript=None)], "completed"))
        before = self._hearings[-1] if self._hearings else None
        task = asyncio.get_running_loop().create_task(self._hear(item_id, recording, self._config, before))
        self._hearings.append(task)

    async def _hear(
        self, item_id: str, recording: Recording, config: SessionBody, before: asyncio.Task[None] | None
    ) -> None:
        """Find the words of a recording and store them; then whatever waited for them goes on."""
        heard: Heard | None = None
        failure: RequestError | None = None
        try:
            heard = await self._realtime.transcriber.transcribe_pcm(
                recording.parts,
                "pcm16",
                recording.sample_rate_hz,
                self.caller,
                language=config.audio.input.transcription.language,
            )
        except RequestError as exc:
            failure = exc.bare()
        except Exception:
            logger.exception("a recording was not heard through a defect", session=self.id)
            failure = INTERNAL
        finally:
            recording.close()
        if before is not None and not before.done():
            await asyncio.wait([before])
        async with self._handling:
            try:
                if heard is not None:
                    await self._take_words(item_id, heard, config)
            except RequestError as exc:
                failure = exc.bare()
            except Exception:
                # Whatever went wrong, a response may wait for the end of this.
                logger.exception("words were not stored through a defect", session=self.id)
                failure = INTERNAL
            if failure is not None:
                body = event_error(failure, None)
                await self._emit(lambda seq: TranscriptionFailedEvent(f"event_{seq}", seq, item_id, body))
            self._hearings = [task for task in self._hearings if task is not asyncio.current_task()]
            if not self._hearings and self._deferred is not None:
                waiting, self._deferred = self._deferred, None
                if failure is not None and self._pending is None:
                    await self.complain(failure, waiting.event_id)
                else:
                    await self._respond_or_complain(waiting)
            elif heard is not None and heard.text and failure is None and config.audio.input.create_response:
                await self._respond_or_complain(ResponseCreate())

    async def _take_words(self, item_id: str, heard: Heard, config: SessionBody) -> None:
        """Store what was heard as the user's message, and tell the client."""
        text = text_without_nul(heard.text)
        if len(text) > MESSAGE_LIMIT_CHARS:
            raise InvalidRequest(f"The recording says more than {MESSAGE_LIMIT_CHARS} characters.")
        if text:
            await self._store("user", text, item_id)
            self._pending = (item_id, text)
            self._heard_language = heard.language or self._heard_language
        await self._emit(
            lambda seq: TranscriptionCompletedEvent(
                f"event_{seq}",
                seq,
                item_id,
                text,
                DurationUsage(heard.duration_ms / 1_000),
                self.conversation_id,
                heard.language,
                heard.enhanced,
            )
        )

    async def _respond_or_complain(self, event: ResponseCreate) -> None:
        if self._gone:
            return
        try:
            await self._respond(event)
        except RequestError as error:
            await self.complain(error, event.event_id)

    async def _cancel(self, event: ResponseCancel) -> None:
        if not self._active and self._deferred is not None and event.response_id is None:
            waiting, self._deferred = self._deferred, None
            await self.complain(Conflict("The response was cancelled before it was created."), waiting.event_id)
            return
        if not self._active or self.turn is None or event.response_id not in (None, self.turn.id):
            raise InvalidRequest("There is no such active response.", details={"path": "$.response_id"})
        if self._output is not None:
            self._output.silence("cancelled")
        await self._turns.stop(self.turn)
        if self._pump is not None:
            # Who interrupts asks for the next response in the same breath: by then this one is over.
            await asyncio.wait([self._pump])

    def _follow(self, output: Output, after: Place) -> None:
        self._active = True
        self._pump = asyncio.get_running_loop().create_task(self._send_events(output, after))

    async def _stop_pump(self) -> None:
        if (pump := self._pump) is not None:
            pump.cancel()
            await asyncio.wait([pump])
            # Its cancellation refers to this session: let go of, both are freed at once, not by a collector that looks seldom.
            if self._pump is pump:
                self._pump = None

    async def _send_events(self, output: Output, after: Place) -> None:
        """Send the events of a response from the place *after* to its end."""
        try:
            async with BoundedSend(self._send) as client, aclosing(output.events(after)) as events:
                async for event in events:
                    async with self._lock:
                        self._seq += 1
                        self._marks.append((self._seq, event.place))
                        if event.step is Step.ITEM_ADDED:
                            self._last_item_id = output.turn.id
                        elif event.step is Step.ENDED:
                            # Before it is sent: whoever has seen it may ask for the next response.
                            self._end(output.turn)
                        await client.send({"type": "websocket.send", "text": event.write(self._seq).decode()})
            if self._active:
                self._end(output.turn)
        except ClientLeft:
            self._lose()
        except Exception:
            logger.exception("the events of a response failed through a defect", response_id=output.turn.id)
            self.close(DEFECT)

    def _end(self, turn: Turn) -> None:
        self._active = False
        if not turn.opened and self._pending is None:
            # The next response.create answers the message that this turn did not answer with a word.
            self._pending = self._asked


def text_without_nul(text: str) -> str:
    """Return *text* without NUL, which cannot be stored, and without white space around it."""
    return text.replace("\0", "").strip()


def _configured(body: SessionBody, config: SessionConfig, path: str) -> SessionBody:
    if config.output_modalities is not UNSET and len(config.output_modalities) != 1:
        raise InvalidRequest.field(f"{path}.output_modalities", 'must be ["text"] or ["audio"]')
    if config.instructions is not UNSET and config.instructions:
        text_field(f"{path}.instructions", config.instructions)
    names = ("instructions", "output_modalities", "max_output_tokens", "temperature")
    changes = {name: value for name in names if (value := getattr(config, name)) is not UNSET}
    if config.audio is not UNSET:
        changes["audio"] = configured_audio(body.audio, config.audio, f"{path}.audio")
    return msgspec.structs.replace(body, **changes)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
