"""Encoding: pieces of speech become one file that can be played while it is made."""

from __future__ import annotations

import base64
import struct
import wave
from io import BytesIO
from typing import Any, get_args

import av
import msgspec
import numpy as np
import pytest

from jarvis_core.codec import encode as encode_module
from jarvis_core.codec.clip import Clip, CpuLimit, Samples, to_base64
from jarvis_core.codec.decode import decode_audio
from jarvis_core.codec.encode import STREAMS_LIMIT, Streams, change_tempo
from jarvis_core.codec.headerless import Headerless
from jarvis_core.codec.messages import Encode, OutputFormat
from jarvis_core.errors import BadGateway, InvalidRequest, Overloaded, Unavailable
from tests.codec.sounds import amplitude, encode, peak_hz, silence, to_pcm, tone, wav

FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
SLACK_S = {"wav": 0.0001, "pcm16": 0.0001, "f32": 0.0001, "mp3": 0.2, "opus": 0.001, "aac": 0.3, "flac": 0.0001}


def encode_pieces(
    pieces: list[Samples], output_format: OutputFormat, rate_hz: int, *, streams: Streams | None = None, **options: Any
) -> tuple[list[bytes], float, int]:
    """Return what can be sent after each piece, the sum of their lengths in seconds, and the output's rate."""
    streams = streams or Streams()
    data = []
    duration_ms = 0.0
    output_hz = 0
    for number, piece in enumerate(pieces, 1):
        first, last = number == 1, number == len(pieces)
        request = Encode(7, output_format, sample_rate_hz=rate_hz, first=first, last=last, **options)
        encoded, sent, beginning = streams.encode(request, to_base64(piece))
        assert not beginning or last
        data.append(sent)
        duration_ms += encoded.duration_ms
        output_hz = encoded.sample_rate_hz
    return data, duration_ms / 1_000, output_hz


def play(data: bytes, output_format: OutputFormat, rate_hz: int) -> Samples:
    """Return what is heard, at 16 kHz."""
    told = Headerless("pcm16" if output_format == "pcm16" else "f32", rate_hz)
    return decode_audio(data, "body", told=told, limit_s=600.0).samples


def cut(samples: Samples, count: int) -> list[Samples]:
    return [np.ascontiguousarray(piece) for piece in np.array_split(samples, count)]


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("output_format", FORMATS)
def test_round_trip(output_format: OutputFormat, count: int, rate_hz: int) -> None:
    """A tone in pieces is the same tone in every format, unbroken, with the length that is told."""
    data, duration_s, output_hz = encode_pieces(cut(tone(3.0, rate_hz=rate_hz), count), output_format, rate_hz)
    heard = play(b"".join(data), output_format, output_hz)
    assert output_hz == (48_000 if output_format == "opus" else rate_hz)
    assert duration_s == pytest.approx(3.0)
    assert len(heard) / 16_000 == pytest.approx(3.0, abs=SLACK_S[output_format])
    assert peak_hz(heard) == pytest.approx(440.0, abs=1.0)
    assert amplitude(heard) == pytest.approx(0.5, rel=0.06)
    # A break would be heard as a click, which is in all frequencies.
    middle = heard[4_000:-4_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum[len(spectrum) // 4 :].max() < 0.001 * spectrum.max()


@pytest.mark.parametrize("output_format", FORMATS)
def test_sound_is_sent_as_it_is_made(output_format: OutputFormat) -> None:
    """After each piece nearly all of it can be sent, and what was sent can be played."""
    pieces = cut(tone(4.0, rate_hz=24_000), 4)
    data, _, output_hz = encode_pieces(pieces, output_format, 24_000)
    for count in (1, 2, 3):
        heard = play(b"".join(data[:count]), output_format, output_hz)
        assert len(heard) / 16_000 > count - 0.15


def test_wav_is_one_file() -> None:
    """A WAV begins with one header of unknown length; what follows is samples of 16 bits."""
    samples = tone(1.0)
    data, _, _ = encode_pieces(cut(samples, 2), "wav", 16_000)
    header = struct.unpack("<4sI4s4sIHHIIHH4sI", data[0][:44])
    assert header == (*(b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", 0xFFFFFFFF),)
    values = np.frombuffer(b"".join(data)[44:], "<i2")
    assert np.abs(values - samples * 32_767).max() <= 0.51


def test_float_samples_are_not_touched() -> None:
    """Float samples come out as they went in."""
    samples = tone(1.0)
    data, _, _ = encode_pieces(cut(samples, 3), "f32", 16_000)
    assert b"".join(data) == samples.tobytes()


def test_samples_are_kept_within_full_scale() -> None:
    """What is too loud is clipped and does not wrap around."""
    data, _, _ = encode_pieces([tone(1.0) * 3], "pcm16", 16_000)
    values = np.frombuffer(data[0], "<i2")
    assert values.max() == 32_767
    assert values.min() == -32_767
    assert np.abs(np.diff(values.astype(int))).max() < 20_000


def test_opus_is_one_stream() -> None:
    """All pages of an Ogg file are of one stream in their order; the first begins it and only the last ends it."""
    data, _, _ = encode_pieces(cut(tone(2.0, rate_hz=24_000), 4), "opus", 24_000)
    whole = b"".join(data)
    pages = []
    position = 0
    while position < len(whole):
        magic, flags, granule, serial, number, count = struct.unpack_from("<4sxBqII4xB", whole, position)
        assert magic == b"OggS"
        pages.append((flags, granule, serial, number))
        position += 27 + count + sum(whole[position + 27 : position + 27 + count])
    assert [number for _, _, _, number in pages] == list(range(len(pages)))
    assert len({serial for _, _, serial, _ in pages}) == 1
    assert [flags & 6 for flags, _, _, _ in pages] == [2, *[0] * (len(pages) - 2), 4]
    # RFC 7845: 48,000 a second, the encoder's own delay included.
    delay = struct.unpack_from("<H", whole, whole.index(b"OpusHead") + 10)[0]
    assert pages[-1][1] == 96_000 + delay


def whole(samples: Samples, output_format: OutputFormat, rate_hz: int, count: int = 3, **options: Any) -> bytes:
    """Return the file that *samples* make in pieces, with the beginning that it gets at its end."""
    streams, data, beginning = Streams(), b"", b""
    pieces = cut(samples, count)
    for number, piece in enumerate(pieces, 1):
        request = Encode(1, output_format, sample_rate_hz=rate_hz, first=number == 1, last=number == count, **options)
        _, sent, beginning = streams.encode(request, to_base64(piece))
        data += sent
    return beginning + data[len(beginning) :]


def test_whole_wav() -> None:
    """Of a WAV that is whole the header tells the true sizes, whatever reads it."""
    data = whole(tone(2.0), "wav", 16_000)
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    assert struct.unpack_from("<I", data, 40)[0] == len(data) - 44 == 64_000
    with wave.open(BytesIO(data)) as file:
        assert file.getnframes() == 32_000
    with wave.open(BytesIO(whole(tone(0.0), "wav", 16_000, 1, output_rate_hz=None))) as file:
        assert file.getnframes() == 0


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 2.345])
def test_whole_mp3(seconds: float, rate_hz: int) -> None:
    """An MP3 that is whole says how long it is, and is: what the encoder filled up in front and behind is not heard."""
    samples = tone(seconds, rate_hz=rate_hz)
    data = whole(samples, "mp3", rate_hz)
    with av.open(BytesIO(data), "r", format="mp3") as source:
        stream = source.streams.audio[0]
        assert stream.duration is not None
        assert stream.time_base is not None
        assert float(stream.duration * stream.time_base) == pytest.approx(len(samples) / rate_hz, abs=1e-6)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in source.decode(stream)])
    assert len(heard) == len(samples)
    middle = slice(len(heard) // 4, -len(heard) // 4)
    assert np.abs(heard[middle] - samples[middle]).max() < 0.1, "it is neither early nor late"


def test_info_frame() -> None:
    """The frame in front is LAME's in every field that players read, and its check is right."""
    data = whole(tone(3.0, rate_hz=24_000), "mp3", 24_000)
    size, place = 192, 13
    assert data[:4] == data[size : size + 4]
    assert data[place : place + 4] == b"Info"
    flags, frames, length = struct.unpack_from(">III", data, place + 4)
    assert (flags & 3, length) == (3, len(data))
    assert frames == (len(data) - size) // 192
    lame = data[place + 116 : place + 152]
    assert lame[:9] == b"LAME3.100"
    delay, padding = int.from_bytes(lame[21:24], "big") >> 12, int.from_bytes(lame[21:24], "big") & 0xFFF
    assert delay == 576
    assert frames * 576 - delay - padding == 72_000
    check = 0
    for byte in data[: place + 150]:
        for bit in range(8):
            check = check >> 1 ^ (0xA001 if (check ^ byte >> bit) & 1 else 0)
    assert int.from_bytes(lame[34:36], "big") == check


def test_mp3_in_the_making() -> None:
    """An MP3 of unknown length begins with a frame that says no length, may be cut at any byte, and two in a row are one."""
    pieces = cut(tone(2.0, rate_hz=24_000), 2)
    data, _, _ = encode_pieces(pieces, "mp3", 24_000)
    sent = b"".join(data)
    assert sent[0] == 0xFF
    assert sent[13:21] == b"Info\0\0\0\0"
    assert len(play(sent[: len(sent) // 2], "mp3", 24_000)) / 16_000 == pytest.approx(1.0, abs=0.1)
    both = play(sent + sent, "mp3", 24_000)
    assert len(both) / 16_000 == pytest.approx(4.0, abs=0.2)
    assert peak_hz(both) == pytest.approx(440.0, abs=1.0)


def test_mp3_frames_stand_alone() -> None:
    """No MP3 frame has part of its sound in the one before, so that any of them can be the first."""
    noise = np.random.default_rng(1).standard_normal(48_000).astype(np.float32)
    loud = noise * np.float32(0.3) * np.linspace(0, 1, 6).repeat(8_000).astype(np.float32)
    data, _, _ = encode_pieces([loud], "mp3", 24_000)
    position = frames = 0
    while position < len(data[0]):
        # 64 kbit/s at 24,000 Hz are 192 bytes; main_data_begin is the first byte after a head of MPEG-2.
        assert data[0][position : position + 2] == b"\xff\xf3"
        assert data[0][position + 4] == 0
        position += 192
        frames += 1
    assert frames > 80


@pytest.mark.parametrize(("wanted_hz", "rate_hz"), [(1_000, 8_000), (20_000, 22_050), (96_000, 48_000)])
def test_mp3_rates(wanted_hz: int, rate_hz: int) -> None:
    """MP3 knows a few rates: the next one that loses nothing is taken."""
    data, duration_s, output_hz = encode_pieces([tone(1.0, rate_hz=wanted_hz, hz=300.0)], "mp3", wanted_hz)
    assert output_hz == rate_hz
    assert duration_s == pytest.approx(1.0)
    assert peak_hz(play(b"".join(data), "mp3", rate_hz)) == pytest.approx(300.0, abs=1.0)


@pytest.mark.parametrize("output_format", ["wav", "pcm16", "f32"])
def test_output_rate(output_format: OutputFormat) -> None:
    """Another rate can be asked for, and nothing is lost between pieces."""
    data, duration_s, output_hz = encode_pieces(
        cut(tone(2.0, rate_hz=22_050), 7), output_format, 22_050, output_rate_hz=24_000
    )
    assert duration_s == pytest.approx(2.0)
    assert output_hz == 24_000
    heard = play(b"".join(data), output_format, 24_000)
    assert len(heard) == 32_000
    assert peak_hz(heard) == pytest.approx(440.0, abs=1.0)


@pytest.mark.parametrize("output_format", FORMATS)
def test_rate_that_changes(output_format: OutputFormat) -> None:
    """A later piece at another rate is brought to that of the first."""
    streams = Streams()
    data = b""
    for rate_hz, last in ((22_050, False), (48_000, False), (22_050, True)):
        request = Encode(1, output_format, sample_rate_hz=rate_hz, first=not data, last=last)
        encoded, sent, _ = streams.encode(request, to_base64(tone(1.0, rate_hz=rate_hz)))
        assert encoded.duration_ms == pytest.approx(1_000)
        assert encoded.sample_rate_hz == (48_000 if output_format == "opus" else 22_050)
        data += sent
    heard = play(data, output_format, encoded.sample_rate_hz)
    assert len(heard) / 16_000 == pytest.approx(3.0, abs=SLACK_S[output_format])
    assert peak_hz(heard) == pytest.approx(440.0, abs=1.0)


@pytest.mark.parametrize("tempo", [0.1, 0.25, 0.5, 0.8, 1.5, 2.0, 3.0, 10.0])
def test_tempo(tempo: float) -> None:
    """Faster speech is shorter, by exactly so much, and not higher: at speed 2 it takes half the time."""
    clip = change_tempo(Clip(tone(4.0, rate_hz=22_050), 22_050), tempo, CpuLimit(60.0))
    assert len(clip.samples) == round(4.0 * 22_050 / tempo)
    assert peak_hz(clip.samples, 22_050) == pytest.approx(440.0, abs=3.0)
    assert amplitude(clip.samples) == pytest.approx(0.5, rel=0.05)


def test_length_is_as_heard() -> None:
    """The length of a piece is what it is after the tempo was changed."""
    data, duration_s, _ = encode_pieces([tone(2.0)], "pcm16", 16_000, tempo=2.0)
    assert duration_s == pytest.approx(1.0)
    assert duration_s == len(data[0]) / 32_000


def test_tempo_of_next_to_nothing() -> None:
    """A piece that is too short for the filter stays as it is."""
    _, duration_s, _ = encode_pieces([tone(0.01)], "pcm16", 16_000, tempo=2.0)
    assert duration_s == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("payload", "rate_hz"),
    [
        (wav(tone(2.0, rate_hz=22_050), 22_050), 22_050),
        (encode(tone(2.0, rate_hz=24_000), "mp3", "libmp3lame", 24_000), 24_000),
        (encode(tone(2.0, rate_hz=48_000), "ogg", "libopus", 48_000), 48_000),
    ],
)
def test_file_as_a_piece(payload: bytes, rate_hz: int) -> None:
    """A piece may be a file, told by its first bytes and kept at its own rate."""
    encoded, data, _ = Streams().encode(Encode(1, "pcm16", encoding="container", first=True, last=True), payload)
    assert encoded.sample_rate_hz == rate_hz
    assert encoded.duration_ms == pytest.approx(2_000, abs=10)
    assert peak_hz(np.frombuffer(data, "<i2").astype(float), rate_hz) == pytest.approx(440.0, abs=1.0)


SPOKEN = tone(2.0, rate_hz=22_050)


@pytest.mark.parametrize(
    "payload",
    [
        base64.b64encode(wav(SPOKEN, 22_050)),
        base64.b64encode(encode(SPOKEN, "mp3", "libmp3lame", 22_050)),
        base64.b64encode(encode(SPOKEN, "flac", "flac", 22_050)),
        b"data:audio/wav;base64," + base64.b64encode(wav(SPOKEN, 22_050)),
        b"data:audio/x-float32;base64," + to_base64(SPOKEN),
        base64.encodebytes(SPOKEN.tobytes()),
    ],
    ids=["wav", "mp3", "flac", "url", "url_of_samples", "lines"],
)
def test_file_in_place_of_samples(payload: bytes) -> None:
    """A file in base64, where samples were promised, is what it is, at its own rate."""
    encoded, data, _ = Streams().encode(Encode(1, "pcm16", sample_rate_hz=22_050, first=True, last=True), payload)
    assert encoded.sample_rate_hz == 22_050
    assert encoded.duration_ms == pytest.approx(2_000, abs=10)
    samples = np.frombuffer(data, "<i2") / 32_767
    assert peak_hz(samples, 22_050) == pytest.approx(440.0, abs=1.0)
    assert amplitude(samples) == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize(
    ("payload", "options", "words"),
    [
        (b"", {}, "is empty"),
        (base64.b64encode(to_pcm(SPOKEN, "s16")), {}, "is no float32 samples"),
        (base64.b64encode(to_pcm(SPOKEN, "s32")), {}, "no"),
        (base64.b64encode(to_pcm(SPOKEN, "f64")), {}, "no"),
        (to_base64(SPOKEN * np.float32(32_767)), {}, "some are beyond ±8"),
        (base64.b64encode(wav(SPOKEN)[:20_000]), {}, "ends before its samples"),
        (b"not base64!!", {}, "is not base64"),
        (base64.b64encode(b"abcde"), {}, "5 bytes are no multiple of 4"),
        (to_base64(np.array([0.1, np.nan], np.float32)), {}, "not numbers"),
        (to_base64(np.array([0.1, np.inf], np.float32)), {}, "not numbers"),
        (to_base64(tone(0.1)), {"sample_rate_hz": 0}, "0 samples a second"),
        (to_base64(tone(0.1)), {"sample_rate_hz": 192_001}, "192001 samples a second"),
        (to_base64(silence(601.0, 1_000)), {"sample_rate_hz": 1_000}, "longer than 600 s"),
        (to_base64(silence(61.0, 1_000)), {"sample_rate_hz": 1_000, "tempo": 0.1}, "longer than 600 s"),
        (wav(silence(601.0, 1_000), 1_000), {"encoding": "container"}, "longer than 600 s"),
        (wav(silence(61.0, 1_000), 1_000), {"encoding": "container", "tempo": 0.1}, "longer than 600 s"),
        (b"<html>Internal Server Error</html>", {"encoding": "container"}, "no known kind of audio file"),
        (wav(tone(1.0))[:9_000], {"encoding": "container"}, "ends before its samples"),
        (wav(silence(0.0)), {"encoding": "container"}, "without samples"),
        (b"ID3\x04\0\0\0\0\0\0nothing", {"encoding": "container"}, "MP3 that cannot be"),
    ],
)  # fmt: skip
def test_bad_speech(payload: bytes, options: dict[str, Any], words: str) -> None:
    """Speech that is none is the fault of who made it, and the stream goes on without it."""
    streams = Streams()
    good = Encode(1, "pcm16", sample_rate_hz=16_000)
    streams.encode(msgspec.structs.replace(good, first=True), to_base64(tone(0.1)))
    with pytest.raises(BadGateway) as caught:
        streams.encode(Encode(1, "pcm16", **{"sample_rate_hz": 16_000, **options}), payload)
    assert words in caught.value.message
    assert streams.encode(good, to_base64(tone(0.1)))[1]


@pytest.mark.parametrize("options", [{"tempo": 0.09}, {"tempo": 11.0}, {"output_rate_hz": 999}])
def test_bad_wishes(options: dict[str, Any]) -> None:
    """A tempo or a rate out of range is refused."""
    with pytest.raises(InvalidRequest):
        Streams().encode(Encode(1, "wav", sample_rate_hz=16_000, first=True, **options), to_base64(tone(0.1)))


@pytest.mark.parametrize("tempo", [1.0, 0.5])
def test_too_much_work(monkeypatch: pytest.MonkeyPatch, tempo: float) -> None:
    """A piece that takes too long, where others wait, is given up, and its stream with it: half of it is in there."""
    streams = Streams()
    piece = to_base64(tone(30.0))
    request = Encode(1, "mp3", sample_rate_hz=16_000, tempo=tempo)
    streams.encode(msgspec.structs.replace(request, first=True), piece)
    monkeypatch.setattr(encode_module, "PIECE_CPU_LIMIT_S", 0.01)
    with pytest.raises(BadGateway, match=r"more than 0.01 s of the processor's time"):
        streams.encode(request, piece)


def test_too_much_work_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes too long to read is the fault of who made it."""
    monkeypatch.setattr(encode_module, "PIECE_CPU_LIMIT_S", 0.0)
    with pytest.raises(BadGateway, match=r"more than 0 s of the processor's time"):
        Streams().encode(Encode(1, "wav", encoding="container", first=True), wav(tone(1.0)))


@pytest.mark.parametrize("output_format", FORMATS)
def test_end_without_a_piece(output_format: OutputFormat) -> None:
    """A stream may end without a last piece, and without any; the whole is a file all the same."""
    streams = Streams()
    request = Encode(1, output_format, sample_rate_hz=24_000, first=True)
    _, first, _ = streams.encode(request, to_base64(tone(1.0, rate_hz=24_000)))
    encoded, rest, _ = streams.encode(Encode(1, output_format, last=True), b"")
    assert encoded.duration_ms == 0
    heard = play(first + rest, output_format, encoded.sample_rate_hz)
    assert len(heard) / 16_000 == pytest.approx(1.0, abs=SLACK_S[output_format])
    assert len(streams) == 0
    encoded, nothing, _ = streams.encode(Encode(2, output_format, first=True, last=True), b"")
    assert encoded.duration_ms == 0
    assert len(play(nothing, output_format, encoded.sample_rate_hz)) == 0


def test_streams_do_not_mix() -> None:
    """Pieces of several streams may come in any order."""
    streams = Streams()
    pieces = {1: tone(1.0, hz=440.0), 2: tone(1.0, hz=880.0)}
    data = {1: b"", 2: b""}
    for last in (False, True):
        for stream, piece in pieces.items():
            request = Encode(stream, "mp3", sample_rate_hz=16_000, first=not last, last=last)
            data[stream] += streams.encode(request, to_base64(piece))[1]
    assert peak_hz(play(data[1], "mp3", 16_000)) == pytest.approx(440.0, abs=1.0)
    assert peak_hz(play(data[2], "mp3", 16_000)) == pytest.approx(880.0, abs=1.0)


@pytest.mark.parametrize("last", [False, True])
def test_lost_stream(last: bool) -> None:
    """A piece of a stream that is not there, or no longer, does not begin another file in its middle."""
    streams = Streams()
    piece = to_base64(tone(0.01))
    request = Encode(1, "wav", sample_rate_hz=16_000, last=last)
    with pytest.raises(Unavailable, match=r"^The stream of speech was lost\.$"):
        streams.encode(request, b"" if last else piece)
    streams.encode(Encode(1, "wav", sample_rate_hz=16_000, first=True), piece)
    streams.drop(1)
    streams.drop(1)
    with pytest.raises(Unavailable):
        streams.encode(request, b"" if last else piece)
    assert len(streams) == 0


def test_stream_that_begins_again() -> None:
    """A first piece begins a new file, whatever had begun under its number."""
    streams = Streams()
    piece = to_base64(tone(0.01, rate_hz=8_000))
    for rate_hz in (8_000, 16_000):
        encoded, data, _ = streams.encode(Encode(1, "wav", sample_rate_hz=rate_hz, first=True), piece)
        assert data.startswith(b"RIFF")
        assert encoded.sample_rate_hz == rate_hz
    assert len(streams) == 1


def test_too_many_streams() -> None:
    """None that is being made gives way to one too many, which is refused until there is room."""
    streams = Streams()
    piece = to_base64(tone(0.01))

    def feed(stream: int, *, first: bool) -> bytes:
        return streams.encode(Encode(stream, "wav", sample_rate_hz=16_000, first=first), piece)[1]

    for stream in range(STREAMS_LIMIT):
        assert feed(stream, first=True)
    with pytest.raises(Overloaded):
        feed(STREAMS_LIMIT, first=True)
    assert feed(1, first=True)
    for stream in range(STREAMS_LIMIT):
        assert feed(stream, first=False)
    streams.drop(0)
    assert feed(STREAMS_LIMIT, first=True)
