"""Audio to mono samples: files of every kind that is known, and samples without one."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NoReturn, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec import CodecContext
from av.codec.codec import UnknownCodecError
from av.container.input import InputContainer
from av.stream import Disposition

from jarvis_core.codec.asf import check_asf, declared_asf_s
from jarvis_core.codec.clip import LOUDEST, PIECE_SAMPLES, RATE_HZ, Budget, Clip, ClipBuilder, CpuLimit
from jarvis_core.codec.containers import (
    AIFF,
    AU,
    CAF,
    FLAC,
    MP3,
    MP4,
    W64,
    WAV,
    WEBM,
    WMA,
    Container,
    Found,
    check_shape,
    find_container,
    is_cut,
    refuse_others,
    skip_id3,
)
from jarvis_core.codec.ebml import check_webm, declares_duration
from jarvis_core.codec.frames import declares_mpeg_length
from jarvis_core.codec.headerless import NOTHING_TOLD, Headerless, read_headerless
from jarvis_core.codec.linear import Linear, rows_of
from jarvis_core.codec.mix import Mixer
from jarvis_core.codec.mp4 import check_mp4, is_fragmented
from jarvis_core.codec.plain_files import read_plain
from jarvis_core.codec.riff import read_riff
from jarvis_core.errors import InvalidRequest, UnsupportedMediaType

CPU_LIMIT_S = 10.0
"""For one file; ten minutes take one or two."""

BAD_SHARE = 0.1
BAD_PACKETS = 2
"""Packets that may be beyond decoding: the first and the last of a recording often are."""
BAD_PATIENCE = 500
"""Those beyond that after which nothing better is waited for: each takes as long as a good one."""

PAUSE_S = 0.1
"""Between two frames, from which on it is a pause in the recording: clocks of recorders are off by less."""

PLANES_LIMIT = 8

OPTIONS = {"max_streams": "32", "max_probe_packets": "0"}
"""Of FFmpeg: one look for compressed sound in samples is enough, the rest takes 0.2 s."""

BETTER_DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
"""
Instead of FFmpeg's own: those know nothing of silence that is only described (DTX), as phones record it.

Where PyAV was built without them FFmpeg's own have to do.
"""


def decode_audio(data: bytes, path: str, *, told: Headerless = NOTHING_TOLD, claim: str = "", limit_s: float) -> Clip:
    """
    Return what *data* holds as a clip at 16 kHz: a file of a known kind, else headerless samples, as was *told*.

    *claim* is the kind of file that it is said to be. Raises ``InvalidRequest`` at *path*, ``UnsupportedMediaType`` of
    a video and of what is known but not understood, ``TooLarge`` over *limit_s* seconds.
    """
    if not data:
        return ClipBuilder(RATE_HZ, limit_s).finish()
    cpu = CpuLimit(CPU_LIMIT_S)
    found = find_container(data, claim)
    if found is not None:
        return decode_file(found, data, path, rate_hz=RATE_HZ, limit_s=limit_s, cpu=cpu)
    if claim:
        refuse_others(data)
        raise InvalidRequest.field(path, f"is not {claim}, nor another known kind of audio file")
    try:
        return read_headerless(data, told, path, limit_s, Budget(limit_s, cpu))
    except InvalidRequest:
        refuse_others(data)
        raise


def decode_file(found: Found, data: bytes, path: str, *, rate_hz: int | None, limit_s: float, cpu: CpuLimit) -> Clip:
    """As ``decode_audio``, of a file whose kind was *found*, within *cpu*; *rate_hz* None keeps its own."""
    container = found.container
    if found.start:
        data = data[found.start :]
    builder, budget = ClipBuilder(rate_hz, limit_s), Budget(limit_s, cpu)
    linear: Linear | None = None
    if container in (WAV, W64):
        riff = read_riff(container, data, path)
        if riff is None:
            return builder.finish()
        linear = riff.linear(path)
        if linear is None:
            container, data = WAV, riff.rebuilt(data)
    elif container in (AIFF, AU, CAF):
        linear = read_plain(container, data, path)
    elif container is MP4:
        data = check_mp4(data, path)
    elif container is WEBM:
        check_webm(data, path)
    elif container is WMA:
        check_asf(data, path)
    if linear is None:
        _decode_coded(container, data, path, builder, budget)
    else:
        _decode_linear(linear, container, data, path, builder, budget)
    return builder.finish()


def _decode_linear(
    linear: Linear, container: Container, data: bytes, path: str, builder: ClipBuilder, budget: Budget
) -> None:
    mixer = Mixer(linear.layout.channels)
    for rows in rows_of(data, linear, path, container.name):
        budget.spend(values=rows.size)
        builder.add(mixer.mix(rows), round(linear.layout.rate_hz))


def _decode_coded(container: Container, data: bytes, path: str, builder: ClipBuilder, budget: Budget) -> None:
    """Have FFmpeg read what is compressed."""
    try:
        with av.open(
            BytesIO(data),
            "r",
            format=container.demuxer,
            container_options={**OPTIONS, "codec_whitelist": container.codecs},
            metadata_errors="replace",
            buffer_size=1 << 16,
            io_open=_refuse,
        ) as source:
            stream = _find_stream(source, container, path)
            declared_s = _declared_s(container, data, source, stream)
            frames = _Frames(source, stream, budget)
            reached_s = _decode_frames(frames, container, path, builder)
    except av.FFmpegError as exc:
        raise InvalidRequest.field(path, f"is {container.name} that cannot be read") from exc
    if is_cut(declared_s, reached_s, 1.0):
        rule = f"is {container.name} that ends before its time: {reached_s:.2f} of {declared_s:.2f} s"
        raise InvalidRequest.field(path, rule)


def _refuse(*_: Any) -> NoReturn:
    """Open nothing: a file that names others gets none of them."""
    raise PermissionError


def _find_stream(source: InputContainer, container: Container, path: str) -> AudioStream:
    """Return the audio to decode, ready for it; raises where there is none, or a video as well."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    if any(not stream.disposition & covers for stream in source.streams.video):
        raise UnsupportedMediaType(f"The {container.name} file is a video; audio alone is needed.")
    if not source.streams.audio:
        raise InvalidRequest.field(path, f"is {container.name} without audio")
    stream = source.streams.audio[0]
    context = stream.codec_context
    # None where FFmpeg does not know the codec at all.
    name = context.name if context else ""
    if name not in container.codecs.split(","):
        raise UnsupportedMediaType(
            f"The {container.name} file has {name or 'a codec'} inside, which is not understood."
        )
    context.thread_count = 1
    return stream


def _declared_s(container: Container, data: bytes, source: InputContainer, stream: AudioStream) -> float:
    """
    Return how long the file's header says that it is, 0 where it does not say; what FFmpeg says may be but a guess.

    Ogg never does. WAV has a check of its own. Of FLAC and CAF FFmpeg says what the header has, or nothing.
    """
    if container is WMA:
        return declared_asf_s(data)
    if container is MP3:
        declares = declares_mpeg_length(data, skip_id3(data))
    elif container is WEBM:
        declares = declares_duration(data)
    elif container is MP4:
        declares = not is_fragmented(data)
    else:
        declares = container in (FLAC, CAF)
    if not declares:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (source.duration or 0) / av.time_base


def _decode_frames(frames: _Frames, container: Container, path: str, builder: ClipBuilder) -> float:
    """Move *frames* to *builder*; return the time at which the last of them ends, in seconds."""
    channel = _Channel(container, path, builder)
    end_s: float | None = None
    for frame in frames:
        if frame.time is not None:
            if end_s is not None and frame.time - end_s > PAUSE_S:
                channel.pause(frame.time - end_s)
            end_s = frame.time + frame.samples / frame.sample_rate
        channel.add(frame)
    channel.drain()
    if frames.bad and (not builder.duration_s or frames.bad > BAD_SHARE * frames.good + BAD_PACKETS):
        raise InvalidRequest.field(path, f"is {container.name} that cannot be decoded")
    return max(end_s or 0.0, builder.duration_s)


class _Channel:
    """Where frames become mono pieces of a good size."""

    def __init__(self, container: Container, path: str, builder: ClipBuilder) -> None:
        self._container = container
        self._path = path
        self._builder = builder
        self._fifo = AudioFifo()
        self._kind: tuple[str, str, int] | None = None
        self._packer: AudioResampler | None = None
        self._mixer = Mixer(1)

    def add(self, frame: AudioFrame) -> None:
        """Append *frame*."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:
            self.drain()
            check_shape(self._container, frame.layout.nb_channels, frame.sample_rate, self._path)
            self._kind, self._fifo = kind, AudioFifo()
            self._packer = _open_packer(frame)
            self._mixer = Mixer(frame.layout.nb_channels)
        # The queue would insist on an unbroken clock.
        frame.pts = None
        for one in [frame] if self._packer is None else self._packer.resample(frame):
            self._fifo.write(one)
        if self._fifo.samples >= PIECE_SAMPLES:
            self.drain()

    def pause(self, seconds: float) -> None:
        """Append what was not recorded, so that all that follows stands at its time."""
        self.drain()
        self._builder.pause(seconds)

    def drain(self) -> None:
        """Move all samples to the clip."""
        frame = self._fifo.read() if self._fifo.samples else None
        if frame is None:
            return
        values = frame.to_ndarray()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InvalidRequest.field(self._path, f"is {self._container.name} with samples that are not numbers")
        self._builder.add(self._mixer.mix(_rows(values, frame.layout.nb_channels)), frame.sample_rate)


def _open_packer(frame: AudioFrame) -> AudioResampler | None:
    """
    Return what puts the channels of frames like *frame* into one plane, None where that need not be.

    PyAV 18.1 counts planes up to a null pointer, which FFmpeg has only after fewer than eight (``AudioFrame.planes``).
    """
    if not frame.format.is_planar or frame.layout.nb_channels < PLANES_LIMIT:
        return None
    return AudioResampler(format=frame.format.packed)


class _Frames:
    """The frames of *stream*, within a *budget*, and how many packets gave some or could not be decoded."""

    def __init__(self, source: InputContainer, stream: AudioStream, budget: Budget) -> None:
        self.good = 0
        self.bad = 0
        self._source = source
        self._stream = stream
        self._budget = budget
        self._decoder = _open_decoder(stream)

    @property
    def hopeless(self) -> bool:
        """Whether so much is beyond decoding that the rest need not be tried."""
        return self.bad > BAD_SHARE * self.good + BAD_PACKETS + BAD_PATIENCE

    def __iter__(self) -> Iterator[AudioFrame]:
        packets = self._source.demux(self._stream)
        while not self.hopeless:
            self._budget.spend()
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                # What follows cannot be found, but what came is there.
                self.bad += 1
                return
            try:
                frames = self._decoder.decode(packet)
            except av.FFmpegError:
                self.bad += 1
                continue
            self.good += 1
            for frame in frames:
                self._budget.spend(values=frame.samples * frame.layout.nb_channels)
                yield frame


def _open_decoder(stream: AudioStream) -> AudioCodecContext:
    """Return what decodes *stream*: FFmpeg's own decoder, or a better one."""
    context = stream.codec_context
    try:
        decoder = cast("AudioCodecContext", CodecContext.create(BETTER_DECODERS[context.name], "r"))
    except (KeyError, UnknownCodecError):
        return context
    decoder.sample_rate = context.sample_rate
    decoder.layout = context.layout
    return decoder


def _rows(values: npt.NDArray[Any], channels: int) -> npt.NDArray[np.float32]:
    """Return all channels, full scale at ±1; they are rows of *values* or take turns in the only one."""
    rows = values if len(values) == channels else values.reshape(-1, channels).T
    if values.dtype.kind == "f":
        floats: npt.NDArray[np.float32] = np.clip(rows, -LOUDEST, LOUDEST).astype(np.float32)
    elif values.dtype == np.uint8:
        floats = (rows.astype(np.float32) - np.float32(128)) / np.float32(128)
    else:
        floats = np.multiply(rows, np.float32(1 / 2 ** (8 * values.dtype.itemsize - 1)), dtype=np.float32)
    return floats
