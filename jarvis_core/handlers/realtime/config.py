"""The settings of a session, and the changes that its client may make to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct

from jarvis_core.conversation.detection import Thresholds, Waits
from jarvis_core.conversation.machine import Manner
from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import text_field
from jarvis_core.handlers.events import AlawFormat, AudioFormat, MulawFormat, PcmFormat
from jarvis_core.handlers.realtime.lenient import Partial
from jarvis_core.handlers.realtime.session_config import (
    AudioConfig,
    FormatConfig,
    FormatName,
    TurnDetectionConfig,
    VoiceId,
    take_settings,
)
from jarvis_core.handlers.realtime.wire import (
    AudioBody,
    AudioInputBody,
    AudioOutputBody,
    Eagerness,
    Modality,
    NoiseReduction,
    SemanticVad,
    ServerVad,
    SessionBody,
    SessionType,
    Transcription,
    TurnDetection,
)
from jarvis_core.handlers.tool_wire import own_tools
from jarvis_core.settings import Llm

NAMES = ("instructions", "output_modalities", "max_output_tokens", "temperature", "tools", "tool_choice")
"""Fields of a session that are taken unchanged."""

EITHER_WAY = ("create_response", "interrupt_response")
"""Fields of every kind of turn detection."""
SILENCE_MS: dict[Eagerness, int] = {"low": 1_200, "medium": 800, "auto": 800, "high": 400}
"""By eagerness: the silence that ends a turn where no model tells its end."""
MEDIUM = Waits(0.97, 0.88, 250, 640, 2_000)
WAITS: dict[Eagerness, Waits] = {
    "low": Waits(0.98, 0.92, 500, 1_200, 3_000),
    "medium": MEDIUM,
    "auto": MEDIUM,
    "high": Waits(0.93, 0.80, 200, 320, 1_200),
}
"""
By eagerness: how long to wait by how sure Smart Turn is. Measured with three voices in both languages (``perf listening``):
it is never surer than 0.99. At medium 18 % of the pauses end a turn where 500 ms of silence would end 78 %, and the median end waits 256 ms.
"""

FORMATS: dict[FormatName, type[AudioFormat]] = {
    "audio/pcm": PcmFormat,
    "audio/pcmu": MulawFormat,
    "audio/pcma": AlawFormat,
}

BodyT = TypeVar("BodyT", bound=Struct)


class SessionSettings:
    """The settings of one session as they are now."""

    __slots__ = ("body",)

    def __init__(self, body: SessionBody) -> None:
        self.body = body


def default_config(
    session_id: str, conversation_id: str | None, settings: Llm, modality: Modality, *, clean: bool = False
) -> SessionBody:
    """Return the settings of a session before its client changes any; *clean* is whether noise is suppressed."""
    heard = AudioInputBody(PcmFormat(), Transcription(), noise_reduction=NoiseReduction() if clean else None)
    return SessionBody(
        id=session_id,
        conversation_id=conversation_id,
        instructions=settings.system_prompt,
        output_modalities=[modality],
        max_output_tokens=settings.max_tokens,
        temperature=settings.temperature,
        audio=AudioBody(heard, AudioOutputBody(PcmFormat())),
    )


def configured(body: SessionBody, given: object, path: str) -> tuple[SessionBody, list[InvalidRequest]]:
    """Return *body* with the valid settings of *given*, decoded JSON at *path*, and an error for each invalid value."""
    config, errors = take_settings(given, path)
    if config.output_modalities is not UNSET and len(config.output_modalities) != 1:
        errors.append(InvalidRequest.field(f"{path}.output_modalities", 'must be ["text"] or ["audio"]'))
        config.output_modalities = UNSET
    if config.instructions is not UNSET and config.instructions:
        try:
            text_field(f"{path}.instructions", config.instructions)
        except InvalidRequest as error:
            errors.append(error)
            config.instructions = UNSET
    if config.tools is not UNSET:
        try:
            own_tools(config.tools, None, path)
        except InvalidRequest as error:
            errors.append(error)
            config.tools = UNSET
    audio = body.audio
    if config.audio is not UNSET:
        audio = _configured_audio(body.audio, config.audio, f"{path}.audio", errors)
    body = msgspec.structs.replace(_replaced(body, config, NAMES), audio=audio)
    return body if config.type is UNSET else of_type(body, config.type), errors


def of_type(body: SessionBody, kind: SessionType) -> SessionBody:
    """Return *body* as a session of another type."""
    name: Literal["realtime.session", "realtime.transcription_session"] = (
        "realtime.session" if kind == "realtime" else "realtime.transcription_session"
    )
    return msgspec.structs.replace(body, type=kind, object=name)


def _configured_audio(body: AudioBody, config: AudioConfig, path: str, errors: list[InvalidRequest]) -> AudioBody:
    incoming, outgoing = body.input, body.output
    if config.input is not UNSET:
        if config.input.turn_detection is not UNSET:
            detection = _detection(incoming.turn_detection, config.input.turn_detection)
            incoming = msgspec.structs.replace(incoming, turn_detection=detection)
        if config.input.format is not UNSET:
            audio_format = _format(incoming.format, config.input.format, f"{path}.input.format", errors)
            incoming = msgspec.structs.replace(incoming, format=audio_format)
        if config.input.noise_reduction is None:
            incoming = msgspec.structs.replace(incoming, noise_reduction=None)
        elif config.input.noise_reduction is not UNSET:
            noise = _replaced(incoming.noise_reduction or NoiseReduction(), config.input.noise_reduction, ("type",))
            incoming = msgspec.structs.replace(incoming, noise_reduction=noise)
        incoming = _replaced(incoming, config.input, ("create_response",))
        if config.input.transcription is not UNSET:
            transcription = _replaced(incoming.transcription, config.input.transcription, ("language",))
            incoming = msgspec.structs.replace(incoming, transcription=transcription)
    if config.output is not UNSET:
        if config.output.format is not UNSET:
            audio_format = _format(outgoing.format, config.output.format, f"{path}.output.format", errors)
            outgoing = msgspec.structs.replace(outgoing, format=audio_format)
        outgoing = _replaced(outgoing, config.output, ("speed", "truncate"))
        if config.output.voice is not UNSET:
            voice = config.output.voice.id if isinstance(config.output.voice, VoiceId) else config.output.voice
            outgoing = msgspec.structs.replace(outgoing, voice=voice)
    return AudioBody(incoming, outgoing)


def _format(body: AudioFormat, config: FormatConfig, path: str, errors: list[InvalidRequest]) -> AudioFormat:
    """Return *body* with what *config* says; another type begins with its own rate."""
    kind = type(body) if config.type is None else FORMATS[config.type]
    if kind is PcmFormat:
        rate_hz = config.rate or (body.rate if isinstance(body, PcmFormat) else None)
        return PcmFormat() if rate_hz is None else PcmFormat(rate_hz)
    if config.rate not in (None, kind.rate):
        errors.append(InvalidRequest.field(f"{path}.rate", f"must be {kind.rate} for G.711"))
        return body
    return kind()


def _detection(body: TurnDetection | None, config: TurnDetectionConfig | None) -> TurnDetection | None:
    """Return *body* with the fields of *config* that are set; another type begins with its defaults."""
    if config is None:
        return None
    if config.type == "semantic_vad" or (config.type is UNSET and isinstance(body, SemanticVad)):
        semantic = body if isinstance(body, SemanticVad) else SemanticVad()
        return _replaced(semantic, config, ("eagerness", *EITHER_WAY))
    fixed = body if isinstance(body, ServerVad) else ServerVad()
    return _replaced(
        fixed, config, ("threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms", *EITHER_WAY)
    )


def manner_of(detection: TurnDetection) -> Manner:
    """Return how a conversation is led whose turns of speech are found as *detection* says."""
    if isinstance(detection, SemanticVad):
        return Manner(
            Thresholds(silence_ms=SILENCE_MS[detection.eagerness]),
            interrupt_response=detection.interrupt_response,
            waits=WAITS[detection.eagerness] if detection.fallback is UNSET else None,
        )
    return Manner(
        Thresholds(detection.threshold, detection.silence_duration_ms),
        detection.prefix_padding_ms,
        detection.interrupt_response,
        idle_timeout_ms=detection.idle_timeout_ms,
    )


def _replaced(body: BodyT, config: Partial, names: Iterable[str]) -> BodyT:
    """Return *body* with the fields *names* of *config* that are set."""
    changes = {name: value for name in names if (value := getattr(config, name)) is not UNSET}
    return msgspec.structs.replace(body, **changes)
