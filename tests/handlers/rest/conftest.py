"""
Three real servers for the whole run, and their neighbours anew for each test on ports that stay.

``api`` asks the open server with the default limits; ``strict`` asks one with credentials, short deadlines and a low
limit of bodies; ``enhanced`` asks one that has an audio engine, where the test runs one.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fakes.audio_engine import FakeAudioEngine
from tests.fakes.openai_compatible import FakeModelServer
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api
from tests.system.server import Server, free_port

SECRET = "a secret that is long enough for every algorithm that a token may name"
API_KEY = "kitchen-key-0123456789"
ORIGIN = "http://localhost:3000"
STRICT = {
    "JWT_SECRET": SECRET,
    "API_KEYS": f"kitchen:{API_KEY}",
    "BODY_LIMIT_BYTES": "65536",
    "LLM_FIRST_TOKEN_TIMEOUT_S": "0.4",
    "LLM_STALL_TIMEOUT_S": "0.6",
    "LLM_TOTAL_TIMEOUT_S": "1.5",
    "STT_TIMEOUT_S": "0.7",
    "TTS_TIMEOUT_S": "0.7",
    "RUST_LOG": "info",
    "TRUSTED_PROXIES": "127.0.0.1",
}


PATIENT = {
    "JWT_SECRET": SECRET,
    "EMBEDDINGS_TIMEOUT_S": "1",
    "MEMORY_RECALL_TIMEOUT_S": "1",
    "MEMORY_DUE_INTERVAL_S": "0.1",
    # The fake's vectors are hashes: what has nothing to do with a question may be as near as 0.25.
    "MEMORY_RECALL_THRESHOLD": "0.35",
}
"""Embeddings that failed are soon asked again."""


_numbers = itertools.count(1)


@contextmanager
def serving(conninfo: str, name: str, **environment: str) -> Iterator[tuple[Server, int]]:
    """Run a server on a database of its own; give it and the port where it looks for its neighbour."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-handlers-"))
    port = free_port()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    server = Server(
        directory,
        {
            "DATABASE_URL": make_conninfo(conninfo, dbname=name),
            "PYTHON_BRIDGES_URL": f"http://127.0.0.1:{port}",
            "CORS_ORIGINS": ORIGIN,
            "DRAIN_TIMEOUT_S": "1",
            "BREAKER_OPEN_S": "0.1",  # between two tests the neighbour is away
            **environment,
        },
    )
    try:
        server.start()
        yield server, port
        assert server.running, server.stderr
        assert server.stop() == 0
        assert "Traceback" not in server.stderr, server.stderr
    finally:
        server.kill()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def open_server(postgres_conninfo: str) -> Iterator[tuple[Server, int]]:
    """Run the server that asks nobody for credentials."""
    with serving(postgres_conninfo, "handlers_open") as running:
        yield running


@pytest.fixture(scope="session")
def strict_server(postgres_conninfo: str) -> Iterator[tuple[Server, int]]:
    """Run the server that asks for credentials and has no patience."""
    with serving(postgres_conninfo, "handlers_strict", **STRICT) as running:
        yield running


@pytest.fixture
async def bridges(open_server: tuple[Server, int]) -> AsyncIterator[FakeBridges]:
    """Run the open server's neighbour; it streams word by word."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson"), port=open_server[1]) as bridges:
        yield bridges


@pytest.fixture
async def api(open_server: tuple[Server, int], bridges: FakeBridges) -> AsyncIterator[Api]:
    """Ask the open server."""
    async with Api(open_server[0].url) as api:
        yield api


@pytest.fixture
async def strict_bridges(strict_server: tuple[Server, int]) -> AsyncIterator[FakeBridges]:
    """Run the strict server's neighbour, which asks for tokens too."""
    async with FakeBridges(SECRET, mode=BridgesMode(shape="ndjson"), port=strict_server[1]) as bridges:
        yield bridges


@pytest.fixture
async def strict(strict_server: tuple[Server, int], strict_bridges: FakeBridges) -> AsyncIterator[Api]:
    """Ask the strict server as the user zoé, from an address of the test's own: bad credentials slow one down."""
    async with Api(strict_server[0].url, token=make_token("zoé"), address=f"2001:db8:{next(_numbers):x}::1") as api:
        yield api


@pytest.fixture(scope="session")
def enhanced_server(postgres_conninfo: str) -> Iterator[tuple[Server, int, int]]:
    """Run the server with an audio engine, and with room for one long recording; give the neighbours' ports too."""
    engine_port = free_port()
    environment = {
        "AUDIO_ENGINE_URL": f"http://127.0.0.1:{engine_port}",
        "AUDIO_ENGINE_TIMEOUT_S": "60",
        "BREAKER_OPEN_S": "0.3",
        "AUDIO_BUFFER_LIMIT_BYTES": str(48 << 20),
    }
    with serving(postgres_conninfo, "handlers_enhanced", **environment) as (server, port):
        yield server, port, engine_port


@pytest.fixture
async def listener(enhanced_server: tuple[Server, int, int]) -> AsyncIterator[FakeBridges]:
    """Run the bridges of the server with an audio engine."""
    async with FakeBridges(port=enhanced_server[1]) as bridges:
        yield bridges


@pytest.fixture
async def engine(enhanced_server: tuple[Server, int, int]) -> AsyncIterator[FakeAudioEngine]:
    """Run the audio engine."""
    async with FakeAudioEngine(port=enhanced_server[2]) as engine:
        yield engine


@pytest.fixture
async def enhanced(enhanced_server: tuple[Server, int, int], listener: FakeBridges) -> AsyncIterator[Api]:
    """Ask the server with an audio engine."""
    async with Api(enhanced_server[0].url) as api:
        yield api


AsUser = Callable[[str], Api]


@pytest.fixture
async def as_user(strict_server: tuple[Server, int], strict_bridges: FakeBridges) -> AsyncIterator[AsUser]:
    """Make clients of the strict server that send a token of the test's own."""
    made: list[Api] = []

    def make(token: str) -> Api:
        made.append(Api(strict_server[0].url, token=token))
        return made[-1]

    yield make
    for api in made:
        await api.session.close()


@pytest.fixture(scope="session")
def memory_server(postgres_conninfo: str) -> Iterator[tuple[Server, int]]:
    """Run the server for the tests of memory, which soon tries again what failed."""
    with serving(postgres_conninfo, "handlers_memory", **PATIENT) as running:
        yield running


@pytest.fixture
async def embeddings(memory_server: tuple[Server, int]) -> AsyncIterator[FakeBridges]:
    """Run the neighbour of that server."""
    async with FakeBridges(SECRET, mode=BridgesMode(shape="ndjson"), port=memory_server[1]) as bridges:
        yield bridges


@pytest.fixture
async def ann(memory_server: tuple[Server, int], embeddings: FakeBridges) -> AsyncIterator[Api]:
    """Ask that server as somebody who has never told it anything; its embeddings are well."""
    async with Api(memory_server[0].url, token=make_token(f"ann-{time.monotonic_ns()}")) as ann:
        async with asyncio.timeout(10):
            # The test before may have taken them away.
            while (await ann.post("/api/memory/search", {"query": "x"})).json["mode"] != "hybrid":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        embeddings.forget()
        yield ann


@pytest.fixture
async def bob(memory_server: tuple[Server, int], embeddings: FakeBridges) -> AsyncIterator[Api]:
    """Ask as somebody else."""
    async with Api(memory_server[0].url, token=make_token(f"bob-{time.monotonic_ns()}")) as bob:
        yield bob


def make_token(
    user: str, *, secret: str = SECRET, algorithm: str = "HS256", lifetime_s: int = 86_400, **claims: object
) -> str:
    """Sign a token for *user*."""
    fields = {"sub": user, "user_id": user, "exp": int(time.time()) + lifetime_s, **claims}
    return jwt.encode({name: value for name, value in fields.items() if value is not None}, secret, algorithm=algorithm)


@pytest.fixture(scope="session")
def model_server(postgres_conninfo: str) -> Iterator[tuple[Server, int, int]]:
    """Run the server that asks an OpenAI-compatible model; give its port, and that of the bridges, who speak."""
    port = free_port()
    environment = {
        "LLM_URL": f"http://127.0.0.1:{port}/v1",
        "LLM_MODEL": "small-model",
        "LLM_API_KEY": "sk-of-the-house",
        "LLM_FIRST_TOKEN_TIMEOUT_S": "5",
        "LLM_STALL_TIMEOUT_S": "0.6",
        "LLM_TOTAL_TIMEOUT_S": "20",
    }
    with serving(postgres_conninfo, "handlers_model", **environment) as (server, bridges_port):
        yield server, port, bridges_port


@pytest.fixture
async def model(model_server: tuple[Server, int, int]) -> AsyncIterator[FakeModelServer]:
    """Run the model of that server."""
    async with FakeModelServer("sk-of-the-house", port=model_server[1]) as model:
        yield model


@pytest.fixture
async def house(model_server: tuple[Server, int, int], model: FakeModelServer) -> AsyncIterator[Api]:
    """Ask that server."""
    async with Api(model_server[0].url) as house:
        yield house
