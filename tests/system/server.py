"""One ``python -m jarvis_core`` as a child process: start it, ask it, stop it, kill it, and see what it leaves behind."""

from __future__ import annotations

import http.client
import itertools
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

REPOSITORY = Path(__file__).parents[2]
START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
POLL_INTERVAL_S = 0.01

TLS_FILES = REPOSITORY / "tests" / "fixtures" / "tls"
TLS = {"TLS_CERT_PATH": str(TLS_FILES / "own.pem"), "TLS_KEY_PATH": str(TLS_FILES / "own.key")}
"""What a server speaks TLS with."""

USER_PORTS = (20_000, 30_000)
"""Below the range from which the kernel takes ports for outgoing connections, so that none of those is in the way."""

_numbers = itertools.count(1)


class Process(NamedTuple):
    """A process, told from later ones with the same pid by when it was started."""

    pid: int
    started: int
    """In clock ticks since the machine's start."""

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and only waits for its parent does not."""
        return _started(self.pid) == self.started


class Reply(NamedTuple):
    """An HTTP answer."""

    status: int
    body: Any
    """Decoded JSON."""


class Server:
    """
    The product as its user runs it, on a free port of 127.0.0.1.

    *environment* is all that it gets besides PATH, HOME, HOST, PORT and SPEECH_CACHE_BYTES. All methods block; use ``asyncio.to_thread``
    where the test's own loop has to answer the server meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        arguments: Sequence[str] = (),
        interpreter: Sequence[str] = (sys.executable,),
        user: int | None = None,
    ) -> None:
        self.port = free_port()
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(directory),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            # Tests say the same words again and again, to neighbours that fail in ever other ways.
            "SPEECH_CACHE_BYTES": "0",
            **environment,
        }
        self._arguments = [*interpreter, "-m", "jarvis_core", *arguments]
        self._user = user
        # Not by the port, which another server in the same directory may have had.
        number = next(_numbers)
        self._stdout = directory / f"stdout-{number}"
        self._stderr = directory / f"stderr-{number}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"{'https' if self.speaks_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def speaks_tls(self) -> bool:
        """Whether it was given a certificate."""
        return "TLS_CERT_PATH" in self.environment

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def stdout(self) -> str:
        """All that it has printed since it was made, over all its starts."""
        return self._stdout.read_text(errors="replace") if self._stdout.exists() else ""

    @property
    def stderr(self) -> str:
        """The same of its log and its complaints."""
        return self._stderr.read_text(errors="replace")

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        with self._stdout.open("ab") as stdout, self._stderr.open("ab") as stderr:
            self._process = self._spawn(stdout, stderr)

    def start(self) -> None:
        """Start the process and wait until ``/ready`` says so; raises ``AssertionError`` with its output."""
        self.launch()
        self.wait_until(self._ready)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until *ready* says so, for a start's time at most; raises ``AssertionError`` with its output."""
        deadline = time.monotonic() + START_LIMIT_S
        while not ready():
            if not self.running:
                raise AssertionError(f"the server ended with {self.wait()}:\n{self.stdout}\n{self.stderr}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the server is not ready after {START_LIMIT_S} s:\n{self.stdout}\n{self.stderr}")
            time.sleep(POLL_INTERVAL_S)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Wait for the end and return the exit code; a signal's is negative. Kills what takes longer."""
        assert self._process is not None
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end within {limit_s} s:\n{self.stderr}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """Send SIGTERM, wait for the end and return the exit code; does nothing when it has ended."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end; does nothing when it has ended."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait()

    def family(self) -> set[Process]:
        """Return its process and all that descend from it."""
        return family_of(self.pid)

    def resident_bytes(self) -> int:
        """Return how much memory its first process has in use."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(self, method: str, path: str, body: object = None, *, limit_s: float = 10.0) -> Reply:
        """Send one request and return its JSON answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        if self.speaks_tls:
            context = ssl.create_default_context(cafile=self.environment["TLS_CERT_PATH"])
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=limit_s, context=context)
        try:
            content = None if body is None else msgspec.json.encode(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            answer = connection.getresponse()
            return Reply(answer.status, msgspec.json.decode(answer.read()))
        finally:
            connection.close()

    def _ready(self) -> bool:
        try:
            return self.ask("GET", "/ready", limit_s=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _spawn(self, stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._arguments,
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on."""
    dice = random.Random()
    while True:
        port = dice.randrange(*USER_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def family_of(pid: int) -> set[Process]:
    """Return the process *pid* and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = set()
    open_ends = [pid]
    while open_ends:
        current = open_ends.pop()
        open_ends += parents.get(current, [])
        started = _started(current)
        if started is not None:
            found.add(Process(current, started))
    return found


def processes_naming(path: Path) -> set[Process]:
    """Return the processes that have *path* in their command lines."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                named = os.fsencode(path) in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            started = _started(int(entry.name))
            if named and started is not None:
                found.add(Process(int(entry.name), started))
    return found


def wait_gone(processes: Iterable[Process], limit_s: float = 10.0) -> set[Process]:
    """Wait until all have ended; return those that have not within *limit_s* seconds."""
    deadline = time.monotonic() + limit_s
    while left := {process for process in processes if process.alive}:
        if time.monotonic() > deadline:
            return left
        time.sleep(POLL_INTERVAL_S)
    return set()


def _fields(pid: int) -> list[bytes]:
    """Return the fields of ``/proc/PID/stat`` from the state (the third) on; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(b")")[2].split()


def _started(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None
