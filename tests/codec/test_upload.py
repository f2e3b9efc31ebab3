"""Uploads: the three ways in which clients send audio, and what is wrong with them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from jarvis_core.codec.headerless import Encoding, Headerless
from jarvis_core.codec.messages import DecodeUpload
from jarvis_core.codec.upload import Upload, read_upload
from jarvis_core.errors import InvalidJson, InvalidRequest, RequestError, TooLarge, UnsupportedMediaType
from tests.codec.sounds import tone, wav

SOUND = wav(tone(0.2))
BOUNDARY = "----b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def read(body: bytes, content_type: str, **options: Any) -> Upload:
    """Return the upload in *body*, which comes in pieces."""
    parts = [body[start : start + 1_000] for start in range(0, len(body), 1_000)]
    return read_upload(parts, DecodeUpload(content_type, **options))


def refuse(body: bytes, content_type: str, **options: Any) -> RequestError:
    """Return the error that *body* gives."""
    with pytest.raises(RequestError) as caught:
        read(body, content_type, **options)
    return caught.value


def refuse_field(path: str, body: bytes, content_type: str, **options: Any) -> str:
    """Return the rule that *body* breaks at *path*."""
    error = refuse(body, content_type, **options)
    assert isinstance(error, InvalidRequest)
    assert error.details is not None
    assert error.details["path"] == path
    return str(error.details["rule"])


def to_json(**fields: Any) -> bytes:
    return json.dumps({"audio_data": base64.b64encode(SOUND).decode(), **fields}).encode()


def part(name: str, data: bytes, *, file: bool = False, headers: str = "") -> bytes:
    filename = '; filename="speech.wav"' if file else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n{headers}\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FILE = part("file", SOUND, file=True, headers="Content-Type: audio/x-wav\r\n")


# JSON


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"])
def test_json(content_type: str) -> None:
    """JSON brings the audio in base64 and says what is known of it; unknown fields are ignored."""
    body = to_json(language="fr", sample_rate=44_100, format="pcm16", model="whisper")
    assert read(body, content_type) == Upload(SOUND, "$.audio_data", "", Headerless("pcm16", 44_100), "fr")
    assert read(to_json(), content_type, sample_rate_hz=8_000) == Upload(
        SOUND, "$.audio_data", told=Headerless(rate_hz=8_000)
    )
    assert read(to_json(language=None, format=None, sample_rate=None), content_type) == Upload(SOUND, "$.audio_data")


@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("change", [str, lambda text: text.rstrip("="), lambda text: "\r\n ".join(text) + "\n"])
def test_base64(size: int, change: Any) -> None:
    """Base64 is taken with and without padding, and in lines."""
    text = change(base64.b64encode(SOUND[:size]).decode())
    assert read(to_json(audio_data=text), "application/json").audio == SOUND[:size]


@pytest.mark.parametrize(
    "text",
    ["_-8=", "a", "ab=", "abc==", "a=bc", "é", "ab\0d", "ab!d", "data:audio/wav;base64,*", "data:audio/wav,UklG"],
)
def test_bad_base64(text: str) -> None:
    """Whatever else there is in it is not skipped."""
    assert "base64" in refuse_field("$.audio_data", to_json(audio_data=text), "application/json")


@pytest.mark.parametrize(
    ("body", "path", "rule"),
    [
        (b"{}", "$", "missing required field `audio_data`"),
        (b"[]", "$", "object"),
        (to_json(audio_data=1), "$.audio_data", "Expected `str`"),
        (to_json(audio_data=None), "$.audio_data", "Expected `str`"),
        (to_json(language="a" * 11), "$.language", "<= 10"),
        (to_json(sample_rate=999), "$.sample_rate", ">= 1000"),
        (to_json(sample_rate=384_001), "$.sample_rate", "<= 384000"),
        (to_json(sample_rate="16000"), "$.sample_rate", "Expected `int"),
        (to_json(format=1), "$.format", "Expected `str"),
    ],
)
def test_bad_fields(body: bytes, path: str, rule: str) -> None:
    """A field that is missing, wrong-typed or out of range is named with the rule that it breaks."""
    assert rule in refuse_field(path, body, "application/json")


@pytest.mark.parametrize("body", [b"", b"{", SOUND, b'{"audio_data": "\xff"}', b'{"x": ' + b"[" * 100_000])
def test_not_json(body: bytes) -> None:
    """A body that is not JSON in UTF-8 says so."""
    assert isinstance(refuse(body, "application/json"), InvalidJson)


# The bytes themselves


@pytest.mark.parametrize(
    ("content_type", "claim"),
    [
        ("", ""),
        ("application/octet-stream", ""),
        ("binary/octet-stream", ""),
        ("Application/X-Octet-Stream", ""),
        ("audio/unheard-of", ""),
        ("audio/wav", "WAV"),
        ("audio/x-wav", "WAV"),
        ("Audio/WebM;codecs=opus", "WebM"),
        ("video/webm", "WebM"),
        ("video/mp4", "MP4"),
        ("audio/mpeg", "MP3"),
        ("application/ogg", "Ogg"),
        ("audio/ogg; codecs=opus", "Ogg"),
        ("audio/flac", "FLAC"),
        ("audio/x-m4a", "MP4"),
        ("video/quicktime", "MP4"),
        ("video/3gpp", "MP4"),
        ("audio/3gpp2", "MP4"),
        ("audio/AMR", "AMR"),
        ("audio/AMR-WB", "AMR"),
        ("audio/x-caf", "CAF"),
        ("audio/aiff", "AIFF"),
        ("audio/x-gsm", "GSM"),
        ("audio/x-ms-wma", "WMA"),
        ("audio/aacp", "AAC"),
    ],
)
def test_bytes_themselves(content_type: str, claim: str) -> None:
    """A body of audio is taken as it is, with what its type claims it to be."""
    assert read(SOUND, content_type, sample_rate_hz=22_050) == Upload(SOUND, "body", claim, Headerless(rate_hz=22_050))


SAMPLE_TYPES: dict[str, tuple[Encoding, int, int]] = {
    "audio/L16; rate=44100": ("pcm16be", 44_100, 1),
    "audio/L16;rate=8000;channels=2": ("pcm16be", 8_000, 2),
    'Audio/l16; Rate="48000"; Channels="6"': ("pcm16be", 48_000, 6),
    "audio/L16": ("pcm16be", 16_000, 1),
    "audio/l16; rate=22050; endianness=little-endian": ("pcm16", 22_050, 1),
    "audio/L24;rate=96000;channels=2": ("pcm24be", 96_000, 2),
    "audio/L8;rate=11025": ("u8", 11_025, 1),
    "audio/PCMU": ("mulaw", 8_000, 1),
    "audio/PCMA;rate=16000;channels=2": ("alaw", 16_000, 2),
    "audio/basic": ("mulaw", 8_000, 1),
    "audio/pcm; rate=24000; channels=1": ("pcm", 24_000, 1),
    "audio/x-float32; rate=22050; channels=2": ("f32", 22_050, 2),
}


@pytest.mark.parametrize("content_type", SAMPLE_TYPES)
def test_types_of_samples(content_type: str) -> None:
    """A type of samples says how wide they are, how many a second there are and on how many channels, in each way to send."""
    told = Headerless(*SAMPLE_TYPES[content_type])
    assert read(b"\0\1", content_type) == Upload(b"\0\1", "body", "", told)
    body = form(part("file", b"\0\1", file=True, headers=f"Content-Type: {content_type}\r\n"))
    assert read(body, FORM) == Upload(b"\0\1", "file", "", told)
    body = to_json(audio_data=f"data:{content_type};base64,AAE=")
    assert read(body, "application/json") == Upload(b"\0\1", "$.audio_data", "", told)


def test_rate_of_samples_beside_their_type() -> None:
    """A rate that is told elsewhere is that of samples whose type names none."""
    assert read(b"", "audio/L16", sample_rate_hz=48_000).told == Headerless("pcm16be", 48_000)
    assert read(b"", "audio/PCMU", sample_rate_hz=16_000).told == Headerless("mulaw", 16_000)
    assert read(b"", "audio/L16;rate=8000", sample_rate_hz=48_000).told == Headerless("pcm16be", 8_000)
    assert read(b"", "audio/L16;channels=2", format="pcm16").told == Headerless("pcm16", 16_000, 2)


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ("rate=fast", "content-type.rate"),
        ("rate=1", "content-type.rate"),
        ("channels=0", "content-type.channels"),
        ("channels=33", "content-type.channels"),
        ("channels=both", "content-type.channels"),
    ],
)
def test_bad_parameters(parameters: str, path: str) -> None:
    """A rate or a number of channels that no samples have is refused."""
    assert "whole number" in refuse_field(path, b"\0\1", f"audio/L16; {parameters}")


def test_samples_of_20_bits() -> None:
    """Samples that are not on whole bytes are refused by their name."""
    error = refuse(b"\0\1", "audio/L20; rate=48000")
    assert isinstance(error, UnsupportedMediaType)
    assert "audio/L20" in error.message


@pytest.mark.parametrize(
    ("head", "claim"),
    [
        ("data:audio/wav;base64,", "WAV"),
        ("DATA:Audio/WebM;codecs=opus;BASE64,", "WebM"),
        (' \ndata:audio/mp4; codecs="mp4a.40.2" ;base64,', "MP4"),
        ("data:;base64,", ""),
        ("data:application/octet-stream;base64,", ""),
    ],
)
def test_data_url(head: str, claim: str) -> None:
    """What a page reads a recording as, a URL with all of it, is the recording."""
    text = head + base64.b64encode(SOUND).decode()
    assert read(to_json(audio_data=text), "application/json") == Upload(SOUND, "$.audio_data", claim)
    sent = text.strip().encode()
    assert read(form(part("file", sent, file=True)), FORM) == Upload(SOUND, "file", claim)
    assert read(sent, "application/octet-stream") == Upload(SOUND, "body", claim)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "image/png", "application/x-www-form-urlencoded", "video/x-msvideo", "multipart/mixed", "nonsense"],
)
def test_other_types(content_type: str) -> None:
    """A body of another kind is refused by its name."""
    error = refuse(SOUND, content_type)
    assert isinstance(error, UnsupportedMediaType)
    assert content_type in error.message


@pytest.mark.parametrize("rate_hz", [0, -1, 999, 384_001])
def test_rate_of_the_query(rate_hz: int) -> None:
    """A rate out of range is refused, whatever the body."""
    assert "384000" in refuse_field("query.sample_rate", SOUND, "audio/wav", sample_rate_hz=rate_hz)


# Forms


def test_form() -> None:
    """A form brings the audio as ``file``, and what is known of it in text fields around that."""
    body = form(part("language", b"fr"), FILE, part("sample_rate", b"8000"), part("other", b"x" * 5_000))
    assert read(body, FORM) == Upload(SOUND, "file", "WAV", Headerless(rate_hz=8_000), "fr")
    assert read(form(FILE, part("format", b"pcm16")), FORM) == Upload(SOUND, "file", "", Headerless("pcm16"))
    empty = form(FILE, part("language", b""), part("format", b""), part("sample_rate", b""))
    assert read(empty, FORM, sample_rate_hz=8_000) == Upload(SOUND, "file", "WAV", Headerless(rate_hz=8_000))


def test_form_with_awkward_bytes() -> None:
    """What looks nearly like a boundary is audio, wherever the body was cut."""
    data = f"\r\n--{BOUNDARY[:-1]}\r\n\r\n--\r\n".encode() * 20
    body = form(part("file", data, file=True))
    for size in (1, 7, 64, len(body)):
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        assert read_upload(parts, DecodeUpload(FORM)).audio == data


def test_empty_file() -> None:
    """An empty file is a file."""
    assert read(form(part("file", b"", file=True)), FORM).audio == b""


@pytest.mark.parametrize(
    ("body", "path", "rule"),
    [
        (form(part("audio", SOUND, file=True)), "file", "is missing"),
        (form(FILE, FILE), "file", "only once"),
        (form(FILE, part("language", b"a" * 11)), "language", "at most 10"),
        (form(FILE, part("language", b"\xff\xfe")), "language", "not UTF-8"),
        (form(FILE, part("format", b"x" * 1_001)), "format", "at most 1000 bytes"),
        (form(FILE, part("sample_rate", b"16k")), "sample_rate", "whole number"),
        (form(FILE, part("sample_rate", b"999")), "sample_rate", "whole number"),
        (form(FILE, part("sample_rate", b"9" * 20)), "sample_rate", "whole number"),
        (form(FILE)[:-100], "body", "ends before"),
        (FILE, "body", "ends before"),
        (b"", "body", "ends before"),
        (SOUND, "body", "not well-formed"),
        (form(*[part("more", b"x")] * 21), "body", "more than 20 parts"),
        (form(part("file", SOUND, headers="X: " + "y" * 9_000 + "\r\n")), "body", "not well-formed"),
        (form(part("file", SOUND, headers="X: y\r\n" * 50)), "body", "not well-formed"),
    ],
)
def test_bad_forms(body: bytes, path: str, rule: str) -> None:
    """A form that is broken, overdone or lacks its file is refused with what is wrong."""
    assert rule in refuse_field(path, body, FORM)


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 300}"])
def test_bad_boundaries(content_type: str) -> None:
    """A form needs a boundary, of a reasonable length."""
    assert "boundary" in refuse_field("content-type", form(FILE), content_type)


# What is true of all three


@pytest.mark.parametrize(
    ("word", "claim"), [("WAV", "WAV"), ("audio/mp3", "MP3"), ("m4a", "MP4"), ("speex" * 9, ("speex" * 9)[:20])]
)
def test_format_is_a_hint(word: str, claim: str) -> None:
    """A format that is no kind of samples is kept as a claim, in our words where it is known."""
    assert read(to_json(format=word), "application/json").claim == claim
    assert read(form(FILE, part("format", word.encode())), FORM).claim == claim


@pytest.mark.parametrize("way", ["json", "form", "bytes"])
def test_too_large(way: str) -> None:
    """Audio over the limit is refused, audio at the limit is not, however it is packed."""
    body, content_type = {
        "json": (to_json(), "application/json"),
        "form": (form(FILE), FORM),
        "bytes": (SOUND, "audio/wav"),
    }[way]
    assert read(body, content_type, limit_bytes=len(SOUND)).audio == SOUND
    for limit_bytes in (len(SOUND) - 1, 100):
        error = refuse(body, content_type, limit_bytes=limit_bytes)
        assert isinstance(error, TooLarge)
        assert error.details == {"limit_bytes": limit_bytes}
