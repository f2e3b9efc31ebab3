"""One call, one stream: what goes wrong on the wire, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jarvis_core import log
from jarvis_core.errors import BadGateway, DeadlineExceeded, Overloaded, RateLimited, RequestError, Unavailable
from jarvis_core.services import transport as transport_module
from jarvis_core.services.breaker import Breaker
from jarvis_core.services.python_bridges import probe
from jarvis_core.services.stream import Stream
from jarvis_core.services.transport import (
    MISSING_RETRY_AFTER_S,
    RATE_LIMIT_RETRY_AFTER_S,
    RETRY_AFTER_LIMIT_S,
    RETRY_AFTER_S,
    Answer,
    Refused,
    Transport,
)
from jarvis_core.settings import Neighbours
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges

pytestmark = pytest.mark.every_python

GENERATE = "/api/llm/generate"
VOICES = "/api/tts/voices"
BODY = msgspec.json.encode({"prompt": "un deux trois", "stream": True})
JSON = {"Content-Type": "application/json"}
LATE_S = 3.0
"""A generous bound on what must take about 0.2 s."""


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run bridges that stream."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson")) as server:
        yield server


@pytest.fixture
async def transport(bridges: FakeBridges) -> AsyncIterator[Transport]:
    """Give the way to them; afterwards no connection is open."""
    transport = Transport("bridges", bridges.url, Neighbours(connect_timeout_s=0.5))
    yield transport
    await transport.close()
    async with asyncio.timeout(2):
        while bridges.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def mode(kind: FaultKind = "none", **fields: Any) -> BridgesMode:
    """Make a mode in which every path has one fault."""
    return BridgesMode(shape="ndjson", faults={"/": Fault(kind, **fields)})


async def call(transport: Transport, timeout_s: float = 5.0) -> Answer:
    """Ask for the voices."""
    return await transport.call("GET", VOICES, timeout_s=timeout_s)


def stream(
    transport: Transport, *, first: float = 5.0, stall: float = 5.0, total: float = 30.0
) -> contextlib.AbstractAsyncContextManager[Stream]:
    """Ask for a stream."""
    return transport.stream(
        "POST",
        GENERATE,
        body=BODY,
        headers=JSON,
        first_byte_timeout_s=first,
        stall_timeout_s=stall,
        total_timeout_s=total,
    )


async def read(source: Stream) -> bytes:
    """Read to the end."""
    data = b""
    while chunk := await source.read():
        data += chunk
    return data


def state_of(transport: Transport) -> str:
    """Return what has been learnt of the neighbour."""
    return transport.health.state


async def enter(transport: Transport, first: float = 5.0) -> None:
    """Ask for a stream, and leave it when it begins."""
    async with stream(transport, first=first):
        pass


async def failing(transport: Transport, kind: type[RequestError], *, post: bool) -> RequestError:
    """Return the error of a call or of a stream."""
    with pytest.raises(kind) as caught:
        await (enter(transport) if post else call(transport))
    return caught.value


# Calls


async def test_call(transport: Transport) -> None:
    """A call gives the type and the body of the answer."""
    answer = await call(transport)
    assert answer.content_type == "application/json"
    assert b"fr_FR-siwis-medium" in answer.body
    assert transport.health.state == "healthy"


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "state"),
    [
        (301, BadGateway, "healthy"),
        (400, Refused, "healthy"),
        (401, Refused, "healthy"),
        (404, Refused, "healthy"),
        (429, RateLimited, "healthy"),
        (500, Refused, "degraded"),
        (502, Unavailable, "unavailable"),
        (503, Unavailable, "unavailable"),
        (504, DeadlineExceeded, "degraded"),
    ],
)
async def test_statuses(
    bridges: FakeBridges, transport: Transport, status: int, kind: type[RequestError], state: str, *, post: bool
) -> None:
    """Each status of a neighbour becomes one of our errors, and what the neighbour said is not shown."""
    bridges.mode = mode(status=status, message="SECRET /etc/passwd")
    error = await failing(transport, kind, post=post)
    assert type(error) is (Refused if kind is BadGateway else kind)
    assert transport.health.state == state
    assert "SECRET" not in f"{error.message} {error.details}"
    assert error.details == {"neighbour": "bridges", "status": status}
    if isinstance(error, Refused):
        assert error.status == status
        assert b"SECRET" in error.answer


async def test_what_a_neighbour_was_made_without(bridges: FakeBridges, transport: Transport) -> None:
    """A neighbour that does not offer what it is asked for is well: it is worth another try later, and no sign of illness."""
    bridges.mode = mode(status=501)
    error = await failing(transport, Unavailable, post=True)
    assert error.retry_after_s == MISSING_RETRY_AFTER_S
    assert "does not offer" in error.message
    assert transport.health.state == "healthy"


async def test_retry_after(bridges: FakeBridges, transport: Transport) -> None:
    """When to try again is what the neighbour says, else a number of ours."""
    for retry_after_s, expected in ((None, RATE_LIMIT_RETRY_AFTER_S), (7, 7)):
        bridges.mode = mode(status=429, retry_after_s=retry_after_s)
        assert (await failing(transport, RateLimited, post=True)).retry_after_s == expected
    bridges.mode = mode(status=503)
    assert (await failing(transport, Unavailable, post=True)).retry_after_s == RETRY_AFTER_S


@pytest.mark.parametrize(
    ("retry_after_s", "expected"), [(86_400, RETRY_AFTER_LIMIT_S), (10**4_299 - 1, RETRY_AFTER_LIMIT_S), (0, 0)]
)
async def test_retry_after_that_nobody_waits_for(
    bridges: FakeBridges, transport: Transport, retry_after_s: int, expected: int
) -> None:
    """However long a neighbour says, it is an hour at most; a number that is too long to be one is none the less."""
    bridges.mode = mode(status=429, retry_after_s=retry_after_s)
    assert (await failing(transport, RateLimited, post=True)).retry_after_s == expected


async def test_refusals_are_seldom_logged(
    bridges: FakeBridges, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a neighbour's refusals one a minute is logged for each status, with how many were not."""
    logged: list[tuple[int, int]] = []
    monkeypatch.setattr(
        transport_module.logger,
        "warning",
        lambda _event, *, status=0, held_back=0, **_: logged.append((status, held_back)),
    )
    for _ in range(3):
        for status in (429, 400):
            bridges.mode = mode(status=status)
            await failing(transport, RequestError, post=True)
    assert logged == [(429, 0), (400, 0)]
    monkeypatch.setattr(log, "SELDOM_S", 0.0)
    await failing(transport, RequestError, post=True)
    assert logged[2:] == [(400, 2)]


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("kind", ["close", "reset"])
async def test_no_answer(bridges: FakeBridges, transport: Transport, kind: FaultKind, *, post: bool) -> None:
    """A neighbour that closes the connection without an answer is Unavailable, after few attempts."""
    bridges.mode = mode(kind)
    error = await failing(transport, Unavailable, post=post)
    assert error.retry_after_s == RETRY_AFTER_S
    assert transport.health.state == "unavailable"
    # One more of ours, and for each another one of aiohttp's where the method is safe.
    assert bridges.requests_seen.total() <= (2 if post else 4)
    bridges.mode = BridgesMode(shape="ndjson")
    await call(transport)
    assert state_of(transport) == "healthy"


@pytest.mark.parametrize("post", [False, True])
async def test_not_http(bridges: FakeBridges, transport: Transport, *, post: bool) -> None:
    """What does not speak HTTP is a BadGateway: it is there, and answers nonsense."""
    bridges.mode = mode("garbage")
    await failing(transport, BadGateway, post=post)
    assert transport.health.state == "degraded"


async def test_tokens_stay_out_of_the_log(
    bridges: FakeBridges, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong, what is noted for the log does not show the credentials that were sent."""
    noted: list[str] = []
    monkeypatch.setattr(transport.health, "learn", lambda _state, why="": noted.append(why))
    for kind in ("garbage", "close", "reset", "short_body", "hang"):
        bridges.mode = mode(kind)
        with pytest.raises(RequestError):
            await transport.call("GET", VOICES, headers={"Authorization": "Bearer SECRET"}, timeout_s=0.2)
    assert len([why for why in noted if why]) == 5
    assert "SECRET" not in str(noted)


async def test_redirects_are_not_followed(bridges: FakeBridges, transport: Transport) -> None:
    """A redirect is refused, so the credentials go nowhere else."""
    bridges.mode = mode("redirect")
    await failing(transport, BadGateway, post=True)
    assert bridges.requests_seen == {GENERATE: 1}


@pytest.mark.parametrize("post", [False, True])
async def test_hanging(bridges: FakeBridges, transport: Transport, *, post: bool) -> None:
    """No answer within the deadline, however short, is DeadlineExceeded, and the connection is closed."""
    bridges.mode = mode("hang")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await (enter(transport, 0.2) if post else call(transport, 0.2))
    assert 0.15 < time.monotonic() - started < LATE_S
    assert "0.2 s" in caught.value.message
    assert transport.health.state == "degraded"
    if post:
        await bridges.stream_closed()


async def test_slow_answer_within_the_deadline(bridges: FakeBridges, transport: Transport) -> None:
    """An answer that is slow but in time is an answer."""
    bridges.mode = mode(delay_s=0.2)
    assert (await call(transport, 5)).body


async def test_trickle(bridges: FakeBridges, transport: Transport) -> None:
    """A body that never ends, each byte of it in time, misses the deadline of the whole."""
    bridges.mode = mode("trickle")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await call(transport, 0.3)
    assert time.monotonic() - started < LATE_S


async def test_short_body(bridges: FakeBridges, transport: Transport) -> None:
    """A body that breaks off is Unavailable."""
    bridges.mode = mode("short_body")
    await failing(transport, Unavailable, post=False)


async def test_endless_body(bridges: FakeBridges, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body over the limit is a BadGateway, and the rest of it is not read."""
    monkeypatch.setattr("jarvis_core.services.transport.BODY_LIMIT_BYTES", 1 << 20)
    bridges.mode = mode("huge_line", size_bytes=64 << 20)
    await failing(transport, BadGateway, post=False)


async def test_nobody_there(transport: Transport, bridges: FakeBridges) -> None:
    """A neighbour that is gone is Unavailable at once, and comes back by itself."""
    await call(transport)
    await bridges.go_away()
    started = time.monotonic()
    for post in (False, True):
        await failing(transport, Unavailable, post=post)
    assert time.monotonic() - started < LATE_S
    assert state_of(transport) == "unavailable"
    await bridges.come_back()
    await call(transport)
    assert state_of(transport) == "healthy"


async def test_unknown_host() -> None:
    """A name that does not resolve is Unavailable."""
    transport = Transport("bridges", "http://no-such-host.invalid:8005", Neighbours())
    try:
        await failing(transport, Unavailable, post=False)
    finally:
        await transport.close()


async def test_connecting_takes_too_long() -> None:
    """A host that does not take connections is Unavailable after the deadline for connecting."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        # Fill the queue of connections that nobody accepts.
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        transport = Transport("bridges", f"http://127.0.0.1:{port}", Neighbours(connect_timeout_s=0.3))
        try:
            started = time.monotonic()
            await failing(transport, Unavailable, post=True)
            assert 0.2 < time.monotonic() - started < LATE_S
        finally:
            await transport.close()
            for other in others:
                other.close()


async def test_looking_up_a_name_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer is waited for no longer than a connection."""
    released = threading.Event()

    def stalled(*_: object, **__: object) -> list[Any]:
        released.wait(2 * LATE_S)
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")

    monkeypatch.setattr(socket, "getaddrinfo", stalled)
    transport = Transport("bridges", "http://bridges:8005", Neighbours(connect_timeout_s=0.3))
    try:
        started = time.monotonic()
        await failing(transport, Unavailable, post=True)
        assert 0.2 < time.monotonic() - started < LATE_S
    finally:
        released.set()
        await transport.close()


# Kept-alive connections


async def test_connections_are_kept(bridges: FakeBridges, transport: Transport) -> None:
    """Calls use one connection, and streams that were read to their end another."""
    for _ in range(3):
        await call(transport)
        async with stream(transport) as source:
            await read(source)
    ports = [request.client_port for request in bridges.requests]
    assert (len(set(ports[::2])), len(set(ports[1::2])), len(set(ports))) == (1, 1, 2)


@pytest.mark.parametrize("post", [False, True])
async def test_stale_connection(bridges: FakeBridges, transport: Transport, *, post: bool) -> None:
    """A kept connection that the neighbour closes under a request costs a new connection, and nobody notices."""
    await call(transport)
    bridges.mode = mode("close_reused")
    if post:
        async with stream(transport) as source:
            assert b"done" in await read(source)
    else:
        assert (await call(transport)).body
    assert transport.health.state == "healthy"


async def test_connection_closed_after_each_answer(bridges: FakeBridges, transport: Transport) -> None:
    """A neighbour that promises to keep connections and closes them is no trouble either."""
    bridges.mode = mode("close_after")
    for _ in range(5):
        assert (await call(transport)).body


async def test_restart(bridges: FakeBridges, transport: Transport) -> None:
    """A neighbour that restarted between two requests is asked as if nothing had been."""
    await asyncio.gather(*(call(transport) for _ in range(4)))
    await bridges.go_away()
    await bridges.come_back()
    await asyncio.gather(*(call(transport) for _ in range(4)))


# Streams


async def test_stream(transport: Transport) -> None:
    """A stream gives the bytes as they come, and ends clean."""
    async with stream(transport) as source:
        assert source.content_type == "application/x-ndjson"
        assert (await read(source)).count(b"\n") == 6
        assert source.lost is None
        assert await source.read() == b""


@pytest.mark.parametrize("cut", ["close", "reset"])
async def test_cut(bridges: FakeBridges, transport: Transport, cut: Any) -> None:
    """A stream that breaks gives what had arrived, and then says that it was lost."""
    bridges.mode = BridgesMode(shape="ndjson", cut_after=2, cut=cut, delta_delay_s=0.02)
    async with stream(transport) as source:
        assert b"You" in await read(source)
        assert source.lost == "lost"


async def test_stall(bridges: FakeBridges, transport: Transport) -> None:
    """A stream in which nothing comes for too long is given up, and its connection closed at once."""
    bridges.mode = BridgesMode(shape="ndjson", stall_after=2)
    started = time.monotonic()
    async with stream(transport, stall=0.2) as source:
        data = await source.read()
        source.begin()
        assert b"You" in data + await read(source)
        assert source.lost == "stalled"
        assert 0.15 < time.monotonic() - started < LATE_S
        await bridges.stream_closed()


async def test_patience_before_the_beginning(bridges: FakeBridges, transport: Transport) -> None:
    """Before the beginning, and only then, a stream may be silent as long as for its first byte, its head included."""
    bridges.mode = BridgesMode(shape="ndjson", first_delay_s=0.5)
    async with stream(transport, first=5, stall=0.2) as source:
        assert b"done" in await read(source)
        assert source.lost is None
    bridges.mode = BridgesMode(shape="ndjson", first_delay_s=30, faults={"/": Fault(delay_s=0.8)})
    started = time.monotonic()
    async with stream(transport, first=1, stall=5) as source:
        assert await read(source) == b""
        assert source.lost == "stalled"
    assert 0.9 < time.monotonic() - started < 1.7


async def test_slow_but_steady(bridges: FakeBridges, transport: Transport) -> None:
    """A stream may take longer than the deadline between its pieces."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("a",) * 8, delta_delay_s=0.1)
    async with stream(transport, stall=0.5) as source:
        source.begin()
        assert (await read(source)).count(b"\n") == 9
        assert source.lost is None


async def test_total_deadline(bridges: FakeBridges, transport: Transport) -> None:
    """A stream that goes on for too long is given up, however steady; the wait for its beginning counts."""
    bridges.mode = BridgesMode(
        shape="ndjson", deltas=("a",) * 1_000, delta_delay_s=0.02, faults={"/": Fault(delay_s=0.8)}
    )
    started = time.monotonic()
    async with stream(transport, total=1) as source:
        data = await read(source)
        assert source.lost == "deadline"
        assert 0.9 < time.monotonic() - started < 1.7
        assert 1 <= data.count(b"\n") < 60
    await bridges.stream_closed()


async def test_leaving_closes(bridges: FakeBridges, transport: Transport) -> None:
    """Leaving a stream in the middle closes its connection promptly."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    async with stream(transport) as source:
        assert await source.read()
        await bridges.gate.reached()
    left = time.monotonic()
    assert await bridges.stream_closed() - left < 1


@pytest.mark.parametrize("when", ["head", "body"])
async def test_cancelling_closes(bridges: FakeBridges, transport: Transport, when: str) -> None:
    """Cancelling whoever waits for a stream's head or body closes its connection promptly."""
    bridges.mode = mode("hang") if when == "head" else BridgesMode(shape="ndjson", hold_after=1)

    async def follow() -> None:
        async with stream(transport) as source:
            await read(source)

    task = asyncio.create_task(follow())
    await bridges.seen(GENERATE)
    if when == "body":
        await bridges.gate.reached()
    await asyncio.sleep(0.02)
    left = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await bridges.stream_closed() - left < 1


async def test_finish_keeps_the_connection(bridges: FakeBridges, transport: Transport) -> None:
    """Finishing after the last item lets the connection be used again; a neighbour that lingers costs a new one."""
    async with stream(transport) as source:
        await source.read()
        await source.finish()
    await call(transport)
    ports = [request.client_port for request in bridges.requests]
    assert (len(set(ports[::2])), len(set(ports[1::2])), len(set(ports))) == (1, 1, 2)
    bridges.mode = BridgesMode(shape="ndjson", stall_after=1)
    started = time.monotonic()
    async with stream(transport) as source:
        await source.read()
        await source.finish()
    assert time.monotonic() - started < LATE_S
    await bridges.stream_closed()


async def test_many_at_once(bridges: FakeBridges, transport: Transport) -> None:
    """Many streams at once all get their whole answer."""
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.005)

    async def one() -> int:
        async with stream(transport) as source:
            return (await read(source)).count(b"\n")

    assert await asyncio.gather(*(one() for _ in range(60))) == [6] * 60


# Health


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        (BridgesMode(), "healthy"),
        (BridgesMode(services_down=("ollama_llm",)), "degraded"),
        (BridgesMode(health_error=True), "degraded"),
        (BridgesMode(faults={"/health": Fault(status=429)}), "healthy"),
        (BridgesMode(faults={"/health": Fault("close")}), "unavailable"),
    ],
)
async def test_probe(bridges: FakeBridges, transport: Transport, answers: BridgesMode, state: str) -> None:
    """A probe learns how the bridges are and raises nothing; to be told to ask less often is a sign of life."""
    bridges.mode = answers
    await probe(transport)
    assert transport.health.state == state


# The breaker, retries and too many requests

FEW = Neighbours(connect_timeout_s=0.5, breaker_open_s=0.4, connection_limit=3)


@pytest.fixture
async def frail(bridges: FakeBridges) -> AsyncIterator[Transport]:
    """Give a way whose breaker opens at the third failure in a row, for 0.4 s, and that takes three requests at a time."""
    transport = Transport("bridges", bridges.url, FEW, failures=3)
    yield transport
    await transport.close()


async def fail(transport: Transport, times: int) -> list[RequestError]:
    """Call so many times, and return the errors."""
    errors = []
    for _ in range(times):
        with pytest.raises(RequestError) as caught:
            await call(transport, 0.2)
        errors.append(caught.value)
    return errors


async def answers_again(transport: Transport, within_s: float) -> None:
    """Wait until calls are answered."""
    async with asyncio.timeout(within_s):
        while True:
            with contextlib.suppress(RequestError):
                await call(transport)
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fault", [Fault("hang"), Fault(status=503), Fault(status=504)], ids=["hang", "503", "504"])
async def test_breaker(bridges: FakeBridges, frail: Transport, fault: Fault) -> None:
    """Who fails time and again is left alone: callers are told at once and when to come back; one finds it well again."""
    bridges.mode = BridgesMode(faults={"/": fault})
    await fail(frail, 3)
    seen = bridges.requests_seen[VOICES]
    started = time.monotonic()
    for error in await fail(frail, 5):
        assert isinstance(error, Unavailable)
        assert error.retry_after_s == 1
    assert time.monotonic() - started < 0.3
    assert bridges.requests_seen[VOICES] == seen
    bridges.mode = BridgesMode()
    await answers_again(frail, 3)
    assert bridges.requests_seen[VOICES] == seen + 1
    assert (frail.breaker.openings, frail.health.state) == (1, "healthy")


async def test_breaker_of_a_stream(bridges: FakeBridges, frail: Transport) -> None:
    """Streams that begin and then fall silent open it too; one whose model speaks closes it before it ends."""
    bridges.mode = BridgesMode(shape="ndjson", stall_after=1)
    for _ in range(3):
        async with stream(frail, first=0.1, stall=0.1) as source:
            await read(source)
            assert source.lost == "stalled"
    with pytest.raises(Unavailable):
        await enter(frail)
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    await asyncio.sleep(0.45)
    async with stream(frail) as source:
        await source.read()
        source.begin()
        await call(frail)


async def test_one_answers_for_the_others(bridges: FakeBridges, frail: Transport) -> None:
    """What a neighbour answers to one request, an error or a word about the caller, does not count against it."""
    for status in (500, 400, 429, 501, 404):
        bridges.mode = BridgesMode(faults={"/": Fault(status=status)})
        await fail(frail, 4)
    bridges.mode = BridgesMode()
    await call(frail)
    assert frail.breaker.openings == 0


async def test_probe_that_nobody_waits_for(bridges: FakeBridges, frail: Transport) -> None:
    """A probe whose caller leaves lets the next one try."""
    bridges.mode = mode("hang")
    await fail(frail, 3)
    await asyncio.sleep(0.45)
    asking = asyncio.create_task(call(frail))
    await bridges.seen(VOICES, 4)
    (refused,) = await fail(frail, 1)
    assert isinstance(refused, Unavailable)
    asking.cancel()
    await asyncio.wait([asking])
    bridges.mode = BridgesMode()
    await call(frail)


async def test_back_before_its_time(bridges: FakeBridges) -> None:
    """A neighbour that was not to be reached is tried again as soon as it takes connections, not when the time is over."""
    transport = Transport("bridges", bridges.url, Neighbours(connect_timeout_s=0.5, breaker_open_s=60), failures=3)
    try:
        await bridges.go_away()
        await fail(transport, 4)
        assert not transport.breaker.closed
        await bridges.come_back()
        await answers_again(transport, 5)
    finally:
        await transport.close()


async def test_retry_after_a_restart(bridges: FakeBridges, frail: Transport) -> None:
    """A call that finds nobody is made once more, and reaches who has just come back."""
    await bridges.go_away()
    asking = asyncio.create_task(call(frail))
    await asyncio.sleep(0.02)
    await bridges.come_back()
    await asking
    assert frail.budget.retries == 1


async def test_retries_are_few(bridges: FakeBridges, transport: Transport) -> None:
    """However many calls break, only a few are sent a second time."""
    transport.breaker = Breaker(0.0, 1_000)
    bridges.mode = mode("close")
    for _ in range(40):
        await failing(transport, Unavailable, post=True)
    assert 5 <= transport.budget.retries <= 5 + 0.1 * 40
    assert bridges.requests_seen[GENERATE] == 40 + transport.budget.retries


async def test_too_many_at_once(bridges: FakeBridges, frail: Transport) -> None:
    """One request more than a neighbour may have is told so at once; those that are on their way are answered."""
    bridges.mode = mode(delay_s=0.3)
    asking = [asyncio.create_task(call(frail)) for _ in range(3)]
    await bridges.seen(VOICES, 3)
    with pytest.raises(Overloaded):
        await call(frail)
    await asyncio.gather(*asking)
    await call(frail)
