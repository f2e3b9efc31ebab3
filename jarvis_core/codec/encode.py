"""Speech on its way out: pieces of sound, one after another, to one file that can be sent while it is made."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.filter import Graph

from jarvis_core.codec.clip import LOUDEST, PIECE_SAMPLES, Clip, CpuLimit, Samples
from jarvis_core.codec.containers import find_container
from jarvis_core.codec.decode import decode_file
from jarvis_core.codec.encoders import allowed_rate, open_encoder, to_frame
from jarvis_core.codec.headerless import float32_peak
from jarvis_core.codec.messages import Encode, Encoded
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

TEMPO_SHORTEST_S = 0.05
"""The filter makes nothing of less."""


class Streams:
    """The streams that are being made, by their number."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def encode(self, request: Encode, payload: bytes) -> tuple[Encoded, bytes, bytes]:
        """
        Add a piece to the request's stream, which the first one makes.

        Returns what can be sent, and of one that ends its new beginning.

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
        beginning = b""
        if request.last:
            data += stream.end()
            beginning = stream.beginning()
        else:
            self._streams[request.stream] = stream
        return Encoded(1_000 * len(clip.samples) / clip.rate_hz, stream.rate_hz), data, beginning

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
    peak = float32_peak(data)
    if len(data) % 4 or not peak <= LOUDEST:
        if find_container(data) is not None:
            return _read_file(data, cpu)
        if len(data) % 4:
            why = f"{len(data)} bytes are no multiple of 4"
        else:
            why = f"some are beyond ±{LOUDEST:g}" if np.isfinite(peak) else "some are not numbers"
        raise BadGateway(f"The speech is no float32 samples: {why}.")
    if not RATE_MIN_HZ <= rate_hz <= RATE_MAX_HZ:
        raise BadGateway(f"The speech has {rate_hz} samples a second.")
    return Clip(np.clip(np.frombuffer(data, "<f4"), -1.0, 1.0), rate_hz)


class _Stream:
    """One file in the making."""

    def __init__(self, request: Encode, rate_hz: int) -> None:
        wanted_hz = request.output_rate_hz or rate_hz
        self.rate_hz = allowed_rate(request.format, wanted_hz)
        self._encoder = open_encoder(request.format, self.rate_hz)
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

    def beginning(self) -> bytes:
        """Return what the file would have begun with, had its length been known."""
        return self._encoder.beginning()

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


def change_tempo(clip: Clip, tempo: float, cpu: CpuLimit) -> Clip:
    """
    Return *clip* played *tempo* times as fast, at the same pitch, within *cpu*.

    It is exactly so much shorter or longer: the filter is a few hundredths of a second off at the end.
    """
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
        graph.push(to_frame(clip.samples[start : start + PIECE_SAMPLES], clip.rate_hz, start))
        pieces += _pull(graph)
    graph.push(None)
    pieces += _pull(graph)
    samples = np.zeros(round(len(clip.samples) / tempo), np.float32)
    made = np.concatenate([samples[:0], *pieces])[: len(samples)]
    samples[: len(made)] = made
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
