"""The routes for speech: audio to text, text to audio, the voices and languages."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from jarvis_core.codec.messages import OutputFormat
from jarvis_core.errors import InvalidRequest, Overloaded, RateLimited, TooLarge
from jarvis_core.handlers.call import Call, Reply, text_field
from jarvis_core.handlers.query import SAMPLE_RATE
from jarvis_core.handlers.speech_reply import MEDIA_TYPES, send_speech, unspeakable
from jarvis_core.handlers.wire import SynthesizeReply, SynthesizeRequest
from jarvis_core.speech.synthesis import SpeechOptions, Synthesizer, Voices, pieces_of
from jarvis_core.speech.transcription import CLIP_LIMIT_BYTES, Heard, Transcriber

UPLOAD_LIMIT_BYTES = CLIP_LIMIT_BYTES * 4 // 3 + (64 << 10)
"""Base64 is a third longer than the audio, and stands in JSON or between multipart's lines."""
BASE64_SLICE_BYTES = 3 << 19
"""A multiple of 3, whose base64 is made in a few milliseconds."""
WHOLE_LIMIT_BYTES = 32 << 20
"""Audio in one whole answer: eleven minutes of WAV at 24 kHz; a stream may be longer."""
ACCEPTED: dict[str, OutputFormat] = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/ogg": "opus",
    "audio/opus": "opus",
    "audio/pcm": "pcm16",
    "audio/x-float32": "f32",
    "audio/aac": "aac",
    "audio/flac": "flac",
}
"""Media types that Accept may name where the body names no format."""

_encoder = msgspec.json.Encoder()
_synthesize_decoder = msgspec.json.Decoder(SynthesizeRequest)


class VoiceHandlers:
    """The routes below ``/api/voice``."""

    def __init__(
        self, transcriber: Transcriber, synthesizer: Synthesizer, voices: Voices, *, body_limit_bytes: int
    ) -> None:
        self._transcriber = transcriber
        self._synthesizer = synthesizer
        self._voices = voices
        self._body_limit_bytes = body_limit_bytes

    async def transcribe(self, call: Call) -> Reply:
        """Answer ``POST /api/voice/transcribe``."""
        content_type = call.header(b"content-type")
        query = call.query()
        language = query.get("language") or None
        if language is not None and len(language) > 10:
            raise InvalidRequest.field("query.language", "must have at most 10 characters")
        rate_hz = SAMPLE_RATE.read(query)
        try:
            with self._transcriber.held.growing() as grow:
                call.declared_length(UPLOAD_LIMIT_BYTES)
                self._transcriber.expect(upload=True)
                parts = await call.body_parts(UPLOAD_LIMIT_BYTES, grow)
                heard: Heard = await call.unless_left(
                    self._transcriber.transcribe_upload(
                        parts,
                        content_type,
                        call.caller,
                        language=language,
                        sample_rate_hz=rate_hz,
                        format_hint=query.get("format"),
                    )
                )
        except (TooLarge, Overloaded, RateLimited):
            await call.discard_body()
            raise
        return Reply(_encoder.encode(heard))

    async def synthesize(self, call: Call) -> Reply | None:
        """Answer ``POST /api/voice/synthesize``, as JSON or, where audio is accepted, as it is made."""
        request = await call.decode(_synthesize_decoder, self._body_limit_bytes)
        accepted = _accepted(call.header(b"accept"))
        pieces, options, output_format = _speech(request, accepted)
        if accepted is None:
            return await call.unless_left(self._whole(call, pieces, options, output_format))
        await send_speech(call, self._synthesizer, pieces, options, output_format, MEDIA_TYPES[output_format])
        return None

    async def stream_speech(self, call: Call) -> None:
        """Answer ``POST /api/voice/speech``: audio as it is made."""
        request = await call.decode(_synthesize_decoder, self._body_limit_bytes)
        pieces, options, output_format = _speech(request, _accepted(call.header(b"accept")))
        await send_speech(call, self._synthesizer, pieces, options, output_format, MEDIA_TYPES[output_format])

    async def list_voices(self, call: Call) -> Reply:
        """Answer ``GET /api/voice/voices``."""
        return Reply(_encoder.encode(await self._voices.fetch(call.caller)))

    async def list_languages(self, call: Call) -> Reply:
        """Answer ``GET /api/voice/languages``."""
        return Reply(_encoder.encode(await self._voices.languages(call.caller)))

    async def _whole(self, call: Call, pieces: list[str], options: SpeechOptions, output_format: OutputFormat) -> Reply:
        chunks: list[bytes] = []
        duration_ms = 0.0
        sample_rate_hz = 0
        async with self._synthesizer.open_stream(options, call.caller) as speech:
            for text in pieces:
                piece = await speech.say(text)
                if piece is None:
                    continue
                chunks.append(piece.data)
                if sum(map(len, chunks)) > WHOLE_LIMIT_BYTES:
                    raise TooLarge(
                        f"The speech is over {WHOLE_LIMIT_BYTES >> 20} MiB; ask for it as it is made (Accept: audio/*), "
                        "in another format, or for less.",
                        details={"limit_bytes": WHOLE_LIMIT_BYTES},
                    )
                duration_ms += piece.duration_ms
                sample_rate_hz = piece.sample_rate_hz
            if not chunks:
                raise unspeakable("$.text")
            rest = await speech.finish()
            chunks.append(rest.data)
            voice = speech.voice or ""
        body = SynthesizeReply("", output_format, sample_rate_hz, round(duration_ms), voice)
        # The base64 goes between the quotes of the empty text: as a field it would be scanned and copied once more.
        head, _, tail = _encoder.encode(body).partition(b'""')
        chunks[0] = rest.beginning + chunks[0][len(rest.beginning) :]
        encoded = [head, b'"']
        for part in _slices(chunks):
            encoded.append(base64.b64encode(part))
            await asyncio.sleep(0)
        return Reply(b"".join([*encoded, b'"', tail]))


def _speech(request: SynthesizeRequest, accepted: OutputFormat | None) -> tuple[list[str], SpeechOptions, OutputFormat]:
    """Return what is to be spoken, how, and its format; *accepted* is the one that Accept asks for."""
    pieces = pieces_of(text_field("$.text", request.text))
    if not pieces:
        raise unspeakable("$.text")
    output_format = accepted or "wav" if request.format is UNSET else request.format
    return pieces, SpeechOptions(output_format, request.voice, request.language, request.speed), output_format


def _accepted(accept: str) -> OutputFormat | None:
    """Return the format that Accept asks for as audio; None where it does not ask for audio."""
    for one in accept.split(","):
        kind = one.partition(";")[0].strip().lower()
        if kind.startswith("audio/"):
            return ACCEPTED.get(kind, "wav")
    return None


def _slices(chunks: list[bytes]) -> Iterator[bytes]:
    """Yield all bytes of *chunks* in pieces of ``BASE64_SLICE_BYTES``, the last one shorter."""
    piece = bytearray()
    for chunk in chunks:
        for start in range(0, len(chunk), BASE64_SLICE_BYTES):
            piece += chunk[start : start + BASE64_SLICE_BYTES]
            if len(piece) >= BASE64_SLICE_BYTES:
                yield bytes(piece[:BASE64_SLICE_BYTES])
                del piece[:BASE64_SLICE_BYTES]
    yield bytes(piece)
