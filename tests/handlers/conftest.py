"""One server for the tests of the routes, with two users, and its neighbours in the test's own loop."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.system.server import Server, free_port

ALICE = "alices-secret-key"
BOB = "bobs-secret-key"

MakeServer = Callable[..., Server]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Make a directory for what the servers print."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-handlers-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def bridges_port() -> int:
    """Name the port of every test's bridges, which servers know that outlive a test."""
    return free_port()


@pytest.fixture
async def bridges(bridges_port: int) -> AsyncIterator[FakeBridges]:
    """Run the neighbour; it streams word by word."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson"), port=bridges_port) as bridges:
        yield bridges


@pytest.fixture(scope="session")
def shared_server(postgres_conninfo: str, directory: Path, bridges_port: int) -> Iterator[Server]:
    """Run the server that the tests use one after another; take ``server`` instead."""
    name = f"handlers_{next(_numbers)}"
    with psycopg.connect(postgres_conninfo, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    server = Server(
        directory,
        {
            "DATABASE_URL": make_conninfo(postgres_conninfo, dbname=name),
            "PYTHON_BRIDGES_URL": f"http://127.0.0.1:{bridges_port}",
            "API_KEYS": f"alice:{ALICE},bob:{BOB}",
            "LLM_MAX_TOKENS": "32000",
        },
    )
    server.start()
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.fixture
def server(shared_server: Server, bridges: FakeBridges) -> Iterator[Server]:
    """Give a running server with the users alice and bob; a defect in its log fails the test."""
    logged = len(shared_server.stderr)
    yield shared_server
    assert_no_defect(shared_server, logged)


@pytest.fixture
def make_server(directory: Path, database: str, bridges: FakeBridges) -> Iterator[MakeServer]:
    """
    Start servers of the test's own on an empty database, open to everybody.

    Keywords are environment variables. A defect in their logs fails the test.
    """
    made: list[Server] = []

    def make(**environment: str) -> Server:
        server = Server(directory, {"DATABASE_URL": database, "PYTHON_BRIDGES_URL": bridges.url, **environment})
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()
    for server in made:
        assert_no_defect(server)


@pytest.fixture
async def alice(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """Ask the server as alice."""
    async with client_of(server, ALICE) as session:
        yield session


@pytest.fixture
async def bob(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """Ask the server as bob."""
    async with client_of(server, BOB) as session:
        yield session


def client_of(server: Server, key: str | None = None) -> aiohttp.ClientSession:
    """Make a client that gives up after 20 s, with the credentials *key*."""
    return aiohttp.ClientSession(
        server.url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=aiohttp.ClientTimeout(total=20),
        connector=aiohttp.TCPConnector(limit=0),
    )


def assert_no_defect(server: Server, after: int = 0) -> None:
    """Fail where the log after so many characters tells of a defect."""
    logged = server.stderr[after:]
    assert "Traceback" not in logged, logged
    assert "never retrieved" not in logged, logged
