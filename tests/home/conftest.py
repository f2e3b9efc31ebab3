"""A real Home Assistant and a core beside it, for all tests here; only where ``HOME_PYTHON`` names its Python."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api
from tests.home.real_house import RealHouse
from tests.system.server import Server, free_port

HOME_PYTHON = os.environ.get("HOME_PYTHON")

collect_ignore_glob = [] if HOME_PYTHON else ["test_*.py"]


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Make a directory for both."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-home-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def house(directory: Path) -> Iterator[RealHouse]:
    """Run Home Assistant."""
    configuration = directory / "house"
    configuration.mkdir()
    house = RealHouse(Path(HOME_PYTHON or ""), configuration)
    house.start()
    yield house
    house.stop()


@pytest.fixture(scope="session")
def bridges_port() -> int:
    """Name the port of the model, which no test is to need."""
    return free_port()


@pytest.fixture(scope="session")
def server(postgres_conninfo: str, directory: Path, house: RealHouse, bridges_port: int) -> Iterator[Server]:
    """Run the core with that house."""
    with psycopg.connect(postgres_conninfo, autocommit=True) as connection:
        connection.execute("create database home")
    server = Server(
        directory,
        {
            "DATABASE_URL": make_conninfo(postgres_conninfo, dbname="home"),
            "PYTHON_BRIDGES_URL": f"http://127.0.0.1:{bridges_port}",
            "HOME_ASSISTANT_URL": house.url,
            "HOME_ASSISTANT_TOKEN": house.token,
            "SPEECH_LANGUAGES": "fr,en",
            "HOME_TIMEOUT_S": "5",  # other tests may keep the machine busy
        },
    )
    try:
        server.start()
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert house.token not in server.stderr
    finally:
        server.kill()


@pytest.fixture
async def bridges(bridges_port: int) -> AsyncIterator[FakeBridges]:
    """Run the model."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson"), port=bridges_port) as bridges:
        yield bridges


@pytest.fixture
async def api(server: Server, bridges: FakeBridges) -> AsyncIterator[Api]:
    """Ask the core."""
    async with Api(server.url) as api:
        yield api
