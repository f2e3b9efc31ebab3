"""The fake bridges do what the reference implementation does, its traps included."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest

from .content import noise
from .python_bridges import BridgesMode, FakeBridges

SECRET = "a secret of at least thirty-two bytes, for HS256"
GENERATE, TRANSCRIBE, SYNTHESIZE = "/api/llm/generate", "/api/stt/transcribe", "/api/tts/synthesize"
EMBED, BATCH = "/api/embeddings/embed", "/api/embeddings/embed-batch"
CLIP = base64.b64encode(noise(0.5, 16_000)).decode()
Client = aiohttp.ClientSession


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    async with FakeBridges() as server:
        yield server


async def post(
    client: Client, server: FakeBridges, path: str, body: dict[str, Any], token: str = ""
) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = io.BytesIO(json.dumps(body).encode())
    async with client.post(server.url + path, data=data, headers=headers) as response:
        answer = await response.json()
        assert isinstance(answer, dict)
        return response.status, answer


async def get(client: Client, server: FakeBridges, path: str, token: str = "") -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.get(server.url + path, headers=headers) as response:
        answer = await response.json()
        assert isinstance(answer, dict)
        return response.status, answer


def sign(secret: str = SECRET, without: str = "", **changes: object) -> str:
    now = int(time.time())
    claims = {"sub": "u1", "user_id": "u1", "username": "ada", "iat": now, "exp": now + 60, "permissions": ["chat"]}
    return jwt.encode({key: value for key, value in (claims | changes).items() if key != without}, secret, "HS256")


def floats(encoded: str) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<f", base64.b64decode(encoded))]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Bonjour", "You said: Bonjour"),
        ("User: un\nAssistant: deux\nUser: trois\nquatre\nAssistant:", "You said: trois\nquatre"),
        ("Some memories\n\nQuelle heure est-il ?", "You said: Quelle heure est-il ?"),
    ],
)
async def test_generate(bridges: FakeBridges, client: Client, prompt: str, answer: str) -> None:
    """The reference answers whole, even when a stream is asked for, and the answer tells the last words."""
    status, body = await post(client, bridges, GENERATE, {"prompt": prompt, "stream": True, "unknown": [1]})
    assert (status, body["text"], body["model"]) == (200, answer, "mistral:latest")
    assert body["tokens_generated"] > 0
    assert body["tokens_prompt"] > 0
    assert isinstance(body["duration_ms"], float)


async def test_reply(bridges: FakeBridges, client: Client) -> None:
    """A test may make the answer from the request."""
    bridges.reply = lambda body: f"heard with {body['temperature']}"
    assert (await post(client, bridges, GENERATE, {"prompt": "x", "temperature": 1}))[1]["text"] == "heard with 1"


async def test_streams_only_when_asked(bridges: FakeBridges, client: Client) -> None:
    """A bridge that can stream still answers whole to who does not ask."""
    bridges.mode = BridgesMode(shape="ndjson")
    assert (await post(client, bridges, GENERATE, {"prompt": "x"}))[1]["text"] == "You said: x"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (GENERATE, {}, 400),
        (GENERATE, {"prompt": ""}, 400),
        (GENERATE, {"prompt": "é" * 10_000}, 200),
        (GENERATE, {"prompt": "é" * 10_001}, 400),
        (GENERATE, {"prompt": "x", "system_prompt": "é" * 5_001}, 400),
        (GENERATE, {"prompt": "x", "temperature": 2.1}, 400),
        (GENERATE, {"prompt": "x", "temperature": None}, 500),
        (GENERATE, {"prompt": "x", "max_tokens": 0}, 400),
        (GENERATE, {"prompt": "x", "max_tokens": None}, 500),
        (TRANSCRIBE, {"audio_data": ""}, 400),
        (TRANSCRIBE, {"audio_data": base64.b64encode(b"12345").decode()}, 500),
        (TRANSCRIBE, {"audio_data": "not base64!"}, 500),
        (TRANSCRIBE, {"audio_data": "A" * 10_000_004}, 400),
        (TRANSCRIBE, {"audio_data": CLIP, "language": "a language"}, 200),
        (TRANSCRIBE, {"audio_data": CLIP, "language": "a language!"}, 400),
        (SYNTHESIZE, {"text": ""}, 400),
        (SYNTHESIZE, {"text": "x" * 5_001}, 400),
        (SYNTHESIZE, {"text": "x", "speed": None}, 500),
        (SYNTHESIZE, {"text": "x", "speed": 0.05}, 400),
        (SYNTHESIZE, {"text": "x", "speed": 0.4}, 500),
        (SYNTHESIZE, {"text": "x", "speed": 2.5}, 500),
        (SYNTHESIZE, {"text": "x", "speed": 2.0}, 200),
        (SYNTHESIZE, {"text": "x", "voice": None}, 400),
        (SYNTHESIZE, {"text": "x", "voice": "en_US-amy-medium"}, 500),
        (EMBED, {"text": "x" * 10_001}, 400),
        (BATCH, {"texts": "x"}, 400),
        (BATCH, {"texts": ["x"] * 500}, 200),
    ],
)
async def test_validation(bridges: FakeBridges, client: Client, path: str, body: dict[str, Any], status: int) -> None:
    """Bad input is 400 or, where the reference stumbles, 500; errors are ``{"error": str}``."""
    got, answer = await post(client, bridges, path, body)
    assert got == status
    assert status == 200 or isinstance(answer["error"], str)


async def test_content_type_and_method(bridges: FakeBridges, client: Client) -> None:
    """Without a JSON content type it is a 500, with another method a page of HTML."""
    async with client.post(bridges.url + GENERATE, data=b'{"prompt":"x"}') as response:
        assert response.status == 500
    async with client.get(bridges.url + GENERATE) as response:
        assert (response.status, response.content_type) == (405, "text/html")


async def test_failures_that_arrive_as_200(bridges: FakeBridges, client: Client) -> None:
    """Each model's failure is a 200: an error text with zero counts, or no audio."""
    bridges.mode = BridgesMode(error_200=True)
    status, answer = await post(client, bridges, GENERATE, {"prompt": "x"})
    assert (status, answer["tokens_generated"], answer["tokens_prompt"]) == (200, 0, 0)
    assert answer["text"].startswith("Error: ")
    status, answer = await post(client, bridges, TRANSCRIBE, {"audio_data": CLIP})
    assert (status, answer["text"].startswith("Error: ")) == (200, True)
    status, answer = await post(client, bridges, SYNTHESIZE, {"text": "x"})
    assert (status, answer["audio_data"]) == (200, "")


async def test_transcribe(bridges: FakeBridges, client: Client) -> None:
    """The clip is measured, and the transcript tells its length or what the test wants."""
    _, answer = await post(client, bridges, TRANSCRIBE, {"audio_data": CLIP, "language": "en"})
    assert (answer["text"], answer["language"], len(answer["segments"])) == ("a clip of 0.50 seconds", "en", 1)
    assert (bridges.heard[0].samples, bridges.heard[0].duration_s) == (8_000, 0.5)
    assert 0.29 < bridges.heard[0].peak <= 0.3
    bridges.mode = BridgesMode(transcript="Allume la lampe")
    _, answer = await post(client, bridges, TRANSCRIBE, {"audio_data": CLIP})
    assert answer["text"] == "Allume la lampe"


async def test_invented_words_on_silence(bridges: FakeBridges, client: Client) -> None:
    """Silence is transcribed as words nobody said, whatever the transcript is to be."""
    bridges.mode = BridgesMode(transcript="Allume la lampe")
    silence = base64.b64encode(bytes(4 * 8_000)).decode()
    _, answer = await post(client, bridges, TRANSCRIBE, {"audio_data": silence, "language": "en"})
    assert answer["text"] == "Thanks for watching!"


async def test_synthesize(bridges: FakeBridges, client: Client) -> None:
    """Speech is as long as its text, shorter when fast, and always the same."""
    _, answer = await post(client, bridges, SYNTHESIZE, {"text": "dix lettres", "voice": "fr_FR-tom-medium"})
    samples = floats(answer["audio_data"])
    assert (len(samples), answer["sample_rate"], answer["voice"]) == (
        round(11 * 0.05 * 22_050),
        22_050,
        "fr_FR-tom-medium",
    )
    assert 0.2 < max(samples) <= 0.31
    _, fast = await post(client, bridges, SYNTHESIZE, {"text": "dix lettres", "speed": 2})
    assert len(floats(fast["audio_data"])) == pytest.approx(len(samples) / 2, abs=1)


@pytest.mark.parametrize("speech", ["odd", "nan", "not_base64"])
async def test_broken_speech(bridges: FakeBridges, client: Client, speech: str) -> None:
    """Speech can be of a broken size, not numbers, or no base64."""
    bridges.mode = BridgesMode(speech=speech)  # type: ignore[arg-type]
    _, answer = await post(client, bridges, SYNTHESIZE, {"text": "x"})
    if speech == "not_base64":
        with pytest.raises(ValueError):
            base64.b64decode(answer["audio_data"], validate=True)
    elif speech == "odd":
        assert len(base64.b64decode(answer["audio_data"])) % 4 == 1
    else:
        assert all(math.isnan(value) for value in floats(answer["audio_data"]))


async def test_voices_and_models(bridges: FakeBridges, client: Client) -> None:
    """Voices are an object, models a list."""
    _, answer = await get(client, bridges, "/api/tts/voices")
    assert isinstance(answer["voices"], dict)
    _, answer = await get(client, bridges, "/api/llm/models")
    assert answer == {"models": ["mistral:latest", "llama3.2:3b"]}


async def test_embeddings(bridges: FakeBridges, client: Client) -> None:
    """Equal texts have equal vectors of length 1, shared words bring texts near, and a batch keeps the order."""
    texts = ["le chat dort", "le chat mange", "une voiture rouge", "le chat dort"]
    _, answer = await post(client, bridges, BATCH, {"texts": texts, "input_type": "passage"})
    assert (answer["count"], [entry["text"] for entry in answer["embeddings"]]) == (4, texts)
    vectors = [floats(entry["vector"]) for entry in answer["embeddings"]]
    _, single = await post(client, bridges, EMBED, {"text": texts[0], "input_type": "query"})
    assert (single["dimension"], floats(single["vector"])) == (384, vectors[0])
    assert vectors[0] == vectors[3]
    near, far = (sum(a * b for a, b in zip(vectors[0], vectors[n], strict=True)) for n in (1, 2))
    assert near > 0.5
    assert abs(far) < 0.2
    assert math.fsum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-5)


async def test_broken_embeddings(bridges: FakeBridges, client: Client) -> None:
    """Vectors can be of another dimension, zero, NaN, shorter than they say, or missing."""
    body = {"texts": ["un", "deux"]}

    async def vectors(mode: BridgesMode) -> list[list[float]]:
        bridges.mode = mode
        _, answer = await post(client, bridges, BATCH, body)
        return [floats(entry["vector"]) for entry in answer["embeddings"]]

    assert [len(vector) for vector in await vectors(BridgesMode(dimension=512))] == [512, 512]
    assert [set(vector) for vector in await vectors(BridgesMode(vectors="zero"))] == [{0.0}, {0.0}]
    assert all(math.isnan(value) for vector in await vectors(BridgesMode(vectors="nan")) for value in vector)
    assert [len(vector) for vector in await vectors(BridgesMode(vectors="short"))] == [383, 383]
    assert len(await vectors(BridgesMode(vectors="missing"))) == 1


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        sign("another secret of at least thirty-two bytes, for it"),
        sign(exp=1),
        sign(aud="jarvis"),
        sign(permissions="chat"),
        *(sign(without=claim) for claim in ("sub", "user_id", "username", "iat", "exp", "permissions")),
    ],
)
async def test_bad_tokens(client: Client, token: str) -> None:
    """A token that is missing, foreign, expired, without a claim or with an audience is refused, but /health needs none."""
    async with FakeBridges(SECRET) as server:
        assert (await post(client, server, GENERATE, {"prompt": "x"}, token))[0] == 401
        assert (await get(client, server, "/api/tts/voices", token))[0] == 401
        assert (await get(client, server, "/health", token))[0] == 200


async def test_limits_are_by_user(client: Client) -> None:
    """The eleventh call in a minute is refused to one user, without Retry-After, and not to another."""
    async with FakeBridges(SECRET, mode=BridgesMode(enforce_limits=True)) as server:
        calls = [(await post(client, server, GENERATE, {"prompt": "x"}, sign()))[0] for _ in range(11)]
        assert calls == [200] * 10 + [429]
        assert (await post(client, server, GENERATE, {"prompt": "x"}, sign(user_id="u2")))[0] == 200
        assert (await post(client, server, EMBED, {"text": "x"}, sign()))[0] == 200
        async with client.post(
            server.url + GENERATE, json={"prompt": "x"}, headers={"Authorization": f"Bearer {sign()}"}
        ) as response:
            assert (response.status, "Retry-After" in response.headers) == (429, False)


async def test_health(bridges: FakeBridges, client: Client) -> None:
    """Degraded is still a 200, and the 51st question in an hour is refused."""
    status, answer = await get(client, bridges, "/health")
    assert (status, answer["status"], answer["services"]["ollama_llm"]) == (200, "healthy", "✅")
    bridges.mode = BridgesMode(services_down=("ollama_llm",))
    status, answer = await get(client, bridges, "/health")
    assert (status, answer["status"], answer["services"]["ollama_llm"]) == (200, "degraded", "❌")
    bridges.mode = BridgesMode(health_error=True)
    assert (await get(client, bridges, "/health"))[0] == 500
    statuses = [(await get(client, bridges, "/health"))[0] for _ in range(48)]
    assert (statuses[-2], statuses[-1]) == (500, 429)
    bridges.limits.clear()
    bridges.mode = BridgesMode(enforce_health_limit=False)
    assert {(await get(client, bridges, "/health"))[0] for _ in range(60)} == {200}


@pytest.mark.parametrize(("container", "magic"), [("wav", b"RIFF"), ("mp3", b"\xff\xfb")])
async def test_other_version(client: Client, container: str, magic: bytes) -> None:
    """The other deployed version wants no token, has no /health, and mislabels the speech it streams."""
    mode = BridgesMode(other_version=True, other_container=container)  # type: ignore[arg-type]
    async with FakeBridges(SECRET, mode=mode) as server:
        assert (await get(client, server, "/health"))[0] == 404
        assert (await post(client, server, GENERATE, {"prompt": "x"}))[0] == 200
        for path in (SYNTHESIZE, "/synthesize"):
            async with client.post(server.url + path, json={"text": "bonjour"}) as response:
                assert (response.status, response.content_type) == (200, "audio/mpeg")
                assert (await response.read()).startswith(magic)
        server.mode = BridgesMode()
        assert (await post(client, server, "/synthesize", {"text": "bonjour"}))[0] == 404
