"""The JSON body of a transcription's request; light, because the server's OpenAPI document is made from it too."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

SAMPLE_RATE_MIN_HZ = 1_000
SAMPLE_RATE_MAX_HZ = 384_000
"""Of headerless samples."""

LANGUAGE_LIMIT = 10
"""Characters; what the bridges take."""


class TranscribeRequest(Struct, frozen=True):
    """Speech to be written down."""

    audio_data: Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]
    """Base64 of the audio, in the standard alphabet."""
    language: Annotated[str, Meta(max_length=LANGUAGE_LIMIT)] | None = None
    """What is spoken; `auto` finds out, and the server's own when absent."""
    format: str | None = None
    """A hint for headerless samples: `f32` (also when absent) or `pcm16`; files are told by their first bytes."""
    sample_rate: Annotated[int, Meta(ge=SAMPLE_RATE_MIN_HZ, le=SAMPLE_RATE_MAX_HZ)] | None = None
    """Of headerless samples, in Hz; 16,000 when absent."""
