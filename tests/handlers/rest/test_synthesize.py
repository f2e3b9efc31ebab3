"""``POST /api/voice/synthesize``: a text as JSON with its speech, and as speech that comes while it is made."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import aiohttp
import av
import jwt
import numpy as np
import pytest

from tests.codec.sounds import Floats, peak_hz
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api, in_flight
from tests.handlers.rest.conftest import SECRET, STRICT
from tests.handlers.rest.test_transcribe import check_retry_after, idle, let_go
from tests.system.server import Server

SYNTHESIZE = "/api/voice/synthesize"
TTS = "/api/tts/synthesize"
TEXT = "Bonjour tout le monde."
TEXT_S = 0.05 * len(TEXT)
LONG_SENTENCE = "Voici une deuxième phrase qui a bien plus de mots que la première et qui dure donc plus longtemps."
"""Long enough not to be spoken together with two of its kind."""
STORY = f"Un. Deux {LONG_SENTENCE} Trois {LONG_SENTENCE} Quatre {LONG_SENTENCE} Cinq {LONG_SENTENCE}"
"""Three pieces: the first sentence, the next two, the last two."""
FORMATS: tuple[Any, ...] = ("wav", "mp3", "opus", "pcm16", "f32")


@pytest.fixture
async def speaker(api: Api) -> Api:
    """Ask the open server, which knows its voices already."""
    assert (await api.get("/api/voice/voices")).status == 200
    return api


def read(data: bytes, kind: str, rate_hz: int) -> tuple[Floats, int]:
    """Return samples and rate of speech of a *kind*; samples without a header have *rate_hz*."""
    if kind == "f32":
        return np.frombuffer(data, "<f4"), rate_hz
    if kind == "pcm16":
        return np.frombuffer(data, "<i2") / np.float32(32_767), rate_hz
    magic = {"wav": b"RIFF", "opus": b"OggS", "mp3": b"\xff"}[kind]
    assert data.startswith(magic)
    with av.open(BytesIO(data), "r", format={"wav": "wav", "opus": "ogg", "mp3": "mp3"}[kind]) as container:
        frames = list(container.decode(audio=0))
        resampler = av.AudioResampler(format="flt", layout="mono")
        parts = [one.to_ndarray()[0] for frame in frames for one in resampler.resample(frame)]
        return np.concatenate(parts), frames[0].sample_rate


async def speak(api: Api, **fields: object) -> tuple[Any, Floats, int]:
    """Return the answer, which is a success, and the samples that are in it with their rate."""
    answer = await api.post(SYNTHESIZE, {"text": TEXT, **fields})
    assert answer.status == 200, answer.body
    body = answer.json
    return body, *read(base64.b64decode(body["audio_data"], validate=True), body["format"], body["sample_rate"])


def asked_of(bridges: FakeBridges) -> list[Any]:
    """Return what the bridges were asked to say."""
    return [request.json for request in bridges.requests if request.path == TTS]


# As JSON


@pytest.mark.parametrize("output_format", FORMATS)
async def test_format(speaker: Api, bridges: FakeBridges, output_format: Any) -> None:
    """Each format is what it says, as long and at the rate that the answer tells, and sounds as the bridge made it."""
    body, samples, rate_hz = await speak(speaker, format=output_format)
    assert body.keys() == {"audio_data", "format", "sample_rate", "duration_ms", "voice"}
    assert (body["format"], body["voice"]) == (output_format, "fr_FR-siwis-medium")
    assert body["sample_rate"] == rate_hz == (48_000 if output_format == "opus" else 22_050)
    assert body["duration_ms"] == round(1_000 * TEXT_S)
    assert abs(len(samples) / rate_hz - TEXT_S) < (0.1 if output_format == "opus" else 0.001)
    assert abs(peak_hz(samples, rate_hz) - 441) < 3
    assert asked_of(bridges) == [{"text": TEXT, "voice": "fr_FR-siwis-medium"}]


async def test_wav_by_default(speaker: Api) -> None:
    """Without a format it is a WAV of 16-bit samples whose header has the true sizes."""
    body, _, _ = await speak(speaker)
    data = base64.b64decode(body["audio_data"])
    assert (body["format"], data[20:24], data[34:36]) == ("wav", b"\x01\0\x01\0", b"\x10\0")
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    assert int.from_bytes(data[40:44], "little") == len(data) - 44 == 2 * round(TEXT_S * 22_050)


@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/html, */*;q=0.8", ""])
async def test_json_is_what_is_not_asked_as_audio(speaker: Api, accept: str) -> None:
    """Whoever does not accept audio by name gets JSON."""
    answer = await speaker.post(SYNTHESIZE, {"text": TEXT}, headers={"Accept": accept})
    assert (answer.status, answer.content_type) == (200, "application/json")


@pytest.mark.parametrize(
    ("speed", "asked"), [(0.1, 0.5), (0.4, 0.5), (0.5, 0.5), (0.8, 0.8), (1, None), (1.5, 1.5), (2, 2), (3, 2)]
)
async def test_speed(speaker: Api, bridges: FakeBridges, speed: float, asked: float | None) -> None:
    """Any speed shortens or lengthens the speech at its own pitch, and the bridge is only asked for those it can."""
    body, samples, rate_hz = await speak(speaker, speed=speed)
    assert [one.get("speed") for one in asked_of(bridges)] == [asked]
    assert abs(body["duration_ms"] - 1_000 * TEXT_S / speed) <= 1
    assert round(1_000 * len(samples) / rate_hz) == body["duration_ms"]
    assert abs(peak_hz(samples, rate_hz) - 441) < 10


@pytest.mark.parametrize("speech", ["wav", "lines"])
async def test_speech_in_another_form(speaker: Api, bridges: FakeBridges, speech: Any) -> None:
    """Base64 of a file in the place of samples is the file's sound, and base64 may be on many lines."""
    bridges.mode = BridgesMode(speech=speech)
    _, samples, rate_hz = await speak(speaker)
    assert abs(len(samples) / rate_hz - TEXT_S) < 0.02
    assert abs(peak_hz(samples, rate_hz) - 441) < 10
    assert np.abs(samples).max() < 0.9, "noise would be as loud as can be"


@pytest.mark.parametrize(
    ("fields", "voice"),
    [
        ({}, "fr_FR-siwis-medium"),
        ({"voice": None, "language": None}, "fr_FR-siwis-medium"),
        ({"voice": "fr_FR-tom-medium"}, "fr_FR-tom-medium"),
        ({"voice": "FR_fr-TOM-Medium"}, "fr_FR-tom-medium"),
        ({"voice": "nobody"}, "fr_FR-siwis-medium"),
        ({"voice": "nobody", "language": "fr"}, "fr_FR-siwis-medium"),
        ({"voice": "en_US-amy-medium"}, "fr_FR-siwis-medium"),
        ({"voice": "é😀\r\nX-Header: y"}, "fr_FR-siwis-medium"),
        ({"language": "fr"}, "fr_FR-siwis-medium"),
        ({"language": "FR-ca"}, "fr_FR-siwis-medium"),
        ({"language": "fra"}, "fr_FR-siwis-medium"),
        ({"language": "fre-CA"}, "fr_FR-siwis-medium"),
        ({"language": "french"}, "fr_FR-siwis-medium"),
        ({"language": "auto"}, "fr_FR-siwis-medium"),
        ({"voice": "fr_FR-upmc-medium", "language": "en"}, "fr_FR-upmc-medium"),
    ],
)
async def test_voice(speaker: Api, bridges: FakeBridges, fields: dict[str, Any], voice: str) -> None:
    """A voice that there is speaks; any other gives way to one of the language, and the answer tells who spoke."""
    body, _, _ = await speak(speaker, **fields)
    assert body["voice"] == voice
    assert [one.get("voice", voice) for one in asked_of(bridges)] == [voice]


@pytest.mark.parametrize("fields", [{"language": "en"}, {"language": "zz-ZZ"}, {"language": "en", "voice": "nobody"}])
@pytest.mark.parametrize("accept", ["application/json", "audio/*"])
async def test_language_that_nobody_speaks(
    speaker: Api, bridges: FakeBridges, fields: dict[str, str], accept: str
) -> None:
    """A language without a voice is 400, and the error names those that there are."""
    answer = await speaker.post(SYNTHESIZE, {"text": TEXT, **fields}, headers={"Accept": accept})
    assert (answer.error, answer.path) == ((400, "invalid_request"), "$.language")
    assert answer.json["details"]["rule"].endswith("there are fr")
    assert asked_of(bridges) == []


async def test_long_text(speaker: Api, bridges: FakeBridges) -> None:
    """A text at its limit is spoken whole and in order, in pieces: the first sentence alone, then few calls."""
    text = "".join(f"Phrase notée x{chr(97 + n // 26)}{chr(97 + n % 26)}. " for n in range(500))[:5_000]
    body, samples, rate_hz = await speak(speaker, text=text, speed=2, format="pcm16")
    said = [one["text"] for one in asked_of(bridges)]
    assert said[0] == "Phrase notée xaa."
    assert " ".join(said).split() == text.split()
    assert max(map(len, said)) <= 240
    assert len(said) <= 25
    expected_s = sum(map(len, said)) * 0.05 / 2
    assert abs(len(samples) / rate_hz - expected_s) < 0.1
    assert abs(body["duration_ms"] / 1_000 - expected_s) < 0.1


@pytest.mark.parametrize(
    ("accept", "fields", "media_type"),
    [
        ("application/json", {}, "audio/wav"),
        ("audio/mpeg", {}, "audio/mpeg"),
        ("audio/mpeg", {"format": "flac"}, "audio/flac"),
    ],
)
async def test_speech_by_its_path(speaker: Api, accept: str, fields: dict[str, str], media_type: str) -> None:
    """``/api/voice/speech`` answers with audio whatever is accepted: in the body's format, else in Accept's, else as wav."""
    answer = await speaker.post("/api/voice/speech", {"text": TEXT, **fields}, headers={"Accept": accept})
    assert (answer.status, answer.content_type) == (200, media_type)
    with av.open(BytesIO(answer.body), "r") as sound:
        frames = list(sound.decode(audio=0))
    assert abs(sum(frame.samples for frame in frames) / frames[0].sample_rate - TEXT_S) < 0.2


async def test_markdown_is_not_spoken(speaker: Api, bridges: FakeBridges) -> None:
    """Signs that are only for the eye are left out of what is said."""
    await speak(speaker, text="# Bonjour 🙂\n* **tout** le [monde](https://example.org)")
    assert [one["text"] for one in asked_of(bridges)] == ["Bonjour", "tout le monde"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Il fait -5 °C.", "Il fait moins cinq degrés Celsius."),
        ("Le 01/05/2024 à 18h30, 1\u202f234,50\u00a0€.", "Le premier mai deux mille vingt-quatre à dix-huit heures trente, mille deux cent trente-quatre euros cinquante."),
        ("Louis XIV, 12 bd. Saint-Michel & 3/4 de 50 %.", "Louis quatorze, douze boulevard Saint-Michel et trois quarts de cinquante pour cent."),
        ("| Ville | Temp. |\n|---|---|\n| Paris | ≥ 12 °C |", "Ville, Temp.|Paris, supérieur ou égal à douze degrés Celsius"),
        ("① Lavez ٣ pommes", "un. Lavez trois pommes"),
        ("Bonjour. 日本語です。 Voilà.", "Bonjour.|Voilà."),
    ],
)  # fmt: skip
async def test_spoken_form(speaker: Api, bridges: FakeBridges, text: str, said: str) -> None:
    """What is written for the eye is read aloud: the voice gets words, and nothing of what it could only spell."""
    await speak(speaker, text=text)
    assert [one["text"] for one in asked_of(bridges)] == said.split("|")


@pytest.mark.parametrize(
    "text", ["Bonjour. 日本語です。 Voilà.", "日本語です。 Bonjour. Voilà.", "Bonjour. Voilà. 日本語です。"]
)
@pytest.mark.parametrize("kind", ["wav", "opus"])
async def test_foreign_line_in_a_stream(speaker: Api, bridges: FakeBridges, text: str, kind: str) -> None:
    """Wherever a line stands of which the voice can say nothing, the stream is whole without it."""
    answer = await speaker.post(SYNTHESIZE, {"text": text, "format": kind}, headers={"Accept": "audio/*"})
    assert answer.status == 200
    samples, rate_hz = read(answer.body, kind, 0)
    said = [one["text"] for one in asked_of(bridges)]
    assert " ".join(said) == "Bonjour. Voilà."
    assert abs(len(samples) / rate_hz - sum(map(len, said)) * 0.05) < 0.1


@pytest.mark.parametrize("accept", ["application/json", "audio/*"])
async def test_foreign_script(speaker: Api, bridges: FakeBridges, accept: str) -> None:
    """A text of which the voice can say nothing is refused, and the bridges are not asked."""
    answer = await speaker.post(SYNTHESIZE, {"text": "日本語です。はい。"}, headers={"Accept": accept})
    assert (answer.status, answer.json["details"]["path"]) == (400, "$.text")
    assert asked_of(bridges) == []


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"text": None}, "$.text"),
        ({"text": 7}, "$.text"),
        ({"text": ""}, "$.text"),
        ({"text": " \t\n\u00a0"}, "$.text"),
        ({"text": "a\0b"}, "$.text"),
        ({"text": "x" * 5_001}, "$.text"),
        ({"text": "é" * 5_001}, "$.text"),
        ({"text": "**"}, "$.text"),
        ({"text": "🙂 🎉"}, "$.text"),
        ({"text": "--- \n > * _ !"}, "$.text"),
        ({"text": "x", "voice": ""}, "$.voice"),
        ({"text": "x", "voice": "v" * 101}, "$.voice"),
        ({"text": "x", "voice": 1}, "$.voice"),
        ({"text": "x", "language": "f"}, "$.language"),
        ({"text": "x", "language": "f" * 11}, "$.language"),
        ({"text": "x", "speed": 0.09}, "$.speed"),
        ({"text": "x", "speed": 3.01}, "$.speed"),
        ({"text": "x", "speed": "1"}, "$.speed"),
        ({"text": "x", "format": "ogg"}, "$.format"),
        ({"text": "x", "format": "WAV"}, "$.format"),
        ({"text": "x", "format": ""}, "$.format"),
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.parametrize("accept", ["application/json", "audio/mpeg"])
async def test_wrong_field(speaker: Api, bridges: FakeBridges, fields: Any, path: str, accept: str) -> None:
    """A text that cannot be spoken and a field out of its range are 400 by name; the bridge is not asked."""
    answer = await speaker.post(SYNTHESIZE, fields, headers={"Accept": accept})
    assert (answer.error, answer.path) == ((400, "invalid_request"), path)
    assert answer.json["error"].startswith(path)
    assert asked_of(bridges) == []


async def test_body(strict: Api, strict_bridges: FakeBridges) -> None:
    """A body that is not JSON, of another kind or over the limit of JSON is refused."""
    for data, kind, error in (
        (b"", "application/json", (400, "invalid_json")),
        (b"{", "application/json", (400, "invalid_json")),
        (b'{"text": "\\ud800"}', "application/json", (400, "invalid_json")),
        (b"[]", "application/json", (400, "invalid_request")),
        (b"text=x", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
        (b" " * (int(STRICT["BODY_LIMIT_BYTES"]) + 1), "application/json", (413, "too_large")),
    ):
        assert (await strict.post(SYNTHESIZE, data=data, headers={"Content-Type": kind})).error == error
    assert asked_of(strict_bridges) == []


async def test_identity(strict: Api, strict_bridges: FakeBridges) -> None:
    """The bridges are asked in the caller's name."""
    await speak(strict)
    *_, asked = [request for request in strict_bridges.requests if request.path == TTS]
    token = asked.headers["authorization"].removeprefix("Bearer ")
    assert jwt.decode(token, SECRET, algorithms=["HS256"])["user_id"] == "zoé"


# What the bridges do


def faulty(kind: FaultKind = "none", **options: Any) -> BridgesMode:
    return BridgesMode(faults={TTS: Fault(kind, **options)})


FAILURES = [
    (BridgesMode(error_200=True), 502, "bad_gateway"),
    (BridgesMode(speech="nan"), 502, "bad_gateway"),
    (BridgesMode(speech="odd"), 502, "bad_gateway"),
    (BridgesMode(speech="pcm16"), 502, "bad_gateway"),
    (BridgesMode(speech="not_base64"), 502, "bad_gateway"),
    (BridgesMode(sample_rate_hz=0), 502, "bad_gateway"),
    (BridgesMode(sample_rate_hz=200_000), 502, "bad_gateway"),
    (faulty(status=500), 502, "bad_gateway"),
    (faulty(status=400), 502, "bad_gateway"),
    (faulty(status=401), 502, "bad_gateway"),
    (faulty(status=429), 429, "rate_limited"),
    (faulty(status=429, retry_after_s=7), 429, "rate_limited"),
    (faulty(status=503), 503, "unavailable"),
    (faulty(status=504), 504, "timeout"),
    (faulty("html"), 502, "bad_gateway"),
    (faulty("nonsense"), 502, "bad_gateway"),
    (faulty("empty"), 502, "bad_gateway"),
    (faulty("empty", content_type="audio/mpeg"), 502, "bad_gateway"),
    (faulty("null"), 502, "bad_gateway"),
    (faulty("wrong_shape"), 502, "bad_gateway"),
    (faulty("wrong_type"), 502, "bad_gateway"),
    (faulty("truncated"), 502, "bad_gateway"),
    (faulty("garbage"), 502, "bad_gateway"),
    (faulty("redirect"), 502, "bad_gateway"),
    (faulty("short_body"), 503, "unavailable"),
    (faulty("close"), 503, "unavailable"),
    (faulty("reset"), 503, "unavailable"),
]


@pytest.mark.parametrize(
    ("mode", "status", "code"), FAILURES, ids=[f"{n}-{status}" for n, (_, status, _) in enumerate(FAILURES)]
)
@pytest.mark.parametrize("accept", ["application/json", "audio/*"])
async def test_bridges_in_trouble(
    speaker: Api, bridges: FakeBridges, mode: BridgesMode, status: int, code: str, accept: str
) -> None:
    """Whatever the bridges do wrong before the first sound is one of our errors, also for who waits for audio."""
    bridges.mode = mode
    answer = await speaker.post(SYNTHESIZE, {"text": TEXT}, headers={"Accept": accept})
    assert answer.error == (status, code)
    check_retry_after(answer, mode.faults.get(TTS, Fault()).retry_after_s)
    assert "/elsewhere" not in bridges.requests_seen
    bridges.mode = BridgesMode()
    await speak(speaker)


@pytest.mark.parametrize("accept", ["application/json", "audio/*"])
async def test_bridges_away(speaker: Api, bridges: FakeBridges, accept: str) -> None:
    """Bridges that are not there are 503 until they are back."""
    await bridges.go_away()
    answer = await speaker.post(SYNTHESIZE, {"text": TEXT}, headers={"Accept": accept})
    assert answer.error == (503, "unavailable")
    check_retry_after(answer, None)
    await bridges.come_back()
    await speak(speaker)


@pytest.mark.parametrize("accept", ["application/json", "audio/*"])
async def test_bridges_hang(strict: Api, strict_bridges: FakeBridges, accept: str) -> None:
    """Bridges that never answer are 504 after the deadline, and their connection is closed."""
    strict_bridges.mode = faulty("hang")
    answer = await strict.post(SYNTHESIZE, {"text": TEXT}, headers={"Accept": accept})
    assert answer.error == (504, "timeout")
    await let_go(strict_bridges, TTS)


@pytest.mark.parametrize("container", ["wav", "mp3"])
@pytest.mark.parametrize("output_format", ["wav", "opus"])
async def test_other_version(speaker: Api, bridges: FakeBridges, container: Any, output_format: Any) -> None:
    """Bridges that answer with a file are heard by what the file is, not by what it is called."""
    bridges.mode = BridgesMode(other_version=True, other_container=container)
    body, samples, rate_hz = await speak(speaker, format=output_format)
    assert (
        rate_hz
        == body["sample_rate"]
        == (48_000 if output_format == "opus" else 22_050 if container == "wav" else 44_100)
    )
    assert abs(len(samples) / rate_hz - TEXT_S) < 0.1
    if container == "wav":
        assert abs(peak_hz(samples, rate_hz) - 441) < 3


# As it is made


@asynccontextmanager
async def streaming(api: Api, accept: str = "audio/*", **fields: object) -> AsyncIterator[aiohttp.ClientResponse]:
    """Have a text spoken as it is made, and lend the open answer; leaving closes its connection."""
    response = await api.session.post(SYNTHESIZE, json={"text": TEXT, **fields}, headers={"Accept": accept})
    try:
        assert response.status == 200, await response.text()
        yield response
    finally:
        response.close()


@pytest.mark.parametrize(
    ("accept", "fields", "kind", "content_type"),
    [
        ("audio/*", {}, "wav", "audio/wav"),
        ("audio/wav", {}, "wav", "audio/wav"),
        ("audio/mpeg", {}, "mp3", "audio/mpeg"),
        ("AUDIO/OGG; codecs=opus", {}, "opus", "audio/ogg; codecs=opus"),
        ("audio/pcm", {}, "pcm16", "audio/pcm; rate=22050; channels=1"),
        ("audio/x-float32", {}, "f32", "audio/x-float32; rate=22050; channels=1"),
        ("text/plain, audio/mpeg;q=0.5", {}, "mp3", "audio/mpeg"),
        ("audio/*", {"format": "opus"}, "opus", "audio/ogg; codecs=opus"),
        ("audio/wav", {"format": "mp3"}, "mp3", "audio/mpeg"),
        ("audio/*", {"format": "pcm16", "speed": 3}, "pcm16", "audio/pcm; rate=22050; channels=1"),
    ],
)
async def test_stream(
    speaker: Api, bridges: FakeBridges, accept: str, fields: dict[str, Any], kind: str, content_type: str
) -> None:
    """With Accept the audio itself comes, as what its head says, and the text's own format counts for more."""
    async with streaming(speaker, accept, text=f"{TEXT} {LONG_SENTENCE}", **fields) as response:
        data = await response.read()
    assert response.headers["Content-Type"] == content_type
    assert response.headers["X-Voice"] == "fr_FR-siwis-medium"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Request-ID"]
    samples, rate_hz = read(data, kind, 22_050)
    assert int(response.headers["X-Sample-Rate"]) == rate_hz
    expected_s = 0.05 * len(TEXT + LONG_SENTENCE) / fields.get("speed", 1)
    assert abs(len(samples) / rate_hz - expected_s) < 0.15
    assert len(asked_of(bridges)) == 2


def declared_s(data: bytes, kind: str) -> float:
    """Return how long a file says that it is, as players that do not read it to its end show it."""
    if kind == "wav":
        with wave.open(BytesIO(data)) as file:
            return float(file.getnframes() / file.getframerate())
    with av.open(BytesIO(data), "r", format="mp3") as container:
        stream = container.streams.audio[0]
        assert stream.duration is not None
        assert stream.time_base is not None
        return float(stream.duration * stream.time_base)


@pytest.mark.parametrize("kind", ["wav", "mp3"])
@pytest.mark.parametrize("speed", [1, 2])
async def test_length_that_a_file_says(speaker: Api, kind: str, speed: float) -> None:
    """A file says how long it is where that is known before it is sent: in JSON, and where it was made quickly."""
    body, samples, rate_hz = await speak(speaker, format=kind, text=STORY, speed=speed)
    data = base64.b64decode(body["audio_data"])
    assert round(1_000 * declared_s(data, kind)) == body["duration_ms"] == round(1_000 * len(samples) / rate_hz)
    async with streaming(speaker, format=kind, speed=speed) as response:
        data = await response.read()
    assert abs(declared_s(data, kind) - TEXT_S / speed) < 0.001
    assert abs(len(read(data, kind, 0)[0]) / 22_050 - TEXT_S / speed) < 0.001


async def test_length_that_nobody_knows(speaker: Api, bridges: FakeBridges) -> None:
    """A WAV that is sent while it is made has the size by which players know that it is not known."""
    bridges.mode = BridgesMode(hold_text="Deux")
    async with streaming(speaker, text=STORY) as response:
        data = await response.content.readexactly(44)
        assert data[4:8] == data[40:44] == b"\xff" * 4
        await bridges.gate.reached()
        bridges.gate.release()
        data += await response.read()
    with av.open(BytesIO(data), "r", format="wav") as container:
        assert container.duration is None or container.duration / 1e6 < 30


@pytest.mark.parametrize("output_format", FORMATS)
async def test_first_sentence_comes_while_the_next_is_made(
    speaker: Api, bridges: FakeBridges, output_format: Any
) -> None:
    """The first sentence is heard while the bridge still works on what follows."""
    bridges.mode = BridgesMode(hold_text="Deux")
    async with streaming(speaker, text=STORY, format=output_format) as response:
        await bridges.gate.reached()
        first = b""
        # "Un." takes 0.15 s; MP3 and Opus keep some of it back for the next frame.
        enough = {"wav": 44 + 2 * 3_307, "pcm16": 2 * 3_307, "f32": 4 * 3_307, "mp3": 500, "opus": 300}[output_format]
        while len(first) < enough:
            first += await response.content.readany()
        assert len(asked_of(bridges)) == 2
        assert bridges.gate.waiting == 1
        bridges.gate.release()
        data = first + await response.read()
    samples, rate_hz = read(data, output_format, 22_050)
    assert abs(len(samples) / rate_hz - 0.05 * sum(len(one["text"]) for one in asked_of(bridges))) < 0.15
    assert len(asked_of(bridges)) == 3


@pytest.mark.parametrize("trouble", ["failure", "closed", "nonsense", "nan"])
@pytest.mark.parametrize("output_format", ["wav", "mp3"])
async def test_error_after_the_first_sound(
    speaker: Api, bridges: FakeBridges, output_format: Any, trouble: str
) -> None:
    """Speech that fails in the middle is broken off: no client takes it for a whole one."""
    bridges.mode = BridgesMode(hold_text="Deux")
    async with streaming(speaker, text=STORY, format=output_format) as response:
        await bridges.gate.reached()
        assert await response.content.readany()
        if trouble == "closed":
            await bridges.go_away()
        else:
            bridges.mode = {
                "failure": BridgesMode(error_200=True),
                "nonsense": faulty("nonsense"),
                "nan": BridgesMode(speech="nan"),
            }[trouble]
            bridges.gate.release()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    await idle(speaker)


async def test_error_after_the_first_sound_at_the_deadline(strict: Api, strict_bridges: FakeBridges) -> None:
    """A bridge that hangs in the middle breaks the speech off too."""
    strict_bridges.mode = BridgesMode(hold_text="Deux")
    async with streaming(strict, text=STORY) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.every_python
@pytest.mark.parametrize("accept", ["application/json", "audio/*"])
async def test_client_leaves(speaker: Api, bridges: FakeBridges, accept: str) -> None:
    """A client that leaves ends the call that is being made for it, and nothing more is spoken."""
    bridges.mode = BridgesMode(hold_text="Deux")
    asking = asyncio.create_task(speaker.session.post(SYNTHESIZE, json={"text": STORY}, headers={"Accept": accept}))
    await bridges.gate.reached()
    if accept == "audio/*":
        (await asking).close()
    asking.cancel()
    await asyncio.wait([asking])
    await let_go(bridges, TTS)
    bridges.gate.release()
    await idle(speaker)
    assert len(asked_of(bridges)) == 2
    bridges.mode = BridgesMode()
    assert (await speak(speaker))[0]["duration_ms"] == round(1_000 * TEXT_S)


async def test_client_that_does_not_read(speaker: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """A client that does not read costs the others nothing, and when it leaves nothing is left of it."""
    text = ("Une phrase parmi d'autres. " * 185).strip()
    body = b'{"text": "%s", "format": "f32"}' % text.encode()
    with socket.create_connection(("127.0.0.1", open_server[0].port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        head = f"POST {SYNTHESIZE} HTTP/1.1\r\nHost: x\r\nAccept: audio/*\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        await bridges.seen(TTS, 2)
        assert (await speak(speaker))[0]["duration_ms"] == round(1_000 * TEXT_S)
    await idle(speaker)
    assert (await speak(speaker))[0]["duration_ms"] == round(1_000 * TEXT_S)


async def test_cross_origin(speaker: Api) -> None:
    """A page of an allowed origin may read the speech, and who speaks at what rate."""
    async with speaker.session.post(
        SYNTHESIZE, json={"text": TEXT}, headers={"Accept": "audio/*", "Origin": "http://localhost:3000"}
    ) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        exposed = response.headers["Access-Control-Expose-Headers"]
        assert {"X-Sample-Rate", "X-Voice", "X-Request-ID"} <= set(exposed.split(", "))
        await response.read()


async def test_many_at_once(speaker: Api, bridges: FakeBridges) -> None:
    """Many texts are spoken side by side, each into its own file."""
    texts = ["Un mot. " + "Mot " * (n + 1) for n in range(24)]
    started = time.monotonic()
    spoken = await asyncio.gather(*(speak(speaker, text=text, format=FORMATS[n % 5]) for n, text in enumerate(texts)))
    for text, (body, samples, rate_hz) in zip(texts, spoken, strict=True):
        expected_s = 0.05 * (len(text.strip()) - 1)
        assert abs(body["duration_ms"] / 1_000 - expected_s) < 0.01
        assert abs(len(samples) / rate_hz - expected_s) < 0.1
    assert time.monotonic() - started < 10
    assert await in_flight(speaker) == 1


async def test_speech_that_is_too_long_for_one_answer(api: Api, bridges: FakeBridges) -> None:
    """Speech that would fill the memory is refused as a whole, and to be had as it is made."""
    bridges.mode = BridgesMode(shape="ndjson", speech_s_per_char=0.2)
    body = {"text": "a" * 1_000, "speed": 0.5, "format": "f32"}
    answer = await api.post("/api/voice/synthesize", body)
    assert answer.error == (413, "too_large")
    assert "Accept: audio/*" in answer.json["error"]
    assert bridges.requests_seen["/api/tts/synthesize"] < 5
    async with api.session.post("/api/voice/synthesize", json=body, headers={"Accept": "audio/*"}) as response:
        assert response.status == 200
        assert len(await response.read()) == pytest.approx(400 * 22_050 * 4, rel=0.01)
