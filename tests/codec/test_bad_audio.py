"""What is not audio, or not all of it: refused with what is wrong, never a crash."""

from __future__ import annotations

import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest

from jarvis_core.codec import decode as decode_module
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.headerless import Encoding, Headerless
from jarvis_core.codec.mp4 import BOXES_LIMIT, boxes
from jarvis_core.codec.riff import CHUNKS_LIMIT, chunks
from jarvis_core.errors import InvalidRequest, RequestError, TooLarge, UnsupportedMediaType
from tests.codec.sounds import chunk, encode, flac_bomb, to_pcm, tone, wav

CENC = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 15 + "01", "encryption_kid": "11" * 16}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def refuse(data: bytes, *, limit_s: float = 600.0, claim: str = "", encoding: Encoding = "untold") -> RequestError:
    """Return the error that *data* gives."""
    with pytest.raises(RequestError) as caught:
        decode_audio(data, "$.audio_data", limit_s=limit_s, claim=claim, told=Headerless(encoding))
    return caught.value


def assert_invalid(error: RequestError, *words: str) -> None:
    assert isinstance(error, InvalidRequest)
    assert error.details is not None
    assert error.details["path"] == "$.audio_data"
    assert error.message == f"$.audio_data: {error.details['rule']}"
    for word in words:
        assert word in error.message


def zipped() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("speech.wav", wav(tone(1.0)))
    return file.getvalue() + b"\0" * (-len(file.getvalue()) % 4)


NOT_AUDIO = {
    "text": b"Turn on the light in the kitchen, please.\n" * 100,
    "french": "Allume la lumière de la cuisine, s'il te plaît. ".encode() * 100,
    "digits": b"3.14159, 2.71828\n  4" * 100,
    "playlist": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9,\n/etc/passwd\n" * 4,
    "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n" * 2,
    "html": b"<!doctype html><html><body>Bad gateway</body></html>",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + zlib.compress(random.Random(1).randbytes(4_000))[:4_000],
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n" * 8,
    "zip": zipped(),
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0" + random.Random(2).randbytes(4_000),
    "pcm16": to_pcm(tone(1.0), "s16"),
    "nan": np.array([0.1, np.nan] * 100, "<f4").tobytes(),
    "inf": np.array([0.1, np.inf] * 100, "<f4").tobytes(),
    "loud": (tone(1.0) * 1_000).tobytes(),
    "one_byte_short": tone(1.0).tobytes()[:-1],
}


@pytest.mark.parametrize("name", NOT_AUDIO)
def test_not_audio(name: str) -> None:
    """What is no audio is told from float32 samples."""
    assert_invalid(refuse(NOT_AUDIO[name]), "neither a known kind of audio file nor float32 samples")


@pytest.mark.parametrize("claim", ["WAV", "WebM"])
def test_mislabelled_samples(claim: str) -> None:
    """Samples without a header that are said to be a file are refused by that file's name."""
    assert_invalid(refuse(tone(1.0).tobytes(), claim=claim), f"is not {claim}")


def patched(position: int, form: str, value: int) -> bytes:
    data = bytearray(wav(tone(1.0)))
    struct.pack_into(form, data, position, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (patched(22, "<H", 0), "WAV with 0 channels"),
        (patched(22, "<H", 33), "WAV with 33 channels"),
        (patched(22, "<H", 65_535), "WAV with 65535 channels"),
        (patched(24, "<I", 0), "WAV with 0 samples a second"),
        (patched(24, "<I", 999), "WAV with 999 samples a second"),
        (patched(24, "<I", 768_001), "WAV with 768001 samples a second"),
        (patched(24, "<I", 0xFFFFFFFF), "WAV with 4294967295 samples a second"),
        (patched(34, "<H", 0), "WAV with samples of 0 bits"),
        (patched(34, "<H", 17), "WAV with samples of 17 bits"),
        (b"RIFF\x04\0\0\0WAVE", "WAV that ends before its samples"),
        (wav(tone(1.0))[:30], "WAV that ends before its samples"),
        (b"RIFF\xff\xff\xff\xffWAVE" + chunk(b"data", b"abcd"), "WAV without a description"),
        (wav(np.array([0.1, np.nan] * 100), kind="f32"), "WAV with samples that are not numbers"),
        (wav(np.array([0.1, -np.inf] * 100), kind="f64"), "WAV with samples that are not numbers"),
        (b"fLaC" + bytes(40), "FLAC that cannot be read"),
        (b"OggS" + random.Random(4).randbytes(2_000), "Ogg that cannot be read"),
        (b"\x1a\x45\xdf\xa3" + random.Random(5).randbytes(2_000), "WebM that cannot be read"),
        (b"\0\0\0\x18ftypM4A " + random.Random(6).randbytes(2_000), "MP4 that ends before its index"),
        (b"ID3\x04\0\0\0\0\0\0" + random.Random(7).randbytes(2_000), "MP3 that cannot be"),
        (encode(tone(1.0, rate_hz=44_100), "adts", "aac", 44_100)[:60], "AAC that cannot be decoded"),
        (encode(tone(1.0, rate_hz=44_100), "mp4", "aac", 44_100, options=CENC), "MP4 that is encrypted"),
    ],
)  # fmt: skip
def test_broken_files(data: bytes, words: str) -> None:
    """A file that makes no sense is refused with its kind and what is wrong with it."""
    assert_invalid(refuse(data), words)


def test_picture_in_an_audio_container() -> None:
    """A file of a known kind without any audio is told apart."""
    data = encode(tone(1.0), "matroska", "pcm_s16le", 16_000)
    # The track's type: a subtitle's, no longer audio.
    assert data.count(b"\x83\x81\x02") == 1
    assert_invalid(refuse(data.replace(b"\x83\x81\x02", b"\x83\x81\x11")), "WebM without audio")


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus")])
def test_video(container: str, codec: str) -> None:
    """A video is refused, though it has sound."""
    error = refuse(encode(tone(1.0, rate_hz=48_000), container, codec, 48_000, video=True))
    assert isinstance(error, UnsupportedMediaType)
    assert "is a video" in error.message


DECLARED = {
    "WAV": wav(tone(4.0)),
    "WAV (RF64)": encode(tone(4.0), "wav", "pcm_s16le", 16_000, options={"rf64": "always"}),
    "FLAC": encode(tone(4.0, rate_hz=44_100), "flac", "flac", 44_100),
    "MP3": encode(tone(4.0, rate_hz=44_100), "mp3", "libmp3lame", 44_100),
    "WebM": encode(tone(4.0, rate_hz=48_000), "webm", "libopus", 48_000),
    "MP4": encode(tone(4.0, rate_hz=44_100), "mp4", "aac", 44_100),
    "MP4 (index first)": encode(tone(4.0, rate_hz=44_100), "mp4", "aac", 44_100, options={"moov_size": "4000"}),
}
LIVE = {
    "WAV": wav(tone(4.0), data_size=0xFFFFFFFF),
    "FLAC": encode(tone(4.0, rate_hz=44_100), "flac", "flac", 44_100, live=True),
    "MP3": encode(tone(4.0, rate_hz=44_100), "mp3", "libmp3lame", 44_100, live=True),
    "AAC": encode(tone(4.0, rate_hz=44_100), "adts", "aac", 44_100),
    "Ogg": encode(tone(4.0, rate_hz=48_000), "ogg", "libopus", 48_000, options={"page_duration": "100000"}),
    "WebM": encode(tone(4.0, rate_hz=48_000), "webm", "libopus", 48_000, live=True),
    "MP4": encode(tone(4.0, rate_hz=44_100), "mp4", "aac", 44_100, options=FRAGMENTS, live=True),
}


@pytest.mark.parametrize("name", DECLARED)
def test_cut_short(name: str) -> None:
    """A file whose header declares more than there is has been cut on its way."""
    data = DECLARED[name]
    assert_invalid(refuse(data[: len(data) * 7 // 10]), name.partition(" ")[0], "ends before its")


def test_cut_short_of_gigabytes() -> None:
    """An RF64 file declares any size."""
    data = bytearray(DECLARED["WAV (RF64)"])
    struct.pack_into("<Q", data, 28, 5 << 30)
    assert_invalid(refuse(bytes(data)), "of 5368709120 bytes")


def test_damaged_throughout() -> None:
    """A file of which every fifth packet is garbage is refused: who knows what was said in it."""
    data = bytearray(encode(tone(4.0, rate_hz=44_100), "adts", "aac", 44_100, bit_rate=64_000))
    chance = random.Random(8)
    position = number = 0
    while position < len(data):
        length = (data[position + 3] & 3) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
        if number % 5 == 2:
            data[position + 7 : position + length] = chance.randbytes(length - 7)
        position += length
        number += 1
    assert_invalid(refuse(bytes(data)), "AAC that cannot be decoded")


@pytest.mark.parametrize("name", ["WAV", "FLAC", "MP3", "WebM"])
def test_end_missing(name: str) -> None:
    """A file that lacks a little at its end is taken as it is."""
    data = DECLARED[name]
    clip = decode_audio(data[: len(data) * 98 // 100], "body", limit_s=600.0)
    assert 3.7 < len(clip.samples) / 16_000 < 4.0


@pytest.mark.parametrize("name", LIVE)
def test_cut_recording(name: str) -> None:
    """A recording that does not say how long it is may end anywhere."""
    data = LIVE[name]
    clip = decode_audio(data[: len(data) * 7 // 10], "body", limit_s=600.0)
    assert 2.4 < len(clip.samples) / 16_000 < 3.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: tone(3.0).tobytes(),
        lambda: wav(tone(3.0)),
        lambda: encode(tone(3.0, rate_hz=44_100), "flac", "flac", 44_100),
        lambda: encode(tone(3.0, rate_hz=44_100), "mp3", "libmp3lame", 44_100),
        lambda: encode(tone(3.0, rate_hz=48_000), "ogg", "libopus", 48_000),
        lambda: encode(tone(3.0, rate_hz=48_000), "webm", "libopus", 48_000),
        lambda: encode(tone(3.0, rate_hz=44_100), "mp4", "aac", 44_100),
    ],
    ids=["f32", "wav", "flac", "mp3", "ogg", "webm", "mp4"],
)
def test_too_long(make: Callable[[], bytes]) -> None:
    """More than the limit is refused with the limit; what a codec pads is not counted."""
    data = make()
    error = refuse(data, limit_s=2.0)
    assert isinstance(error, TooLarge)
    assert error.details == {"limit_s": 2}
    assert error.message == "The audio is longer than 2 s."
    assert len(decode_audio(data, "body", limit_s=3.0).samples) >= 48_000


def test_bomb() -> None:
    """Days of silence in a small file are refused as soon as the limit is reached."""
    error = refuse(flac_bomb(8 << 20), limit_s=30.0)
    assert isinstance(error, TooLarge)
    assert error.details == {"limit_s": 30}


def test_bomb_of_channels() -> None:
    """What is short but has more samples on its channels than any honest clip is refused as well."""
    data = encode(np.zeros(655_350 * 4, np.float32), "flac", "flac", 655_350, layout="7.1")
    assert len(data) < 200_000
    assert isinstance(refuse(data, limit_s=5.0), TooLarge)


def test_bomb_of_bad_packets() -> None:
    """Frames without anything in them, a million in 7 MB, are given up when hundreds could not be decoded."""
    # ADTS: seven bytes of header, and nothing else. All of them would take longer than the limit of the processor's time.
    assert_invalid(refuse(b"\xff\xf1\x50\x40\x00\xff\xfc" * 1_000_000), "AAC that cannot be decoded")


def test_damage_then_sound() -> None:
    """A few seconds that cannot be decoded do not matter in a long recording."""
    frames = encode(tone(4.0, rate_hz=44_100), "adts", "aac", 44_100)
    clip = decode_audio(b"\xff\xf1\x50\x40\x00\xff\xfc" * 100 + frames * 10, "body", limit_s=600.0)
    assert len(clip.samples) / 16_000 == pytest.approx(41.0, abs=1.0)


def ima_adpcm(blocks: int) -> bytes:
    """Return a WAV of blocks of 8 bytes, each a frame of 9 samples."""
    fields = struct.pack("<HHIIHHHH", 0x11, 1, 48_000, 48_000 * 8 // 9, 8, 4, 2, 9)
    return b"RIFF\xff\xff\xff\xffWAVE" + chunk(b"fmt ", fields) + chunk(b"data", bytes(8 * blocks))


def pcm_packets(count: int) -> bytes:
    """Return a WebM with a packet for every sample."""
    sink = BytesIO()
    with av.open(sink, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8_000, layout="mono")
        for number in range(count):
            packet = av.Packet(bytes(2))
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 8_000)
            output.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ima_adpcm(6_000), "more than 5000 packets and frames"),
        (lambda: pcm_packets(2_600), "more than 5000 packets and frames"),
        (lambda: wav(tone(4.0, rate_hz=192_000), 192_000, channels=4), "more than 1920000 samples on its channels"),
    ],
)
def test_bomb_of_pieces(make: Callable[[], bytes], words: str) -> None:
    """What is short but in more pieces, or on more channels, than any honest clip is refused."""
    error = refuse(make(), limit_s=5.0)
    assert isinstance(error, TooLarge)
    assert words in error.message


def test_bomb_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else it is that takes so long, it is given up after so much of the processor's time."""
    monkeypatch.setattr(decode_module, "CPU_LIMIT_S", 0.05)
    error = refuse(encode(tone(60.0, rate_hz=48_000), "ogg", "libopus", 48_000))
    assert isinstance(error, TooLarge)
    assert error.message == "The audio takes more than 0.05 s of the processor's time."
    assert error.details == {"limit_cpu_s": 0.05}


def test_bomb_of_boxes() -> None:
    """Of millions of empty boxes or chunks only so many are looked at."""
    many = b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * BOXES_LIMIT * 2
    assert len(list(boxes(many, 0, len(many)))) == BOXES_LIMIT
    assert_invalid(refuse(many + encode(tone(0.1), "mp4", "aac", 16_000)), "MP4 that ends before its index")
    many = chunk(b"junk", b"") * CHUNKS_LIMIT * 2
    assert len(list(chunks(many, 0))) == CHUNKS_LIMIT
    assert_invalid(refuse(wav(tone(0.1), before=many)), "WAV that ends before its samples")


def test_damage_is_never_a_crash() -> None:
    """Files with changed bytes are decoded or refused, and what is decoded is sound."""
    chance = random.Random(20)
    outcomes = {"decoded": 0, "refused": 0}
    for whole in [*DECLARED.values(), *LIVE.values()]:
        for _ in range(12):
            data = bytearray(whole)
            for _ in range(chance.choice((1, 3, 30))):
                data[chance.randrange(len(data) if chance.random() < 0.5 else 500)] = chance.choice((0, 127, 128, 255))
            try:
                clip = decode_audio(bytes(data), "body", limit_s=600.0)
            except (InvalidRequest, TooLarge, UnsupportedMediaType):
                outcomes["refused"] += 1
            else:
                outcomes["decoded"] += 1
                assert clip.samples.size == 0 or np.abs(clip.samples).max() <= 1.0
    assert min(outcomes.values()) > 20
