"""
Transcription: audio in, text out.

Decoded audio goes window by window through the audio engine, where that is healthy, and to the speech model. Silent
windows are never sent, because speech models invent words for silence.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct

from jarvis_core import cancellation, log
from jarvis_core.codec.client import Clip, Codec, Microphone, Window
from jarvis_core.codec.messages import SampleEncoding
from jarvis_core.errors import Overloaded, RequestError
from jarvis_core.models import Caller, Enhancer, Segment, SpeechToText, Transcript
from jarvis_core.settings import Speech
from jarvis_core.shares import current_user
from jarvis_core.speech.held_audio import HeldAudio
from jarvis_core.speech.synthesis import Voices
from jarvis_core.speech.turn_ends import TurnEnds
from jarvis_core.words.languages import language_code

logger = log.get(__name__)

CLIP_LIMIT_S = 600.0
"""Ten minutes: the API's limit."""
CLIP_LIMIT_BYTES = 25 << 20
CLIP_RATE_HZ = 16_000
READING_TIMEOUT_S = 60.0


Tell = Callable[[str], Awaitable[None]]
"""Takes words as soon as they are known; those of one recording, put together, are its transcript."""


class Heard(Struct, frozen=True):
    """The transcript of a clip."""

    text: str
    """Empty where nobody speaks in the clip."""
    language: str
    confidence: float
    """0..1, weighted by the length of the windows; 0 for silence."""
    duration_ms: int
    segments: list[Segment]
    enhanced: bool
    """Whether all that was transcribed had passed through the audio engine."""
    language_confidence: float | None = None
    """
    0..1: how certain *language* is, among the configured languages; None where the request named it, or the model gives
    no confidence.
    """


class Transcriber:
    """Transcribes audio; at most ``buffer_limit_bytes`` of it are ``held`` at a time."""

    def __init__(
        self,
        codec: Codec,
        listener: SpeechToText,
        enhancer: Enhancer | None,
        voices: Voices,
        settings: Speech,
        turn_ends: TurnEnds,
    ) -> None:
        self._codec = codec
        self._listener = listener
        self._enhancer = enhancer
        self._voices = voices
        self._settings = settings
        self._languages = list(dict.fromkeys(code for code in map(language_code, settings.languages) if code))
        """Codes of the configured languages."""
        self.held = HeldAudio(settings.buffer_limit_bytes)
        self.turn_ends = turn_ends
        self.buffer_idle_s = settings.buffer_idle_s
        """How long a client may add nothing to the audio that it has begun to send."""
        self._reading: dict[str, tuple[asyncio.Lock, int]] = {}
        """By user: the lock that an upload holds while it is read, and how many uploads hold it or wait."""

    @property
    def suppresses_noise(self) -> bool:
        """Whether there is an audio engine."""
        return self._enhancer is not None

    def expect(self, *, upload: bool = False) -> None:
        """Start the codec, for an upload or else for samples, while the audio arrives."""
        if upload:
            self._codec.expect_upload()
        else:
            self._codec.start()

    def listen(self, encoding: SampleEncoding, sample_rate_hz: int) -> Microphone:
        """Return a microphone to listen to; close it."""
        return self._codec.listen(encoding, sample_rate_hz)

    async def transcribe_upload(
        self,
        parts: Sequence[bytes],
        content_type: str,
        caller: Caller,
        *,
        language: str | None = None,
        sample_rate_hz: int | None = None,
        format_hint: str | None = None,
    ) -> Heard:
        """
        Return the transcript of a request's body.

        Raises ``InvalidJson``, ``InvalidRequest``, ``TooLarge`` or ``UnsupportedMediaType`` for a body that is not
        audio, and as ``SpeechToText`` does.
        """
        clip = await self.read_upload(
            parts, content_type, caller, sample_rate_hz=sample_rate_hz, format_hint=format_hint
        )
        return await self.transcribe_clip(clip, clip.language or language, caller)

    async def read_upload(
        self,
        parts: Sequence[bytes],
        content_type: str,
        caller: Caller,
        *,
        sample_rate_hz: int | None = None,
        format_hint: str | None = None,
        fields: tuple[str, ...] = (),
    ) -> Clip:
        """
        Return the clip in a request's body, with those of its form's other *fields* that there are; for ``transcribe_clip``.

        Raises as ``transcribe_upload`` does.
        """
        async with self._reading_slot(caller):
            return await self._codec.decode_upload(
                parts,
                content_type,
                sample_rate_hz=sample_rate_hz,
                format_hint=format_hint,
                limit_s=CLIP_LIMIT_S,
                limit_bytes=CLIP_LIMIT_BYTES,
                fields=fields,
            )

    @asynccontextmanager
    async def _reading_slot(self, caller: Caller) -> AsyncIterator[None]:
        """
        Wait until no other upload of *caller* is being read: a caller's uploads are read one after another.

        Raises ``Overloaded`` after ``READING_TIMEOUT_S``.
        """
        user = current_user.get() or caller.user_id
        lock, waiting = self._reading.get(user, (asyncio.Lock(), 0))
        self._reading[user] = lock, waiting + 1
        try:
            try:
                async with cancellation.timeout(READING_TIMEOUT_S):
                    await lock.acquire()
            except TimeoutError as exc:
                raise Overloaded("Your other recordings are still being read.", retry_after_s=5) from exc
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, waiting = self._reading[user]
            if waiting > 1:
                self._reading[user] = lock, waiting - 1
            else:
                del self._reading[user]

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
        """
        Return the transcript of samples, *tell* its words window by window; raises as ``transcribe_upload`` does.

        Their noise is suppressed where they are to be *clean* and there is an audio engine. Whoever holds the samples holds ``clip_bytes`` for the clip that is made of them too: what was let in is heard.
        """
        clip = await self._codec.decode_pcm(parts, encoding, sample_rate_hz, limit_s=CLIP_LIMIT_S)
        return await self._transcribe_clip(clip, language, caller, tell, clean=clean)

    async def transcribe_clip(
        self, clip: Clip, language: str | None, caller: Caller, tell: Tell | None = None
    ) -> Heard:
        """
        Return the transcript of what ``read_upload`` has read, and *tell* its words window by window.

        Raises as ``SpeechToText`` does.
        """
        # A small file may be a long clip.
        with self.held.reserve(sum(len(window.audio) for window in clip.windows)):
            return await self._transcribe_clip(clip, language, caller, tell)

    async def _transcribe_clip(
        self, clip: Clip, language: str | None, caller: Caller, tell: Tell | None = None, *, clean: bool = True
    ) -> Heard:
        asked = language_code(language or self._settings.default_language)
        languages = self._languages
        if asked is None and len(languages) == 1:
            asked = languages[0]
        elif asked is None and not languages and any(window.audio for window in clip.windows):
            languages = await self._spoken_languages(caller)
        found: Transcript | None = None
        texts: list[str] = []
        segments: list[Segment] = []
        spoken_ms = 0
        weighed = 0.0
        heard_language = "" if asked is None else asked
        enhanced = True
        for window in clip.windows:
            if not window.audio:
                continue
            transcript = await self._transcribe_window(window, asked, languages, caller, clean=clean)
            enhanced = enhanced and transcript.enhanced
            text = transcript.text.replace("\0", "").strip()
            if text:
                if tell is not None:
                    await tell(f" {text}" if texts else text)
                texts.append(text)
                if asked is None:
                    # The rest of a recording is in the language of its first words.
                    found, asked = transcript, language_code(transcript.language) or None
            segments += _within(window, transcript.segments)
            if not spoken_ms or transcript is found:
                heard_language = transcript.language or heard_language
            spoken_ms += window.duration_ms
            weighed += transcript.confidence * window.duration_ms
        return Heard(
            text=" ".join(texts),
            language=heard_language,
            confidence=round(weighed / spoken_ms, 4) if spoken_ms else 0.0,
            duration_ms=clip.duration_ms,
            segments=segments,
            enhanced=enhanced and spoken_ms > 0,
            language_confidence=None if found is None else found.language_confidence,
        )

    async def _transcribe_window(
        self, window: Window, language: str | None, languages: list[str], caller: Caller, *, clean: bool
    ) -> Transcript:
        """
        Return the transcript of a window, in *language* or else in one of *languages*, where there are any.

        The language is detected in the original recording: noise suppression also removes some of the sounds of speech.
        """
        audio = await self._enhance(window) if clean else None
        if language is None:
            transcript = await self._listener.transcribe(
                window.audio, None, caller, languages=languages, enhanced=audio
            )
            code = language_code(transcript.language)
            # Some models answer "french" and not "fr": such a name is not compared.
            if not languages or not code or len(code) > 3 or code in languages or not transcript.text:
                return transcript
            # A transcript in a language that is not spoken in this house is a bad translation at best.
            logger.info("a foreign language was heard", language=code, house=languages)
            default = language_code(self._settings.default_language)
            language = default if default in languages else languages[0]
        transcript = await self._listener.transcribe(audio or window.audio, language, caller, languages=self._languages)
        return msgspec.structs.replace(transcript, enhanced=audio is not None)

    async def _spoken_languages(self, caller: Caller) -> list[str]:
        """Return the languages of the voices; empty where they are not known."""
        try:
            return [language.code for language in await self._voices.languages(caller)]
        except RequestError:
            return []

    async def _enhance(self, window: Window) -> bytes | None:
        """Return a window's samples without their noise; None where the engine is absent, late or wrong."""
        if self._enhancer is None:
            return None
        answer = await self._enhancer.enhance(window.audio, window.duration_ms / 1_000)
        if answer is None:
            return None
        # Base64 tells the number of samples: 4 bytes each, 4 characters for 3 bytes.
        samples = (len(window.audio) // 4 * 3 - window.audio[-2:].count(b"=")) // 4
        try:
            checked, complaint = await self._codec.check_enhanced(answer, samples)
        except RequestError as exc:
            # Enhancement is optional: its failure must not fail the transcription.
            logger.info("an enhanced clip was not checked", error=exc.message)
            return None
        if complaint:
            self._enhancer.reject(complaint)
            return None
        return checked


def clip_bytes(duration_s: float) -> int:
    """Return how much a clip of *duration_s* seconds takes: float32 at 16 kHz in base64."""
    return math.ceil(duration_s * CLIP_RATE_HZ * 4 * 4 / 3)


def _within(window: Window, segments: list[Segment]) -> list[Segment]:
    """Return *segments* in the clip's time, cut to the window, whatever times the neighbour claims."""
    bounded = []
    for part in segments:
        start_ms = min(max(part.start_ms, 0), window.duration_ms)
        end_ms = min(max(part.end_ms, start_ms), window.duration_ms)
        bounded.append(Segment(window.start_ms + start_ms, window.start_ms + end_ms, part.text))
    return bounded
