"""The local stand-in's ears and mouth: the bridges' and the audio engine's contracts with real engines behind them."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from jarvis_core.local import audio, kokoro
from jarvis_core.local.catalogue import CATALOGUE
from jarvis_core.local.launcher import LocalBridges
from jarvis_core.local.weights import ensure
from tests.local.quiet import complaints
from tests.system.server import REPOSITORY, Process, family_of, wait_gone

Samples = NDArray[np.float32]

CACHE = REPOSITORY / ".cache" / "models"
CLIPS = REPOSITORY / "tests" / "fixtures" / "audio"
RATE_HZ = 16_000
FIELDS = {"text", "language", "confidence", "duration_ms", "segments", "language_confidence", "enhanced"}
"""Of a transcript; the last two are ours."""
PATIENCE_S = 60.0
"""For what takes a few seconds on an idle machine."""
LONG = "Il était une fois un gardien de phare. " * 60
"""Minutes of work for the voice."""

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("faster_whisper", "kokoro_onnx", "webrtc_noise_gain")),
        reason="the local engines are not installed",
    ),
]


@pytest.fixture(scope="session")
def ears() -> Path:
    return ensure(CATALOGUE["whisper-base"], CACHE)


@pytest.fixture(scope="session")
def mouth() -> Path:
    return ensure(CATALOGUE["kokoro-82m"], CACHE)


@pytest.fixture(scope="module")
def bridges(ears: Path, mouth: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBridges]:
    log_path = tmp_path_factory.mktemp("speech") / "log"
    bridges = LocalBridges(ears_path=ears, mouth_path=mouth, audio_engine=True, log_path=log_path)
    bridges.start()
    yield bridges
    bridges.stop()
    assert complaints(log_path) == []


@pytest.fixture
async def client(bridges: LocalBridges) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(bridges.url, timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
        yield session


async def post(client: aiohttp.ClientSession, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    # A file: of megabytes of bytes aiohttp warns.
    body = io.BytesIO(json.dumps(fields).encode())
    async with client.post(path, data=body) as response:
        return response.status, await response.json()


async def get(client: aiohttp.ClientSession, path: str) -> Any:
    async with client.get(path) as response:
        assert response.status == 200
        return await response.json()


async def hear(client: aiohttp.ClientSession, samples: Samples, **fields: Any) -> dict[str, Any]:
    status, answer = await post(client, "/api/stt/transcribe", audio_data=encode(samples), **fields)
    assert status == 200, answer
    return answer


async def say(client: aiohttp.ClientSession, text: str, **fields: Any) -> Samples:
    """Return the text, spoken, at 24 kHz."""
    status, answer = await post(client, "/api/tts/synthesize", text=text, **fields)
    assert status == 200, answer
    assert set(answer) == {"audio_data", "sample_rate", "duration_ms", "voice"}
    assert answer["sample_rate"] == kokoro.SAMPLE_RATE_HZ
    assert answer["duration_ms"] > 0
    return decode(answer["audio_data"])


async def suppress(client: aiohttp.ClientSession, samples: Samples) -> Samples:
    status, answer = await post(client, "/audio/process", audio_data=encode(samples))
    assert status == 200, answer
    assert set(answer) == {"audio_data", "frames", "latency_ms"}
    assert answer["frames"] == len(samples)
    return decode(answer["audio_data"])


def encode(samples: NDArray[Any]) -> str:
    return base64.b64encode(samples.astype("<f4").tobytes()).decode()


def decode(text: str) -> Samples:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def clip(name: str) -> tuple[Samples, str]:
    """Return a clip's samples and its words."""
    with wave.open(str(CLIPS / f"{name}.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(32_768)
    return samples, (CLIPS / f"{name}.txt").read_text()


def wrong_share(said: str, heard: str) -> float:
    """Return the word error rate: how many of the words *said* were left out, added or replaced."""
    wanted, got = (re.sub(r"[^\w']+", " ", text.lower().replace("’", "'")).split() for text in (said, heard))
    distances = list(range(len(got) + 1))
    for row, word in enumerate(wanted):
        diagonal, distances[0] = distances[0], row + 1
        for column, other in enumerate(got):
            diagonal, distances[column + 1] = (
                distances[column + 1],
                min(distances[column + 1] + 1, distances[column] + 1, diagonal + (word != other)),
            )
    return distances[-1] / len(wanted)


def noise(amplitude: float, seconds: float = 3.0) -> Samples:
    return np.random.default_rng(1).normal(0, amplitude, int(seconds * RATE_HZ)).astype(np.float32)


def tone(frequency_hz: float) -> Samples:
    return (0.3 * np.sin(np.arange(3 * RATE_HZ) * 2 * np.pi * frequency_hz / RATE_HZ)).astype(np.float32)


def engines(bridges: LocalBridges, module: str) -> set[Process]:
    """Return the processes of an engine."""
    assert bridges.process is not None
    found = set()
    for process in family_of(bridges.process.pid):
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"jarvis_core.local.{module}\0".encode() in command and process.alive:
            found.add(process)
    return found


def busy_ticks(processes: set[Process]) -> int:
    """Return the processor time of *processes* so far, in hundredths of a second."""
    total = 0
    for process in processes:
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total


def has_loaded(bridges: LocalBridges, library: str) -> bool:
    """Whether the server's own process has *library* in its memory."""
    assert bridges.process is not None
    return library in Path(f"/proc/{bridges.process.pid}/maps").read_text()


async def until_it_works(bridges: LocalBridges, module: str) -> set[Process]:
    """Wait until an engine has a process that works on something; return it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            processes = engines(bridges, module)
            before = busy_ticks(processes)
            await asyncio.sleep(0.3)
            if processes and busy_ticks(processes) >= before + 5:
                return processes


# What is there


async def test_what_is_there_is_told(client: aiohttp.ClientSession, bridges: LocalBridges) -> None:
    """Ears and mouth are well before they are loaded, and the rest, which the stand-in was started without, says so."""
    assert (await get(client, "/health"))["status"] == "healthy"
    assert (await get(client, "/health"))["services"] == {
        "ollama_llm": "❌",
        "whisper_stt": "✅",
        "piper_tts": "✅",
        "embeddings": "❌",
    }
    assert await get(client, "/api/llm/models") == {"models": []}
    status, answer = await post(client, "/api/llm/generate", prompt="Hi")
    assert (status, list(answer)) == (501, ["error"])
    assert (await get(client, "/audio/health"))["status"] == "healthy"
    assert bridges.audio_url == bridges.url + "/audio"


async def test_who_never_speaks_pays_nothing(ears: Path, mouth: Path) -> None:
    """Until the first clip there is no engine's process, and nothing in the server's that only clips need."""
    bridges = LocalBridges(ears_path=ears, mouth_path=mouth, audio_engine=True)
    async with aiohttp.ClientSession(bridges.start()) as client:
        assert bridges.process is not None
        await get(client, "/api/tts/voices")
        await get(client, "/audio/stats")
        assert len(family_of(bridges.process.pid)) == 1
        assert not has_loaded(bridges, "numpy")
        await suppress(client, tone(440))
        assert has_loaded(bridges, "numpy")
        assert len(family_of(bridges.process.pid)) == 1
    bridges.stop()


async def test_voices_have_names_and_genders(client: aiohttp.ClientSession) -> None:
    """The voices are an object from id to label, in the words of their language."""
    assert await get(client, "/api/tts/voices") == {
        "voices": {
            "af_heart": "Heart (woman)",
            "am_michael": "Michael (man)",
            "bf_emma": "Emma (woman)",
            "bm_george": "George (man)",
            "ff_siwis": "Siwis (femme)",
        }
    }


def test_voices_are_files(tmp_path: Path) -> None:
    """A voice that a user puts beside the others is one of them, unless nothing here can read its language."""
    for name in ("if_sara", "af_sky", "jf_alpha", "model", "pm_santa_claus"):
        (tmp_path / f"{name}.bin").touch()
    assert kokoro.voices(tmp_path) == {
        "af_sky": "Sky (woman)",
        "if_sara": "Sara (woman)",
        "pm_santa_claus": "Santa Claus (man)",
    }
    assert kokoro.favourite(kokoro.voices(tmp_path)) == "af_sky"
    assert kokoro.favourite({}) == ""


# Listening


@pytest.mark.parametrize(("name", "language"), [("fx16k_en_0", "en"), ("fx16k_fr_1", "fr-FR")])
async def test_speech_is_understood(client: aiohttp.ClientSession, name: str, language: str) -> None:
    """A clip becomes its words, with the contract's fields and times within the clip."""
    samples, words = clip(name)
    heard = await hear(client, samples, language=language)
    assert wrong_share(words, heard["text"]) <= 0.1
    assert set(heard) == FIELDS
    assert heard["language_confidence"] is None
    assert heard["language"] == language[:2]
    assert 0.5 < heard["confidence"] <= 1
    assert heard["duration_ms"] > 0
    assert " ".join(part["text"] for part in heard["segments"]) == heard["text"]
    for number, part in enumerate(heard["segments"]):
        assert set(part) == {"id", "start", "end", "text", "confidence"}
        assert part["id"] == number
        assert 0 <= part["start"] < part["end"] <= len(samples) / RATE_HZ
        assert 0 < part["confidence"] <= 1


async def test_a_language_is_found_out(client: aiohttp.ClientSession) -> None:
    """Without a language the one that is spoken is found."""
    samples, words = clip("fx16k_fr_1")
    heard = await hear(client, samples)
    assert heard["language"] == "fr"
    assert wrong_share(words, heard["text"]) <= 0.2
    assert heard["language_confidence"] > 0.9


async def test_a_language_is_found_in_the_recording_as_it_came(client: aiohttp.ClientSession) -> None:
    """What the noise suppression makes Spanish is French, whose words are taken from it all the same."""
    samples, words = clip("fx16k_fr_1")
    clean = await suppress(client, samples)
    anything = (await hear(client, clean, languages=["fr", "en", "es", "it"]))["language"]
    assert anything != "fr", "the sample shows nothing any more"
    heard = await hear(client, samples, enhanced_audio_data=encode(clean), languages=["fr", "en", "es", "it"])
    assert (heard["language"], heard["enhanced"]) == ("fr", True)
    assert wrong_share(words, heard["text"]) <= 0.2
    status, answer = await post(
        client, "/api/stt/transcribe", audio_data=encode(samples), enhanced_audio_data=encode(clean[:-1])
    )
    assert (status, answer["error"][:19]) == (400, "enhanced_audio_data")


@pytest.mark.parametrize(("name", "language", "wrong"), [("fx16k_fr_0", "fr", "en"), ("fx16k_en_0", "en", "fr")])
async def test_nothing_is_translated(client: aiohttp.ClientSession, name: str, language: str, wrong: str) -> None:
    """What is beyond doubt another language of the house is written down in that one, whichever was named."""
    samples, words = clip(name)
    heard = await hear(client, samples, language=wrong)
    assert heard["language"] == language
    assert wrong_share(words, heard["text"]) <= 0.2
    assert heard["language_confidence"] > 0.9
    assert (await hear(client, samples, language=wrong, languages=[wrong]))["language"] == wrong


@pytest.mark.parametrize(("word", "voice", "language"), [("Non", "ff_siwis", "fr"), ("No", "af_heart", "en")])
async def test_a_word_over_and_over_is_no_longer_than_it_was(
    client: aiohttp.ClientSession, word: str, voice: str, language: str
) -> None:
    """Said twenty-five times a word is heard no more often than that, and no later than the clip ends."""
    said = soxr.resample(await say(client, f"{word}, " * 24 + f"{word}.", voice=voice), kokoro.SAMPLE_RATE_HZ, RATE_HZ)
    heard = await hear(client, said, language=language)
    assert 5 <= len(heard["text"].split()) <= 25
    assert all(part["end"] <= len(said) / RATE_HZ for part in heard["segments"])


async def test_times_are_those_of_the_recording(client: aiohttp.ClientSession) -> None:
    """What is said after a long silence begins where it was said, and ends there, not where the silence does."""
    clips = [clip(name)[0] for name in ("fx16k_fr_0", "fx16k_fr_1", "fx16k_fr_2")]
    pause = np.zeros(6 * RATE_HZ, np.float32)
    heard = await hear(client, np.concatenate([clips[0], pause, clips[1], pause, clips[2]]), language="fr")
    start = 0.0
    assert len(heard["segments"]) == len(clips)
    for samples, part in zip(clips, heard["segments"], strict=True):
        assert start - 0.6 < part["start"] < start + 0.6
        assert start < part["end"] < start + len(samples) / RATE_HZ + 0.6
        start += (len(samples) + len(pause)) / RATE_HZ


async def test_a_faint_voice_is_heard(client: aiohttp.ClientSession) -> None:
    """A voice 60 dB below full scale, which a voice detector takes for silence, is understood."""
    samples, words = clip("fx16k_en_1")
    assert wrong_share(words, (await hear(client, samples * np.float32(0.001), language="en"))["text"]) <= 0.2


@pytest.mark.parametrize("language", ["fr", "en", "auto", None])
@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(np.zeros(1, np.float32), id="one sample"),
        pytest.param(np.zeros(RATE_HZ, np.float32), id="silence"),
        pytest.param(noise(0.1), id="noise"),
        pytest.param(noise(0.003), id="faint noise"),
        pytest.param(tone(440), id="tone"),
        pytest.param(tone(50) + noise(0.01), id="hum"),
    ],
)
async def test_nothing_is_invented(client: aiohttp.ClientSession, samples: Samples, language: str | None) -> None:
    """Where nobody speaks nothing is heard, whatever the language; Whisper alone would hear subtitles."""
    heard = await hear(client, samples, **({} if language is None else {"language": language}))
    assert (heard["text"], heard["segments"], heard["confidence"]) == ("", [], 0)
    assert heard["language"] == (language if language in ("fr", "en") else "")


async def test_noise_costs_nothing(client: aiohttp.ClientSession, bridges: LocalBridges) -> None:
    """What is not speech never reaches the model: it costs a tenth of a second's work at most, not a whole one."""
    await hear(client, noise(0.1), language="fr")
    before = busy_ticks(engines(bridges, "whisper"))
    for samples in (noise(0.1), tone(220), tone(50) + noise(0.01)):
        await hear(client, samples, language="fr")
    assert busy_ticks(engines(bridges, "whisper")) < before + 60


async def test_a_loop_is_not_believed(client: aiohttp.ClientSession) -> None:
    """Of many voices at once Whisper makes a few words, over and over; they are not passed on."""
    voices = np.concatenate([clip(f"fx16k_{name}")[0] for name in ("en_0", "en_1", "en_2", "fr_0", "fr_1", "fr_2")])
    babble = sum((np.roll(voices, 37_777 * by)[: 6 * RATE_HZ] for by in range(8)), np.zeros(6 * RATE_HZ, np.float32))
    words = (await hear(client, babble * np.float32(0.1), language="en"))["text"].split()
    triples = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    assert max((triples.count(triple) for triple in triples), default=0) <= 3


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "audio_data"),
        ({"audio_data": ""}, "audio_data"),
        ({"audio_data": None}, "audio_data"),
        ({"audio_data": "*** no base64 ***"}, "base64"),
        ({"audio_data": "é" * 8}, "base64"),
        ({"audio_data": "AAAAAA="}, "base64"),
        ({"audio_data": base64.b64encode(bytes(5)).decode()}, "multiple of 4"),
        ({"audio_data": base64.b64encode(b"\0\0\xc0\x7f").decode()}, "no numbers"),
        ({"audio_data": "A" * 10_000_001}, "audio_data"),
        ({"audio_data": "AAAAAA==", "language": "x" * 11}, "language"),
        ({"audio_data": "AAAAAA==", "language": None}, "language"),
        ({"audio_data": "AAAAAA==", "language": "tlh"}, "language"),
    ],
)
async def test_bad_audio_is_refused(client: aiohttp.ClientSession, fields: dict[str, Any], complaint: str) -> None:
    """What the reference implementation answers with 500 is an honest 400 with the reason."""
    status, answer = await post(client, "/api/stt/transcribe", **fields)
    assert (status, list(answer)) == (400, ["error"])
    assert complaint in answer["error"]


# Speaking


@pytest.mark.parametrize(
    ("voice", "text"),
    [
        ("af_heart", "My favourite colour is dark green, and I live in Boston."),
        ("bm_george", "What is the capital of France?"),
        (None, "Quelle est la capitale de l'Italie ?"),
    ],
)
async def test_what_is_said_can_be_understood(client: aiohttp.ClientSession, voice: str | None, text: str) -> None:
    """The mouth's speech is understood by the ears; who names no voice gets the French one."""
    spoken = await say(client, text, **({} if voice is None else {"voice": voice}))
    assert 0.1 < np.abs(spoken).max() <= 1
    samples: Samples = soxr.resample(spoken, kokoro.SAMPLE_RATE_HZ, RATE_HZ)
    heard = await hear(client, samples, language="en" if voice else "fr")
    assert wrong_share(text.replace("ou", "o"), heard["text"].replace("ou", "o")) <= 0.2


async def test_a_speed_is_kept_to_what_the_voice_can_do(client: aiohttp.ClientSession) -> None:
    """Every speed of the contract is taken; beyond half and twice it changes nothing more."""
    lengths = {speed: len(await say(client, "Oui.", speed=speed)) for speed in (0.1, 0.5, 2, 3)}
    assert lengths[0.1] == lengths[0.5] > 1.5 * lengths[2]
    assert lengths[2] == lengths[3]


async def test_speed_2_is_half_the_time(client: aiohttp.ClientSession) -> None:
    """Speech at another speed takes exactly so much less or more time, its pauses too, and can be understood."""
    text = "The weather is fine, and the train leaves at noon. What can I do for you?"
    lengths = {speed: len(await say(client, text, voice="af_heart", speed=speed)) for speed in (0.5, 0.8, 1, 1.5)}
    for speed, length in lengths.items():
        assert abs(length * speed - lengths[1]) < 10
    spoken = await say(client, text, voice="af_heart", speed=2)
    assert abs(len(spoken) * 2 - lengths[1]) < 10
    heard = await hear(client, soxr.resample(spoken, kokoro.SAMPLE_RATE_HZ, RATE_HZ), language="en")
    assert wrong_share(text, heard["text"]) <= 0.2


def test_text_is_read_as_it_is_spoken() -> None:
    """Numbers are words, a foreign word brings no "(en)" along, a line's end is a pause, and of symbols nothing is left."""
    reader = kokoro.Reader({})
    assert reader.phonemes("42", "fr-fr") == "kaʁɑ̃tdˈø."
    assert "fˈʊtbɔːl" in reader.phonemes("le football", "fr-fr")
    assert "(" not in reader.phonemes("le football", "fr-fr")
    assert reader.phonemes("Oui\n\nNon\0!", "fr-fr") == "wˈi. nˈɔ̃. !"
    assert reader.phonemes("… — «» \n", "fr-fr") == ""
    assert len(reader.tokens(reader.phonemes("Oui.", "fr-fr"))) == len("wˈi.")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": None}, "text"),
        ({"text": "x" * 5_001}, "text"),
        ({"text": " \n\t"}, "nothing in it"),
        ({"text": "…"}, "nothing in it"),
        ({"text": "?! — «»"}, "nothing in it"),
        ({"text": "\0\x1b"}, "nothing in it"),
        ({"text": "Oui", "voice": None}, "voice"),
        ({"text": "Oui", "voice": "../model"}, "voice"),
        ({"text": "Oui", "voice": "model"}, "voice"),
        ({"text": "Oui", "speed": 0.05}, "speed"),
        ({"text": "Oui", "speed": 3.1}, "speed"),
        ({"text": "Oui", "speed": None}, "speed"),
    ],
)
async def test_bad_texts_are_refused(client: aiohttp.ClientSession, fields: dict[str, Any], complaint: str) -> None:
    """A field that is missing, wrong or out of range, and a text without a word, are 400 with the reason."""
    status, answer = await post(client, "/api/tts/synthesize", **fields)
    assert (status, list(answer)) == (400, ["error"])
    assert complaint in answer["error"]


async def test_limits_count_characters(client: aiohttp.ClientSession) -> None:
    """A text's limit is in code points, not in bytes."""
    status, answer = await post(client, "/api/tts/synthesize", text="…" * 5_000)
    assert (status, "nothing in it" in answer["error"]) == (400, True)
    async with client.post("/api/tts/synthesize", data=json.dumps({"text": "x" * (1 << 18)})) as response:
        assert response.status == 413


# Leaving, dying


async def test_who_leaves_frees_the_engine(client: aiohttp.ClientSession, bridges: LocalBridges) -> None:
    """A client that goes away in the middle of a long text ends its process, and another one speaks for the next."""
    request = asyncio.create_task(say(client, LONG))
    working = await until_it_works(bridges, "kokoro")
    request.cancel()
    await asyncio.wait([request])
    assert await asyncio.to_thread(wait_gone, working) == set()
    assert len(await say(client, "Oui.")) > 0
    assert len(engines(bridges, "kokoro")) == 1
    assert not engines(bridges, "kokoro") & working


async def test_who_leaves_while_waiting_disturbs_nobody(client: aiohttp.ClientSession, bridges: LocalBridges) -> None:
    """The engines take turns, and a client that leaves the queue ends nobody's work."""
    samples, words = clip("fx16k_en_1")
    text = "Le gardien de phare monte chaque soir les deux cents marches de la tour, et allume la lampe."
    speaking = asyncio.create_task(say(client, text))
    working = await until_it_works(bridges, "kokoro")
    before = busy_ticks(engines(bridges, "whisper"))
    listening = asyncio.create_task(hear(client, samples, language="en"))
    leaving = asyncio.create_task(hear(client, samples, language="en"))
    await asyncio.sleep(0.5)
    leaving.cancel()
    assert not speaking.done()
    assert busy_ticks(engines(bridges, "whisper")) <= before + 5
    assert len(await speaking) > 0
    assert wrong_share(words, (await listening)["text"]) <= 0.2
    assert engines(bridges, "kokoro") == working


async def test_a_crash_costs_one_request(ears: Path, tmp_path: Path) -> None:
    """When an engine is killed its request is told so, the health too, and the next one finds a new engine."""
    bridges = LocalBridges(ears_path=ears, log_path=tmp_path / "log")
    samples, words = clip("fx16k_en_1")
    async with aiohttp.ClientSession(bridges.start()) as client:
        fields = {"audio_data": encode(np.tile(samples, 20)), "language": "en"}
        request = asyncio.create_task(post(client, "/api/stt/transcribe", **fields))
        for process in await until_it_works(bridges, "whisper"):
            os.kill(process.pid, signal.SIGKILL)
        status, answer = await request
        assert (status, list(answer)) == (503, ["error"])
        assert (await get(client, "/health"))["status"] == "degraded"
        assert wrong_share(words, (await hear(client, samples, language="en"))["text"]) <= 0.2
        assert (await get(client, "/health"))["status"] == "healthy"
    bridges.stop()


async def test_loaded_before_somebody_speaks(ears: Path, mouth: Path, tmp_path: Path) -> None:
    """With ``preload`` both engines have their models before the first request, which finds the same processes."""
    bridges = LocalBridges(ears_path=ears, mouth_path=mouth, preload=True, log_path=tmp_path / "log")
    samples, _ = clip("fx16k_en_1")
    async with aiohttp.ClientSession(bridges.start()) as client:
        async with asyncio.timeout(PATIENCE_S):
            while "the speech engines are loaded" not in (tmp_path / "log").read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        loaded = [engines(bridges, name) for name in ("whisper", "kokoro")]
        assert [len(processes) for processes in loaded] == [1, 1]
        assert len(await say(client, "Oui.")) > 0
        await hear(client, samples, language="en")
        assert [engines(bridges, name) for name in ("whisper", "kokoro")] == loaded
    bridges.stop()


async def test_a_model_that_is_none_is_told(tmp_path: Path) -> None:
    """What cannot be loaded is a failure with a reason for each request, and health says so; nothing else ends."""
    for name in ("model.bin", "config.json", "tokenizer.json", "model.onnx", "af_heart.bin"):
        (tmp_path / name).write_bytes(b"nonsense")
    bridges = LocalBridges(ears_path=tmp_path, mouth_path=tmp_path, log_path=tmp_path / "log")
    async with aiohttp.ClientSession(bridges.start()) as client:
        for path, fields in (
            ("/api/stt/transcribe", {"audio_data": encode(tone(440))}),
            ("/api/tts/synthesize", {"text": "Oui"}),
        ):
            status, answer = await post(client, path, **fields)
            assert (status, list(answer)) == (500, ["error"])
        health = await get(client, "/health")
        assert (health["status"], set(health["services"].values())) == ("degraded", {"❌"})
    bridges.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nobody_outlives_the_server(ears: Path, mouth: Path, number: signal.Signals) -> None:
    """When the server ends, killed or stopped, while its engines work, they end with it."""
    bridges = LocalBridges(ears_path=ears, mouth_path=mouth)
    async with aiohttp.ClientSession(bridges.start()) as client:
        request = asyncio.create_task(say(client, LONG))
        await until_it_works(bridges, "kokoro")
        assert bridges.process is not None
        family = family_of(bridges.process.pid)
        assert len(family) == 2
        bridges.process.send_signal(number)
        await asyncio.wait([request])
        assert isinstance(request.exception(), aiohttp.ClientError)
    assert await asyncio.to_thread(wait_gone, family) == set()
    bridges.stop()


def test_nobody_outlives_the_parent(mouth: Path) -> None:
    """When the process that started the stand-in is killed, the stand-in and its engines end."""
    code = (
        "import sys, time, pathlib; from jarvis_core.local.launcher import LocalBridges;"
        "bridges = LocalBridges(mouth_path=pathlib.Path(sys.argv[1])); print(bridges.start(), flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(mouth)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().decode().strip()

        async def speak() -> None:
            async with aiohttp.ClientSession(url) as client:
                await say(client, "Oui.")

        asyncio.run(speak())
        family = family_of(parent.pid)
        assert len(family) == 3
        parent.kill()
    assert wait_gone(family) == set()


# Noise


def test_noise_is_suppressed() -> None:
    """Noise 10 dB below the speech goes down by 8 dB more, the speech stays where it was in time."""
    speech, _ = clip("fx16k_en_0")
    hiss = noise(float(np.sqrt(np.mean(speech**2))) * 10 ** (-10 / 20), len(speech) / RATE_HZ)[: len(speech)]
    result = np.frombuffer(audio.suppress((speech + hiss).astype("<f4").tobytes()).samples, "<f4")
    loudness = np.sqrt(np.convolve(speech**2, np.ones(800) / 800, "same"))

    def ratio_db(samples: NDArray[Any]) -> float:
        spoken, silent = samples[loudness > 0.03], samples[loudness < 0.003]
        return float(10 * np.log10(np.mean(spoken**2) / np.mean(silent**2)))

    assert ratio_db(result) >= ratio_db(speech + hiss) + 8
    # Differences, so that the loud low tones, whose phase a filter shifts, do not decide it.
    middle = np.diff(speech)[1_000:-1_000]
    shifted = {by: float(np.dot(np.diff(result)[1_000 + by :][: len(middle)], middle)) for by in range(-200, 201)}
    assert max(shifted, key=lambda by: shifted[by]) == 0


@pytest.mark.parametrize("length", [0, 1, 159, 160, 161, 320, 16_001])
def test_every_length_is_kept(length: int) -> None:
    """As many samples come out as went in, all within ±1, whatever went in."""
    loud = 3 * np.sin(np.arange(length) / 5)
    result = np.frombuffer(audio.suppress(loud.astype("<f4").tobytes()).samples, "<f4")
    assert len(result) == length
    assert np.abs(result).max(initial=0) <= 1


def test_only_speech_is_amplified() -> None:
    """A quiet voice comes out up to four times as loud; silence stays silence and quiet noise gets quieter."""

    def level(samples: NDArray[Any]) -> float:
        return audio.suppress(samples.astype("<f4").tobytes()).output_rms

    speech, _ = clip("fx16k_en_1")
    quiet = speech * np.float32(0.01)
    assert 2 < level(quiet) / audio.rms(quiet) <= 4
    assert level(speech) < 1.5 * audio.rms(speech)
    assert level(np.zeros(RATE_HZ)) == 0
    assert level(noise(0.01)) < 0.5 * 0.01


async def test_the_audio_engine_s_contract(client: aiohttp.ClientSession) -> None:
    """Both ways of sending a clip give the same, and the figures tell of it."""
    samples, _ = clip("fx16k_fr_1")
    before = (await get(client, "/audio/stats"))["processed_frames"]
    processed = await suppress(client, samples)
    status, answer = await post(client, "/audio/dsp", samples=samples.tolist())
    assert (status, list(answer)) == (200, ["samples"])
    assert np.array_equal(np.array(answer["samples"], np.float32), processed)
    assert await post(client, "/audio/dsp", samples=[]) == (200, {"samples": []})
    stats = await get(client, "/audio/stats")
    assert set(stats) == {
        "latency_ms",
        "cpu_usage_percent",
        "processed_frames",
        "dropped_frames",
        "input_level_db",
        "output_level_db",
    }
    assert stats["processed_frames"] == before + 2 * len(samples)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("process", {}),
        ("process", {"audio_data": ""}),
        ("process", {"audio_data": "***"}),
        ("process", {"audio_data": base64.b64encode(bytes(6)).decode()}),
        ("process", {"audio_data": base64.b64encode(b"\0\0\x80\x7f").decode()}),
        ("process", {"audio_data": base64.b64encode(bytes(4 * (120 * RATE_HZ + 1))).decode()}),
        ("dsp", {}),
        ("dsp", {"samples": [None]}),
        ("dsp", {"samples": ["1"]}),
        ("dsp", {"samples": [1e300]}),
        ("dsp", {"samples": [0] * (30 * RATE_HZ + 1)}),
    ],
)
async def test_bad_clips_are_refused(client: aiohttp.ClientSession, path: str, fields: dict[str, Any]) -> None:
    """What is no clip is 400 with the reason."""
    status, answer = await post(client, f"/audio/{path}", **fields)
    assert (status, list(answer)) == (400, ["error"])


async def test_a_long_clip_does_not_hold_up_others(client: aiohttp.ClientSession) -> None:
    """While two minutes are worked on, the server answers others."""
    request = asyncio.create_task(suppress(client, np.tile(noise(0.1, 12), 10)))
    answers = 0
    while not request.done():
        await get(client, "/audio/health")
        answers += 1
    assert len(await request) == 120 * RATE_HZ
    assert answers > 3
