"""Drivers of load: raw HTTP/1.1 over asyncio, cheap enough to leave the other core to the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast


class Latencies(NamedTuple):
    """Of finished requests, in milliseconds."""

    p50: float
    p99: float
    finished: int
    seconds: float


def percentiles(samples_s: list[float], seconds: float) -> Latencies:
    """Return the percentiles of *samples_s*."""
    ordered = sorted(samples_s)

    def at(share: float) -> float:
        return 1_000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Latencies(at(0.5), at(0.99), len(ordered), seconds)


def request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """Return the bytes of a request."""
    kind = "content-type: application/json\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nhost: perf\r\n{kind}{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Client(asyncio.Protocol):
    """Sends the same request again and again over one connection, one at a time."""

    def __init__(self, message: bytes, left: Callable[[], bool], samples: list[float]) -> None:
        self._message = message
        self._left = left
        self._samples = samples
        self._buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def _next(self) -> None:
        if self._left():
            self._sent = time.perf_counter()
            self._transport.write(self._message)
        else:
            self._transport.close()
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"answered {self._buffer[:500]!r}"))
            return
        self._buffer = b""
        self._samples.append(time.perf_counter() - self._sent)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or RuntimeError("the server closed the connection"))


async def repeat(port: int, message: bytes, *, count: int, connections: int) -> Latencies:
    """Send *message* *count* times over *connections* at once; raises on any answer but 200."""
    loop = asyncio.get_running_loop()
    remaining = count

    def left() -> bool:
        nonlocal remaining
        remaining -= 1
        return remaining >= 0

    samples: list[float] = []
    started = time.perf_counter()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(message, left, samples), "127.0.0.1", port)
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    return percentiles(samples, time.perf_counter() - started)


async def first_delta(port: int, message: bytes, mark: bytes) -> float:
    """Send *message*, read its stream to the end, and return the seconds until *mark* first came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(message)
    seen = b""
    first = None
    while chunk := await reader.read(65_536):
        seen = seen[-64:] + chunk
        if first is None and mark in seen:
            first = time.perf_counter() - started
        if seen.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    if first is None:
        raise RuntimeError(f"no {mark!r} in the stream: {seen[:300]!r}")
    return first


async def streams(port: int, message: bytes, mark: bytes, *, at_once: int, spread_s: float) -> Latencies:
    """Start *at_once* streams evenly over *spread_s* seconds; return their times to the first delta."""
    started = time.perf_counter()

    async def one(number: int) -> float:
        await asyncio.sleep(spread_s * number / at_once)
        return await first_delta(port, message, mark)

    times = await asyncio.gather(*(one(number) for number in range(at_once)))
    return percentiles(list(times), time.perf_counter() - started)
