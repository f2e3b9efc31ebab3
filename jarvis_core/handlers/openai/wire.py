"""The structs of requests and answers below ``/v1``: OpenAI's, and what of ours goes with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType


class ErrorFields(Struct, frozen=True):
    """What is wrong."""

    message: str
    """One sentence for a person."""
    type: str
    """``invalid_request_error``, ``authentication_error``, ``permission_error``, ``rate_limit_error`` or ``server_error``."""
    param: str | None
    """The field that is meant."""
    code: str
    """One of our stable words, or of OpenAI's where its clients look for it."""
    details: dict[str, Any] | UnsetType = UNSET
    """Ours: what a program may want to know, such as the model server's own words."""


class ErrorAnswer(Struct, frozen=True):
    """Every error of ``/v1``, whatever raised it."""

    error: ErrorFields


class ModelCard(Struct, frozen=True):
    """A model that may be named."""

    id: str
    created: int
    """When this server was started, in seconds since 1970: nobody tells when a model was made."""
    owned_by: str
    object: str = "model"


class ModelList(Struct, frozen=True):
    """All of them."""

    data: list[ModelCard]
    object: str = "list"


class VoiceId(Struct, frozen=True):
    """A voice, as newer clients name it."""

    id: str


class SpeechRequest(Struct, frozen=True):
    """``POST /v1/audio/speech``."""

    model: str
    input: Annotated[str, Meta(min_length=1, max_length=5_000)]
    voice: str | VoiceId
    """One of ours, or of OpenAI's, which mean ours."""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    """pcm is 24 kHz, 16 bits, little-endian."""
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = None
    """Not understood, which the answer's Warning says."""


class SpeechUsage(Struct, frozen=True):
    """Nobody counts: zeros."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class SpeechDone(Struct, frozen=True):
    """The last event of speech."""

    usage: SpeechUsage = SpeechUsage()
    type: Literal["speech.audio.done"] = "speech.audio.done"


class DurationUsage(Struct, frozen=True):
    """How much was listened to."""

    seconds: float
    type: Literal["duration"] = "duration"


class Transcription(Struct, frozen=True):
    """What a recording says."""

    text: str
    usage: DurationUsage


class TranscriptionSegment(Struct, frozen=True):
    """A stretch of it, in seconds; the recogniser does not tell what has a default here."""

    id: int
    start: float
    end: float
    text: str
    seek: int = 0
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0


class VerboseTranscription(Struct, frozen=True):
    """The same with all that is known."""

    language: str
    """Its English name, as OpenAI's own answers have it."""
    duration: float
    """Of the recording, in seconds."""
    text: str
    segments: list[TranscriptionSegment]
    usage: DurationUsage
    task: Literal["transcribe"] = "transcribe"


class TranscriptDelta(Struct, frozen=True):
    """The next words of a streamed transcription."""

    delta: str
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TranscriptDone(Struct, frozen=True):
    """All of them."""

    text: str
    usage: DurationUsage
    type: Literal["transcript.text.done"] = "transcript.text.done"
