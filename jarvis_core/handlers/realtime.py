"""
The WebSocket: text turns in the vocabulary of the OpenAI Realtime API, at ``/ws`` and ``/v1/realtime``.

A session has at most one active response. Its turn outlives the socket for a grace (``WS_RESUME_GRACE_S``), in which the
client may come back with ``?resume=<response id>&after=<seq>`` and gets what it missed under the numbers that follow
*after*.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Callable
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET, Struct
from starlette.types import Message, Receive, Scope, Send

from jarvis_core import log
from jarvis_core.conversation import Conversations
from jarvis_core.credentials import Credentials
from jarvis_core.errors import Forbidden, InvalidRequest, NotFound, RequestError, Unauthenticated
from jarvis_core.handlers.call import decode, text_field
from jarvis_core.handlers.events import ContentPart, EventError, Item, TurnEvents
from jarvis_core.handlers.failure import INTERNAL, refuse_handshake, status_of
from jarvis_core.handlers.realtime_wire import (
    ClientEvent,
    ClientItem,
    ConversationItemEvent,
    ErrorEvent,
    EventHead,
    ItemCreate,
    ResponseCancel,
    ResponseCreate,
    SessionBody,
    SessionConfig,
    SessionEvent,
    SessionUpdate,
)
from jarvis_core.models import Caller, Role, new_id
from jarvis_core.settings import Llm
from jarvis_core.turn import Ask, Turns
from jarvis_core.turn_log import Reader, Step, Turn

logger = log.get(__name__)

TEXT_LIMIT_BYTES = 1 << 20
BINARY_LIMIT_BYTES = 15 << 20
CLOSE_TIMEOUT_S = 1.0
"""How long a client may take to read what is due to it before its socket is closed, and then the close itself."""

NORMAL = 1000
GOING_AWAY = 1001
POLICY = 1008
TOO_LARGE = 1009
DEFECT = 1011

SUBPROTOCOL = "realtime"
KEY_SUBPROTOCOL = "openai-insecure-api-key."
TEXT_PARTS = ("input_text", "output_text", "text")

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ClientEvent)
_head_decoder = msgspec.json.Decoder(EventHead)


class Realtime:
    """Serves the WebSockets of one worker, and keeps what their clients may come back to."""

    def __init__(
        self,
        turns: Turns,
        conversations: Conversations,
        credentials: Credentials,
        settings: Llm,
        cors_origins: tuple[str, ...],
        *,
        resume_grace_s: float,
    ) -> None:
        self.turns = turns
        self.conversations = conversations
        self.settings = settings
        self.resume_grace_s = resume_grace_s
        self._credentials = credentials
        self._origins = cors_origins
        self._sessions: dict[Session, asyncio.Task[None] | None] = {}
        """Open sockets, and the tasks that serve them."""
        self._graces: set[asyncio.Task[None]] = set()
        self._by_response: dict[str, Session] = {}
        """Sessions whose response can be resumed, connected or in their grace."""

    @property
    def connected(self) -> int:
        """How many sockets are open."""
        return len(self._sessions)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket from its handshake to its end."""
        await receive()
        headers = {bytes(key): bytes(value) for key, value in scope["headers"]}
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        offered = scope.get("subprotocols") or []
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        try:
            self._check_origin(headers)
            caller = self._credentials.caller(_authorization(headers, query, offered))
            session = await self._session(caller, query, send)
        except Unauthenticated as error:
            # A browser's script cannot see the status of a refused handshake, but it can see a closing code.
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            await Session(self, Caller(""), None, send).complain(error, None)
            await send({"type": "websocket.close", "code": POLICY, "reason": error.code})
            return
        except RequestError as error:
            await refuse_handshake(send, error)
            return
        except Exception:
            logger.exception("a handshake failed through a defect")
            await refuse_handshake(send, INTERNAL)
            return
        self._sessions[session] = asyncio.current_task()
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            await session.run(receive)
        except Exception:
            logger.exception("a socket failed through a defect", session=session.id)
            await session.complain(INTERNAL, None)
            session.close(DEFECT)
            await session.say_goodbye()
        finally:
            del self._sessions[session]
            await session.leave()

    async def close(self) -> None:
        """Close every socket because the server goes away; clients that do not read are not waited for."""
        for session in self._sessions:
            session.close(GOING_AWAY)
        tasks = [task for task in self._sessions.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=3 * CLOSE_TIMEOUT_S)
        for grace in self._graces:
            grace.cancel()

    def give_grace(self, session: Session) -> asyncio.Task[None]:
        """Have *session* give up its turn when the time to come back is over."""
        task = asyncio.get_running_loop().create_task(session.give_up(self.resume_grace_s))
        self._graces.add(task)
        task.add_done_callback(self._graces.discard)
        return task

    def keep(self, session: Session, turn: Turn) -> None:
        """Let *turn* be resumed from *session*."""
        self._by_response[turn.id] = session

    def forget(self, session: Session, turn: Turn) -> None:
        """Let *turn* no longer be resumed."""
        if self._by_response.get(turn.id) is session:
            del self._by_response[turn.id]

    async def _session(self, caller: Caller, query: dict[str, str], send: Send) -> Session:
        resume = query.get("resume")
        if resume is not None:
            after = query.get("after", "0")
            if not (after.isascii() and after.isdigit() and len(after) <= 12):
                raise InvalidRequest.field("query.after", "must be the seq of the last event seen")
            left = self._by_response.get(resume)
            if left is None or left.caller != caller or left.turn is None:
                turn = await self.turns.find(caller, resume)
                raise NotFound(
                    "This response can no longer be resumed here; it is to be had at /api/chat/response/{id}.",
                    details={"response_id": turn.id, "conversation_id": turn.conversation_id},
                )
            session = Session(self, caller, left.conversation_id, send)
            await session.take_over(left, int(after))
            return session
        conversation_id = query.get("conversation_id")
        if conversation_id is not None:
            conversation_id = (await self.conversations.fetch(caller.user_id, conversation_id)).id
        return Session(self, caller, conversation_id, send)

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Refuse pages of other origins than those allowed: browsers do not do it for WebSockets."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or "*" in self._origins or origin in self._origins:
            return
        if origin.partition("://")[2] == headers.get(b"host", b"").decode("latin-1"):
            return
        raise Forbidden("Pages of this origin may not connect; CORS_ORIGINS names those that may.")


class Session:
    """One client's conversation over one socket; a new one goes on where another was left."""

    def __init__(self, realtime: Realtime, caller: Caller, conversation_id: str | None, send: Send) -> None:
        self.id = f"sess_{new_id()}"
        self.caller = caller
        self.conversation_id = conversation_id
        self.turn: Turn | None = None
        """The response that runs, or the last one."""
        self._realtime = realtime
        self._turns = realtime.turns
        self._send = send
        self._lock = asyncio.Lock()
        self._seq = 0
        self._marks: list[tuple[int, int]] = []
        """(seq, position) of each event of ``turn`` that was sent."""
        self._active = False
        self._pump: asyncio.Task[None] | None = None
        self._grace: asyncio.Task[None] | None = None
        self._resume_at: int | None = None
        self._receiving: asyncio.Future[Message] | None = None
        self._code: int | None = None
        """What the socket is to be closed with."""
        self._last_item_id: str | None = None
        self._pending: tuple[str, str] | None = None
        """(id, text) of the user's last message while nothing has answered it."""
        self._asked: tuple[str, str] | None = None
        """(id, text) of the message that ``turn`` answers."""
        settings = realtime.settings
        self._config = SessionBody(
            id=self.id,
            conversation_id=conversation_id,
            instructions=settings.system_prompt,
            output_modalities=["text"],
            max_output_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )

    async def run(self, receive: Receive) -> None:
        """Serve the socket until it closes."""
        await self._emit(lambda seq: SessionEvent("session.created", f"event_{seq}", seq, self._config))
        if self._resume_at is not None and self.turn is not None:
            self._follow(self.turn, self._resume_at)
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
            await asyncio.wait([self._pump], timeout=CLOSE_TIMEOUT_S)
        await self._stop_pump()
        if self._code is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._send({"type": "websocket.close", "code": self._code, "reason": ""})

    async def leave(self) -> None:
        """Stop sending; a response can be resumed for a while, as its end may not have arrived."""
        await self._stop_pump()
        if self.turn is not None:
            self._grace = self._realtime.give_grace(self)

    async def give_up(self, grace_s: float) -> None:
        """Let go of the turn after *grace_s* seconds in which nobody took it over."""
        await asyncio.sleep(grace_s)
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
        self._pending, self._asked, self._last_item_id = left._pending, left._asked, left._last_item_id
        self._config = msgspec.structs.replace(left._config, id=self.id)
        seen = bisect.bisect_right(left._marks, after, key=lambda mark: mark[0])
        self._marks = left._marks[:seen]
        self._seq = after
        self._resume_at = self._marks[-1][1] if self._marks else 0
        if self.turn is not None:
            self._realtime.keep(self, self.turn)
        left.close(NORMAL)
        await left._stop_pump()

    async def complain(self, error: RequestError, event_id: str | None) -> None:
        """Tell the client of *error*, caused by its event *event_id*."""
        kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
        param = (error.details or {}).get("path")
        body = EventError(kind, error.code, error.message, param, event_id)
        await self._emit(lambda seq: ErrorEvent(f"event_{seq}", seq, body))

    async def _emit(self, build: Callable[[int], Struct]) -> None:
        async with self._lock:
            self._seq += 1
            await self._send({"type": "websocket.send", "text": _encoder.encode(build(self._seq)).decode()})

    async def _receive(self, text: str | None, binary: bytes | None) -> None:
        if (binary is not None and len(binary) > BINARY_LIMIT_BYTES) or (
            text is not None and _bytes(text) > TEXT_LIMIT_BYTES
        ):
            self.close(TOO_LARGE)
            return
        event_id = None
        try:
            if text is None:
                raise InvalidRequest("Audio is not served yet; events are JSON text frames.", details={"path": "$"})
            raw = text.encode(errors="surrogatepass")
            with contextlib.suppress(RequestError):
                event_id = decode(_head_decoder, raw).event_id
            await self._handle(decode(_decoder, raw))
        except RequestError as error:
            await self.complain(error, event_id)

    async def _handle(self, event: ClientEvent) -> None:
        match event:
            case SessionUpdate():
                self._config = _configured(self._config, event.session, "$.session")
                await self._emit(lambda seq: SessionEvent("session.updated", f"event_{seq}", seq, self._config))
            case ItemCreate():
                await self._add_item(event.item)
            case ResponseCreate():
                await self._respond(event)
            case ResponseCancel():
                await self._cancel(event)
            case _:
                raise InvalidRequest("Audio is not served yet.", details={"path": "$.type"})

    async def _add_item(self, item: ClientItem) -> None:
        for number, part in enumerate(item.content):
            if part.type not in TEXT_PARTS:
                raise InvalidRequest.field(f"$.item.content[{number}].type", "only input_text is served yet")
            text_field(f"$.item.content[{number}].text", part.text or "")
        text = "\n".join(part.text or "" for part in item.content)
        if len(text) > 10_000:
            raise InvalidRequest.field("$.item.content", "must have at most 10000 characters")
        role: Role = item.role
        conversation_id, message_id = await self._realtime.conversations.add_message(
            self.caller.user_id, self.conversation_id, role, text
        )
        if self.conversation_id is None:
            self.conversation_id = conversation_id
            self._config = msgspec.structs.replace(self._config, conversation_id=conversation_id)
        if role == "user":
            self._pending = (message_id, text)
        parts = [ContentPart("output_text" if role == "assistant" else "input_text", text)]
        shown = Item(item.id or message_id, role, parts, "completed")
        previous, self._last_item_id = self._last_item_id, shown.id
        for name in ("conversation.item.added", "conversation.item.done"):
            await self._emit(
                lambda seq, name=name: ConversationItemEvent(
                    name, f"event_{seq}", seq, conversation_id, previous, shown
                )  # type: ignore[misc]
            )

    async def _respond(self, event: ResponseCreate) -> None:
        if self._active:
            raise InvalidRequest(
                "A response is active; wait for response.done or cancel it.", details={"path": "$.type"}
            )
        if event.response is not None and event.response.input is not None:
            raise InvalidRequest.field("$.response.input", "is not served; use conversation.item.create")
        config = self._config if event.response is None else _configured(self._config, event.response, "$.response")
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
        self._follow(turn, 0)

    async def _cancel(self, event: ResponseCancel) -> None:
        if not self._active or self.turn is None or event.response_id not in (None, self.turn.id):
            raise InvalidRequest("There is no such active response.", details={"path": "$.response_id"})
        await self._turns.stop(self.turn)

    def _follow(self, turn: Turn, after: int) -> None:
        self._active = True
        self._pump = asyncio.get_running_loop().create_task(self._send_events(turn, after))

    async def _stop_pump(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    async def _send_events(self, turn: Turn, after: int) -> None:
        """Send the events of *turn* from position *after* to its end."""
        try:
            await self._send_all(turn, after)
        except Exception:
            logger.exception("the events of a response failed through a defect", response_id=turn.id)
            self.close(DEFECT)

    async def _send_all(self, turn: Turn, after: int) -> None:
        reader = Reader(turn, after)
        events = TurnEvents(turn)
        ended = False
        while not ended:
            taken = await reader.next()
            for position, entry in taken:
                async with self._lock:
                    self._seq += 1
                    self._marks.append((self._seq, position))
                    if entry is Step.ITEM_ADDED:
                        self._last_item_id = turn.id
                    elif entry is Step.ENDED:
                        # Before it is sent: whoever has seen it may ask for the next response.
                        self._end(turn)
                        ended = True
                    await self._send({"type": "websocket.send", "text": events.json(self._seq, entry).decode()})
            if not taken:
                self._end(turn)
                break
            if reader.behind:
                # Neither a send nor ``next`` would give way; the others on this loop get their turn here.
                await asyncio.sleep(0)

    def _end(self, turn: Turn) -> None:
        self._active = False
        if not turn.opened and self._pending is None:
            # The next response.create answers the message that this turn did not answer with a word.
            self._pending = self._asked


def _configured(body: SessionBody, config: SessionConfig, path: str) -> SessionBody:
    if config.output_modalities is not UNSET and config.output_modalities != ["text"]:
        raise InvalidRequest.field(f"{path}.output_modalities", 'only ["text"] is served yet')
    if config.instructions is not UNSET and config.instructions:
        text_field(f"{path}.instructions", config.instructions)
    names = ("instructions", "output_modalities", "max_output_tokens", "temperature")
    changes = {name: value for name in names if (value := getattr(config, name)) is not UNSET}
    return msgspec.structs.replace(body, **changes)


def _authorization(headers: dict[bytes, bytes], query: dict[str, str], offered: list[str]) -> str:
    """Return the credentials of a handshake as an Authorization header: browsers cannot send that one itself."""
    if b"authorization" in headers:
        return headers[b"authorization"].decode("latin-1")
    for protocol in offered:
        if protocol.startswith(KEY_SUBPROTOCOL):
            return "Bearer " + protocol.removeprefix(KEY_SUBPROTOCOL)
    return f"Bearer {query['token']}" if "token" in query else ""


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
