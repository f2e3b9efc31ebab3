"""
Bounds what lies below HTTP: connections of one address, those whose clients do not read, and WebSocket messages of which
the end does not come.

Granian (2.8.7) accepts every connection up to one limit for all, keeps one that was given up for as long as its client
neither reads nor goes, and collects up to 64 MiB of a WebSocket message before anybody is told of it. It has no setting for
any of it and lends no handle to its connections; but they are files of this
process, and the kernel tells for each of them who is at its other end, and how much has come over it (tcp(7), ``TCP_INFO``).
So they are looked at now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from jarvis_core import log
from jarvis_core.settings import Network

logger = log.get(__name__)

INTERVAL_S = 0.2
TELL_INTERVAL_S = 10.0
"""How often connections that are too many are logged."""
REST = 200
"""
After a look that found nothing, how many times as long as it took nothing is looked at: 0.5 % of the processor at most. It
takes 10 µs a connection.
"""
CHUNK = 250
"""So many files are looked at before others on the loop have their turn."""
GROWTH_BYTES = 4 << 20
"""Where the process has grown by so much since the last look, it is looked what for."""
MESSAGE_LIMIT_BYTES = 24 << 20
"""Of a message of which the end has not come; the longest that may come has 20 MiB."""
FRAME_BYTES = 64
"""What a short message has around it: a frame's head and a record's of TLS."""
TLS_SHARE = 16
"""One part in so many of what comes may be TLS and the heads of further frames."""
FORGET = struct.pack("ii", 1, 0)
BYTES_RECEIVED = struct.Struct("=128xQ")
"""``tcpi_bytes_received`` of ``linux/tcp.h`` (Linux 4.1)."""

LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
"""Programs of this machine, which are no strangers, and proxies on it."""

Peer = tuple[str, int]
"""An address and a port."""


class Connection(NamedTuple):
    """One accepted connection of this process."""

    descriptor: int
    peer: Peer
    received_bytes: int
    """What has come over it since it was opened."""


class OpenSocket(Protocol):
    """A WebSocket whose messages are watched."""

    @property
    def peer(self) -> Peer | None:
        """The other end of its connection."""
        ...

    @property
    def holder(self) -> str:
        """Whose it is: a user, or an address."""
        ...

    @property
    def received_bytes(self) -> int:
        """How much has come over it as whole messages, with ``FRAME_BYTES`` for each."""
        ...

    def refuse_message(self, unfinished_bytes: int, limit_bytes: int, *, alone: bool) -> None:
        """Have it closed for the message that it does not end: too long *alone*, or with those of others."""
        ...


class _Progress:
    """How far a WebSocket has come."""

    __slots__ = ("on_the_wire_bytes", "unfinished_bytes", "whole_bytes")

    def __init__(self) -> None:
        self.on_the_wire_bytes = 0
        self.whole_bytes = 0
        self.unfinished_bytes = 0

    def go_on(self, on_the_wire_bytes: int, whole_bytes: int) -> None:
        """Work out what is unfinished from what has come since the last look, on the wire and as whole messages."""
        came, ended = on_the_wire_bytes - self.on_the_wire_bytes, whole_bytes - self.whole_bytes
        unfinished = self.unfinished_bytes + came
        if ended:
            # What was unfinished at the last look has its end now: messages do not overtake one another.
            unfinished = min(came, max(0, unfinished - ended - came // TLS_SHARE))
        self.on_the_wire_bytes, self.whole_bytes, self.unfinished_bytes = on_the_wire_bytes, whole_bytes, unfinished


class ConnectionWatch:
    """Looks at this process's connections, and closes those that are too many or hold too much."""

    def __init__(
        self,
        sockets: Callable[[], Iterable[OpenSocket]],
        take_stalled: Callable[[], set[Peer]],
        *,
        address_limit: int,
        messages_limit_bytes: int,
        unlimited: tuple[Network, ...] = (),
        other_port: int | None = None,
    ) -> None:
        """*other_port* is one that this process listens on too, whose connections are none of HTTP."""
        self._sockets = sockets
        self._take_stalled = take_stalled
        self._stalled: set[Peer] = set()
        self._address_limit = address_limit
        self._messages_limit_bytes = messages_limit_bytes
        self._unlimited = unlimited
        self._other_port = other_port
        self._progress: dict[OpenSocket, _Progress] = {}
        self._known: dict[Peer, int] = {}
        """Connections in the order in which they were first seen."""
        self._seen = 0
        self._resident_bytes = 0
        self._told_at = -TELL_INTERVAL_S
        self._untold = 0
        """Connections that were closed since it was last logged."""

    async def run(self) -> None:
        """Wait until this process listens, then look again and again, until it is cancelled."""
        loop = asyncio.get_running_loop()
        pause_s = INTERVAL_S
        while (port := listening_port(self._other_port)) is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(pause_s)
        while True:
            await asyncio.sleep(pause_s)
            began = loop.time()
            found = 0
            try:
                if self._is_due():
                    found = await self.look(port)
            except Exception:
                logger.exception("looking at connections failed through a defect")
            pause_s = INTERVAL_S if found else max(INTERVAL_S, REST * (loop.time() - began))

    async def look(self, port: int) -> int:
        """Look once at every connection to *port*; return how many were closed."""
        connections = [one async for one in own_connections(port)]
        found = sum(end(one) for one in connections if one.peer in self._stalled)
        self._stalled.clear()
        if self._address_limit:
            found += self._close_too_many(connections)
        return found + self._refuse_endless({one.peer: one.received_bytes for one in connections})

    def _is_due(self) -> bool:
        self._stalled |= self._take_stalled()
        resident_bytes = _resident_bytes()
        grown = resident_bytes > self._resident_bytes + GROWTH_BYTES
        # Each connection is a file: while there are no more files than that, no address can be over its limit.
        many = bool(self._address_limit) and len(_files()) > self._address_limit
        waiting = any(one.unfinished_bytes > GROWTH_BYTES for one in self._progress.values())
        if grown or waiting or resident_bytes < self._resident_bytes:
            self._resident_bytes = resident_bytes
        return grown or waiting or many or bool(self._stalled)

    def _close_too_many(self, connections: list[Connection]) -> int:
        known = {}
        for one in connections:
            seen = self._known.get(one.peer)
            if seen is None:
                seen = self._seen = self._seen + 1
            known[one.peer] = seen
        self._known = known
        by_address: dict[str, list[Connection]] = {}
        for one in connections:
            by_address.setdefault(one.peer[0], []).append(one)
        by_share: dict[str, list[Connection]] = {}
        for address, those in by_address.items():
            share = self._share(address)
            if share:
                by_share.setdefault(share, []).extend(those)
        closed = 0
        for share, those in by_share.items():
            if len(those) > self._address_limit:
                those.sort(key=lambda one: known[one.peer])
                ended = sum(end(one) for one in those[self._address_limit :])
                closed += ended
                self._untold += ended
                now = asyncio.get_running_loop().time()
                if now >= self._told_at + TELL_INTERVAL_S:
                    logger.warning(
                        "an address has too many connections", address=share, open=len(those), closed=self._untold
                    )
                    self._told_at, self._untold = now, 0
        return closed

    def _share(self, address: str) -> str:
        parsed = ipaddress.ip_address(address)
        if parsed.version == 6:
            parsed = parsed.ipv4_mapped or parsed
        if any(parsed in network for network in self._unlimited):
            return ""
        return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))

    def _refuse_endless(self, received_bytes: dict[Peer, int]) -> int:
        progress: dict[OpenSocket, _Progress] = {}
        for one in self._sockets():
            on_the_wire = None if one.peer is None else received_bytes.get(one.peer)
            if on_the_wire is not None:
                state = progress[one] = self._progress.get(one) or _Progress()
                state.go_on(on_the_wire, one.received_bytes)
        self._progress = progress
        refused = 0
        for one in [one for one, state in progress.items() if state.unfinished_bytes > MESSAGE_LIMIT_BYTES]:
            self._refuse(one, MESSAGE_LIMIT_BYTES, alone=True)
            refused += 1
        while sum(state.unfinished_bytes for state in progress.values()) > self._messages_limit_bytes:
            # The longest of who has most, so that nobody pays for what somebody else's many messages hold.
            held: dict[str, int] = {}
            for one, state in progress.items():
                held[one.holder] = held.get(one.holder, 0) + state.unfinished_bytes
            most = max(held, key=held.__getitem__)
            longest = max(
                (one for one in progress if one.holder == most), key=lambda one: progress[one].unfinished_bytes
            )
            self._refuse(longest, self._messages_limit_bytes, alone=False)
            refused += 1
        return refused

    def _refuse(self, one: OpenSocket, limit_bytes: int, *, alone: bool) -> None:
        unfinished = self._progress.pop(one).unfinished_bytes
        logger.warning("a message over a WebSocket has no end", holder=one.holder, bytes=unfinished)
        one.refuse_message(unfinished, limit_bytes, alone=alone)


def listening() -> Iterator[socket.socket]:
    """Give copies of the TCP sockets that this process listens on."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if not path.is_socket():
                continue
            one = socket.socket(fileno=os.dup(int(path.name)))
            if one.family != socket.AF_UNIX and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield one
            else:
                one.close()


def _files() -> list[str]:
    # A number is a third of a path's price, and there may be thousands.
    return os.listdir("/proc/self/fd")  # noqa: PTH208


def listening_port(but: int | None) -> int | None:
    """Return the port that this process listens on beside *but*; None while there is none."""
    port: int | None = None
    for one in listening():
        with one:
            found = one.getsockname()[1]
            port = port if found == but else found
    return port


async def own_connections(port: int) -> AsyncIterator[Connection]:
    """Give the connections that this process has accepted on *port*."""
    for number, name in enumerate(_files()):
        if number % CHUNK == CHUNK - 1:
            await asyncio.sleep(0)
        with contextlib.suppress(OSError, struct.error):  # no socket, not connected, or closed meanwhile
            connection = _connection(int(name), port)
            if connection is not None:
                yield connection


def _connection(descriptor: int, port: int) -> Connection | None:
    # The family of the longest addresses does for both. Another thread may close the file meanwhile, which the kernel
    # tells, and open another under the number, which is then told as what it is.
    one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        own = one.getsockname()
        if not isinstance(own, tuple) or own[1] != port:
            return None
        peer = one.getpeername()
        told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED.size)
    finally:
        one.detach()
    # Of a link-local address the interface is no part, as in ASGI's scope.
    return Connection(descriptor, (peer[0].partition("%")[0], peer[1]), BYTES_RECEIVED.unpack(told)[0])


def end(connection: Connection) -> bool:
    """
    Close *connection* for its client; the server below us notices, as where the client has left, and closes its file.

    What has not been sent by then is forgotten (socket(7), ``SO_LINGER``): the kernel would keep it, as long as the client
    answers that it has no room.
    """
    try:
        # Of its own number: the other one may be another file by now.
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=os.dup(connection.descriptor)) as one:
            address, port, *_ = one.getpeername()
            if (address.partition("%")[0], port) != connection.peer:
                return False
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, FORGET)
            one.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:
        return False


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
