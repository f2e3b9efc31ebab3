"""
A server whose neighbour lives in a process of its own: what Hypothesis runs has no event loop.

``FUZZ_CASES`` is how many requests are made up; without it so few that they do not keep anybody waiting, the same in each
run. ``make fuzz`` has more, others each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from psycopg.conninfo import make_conninfo

from tests.system.server import REPOSITORY, Server, free_port

CASES = int(os.environ.get("FUZZ_CASES", "0"))
SECRET = "0123456789abcdef0123456789abcdef"
KEY = "fuzzers-key-0123456789"
MODE = {"shape": "ndjson", "answer": "Bien sûr."}

collect_ignore = [] if CASES else ["test_fuzz_schemathesis.py"]
"""It needs an environment of its own."""

set_hypothesis_home_dir(REPOSITORY / ".cache" / "hypothesis")


def fuzzing(share: float, at_least: int) -> settings:
    """Return the settings of a test that has a *share* of ``FUZZ_CASES``, and *at_least* so many cases without."""
    return settings(
        max_examples=max(at_least, int(CASES * share)),
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.fixture(scope="session")
def server(postgres_conninfo: str) -> Iterator[Server]:
    """Run the server; a defect in its log fails the run."""
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="jarvis-fuzz-"))
    with psycopg.connect(postgres_conninfo, autocommit=True) as connection:
        connection.execute("create database fuzz")
    environment = {
        "DATABASE_URL": make_conninfo(postgres_conninfo, dbname="fuzz"),
        "PYTHON_BRIDGES_URL": f"http://127.0.0.1:{port}",
        "JWT_SECRET": SECRET,
        "API_KEYS": f"fuzz:{KEY}",
        "RUST_LOG": "warning",
        "DRAIN_TIMEOUT_S": "1",
        "WS_RESUME_GRACE_S": "0.5",
    }
    server = Server(directory, environment)
    arguments = ["-m", "tests.fakes.python_bridges", "--port", str(port), "--mode", json.dumps(MODE)]
    neighbour = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        server.start()
        yield server
        assert server.running, server.stderr
        assert server.stop() == 0
        assert "Traceback" not in server.stderr, server.stderr
        assert "defect" not in server.stderr, server.stderr
    finally:
        server.kill()
        with contextlib.suppress(ProcessLookupError):
            neighbour.kill()
        neighbour.wait()
        shutil.rmtree(directory)
