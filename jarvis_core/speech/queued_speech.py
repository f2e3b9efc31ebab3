"""The speech service behind queues, in which each user has a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jarvis_core.fair_queue import FairQueue, reserved
from jarvis_core.models import Caller, SpeechToText, SpokenAudio, TextToSpeech, Transcript, Voice

WAITING_LIMIT = 256
RETRY_AFTER_S = 2


class SpeechService(SpeechToText, TextToSpeech, Protocol):
    """Listens and speaks."""


class QueuedSpeech:
    """
    A service that listens to *places* windows of recordings at a time, and speaks as many texts.

    A call waits for its place as long as the service would be waited for, and also raises ``Overloaded`` or ``RateLimited``
    where there is none.
    """

    def __init__(self, service: SpeechService, places: int, *, stt_timeout_s: float, tts_timeout_s: float) -> None:
        self._service = service
        self._stt_timeout_s = stt_timeout_s
        self._tts_timeout_s = tts_timeout_s
        self.listening, self.speaking = (
            FairQueue(places, waiting_limit=WAITING_LIMIT, user_limit=places - reserved(places)) for _ in range(2)
        )

    @property
    def waiting(self) -> dict[str, float]:
        """How many calls wait for a place, by what they are for."""
        return {"listening": self.listening.waiting, "speaking": self.speaking.waiting}

    async def transcribe(
        self,
        audio: bytes,
        language: str | None,
        caller: Caller,
        *,
        languages: Sequence[str] = (),
        enhanced: bytes | None = None,
    ) -> Transcript:
        """Listen, as ``SpeechToText`` has it."""
        async with self.listening.place(self._stt_timeout_s, "the speech model", retry_after_s=RETRY_AFTER_S):
            return await self._service.transcribe(audio, language, caller, languages=languages, enhanced=enhanced)

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        """Speak, as ``TextToSpeech`` has it."""
        async with self.speaking.place(self._tts_timeout_s, "the voice", retry_after_s=RETRY_AFTER_S):
            return await self._service.synthesize(text, voice, speed, caller)

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        """Return the voices, as ``TextToSpeech`` has it."""
        return await self._service.fetch_voices(caller)
