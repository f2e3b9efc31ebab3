"""
Accepts WebSockets at ``/ws`` and ``/v1/realtime``: turns in text and voice, in the vocabulary of the OpenAI Realtime
API.

A session has at most one active response. Its turn outlives the socket for a grace (``WS_RESUME_GRACE_S``), in which
the client may come back with ``?resume=<response id>&after=<seq>`` and gets the events that it missed under the numbers
that follow *after*. Where it comes back to another worker, the first one hands the session over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from jarvis_core import cancellation, log
from jarvis_core.access.rate_limit import Allowance
from jarvis_core.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    RequestError,
    Unauthenticated,
    UpgradeRequired,
)
from jarvis_core.handlers.admission import Admission, Admitted
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.failure import INTERNAL, refuse_handshake
from jarvis_core.handlers.realtime.expiry import Expiry
from jarvis_core.handlers.realtime.refusals import SessionExpired
from jarvis_core.handlers.realtime.session import Session
from jarvis_core.handlers.realtime.snapshot import decode, encode
from jarvis_core.handlers.realtime.socket import CLOSE_TIMEOUT_S, DEFECT, GOING_AWAY, POLICY, TRY_AGAIN, Socket
from jarvis_core.handlers.realtime.wire import Modality, SessionType
from jarvis_core.settings import Llm
from jarvis_core.speech.synthesis import Synthesizer
from jarvis_core.speech.transcription import Transcriber
from jarvis_core.tasks import start_in
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.log import Turn
from jarvis_core.turns.turns import Turns

logger = log.get(__name__)

SUBPROTOCOL = "realtime"
OPENAI_PATH = "/v1/realtime"
"""Where OpenAI's clients connect; they expect to be spoken to."""
RETRY_AFTER_S = 5
DISCARD_S = 0.1


class Realtime:
    """Serves the WebSockets of one worker, and keeps the sessions that can be resumed."""

    def __init__(
        self,
        turns: Turns,
        conversations: Conversations,
        transcriber: Transcriber,
        synthesizer: Synthesizer,
        admission: Admission,
        settings: Llm,
        *,
        resume_grace_s: float,
        socket_limit: int,
    ) -> None:
        self.turns = turns
        self.conversations = conversations
        self.transcriber = transcriber
        self.synthesizer = synthesizer
        self.settings = settings
        self.resume_grace_s = resume_grace_s
        self._socket_limit = socket_limit
        self._admission = admission
        self._sessions: dict[Session, asyncio.Task[None] | None] = {}
        """Open sockets, and the tasks that serve them."""
        self.stalled: set[tuple[str, int]] = set()
        """The other ends of sockets that do not read, until somebody closes their connections."""
        self._graces: set[asyncio.Task[None]] = set()
        self._transcriptions: set[asyncio.Task[None]] = set()
        """Transcriptions for sessions whose socket is gone."""
        self._by_response: dict[str, Session] = {}
        """Sessions whose response can be resumed, connected or in their grace."""

    @property
    def connected(self) -> int:
        """How many sockets are open."""
        return len(self._sessions)

    @property
    def sessions(self) -> Iterable[Session]:
        """The sessions whose sockets are open."""
        return self._sessions.keys()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket from its handshake to its close."""
        await receive()
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in (scope.get("subprotocols") or ()) else None
        admitted: Admitted | None = None
        try:
            try:
                if len(self._sessions) >= self._socket_limit:
                    raise Overloaded("Too many WebSockets are open.", retry_after_s=RETRY_AFTER_S)
                admitted = await self._admission.admit_socket(scope)
                session = await self._session(admitted, scope["path"], query, send)
            except (Unauthenticated, RateLimited, Overloaded) as error:
                # A browser's script cannot see the status of a refused handshake, but it can see a closing code.
                await send({"type": "websocket.accept", "subprotocol": subprotocol})
                socket = Socket(send)
                await socket.complain(error, None)
                await _discard(receive)
                socket.close(TRY_AGAIN if isinstance(error, Overloaded) else POLICY)
                await socket.say_goodbye(error.code)
                socket.leave()
                return
            except RequestError as error:
                await refuse_handshake(send, error, scope["path"])
                return
            except Exception:
                logger.exception("a handshake failed through a defect")
                await refuse_handshake(send, INTERNAL, scope["path"])
                return
            expiry = Expiry(admitted.ends_at_s, lambda: session.close(POLICY, SessionExpired()))
            expiry.start()
            try:
                await self._run(session, receive, send, subprotocol)
            finally:
                expiry.stop()
        finally:
            if admitted is not None:
                self._admission.leave_socket(admitted)

    async def charge(self, admitted: Admitted) -> tuple[int, Allowance] | None:
        """Count a request over an open socket; return the limit and what is left. Raises ``RateLimited``."""
        return await self._admission.charge(admitted.key)

    async def _run(self, session: Session, receive: Receive, send: Send, subprotocol: str | None) -> None:
        self._sessions[session] = asyncio.current_task()
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            await session.run(receive)
        except Exception:
            logger.exception("a socket failed through a defect", session=session.id)
            await session.complain(INTERNAL)
            session.close(DEFECT)
            await session.say_goodbye()
        finally:
            del self._sessions[session]
            if session.stalled and session.peer is not None:
                self.stalled.add(session.peer)
            await session.leave()

    async def close(self) -> None:
        """Close every socket because the server stops; does not wait for clients that do not read."""
        for session in self._sessions:
            session.close(GOING_AWAY)
        tasks = [task for task in self._sessions.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=3 * CLOSE_TIMEOUT_S)
        for grace in self._graces:
            grace.cancel()
        if self._transcriptions:
            _, late = await asyncio.wait(self._transcriptions, timeout=3 * CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()

    async def hand_over(self, user_id: str, response_id: str, after: int) -> bytes | None:
        """
        Return the snapshot of a response's session, connected or in its grace, and end the session here; None where
        there is none.
        """
        session = self._by_response.get(response_id)
        if session is None or session.caller.user_id != user_id:
            return None
        snapshot = await session.hand_over(after)
        return None if snapshot is None else encode(snapshot)

    def give_grace(self, session: Session) -> asyncio.Task[None]:
        """Start a task in which *session* gives up its turn after the resume grace."""
        return start_in(self._graces, session.give_up(self.resume_grace_s))

    def own(self, task: asyncio.Task[None]) -> None:
        """Own a task of a session whose socket is gone."""
        self._transcriptions.add(task)
        task.add_done_callback(self._transcriptions.discard)

    def keep(self, session: Session, turn: Turn) -> None:
        """Let *turn* be resumed from *session*."""
        self._by_response[turn.id] = session

    def forget(self, session: Session, turn: Turn) -> None:
        """Let *turn* no longer be resumed."""
        if self._by_response.get(turn.id) is session:
            del self._by_response[turn.id]

    async def _session(self, admitted: Admitted, path: str, query: dict[str, str], send: Send) -> Session:
        caller = admitted.caller
        resume = query.get("resume")
        if resume is not None:
            after = query.get("after", "0")
            if not (after.isascii() and after.isdigit() and len(after) <= 12):
                raise InvalidRequest.field("query.after", "must be the seq of the last event seen")
            previous = self._by_response.get(resume)
            if previous is None or previous.caller != caller or previous.turn is None:
                self.turns.check_open()
                taken = await self.turns.take_session(caller, resume, int(after))
                if taken is not None:
                    turn, data = taken
                    snapshot = decode(data)
                    session = Session(self, admitted, snapshot.conversation_id, send)
                    session.restore(snapshot, turn, int(after))
                    return session
                turn = await self.turns.find(caller, resume)
                raise NotFound(
                    "This response can no longer be resumed here; it is to be had at /api/chat/response/{id}.",
                    details={"response_id": turn.id, "conversation_id": turn.conversation_id},
                )
            session = Session(self, admitted, previous.conversation_id, send)
            await session.take_over(previous, int(after))
            return session
        self.turns.check_open()
        conversation_id = query.get("conversation_id")
        if conversation_id is not None:
            conversation_id = (await self.conversations.fetch(caller.user_id, conversation_id)).id
        modality: Modality = "audio" if path == OPENAI_PATH else "text"
        kind: SessionType = "transcription" if query.get("intent") == "transcription" else "realtime"
        return Session(self, admitted, conversation_id, send, modality=modality, kind=kind)


async def _discard(receive: Receive) -> None:
    """
    Discard for ``DISCARD_S`` what a client sends before its socket is closed.

    A client may send its first events at once. A connection that is closed with unread data is reset, and the client
    would see neither the error nor the code.
    """
    with contextlib.suppress(TimeoutError):
        async with cancellation.timeout(DISCARD_S):
            while (await receive())["type"] != "websocket.disconnect":
                pass


async def upgrade_required(_call: Call) -> Reply:
    """Answer a plain GET of a WebSocket's path."""
    raise UpgradeRequired("Only a WebSocket is answered here; ask for it with Upgrade: websocket.")
