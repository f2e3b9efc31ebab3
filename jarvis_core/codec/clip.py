"""A clip on its way to float32 mono samples at one rate, gathered piece by piece so that its length is bounded."""

from __future__ import annotations

import binascii
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soxr

from jarvis_core.errors import TooLarge

Samples = npt.NDArray[np.float32]

RATE_HZ = 16_000
"""What the speech models and the audio engine take."""

PADDING_S = 0.25
"""By how much a clip may be over its limit: codecs fill up their first and last frames."""

PIECE_SAMPLES = 1 << 16

LOUDEST = 8.0
"""Float samples beyond this (18 dB over full scale) are something else than audio."""

VALUES_PER_S = 8 * 48_000
"""Samples times channels that may be decoded for each second that a clip may have."""
PARTS_PER_S = 1_000
"""Packets and frames, together, likewise: Opus has 800 at most, where each lasts 2.5 ms."""


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


class Budget:
    """
    What may be spent on one clip of at most *limit_s* seconds.

    Raises ``TooLarge`` where there is more in it, or in more pieces, than in any honest one, or the processor's time is over.
    """

    def __init__(self, limit_s: float, cpu: CpuLimit) -> None:
        self._cpu = cpu
        self._parts_left = self._parts_limit = int(limit_s * PARTS_PER_S)
        self._values_left = self._values_limit = int(limit_s * VALUES_PER_S)

    def spend(self, *, parts: int = 1, values: int = 0) -> None:
        """Take so many packets or frames, and so many samples on all channels."""
        self._cpu.check()
        self._parts_left -= parts
        if self._parts_left < 0:
            limit = self._parts_limit
            raise TooLarge(f"The audio has more than {limit} packets and frames.", details={"limit_parts": limit})
        self._values_left -= values
        if self._values_left < 0:
            limit = self._values_limit
            raise TooLarge(
                f"The audio has more than {limit} samples on its channels.", details={"limit_samples": limit}
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

    def pause(self, seconds: float) -> None:
        """
        Append silence, as a recording has it that was stopped for a while.

        One that would make the clip too long is none: some clock was set anew.
        """
        samples = round(seconds * self._source_hz)
        if self.duration_s + seconds > self._limit_s:
            return
        for start in range(0, samples, PIECE_SAMPLES):
            self.add(np.zeros(min(PIECE_SAMPLES, samples - start), np.float32), self._source_hz)

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
    if np.abs(samples).max(initial=0) > LOUDEST:
        return f"some of its samples are beyond ±{LOUDEST:g}, which is no float32 audio", b""
    return "", to_base64(np.clip(samples, -1.0, 1.0))


def to_base64(samples: Samples) -> bytes:
    """Return float32 little-endian *samples* in base64."""
    return binascii.b2a_base64(np.ascontiguousarray(samples, "<f4").data, newline=False)
