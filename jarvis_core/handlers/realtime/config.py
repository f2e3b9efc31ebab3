"""The settings of a session, and the changes that its client may make to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import UNSET, Struct

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import text_field
from jarvis_core.handlers.events import PcmFormat
from jarvis_core.handlers.realtime.lenient import Partial, take
from jarvis_core.handlers.realtime.wire import (
    AudioBody,
    AudioConfig,
    AudioInputBody,
    AudioOutputBody,
    SessionBody,
    SessionConfig,
    Transcription,
    VoiceId,
)
from jarvis_core.settings import Llm

NAMES = ("instructions", "output_modalities", "max_output_tokens", "temperature")
"""Fields of a session that are taken unchanged."""

BodyT = TypeVar("BodyT", bound=Struct)


def default_config(session_id: str, conversation_id: str | None, settings: Llm) -> SessionBody:
    """Return the settings of a session before its client changes any."""
    return SessionBody(
        id=session_id,
        conversation_id=conversation_id,
        instructions=settings.system_prompt,
        output_modalities=["text"],
        max_output_tokens=settings.max_tokens,
        temperature=settings.temperature,
        audio=AudioBody(AudioInputBody(PcmFormat(), Transcription()), AudioOutputBody(PcmFormat())),
    )


def configured(body: SessionBody, given: object, path: str) -> tuple[SessionBody, list[InvalidRequest]]:
    """Return *body* with the valid settings of *given*, decoded JSON at *path*, and an error for each invalid value."""
    config, errors = take(SessionConfig, given, path)
    if config.output_modalities is not UNSET and len(config.output_modalities) != 1:
        errors.append(InvalidRequest.field(f"{path}.output_modalities", 'must be ["text"] or ["audio"]'))
        config.output_modalities = UNSET
    if config.instructions is not UNSET and config.instructions:
        try:
            text_field(f"{path}.instructions", config.instructions)
        except InvalidRequest as error:
            errors.append(error)
            config.instructions = UNSET
    audio = body.audio
    if config.audio is not UNSET:
        audio = _configured_audio(body.audio, config.audio, f"{path}.audio", errors)
    return msgspec.structs.replace(_replaced(body, config, NAMES), audio=audio), errors


def _configured_audio(body: AudioBody, config: AudioConfig, path: str, errors: list[InvalidRequest]) -> AudioBody:
    incoming, outgoing = body.input, body.output
    if config.input is not UNSET:
        if config.input.turn_detection is not UNSET and config.input.turn_detection is not None:
            rule = "only null is served: commit the buffer at a turn's end"
            errors.append(InvalidRequest.field(f"{path}.input.turn_detection", rule))
        incoming = _replaced(incoming, config.input, ("format", "create_response"))
        if config.input.transcription is not UNSET:
            transcription = _replaced(incoming.transcription, config.input.transcription, ("language",))
            incoming = msgspec.structs.replace(incoming, transcription=transcription)
    if config.output is not UNSET:
        outgoing = _replaced(outgoing, config.output, ("format", "speed"))
        if config.output.voice is not UNSET:
            voice = config.output.voice.id if isinstance(config.output.voice, VoiceId) else config.output.voice
            outgoing = msgspec.structs.replace(outgoing, voice=voice)
    return AudioBody(incoming, outgoing)


def _replaced(body: BodyT, config: Partial, names: Iterable[str]) -> BodyT:
    """Return *body* with the fields *names* of *config* that are set."""
    changes = {name: value for name in names if (value := getattr(config, name)) is not UNSET}
    return msgspec.structs.replace(body, **changes)
