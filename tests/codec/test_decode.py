"""Decoding: every kind of file that clients send becomes mono samples at 16 kHz that sound the same."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from jarvis_core.codec.clip import ClipBuilder, Samples
from jarvis_core.codec.containers import MP3, Found, find_container
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.headerless import Encoding, Headerless
from tests.codec.sounds import (
    AUDIO,
    Floats,
    amplitude,
    chunk,
    encode,
    peak_hz,
    to_pcm,
    tone,
    wav,
)

RATE_HZ = 16_000


def decode(data: bytes, **options: Any) -> Samples:
    """Return the samples of *data*."""
    clip = decode_audio(data, "body", limit_s=600.0, **options)
    assert clip.rate_hz == RATE_HZ
    assert clip.samples.dtype == np.float32
    return clip.samples


def assert_is_tone(
    samples: Floats, seconds: float, *, hz: float = 440.0, loud: float = 0.5, slack_s: float = 0.001
) -> None:
    assert len(samples) / RATE_HZ == pytest.approx(seconds, abs=slack_s)
    assert peak_hz(samples) == pytest.approx(hz, abs=1.0)
    assert amplitude(samples) == pytest.approx(loud, rel=0.06)
    assert np.abs(samples).max() <= 1.0


@pytest.mark.parametrize("channels", [1, 2, 6, 32])
@pytest.mark.parametrize("kind", ["u8", "s16", "s24", "s32", "f32", "f64"])
@pytest.mark.parametrize("extensible", [False, True], ids=["plain", "extensible"])
def test_wav_samples(kind: str, channels: int, extensible: bool) -> None:
    """A WAV of any kind of samples, on any number of channels, has the same tone in it."""
    data = wav(tone(1.0, rate_hz=44_100), 44_100, kind, channels, extensible=extensible)
    assert_is_tone(decode(data), 1.0)


@pytest.mark.parametrize("rate_hz", [1_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000, 768_000])
def test_wav_rates(rate_hz: int) -> None:
    """A WAV of any rate has the right length and the same tone."""
    assert_is_tone(decode(wav(tone(1.5, rate_hz=rate_hz), rate_hz)), 1.5)


def test_wav_at_16_khz_is_not_touched() -> None:
    """What has the right form already stays as it is, to the last bit."""
    samples = tone(0.5)
    assert np.array_equal(decode(wav(samples, kind="f32")), samples)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("riff_size", [None, 0, 0xFFFFFFFF])
def test_streamed_wav(size: int, riff_size: int | None) -> None:
    """A WAV whose writer did not know its size goes to the end."""
    assert_is_tone(decode(wav(tone(1.0), data_size=size, riff_size=riff_size)), 1.0)


def test_wav_with_other_chunks() -> None:
    """Chunks around the samples, of odd sizes too, are not heard."""
    note = chunk(b"LIST", b"INFOabc") + b"\0"
    samples = tone(1.0)
    assert np.array_equal(decode(wav(samples, kind="f32", before=note, after=note)), samples)


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("place", ["before", "after"])
def test_wav_with_an_empty_list(size: int, place: str) -> None:
    """A chunk LIST that says nothing, which FFmpeg refuses, is not heard either."""
    note = chunk(b"LIST", bytes(size)) + bytes(size % 2)
    samples = tone(1.0)
    before, after = (note, b"") if place == "before" else (b"", note)
    assert np.array_equal(decode(wav(samples, kind="f32", before=before, after=after)), samples)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_too_loud_floats_are_clipped(kind: str) -> None:
    """Floats beyond full scale are cut off at it, the largest too."""
    loud = tone(1.0).astype(np.float64)
    loud[100:200] = {"f32": 3e38, "f64": 1e300}[kind]
    samples = decode(wav(loud * 1.1, 44_100, kind=kind))
    assert np.abs(samples).max() == 1.0
    assert np.isfinite(samples).all()


CODED: dict[str, tuple[str, str, int, str, dict[str, Any]]] = {
    "flac": ("flac", "flac", 44_100, "stereo", {}),
    "flac 96 kHz": ("flac", "flac", 96_000, "mono", {}),
    "flac 7.1": ("flac", "flac", 48_000, "7.1", {}),
    "mp3": ("mp3", "libmp3lame", 44_100, "stereo", {}),
    "mp3 8 kHz": ("mp3", "libmp3lame", 8_000, "mono", {}),
    "mp3 24 kHz": ("mp3", "libmp3lame", 24_000, "mono", {}),
    "mp3 live": ("mp3", "libmp3lame", 44_100, "mono", {"live": True}),
    "mp3 bare": ("mp3", "libmp3lame", 44_100, "mono", {"options": {"write_xing": "0", "id3v2_version": "0"}}),
    "aac adts": ("adts", "aac", 44_100, "mono", {}),
    "ogg opus": ("ogg", "libopus", 48_000, "mono", {}),
    "ogg opus 5.1": ("ogg", "libopus", 48_000, "5.1", {}),
    "ogg opus 7.1": ("ogg", "libopus", 48_000, "7.1", {}),
    "ogg vorbis": ("ogg", "vorbis", 44_100, "stereo", {"codec_options": {"strict": "-2"}}),
    "ogg flac": ("ogg", "flac", 44_100, "mono", {}),
    "webm": ("webm", "libopus", 48_000, "mono", {}),
    "webm live": ("webm", "libopus", 48_000, "mono", {"live": True}),
    "mka pcm": ("matroska", "pcm_f32le", 44_100, "mono", {}),
    "mp4": ("mp4", "aac", 44_100, "mono", {}),
    "m4a": ("ipod", "aac", 48_000, "stereo", {}),
    "m4a alac": ("ipod", "alac", 44_100, "mono", {}),
    "mp4 index first": ("mp4", "aac", 44_100, "mono", {"options": {"moov_size": "20000"}}),
    "mp4 fragments": (
        "mp4", "aac", 44_100, "mono", {"options": {"movflags": "frag_keyframe+empty_moov"}, "live": True},
    ),
    "rf64": ("wav", "pcm_s16le", 44_100, "mono", {"options": {"rf64": "always"}}),
    "w64": ("w64", "pcm_s16le", 44_100, "mono", {}),
    "wav a-law": ("wav", "pcm_alaw", 8_000, "mono", {}),
    "wav adpcm": ("wav", "adpcm_ms", 44_100, "mono", {}),
}  # fmt: skip
"""Container, codec, rate and layout, and what else its making needs."""


@pytest.mark.parametrize("name", CODED)
def test_files(name: str) -> None:
    """Each kind of file has the tone in it, with the right length but for a codec's padding."""
    container, codec, rate_hz, layout, options = CODED[name]
    data = encode(tone(2.0, rate_hz=rate_hz), container, codec, rate_hz, layout=layout, **options)
    assert_is_tone(decode(data), 2.0, slack_s=0.07)


@pytest.mark.parametrize(
    "data",
    [
        wav(tone(2.0, rate_hz=48_000, hz=10_000), 48_000),
        wav(tone(2.0, rate_hz=96_000, hz=15_000), 96_000, "f32"),
        encode(tone(2.0, rate_hz=48_000, hz=10_000), "ogg", "libopus", 48_000),
        encode(tone(2.0, rate_hz=44_100, hz=9_000), "flac", "flac", 44_100),
    ],
)
def test_nothing_is_aliased(data: bytes) -> None:
    """A tone that 16 kHz cannot hold is gone, not folded back into what is heard."""
    samples = decode(data)
    assert len(samples) > 30_000
    assert np.abs(samples[2_000:-2_000]).max() < 0.001


def test_high_tones_are_kept() -> None:
    """A tone of 7 kHz, which 16 kHz can hold, is as loud as it was."""
    assert_is_tone(decode(wav(tone(1.0, rate_hz=48_000, hz=7_000), 48_000)), 1.0, hz=7_000)


def test_cover_art_is_no_video() -> None:
    """A FLAC file with a picture of its cover is audio like any other."""
    whole = encode(tone(1.0, rate_hz=44_100), "flac", "flac", 44_100)
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c636060606000000005"
        "0001a5f645400000000049454e44ae426082"
    )
    picture = struct.pack(">II9sIIIIII", 3, 9, b"image/png", 0, 1, 1, 32, 0, len(png)) + png
    block = bytes([6]) + len(picture).to_bytes(3, "big") + picture
    # After STREAMINFO, which is the first block and has 34 bytes.
    assert_is_tone(decode(whole[:42] + block + whole[42:]), 1.0)


def test_id3_in_front() -> None:
    """An ID3 tag does not hide what follows it."""
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    flac = encode(tone(1.0, rate_hz=44_100), "flac", "flac", 44_100)
    aac = encode(tone(1.0, rate_hz=44_100), "adts", "aac", 44_100)
    assert_is_tone(decode(tag + flac), 1.0)
    assert_is_tone(decode(tag + aac), 1.0, slack_s=0.07)
    assert_is_tone(decode(tag + wav(tone(1.0))), 1.0)
    assert_is_tone(decode(tag + tag + encode(tone(1.0, rate_hz=48_000), "ogg", "libopus", 48_000)), 1.0, slack_s=0.07)


def test_streams_one_after_another() -> None:
    """Two MP3 files in a row, at different rates, are one clip."""
    first = encode(tone(1.0, rate_hz=44_100), "mp3", "libmp3lame", 44_100, live=True)
    second = encode(tone(1.0, rate_hz=24_000), "mp3", "libmp3lame", 24_000, live=True)
    assert_is_tone(decode(first + second), 2.0, loud=0.47, slack_s=0.15)


@pytest.mark.parametrize(
    ("encoding", "data", "rate_hz"),
    [
        ("f32", tone(1.0).tobytes(), 16_000),
        ("f32", tone(1.0, rate_hz=44_100).tobytes(), 44_100),
        ("pcm16", to_pcm(tone(1.0, rate_hz=24_000), "s16"), 24_000),
        ("pcm16be", to_pcm(tone(1.0, rate_hz=8_000), "s16"), 8_000),
    ],
)
def test_headerless_samples(encoding: Encoding, data: bytes, rate_hz: int) -> None:
    """Bytes that are no file are samples of the kind and rate that are named."""
    if encoding == "pcm16be":
        data = np.frombuffer(data, "<i2").astype(">i2").tobytes()
    assert_is_tone(decode(data, told=Headerless(encoding, rate_hz)), 1.0)


def test_headerless_samples_are_kept_within_full_scale() -> None:
    """Float samples a little over full scale are clipped."""
    samples = decode((tone(1.0) * 4).tobytes())
    assert np.abs(samples).max() == 1.0


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        (wav(tone(1.0)[:0]), 0),
        (wav(tone(1.0)[:0], after=chunk(b"LIST", b"INFOsomething.")), 0),
        (wav(tone(1.0)[:0], data_size=0xFFFFFFFF), 0),
        (encode(tone(1.0)[:1], "flac", "flac", 16_000), 1),
        (wav(tone(1.0)[:1]), 1),
        (wav(tone(1.0, rate_hz=48_000)[:1], 48_000), 0),
        (b"\0\0\0\0", 1),
    ],
    ids=["nothing", "wav", "wav_and_chunk", "streamed", "one_in_flac", "one", "third", "headerless"],
)
def test_next_to_nothing(data: bytes, count: int) -> None:
    """Nothing, or a single sample, is a clip too."""
    assert len(decode(data)) == count


@pytest.mark.parametrize("claim", ["WAV", "WebM", "anything"])
def test_first_bytes_win(claim: str) -> None:
    """A file under another's name is what its first bytes say."""
    assert_is_tone(decode(encode(tone(1.0, rate_hz=44_100), "flac", "flac", 44_100), claim=claim), 1.0)


PAUSED: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "webm": ("webm", "libopus", 48_000, {}),
    "webm live": ("webm", "libopus", 48_000, {"live": True}),
    "ogg": ("ogg", "libopus", 48_000, {}),
    "mp4": ("mp4", "aac", 44_100, {}),
    "mka": ("matroska", "flac", 16_000, {}),
    "wma": ("asf", "wmav2", 44_100, {"bit_rate": 64_000}),
}
PAUSE_S = (1.0, 3.0)


@pytest.mark.parametrize("name", PAUSED)
def test_recording_with_a_pause(name: str) -> None:
    """Where nothing was recorded for a while there is silence: what follows is heard at its time, and nothing is missing."""
    container, codec, rate_hz, options = PAUSED[name]
    data = encode(tone(4.0, rate_hz=rate_hz), container, codec, rate_hz, pause_s=PAUSE_S, **options)
    samples = decode(data)
    assert len(samples) / RATE_HZ == pytest.approx(4.0, abs=0.07)
    assert_is_tone(samples[: round(0.9 * RATE_HZ)], 0.9)
    assert np.abs(samples[round(1.2 * RATE_HZ) : round(2.8 * RATE_HZ)]).max() < 0.01
    assert_is_tone(samples[round(3.1 * RATE_HZ) : round(3.9 * RATE_HZ)], 0.8)


def test_clock_that_jumps() -> None:
    """A pause that would make a recording too long is none: its clock was set anew, and what was said is heard."""
    data = encode(tone(4.0, rate_hz=48_000), "webm", "libopus", 48_000, pause_s=PAUSE_S)
    clip = decode_audio(data, "body", limit_s=3.0)
    assert_is_tone(clip.samples, 2.0, slack_s=0.05)


MP3_FRAME = b"\xff\xfb\x90\xc4" + bytes(413)
"""128 kbit/s at 44,100 Hz."""


@pytest.mark.parametrize(
    "head", ["ffeb90c4", "fff990c4", "fffdf0c4", "fffb00c4", "fffbf0c4", "fffb9cc4", "fffb90c6", "ff1b90c4"]
)
def test_almost_mp3(head: str) -> None:
    """Reserved values in an MP3 frame's head, or nothing where the next one should be, make it no MP3."""
    assert find_container(MP3_FRAME * 2) == Found(MP3)
    assert find_container(MP3_FRAME) == Found(MP3)
    assert find_container(MP3_FRAME + bytes(500)) is None
    assert find_container((bytes.fromhex(head) + MP3_FRAME[4:]) * 2) is None


def test_rate_that_changes() -> None:
    """Pieces at several rates make a clip that lacks nothing of any."""
    builder = ClipBuilder(RATE_HZ, 10.0)
    for rate_hz in (48_000, 8_000, 16_000, 44_100):
        builder.add(tone(0.5, rate_hz=rate_hz), rate_hz)
    assert_is_tone(builder.finish().samples, 2.0)


def similarity(one: Floats, other: Floats) -> float:
    """Return how well *one* fits *other* where it fits best: 1 is the same."""
    size = 1 << (len(one) + len(other)).bit_length()
    product = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)), size)
    return float(product.max() / np.sqrt(np.sum(one**2) * np.sum(other**2)))


@pytest.mark.parametrize("kind", ["mp3", "webm"])
@pytest.mark.parametrize("name", ["en_1", "fr_1"])
def test_recordings(name: str, kind: str) -> None:
    """A recording that went through a lossy codec is nearly the same as before."""
    plain = decode((AUDIO / f"fx16k_{name}.wav").read_bytes())
    coded = decode((AUDIO / f"fx16k_{name}.{kind}").read_bytes())
    assert len(coded) == pytest.approx(len(plain), abs=RATE_HZ // 10)
    assert similarity(plain, coded) > 0.95
    assert similarity(plain[::-1], coded) < 0.5
