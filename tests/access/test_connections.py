"""What is below HTTP: connections of one address, and messages without an end, seen by the kernel's counters."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator

import pytest

from jarvis_core.access.connections import (
    FRAME_BYTES,
    LOOPBACK,
    MESSAGE_LIMIT_BYTES,
    ConnectionWatch,
    Peer,
    own_connections,
)

pytestmark = pytest.mark.every_python

MIB = 1 << 20


class Side:
    """A listening socket with both ends of its connections."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Open a connection from *source*, and return its client's end."""
        self.clients.append(socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0)))
        self.accepted.append(self._listening.accept()[0])
        return self.clients[-1]

    def ended(self) -> list[bool]:
        """Whether each connection was closed for its client, in the order in which they were opened."""
        found = []
        for one in self.clients:
            one.setblocking(False)
            try:
                found.append(one.recv(1) == b"")
            except BlockingIOError:
                found.append(False)
        return found

    def close(self) -> None:
        """Close all."""
        for one in (*self.clients, *self.accepted, self._listening):
            one.close()


@pytest.fixture
def side() -> Iterator[Side]:
    """Listen."""
    with contextlib.closing(Side()) as side:
        yield side


class Message:
    """A WebSocket whose client sends a message."""

    def __init__(self, side: Side, holder: str = "ann") -> None:
        self.holder = holder
        self._client = side.connect()
        self._server = side.accepted[-1]
        self.peer: Peer | None = self._client.getsockname()
        self.received_bytes = 0
        self.told: tuple[int, int, bool] | None = None

    def send(self, length: int, *, ends: bool = False) -> None:
        """Send so much, which is collected; at its *end* the session is given all."""
        left = length
        while left:
            part = min(left, 1 << 16)
            self._client.sendall(bytes(part))
            got = 0
            while got < part:
                got += len(self._server.recv(part))
            left -= part
        if ends:
            self.received_bytes += length + FRAME_BYTES

    def refuse_message(self, unfinished_bytes: int, limit_bytes: int, *, alone: bool) -> None:
        """Keep what it was told."""
        self.told = (unfinished_bytes, limit_bytes, alone)


def watch(
    *messages: Message, limit: int = 0, total: int = 64 * MIB, unlimited: tuple[str, ...] = ()
) -> ConnectionWatch:
    """Make one that knows the sockets *messages*."""
    networks = tuple(ipaddress.ip_network(text) for text in unlimited)
    return ConnectionWatch(lambda: messages, set, address_limit=limit, messages_limit_bytes=total, unlimited=networks)


async def test_own_connections(side: Side) -> None:
    """Each accepted connection is told with its other end and what came over it; neither a client's nor another port's."""
    one, other = side.connect(), side.connect("127.0.0.2")
    one.sendall(b"x" * 1_000)
    found = {connection.peer: connection.received_bytes async for connection in own_connections(side.port)}
    assert found == {one.getsockname(): 1_000, other.getsockname(): 0}
    # They are as they were.
    side.accepted[1].sendall(b"y")
    assert other.recv(1) == b"y"


async def test_too_many_of_one_address(side: Side) -> None:
    """The newest connections over an address's limit are closed; the older ones, and other addresses', stay."""
    looking = watch(limit=3)
    for _ in range(2):
        side.connect()
    side.connect("127.0.0.2")
    await looking.look(side.port)
    for _ in range(3):
        side.connect()
    await looking.look(side.port)
    assert side.ended()[:3] == [False, False, False]
    assert sorted(side.ended()[3:]) == [False, True, True]


@pytest.mark.parametrize("unlimited", [tuple(map(str, LOOPBACK)), ("127.0.0.1/32",)])
async def test_unlimited(side: Side, unlimited: tuple[str, ...]) -> None:
    """A proxy is many clients, and this machine no stranger."""
    for _ in range(5):
        side.connect()
    await watch(limit=2, unlimited=unlimited).look(side.port)
    assert not any(side.ended())


async def test_stalled_connections_are_closed(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was given up because he does not read is closed, and nobody else."""
    monkeypatch.setattr("jarvis_core.access.connections.INTERVAL_S", 0.01)
    monkeypatch.setattr("jarvis_core.access.connections.listening_port", lambda _: side.port)
    side.connect()
    stalled = {side.connect().getsockname()}
    side.connect()
    taken: list[set[Peer]] = [stalled]
    looking = ConnectionWatch(
        lambda: (), lambda: taken.pop() if taken else set(), address_limit=0, messages_limit_bytes=MIB
    )
    running = asyncio.create_task(looking.run())
    async with asyncio.timeout(5):
        while side.ended() != [False, True, False]:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
    running.cancel()


async def test_message_without_an_end(side: Side) -> None:
    """Of a message that goes on and on the client is told; what has its end, however often it comes, is none of these."""
    endless, steady, idle = Message(side), Message(side), Message(side)
    looking = watch(endless, steady, idle)
    for _ in range(26):
        endless.send(MIB)
        steady.send(MIB, ends=True)
        await looking.look(side.port)
    assert endless.told is not None
    unfinished, limit, alone = endless.told
    assert MESSAGE_LIMIT_BYTES < unfinished <= 26 * MIB
    assert (limit, alone) == (MESSAGE_LIMIT_BYTES, True)
    assert (steady.told, idle.told) == (None, None)


async def test_what_is_around_messages(side: Side) -> None:
    """Frames' heads and TLS around many short messages are none without an end, also where nobody looks for long."""
    message = Message(side)
    looking = watch(message)
    for _ in range(2):
        message.send(48 * MIB)
        message.received_bytes += 48 * MIB // 128 * (100 + FRAME_BYTES)
        await looking.look(side.port)
    assert message.told is None
    message.send(25 * MIB)
    await looking.look(side.port)
    assert message.told is not None


async def test_an_end_forgets(side: Side) -> None:
    """A long message that ends at last counts no more; what comes behind it does."""
    message = Message(side)
    looking = watch(message, total=32 * MIB)
    await looking.look(side.port)
    for _ in range(3):
        message.send(16 * MIB)
        await looking.look(side.port)
        message.send(4 * MIB)
        message.received_bytes += 20 * MIB
        message.send(2 * MIB)
        await looking.look(side.port)
    assert message.told is None
    message.send(23 * MIB)
    await looking.look(side.port)
    assert message.told is not None


async def test_many_messages_without_an_end(side: Side) -> None:
    """Where all together are too much the longest of who has most is given up, and no more than is needed."""
    one, two, three = (Message(side, "ann") for _ in range(3))
    other = Message(side, "bob")
    looking = watch(one, two, three, other, total=32 * MIB)
    await looking.look(side.port)
    for message, length in ((one, 8), (two, 10), (three, 9), (other, 12)):
        message.send(length * MIB)
    await looking.look(side.port)
    assert two.told == (10 * MIB, 32 * MIB, False)
    assert (one.told, three.told, other.told) == (None, None, None)


async def test_runs_until_it_is_cancelled(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds out by itself on which port this process listens, and when it is worth looking."""
    monkeypatch.setattr("jarvis_core.access.connections.INTERVAL_S", 0.01)
    monkeypatch.setattr("jarvis_core.access.connections.listening", lambda: iter([side.accepted[0].dup()]))
    side.connect()
    running = asyncio.create_task(watch(limit=1).run())
    side.connect()
    async with asyncio.timeout(5):
        while side.ended() != [False, True]:  # noqa: ASYNC110 - another thread's counters tell of nothing
            await asyncio.sleep(0.01)
    running.cancel()
