"""A clip on its way to float32 mono samples at one rate, gathered piece by piece so that its length is bounded."""

from __future__ import annotations

import binascii
import time
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import soxr

from jarvis_core.codec.request import SAMPLE_RATE_MAX_HZ, SAMPLE_RATE_MIN_HZ
from jarvis_core.errors import InvalidRequest, TooLarge

Samples = npt.NDArray[np.float32]
Encoding = Literal["f32", "pcm16", "pcm16be"]

RATE_HZ = 16_000
"""What the speech models and the audio engine take."""

PADDING_S = 0.25
"""By how much a clip may be over its limit: codecs fill up their first and last frames."""

PIECE_SAMPLES = 1 << 16

LOUDEST = 8.0
"""Float samples beyond this (18 dB over full scale) are something else than audio."""

PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r\f\v"


class Clip(NamedTuple):
    """Mono samples within ±1, and how many there are a second."""

    samples: Samples
    rate_hz: int


class CpuLimit:
    """Bounds how long the processor works on one clip; the time that others have it does not count."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._end_s = time.process_time() + limit_s

    def check(self) -> None:
        """Raise ``TooLarge`` where the time is over."""
        if time.process_time() > self._end_s:
            raise TooLarge(
                f"The audio takes more than {self._limit_s:g} s of the processor's time.",
                details={"limit_cpu_s": self._limit_s},
            )


class ClipBuilder:
    """
    Makes one clip of mono pieces; *rate_hz* None keeps the rate of the first one.

    Raises ``TooLarge`` as soon as the pieces are longer than *limit_s* seconds.
    """

    def __init__(self, rate_hz: int | None, limit_s: float) -> None:
        self.duration_s = 0.0
        self._rate_hz = rate_hz
        self._limit_s = limit_s
        self._pieces: list[Samples] = []
        self._resampler: soxr.ResampleStream | None = None
        self._source_hz = 0

    def add(self, samples: Samples, rate_hz: int) -> None:
        """Append *samples* that come at *rate_hz*."""
        self.duration_s += len(samples) / rate_hz
        if self.duration_s > self._limit_s + PADDING_S:
            raise too_long(self._limit_s)
        if self._rate_hz is None:
            self._rate_hz = rate_hz
        if rate_hz != self._source_hz:
            self._flush()
            self._source_hz = rate_hz
            if rate_hz != self._rate_hz:
                self._resampler = soxr.ResampleStream(rate_hz, self._rate_hz, 1, dtype="float32", quality="HQ")
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._pieces.append(samples)

    def finish(self) -> Clip:
        """Return the whole clip."""
        self._flush()
        samples = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        self._pieces.clear()
        np.clip(samples, -1.0, 1.0, out=samples)
        return Clip(samples, self._rate_hz or RATE_HZ)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._pieces.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self._resampler = None


def too_long(limit_s: float) -> TooLarge:
    """Return the error of a clip over *limit_s* seconds."""
    limit = int(limit_s) if limit_s == int(limit_s) else limit_s
    return TooLarge(f"The audio is longer than {limit} s.", details={"limit_s": limit})


def read_headerless(data: bytes, encoding: Encoding, rate_hz: int, path: str, limit_s: float) -> Clip:
    """
    Return headerless mono samples as a clip at 16 kHz.

    Raises ``InvalidRequest`` at *path* where *data* cannot be that, ``TooLarge`` over *limit_s* seconds.
    """
    if not SAMPLE_RATE_MIN_HZ <= rate_hz <= SAMPLE_RATE_MAX_HZ:
        raise InvalidRequest.field(
            path, f"has {rate_hz} samples a second, not {SAMPLE_RATE_MIN_HZ}..{SAMPLE_RATE_MAX_HZ}"
        )
    builder = ClipBuilder(RATE_HZ, limit_s)
    if encoding == "f32":
        _check_float32(data, path)
        samples: npt.NDArray[np.float32 | np.int16] = np.frombuffer(data, "<f4")
        scale = 1.0
    else:
        if len(data) % 2:
            raise InvalidRequest.field(path, f"has {len(data)} bytes, which is no whole number of 16-bit samples")
        samples = np.frombuffer(data, ">i2" if encoding == "pcm16be" else "<i2")
        scale = 1 / 32_768
    for start in range(0, len(samples), PIECE_SAMPLES):
        piece = samples[start : start + PIECE_SAMPLES].astype(np.float32)
        builder.add(piece * np.float32(scale), rate_hz)
    return builder.finish()


def _check_float32(data: bytes, path: str) -> None:
    """
    Raise ``InvalidRequest`` where *data* is not float32 audio.

    Whatever else there is shows by its exponents: they make of text, compressed data and 16-bit samples numbers without
    measure, except of digits and punctuation alone.
    """
    rule = "is neither a known kind of audio file nor float32 samples"
    if len(data) % 4:
        raise InvalidRequest.field(path, f"{rule}: {len(data)} bytes are no multiple of 4")
    if is_text(data[:4_096]):
        raise InvalidRequest.field(path, f"{rule}: it is text")
    samples = np.frombuffer(data, "<f4")
    for start in range(0, len(samples), PIECE_SAMPLES):
        peak = np.abs(samples[start : start + PIECE_SAMPLES]).max()
        # A NaN is no less than anything either.
        if not peak <= LOUDEST:
            raise InvalidRequest.field(path, f"{rule} between -1 and 1")


def is_text(data: bytes) -> bool:
    """Tell whether *data* is made of ASCII's printable characters and white space."""
    return bool(data) and not data.translate(None, PRINTABLE)


def check_enhanced(answer: bytes, count: int) -> tuple[str, bytes]:
    """
    Judge an audio engine's *answer*, the base64 of *count* samples.

    Returns what is wrong with it, or the empty string and the samples in base64 again, kept within ±1.
    """
    try:
        data = binascii.a2b_base64(answer, strict_mode=True)
    except ValueError:
        return "its samples are not base64", b""
    if len(data) != count * 4:
        return f"{len(data)} bytes came back of {count * 4}", b""
    samples = np.frombuffer(data, "<f4")
    if not np.isfinite(samples).all():
        return "some of its samples are not numbers", b""
    return "", to_base64(np.clip(samples, -1.0, 1.0))


def to_base64(samples: Samples) -> bytes:
    """Return float32 little-endian *samples* in base64."""
    return binascii.b2a_base64(np.ascontiguousarray(samples, "<f4").data, newline=False)
