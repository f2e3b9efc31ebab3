"""What a session is set to, and what its client may change."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import text_field
from jarvis_core.handlers.events import PcmFormat
from jarvis_core.handlers.realtime.wire import (
    AudioBody,
    AudioConfig,
    AudioInputBody,
    AudioInputConfig,
    AudioOutputBody,
    AudioOutputConfig,
    SessionBody,
    SessionConfig,
    Transcription,
    VoiceId,
)
from jarvis_core.settings import Llm


def default_config(session_id: str, conversation_id: str | None, settings: Llm) -> SessionBody:
    """Return what a session is set to whose client has changed nothing."""
    return SessionBody(
        id=session_id,
        conversation_id=conversation_id,
        instructions=settings.system_prompt,
        output_modalities=["text"],
        max_output_tokens=settings.max_tokens,
        temperature=settings.temperature,
        audio=AudioBody(AudioInputBody(PcmFormat(), Transcription()), AudioOutputBody(PcmFormat())),
    )


def configured(body: SessionBody, config: SessionConfig, path: str) -> SessionBody:
    """Return *body* with what *config* sets; raises ``InvalidRequest`` for what is not served."""
    if config.output_modalities is not UNSET and len(config.output_modalities) != 1:
        raise InvalidRequest.field(f"{path}.output_modalities", 'must be ["text"] or ["audio"]')
    if config.instructions is not UNSET and config.instructions:
        text_field(f"{path}.instructions", config.instructions)
    names = ("instructions", "output_modalities", "max_output_tokens", "temperature")
    changes = {name: value for name in names if (value := getattr(config, name)) is not UNSET}
    if config.audio is not UNSET:
        changes["audio"] = _configured_audio(body.audio, config.audio, f"{path}.audio")
    return msgspec.structs.replace(body, **changes)


def _configured_audio(body: AudioBody, config: AudioConfig, path: str) -> AudioBody:
    return AudioBody(
        body.input if config.input is UNSET else _configured_input(body.input, config.input, f"{path}.input"),
        body.output if config.output is UNSET else _configured_output(body.output, config.output),
    )


def _configured_input(body: AudioInputBody, config: AudioInputConfig, path: str) -> AudioInputBody:
    if config.turn_detection is not UNSET and config.turn_detection is not None:
        raise InvalidRequest.field(f"{path}.turn_detection", "only null is served: commit the buffer at a turn's end")
    changes = {name: value for name in ("format", "create_response") if (value := getattr(config, name)) is not UNSET}
    if config.transcription is not UNSET:
        changes["transcription"] = config.transcription or Transcription()
    return msgspec.structs.replace(body, **changes)


def _configured_output(body: AudioOutputBody, config: AudioOutputConfig) -> AudioOutputBody:
    changes = {name: value for name in ("format", "speed") if (value := getattr(config, name)) is not UNSET}
    if config.voice is not UNSET:
        changes["voice"] = config.voice.id if isinstance(config.voice, VoiceId) else config.voice
    return msgspec.structs.replace(body, **changes)
