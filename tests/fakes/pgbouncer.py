"""A real PgBouncer in front of a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jarvis_core.processes.child import spawn, stop
from tests.system.server import free_port

START_LIMIT_S = 10.0
DEBIANS = "/usr/sbin"
"""Where Debian has it, which is not in everybody's PATH."""


def find_pgbouncer() -> str:
    """Return the program; without one the test is skipped, or fails where everything has to be tested (``CI=true``)."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:{DEBIANS}")
    if program is None:
        missing = "there is no PgBouncer here (apt-get install pgbouncer)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return program


class PgBouncer:
    """
    Lends *pool_size* sessions of the server behind *conninfo* to its clients, by *mode* for a transaction or a session.

    *settings* are more of its own (https://www.pgbouncer.org/config.html).
    """

    def __init__(
        self,
        conninfo: str,
        directory: Path,
        *,
        mode: str,
        pool_size: int = 3,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._program = find_pgbouncer()
        self._target = conninfo_to_dict(conninfo)
        self._directory = directory
        self.port = free_port()
        self.database = str(self._target["dbname"])
        self._settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": "anybody",
            "pool_mode": mode,
            "default_pool_size": str(pool_size),
            "max_client_conn": "500",
            "server_login_retry": "1",
            "stats_period": "3600",
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The same database through it."""
        return f"postgresql://anybody@127.0.0.1:{self.port}/{self.database}"

    @property
    def log(self) -> str:
        """All that it has said."""
        return (self._directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        target = " ".join(f"{key}={self._target[key]}" for key in ("host", "port", "user"))
        lines = ["[databases]", f"* = {target}", "[pgbouncer]"]
        lines += [f"{key} = {value}" for key, value in self._settings.items()]
        file = self._directory / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n")
        # It does not run as root, and the server's socket is its user's.
        owner = Path(str(self._target["host"])).stat() if os.geteuid() == 0 else None
        with (self._directory / "log").open("ab") as log:
            self._process = spawn(
                [self._program, file],
                death_signal=signal.SIGKILL,
                user=None if owner is None else (owner.st_uid, owner.st_gid),
                output=log,
                threaded=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self.ask("show version")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PgBouncer does not answer:\n{self.log}") from None
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """End it at once, and every connection through it; the server's sessions notice when they look."""
        if self._process is not None:
            stop(self._process, first=signal.SIGKILL, patience_s=5)
            self._process = None

    def ask(self, command: str) -> list[tuple[object, ...]]:
        """Give a command to its console, and return the rows, if any."""
        console = make_conninfo(host="127.0.0.1", port=self.port, user="anybody", dbname="pgbouncer", sslmode="prefer")
        # The console knows the simple protocol only, and of libpq's greeting no more than it has to.
        with contextlib.closing(psycopg.connect(console, autocommit=True, cursor_factory=psycopg.ClientCursor)) as it:
            cursor = it.execute(command.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def pgbouncer(
    conninfo: str, *, mode: str, pool_size: int = 3, settings: Mapping[str, str] | None = None
) -> Iterator[PgBouncer]:
    """Run one in front of the database behind *conninfo*."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-pgbouncer-", dir="/tmp"))
    directory.chmod(0o711)
    pooler = PgBouncer(conninfo, directory, mode=mode, pool_size=pool_size, settings=settings)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.kill()
        shutil.rmtree(directory)
