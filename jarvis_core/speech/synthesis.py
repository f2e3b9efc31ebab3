"""
Synthesis: text in, audio out.

``Synthesizer`` speaks a text piece by piece. ``Voices`` lists and chooses voices.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from jarvis_core.codec.client import Codec, EncodedPiece, SpeechEncoder
from jarvis_core.codec.messages import OutputFormat, SampleEncoding
from jarvis_core.errors import InvalidRequest, RequestError, Unavailable
from jarvis_core.models import Caller, TextToSpeech, Voice
from jarvis_core.settings import Speech
from jarvis_core.words.languages import LANGUAGE_NAMES, language_code
from jarvis_core.words.markup import speakable
from jarvis_core.words.sentences import split
from jarvis_core.words.spoken_form import are_rules_loaded, load_rules, spoken_form

PIECE_CHARS = 240
"""Sentences are spoken together up to this length, the first alone: each call counts in the bridges' 20 a minute."""
SPEED_RANGE = (0.5, 2.0)
"""Speeds that the neighbours support; the rest is done here by changing the tempo."""
VOICES_FRESH_S = 3_600.0
"""The bridges answer for their voices 50 times an hour."""
VOICES_RETRY_S = 15.0
VOICES_LONGEST_RETRY_S = 120.0
"""The wait after a failure doubles up to this, so that failures do not use up the 50 calls."""


class Language(Struct, frozen=True):
    """A language that can be spoken."""

    code: str
    name: str


class SpeechOptions(Struct, frozen=True):
    """How a text is to be spoken."""

    output_format: OutputFormat | SampleEncoding
    voice: str | None = None
    language: str | None = None
    speed: float = 1.0
    """0.1..3 times the voice's own."""
    sample_rate_hz: int | None = None
    """None leaves the voice's own."""
    strict: bool = True
    """Whether a language that no voice speaks is an error; else the default voice speaks it."""


class Voices:
    """The voices, as the neighbour last listed them."""

    def __init__(self, speaker: TextToSpeech, settings: Speech) -> None:
        self._speaker = speaker
        self.default_language = settings.default_language
        """``auto`` where there is none."""
        self._known: list[Voice] | None = None
        self._asked_at = -VOICES_FRESH_S
        self._patience_s = VOICES_FRESH_S
        """How long to wait after the last answer before asking again."""
        self._asking: asyncio.Task[list[Voice]] | None = None
        self._error: RequestError | None = None

    async def fetch(self, caller: Caller) -> list[Voice]:
        """
        Return the voices: the last known ones, refreshed in the background, or the neighbour's answer where none are
        known.

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
        """Return the languages of the voices, the default language first; raises as ``fetch`` does."""
        codes = {voice.language for voice in await self.fetch(caller) if voice.language}
        default = language_code(self.default_language)
        ordered = sorted(codes, key=lambda code: (code != default, code))
        return [Language(code, LANGUAGE_NAMES.get(code, code)) for code in ordered]

    async def choose(self, options: SpeechOptions, caller: Caller) -> str | None:
        """
        Return the id of the voice to ask for; None leaves the choice to the neighbour.

        Replaces an unknown voice, with which the neighbours fail, by one of *language* or of the default language.
        Raises ``InvalidRequest`` where no voice speaks the language and the options are strict.
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
            code = language_code(self.default_language)
            return next((one.id for one in known if one.language == code), None)
        chosen = next((one.id for one in known if one.language == code), None)
        if chosen is None and options.strict and any(one.language for one in known):
            codes = sorted({one.language for one in known if one.language})
            raise InvalidRequest.field("$.language", f"no voice speaks it; there are {', '.join(codes)}")
        return chosen

    def language_of(self, voice: str | None) -> str | None:
        """Return the code of what *voice* speaks; None where that is not known."""
        return next((one.language for one in self._known or () if one.id == voice and one.language), None)

    async def close(self) -> None:
        """Cancel a request for the voices."""
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


class SpeechStream:
    """Turns sentences, one after another, into one stream of encoded speech."""

    def __init__(
        self,
        encoder: SpeechEncoder,
        speaker: TextToSpeech,
        voices: Voices,
        voice: str | None,
        language: str,
        speed: float,
        caller: Caller,
    ) -> None:
        self._encoder = encoder
        self._speaker = speaker
        self._voices = voices
        self._language = language
        """Of the text, for a voice of which nobody knows what it speaks."""
        self._caller = caller
        self._speed = speed
        self.voice = voice
        """The voice that was asked for, and once the first piece was spoken the voice that the neighbour named."""

    async def say(self, text: str) -> EncodedPiece | None:
        """
        Return *text*, which has no markup, as speech; None where the voice can speak no part of it.

        Raises as ``TextToSpeech`` does.
        """
        words = spoken_form(text, self._voices.language_of(self.voice) or self._language)
        if not words:
            return None
        spoken = await self._speaker.synthesize(words, self.voice, self._speed, self._caller)
        self.voice = spoken.voice or self.voice
        return await self._encoder.feed(spoken)

    async def finish(self) -> EncodedPiece:
        """Return the rest of the stream."""
        return await self._encoder.finish()


class Synthesizer:
    """Opens streams of speech in a voice and format."""

    def __init__(self, codec: Codec, speaker: TextToSpeech, voices: Voices) -> None:
        self._codec = codec
        self._speaker = speaker
        self._voices = voices

    @asynccontextmanager
    async def open_stream(self, options: SpeechOptions, caller: Caller) -> AsyncIterator[SpeechStream]:
        """Lend a stream of speech; raises ``InvalidRequest`` where no voice speaks the language."""
        voice = await self._voices.choose(options, caller)
        low, high = SPEED_RANGE
        speed = min(max(options.speed, low), high)
        async with self._codec.encode(
            options.output_format, output_rate_hz=options.sample_rate_hz, tempo=options.speed / speed
        ) as encoder:
            language = options.language or self._voices.default_language
            spoken = self._voices.language_of(voice) or language
            if not are_rules_loaded(spoken):
                # In a thread: it takes too long for the event loop.
                await asyncio.to_thread(load_rules, spoken)
            yield SpeechStream(encoder, self._speaker, self._voices, voice, language, speed, caller)


def pieces_of(text: str) -> list[str]:
    """
    Cut *text* into pieces for one call each: the first sentence, then as many as fit ``PIECE_CHARS``.

    Leaves out Markdown and whatever else a voice cannot speak; empty where nothing is left.
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
