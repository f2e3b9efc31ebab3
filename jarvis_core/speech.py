"""
Speech: audio in, text out; text in, audio out.

``Transcriber`` hears: decoded audio goes window by window through the audio engine, where that is well, and to the
speech model; what nobody said is never asked for, because speech models invent words for silence. ``Synthesizer``
speaks a whole text, piece by piece. ``Voices`` knows who can speak.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Literal

from msgspec import Struct

from jarvis_core import log
from jarvis_core.codec.client import Clip, Codec, EncodedPiece, SpeechEncoder, Window
from jarvis_core.codec.messages import OutputFormat
from jarvis_core.errors import InvalidRequest, Overloaded, RequestError, Unavailable
from jarvis_core.models import Caller, Enhancer, Segment, SpeechToText, TextToSpeech, Voice
from jarvis_core.sentences import speakable, split
from jarvis_core.settings import Speech

logger = log.get(__name__)

CLIP_LIMIT_S = 600.0
"""Ten minutes: the API's limit."""
CLIP_LIMIT_BYTES = 25 << 20
ROOM_STEP_BYTES = 1 << 20
READING_TIMEOUT_S = 60.0
PIECE_CHARS = 240
"""Sentences are spoken together up to this length, the first alone: each call counts in the bridges' 20 a minute."""
SPEED_RANGE = (0.5, 2.0)
"""What the neighbours' own speed may be; the rest is done here."""
VOICES_FRESH_S = 3_600.0
"""The bridges answer the question for their voices 50 times an hour."""
VOICES_RETRY_S = 15.0
VOICES_LONGEST_RETRY_S = 120.0
"""The wait after a failure doubles up to this, so that the 50 times are not used up by failures."""
LANGUAGE_NAMES = {
    "ar": "العربية",
    "cs": "Čeština",
    "da": "Dansk",
    "de": "Deutsch",
    "el": "Ελληνικά",
    "en": "English",
    "es": "Español",
    "fi": "Suomi",
    "fr": "Français",
    "hi": "हिन्दी",
    "hu": "Magyar",
    "it": "Italiano",
    "ja": "日本語",
    "ko": "한국어",
    "nl": "Nederlands",
    "no": "Norsk",
    "pl": "Polski",
    "pt": "Português",
    "ro": "Română",
    "ru": "Русский",
    "sv": "Svenska",
    "tr": "Türkçe",
    "uk": "Українська",
    "vi": "Tiếng Việt",
    "zh": "中文",
}
"""Languages by their ISO 639-1 codes, each in its own words."""
DETECT = "auto"
"""In place of a language: the speech model is to find out."""


class Heard(Struct, frozen=True):
    """What a clip says."""

    text: str
    """Empty where nobody speaks."""
    language: str
    confidence: float
    """0..1, weighed by the length of what was heard; 0 for silence."""
    duration_ms: int
    segments: list[Segment]
    enhanced: bool
    """Whether all that was transcribed had passed through the audio engine."""


class Language(Struct, frozen=True):
    """A language that can be spoken."""

    code: str
    name: str


class Transcriber:
    """Hears; holds at most ``buffer_limit_bytes`` of audio at a time."""

    def __init__(self, codec: Codec, listener: SpeechToText, enhancer: Enhancer | None, settings: Speech) -> None:
        self._codec = codec
        self._listener = listener
        self._enhancer = enhancer
        self._settings = settings
        self._held_bytes = 0
        self._reading: dict[str, tuple[asyncio.Lock, int]] = {}
        """By user: whose upload is being read, and how many of theirs are or wait."""

    @contextmanager
    def room(self, length_bytes: int) -> Iterator[None]:
        """Reserve room for so many bytes of audio that are about to arrive; raises ``Overloaded``."""
        if self._held_bytes + length_bytes > self._settings.buffer_limit_bytes:
            raise Overloaded("Too much audio is being worked on; try again in a moment.", retry_after_s=2)
        self._held_bytes += length_bytes
        try:
            yield
        finally:
            self._held_bytes -= length_bytes

    @contextmanager
    def growing_room(self) -> Iterator[Callable[[int], None]]:
        """
        Lend what reserves room as audio arrives: it is told how many bytes there are, and raises ``Overloaded``.

        Whoever only says that much will come takes nothing from the others.
        """
        reserved = 0
        with ExitStack() as rooms:

            def grow(length_bytes: int) -> None:
                nonlocal reserved
                if length_bytes > reserved:
                    step = max(length_bytes - reserved, min(ROOM_STEP_BYTES, reserved))
                    rooms.enter_context(self.room(step))
                    reserved += step

            yield grow

    def expect(self, *, upload: bool = False) -> None:
        """Have the codec ready: a file is on its way, or else samples."""
        if upload:
            self._codec.expect_upload()
        else:
            self._codec.start()

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
        Return what the body of a request says.

        Raises ``InvalidJson``, ``InvalidRequest``, ``TooLarge`` or ``UnsupportedMediaType`` for a body that is not
        audio, and what ``SpeechToText`` raises.
        """
        async with self._turn_of(caller):
            clip = await self._codec.decode_upload(
                parts,
                content_type,
                sample_rate_hz=sample_rate_hz,
                format_hint=format_hint,
                limit_s=CLIP_LIMIT_S,
                limit_bytes=CLIP_LIMIT_BYTES,
            )
        return await self._transcribe(clip, clip.language or language, caller)

    @asynccontextmanager
    async def _turn_of(self, caller: Caller) -> AsyncIterator[None]:
        """
        Wait until no other upload of *caller* is being read: who sends many has them read one after another.

        Raises ``Overloaded`` after ``READING_TIMEOUT_S``.
        """
        lock, waiting = self._reading.get(caller.user_id, (asyncio.Lock(), 0))
        self._reading[caller.user_id] = lock, waiting + 1
        try:
            try:
                async with asyncio.timeout(READING_TIMEOUT_S):
                    await lock.acquire()
            except TimeoutError as exc:
                raise Overloaded("Your other recordings are still being read.", retry_after_s=5) from exc
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, waiting = self._reading[caller.user_id]
            if waiting > 1:
                self._reading[caller.user_id] = lock, waiting - 1
            else:
                del self._reading[caller.user_id]

    async def transcribe_pcm(
        self,
        parts: Sequence[bytes],
        encoding: Literal["pcm16", "f32"],
        sample_rate_hz: int,
        caller: Caller,
        *,
        language: str | None = None,
    ) -> Heard:
        """Return what samples say; raises as ``transcribe_upload`` does."""
        clip = await self._codec.decode_pcm(parts, encoding, sample_rate_hz, limit_s=CLIP_LIMIT_S)
        return await self._transcribe(clip, language, caller)

    async def _transcribe(self, clip: Clip, language: str | None, caller: Caller) -> Heard:
        # A small file may be a long clip.
        with self.room(sum(len(window.audio) for window in clip.windows)):
            return await self._hear(clip, language, caller)

    async def _hear(self, clip: Clip, language: str | None, caller: Caller) -> Heard:
        asked = language_code(language or self._settings.default_language)
        texts: list[str] = []
        segments: list[Segment] = []
        spoken_ms = 0
        weighed = 0.0
        heard_language = "" if asked is None else asked
        enhanced = True
        for window in clip.windows:
            if not window.audio:
                continue
            audio = await self._enhance(window)
            enhanced = enhanced and audio is not None
            transcript = await self._listener.transcribe(audio or window.audio, asked, caller)
            if transcript.text:
                texts.append(transcript.text)
            segments += [
                Segment(
                    min(window.start_ms + max(part.start_ms, 0), clip.duration_ms),
                    min(window.start_ms + max(part.end_ms, 0), clip.duration_ms),
                    part.text,
                )
                for part in transcript.segments
            ]
            if not spoken_ms:
                heard_language = transcript.language or heard_language
            spoken_ms += window.duration_ms
            weighed += transcript.confidence * window.duration_ms
        return Heard(
            text=" ".join(texts).replace("\0", ""),
            language=heard_language,
            confidence=round(weighed / spoken_ms, 4) if spoken_ms else 0.0,
            duration_ms=clip.duration_ms,
            segments=segments,
            enhanced=enhanced and spoken_ms > 0,
        )

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
            # Nothing that is only for the better makes a call fail.
            logger.info("an enhanced clip was not checked", error=exc.message)
            return None
        if complaint:
            self._enhancer.reject(complaint)
            return None
        return checked


class SpeechOptions(Struct, frozen=True):
    """How a text is to be spoken."""

    output_format: OutputFormat
    voice: str | None = None
    language: str | None = None
    speed: float = 1.0
    """0.1..3 times the voice's own."""
    sample_rate_hz: int | None = None
    """None leaves the voice's own."""
    strict: bool = True
    """Whether a language that no voice speaks is an error; else the default voice speaks it."""


class Voices:
    """Who can speak, as the neighbour last said."""

    def __init__(self, speaker: TextToSpeech, settings: Speech) -> None:
        self._speaker = speaker
        self._default_language = settings.default_language
        self._known: list[Voice] | None = None
        self._asked_at = -VOICES_FRESH_S
        self._patience_s = VOICES_FRESH_S
        """How long the last answer holds."""
        self._asking: asyncio.Task[list[Voice]] | None = None
        self._error: RequestError | None = None

    async def fetch(self, caller: Caller) -> list[Voice]:
        """
        Return the voices: from memory, else from the neighbour, else the last known ones.

        Raises what ``TextToSpeech`` raises while they were never known.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._asked_at + self._patience_s and self._asking is None:
            self._asking = loop.create_task(self._ask(caller))
        if self._asking is not None and self._known is None:
            await asyncio.wait([self._asking])
        if self._known is not None:
            return self._known
        if self._error is None:
            raise Unavailable("The voices are not known yet.", retry_after_s=5)
        raise self._error.bare()

    async def languages(self, caller: Caller) -> list[Language]:
        """Return what can be spoken, the default language first; raises as ``fetch`` does."""
        codes = {voice.language for voice in await self.fetch(caller) if voice.language}
        default = language_code(self._default_language)
        ordered = sorted(codes, key=lambda code: (code != default, code))
        return [Language(code, LANGUAGE_NAMES.get(code, code)) for code in ordered]

    async def choose(self, options: SpeechOptions, caller: Caller) -> str | None:
        """
        Return the id of the voice to ask for; None leaves it to the neighbour.

        A voice that there is not gives way to one of *language*, or of the default language: the neighbours fail with
        it. Raises ``InvalidRequest`` where no voice speaks the language, if that was to be strict.
        """
        voice, language = options.voice, options.language
        try:
            known = await self.fetch(caller)
        except RequestError:
            return voice
        if voice is not None:
            for one in known:
                if one.id.lower() == voice.lower():
                    return one.id
        code = language_code(language) if language is not None else None
        if code is None:
            code = language_code(self._default_language)
            return next((one.id for one in known if one.language == code), None)
        chosen = next((one.id for one in known if one.language == code), None)
        if chosen is None and options.strict and any(one.language for one in known):
            codes = sorted({one.language for one in known if one.language})
            raise InvalidRequest.field("$.language", f"no voice speaks it; there are {', '.join(codes)}")
        return chosen

    async def close(self) -> None:
        """Give up a question that is still being asked."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self, caller: Caller) -> list[Voice]:
        try:
            self._known = await self._speaker.fetch_voices(caller)
            self._error, self._patience_s = None, VOICES_FRESH_S
        except RequestError as exc:
            self._patience_s = VOICES_RETRY_S if self._error is None else self._patience_s * 2
            self._patience_s = min(self._patience_s, VOICES_LONGEST_RETRY_S)
            self._error = exc.bare()
        finally:
            self._asked_at = asyncio.get_running_loop().time()
            self._asking = None
        return self._known or []


class Utterer:
    """One stream of speech: sentences go in one after another, bytes to send come out."""

    def __init__(
        self, encoder: SpeechEncoder, speaker: TextToSpeech, voice: str | None, speed: float, caller: Caller
    ) -> None:
        self._encoder = encoder
        self._speaker = speaker
        self._caller = caller
        self._speed = speed
        self.voice = voice
        """Who speaks, once the first piece was said; None where the neighbour does not tell."""

    async def say(self, text: str) -> EncodedPiece:
        """Return *text* (1..5,000 characters) as speech; raises what ``TextToSpeech`` raises."""
        spoken = await self._speaker.synthesize(text, self.voice, self._speed, self._caller)
        self.voice = spoken.voice or self.voice
        return await self._encoder.feed(spoken)

    async def finish(self) -> EncodedPiece:
        """Return the rest of the stream."""
        return await self._encoder.finish()


class Synthesizer:
    """Speaks."""

    def __init__(self, codec: Codec, speaker: TextToSpeech, voices: Voices) -> None:
        self._codec = codec
        self._speaker = speaker
        self._voices = voices

    @asynccontextmanager
    async def utterer(self, options: SpeechOptions, caller: Caller) -> AsyncIterator[Utterer]:
        """Lend what speaks one stream; raises ``InvalidRequest`` where no voice speaks the language."""
        voice = await self._voices.choose(options, caller)
        low, high = SPEED_RANGE
        speed = min(max(options.speed, low), high)
        async with self._codec.encode(
            options.output_format, output_rate_hz=options.sample_rate_hz, tempo=options.speed / speed
        ) as encoder:
            yield Utterer(encoder, self._speaker, voice, speed, caller)


def pieces_of(text: str) -> list[str]:
    """
    Return what is spoken in one call each: the first sentence, then as many as fit ``PIECE_CHARS``.

    Markdown and what else a voice cannot say is left out; empty where nothing is left.
    """
    pieces: list[str] = []
    for sentence in split(text, PIECE_CHARS):
        words = speakable(sentence)
        if not words:
            continue
        if len(pieces) > 1 and len(pieces[-1]) + 1 + len(words) <= PIECE_CHARS:
            pieces[-1] = f"{pieces[-1]} {words}"
        else:
            pieces.append(words)
    return pieces


def language_code(language: str) -> str | None:
    """Return the ISO 639 code in front of ``fr-FR`` or ``fr_FR``; None where it is to be found out."""
    code = language.replace("_", "-").partition("-")[0].lower()
    return None if code == DETECT else code
