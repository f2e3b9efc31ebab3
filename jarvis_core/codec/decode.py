"""Audio files to mono samples, with FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NoReturn

import av
import numpy as np
import numpy.typing as npt
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.stream import Disposition

from jarvis_core.codec.clip import (
    LOUDEST,
    PIECE_SAMPLES,
    RATE_HZ,
    Clip,
    ClipBuilder,
    CpuLimit,
    Encoding,
    Samples,
    read_headerless,
)
from jarvis_core.codec.containers import (
    MP4,
    WAV,
    Container,
    check_mp4,
    check_shape,
    check_wav,
    declares_length,
    find_container,
    hide_empty_lists,
    is_cut,
)
from jarvis_core.errors import InvalidRequest, TooLarge, UnsupportedMediaType

CPU_LIMIT_S = 10.0
"""For one file; ten minutes take one or two."""
VALUES_PER_S = 8 * 48_000
"""Samples times channels that may be decoded for each second that a clip may have."""
PARTS_PER_S = 1_000
"""Packets and frames, together, likewise: Opus has 800 at most, where each lasts 2.5 ms."""

BAD_SHARE = 0.1
BAD_PACKETS = 2
"""Packets that may be beyond decoding: the first and the last of a recording often are."""
BAD_PATIENCE = 500
"""Those beyond that after which nothing better is waited for: each takes as long as a good one."""

PLANES_LIMIT = 8

OPTIONS = {"max_streams": "32", "max_probe_packets": "0"}
"""Of FFmpeg: one look for compressed sound in the 16-bit samples of a WAV file is enough, the rest takes 0.2 s."""


def decode_audio(
    data: bytes, path: str, *, encoding: Encoding = "f32", headerless_hz: int = RATE_HZ, claim: str = "", limit_s: float
) -> Clip:
    """
    Return what *data* holds as a clip at 16 kHz: a file of a known kind, else headerless samples.

    *claim* is the kind of file that it is said to be. Raises ``InvalidRequest`` at *path*, ``UnsupportedMediaType`` of
    a video, ``TooLarge`` over *limit_s* seconds.
    """
    if not data:
        return ClipBuilder(RATE_HZ, limit_s).finish()
    container = find_container(data)
    if container is not None:
        cpu = CpuLimit(CPU_LIMIT_S)
        return decode_file(container, data, path, rate_hz=RATE_HZ, limit_s=limit_s, cpu=cpu)
    if claim:
        raise InvalidRequest.field(path, f"is not {claim}, nor another known kind of audio file")
    return read_headerless(data, encoding, headerless_hz, path, limit_s)


def decode_file(
    container: Container, data: bytes, path: str, *, rate_hz: int | None, limit_s: float, cpu: CpuLimit
) -> Clip:
    """As ``decode_audio``, of a file whose kind is known, within *cpu*; *rate_hz* None keeps its own."""
    builder = ClipBuilder(rate_hz, limit_s)
    if container is WAV:
        if not check_wav(data, path):
            return builder.finish()
        data = hide_empty_lists(data)
    if container is MP4:
        check_mp4(data, path)
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
            declared_s = _declared_s(source, stream) if declares_length(container, data) else 0.0
            frames = _Frames(source, stream, limit_s, cpu)
            reached_s = _decode_frames(frames, container, path, builder)
    except av.FFmpegError as exc:
        raise InvalidRequest.field(path, f"is {container.name} that cannot be read") from exc
    if is_cut(declared_s, reached_s, 1.0):
        rule = f"is {container.name} that ends before its time: {reached_s:.2f} of {declared_s:.2f} s"
        raise InvalidRequest.field(path, rule)
    return builder.finish()


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
        raise InvalidRequest.field(path, f"is {container.name} with {name or 'a codec'} inside, which is not supported")
    context.thread_count = 1
    return stream


def _declared_s(source: InputContainer, stream: AudioStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (source.duration or 0) / av.time_base


def _decode_frames(frames: _Frames, container: Container, path: str, builder: ClipBuilder) -> float:
    """Move *frames* to *builder*; return the time at which the last of them ends, in seconds."""
    fifo = AudioFifo()
    packer: AudioResampler | None = None
    kind = None
    end_s = 0.0
    for frame in frames:
        new_kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if new_kind != kind:
            _drain(fifo, builder, container, path)
            check_shape(container, frame.layout.nb_channels, frame.sample_rate, path)
            kind, fifo = new_kind, AudioFifo()
            packer = _open_packer(frame)
        if frame.time is not None:
            end_s = frame.time + frame.samples / frame.sample_rate
        # The queue would insist on an unbroken clock.
        frame.pts = None
        for one in [frame] if packer is None else packer.resample(frame):
            fifo.write(one)
        if fifo.samples >= PIECE_SAMPLES:
            _drain(fifo, builder, container, path)
    _drain(fifo, builder, container, path)
    if frames.bad and (not builder.duration_s or frames.bad > BAD_SHARE * frames.good + BAD_PACKETS):
        raise InvalidRequest.field(path, f"is {container.name} that cannot be decoded")
    return max(end_s, builder.duration_s)


def _open_packer(frame: AudioFrame) -> AudioResampler | None:
    """
    Return what puts the channels of frames like *frame* into one plane, None where that need not be.

    PyAV 18.1 counts planes up to a null pointer, which FFmpeg has only after fewer than eight (``AudioFrame.planes``).
    """
    if not frame.format.is_planar or frame.layout.nb_channels < PLANES_LIMIT:
        return None
    return AudioResampler(format=frame.format.packed)


class _Frames:
    """
    The frames of *stream*, and how many packets gave some or could not be decoded.

    Raises ``TooLarge`` where there are more of them, or more in them, than in any honest clip of *limit_s* seconds.
    """

    def __init__(self, source: InputContainer, stream: AudioStream, limit_s: float, cpu: CpuLimit) -> None:
        self.good = 0
        self.bad = 0
        self._source = source
        self._stream = stream
        self._cpu = cpu
        self._parts_left = self._parts_limit = int(limit_s * PARTS_PER_S)
        self._values_left = self._values_limit = int(limit_s * VALUES_PER_S)

    @property
    def hopeless(self) -> bool:
        """Whether so much is beyond decoding that the rest need not be tried."""
        return self.bad > BAD_SHARE * self.good + BAD_PACKETS + BAD_PATIENCE

    def __iter__(self) -> Iterator[AudioFrame]:
        packets = self._source.demux(self._stream)
        while not self.hopeless:
            self._spend()
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                # What follows cannot be found, but what came is there.
                self.bad += 1
                return
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError:
                self.bad += 1
                continue
            self.good += 1
            for frame in frames:
                self._spend(frame.samples * frame.layout.nb_channels)
                yield frame

    def _spend(self, values: int = 0) -> None:
        self._cpu.check()
        self._parts_left -= 1
        if self._parts_left < 0:
            limit = self._parts_limit
            raise TooLarge(f"The audio has more than {limit} packets and frames.", details={"limit_parts": limit})
        self._values_left -= values
        if self._values_left < 0:
            limit = self._values_limit
            raise TooLarge(
                f"The audio has more than {limit} samples on its channels.", details={"limit_samples": limit}
            )


def _drain(fifo: AudioFifo, builder: ClipBuilder, container: Container, path: str) -> None:
    """Move all samples from *fifo* to *builder*, as mono."""
    frame = fifo.read() if fifo.samples else None
    if frame is None:
        return
    values = frame.to_ndarray()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidRequest.field(path, f"is {container.name} with samples that are not numbers")
    builder.add(_mix(values, frame.layout.nb_channels), frame.sample_rate)


def _mix(values: npt.NDArray[Any], channels: int) -> Samples:
    """Return the mean of all channels, which are rows of *values* or take turns in the only one."""
    scale = np.float32(1 / channels)
    offset = np.float32(0)
    if values.dtype.kind == "f":
        values = np.clip(values, -LOUDEST, LOUDEST)
    elif values.dtype == np.uint8:
        scale, offset = scale / np.float32(128), np.float32(-1)
    else:
        scale /= np.float32(2 ** (8 * values.dtype.itemsize - 1))
    rows = values if len(values) == channels else values.reshape(-1, channels).T
    mono: Samples = rows[0].astype(np.float32)
    for row in rows[1:]:
        mono += row.astype(np.float32)
    mono *= scale
    mono += offset
    return mono
