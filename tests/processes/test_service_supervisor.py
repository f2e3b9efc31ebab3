"""What was started beside the assistant is started again when it dies, sooner or later, and ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jarvis_core.errors import StartError
from jarvis_core.local.launcher import LocalBridges
from jarvis_core.processes import service_supervisor as supervisor_module
from jarvis_core.processes.child import Child, spawn
from jarvis_core.processes.service_supervisor import ServiceSupervisor

pytestmark = pytest.mark.every_python

REPOSITORY = Path(__file__).parents[2]
LATEST_S = 20.0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LATEST_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def supervised(*children: Child) -> Iterator[ServiceSupervisor]:
    """Keep children running for the block."""
    supervisor = ServiceSupervisor(children)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


class Sleeper:
    """A child that does nothing; its starts may fail."""

    name = "sleeper"

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.starts: list[float] = []
        self.failures = 0
        """So many of the next starts fail."""

    def start(self) -> str:
        """Start, or fail."""
        if self.failures:
            self.failures -= 1
            self.starts.append(time.monotonic())
            raise StartError("it cannot")
        self.process = spawn(["/bin/sleep", "60"], death_signal=signal.SIGKILL, threaded=self.process is not None)
        self.starts.append(time.monotonic())
        return ""

    def kill(self) -> None:
        """Kill it, and leave it to others to see that."""
        assert self.process is not None
        self.process.kill()

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self.kill()
        assert self.process is not None
        self.process.wait()


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    """Give a child that has been started."""
    sleeper = Sleeper()
    sleeper.start()
    yield sleeper
    sleeper.end()


def healthy(url: str) -> bool:
    """Whether the bridges answer."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:  # noqa: S310 - our own
            return int(answer.status) == 200
    except OSError:
        return False


def test_bridges_are_started_again() -> None:
    """Bridges that are killed answer again at the same address."""
    bridges = LocalBridges()
    url = bridges.start()
    try:
        with supervised(bridges):
            assert bridges.process is not None
            first = bridges.process.pid
            wait_for(lambda: healthy(url))
            bridges.process.kill()
            wait_for(lambda: bridges.process is not None and bridges.process.pid != first)
            wait_for(lambda: healthy(url))
            assert bridges.url == url
    finally:
        bridges.stop()


def test_who_dies_young_waits_longer(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that dies again and again, or does not start, is left alone longer each time; others do not wait for it."""
    monkeypatch.setattr(supervisor_module, "RESTART_DELAYS_S", (0.0, 0.2, 0.4, 60.0))
    other = Sleeper()
    other.start()
    with supervised(sleeper, other):
        sleeper.failures = 1
        sleeper.kill()
        wait_for(lambda: len(sleeper.starts) == 3)
        sleeper.kill()
        wait_for(lambda: len(sleeper.starts) == 4)
        _, first, second, third = sleeper.starts
        assert second - first >= 0.2
        assert third - second >= 0.4
        sleeper.kill()
        time.sleep(0.3)
        assert len(sleeper.starts) == 4
        other.kill()
        wait_for(lambda: len(other.starts) == 2)
    other.end()


def test_nothing_is_started_after_the_stop(sleeper: Sleeper) -> None:
    """Once it is stopped a supervisor lets go, and what it started lives until its owner ends it."""
    with supervised(sleeper):
        sleeper.kill()
        wait_for(lambda: len(sleeper.starts) == 2)
    assert sleeper.process is not None
    assert sleeper.process.poll() is None
    sleeper.kill()
    time.sleep(0.2)
    assert len(sleeper.starts) == 2


PARENT = """
import signal, sys, threading, time
from jarvis_core.processes.child import spawn
from jarvis_core.processes.service_supervisor import ServiceSupervisor

class Child:
    name = "child"
    process = None
    def start(self):
        self.process = spawn(["/bin/sleep", "60"], death_signal=signal.SIGTERM, threaded=self.process is not None)
        print(self.process.pid, flush=True)
        return ""

child = Child()
child.start()
ServiceSupervisor([child]).start()
time.sleep(60)
"""


def pid_from(lines: Iterable[str]) -> int:
    """Return the next pid that is told among lines of the log."""
    return next(int(line) for line in lines if line.strip().isdigit())


def test_what_was_started_again_ends_with_the_parent() -> None:
    """A child that was started again ends when its parent is killed, as the first one does."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
    )
    try:
        assert parent.stdout is not None
        first = pid_from(parent.stdout)
        os.kill(first, signal.SIGKILL)
        second = pid_from(parent.stdout)
        # The program has replaced what came before it.
        wait_for(lambda: b"/bin/sleep" in Path(f"/proc/{second}/cmdline").read_bytes().split(b"\0")[:1])
        assert not gone(second)
    finally:
        parent.kill()
        parent.communicate()
    wait_for(lambda: gone(second))


def test_a_program_that_is_not_there() -> None:
    """What a threaded parent cannot start ends as a shell would have it end, and says why."""
    process = spawn(["/nowhere/program"], death_signal=signal.SIGKILL, threaded=True, output=subprocess.PIPE)
    output, _ = process.communicate(timeout=LATEST_S)
    assert process.returncode == 126
    assert output == b"/nowhere/program: No such file or directory\n"


def test_signals_are_as_they_were() -> None:
    """A program that was started by a threaded parent ignores no signal for it."""
    process = spawn(
        ["/bin/grep", "SigIgn", "/proc/self/status"], death_signal=signal.SIGKILL, threaded=True, output=subprocess.PIPE
    )
    output, _ = process.communicate(timeout=LATEST_S)
    ignored = int(output.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))
