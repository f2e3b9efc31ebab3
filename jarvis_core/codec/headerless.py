"""Samples without a file around them, whose kind somebody told, or nobody."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from jarvis_core.codec.clip import LOUDEST, PIECE_SAMPLES, RATE_HZ, Budget, Clip, ClipBuilder
from jarvis_core.codec.linear import Kind, Layout, Linear, rows_of
from jarvis_core.codec.mix import Mixer
from jarvis_core.codec.request import SAMPLE_RATE_MAX_HZ, SAMPLE_RATE_MIN_HZ
from jarvis_core.errors import InvalidRequest

Encoding = Literal["untold", "f32", "pcm16", "pcm16be", "pcm24", "pcm24be", "u8", "alaw", "mulaw", "pcm"]

LAYOUTS: dict[Encoding, tuple[Kind, int, bool]] = {
    "f32": ("float", 4, False),
    "pcm16": ("int", 2, False),
    "pcm16be": ("int", 2, True),
    "pcm24": ("int", 3, False),
    "pcm24be": ("int", 3, True),
    "u8": ("uint", 1, False),
    "alaw": ("alaw", 1, False),
    "mulaw": ("mulaw", 1, False),
}
"""
Kind, width and whether it is big-endian.

What is ``untold`` has to be float32 to the last byte; ``pcm`` is 16 bits, unless it can be nothing but float32.
"""

PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r\f\v"
AUDIBLE = 1e-3
"""Peak that float32 samples have at least; 16-bit ones of which every second is 0 would be quieter ones."""


class Headerless(NamedTuple):
    """What was told of samples."""

    encoding: Encoding = "untold"
    rate_hz: int = RATE_HZ
    channels: int = 1


NOTHING_TOLD = Headerless()


def read_headerless(data: bytes, told: Headerless, path: str, limit_s: float, budget: Budget) -> Clip:
    """
    Return samples as a clip at 16 kHz; what is left of a last one is none.

    Raises ``InvalidRequest`` at *path* where *data* cannot be what was *told*, ``TooLarge`` over *limit_s* seconds.
    """
    rate_hz, channels = told.rate_hz, told.channels
    if not SAMPLE_RATE_MIN_HZ <= rate_hz <= SAMPLE_RATE_MAX_HZ:
        raise InvalidRequest.field(
            path, f"has {rate_hz} samples a second, not {SAMPLE_RATE_MIN_HZ}..{SAMPLE_RATE_MAX_HZ}"
        )
    encoding = told.encoding
    if encoding in ("f32", "untold"):
        check_float32(data, path, whole=encoding == "untold")
        encoding = "f32"
    elif encoding == "pcm":
        encoding = "f32" if _must_be_float32(data) else "pcm16"
    kind, width, big_endian = LAYOUTS[encoding]
    linear = Linear(Layout(kind, width, rate_hz, channels, big_endian), 0, len(data))
    builder, mixer = ClipBuilder(RATE_HZ, limit_s), Mixer(channels)
    for rows in rows_of(data, linear, path, encoding):
        budget.spend(values=rows.size)
        builder.add(mixer.mix(rows), rate_hz)
    return builder.finish()


def check_float32(data: bytes, path: str, *, whole: bool) -> None:
    """
    Raise ``InvalidRequest`` where *data* is not float32 audio, to the last byte where it has to be *whole*.

    Whatever else there is shows by its exponents: they make of text, compressed data and 16-bit samples numbers without
    measure, except of digits and punctuation alone.
    """
    rule = "is neither a known kind of audio file nor float32 samples"
    if is_text(data[:4_096]):
        raise InvalidRequest.field(path, f"{rule}: it is text")
    if len(data) % 4 and (whole or len(data) < 4):
        raise InvalidRequest.field(path, f"{rule}: {len(data)} bytes are no multiple of 4")
    if not float32_peak(data) <= LOUDEST:
        raise InvalidRequest.field(path, f"{rule} between -1 and 1")


def float32_peak(data: bytes) -> float:
    """Return the largest of float32 samples without its sign; it is not a number where one of them is none."""
    samples = np.frombuffer(data, "<f4", len(data) // 4)
    peaks = [np.abs(samples[first : first + PIECE_SAMPLES]).max() for first in range(0, len(samples), PIECE_SAMPLES)]
    # No maximum of Python's: a NaN is neither more nor less than anything.
    return float(np.max(peaks)) if peaks else 0.0


def is_text(data: bytes) -> bool:
    """Tell whether *data* is made of ASCII's printable characters and white space."""
    return bool(data) and not data.translate(None, PRINTABLE)


def _must_be_float32(data: bytes) -> bool:
    """Tell whether what is only said to be samples can be nothing else."""
    return len(data) % 4 == 0 and AUDIBLE <= float32_peak(data) <= LOUDEST
