"""A connection of our HTTP client without a network: bytes are put in, and what it does to its transport is noted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

from jarvis_core.services.http1 import Connection, Disconnected, NotHttp

T = TypeVar("T")

Ending = Literal["end", "lost", "no http"]


class Wire(asyncio.Transport):
    """What a connection writes to, and tells to pause and to close."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._reading = True
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing
        self.written += data

    def pause_reading(self) -> None:
        assert self._reading
        self._reading = False

    def resume_reading(self) -> None:
        assert not self._reading
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


class Keeper:
    """Who has the connections."""

    def __init__(self) -> None:
        self.kept: list[Connection] = []
        self.forgotten: list[Connection] = []

    def keep(self, connection: Connection) -> None:
        self.kept.append(connection)

    def forget(self, connection: Connection) -> None:
        self.forgotten.append(connection)


class Outcome(NamedTuple):
    """What became of an answer, the last of whose bytes were followed by the end of the connection where it waited for more."""

    status: int
    headers: dict[str, str]
    body: bytes
    ending: Ending
    kept: bool


def connected(owner: Keeper | None = None) -> tuple[Connection, Wire]:
    """Return a connection and its wire."""
    connection, wire = Connection(owner or Keeper()), Wire()
    connection.connection_made(wire)
    return connection, wire


def outcome(pieces: Iterable[bytes]) -> Outcome:
    """Return what becomes of an answer that comes in *pieces*."""
    owner = Keeper()
    connection, wire = connected(owner)
    response = connection.ask(b"GET / HTTP/1.1\r\n\r\n")
    for piece in pieces:
        if not wire.closing:
            connection.data_received(piece)
    if response.at_end:
        response.release()
    else:
        connection.connection_lost(None)
    assert wire.is_reading() or wire.closing or not owner.kept
    body, ending = b"", "end"
    try:
        while part := at_once(response.read()):
            body += part
    except NotHttp:
        ending = "no http"
    except Disconnected:
        ending = "lost"
    return Outcome(response.status, response.headers, body, ending, owner.kept == [connection])  # type: ignore[arg-type]


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what *coroutine* does, which has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *data* in the pieces between *places*."""
    bounds = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]
