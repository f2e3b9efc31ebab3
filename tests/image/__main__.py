"""
Build the image, run it in every way in which it is to run, and say what was seen.

``python -m tests.image``: exit code 0 when everything holds. With ``--no-build`` the image that there is, is checked. The
engine has to be this machine's own: its processes are looked at from outside.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import psycopg

from jarvis_core import __version__
from jarvis_core.local.postgres import EmbeddedPostgres
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.fakes.relay import DatabaseRelay
from tests.image.engines import REPOSITORY, Buildah, Container, Engine, find_engine
from tests.system.server import free_port

TAG = f"jarvis-core:{__version__}"
UNLISTED = "12345"
NO_BRIDGES = {"PYTHON_BRIDGES_URL": "http://127.0.0.1:1"}
STOPPED_AFTER_S = (0.02, 0.3)
FORCED = 137
"""The exit code of what was killed, because it did not stop."""
READY_LIMIT_S = 60
POLL_INTERVAL_S = 0.01
RECORDING = REPOSITORY / "tests" / "fixtures" / "audio" / "fx16k_en_1.mp3"


class Wrong(Exception):
    """The image does not hold what it promises."""


def main(arguments: list[str]) -> int:
    """Build and check; return the exit code."""
    engine = find_engine()
    if engine is None:
        say("there is neither docker nor podman nor buildah here that works")
        return 1
    if "--no-build" not in arguments:
        engine.build(TAG)
    # Where any user may enter: as root the server is nobody's.
    directory = Path(tempfile.mkdtemp(prefix="jarvis-image-", dir="/tmp"))
    directory.chmod(0o711)
    postgres = EmbeddedPostgres(directory / "data")
    try:
        conninfo = postgres.start()
        asyncio.run(check(engine, conninfo))
    except Wrong as exc:
        say(str(exc))
        return 1
    finally:
        postgres.stop()
        shutil.rmtree(directory)
        if isinstance(engine, Buildah):
            engine.close()
    return 0


async def check(engine: Engine, conninfo: str) -> None:
    """Run every check; raises ``Wrong``."""
    check_config(engine)
    await check_orphans_and_signals(engine)
    await check_listed(engine)
    await check_database_url(engine, conninfo, None)
    await check_database_url(engine, conninfo, UNLISTED)
    await check_workers(engine)
    await check_unlisted_without_database(engine)
    await check_without_model(engine)


def check_config(engine: Engine) -> None:
    """Look at what the image says of itself."""
    config = engine.config(TAG)
    require(config.user.split(":")[0] not in ("", "0", "root"), f"the image's user is {config.user or 'root'}")
    require(config.healthcheck is not None, "the image has no health check")
    require("8100/tcp" in config.exposed_ports and "/data" in config.volumes, "port 8100 or volume /data is missing")
    version = config.labels.get("org.opencontainers.image.version")
    require(version == __version__, f"the label says version {version}")
    say(f"{TAG} has {engine.size_bytes(TAG) / 1e6:.0f} MB unpacked")


async def check_orphans_and_signals(engine: Engine) -> None:
    """The first process takes leave of orphans; a stop in the middle of the start is obeyed."""
    with running(engine, NO_BRIDGES) as container:
        done = container.execute("sh", "-c", "sleep 0.1 & exec true")
        require(done.returncode == 0, f"nothing can be executed in the container: {done.stderr}")
        await asyncio.sleep(0.5)
        states = {pid: state_of(pid) for pid in family(container.pid)}
        require("Z" not in states.values(), f"an orphan that has ended is still there: {states}")
    codes = []
    for delay_s in STOPPED_AFTER_S:
        with running(engine, NO_BRIDGES) as container:
            await asyncio.sleep(delay_s)
            began = time.monotonic()
            codes.append(await asyncio.to_thread(container.stop))
            took_s = time.monotonic() - began
            require(took_s < 10 and codes[-1] != FORCED, f"a stop {delay_s} s after the start took {took_s:.1f} s")
    say(f"orphans are taken leave of; stops in the middle of the start are obeyed: exit codes {codes}")


async def check_listed(engine: Engine) -> None:
    """The image's own user, with the embedded PostgreSQL: boot, turns, speech, stop, and what is kept."""
    volume = engine.make_volume()
    try:
        async with neighbour() as bridges:
            with running(engine, {"PYTHON_BRIDGES_URL": bridges.url}, volume=volume) as container:
                async with Client(container) as client:
                    first_s = await client.wait_ready()
                    await client.chat("Bonjour")
                    await check_inside(engine, container)
                    heard = await client.post("/api/voice/transcribe", RECORDING.read_bytes(), "audio/mpeg")
                    require(bool(heard["text"]), f"a recording was not understood: {heard}")
                    spoken = await client.post("/api/voice/synthesize", {"text": "Bonjour.", "format": "mp3"})
                    require(len(base64.b64decode(spoken["audio_data"])) > 1_000, "no speech came out")
                stopped_s = await expect_stop(container)
            with running(engine, {"PYTHON_BRIDGES_URL": bridges.url}, volume=volume) as container:
                async with Client(container) as client:
                    again_s = await client.wait_ready()
                    kept = await client.get("/api/chat/conversations")
                    require(len(kept["conversations"]) == 1, "the conversation is gone after a restart")
                    await asyncio.sleep(2)
                    idle_mb, core_mb = memory_mb(container.pid), memory_mb(container.pid, "/bin/python")
                    say(f"idle: {idle_mb} MB with PostgreSQL, {core_mb} MB without")
                    bridges.mode = BridgesMode(
                        shape="ndjson", deltas=tuple(f"{n} " for n in range(20)), delta_delay_s=0.1
                    )
                    turn = asyncio.create_task(client.chat("Compte !"))
                    await asyncio.sleep(0.7)
                    drained_s = await expect_stop(container)
                    answer = await turn
                    require(answer["content"].split() == [str(n) for n in range(20)], f"cut by the stop: {answer}")
    finally:
        engine.remove_volume(volume)
    say(
        f"its own user, embedded PostgreSQL: ready {first_s:.1f} s after the first start and {again_s:.1f} s after the "
        f"second; stopped in {stopped_s:.1f} s, in the middle of a turn in {drained_s:.1f} s, exit code 0"
    )


async def check_inside(engine: Engine, container: Container) -> None:
    """Look at a running container from within: who runs, what can be written, and what a health check costs."""
    uids = {uid_of(pid) for pid in family(container.pid)}
    require(0 not in uids, "something in the container runs as root")
    for path in ("/", "/opt/jarvis/core", "/tmp", "/etc"):
        done = container.execute("sh", "-c", f"touch {path}/written")
        require(done.returncode != 0, f"{path} can be written to")
    done = container.execute("pg_dump", "-h", "/data/postgres-run", "-U", "jarvis", "jarvis")
    require("COPY public.messages" in done.stdout, f"a backup cannot be written: {done.stderr}")
    health = engine.config(TAG).healthcheck
    assert health is not None
    command = health.test[1:]
    done = container.execute(*command)
    require(done.returncode == 0, f"the health check fails: {done.stdout} {done.stderr}")
    done = container.execute("sh", "-c", f"{' '.join(command)} > /dev/null; times")
    minutes, seconds = zip(*(time.rstrip("s").split("m") for time in done.stdout.split()[2:4]), strict=True)
    cpu_s = 60 * sum(map(float, minutes)) + sum(map(float, seconds))
    say(f"health check {' '.join(command)}: exit code 0, {cpu_s:.2f} s of CPU")


async def check_database_url(engine: Engine, conninfo: str, user: str | None) -> None:
    """With a database of one's own any user will do, and the health check tells when it is away."""
    who = f"the unlisted user {user}" if user else "its own user"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("drop database if exists image")
        connection.execute("create database image")
    async with neighbour() as bridges, DatabaseRelay(f"{conninfo} dbname=image") as relay:
        environment = {"PYTHON_BRIDGES_URL": bridges.url, "DATABASE_URL": relay.conninfo}
        with running(engine, environment, user=user) as container:
            async with Client(container) as client:
                ready_s = await client.wait_ready()
                await client.chat("Bonjour")
                await asyncio.sleep(2)
                idle_mb = memory_mb(container.pid)
                await relay.go_away()
                await client.wait_status("/health", 503)
                done = await asyncio.to_thread(container.execute, "jarvis-core", "check")
                require(done.returncode == 1, "the health check does not see that the database is away")
                await relay.come_back()
                await client.wait_status("/health", 200)
            stopped_s = await expect_stop(container)
    say(
        f"{who}, DATABASE_URL: ready after {ready_s:.1f} s, idle {idle_mb} MB, unhealthy (1) while the database was "
        f"away, stopped in {stopped_s:.1f} s, exit code 0"
    )


async def check_workers(engine: Engine) -> None:
    """Two workers share what runs through a Valkey of their own, and stop as one."""
    async with neighbour() as bridges:
        with running(engine, {"PYTHON_BRIDGES_URL": bridges.url, "WORKERS": "2"}) as container:
            async with Client(container) as client:
                ready_s = await client.wait_ready()
                await asyncio.gather(*(client.chat("Bonjour") for _ in range(8)))
            idle_mb = memory_mb(container.pid)
            stopped_s = await expect_stop(container)
    say(f"two workers: ready after {ready_s:.1f} s, {idle_mb} MB, stopped in {stopped_s:.1f} s, exit code 0")


async def check_unlisted_without_database(engine: Engine) -> None:
    """PostgreSQL refuses a user whom the system does not know; that is said in one line."""
    with running(engine, NO_BRIDGES, user=UNLISTED) as container:
        code = await asyncio.to_thread(container.wait)
        lines = container.output().strip().splitlines()
    require(code == 1 and len(lines) == 1 and "DATABASE_URL" in lines[0], f"exit code {code}: {lines}")
    say(f"the unlisted user {UNLISTED} without DATABASE_URL: exit code 1, {lines[0]!r}")


async def check_without_model(engine: Engine) -> None:
    """Nobody said where a language model is, and none is in the image: that is said at once, nothing is downloaded."""
    with running(engine, {}) as container:
        code = await asyncio.to_thread(container.wait)
        lines = container.output().strip().splitlines()
    require(code == 1 and "PYTHON_BRIDGES_URL" in lines[-1], f"exit code {code}: {lines}")
    say(f"without a language model: exit code 1, {lines[-1]!r}")


class Client:
    """Asks the core in a container."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._session = aiohttp.ClientSession(PORTS[id(container)], timeout=aiohttp.ClientTimeout(30))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def wait_ready(self) -> float:
        """Return the seconds between the start of the first process and the first ready."""
        await self.wait_status("/ready", 200)
        return age_s(self._container.pid)

    async def wait_status(self, path: str, status: int) -> None:
        """Wait until *path* answers with *status*."""
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            try:
                async with self._session.get(path) as response:
                    if response.status == status:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(POLL_INTERVAL_S)
        raise Wrong(f"{path} does not answer {status}; the container said:\n{self._container.output()}")

    async def get(self, path: str) -> Any:
        """Return the JSON of a good answer."""
        async with self._session.get(path) as response:
            require(response.status == 200, f"{path}: {response.status} {await response.text()}")
            return await response.json()

    async def post(self, path: str, body: bytes | dict[str, Any], content_type: str = "application/json") -> Any:
        """The same of a request with a body."""
        options: dict[str, Any] = {"json": body} if isinstance(body, dict) else {"data": body}
        async with self._session.post(path, headers={"content-type": content_type}, **options) as response:
            require(response.status == 200, f"{path}: {response.status} {await response.text()}")
            return await response.json()

    async def chat(self, content: str) -> Any:
        """Have a turn."""
        answer = await self.post("/api/chat", {"content": content})
        require(answer["status"] == "completed", f"a turn went wrong: {answer}")
        return answer


PORTS: dict[int, str] = {}
"""Where the core in each container listens."""


@contextmanager
def running(engine: Engine, environment: dict[str, str], **options: Any) -> Iterator[Container]:
    """Run a container for the block."""
    port = free_port()
    container = engine.run(TAG, {"HOST": "127.0.0.1", "PORT": str(port), **environment}, **options)
    PORTS[id(container)] = f"http://127.0.0.1:{port}"
    try:
        yield container
    finally:
        container.remove()
        del PORTS[id(container)]


@asynccontextmanager
async def neighbour() -> AsyncIterator[FakeBridges]:
    """Run the fake of the bridges."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson")) as bridges:
        yield bridges


async def expect_stop(container: Container) -> float:
    """Stop it; return the seconds that took."""
    began = time.monotonic()
    code = await asyncio.to_thread(container.stop)
    require(code == 0, f"stopped with exit code {code}:\n{container.output()}")
    return time.monotonic() - began


def family(pid: int) -> list[int]:
    """Return *pid* and all that descend from it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def state_of(pid: int) -> str:
    """Return the letter of a process' state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def uid_of(pid: int) -> int:
    """Return the user that a process runs as, as the machine numbers them."""
    return Path(f"/proc/{pid}").stat().st_uid


def age_s(pid: int) -> float:
    """Return how long ago a process was started."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, name: str = "") -> int:
    """
    Return the memory of *pid* and its descendants with *name* in their command lines, shared pages in proportion.

    Who is not root may not ask for that: then shared pages count for each.
    """
    total = 0
    for one in family(pid):
        if name not in Path(f"/proc/{one}/cmdline").read_text():
            continue
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += 1_024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except PermissionError:
            total += os.sysconf("SC_PAGE_SIZE") * int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return round(total / 1e6)


def require(condition: bool, otherwise: str) -> None:
    """Raise ``Wrong`` unless *condition* holds."""
    if not condition:
        raise Wrong(otherwise)


def say(line: str) -> None:
    """Tell the person who waits."""
    sys.stdout.write(f"image: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
