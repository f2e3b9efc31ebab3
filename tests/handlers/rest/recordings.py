"""Recordings on their way to ``/api/voice/transcribe``, in each of the ways that clients send them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from tests.codec.sounds import Floats, to_pcm
from tests.handlers.rest.api import Answer, Api

TRANSCRIBE = "/api/voice/transcribe"
BOUNDARY = "----a-boundary-0123456789"


class Body(NamedTuple):
    """A request's body, and what goes with it."""

    data: bytes
    content_type: str = ""
    query: Mapping[str, str] = {}


def as_json(audio: bytes, **fields: object) -> Body:
    """Put *audio* into JSON as base64."""
    body = {"audio_data": base64.b64encode(audio).decode(), **fields}
    return Body(msgspec.json.encode(body), "application/json")


def as_form(audio: bytes | None, *, file_type: str = "application/octet-stream", **fields: str) -> Body:
    """Put *audio* into a form, as a browser's page does, with *fields* around it."""
    parts = [(f'name="{name}"', "", value.encode()) for name, value in fields.items()]
    if audio is not None:
        parts.insert(len(parts) // 2, ('name="file"; filename="clip"', f"Content-Type: {file_type}\r\n", audio))
    data = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {names}\r\n{head}\r\n".encode() + value + b"\r\n"
        for names, head, value in parts
    )
    return Body(data + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}")


def as_bytes(audio: bytes, content_type: str = "application/octet-stream", **query: str) -> Body:
    """Send *audio* as it is."""
    return Body(audio, content_type, query)


def float32(samples: Floats) -> bytes:
    """Return samples without a header."""
    return to_pcm(samples, "f32")


async def send(api: Api, body: Body, **options: Any) -> Answer:
    """Have *body* transcribed."""
    headers = {"Content-Type": body.content_type} if body.content_type else {}
    path = f"{TRANSCRIBE}?{urlencode(body.query)}" if body.query else TRANSCRIBE
    return await api.post(path, data=BytesIO(body.data), headers=headers, **options)


async def hear(api: Api, body: Body) -> Any:
    """Return what *body* says; it is a success."""
    answer = await send(api, body)
    assert answer.status == 200, answer.body
    return answer.json
