"""The formats of speech: what makes bytes to send of samples, as they come."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Literal, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.codec import CodecContext

from jarvis_core.codec.clip import Samples
from jarvis_core.codec.info_tag import info_frame
from jarvis_core.codec.linear import compress
from jarvis_core.codec.messages import OutputFormat, SampleEncoding

MP3_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MP3_KBPS = 64
MP3_FAST_KBPS = 96
"""For rates over 24,000 Hz."""

OPUS_RATE_HZ = 48_000
OPUS_BIT_RATE = 48_000
AAC_BIT_RATE = 64_000
OPUS_PAGE_US = 40_000
"""Sound in a page of Ogg; a page is sent when it is full and the next one begins."""

WAV_HEAD_BYTES = 44
UNKNOWN_BYTES = 0xFFFFFFFF
"""
Size of samples of which nobody knows how many there will be.

Measured with what reads such a file to its end: FFmpeg, mpv, GStreamer and libsndfile know this size and tell the true
length, SoX and Python's ``wave`` tell a day but play all. Of a size of 0 the last three hear nothing at all.
"""


class Encoder(Protocol):
    """One format's way of writing samples at one rate."""

    def encode(self, samples: Samples) -> bytes:
        """Return what can be sent now that *samples* have come."""
        ...

    def end(self) -> bytes:
        """Return what is left to be sent."""
        ...

    def beginning(self) -> bytes:
        """Return what the file would have begun with, had its length been known; empty where that is no matter."""
        ...


def allowed_rate(output_format: OutputFormat | SampleEncoding, wanted_hz: int) -> int:
    """Return the rate that *output_format* can have and that loses nothing of *wanted_hz*, if there is one."""
    if output_format == "opus":
        return OPUS_RATE_HZ
    if output_format in ("mp3", "aac"):
        # Those of AAC are the same and some beyond them.
        return next((rate_hz for rate_hz in MP3_RATES_HZ if rate_hz >= wanted_hz), MP3_RATES_HZ[-1])
    return wanted_hz


def open_encoder(output_format: OutputFormat | SampleEncoding, rate_hz: int) -> Encoder:
    """Return what writes *output_format* at a rate that it can have."""
    match output_format:
        case "wav":
            return _WavEncoder(rate_hz)
        case "pcm16":
            return _Pcm16Encoder()
        case "mulaw" | "alaw":
            return _G711Encoder(output_format)
        case "f32":
            return _Float32Encoder()
        case "mp3":
            return _Mp3Encoder(rate_hz)
        case "opus":
            return _OpusEncoder()
        case "aac":
            return _FileEncoder("adts", "aac", rate_hz, bit_rate=AAC_BIT_RATE)
        case "flac":
            return _FileEncoder("flac", "flac", rate_hz)


def wav_header(rate_hz: int, size: int | None = None) -> bytes:
    """Return the header of a mono 16-bit WAV of *size* bytes of samples; None is not known."""
    known = size is not None and size + WAV_HEAD_BYTES < UNKNOWN_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", size + WAV_HEAD_BYTES - 8 if size is not None and known else UNKNOWN_BYTES, b"WAVE"),
        *(b"fmt ", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16),
        *(b"data", size if known else UNKNOWN_BYTES),
    )


class _Pcm16Encoder:
    """16-bit samples."""

    def encode(self, samples: Samples) -> bytes:
        return _int16(samples).tobytes()

    def end(self) -> bytes:
        return b""

    def beginning(self) -> bytes:
        return b""


class _WavEncoder(_Pcm16Encoder):
    """The same, after a header."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._begun = False
        self._size = 0

    def encode(self, samples: Samples) -> bytes:
        data = super().encode(samples)
        self._size += len(data)
        head = b"" if self._begun else wav_header(self._rate_hz)
        self._begun = True
        return head + data

    def beginning(self) -> bytes:
        return wav_header(self._rate_hz, self._size) if self._begun else b""


class _G711Encoder(_Pcm16Encoder):
    """Samples of 8 bits, as telephones have them."""

    def __init__(self, kind: Literal["alaw", "mulaw"]) -> None:
        self._kind = kind

    def encode(self, samples: Samples) -> bytes:
        return compress(_int16(samples), self._kind).tobytes()


class _Float32Encoder:
    """The samples as they are."""

    def encode(self, samples: Samples) -> bytes:
        return samples.astype("<f4").tobytes()

    def end(self) -> bytes:
        return b""

    def beginning(self) -> bytes:
        return b""


class _Mp3Encoder:
    """
    MP3 frames after one that says what they are: a stream that is cut plays as far as it goes, two in a row play both.

    Without the bit reservoir no frame needs those before it.
    """

    def __init__(self, rate_hz: int) -> None:
        self._kbps = MP3_KBPS if rate_hz <= 24_000 else MP3_FAST_KBPS
        context = CodecContext.create("libmp3lame", "w")
        context.rate = rate_hz
        context.layout = "mono"
        context.format = "fltp"
        context.bit_rate = 1_000 * self._kbps
        context.time_base = Fraction(1, rate_hz)
        context.options = {"reservoir": "0"}
        self._context = context
        self._position = 0
        self._first = b""
        """Head of the first frame of sound, once it was made."""
        self._frames = 0
        self._size = 0

    def encode(self, samples: Samples) -> bytes:
        frame = _to_frame(samples, self._context.rate, self._position)
        self._position += len(samples)
        return b"" if frame is None else self._send(frame)

    def end(self) -> bytes:
        return self._send(None) if self._position else b""

    def beginning(self) -> bytes:
        if not self._first:
            return b""
        return info_frame(self._first, self._kbps, self._frames, self._size, self._position)

    def _send(self, frame: AudioFrame | None) -> bytes:
        packets = [bytes(packet) for packet in self._context.encode(frame)]
        self._frames += len(packets)
        self._size += sum(map(len, packets))
        if packets and not self._first:
            self._first = packets[0][:4]
            packets.insert(0, info_frame(self._first, self._kbps, None, 0, 0))
        return b"".join(packets)


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

    def beginning(self) -> bytes:
        return b""


class _FileEncoder:
    """What FFmpeg writes as it comes: AAC in ADTS, of which each frame stands for itself, and FLAC of unknown length."""

    def __init__(
        self, container: str, codec: Literal["aac", "flac"], rate_hz: int, *, bit_rate: int | None = None
    ) -> None:
        self._sink = _Sink()
        # FLAC would have 8 KiB of nothing in front of the first sound.
        self._output = av.open(self._sink, "w", format=container, options={"metadata_header_padding": "0"})
        self._stream = self._output.add_stream(codec, rate=rate_hz, layout="mono")
        if bit_rate is not None:
            self._stream.bit_rate = bit_rate
        self._stream.codec_context.thread_count = 1
        self._rate_hz = rate_hz
        self._position = 0

    def encode(self, samples: Samples) -> bytes:
        frame = _to_frame(samples, self._rate_hz, self._position)
        self._position += len(samples)
        if frame is not None:
            self._output.mux(self._stream.encode(frame))
        return self._sink.take()

    def end(self) -> bytes:
        if not self._position:
            return b""
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._sink.take()

    def beginning(self) -> bytes:
        return b""


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


def _int16(samples: Samples) -> npt.NDArray[np.int16]:
    values: npt.NDArray[np.int16] = np.rint(samples * np.float32(32_767)).astype("<i2")
    return values


def _to_frame(samples: Samples, rate_hz: int, position: int) -> AudioFrame | None:
    return to_frame(samples, rate_hz, position) if len(samples) else None


def to_frame(samples: Samples, rate_hz: int, position: int) -> AudioFrame:
    """Return mono *samples* as FFmpeg takes them; *position* is the first one's."""
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[np.newaxis]), format="fltp", layout="mono")
    frame.rate = rate_hz
    frame.pts = position
    frame.time_base = Fraction(1, rate_hz)
    return frame
