"""Starting: what is printed, what stops it, and the commands beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jwt
import psycopg
import pytest

from jarvis_core import __version__
from jarvis_core.store.migrations import schema_files
from tests.fakes.python_bridges import FakeBridges
from tests.fakes.relay import DatabaseRelay
from tests.system.conftest import MakeServer
from tests.system.server import REPOSITORY, START_LIMIT_S, Server, free_port, processes_naming, wait_gone

NOBODY = 65_534
REFUSAL_LIMIT_S = 5.0
SECRET = "0123456789abcdef0123456789abcdef"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(directory: Path) -> Run:
    """Run the command line to its end."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jarvis_core", *arguments],
            cwd=REPOSITORY,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def test_output(make_server: MakeServer, data_directory: Path) -> None:
    """A start says where it listens, what is embedded and what missing, that it is open, and a line to try."""
    server = make_server()
    server.start()
    address = f"http://localhost:{server.port}"
    lines = server.stdout.splitlines()
    assert lines[0] == f"Jarvis Core {__version__} listens on {address}"
    assert [line for line in lines if line.startswith("  embedded: PostgreSQL ") and str(data_directory) in line]
    assert "  missing:  audio engine (AUDIO_ENGINE_URL)" in lines
    assert [line for line in lines if line.startswith("  open: ")]
    assert lines[-1].startswith(f"  try:      curl -s {address}/api/chat ")
    assert server.stop() == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_open_server_warns_beyond_loopback(make_server: MakeServer, database: str, host: str) -> None:
    """A server without credentials warns loudly, but only where others can reach it."""
    server = make_server(DATABASE_URL=database, HOST=host, LOG_FORMAT="json")
    server.start()
    assert server.stop() == 0
    warnings = [line for line in map(json.loads, server.stderr.splitlines()) if line["level"] == "warning"]
    assert bool(warnings) == (host == "0.0.0.0")
    assert all("JWT_SECRET" in line["event"] for line in warnings)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("host", ["localhost", socket.gethostname(), "::1", "[::1]", "127.1"])
def test_host_by_name(make_server: MakeServer, run: Run, database: str, host: str, workers: str) -> None:
    """A name of this machine is listened on as its address is; the start names it, and ``check`` finds it there."""
    try:
        [*_, (family, *_, address)] = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError as exc:
        pytest.skip(f"{host} is none of this machine's here: {exc}")
    server = make_server(DATABASE_URL=database, HOST=host, WORKERS=workers)
    server.launch()
    server.wait_until(lambda: "  try: " in server.stdout)
    shown = "localhost" if host == "::1" else host
    assert server.stdout.startswith(f"Jarvis Core {__version__} listens on http://{shown}:{server.port}\n")
    checked = run("check", HOST=host, PORT=str(server.port))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert server.stop() == 0


def test_line_to_try(make_server: MakeServer, database: str) -> None:
    """The line that the start offers works as it is printed."""
    server = make_server(DATABASE_URL=database)
    server.start()
    command = server.stdout.splitlines()[-1].partition("try:")[2]
    # The fake neighbour lives in this process: any answer shows that the line is right.
    answer = subprocess.run(["sh", "-c", f"{command} -m 1 -o /dev/null -w '%{{http_code}}' -X GET"],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert answer.stdout == "405"
    assert server.stop() == 0


def test_environment_of_the_old_core(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """The environment that ran the core before this one works, and /health has exactly the promised fields."""
    server = make_server(
        HOST="0.0.0.0",
        RUST_LOG="info,jarvis_core=debug",
        PYTHON_BRIDGES_URL=bridges.url,
        AUDIO_ENGINE_URL=f"http://127.0.0.1:{free_port()}",
        DATABASE_URL=database,
        DB_MAX_CONNECTIONS="5",
        DATA_DIR=None,
    )
    server.start()
    health = server.ask("GET", "/health")
    assert health.body.keys() == {"status", "version", "uptime_secs", "services"}
    assert health.body["services"].keys() == {"database", "python_bridges", "audio_engine", "cache"}
    assert (health.status, health.body["version"]) == (200, __version__)
    assert health.body["services"]["cache"] == "disabled"
    assert '"level":"debug"' in server.stderr, "the filter of the package holds"
    assert "embedded" not in server.stdout
    assert server.stop() == 0


# What stops a start: one line, exit code 1, nothing left


def assert_refused(server: Server, directory: Path, *words: str, limit_s: float = REFUSAL_LIMIT_S) -> None:
    server.launch()
    assert server.wait(limit_s) == 1
    lines = server.stderr.splitlines()
    assert len(lines) == 1, server.stderr
    assert lines[0].startswith("jarvis-core: ")
    for word in words:
        assert word in lines[0]
    assert server.stdout == ""
    assert processes_naming(directory) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "banana"),
        ("PORT", "70000"),
        ("DB_MAX_CONNECTIONS", "0"),
        ("LLM_TEMPERATURE", "2.5"),
        ("LLM_STALL_TIMEOUT_S", "soon"),
        ("RUST_LOG", "info,jarvis_core=loud"),
        ("PYTHON_BRIDGES_URL", "localhost:8005"),
        ("JWT_SECRET", "short"),
        ("API_KEYS", "no-colon"),
        ("WORKERS", "65"),
    ],
)
def test_bad_setting(make_server: MakeServer, directory: Path, name: str, value: str) -> None:
    """A malformed setting stops the start with one line that names it, and a secret is not in it."""
    server = make_server(**{name: value})
    assert_refused(server, directory, name)
    if name in ("JWT_SECRET", "API_KEYS"):
        assert value not in server.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("mysql://jarvis:hunter2@localhost/jarvis", "mysql://"),
        ("postgresql://jarvis:hunter2@localhost/jarvis?frobnicate=1", "'frobnicate'"),
        ("host=localhost password=a hunter2", "conninfo"),
    ],
)
def test_malformed_database_address(
    make_server: MakeServer, directory: Path, address: str, named: str, workers: str
) -> None:
    """What is not understood of an address stops the start before anything is started, and no password is shown."""
    server = make_server(DATABASE_URL=address, WORKERS=workers, PYTHON_BRIDGES_URL=None)
    assert_refused(server, directory, "DATABASE_URL", named, limit_s=8)
    assert "hunter2" not in server.stderr


def test_database_address_of_another_program(make_server: MakeServer, database: str) -> None:
    """What an address asks of another program's pool is told to have no effect."""
    fields = psycopg.conninfo.conninfo_to_dict(database)
    address = f"postgresql+asyncpg://{fields['user']}@/{fields['dbname']}?host={fields['host']}&connection_limit=5"
    server = make_server(DATABASE_URL=address, HOST="127.0.0.1")
    server.start()
    (warning,) = [line for line in map(json.loads, server.stderr.splitlines()) if line["level"] == "warning"]
    assert (warning["event"], warning["unused"]) == ("parts of DATABASE_URL have no effect here", "connection_limit")
    assert server.stop() == 0


def test_unknown_setting_in_the_file(make_server: MakeServer, directory: Path) -> None:
    """An unknown name in the settings file stops the start with one line that names it and the file."""
    file = directory / "wrong.toml"
    file.write_text("[server]\nprot = 8100\n")
    assert_refused(make_server(JARVIS_CONFIG=str(file)), directory, str(file), "prot")


def test_taken_port(make_server: MakeServer, directory: Path) -> None:
    """A port that is taken stops the start before anything is started for it."""
    server = make_server()
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        assert_refused(server, directory, str(server.port))


@pytest.mark.parametrize("host", ["198.51.100.1", "2001:db8::1", "nowhere.invalid", "é..b", "a b", "http://localhost"])
def test_address_of_another_machine(make_server: MakeServer, directory: Path, host: str) -> None:
    """An address that this machine does not have, or what is no address and no name, stops the start."""
    assert_refused(make_server(HOST=host), directory, "HOST", host)


def test_unwritable_data_directory(make_server: MakeServer, directory: Path) -> None:
    """A data directory that cannot be made stops the start."""
    (directory / "file").touch()
    path = directory / "file" / "data"
    assert_refused(make_server(DATA_DIR=str(path)), directory, str(path.parent))


def test_data_directory_in_use(make_server: MakeServer, directory: Path) -> None:
    """A second server on the same data directory stops with one line, and the first goes on."""
    first = make_server()
    first.start()
    second = make_server()
    second.launch()
    assert second.wait() == 1
    assert len(second.stderr.splitlines()) == 1
    assert str(first.pid) in second.stderr
    assert first.ask("GET", "/health").status == 200
    assert first.stop() == 0


def test_data_directory_of_a_newer_postgres(make_server: MakeServer, directory: Path) -> None:
    """A cluster that a newer PostgreSQL wrote stops the start, and stays as it is."""
    cluster = directory / "newer" / "postgres"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("99\n")
    if os.geteuid() == 0:
        os.chown(cluster, NOBODY, NOBODY)
    assert_refused(make_server(DATA_DIR=str(cluster.parent)), directory, str(cluster), "99")
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


def test_database_of_a_newer_core(make_server: MakeServer, directory: Path, database: str) -> None:
    """A schema that a newer core made stops the start, and says to upgrade."""
    newest = schema_files()[-1][0] + 1
    with psycopg.connect(database) as connection:
        connection.execute("create table schema_versions (number integer primary key, name text, applied_at date)")
        connection.execute("insert into schema_versions values (%s, 'from the future')", (newest,))
    assert_refused(make_server(DATABASE_URL=database), directory, str(newest), "newer")


def test_database_that_starts_later(make_server: MakeServer, database: str, directory: Path) -> None:
    """A database that is not there yet is waited for, also when it comes after the first attempt's deadline."""
    link = directory / "later"
    server = make_server(
        DATABASE_URL=f"host={link} port=5432 user=jarvis dbname={psycopg.conninfo.conninfo_to_dict(database)['dbname']}",
        DB_TIMEOUT_S="0.5",
    )
    server.launch()
    time.sleep(2)
    assert server.running, server.stderr
    assert server.stderr.count("the database does not answer yet") == 1, "and that is told, with its reason"
    link.symlink_to(str(psycopg.conninfo.conninfo_to_dict(database)["host"]))
    deadline = time.monotonic() + 5
    while server.running and time.monotonic() < deadline:
        try:
            if server.ask("GET", "/ready").status == 200:
                break
        except OSError:
            time.sleep(0.05)
    else:
        pytest.fail(f"not ready 5 s after the database: {server.stderr}")
    assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("asked", "keeping"),
    [
        (b"coalesce(max(number), 0) from schema_versions", True),  # then a worker's own connection is refused
        (b"insert into workers", False),
        (b"create extension", False),
    ],
)
async def test_database_that_goes_away(
    make_server: MakeServer, relay: DatabaseRelay, workers: str, asked: bytes, keeping: bool
) -> None:
    """A database that goes away between its first answer and the last that a start needs ends the start with one line."""
    relay.go_away_at(asked, keeping=keeping)
    server = make_server(DATABASE_URL=relay.conninfo, DB_TIMEOUT_S="2", WORKERS=workers)
    server.launch()
    async with asyncio.timeout(START_LIMIT_S):
        await relay.left.wait()
    family = server.family()
    assert await asyncio.to_thread(server.wait) == 1
    told = [line for line in server.stderr.splitlines() if not line.startswith("{")]  # others are log lines
    assert told == ["jarvis-core: DATABASE_URL: the database went away during the start"]
    assert "Traceback" not in server.stderr
    assert server.stdout == ""
    assert wait_gone(family) == set()


@pytest.mark.every_python
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_while_starting(make_server: MakeServer, directory: Path, number: signal.Signals) -> None:
    """A signal ends a start that waits for its database, at once and without a traceback."""
    server = make_server(DATABASE_URL=f"host={directory}/nowhere user=jarvis", DB_TIMEOUT_S="1")
    server.launch()
    time.sleep(1.2)
    assert server.running, server.stderr
    server.signal(number)
    assert server.wait(3) == 130
    assert "Traceback" not in server.stderr
    assert server.stdout == ""


# The other commands


def test_check_of_something_else(run: Run) -> None:
    """``check`` ends with 1 and one line where something else than a core listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def hang_up() -> None:
            for _ in range(2):
                other.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        checked = run("check", PORT=str(other.getsockname()[1]))
        thread.join()
    assert (checked.returncode, checked.stdout, len(checked.stderr.splitlines())) == (1, "", 1)


def test_check(make_server: MakeServer, run: Run, database: str) -> None:
    """``check`` prints the health and ends with 0 while the server answers, and with 1 and one line when none does."""
    server = make_server(DATABASE_URL=database)
    server.start()
    answered = run("check", PORT=str(server.port))
    assert (answered.returncode, answered.stderr) == (0, "")
    assert json.loads(answered.stdout)["status"] == "healthy"
    assert server.stop() == 0
    silent = run("check", PORT=str(server.port))
    assert (silent.returncode, silent.stdout, len(silent.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("90s", 90), ("30m", 1_800), ("24h", 86_400), ("90d", 7_776_000), ("365d", 31_536_000)]
)
def test_token(run: Run, ttl: str, seconds: int) -> None:
    """``token`` prints a token for the user that holds as long as asked."""
    printed = run("token", "--user", "zoé", "--ttl", ttl, JWT_SECRET=SECRET)
    assert (printed.returncode, printed.stderr) == (0, "")
    claims = jwt.decode(printed.stdout.strip(), SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["user_id"], claims["exp"] - claims["iat"]) == ("zoé", "zoé", seconds)


@pytest.mark.parametrize(("ttl", "days"), [("366d", 366), ("8784h", 366), ("3650d", 3_650)])
def test_token_for_long(run: Run, ttl: str, days: int) -> None:
    """``token`` warns, in one line beside the token, where it is to hold for more than a year."""
    printed = run("token", "--user", "zoé", "--ttl", ttl, JWT_SECRET=SECRET)
    assert (printed.returncode, len(printed.stderr.splitlines())) == (0, 1)
    assert f"{days} days" in printed.stderr
    claims = jwt.decode(printed.stdout.strip(), SECRET, algorithms=["HS256"])
    assert claims["exp"] - claims["iat"] == days * 86_400


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["token", "--user", "zoé"], {}),
        (["token", "--user", "zoé", "--ttl", "soon"], {"JWT_SECRET": SECRET}),
        (["token", "--user", "zoé", "--ttl", "0d"], {"JWT_SECRET": SECRET}),
        (["token", "--user", ""], {"JWT_SECRET": SECRET}),
        (["token", "--user", "x" * 257], {"JWT_SECRET": SECRET}),
        (["token", "--user", "a\tb"], {"JWT_SECRET": SECRET}),
    ],
)
def test_token_refused(run: Run, arguments: list[str], environment: Mapping[str, str]) -> None:
    """A token cannot be had without a secret, for a time that is none, or for nobody: one line, exit code 1."""
    refused = run(*arguments, **environment)
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)


def test_version(run: Run) -> None:
    """``--version`` tells it."""
    assert run("--version").stdout == f"jarvis-core {__version__}\n"


# As a plain user


def test_plain_user(directory: Path, bridges: FakeBridges) -> None:
    """A plain user starts and stops the whole product, and what it makes belongs to that user alone."""
    user = NOBODY if os.geteuid() == 0 else None
    interpreter, path = plain_interpreter(user)
    home = directory / "plain"
    home.mkdir()
    if user is not None:
        os.chown(home, user, user)
    server = Server(
        home,
        {
            "PYTHON_BRIDGES_URL": bridges.url,
            "XDG_DATA_HOME": str(home / "share"),
            "PYTHONDONTWRITEBYTECODE": "1",
            **path,
        },
        interpreter=[interpreter],
        user=user,
    )
    server.start()
    family = server.family()
    try:
        uids = {Path(f"/proc/{process.pid}").stat().st_uid for process in family}
        assert uids == {os.geteuid() if user is None else user}
        data = home / "share" / "jarvis-core"
        assert stat.S_IMODE((data / "postgres").stat().st_mode) == 0o700
        assert server.ask("GET", "/health").status == 200
        assert server.stop() == 0
    finally:
        server.kill()
        left = wait_gone(family)
    assert left == set()


def plain_interpreter(user: int | None) -> tuple[str, dict[str, str]]:
    """
    Return a Python that *user* may execute, and the environment with which it finds the packages; else skip the test.

    Where the environment's own interpreter lies in a closed home directory, the system's serves if it is of the same
    version.
    """
    if user is None:
        return sys.executable, {}
    path = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")])}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            probe = subprocess.run(
                [interpreter, "-c", "import granian, jarvis_core"], env=path, cwd="/", user=user, group=user,
                extra_groups=[], capture_output=True, check=False, timeout=30,
            )  # fmt: skip
        except OSError:
            continue
        if probe.returncode == 0:
            return interpreter, path
    pytest.skip(f"user {user} may not enter {sys.executable} or {REPOSITORY}, and has no other Python {version}")
