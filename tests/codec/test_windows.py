"""Windows: a long clip in pieces that a neighbour can take, and which of them need not be sent."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from jarvis_core.codec.clip import Samples, check_enhanced, to_base64
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.windows import cut_windows, is_silent
from tests.codec.sounds import AUDIO, silence, tone

RATE_HZ = 16_000


def noise(seconds: float, level: float) -> Samples:
    return (np.random.default_rng(1).standard_normal(round(seconds * RATE_HZ)) * level).astype(np.float32)


@pytest.mark.parametrize(
    "samples",
    [
        silence(0.0),
        silence(5.0),
        silence(5.0) + np.float32(0.3),
        noise(5.0, 0.001),
        tone(0.09),
        np.concatenate([silence(1.0), tone(0.02, amplitude=0.9), silence(1.0)]),
        np.concatenate([silence(1.0), silence(1.0) + np.float32(0.5)]),
    ],
    ids=["nothing", "silence", "offset", "hiss", "too_short", "click", "step"],
)
def test_silence(samples: Samples) -> None:
    """Where nobody can be speaking there is silence: hiss, a click and a constant offset are none of it."""
    assert is_silent(samples)


@pytest.mark.parametrize(
    "samples",
    [
        tone(1.0, amplitude=0.01),
        tone(0.1),
        np.concatenate([silence(20.0), tone(0.15, amplitude=0.05), silence(20.0)]),
        tone(1.0, amplitude=0.01, offset=0.4),
        noise(1.0, 0.01),
    ],
    ids=["quiet", "short", "word", "offset", "whisper"],
)
def test_not_silence(samples: Samples) -> None:
    """A quiet tone, a short one and one among long silence may be speech."""
    assert not is_silent(samples)


@pytest.mark.parametrize("name", ["en_0", "en_1", "en_2", "fr_0", "fr_1", "fr_2"])
def test_speech_is_not_silence(name: str) -> None:
    """Real speech is not silence, at a twentieth of its loudness either."""
    samples = decode_audio((AUDIO / f"fx16k_{name}.wav").read_bytes(), "body", limit_s=600.0).samples
    assert not is_silent(samples)
    assert not is_silent(samples * np.float32(0.05))


@pytest.mark.parametrize("seconds", [0.0001, 0.5, 1.999, 2.0, 2.0001, 5.0, 13.7])
def test_windows_are_the_clip(seconds: float) -> None:
    """Windows follow one another without a gap, none is too long, and together they are the clip."""
    samples = noise(seconds, 0.1)
    windows = list(cut_windows(samples, 2.0))
    assert np.array_equal(np.concatenate([window for _, window in windows]), samples)
    assert [start for start, _ in windows] == list(np.cumsum([0, *(len(window) for _, window in windows)])[:-1])
    assert all(0 < len(window) <= 2 * RATE_HZ for _, window in windows)
    assert len(windows) <= seconds / 1.4 + 1


def test_clip_of_one_window() -> None:
    """A clip that fits is one window, and an empty one is none."""
    assert [len(window) for _, window in cut_windows(tone(2.0), 2.0)] == [2 * RATE_HZ]
    assert list(cut_windows(silence(0.0), 2.0)) == []


@pytest.mark.parametrize("gap_s", [1.45, 1.6, 1.9])
def test_cut_is_made_in_a_gap(gap_s: float) -> None:
    """A window ends in the pause between two words, wherever it is in its last part."""
    samples = noise(5.0, 0.1)
    start = round(gap_s * RATE_HZ)
    samples[start : start + 960] *= 0.01
    first = next(cut_windows(samples, 2.0))[1]
    assert start < len(first) < start + 960


def test_cut_in_silence_is_late() -> None:
    """Where all is silent a window is as long as it may be."""
    assert len(next(cut_windows(silence(5.0), 2.0))[1]) > 1.98 * RATE_HZ


def test_window_fits_the_neighbour() -> None:
    """Even a window of 110 s stays under ten million characters of base64."""
    longest = max((window for _, window in cut_windows(silence(300.0), 110.0)), key=len)
    assert len(longest) > 109 * RATE_HZ
    assert len(to_base64(longest)) <= 10_000_000


# What the audio engine answers


def test_enhanced_window() -> None:
    """An enhanced window of the right length is used, kept within full scale."""
    samples = tone(0.5) * 3
    complaint, payload = check_enhanced(to_base64(samples), len(samples))
    assert complaint == ""
    assert np.array_equal(np.frombuffer(base64.b64decode(payload), "<f4"), np.clip(samples, -1, 1))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "0 bytes came back of 400"),
        (to_base64(tone(1.0)[:99]), "396 bytes"),
        (to_base64(tone(1.0)[:101]), "404 bytes"),
        (to_base64(tone(1.0)[:100])[:-4] + b"!===", "not base64"),
        (b"Internal Server Error", "not base64"),
        (to_base64(np.array([np.nan] + [0.0] * 99, np.float32)), "not numbers"),
        (to_base64(np.array([0.0] * 99 + [-np.inf], np.float32)), "not numbers"),
        (to_base64(tone(1.0)[:100] * np.float32(32_767)), "beyond ±8"),
    ],
)
def test_useless_enhanced_window(answer: bytes, words: str) -> None:
    """An answer of another length, or that is no samples, is not used, and the reason is given."""
    complaint, payload = check_enhanced(answer, 100)
    assert words in complaint
    assert payload == b""
