"""A session over one WebSocket: receives its client's events, and hands them to its parts."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from functools import partial
from typing import Protocol

import msgspec
from starlette.types import Receive, Send

from jarvis_core import cancellation
from jarvis_core.access.connections import FRAME_BYTES
from jarvis_core.access.rate_limit import Allowance
from jarvis_core.errors import InvalidRequest, Overloaded, RateLimited, RequestError, TooLarge
from jarvis_core.handlers.admission import Admitted
from jarvis_core.handlers.call import decode
from jarvis_core.handlers.realtime.audio import from_base64
from jarvis_core.handlers.realtime.audio_input import Answering
from jarvis_core.handlers.realtime.config import configured, default_config, of_type
from jarvis_core.handlers.realtime.parts import Shared, assemble
from jarvis_core.handlers.realtime.snapshot import SessionSnapshot
from jarvis_core.handlers.realtime.socket import CLOSE_TIMEOUT_S, NORMAL, POLICY, TOO_BIG, TRY_AGAIN, Socket
from jarvis_core.handlers.realtime.wire import (
    AudioAppend,
    AudioClear,
    AudioCommit,
    ClearedEvent,
    ClientEvent,
    EventHead,
    HandledEvent,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    Modality,
    RateLimit,
    RateLimitsEvent,
    ResponseCancel,
    ResponseCreate,
    SessionEvent,
    SessionType,
    SessionUpdate,
)
from jarvis_core.models import new_id
from jarvis_core.turns.log import Turn

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

_decoder = msgspec.json.Decoder(ClientEvent)
_head_decoder = msgspec.json.Decoder(EventHead)


class Sessions(Shared, Protocol):
    """What sessions share, and the owner of those whose socket is gone."""

    async def charge(self, admitted: Admitted) -> tuple[int, Allowance] | None:
        """Count a request over an open socket; return the limit and what is left. Raises ``RateLimited``."""
        ...

    def give_grace(self, session: Session) -> asyncio.Task[None]:
        """Start a task in which *session* gives up its turn after the resume grace."""
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
        kind: SessionType = "realtime",
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
        self._grace: asyncio.Task[None] | None = None
        self._handling = asyncio.Lock()
        """Held while an event or a transcript changes the session."""
        config = default_config(
            self.id, conversation_id, realtime.settings, modality, clean=realtime.transcriber.suppresses_noise
        )
        config = of_type(config, kind)
        on_turn = partial(_keep, realtime, weakref.ref(self))
        self.parts = assemble(realtime, self.caller, Socket(send), config, self._handling, on_turn)
        self._socket = self.parts.socket

    @property
    def conversation_id(self) -> str | None:
        """The conversation's id, once there is one."""
        return self.parts.dialogue.conversation_id

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
        return self.parts.response.turn

    async def run(self, receive: Receive) -> None:
        """Serve the socket until it closes."""
        await self._show_config("session.created")
        self.parts.response.resume()
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
        await self.parts.response.say_goodbye()
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
        parts = self.parts
        self._socket.leave()
        await parts.responder.leave()
        await parts.input.close()
        for task in parts.transcriptions.hand_over():
            self._realtime.own(task)
        await parts.response.stop()
        if self.turn is not None:
            self._grace = self._realtime.give_grace(self)

    async def give_up(self, grace_s: float) -> None:
        """Detach from the turn after *grace_s* seconds; cancelled where another session takes it over."""
        await asyncio.sleep(grace_s)
        self._grace = None
        turn, self.parts.response.turn = self.turn, None
        if turn is not None:
            self._realtime.forget(self, turn)
            await self._turns.detach(turn)

    async def take_over(self, previous: Session, after: int) -> None:
        """
        Continue the response of *previous*, a session of this worker, whose client has seen its events up to *after*.
        """
        self.parts.take_over(previous.parts, after)
        if previous._grace is not None:
            previous._grace.cancel()
            previous._grace = None
        if self.turn is not None:
            self._realtime.keep(self, self.turn)
        previous.close(NORMAL)
        await previous.parts.response.stop()

    async def hand_over(self, after: int) -> SessionSnapshot | None:
        """
        Return a snapshot for a session on another worker, whose client has seen the events up to *after*, and close
        this one.

        Detaches from the turn after the grace: by then the other worker follows it.
        """
        snapshot = self.parts.snapshot(after)
        if snapshot is not None and self.turn is not None:
            self._realtime.forget(self, self.turn)
            self.close(NORMAL)
            await self.parts.response.stop()
        return snapshot

    def restore(self, snapshot: SessionSnapshot, turn: Turn, after: int) -> None:
        """Continue the response *turn* of a session on another worker, from its *snapshot*."""
        self._turns.attach(turn)
        self.parts.restore(snapshot, turn, after)
        self._realtime.keep(self, turn)

    async def _show_config(self, name: str) -> None:
        config = msgspec.structs.replace(self.parts.settings.body, conversation_id=self.conversation_id)
        await self._socket.emit(lambda seq: SessionEvent(name, f"event_{seq}", seq, config))

    async def _receive(self, text: str | None, binary: bytes | None) -> None:
        event_id = None
        try:
            if text is None:
                self.received_bytes += len(binary or b"") + FRAME_BYTES
                if len(binary or b"") > AUDIO_LIMIT_BYTES:
                    raise _too_long(AUDIO_LIMIT_BYTES)
                await self._append(binary or b"")
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
                await self._append(from_base64(event.audio))
                return
            charged = await self._charge() if isinstance(event, CHARGED) else None
            async with self._handling:
                await self._handle(event)
            if charged is not None and isinstance(event, ResponseCreate):
                await self._tell_rate(*charged)
        except RequestError as error:
            await self._socket.complain(error, event_id)

    async def _charge(self) -> tuple[int, Allowance] | None:
        """
        Count an event as a request; raises ``RateLimited``, and closes the socket after ``REFUSALS_LIMIT`` refusals in
        a row.
        """
        try:
            charged = await self._realtime.charge(self._admitted)
        except RateLimited:
            self._refusals += 1
            if self._refusals > REFUSALS_LIMIT:
                self.close(POLICY)
            raise
        self._refusals = 0
        return charged

    async def _handle(self, event: HandledEvent) -> None:
        parts = self.parts
        match event:
            case SessionUpdate():
                await self._configure(event)
            case ItemCreate():
                await parts.items.add(event)
            case ItemDelete():
                await parts.items.delete(event)
            case ItemRetrieve():
                await parts.items.retrieve(event)
            case ResponseCreate():
                await parts.responder.respond(event)
            case ResponseCancel():
                await parts.responder.cancel(event)
            case ItemTruncate():
                await parts.interrupter.truncate(event)
            case AudioCommit():
                await parts.input.commit(parts.settings.body, self._answering())
            case AudioClear():
                parts.input.clear()
                await self._socket.emit(lambda seq: ClearedEvent(f"event_{seq}", seq))

    async def _configure(self, event: SessionUpdate) -> None:
        """Apply the valid settings, send all settings as they are now, and an error for each invalid value."""
        settings, sound = self.parts.settings, self.parts.input
        config, errors = configured(settings.body, event.session, "$.session")
        if sound.begun and config.audio.input.format != settings.body.audio.input.format:
            config.audio.input.format = settings.body.audio.input.format
            rule = "cannot change while the buffer has audio: commit or clear it"
            errors.append(InvalidRequest.field("$.session.audio.input.format", rule))
        settings.body = config = await sound.settle(config)
        sound.lead(config.audio.input.turn_detection)
        await self._show_config("session.updated")
        for error in errors:
            await self._socket.complain(error, event.event_id)

    async def _tell_rate(self, limit: int, allowance: Allowance) -> None:
        limits = [RateLimit("requests", limit, allowance.remaining, allowance.reset_s)]
        await self._socket.emit(lambda seq: RateLimitsEvent(f"event_{seq}", seq, limits))

    async def _append(self, samples: bytes) -> None:
        await self.parts.input.append(samples, self.parts.settings.body, self._answering())

    def _answering(self) -> Answering:
        responder = self.parts.responder
        return Answering(responder.respond_or_complain, responder.answer, responder.expect)


def _keep(sessions: Sessions, reference: weakref.ref[Session], turn: Turn, last: Turn | None) -> None:
    """Let *turn* be resumed from a session in place of its *last*; by a reference that makes no cycle of the two."""
    if (session := reference()) is not None:
        sessions.keep(session, turn)
        if last is not None:
            sessions.forget(session, last)


def _too_long(limit_bytes: int) -> TooLarge:
    return TooLarge(f"An event of this kind has at most {limit_bytes} bytes.", details={"limit_bytes": limit_bytes})
