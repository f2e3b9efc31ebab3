"""
Samples as they are: without compression, in any width, order of bytes and number of channels.

FFmpeg is not asked for these: it sizes the samples of some files by their valid bits, reads big-endian WAV as noise, and
loses a whole piece where half a sample stands at its end (seen with 8.0, PyAV 18.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from jarvis_core.codec.clip import LOUDEST, PIECE_SAMPLES
from jarvis_core.errors import InvalidRequest

Kind = Literal["int", "uint", "float", "alaw", "mulaw"]

WIDTHS: dict[Kind, tuple[int, ...]] = {
    "int": (1, 2, 3, 4, 8),
    "uint": (1, 2, 3, 4),
    "float": (2, 4, 8),
    "alaw": (1,),
    "mulaw": (1,),
}
"""Bytes that a sample may take."""


class Layout(NamedTuple):
    """How samples lie in their bytes."""

    kind: Kind
    width: int
    """Bytes of a sample, one of ``WIDTHS``."""
    rate_hz: float
    channels: int = 1
    """They take turns."""
    big_endian: bool = False
    bits: int = 0
    """Of an integer, those of its width that mean anything; 0 where all do."""

    @property
    def frame_bytes(self) -> int:
        """How many bytes a sample on each channel takes."""
        return self.width * self.channels


class Linear(NamedTuple):
    """Samples in a file."""

    layout: Layout
    start: int
    end: int
    """Where they begin and end; what is left of a last frame is no sample."""


def rows_of(data: bytes, linear: Linear, path: str, name: str) -> Iterator[npt.NDArray[np.float32]]:
    """
    Give the samples of *data* piece by piece, a row for each channel, full scale at ±1 and floats little beyond it.

    Raises ``InvalidRequest`` at *path*, which is *name*, where floats are no numbers.
    """
    layout, start, end = linear
    count = max(end - start, 0) // layout.frame_bytes * layout.channels
    raw = np.frombuffer(data, np.uint8, count * layout.width, min(start, len(data)))
    scale = _full_scale(raw, layout)
    step = PIECE_SAMPLES * layout.frame_bytes
    for first in range(0, len(raw), step):
        values = _values(raw[first : first + step], layout)
        if layout.kind == "float":
            if not np.isfinite(values).all():
                raise InvalidRequest.field(path, f"is {name} with samples that are not numbers")
            floats = np.clip(values, -LOUDEST, LOUDEST).astype(np.float32)
        else:
            floats = np.multiply(values, np.float32(1 / scale), dtype=np.float32)
        yield floats.reshape(-1, layout.channels).T


def expand(raw: npt.NDArray[np.uint8], kind: Literal["alaw", "mulaw"]) -> npt.NDArray[np.int16]:
    """Return the samples that the bytes *raw* stand for (ITU-T G.711)."""
    return (_alaw_table() if kind == "alaw" else _mulaw_table())[raw]


def compress(samples: npt.NDArray[np.int16], kind: Literal["alaw", "mulaw"]) -> npt.NDArray[np.uint8]:
    """Return the bytes that stand for *samples*: for each the nearest that there is (ITU-T G.711)."""
    return _codes(kind)[samples.view(np.uint16)]


def _values(raw: npt.NDArray[np.uint8], layout: Layout) -> npt.NDArray[Any]:
    """Return the numbers that the bytes *raw* stand for, as they are."""
    order = ">" if layout.big_endian else "<"
    match layout.kind:
        case "float":
            return raw.view(f"{order}f{layout.width}")
        case "alaw" | "mulaw":
            return expand(raw, layout.kind)
        case _:
            sign = "i" if layout.kind == "int" else "u"
    values = _widen(raw, layout) if layout.width == 3 else raw.view(f"{order}{sign}{layout.width}")
    return values if sign == "i" else values.astype(np.int64) - (1 << (8 * layout.width - 1))


def _widen(raw: npt.NDArray[np.uint8], layout: Layout) -> npt.NDArray[Any]:
    """Return numbers of three bytes in four: each is read with a neighbour's byte below it, which is shifted out."""
    order, sign = ">" if layout.big_endian else "<", "i" if layout.kind == "int" else "u"
    padded = np.zeros(len(raw) + 1, np.uint8)
    padded[0 if layout.big_endian else 1 :][: len(raw)] = raw
    return np.ndarray((len(raw) // 3,), f"{order}{sign}4", padded.data, strides=(3,)) >> 8


def _full_scale(raw: npt.NDArray[np.uint8], layout: Layout) -> float:
    """
    Return which number is as loud as can be.

    Where not all bits mean something they are the upper ones (the WAVEFORMATEXTENSIBLE structure's documentation), but
    ALSA's recorder writes the lower ones: these are known by numbers that would be too small for the others, and have
    something where those have nothing.
    """
    match layout.kind:
        case "float":
            return 1.0
        case "alaw" | "mulaw":
            return 32_768.0
    width_bits = 8 * layout.width
    unused = width_bits - layout.bits
    if layout.kind == "uint" or not 0 < unused < width_bits:
        return float(1 << (width_bits - 1))
    limit, step, filled = 1 << (layout.bits - 1), PIECE_SAMPLES * layout.width, False
    for first in range(0, len(raw), step):
        values = _values(raw[first : first + step], layout)
        if values.max() >= limit or values.min() < -limit:
            return float(1 << (width_bits - 1))
        filled = filled or bool(np.any(values & ((1 << unused) - 1)))
    return float(limit if filled else 1 << (width_bits - 1))


@cache
def _codes(kind: Literal["alaw", "mulaw"]) -> npt.NDArray[np.uint8]:
    """Return the byte for each sample of 16 bits, from 0 to 32,767 and then from -32,768 to -1; 0 is the positive one."""
    values = expand(np.arange(256, dtype=np.uint8), kind).astype(np.int32)
    order = np.argsort(values, kind="stable")
    middles = (values[order][1:] + values[order][:-1]) / 2
    samples = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    return order[np.searchsorted(middles, samples, "right")].astype(np.uint8)


@cache
def _alaw_table() -> npt.NDArray[np.int16]:
    """Return what each byte of A-law stands for (ITU-T G.711)."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = code >> 4 & 7, (code & 15) << 4
    size = np.where(exponent == 0, mantissa + 8, (mantissa + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, size, -size).astype(np.int16)


@cache
def _mulaw_table() -> npt.NDArray[np.int16]:
    """Return what each byte of µ-law stands for (ITU-T G.711)."""
    code = ~np.arange(256) & 0xFF
    size = ((((code & 15) << 3) + 0x84) << (code >> 4 & 7)) - 0x84
    return np.where(code & 0x80, -size, size).astype(np.int16)
