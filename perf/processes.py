"""Servers under measurement: started on loopback, watched through /proc, stopped at the end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from jarvis_core.processes.child import spawn, stop

ROOT = Path(__file__).parent.parent
CLOCK_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""Of the environment; settings of the assistant that are set here are not measured."""
STOP_PATIENCE_S = 30.0


class Process:
    """A server that runs, and what the kernel knows of it and of the processes that it started."""

    def __init__(self, pid: int, port: int = 0) -> None:
        self.pid = pid
        self.port = port

    def cpu_s(self) -> float:
        """Return the CPU seconds that all its threads have used, and its children's."""
        return sum(map(_thread_cpu_s, self.pids()), _ended_children_cpu_s(self.pid))

    def own_cpu_s(self) -> float:
        """Return the CPU seconds that its own threads have used."""
        return _thread_cpu_s(self.pid)

    def pids(self) -> list[int]:
        """Return its pid and those of its descendants."""
        found = [self.pid]
        for pid in found:
            for task in _tasks(pid):
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
        return found

    def pss_mb(self) -> float:
        """Return its proportional set size in MB: shared pages count by the share."""
        return _smaps_mb(self.pid, "Pss:")

    def all_pss_mb(self) -> float:
        """Return the proportional set size in MB of it and its descendants."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += _smaps_mb(pid, "Pss:")
        return total

    def rss_mb(self) -> float:
        """Return its resident set size in MB: shared pages count in full."""
        return _smaps_mb(self.pid, "Rss:")

    def uss_mb(self) -> float:
        """Return what it alone has, in MB."""
        return _smaps_mb(self.pid, "Private_")


def base_tree(base: str) -> Path:
    """Return the directory of an earlier build: a work tree, or of a commit its sources, which are put into the cache."""
    if Path(base).is_dir():
        return Path(base).absolute()
    directory = ROOT / ".cache" / "perf" / "base" / base
    if not directory.exists():
        files = subprocess.run(["git", "archive", base, "jarvis_core"], cwd=ROOT, capture_output=True, check=False)
        if files.returncode:
            raise RuntimeError(f"PERF_BASE={base}: {files.stderr.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=io.BytesIO(files.stdout)) as archive:
            archive.extractall(directory, filter="data")
    return directory


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


def _thread_cpu_s(pid: int) -> float:
    """Return what the kernel charged to the threads of *pid*, to the nanosecond where it was at its last switch."""
    total_ns = 0
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def _ended_children_cpu_s(pid: int) -> float:
    """Return the CPU seconds of children of *pid* that have ended, in ticks (fields 16 and 17 of proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return CLOCK_TICKS_S * (int(fields[13]) + int(fields[14]))


def _smaps_mb(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1_024


def free_port() -> int:
    """Return a port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(
    arguments: list[str],
    *,
    port: int,
    ready: str,
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
    tree: Path = ROOT,
) -> Iterator[Process]:
    """Start ``python ARGUMENTS`` with the sources in *tree*, wait until *ready* (a path) answers, and stop it with SIGTERM at the end."""
    own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with tempfile.TemporaryFile() as log:
        process = spawn(
            [python, *arguments],
            death_signal=signal.SIGTERM,
            environment={**own, **(environment or {})},
            directory=tree,
            output=log,
        )
        try:
            await_ready(f"http://127.0.0.1:{port}{ready}", process)
            yield Process(process.pid, port)
        except RuntimeError as exc:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            if said:
                exc.add_note(said[-2_000:])
            raise
        finally:
            stop(process, first=signal.SIGTERM, patience_s=STOP_PATIENCE_S)


def await_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Wait until *url* answers with 200; raises ``RuntimeError`` when the process ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with exit code {process.returncode} before it was ready")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.005)
    raise RuntimeError(f"{url} did not answer within {timeout_s:g} s")


@contextlib.contextmanager
def core(data_dir: Path, bridges_url: str = "", tree: Path = ROOT, /, **environment: str) -> Iterator[Process]:
    """Start the core in *tree* over *data_dir*, with the bridges at *bridges_url* or what else *environment* names."""
    port = free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "DATA_DIR": str(data_dir),
        "LOG_LEVEL": "error",
        **({"PYTHON_BRIDGES_URL": bridges_url} if bridges_url else {"LOCAL_SPEECH": "false"}),
        **environment,
    }
    with server(["-m", "jarvis_core"], port=port, ready="/ready", environment=settings, tree=tree) as process:
        yield process


@contextlib.contextmanager
def bridges(**mode: object) -> Iterator[Process]:
    """Start the fake bridges in a process of their own."""
    port = free_port()
    arguments = ["-m", "tests.fakes.python_bridges", "--port", str(port), "--mode", json.dumps(mode)]
    with server(arguments, port=port, ready="/_state") as process:
        yield process
