"""
The settings that a client may ask for: nested, as the Realtime API has them, and flat, as it had them before its GA.

Both have their names from https://platform.openai.com/docs/api-reference/realtime-client-events.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.events import Metadata
from jarvis_core.handlers.realtime.lenient import Partial, PartialT, take
from jarvis_core.handlers.realtime.wire import Eagerness, Language, MaxOutputTokens, Modality, SessionType
from jarvis_core.handlers.tool_wire import ToolBody, ToolChoice
from jarvis_core.handlers.wire import SystemPrompt, Temperature

VoiceName = Annotated[str, Meta(min_length=1, max_length=100)]
FormatName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
FlatFormatName = Literal["pcm16", "g711_ulaw", "g711_alaw"]
Speed = Annotated[float, Meta(ge=0.1, le=3)]


class FormatConfig(Struct):
    """A format of samples; what is null stays as it is. Taken whole or not at all."""

    type: FormatName | None = None
    rate: Annotated[int, Meta(ge=8_000, le=48_000)] | None = None


FORMATS: dict[FlatFormatName, FormatConfig] = {
    "pcm16": FormatConfig("audio/pcm", 24_000),
    "g711_ulaw": FormatConfig("audio/pcmu"),
    "g711_alaw": FormatConfig("audio/pcma"),
}
"""Formats by their older names."""


class TranscriptionConfig(Partial):
    """A client's settings for transcription."""

    language: Language | UnsetType = UNSET


class VoiceId(Struct):
    """A voice by its id, as newer clients name it."""

    id: VoiceName


class TurnDetectionConfig(Partial):
    """A client's settings for how turns of speech are found."""

    type: Literal["server_vad", "semantic_vad"] | UnsetType = UNSET
    threshold: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=5_000)] | UnsetType = UNSET
    silence_duration_ms: Annotated[int, Meta(ge=100, le=10_000)] | UnsetType = UNSET
    idle_timeout_ms: Annotated[int, Meta(ge=5_000, le=30_000)] | UnsetType | None = UNSET
    eagerness: Eagerness | UnsetType = UNSET
    create_response: bool | UnsetType = UNSET
    interrupt_response: bool | UnsetType = UNSET

    @classmethod
    def switched_off(cls) -> frozenset[str]:
        """Name the fields that null switches off."""
        return frozenset({"idle_timeout_ms"})


class NoiseReductionConfig(Partial):
    """A client's setting for noise suppression."""

    type: Literal["near_field", "far_field"] | UnsetType = UNSET


class AudioInputConfig(Partial):
    """A client's settings for the audio that it sends."""

    format: FormatConfig | UnsetType = UNSET
    transcription: TranscriptionConfig | UnsetType = UNSET
    turn_detection: TurnDetectionConfig | UnsetType | None = UNSET
    """Null leaves it to the client to commit."""
    noise_reduction: NoiseReductionConfig | UnsetType | None = UNSET
    """Null switches it off."""
    create_response: bool | UnsetType = UNSET
    """Ours: whether a committed buffer is answered without ``response.create``."""

    @classmethod
    def switched_off(cls) -> frozenset[str]:
        """Name the fields that null switches off."""
        return frozenset({"turn_detection", "noise_reduction"})


class AudioOutputConfig(Partial):
    """A client's settings for the audio that it gets."""

    format: FormatConfig | UnsetType = UNSET
    voice: VoiceName | VoiceId | UnsetType = UNSET
    speed: Speed | UnsetType = UNSET
    truncate: Literal["client", "server"] | UnsetType = UNSET
    """Ours."""


class AudioConfig(Partial):
    """Both ways."""

    input: AudioInputConfig | UnsetType = UNSET
    output: AudioOutputConfig | UnsetType = UNSET


class SessionConfig(Partial):
    """The settings that a client may change; absent and null fields stay as they are."""

    type: SessionType | UnsetType = UNSET
    instructions: SystemPrompt | UnsetType = UNSET
    output_modalities: list[Modality] | UnsetType = UNSET
    max_output_tokens: MaxOutputTokens | UnsetType = UNSET
    temperature: Temperature | UnsetType = UNSET
    audio: AudioConfig | UnsetType = UNSET
    tools: Annotated[list[ToolBody], Meta(max_length=128)] | UnsetType = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET


class ResponseConfig(SessionConfig):
    """As the session's, for one response."""

    metadata: Metadata | UnsetType = UNSET
    """Told again with the response."""
    input: list[Any] | UnsetType = UNSET
    """What the model is told was said before, in place of the conversation."""
    conversation: Literal["auto", "none"] | UnsetType = UNSET
    """``none``: out of band."""


class FlatConfig(Partial):
    """The same settings in the older shape, all at the top."""

    modalities: Annotated[list[Modality], Meta(min_length=1)] | UnsetType = UNSET
    """What is spoken is also written: ``["text", "audio"]`` is a voice with its transcript."""
    voice: VoiceName | UnsetType = UNSET
    speed: Speed | UnsetType = UNSET
    input_audio_format: FlatFormatName | UnsetType = UNSET
    output_audio_format: FlatFormatName | UnsetType = UNSET
    input_audio_transcription: TranscriptionConfig | UnsetType = UNSET
    input_audio_noise_reduction: NoiseReductionConfig | UnsetType | None = UNSET
    turn_detection: TurnDetectionConfig | UnsetType | None = UNSET
    max_response_output_tokens: MaxOutputTokens | UnsetType = UNSET

    @classmethod
    def switched_off(cls) -> frozenset[str]:
        """Name the fields that null switches off."""
        return frozenset({"turn_detection", "input_audio_noise_reduction"})

    def nested(self) -> SessionConfig:
        """Return them in the shape of today."""
        return SessionConfig(
            output_modalities=UNSET
            if self.modalities is UNSET
            else ["audio" if "audio" in self.modalities else "text"],
            max_output_tokens=self.max_response_output_tokens,
            audio=AudioConfig(
                AudioInputConfig(
                    UNSET if self.input_audio_format is UNSET else FORMATS[self.input_audio_format],
                    self.input_audio_transcription,
                    self.turn_detection,
                    self.input_audio_noise_reduction,
                ),
                AudioOutputConfig(
                    UNSET if self.output_audio_format is UNSET else FORMATS[self.output_audio_format],
                    self.voice,
                    self.speed,
                ),
            ),
        )


def take_settings(given: object, path: str) -> tuple[SessionConfig, list[InvalidRequest]]:
    """
    Return the valid settings of *given*, decoded JSON at *path*, whatever their shape, and an error for each invalid value.

    What is said in both shapes counts as it is nested.
    """
    config, errors = take(SessionConfig, given, path)
    if isinstance(given, dict) and not given.keys().isdisjoint(FlatConfig.__struct_fields__):
        flat, wrong = take(FlatConfig, given, path)
        config, errors = _filled(config, flat.nested()), errors + wrong
    return config, errors


def _filled(config: PartialT, rest: PartialT) -> PartialT:
    """Return *config* with the settings of *rest* that it leaves open."""
    changes: dict[str, Any] = {}
    for name in config.__struct_fields__:
        own, other = getattr(config, name), getattr(rest, name)
        if own is UNSET:
            changes[name] = other
        elif isinstance(own, Partial) and isinstance(other, Partial):
            changes[name] = _filled(own, other)
    return msgspec.structs.replace(config, **changes)
