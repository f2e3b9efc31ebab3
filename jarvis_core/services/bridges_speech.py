"""The Python bridges' speech: text to speech and speech to text, with every trap of theirs turned into an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import UNSET

from jarvis_core import log
from jarvis_core.errors import BadGateway, InvalidRequest
from jarvis_core.models import Caller, Segment, SpokenAudio, Transcript, Voice
from jarvis_core.services.contract import (
    FAILURE_MARK,
    NONSENSE,
    SynthesizeAnswer,
    SynthesizeRequest,
    TranscribeAnswer,
    Voices,
)
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Answer, Refused, Transport
from jarvis_core.settings import Neighbours
from jarvis_core.words.languages import language_code

T = TypeVar("T")

logger = log.get(__name__)

SPEEDS = (0.5, 2.0)
TWICE_LIMIT_BYTES = 8 << 20
"""Of a recording with and without its noise in one request: 48 s; the bridges take little more than one of 117 s."""
SYNTHESIZE = "/api/tts/synthesize"
OTHER_SYNTHESIZE = "/synthesize"
"""Where another deployed version speaks, as a file."""
VOICES_TIMEOUT_S = 5.0
VOICE_LIMIT = 100
"""Characters of their name for who spoke."""
KOKORO_LANGUAGES = {
    "a": "en",
    "b": "en",
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt",
    "z": "zh",
}
"""What the first letter of Kokoro's voices stands for (``ff_siwis``: French, female)."""
FEMALE = ("femme", "woman", "female", "féminin")
MALE = ("homme", "man", "male", "masculin")

_encoder = msgspec.json.Encoder()
_transcript_decoder = msgspec.json.Decoder(TranscribeAnswer)
_speech_decoder = msgspec.json.Decoder(SynthesizeAnswer)
_voices_decoder = msgspec.json.Decoder(Voices)


class BridgesSpeech:
    """``SpeechToText`` and ``TextToSpeech`` behind the bridges' HTTP service."""

    def __init__(self, transport: Transport, settings: Neighbours, mint: TokenMint | None) -> None:
        self._transport = transport
        self._settings = settings
        self._mint = mint
        self._synthesize_path = SYNTHESIZE

    async def transcribe(
        self,
        audio: bytes,
        language: str | None,
        caller: Caller,
        *,
        languages: Sequence[str] = (),
        enhanced: bytes | None = None,
    ) -> Transcript:
        """
        Ask for the words, as ``SpeechToText`` has it.

        ``languages`` and ``enhanced_audio_data`` are ours: the reference ignores them, may find any language, and takes
        the words from the recording as it came.
        """
        # By hand: encoding megabytes of base64 once more would cost more than all the rest.
        tail = b"" if language is None else b',"language":%s' % _encoder.encode(language[:10])
        if languages:
            tail += b',"languages":%s' % _encoder.encode(languages)
        if enhanced is not None and len(audio) + len(enhanced) <= TWICE_LIMIT_BYTES:
            tail += b',"enhanced_audio_data":"%s"' % enhanced
        try:
            answer = await self._transport.call(
                "POST",
                "/api/stt/transcribe",
                body=b'{"audio_data":"%s"%s}' % (audio, tail),
                headers=self._headers(caller),
                timeout_s=self._settings.stt_timeout_s,
            )
        except Refused as exc:
            if language is not None and exc.status == 400 and b"language" in exc.answer:
                raise InvalidRequest.field("$.language", "is none that the speech model knows") from exc
            raise
        heard = self._decode(_transcript_decoder, answer)
        segments = heard.segments or []
        if heard.text.startswith(FAILURE_MARK) and not _was_heard(heard):
            raise self._failed("transcription", heard.text)
        return Transcript(
            text=heard.text.strip(),
            # Some speech models answer with a language's name.
            language=language_code(heard.language or language or "") or "",
            confidence=_share(heard.confidence) or 0.0,
            segments=[
                Segment(round(1_000 * part.start), round(1_000 * part.end), (part.text or "").strip())
                for part in segments
            ],
            language_confidence=_share(heard.language_confidence),
            enhanced=heard.enhanced,
        )

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        """Ask for speech, as ``TextToSpeech`` has it; a voice that they fail with is left out."""
        low, high = SPEEDS
        request = SynthesizeRequest(text, voice or UNSET, UNSET if speed == 1 else min(max(speed, low), high))
        try:
            answer = await self._ask_for_speech(request, caller)
        except Refused as exc:
            if voice is None or exc.status not in (400, 500):
                raise
            logger.warning("speech is asked for without its voice", neighbour=self._transport.name, voice=voice)
            request.voice = UNSET
            answer = await self._ask_for_speech(request, caller)
        if answer.content_type != "application/json":
            if not answer.body:
                raise self._failed("speech", "an empty file")
            return SpokenAudio(answer.body, "container", 0, voice or "")
        spoken = self._decode(_speech_decoder, answer)
        if not spoken.audio_data:
            raise self._failed("speech", "no audio")
        audio = spoken.audio_data.encode("ascii", "replace")
        name = "".join(filter(str.isprintable, (spoken.voice or "")[:VOICE_LIMIT]))
        return SpokenAudio(audio, "base64", int(spoken.sample_rate), name or voice or "")

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        """Return the voices, as ``TextToSpeech`` has it."""
        answer = await self._transport.call(
            "GET", "/api/tts/voices", headers=self._headers(caller), timeout_s=VOICES_TIMEOUT_S
        )
        return [voice_of(name, label) for name, label in self._decode(_voices_decoder, answer).voices.items()]

    async def _ask_for_speech(self, request: SynthesizeRequest, caller: Caller) -> Answer:
        body = _encoder.encode(request)
        headers = self._headers(caller)
        timeout_s = self._settings.tts_timeout_s
        path = self._synthesize_path
        try:
            return await self._transport.call("POST", path, body=body, headers=headers, timeout_s=timeout_s)
        except Refused as exc:
            if exc.status != 404:
                raise
        # One version may have given way to the other while this server ran.
        path = SYNTHESIZE if path == OTHER_SYNTHESIZE else OTHER_SYNTHESIZE
        answer = await self._transport.call("POST", path, body=body, headers=headers, timeout_s=timeout_s)
        self._synthesize_path = path
        return answer

    def _headers(self, caller: Caller) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._mint is not None:
            headers["Authorization"] = "Bearer " + self._mint.token(caller)
        return headers

    def _decode(self, decoder: msgspec.json.Decoder[T], answer: Answer) -> T:
        try:
            return decoder.decode(answer.body)
        except NONSENSE as exc:
            self._transport.health.learn("degraded", "it answered nonsense")
            raise BadGateway(f"{self._transport.name} sent what is not its contract.") from exc

    def _failed(self, what: str, why: str) -> BadGateway:
        self._transport.health.learn("degraded", f"{what}: {why[:200]}")
        return BadGateway(
            f"{self._transport.name} reported that its {what} failed.", details={"neighbour": self._transport.name}
        )


def _share(value: float | None) -> float | None:
    return None if value is None else min(max(value, 0.0), 1.0)


def _was_heard(answer: TranscribeAnswer) -> bool:
    """Whether somebody said what *answer* has: a failure has no confidence, and no segment that takes any time."""
    return bool(answer.confidence and answer.confidence > 0) and any(
        part.end > part.start and part.text for part in answer.segments or ()
    )


def voice_of(name: str, label: str) -> Voice:
    """Return the voice with the id *name*, its language and gender read from the id and the label."""
    language = ""
    gender = ""
    head, _, rest = name.partition("_")
    if len(head) == 2 and head[1:] in ("f", "m") and head[0] in KOKORO_LANGUAGES and rest.islower():
        language, gender = KOKORO_LANGUAGES[head[0]], head[1]
    else:
        code = name.replace("-", "_").partition("_")[0]
        if len(code) == 2 and code.isalpha():
            language = language_code(code) or ""
    words = label.lower().replace("(", " ").replace(")", " ").split()
    if gender == "f" or any(word in words for word in FEMALE):
        return Voice(name, label or name, language, "female")
    if gender == "m" or any(word in words for word in MALE):
        return Voice(name, label or name, language, "male")
    return Voice(name, label or name, language, "unknown")
