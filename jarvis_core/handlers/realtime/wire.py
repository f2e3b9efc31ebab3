"""
Structs of the WebSocket besides responses: the client's events, and the server's about sessions and items.

The vocabulary is that of the OpenAI Realtime API (https://platform.openai.com/docs/api-reference/realtime); fields that
it has and we do not use are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from jarvis_core.handlers.call_events import ApprovalRequestItem, FunctionCallItem, FunctionOutputItem
from jarvis_core.handlers.events import AudioFormat, EventError, Item
from jarvis_core.handlers.tool_wire import ToolBody, ToolChoice

MaxOutputTokens = Annotated[int, Meta(ge=1, le=32_000)] | Literal["inf"]
Modality = Literal["text", "audio"]
SessionType = Literal["realtime", "transcription"]
"""One of the second kind only listens: what it hears is told, and neither stored nor answered."""
Eagerness = Literal["low", "medium", "high", "auto"]
Language = Annotated[str, Meta(min_length=2, max_length=10)]
EventId = Annotated[
    str, Meta(max_length=512, description="Of the client's choice: an error about this event names it.")
]


class Transcription(Struct):
    """How speech is understood; which model does it is not the client's choice."""

    language: Language | None = None
    """ISO 639-1, or ``auto``; null is the server's own."""


class ClientPart(Struct):
    """A part of a client's item."""

    type: str
    text: Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None
    transcript: Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None
    """The words of what was spoken."""


class ClientItem(Struct, tag_field="type", tag="message"):
    """A message that a client adds."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[ClientPart], Meta(min_length=1, max_length=100)]
    id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class OutputItem(Struct, tag_field="type", tag="function_call_output"):
    """What came of a call of one of the client's tools."""

    call_id: Annotated[str, Meta(max_length=64)]
    output: Annotated[str, Meta(max_length=200_000)]
    id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class ItemReference(Struct):
    """Stands for an item of the conversation."""

    type: Literal["item_reference"]
    id: str


class SessionUpdate(Struct, tag_field="type", tag="session.update"):
    """Change the session."""

    session: Any
    """A ``SessionConfig``, as far as it can be had of it."""
    event_id: EventId | None = None


class ItemCreate(Struct, tag_field="type", tag="conversation.item.create"):
    """Add a message, or the output of a tool."""

    item: ClientItem | OutputItem
    previous_item_id: str | None = None
    """Behind which it is put: ``root`` for the beginning; null for the end."""
    event_id: EventId | None = None


class ResponseCreate(Struct, tag_field="type", tag="response.create"):
    """Answer the last message."""

    response: Any = None
    """A ``ResponseConfig``, or null."""
    event_id: EventId | None = None


class ResponseCancel(Struct, tag_field="type", tag="response.cancel"):
    """Stop the running response."""

    response_id: str | None = None
    event_id: EventId | None = None


class AudioAppend(Struct, tag_field="type", tag="input_audio_buffer.append"):
    """Add audio to the input buffer."""

    audio: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]
    """Samples in the session's format, in base64."""
    event_id: EventId | None = None


class AudioCommit(Struct, tag_field="type", tag="input_audio_buffer.commit"):
    """Make the input buffer a user's message."""

    event_id: EventId | None = None


class AudioClear(Struct, tag_field="type", tag="input_audio_buffer.clear"):
    """Empty the input buffer."""

    event_id: EventId | None = None


class ItemTruncate(Struct, tag_field="type", tag="conversation.item.truncate"):
    """Tell how much of an answer's sound was heard."""

    item_id: str
    audio_end_ms: Annotated[int, Meta(ge=0)]
    content_index: int = 0
    event_id: EventId | None = None


class ItemRetrieve(Struct, tag_field="type", tag="conversation.item.retrieve"):
    """Ask for an item as it is now."""

    item_id: str
    event_id: EventId | None = None


class ItemDelete(Struct, tag_field="type", tag="conversation.item.delete"):
    """Remove an item from the conversation."""

    item_id: str
    event_id: EventId | None = None


HandledEvent = (
    SessionUpdate
    | ItemCreate
    | ItemDelete
    | ItemRetrieve
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
    | AudioCommit
    | AudioClear
)
"""Events that change the session, one after another."""
ClientEvent = HandledEvent | AudioAppend


class EventHead(Struct):
    """The fields of a client's event that an error about it needs."""

    event_id: str | None = None
    type: Any = None


class ServerVad(Struct, tag_field="type", tag="server_vad"):
    """A turn of speech ends after a fixed silence."""

    threshold: float = 0.5
    """0..1: how likely a sound must be speech to begin it."""
    prefix_padding_ms: int = 300
    """Sound before the speech that belongs to it."""
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = None
    """Silence behind an answer after which the assistant goes on by itself."""


class SemanticVad(Struct, tag_field="type", tag="semantic_vad"):
    """A turn of speech ends the sooner the more it sounds finished; without a model that can tell, after a fixed silence."""

    eagerness: Eagerness = "auto"
    create_response: bool = True
    interrupt_response: bool = True
    fallback: Literal["silence"] | UnsetType = UNSET
    """Ours: there where no model tells the end of a turn, but a fixed silence."""


TurnDetection = ServerVad | SemanticVad


class NoiseReduction(Struct):
    """How far the microphone is from who speaks; the audio engine does the same for both."""

    type: Literal["near_field", "far_field"] = "near_field"


class AudioInputBody(Struct):
    """The audio that a client sends."""

    format: AudioFormat
    transcription: Transcription
    turn_detection: TurnDetection | None = msgspec.field(default_factory=ServerVad)
    noise_reduction: NoiseReduction | None = None
    """Null: what is understood is the sound as it came."""
    create_response: bool = False
    """Whether a buffer that the client commits is answered."""


class AudioOutputBody(Struct):
    """The audio that a client gets."""

    format: AudioFormat
    voice: str | None = None
    """Null is the voice of the language that was heard last."""
    speed: float = 1.0
    truncate: Literal["client", "server"] = "client"
    """Ours: whether the client is told of what the server truncates by itself, because an answer was interrupted."""


class AudioBody(Struct):
    """Both ways."""

    input: AudioInputBody
    output: AudioOutputBody


class SessionBody(Struct):
    """A session as clients see it."""

    id: str
    conversation_id: str | None
    """Null until the first message makes a conversation."""
    instructions: str
    output_modalities: list[Modality]
    max_output_tokens: MaxOutputTokens
    temperature: float
    audio: AudioBody
    tools: list[ToolBody] = []
    """Functions of the client's that a response may have called."""
    tool_choice: ToolChoice = "auto"
    model: str = "jarvis"
    type: SessionType = "realtime"
    object: Literal["realtime.session", "realtime.transcription_session"] = "realtime.session"


class SessionEvent(Struct):
    """``session.created`` and ``session.updated``."""

    type: str
    event_id: str
    seq: int
    session: SessionBody


class ConversationItemEvent(Struct):
    """``conversation.item.added`` and ``.done``."""

    type: str
    event_id: str
    seq: int
    conversation_id: str | None
    """Null for audio that would begin a conversation, until its words are known."""
    previous_item_id: str | None
    item: Item | FunctionCallItem | ApprovalRequestItem | FunctionOutputItem


class SpeechStartedEvent(Struct):
    """``input_audio_buffer.speech_started``."""

    event_id: str
    seq: int
    audio_start_ms: int
    """Of all sound that came in this session, up to the prefix of the speech."""
    item_id: str
    """Of the item that it will be."""
    type: Literal["input_audio_buffer.speech_started"] = "input_audio_buffer.speech_started"


class SpeechStoppedEvent(Struct):
    """``input_audio_buffer.speech_stopped``."""

    event_id: str
    seq: int
    audio_end_ms: int
    """With the silence that ended it."""
    item_id: str
    type: Literal["input_audio_buffer.speech_stopped"] = "input_audio_buffer.speech_stopped"


class DeletedEvent(Struct):
    """``conversation.item.deleted``."""

    event_id: str
    seq: int
    item_id: str
    type: Literal["conversation.item.deleted"] = "conversation.item.deleted"


class TimeoutTriggeredEvent(Struct):
    """``input_audio_buffer.timeout_triggered``."""

    event_id: str
    seq: int
    audio_start_ms: int
    """Where the answer had been played."""
    audio_end_ms: int
    item_id: str
    """Of the item that the silence will be."""
    type: Literal["input_audio_buffer.timeout_triggered"] = "input_audio_buffer.timeout_triggered"


class RetrievedEvent(Struct):
    """``conversation.item.retrieved``."""

    event_id: str
    seq: int
    item: Item
    type: Literal["conversation.item.retrieved"] = "conversation.item.retrieved"


class TruncatedEvent(Struct):
    """``conversation.item.truncated``."""

    event_id: str
    seq: int
    item_id: str
    content_index: int
    audio_end_ms: int
    type: Literal["conversation.item.truncated"] = "conversation.item.truncated"


class CommittedEvent(Struct):
    """``input_audio_buffer.committed``."""

    event_id: str
    seq: int
    previous_item_id: str | None
    item_id: str
    type: Literal["input_audio_buffer.committed"] = "input_audio_buffer.committed"


class ClearedEvent(Struct):
    """``input_audio_buffer.cleared``."""

    event_id: str
    seq: int
    type: Literal["input_audio_buffer.cleared"] = "input_audio_buffer.cleared"


class DurationUsage(Struct):
    """How much was listened to."""

    seconds: float
    type: Literal["duration"] = "duration"


class TranscriptionDeltaEvent(Struct):
    """``conversation.item.input_audio_transcription.delta``; its deltas are the transcript, one behind the other."""

    event_id: str
    seq: int
    item_id: str
    delta: str
    content_index: int = 0
    type: Literal["conversation.item.input_audio_transcription.delta"] = (
        "conversation.item.input_audio_transcription.delta"
    )


class TranscriptionCompletedEvent(Struct):
    """``conversation.item.input_audio_transcription.completed``; an empty transcript where nobody speaks."""

    event_id: str
    seq: int
    item_id: str
    transcript: str
    usage: DurationUsage
    conversation_id: str | None
    """Ours; null while nothing was said in the conversation."""
    language: str
    """Ours."""
    enhanced: bool
    """Ours: whether the audio had passed through the audio engine."""
    language_confidence: float | None = None
    """Ours: 0..1, how certain the language is; null where the client named it, or the model gives no confidence."""
    content_index: int = 0
    type: Literal["conversation.item.input_audio_transcription.completed"] = (
        "conversation.item.input_audio_transcription.completed"
    )


class TranscriptionFailedEvent(Struct):
    """``conversation.item.input_audio_transcription.failed``."""

    event_id: str
    seq: int
    item_id: str
    error: EventError
    content_index: int = 0
    type: Literal["conversation.item.input_audio_transcription.failed"] = (
        "conversation.item.input_audio_transcription.failed"
    )


class RateLimit(Struct):
    """A limit of the caller's."""

    name: Literal["requests"]
    limit: int
    """In a minute."""
    remaining: int
    reset_seconds: int
    """Until all of it is regained."""


class RateLimitsEvent(Struct):
    """``rate_limits.updated``, with a response; where requests are limited."""

    event_id: str
    seq: int
    rate_limits: list[RateLimit]
    type: Literal["rate_limits.updated"] = "rate_limits.updated"


class ErrorEvent(Struct):
    """A client's mistake, or a failure of the server; the socket stays open."""

    event_id: str
    seq: int
    error: EventError
    type: Literal["error"] = "error"
