"""
The frames of the Wyoming protocol: a line of JSON, then further JSON and bytes of the lengths that the line names.

Read here and not by the ``wyoming`` package (1.10.2), which holds whatever length a client names, takes an answer's end for a
frame that is broken.
"""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from jarvis_core.errors import InvalidRequest

HEAD_LIMIT_BYTES = 64 << 10
"""Of a line; where all of an event's data stands in it that is enough for the longest text that is answered."""
DATA_LIMIT_BYTES = 256 << 10
PAYLOAD_LIMIT_BYTES = 512 << 10
"""Sixteen seconds of speech at 16 kHz; clients send a tenth of a second at a time."""
VERSION = "1.10.0"
"""Of the protocol that is spoken here."""


class BadFrame(InvalidRequest):
    """What came is no frame, or longer than one may be: where the next one begins is not known."""


class Frame(Struct, frozen=True):
    """One event as it came."""

    type: str
    data: Raw
    """A JSON object."""
    payload: bytes = b""


class _Head(Struct, frozen=True):
    type: str
    data: Raw | UnsetType = UNSET
    data_length: int | None = None
    payload_length: int | None = None


class _ToSend(Struct, frozen=True):
    type: str
    version: str
    data_length: int | UnsetType = UNSET
    payload_length: int | UnsetType = UNSET


_head_decoder = msgspec.json.Decoder(_Head)
_object_decoder = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """
    Return the next frame, None where the client has left between two of them.

    *reader* limits a line to ``HEAD_LIMIT_BYTES``. Raises ``BadFrame``, and ``IncompleteReadError`` where the client has left
    in the middle of one.
    """
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial.strip():
            raise
        return None
    except asyncio.LimitOverrunError as exc:
        raise BadFrame(f"A line is over {HEAD_LIMIT_BYTES} bytes.", details={"limit_bytes": HEAD_LIMIT_BYTES}) from exc
    try:
        head = _head_decoder.decode(line)
        parts = [] if head.data is UNSET or bytes(head.data) == b"null" else [_object_decoder.decode(head.data)]
        if data_bytes := _length(head.data_length, "data_length", DATA_LIMIT_BYTES):
            parts.append(_object_decoder.decode(await reader.readexactly(data_bytes)))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadFrame(f"A line is not the head of an event: {exc}") from exc
    payload_bytes = _length(head.payload_length, "payload_length", PAYLOAD_LIMIT_BYTES)
    payload = await reader.readexactly(payload_bytes) if payload_bytes else b""
    merged = {name: value for part in parts for name, value in part.items()}
    return Frame(head.type, Raw(_encoder.encode(merged)), payload)


def encode_frame(kind: str, data: Struct | None = None, payload: bytes = b"") -> bytes:
    """Return the frame of an event."""
    encoded = b"" if data is None else _encoder.encode(data)
    head = _ToSend(kind, VERSION, len(encoded) or UNSET, len(payload) or UNSET)
    return b"".join((_encoder.encode(head), b"\n", encoded, payload))


def _length(named: int | None, field: str, limit: int) -> int:
    length = named or 0
    if not 0 <= length <= limit:
        raise BadFrame(f"{field} is {length}; it must be 0 to {limit}.", details={"limit_bytes": limit})
    return length
