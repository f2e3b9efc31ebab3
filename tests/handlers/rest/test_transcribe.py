"""``POST /api/voice/transcribe``: what clients send, what reaches the bridges, and what they answer."""

from __future__ import annotations

import asyncio
import base64
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import jwt
import msgspec
import numpy as np
import pytest

from tests.codec.recorders import amr, wave, with_a_pause
from tests.codec.sounds import (
    AUDIO,
    amplitude,
    chunk,
    encode,
    interleave,
    peak_hz,
    silence,
    to_pcm,
    to_width,
    tone,
    wav,
)
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Answer, Api, in_flight
from tests.handlers.rest.conftest import SECRET
from tests.handlers.rest.recordings import TRANSCRIBE, Body, as_bytes, as_form, as_json, float32, hear, send
from tests.system.server import Server

STT = "/api/stt/transcribe"
CLIP_S = 0.5
UPLOAD_LIMIT_BYTES = 25 * 1024 * 1024 * 4 // 3 + 65_536


def clip(rate_hz: int = 16_000) -> Any:
    return tone(CLIP_S, rate_hz=rate_hz)


def wrapped(audio: bytes) -> Body:
    """Put *audio* into JSON as tools write base64: in lines."""
    return Body(msgspec.json.encode({"audio_data": base64.encodebytes(audio).decode()}), "application/json")


def unpadded(audio: bytes) -> Body:
    body = {"audio_data": base64.b64encode(audio).decode().rstrip("=")}
    return Body(msgspec.json.encode(body), "application/json; charset=utf-8")


def big_endian(samples: Any, channels: int = 1) -> bytes:
    """Return samples of 16 bits as they go over a network."""
    return to_width(np.repeat(samples, channels), 2, 16, big_endian=True)


def data_url(audio: bytes, media_type: str) -> Body:
    """Put *audio* into JSON as a page's ``FileReader`` reads it."""
    url = f"data:{media_type};base64,{base64.b64encode(audio).decode()}"
    return Body(msgspec.json.encode({"audio_data": url}), "application/json")


KINDS: dict[str, Callable[[], Body]] = {
    "json": lambda: as_json(wav(clip())),
    "json-lines": lambda: wrapped(wav(clip())),
    "json-unpadded": lambda: unpadded(wav(clip()) + b"note\0\0\0\0"),
    "json-named-alike": lambda: as_json(wav(clip(), kind="s24"))._replace(content_type="application/vnd.x+json"),
    "json-f32": lambda: as_json(float32(clip())),
    "json-f32-field": lambda: as_json(float32(clip(8_000)), sample_rate=8_000, format="f32"),
    "json-f32-query": lambda: as_json(float32(clip(44_100)))._replace(query={"sample_rate": "44100"}),
    "json-field-over-query": lambda: as_json(float32(clip(48_000)), sample_rate=48_000)._replace(
        query={"sample_rate": "8000"}
    ),
    "json-pcm16": lambda: as_json(to_pcm(clip(24_000), "s16"), format="pcm16", sample_rate=24_000),
    "json-nulls": lambda: as_json(wav(clip()), language=None, format=None, sample_rate=None, unknown=[1]),
    "form": lambda: as_form(wav(clip(22_050), 22_050)),
    "form-fields": lambda: as_form(float32(clip(32_000)), sample_rate="32000", language="fr", other="ignored"),
    "form-pcm16": lambda: as_form(to_pcm(clip(), "s16"), format="pcm16"),
    "form-query": lambda: as_form(float32(clip(11_025)))._replace(query={"sample_rate": "11025"}),
    "form-flac": lambda: as_form(encode(clip(48_000), "flac", "flac", 48_000, layout="stereo"), file_type="audio/flac"),
    "bytes": lambda: as_bytes(wav(clip()), "audio/wav"),
    "bytes-unlabelled": lambda: as_bytes(wav(clip(), kind="f32", channels=2), ""),
    "bytes-mislabelled": lambda: as_bytes(encode(clip(), "flac", "flac", 16_000), "audio/mpeg"),
    "bytes-streamed-wav": lambda: as_bytes(wav(clip(), data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF), "audio/wav"),
    "bytes-opus": lambda: as_bytes(encode(clip(48_000), "ogg", "libopus", 48_000), "audio/ogg; codecs=opus"),
    "bytes-mp4": lambda: as_bytes(encode(clip(48_000), "mp4", "aac", 48_000), "video/mp4"),
    "bytes-f32": lambda: as_bytes(float32(clip())),
    "bytes-f32-query": lambda: as_bytes(float32(clip(96_000)), sample_rate="96000"),
    "bytes-l16": lambda: as_bytes(big_endian(clip(44_100)), "audio/L16; rate=44100"),
    "bytes-l16-stereo": lambda: as_bytes(big_endian(clip(8_000), 2), "audio/L16;rate=8000;channels=2"),
    "bytes-l24-stereo": lambda: as_bytes(to_width(np.repeat(clip(48_000), 2), 3, 24, big_endian=True),
                                         "audio/L24;rate=48000;channels=2"),
    "bytes-l8": lambda: as_bytes(to_pcm(clip(22_050), "u8"), "audio/L8;rate=22050"),
    "bytes-l16-odd": lambda: as_bytes(big_endian(clip()) + b"\0", "audio/L16;rate=16000"),
    "form-l16": lambda: as_form(big_endian(clip(32_000), 6), file_type="audio/L16;rate=32000;channels=6"),
    "json-pcm16-odd": lambda: as_json(to_pcm(clip(), "s16") + b"\0", format="pcm16"),
    "bytes-as-we-send-them": lambda: as_bytes(to_pcm(clip(24_000), "s16"), "audio/pcm; rate=24000; channels=1"),
    "bytes-s3": lambda: as_bytes(wav(clip()), "binary/octet-stream"),
    "json-data-url": lambda: data_url(wav(clip()), "audio/wav"),
    "json-data-url-opus": lambda: data_url(encode(clip(48_000), "webm", "libopus", 48_000), "audio/webm;codecs=opus"),
    "json-data-url-pcmu": lambda: data_url(encode(clip(8_000), "mulaw", "pcm_mulaw", 8_000), "audio/PCMU"),
    "24-in-32": lambda: as_bytes(wave(to_width(clip(), 4, 24), width=4, bits=32, valid_bits=24), "audio/wav"),
    "20-in-24": lambda: as_json(wave(to_width(clip(48_000), 3, 20), width=3, bits=24, valid_bits=20, rate_hz=48_000)),
    "alsa": lambda: as_form(wave(to_width(clip(), 4, 24, low=True), width=4, bits=24), file_type="audio/wav"),
    "rifx": lambda: as_bytes(wave(big_endian(clip()), width=2, bits=16, magic=b"RIFX"), "audio/wav"),
    "streamed-with-a-note": lambda: as_bytes(wav(clip(), data_size=0xFFFFFFFF, after=chunk(b"LIST", b"INFO" * 99))),
    "wav-odd": lambda: as_bytes(wav(clip(), data_size=2 * len(clip()) + 1, after=b"\0"), "audio/wav"),
    "inverted": lambda: as_bytes(encode(interleave(clip(48_000), -clip(48_000)), "flac", "flac", 48_000,
                                        layout="stereo", interleaved=True), "audio/flac"),
    "aiff": lambda: as_bytes(encode(clip(48_000), "aiff", "pcm_s16be", 48_000), "audio/aiff"),
    "caf": lambda: as_bytes(encode(clip(44_100), "caf", "alac", 44_100), "audio/x-caf"),
    "au": lambda: as_bytes(encode(clip(8_000), "au", "pcm_mulaw", 8_000), "audio/basic"),
    "mov": lambda: as_form(encode(clip(44_100), "mov", "pcm_s24le", 44_100), file_type="video/quicktime"),
    "3gp": lambda: as_bytes(amr("3gp", clip(8_000)), "audio/3gpp"),
    "amr": lambda: as_bytes(amr("amr", clip(8_000)), "audio/AMR"),
    "mp3-mid-frame": lambda: as_bytes(encode(clip(44_100), "mp3", "libmp3lame", 44_100, live=True)[200:], "audio/mpeg"),
    "m4a-with-a-title": lambda: as_bytes(encode(clip(48_000), "ipod", "aac", 48_000,
                                                metadata={"title": "Una encantadora sinfonia"}), "audio/mp4"),
}  # fmt: skip
CODED = {"bytes-opus", "bytes-mp4", "json-data-url-opus", "3gp", "amr", "mp3-mid-frame", "m4a-with-a-title"}
"""Those whose codec pads them."""


@pytest.mark.parametrize("kind", KINDS)
async def test_ways_to_send(api: Api, bridges: FakeBridges, kind: str) -> None:
    """However a clip is sent, the bridge gets its float32 mono samples at 16 kHz, and the client its words."""
    heard = await hear(api, KINDS[kind]())
    slack_ms = 60 if kind in CODED else 2
    assert abs(heard["duration_ms"] - 1_000 * CLIP_S) <= slack_ms
    assert heard["text"].startswith("a clip of 0.")
    assert heard["segments"] == [{"start_ms": 0, "end_ms": heard["duration_ms"], "text": heard["text"]}]
    assert (heard["language"], heard["confidence"], heard["enhanced"]) == ("fr", 0.93, False)
    asked = bridges.last("/api/stt").json
    assert asked.keys() == {"audio_data", "language"}
    samples = np.frombuffer(base64.b64decode(asked["audio_data"]), "<f4")
    assert round(len(samples) / 16) == heard["duration_ms"]
    assert abs(peak_hz(samples) - 440) < 3
    assert abs(amplitude(samples) - 0.5) < (0.08 if kind in CODED else 0.03)


@pytest.mark.parametrize("name", ["fx16k_en_1.mp3", "fx16k_fr_1.webm"])
async def test_recording(api: Api, bridges: FakeBridges, name: str) -> None:
    """Recordings of real speech reach the bridge as long as they are."""
    whole = AUDIO / name.replace(name[-3:] if name.endswith("mp3") else "webm", "wav")
    seconds = (whole.stat().st_size - 44) / 32_000
    heard = await hear(api, as_bytes((AUDIO / name).read_bytes(), "audio/webm"))
    assert abs(heard["duration_ms"] / 1_000 - seconds) < 0.1
    assert abs(bridges.heard[-1].duration_s - seconds) < 0.1


@pytest.mark.parametrize(
    ("body", "language"),
    [
        (lambda: as_bytes(wav(clip())), "fr"),
        (lambda: as_bytes(wav(clip()), language="en"), "en"),
        (lambda: as_json(wav(clip()), language="de"), "de"),
        (lambda: as_form(wav(clip()), language="it"), "it"),
        (lambda: as_form(wav(clip()), language=""), "fr"),
        (lambda: as_json(wav(clip()), language="es")._replace(query={"language": "en"}), "es"),
        (lambda: as_bytes(wav(clip()), language=""), "fr"),
        (lambda: as_bytes(wav(clip()), language="en-US"), "en"),
        (lambda: as_json(wav(clip()), language="PT_br"), "pt"),
        (lambda: as_json(wav(clip()), language="nb"), "no"),
        (lambda: as_bytes(wav(clip()), language="iw-IL"), "he"),
        (lambda: as_form(wav(clip()), language="fra"), "fr"),
        (lambda: as_json(wav(clip()), language="ger"), "de"),
        (lambda: as_bytes(wav(clip()), language="zho-Hant"), "zh"),
        (lambda: as_bytes(wav(clip()), language="und"), None),
        (lambda: as_json(wav(clip()), language="auto"), None),
        (lambda: as_bytes(wav(clip()), language="AUTO"), None),
    ],
)  # fmt: skip
async def test_language(api: Api, bridges: FakeBridges, body: Callable[[], Body], language: str | None) -> None:
    """The language is the body's, else the query's, else the default; "auto" leaves it to the model."""
    heard = await hear(api, body())
    assert bridges.last("/api/stt").json.get("language") == language
    assert heard["language"] == (language or "fr")


async def test_language_of_the_house(api: Api, bridges: FakeBridges) -> None:
    """What "auto" finds is a language that can be spoken: another one is heard again in one of those."""
    bridges.mode = BridgesMode(detects="es")
    heard = await hear(api, as_bytes(wav(clip()), language="auto"))
    assert (heard["language"], heard["language_confidence"]) == ("fr", None)
    first, second = (request.json for request in list(bridges.requests)[-2:])
    assert "language" not in first
    assert first["languages"] == ["fr"], "the bridges' only voices are French"
    assert second["language"] == "fr"


async def test_times_beyond_the_recording(api: Api, bridges: FakeBridges) -> None:
    """A segment that ends at 29 s of a clip of 0.3 s ends with the clip."""
    bridges.mode = BridgesMode(segment_end_s=29.0)
    heard = await hear(api, as_bytes(wav(clip())))
    assert [(part["start_ms"], part["end_ms"]) for part in heard["segments"]] == [(0, heard["duration_ms"])]


# At which time


@pytest.mark.parametrize(
    "body",
    [
        lambda: as_bytes(amr("3gp", with_a_pause(8_000)), "audio/3gpp"),
        lambda: as_bytes(
            encode(tone(4.0, rate_hz=48_000), "webm", "libopus", 48_000, live=True, pause_s=(1.0, 3.0)), "audio/webm"
        ),
        lambda: as_bytes(encode(tone(4.0, rate_hz=44_100), "mp4", "aac", 44_100, pause_s=(1.0, 3.0)), "audio/mp4"),
    ],
    ids=["described_silence", "recorder_that_sends_none", "paused"],
)
async def test_times_are_those_of_the_recording(api: Api, bridges: FakeBridges, body: Callable[[], Body]) -> None:
    """What is said after a silence that was not recorded stands at its time, to the end of the recording."""
    heard = await hear(api, body())
    assert abs(heard["duration_ms"] - 4_000) <= 60
    assert heard["segments"][-1]["end_ms"] == heard["duration_ms"]
    samples = np.frombuffer(base64.b64decode(bridges.last("/api/stt").json["audio_data"]), "<f4")
    loud = [float(np.abs(samples[16_000 * n // 10 : 16_000 * (n + 1) // 10]).max()) > 0.3 for n in range(40)]
    assert loud[2:9] == loud[32:39] == [True] * 7
    assert not any(loud[12:29])


# Nothing to be heard


@pytest.mark.parametrize(
    ("body", "duration_ms"),
    [
        (lambda: as_bytes(wav(silence(1.0)), "audio/wav"), 1_000),
        (lambda: as_bytes(float32(silence(0.25)), language="en"), 250),
        (lambda: as_bytes(wav(tone(1.0, amplitude=0.001))), 1_000),
        (lambda: as_bytes(wav(silence(1.0) + np.float32(0.4))), 1_000),
        (lambda: as_form(wav(silence(0.3, 48_000), 48_000)), 300),
        (lambda: as_json(float32(tone(1 / 16_000))), 0),
        (lambda: as_bytes(float32(np.ones(1, np.float32))), 0),
        (lambda: as_bytes(wav(silence(0)), "audio/wav"), 0),
        (lambda: as_json(wav(silence(0), data_size=0xFFFFFFFF)), 0),
        (lambda: as_bytes(b"", "audio/wav"), 0),
        (lambda: as_json(b""), 0),
        (lambda: as_form(b""), 0),
        (lambda: Body(b""), 0),
    ],
)  # fmt: skip
async def test_silence(api: Api, bridges: FakeBridges, body: Callable[[], Body], duration_ms: int) -> None:
    """Silence, one sample and no sample are an empty text, and the bridge, which would invent words, is not asked."""
    heard = await hear(api, body())
    assert (heard["text"], heard["segments"], heard["confidence"], heard["enhanced"]) == ("", [], 0, False)
    assert heard["duration_ms"] == duration_ms
    assert heard["language"] in ("fr", "en")
    assert bridges.requests_seen[STT] == 0


# Long recordings


async def test_long_recording(api: Api, bridges: FakeBridges) -> None:
    """A long recording goes in windows that the bridge can take, without the silent one; times count from its start."""
    body = wav(np.concatenate([tone(57, rate_hz=8_000), silence(65, 8_000), tone(5, rate_hz=8_000)]), 8_000)
    heard = await hear(api, as_bytes(body, "audio/wav"))
    assert heard["duration_ms"] == 127_000
    assert bridges.requests_seen[STT] == 2
    assert all(len(request.json["audio_data"]) <= 10_000_000 for request in bridges.requests)
    first, second = bridges.heard
    assert 57 < first.duration_s <= 60
    assert 5 < second.duration_s < 25
    assert heard["text"] == f"a clip of {first.duration_s:.2f} seconds a clip of {second.duration_s:.2f} seconds"
    starts = [segment["start_ms"] for segment in heard["segments"]]
    ends = [segment["end_ms"] for segment in heard["segments"]]
    assert starts == [0, 127_000 - round(1_000 * second.duration_s)]
    assert ends == [round(1_000 * first.duration_s), 127_000]
    assert heard["confidence"] == 0.93


async def test_long_silence(api: Api, bridges: FakeBridges) -> None:
    """Ten minutes of silence cost the bridge nothing."""
    heard = await hear(api, as_bytes(wav(silence(600, 8_000), 8_000, "u8")))
    assert (heard["duration_ms"], heard["text"]) == (600_000, "")
    assert bridges.requests_seen[STT] == 0


# What is wrong


def pieces_of(data: bytes) -> AsyncIterator[bytes]:
    async def give() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65_536):
            yield data[start : start + 65_536]

    return give()


def cut_form() -> Body:
    body = as_form(wav(clip()))
    return body._replace(data=body.data[:-20])


NAN = float32(np.full(1_600, math.nan, np.float32))


@pytest.mark.parametrize(
    ("body", "status", "code", "path"),
    [
        (lambda: Body(b"", "application/json"), 400, "invalid_json", None),
        (lambda: Body(b"{", "application/json"), 400, "invalid_json", None),
        (lambda: Body(b'{"audio_data": "' + b"[" * 100_000, "application/json"), 400, "invalid_json", None),
        (lambda: Body(b"[]", "application/json"), 400, "invalid_request", "$"),
        (lambda: Body(b"{}", "application/json"), 400, "invalid_request", "$"),
        (lambda: Body(b'{"audio_data": 7}', "application/json"), 400, "invalid_request", "$.audio_data"),
        (lambda: Body(b'{"audio_data": null}', "application/json"), 400, "invalid_request", "$.audio_data"),
        (lambda: Body(b'{"audio_data": "*** no ***"}', "application/json"), 400, "invalid_request", "$.audio_data"),
        (lambda: Body('{"audio_data": "é"}'.encode(), "application/json"), 400, "invalid_request", "$.audio_data"),
        (lambda: Body(b'{"audio_data": "AAAA-_=="}', "application/json"), 400, "invalid_request", "$.audio_data"),
        (lambda: Body(b'{"audio_data": "AAAAA"}', "application/json"), 400, "invalid_request", "$.audio_data"),
        (lambda: as_json(wav(clip()), language="x" * 11), 400, "invalid_request", "$.language"),
        (lambda: as_json(wav(clip()), sample_rate=999), 400, "invalid_request", "$.sample_rate"),
        (lambda: as_json(wav(clip()), sample_rate=384_001), 400, "invalid_request", "$.sample_rate"),
        (lambda: as_json(wav(clip()), sample_rate="16000"), 400, "invalid_request", "$.sample_rate"),
        (lambda: as_bytes(wav(clip()), sample_rate="0"), 400, "invalid_request", "query.sample_rate"),
        (lambda: as_bytes(wav(clip()), sample_rate="x"), 400, "invalid_request", "query.sample_rate"),
        (lambda: as_bytes(wav(clip()), language="x" * 11), 400, "invalid_request", "query.language"),
        (lambda: as_form(None, language="fr"), 400, "invalid_request", "file"),
        (lambda: as_form(wav(clip()), sample_rate="many"), 400, "invalid_request", "sample_rate"),
        (lambda: as_form(wav(clip()), language="x" * 11), 400, "invalid_request", "language"),
        (lambda: as_form(b"nothing like audio"), 400, "invalid_request", "file"),
        (cut_form, 400, "invalid_request", "body"),
        (lambda: Body(b"x", "multipart/form-data"), 400, "invalid_request", "content-type"),
        (lambda: Body(b"x", "multipart/form-data; boundary=y"), 400, "invalid_request", "body"),
        (lambda: Body(wav(clip()), "text/plain"), 415, "unsupported_media_type", None),
        (lambda: Body(wav(clip()), "image/png"), 415, "unsupported_media_type", None),
        (lambda: Body(wav(clip()), "application/x-www-form-urlencoded"), 415, "unsupported_media_type", None),
        (lambda: as_bytes(wav(clip())[:30], "audio/wav"), 400, "invalid_request", "body"),
        (lambda: as_bytes(wav(clip(), rate_hz=1, kind="s16")), 400, "invalid_request", "body"),
        (lambda: as_bytes(wav(clip())[:8_000]), 400, "invalid_request", "body"),
        (lambda: as_json(encode(clip(), "flac", "flac", 16_000)[:500]), 400, "invalid_request", "$.audio_data"),
        (lambda: as_form((AUDIO / "fx16k_en_1.mp3").read_bytes()[:3_000]), 400, "invalid_request", "file"),
        (lambda: as_bytes((AUDIO / "fx16k_en_1.webm").read_bytes()[:300]), 400, "invalid_request", "body"),
        (lambda: as_bytes(b"RIFF\0\0\0\0AVI LIST"), 415, "unsupported_media_type", None),
        (lambda: as_form(encode(clip(), "wv", "wavpack", 16_000)), 415, "unsupported_media_type", None),
        (lambda: as_json(encode(clip(), "matroska", "ac3", 48_000)), 415, "unsupported_media_type", None),
        (lambda: as_bytes(wav(clip()), "audio/L20;rate=16000"), 415, "unsupported_media_type", None),
        (lambda: as_bytes(wav(clip()), "audio/L16;channels=99"), 400, "invalid_request", "content-type.channels"),
        (lambda: Body(b'{"audio_data": "data:audio/wav,RIFF"}', "application/json"),
         400, "invalid_request", "$.audio_data"),
        (lambda: Body(b'{"audio_data": "data:audio/wav;base64,*"}', "application/json"),
         400, "invalid_request", "$.audio_data"),
        (lambda: as_bytes(b"This is no audio, but 4 bytes often."), 400, "invalid_request", "body"),
        (lambda: as_bytes(b"This is no audio", "audio/wav"), 400, "invalid_request", "body"),
        (lambda: as_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4), 400, "invalid_request", "body"),
        (lambda: as_bytes(to_pcm(clip(), "s16")), 400, "invalid_request", "body"),
        (lambda: as_bytes(float32(clip()) + b"\0"), 400, "invalid_request", "body"),
        (lambda: as_bytes(NAN), 400, "invalid_request", "body"),
        (lambda: as_bytes(wav(np.full(1_600, math.nan), kind="f32")), 400, "invalid_request", "body"),
        (lambda: as_bytes(encode(clip(48_000), "mp4", "aac", 48_000, video=True), "video/mp4"),
         415, "unsupported_media_type", None),
        (lambda: as_bytes(wav(silence(601, 8_000), 8_000, "u8")), 413, "too_large", None),
        (lambda: as_bytes(encode(silence(700), "flac", "flac", 16_000), "audio/flac"), 413, "too_large", None),
        (lambda: as_bytes(bytes(25 * 1024 * 1024 + 4)), 413, "too_large", None),
        (lambda: as_form(bytes(25 * 1024 * 1024 + 4)), 413, "too_large", None),
    ],
)  # fmt: skip
async def test_bad_input(
    api: Api, bridges: FakeBridges, body: Callable[[], Body], status: int, code: str, path: str | None
) -> None:
    """What is not audio, too long or too large is refused with the place and the reason; the bridge is not asked."""
    answer = await send(api, body())
    assert answer.error == (status, code)
    error = answer.json["error"]
    assert len(error) > 10
    assert "Traceback" not in error
    if path is not None:
        assert answer.path == path
        assert error.startswith(path)
        assert answer.json["details"]["rule"]
    if status == 413:
        assert answer.json["details"].keys() & {"limit_s", "limit_bytes"}
    assert bridges.requests_seen[STT] == 0
    assert (await hear(api, as_bytes(wav(clip()))))["text"], "the next clip is none the worse"


async def test_over_the_limit(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """A body that is over the limit is 413 by what it declares, and when it declares nothing, as soon as it is."""
    with connected(open_server[0], f"Content-Length: {UPLOAD_LIMIT_BYTES + 1}") as connection:
        for _ in range(8):
            # The server has answered long ago if it does so before it is asked to the end: this would be refused.
            connection.sendall(bytes(65_536))
            await asyncio.sleep(0.03)
        assert b" 413 " in await asyncio.to_thread(connection.recv, 65_536)
    too_long = bytes(UPLOAD_LIMIT_BYTES + (8 << 20))
    for data in (BytesIO(too_long), pieces_of(too_long)):
        answer = await api.post(TRANSCRIBE, data=data, headers={"Content-Type": "audio/wav"})
        assert answer.error == (413, "too_large")
        assert answer.json["details"] == {"limit_bytes": UPLOAD_LIMIT_BYTES}
    assert bridges.requests_seen[STT] == 0
    assert await in_flight(api) == 1


# What the bridges do


def faulty(kind: FaultKind = "none", **options: Any) -> BridgesMode:
    return BridgesMode(faults={STT: Fault(kind, **options)})


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        (BridgesMode(error_200=True), 502, "bad_gateway"),
        (BridgesMode(error_200=True, segments="of_failure"), 502, "bad_gateway"),
        (faulty(status=500), 502, "bad_gateway"),
        (faulty(status=400), 502, "bad_gateway"),
        (faulty(status=401), 502, "bad_gateway"),
        (faulty(status=404), 502, "bad_gateway"),
        (faulty(status=429), 429, "rate_limited"),
        (faulty(status=429, retry_after_s=7), 429, "rate_limited"),
        (faulty(status=502), 503, "unavailable"),
        (faulty(status=503), 503, "unavailable"),
        (faulty(status=504), 504, "timeout"),
        (faulty("html"), 502, "bad_gateway"),
        (faulty("nonsense"), 502, "bad_gateway"),
        (faulty("empty"), 502, "bad_gateway"),
        (faulty("null"), 502, "bad_gateway"),
        (faulty("list"), 502, "bad_gateway"),
        (faulty("wrong_shape"), 502, "bad_gateway"),
        (faulty("wrong_type"), 502, "bad_gateway"),
        (faulty("truncated"), 502, "bad_gateway"),
        (faulty("garbage"), 502, "bad_gateway"),
        (faulty("redirect"), 502, "bad_gateway"),
        (faulty("short_body"), 503, "unavailable"),
        (faulty("close"), 503, "unavailable"),
        (faulty("reset"), 503, "unavailable"),
    ],
    ids=lambda value: str(value.faults.get(STT, "200 Error:"))[:60] if isinstance(value, BridgesMode) else str(value),
)
async def test_bridges_in_trouble(api: Api, bridges: FakeBridges, mode: BridgesMode, status: int, code: str) -> None:
    """Whatever the bridges do wrong is one of our errors, and none of their words."""
    bridges.mode = mode
    answer = await send(api, as_bytes(wav(clip())))
    assert answer.error == (status, code)
    assert "Error: " not in answer.json["error"]
    check_retry_after(answer, mode.faults.get(STT, Fault()).retry_after_s)
    assert "/elsewhere" not in bridges.requests_seen, "a redirect would carry the token elsewhere"


def check_retry_after(answer: Answer, expected_s: int | None) -> None:
    if answer.status in (429, 503):
        told_s = int(answer.headers["Retry-After"])
        assert told_s > 0
        assert told_s == (expected_s or told_s)
    else:
        assert "Retry-After" not in answer.headers


async def test_bridges_away(api: Api, bridges: FakeBridges) -> None:
    """Bridges that are not there are 503, silence is heard without them, and all is well when they come back."""
    await bridges.go_away()
    answer = await send(api, as_bytes(wav(clip())))
    assert answer.error == (503, "unavailable")
    check_retry_after(answer, None)
    assert (await hear(api, as_bytes(wav(silence(1)))))["text"] == ""
    await bridges.come_back()
    assert (await hear(api, as_bytes(wav(clip()))))["text"]


async def test_bridges_hang(strict: Api, strict_bridges: FakeBridges) -> None:
    """Bridges that never answer are 504 after the deadline, and their connection is closed."""
    strict_bridges.mode = faulty("hang")
    answer = await send(strict, as_bytes(wav(clip())))
    assert answer.error == (504, "timeout")
    await let_go(strict_bridges, STT)


async def let_go(bridges: FakeBridges, path: str) -> None:
    """Wait until the connection is closed over which the bridges were last asked for *path*."""
    port = bridges.last(path).client_port
    async with asyncio.timeout(10):
        while bridges.is_connected(port):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


@pytest.mark.every_python
async def test_stale_connection(api: Api, bridges: FakeBridges) -> None:
    """A connection that the bridges had closed meanwhile costs the user nothing."""
    await hear(api, as_bytes(wav(clip())))
    bridges.mode = BridgesMode(faults={STT: Fault("close_reused", times=1)})
    assert (await hear(api, as_bytes(wav(clip()))))["text"]


async def test_failure_in_the_second_window(api: Api, bridges: FakeBridges) -> None:
    """A long recording of which one window fails is an error as a whole: half of it is no transcript."""
    bridges.mode = BridgesMode(transcript="Error: is what the first window says, with a segment of it")
    body = as_bytes(wav(tone(120, rate_hz=4_000), 4_000), "audio/wav")
    asking = asyncio.create_task(send(api, body))
    await bridges.seen(STT, timeout_s=10)
    bridges.mode = BridgesMode(error_200=True)
    await bridges.seen(STT, 2, timeout_s=10)
    assert (await asking).error == (502, "bad_gateway")


async def test_identity(strict: Api, strict_bridges: FakeBridges) -> None:
    """The bridges are asked in the caller's name, by whom they count."""
    await hear(strict, as_bytes(wav(clip())))
    token = strict_bridges.last("/api/stt").headers["authorization"].removeprefix("Bearer ")
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert (claims["user_id"], claims["sub"]) == ("zoé", "zoé")


async def test_credentials(strict_server: tuple[Server, int], strict_bridges: FakeBridges) -> None:
    """Without credentials nothing is heard."""
    async with Api(strict_server[0].url) as nobody:
        answer = await send(nobody, as_bytes(wav(clip())))
        assert answer.error == (401, "unauthenticated")
    assert strict_bridges.requests_seen[STT] == 0


# Leaving, and too much at once


@contextmanager
def connected(server: Server, *headers: str) -> Iterator[socket.socket]:
    """Begin an upload, of which only the head is sent; leaving breaks it off."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        lines = [f"POST {TRANSCRIBE} HTTP/1.1", "Host: x", "Content-Type: audio/wav", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        yield connection


async def idle(api: Api) -> None:
    """Wait until the server answers nobody else."""
    async with asyncio.timeout(5):
        while await in_flight(api) > 1:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def busy(api: Api, requests: int) -> None:
    """Wait until the server answers so many *requests* besides the question for it."""
    async with asyncio.timeout(5):
        while await in_flight(api) != requests + 1:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_client_leaves_in_mid_upload(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """A client that leaves in the middle of its upload leaves nothing behind."""
    await idle(api)
    for part in (b"", wav(clip())):
        with connected(open_server[0], "Content-Length: 1000000") as connection:
            connection.sendall(part)
            await busy(api, 1)
        await idle(api)
    with connected(open_server[0], "Transfer-Encoding: chunked") as connection:
        connection.sendall(b"1000\r\n" + bytes(4_096) + b"\r\n")
        await busy(api, 1)
    await idle(api)
    assert bridges.requests_seen[STT] == 0


@pytest.mark.every_python
async def test_client_leaves_before_the_answer(api: Api, bridges: FakeBridges) -> None:
    """A client that does not wait for the answer ends the bridges' work for it."""
    bridges.mode = faulty("hang")
    asking = asyncio.create_task(send(api, as_bytes(wav(clip()))))
    await bridges.seen(STT)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await idle(api)
    await let_go(bridges, STT)


async def test_too_much_audio(enhanced: Api, listener: FakeBridges, enhanced_server: tuple[Server, int, int]) -> None:
    """Audio beyond what one user may hold at a time is 429 until some of it is done with; small clips still pass."""
    large = as_bytes(bytes(16 << 20), "audio/wav")
    with connected(enhanced_server[0], "Transfer-Encoding: chunked") as connection:
        await asyncio.to_thread(connection.sendall, b"2100000\r\n" + bytes(33 << 20))
        await busy(enhanced, 1)
        answer = await send(enhanced, large)
        assert answer.error == (429, "rate_limited")
        check_retry_after(answer, None)
        assert (await hear(enhanced, as_bytes(wav(clip()))))["text"]
    await idle(enhanced)
    assert (await send(enhanced, large)).error == (400, "invalid_request"), "it is read again, and is no WAV"
    with connected(enhanced_server[0], "Content-Length: 34000000"):
        await busy(enhanced, 1)
        assert (await send(enhanced, large)).error == (400, "invalid_request"), "what was only announced takes no room"
    await idle(enhanced)
    assert listener.requests_seen[STT] == 1


async def test_many_at_once(api: Api, bridges: FakeBridges) -> None:
    """Many clips at once are each heard as what they are."""
    bodies = [as_bytes(float32(tone(0.2 + n / 50))) for n in range(30)]
    heard = await asyncio.gather(*(hear(api, body) for body in bodies))
    assert [one["duration_ms"] for one in heard] == [200 + 20 * n for n in range(30)]
    assert all(one["text"] == f"a clip of {one['duration_ms'] / 1_000:.2f} seconds" for one in heard)
    assert bridges.requests_seen[STT] == 30
