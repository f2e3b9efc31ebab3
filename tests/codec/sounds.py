"""Sound made for tests, and the files that hold it."""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream

from jarvis_core.codec.clip import Samples

AUDIO = Path(__file__).parents[1] / "fixtures" / "audio"

Floats = npt.NDArray[np.floating[Any]]


def tone(
    seconds: float, *, rate_hz: int = 16_000, hz: float = 440.0, amplitude: float = 0.5, offset: float = 0.0
) -> Samples:
    """Return a sine."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * hz * time) + offset).astype(np.float32)


def silence(seconds: float, rate_hz: int = 16_000) -> Samples:
    """Return nothing to be heard."""
    return np.zeros(round(seconds * rate_hz), np.float32)


def peak_hz(samples: Floats, rate_hz: int = 16_000) -> float:
    """Return the loudest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * rate_hz / len(samples)


def amplitude(samples: Floats) -> float:
    """Return the amplitude of the sine that is as loud as the middle half of *samples*."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    return float(np.sqrt(2 * np.mean(middle**2)))


PCM_DTYPES = {"u8": "u1", "s16": "<i2", "s32": "<i4", "f32": "<f4", "f64": "<f8"}


def to_pcm(samples: Floats, kind: str, channels: int = 1) -> bytes:
    """Return *samples* as little-endian numbers of *kind*, the same on all channels."""
    many = np.repeat(np.asarray(samples, np.float64)[:, np.newaxis], channels, axis=1)
    if kind == "u8":
        values = np.rint(many * 127) + 128
    elif kind == "s24":
        whole = np.rint(many * (2**23 - 1)).astype("<i4")
        return whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    elif kind.startswith("s"):
        values = np.rint(many * (2 ** (int(kind[1:]) - 1) - 1))
    else:
        values = many
    return values.astype(PCM_DTYPES[kind]).tobytes()


def wav(
    samples: Floats,
    rate_hz: int = 16_000,
    kind: str = "s16",
    channels: int = 1,
    *,
    extensible: bool = False,
    data_size: int | None = None,
    riff_size: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a WAV file; *before* and *after* are chunks around that of the samples."""
    data = to_pcm(samples, kind, channels)
    bits = int(kind[1:])
    tag = 3 if kind.startswith("f") else 1
    fields = struct.pack(
        "<HHIIHH",
        *(0xFFFE if extensible else tag, channels, rate_hz, rate_hz * channels * bits // 8, channels * bits // 8, bits),
    )
    if extensible:
        guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        fields += struct.pack("<HHI", 22, bits, 0x3F if channels == 6 else 0) + guid
    size = len(data) if data_size is None else data_size
    body = b"WAVE" + chunk(b"fmt ", fields) + before + b"data" + struct.pack("<I", size) + data + after
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def interleave(*channels: Floats) -> Floats:
    """Return samples of several channels, which take turns."""
    return np.stack(channels, axis=1).ravel()


def to_width(samples: Floats, width: int, bits: int, *, low: bool = False, big_endian: bool = False) -> bytes:
    """Return *samples* as integers of *bits* in the upper bits of so many bytes, or in the *low* ones."""
    values = np.rint(np.asarray(samples, np.float64) * (2 ** (bits - 1) - 1)).astype("<i8")
    if not low:
        values <<= 8 * width - bits
    digits = values.view(np.uint8).reshape(-1, 8)[:, :width]
    return bytes((digits[:, ::-1] if big_endian else digits).tobytes())


def flac_bomb(size: int) -> bytes:
    """Return a FLAC file of at most *size* bytes that holds silence for nine seconds in every KiB."""
    whole = encode(silence(20, 48_000), "flac", "flac", 48_000)
    start = whole.index(b"\xff\xf8")
    header = bytearray(whole[:start])
    # STREAMINFO's count of samples, 36 bits: unknown.
    header[21] &= 0xF0
    header[22:26] = bytes(4)
    frames = whole[start:]
    return bytes(header) + frames * ((size - start) // len(frames))


def chunk(name: bytes, data: bytes) -> bytes:
    """Return one chunk of RIFF."""
    return name + struct.pack("<I", len(data)) + data


class _Unseekable:
    """Where a live recording is written to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def encode(
    samples: Floats,
    container: str,
    codec: str,
    rate_hz: int,
    *,
    layout: str = "mono",
    bit_rate: int | None = None,
    live: bool = False,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    video: bool = False,
    pause_s: tuple[float, float] = (0.0, 0.0),
    interleaved: bool = False,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """
    Return *samples* in a file that FFmpeg makes; a *live* one cannot go back and write its length.

    In a *pause_s*, from when to when, there is none of its packets. All channels have the same, unless *samples* are
    *interleaved* ones.
    """
    sink: Any = _Unseekable() if live else BytesIO()
    with av.open(sink, "w", format=container, container_options=options or {}) as output:
        output.metadata.update(metadata or {})
        stream = cast("AudioStream", output.add_stream(codec, rate=rate_hz, layout=layout, options=codec_options or {}))
        if bit_rate:
            stream.bit_rate = bit_rate
        if video:
            picture = output.add_stream("mpeg4" if container != "webm" else "libvpx", rate=10)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
            for _ in range(10):
                frame = av.VideoFrame(32, 32, "yuv420p")
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))

        def send(packets: list[Any]) -> None:
            for packet in packets:
                if not pause_s[0] <= float((packet.pts or 0) * packet.time_base) < pause_s[1]:
                    output.mux(packet)

        channels = stream.codec_context.layout.nb_channels
        values = (
            np.asarray(samples, np.float32) if interleaved else np.repeat(np.asarray(samples, np.float32), channels)
        )
        for start in range(0, len(values) // channels, rate_hz):
            piece = values[start * channels : (start + rate_hz) * channels]
            audio = av.AudioFrame.from_ndarray(piece[np.newaxis], format="flt", layout=layout)
            audio.rate = rate_hz
            audio.pts = start
            audio.time_base = Fraction(1, rate_hz)
            send(stream.encode(audio))
        send(stream.encode(None))
    return bytes(sink.data) if live else sink.getvalue()
