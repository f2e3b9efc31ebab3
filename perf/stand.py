"""
The test stand: the core, what it is compared with, and what they all lean on, each started when it is first asked for.

The core, an earlier build of it and FastAPI's application have a database each on one PostgreSQL server, and all ask one
model.
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jarvis_core.local.postgres import EmbeddedPostgres
from perf.processes import ROOT, Process, base_tree, core, free_port, server

PEERS_PYTHON = ROOT / ".cache" / "perf" / "peers" / "bin" / "python"
GATEWAY_PYTHON = ROOT / ".cache" / "perf" / "gateway" / "bin" / "python"
CONNECTIONS = 20
"""Of each application to the database."""
LITELLM_KEY = "sk-0123456789abcdef0123456789abcdef"
MEMORIES = 200

CORE, FASTAPI, LITELLM, FLOOR = "Jarvis Core", "FastAPI", "LiteLLM", "bare ASGI"
FORWARDED = f"{CORE}, /v1"
"""The core's chat completions: passed on, nothing stored."""
BASE_BUILD = os.environ.get("PERF_BASE", "")
"""An earlier build to compare with, a commit or a work tree; empty for none."""
BASE = f"{CORE} at {BASE_BUILD}"


class Stand:
    """
    Servers by name, one process each.

    A server that cannot be started is remembered with what it said, and ``get`` says it again.
    """

    def __init__(self, directory: Path) -> None:
        # What PostgreSQL runs as has to get here.
        directory.chmod(0o711)
        self.directory = directory
        self.data = directory / "data"
        """The data directory of the scenarios that start cores of their own."""
        self._stack = ExitStack()
        self._running: dict[str, Process] = {}
        self._failed: dict[str, RuntimeError] = {}
        self.warm: set[str] = set()
        """Servers whose pools, plans and caches were filled by some turns."""
        self.postgres_version = ""
        """Empty until the server was started."""
        self._model_query = "deltas=20"

    def close(self) -> None:
        """Stop everything."""
        self._stack.close()

    def get(self, name: str) -> Process:
        """Return a server, started if it is not running; raises ``RuntimeError`` where it does not start."""
        name = CORE if name == FORWARDED else name
        if name in self._failed:
            raise self._failed[name]
        if name not in self._running:
            try:
                self._running[name] = self._stack.enter_context(STARTERS[name](self))
            except RuntimeError as exc:
                self._failed[name] = exc
                raise
        return self._running[name]

    @cached_property
    def _postgres(self) -> tuple[Process, str]:
        server = EmbeddedPostgres(self.directory / "shared", max_connections=4 * CONNECTIONS)
        self._stack.callback(server.stop)
        conninfo = server.start()
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("create database peer")
            connection.execute("create database base")
            self.postgres_version = server.version
        process = server.process
        assert process is not None
        return Process(process.pid), conninfo

    @property
    def postgres(self) -> Process:
        """PostgreSQL with all its processes."""
        return self._postgres[0]

    @property
    def conninfo(self) -> str:
        """Of the core's database."""
        return self._postgres[1]

    @cached_property
    def model(self) -> Process:
        """The model that all ask."""
        port = free_port()
        return self._stack.enter_context(server(["-m", "perf.model", str(port)], port=port, ready="/v1/models"))

    def set_model(self, *, first_s: float = 0.0, deltas: int = 20, delta_s: float = 0.0) -> None:
        """Say how the model is to answer from now on."""
        self._model_query = f"first_s={first_s}&deltas={deltas}&delta_s={delta_s}"
        self._tell_model(self._model_query)

    @contextlib.contextmanager
    def prompt_model(self) -> Iterator[None]:
        """Have the model answer at once meanwhile."""
        self._tell_model("deltas=20")
        try:
            yield
        finally:
            self._tell_model(self._model_query)

    def _tell_model(self, query: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.model.port}/_mode?{query}", timeout=5):
            pass

    @property
    def model_url(self) -> str:
        """The model's base address, with its /v1."""
        return f"http://127.0.0.1:{self.model.port}/v1"

    def core_settings(self) -> dict[str, str]:
        """Return the core's environment on this stand."""
        return {
            "DATABASE_URL": self.conninfo,
            "DB_MAX_CONNECTIONS": str(CONNECTIONS),
            "LLM_URL": self.model_url,
            "LLM_MODEL": "measured",
            "EMBEDDINGS_URL": self.model_url,
        }

    def start_core(self) -> AbstractContextManager[Process]:
        """Return a core on this stand, to be entered."""
        return core(self.directory / "core", **self.core_settings())

    def start_base(self) -> AbstractContextManager[Process]:
        """Return the core as it is at ``BASE_BUILD``, in this one's environment of packages, to be entered."""
        settings = {**self.core_settings(), "DATABASE_URL": make_conninfo(self.conninfo, dbname="base")}
        return core(self.directory / "base", "", base_tree(BASE_BUILD), **settings)

    def start_fastapi(self) -> AbstractContextManager[Process]:
        """Return FastAPI's application on this stand, to be entered."""
        place = conninfo_to_dict(make_conninfo(self.conninfo, dbname="peer"))
        port = free_port()
        arguments = ["-m", "uvicorn", "perf.peers.fastapi_app:app", "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
        return server(
            arguments,
            port=port,
            ready="/health",
            python=_installed(PEERS_PYTHON),
            environment={
                "DATABASE_URL": "postgresql+asyncpg://{user}@/{dbname}?host={host}&port={port}".format_map(place),
                "POOL_SIZE": str(CONNECTIONS),
                "MODEL_URL": self.model_url,
            },
        )

    def start_litellm(self) -> AbstractContextManager[Process]:
        """Return LiteLLM's proxy before the same model, to be entered."""
        port = free_port()
        arguments = ["-c", "from litellm import run_server; run_server()", "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--config", str(ROOT / "perf" / "peers" / "litellm.yaml")]
        return server(
            arguments,
            port=port,
            ready="/health/liveliness",
            python=_installed(GATEWAY_PYTHON),
            environment={
                "MODEL_URL": self.model_url,
                "LITELLM_MASTER_KEY": LITELLM_KEY,
                # As its documentation wants it in production.
                "LITELLM_MODE": "PRODUCTION",
                "LITELLM_LOG": "ERROR",
                # It would fetch its price list.
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
        )

    def start_floor(self) -> AbstractContextManager[Process]:
        """Return the bare ASGI handler, to be entered."""
        port = free_port()
        return server(["-m", "perf.peers.floor", str(port)], port=port, ready="/")

    @cached_property
    def conversation(self) -> dict[str, str]:
        """Fill both databases with the same memories and a conversation; returns the conversation's id by server."""
        self.set_model()
        conversations = {}
        for name in (CORE, FASTAPI, *([BASE] if BASE_BUILD else [])):
            with contextlib.suppress(RuntimeError):
                port = self.get(name).port
                for number in range(MEMORIES):
                    content = f"La clé numéro {number} est dans le tiroir {number % 17} du meuble {number % 5}."
                    _post(port, "/api/memory/add", {"content": content, "importance": 0.5})
                asked = {"content": "Où est la clé ?", "use_memory": False}
                answer = _post(port, "/api/chat", asked)
                for _ in range(9):
                    _post(port, "/api/chat", {**asked, "conversation_id": answer["conversation_id"]})
                conversations[name] = str(answer["conversation_id"])
        return conversations


STARTERS: dict[str, Callable[[Stand], AbstractContextManager[Process]]] = {
    CORE: Stand.start_core,
    BASE: Stand.start_base,
    FASTAPI: Stand.start_fastapi,
    LITELLM: Stand.start_litellm,
    FLOOR: Stand.start_floor,
}


def _installed(python: Path) -> str:
    if not os.access(python, os.X_OK):
        raise RuntimeError(f"{python.parent.parent.relative_to(ROOT)} is not there: make perf installs it")
    return str(python)


def _post(port: int, path: str, body: dict[str, object]) -> dict[str, object]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
        told: dict[str, object] = json.load(answer)
    return told
