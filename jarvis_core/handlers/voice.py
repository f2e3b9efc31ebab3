"""The routes for speech: audio to text, text to audio, the voices and languages."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from jarvis_core import log
from jarvis_core.codec.client import EncodedPiece
from jarvis_core.codec.messages import OutputFormat
from jarvis_core.errors import InvalidRequest, Overloaded, RateLimited, RequestError, TooLarge
from jarvis_core.handlers.call import BoundedSends, Call, ClientLeft, Reply, text_field
from jarvis_core.handlers.query import SAMPLE_RATE
from jarvis_core.handlers.wire import SynthesizeReply, SynthesizeRequest
from jarvis_core.speech.synthesis import SpeechOptions, SpeechStream, Synthesizer, Voices, pieces_of
from jarvis_core.speech.transcription import CLIP_LIMIT_BYTES, Heard, Transcriber
from jarvis_core.tasks import Preempted, unless

logger = log.get(__name__)
_failures = log.LogThrottle()

UPLOAD_LIMIT_BYTES = CLIP_LIMIT_BYTES * 4 // 3 + (64 << 10)
"""Base64 is a third longer than the audio, and stands in JSON or between multipart's lines."""
BASE64_SLICE_BYTES = 3 << 19
"""A multiple of 3, whose base64 is made in a few milliseconds."""
WHOLE_LIMIT_BYTES = 32 << 20
"""Audio in one whole answer: eleven minutes of WAV at 24 kHz; a stream may be longer."""
SEND_SLICE_BYTES = 64 << 10
"""
Audio in one send: a client that reads no faster than it plays takes so little within ``SEND_TIMEOUT_S``, even of a long
sentence.
"""
TELL_LENGTH = ("wav", "mp3")
"""Formats whose beginning says how long they are, where that is known."""
HELD_S = 0.15
"""Which nobody notices before a first sentence that took a second to make."""
MEDIA_TYPES: dict[OutputFormat, bytes] = {
    "wav": b"audio/wav",
    "mp3": b"audio/mpeg",
    "opus": b"audio/ogg; codecs=opus",
    "pcm16": b"audio/pcm",
    "f32": b"audio/x-float32",
}
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
        output_format = accepted or "wav" if request.format is UNSET else request.format
        pieces = pieces_of(text_field("$.text", request.text))
        if not pieces:
            raise _unspeakable()
        options = SpeechOptions(output_format, request.voice, request.language, request.speed)
        if accepted is None:
            return await call.unless_left(self._whole(call, pieces, options, output_format))
        await self._stream(call, pieces, options, output_format)
        return None

    async def voices(self, call: Call) -> Reply:
        """Answer ``GET /api/voice/voices``."""
        return Reply(_encoder.encode(await self._voices.fetch(call.caller)))

    async def languages(self, call: Call) -> Reply:
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
                raise _unspeakable()
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

    async def _stream(self, call: Call, pieces: list[str], options: SpeechOptions, output_format: OutputFormat) -> None:
        """
        Send speech as it is made, the head with the first of it: until then an error is an answer of its own.

        Raises ``ClientLeft`` where the client leaves or does not read.
        """
        watcher = asyncio.get_running_loop().create_task(call.left())
        try:
            async with BoundedSends() as sends, self._synthesizer.open_stream(options, call.caller) as speech:
                reply = _SpeechReply(call, sends, speech, output_format)
                for text in pieces:
                    await unless(watcher, reply.say(text))
                await reply.end()
        except Preempted:
            raise ClientLeft from None
        except RequestError as error:
            if not call.status:
                raise
            # Too late for a status: the answer ends without its end, which every client takes for broken off.
            held_back = _failures.held_back(error.code)
            if held_back is not None:
                logger.info("speech was broken off", error=error.message, held_back=held_back)
            raise ClientLeft from error
        finally:
            watcher.cancel()


class _SpeechReply:
    """
    Speech that is sent while it is made.

    Of a file that could say how long it is the first sound is held back for ``HELD_S``: speech that was made before, or is
    made quickly, is all there by then.
    """

    def __init__(self, call: Call, sends: BoundedSends, speech: SpeechStream, output_format: OutputFormat) -> None:
        self._call = call
        self._sends = sends
        self._speech = speech
        self._format = output_format
        self._held: list[EncodedPiece] = []
        self._loop = asyncio.get_running_loop()
        self._until = 0.0

    async def say(self, text: str) -> None:
        """Have *text* spoken, and send it, or what was held back where that takes too long; raises as the speech does."""
        saying = self._loop.create_task(self._speech.say(text))
        try:
            if self._held:
                done, _ = await asyncio.wait([saying], timeout=max(self._until - self._loop.time(), 0.0))
                if not done:
                    await self._send_held()
            piece = await saying
        finally:
            if not saying.done():
                saying.cancel()
                await asyncio.wait([saying])
        if piece is None:
            return
        if not self._held:
            self._until = self._loop.time() + (HELD_S if self._format in TELL_LENGTH else 0.0)
        self._held.append(piece)
        if self._call.status or self._until <= self._loop.time():
            await self._send_held()

    async def end(self) -> None:
        """Send the rest; raises ``InvalidRequest`` where nothing was spoken."""
        if not self._held and not self._call.status:
            raise _unspeakable()
        rest = await self._speech.finish()
        self._held.append(rest)
        # Where all is there before anything was sent the file can say how long it is.
        await self._send_held(b"" if self._call.status else rest.beginning)
        await self._send(b"", more=False)

    async def _send_held(self, beginning: bytes = b"") -> None:
        rate_hz = self._held[0].sample_rate_hz
        data = b"".join(piece.data for piece in self._held)
        self._held.clear()
        data = beginning + data[len(beginning) :]
        if not self._call.status:
            await self._send_head(rate_hz)
        for start in range(0, len(data), SEND_SLICE_BYTES):
            await self._send(data[start : start + SEND_SLICE_BYTES])

    async def _send(self, part: bytes, *, more: bool = True) -> None:
        await self._sends.wait(self._call.send({"type": "http.response.body", "body": part, "more_body": more}))

    async def _send_head(self, rate_hz: int) -> None:
        call, output_format, voice = self._call, self._format, self._speech.voice
        call.status = 200
        kind = MEDIA_TYPES[output_format]
        if output_format in ("pcm16", "f32"):
            kind += b"; rate=%d; channels=1" % rate_hz
        headers = [
            (b"content-type", kind),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", call.request_id.encode()),
            (b"x-sample-rate", b"%d" % rate_hz),
            (b"x-voice", _printable(voice or "")),
            *call.headers,
        ]
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})


def _unspeakable() -> InvalidRequest:
    return InvalidRequest.field("$.text", "has nothing in it that can be spoken")


def _accepted(accept: str) -> OutputFormat | None:
    """Return the format that Accept asks for as audio; None where it does not ask for audio."""
    for one in accept.split(","):
        kind = one.partition(";")[0].strip().lower()
        if kind.startswith("audio/"):
            return ACCEPTED.get(kind, "wav")
    return None


def _printable(text: str) -> bytes:
    """Return *text*, which a neighbour sent, as the value of a header."""
    return "".join(character if character.isprintable() else "?" for character in text[:100]).encode("ascii", "replace")


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
