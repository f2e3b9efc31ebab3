"""
The parent's side of the local stand-in for the Python bridges: start it, stop it.

Needs only the standard library; what the stand-in itself needs is imported in its own process.
"""

from __future__ import annotations

import importlib.util
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.local.process import spawn, stop

STOP_PATIENCE_S = 2
"""The stand-in ends on SIGTERM within milliseconds."""


class LocalBridges:
    """
    The stand-in as a child of this process.

    *threads* None or 0 leaves one core to others; *log_path* gets the child's few lines, this process's stderr without.
    """

    def __init__(
        self,
        model_path: Path,
        model_name: str,
        *,
        context_tokens: int = 4096,
        threads: int | None = None,
        log_path: Path | None = None,
    ) -> None:
        self._model_path = model_path
        self._model_name = model_name
        self._context_tokens = context_tokens
        self._threads = threads or 0
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

    def start(self) -> str:
        """
        Start the child and return its URL, without waiting for it or its model.

        The socket listens before the child is born: who connects early waits for an answer, and is not refused. Starts
        it again, at the same URL, when it has ended. Raises ``StartError``.
        """
        if self._process is not None and self._process.poll() is None:
            return self.url
        check_machine()
        arguments: list[str | Path] = [sys.executable, "-m", "jarvis_core.local.bridges", "--fd", "0"]
        arguments += ["--model", self._model_path, "--model-name", self._model_name]
        arguments += ["--context", str(self._context_tokens), "--threads", str(self._threads)]
        try:
            with socket.create_server(("127.0.0.1", self._port), backlog=128) as listener:
                self._port = listener.getsockname()[1]
                if self._log_path is None:
                    self._process = self._spawn(arguments, listener, sys.__stderr__.fileno() if sys.__stderr__ else 2)
                else:
                    with self._log_path.open("ab") as log:
                        self._process = self._spawn(arguments, listener, log.fileno())
        except (OSError, subprocess.SubprocessError) as exc:
            raise StartError(f"the local language model cannot be started: {exc}") from exc
        return self.url

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            stop(self._process, first=signal.SIGTERM, patience_s=STOP_PATIENCE_S)
            self._process = None

    def _spawn(self, arguments: list[str | Path], listener: socket.socket, output: int) -> subprocess.Popen[bytes]:
        return spawn(arguments, death_signal=signal.SIGTERM, source=listener.fileno(), output=output)


def check_machine() -> None:
    """Raise ``StartError`` when the engine is not installed, or would be ended by its first instruction."""
    instead = "or set LLM_URL or PYTHON_BRIDGES_URL to a model that runs elsewhere"
    for module in ("xllamacpp", "aiohttp"):
        if importlib.util.find_spec(module) is None:
            raise StartError(f"the local language model needs pip install 'jarvis-core[local]', {instead}")
    # The wheel's code has AVX2 in it and does not look before it uses it.
    if platform.machine() == "x86_64" and not has_avx2(Path("/proc/cpuinfo")):
        raise StartError(f"the local language model needs a processor with AVX2: use another machine, {instead}")


def has_avx2(cpuinfo: Path) -> bool:
    """Whether the processor that *cpuinfo* describes has AVX2; True when it does not tell."""
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return True
    return "avx2" in flags.split()
