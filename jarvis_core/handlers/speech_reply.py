"""Speech that is sent while it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jarvis_core import log
from jarvis_core.codec.client import EncodedPiece
from jarvis_core.codec.messages import OutputFormat
from jarvis_core.errors import InvalidRequest, RequestError
from jarvis_core.handlers.call import BoundedSends, Call, ClientLeft
from jarvis_core.speech.synthesis import SpeechOptions, SpeechStream, Synthesizer
from jarvis_core.tasks import Preempted, unless

logger = log.get(__name__)
_failures = log.LogThrottle()

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
    "aac": b"audio/aac",
    "flac": b"audio/flac",
}


async def send_speech(
    call: Call,
    synthesizer: Synthesizer,
    pieces: Sequence[str],
    options: SpeechOptions,
    output_format: OutputFormat,
    media_type: bytes,
    *,
    path: str = "$.text",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """
    Send *pieces*, the text at *path*, as speech while it is made, the head with the first of it: until then an error is an
    answer of its own.

    Raises ``ClientLeft`` where the client leaves or does not read.
    """
    watcher = asyncio.get_running_loop().create_task(call.left())
    try:
        async with BoundedSends() as sends, synthesizer.open_stream(options, call.caller) as speech:
            reply = SpeechReply(call, sends, speech, output_format, media_type, path=path, headers=headers)
            for text in pieces:
                await unless(watcher, reply.say(text))
            await reply.end()
    except Preempted:
        raise ClientLeft from None
    except RequestError as error:
        if not call.status:
            raise
        # Too late for a status: the answer ends without its end, which every client takes for broken off.
        note_broken_off(error)
        raise ClientLeft from error
    finally:
        watcher.cancel()


class SpeechReply:
    """
    Speech that is sent while it is made.

    Of a file that could say how long it is the first sound is held back for ``HELD_S``: speech that was made before, or is
    made quickly, is all there by then.
    """

    def __init__(
        self,
        call: Call,
        sends: BoundedSends,
        speech: SpeechStream,
        output_format: OutputFormat,
        media_type: bytes,
        *,
        path: str = "$.text",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._call = call
        self._sends = sends
        self._speech = speech
        self._format = output_format
        self._media_type = media_type
        self._path = path
        self._headers = headers
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
            raise unspeakable(self._path)
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
        kind = self._media_type
        if output_format in ("pcm16", "f32"):
            kind += b"; rate=%d; channels=1" % rate_hz
        headers = [
            (b"content-type", kind),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", call.request_id.encode()),
            (b"x-sample-rate", b"%d" % rate_hz),
            (b"x-voice", printable(voice or "")),
            *self._headers,
            *call.headers,
        ]
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})


def unspeakable(path: str) -> InvalidRequest:
    """Return the error for a text at *path* of which a voice can say nothing."""
    return InvalidRequest.field(path, "has nothing in it that can be spoken")


def note_broken_off(error: RequestError) -> None:
    """Have it logged that speech ended before its end."""
    held_back = _failures.held_back(error.code)
    if held_back is not None:
        logger.info("speech was broken off", error=error.message, held_back=held_back)


def printable(text: str) -> bytes:
    """Return *text*, which a neighbour sent, as the value of a header."""
    return "".join(character if character.isprintable() else "?" for character in text[:100]).encode("ascii", "replace")
