"""A directory that every user may enter, neighbours, and servers that end with the test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.system.server import Server, wait_gone

MakeServer = Callable[..., Server]


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Make a directory under /tmp that PostgreSQL's user may enter: pytest's own are closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-system-", dir="/tmp"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def data_directory(directory: Path) -> Path:
    """
    Name a data directory that the tests use one after another, as a user's is used by one start after another.

    Only the first of them waits for its making.
    """
    return directory / "data"


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run the neighbour; it streams word by word."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson")) as bridges:
        yield bridges


@pytest.fixture
def make_server(directory: Path, data_directory: Path, bridges: FakeBridges) -> Iterator[MakeServer]:
    """
    Make servers on the data directory, with the bridges as neighbour.

    Keywords are environment variables; one that is None is not set. The test starts the server.
    """
    made: list[Server] = []

    def make(**environment: str | None) -> Server:
        settings = {"DATA_DIR": str(data_directory), "PYTHON_BRIDGES_URL": bridges.url, **environment}
        server = Server(directory, {name: value for name, value in settings.items() if value is not None})
        made.append(server)
        return server

    yield make
    for server in made:
        if server.running:
            family = server.family()
            server.kill()
            # The next test's database waits for this one's end.
            wait_gone(family)
