"""Samples as they are: in every width and order that recorders write, and none of them is noise."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Literal

import av
import numpy as np
import pytest

from jarvis_core.codec.clip import Samples
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.headerless import Encoding, Headerless
from jarvis_core.codec.linear import compress, expand
from jarvis_core.errors import InvalidRequest, UnsupportedMediaType
from tests.codec.recorders import aiff, au, caf, wave
from tests.codec.sounds import amplitude, chunk, encode, interleave, peak_hz, silence, to_pcm, to_width, tone, wav

SOUND = tone(1.0)
UNKNOWN = 0xFFFFFFFF


def assert_is_sound(data: bytes, *, told: Headerless | None = None, seconds: float = 1.0, rel: float = 0.02) -> None:
    """Check that *data* is a second of the tone and nothing else."""
    samples = decode(data, told)
    assert len(samples) == round(16_000 * seconds)
    assert peak_hz(samples) == pytest.approx(440.0, abs=1.0)
    assert amplitude(samples) == pytest.approx(0.5, rel=rel)
    assert np.abs(samples).max() < 0.52


def decode(data: bytes, told: Headerless | None = None) -> Samples:
    return decode_audio(data, "body", told=told or Headerless(), limit_s=600.0).samples


WIDTHS = [(4, 24), (4, 20), (4, 16), (4, 8), (3, 20), (3, 18), (3, 16), (2, 12), (2, 14), (2, 8)]


@pytest.mark.parametrize(("width", "bits"), WIDTHS, ids=lambda number: str(number))
@pytest.mark.parametrize("kind", ["extensible", "plain", "container", "big_endian"])
def test_fewer_bits_than_bytes(kind: str, width: int, bits: int) -> None:
    """A sound card's 24 bits in four bytes, and the like, are as loud as they were, however the header puts it."""
    samples = to_width(SOUND, width, bits, big_endian=kind == "big_endian")
    match kind:
        case "extensible":
            data = wave(samples, width=width, bits=8 * width, valid_bits=bits)
        case "container":
            # What has its valid bits in both fields.
            data = wave(samples, width=width, bits=bits, valid_bits=bits)
        case "plain":
            data = wave(samples, width=width, bits=bits)
        case _:
            data = wave(samples, width=width, bits=8 * width, valid_bits=bits, magic=b"RIFX")
    assert_is_sound(data)


@pytest.mark.parametrize(("width", "bits"), WIDTHS)
def test_lower_bits(width: int, bits: int) -> None:
    """ALSA's recorder has the valid bits at the lower end, which is as loud."""
    assert_is_sound(wave(to_width(SOUND, width, bits, low=True), width=width, bits=bits))


def test_lower_bits_are_not_guessed() -> None:
    """What is quiet in the upper bits stays quiet, and what has more bits than it says is what it is."""
    quiet = decode(wave(to_width(SOUND / 1_000, 4, 24), width=4, bits=32, valid_bits=24))
    assert amplitude(quiet) == pytest.approx(0.0005, rel=0.02)
    assert_is_sound(wave(to_width(SOUND, 4, 32), width=4, bits=32, valid_bits=24))
    assert np.abs(decode(wave(bytes(64_000), width=4, bits=32, valid_bits=24))).max() == 0


@pytest.mark.parametrize("valid_bits", [0, 16, 24, 99])
def test_valid_bits_that_say_nothing(valid_bits: int) -> None:
    """No valid bits, or more than there is room for, are all of them."""
    assert_is_sound(wave(to_width(SOUND, 2, 16), width=2, bits=16, valid_bits=valid_bits))


@pytest.mark.parametrize(("form", "width"), [("<f2", 2), ("<f4", 4), ("<f8", 8)])
@pytest.mark.parametrize("valid_bits", [None, 0, 24])
def test_floats(form: str, width: int, valid_bits: int | None) -> None:
    """Floats of any width are floats, in an extensible file too."""
    assert_is_sound(wave(SOUND.astype(form).tobytes(), width=width, bits=8 * width, valid_bits=valid_bits, tag=3))


@pytest.mark.parametrize("magic", [b"RIFF", b"RIFX", b"RF64", b"BW64"])
@pytest.mark.parametrize("valid_bits", [None, 16])
def test_forms_of_wav(magic: bytes, valid_bits: int | None) -> None:
    """The big-endian form, and those for files beyond 4 GiB, have the same in them."""
    samples = to_width(SOUND, 2, 16, big_endian=magic == b"RIFX")
    assert_is_sound(wave(samples, width=2, bits=16, valid_bits=valid_bits, magic=magic))


@pytest.mark.parametrize(("form", "tag", "width"), [(">i2", 1, 2), (">i4", 1, 4), (">f4", 3, 4), (">f8", 3, 8)])
def test_big_endian_wav(form: str, tag: int, width: int) -> None:
    """Big-endian numbers of each kind are no noise."""
    full = 2 ** (8 * width - 1) - 1 if tag == 1 else 1
    samples = (SOUND.astype(np.float64) * full).astype(form).tobytes()
    assert_is_sound(wave(samples, width=width, bits=8 * width, tag=tag, magic=b"RIFX"))


@pytest.mark.parametrize("identifier", ["0001000000001000800000aa00389b71", "0100000000001000800000aa00389b71"])
def test_identifier_that_was_not_turned(identifier: str) -> None:
    """A big-endian WAV whose writer turned only the tag of its format's identifier, as SoX, or nothing, is read as well."""
    data = wave(to_width(SOUND, 3, 24, big_endian=True), width=3, bits=24, valid_bits=24, magic=b"RIFX")
    assert data[44:60].hex() == "0000000100000010800000aa00389b71"
    assert_is_sound(data[:44] + bytes.fromhex(identifier) + data[60:])


@pytest.mark.parametrize(("codec", "tag"), [("pcm_alaw", 6), ("pcm_mulaw", 7)])
@pytest.mark.parametrize("magic", [b"RIFF", b"RIFX", b"RF64"])
def test_telephone_laws(codec: str, tag: int, magic: bytes) -> None:
    """A-law and µ-law are the same in each form."""
    samples = encode(SOUND, codec.removeprefix("pcm_"), codec, 16_000)
    assert_is_sound(wave(samples, width=1, bits=8, tag=tag, magic=magic))
    assert_is_sound(wave(samples, width=1, bits=8, valid_bits=8, tag=tag, magic=magic))


@pytest.mark.parametrize("law", ["alaw", "mulaw"])
def test_laws_are_those_of_the_standard(law: str) -> None:
    """Every byte of A-law and µ-law stands for what FFmpeg takes it for."""
    codes = bytes(range(256))
    told = Headerless("alaw" if law == "alaw" else "mulaw", 16_000)
    with av.open(BytesIO(codes), "r", format=law, options={"sample_rate": "16000"}) as source:
        values = np.concatenate([frame.to_ndarray()[0] for frame in source.decode(audio=0)])
    assert np.array_equal(decode(codes, told), values.astype(np.float32) / 32_768)


LIST = chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf61.7.100\0\0"))
ODD = chunk(b"id3 ", b"ID3" + bytes(100_000))
TRAILERS = {
    "list": LIST,
    "id3": ODD,
    "padded": ODD + b"\0",
    "both": LIST + ODD,
    "unheard_of": chunk(b"Xy 1", b"abcdef"),
    "three": chunk(b"bext", bytes(602)) + LIST + chunk(b"iXML", b"<BWFXML/>") + b"\0",
}


@pytest.mark.parametrize("size", [UNKNOWN, 0, 0x7FFFFFFF - 36, 0x80000000, UNKNOWN - 36])
@pytest.mark.parametrize("name", TRAILERS)
def test_chunk_behind_samples_of_unknown_length(name: str, size: int) -> None:
    """What a writer put behind samples whose length it did not know is not heard."""
    assert_is_sound(wav(SOUND, data_size=size, riff_size=size, after=TRAILERS[name]))
    assert_is_sound(wav(SOUND, kind="f32", data_size=size, after=TRAILERS[name]))


@pytest.mark.parametrize("magic", [b"RIFX", b"RF64", b"BW64"])
@pytest.mark.parametrize("size", [0, 0x7FFFFFFFFFFFFFFF])
def test_chunk_behind_samples_in_other_forms(magic: bytes, size: int) -> None:
    """The same of the other forms."""
    order = ">" if magic == b"RIFX" else "<"
    after = struct.pack(f"{order}4sI", b"LIST", 10) + b"INFOabcdef"
    samples = to_width(SOUND, 2, 16, big_endian=magic == b"RIFX")
    data = wave(samples, width=2, bits=16, magic=magic, data_size=size & UNKNOWN if order == ">" else size, after=after)
    assert_is_sound(data)


def test_samples_that_look_like_a_chunk() -> None:
    """Samples whose numbers could be a chunk's name and size, far from the end, are samples."""
    samples = np.zeros(100_000, "<i2")
    samples[1_000:1_002] = np.frombuffer(b"abcd", "<i2")
    samples[1_002:1_004] = np.frombuffer(struct.pack("<I", 2 * (len(samples) - 1_004)), "<i2")
    data = wav(silence(0), data_size=UNKNOWN) + samples.tobytes()
    assert len(decode(data)) == len(samples)


@pytest.mark.parametrize("left_over", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["s16", "s24", "f32", "f64"])
def test_part_of_a_sample_at_the_end(kind: str, left_over: int) -> None:
    """What is left of a last sample costs nothing but itself."""
    width = int(kind[1:]) // 8
    data = wav(SOUND, kind=kind, channels=2, data_size=2 * width * len(SOUND) + left_over, after=bytes(left_over))
    assert len(decode(data)) - len(SOUND) == left_over // (2 * width)
    assert peak_hz(decode(data)) == pytest.approx(440.0, abs=1.0)


@pytest.mark.parametrize(("encoding", "kind", "width"), [("pcm16", "s16", 2), ("f32", "f32", 4), ("pcm24", "s24", 3)])
def test_part_of_a_headerless_sample(encoding: Encoding, kind: str, width: int) -> None:
    """The same of samples without a file around them."""
    for left_over in range(1, width):
        assert_is_sound(to_pcm(SOUND, kind) + bytes(left_over), told=Headerless(encoding))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
@pytest.mark.parametrize("encoding", ["pcm16be", "pcm24be", "pcm16", "u8", "alaw", "mulaw", "f32", "pcm"])
def test_headerless_channels(encoding: Encoding, rate_hz: int, channels: int) -> None:
    """Samples without a header have the rate and the channels that were told."""
    sound = tone(1.0, rate_hz=rate_hz)
    if encoding in ("alaw", "mulaw"):
        data = encode(sound, encoding, f"pcm_{encoding}", rate_hz)
        data = np.repeat(np.frombuffer(data, "u1"), channels).tobytes()
    elif encoding in ("pcm16be", "pcm24be"):
        data = to_width(np.repeat(sound, channels), int(encoding[3:5]) // 8, int(encoding[3:5]), big_endian=True)
    else:
        data = to_pcm(sound, {"f32": "f32", "u8": "u8"}.get(encoding, "s16"), channels)
    samples = decode(data, Headerless(encoding, rate_hz, channels))
    assert len(samples) == 16_000
    assert peak_hz(samples) == pytest.approx(440.0, abs=1.0)
    assert amplitude(samples) == pytest.approx(0.5, rel=0.03)


def test_samples_of_either_width() -> None:
    """What is only said to be samples is float32 where it can be nothing else, and 16 bits otherwise."""
    told = Headerless("pcm", 16_000, 2)
    for data in (
        to_pcm(SOUND, "f32", 2),
        to_pcm(SOUND, "s16", 2),
        to_width(interleave(SOUND * 2, silence(1.0)), 2, 16),
        to_width(interleave(silence(1.0), SOUND * 2), 2, 16),
    ):
        assert_is_sound(data, told=told)


AIFC = {
    b"NONE": to_width(SOUND, 2, 16, big_endian=True),
    b"twos": to_width(SOUND, 2, 16, big_endian=True),
    b"sowt": to_width(SOUND, 2, 16),
    b"in24": to_width(SOUND, 3, 24, big_endian=True),
    b"42ni": to_width(SOUND, 3, 24),
    b"in32": to_width(SOUND, 4, 32, big_endian=True),
    b"fl32": SOUND.astype(">f4").tobytes(),
    b"FL64": SOUND.astype(">f8").tobytes(),
    b"ulaw": encode(SOUND, "mulaw", "pcm_mulaw", 16_000),
    b"ALAW": encode(SOUND, "alaw", "pcm_alaw", 16_000),
    b"raw ": to_pcm(SOUND, "u8"),
}


@pytest.mark.parametrize("compression", AIFC)
def test_aifc(compression: bytes) -> None:
    """AIFC names what its samples are."""
    samples = AIFC[compression]
    assert_is_sound(aiff(samples, bits=8 * len(samples) // len(SOUND), compression=compression))


@pytest.mark.parametrize(("width", "bits"), [(1, 8), (2, 16), (3, 24), (4, 32), (2, 12), (3, 20), (4, 28)])
def test_aiff(width: int, bits: int) -> None:
    """AIFF has as many bytes as its bits need, these at the upper end."""
    assert_is_sound(aiff(to_width(SOUND, width, bits, big_endian=True), bits=bits))


@pytest.mark.parametrize("size", [0, UNKNOWN, 0x7F000008])
def test_streamed_aiff(size: int) -> None:
    """An AIFF whose writer did not know its size goes to the end."""
    assert_is_sound(aiff(to_width(SOUND, 2, 16, big_endian=True), bits=16, data_size=size))


AU = {
    1: encode(SOUND, "mulaw", "pcm_mulaw", 16_000),
    2: to_width(SOUND, 1, 8),
    3: to_width(SOUND, 2, 16, big_endian=True),
    4: to_width(SOUND, 3, 24, big_endian=True),
    5: to_width(SOUND, 4, 32, big_endian=True),
    6: SOUND.astype(">f4").tobytes(),
    7: SOUND.astype(">f8").tobytes(),
    27: encode(SOUND, "alaw", "pcm_alaw", 16_000),
}


@pytest.mark.parametrize("code", AU)
def test_au(code: int) -> None:
    """AU tells its samples by a number, and may not know its size."""
    assert_is_sound(au(AU[code], code=code), rel=0.03)
    assert_is_sound(au(AU[code], code=code, size=len(AU[code]), note=b"a note\0\0"), rel=0.03)
    little = au(AU[code][::-1], code=code)
    turned = struct.pack("<4s5I", b"dns.", *struct.unpack_from(">5I", little, 4)) + little[24:]
    # From the end to the beginning, so that each number is in the other order: the tone is the same.
    assert_is_sound(turned, rel=0.03)


@pytest.mark.parametrize(("width", "bits"), [(1, 8), (2, 16), (3, 24), (4, 32), (4, 24), (4, 20), (3, 20), (2, 12)])
@pytest.mark.parametrize("little_endian", [True, False])
def test_caf(width: int, bits: int, little_endian: bool) -> None:
    """CAF has samples in either order, of fewer bits than bytes too."""
    samples = to_width(SOUND, width, bits, big_endian=not little_endian)
    assert_is_sound(caf(samples, width=width, bits=bits, flags=2 if little_endian else 0))
    assert_is_sound(caf(samples, width=width, bits=bits, flags=2 if little_endian else 0, size=len(samples) + 4))


@pytest.mark.parametrize(("form", "flags"), [("<f4", 3), (">f4", 1), ("<f8", 3), (">f8", 1)])
def test_caf_of_floats(form: str, flags: int) -> None:
    """CAF may have floats."""
    width = int(form[2])
    assert_is_sound(caf(SOUND.astype(form).tobytes(), width=width, bits=8 * width, flags=flags))


def mov_of_24_in_32_bits(flags: int) -> bytes:
    """Return a QuickTime file that says of samples in four bytes that only 24 bits mean something."""
    sound = tone(1.0, rate_hz=96_000)
    data = bytearray(encode(sound, "mov", "pcm_s32le", 96_000))
    start = data.index(b"lpcm") + 4
    assert data[start + 48 : start + 60] == struct.pack(">III", 32, 4 | 8, 4)
    data[start + 48 : start + 56] = struct.pack(">II", 24, flags)
    return bytes(data)


def test_mov_of_fewer_bits_than_bytes() -> None:
    """A QuickTime file of 24 bits in four bytes is no noise; one that has them at the lower end is refused."""
    assert_is_sound(mov_of_24_in_32_bits(4 | 16))
    with pytest.raises(UnsupportedMediaType, match="24 bits in the lower ones of 32"):
        decode(mov_of_24_in_32_bits(4))


CUT = {
    "aiff": aiff(to_width(tone(4.0), 2, 16, big_endian=True), bits=16),
    "au": au(to_width(tone(4.0), 2, 16, big_endian=True), code=3, size=128_000),
    "caf": caf(to_width(tone(4.0), 2, 16), width=2, bits=16, flags=2, size=128_004),
    "rifx": wave(to_width(tone(4.0), 2, 16, big_endian=True), width=2, bits=16, magic=b"RIFX"),
    "bw64": wave(to_width(tone(4.0), 2, 16), width=2, bits=16, magic=b"BW64"),
    "w64": encode(tone(4.0), "w64", "pcm_s16le", 16_000),
    "24 in 32": wave(to_width(tone(4.0), 4, 24), width=4, bits=32, valid_bits=24),
}


@pytest.mark.parametrize("name", CUT)
def test_cut_short(name: str) -> None:
    """A file that declares more samples than there are was cut on its way; one that lacks a few is taken as it is."""
    data = CUT[name]
    with pytest.raises(InvalidRequest, match="ends before its samples do"):
        decode(data[: len(data) * 7 // 10])
    assert 62_000 < len(decode(data[: len(data) * 98 // 100])) < 64_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"FORM\0\0\0\0AIFF", "AIFF that ends before its samples"),
        (aiff(b"", bits=16)[:40], "AIFF that ends before its samples"),
        (b"FORM\0\0\0\0AIFFSSND\0\0\0\x08" + bytes(8), "AIFF without a description"),
        (aiff(bytes(100), bits=16, channels=33), "AIFF with 33 channels"),
        (aiff(bytes(100), bits=16, rate_hz=1), "AIFF with 1 samples a second"),
        (aiff(bytes(100), bits=48), "AIFF with samples of 48 bits"),
        (b".snd" + bytes(4), "AU that ends before its samples"),
        (au(bytes(100), code=3, channels=0), "AU with 0 channels"),
        (b"caff\0\1\0\0", "CAF that ends before its samples"),
        (b"caff\0\1\0\0" + struct.pack(">4sqI", b"data", -1, 0), "CAF without a description"),
        (caf(bytes(100), width=2, bits=16, rate_hz=2_000_000), "CAF with 2000000 samples a second"),
        (caf(bytes(140), width=7, bits=56), "CAF with samples of 56 bits"),
        (wave(bytes(100), width=2, bits=17), "WAV with samples of 17 bits"),
        (wave(bytes(100), width=5, bits=40), "WAV with samples of 40 bits"),
        (
            caf(np.full(100, np.nan, "<f4").tobytes(), width=4, bits=32, flags=3),
            "CAF with samples that are not numbers",
        ),
        (au(np.full(100, np.inf, ">f8").tobytes(), code=7), "AU with samples that are not numbers"),
    ],
)
def test_headers_that_make_no_sense(data: bytes, words: str) -> None:
    """A header that makes no sense is refused by what is wrong with it."""
    with pytest.raises(InvalidRequest) as caught:
        decode(data)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        aiff(b"", bits=16),
        au(b"", code=3),
        caf(b"", width=2, bits=16),
        caf(b"", width=2, bits=16, size=4),
        wave(b"", width=2, bits=16, magic=b"RIFX"),
    ],
)
def test_no_samples(data: bytes) -> None:
    """A file without a single sample is a clip without any."""
    assert len(decode(data)) == 0


@pytest.mark.parametrize("kind", ["mulaw", "alaw"])
def test_compress(kind: Literal["mulaw", "alaw"]) -> None:
    """Each sample of 16 bits becomes the byte that stands for the nearest number; silence is G.711's own."""
    samples = np.arange(-32_768, 32_768).astype(np.int16)
    numbers = expand(np.arange(256, dtype=np.uint8), kind).astype(np.int32)
    off = np.abs(expand(compress(samples, kind), kind) - samples.astype(np.int32))
    nearest = np.min(np.abs(samples.astype(np.int32)[:, np.newaxis] - numbers), axis=1)
    assert (off == nearest).all()
    # FFmpeg's encoder says the same but for its rounding, of a quarter of a step.
    theirs = np.frombuffer(encode(samples / 32_768, kind, f"pcm_{kind}", 8_000), np.uint8)
    assert np.mean(theirs == compress(samples, kind)) > 0.99
    assert compress(np.zeros(1, np.int16), kind)[0] == (0xFF if kind == "mulaw" else 0xD5)
