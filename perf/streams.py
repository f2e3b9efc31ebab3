"""Drivers that follow answers as they are said: server-sent events, and turns over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable

from perf.load import Latencies, percentiles

HANDSHAKE = (
    "GET {} HTTP/1.1\r\nhost: perf\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT_DELTA = b'"response.output_text.delta"'
LONGEST_MARK = 64


async def first_delta(port: int, message: bytes, mark: bytes) -> float:
    """Send *message*, read its stream to the end, and return the seconds until *mark* first came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(message)
    seen = b""
    first = None
    while chunk := await reader.read(65_536):
        seen = seen[-LONGEST_MARK:] + chunk
        if first is None and mark in seen:
            first = time.perf_counter() - started
        if seen.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    if first is None:
        raise RuntimeError(f"no {mark!r} in the stream: {seen[:300]!r}")
    return first


async def events(port: int, message: bytes, mark: bytes, *, at_once: int, spread_s: float) -> Latencies:
    """Start *at_once* streams evenly over *spread_s* seconds; return their times to the first *mark*."""
    return await _spread(lambda: first_delta(port, message, mark), at_once, spread_s)


async def turns(port: int, *, at_once: int, spread_s: float, path: str = "/ws") -> Latencies:
    """Open *at_once* WebSockets evenly over *spread_s* seconds, one turn over each; return times to the first delta."""
    return await _spread(lambda: _turn(port, path), at_once, spread_s)


async def open_socket(port: int, path: str = "/ws") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a WebSocket whose session has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HANDSHAKE.format(path).encode())
    await _read_until(reader, b'"session.created"')
    return reader, writer


async def _turn(port: int, path: str) -> float:
    reader, writer = await open_socket(port, path)
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Bonjour Jarvis"}]}
    started = time.perf_counter()
    writer.write(_frame({"type": "conversation.item.create", "item": item}) + _frame({"type": "response.create"}))
    rest = await _read_until(reader, TEXT_DELTA)
    first = time.perf_counter() - started
    await _read_until(reader, b'"response.done"', rest)
    writer.close()
    return first


async def _read_until(reader: asyncio.StreamReader, mark: bytes, seen: bytes = b"") -> bytes:
    """Read until *mark* has come, and return the end of what was read; frames of a server are not masked."""
    while mark not in seen:
        chunk = await reader.read(65_536)
        if not chunk:
            raise RuntimeError(f"closed without {mark!r}: {seen[-300:]!r}")
        seen = seen[-LONGEST_MARK:] + chunk
    return seen


def _frame(event: dict[str, object]) -> bytes:
    """Return *event* as a text frame of a client (RFC 6455, section 5.2)."""
    payload = json.dumps(event).encode()
    mask = os.urandom(4)
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    return b"\x81" + length + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


async def _spread(one: Callable[[], Awaitable[float]], at_once: int, spread_s: float) -> Latencies:
    started = time.perf_counter()

    async def later(number: int) -> float:
        await asyncio.sleep(spread_s * number / at_once)
        return await one()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(later(number)) for number in range(at_once)]
    return percentiles([task.result() for task in tasks], time.perf_counter() - started)
