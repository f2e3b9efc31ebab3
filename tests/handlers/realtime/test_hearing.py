"""What is held of a microphone's sound, and which early transcript belongs to which turn of speech."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from jarvis_core.codec.messages import SampleEncoding
from jarvis_core.conversation.machine import Action, Kind
from jarvis_core.errors import RequestError
from jarvis_core.handlers.realtime.audio import Recording
from jarvis_core.handlers.realtime.audio_input import Answering, AudioInput
from jarvis_core.handlers.realtime.config import default_config
from jarvis_core.handlers.realtime.hearing import EarlyTranscript, Hearing
from jarvis_core.models import Caller
from jarvis_core.settings import Llm
from jarvis_core.speech.held_audio import HeldAudio
from jarvis_core.speech.transcription import Heard, Tell, Transcriber

CALLER = Caller("zoé")


class Ear(Transcriber):
    """Has room for so much audio, and is never done with hearing it."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.held = HeldAudio(limit_bytes)
        self.buffer_idle_s = 1_000.0

    def expect(self, *, upload: bool = False) -> None:
        """Have nothing ready."""

    async def transcribe_pcm(
        self,
        parts: Sequence[bytes],
        encoding: SampleEncoding,
        sample_rate_hz: int,
        caller: Caller,
        *,
        language: str | None = None,
        tell: Tell | None = None,
        clean: bool = True,
    ) -> Heard:
        """Hear for ever."""
        await asyncio.Event().wait()
        raise AssertionError


def hearing_with(ear: Ear) -> Hearing:
    """Return a microphone with a second of sound."""
    lost: list[RequestError] = []
    hearing = Hearing(ear, lost.append)
    hearing._sound += bytes(32_000)
    return hearing


@pytest.mark.behaviour("transcription.early")
async def test_no_room_for_an_early_transcript() -> None:
    """Where there is no room to hear a pause early, speech goes on and is heard at its end."""
    hearing = hearing_with(Ear(limit_bytes=1))
    hearing.listen_early(0, 1_000, None, CALLER)
    assert hearing.early is None
    assert len(hearing._sound) == 32_000


class Parts:
    """Stands for all that the sound of a session needs beside its microphone, and keeps what it is asked to transcribe."""

    def __init__(self) -> None:
        self.begun: list[tuple[Recording, EarlyTranscript | None]] = []
        self.last_item_id = None

    async def emit(self, _build: object) -> None:
        """Send nothing."""

    async def show(self, _socket: object, _item: object) -> None:
        """Show nothing."""

    def begin(
        self, _item: str, recording: Recording, early: EarlyTranscript | None, *_rest: object, unasked: bool
    ) -> None:
        """Keep what is to be transcribed."""
        self.begun.append((recording, early))


@pytest.mark.behaviour("detection.limit", "transcription.early")
async def test_a_cut_has_no_early_transcript() -> None:
    """What was heard up to a pause is not the words of a turn that is cut elsewhere; of one that ends there it is."""
    parts = cast("Any", Parts())
    hearing = hearing_with(Ear())
    sound = AudioInput(CALLER, parts, parts, parts, hearing, parts, parts, asyncio.Lock())
    config = default_config("sess_1", None, Llm(), "text")
    expected: list[Kind] = []
    answering = Answering(parts.emit, parts.emit, lambda: expected.append(Kind.BEGIN))
    await sound._act(Action(Kind.BEGIN, 0, 0), config, answering)
    for kind in (Kind.CUT, Kind.COMMIT):
        hearing.listen_early(0, 1_000, None, CALLER)
        await sound._act(Action(kind, 0, 500), config, answering)
    (_, cut), (_, ended) = parts.begun
    assert cut is None
    assert ended is not None
    # The model may prepare for an answer while somebody speaks.
    assert expected == [Kind.BEGIN]
    ended.drop()
