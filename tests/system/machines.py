"""
Several machines with several workers each, that share one PostgreSQL and one Redis.

Where the tests run as root a machine is a network and a pid namespace: it reaches the others by its network only, and
cannot see whether their processes live. RemoteTurns all machines are this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp

from jarvis_core.local.valkey import find_program
from tests.system.server import Process, Server, free_port

WORKERS = 2
PASSWORD = "a password for one run"
FIND_S = 40.0
_numbers = iter(range(1, 64))


class Network(NamedTuple):
    """Where a machine is."""

    host: str
    """Where it finds what runs beside the tests."""
    address: str
    """Where it is found."""
    prefix: tuple[str, ...]
    """What starts a program there."""
    namespace: str | None


def run(*arguments: str) -> None:
    """Run a program that is to succeed."""
    subprocess.run(arguments, check=True, capture_output=True, timeout=10)


@contextmanager
def network() -> Iterator[Network]:
    """Give a machine of its own where that can be had, else this one."""
    number = next(_numbers)
    name = f"jv{os.getpid() % 10_000}n{number}"
    host, address = f"10.199.{number}.1", f"10.199.{number}.2"
    try:
        run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        yield Network("127.0.0.1", "127.0.0.1", (), None)
        return
    try:
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        run("ip", "link", "set", f"{name}b", "netns", name)
        run("ip", "addr", "add", f"{host}/30", "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        run("ip", "-n", name, "addr", "add", f"{address}/30", "dev", f"{name}b")
        run("ip", "-n", name, "link", "set", f"{name}b", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        yield Network(host, address, ("ip", "netns", "exec", name, *unshare), name)
    finally:
        run("ip", "netns", "del", name)


class Valkey:
    """A Redis for the machines, which can be killed and started again."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, host: str) -> str:
        """Return its address as seen by who finds this machine at *host*."""
        return f"redis://:{PASSWORD.replace(' ', '%20')}@{host}:{self.port}/0"

    def start(self) -> None:
        """Start it, empty."""
        settings = ("--port", str(self.port), "--bind", "0.0.0.0", "--requirepass", PASSWORD)
        self._process = subprocess.Popen(
            [str(find_program()), *settings, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Worker(NamedTuple):
    """One worker process of a machine, known by what its request ids begin with."""

    machine: Machine
    name: str


class Machine:
    """One deployment unit, as a user runs it."""

    def __init__(self, network: Network, server: Server) -> None:
        self.network = network
        self.server = server
        self._starts = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.network.address}:{self.server.port}"

    def start(self) -> None:
        """Start it, and wait until all its workers serve."""
        self.launch()
        self.wait_serving()

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        self._starts += 1
        self.server.launch()

    def wait_serving(self) -> None:
        """Wait until all workers serve, after the start that was last."""
        deadline = time.monotonic() + FIND_S
        while self.server.stdout.count("listens on") < self._starts:
            assert self.server.running, self.server.stderr
            assert time.monotonic() < deadline, self.server.stderr
            time.sleep(0.02)

    def processes(self) -> list[Process]:
        """Return the worker processes."""
        return sorted(
            process for process in self.server.family() if b"jarvis_core.server" in _command_line(process.pid)
        )

    def stop(self) -> int:
        """Have it end as a service manager does; return the exit code."""
        for process in self.server.family():
            if b"jarvis_core\0" in _command_line(process.pid) and b"unshare" not in _command_line(process.pid):
                os.kill(process.pid, signal.SIGTERM)
        return self.server.wait()

    def kill(self) -> None:
        """End all of it at once."""
        for process in self.server.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.server.kill()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
        """Give a client over one new connection, and the name of the worker that has it."""
        async with aiohttp.ClientSession(
            self.url, connector=aiohttp.TCPConnector(limit=1), timeout=aiohttp.ClientTimeout(total=30)
        ) as client:
            async with client.get("/health") as response:
                await response.read()
            yield response.headers["x-request-id"].rpartition("-")[0], client

    async def workers(self, count: int = WORKERS) -> list[Worker]:
        """Find *count* workers by connecting again and again."""
        found: dict[str, Worker] = {}
        async with asyncio.timeout(FIND_S):
            while len(found) < count:
                with contextlib.suppress(aiohttp.ClientError):
                    async with self.client() as (name, _):
                        found[name] = Worker(self, name)
        return list(found.values())


@asynccontextmanager
async def client_of(worker: Worker) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client over one connection to that worker."""
    async with asyncio.timeout(FIND_S):
        while True:
            async with contextlib.AsyncExitStack() as stack:
                name, client = await stack.enter_async_context(worker.machine.client())
                if name == worker.name:
                    kept = stack.pop_all()
                    break
    async with kept:
        yield client


@contextmanager
def relayed(host: str, port: int) -> Iterator[str]:
    """Give the address at which a machine that finds this one at *host* reaches what listens on *port* of loopback."""
    if host == "127.0.0.1":
        yield f"http://127.0.0.1:{port}"
        return
    with socket.create_server((host, 0), backlog=128) as listener:
        threading.Thread(target=_accept, args=(listener, port), daemon=True).start()
        yield f"http://{host}:{listener.getsockname()[1]}"
        # So that the thread comes out of its wait.
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                near.close()
                continue
            for ends in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def machine(network: Network, directory: Path, environment: dict[str, str]) -> Machine:
    """Make a machine with *environment*; the caller starts it."""
    host = "127.0.0.1" if network.namespace is None else "0.0.0.0"
    server = Server(
        directory,
        {"HOST": host, "WORKERS": str(WORKERS), "API_KEYS": "", **environment},
        interpreter=(*network.prefix, sys.executable),
    )
    return Machine(network, server)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
