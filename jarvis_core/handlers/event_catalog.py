"""
Every event by its name, with the struct that has its fields: of streams, and of the WebSocket both ways.

The OpenAPI document is made from it. Deltas are written by hand where they are sent, and have their fields here.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from jarvis_core.handlers.call_events import (
    ApprovalRequestItem,
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    FunctionCallItem,
    ToolEvent,
)
from jarvis_core.handlers.events import (
    AUDIO_DELTA,
    TEXT_DELTA,
    TRANSCRIPT_DELTA,
    TRANSCRIPT_DONE,
    AudioDoneEvent,
    Item,
    PartEvent,
    ResponseEvent,
    TextDoneEvent,
    TranscriptDoneEvent,
)
from jarvis_core.handlers.realtime import wire
from jarvis_core.handlers.realtime.session_config import ResponseConfig, SessionConfig


class DeltaEvent(Struct):
    """A piece of the answer's text, to be put behind the last one."""

    type: str
    event_id: str
    seq: int
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    delta: str
    """The piece of the text."""


class AudioDeltaEvent(Struct):
    """A piece of the answer's sound, to be played behind the last one."""

    type: str
    event_id: str
    seq: int
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    delta: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]
    """Samples in the session's format, in base64."""


class OutputItemEvent(Struct):
    """An item of the answer begins, or is whole: its message, or a call of a tool."""

    type: str
    event_id: str
    seq: int
    response_id: str
    output_index: int
    item: Item | FunctionCallItem | ApprovalRequestItem


STREAM: dict[str, type[Struct]] = {
    "response.created": ResponseEvent,
    "response.output_item.added": OutputItemEvent,
    "response.content_part.added": PartEvent,
    TEXT_DELTA: DeltaEvent,
    "response.output_text.done": TextDoneEvent,
    "response.content_part.done": PartEvent,
    "response.function_call_arguments.delta": ArgumentsDeltaEvent,
    "response.function_call_arguments.done": ArgumentsDoneEvent,
    "response.output_item.done": OutputItemEvent,
    "response.done": ResponseEvent,
    "jarvis.tool": ToolEvent,
}
"""Of server-sent events."""

SERVER: dict[str, type[Struct]] = {
    **STREAM,
    TRANSCRIPT_DELTA: DeltaEvent,
    TRANSCRIPT_DONE: TranscriptDoneEvent,
    AUDIO_DELTA: AudioDeltaEvent,
    "response.output_audio.done": AudioDoneEvent,
    "session.created": wire.SessionEvent,
    "session.updated": wire.SessionEvent,
    "conversation.item.added": wire.ConversationItemEvent,
    "conversation.item.done": wire.ConversationItemEvent,
    "conversation.item.deleted": wire.DeletedEvent,
    "conversation.item.retrieved": wire.RetrievedEvent,
    "conversation.item.truncated": wire.TruncatedEvent,
    "conversation.item.input_audio_transcription.delta": wire.TranscriptionDeltaEvent,
    "conversation.item.input_audio_transcription.completed": wire.TranscriptionCompletedEvent,
    "conversation.item.input_audio_transcription.failed": wire.TranscriptionFailedEvent,
    "input_audio_buffer.speech_started": wire.SpeechStartedEvent,
    "input_audio_buffer.speech_stopped": wire.SpeechStoppedEvent,
    "input_audio_buffer.timeout_triggered": wire.TimeoutTriggeredEvent,
    "input_audio_buffer.committed": wire.CommittedEvent,
    "input_audio_buffer.cleared": wire.ClearedEvent,
    "rate_limits.updated": wire.RateLimitsEvent,
    "error": wire.ErrorEvent,
}
"""What the server sends over the WebSocket."""

CLIENT: dict[str, type[Struct]] = {
    "session.update": wire.SessionUpdate,
    "conversation.item.create": wire.ItemCreate,
    "conversation.item.delete": wire.ItemDelete,
    "conversation.item.retrieve": wire.ItemRetrieve,
    "conversation.item.truncate": wire.ItemTruncate,
    "response.create": wire.ResponseCreate,
    "response.cancel": wire.ResponseCancel,
    "input_audio_buffer.append": wire.AudioAppend,
    "input_audio_buffer.commit": wire.AudioCommit,
    "input_audio_buffer.clear": wire.AudioClear,
}
"""What a client sends."""

UNIONS = {
    "StreamEvent": (STREAM, "An event of a stream: what is behind `data:`."),
    "ServerEvent": (SERVER, "What the server sends over the WebSocket."),
    "ClientEvent": (CLIENT, "What a client sends over the WebSocket."),
}
"""By the name of their schema, with its description."""

TAKEN: dict[tuple[type[Struct], str], Any] = {
    (wire.SessionUpdate, "session"): SessionConfig,
    (wire.ResponseCreate, "response"): ResponseConfig | None,
}
"""What a field is that is decoded value by value, and so has no type of its own."""
