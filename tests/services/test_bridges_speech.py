"""The bridges' speech: what is asked, and what becomes of every way in which they answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from jarvis_core.errors import BadGateway, DeadlineExceeded, InvalidRequest, RateLimited, RequestError, Unavailable
from jarvis_core.models import Caller, Segment, SpokenAudio, Transcript, Voice
from jarvis_core.services import bridges_speech
from jarvis_core.services.bridges_speech import BridgesSpeech, voice_of
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours, Secret
from tests.fakes.content import encode_base64, noise, tone
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges

pytestmark = pytest.mark.every_python

SECRET = "0123456789abcdef0123456789abcdef"
ANN = Caller("ann", "Ann")
STT, TTS, OTHER_TTS, LIST = "/api/stt/transcribe", "/api/tts/synthesize", "/synthesize", "/api/tts/voices"
AUDIO = encode_base64(noise(0.5, 16_000)).encode()
SIWIS = "fr_FR-siwis-medium"


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run bridges that check tokens."""
    async with FakeBridges(SECRET) as server:
        yield server


@pytest.fixture
async def transport(bridges: FakeBridges) -> AsyncIterator[Transport]:
    """Give the way to them."""
    transport = Transport("bridges", bridges.url, Neighbours())
    yield transport
    await transport.close()


@pytest.fixture
def speech(transport: Transport) -> BridgesSpeech:
    """Give their speech, with short deadlines."""
    settings = Neighbours(stt_timeout_s=0.5, tts_timeout_s=0.5)
    return BridgesSpeech(transport, settings, TokenMint(Secret(SECRET)))


def state_of(transport: Transport) -> str:
    """Return what was learnt last."""
    return transport.health.state


# Listening


async def test_transcript(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """The words come with their times in milliseconds; the request has what was asked and nothing else."""
    bridges.mode = BridgesMode(transcript="  Bonjour tout le monde. ", confidence=0.5)
    heard = await speech.transcribe(AUDIO, "fr", ANN)
    assert heard == Transcript("Bonjour tout le monde.", "fr", 0.5, [Segment(0, 500, "Bonjour tout le monde.")])
    assert bridges.requests[-1].json == {"audio_data": AUDIO.decode(), "language": "fr"}
    assert bridges.requests[-1].headers["content-type"] == "application/json"
    assert jwt.decode(bridges.requests[-1].headers["authorization"][7:], SECRET, ["HS256"])["user_id"] == "ann"


async def test_language_is_left_out_where_it_is_to_be_found_out(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Without a language there is no field for it: null would be answered with 500."""
    heard = await speech.transcribe(AUDIO, None, ANN)
    assert bridges.requests[-1].json.keys() == {"audio_data"}
    assert heard.language == "fr"


async def test_language_to_be_found(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """The recording as it came, the languages of the house and the recording without noise go in one request."""
    clean = encode_base64(noise(0.2, 16_000)).encode()
    heard = await speech.transcribe(AUDIO, None, ANN, languages=["fr", "en"], enhanced=clean)
    assert bridges.requests[-1].json == {
        "audio_data": AUDIO.decode(),
        "languages": ["fr", "en"],
        "enhanced_audio_data": clean.decode(),
    }
    assert (heard.language_confidence, heard.enhanced) == (None, False), "the reference does not say"
    bridges.mode = BridgesMode(
        faults={STT: Fault("raw", body=b'{"text":"a","language":"en","language_confidence":1.2,"enhanced":true}')}
    )
    heard = await speech.transcribe(AUDIO, None, ANN, languages=["fr", "en"], enhanced=clean)
    assert (heard.language, heard.language_confidence, heard.enhanced) == ("en", 1.0, True)


async def test_long_recording_is_sent_once(
    bridges: FakeBridges, speech: BridgesSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be too much for one request with and without its noise goes as it came."""
    monkeypatch.setattr(bridges_speech, "TWICE_LIMIT_BYTES", 2 * len(AUDIO) - 1)
    await speech.transcribe(AUDIO, None, ANN, enhanced=AUDIO)
    assert bridges.requests[-1].json.keys() == {"audio_data"}


@pytest.mark.parametrize("language", ["a language that is too long", 'a"b', "é"])
async def test_odd_language(bridges: FakeBridges, speech: BridgesSpeech, language: str) -> None:
    """Whatever the language, the request is JSON within the contract."""
    await speech.transcribe(AUDIO, language, ANN)
    assert bridges.requests[-1].json["language"] == language[:10]


async def test_language_that_the_model_does_not_know(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """A language that the bridges refuse is the client's mistake; another refusal is the bridges' own affair."""
    bridges.mode = BridgesMode(faults={STT: Fault(status=400, message="language: 'xx' is none that this model knows")})
    with pytest.raises(InvalidRequest) as caught:
        await speech.transcribe(AUDIO, "xx", ANN)
    assert caught.value.details == {"path": "$.language", "rule": "is none that the speech model knows"}
    with pytest.raises(BadGateway):
        await speech.transcribe(AUDIO, None, ANN)
    bridges.mode = BridgesMode(faults={STT: Fault(status=400, message="no audio")})
    with pytest.raises(BadGateway):
        await speech.transcribe(AUDIO, "fr", ANN)


@pytest.mark.parametrize(("told", "language"), [("french", "fr"), ("German", "de"), ("nb", "no"), ("en-US", "en")])
async def test_language_that_was_found_out(
    bridges: FakeBridges, speech: BridgesSpeech, told: str, language: str
) -> None:
    """However the speech model calls what it heard, it is known by its code."""
    bridges.mode = BridgesMode(faults={STT: Fault("raw", body=b'{"text":"x","language":"%s"}' % told.encode())})
    assert (await speech.transcribe(AUDIO, None, ANN)).language == language


@pytest.mark.parametrize(("told", "confidence"), [(1.7, 1.0), (-0.2, 0.0), (0, 0.0)])
async def test_confidence_is_from_0_to_1(
    bridges: FakeBridges, speech: BridgesSpeech, told: float, confidence: float
) -> None:
    """A confidence out of its range is the nearest in it."""
    bridges.mode = BridgesMode(confidence=told)
    assert (await speech.transcribe(AUDIO, "fr", ANN)).confidence == confidence


async def test_words_that_begin_like_a_failure(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Who says "Error: " is heard; a failure has no segments."""
    bridges.mode = BridgesMode(transcript="Error: that is what it said")
    assert (await speech.transcribe(AUDIO, "en", ANN)).text == "Error: that is what it said"


async def test_failed_transcription(bridges: FakeBridges, speech: BridgesSpeech, transport: Transport) -> None:
    """A failure that comes as 200 is one, and none of its words is told."""
    bridges.mode = BridgesMode(error_200=True)
    with pytest.raises(BadGateway) as caught:
        await speech.transcribe(AUDIO, "fr", ANN)
    assert "Error" not in caught.value.message
    assert transport.health.state == "degraded"


async def test_no_segments(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Segments that are null are none, and the words are heard."""
    bridges.mode = BridgesMode(transcript="Bonjour.", segments="null")
    heard = await speech.transcribe(AUDIO, "fr", ANN)
    assert (heard.text, heard.segments) == ("Bonjour.", [])


async def test_failure_with_a_segment(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """A failure is one although it is told in a segment once more."""
    bridges.mode = BridgesMode(error_200=True, segments="of_failure")
    with pytest.raises(BadGateway):
        await speech.transcribe(AUDIO, "fr", ANN)


def segment_at(start: str, end: str = "1") -> Fault:
    """Return an answer with a segment from *start* to *end*, in seconds as JSON has them."""
    return Fault(
        "raw", body=b'{"text":"oui","segments":[{"start":%s,"end":%s,"text":"oui"}]}' % (start.encode(), end.encode())
    )


@pytest.mark.parametrize("time", ["1e306", "-1e306", "1e999", "1000001", "1" + "0" * 400, "null"])
async def test_times_that_are_none(
    bridges: FakeBridges, speech: BridgesSpeech, transport: Transport, time: str
) -> None:
    """A segment at a time that no clip has is nonsense."""
    for fault in (segment_at(time), segment_at("0", time)):
        bridges.mode = BridgesMode(faults={STT: fault})
        with pytest.raises(BadGateway):
            await speech.transcribe(AUDIO, "fr", ANN)
        assert state_of(transport) == "degraded"


async def test_time_a_little_early(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """A segment that begins just before its clip is taken: whoever uses it knows the clip's length."""
    bridges.mode = BridgesMode(faults={STT: segment_at("-0.02", "2")})
    assert (await speech.transcribe(AUDIO, "fr", ANN)).segments == [Segment(-20, 2_000, "oui")]


# Speaking


async def test_speech(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """The samples come as they were sent, with their rate and who spoke."""
    spoken = await speech.synthesize("Bonjour.", None, 1.0, ANN)
    assert spoken == SpokenAudio(encode_base64(tone(0.4, 22_050)).encode(), "base64", 22_050, SIWIS)
    assert bridges.requests[-1].json == {"text": "Bonjour."}
    assert jwt.decode(bridges.requests[-1].headers["authorization"][7:], SECRET, ["HS256"])["user_id"] == "ann"


@pytest.mark.parametrize(("speed", "asked"), [(0.1, 0.5), (0.5, 0.5), (0.7, 0.7), (2.0, 2.0), (3.0, 2.0)])
async def test_speed(bridges: FakeBridges, speech: BridgesSpeech, speed: float, asked: float) -> None:
    """A speed that the bridges would fail with is the nearest that they can."""
    await speech.synthesize("Bonjour.", "fr_FR-tom-medium", speed, ANN)
    assert bridges.requests[-1].json == {"text": "Bonjour.", "voice": "fr_FR-tom-medium", "speed": asked}


async def test_voice_that_they_fail_with(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Where a voice makes them fail they are asked once more without it."""
    assert (await speech.synthesize("Bonjour.", "nobody", 1.5, ANN)).voice == SIWIS
    asked = [request.json for request in bridges.requests]
    assert asked == [{"text": "Bonjour.", "voice": "nobody", "speed": 1.5}, {"text": "Bonjour.", "speed": 1.5}]


async def test_failure_without_a_voice(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Where there was no voice to leave out they are not asked again, nor where the failure is none of the voice's."""
    for status in (400, 401, 403, 429, 500, 503):
        bridges.mode = BridgesMode(faults={TTS: Fault(status=status)})
        for voice in (None, SIWIS):
            bridges.forget()
            with pytest.raises(RequestError):
                await speech.synthesize("Bonjour.", voice, 1, ANN)
            assert bridges.requests_seen[TTS] == (2 if voice and status in (400, 500) else 1)


async def test_failed_speech(bridges: FakeBridges, speech: BridgesSpeech, transport: Transport) -> None:
    """A 200 without samples is a failure."""
    bridges.mode = BridgesMode(error_200=True)
    with pytest.raises(BadGateway):
        await speech.synthesize("Bonjour.", None, 1, ANN)
    assert transport.health.state == "degraded"


@pytest.mark.parametrize("rate", ["1" + "0" * 30, "1" + "0" * 400, "1e30", "1000001", "0", "-22050", "22050.5", "null"])
async def test_rate_that_is_none(bridges: FakeBridges, speech: BridgesSpeech, transport: Transport, rate: str) -> None:
    """A rate that no sound has is nonsense."""
    bridges.mode = BridgesMode(
        faults={TTS: Fault("raw", body=b'{"audio_data":"AAAA","sample_rate":%s}' % rate.encode())}
    )
    with pytest.raises(BadGateway):
        await speech.synthesize("Bonjour.", None, 1, ANN)
    assert state_of(transport) == "degraded"


@pytest.mark.parametrize("rate", ["22050", "22050.0", "2.205e4"])
async def test_rate_in_any_notation(bridges: FakeBridges, speech: BridgesSpeech, rate: str) -> None:
    """A whole number is one, however it is written."""
    bridges.mode = BridgesMode(
        faults={TTS: Fault("raw", body=b'{"audio_data":"AAAA","sample_rate":%s}' % rate.encode())}
    )
    spoken = await speech.synthesize("Bonjour.", None, 1, ANN)
    assert spoken == SpokenAudio(b"AAAA", "base64", 22_050, "")
    assert isinstance(spoken.sample_rate_hz, int)


@pytest.mark.parametrize(
    ("told", "voice"), [("x" * 1_000_000, "x" * 100), ("Zo\u00eb\r\nX-Evil: 1\0", "ZoëX-Evil: 1"), ("\n", "")]
)
async def test_name_of_a_voice(bridges: FakeBridges, speech: BridgesSpeech, told: str, voice: str) -> None:
    """Of a name for who spoke a hundred characters are told on, and none that cannot be shown."""
    body = json.dumps({"audio_data": "AAAA", "sample_rate": 22_050, "voice": told}).encode()
    bridges.mode = BridgesMode(faults={TTS: Fault("raw", body=body)})
    assert (await speech.synthesize("Bonjour.", None, 1, ANN)).voice == voice


@pytest.mark.parametrize("container", ["wav", "mp3"])
async def test_file(bridges: FakeBridges, speech: BridgesSpeech, container: Any) -> None:
    """An answer that is no JSON is a file, whatever it is called."""
    bridges.mode = BridgesMode(other_version=True, other_container=container)
    spoken = await speech.synthesize("Bonjour.", None, 1, ANN)
    assert (spoken.encoding, spoken.sample_rate_hz, spoken.voice) == ("container", 0, "")
    assert spoken.audio.startswith(b"RIFF" if container == "wav" else b"\xff\xfb")


async def test_empty_file(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """An empty file is a failure."""
    bridges.mode = BridgesMode(faults={TTS: Fault("empty", content_type="audio/mpeg")})
    with pytest.raises(BadGateway):
        await speech.synthesize("Bonjour.", None, 1, ANN)


async def test_other_path(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Where the path is unknown the other version's is asked and remembered, until that is unknown in its turn."""
    without = {TTS: Fault(status=404), "/health": Fault(status=404)}
    bridges.mode = BridgesMode(other_version=True, faults=without)
    for _ in range(3):
        assert (await speech.synthesize("Bonjour.", None, 1, ANN)).encoding == "container"
    assert (bridges.requests_seen[TTS], bridges.requests_seen[OTHER_TTS]) == (1, 3)
    bridges.mode = BridgesMode()
    for _ in range(3):
        assert (await speech.synthesize("Bonjour.", None, 1, ANN)).encoding == "base64"
    assert (bridges.requests_seen[TTS], bridges.requests_seen[OTHER_TTS]) == (4, 4)


async def test_neither_path(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """Where both paths are unknown it is an error, and the first is the first again."""
    bridges.mode = BridgesMode(faults={TTS: Fault(status=404)})
    for _ in range(2):
        with pytest.raises(BadGateway):
            await speech.synthesize("Bonjour.", None, 1, ANN)
    bridges.mode = BridgesMode()
    assert (await speech.synthesize("Bonjour.", None, 1, ANN)).encoding == "base64"


# Voices


async def test_voices(bridges: FakeBridges, speech: BridgesSpeech) -> None:
    """The object of labels is a list of voices."""
    assert await speech.fetch_voices(ANN) == [
        Voice(SIWIS, "Siwis (femme)", "fr", "female"),
        Voice("fr_FR-upmc-medium", "UPMC (mixte)", "fr", "unknown"),
        Voice("fr_FR-tom-medium", "Tom (homme)", "fr", "male"),
    ]


@pytest.mark.parametrize(
    ("name", "label", "language", "gender"),
    [
        ("fr_FR-siwis-medium", "Siwis (femme)", "fr", "female"),
        ("fr_FR-tom-medium", "Tom (HOMME)", "fr", "male"),
        ("en_US-amy-medium", "Amy (female)", "en", "female"),
        ("en_GB-alan", "Alan (male)", "en", "male"),
        ("en-us", "Woman", "en", "female"),
        ("DE", "Thorsten", "de", "unknown"),
        ("nb_NO-talesyntese", "Talesyntese", "no", "unknown"),
        ("iw_IL-saspeech", "Saspeech", "he", "unknown"),
        ("ff_siwis", "Siwis", "fr", "female"),
        ("af_heart", "Heart", "en", "female"),
        ("am_adam", "Adam", "en", "male"),
        ("bm_george", "George", "en", "male"),
        ("zf_xiaobei", "Xiaobei", "zh", "female"),
        ("jm_kumo", "Kumo", "ja", "male"),
        ("if_sara", "Sara (man)", "it", "female"),
        ("af_ZA-google", "Google", "af", "unknown"),
        ("xm_who", "Who", "xm", "unknown"),
        ("siwis", "Siwis femme", "", "female"),
        ("12_x", "", "", "unknown"),
        ("", "", "", "unknown"),
        ("romanesque", "Romane", "", "unknown"),
    ],
)
def test_voice_of(name: str, label: str, language: str, gender: str) -> None:
    """A voice's language and gender are read from its id and its label, Piper's and Kokoro's."""
    assert voice_of(name, label) == Voice(name, label or name, language, gender)  # type: ignore[arg-type]


# Trouble


async def call(speech: BridgesSpeech, path: str) -> object:
    match path:
        case "/api/stt/transcribe":
            return await speech.transcribe(AUDIO, "fr", ANN)
        case "/api/tts/synthesize":
            return await speech.synthesize("Bonjour.", SIWIS, 1.2, ANN)
        case _:
            return await speech.fetch_voices(ANN)


GARBLED: tuple[FaultKind, ...] = (
    "nonsense", "empty", "null", "list", "wrong_shape", "nested", "truncated", "garbage", "redirect",
)  # fmt: skip
BROKEN: tuple[FaultKind, ...] = ("close", "reset", "short_body")
TROUBLE: list[tuple[Fault, type[RequestError]]] = [
    (Fault(status=400), BadGateway),
    (Fault(status=401), BadGateway),
    (Fault(status=404), BadGateway),
    (Fault(status=429), RateLimited),
    (Fault(status=500), BadGateway),
    (Fault(status=502), Unavailable),
    (Fault(status=503), Unavailable),
    (Fault(status=504), DeadlineExceeded),
    *((Fault(kind), BadGateway) for kind in GARBLED),
    *((Fault(kind), Unavailable) for kind in BROKEN),
]


@pytest.mark.parametrize(("fault", "error"), TROUBLE, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("path", [STT, TTS, LIST])
async def test_trouble(
    bridges: FakeBridges, speech: BridgesSpeech, path: str, fault: Fault, error: type[RequestError]
) -> None:
    """Whatever goes wrong is one of our errors, and the next call is none the worse."""
    bridges.mode = BridgesMode(faults={path: fault})
    with pytest.raises(error) as caught:
        await call(speech, path)
    assert "failing with" not in caught.value.message, "the neighbour's own words are for the log"
    bridges.mode = BridgesMode()
    assert await call(speech, path)


@pytest.mark.parametrize("path", [STT, TTS])
@pytest.mark.parametrize("kind", ["hang", "trickle"])
async def test_no_answer(bridges: FakeBridges, speech: BridgesSpeech, path: str, kind: FaultKind) -> None:
    """Who does not answer, or never ends, is left at the deadline, and the connection closed."""
    bridges.mode = BridgesMode(faults={path: Fault(kind)})
    with pytest.raises(DeadlineExceeded):
        await call(speech, path)
    async with asyncio.timeout(2):
        while bridges.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("path", [STT, TTS, LIST])
async def test_away(bridges: FakeBridges, speech: BridgesSpeech, transport: Transport, path: str) -> None:
    """Bridges that are not there are away until they are back."""
    await bridges.go_away()
    with pytest.raises(Unavailable) as caught:
        await call(speech, path)
    assert caught.value.retry_after_s
    assert state_of(transport) == "unavailable"
    await bridges.come_back()
    assert await call(speech, path)
    assert state_of(transport) == "healthy"


@pytest.mark.parametrize("path", [STT, TTS, LIST])
async def test_stale_connection(bridges: FakeBridges, speech: BridgesSpeech, path: str) -> None:
    """A connection that they had closed meanwhile is no trouble."""
    await call(speech, path)
    bridges.mode = BridgesMode(faults={path: Fault("close_reused", times=1)})
    assert await call(speech, path)


async def test_without_credentials(bridges: FakeBridges, transport: Transport) -> None:
    """Without a secret no token is sent."""
    bridges.jwt_secret = None
    await BridgesSpeech(transport, Neighbours(), None).transcribe(AUDIO, "fr", ANN)
    assert "authorization" not in bridges.requests[-1].headers
