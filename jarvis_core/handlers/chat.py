"""Chat: turns, and the conversations that they make."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import msgspec

from jarvis_core.access.tickets import Tickets
from jarvis_core.errors import Conflict, InvalidRequest
from jarvis_core.handlers.call import Call, Reply, text_field
from jarvis_core.handlers.cursor import encoded, position, time_and_id
from jarvis_core.handlers.query import AFTER, ARCHIVED, LIMIT, UNHEARD
from jarvis_core.handlers.stream import send_events, wait_for_end
from jarvis_core.handlers.tool_wire import ApproveRequest, OutputsRequest, own_tools, waiting_calls
from jarvis_core.handlers.wire import (
    ChangeConversation,
    ChatReply,
    ChatRequest,
    CreateConversation,
    Deleted,
    ResponseState,
    TicketReply,
)
from jarvis_core.models import IdempotencyKey, Status, ToolOutput
from jarvis_core.tools.calls import GoingOn, Output
from jarvis_core.tools.runner import bounded
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.log import Reader, Turn
from jarvis_core.turns.receipt import TurnTimer, server_timing
from jarvis_core.turns.turns import Turns
from jarvis_core.words.titles import is_title

QUERY_LIMIT_CHARS = 200
KEY_LIMIT_CHARS = 255
TICKET_LIFETIME_S = 600.0
RETRY = b"retry: 1000\n\n"
"""How long a browser is to wait before it comes back, in ms; by itself it waits three seconds and more."""

_encoder = msgspec.json.Encoder()
_chat_decoder = msgspec.json.Decoder(ChatRequest)
_outputs_decoder = msgspec.json.Decoder(OutputsRequest)
_approve_decoder = msgspec.json.Decoder(ApproveRequest)
_create_decoder = msgspec.json.Decoder(CreateConversation)
_change_decoder = msgspec.json.Decoder(ChangeConversation)


class ChatHandlers:
    """The routes below ``/api/chat``."""

    def __init__(self, turns: Turns, conversations: Conversations, tickets: Tickets, *, body_limit_bytes: int) -> None:
        self._turns = turns
        self._tickets = tickets
        self._conversations = conversations
        self._body_limit_bytes = body_limit_bytes

    async def send_chat(self, call: Call) -> Reply | None:
        """Answer ``POST /api/chat``, whole or, where it is asked for, as server-sent events."""
        request = await call.decode(_chat_decoder, self._body_limit_bytes)
        return await self._answer(call, await self._start(call, request), stream=request.stream)

    async def stream_chat(self, call: Call) -> None:
        """Answer ``POST /api/chat/stream`` as server-sent events, whatever the request says of it."""
        request = await call.decode(_chat_decoder, self._body_limit_bytes)
        await send_events(call, self._turns, await self._start(call, request))

    async def send_outputs(self, call: Call) -> Reply | None:
        """Answer ``POST /api/chat/response/{id}/outputs``: the turn goes on, and is answered as ``/api/chat`` does."""
        await self._turns.find(call.caller, call.path_param)
        request = await call.decode(_outputs_decoder, self._body_limit_bytes)
        outputs = [Output(one.call_id, bounded(ToolOutput(one.output))) for one in request.outputs]
        going_on = GoingOn("waiting", outputs)
        turn = await self._turns.go_on(call.caller, call.path_param, going_on, TurnTimer(call.started_s))
        return await self._answer(call, turn, stream=request.stream, after=turn.went_on_at)

    async def approve_calls(self, call: Call) -> Reply:
        """Answer ``POST /api/chat/response/{id}/approve`` with the turn's state; it goes on."""
        turn = await self._turns.find(call.caller, call.path_param)
        request = await call.decode(_approve_decoder, self._body_limit_bytes)
        asked = [one.call_id for one in turn.calls if one.asked and one.state == "asked"]
        if asked:
            refusal = "The user did not allow this call." + (f" They said: {request.reason}" if request.reason else "")
            refused = [Output(call_id, bounded(ToolOutput(refusal)), "failed") for call_id in asked]
            going_on = GoingOn("asked", allowed=asked) if request.approve else GoingOn("asked", refused)
            turn = await self._turns.go_on(call.caller, turn.id, going_on, TurnTimer(call.started_s), keep_running=True)
        elif not any(one.asked for one in turn.calls):
            raise Conflict("This response does not ask to have a call allowed.")
        return _state(turn)

    async def _start(self, call: Call, request: ChatRequest) -> Turn:
        tools, choice = own_tools(request.tools, request.tool_choice)
        ask = Ask(
            content=text_field("$.content", request.content),
            conversation_id=None if request.conversation_id is None else request.conversation_id.lower(),
            system_prompt=None if not request.system_prompt else text_field("$.system_prompt", request.system_prompt),
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            use_memory=request.use_memory,
            tools=tools,
            tool_choice=choice,
        )
        return await self._turns.start(ask, call.caller, idempotency_key(call, ask), TurnTimer(call.started_s))

    async def _answer(self, call: Call, turn: Turn, *, stream: bool, after: int = 0) -> Reply | None:
        if stream or "text/event-stream" in call.header(b"accept"):
            await send_events(call, self._turns, turn, after)
            return None
        await wait_for_end(call, self._turns, turn)
        if turn.status is Status.FAILED:
            raise error_of_turn(turn)
        return Reply(_encoder.encode(_reply(turn)), headers=((b"server-timing", server_timing(turn.timer.receipt)),))

    async def get_response(self, call: Call) -> Reply:
        """Answer ``GET /api/chat/response/{id}``."""
        return _state(await self._turns.find(call.caller, call.path_param))

    async def follow_response(self, call: Call) -> Reply | None:
        """
        Answer ``GET /api/chat/response/{id}/events``: follow a turn, or replay it.

        204 where a browser that has come to the end comes back, which it does for ever otherwise (HTML, 9.2.3).
        """
        after = AFTER.read(call.query())
        # A browser that comes back asks for the same address again: what it has seen since then is in the header.
        if last := call.header(b"last-event-id"):
            after = AFTER.read({AFTER.name: last})
        turn = await self._turns.find(call.caller, call.path_param)
        if last and turn.ended and not Reader(turn, after or 0).behind:
            return Reply(b"", 204)
        await send_events(call, self._turns, turn, after or 0, first=RETRY)
        return None

    async def issue_ticket(self, call: Call) -> Reply:
        """Answer ``POST /api/chat/response/{id}/ticket``."""
        turn = await self._turns.find(call.caller, call.path_param)
        ticket, good_until_s = self._tickets.issue("events", call.caller, turn.id, lifetime_s=TICKET_LIFETIME_S)
        return Reply(_encoder.encode(TicketReply(ticket, datetime.fromtimestamp(int(good_until_s), UTC))))

    async def cancel_response(self, call: Call) -> Reply:
        """Answer ``POST /api/chat/response/{id}/cancel`` once the model's connection is closed."""
        turn = await self._turns.find(call.caller, call.path_param)
        await self._turns.stop(turn)
        return _state(turn)

    async def list_conversations(self, call: Call) -> Reply:
        """Answer ``GET /api/chat/conversations``."""
        query = call.query()
        limit = LIMIT.read(query)
        sought = query.get("q") or None
        if sought is not None and len(text_field("query.q", sought)) > QUERY_LIMIT_CHARS:
            raise InvalidRequest.field("query.q", f"must have at most {QUERY_LIMIT_CHARS} characters")
        page, more = await self._conversations.fetch_page(
            call.caller.user_id,
            limit=limit,
            after=time_and_id(query["cursor"]) if query.get("cursor") else None,
            query=sought,
            archived=ARCHIVED.read(query),
        )
        cursor = encoded(f"{page[-1].updated_at.isoformat()} {page[-1].id}") if more else None
        return Reply(_encoder.encode({"conversations": page, "next_cursor": cursor}))

    async def create_conversation(self, call: Call) -> Reply:
        """Answer ``POST /api/chat/conversation``."""
        request = await call.decode(_create_decoder, self._body_limit_bytes)
        title = None if request.title is None else _title(request.title)
        made = await self._conversations.create(call.caller.user_id, title)
        return Reply(_encoder.encode(made))

    async def change_conversation(self, call: Call) -> Reply:
        """Answer ``PATCH /api/chat/conversation/{id}``."""
        request = await call.decode(_change_decoder, self._body_limit_bytes)
        if request.title is msgspec.UNSET and request.archived is msgspec.UNSET:
            raise InvalidRequest.field("$", "must have title or archived")
        changed = await self._conversations.change(
            call.caller.user_id,
            call.path_param,
            title=None if request.title is msgspec.UNSET else _title(request.title),
            archived=None if request.archived is msgspec.UNSET else request.archived,
        )
        return Reply(_encoder.encode(changed))

    async def delete_conversation(self, call: Call) -> Reply:
        """Answer ``DELETE /api/chat/conversation/{id}``; a turn that runs in it is cancelled first."""
        await self._conversations.delete(call.caller.user_id, call.path_param)
        return Reply(_encoder.encode(Deleted(call.path_param)))

    async def get_history(self, call: Call) -> Reply:
        """Answer ``GET /api/chat/history/{id}``."""
        query = call.query()
        limit = LIMIT.read(query)
        messages, last = await self._conversations.fetch_history(
            call.caller.user_id,
            call.path_param,
            limit=limit,
            after=position(query["cursor"]) if query.get("cursor") else 0,
            unheard=UNHEARD.read(query) is True,
        )
        cursor = None if last is None else encoded(str(last))
        return Reply(_encoder.encode({"conversation_id": call.path_param, "messages": messages, "next_cursor": cursor}))


def _title(text: str) -> str:
    text = text_field("$.title", text)
    if not is_title(text):
        raise InvalidRequest.field(
            "$.title", "must not contain control characters or overrides of the writing's direction"
        )
    return text


def idempotency_key(call: Call, ask: Ask) -> IdempotencyKey | None:
    """Return the request's own name, where it has one, with what it asks; raises ``InvalidRequest``."""
    text = call.header(b"idempotency-key")
    if not text:
        return None
    if len(text) > KEY_LIMIT_CHARS or not (text.isascii() and text.isprintable()):
        raise InvalidRequest.field("Idempotency-Key", f"must be 1..{KEY_LIMIT_CHARS} printable ASCII characters")
    return IdempotencyKey(text, hashlib.sha256(_encoder.encode(ask)).digest())


def _reply(turn: Turn) -> ChatReply:
    return ChatReply(
        id=turn.id,
        conversation_id=turn.conversation_id,
        content=turn.text(),
        timestamp=turn.ended_at or datetime.now(UTC),
        tokens=turn.tokens,
        model=turn.model,
        status=turn.status.value,  # type: ignore[arg-type]  # an ended turn is none of the others
        memories=turn.memories,
        reason=turn.reason or None,
        tool_calls=waiting_calls(turn),
    )


def _state(turn: Turn) -> Reply:
    state = ResponseState(
        id=turn.id,
        conversation_id=turn.conversation_id,
        user_message_id=turn.user_message_id,
        status=turn.status.value,
        reason=turn.reason or None,
        error=turn.error.message if turn.error is not None else None,
        content=turn.text(),
        tokens=turn.tokens,
        model=turn.model,
        memories=turn.memories,
        ended_at=turn.ended_at,
        heard_ms=turn.heard_ms,
        receipt=turn.timer.receipt,
        tool_calls=waiting_calls(turn),
        details=turn.error.details if turn.error is not None else None,
    )
    return Reply(_encoder.encode(state))


def error_of_turn(turn: Turn) -> Exception:
    """Return the error of a failed turn, with the ids by which the client finds its message again."""
    if turn.error is None:
        return AssertionError("a failed turn has an error")
    error = turn.error.bare()
    error.details = {**(error.details or {}), "conversation_id": turn.conversation_id, "response_id": turn.id}
    return error
