"""
What goes over the WebSocket besides responses: the client's events, and ours about sessions and items.

The vocabulary is that of the OpenAI Realtime API (https://platform.openai.com/docs/api-reference/realtime); fields that
it has and we do not use are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from jarvis_core.handlers.events import EventError, Item
from jarvis_core.handlers.wire import SystemPrompt, Temperature

MaxOutputTokens = Annotated[int, Meta(ge=1, le=32_000)] | Literal["inf"]
Modality = Literal["text", "audio"]
EventId = Annotated[str, Meta(max_length=512)]


class SessionConfig(Struct):
    """What a client may set; absent fields stay as they are."""

    instructions: SystemPrompt | UnsetType = UNSET
    output_modalities: list[Modality] | UnsetType = UNSET
    max_output_tokens: MaxOutputTokens | UnsetType = UNSET
    temperature: Temperature | UnsetType = UNSET


class ResponseConfig(SessionConfig):
    """As the session's, for one response."""

    input: Any = None


class ClientPart(Struct):
    """A part of a client's item."""

    type: str
    text: Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None


class ClientItem(Struct):
    """A message that a client adds."""

    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[ClientPart], Meta(min_length=1, max_length=100)]
    id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class SessionUpdate(Struct, tag_field="type", tag="session.update"):
    """Change the session."""

    session: SessionConfig
    event_id: EventId | None = None


class ItemCreate(Struct, tag_field="type", tag="conversation.item.create"):
    """Add a message."""

    item: ClientItem
    event_id: EventId | None = None


class ResponseCreate(Struct, tag_field="type", tag="response.create"):
    """Answer the last message."""

    response: ResponseConfig | None = None
    event_id: EventId | None = None


class ResponseCancel(Struct, tag_field="type", tag="response.cancel"):
    """Stop the running response."""

    response_id: str | None = None
    event_id: EventId | None = None


class AudioAppend(Struct, tag_field="type", tag="input_audio_buffer.append"):
    """Audio; not served yet."""

    event_id: EventId | None = None


class AudioCommit(Struct, tag_field="type", tag="input_audio_buffer.commit"):
    """Audio; not served yet."""

    event_id: EventId | None = None


class AudioClear(Struct, tag_field="type", tag="input_audio_buffer.clear"):
    """Audio; not served yet."""

    event_id: EventId | None = None


ClientEvent = SessionUpdate | ItemCreate | ResponseCreate | ResponseCancel | AudioAppend | AudioCommit | AudioClear


class EventHead(Struct):
    """As much of a client's event as is needed to complain about it."""

    event_id: str | None = None


class SessionBody(Struct):
    """A session as clients see it."""

    id: str
    conversation_id: str | None
    """Null until the first message makes a conversation."""
    instructions: str
    output_modalities: list[Modality]
    max_output_tokens: MaxOutputTokens
    temperature: float
    model: str = "jarvis"
    type: Literal["realtime"] = "realtime"
    object: Literal["realtime.session"] = "realtime.session"


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
    conversation_id: str
    previous_item_id: str | None
    item: Item


class ErrorEvent(Struct):
    """A client's mistake, or what went wrong here; the socket stays open."""

    event_id: str
    seq: int
    error: EventError
    type: Literal["error"] = "error"
