"""
Runs the embedded PostgreSQL server, where no DATABASE_URL is set.

The process that starts the workers owns the server: every call here blocks, and needs only the standard library. The data
directory has ``postgres/`` (the cluster), ``postgres-run/`` (the socket), ``postgres.log`` and ``lock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from jarvis_core.errors import StartError
from jarvis_core.local.cluster import (
    DATABASE,
    ENVIRONMENT,
    Installation,
    cluster_exists,
    complaint,
    create_cluster,
    end_orphans,
    find_installation,
    first_hidden,
)
from jarvis_core.local.ownership import (
    ROLE,
    ROOT_UID,
    admit_peers,
    check_user,
    cluster_user,
    hand_over,
    user_name,
)
from jarvis_core.processes.child import User, spawn, stop

START_LIMIT_S = 60
"""Bounds a start: 50 ms when warm, but after a crash the server replays its write-ahead log first."""
RECOVERY_LIMIT_S = 600
"""Bounds a restart: a server that is stopped during the replay would replay its log again from the start."""
STOP_PATIENCE_S = 20
"""Bounds a fast shutdown, which ends sessions at once and then writes its buffers to the disk."""
PREVIOUS_SERVER_LIMIT_S = 10
"""Bounds the end of a previous server: milliseconds; PostgreSQL kills its own remaining processes after 5 s."""
POLL_INTERVAL_S = 0.005

SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_LIMIT_BYTES = 107
"""``sun_path`` of unix(7), without the null byte at its end."""
TEMPORARY_PREFIX = "jarvis-postgres-"

LOG_LIMIT_BYTES = 10 << 20
SPARE_CONNECTIONS = 3
"""Connections beyond the workers': for psql, a backup, a migration."""

SETTINGS = {
    "port": "5432",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "huge_pages": "off",
    "max_worker_processes": "2",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "1",
    "max_logical_replication_workers": "0",
    "superuser_reserved_connections": "0",
    "autovacuum": "on",
    "autovacuum_max_workers": "1",
    "jit": "off",
    # Lose nothing, but keep nothing for replicas.
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    # Keep users' words out of the log: no statements, no details with the values of keys.
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
BUFFERS_MB = (32, 256)
BUFFERS_SHARE = 1 / 16
"""Share of the data's size; touched pages stay in memory, about 10 MB when idle. Among a million memories a search took
14 ms with 32 MB and 8 ms with 256 (perf/memory.py)."""

SETTINGS_SINCE_18 = {"io_method": "sync", "autovacuum_worker_slots": "1"}
"""Saves three I/O processes and 16 slots."""


class EmbeddedPostgres:
    """
    Runs one PostgreSQL server on *data_dir*, which ends with this process however that ends, and with the starting thread.

    *bin_dir* has the programs to use (POSTGRES_BIN_DIR); *max_connections* is how many the workers open together.
    """

    name = "PostgreSQL"

    def __init__(self, data_dir: Path, *, bin_dir: Path | None = None, max_connections: int = 20) -> None:
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "postgres"
        self._log = self._data_dir / "postgres.log"
        self._bin_dir = bin_dir
        self._max_connections = max_connections
        self._lock = DirectoryLock(self._data_dir / "lock")
        self._socket_directory: Path | None = None
        self._conninfo = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._version = ""
        self._user: User | None = None
        self._installation: Installation | None = None

    @property
    def version(self) -> str:
        """Return the server's version, such as 18.6; empty before the first start."""
        return self._version

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """Return the server's first process; None before the start and after a stop."""
        return self._process

    def start(self) -> str:
        """
        Start the server, on a new cluster when there is none, and return its conninfo string.

        Waits until the server accepts connections: 0.1 s, with a new cluster 1 s, after a crash longer. Leaves a running
        server as it is, and starts a server that has ended again at the same address. Raises ``StartError``.
        """
        if self._process is not None and self._process.poll() is None:
            return self._conninfo
        if self._conninfo:
            return self._start_again()
        self.stop()
        try:
            self._conninfo = self._start()
        except OSError as exc:
            self.stop()
            raise StartError(
                f"the database cannot use {exc.filename or self._data_dir}: {exc.strerror or exc}; "
                "mend that, or set another DATA_DIR"
            ) from exc
        except BaseException:
            self.stop()
            raise
        return self._conninfo

    def stop(self) -> None:
        """Shut down fast, and kill the server after ``STOP_PATIENCE_S``; nothing committed is lost either way."""
        try:
            if self._process is not None:
                stop(self._process, first=signal.SIGINT, patience_s=STOP_PATIENCE_S)
                self._process = None
            if self._socket_directory is not None:
                self._remove_socket_directory()
                self._socket_directory = None
            self._conninfo = ""
        finally:
            self._lock.release()

    def _start(self) -> str:
        # Check the user first: a user that PostgreSQL refuses may also lack access to the data directory, and granting that
        # would not help.
        check_user()
        _make_directory(self._data_dir)
        self._lock.acquire()
        user = cluster_user(self._cluster)
        if user is not None and (hidden := first_hidden(self._data_dir, user)):
            raise StartError(
                f"PostgreSQL cannot run as root, and the user {user_name(user)} may not enter {hidden}; set DATA_DIR to "
                "a directory that everybody may enter, such as /var/lib/jarvis-core, or start as a plain user"
            )
        installation = find_installation(self._bin_dir, user, self._data_dir)
        self._version = installation.version
        if not cluster_exists(self._cluster, installation):
            create_cluster(self._cluster, installation, user)
        self._user, self._installation = user, installation
        stale_pid = self._await_previous_server()
        end_orphans(self._cluster)
        if user is not None:
            hand_over(self._cluster, user)
        admit_peers(self._cluster)
        self._socket_directory = self._make_socket_directory(user)
        self._serve(stale_pid, START_LIMIT_S)
        host = str(self._socket_directory).replace("\\", "\\\\").replace("'", "\\'")
        return f"host='{host}' port={SETTINGS['port']} user={ROLE} dbname={DATABASE}"

    def _start_again(self) -> str:
        """Start the server again at the same address, which clients know; the lock is still ours."""
        try:
            stale_pid = self._await_previous_server()
            self._clear_socket_directory()
            self._serve(stale_pid, RECOVERY_LIMIT_S)
        except OSError as exc:
            raise StartError(
                f"the database cannot use {exc.filename or self._data_dir}: {exc.strerror or exc}"
            ) from exc
        return self._conninfo

    def _serve(self, stale_pid: int | None, limit_s: float) -> None:
        """Launch the server and wait until it is ready."""
        end_orphans(self._cluster)
        if self._log.exists() and self._log.stat().st_size > LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        # Follow no links: root may be given a data directory that another user can write.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self._log, flags, 0o600), "ab") as log:
            log_offset = log.tell()
            if self._user is not None:
                os.fchown(log.fileno(), *self._user)
            self._process = self._launch(stale_pid, log)
        try:
            self._await_ready(self._process, log_offset, limit_s)
        except StartError:
            stop(self._process, first=signal.SIGINT, patience_s=STOP_PATIENCE_S)
            raise

    def _await_previous_server(self) -> int | None:
        """
        Wait for the end of a server whose parent was just killed.

        Returns the pid of a stale ``postmaster.pid`` where another process has that pid now (likely in a container).
        """
        deadline = time.monotonic() + PREVIOUS_SERVER_LIMIT_S
        while (pid := self._postmaster_pid()) is not None:
            arguments = _command_line(pid)
            if not (arguments and Path(arguments[0]).name == "postgres" and str(self._cluster) in arguments):
                return pid if _is_alive(pid) else None
            if time.monotonic() > deadline:
                raise StartError(
                    f"another PostgreSQL (process {pid}) uses {self._cluster}; stop it with: kill -INT {pid}"
                )
            time.sleep(POLL_INTERVAL_S)
        return None

    def _launch(self, stale_pid: int | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
        installation = self._installation
        assert installation is not None  # noqa: S101 - found before
        quoted_sockets = str(self._socket_directory).replace('"', '""')
        settings = {
            **SETTINGS,
            "shared_buffers": f"{buffers_mb(self._cluster)}MB",
            **(SETTINGS_SINCE_18 if installation.major >= 18 else {}),
            "unix_socket_directories": f'"{quoted_sockets}"',  # a list of SQL identifiers
            "max_connections": str(self._max_connections + SPARE_CONNECTIONS),
        }
        environment = dict(ENVIRONMENT)
        if stale_pid is not None:
            # Have the server take this pid for its starter's, not for another server's. Removing postmaster.pid would do
            # that too, and lose more: from that file the server knows of sessions that survived a killed server.
            environment["PG_GRANDPARENT_PID"] = str(stale_pid)
        return spawn(
            [
                *(installation.bin_dir / "postgres", "-D", self._cluster),
                *(argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")),
            ],
            death_signal=signal.SIGQUIT,
            environment=environment,
            user=self._user,
            directory=Path("/"),
            output=log,
            threaded=self._process is not None,
        )

    def _await_ready(self, process: subprocess.Popen[bytes], log_offset: int, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not self._is_ready(process.pid):
            if process.poll() is not None:
                with self._log.open("rb") as log:
                    log.seek(log_offset)
                    said = log.read().decode(errors="replace")
                raise StartError(f"PostgreSQL does not start on {self._cluster}: {complaint(said)}; see {self._log}")
            if time.monotonic() > deadline:
                raise StartError(f"PostgreSQL does not accept connections after {limit_s:g} s; see {self._log}")
            time.sleep(POLL_INTERVAL_S)

    def _is_ready(self, pid: int) -> bool:
        """Read what pg_ctl reads: line 8 of ``postmaster.pid`` is the status of the server in line 1."""
        lines = self._postmaster_lines()
        return len(lines) >= 8 and lines[0] == b"%d" % pid and lines[7] == b"ready"

    def _postmaster_pid(self) -> int | None:
        lines = self._postmaster_lines()
        return int(lines[0]) if lines and lines[0].isdigit() else None

    def _postmaster_lines(self) -> list[bytes]:
        try:
            return [line.strip() for line in (self._cluster / "postmaster.pid").read_bytes().splitlines()]
        except FileNotFoundError:
            return []

    def _make_socket_directory(self, user: User | None) -> Path:
        """
        Make a directory that only root and the server's user may enter.

        Where the path is too long for a socket, or has a comma (which separates hosts for libpq), makes a symbolic link to
        a temporary directory, so that the next start finds and removes the files of a killed process.
        """
        self._remove_socket_directory()
        link = self._data_dir / "postgres-run"
        if _holds_socket(link):
            link.mkdir(0o700)
            if user is not None:
                os.chown(link, *user, follow_symlinks=False)
            return link
        for base in dict.fromkeys((Path(tempfile.gettempdir()).resolve(), Path("/tmp"))):  # noqa: S108 - mkdtemp's, 0700
            if not _holds_socket(base / (TEMPORARY_PREFIX + "12345678")) or (user and first_hidden(base, user)):
                continue
            directory = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=base))
            link.symlink_to(directory)
            if user is not None:
                os.chown(directory, *user, follow_symlinks=False)
                os.chown(link, *user, follow_symlinks=False)
            return directory
        raise StartError(f"{link} is too long for a socket, and so is {tempfile.gettempdir()}; set a shorter TMPDIR")

    def _clear_socket_directory(self) -> None:
        """Remove a killed server's socket, and make the directory again where a cleaner of temporary files removed it."""
        directory = self._socket_directory
        assert directory is not None  # noqa: S101 - made at the first start
        if not directory.exists():
            directory.mkdir(0o700)
            if self._user is not None:
                os.chown(directory, *self._user, follow_symlinks=False)
        for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
            (directory / name).unlink(missing_ok=True)

    def _remove_socket_directory(self) -> None:
        link = self._data_dir / "postgres-run"
        if link.is_symlink():
            directory = link.readlink()
            # Another user may have made a directory of that name after ours was removed.
            is_ours = directory.name.startswith(TEMPORARY_PREFIX) and directory.is_dir() and not directory.is_symlink()
            if is_ours and directory.stat().st_uid == link.lstat().st_uid:
                shutil.rmtree(directory)
            link.unlink()
        elif link.exists():
            shutil.rmtree(link)


class DirectoryLock:
    """Keeps other assistants out of a data directory, for as long as the process that took the lock lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        # Release the lock in forks: a forked worker would hold it beyond the death of this process. Exec closes it anyway.
        os.register_at_fork(after_in_child=self.release)

    def acquire(self) -> None:
        """Take the lock at once; raises ``StartError``, which names the process that holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StartError(
                f"{self._path.parent} is used by another jarvis-core (process {holder or 'unknown'}); "
                "stop that one, or set another DATA_DIR"
            ) from exc
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let another process take the lock; does nothing when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def buffers_mb(cluster: Path) -> int:
    """Return the size of the server's page cache for *cluster*, in MB: more for more data."""
    length = 0
    with contextlib.suppress(OSError):
        for database in (cluster / "base").iterdir():
            with contextlib.suppress(OSError), os.scandir(database) as files:
                length += sum(file.stat().st_size for file in files)
    least, most = BUFFERS_MB
    return min(max(least, round(length * BUFFERS_SHARE) >> 20), most)


def _make_directory(directory: Path) -> None:
    """Make *directory* and its missing parents; the server's user may enter directories that root makes."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    mode = 0o711 if os.geteuid() == ROOT_UID else 0o700
    for path in reversed(missing):
        path.mkdir(mode, exist_ok=True)
        path.chmod(mode)


def _holds_socket(directory: Path) -> bool:
    return len(os.fsencode(directory / SOCKET_NAME)) <= SOCKET_PATH_LIMIT_BYTES and "," not in str(directory)


def _command_line(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
