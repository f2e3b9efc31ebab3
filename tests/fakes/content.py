"""What the fakes answer: made from what they were asked, so that a test can tell what arrived."""

from __future__ import annotations

import array
import base64
import hashlib
import math
import random
import re
import struct
from functools import lru_cache

import msgspec

_SPEAKER = re.compile(
    r"^[ \t]*(?:user|utilisateur|utilisatrice|human|humain)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE
)
_OPEN_LABEL = re.compile(r"\n[ \t]*[\w ]{1,30}:[ \t]*$")


_TIME = re.compile(r"\[\d{1,2}(?::| h )\d\d(?:, (?:in|en) \w+)?\]\n{1,2}")


def without_time(content: str) -> str:
    """Return a user's message as it was said, without the time and the language that precede it in a prompt."""
    return _TIME.sub("", content)


def last_words(prompt: str) -> str:
    """
    Find what the user said last in a prompt that may have history packed into it.

    That is what follows the last label such as ``User:``, without an open label such as ``Assistant:`` at the end;
    without any label it is the last paragraph.
    """
    text = _OPEN_LABEL.sub("", prompt.rstrip())
    labels = list(_SPEAKER.finditer(text))
    if labels:
        return text[labels[-1].end() :].strip()
    return text.rstrip().rpartition("\n\n")[2].strip()


def split_words(text: str) -> list[str]:
    """Split *text* into deltas of a word each, which joined are the text again."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text) or ([text] if text else [])


@lru_cache(maxsize=8192)
def _direction(word: str, dimension: int) -> tuple[float, ...]:
    digest = hashlib.shake_256(word.encode("utf-8", "surrogatepass")).digest(2 * dimension)
    return tuple(value / 32768.0 for value in struct.unpack(f"<{dimension}h", digest))


@lru_cache(maxsize=4096)
def embed(text: str, dimension: int) -> bytes:
    """
    Embed *text* as float32 little-endian of length 1: a bag of hashed words, and a little of the whole text.

    Equal texts have equal vectors, texts that share words are near (cosine about the share of common words), others are
    near 0.
    """
    total = [0.1 * value for value in _direction(text, dimension)]
    for word in re.findall(r"\w+", text.lower()):
        direction = _direction(word, dimension)
        total = [a + b for a, b in zip(total, direction, strict=True)]
    length = math.sqrt(math.fsum(value * value for value in total)) or 1.0
    return struct.pack(f"<{dimension}f", *(value / length for value in total))


@lru_cache(maxsize=64)
def _tone_period(sample_rate_hz: int) -> bytes:
    period = max(2, round(sample_rate_hz / 440))
    return struct.pack(f"<{period}f", *(0.3 * math.sin(2 * math.pi * n / period) for n in range(period)))


def tone(duration_s: float, sample_rate_hz: int) -> bytes:
    """Make about 440 Hz at amplitude 0.3 as float32 little-endian mono."""
    period = _tone_period(sample_rate_hz)
    size = 4 * round(duration_s * sample_rate_hz)
    return (period * (size // len(period) + 1))[:size]


def wav(pcm_float32: bytes, sample_rate_hz: int) -> bytes:
    """Wrap float32 samples into a WAV file of 16-bit PCM."""
    samples = array.array("f", pcm_float32)
    pcm = struct.pack(f"<{len(samples)}h", *(round(max(-1.0, min(1.0, value)) * 32767) for value in samples))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    data = form + struct.pack("<4sI", b"data", len(pcm)) + pcm
    return struct.pack("<4sI4s", b"RIFF", 4 + len(data), b"WAVE") + data


def mp3(duration_s: float) -> bytes:
    """Make silence as MPEG-1 layer III frames (128 kbit/s, 44.1 kHz, stereo: 417 bytes and 26 ms each)."""
    return (b"\xff\xfb\x90\x00" + bytes(413)) * max(1, math.ceil(duration_s / 0.02612))


def encode_base64(data: bytes) -> str:
    """Encode *data* as the contracts carry audio and vectors."""
    return base64.b64encode(data).decode("ascii")


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What one clip of raw float32 little-endian mono sounded like."""

    samples: int
    """How many."""
    duration_s: float
    """At the sample rate of the contract."""
    peak: float
    """The largest magnitude; NaN when a sample is."""
    rms: float
    """Root mean square; NaN when a sample is."""


def hear(pcm_float32: bytes, sample_rate_hz: int) -> Heard:
    """Measure a clip; its size is a multiple of 4 bytes."""
    samples = array.array("f", pcm_float32)
    count = len(samples)
    broken = not all(map(math.isfinite, samples))
    return Heard(
        samples=count,
        duration_s=count / sample_rate_hz,
        peak=math.nan if broken else max(map(abs, samples), default=0.0),
        rms=math.nan if broken else math.sqrt(math.fsum(value * value for value in samples) / max(1, count)),
    )


def noise(duration_s: float, sample_rate_hz: int, amplitude: float = 0.3) -> bytes:
    """Make reproducible noise as float32 little-endian mono: a clip that is not silence."""
    dice = random.Random(7)
    samples = array.array("f", (dice.uniform(-amplitude, amplitude) for _ in range(round(duration_s * sample_rate_hz))))
    return samples.tobytes()
