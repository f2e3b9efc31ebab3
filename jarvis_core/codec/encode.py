"""Speech on its way out: pieces of sound, one after another, to one file that can be sent while it is made."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Protocol, cast

import av
import numpy as np
import numpy.typing as npt
import soxr
from av.audio.frame import AudioFrame
from av.codec import CodecContext
from av.filter import Graph

from jarvis_core.codec.clip import LOUDEST, PIECE_SAMPLES, Clip, CpuLimit, Samples
from jarvis_core.codec.containers import find_container
from jarvis_core.codec.decode import decode_file
from jarvis_core.codec.messages import Encode, Encoded, OutputFormat
from jarvis_core.errors import BadGateway, InvalidRequest, Overloaded, RequestError, TooLarge, Unavailable

STREAMS_LIMIT = 256
"""No stream is begun while there are so many."""

RATE_MIN_HZ = 1_000
RATE_MAX_HZ = 192_000
DEFAULT_RATE_HZ = 24_000
"""Of a stream without any piece."""

PIECE_LIMIT_S = 600.0
"""Of a piece, as it is and as it is heard."""
PIECE_CPU_LIMIT_S = 5.0
"""Half of what the core waits for a piece; a few sentences take a fraction of a second."""

DATA_HEAD_BYTES = 200
"""Of a ``data:`` URL, in front of what it holds."""
WHITE_SPACE = b" \t\r\n"

TEMPO_MIN, TEMPO_MAX = 0.1, 10.0

MP3_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MP3_BIT_RATE = 64_000
MP3_FAST_BIT_RATE = 96_000
"""Bits a second for rates over 24,000 Hz."""

OPUS_RATE_HZ = 48_000
OPUS_BIT_RATE = 48_000
OPUS_PAGE_US = 40_000
"""Sound in a page of Ogg; a page is sent when it is full and the next one begins."""

TEMPO_SHORTEST_S = 0.05
"""The filter makes nothing of less."""


class Encoder(Protocol):
    """One format's way of writing samples at one rate."""

    def encode(self, samples: Samples) -> bytes:
        """Return what can be sent now that *samples* have come."""
        ...

    def end(self) -> bytes:
        """Return what is left to be sent."""
        ...


class Streams:
    """The streams that are being made, by their number."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def encode(self, request: Encode, payload: bytes) -> tuple[Encoded, bytes]:
        """
        Add a piece to the request's stream, which the first one makes; return what can be sent.

        Raises ``BadGateway`` where *payload* is not the sound that it is said to be, ``Unavailable`` where there is no
        such stream, ``Overloaded`` where there are too many for another.
        """
        if request.first:
            self.drop(request.stream)
            if len(self._streams) >= STREAMS_LIMIT:
                raise Overloaded("Too much is being spoken; try again in a moment.")
        elif request.stream not in self._streams:
            raise Unavailable("The stream of speech was lost.")
        cpu = CpuLimit(PIECE_CPU_LIMIT_S)
        try:
            clip = _read_piece(request, payload, cpu)
            # Gone until the piece is in it: half of one would be heard twice.
            stream = _Stream(request, clip.rate_hz) if request.first else self._streams.pop(request.stream)
            data = stream.add(clip, cpu)
        except TooLarge as exc:
            raise BadGateway(f"The speech cannot be used. {exc.message}") from exc
        if request.last:
            data += stream.end()
        else:
            self._streams[request.stream] = stream
        return Encoded(1_000 * len(clip.samples) / clip.rate_hz, stream.rate_hz), data

    def drop(self, stream: int) -> None:
        """Forget *stream*, if there is one."""
        self._streams.pop(stream, None)

    def __len__(self) -> int:
        return len(self._streams)


def _read_piece(request: Encode, payload: bytes, cpu: CpuLimit) -> Clip:
    """Return the samples of *payload*, at the request's tempo."""
    if not TEMPO_MIN <= request.tempo <= TEMPO_MAX:
        raise InvalidRequest.field("tempo", f"must be from {TEMPO_MIN} to {TEMPO_MAX}")
    if request.output_rate_hz is not None and not RATE_MIN_HZ <= request.output_rate_hz <= RATE_MAX_HZ:
        raise InvalidRequest.field("output_rate_hz", f"must be from {RATE_MIN_HZ} to {RATE_MAX_HZ}")
    if request.last and not payload:
        rate_hz = request.sample_rate_hz if RATE_MIN_HZ <= request.sample_rate_hz <= RATE_MAX_HZ else DEFAULT_RATE_HZ
        return Clip(np.zeros(0, np.float32), rate_hz)
    if not payload:
        raise BadGateway("The speech is empty.")
    if request.encoding == "container":
        clip = _read_file(payload, cpu)
    else:
        clip = _read_base64(payload, request.sample_rate_hz, cpu)
    if len(clip.samples) > PIECE_LIMIT_S * clip.rate_hz * min(request.tempo, 1.0):
        raise BadGateway(f"The speech is longer than {PIECE_LIMIT_S:g} s.")
    return change_tempo(clip, request.tempo, cpu)


def _read_file(payload: bytes, cpu: CpuLimit) -> Clip:
    found = find_container(payload)
    if found is None:
        raise BadGateway("The speech is no known kind of audio file.")
    try:
        clip = decode_file(found, payload, "speech", rate_hz=None, limit_s=PIECE_LIMIT_S, cpu=cpu)
    except RequestError as exc:
        raise BadGateway(f"The speech cannot be used. {exc.message}") from exc
    if not len(clip.samples):
        raise BadGateway("The speech is a file without samples.")
    return clip


def _read_base64(payload: bytes, rate_hz: int, cpu: CpuLimit) -> Clip:
    """Return float32 samples, or what is in a file that came in their place; anything else would be noise."""
    head, comma, rest = payload[:DATA_HEAD_BYTES].partition(b",")
    if comma and head.lower().startswith(b"data:"):
        payload = rest + payload[DATA_HEAD_BYTES:]
    try:
        data = binascii.a2b_base64(payload.translate(None, WHITE_SPACE), strict_mode=True)
    except ValueError as exc:
        raise BadGateway("The speech is not base64.") from exc
    if find_container(data) is not None:
        return _read_file(data, cpu)
    if not RATE_MIN_HZ <= rate_hz <= RATE_MAX_HZ:
        raise BadGateway(f"The speech has {rate_hz} samples a second.")
    if len(data) % 4:
        raise BadGateway(f"The speech is no float32 samples: {len(data)} bytes are no multiple of 4.")
    samples = np.frombuffer(data, "<f4")
    if not np.isfinite(samples).all():
        raise BadGateway("The speech is no float32 samples: some are not numbers.")
    if np.abs(samples).max(initial=0) > LOUDEST:
        raise BadGateway(f"The speech is no float32 samples: some are beyond ±{LOUDEST:g}.")
    return Clip(np.clip(samples, -1.0, 1.0), rate_hz)


class _Stream:
    """One file in the making."""

    def __init__(self, request: Encode, rate_hz: int) -> None:
        wanted_hz = request.output_rate_hz or rate_hz
        self.rate_hz = _allowed_rate(request.format, wanted_hz)
        self._encoder = _open_encoder(request.format, self.rate_hz)
        self._resampler: soxr.ResampleStream | None = None
        self._source_hz = self.rate_hz

    def add(self, clip: Clip, cpu: CpuLimit) -> bytes:
        """Return what can be sent now that *clip* has come."""
        if not len(clip.samples):
            return self._encoder.encode(clip.samples)
        data = b""
        if clip.rate_hz != self._source_hz:
            data = self._flush()
            self._source_hz = clip.rate_hz
            if clip.rate_hz != self.rate_hz:
                self._resampler = soxr.ResampleStream(clip.rate_hz, self.rate_hz, 1, dtype="float32", quality="HQ")
        return data + b"".join(self._encoder.encode(piece) for piece in self._resample(clip.samples, cpu))

    def end(self) -> bytes:
        """Return what is left to be sent."""
        return self._flush() + self._encoder.end()

    def _resample(self, samples: Samples, cpu: CpuLimit) -> Iterator[Samples]:
        for start in range(0, len(samples), PIECE_SAMPLES):
            cpu.check()
            piece = samples[start : start + PIECE_SAMPLES]
            if self._resampler is not None:
                piece = np.clip(self._resampler.resample_chunk(piece), -1.0, 1.0)
            yield piece

    def _flush(self) -> bytes:
        if self._resampler is None:
            return b""
        rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        self._resampler = None
        self._source_hz = self.rate_hz
        return self._encoder.encode(np.clip(rest, -1.0, 1.0))


def _allowed_rate(output_format: OutputFormat, wanted_hz: int) -> int:
    """Return the rate that *output_format* can have and that loses nothing of *wanted_hz*, if there is one."""
    if output_format == "opus":
        return OPUS_RATE_HZ
    if output_format == "mp3":
        return next((rate_hz for rate_hz in MP3_RATES_HZ if rate_hz >= wanted_hz), MP3_RATES_HZ[-1])
    return wanted_hz


def _open_encoder(output_format: OutputFormat, rate_hz: int) -> Encoder:
    match output_format:
        case "wav":
            return _Pcm16Encoder(wav_header(rate_hz))
        case "pcm16":
            return _Pcm16Encoder(b"")
        case "f32":
            return _Float32Encoder()
        case "mp3":
            return _Mp3Encoder(rate_hz)
        case "opus":
            return _OpusEncoder()


def wav_header(rate_hz: int) -> bytes:
    """Return the header of a mono 16-bit WAV that does not know its length: the sizes are the largest there are."""
    unknown = 0xFFFFFFFF
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16, b"data", unknown),
    )


class _Pcm16Encoder:
    """16-bit samples, after a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def encode(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        values: npt.NDArray[np.int16] = np.rint(samples * np.float32(32_767)).astype("<i2")
        return header + values.tobytes()

    def end(self) -> bytes:
        return b""


class _Float32Encoder:
    """The samples as they are."""

    def encode(self, samples: Samples) -> bytes:
        return samples.astype("<f4").tobytes()

    def end(self) -> bytes:
        return b""


class _Mp3Encoder:
    """
    MP3 frames and nothing else: a stream that is cut plays as far as it goes, one after another they play both.

    Without the bit reservoir no frame needs those before it.
    """

    def __init__(self, rate_hz: int) -> None:
        context = CodecContext.create("libmp3lame", "w")
        context.rate = rate_hz
        context.layout = "mono"
        context.format = "fltp"
        context.bit_rate = MP3_BIT_RATE if rate_hz <= 24_000 else MP3_FAST_BIT_RATE
        context.time_base = Fraction(1, rate_hz)
        context.options = {"reservoir": "0"}
        self._context = context
        self._position = 0

    def encode(self, samples: Samples) -> bytes:
        frame = _to_frame(samples, self._context.rate, self._position)
        self._position += len(samples)
        return b"" if frame is None else self._send(frame)

    def end(self) -> bytes:
        return self._send(None) if self._position else b""

    def _send(self, frame: AudioFrame | None) -> bytes:
        return b"".join(bytes(packet) for packet in self._context.encode(frame))


class _OpusEncoder:
    """Opus in one logical stream of Ogg (RFC 7845)."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._output = av.open(
            self._sink,
            "w",
            format="ogg",
            container_options={"page_duration": str(OPUS_PAGE_US)},
        )
        self._stream = self._output.add_stream("libopus", rate=OPUS_RATE_HZ, layout="mono")
        self._stream.bit_rate = OPUS_BIT_RATE
        self._stream.codec_context.thread_count = 1
        self._position = 0

    def encode(self, samples: Samples) -> bytes:
        frame = _to_frame(samples, OPUS_RATE_HZ, self._position)
        self._position += len(samples)
        if frame is not None:
            self._output.mux(self._stream.encode(frame))
        return self._sink.take()

    def end(self) -> bytes:
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._sink.take()


class _Sink:
    """Where FFmpeg writes to; it cannot be told to go back."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        data = bytes(self._data)
        self._data.clear()
        return data


def _to_frame(samples: Samples, rate_hz: int, position: int) -> AudioFrame | None:
    if not len(samples):
        return None
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[np.newaxis]), format="fltp", layout="mono")
    frame.rate = rate_hz
    frame.pts = position
    frame.time_base = Fraction(1, rate_hz)
    return frame


def change_tempo(clip: Clip, tempo: float, cpu: CpuLimit) -> Clip:
    """Return *clip* played *tempo* times as fast, at the same pitch, within *cpu*."""
    if tempo == 1.0 or len(clip.samples) < TEMPO_SHORTEST_S * clip.rate_hz:
        return clip
    graph = Graph()
    source = graph.add(
        "abuffer",
        sample_rate=str(clip.rate_hz),
        sample_fmt="fltp",
        channel_layout="mono",
        time_base=f"1/{clip.rate_hz}",
    )
    nodes = [source, *(graph.add("atempo", str(factor)) for factor in _factors(tempo)), graph.add("abuffersink")]
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    pieces: list[Samples] = []
    for start in range(0, len(clip.samples), PIECE_SAMPLES):
        cpu.check()
        graph.push(_to_frame(clip.samples[start : start + PIECE_SAMPLES], clip.rate_hz, start))
        pieces += _pull(graph)
    graph.push(None)
    pieces += _pull(graph)
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return Clip(np.clip(samples, -1.0, 1.0), clip.rate_hz)


def _pull(graph: Graph) -> Iterator[Samples]:
    while True:
        try:
            frame = cast("AudioFrame", graph.pull())
        except (BlockingIOError, EOFError):
            return
        yield frame.to_ndarray()[0]


def _factors(tempo: float) -> Iterator[float]:
    """Split *tempo* into steps of 0.5..2, between which the filter leaves out nothing and invents little."""
    while not 0.5 <= tempo <= 2.0:
        step = 2.0 if tempo > 2.0 else 0.5
        yield step
        tempo /= step
    yield tempo
