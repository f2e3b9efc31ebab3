"""
The Python bridges: language model, speech to text, text to speech and embeddings behind one HTTP service.

What the reference implementation does, its failures that arrive as 200 and its 500 for bad input included. ``shape``
makes it stream as the core asks; ``other_version`` makes it the deployment without auth that streams its speech.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jwt
import msgspec
from aiohttp import web

from .command import make_parser, read_mode, serve
from .content import Heard, embed, encode_base64, hear, last_words, mp3, split_words, tone, wav
from .lines import LineScript
from .server import STREAM, FakeServer, Refusal, json_response
from .streams import StreamMode

CLAIMS = ("sub", "user_id", "username", "iat", "exp", "permissions")
INPUT_RATE_HZ = 16_000
SILENCE_RMS = 1e-3
"""Below this the speech model invents words."""
INVENTED_WORDS = {"fr": "Sous-titres réalisés par la communauté d'Amara.org", "en": "Thanks for watching!"}
FRENCH_VOICES = {
    "fr_FR-siwis-medium": "Siwis (femme)",
    "fr_FR-upmc-medium": "UPMC (mixte)",
    "fr_FR-tom-medium": "Tom (homme)",
}

MINUTE_LIMITS = {
    "/api/llm/generate": 10,
    "/api/stt/transcribe": 20,
    "/api/tts/synthesize": 20,
    "/api/embeddings/embed": 30,
    "/api/embeddings/embed-batch": 30,
}
"""Calls a minute and user."""
HOUR_LIMIT = 50
DAY_LIMIT = 200
"""Of everything else, for each IP address and path."""


class BridgesMode(StreamMode, frozen=True, kw_only=True):
    """How the bridges behave: by default as the reference in good health, without its limits a minute."""

    shape: Literal["json", "ndjson", "sse"] = "json"
    """The answer to ``"stream": true``; "json" is the reference, which answers at once and whole."""
    error_200: bool = False
    """Every model fails in the reference's way: a 200 with ``Error: …`` and zero counts, or with no audio."""
    enforce_limits: bool = False
    """Count the calls a minute and user."""
    enforce_health_limit: bool = True
    """Count /health and /ready: 50 an hour and 200 a day, then 429."""
    thinking: str | None = None
    """Sent in a field of that name, which is no part of the answer, as Ollama does."""
    finish_reason: str | None = None
    """Of the model's answer; the reference has none."""
    error_object: bool = False
    """``error_after`` tells of the error in an object and not in a text."""
    services_down: tuple[Literal["ollama_llm", "whisper_stt", "piper_tts", "embeddings"], ...] = ()
    """Shown as ❌ in /health, which then says degraded (still 200)."""
    health_error: bool = False
    """/health answers 500."""
    models: tuple[str, ...] = ("mistral:latest", "llama3.2:3b")
    """The first one answers."""
    transcript: str | None = None
    """What is heard; None tells the length of the clip. On silence words are invented anyway."""
    confidence: float = 0.93
    """Of a transcript."""
    detects: str = "fr"
    """The language that is heard where none is named, whatever languages the house has."""
    segment_end_s: float | None = None
    """Where the only segment of a transcript ends; None is the clip's end."""
    segments: Literal["heard", "null", "of_failure"] = "heard"
    """Of a transcript: as they should be; null; one in which a failure (``error_200``) is told once more."""
    sample_rate_hz: int = 22_050
    """Of the speech."""
    speech_s_per_char: float = 0.05
    """How long the speech is at speed 1."""
    voices: dict[str, str] = msgspec.field(default_factory=lambda: FRENCH_VOICES)
    """Id → label; the first one speaks where none is named."""
    speech: Literal["tone", "odd", "nan", "not_base64", "wav", "mp3", "pcm16", "lines"] = "tone"
    """
    The speech's samples: "odd" is not a multiple of 4 bytes, "wav" and "mp3" are files, "pcm16" has 16-bit samples in the place
    of float32, "lines" is base64 on many lines.
    """
    hold_text: str | None = None
    """Speech of a text that has this in it waits for the gate."""
    turn_end: Literal["absent", "heard", "error_200", "nan", "out_of_range", "text", "broken", "not_made"] = "absent"
    """
    Of /api/turn/end: the reference has no such path; a probability; or with status 200 a failure in the reference's words, NaN, 1.5,
    a text; 500; or 501, as the local stand-in without the model.
    """
    end_probabilities: tuple[float, ...] = (0.99,)
    """What is answered, one after another, the last one again and again; to nothing but silence always 0.5."""
    end_delay_s: float = 0.0
    """How long it thinks."""
    dimension: int = 384
    """Of the vectors."""
    vectors: Literal["words", "zero", "nan", "short", "missing"] = "words"
    """Good ones, or: all zeros, all NaN, of fewer bytes than ``dimension`` says, or one fewer than there are texts."""
    other_version: bool = False
    """No auth, no /health, and /synthesize streams bytes labelled audio/mpeg."""
    other_container: Literal["wav", "mp3"] = "wav"
    """What those bytes really are."""


class Limits:
    """Counts calls in windows that slide."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], deque[float]] = {}

    def take(self, path: str, caller: str, *windows: tuple[float, int]) -> None:
        """Count a call; raises ``Refusal`` 429 when one of the *windows* (length in s, calls) is full."""
        now = time.monotonic()
        calls = self._calls.setdefault((path, caller), deque(maxlen=1000))
        for length_s, most in windows:
            if sum(1 for at in calls if at > now - length_s) >= most:
                raise Refusal(429, f"{most} per {length_s:.0f} second")
        calls.append(now)

    def clear(self) -> None:
        """Forget all calls, as a restart does."""
        self._calls.clear()


class FakeBridges(FakeServer[BridgesMode]):
    """The bridges; without a *jwt_secret* any token or none is taken."""

    model_paths: ClassVar[frozenset[str]] = frozenset({"/api/llm/generate"})

    def __init__(self, jwt_secret: str | None = None, *, mode: BridgesMode | None = None, port: int = 0) -> None:
        super().__init__(mode or BridgesMode(), port=port)
        self.jwt_secret = jwt_secret
        self.reply: Callable[[dict[str, Any]], str] | None = None
        """Makes the model's answer from the request body; the mode's ``answer`` and "You said: " stand behind it."""
        self.heard: list[Heard] = []
        """The clips that were to be transcribed."""
        self.limits = Limits()
        self.judge: Callable[[bytes], float] | None = None
        """Hears how likely float32 samples are the end of a turn; what it is given makes the mode's ``turn_end`` "heard"."""
        self.judged: list[Heard] = []
        """The clips of which it was asked whether they end a turn, without those in which there is nothing."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.post("/api/llm/generate", self._generate),
            # The local stand-in's alone.
            web.post("/api/llm/read-ahead", self._read_ahead),
            web.get("/api/llm/models", self._models),
            web.post("/api/stt/transcribe", self._transcribe),
            web.post("/api/turn/end", self._turn_end),
            web.post("/api/tts/synthesize", self._synthesize),
            web.get("/api/tts/voices", self._voices),
            web.post("/api/embeddings/embed", self._embed),
            web.post("/api/embeddings/embed-batch", self._embed_batch),
            web.post("/synthesize", self._speak),
        ]

    def forget(self) -> None:
        super().forget()
        self.heard.clear()
        self.judged.clear()
        self.limits.clear()

    async def _health(self, request: web.Request) -> web.Response:
        self._take_hourly(request, enforce=self.mode.enforce_health_limit)
        if self.mode.other_version:
            raise Refusal(404, "Not found")
        if self.mode.health_error:
            return json_response({"status": "error", "error": "health check failed"}, status=500)
        down = self.mode.services_down
        names = ("ollama_llm", "whisper_stt", "piper_tts", "embeddings")
        return json_response(
            {
                "status": "degraded" if down else "healthy",
                "service": "python-bridges",
                "version": "1.0.0",
                "services": {name: "❌" if name in down else "✅" for name in names},
            }
        )

    async def _ready(self, request: web.Request) -> web.Response:
        self._take_hourly(request, enforce=self.mode.enforce_health_limit)
        if self.mode.other_version:
            raise Refusal(404, "Not found")
        return json_response({"status": "ready", "version": "1.0.0"})

    async def _models(self, request: web.Request) -> web.Response:
        self._admit(request)
        return json_response({"models": self.mode.models})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        mode = self.mode
        body = await self._read(request)
        prompt = _text(body, "prompt", 10_000, required=True)
        _text(body, "system_prompt", 5_000)
        _number(body, "temperature", 0, 2, 0.7)
        limit = int(_number(body, "max_tokens", 1, 32_000, 512))
        text = self._answer_text(body, prompt)

        def count(tokens: int) -> dict[str, object]:
            if mode.omit_counts:
                return {}
            made, read = (0, 0) if mode.error_200 else (min(limit, tokens), len(split_words(prompt)))
            return {"tokens_generated": made, "tokens_prompt": read, "duration_ms": 25.5}

        if body.get("stream") is True and mode.shape != "json":
            script = LineScript(
                events=mode.shape == "sse",
                model=mode.models[0],
                count=count,
                thinking=tuple(split_words(mode.thinking or "")),
                finish_reason=mode.finish_reason,
                error_object=mode.error_object,
            )
            return await self.play(request, mode, script, text)
        if mode.first_delay_s:
            await asyncio.sleep(mode.first_delay_s)
        if mode.hold_after is not None:
            await self.gate.enter()
        request[STREAM].whole = True
        extra = {"thinking": mode.thinking, "finish_reason": mode.finish_reason}
        fields = {name: value for name, value in extra.items() if value is not None}
        return json_response({"text": text, "model": mode.models[0]} | fields | count(len(split_words(text))))

    async def _read_ahead(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "reading"})

    def _answer_text(self, body: dict[str, Any], prompt: str) -> str:
        if self.mode.error_200:
            return "Error: Ollama request failed"
        if self.reply is not None:
            return self.reply(body)
        return self.mode.answer if self.mode.answer is not None else f"You said: {last_words(prompt)}"

    async def _transcribe(self, request: web.Request) -> web.Response:
        mode = self.mode
        body = await self._read(request)
        language = _text(body, "language", 10) or mode.detects
        audio = _audio(body)
        heard = hear(audio, INPUT_RATE_HZ)
        self.heard.append(heard)
        if mode.error_200:
            failure = "Error: transcription failed"
            segments = [{"id": 0, "start": 0.0, "end": 0.0, "text": failure, "confidence": 0.0}]
            return json_response(
                {"text": failure, "language": language, "confidence": 0.0, "duration_ms": 0.0}
                | {"segments": segments if mode.segments == "of_failure" else []}
            )
        text = mode.transcript if mode.transcript is not None else f"a clip of {heard.duration_s:.2f} seconds"
        if heard.rms < SILENCE_RMS:
            text = INVENTED_WORDS.get(language, INVENTED_WORDS["en"])
        end = heard.duration_s if mode.segment_end_s is None else mode.segment_end_s
        segment = {"id": 0, "start": 0.0, "end": end, "text": text, "confidence": mode.confidence}
        return json_response(
            {
                "text": text,
                "language": language,
                "confidence": mode.confidence,
                "duration_ms": 12.5,
                "segments": None if mode.segments == "null" else [segment],
            }
        )

    async def _synthesize(self, request: web.Request) -> web.StreamResponse:
        mode = self.mode
        if mode.other_version:
            return await self._speak(request)
        body = await self._read(request)
        text = _text(body, "text", 5_000, required=True)
        voice = _text(body, "voice", 100) or next(iter(mode.voices))
        speed = _number(body, "speed", 0.1, 3, 1.0)
        if not 0.5 <= speed <= 2.0 or voice not in mode.voices:
            raise Refusal(500, "Text-to-speech failed")
        if mode.hold_text is not None and mode.hold_text in text:
            await self.gate.enter()
        audio = b"" if mode.error_200 else tone(len(text) * mode.speech_s_per_char / speed, mode.sample_rate_hz)
        if mode.speech == "nan":
            audio = struct.pack("<f", math.nan) * (len(audio) // 4)
        elif mode.speech == "odd":
            audio += b"\x00"
        elif mode.speech == "wav":
            audio = wav(audio, mode.sample_rate_hz)
        elif mode.speech == "mp3":
            audio = mp3(len(audio) / 4 / mode.sample_rate_hz)
        elif mode.speech == "pcm16":
            audio = struct.pack(
                f"<{len(audio) // 4}h", *(round(32_767 * value[0]) for value in struct.iter_unpack("<f", audio))
            )
        encoded = "*** not base64 ***" if mode.speech == "not_base64" else encode_base64(audio)
        if mode.speech == "lines":
            encoded = "\r\n".join(encoded[at : at + 76] for at in range(0, len(encoded), 76))
        answer = {"audio_data": encoded, "sample_rate": mode.sample_rate_hz, "duration_ms": 8.5, "voice": voice}
        return json_response(answer)

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        """Stream speech as the other deployed version does."""
        mode = self.mode
        if not mode.other_version:
            raise Refusal(404, "Not found")
        text = _text(await self._read(request), "text", 5_000, required=True)
        duration_s = len(text) * mode.speech_s_per_char
        audio = mp3(duration_s) if mode.other_container == "mp3" else wav(tone(duration_s, 22_050), 22_050)
        response = web.StreamResponse(headers={"Content-Type": "audio/mpeg"})
        await response.prepare(request)
        for start in range(0, len(audio), 4096):
            await response.write(audio[start : start + 4096])
        return response

    async def _turn_end(self, request: web.Request) -> web.Response:
        mode = self.mode
        if mode.turn_end == "absent" and self.judge is None:
            raise Refusal(404, "Not found")
        body = await self._read(request)
        heard = hear(_audio(body), INPUT_RATE_HZ)
        if mode.turn_end == "not_made":
            raise Refusal(501, "the local stand-in has no end of turn")
        probability = 0.5
        if heard.rms > 0:
            probability = mode.end_probabilities[min(len(self.judged), len(mode.end_probabilities) - 1)]
            self.judged.append(heard)
            if self.judge is not None:
                probability = await asyncio.to_thread(self.judge, _audio(body))
            await asyncio.sleep(mode.end_delay_s)
        match mode.turn_end:
            case "broken":
                raise Refusal(500, "the end of turn failed")
            case "error_200":
                return json_response({"text": "Error: no model", "probability": None})
            case "nan":
                return web.Response(body=b'{"probability": NaN}', content_type="application/json")
            case "out_of_range":
                return json_response({"probability": 1.5})
            case "text":
                return json_response({"probability": "likely"})
            case _:
                return json_response({"probability": probability})

    async def _voices(self, request: web.Request) -> web.Response:
        self._admit(request)
        return json_response({"voices": self.mode.voices})

    async def _embed(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        return json_response(self._embedding(_text(body, "text", 10_000, required=True)))

    async def _embed_batch(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        texts = body.get("texts")
        if not isinstance(texts, list):
            raise Refusal(400, "texts must be a list")
        if not all(isinstance(text, str) for text in texts):
            raise Refusal(500, "Embedding failed")
        embeddings = [self._embedding(text) for text in texts]
        if self.mode.vectors == "missing":
            embeddings = embeddings[:-1]
        return json_response({"embeddings": embeddings, "count": len(embeddings)})

    def _embedding(self, text: str) -> dict[str, object]:
        dimension = self.mode.dimension
        match self.mode.vectors:
            case "zero":
                vector = bytes(4 * dimension)
            case "nan":
                vector = struct.pack("<f", math.nan) * dimension
            case "short":
                vector = embed(text, dimension)[:-4]
            case _:
                vector = embed(text, dimension)
        return {"text": text, "vector": encode_base64(vector), "dimension": dimension}

    async def _read(self, request: web.Request) -> dict[str, Any]:
        """Admit the caller and decode the body as the reference does: not JSON, or not labelled so, is a 500."""
        self._admit(request)
        if request.content_type != "application/json":
            raise Refusal(500, "415 Unsupported Media Type: Did not attempt to load JSON data")
        try:
            body = msgspec.json.decode(await request.read())
        except msgspec.DecodeError as error:
            raise Refusal(500, "400 Bad Request: Failed to decode JSON object") from error
        if not isinstance(body, dict) or not body:
            raise Refusal(400, "No data provided")
        return body

    def _admit(self, request: web.Request) -> None:
        user_id = self._authenticate(request)
        most = MINUTE_LIMITS.get(request.path)
        if most is None:
            self._take_hourly(request, enforce=self.mode.enforce_limits)
        elif self.mode.enforce_limits:
            self.limits.take(request.path, user_id, (60.0, most))

    def _authenticate(self, request: web.Request) -> str:
        """Return the caller's ``user_id``; raises ``Refusal`` 401."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self.jwt_secret is None or self.mode.other_version:
            return token
        if scheme != "Bearer" or not token:
            raise Refusal(401, "Missing authorization token")
        try:
            claims = jwt.decode(token, self.jwt_secret, algorithms=["HS256"], options={"require": list(CLAIMS)})
        except jwt.ExpiredSignatureError as error:
            raise Refusal(401, "Token expired") from error
        except jwt.InvalidTokenError as error:
            raise Refusal(401, "Invalid token") from error
        if not isinstance(claims["permissions"], list):
            raise Refusal(401, "Invalid token")
        return str(claims["user_id"])

    def _take_hourly(self, request: web.Request, *, enforce: bool) -> None:
        if enforce:
            self.limits.take(request.path, request.remote or "", (3600.0, HOUR_LIMIT), (86400.0, DAY_LIMIT))


def _text(body: dict[str, Any], name: str, limit: int, *, required: bool = False) -> str:
    value = body.get(name)
    if name not in body and not required:
        return ""
    if not isinstance(value, str):
        raise Refusal(400, f"{name} must be a string")
    if required and not value:
        raise Refusal(400, f"{name} is required")
    if len(value) > limit:
        raise Refusal(400, f"{name} too long (max {limit} characters)")
    return value


def _number(body: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(500, f"'<=' not supported between instances of 'int' and '{type(value).__name__}'")
    if not low <= value <= high:
        raise Refusal(400, f"{name} must be between {low} and {high}")
    return value


def _audio(body: dict[str, Any]) -> bytes:
    encoded = _text(body, "audio_data", 10_000_000, required=True)
    try:
        audio = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise Refusal(500, "Incorrect padding") from error
    if len(audio) % 4:
        raise Refusal(500, "buffer size must be a multiple of element size")
    return audio


def main() -> None:
    """Serve until told to stop."""
    parser = make_parser("Fake Python bridges")
    parser.add_argument("--jwt-secret", help="check tokens with it; without it any is taken")
    parser.add_argument("--delta-delay-s", type=float)
    parser.add_argument("--shape", choices=("json", "ndjson", "sse"))
    options = parser.parse_args()
    mode = read_mode(options, BridgesMode, delta_delay_s=options.delta_delay_s, shape=options.shape)
    serve(FakeBridges(options.jwt_secret, mode=mode, port=options.port))


if __name__ == "__main__":
    main()
