"""
Starts and stops the local stand-in for the Python bridges, from the parent's side.

Needs only the standard library; the stand-in's libraries are imported in its own process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.processes.child import spawn, stop
from jarvis_core.processes.confinement import ENGINES_ID
from jarvis_core.processes.environment import for_children

STOP_PATIENCE_S = 2
"""The stand-in ends on SIGTERM within milliseconds."""
OPENMP = "libgomp.so.1"
"""The shared library that the model's wheel needs and a small system lacks."""


class LocalBridges:
    """
    The stand-in as a child of this process, with the engines that it is given a model for.

    *threads* None or 0 leaves one core to others; with *preload* the speech engines are loaded before they are asked; with a *secret* it answers who has a token signed with that; *log_path* gets the child's few lines, this process's stderr without.
    """

    name = "local bridges"

    def __init__(
        self,
        model_path: Path | None = None,
        model_name: str = "",
        *,
        context_tokens: int = 4096,
        threads: int | None = None,
        ears_path: Path | None = None,
        mouth_path: Path | None = None,
        turn_end_path: Path | None = None,
        embeddings: bool = False,
        audio_engine: bool = False,
        preload: bool = False,
        secret: str | None = None,
        log_path: Path | None = None,
    ) -> None:
        self._arguments: list[str | Path] = []
        if model_path is not None:
            self._arguments += ["--model", model_path, "--model-name", model_name]
            self._arguments += ["--context", str(context_tokens), "--threads", str(threads or 0)]
        if ears_path is not None:
            self._arguments += ["--stt", ears_path]
        if mouth_path is not None:
            self._arguments += ["--tts", mouth_path]
        if turn_end_path is not None:
            self._arguments += ["--turn-end", turn_end_path]
        if embeddings:
            self._arguments += ["--embeddings"]
        if audio_engine:
            self._arguments += ["--audio"]
        if preload:
            self._arguments += ["--preload"]
        self._needs_model = model_path is not None
        self._writes = mouth_path is not None
        self._scratch: Path | None = None
        self._secret = secret
        self._log_path = log_path
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The child that was started last, which may have ended; None before `start` and after `stop`."""
        return self._process

    @property
    def url(self) -> str:
        """Where the stand-in listens, the same after each `start`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def audio_url(self) -> str:
        """Where it stands in for the audio engine."""
        return f"{self.url}/audio"

    def start(self) -> str:
        """
        Start the child and return its URL, without waiting for it or its model.

        The socket listens before the child starts, so that an early connection waits and is not refused. Starts it
        again, at the same URL, when it has ended. Raises ``StartError``.
        """
        if self._process is not None and self._process.poll() is None:
            return self.url
        if self._needs_model:
            check_machine()
        arguments: list[str | Path] = [sys.executable, "-m", "jarvis_core.local.bridges", "--fd", "0"]
        arguments += self._arguments
        try:
            with socket.create_server(("127.0.0.1", self._port), backlog=128) as listener:
                self._port = listener.getsockname()[1]
                if self._log_path is None:
                    self._process = self._spawn(arguments, listener, sys.__stderr__.fileno() if sys.__stderr__ else 2)
                else:
                    with self._log_path.open("ab") as log:
                        self._process = self._spawn(arguments, listener, log.fileno())
        except (OSError, subprocess.SubprocessError) as exc:
            raise StartError(f"the local stand-in cannot be started: {exc}") from exc
        return self.url

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            stop(self._process, first=signal.SIGTERM, patience_s=STOP_PATIENCE_S)
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _spawn(self, arguments: list[str | Path], listener: socket.socket, output: int) -> subprocess.Popen[bytes]:
        environment = for_children()
        if self._writes:
            environment["TMPDIR"] = str(self._make_scratch())
        inherited: list[int] = []
        try:
            if self._secret is not None:
                # Others of this machine see a process' arguments, and its user its environment.
                inherited.append(os.memfd_create("secret"))
                os.write(inherited[0], self._secret.encode())
                os.lseek(inherited[0], 0, os.SEEK_SET)
                arguments = [*arguments, "--secret-fd", str(inherited[0])]
            return spawn(
                arguments,
                death_signal=signal.SIGTERM,
                environment=environment,
                source=listener.fileno(),
                output=output,
                inherited=inherited,
                threaded=self._process is not None,
            )
        finally:
            for descriptor in inherited:
                os.close(descriptor)

    def _make_scratch(self) -> Path:
        """Return the one directory that the child may write to, empty where it was not there."""
        if self._scratch is None or not self._scratch.exists():
            self._scratch = Path(tempfile.mkdtemp(prefix="jarvis-engines-"))
            if os.geteuid() == 0:
                # The child's, also where it has to stay root and has no right to what is not root's; this process may
                # have no right to give anything away, and then the child cannot become anybody else either.
                with contextlib.suppress(OSError):
                    os.chown(self._scratch, ENGINES_ID, 0)
                self._scratch.chmod(0o770)
        return self._scratch


def lacking_packages(*modules: str) -> str:
    """Return how to get *modules*, which are not imported; empty when all are installed."""
    if all(importlib.util.find_spec(module) is not None for module in modules):
        return ""
    return "pip install 'jarvis-core[local]'"


def check_machine() -> None:
    """Raise ``StartError`` when the engine is not installed, or cannot run here."""
    instead = "or set LLM_URL or PYTHON_BRIDGES_URL to a model that runs elsewhere"
    if remedy := lacking_packages("xllamacpp", "aiohttp"):
        raise StartError(f"the local language model needs {remedy}, {instead}")
    # The wheel's code has AVX2 in it and does not look before it uses it.
    if platform.machine() == "x86_64" and not has_avx2(Path("/proc/cpuinfo")):
        raise StartError(f"the local language model needs a processor with AVX2: use another machine, {instead}")
    try:
        ctypes.CDLL(OPENMP)
    except OSError as exc:
        raise StartError(
            f"the local language model needs {OPENMP}, on Debian and Ubuntu from the package libgomp1: install it, {instead}"
        ) from exc


def has_avx2(cpuinfo: Path) -> bool:
    """Whether the processor that *cpuinfo* describes has AVX2; True when it does not tell."""
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return True
    return "avx2" in flags.split()
