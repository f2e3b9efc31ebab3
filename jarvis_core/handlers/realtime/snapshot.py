"""The state of a session that is handed over to a session on another worker."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from jarvis_core.conversation.ledger import Spoken
from jarvis_core.handlers.events import Metadata
from jarvis_core.handlers.realtime.dialogue import DialogueState
from jarvis_core.handlers.realtime.wire import SessionBody
from jarvis_core.speech.narration import Cursor

MARKS_LIMIT = 20_000
"""Only the latest marks are kept: a client comes back to one of the last events."""


class SessionSnapshot(Struct, array_like=True):
    """A session up to the last event that its client has seen."""

    conversation_id: str | None
    config: SessionBody
    response_config: SessionBody
    """The settings with which the response was asked for."""
    marks: list[tuple[int, Cursor]]
    """(seq, place) of the events of the response that the client has seen."""
    dialogue: DialogueState
    heard_language: str | None
    silenced: str | None
    """Why the voice was stopped before its end; None where it was not."""
    spoken: list[Spoken]
    """What was said of the response as sound."""
    metadata: Metadata | None
    """What its client gave the response."""
    previous_item_id: str | None
    """The item before the assistant's."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionSnapshot)


def encode(snapshot: SessionSnapshot) -> bytes:
    """Return *snapshot* as bytes."""
    return _encoder.encode(snapshot)


def decode(data: bytes) -> SessionSnapshot:
    """Return the snapshot in *data*."""
    return _decoder.decode(data)
