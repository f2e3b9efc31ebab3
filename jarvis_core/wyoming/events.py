"""The events of the Wyoming protocol (1.10) that are understood and sent here; all others are ignored."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from jarvis_core.errors import InvalidRequest
from jarvis_core.wyoming.frames import Frame

RATES_HZ = (1_000, 384_000)
QUESTION_LIMIT_CHARS = 10_000
"""As over REST."""
TEXT_LIMIT_CHARS = 50_000
"""An hour of speech."""


class Describe(Struct, frozen=True):
    """Asks for ``Info``."""


class Ping(Struct, frozen=True):
    """Asks for a ``pong`` with the same text; sent by us to whoever waits for something that takes long."""

    text: str | None = None


class Transcribe(Struct, frozen=True):
    """Says in which language the sound is that follows."""

    language: str | None = None


class AudioFormat(Struct, frozen=True, kw_only=True):
    """Integer samples, interleaved."""

    rate: Annotated[int, Meta(ge=RATES_HZ[0], le=RATES_HZ[1])]
    """Hz."""
    width: Annotated[int, Meta(ge=1, le=4)]
    """Bytes of a sample."""
    channels: Annotated[int, Meta(ge=1, le=8)]


class AudioStart(AudioFormat, frozen=True):
    """The beginning of sound."""


class AudioChunk(AudioFormat, frozen=True):
    """Some sound; the samples are the frame's payload."""


class AudioStop(Struct, frozen=True):
    """The end of sound."""


class Context(Struct, frozen=True, omit_defaults=True):
    """What belongs together over several connections."""

    conversation_id: Annotated[str, Meta(max_length=255)] | None = None
    device_id: str | None = None
    satellite_id: str | None = None


class Transcript(Struct, frozen=True, omit_defaults=True):
    """What was said: the answer to sound, and a question of who has understood it elsewhere."""

    text: Annotated[str, Meta(max_length=QUESTION_LIMIT_CHARS)]
    language: str | None = None
    context: Context | None = None


class Voice(Struct, frozen=True):
    """Who is to speak; a name wins over a language."""

    name: str | None = None
    language: str | None = None


class Synthesize(Struct, frozen=True):
    """Asks for a text to be spoken."""

    text: Annotated[str, Meta(max_length=TEXT_LIMIT_CHARS)]
    voice: Voice | None = None


class SynthesizeStart(Struct, frozen=True):
    """A text to be spoken follows in ``SynthesizeChunk``."""

    voice: Voice | None = None


class SynthesizeChunk(Struct, frozen=True):
    """Some of a text."""

    text: str


class SynthesizeStop(Struct, frozen=True):
    """The end of a text."""


class Text(Struct, frozen=True):
    """Some of a transcript or an answer."""

    text: str


class Answer(Struct, frozen=True, omit_defaults=True):
    """``handled`` or ``not-handled``, and the beginning of the former in pieces."""

    text: str | None = None
    context: Context | None = None


class Failure(Struct, frozen=True):
    """``error``: why something that was asked for does not come."""

    text: str
    code: str


Event = (
    Describe
    | Ping
    | Transcribe
    | AudioStart
    | AudioChunk
    | AudioStop
    | Transcript
    | Synthesize
    | SynthesizeStart
    | SynthesizeChunk
    | SynthesizeStop
)

KINDS: dict[str, type[Event]] = {
    "describe": Describe,
    "ping": Ping,
    "transcribe": Transcribe,
    "audio-start": AudioStart,
    "audio-chunk": AudioChunk,
    "audio-stop": AudioStop,
    "transcript": Transcript,
    "synthesize": Synthesize,
    "synthesize-start": SynthesizeStart,
    "synthesize-chunk": SynthesizeChunk,
    "synthesize-stop": SynthesizeStop,
}

_decoders = {name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()}


def read_event(frame: Frame) -> Event | None:
    """Return the event of *frame*, None where it is none that is understood; raises ``InvalidRequest``."""
    decoder = _decoders.get(frame.type)
    if decoder is None:
        return None
    try:
        event: Event = decoder.decode(frame.data)
    except msgspec.ValidationError as exc:
        rule, _, path = str(exc).partition(" - at ")
        raise InvalidRequest.field(f"{frame.type}: {path.strip('`') or '$'}", rule) from exc
    return event
