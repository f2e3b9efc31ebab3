"""
Turns as events, in the vocabulary of the OpenAI Realtime API with its GA names
(https://platform.openai.com/docs/api-reference/realtime-server-events).

Ours are ``seq`` on every event, and on a response ``conversation_id``, ``user_message_id``, ``model``, ``memories`` and
``receipt``.
A response and the assistant's item have the turn's id.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from jarvis_core.codec.messages import SampleEncoding
from jarvis_core.handlers.call_events import NAMES as CALL_NAMES
from jarvis_core.handlers.call_events import ApprovalRequestItem, FunctionCallItem, call_event, call_item
from jarvis_core.models import Receipt, Status
from jarvis_core.turns.log import CallEntry, Entry, Step, Turn

ItemStatus = Literal["completed", "incomplete", "in_progress"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


PartType = Literal["text", "audio", "input_text", "input_audio", "output_text", "output_audio"]


class ContentPart(Struct, omit_defaults=True):
    """A part of an item; its type says which of the fields it has."""

    type: PartType
    text: str | UnsetType = UNSET
    audio: str | UnsetType = UNSET
    transcript: str | UnsetType | None = UNSET


class Item(Struct, omit_defaults=True, tag_field="type", tag="message"):
    """A message of the conversation."""

    id: str
    role: Literal["system", "user", "assistant"]
    content: list[ContentPart]
    status: ItemStatus
    object: Literal["realtime.item"] = msgspec.field(default_factory=lambda: "realtime.item")


OutputItem = Item | FunctionCallItem | ApprovalRequestItem


class EventError(Struct):
    """An error, as events carry it."""

    type: str
    code: str | None
    """A stable word; null where there is none."""
    message: str
    param: str | None = None
    event_id: str | None = None
    """The client's event that caused it."""
    details: dict[str, Any] | UnsetType = UNSET
    """Ours: what a program may want to know, such as the model server's own words."""


class StatusDetails(Struct):
    """Why a response ended so."""

    type: Literal["completed", "cancelled", "incomplete", "failed"]
    reason: str | None
    error: EventError | None = None


class PcmFormat(Struct, frozen=True, tag_field="type", tag="audio/pcm"):
    """16-bit little-endian mono samples; the Realtime API has 24,000 a second, other rates are ours."""

    encoding: ClassVar[SampleEncoding] = "pcm16"
    sample_bytes: ClassVar[int] = 2

    rate: Annotated[int, Meta(ge=8_000, le=48_000)] = 24_000


class MulawFormat(Struct, frozen=True, tag_field="type", tag="audio/pcmu"):
    """G.711 µ-law: 8,000 samples of a byte a second, as telephones in America and Japan have them."""

    encoding: ClassVar[SampleEncoding] = "mulaw"
    sample_bytes: ClassVar[int] = 1
    rate: ClassVar[int] = 8_000


class AlawFormat(Struct, frozen=True, tag_field="type", tag="audio/pcma"):
    """G.711 A-law: 8,000 samples of a byte a second, as telephones elsewhere have them."""

    encoding: ClassVar[SampleEncoding] = "alaw"
    sample_bytes: ClassVar[int] = 1
    rate: ClassVar[int] = 8_000


AudioFormat = PcmFormat | MulawFormat | AlawFormat


class SpokenOutput(Struct):
    """How a response sounds."""

    format: AudioFormat
    voice: str | None
    """The voice that was asked for; at the response's end the voice that spoke."""


class ResponseAudio(Struct):
    """The sound of a response."""

    output: SpokenOutput


class Usage(Struct):
    """Token counts."""

    output_tokens: int
    total_tokens: int
    input_tokens: int = 0
    """What the model has read; 0 where its server does not tell."""


class Response(Struct):
    """A turn."""

    id: str
    status: Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
    status_details: StatusDetails | None
    output: list[OutputItem]
    conversation_id: str | None
    """Null where it is out of band: then it is stored nowhere."""
    user_message_id: str | None
    """Null where the assistant speaks without being asked."""
    model: str
    memories: list[str]
    usage: Usage | None
    output_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    audio: ResponseAudio | UnsetType = UNSET
    """Where the response is spoken."""
    metadata: Metadata | UnsetType = UNSET
    """What its client gave it, where it gave any."""
    receipt: Receipt | UnsetType = UNSET
    """Ours: how long its parts took; once it is done."""
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


class TranscriptDoneEvent(Struct):
    """``response.output_audio_transcript.done``."""

    type: str
    event_id: str
    seq: int
    response_id: str
    item_id: str
    transcript: str
    output_index: int = 0
    content_index: int = 0


class AudioDoneEvent(Struct):
    """``response.output_audio.done``."""

    event_id: str
    seq: int
    response_id: str
    item_id: str
    output_index: int = 0
    content_index: int = 0
    type: Literal["response.output_audio.done"] = "response.output_audio.done"


_encoder = msgspec.json.Encoder()
_encode = _encoder.encode

TEXT_DELTA = "response.output_text.delta"
TRANSCRIPT_DELTA = "response.output_audio_transcript.delta"
TRANSCRIPT_DONE = "response.output_audio_transcript.done"
AUDIO_DELTA = "response.output_audio.delta"
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
INTERRUPTIONS = ("cancelled", "turn_detected")
"""Why a voice stops that somebody interrupts."""
REASONS = {"cancelled": "client_cancelled", "max_tokens": "max_output_tokens"}
"""Our words for why a turn ended that the Realtime API has other words for."""


class TurnEvents:
    """Encodes the entries of one turn's log as events."""

    __slots__ = ("_calls_complete", "_delta", "_delta_head", "_metadata", "_turn")

    def __init__(
        self,
        turn: Turn,
        delta: str = TEXT_DELTA,
        *,
        metadata: Metadata | None = None,
        calls_complete: bool = False,
    ) -> None:
        self._turn = turn
        self._calls_complete = calls_complete
        """Whether a response that ends with calls is complete, as in the Realtime API, where another one follows."""
        self._metadata = metadata
        # Deltas are most of all events and differ only in number and text: everything else is encoded once.
        self._delta = delta
        self._delta_head = delta_head(delta, turn)

    def json(self, seq: int, entry: Entry) -> bytes:
        """Return *entry* as the JSON of an event with the number *seq*."""
        if isinstance(entry, str):
            return b'%s%d","seq":%d,"delta":%s}' % (self._delta_head, seq, seq, _encode(entry))
        if isinstance(entry, CallEntry):
            return call_event(self._turn, entry, seq)
        if entry is Step.ITEM_ADDED and self._turn.calls:
            self._delta_head = delta_head(self._delta, self._turn)
        return _encode(self._event(NAMES[entry], f"event_{seq}", seq, entry))

    def server_sent(self, position: int, entry: Entry) -> bytes:
        """Return *entry* as a server-sent event whose id, and ``seq``, is its position."""
        if isinstance(entry, str):
            name = TEXT_DELTA
        else:
            name = CALL_NAMES[entry.step] if isinstance(entry, CallEntry) else NAMES[entry]
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (position, name.encode(), self.json(position, entry))

    def _event(self, name: str, event_id: str, seq: int, step: Step) -> Struct:
        turn = self._turn
        match step:
            case Step.CREATED | Step.ENDED:
                return ResponseEvent(name, event_id, seq, self._response(ended=step is Step.ENDED))
            case Step.ITEM_ADDED | Step.ITEM_DONE:
                item = self.item(done=step is Step.ITEM_DONE)
                return ItemEvent(name, event_id, seq, turn.id, item, turn.message_index)
            case Step.PART_ADDED | Step.PART_DONE:
                text = turn.text() if step is Step.PART_DONE else ""
                return PartEvent(name, event_id, seq, turn.id, turn.id, ContentPart("text", text), turn.message_index)
            case Step.TEXT_DONE:
                return TextDoneEvent(name, event_id, seq, turn.id, turn.id, turn.text(), turn.message_index)

    def item(self, *, done: bool) -> Item:
        """Return the assistant's item, as it begins or as it is in the end."""
        if not done:
            return Item(self._turn.id, "assistant", [], "in_progress")
        return item_of(self._turn, spoken=False)

    def _response(self, *, ended: bool) -> Response:
        turn = self._turn
        return Response(
            id=turn.id,
            status=self._status() if ended else "in_progress",
            status_details=self._details() if ended else None,
            output=self._output() if ended else [],
            conversation_id=turn.conversation_id or None,
            user_message_id=turn.user_message_id,
            model=turn.model,
            memories=turn.memories,
            usage=Usage(turn.tokens, turn.prompt_tokens + turn.tokens, turn.prompt_tokens) if ended else None,
            metadata=UNSET if self._metadata is None else self._metadata,
            receipt=turn.timer.receipt if ended else UNSET,
        )

    def _status(self) -> EndStatus:
        if self._calls_complete and self._turn.calls and self._turn.reason == "tool_calls":
            return "completed"
        return WORDS[self._turn.status]

    def _output(self) -> list[OutputItem]:
        turn = self._turn
        items: list[OutputItem] = [call_item(call) for call in turn.calls if call.shown]
        if turn.opened:
            items.insert(turn.message_index, self.item(done=True))
        return items

    def _details(self) -> StatusDetails | None:
        turn = self._turn
        if turn.status in (Status.COMPLETED, Status.RUNNING) or self._status() == "completed":
            return None
        error = None
        if turn.error is not None:
            error = EventError("server_error", turn.error.code, turn.error.message, details=turn.error.details or UNSET)
        return StatusDetails(WORDS[turn.status], REASONS.get(turn.reason, turn.reason), error)


class SpokenTurnEvents(TurnEvents):
    """Writes a turn that is read aloud: its text is the transcript of its sound."""

    __slots__ = ("_audio", "_audio_head", "_interrupted", "_transcript")

    def __init__(
        self,
        turn: Turn,
        audio: SpokenOutput,
        interrupted: Callable[[], str | None],
        transcript: Callable[[], str],
        *,
        metadata: Metadata | None = None,
    ) -> None:
        super().__init__(turn, TRANSCRIPT_DELTA, metadata=metadata, calls_complete=True)
        self._audio = audio
        self._audio_head = delta_head(AUDIO_DELTA, turn)
        self._interrupted = interrupted
        """Tells why the voice was stopped before it had said everything."""
        self._transcript = transcript
        """Gives what was told of the text: it is not all where somebody interrupted."""

    def audio_json(self, seq: int, samples: bytes) -> bytes:
        """Return *samples* as the JSON of an event with the number *seq*."""
        return b'%s%d","seq":%d,"delta":"%s"}' % (self._audio_head, seq, seq, base64.b64encode(samples))

    def audio_done_json(self, seq: int) -> bytes:
        """Return the event that comes after the last of the sound."""
        return _encode(AudioDoneEvent(f"event_{seq}", seq, self._turn.id, self._turn.id))

    def _event(self, name: str, event_id: str, seq: int, step: Step) -> Struct:
        turn = self._turn
        match step:
            case Step.PART_ADDED | Step.PART_DONE:
                text = self._transcript() if step is Step.PART_DONE else ""
                part = ContentPart("audio", transcript=text)
                return PartEvent(name, event_id, seq, turn.id, turn.id, part, turn.message_index)
            case Step.TEXT_DONE:
                return TranscriptDoneEvent(
                    TRANSCRIPT_DONE, event_id, seq, turn.id, turn.id, self._transcript(), turn.message_index
                )
            case _:
                return super()._event(name, event_id, seq, step)

    def item(self, *, done: bool) -> Item:
        if not done:
            return super().item(done=False)
        item = item_of(self._turn, spoken=True, text=self._transcript())
        if self._interrupted() in INTERRUPTIONS:
            item.status = "incomplete"
        return item

    def _response(self, *, ended: bool) -> Response:
        response = super()._response(ended=ended)
        response.output_modalities = ["audio"]
        response.audio = ResponseAudio(self._audio)
        if ended and response.status == "completed" and (reason := self._interrupted()):
            response.status = "cancelled" if reason in INTERRUPTIONS else "incomplete"
            response.status_details = StatusDetails(response.status, REASONS.get(reason, reason))
        return response


def item_of(turn: Turn, *, spoken: bool, text: str | None = None) -> Item:
    """Return the assistant's item as far as *turn* has come, with *text* where less of it was told."""
    status: ItemStatus = "completed" if turn.status is Status.COMPLETED else "incomplete"
    text = turn.text() if text is None else text
    part = ContentPart("output_audio", transcript=text) if spoken else ContentPart("output_text", text)
    return Item(turn.id, "assistant", [part], "in_progress" if turn.status is Status.RUNNING else status)


def delta_head(name: str, turn: Turn) -> bytes:
    """Return the JSON of an event *name* up to its number."""
    head = b'{"type":"%s","response_id":"%s","item_id":"%s","output_index":%d,"content_index":0,"event_id":"event_'
    return head % (name.encode(), turn.id.encode(), turn.id.encode(), turn.message_index)
