"""
The stand-in's speech to text and text to speech over HTTP: the bridges' contract, with real engines behind it.

Where the reference implementation answers a bad request with 500, this one answers 400. The engines take turns, one
request at a time: two would only wait for each other's sums. A client that leaves frees the engine at once.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web

from jarvis_core.errors import InvalidRequest
from jarvis_core.local import kokoro, whisper
from jarvis_core.local.engine import Engine
from jarvis_core.local.http import AUDIO_BODY_LIMIT_BYTES, RequestQueue, absent, answer, log, read, samples_of
from jarvis_core.local.llama import default_threads

TRANSCRIBE_LIMIT_S = 240.0
"""Two minutes of speech take twenty seconds of one idle core."""
SYNTHESIZE_LIMIT_S = 900.0
"""5,000 characters are six minutes of speech, and take half of that."""
TEXT_BODY_LIMIT_BYTES = 1 << 18


class TranscribeRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/stt/transcribe; the limits are the reference implementation's, in code points."""

    audio_data: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000_000)]
    """Base64 of float32 little-endian mono samples at 16 kHz."""
    language: Annotated[str, msgspec.Meta(max_length=10)] = ""
    """Empty: whichever is spoken."""
    languages: Annotated[list[Annotated[str, msgspec.Meta(max_length=10)]], msgspec.Meta(max_length=100)] = []
    """Codes of the languages to choose from, as the core knows the house; those of the voices where none are named."""
    enhanced_audio_data: str = ""
    """The same recording without its noise, for the words; the language is detected in the original."""


class SynthesizeRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/tts/synthesize."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=5_000)]
    voice: str = ""
    """Empty: the stand-in's own choice."""
    speed: Annotated[float, msgspec.Meta(ge=0.1, le=3)] = 1.0
    """Clamped to the range of the engine."""


_transcribe_decoder = msgspec.json.Decoder(TranscribeRequest)
_synthesize_decoder = msgspec.json.Decoder(SynthesizeRequest)


class Speech:
    """The handlers; *ears* and *mouth* are the directories of the models, None where there is none."""

    def __init__(self, ears: Path | None, mouth: Path | None, threads: int = 0) -> None:
        threads = threads or default_threads()
        self._queue = RequestQueue()
        self._whisper: Engine[whisper.Heard] | None = None
        self._kokoro: Engine[kokoro.Spoken] | None = None
        self._voices: dict[str, str] = {}
        if ears is not None:
            self._whisper = Engine("speech recognition", whisper.__name__, whisper.Heard, ears, threads)
        if mouth is not None:
            self._kokoro = Engine("speech synthesis", kokoro.__name__, kokoro.Spoken, mouth, threads)
            self._voices = kokoro.voices(mouth)

    @property
    def states(self) -> dict[str, bool]:
        """Whether each engine that there is works, by the name under which the bridges' /health shows it."""
        engines = {"whisper_stt": self._whisper, "piper_tts": self._kokoro}
        return {name: not engine.broken for name, engine in engines.items() if engine is not None}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve speech; without an engine a route says so."""
        router.add_post("/api/stt/transcribe", self.transcribe)
        router.add_post("/api/tts/synthesize", self.synthesize)
        router.add_get("/api/tts/voices", self.voices)

    async def transcribe(self, request: web.Request) -> web.Response:
        """Answer with the transcript of a clip."""
        if self._whisper is None:
            raise absent("speech recognition")
        asked = await read(request, _transcribe_decoder, AUDIO_BODY_LIMIT_BYTES)
        recordings = [samples_of(audio) for audio in (asked.audio_data, asked.enhanced_audio_data) if audio]
        listen = whisper.Listen(asked.language, asked.languages or kokoro.languages(self._voices))
        async with self._queue.slot():
            heard, _ = await self._whisper.ask(listen, recordings, timeout_s=TRANSCRIBE_LIMIT_S)
        return answer(
            {
                "text": heard.text,
                "language": heard.language,
                "confidence": heard.confidence,
                "duration_ms": heard.duration_ms,
                "segments": heard.segments,
                "language_confidence": heard.language_confidence,
                "enhanced": len(recordings) > 1,
            }
        )

    async def synthesize(self, request: web.Request) -> web.Response:
        """Answer a text, spoken."""
        if self._kokoro is None:
            raise absent("speech synthesis")
        asked = await read(request, _synthesize_decoder, TEXT_BODY_LIMIT_BYTES)
        voice = asked.voice or kokoro.favourite(self._voices)
        if voice not in self._voices:
            raise InvalidRequest(f"voice: there is no {voice!r}, only {', '.join(self._voices)}")
        async with self._queue.slot():
            spoken, pieces = await self._kokoro.ask(
                kokoro.Say(asked.text, voice, asked.speed), timeout_s=SYNTHESIZE_LIMIT_S
            )
        return answer(
            {
                # Of a long text this is many megabytes.
                "audio_data": (await asyncio.to_thread(base64.b64encode, b"".join(pieces))).decode("ascii"),
                "sample_rate": spoken.sample_rate,
                "duration_ms": spoken.duration_ms,
                "voice": voice,
            }
        )

    async def preload(self) -> None:
        """Have the engines loaded before somebody asks; requests that come meanwhile wait for the one that is being loaded."""
        for engine in (self._whisper, self._kokoro):
            if engine is not None:
                async with self._queue.slot():
                    await engine.warm()
        log("the speech engines are loaded")

    async def voices(self, _: web.Request) -> web.Response:
        """Name the voices."""
        if self._kokoro is None:
            raise absent("speech synthesis")
        return answer({"voices": self._voices})

    async def close(self) -> None:
        """End the engines' processes."""
        for engine in (self._whisper, self._kokoro):
            if engine is not None:
                await engine.close()
