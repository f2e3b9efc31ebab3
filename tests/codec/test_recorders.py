"""What phones, dictaphones and answering machines record, and what of it stays out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest

from jarvis_core.codec import decode as decode_module
from jarvis_core.codec.clip import Samples
from jarvis_core.codec.containers import OTHERS
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.ebml import check_webm, declares_duration
from jarvis_core.errors import InvalidRequest, UnsupportedMediaType
from tests.codec.recorders import (
    GSM_FRAME_BYTES,
    TONE_HZ,
    amr,
    amr_wb,
    gsm,
    gsm_wav,
    remux,
    speex,
    with_a_pause,
)
from tests.codec.sounds import amplitude, encode, peak_hz, silence, tone, wav

RATE_HZ = 16_000


def decode(data: bytes, claim: str = "") -> Samples:
    return decode_audio(data, "body", claim=claim, limit_s=600.0).samples


def assert_is_tone(
    samples: Samples, seconds: float, *, hz: float = 440.0, slack_s: float = 0.07, rel: float = 0.1
) -> None:
    assert len(samples) / RATE_HZ == pytest.approx(seconds, abs=slack_s)
    assert peak_hz(samples) == pytest.approx(hz, abs=1.0)
    assert amplitude(samples) == pytest.approx(0.5, rel=rel)


PHONES: dict[str, Callable[[], bytes]] = {
    "3gp": lambda: amr("3gp", with_a_pause(8_000)),
    "3g2": lambda: amr("3g2", with_a_pause(8_000)),
    "amr": lambda: amr("amr", with_a_pause(8_000)),
    "mov": lambda: remux(amr("3gp", with_a_pause(8_000)), "mov"),
    "caf": lambda: remux(amr("3gp", with_a_pause(8_000)), "caf"),
    "amr-wb": amr_wb,
    "amr-wb in 3gp": lambda: remux(amr_wb(), "3gp"),
}


@pytest.mark.parametrize("name", PHONES)
def test_silence_that_is_only_described(name: str) -> None:
    """A phone's recording has all that was said, at its time, though most packets between say that nothing is."""
    samples = decode(PHONES[name]())
    assert len(samples) / RATE_HZ == pytest.approx(4.0, abs=0.07)
    for start, end in ((0.1, 0.9), (3.2, 3.9)):
        assert_is_tone(samples[round(start * RATE_HZ) : round(end * RATE_HZ)], end - start, hz=TONE_HZ)
    assert np.abs(samples[round(1.5 * RATE_HZ) : round(2.8 * RATE_HZ)]).max() < 0.02


def test_ffmpegs_own_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no better decoder FFmpeg's own hears what is no silence."""
    monkeypatch.setattr(decode_module, "BETTER_DECODERS", {"amrnb": "a decoder that nobody built"})
    samples = decode(amr("3gp", tone(2.0, rate_hz=8_000)))
    assert len(samples) / RATE_HZ == pytest.approx(2.0, abs=0.07)
    assert peak_hz(samples) == pytest.approx(440.0, abs=1.0)


CODED: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "3gp aac": ("3gp", "aac", 44_100, {}),
    "mov aac": ("mov", "aac", 44_100, {}),
    "mov alac": ("mov", "alac", 44_100, {}),
    "mov s16": ("mov", "pcm_s16be", 44_100, {}),
    "mov s24": ("mov", "pcm_s24le", 44_100, {}),
    "mov f32": ("mov", "pcm_f32le", 96_000, {}),
    "mov alaw": ("mov", "pcm_alaw", 8_000, {}),
    "mov ima": ("mov", "adpcm_ima_qt", 44_100, {}),
    "mov mp3": ("mov", "libmp3lame", 44_100, {}),
    "mp4 opus": ("mp4", "libopus", 48_000, {}),
    "mp4 flac": ("mp4", "flac", 44_100, {}),
    "caf alac": ("caf", "alac", 44_100, {}),
    "caf ima": ("caf", "adpcm_ima_qt", 44_100, {"layout": "stereo"}),
    "caf s16": ("caf", "pcm_s16be", 44_100, {"layout": "stereo"}),
    "caf mulaw": ("caf", "pcm_mulaw", 8_000, {}),
    "aiff": ("aiff", "pcm_s16be", 44_100, {"layout": "stereo"}),
    "aiff s24": ("aiff", "pcm_s24be", 48_000, {}),
    "aifc f32": ("aiff", "pcm_f32be", 48_000, {}),
    "aifc ima": ("aiff", "adpcm_ima_qt", 44_100, {"layout": "stereo"}),
    "au": ("au", "pcm_s16be", 44_100, {"layout": "stereo"}),
    "au mulaw": ("au", "pcm_mulaw", 8_000, {}),
    "au g722": ("au", "g722", 16_000, {}),
    "wav ima": ("wav", "adpcm_ima_wav", 44_100, {"layout": "stereo"}),
    "wav yamaha": ("wav", "adpcm_yamaha", 44_100, {}),
    "wav g722": ("wav", "g722", 16_000, {}),
    "wav g726": ("wav", "g726", 8_000, {"bit_rate": 32_000}),
    "wav mp3": ("wav", "libmp3lame", 44_100, {}),
    "wav mp2": ("wav", "mp2", 44_100, {}),
    "w64 adpcm": ("w64", "adpcm_ms", 44_100, {}),
    "wma": ("asf", "wmav2", 44_100, {"bit_rate": 64_000}),
    "wma 1": ("asf", "wmav1", 22_050, {"bit_rate": 32_000, "layout": "stereo"}),
    "wma live": ("asf", "wmav2", 44_100, {"bit_rate": 64_000, "live": True}),
    "mp2": ("mp2", "mp2", 44_100, {}),
    "mp2 24 kHz": ("mp2", "mp2", 24_000, {}),
    "latm": ("latm", "aac", 44_100, {}),
    "mka aac": ("matroska", "aac", 44_100, {}),
    "mka alac": ("matroska", "alac", 44_100, {}),
    "mka s16be": ("matroska", "pcm_s16be", 44_100, {}),
    "mka mp2": ("matroska", "mp2", 44_100, {}),
    "webm vorbis": ("webm", "vorbis", 44_100, {"layout": "stereo", "codec_options": {"strict": "-2"}}),
}
"""Container, codec and rate, and what else its making needs."""


@pytest.mark.parametrize("name", CODED)
def test_files(name: str) -> None:
    """Each kind of file has the tone in it, with the right length but for a codec's padding."""
    container, codec, rate_hz, options = CODED[name]
    assert_is_tone(decode(encode(tone(2.0, rate_hz=rate_hz), container, codec, rate_hz, **options)), 2.0)


def test_g723() -> None:
    """What a speech codec of 5.3 kbit/s leaves of a tone is heard."""
    samples = decode(encode(tone(2.0, rate_hz=8_000), "wav", "g723_1", 8_000, bit_rate=6_300))
    assert len(samples) / RATE_HZ == pytest.approx(2.0, abs=0.07)
    assert peak_hz(samples) == pytest.approx(440.0, abs=3.0)


def test_gsm() -> None:
    """GSM is known by its frames, in a WAV by its tag, and a short one by its name."""
    assert_is_tone(decode(gsm(2)), 2.0, hz=TONE_HZ, rel=0.3)
    assert_is_tone(decode(gsm_wav(2)), 2.0, hz=TONE_HZ, rel=0.3)
    assert len(decode(gsm(1)[: 2 * GSM_FRAME_BYTES], claim="GSM")) == 640
    with pytest.raises(InvalidRequest):
        decode(gsm(1)[: 2 * GSM_FRAME_BYTES])
    with pytest.raises(InvalidRequest):
        decode(gsm(2) + b"x")


def test_speex() -> None:
    """Speex in Ogg is heard."""
    assert_is_tone(decode(speex(2)), 2.0, hz=TONE_HZ)


def test_quicktime_without_a_kind() -> None:
    """A QuickTime file of its first years begins with another box than the one that tells its kind."""
    data = encode(tone(2.0, rate_hz=44_100), "mov", "pcm_s16be", 44_100)
    assert data[4:8] == b"ftyp"
    # As long as before: the index has places in the file.
    assert_is_tone(decode(data[:4] + b"free" + data[8:]), 2.0)


STREAMS = {
    "mp3": encode(tone(2.0, rate_hz=44_100), "mp3", "libmp3lame", 44_100, live=True),
    "mp3 vbr": encode(tone(2.0, rate_hz=24_000), "mp3", "libmp3lame", 24_000, live=True, codec_options={"q": "4"}),
    "mp2": encode(tone(2.0, rate_hz=48_000), "mp2", "mp2", 48_000),
    "adts": encode(tone(2.0, rate_hz=44_100), "adts", "aac", 44_100),
    "latm": encode(tone(2.0, rate_hz=44_100), "latm", "aac", 44_100),
}


@pytest.mark.parametrize("cut_bytes", [1, 5, 100, 333, 1_000])
@pytest.mark.parametrize("name", STREAMS)
def test_stream_that_begins_in_mid_frame(name: str, cut_bytes: int) -> None:
    """A recording that was cut out of a longer one is heard from its first whole frame on."""
    samples = decode(STREAMS[name][cut_bytes:])
    assert 1.8 < len(samples) / RATE_HZ < 2.07
    assert_is_tone(samples[3_200:-1_600], len(samples) / RATE_HZ - 0.3)


@pytest.mark.parametrize("before", [bytes(4_000), b"\r\n" * 20, b"\xff" * 3_000])
@pytest.mark.parametrize("name", ["mp3", "adts", "latm"])
def test_something_in_front(name: str, before: bytes) -> None:
    """What else is in front of the first frame is skipped."""
    assert_is_tone(decode(before + STREAMS[name]), 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_a_stream_by_chance(seed: int) -> None:
    """Samples, and data of any kind, have no frames in them."""
    chance = np.random.default_rng(seed)
    loud = chance.uniform(-1, 1, 20_000).astype(np.float32)
    assert len(decode(loud.tobytes())) == len(loud)
    with pytest.raises(InvalidRequest):
        decode(chance.bytes(80_000))
    with pytest.raises(InvalidRequest):
        decode(b"\xff" * 80_000)


# What a file says of itself


TITLES = ["Una encantadora sinfonia", "enca sinf drms", "La sinfonía de encaje", "moof"]


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("container", ["mp4", "ipod", "mov", "3gp"])
def test_title_is_no_encryption(container: str, title: str) -> None:
    """What a file is called says nothing of what is in it."""
    data = encode(tone(2.0, rate_hz=44_100), container, "aac", 44_100, metadata={"title": title, "comment": title})
    assert title.encode()[:4] in data
    assert_is_tone(decode(data), 2.0)


@pytest.mark.parametrize("container", ["mp4", "mov"])
@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}, {"moov_size": "9000"}])
def test_encrypted_mp4(container: str, options: dict[str, str]) -> None:
    """An MP4 that is encrypted is told so, wherever its index is."""
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 15 + "01", "encryption_kid": "11" * 16}
    data = encode(tone(1.0, rate_hz=44_100), container, "aac", 44_100, options={**key, **options})
    with pytest.raises(InvalidRequest, match="MP4 that is encrypted"):
        decode(data)


def test_bought_music() -> None:
    """What Apple's shop encrypted has another name for its samples."""
    data = encode(tone(1.0, rate_hz=44_100), "ipod", "aac", 44_100)
    assert data.count(b"mp4a") == 1
    with pytest.raises(InvalidRequest, match="MP4 that is encrypted"):
        decode(data.replace(b"mp4a", b"drms"))


def element(name: str, *parts: bytes) -> bytes:
    """Return an element of EBML."""
    body = b"".join(parts)
    return bytes.fromhex(name) + (len(body) | 1 << 56).to_bytes(8, "big") + body


def webm(*track: bytes, title: bytes = b"", duration: bytes = b"", unknown: bool = False) -> bytes:
    """Return the beginning of a WebM file with one track."""
    info = element("1549a966", element("7ba9", title), duration)
    tracks = element("1654ae6b", element("ae", element("d7", b"\1"), *track))
    segment = info + tracks + element("1f43b675", element("4489", bytes(8)))
    if unknown:
        return element("1a45dfa3") + bytes.fromhex("1853806701ffffffffffffff") + segment
    return element("1a45dfa3") + element("18538067", segment)


ENCRYPTION = element("6d80", element("6240", element("5035", element("47e1", b"\5"))))
COMPRESSION = element("6d80", element("6240", element("5034", element("4254", b"\3"))))


@pytest.mark.parametrize("unknown", [True, False])
def test_encrypted_webm(unknown: bool) -> None:
    """A WebM that is encrypted is told so; one that is compressed, or only called so, is not encrypted."""
    with pytest.raises(InvalidRequest, match="WebM that is encrypted"):
        check_webm(webm(ENCRYPTION, unknown=unknown), "body")
    check_webm(webm(COMPRESSION, title=ENCRYPTION, unknown=unknown), "body")


def test_length_of_a_webm() -> None:
    """A WebM declares its length in one place alone."""
    duration = element("4489", struct.pack(">d", 1_000.0))
    assert declares_duration(webm(duration=duration))
    assert declares_duration(webm(duration=duration, unknown=True))
    assert not declares_duration(webm(title=duration))
    assert not declares_duration(webm())
    assert not declares_duration(b"\x1a\x45\xdf\xa3" + bytes(1_000))
    assert declares_duration(encode(tone(1.0, rate_hz=48_000), "webm", "libopus", 48_000))
    assert not declares_duration(encode(tone(1.0, rate_hz=48_000), "webm", "libopus", 48_000, live=True))


def test_encrypted_wma() -> None:
    """A WMA with keys in its header is told to be encrypted."""
    data = encode(tone(1.0, rate_hz=44_100), "asf", "wmav2", 44_100, bit_rate=64_000)
    keys = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e") + struct.pack("<Q", 40) + bytes(16)
    head = bytearray(data[:30])
    struct.pack_into("<Q", head, 16, struct.unpack_from("<Q", data, 16)[0] + len(keys))
    with pytest.raises(InvalidRequest, match="WMA that is encrypted"):
        decode(bytes(head) + keys + data[30:])
    assert_is_tone(decode(data), 1.0)
    titled = encode(
        tone(1.0, rate_hz=44_100), "asf", "wmav2", 44_100, bit_rate=64_000, metadata={"title": keys[:4].hex()}
    )
    assert_is_tone(decode(titled), 1.0)


def test_cut_short() -> None:
    """A WMA, or a compressed CAF, that lacks what its header declares was cut on its way."""
    for data in (
        encode(tone(4.0, rate_hz=44_100), "asf", "wmav2", 44_100, bit_rate=64_000),
        encode(tone(4.0, rate_hz=44_100), "wav", "adpcm_ms", 44_100),
    ):
        with pytest.raises(InvalidRequest, match="ends before its"):
            decode(data[: len(data) * 7 // 10])


def test_broadcast_that_says_a_length() -> None:
    """What a WMA says of its length means nothing where it was recorded from a broadcast."""
    data = bytearray(encode(tone(2.0, rate_hz=44_100), "asf", "wmav2", 44_100, bit_rate=64_000))
    place = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 64
    struct.pack_into("<Q", data, place, 600_000_000)
    with pytest.raises(InvalidRequest, match="ends before its time"):
        decode(bytes(data))
    data[place + 24] |= 1
    assert_is_tone(decode(bytes(data)), 2.0)


# What stays out


@pytest.mark.parametrize(("start", "magic", "name"), OTHERS)
def test_kinds_that_are_only_known(start: int, magic: bytes, name: str) -> None:
    """What nobody records is refused by its name, whatever it is said to be."""
    data = b"RIFF\xff\xff\xff\xff"[:start] + magic + np.random.default_rng(1).bytes(4_000)
    for claim in ("", "WAV"):
        with pytest.raises(UnsupportedMediaType) as caught:
            decode(data, claim)
        assert f"is {name}, which is not understood" in caught.value.message
        assert "AMR" in caught.value.message


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("wv", "wavpack", "WavPack"),
        ("tta", "tta", "True Audio"),
        ("ac3", "ac3", "AC-3"),
        ("eac3", "eac3", "AC-3"),
        ("voc", "pcm_s16le", "VOC"),
        ("mpegts", "aac", "an MPEG transport stream"),
        ("flv", "aac", "Flash Video"),
        ("avi", "libmp3lame", "AVI"),
    ],
)
def test_files_that_stay_out(container: str, codec: str, name: str) -> None:
    """Real files of such kinds are known."""
    with pytest.raises(UnsupportedMediaType, match=f"is {name}, which is not understood"):
        decode(encode(tone(1.0, rate_hz=44_100), container, codec, 44_100))


@pytest.mark.parametrize(
    ("container", "codec", "words"),
    [
        ("matroska", "ac3", "WebM file has ac3 inside"),
        ("mp4", "ac3", "MP4 file has ac3 inside"),
        ("matroska", "tta", "WebM file has tta inside"),
        ("wav", "ac3", "WAV file has ac3 inside"),
        ("matroska", "wavpack", "WebM file has wavpack inside"),
    ],
)
def test_codecs_that_stay_out(container: str, codec: str, words: str) -> None:
    """So is a codec that nobody expects in such a file."""
    with pytest.raises(UnsupportedMediaType, match=words):
        decode(encode(tone(1.0, rate_hz=44_100), container, codec, 44_100, bit_rate=64_000))


def test_unknown_codec() -> None:
    """A WAV with a tag that FFmpeg does not know has some codec inside."""
    data = bytearray(wav(tone(1.0)))
    struct.pack_into("<H", data, 20, 0x1234)
    with pytest.raises(UnsupportedMediaType, match="WAV file has a codec inside"):
        decode(bytes(data))


def test_samples_that_begin_like_another_kind() -> None:
    """Float samples whose first bytes are another kind's are samples."""
    samples = tone(1.0)
    for magic in (b"TTA1", b"FRM8", b"\0\0\1\xba"):
        data = magic + samples.tobytes()
        assert len(decode(data)) == len(samples) + 1


def test_damage_is_never_a_crash() -> None:
    """Files of these kinds with changed bytes are decoded or refused, and what is decoded is sound."""
    chance = np.random.default_rng(20)
    wholes = [make() for make in PHONES.values()] + [gsm(1), gsm_wav(1), speex(1), *STREAMS.values()]
    wholes += [
        encode(tone(1.0, rate_hz=rate_hz), container, codec, rate_hz, **options)
        for container, codec, rate_hz, options in CODED.values()
    ]
    outcomes = {"decoded": 0, "refused": 0}
    for whole in wholes:
        for count in (1, 3, 30, 300):
            data = bytearray(whole)
            for _ in range(count):
                data[chance.integers(len(data) if chance.random() < 0.5 else min(500, len(data)))] = chance.integers(
                    256
                )
            try:
                samples = decode(bytes(data))
            except (InvalidRequest, UnsupportedMediaType):
                outcomes["refused"] += 1
            else:
                outcomes["decoded"] += 1
                assert samples.size == 0 or np.abs(samples).max() <= 1.0
    assert min(outcomes.values()) > 20


def test_pyav_has_what_is_needed() -> None:
    """The pinned build of PyAV has the decoders that are asked for."""
    assert set(decode_module.BETTER_DECODERS.values()) <= av.codecs_available
    assert len(silence(0)) == 0
