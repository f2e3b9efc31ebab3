"""
What goes between the core and a codec's process.

Each request and each answer is one of these structs (MessagePack) with payloads of bytes beside it. Samples are float32
little-endian mono unless a field says otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

OutputFormat = Literal["wav", "mp3", "opus", "pcm16", "f32", "aac", "flac"]
SampleEncoding = Literal["pcm16", "mulaw", "alaw"]
"""Samples as conversations have them: 16 bits, or 8 as telephones have them (ITU-T G.711)."""
SAMPLE_BYTES: dict[OutputFormat | SampleEncoding, int] = {"pcm16": 2, "f32": 4, "mulaw": 1, "alaw": 1}
"""Of formats that are nothing but samples."""

WINDOW_S = 60.0
"""
Longest window by default: the bridges take 117 s, but a speech model on a few cores needs a third of a window's time, and
has a deadline for it.
"""


class DecodeUpload(Struct, frozen=True, tag="upload"):
    """
    The body of a transcription's request, in its payloads one after another; answered by ``Decoded``.

    JSON with base64, ``multipart/form-data`` or the audio itself, as *content_type* says.
    """

    content_type: str
    """As the client sent it; empty where it sent none."""
    sample_rate_hz: int | None = None
    """Of headerless samples, where the query said so."""
    format: str | None = None
    """As the request's own field, of a body that is the audio itself."""
    limit_s: float = 600.0
    """Longest audio."""
    limit_bytes: int = 25 << 20
    """Most bytes of the audio itself, without base64 and multipart."""
    fields: tuple[str, ...] = ()
    """Names of a form's other fields that are to be told."""
    window_s: float = WINDOW_S
    """Longest window."""


class DecodePcm(Struct, frozen=True, tag="pcm"):
    """Samples of a known kind, in its payloads one after another; answered by ``Decoded``."""

    encoding: SampleEncoding | Literal["f32"]
    sample_rate_hz: int
    limit_s: float = 600.0
    window_s: float = WINDOW_S


class Window(Struct, frozen=True):
    """A piece of a clip that a neighbour can take at once, cut where it is quietest."""

    start_ms: int
    duration_ms: int
    silent: bool
    """Whether nobody speaks in it; it has an empty payload then."""


class Decoded(Struct, frozen=True, tag="decoded"):
    """A clip at 16 kHz within ±1; a payload for each window: its samples in base64."""

    duration_ms: int
    windows: list[Window]
    """At least one, unless the clip is empty."""
    language: str | None = None
    """What the request's own fields named."""
    fields: dict[str, str] = {}
    """The form's other fields that were to be told; of several of one name the last."""


class CheckEnhanced(Struct, frozen=True, tag="check"):
    """
    An audio engine's answer, in base64, to a window of so many samples; answered by ``Checked``.

    The payload of the answer is the samples in base64 again, kept within ±1; no payload where they are unusable.
    """

    samples: int


class Checked(Struct, frozen=True, tag="checked"):
    """What is wrong with an enhanced window; empty where it can be used."""

    complaint: str = ""


class Encode(Struct, frozen=True, tag="encode"):
    """
    One piece of speech on its way out, answered by ``Encoded`` with two payloads: what can be sent of it; and after the last one
    what the file would have begun with, had its length been known, where that is another beginning of the same length.

    Pieces of one *stream* are one file, in order; the one with *first* makes it, and the one with *last* ends it. A piece without
    a payload only ends it.
    """

    stream: int
    """Chosen by who asks; pieces of several streams may mix."""
    format: OutputFormat | SampleEncoding
    encoding: Literal["base64", "container"] = "base64"
    """The payload: float32 samples in base64, or a file that is told by its first bytes."""
    sample_rate_hz: int = 0
    """Of the samples in base64."""
    output_rate_hz: int | None = None
    """What to resample to; None leaves it as the first piece has it (Opus is always 48,000)."""
    tempo: float = 1.0
    """How much faster than it is, at the same pitch, 0.1..10."""
    first: bool = False
    """Whether the piece makes the stream; any other's stream has to be there."""
    last: bool = False


class Encoded(Struct, frozen=True, tag="encoded"):
    """How long the piece is as it is heard, and the rate at which."""

    duration_ms: float
    sample_rate_hz: int


class DropStream(Struct, frozen=True, tag="drop"):
    """Forget a stream that will not be ended; answered by ``Encoded`` without payload."""

    stream: int


class Listen(Struct, frozen=True, tag="listen"):
    """
    Sound of one microphone, in its payload; answered by ``Listened``.

    Payloads of one *stream* follow one another; the one with *first* makes it.
    """

    stream: int
    """Chosen by who asks."""
    encoding: SampleEncoding = "pcm16"
    sample_rate_hz: int = 24_000
    first: bool = False


class Listened(Struct, frozen=True, tag="listened"):
    """
    The steps of 32 ms that have become whole; its payload are their samples (16 bits, 16 kHz).

    What is not yet a step comes with the next payload's.
    """

    probabilities: list[float]
    """Of speech, 0..1, for each step."""
    levels_db: list[float]
    """Of each step: the power of its samples, in dB of full scale."""


class Failed(Struct, frozen=True, tag="failed"):
    """The request cannot be answered; *code* is that of one of the errors in ``errors.py``."""

    code: str
    message: str
    details: dict[str, Any] | None = None


Request = DecodeUpload | DecodePcm | CheckEnhanced | Encode | DropStream | Listen
Answer = Decoded | Checked | Encoded | Listened | Failed

request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
encoder = msgspec.msgpack.Encoder()
