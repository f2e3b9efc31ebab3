"""The server that the clients ask, and its neighbours, each a process of its own; the clients' programs set how these behave."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.system.server import REPOSITORY, Server

API_KEY = "sk-of-the-clients-0123456789"


class House(NamedTuple):
    """What a client's program has to know."""

    url: str
    """Of the server, without a slash at its end."""
    model_url: str
    """Of the fake model server, which ``POST /_control`` controls."""
    bridges_url: str

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables of its process."""
        return {
            "JARVIS_URL": self.url,
            "JARVIS_API_KEY": API_KEY,
            "FAKE_MODEL_URL": self.model_url,
            "FAKE_BRIDGES_URL": self.bridges_url,
        }


@contextmanager
def open_house(directory: Path, conninfo: str, **environment: str) -> Iterator[House]:
    """Run the server on an empty database, with a model that streams and bridges that hear, speak and embed."""
    with (
        _fake("tests.fakes.openai_compatible") as model_url,
        _fake("tests.fakes.python_bridges", {"shape": "ndjson", "transcript": "what was said"}) as bridges_url,
    ):
        server = Server(
            directory,
            {
                "DATABASE_URL": conninfo,
                "PYTHON_BRIDGES_URL": bridges_url,
                "LLM_URL": f"{model_url}/v1",
                "LLM_STALL_TIMEOUT_S": "1",
                "API_KEYS": f"alice:{API_KEY}",
                "BREAKER_OPEN_S": "0.1",
                **environment,
            },
        )
        server.start()
        try:
            yield House(server.url, model_url, bridges_url)
            assert server.stop() == 0
            assert "Traceback" not in server.stderr, server.stderr
        finally:
            server.kill()


@contextmanager
def _fake(module: str, mode: Mapping[str, object] | None = None) -> Iterator[str]:
    """Run a fake; give its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--mode", msgspec.json.encode(mode or {}).decode()],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=10)
