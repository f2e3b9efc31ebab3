"""
Turns as events, in the vocabulary of the OpenAI Realtime API with its GA names
(https://platform.openai.com/docs/api-reference/realtime-server-events).

Ours are ``seq`` on every event, and on a response ``conversation_id``, ``user_message_id``, ``model`` and ``memories``.
A response and the assistant's item have the turn's id.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jarvis_core.models import Status
from jarvis_core.turn_log import Entry, Step, Turn

ItemStatus = Literal["completed", "incomplete", "in_progress"]


class ContentPart(Struct, omit_defaults=True):
    """A part of an item; its type says which of the fields it has."""

    type: str
    text: str | UnsetType = UNSET
    audio: str | UnsetType = UNSET
    transcript: str | UnsetType | None = UNSET


class Item(Struct, omit_defaults=True):
    """A message of the conversation."""

    id: str
    role: Literal["system", "user", "assistant"]
    content: list[ContentPart]
    status: ItemStatus
    type: Literal["message"] = msgspec.field(default_factory=lambda: "message")
    object: Literal["realtime.item"] = msgspec.field(default_factory=lambda: "realtime.item")


class EventError(Struct):
    """What went wrong."""

    type: str
    code: str | None
    message: str
    param: str | None = None
    event_id: str | None = None
    """The client's event that caused it."""


class StatusDetails(Struct):
    """Why a response ended so."""

    type: Literal["completed", "cancelled", "incomplete", "failed"]
    reason: str | None
    error: EventError | None = None


class Usage(Struct):
    """Token counts."""

    output_tokens: int
    total_tokens: int


class Response(Struct):
    """A turn."""

    id: str
    status: Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
    status_details: StatusDetails | None
    output: list[Item]
    conversation_id: str
    user_message_id: str
    model: str
    memories: list[str]
    usage: Usage | None
    output_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    object: Literal["realtime.response"] = "realtime.response"


class ResponseEvent(Struct):
    """``response.created`` and ``response.done``."""

    type: str
    event_id: str
    seq: int
    response: Response


class ItemEvent(Struct):
    """``response.output_item.added`` and ``.done``."""

    type: str
    event_id: str
    seq: int
    response_id: str
    item: Item
    output_index: int = 0


class PartEvent(Struct):
    """``response.content_part.added`` and ``.done``."""

    type: str
    event_id: str
    seq: int
    response_id: str
    item_id: str
    part: ContentPart
    output_index: int = 0
    content_index: int = 0


class TextDoneEvent(Struct):
    """``response.output_text.done``."""

    type: str
    event_id: str
    seq: int
    response_id: str
    item_id: str
    text: str
    output_index: int = 0
    content_index: int = 0


_encoder = msgspec.json.Encoder()
_encode = _encoder.encode

TEXT_DELTA = "response.output_text.delta"
NAMES = {
    Step.CREATED: "response.created",
    Step.ITEM_ADDED: "response.output_item.added",
    Step.PART_ADDED: "response.content_part.added",
    Step.TEXT_DONE: "response.output_text.done",
    Step.PART_DONE: "response.content_part.done",
    Step.ITEM_DONE: "response.output_item.done",
    Step.ENDED: "response.done",
}
EndStatus = Literal["completed", "cancelled", "incomplete", "failed"]
WORDS: dict[Status, EndStatus] = {
    Status.COMPLETED: "completed",
    Status.INCOMPLETE: "incomplete",
    Status.CANCELLED: "cancelled",
    Status.FAILED: "failed",
}
REASONS = {"cancelled": "client_cancelled", "max_tokens": "max_output_tokens"}
"""Our words for why a turn ended that the Realtime API has other words for."""


class TurnEvents:
    """Writes the entries of one turn's log as events."""

    __slots__ = ("_delta_head", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        # Deltas are most of all events and differ only in number and text: everything else is encoded once.
        self._delta_head = (
            b'{"type":"%s","response_id":"%s","item_id":"%s","output_index":0,"content_index":0,"event_id":"event_'
            % (TEXT_DELTA.encode(), turn.id.encode(), turn.id.encode())
        )

    def json(self, seq: int, entry: Entry) -> bytes:
        """Return *entry* as the JSON of an event with the number *seq*."""
        if isinstance(entry, str):
            return b'%s%d","seq":%d,"delta":%s}' % (self._delta_head, seq, seq, _encode(entry))
        return _encode(self._event(NAMES[entry], f"event_{seq}", seq, entry))

    def server_sent(self, position: int, entry: Entry) -> bytes:
        """Return *entry* as a server-sent event whose id, and ``seq``, is its position."""
        name = TEXT_DELTA if isinstance(entry, str) else NAMES[entry]
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (position, name.encode(), self.json(position, entry))

    def _event(self, name: str, event_id: str, seq: int, step: Step) -> Struct:
        turn = self._turn
        match step:
            case Step.CREATED | Step.ENDED:
                return ResponseEvent(name, event_id, seq, self._response(ended=step is Step.ENDED))
            case Step.ITEM_ADDED | Step.ITEM_DONE:
                return ItemEvent(name, event_id, seq, turn.id, self._item(done=step is Step.ITEM_DONE))
            case Step.PART_ADDED | Step.PART_DONE:
                text = turn.text() if step is Step.PART_DONE else ""
                return PartEvent(name, event_id, seq, turn.id, turn.id, ContentPart("text", text))
            case Step.TEXT_DONE:
                return TextDoneEvent(name, event_id, seq, turn.id, turn.id, turn.text())

    def _item(self, *, done: bool) -> Item:
        turn = self._turn
        if not done:
            return Item(turn.id, "assistant", [], "in_progress")
        status: ItemStatus = "completed" if turn.status is Status.COMPLETED else "incomplete"
        return Item(turn.id, "assistant", [ContentPart("output_text", turn.text())], status)

    def _response(self, *, ended: bool) -> Response:
        turn = self._turn
        return Response(
            id=turn.id,
            status=WORDS[turn.status] if ended else "in_progress",
            status_details=self._details() if ended else None,
            output=[self._item(done=True)] if ended and turn.opened else [],
            conversation_id=turn.conversation_id,
            user_message_id=turn.user_message_id,
            model=turn.model,
            memories=turn.memories,
            usage=Usage(turn.tokens, turn.tokens) if ended else None,
        )

    def _details(self) -> StatusDetails | None:
        turn = self._turn
        if turn.status in (Status.COMPLETED, Status.RUNNING):
            return None
        error = None
        if turn.error is not None:
            error = EventError("server_error", turn.error.code, turn.error.message)
        return StatusDetails(WORDS[turn.status], REASONS.get(turn.reason, turn.reason), error)
