"""Answers over HTTP/1.1, made up: as they should be and broken, however the network cuts them, and as aiohttp reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError, TransferEncodingError
from aiohttp.http_parser import HttpResponseParser
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.wire import Outcome, cut, outcome
from tests.fuzz.conftest import fuzzing

NAMES = st.from_regex(r"[a-z][a-z0-9!#$%&'*+.^_`|~-]{0,8}", fullmatch=True).map("x-".__add__)
VALUES = st.from_regex(r"([!-~\x80-\xff]([ \t!-~\x80-\xff]{0,12}[!-~\x80-\xff])?)?", fullmatch=True)
REASONS = st.sampled_from(["", " ", " OK", " Bien sûr"])
CASES = st.sampled_from([str.lower, str.upper, str.title])
BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=4)
EXTENSIONS = st.sampled_from(["", ";a", ";a=b", ';a="b"'])
CUTS = st.one_of(st.sets(st.integers(1, 400), max_size=8), st.just(set(range(1_000))))


class Made(NamedTuple):
    """An answer, and what it says."""

    wire: bytes
    outcome: Outcome


@st.composite
def answers(draw: st.DrawFn) -> Made:
    """Make up an answer as it should be."""
    version = draw(st.sampled_from(["1.1", "1.1", "1.0"]))
    framing = draw(st.sampled_from(["sized", "chunked", "until close", "none"]))
    status = draw(st.sampled_from([204, 304]) if framing == "none" else st.sampled_from([200, 201, 404, 503, 599]))
    headers = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    connection = draw(st.sampled_from(["", "close", "keep-alive", "Keep-Alive", "x, Close"]))
    parts = draw(BODIES) if framing != "none" else []
    body = b"".join(parts)
    kept = connection.lower().endswith("alive") or (version == "1.1" and not connection)
    if connection:
        headers["connection"] = connection
    if framing == "sized":
        headers["content-length"] = str(len(body))
        sent = body
    elif framing == "chunked":
        headers["transfer-encoding"] = draw(st.sampled_from(["chunked", "Chunked"]))
        kept = kept and version == "1.1"
        sent = b"".join(
            (
                f"{draw(st.sampled_from(['', '0', '000']))}{len(part):{draw(st.sampled_from('xX'))}}"
                f"{draw(EXTENSIONS)}\r\n"
            ).encode()
            + part
            + b"\r\n"
            for part in parts
        )
        trailers = draw(st.dictionaries(NAMES, VALUES, max_size=2))
        sent += (
            b"0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in trailers.items()).encode("latin-1") + b"\r\n"
        )
    else:
        sent = body
        kept = kept and framing == "none"
    case = draw(CASES)
    space = draw(st.sampled_from(["", " ", "\t "]))
    # llhttp, which aiohttp has, knows no tab behind a value.
    behind = draw(st.sampled_from(["", " "]))
    head = f"HTTP/{version} {status}{draw(REASONS)}\r\n"
    head += "".join(f"{case(name)}:{space}{value}{behind}\r\n" for name, value in headers.items()) + "\r\n"
    interims = draw(st.lists(st.sampled_from(["100 Continue\r\n", "103 Early Hints\r\nLink: </a>; x\r\n"]), max_size=2))
    before = "".join(f"HTTP/1.1 {interim}\r\n" for interim in interims)
    return Made((before + head).encode("latin-1") + sent, Outcome(status, headers, body, "end", kept))


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Make up an answer that was as it should be, until some of its bytes were lost, changed or doubled."""
    data = bytearray(draw(answers()).wire)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.integers(0, 3))
        if how == 0:
            data[place : place + draw(st.integers(1, 6))] = b""
        elif how == 1:
            data[place:place] = draw(
                st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b":", b"0", b"-", b"\0", b";", b"\xff"])
            )
        elif how == 2:
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=2))
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 30))]
    return bytes(data)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give a loop, which aiohttp's parser has and does not run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def as_aiohttp_reads(data: bytes, loop: asyncio.AbstractEventLoop) -> tuple[int, bytes] | None:
    """Return the status and the body that aiohttp finds in *data*, None where it finds no whole answer."""
    parser = HttpResponseParser(
        BaseProtocol(loop), loop, 1 << 16, read_until_eof=True, response_with_body=True, auto_decompress=False
    )
    with suppress(HttpProcessingError, PayloadEncodingError, TransferEncodingError):
        messages, _, _ = parser.feed_data(data)
        for message, payload in messages:
            if message.code >= 200:
                if not payload.is_eof():
                    parser.feed_eof()
                exception = payload.exception()
                return None if exception is not None or not payload.is_eof() else (message.code, payload.read_nowait())
    return None


@fuzzing(0.2, 400)
@given(answers(), CUTS)
def test_answer_however_it_is_cut(made: Made, cuts: set[int]) -> None:
    """An answer is what it says, and its connection is kept or not, wherever the network cuts it."""
    assert outcome([made.wire]) == made.outcome
    assert outcome(cut(made.wire, cuts)) == made.outcome


@fuzzing(0.1, 200)
@given(made=answers())
def test_answer_as_aiohttp_reads_it(loop: asyncio.AbstractEventLoop, made: Made) -> None:
    """An answer has the status and the body that another parser finds in it."""
    assert as_aiohttp_reads(made.wire, loop) == (made.outcome.status, made.outcome.body)


@fuzzing(0.3, 600)
@given(data=broken(), cuts=CUTS)
def test_broken_answer(loop: asyncio.AbstractEventLoop, data: bytes, cuts: set[int]) -> None:
    """What was an answer once is one, or none, the same wherever it is cut; the other parser finds no other body in it."""
    whole = outcome([data])
    assert outcome(cut(data, cuts)) == whole
    if whole.ending == "end":
        theirs = as_aiohttp_reads(data, loop)
        assert theirs in (None, (whole.status, whole.body))


@fuzzing(0.2, 300)
@given(
    st.lists(st.binary(max_size=60), max_size=6),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n"]),
)
def test_any_bytes(pieces: list[bytes], before: bytes) -> None:
    """Whatever comes, it is an answer or none, and nothing else is raised."""
    found = outcome([before, *pieces])
    assert found.ending in ("end", "lost", "no http")
    assert found == outcome([before + b"".join(pieces)])
