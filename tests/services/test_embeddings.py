"""Embeddings of both neighbours: every way in which they answer, and fail."""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from jarvis_core.errors import BadGateway, DeadlineExceeded, RateLimited, RequestError, Unavailable
from jarvis_core.models import Caller, Embedder, Embedding
from jarvis_core.services.embeddings import BridgesEmbedder, OpenAiEmbedder
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Refused, Transport
from jarvis_core.settings import Memory, Neighbours, Secret
from tests.fakes.content import embed
from tests.fakes.faults import Fault
from tests.fakes.openai_compatible import FakeModelServer, ModelServerMode
from tests.fakes.python_bridges import BridgesMode, FakeBridges

SECRET = "0123456789abcdef0123456789abcdef"
API_KEY = "sk-local"
ANN, BOB = Caller("ann", "Ann"), Caller("bob")
EMBED, BATCH, OPENAI = "/api/embeddings/embed", "/api/embeddings/embed-batch", "/v1/embeddings"
SETTINGS = Neighbours(connect_timeout_s=0.5, embeddings_timeout_s=0.4)
LATE_S = 3.0
TEXTS = ["Le chat dort", "Félix 😀", "Le chat dort"]


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run bridges that check tokens."""
    async with FakeBridges(SECRET) as server:
        yield server


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    """Run an OpenAI-compatible server that wants a key."""
    async with FakeModelServer(API_KEY) as server:
        yield server


@pytest.fixture
async def transport(bridges: FakeBridges) -> AsyncIterator[Transport]:
    """Give the way to the bridges; afterwards no connection is open."""
    transport = Transport("python_bridges", bridges.url, SETTINGS)
    yield transport
    await transport.close()
    await closed(bridges)


@pytest.fixture
def embedder(transport: Transport) -> BridgesEmbedder:
    """Give the bridges' embeddings."""
    return BridgesEmbedder(transport, SETTINGS, TokenMint(Secret(SECRET)))


@pytest.fixture
async def openai_transport(server: FakeModelServer) -> AsyncIterator[Transport]:
    """Give the way to the other server; afterwards no connection is open."""
    transport = Transport("embeddings", server.llm_url, SETTINGS)
    yield transport
    await transport.close()
    await closed(server)


@pytest.fixture
def openai(openai_transport: Transport) -> OpenAiEmbedder:
    """Give the other server's embeddings."""
    return make_openai(openai_transport)


def make_openai(
    transport: Transport, *, model: str = "multilingual-e5-small", key: str | None = API_KEY
) -> OpenAiEmbedder:
    """Ask for the vectors of *model*."""
    memory = Memory(embeddings_model=model, embeddings_api_key=Secret(key) if key else None)
    return OpenAiEmbedder(transport, SETTINGS, memory)


async def closed(server: FakeBridges | FakeModelServer) -> None:
    """Wait until no connection is open."""
    async with asyncio.timeout(2):
        while server.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def vector(text: str, dimension: int = 384) -> tuple[float, ...]:
    """Return what the fakes make of *text*."""
    return struct.unpack(f"<{dimension}f", embed(text, dimension))


async def fails(embedder: Embedder, kind: type[RequestError], texts: list[str] | None = None) -> RequestError:
    """Return the error of a call."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        await embedder.embed(texts or ["x"], "query", ANN)
    assert time.monotonic() - started < LATE_S
    return caught.value


# The bridges


async def test_one(bridges: FakeBridges, embedder: BridgesEmbedder, transport: Transport) -> None:
    """One text is one call, in the caller's name; the vector's dimension stands for the model."""
    assert await embedder.embed(["Félix 😀"], "query", ANN) == [Embedding("python_bridges/384", vector("Félix 😀"))]
    (asked,) = bridges.requests
    assert (asked.path, asked.json) == (EMBED, {"text": "Félix 😀", "input_type": "query"})
    token = asked.headers["authorization"].removeprefix("Bearer ")
    assert jwt.decode(token, SECRET, algorithms=["HS256"])["user_id"] == "ann"
    assert transport.health.state == "healthy"


async def test_several(bridges: FakeBridges, embedder: BridgesEmbedder) -> None:
    """Several texts are one call, and their vectors come in their order."""
    assert [one.vector for one in await embedder.embed(TEXTS, "passage", BOB)] == [vector(text) for text in TEXTS]
    (asked,) = bridges.requests
    assert (asked.path, asked.json) == (BATCH, {"texts": TEXTS, "input_type": "passage"})


async def test_dimension_is_read(bridges: FakeBridges, embedder: BridgesEmbedder) -> None:
    """The dimension is what the neighbour says, call by call, and tells the models apart."""
    for dimension in (512, 1, 4_000):
        bridges.mode = BridgesMode(dimension=dimension)
        (embedding,) = await embedder.embed(["x"], "query", ANN)
        assert (embedding.model, len(embedding.vector)) == (f"python_bridges/{dimension}", dimension)


async def test_no_token_without_a_secret(bridges: FakeBridges, transport: Transport) -> None:
    """Without a secret no credentials are sent."""
    bridges.jwt_secret = None
    await BridgesEmbedder(transport, SETTINGS, None).embed(["x"], "query", ANN)
    assert "authorization" not in bridges.requests[0].headers


@pytest.mark.parametrize("texts", [["x"], ["x", "y"]], ids=["one", "several"])
@pytest.mark.parametrize(
    "mode",
    [
        BridgesMode(vectors="zero"),
        BridgesMode(vectors="nan"),
        BridgesMode(vectors="short"),
        BridgesMode(dimension=0),
        BridgesMode(dimension=4_001),
    ],
    ids=["zero", "nan", "short", "empty", "too large"],
)
async def test_unusable_vectors(
    bridges: FakeBridges, embedder: BridgesEmbedder, transport: Transport, mode: BridgesMode, texts: list[str]
) -> None:
    """A vector that cannot be used is a BadGateway, and the neighbour is not well."""
    bridges.mode = mode
    await fails(embedder, BadGateway, texts)
    assert transport.health.state == "degraded"


async def test_missing_vector(bridges: FakeBridges, embedder: BridgesEmbedder) -> None:
    """One vector too few is none: which one is missing is not known."""
    bridges.mode = BridgesMode(vectors="missing")
    await fails(embedder, BadGateway, ["x", "y"])


async def test_too_many(bridges: FakeBridges, embedder: BridgesEmbedder) -> None:
    """The neighbours' limit counts for each caller, and is told as it is."""
    bridges.mode = BridgesMode(enforce_limits=True)
    for _ in range(30):
        await embedder.embed(["x"], "query", ANN)
    assert (await fails(embedder, RateLimited)).retry_after_s
    assert await embedder.embed(["x"], "query", BOB)


# Both


FAULTS = [
    (Fault(status=500), Refused),
    (Fault(status=400), Refused),
    (Fault(status=401), Refused),
    (Fault(status=404), Refused),
    (Fault(status=429), RateLimited),
    (Fault(status=502), Unavailable),
    (Fault(status=503), Unavailable),
    (Fault(status=504), DeadlineExceeded),
    (Fault("hang"), DeadlineExceeded),
    (Fault("trickle"), DeadlineExceeded),
    (Fault(delay_s=2), DeadlineExceeded),
    (Fault("close"), Unavailable),
    (Fault("reset"), Unavailable),
    (Fault("short_body"), Unavailable),
    (Fault("garbage"), BadGateway),
    (Fault("redirect"), BadGateway),
    (Fault("empty"), BadGateway),
    (Fault("html"), BadGateway),
    (Fault("nonsense"), BadGateway),
    (Fault("null"), BadGateway),
    (Fault("list"), BadGateway),
    (Fault("wrong_shape"), BadGateway),
    (Fault("wrong_type"), BadGateway),
    (Fault("truncated"), BadGateway),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=lambda value: getattr(value, "kind", None))
async def test_faults(
    bridges: FakeBridges,
    server: FakeModelServer,
    embedder: BridgesEmbedder,
    openai: OpenAiEmbedder,
    fault: Fault,
    kind: type[RequestError],
) -> None:
    """Whatever goes wrong is one of our errors within the deadline, and all is well afterwards."""
    bridges.mode, server.mode = BridgesMode(faults={"/": fault}), ModelServerMode(faults={"/": fault})
    errors = await asyncio.gather(fails(embedder, kind), fails(embedder, kind, ["x", "y"]), fails(openai, kind))
    for error in errors:
        assert "Traceback" not in error.message
        assert SECRET not in repr(error)
    bridges.mode, server.mode = BridgesMode(), ModelServerMode()
    assert len(await embedder.embed(TEXTS, "query", ANN)) == len(await openai.embed(TEXTS, "query", ANN)) == 3


async def test_away(
    bridges: FakeBridges, server: FakeModelServer, embedder: BridgesEmbedder, openai: OpenAiEmbedder
) -> None:
    """A neighbour that is not there is Unavailable, and asked again when it is back."""
    pairs: list[tuple[FakeBridges | FakeModelServer, Embedder]] = [(bridges, embedder), (server, openai)]
    for fake, asked in pairs:
        await fake.go_away()
        await fails(asked, Unavailable)
        await fake.come_back()
        assert await asked.embed(["x"], "query", ANN)


@pytest.mark.every_python
async def test_stale_connection(bridges: FakeBridges, embedder: BridgesEmbedder) -> None:
    """A kept-alive connection that was closed meanwhile costs no vector."""
    bridges.mode = BridgesMode(faults={"/": Fault("close_reused")})
    for _ in range(4):
        assert await embedder.embed(["x"], "query", ANN)


# OpenAI-compatible servers


@pytest.mark.parametrize(
    ("model", "input_type", "prefix"),
    [
        ("multilingual-e5-small", "query", "query: "),
        ("intfloat/E5-large-v2", "passage", "passage: "),
        ("nomic-embed-text", "query", ""),
        ("bge-m3", "passage", ""),
    ],
)
async def test_openai(
    server: FakeModelServer, openai_transport: Transport, model: str, input_type: Any, prefix: str
) -> None:
    """All texts are one call with the key, after the words that the model was trained with; the model's name is ours."""
    embedder = make_openai(openai_transport, model=model)
    assert await embedder.embed(TEXTS, input_type, ANN) == [Embedding(model, vector(prefix + text)) for text in TEXTS]
    (asked,) = server.requests
    assert asked.path == OPENAI
    assert asked.json == {"model": model, "input": [prefix + text for text in TEXTS], "encoding_format": "float"}
    assert "ann" not in str(asked.headers).lower()


async def test_openai_key(server: FakeModelServer, openai_transport: Transport) -> None:
    """Without a key none is sent, and a wrong one is refused without showing it."""
    error = await fails(make_openai(openai_transport, key="sk-wrong"), Refused)
    assert "sk-wrong" not in repr(error) + str(error.details)
    server.api_key = None
    assert await make_openai(openai_transport, key=None).embed(["x"], "query", ANN)
    assert "authorization" not in server.requests[-1].headers


@pytest.mark.parametrize("status", [400, 422])
async def test_openai_without_an_encoding(server: FakeModelServer, openai: OpenAiEmbedder, status: int) -> None:
    """A server that refuses to be asked for numbers is asked without that, then and ever after."""
    server.mode = ModelServerMode(faults={OPENAI: Fault(status=status, message="encoding_format: not known", times=1)})
    for _ in range(2):
        assert await openai.embed(["x"], "query", ANN)
    assert [request.json.get("encoding_format") for request in server.requests] == ["float", None, None]


async def test_openai_refusal_of_something_else(server: FakeModelServer, openai: OpenAiEmbedder) -> None:
    """Another refusal is one."""
    server.mode = ModelServerMode(faults={OPENAI: Fault(status=400, message="input: too long", times=1)})
    await fails(openai, Refused)
    assert len(server.requests) == 1


@pytest.mark.parametrize("order", ["reversed", "no_index"])
async def test_openai_order(server: FakeModelServer, openai_transport: Transport, order: Any) -> None:
    """The vectors are told apart by their index, or by their order where there is none."""
    server.mode = ModelServerMode(vectors=order)
    found = await make_openai(openai_transport, model="m").embed(["a", "b", "c"], "query", ANN)
    assert [one.vector for one in found] == [vector(text) for text in "abc"]


async def test_openai_packed(server: FakeModelServer, openai_transport: Transport) -> None:
    """Vectors that come as base64, although numbers were asked for, are the same vectors."""
    server.mode = ModelServerMode(vectors="base64")
    found = await make_openai(openai_transport, model="m").embed(["a", "b"], "query", ANN)
    assert [one.vector for one in found] == [vector(text) for text in "ab"]


@pytest.mark.parametrize("packed", ["", "AAA", "AAAA", "not base64!!", "AACAfw=="])
async def test_openai_badly_packed(server: FakeModelServer, openai: OpenAiEmbedder, packed: str) -> None:
    """What is no base64 of finite float32 is a BadGateway."""
    body = f'{{"data": [{{"index": 0, "embedding": "{packed}"}}]}}'.encode()
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=body)})
    await fails(openai, BadGateway)


async def test_bridges_unpacked(bridges: FakeBridges, embedder: BridgesEmbedder) -> None:
    """A vector of the bridges that comes as numbers, of a dimension with a point, is one."""
    bridges.mode = BridgesMode(faults={"/": Fault("raw", body=b'{"text": "x", "vector": [3, 4.5], "dimension": 2.0}')})
    (found,) = await embedder.embed(["x"], "query", ANN)
    assert found == Embedding("python_bridges/2", (3.0, 4.5))


async def test_openai_large_values(server: FakeModelServer, openai: OpenAiEmbedder) -> None:
    """Values whose squares overflow are a vector all the same."""
    server.mode = ModelServerMode(vectors="huge")
    (found,) = await openai.embed(["x"], "query", ANN)
    assert math.isfinite(math.hypot(*found.vector))


@pytest.mark.parametrize("vectors", ["zero", "null", "missing"])
async def test_openai_unusable(
    server: FakeModelServer, openai: OpenAiEmbedder, openai_transport: Transport, vectors: Any
) -> None:
    """What is no vector of finite numbers with a direction is a BadGateway."""
    server.mode = ModelServerMode(vectors=vectors)
    await fails(openai, BadGateway, ["x", "y"])
    assert openai_transport.health.state == "degraded"


@pytest.mark.parametrize("dimension", [0, 4_001])
async def test_openai_dimension(server: FakeModelServer, openai: OpenAiEmbedder, dimension: int) -> None:
    """A vector of no dimension, or of more than can be indexed, is a BadGateway."""
    server.mode = ModelServerMode(dimension=dimension)
    await fails(openai, BadGateway)
