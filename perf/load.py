"""
Drivers of load on a server of this machine, cheap enough to leave the other core to it.

``press`` asks as fast as the answers come (wrk, or ours where that is not installed), and so does ``repeat``. ``pace`` asks at a fixed rate whatever
the server does, and counts from the moment when a request was due: a server that stalls makes all that were due
meanwhile late, as it would for people.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import uvloop

T = TypeVar("T")

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
LIMIT_S = 120.0
"""No run of a driver takes longer."""
CONNECT_LIMIT_S = 10.0


class Latencies(NamedTuple):
    """Of finished requests, in milliseconds."""

    p50: float
    p99: float
    finished: int
    seconds: float
    p999: float = 0.0
    failed: int = 0


class Request(NamedTuple):
    """What is sent again and again."""

    method: str
    path: str
    body: bytes = b""
    headers: str = ""
    """Lines that end in CR LF."""

    def message(self) -> bytes:
        """Return its bytes."""
        kind = "content-type: application/json\r\n" if self.body else ""
        head = f"{self.method} {self.path} HTTP/1.1\r\nhost: perf\r\n{kind}{self.headers}"
        return f"{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body


def request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """Return the bytes of a request."""
    return Request(method, path, body, headers).message()


def percentiles(samples_s: Sequence[float], seconds: float, failed: int = 0) -> Latencies:
    """Return the percentiles of *samples_s*."""
    ordered = sorted(samples_s)
    if not ordered:
        raise RuntimeError("no request was answered")

    def at(share: float) -> float:
        return 1_000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Latencies(at(0.5), at(0.99), len(ordered), seconds, at(0.999), failed)


def content_length(head: bytes) -> int:
    """Return how long the body behind *head* is, 0 where it does not say."""
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)


def drive(work: Coroutine[Any, Any, T], limit_s: float = LIMIT_S) -> T:
    """Run a driver in a loop of its own; raises ``TimeoutError`` after *limit_s*."""

    async def bounded() -> T:
        async with asyncio.timeout(limit_s):
            return await work

    return uvloop.run(bounded())


def wrk_version() -> str:
    """Return wrk's version, empty where it is not installed."""
    if shutil.which("wrk") is None:
        return ""
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False, timeout=10).stdout
    return said.partition("[")[0].removeprefix("wrk").strip() or "of an unknown version"


def press(port: int, what: Request, *, connections: int, seconds: float) -> Latencies:
    """Send *what* over *connections* for *seconds*, each waiting for its answer before it asks again."""
    if not wrk_version():
        return drive(repeat_for(port, what.message(), connections=connections, seconds=seconds), seconds + LIMIT_S)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    command += ["-s", str(WRK_SCRIPT), f"http://127.0.0.1:{port}{what.path}", "--", what.method, what.body.decode()]
    authorization = what.headers.partition("authorization: ")[2].partition("\r\n")[0]
    environment = {**os.environ, **({"PERF_AUTHORIZATION": authorization} if authorization else {})}
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60, env=environment)
    measured = Latencies(**json.loads(told.stdout.splitlines()[-1]))
    if measured.failed > measured.finished / 100:
        raise RuntimeError(f"{measured.failed} of {measured.finished} requests failed")
    return measured


class Client(asyncio.Protocol):
    """A connection that sends one request after another, and waits for each answer."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, message: bytes) -> bytes:
        """Return the answer's body; raises ``RuntimeError`` for any status but 200."""
        self._answer = self._loop.create_future()
        self._transport.write(message)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._buffer[:end])
        if len(self._buffer) < end + 4 + content_length(head):
            return
        body = bytes(self._buffer[end + 4 :])
        self._buffer.clear()
        if head.startswith(b"HTTP/1.1 200"):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(f"answered {head[:100]!r} {body[:400]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or RuntimeError("the server closed the connection"))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def connect(port: int) -> Client:
    """Return a new connection."""
    async with asyncio.timeout(CONNECT_LIMIT_S):
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def _repeat_while(port: int, message: bytes, connections: int, left: Callable[[], bool]) -> Latencies:
    samples: list[float] = []

    async def one(client: Client) -> None:
        while left():
            sent = time.perf_counter()
            await client.ask(message)
            samples.append(time.perf_counter() - sent)
        client.close()

    clients = [await connect(port) for _ in range(connections)]
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(one(client))
    return percentiles(samples, time.perf_counter() - started)


async def repeat_for(port: int, message: bytes, *, connections: int, seconds: float) -> Latencies:
    """
    Send *message* for *seconds* over *connections* at once, and wait for every answer; raises on any but 200.

    So nothing is left half done where ``press`` leaves as many requests as connections, which counts where few are made.
    """
    end = time.perf_counter() + seconds
    return await _repeat_while(port, message, connections, lambda: time.perf_counter() < end)


async def repeat(port: int, message: bytes, *, count: int, connections: int) -> Latencies:
    """Send *message* *count* times over *connections* at once; raises on any answer but 200."""
    remaining = count

    def left() -> bool:
        nonlocal remaining
        remaining -= 1
        return remaining >= 0

    return await _repeat_while(port, message, connections, left)


class Paced(NamedTuple):
    """One request at a fixed rate: how late its answer was, and the answer."""

    seconds: float
    body: bytes


async def pace(port: int, messages: Sequence[bytes], *, rate: float) -> list[Paced | None]:
    """
    Send *messages*, *rate* a second, each when it is due; return what came of each, None where it failed.

    Connections are used again where one is free; a request never waits for one. The beat is a thread's: a timer of the
    loop is up to a millisecond late, and its clock as coarse, which would be told of the server.
    """
    idle: list[Client] = []
    paced: list[Paced | None] = [None] * len(messages)
    loop = asyncio.get_running_loop()
    started = time.perf_counter() + 0.05

    async def one(number: int) -> None:
        client = idle.pop() if idle else None
        try:
            client = client or await connect(port)
            body = await client.ask(messages[number])
        except (RuntimeError, OSError):
            if client is not None:
                client.close()
            return
        paced[number] = Paced(time.perf_counter() - (started + number / rate), body)
        idle.append(client)

    def beat() -> None:
        for number in range(len(messages)):
            if (early_s := started + number / rate - time.perf_counter()) > 0:
                time.sleep(early_s)
            loop.call_soon_threadsafe(lambda number: group.create_task(one(number)), number)

    async with asyncio.TaskGroup() as group:
        await asyncio.to_thread(beat)
    for client in idle:
        client.close()
    return paced
