"""One connection of our HTTP client, fed without a network; made-up answers are in ``tests/fuzz``."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from jarvis_core.services.http1 import (
    CHUNK_HEAD_LIMIT_BYTES,
    HEAD_LIMIT_BYTES,
    HIGH_WATER_BYTES,
    Connection,
    Disconnected,
    NotHttp,
    Response,
)
from tests.fakes.wire import Keeper, Outcome, Wire, at_once, connected, cut, outcome

OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 10\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = OK + b"\r\n"
TYPE = {"content-type": "text/plain"}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Have only what nobody refers to be freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def sized(headers: bytes, body: bytes = b"voix") -> bytes:
    """Return an answer that has one more header, or several."""
    return OK + headers + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def failure(*pieces: bytes) -> str:
    """Return how an answer ends that is none or breaks off, whatever it gave before; its connection is not kept."""
    found = outcome(pieces)
    assert not found.kept
    return found.ending


# What an answer says


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            OK + b"content-TYPE: text/plain\r\nX:\r\ncontent-length: 4\r\n\r\nvoix",
            Outcome(200, TYPE | {"x": "", "content-length": "4"}, b"voix", "end", True),
        ),
        (
            CHUNKED + b"2;a=b\r\nvo\r\n0002\r\nix\r\n0\r\nX-Trailer: 1\r\n\r\n",
            Outcome(200, {"transfer-encoding": "chunked"}, b"voix", "end", True),
        ),
        (
            CHUNKED + b"a  \r\n0123456789\r\n00\r\n\r\n",
            Outcome(200, {"transfer-encoding": "chunked"}, b"0123456789", "end", True),
        ),
        (UNTIL_CLOSE + b"voix\r\n\r\n", Outcome(200, {}, b"voix\r\n\r\n", "end", False)),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 204\r\n\r\n",
            Outcome(204, {}, b"", "end", True),
        ),
        (b"HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n", Outcome(304, {"content-length": "9"}, b"", "end", True)),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", Outcome(200, {"content-length": "1"}, b"a", "end", False)),
        (
            b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: Keep-Alive\r\n\r\na",
            Outcome(200, {"content-length": "1", "connection": "Keep-Alive"}, b"a", "end", True),
        ),
        (
            OK + b"a: 1\r\nA: 2\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n",
            Outcome(200, {"a": "1, 2", "connection": "Close", "content-length": "0"}, b"", "end", False),
        ),
        (
            OK + b"content-length: 1\r\ncontent-length: 1\r\n\r\na",
            Outcome(200, {"content-length": "1, 1"}, b"a", "end", True),
        ),
        (
            OK + b"transfer-encoding: chunked\r\ncontent-length: 9\r\n\r\n1\r\na\r\n0\r\n\r\n",
            Outcome(200, {"transfer-encoding": "chunked", "content-length": "9"}, b"a", "end", False),
        ),
        (
            b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n1\r\na\r\n0\r\n\r\n",
            Outcome(200, {"transfer-encoding": "chunked", "connection": "keep-alive"}, b"a", "end", False),
        ),
        (
            sized(b"content-encoding: Identity", b""),
            Outcome(200, {"content-encoding": "Identity", "content-length": "0"}, b"", "end", True),
        ),
    ],
)
def test_answers(data: bytes, expected: Outcome) -> None:
    """An answer is what it says, in one piece, in every two and three, and byte by byte."""
    assert outcome([data]) == expected
    assert outcome(cut(data, range(len(data)))) == expected
    for places in itertools.combinations(range(1, len(data)), 2):
        assert outcome(cut(data, places)) == expected


def test_content_type() -> None:
    """The type is without its parameters and in lower case; without the header it is empty."""
    for header, expected in (
        (b"Content-Type: Text/Event-Stream ; charset=utf-8", "text/event-stream"),
        (b"Content-Type:", ""),
        (b"a: b", ""),
    ):
        connection, _ = connected()
        response = connection.ask(b"")
        connection.data_received(sized(header))
        assert response.content_type == expected


# What is no answer


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9",
        b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.x 200 OK",
        b"HTTP/1.10 200 OK",
        b"HTTP/1. 200 OK",
        b"http/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200\tOK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 000 OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1 2_0 OK",
        b"HTTP/1.1 \xb2\xb2\xb2 OK",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 OK\rX",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket",
    ],
)
def test_status_lines(first: bytes) -> None:
    """What does not begin as an answer does is none."""
    data = first + b"\r\nContent-Length: 4\r\n\r\nvoix"
    assert failure(data) == "no http"
    assert failure(*cut(data, range(len(data)))) == "no http"


@pytest.mark.parametrize(
    "line",
    [
        b"nothing",
        b": nameless",
        b" folded: line",
        b"a: b\r\n folded",
        b"before : colon",
        b"a b: c",
        b"na\xefve: c",
        b"a\0: b",
        b"a: b\0",
        b"a: b\rc",
        b"a: b\nTransfer-Encoding: chunked",
        b"a: b\r\r\nc: d",
        b"content-length: 4\r\ncontent-length: 5",
        b"content-length: 5",
        b"content-length: 4, 5",
        b"content-length: 4, 04",
        b"content-length: 4,",
        b"content-length:",
        b"content-length: -4",
        b"content-length: +4",
        b"content-length: 4.0",
        b"content-length: 0x4",
        b"content-length: 4_0",
        b"content-length: 4 4",
        b"content-length: \xb2",
        b"content-length: 4\xa0",
        b"content-length: four",
        b"content-length: " + b"9" * 19,
        b"content-length: " + b"9" * 5_000,
        b"transfer-encoding: gzip, chunked",
        b"transfer-encoding: chunked, chunked",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        b"transfer-encoding: xchunked",
        b"transfer-encoding: identity",
        b"transfer-encoding:",
        b"content-encoding: gzip",
        b"content-encoding: identity, br",
    ],
)
def test_headers(line: bytes) -> None:
    """A head with a line that is no header, or that tells otherwise or not at all how long the body is, is none."""
    assert failure(sized(line)) == "no http"


@pytest.mark.parametrize(
    "rest",
    [
        b"\r\n",
        b";a=b\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b" 1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1_0\r\n" + b"a" * 16 + b"\r\n",
        b"1 0\r\n",
        b"g\r\n",
        b"\xb2\r\n",
        b"1\na\n0\n\n\r\n",
        b"0" * 16 + b"\r\n\r\n",
        b"f" * 16 + b"\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n\n",
        b"1\r\na0\r\n\r\n",
        b"2\r\na\r\n0\r\n\r\n",
        b"1" * (CHUNK_HEAD_LIMIT_BYTES + 2),
        b"1;" + b"a" * CHUNK_HEAD_LIMIT_BYTES + b"\r\n",
    ],
)
def test_chunks(rest: bytes) -> None:
    """A chunk whose size is no number, is not what it says, or has no end, is none; what came before it was given."""
    data = CHUNKED + b"4\r\nvoix\r\n" + rest
    for pieces in ([data], cut(data, [len(CHUNKED) + 9]), cut(data, range(len(data)))):
        found = outcome(pieces)
        assert (found.ending, found.status, found.body[:4], found.kept) == ("no http", 200, b"voix", False)


def test_nothing_is_read_after_nonsense() -> None:
    """After what is no answer the connection is closed, and what comes all the same is not looked at."""
    owner = Keeper()
    connection, wire = connected(owner)
    response = connection.ask(b"")
    connection.data_received(CHUNKED + b"x\r\n")
    assert wire.closing
    connection.data_received(b"4\r\nvoix\r\n0\r\n\r\n")
    connection.connection_lost(None)
    for _ in range(2):
        with pytest.raises(NotHttp):
            at_once(response.read())
    response.release()
    response.close()
    assert owner.kept == []


# Limits


def padded(length: int) -> bytes:
    """Return an answer with a head of *length* bytes, without its empty line."""
    before = OK + b"content-length: 1\r\na: "
    return before + b"x" * (length - len(before)) + b"\r\n\r\na"


def test_longest_head() -> None:
    """A head may be 64 KiB long, wherever it is cut, and no byte longer."""
    for length, ending in ((HEAD_LIMIT_BYTES, "end"), (HEAD_LIMIT_BYTES + 1, "no http")):
        data = padded(length)
        assert outcome([data]).ending == ending
        for place in range(HEAD_LIMIT_BYTES - 2, len(data)):
            assert outcome(cut(data, [place])).ending == ending
    assert failure(OK + b"a: " + b"x" * HEAD_LIMIT_BYTES) == "no http"


def test_longest_chunk_head() -> None:
    """So with the line before a chunk."""
    for length, ending in ((CHUNK_HEAD_LIMIT_BYTES, "end"), (CHUNK_HEAD_LIMIT_BYTES + 1, "no http")):
        line = b"1;" + b"x" * (length - 2) + b"\r\n"
        data = CHUNKED + line + b"a\r\n0\r\n\r\n"
        for place in range(len(CHUNKED) + length - 2, len(data)):
            assert outcome(cut(data, [place])).ending == ending


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (CHUNKED + b"0\r\n", b"a: b\r\n"),
        (CHUNKED, b"1;" + b"x" * CHUNK_HEAD_LIMIT_BYTES),
        (OK, b"a: b\r\n"),
    ],
    ids=["interim answers", "trailers", "extensions", "headers"],
)
def test_what_does_not_end(before: bytes, again: bytes) -> None:
    """Whatever is sent around a body for ever is not read for ever."""
    connection, wire = connected()
    response = connection.ask(b"")
    connection.data_received(before)
    for _ in range(2 * HEAD_LIMIT_BYTES // len(again)):
        if not wire.closing:
            connection.data_received(again)
    assert wire.closing
    with pytest.raises(NotHttp):
        at_once(response.read())


def test_lines_without_carriage_returns() -> None:
    """A head whose lines end otherwise is seen to be none before its end is waited for."""
    connection, wire = connected()
    connection.ask(b"")
    connection.data_received(b"HTTP/1.1 200 OK\nContent-Length: 4\n\nvoix")
    assert wire.closing


def test_many_small_chunks_at_once() -> None:
    """A body in the smallest chunks costs as much as it has of them, not as their square."""
    connection, _ = connected()
    response = connection.ask(b"")
    data = CHUNKED + b"1\r\na\r\n" * 200_000
    started = time.process_time()
    connection.data_received(data)
    assert time.process_time() - started < 3  # 0.15 s; copied for each it were 10 s
    assert at_once(response.read()) == b"a" * 200_000


# The end of the connection


@pytest.mark.parametrize(
    ("data", "status", "body", "ending"),
    [
        (b"", 0, b"", "lost"),
        (b"HTT", 0, b"", "lost"),
        (SIZED[:-1], 0, b"", "lost"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 0, b"", "lost"),
        (SIZED, 200, b"", "lost"),
        (SIZED + b"voix", 200, b"voix", "lost"),
        (SIZED + b"0123456789", 200, b"0123456789", "end"),
        (CHUNKED, 200, b"", "lost"),
        (CHUNKED + b"4", 200, b"", "lost"),
        (CHUNKED + b"4\r\nvo", 200, b"vo", "lost"),
        (CHUNKED + b"4\r\nvoix", 200, b"voix", "lost"),
        (CHUNKED + b"4\r\nvoix\r\n", 200, b"voix", "lost"),
        (CHUNKED + b"4\r\nvoix\r\n0\r\n", 200, b"voix", "lost"),
        (CHUNKED + b"4\r\nvoix\r\n0\r\na: b\r\n", 200, b"voix", "lost"),
        (CHUNKED + b"4\r\nvoix\r\n0\r\n\r\n", 200, b"voix", "end"),
        (UNTIL_CLOSE, 200, b"", "end"),
        (UNTIL_CLOSE + b"voix", 200, b"voix", "end"),
    ],
)
def test_connection_that_ends(data: bytes, status: int, body: bytes, ending: str) -> None:
    """An answer whose connection ends before it does is lost; what came of it was given."""
    for pieces in ([data], cut(data, range(len(data)))):
        found = outcome(pieces)
        assert (found.status, found.body, found.ending) == (status, body, ending)


def test_connection_that_breaks() -> None:
    """A body without a length of its own that breaks off has no end, and the reason is told."""
    owner = Keeper()
    connection, _ = connected(owner)
    response = connection.ask(b"")
    connection.data_received(UNTIL_CLOSE + b"vo")
    connection.connection_lost(ConnectionResetError("reset by peer"))
    assert at_once(response.read()) == b"vo"
    with pytest.raises(Disconnected, match="reset by peer"):
        at_once(response.read())
    assert owner.forgotten == [connection]


@pytest.mark.parametrize("close", [lambda response, _: response.close(), lambda _, connection: connection.close()])
async def test_closed_here(close: Callable[[Response, Connection], None]) -> None:
    """Whoever waits for a body that is closed on this side sees that it is lost, also one that ends with its connection."""
    for head in (SIZED, CHUNKED, UNTIL_CLOSE):
        connection, wire = connected()
        response = connection.ask(b"")
        connection.data_received(head)
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        close(response, connection)
        assert wire.closing
        connection.connection_lost(None)
        with pytest.raises(Disconnected):
            await reading
        with pytest.raises(Disconnected):
            await response.read()


async def test_asked_too_late() -> None:
    """A request over a connection that is closed already is lost at once, and not written."""
    connection, wire = connected()
    wire.abort()
    connection.connection_lost(None)
    with pytest.raises(Disconnected):
        at_once(connection.ask(b"GET").wait_head())
    assert wire.written == b""


@pytest.mark.every_python
async def test_cancelled_reader() -> None:
    """Who stops waiting for a part takes nothing from who reads next."""
    connection, _ = connected()
    response = connection.ask(b"")
    connection.data_received(SIZED)
    for data in (None, b"voix"):
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        if data is not None:
            connection.data_received(data)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
    assert at_once(response.read()) == b"voix"


# Back pressure


def test_back_pressure() -> None:
    """With more than the high water unread nothing more is taken from the network, until it was read."""
    connection, wire = connected()
    response = connection.ask(b"")
    connection.data_received(UNTIL_CLOSE)
    for _ in range(3):
        connection.data_received(b"x" * HIGH_WATER_BYTES)
        assert wire.is_reading()
        connection.data_received(b"x")
        assert not wire.is_reading()
        connection.data_received(b"x" * HIGH_WATER_BYTES)  # what had been taken before
        assert len(at_once(response.read())) == 2 * HIGH_WATER_BYTES + 1
        assert wire.is_reading()


def test_back_pressure_of_many_chunks() -> None:
    """What is unread counts, not in how many parts it came."""
    connection, wire = connected()
    connection.ask(b"")
    connection.data_received(CHUNKED)
    chunk = b"400\r\n" + b"x" * 1_024 + b"\r\n"
    for _ in range(HIGH_WATER_BYTES // 1_024):
        connection.data_received(chunk)
    assert wire.is_reading()
    connection.data_received(chunk)
    assert not wire.is_reading()


def test_end_that_came_while_paused() -> None:
    """A connection whose answer was let go unread takes from the network again, and is good for the next request."""
    owner = Keeper()
    connection, wire = connected(owner)
    body = b"x" * (HIGH_WATER_BYTES + 1)
    for _ in range(2):
        response = connection.ask(b"")
        connection.data_received(sized(b"a: b", body))
        assert not wire.is_reading()
        response.release()
        assert wire.is_reading()
        assert owner.kept.pop() is connection
        assert at_once(response.read()) == body  # what was let go can be read
        assert wire.is_reading()
    following = connection.ask(b"")
    connection.data_received(sized(b"a: b"))
    assert at_once(following.read()) == b"voix"


def test_closed_while_paused() -> None:
    """A paused connection that was closed is not told to go on."""
    connection, wire = connected()
    response = connection.ask(b"")
    connection.data_received(UNTIL_CLOSE + b"x" * (HIGH_WATER_BYTES + 1))
    response.close()
    assert at_once(response.read())
    assert (wire.is_reading(), wire.closing) == (False, True)


# What nobody asked for, and who comes next


@pytest.mark.parametrize("data", [b"x", sized(b"a: b")])
def test_data_on_an_idle_connection(data: bytes) -> None:
    """What comes before anything was asked closes the connection: the next answer could not be told from it."""
    owner = Keeper()
    connection, wire = connected(owner)
    response = connection.ask(b"")
    connection.data_received(sized(b"a: b"))
    response.release()
    assert (owner.kept, wire.closing) == ([connection], False)
    connection.data_received(data)
    assert wire.closing


@pytest.mark.parametrize("end", [sized(b"a: b"), CHUNKED + b"4\r\nvoix\r\n0\r\n\r\n", b"HTTP/1.1 204 \r\n\r\n"])
def test_bytes_after_an_answer(end: bytes) -> None:
    """More than the answer, with it or after it, keeps the connection from being used again, and the answer is whole."""
    for more in (b"x", b"\r\n", sized(b"a: b")):
        for pieces in ([end + more], [end, more]):
            owner = Keeper()
            connection, wire = connected(owner)
            response = connection.ask(b"")
            for piece in pieces:
                connection.data_received(piece)
            response.release()
            assert (owner.kept, wire.closing, response.at_end) == ([], True, True)
            assert at_once(response.read()) in (b"voix", b"")


def test_released_too_early() -> None:
    """A connection whose answer was not whole is closed."""
    owner = Keeper()
    connection, wire = connected(owner)
    response = connection.ask(b"")
    connection.data_received(SIZED + b"voix")
    response.release()
    assert (owner.kept, wire.closing) == ([], True)


def test_answer_that_was_let_go() -> None:
    """What is done to an answer that was released, however late, is nothing to the one that follows on its connection."""
    owner = Keeper()
    connection, wire = connected(owner)
    first = connection.ask(b"")
    connection.data_received(sized(b"a: b"))
    first.release()
    second = connection.ask(b"")
    first.close()
    first.release()
    assert (owner.kept, wire.closing) == ([connection], False)
    connection.data_received(sized(b"a: b"))
    assert at_once(second.read()) == b"voix"


# What is kept


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "end",
    [
        lambda connection, _: connection.connection_lost(ConnectionResetError()),
        lambda connection, _: connection.data_received(b"x\r\n"),
        lambda _, response: response.close(),
        lambda connection, _: connection.data_received(b"0\r\n\r\n"),
    ],
    ids=["lost", "nonsense", "closed", "whole"],
)
async def test_nothing_stays(end: Callable[[Connection, Response], None]) -> None:
    """An answer and its connection are freed at once when nobody has them any more, whatever became of them."""

    async def asked() -> list[weakref.ref[Connection] | weakref.ref[Wire]]:
        owner = Keeper()
        connection, wire = connected(owner)
        response = connection.ask(b"")
        connection.data_received(CHUNKED)
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        end(connection, response)
        await asyncio.wait([reading])
        if response.at_end:
            response.release()
        else:
            assert isinstance(reading.exception(), (Disconnected, NotHttp))
        owner.kept.clear()
        owner.forgotten.clear()
        return [weakref.ref(connection), weakref.ref(wire)]

    assert [reference() for reference in await asked()] == [None, None]
