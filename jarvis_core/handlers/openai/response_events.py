"""Turns as OpenAI's Responses API has them: whole, and as the events of a stream."""

from __future__ import annotations

import msgspec

from jarvis_core.handlers.openai.response_wire import (
    ITEM_PREFIX,
    PREFIX,
    ConversationId,
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
from jarvis_core.turns.log import CallEntry, Entry, Step, Turn
from jarvis_core.turns.outcome import error_without_end

_encode = msgspec.json.Encoder().encode
_GOOD_HALVES = ("max_tokens", "content_filter")
"""Why an answer may be half of one without a failure."""


class ResponseEvents:
    """Writes one turn's log as the events of a stream; *response* is what the request has said of it."""

    __slots__ = ("_delta_head", "_item_id", "_response", "_turn")

    def __init__(self, turn: Turn, response: Response) -> None:
        self._turn = turn
        self._response = response
        self._item_id = ITEM_PREFIX + turn.id
        self._delta_head = (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"%s",'
            b'"output_index":0,"content_index":0,"logprobs":[],"sequence_number":' % self._item_id.encode()
        )

    def server_sent(self, position: int, entry: Entry) -> bytes:
        """Return *entry*, which ends at *position*, as an event of that number; the first entry is two of them."""
        if isinstance(entry, str):
            return b'%s%d,"delta":%s}\n\n' % (self._delta_head, position, _encode(entry))
        turn, item_id = self._turn, self._item_id
        match entry:
            case Step.CREATED:
                begun = in_progress(self._response)
                return _event(ResponseEvent("response.created", 0, begun)) + _event(
                    ResponseEvent("response.in_progress", position, begun)
                )
            case Step.ITEM_ADDED:
                item = OutputMessage(item_id, [], "in_progress")
                return _event(ItemEvent("response.output_item.added", position, 0, item))
            case Step.PART_ADDED:
                return _event(PartEvent("response.content_part.added", position, item_id, OutputText("")))
            case Step.TEXT_DONE:
                return _event(TextDone(position, item_id, turn.text()))
            case Step.PART_DONE:
                return _event(PartEvent("response.content_part.done", position, item_id, OutputText(turn.text())))
            case Step.ITEM_DONE:
                return _event(ItemEvent("response.output_item.done", position, 0, message_of(turn)))
            case Step.ENDED:
                whole = response_of(turn, self._response)
                return _event(ResponseEvent(f"response.{END_EVENTS[whole.status]}", position, whole))
            case CallEntry():
                # Turns that are asked for here are offered none of the client's tools.
                return b""


END_EVENTS: dict[Status, str] = {
    "completed": "completed",
    "incomplete": "incomplete",
    "cancelled": "incomplete",
    "failed": "failed",
}
"""OpenAI's vocabulary has no event for a response that was cancelled; its status says so."""


def _event(body: ResponseEvent | ItemEvent | PartEvent | TextDone) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (body.type.encode(), _encode(body))


def in_progress(response: Response) -> Response:
    """Return *response* as it begins."""
    return msgspec.structs.replace(response, status="in_progress")


def message_of(turn: Turn) -> OutputMessage:
    """Return the assistant's message as far as *turn* has come."""
    status: ItemStatus = "completed" if turn.status is TurnStatus.COMPLETED else "incomplete"
    if turn.status is TurnStatus.RUNNING:
        status = "in_progress"
    return OutputMessage(ITEM_PREFIX + turn.id, [OutputText(turn.text())], status)


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
    output: list[OutputItem] = [message_of(turn)] if turn.opened else []
    whole = msgspec.structs.replace(response, output=output, model=response.model or turn.model)
    match turn.status:
        case TurnStatus.RUNNING:
            return whole
        case TurnStatus.COMPLETED:
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
