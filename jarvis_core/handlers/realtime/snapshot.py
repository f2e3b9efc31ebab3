"""What a session leaves behind for the one that goes on with its response on another worker."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from jarvis_core.handlers.realtime.wire import SessionBody
from jarvis_core.speech.narration import Cursor

MARKS_LIMIT = 20_000
"""The latest are what a client comes back to."""


class SessionSnapshot(Struct, array_like=True):
    """One session, as its client saw it up to the event that it names."""

    conversation_id: str | None
    config: SessionBody
    response_config: SessionBody
    """With which the response was asked for."""
    marks: list[tuple[int, Cursor]]
    """(seq, place) of the events of the response that the client has seen."""
    last_item_id: str | None
    pending: tuple[str, str] | None
    asked: tuple[str, str] | None
    heard_language: str | None
    silenced: str | None
    """Why the voice was stopped, if it was."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionSnapshot)


def encode(left: SessionSnapshot) -> bytes:
    """Return *left* as bytes."""
    return _encoder.encode(left)


def decode(data: bytes) -> SessionSnapshot:
    """Return what was encoded."""
    return _decoder.decode(data)
