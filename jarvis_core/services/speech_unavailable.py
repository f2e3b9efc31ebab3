"""Stands in where no neighbour transcribes or synthesizes: every call raises an error that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from jarvis_core.errors import Unavailable
from jarvis_core.models import Caller

RETRY_AFTER_S = 60


class NoSpeech:
    """``SpeechToText`` and ``TextToSpeech`` that are not there."""

    async def transcribe(
        self,
        audio: bytes,
        language: str | None,
        caller: Caller,
        *,
        languages: Sequence[str] = (),
        enhanced: bytes | None = None,
    ) -> NoReturn:
        """Raise ``Unavailable``."""
        raise _nobody()

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> NoReturn:
        """Raise ``Unavailable``."""
        raise _nobody()

    async def fetch_voices(self, caller: Caller) -> NoReturn:
        """Raise ``Unavailable``."""
        raise _nobody()


def _nobody() -> Unavailable:
    return Unavailable(
        "No speech service is configured: PYTHON_BRIDGES_URL names one, LOCAL_SPEECH=true starts one.",
        details={"neighbour": "python_bridges"},
        retry_after_s=RETRY_AFTER_S,
    )
