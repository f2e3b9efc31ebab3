"""Mixing: what is on several channels is heard on one, whatever sign it has on each."""

from __future__ import annotations

import numpy as np
import pytest

from jarvis_core.codec.clip import Samples
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.mix import Mixer
from jarvis_core.codec.windows import is_silent
from tests.codec.sounds import Floats, amplitude, encode, interleave, peak_hz, silence, tone, wav

LEFT = tone(5.0)
HISS = (np.random.default_rng(1).standard_normal(len(LEFT)) * 0.01).astype(np.float32)
TWO_WAY = 0.5 * LEFT + 0.5 * tone(5.0, hz=620.0)


def stereo(*channels: Floats) -> bytes:
    """Return a WAV of float samples on several channels."""
    data = bytearray(wav(interleave(*channels), kind="f32"))
    data[22:24] = len(channels).to_bytes(2, "little")
    data[32:34] = (4 * len(channels)).to_bytes(2, "little")
    return bytes(data)


def decode(data: bytes) -> Samples:
    return decode_audio(data, "body", limit_s=600.0).samples


@pytest.mark.parametrize(
    ("channels", "loud"),
    [
        ([LEFT, silence(5.0)], 0.25),
        ([silence(5.0), LEFT], 0.25),
        ([LEFT, LEFT], 0.5),
        ([LEFT, -LEFT], 0.5),
        ([LEFT, np.float32(-0.7) * LEFT], 0.425),
        ([np.float32(0.2) * LEFT, -LEFT], 0.3),
        ([LEFT + HISS, -LEFT + HISS[::-1]], 0.5),
        ([LEFT, LEFT, -LEFT], 0.5),
        ([LEFT, -LEFT, -LEFT, LEFT, -LEFT], 0.5),
        ([silence(5.0), LEFT, silence(5.0), -LEFT], 0.25),
    ],
    ids=["left", "right", "both", "inverted", "quieter", "louder", "hiss", "third", "five", "far_apart"],
)
def test_channels_are_averaged(channels: list[Floats], loud: float) -> None:
    """What is on one of two channels is half as loud, and what is on both is heard, also where one has the opposite sign."""
    samples = decode(stereo(*channels))
    assert peak_hz(samples) == pytest.approx(440.0, abs=1.0)
    assert amplitude(samples) == pytest.approx(loud, rel=0.02)
    assert not is_silent(samples)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp3", "libmp3lame"), ("ogg", "libopus"), ("mp4", "aac"), ("flac", "flac"), ("caf", "alac")],
)
def test_inverted_side_of_a_coded_file(container: str, codec: str) -> None:
    """A side with the opposite sign takes nothing away in a compressed file either."""
    left = tone(3.0, rate_hz=48_000)
    samples = decode(encode(interleave(left, -left), container, codec, 48_000, layout="stereo", interleaved=True))
    assert len(samples) / 16_000 == pytest.approx(3.0, abs=0.05)
    assert amplitude(samples) == pytest.approx(0.5, rel=0.06)


def test_different_channels_keep_their_signs() -> None:
    """Two people, each on a channel of their own, are both heard, and nothing is turned."""
    one, other = tone(5.0, hz=300.0), tone(5.0, hz=1_000.0)
    assert np.allclose(decode(stereo(one, other)), (one + other) / 2, atol=1e-6)


def test_sides_that_differ_a_little_keep_their_signs() -> None:
    """A little that is opposite, as in any recording of a room, is no reason to turn a side."""
    assert np.allclose(decode(stereo(TWO_WAY, LEFT - TWO_WAY)), LEFT / 2, atol=1e-6)


def test_no_sign_changes_in_mid_speech() -> None:
    """A side that was turned stays so, though nothing is the same on both for a while."""
    mixer = Mixer(2)
    pieces = [LEFT[:16_000], HISS[:16_000], LEFT[:16_000]]
    mixed = [
        mixer.mix(np.stack([left, -right]))
        for left, right in zip(pieces, [*pieces[:1], HISS[16_000:32_000], pieces[2]], strict=True)
    ]
    assert np.allclose(mixed[0], pieces[0], atol=1e-6)
    assert np.allclose(mixed[2], pieces[2], atol=1e-6)


def test_nothing_is_mixed_of_silence() -> None:
    """Channels without any sound are silence, not a division by nothing."""
    assert np.abs(Mixer(3).mix(np.zeros((3, 100), np.float32))).max() == 0
