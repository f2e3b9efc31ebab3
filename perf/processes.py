"""Servers under measurement: started on loopback, watched through /proc, stopped at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


class Process:
    """A server that runs, and what the kernel knows of it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.pid = process.pid
        self.port = port

    def cpu_s(self) -> float:
        """Return the CPU seconds that all its threads have used."""
        tasks = Path(f"/proc/{self.pid}/task")
        total_ns = 0
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                total_ns += int((task / "schedstat").read_text().split()[0])
        return total_ns / 1e9

    def pss_mb(self) -> float:
        """Return its proportional set size in MB: shared pages count by the share."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1_024
        raise RuntimeError("no Pss in smaps_rollup")

    def uss_mb(self) -> float:
        """Return what it alone has, in MB."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in text if line.startswith("Private_")) / 1_024


def free_port() -> int:
    """Return a port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(
    arguments: list[str], *, port: int, ready: str, environment: dict[str, str] | None = None
) -> Iterator[Process]:
    """Start ``python ARGUMENTS``, wait until *ready* (a path) answers, and stop it with SIGTERM at the end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if "PERF_DEBUG" not in os.environ else None,
    )
    try:
        await_ready(f"http://127.0.0.1:{port}{ready}", process)
        yield Process(process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Wait until *url* answers with 200; raises ``RuntimeError`` when the process ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.005)
    raise RuntimeError(f"{url} did not answer within {timeout_s:g} s")


@contextlib.contextmanager
def core(data_dir: Path, bridges_url: str, **environment: str) -> Iterator[Process]:
    """Start the core over *data_dir* and the bridges at *bridges_url*."""
    port = free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "DATA_DIR": str(data_dir),
        "PYTHON_BRIDGES_URL": bridges_url,
        "LOG_LEVEL": "error",
        **environment,
    }
    with server(["-m", "jarvis_core"], port=port, ready="/ready", environment=settings) as process:
        yield process


@contextlib.contextmanager
def bridges(**mode: object) -> Iterator[Process]:
    """Start the fake bridges in a process of their own."""
    port = free_port()
    arguments = ["-m", "tests.fakes.python_bridges", "--port", str(port), "--mode", json.dumps(mode)]
    with server(arguments, port=port, ready="/_state") as process:
        yield process


@contextlib.contextmanager
def floor() -> Iterator[Process]:
    """Start the bare ASGI handler."""
    port = free_port()
    with server(["-m", "perf.floor", str(port)], port=port, ready="/") as process:
        yield process
