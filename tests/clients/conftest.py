"""One house for all clients."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.clients.house import House, open_house


@pytest.fixture(scope="session")
def house(postgres_conninfo: str) -> Iterator[House]:
    """Run the server and its neighbours."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-clients-"))
    with psycopg.connect(postgres_conninfo, autocommit=True) as connection:
        connection.execute("create database clients")
    try:
        with open_house(directory, make_conninfo(postgres_conninfo, dbname="clients")) as house:
            yield house
    finally:
        shutil.rmtree(directory)
