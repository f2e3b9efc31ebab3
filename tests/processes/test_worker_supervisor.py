"""The supervisor of workers, with children that do as the test says."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jarvis_core.errors import StartError
from jarvis_core.processes import worker_supervisor as supervisor_module
from jarvis_core.processes.worker_supervisor import WorkerSupervisor

pytestmark = pytest.mark.every_python

READY = r"os.write(control, b'ready\n'); os.write(told, b'.'); "
OBEYS = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); "
SLEEPS = "time.sleep(60)"
SERVES = OBEYS + READY + SLEEPS
"""What a worker does that is well."""


class Children:
    """Starts something else in the place of workers."""

    def __init__(self, *scripts: str) -> None:
        self.scripts = list(scripts)
        """Of one start after another; the last one stays."""
        self.started: list[subprocess.Popen[bytes]] = []
        self._reader, self._writer = os.pipe()
        self._ready = 0

    def spawn(self, _number: int, control: socket.socket) -> subprocess.Popen[bytes]:
        """Start the next one."""
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if script == "cannot":
            raise OSError("no room")
        code = f"import os, signal, time; control, told = {control.fileno()}, {self._writer}; {script}"
        process = subprocess.Popen([sys.executable, "-S", "-c", code], pass_fds=[control.fileno(), self._writer])
        self.started.append(process)
        return process

    def wait_ready(self, count: int) -> None:
        """Wait until so many children have said that they serve."""
        while self._ready < count:
            assert select.select([self._reader], [], [], 10)[0]
            self._ready += len(os.read(self._reader, 100))


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do *work* in a thread, then ask this process to stop."""

    def run() -> None:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    # A supervisor that ended too early is to fail the test, and not to end them all.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until *what* is so."""
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ready_once_all_are() -> None:
    """It is told once that all serve, also when workers die after that; SIGTERM ends them, and the exit code is 0."""
    children = Children(SERVES)
    ready: list[int] = []
    supervisor = WorkerSupervisor(
        children.spawn, 3, drain_timeout_s=5, on_ready=lambda: ready.append(len(children.started))
    )

    def work() -> None:
        wait_for(lambda: bool(ready))
        children.started[1].kill()
        children.wait_ready(4)

    with meanwhile(work):
        assert supervisor.run() == 0
    assert ready == [3]
    assert [child.returncode for child in children.started] == [0, -9, 0, 0]


def test_start_that_fails() -> None:
    """A worker that cannot start is told with its reason, and no other one is left."""
    children = Children(SERVES, r"os.write(control, b'failed for a reason\n'); os._exit(1)")
    with pytest.raises(StartError, match=r"^for a reason$"):
        WorkerSupervisor(children.spawn, 2, drain_timeout_s=5, on_ready=pytest.fail).run()
    assert all(child.poll() is not None for child in children.started)
    with pytest.raises(StartError, match="ended with 7"):
        WorkerSupervisor(Children("os._exit(7)").spawn, 1, drain_timeout_s=5, on_ready=pytest.fail).run()
    with pytest.raises(StartError, match="no room"):
        WorkerSupervisor(Children("cannot").spawn, 1, drain_timeout_s=5, on_ready=pytest.fail).run()


def test_backoff_of_a_worker_that_dies_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that had served is followed by another one whatever that takes, ever more slowly; also by none at times."""
    monkeypatch.setattr(supervisor_module, "RESTART_DELAYS_S", (0.0, 0.1, 0.2))
    children = Children(SERVES, "os._exit(1)", "cannot", "os._exit(1)", "os._exit(1)", SERVES)
    ready: list[float] = []
    supervisor = WorkerSupervisor(children.spawn, 1, drain_timeout_s=5, on_ready=lambda: ready.append(time.monotonic()))

    def work() -> None:
        wait_for(lambda: bool(ready))
        children.started[0].kill()
        wait_for(lambda: len(children.started) == 5)
        assert time.monotonic() - ready[0] > 0.5
        time.sleep(0.2)

    with meanwhile(work):
        assert supervisor.run() == 0


def test_worker_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do not end in time are killed, at once after a second signal."""
    children = Children("signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY + SLEEPS)
    ready: list[bool] = []
    supervisor = WorkerSupervisor(children.spawn, 1, drain_timeout_s=60, on_ready=lambda: ready.append(True))
    monkeypatch.setattr(supervisor_module, "LINGER_S", 0.2)

    def work() -> None:
        wait_for(lambda: bool(ready))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        assert children.started[0].poll() is None

    with meanwhile(work):
        assert supervisor.run() == 0
    assert children.started[0].returncode == -signal.SIGKILL


def test_signal_before_all_serve() -> None:
    """A signal that ends the start is told by the exit code."""
    children = Children(OBEYS + SLEEPS)
    with meanwhile(lambda: time.sleep(0.3)):
        assert WorkerSupervisor(children.spawn, 2, drain_timeout_s=5, on_ready=pytest.fail).run() == 130


def test_worker_that_stands_still_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose pulse stands still is replaced, and one that is still starting is left alone."""
    monkeypatch.setattr(supervisor_module, "PULSE_INTERVAL_S", 0.02)
    monkeypatch.setattr(supervisor_module, "STILL_CHECKS", 5)
    children = Children(SERVES, SERVES, OBEYS + "time.sleep(0.5); " + SERVES)
    ready: list[bool] = []
    stopped = threading.Event()
    supervisor = WorkerSupervisor(
        children.spawn,
        2,
        drain_timeout_s=5,
        on_ready=lambda: ready.append(True),
        pulse=lambda number: 1.0 if number == 0 and not stopped.is_set() else time.monotonic(),
    )

    def work() -> None:
        wait_for(lambda: len(children.started) == 3)
        stopped.set()
        time.sleep(0.4)

    with meanwhile(work):
        assert supervisor.run() == 0
    assert len(children.started) == 3
    assert children.started[0].returncode == -signal.SIGKILL


def test_signal_while_some_serve() -> None:
    """A stop of a server that already answers is a good end, whatever its other workers were doing."""
    children = Children(SERVES, OBEYS + SLEEPS)
    with meanwhile(lambda: children.wait_ready(1)):
        assert WorkerSupervisor(children.spawn, 2, drain_timeout_s=5, on_ready=pytest.fail).run() == 0
