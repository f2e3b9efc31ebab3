"""The core's side of the codec: asks a process of its own, and turns its complaints into errors."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, TypeVar

from msgspec import Struct

from jarvis_core import errors
from jarvis_core.codec.messages import (
    SAMPLE_BYTES,
    Answer,
    Checked,
    CheckEnhanced,
    Decoded,
    DecodePcm,
    DecodeUpload,
    DropStream,
    Encode,
    Encoded,
    Failed,
    Listen,
    Listened,
    OutputFormat,
    Request,
    SampleEncoding,
    answer_decoder,
    encoder,
)
from jarvis_core.models import SpokenAudio
from jarvis_core.processes.subprocess_pool import Session, SubprocessDied, SubprocessPool

T = TypeVar("T", Decoded, Checked, Encoded, Listened)

MODULE = "jarvis_core.codec"
LISTENER = "jarvis_core.codec.listener"
DECODE_TIMEOUT_S = 20.0
"""For ten minutes of audio, which take one or two seconds of an idle core; the process itself gives up after ten."""
PIECE_TIMEOUT_S = 10.0
"""For a window or a few sentences."""
PROCESS_IDLE_S = 300.0
LISTEN_TIMEOUT_S = 5.0
"""For a second of sound of each of those who are listened to."""
LISTENERS_LIMIT = 4_096
"""Streams that one worker listens to, at most."""
STEP_MS = 32
"""Of sound, for which there is one probability of speech."""
LISTEN_PIECE_S = 1.0
"""Sound that is handed over at once: others come in between."""


class Window(Struct, frozen=True):
    """A piece of a clip that a neighbour can take at once."""

    start_ms: int
    duration_ms: int
    audio: bytes
    """Samples in base64; empty where nobody speaks."""


class Clip(Struct, frozen=True):
    """What was recorded: mono, 16 kHz, within ±1."""

    duration_ms: int
    windows: list[Window]
    language: str | None
    """What the request named."""
    fields: dict[str, str] = {}
    """What else its form said that was asked for."""


class EncodedPiece(Struct, frozen=True):
    """What can be sent of a stream of speech after one more piece of it."""

    data: bytes
    duration_ms: float
    sample_rate_hz: int
    beginning: bytes = b""
    """After the last piece: what the file would have begun with, had its length been known, as long as what it did."""


class Sound(Struct, frozen=True):
    """What was listened to: whole steps of 32 ms."""

    steps: list[tuple[float, float]]
    """Of each step the probability of speech, 0..1, and the level in dB of full scale."""
    samples: bytes
    """16 bits, 16 kHz, mono."""


class Codec:
    """
    Decodes and encodes audio in processes that are started when first needed and end when idle.

    At most *limit* read uploads, and as many do all else: nobody's voice waits behind a stranger's file, or dies of it.
    Every call raises ``Overloaded`` where too many wait, and ``Unavailable`` where a process cannot be started or dies
    of something that no client sent.
    """

    def __init__(self, *, limit: int) -> None:
        self._uploads = SubprocessPool("audio decoder", MODULE, limit=limit, idle_s=PROCESS_IDLE_S)
        self._pool = SubprocessPool("audio codec", MODULE, limit=limit, idle_s=PROCESS_IDLE_S)
        self._listeners = SubprocessPool(
            "voice detector",
            LISTENER,
            idle_s=PROCESS_IDLE_S,
            waiting_limit=LISTENERS_LIMIT,
            session_limit=LISTENERS_LIMIT,
        )
        self._streams = itertools.count(1)

    @property
    def processes(self) -> int:
        """How many processes there are."""
        return self._uploads.running + self._pool.running + self._listeners.running

    def expect_upload(self) -> None:
        """Start a process for uploads if there is none: one is on its way."""
        self._uploads.start()

    def start(self) -> None:
        """Start a process for all else if there is none."""
        self._pool.start()

    async def close(self) -> None:
        """End every process."""
        await self._uploads.close()
        await self._pool.close()
        await self._listeners.close()

    async def decode_upload(
        self,
        parts: Sequence[bytes],
        content_type: str,
        *,
        sample_rate_hz: int | None = None,
        format_hint: str | None = None,
        limit_s: float,
        limit_bytes: int,
        fields: tuple[str, ...] = (),
    ) -> Clip:
        """
        Return the clip in a request's body, with those of its form's other *fields* that there are.

        Raises ``InvalidJson``, ``InvalidRequest``, ``TooLarge`` or ``UnsupportedMediaType``, naming what is wrong.
        """
        request = DecodeUpload(
            content_type, sample_rate_hz, format_hint, limit_s=limit_s, limit_bytes=limit_bytes, fields=fields
        )
        return await self._decode(self._uploads, request, parts)

    async def decode_pcm(
        self, parts: Sequence[bytes], encoding: SampleEncoding, sample_rate_hz: int, *, limit_s: float
    ) -> Clip:
        """Return the clip that *parts* are; raises ``InvalidRequest`` or ``TooLarge``."""
        return await self._decode(self._pool, DecodePcm(encoding, sample_rate_hz, limit_s=limit_s), parts)

    async def check_enhanced(self, answer: bytes, samples: int) -> tuple[bytes, str]:
        """Return an enhanced window's samples in base64, within ±1, or else what is wrong with them."""
        message = await self._pool.call(encoder.encode(CheckEnhanced(samples)), [answer], timeout_s=PIECE_TIMEOUT_S)
        checked = _answer(message[0], Checked)
        return (b"", checked.complaint) if checked.complaint else (message[1], "")

    @asynccontextmanager
    async def encode(
        self, output_format: OutputFormat | SampleEncoding, *, output_rate_hz: int | None = None, tempo: float = 1.0
    ) -> AsyncIterator[SpeechEncoder]:
        """Lend an encoder of one stream of speech."""
        async with self._pool.session() as session:
            speech_encoder = SpeechEncoder(session, next(self._streams), output_format, output_rate_hz, tempo)
            try:
                yield speech_encoder
            finally:
                await speech_encoder.drop()

    def listen(self, encoding: SampleEncoding, sample_rate_hz: int) -> Microphone:
        """Return a stream of sound that is listened to; close it."""
        return Microphone(self._listeners, next(self._streams), encoding, sample_rate_hz)

    async def _decode(self, pool: SubprocessPool, request: Request, parts: Sequence[bytes]) -> Clip:
        header = encoder.encode(request)
        try:
            try:
                message = await pool.call(header, parts, timeout_s=DECODE_TIMEOUT_S)
            except SubprocessDied as exc:
                if not exc.crashed:
                    raise
                # Once may be chance: what it died of is in the file if it dies of it again.
                message = await pool.call(header, parts, timeout_s=DECODE_TIMEOUT_S)
        except (SubprocessDied, errors.DeadlineExceeded) as exc:
            if isinstance(exc, SubprocessDied) and not exc.crashed:
                raise
            raise errors.InvalidRequest("The audio cannot be decoded.", details={"path": "$"}) from exc
        decoded = _answer(message[0], Decoded)
        windows = [
            Window(window.start_ms, window.duration_ms, audio)
            for window, audio in zip(decoded.windows, message[1:], strict=True)
        ]
        return Clip(decoded.duration_ms, windows, decoded.language, decoded.fields)


class SpeechEncoder:
    """One stream of speech on its way out; pieces go in, bytes to send come out."""

    def __init__(
        self,
        session: Session,
        stream: int,
        output_format: OutputFormat | SampleEncoding,
        output_rate_hz: int | None,
        tempo: float,
    ) -> None:
        self._session = session
        self._stream = stream
        self._format = output_format
        self._output_rate_hz = output_rate_hz
        self._tempo = tempo
        self._open = False

    async def feed(self, speech: SpokenAudio) -> EncodedPiece:
        """Add a piece, after ``finish`` to another file; raises ``BadGateway`` where it is not audio."""
        piece = await self._ask(
            self._request(speech.encoding, speech.sample_rate_hz, first=not self._open), [speech.audio]
        )
        self._open = True
        return piece

    async def finish(self) -> EncodedPiece:
        """Return the rest of the file, once its last piece was added."""
        if not self._open:
            return EncodedPiece(b"", 0.0, 0)
        piece = await self._ask(self._request(last=True), [])
        self._open = False
        return piece

    async def drop(self) -> None:
        """Forget the stream if it was not finished."""
        if self._open:
            self._open = False
            try:
                await self._session.call(encoder.encode(DropStream(self._stream)), timeout_s=PIECE_TIMEOUT_S)
            except errors.RequestError:
                return  # its process is gone, and the stream with it

    def _request(
        self,
        encoding: Literal["base64", "container"] = "base64",
        sample_rate_hz: int = 0,
        *,
        first: bool = False,
        last: bool = False,
    ) -> Encode:
        return Encode(
            stream=self._stream,
            format=self._format,
            encoding=encoding,
            sample_rate_hz=sample_rate_hz,
            output_rate_hz=self._output_rate_hz,
            tempo=self._tempo,
            first=first,
            last=last,
        )

    async def _ask(self, request: Encode, payloads: list[bytes]) -> EncodedPiece:
        message = await self._session.call(encoder.encode(request), payloads, timeout_s=PIECE_TIMEOUT_S)
        encoded = _answer(message[0], Encoded)
        data, beginning = message[1:] if len(message) > 1 else (b"", b"")
        return EncodedPiece(data, encoded.duration_ms, encoded.sample_rate_hz, beginning)


class Microphone:
    """One stream of sound that is listened to; sound goes in, probabilities of speech come out."""

    def __init__(self, pool: SubprocessPool, stream: int, encoding: SampleEncoding, sample_rate_hz: int) -> None:
        self._pool = pool
        self._stream = stream
        self._encoding = encoding
        self._sample_rate_hz = sample_rate_hz
        self._session: Session | None = None
        self._lease = AsyncExitStack()
        self._waiting = bytearray()
        """Less than a step, for which nobody is asked: each question costs as much as a step does."""
        self._rest_ms = 0.0
        """Sound that the process has had, and of which it has made no step yet; the resampler keeps some of it."""

    async def hear(self, data: bytes) -> AsyncGenerator[Sound, None]:
        """
        Yield what has become whole with *data*, in pieces of a second.

        A process that dies is replaced: the next one goes on with what comes then. Raises ``Overloaded`` or ``Unavailable``.
        """
        self._waiting += data
        if self._rest_ms + self._duration_ms(len(self._waiting)) < STEP_MS:
            return
        data = bytes(self._waiting)
        self._waiting.clear()
        piece_bytes = round(LISTEN_PIECE_S * self._sample_rate_hz) * SAMPLE_BYTES[self._encoding]
        for start in range(0, len(data), piece_bytes):
            sound = await self._ask(data[start : start + piece_bytes])
            if sound.steps:
                yield sound

    async def close(self) -> None:
        """Have the stream forgotten."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(errors.RequestError):  # its process is gone, and the stream with it
                await session.call(encoder.encode(DropStream(self._stream)), timeout_s=LISTEN_TIMEOUT_S)
            await self._lease.aclose()

    async def _ask(self, piece: bytes) -> Sound:
        try:
            return await self._ask_once(piece)
        except (errors.Unavailable, errors.DeadlineExceeded):
            self._session = None
            await self._lease.aclose()
            return await self._ask_once(piece)

    async def _ask_once(self, piece: bytes) -> Sound:
        first = self._session is None
        if self._session is None:
            self._session = await self._lease.enter_async_context(self._pool.session())
            self._rest_ms = 0.0
        request = Listen(self._stream, self._encoding, self._sample_rate_hz, first=first)
        message = await self._session.call(encoder.encode(request), [piece], timeout_s=LISTEN_TIMEOUT_S)
        listened = _answer(message[0], Listened)
        self._rest_ms += self._duration_ms(len(piece)) - STEP_MS * len(listened.probabilities)
        return Sound(list(zip(listened.probabilities, listened.levels_db, strict=True)), message[1])

    def _duration_ms(self, length_bytes: int) -> float:
        return 1_000 * length_bytes / (SAMPLE_BYTES[self._encoding] * self._sample_rate_hz)


def _answer(header: bytes, kind: type[T]) -> T:
    answer: Answer = answer_decoder.decode(header)
    if isinstance(answer, Failed):
        if answer.code not in errors.BY_CODE:
            raise errors.RequestError("Something went wrong here; the log has the details.")
        raise errors.of_code(answer.code, answer.message, answer.details)
    if not isinstance(answer, kind):
        raise TypeError(f"the codec answered with {type(answer).__name__}")
    return answer
