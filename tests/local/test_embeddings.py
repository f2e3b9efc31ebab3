"""The local stand-in's embeddings: the bridges' contract with a real model behind it."""

from __future__ import annotations

import array
import base64
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from jarvis_core.local.launcher import LocalBridges
from tests.local.quiet import complaints

EMBED = "/api/embeddings/embed"
BATCH = "/api/embeddings/embed-batch"
PATIENCE_S = 30


@pytest.fixture(scope="module")
def bridges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBridges]:
    """Run the stand-in with nothing but embeddings."""
    log_path = tmp_path_factory.mktemp("embeddings") / "log"
    bridges = LocalBridges(embeddings=True, log_path=log_path)
    bridges.start()
    yield bridges
    bridges.stop()
    assert complaints(log_path) == []


@pytest.fixture
async def client(bridges: LocalBridges) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(bridges.url, timeout=timeout) as session:
        yield session


async def ask(client: aiohttp.ClientSession, path: str, body: object, status: int = 200) -> Any:
    async with client.post(path, json=body) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def vector_of(client: aiohttp.ClientSession, text: str, **fields: str) -> array.array[float]:
    return decode(await ask(client, EMBED, {"text": text, **fields}), text)


def decode(answer: dict[str, Any], text: str) -> array.array[float]:
    assert answer["text"] == text
    vector = array.array("f", base64.b64decode(answer["vector"], validate=True))
    assert len(vector) == answer["dimension"] == 384
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)
    return vector


def cosine(one: array.array[float], other: array.array[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("question", "answer", "unrelated"),
    [
        ("Où habite ma sœur ?", "Ma sœur Julie a une maison à Marseille.", "Le chat dort sur le canapé."),
        ("Where does my sister live?", "Julie, her sister, has a flat in Boston.", "The boiler needs a new valve."),
        ("What am I allergic to?", "Elle ne doit pas manger de cacahuètes.", "Le train part à huit heures."),
    ],
)
async def test_meaning(client: aiohttp.ClientSession, question: str, answer: str, unrelated: str) -> None:
    """A question is nearer to what answers it than to something else, also across languages."""
    asked = await vector_of(client, question, input_type="query")
    near = await vector_of(client, answer, input_type="passage")
    far = await vector_of(client, unrelated, input_type="passage")
    assert cosine(asked, near) > cosine(asked, far) + 0.02


async def test_input_type(client: aiohttp.ClientSession) -> None:
    """Questions and passages are embedded differently; without a word it is a passage, and each comes out the same again."""
    text = "La clé est sous le pot de fleurs."
    plain = await vector_of(client, text)
    assert plain == await vector_of(client, text, input_type="passage") == await vector_of(client, text)
    assert plain != await vector_of(client, text, input_type="query")


async def test_batch(client: aiohttp.ClientSession) -> None:
    """A batch gives for each text what it gets alone, in their order."""
    texts = ["un", "deux", "un", "trois 😀"]
    answer = await ask(client, BATCH, {"texts": texts, "input_type": "query"})
    assert answer["count"] == len(answer["embeddings"]) == 4
    for text, one in zip(texts, answer["embeddings"], strict=True):
        assert cosine(decode(one, text), await vector_of(client, text, input_type="query")) > 0.999
    assert await ask(client, BATCH, {"texts": []}) == {"embeddings": [], "count": 0}


async def test_long_text(client: aiohttp.ClientSession) -> None:
    """The longest text that is allowed is embedded by its beginning."""
    assert len(await vector_of(client, "mot " * 2_500)) == 384


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (EMBED, {}, "text"),
        (EMBED, {"text": ""}, "$.text"),
        (EMBED, {"text": 7}, "$.text"),
        (EMBED, {"text": "x" * 10_001}, "$.text"),
        (EMBED, {"text": "x", "input_type": "poem"}, "$.input_type"),
        (BATCH, {"texts": "x"}, "$.texts"),
        (BATCH, {"texts": ["x", ""]}, "$.texts"),
        (BATCH, {"texts": ["x"] * 257}, "$.texts"),
    ],
)
async def test_bad_request(client: aiohttp.ClientSession, path: str, body: object, named: str) -> None:
    """What cannot be embedded is 400, and names the field."""
    assert named in (await ask(client, path, body, 400))["error"]


async def test_health(client: aiohttp.ClientSession) -> None:
    """The stand-in is well with nothing but embeddings, and says that there is nothing else."""
    async with client.get("/health") as response:
        health = await response.json()
    assert health["status"] == "healthy"
    assert {name for name, sign in health["services"].items() if sign == "✅"} == {"embeddings"}


async def test_without_a_model(tmp_path: Path) -> None:
    """A stand-in that was started without embeddings says so."""
    bridges = LocalBridges(log_path=tmp_path / "log")
    bridges.start()
    try:
        async with aiohttp.ClientSession(bridges.url) as client:
            assert "no embeddings" in (await ask(client, EMBED, {"text": "x"}, 501))["error"]
    finally:
        bridges.stop()
