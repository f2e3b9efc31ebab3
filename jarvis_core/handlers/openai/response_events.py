"""Turns as OpenAI's Responses API has them: whole, and as the events of a stream."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from jarvis_core.handlers.openai.response_wire import (
    CALL_PREFIX,
    ITEM_PREFIX,
    PREFIX,
    ApprovalRequest,
    ArgumentsDelta,
    ArgumentsDone,
    ConversationId,
    FunctionCall,
    Incomplete,
    ItemEvent,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    PartEvent,
    Response,
    ResponseEvent,
    Status,
    TextDone,
    failure_of,
    made_at,
    usage_of,
)
from jarvis_core.models import Status as TurnStatus
from jarvis_core.tools.calls import WAITING_REASONS, CallRecord
from jarvis_core.turns.log import CallEntry, CallStep, Entry, Step, Turn
from jarvis_core.turns.outcome import error_without_end

_encode = msgspec.json.Encoder().encode
WAITING = ("waiting", "asked")
"""States of calls that the client has to do something for."""
BETWEEN = "\n\n"
"""What a turn says between what came before a call and what comes after it."""
_GOOD_HALVES = ("max_tokens", "content_filter")
"""Why an answer may be half of one without a failure."""


class ResponseEvents:
    """
    Writes one turn's log as the events of a stream; *response* is what the request has said of it.

    Of a turn that went on with what its client did for it, a response is what came since.
    """

    __slots__ = ("_before", "_delta_head", "_item_id", "_opened", "_response", "_turn")

    def __init__(self, turn: Turn, response: Response) -> None:
        self._turn = turn
        self._response = response
        self._before = told_before(turn)
        self._opened = False
        self._item_id = ITEM_PREFIX + turn.id
        self._delta_head = (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"%s",'
            b'"output_index":0,"content_index":0,"logprobs":[],"sequence_number":' % self._item_id.encode()
        )

    def begin(self, position: int) -> bytes:
        """Return the events that every stream begins with; the second has the number *position*."""
        begun = in_progress(self._response)
        first = ResponseEvent("response.created", max(position - 1, 0), begun)
        return _event(first) + _event(ResponseEvent("response.in_progress", position, begun))

    def server_sent(self, position: int, entry: Entry) -> bytes:
        """Return *entry*, which ends at *position*, as an event of that number; the first entry is two of them."""
        if isinstance(entry, str):
            if self._before.chars and not self._opened:
                # Its message was begun before it went on, and what comes now is behind a line end.
                entry = entry.removeprefix(BETWEEN)
                if not entry:
                    return b""
            opening = b"" if self._opened else self._open(position)
            return b'%s%s%d,"delta":%s}\n\n' % (opening, self._delta_head, position, _encode(entry))
        turn, item_id = self._turn, self._item_id
        match entry:
            case CallEntry():
                return self._of_call(position, entry)
            case Step.CREATED:
                return self.begin(position)
            case Step.ITEM_ADDED:
                return self._open(position)
            case Step.ENDED:
                whole = response_of(turn, self._response)
                return _event(ResponseEvent(f"response.{END_EVENTS[whole.status]}", position, whole))
        if not self._opened:
            return b""
        message = message_of(turn)
        match entry:
            case Step.PART_ADDED:
                return _event(PartEvent("response.content_part.added", position, item_id, OutputText("")))
            case Step.TEXT_DONE:
                return _event(TextDone(position, item_id, message.content[0].text))
            case Step.PART_DONE:
                return _event(PartEvent("response.content_part.done", position, item_id, message.content[0]))
            case Step.ITEM_DONE:
                return _event(ItemEvent("response.output_item.done", position, 0, message))

    def _open(self, position: int) -> bytes:
        self._opened = True
        added = _event(
            ItemEvent("response.output_item.added", position, 0, OutputMessage(self._item_id, [], "in_progress"))
        )
        if self._before.chars:
            added += _event(PartEvent("response.content_part.added", position, self._item_id, OutputText("")))
        return added

    def _of_call(self, position: int, entry: CallEntry) -> bytes:
        call = entry.call
        item = item_of_call(call)
        index = entry.place - self._before.calls + self._opened
        match entry.step:
            case CallStep.ADDED:
                if isinstance(item, FunctionCall):
                    item = msgspec.structs.replace(item, arguments="", status="in_progress")
                return _event(ItemEvent("response.output_item.added", position, index, item))
            case CallStep.ARGUMENTS:
                return _event(ArgumentsDelta(position, item.id, index, call.arguments))
            case CallStep.ARGUMENTS_DONE:
                return _event(ArgumentsDone(position, item.id, index, call.name, call.arguments))
            case CallStep.DONE:
                return _event(ItemEvent("response.output_item.done", position, index, item))


END_EVENTS: dict[Status, str] = {
    "completed": "completed",
    "incomplete": "incomplete",
    "cancelled": "incomplete",
    "failed": "failed",
}
"""OpenAI's vocabulary has no event for a response that was cancelled; its status says so."""


class ToldBefore(NamedTuple):
    """How much of a turn was told by responses before the one that it is now."""

    chars: int
    """Of its text."""
    calls: int
    """Of those that are the client's to see."""


def told_before(turn: Turn) -> ToldBefore:
    """Return how much of *turn* came before its client did its part, where it waited for that."""
    done = [call for call in turn.calls if call.shown and call.state not in WAITING]
    return ToldBefore(max((call.text_at for call in done), default=0), len(done))


def item_of_call(call: CallRecord) -> FunctionCall | ApprovalRequest:
    """Return a call that waits for the client as an item."""
    if call.asked:
        return ApprovalRequest(call.id, call.server, call.name, call.arguments)
    return FunctionCall(CALL_PREFIX + call.id, call.call_id, call.name, call.arguments)


def _event(body: ResponseEvent | ItemEvent | PartEvent | TextDone | ArgumentsDelta | ArgumentsDone) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (body.type.encode(), _encode(body))


def in_progress(response: Response) -> Response:
    """Return *response* as it begins."""
    return msgspec.structs.replace(response, status="in_progress")


def message_of(turn: Turn) -> OutputMessage:
    """Return the assistant's message as far as *turn* has come, of one that went on what it has said since."""
    whole = turn.status is TurnStatus.COMPLETED or turn.reason in WAITING_REASONS
    status: ItemStatus = "completed" if whole else "incomplete"
    if turn.status is TurnStatus.RUNNING:
        status = "in_progress"
    before = told_before(turn).chars
    text = turn.text()[before:].removeprefix(BETWEEN) if before else turn.text()
    return OutputMessage(ITEM_PREFIX + turn.id, [OutputText(text)], status)


def blank_response(turn: Turn, model: str) -> Response:
    """Return what is known of *turn* by itself; *model* is what was asked for."""
    return Response(
        id=PREFIX + turn.id,
        created_at=made_at(turn.id),
        status="in_progress",
        model=model,
        output=[],
        conversation=ConversationId(turn.conversation_id),
    )


def response_of(turn: Turn, response: Response) -> Response:
    """Return *turn* as it stands, with what the request has said of it in *response*."""
    message = message_of(turn)
    waiting = [item_of_call(call) for call in turn.calls if call.shown and call.state in WAITING]
    output: list[OutputItem] = [message] if message.content[0].text or (turn.opened and not waiting) else []
    output += waiting
    whole = msgspec.structs.replace(response, output=output, model=response.model or turn.model)
    match turn.status:
        case TurnStatus.RUNNING:
            return whole
        case TurnStatus.COMPLETED:
            whole.status = "completed"
        case TurnStatus.INCOMPLETE if turn.reason in WAITING_REASONS:
            whole.status = "completed"
        case TurnStatus.CANCELLED:
            whole.status = "cancelled"
        case _ if turn.status is TurnStatus.INCOMPLETE and turn.reason in _GOOD_HALVES:
            whole.status = "incomplete"
            whole.incomplete_details = Incomplete(
                "max_output_tokens" if turn.reason == "max_tokens" else "content_filter"
            )
        case _:
            whole.status = "failed"
            whole.error = failure_of(turn.error or error_without_end(turn.reason))
    whole.usage = usage_of(0, turn.tokens)
    return whole
