"""How much somebody may ask: a rate for each user, connections, bad credentials; over HTTP and the WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from jarvis_core.handlers.realtime.session import REFUSALS_LIMIT
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.realtime_client import open_socket
from tests.handlers.rest.api import Api, created
from tests.handlers.rest.conftest import ORIGIN, SECRET, make_token, serving
from tests.handlers.rest.test_credentials import PUBLIC
from tests.system.server import Server

LIMIT = 12
CONNECTIONS = 3
SOCKETS = 2
LIMITED = {
    "JWT_SECRET": SECRET,
    "RATE_LIMIT_PER_MINUTE": str(LIMIT),
    "USER_CONNECTION_LIMIT": str(CONNECTIONS),
    "USER_WEBSOCKET_LIMIT": str(SOCKETS),
    "TRUSTED_PROXIES": "127.0.0.1",
}
PATH = "/api/chat/conversations"


@pytest.fixture(scope="module")
def limited_server(postgres_conninfo: str) -> Iterator[tuple[Server, int]]:
    """Run a server with low limits."""
    with serving(postgres_conninfo, "handlers_limited", **LIMITED) as running:
        yield running


@pytest.fixture(scope="module")
def open_limited_server(postgres_conninfo: str) -> Iterator[tuple[Server, int]]:
    """Run an open server with a rate for each address."""
    limits = {"RATE_LIMIT_PER_MINUTE": str(LIMIT), "USER_CONNECTION_LIMIT": "1", "TRUSTED_PROXIES": "127.0.0.1"}
    with serving(postgres_conninfo, "handlers_open_limited", **limits) as running:
        yield running


@pytest.fixture
async def limited_bridges(limited_server: tuple[Server, int]) -> AsyncIterator[FakeBridges]:
    """Run the neighbour of the limited server."""
    async with FakeBridges(SECRET, mode=BridgesMode(shape="ndjson"), port=limited_server[1]) as bridges:
        yield bridges


@pytest.fixture
async def newcomer(limited_server: tuple[Server, int], limited_bridges: FakeBridges) -> AsyncIterator[Api]:
    """Ask as a user who has never asked before."""
    async with Api(limited_server[0].url, token=newcomers_token()) as api:
        yield api


def newcomers_token() -> str:
    """Make the token of a user who has never asked before."""
    return make_token(f"user-{time.monotonic_ns()}")


async def test_rate(newcomer: Api, limited_server: tuple[Server, int]) -> None:
    """Each answer says how many are left; one too many is 429 with the time to wait; another user is not touched."""
    for left in reversed(range(LIMIT)):
        answer = await newcomer.get(PATH)
        assert answer.status == 200
        assert answer.headers["RateLimit-Policy"] == f'"default";q={LIMIT};w=60'
        name, remaining, reset = answer.headers["RateLimit"].split(";")
        assert (name, remaining) == ('"default"', f"r={left}")
        assert 0 < int(reset.removeprefix("t=")) <= 60
        assert answer.headers["RateLimit-Limit"] == str(LIMIT)
        assert answer.headers["RateLimit-Remaining"] == str(left)
    refused = await newcomer.post("/api/memory/add", {"content": "x"})
    assert refused.error == (429, "rate_limited")
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit"] == f'"default";r=0;t={refused.headers["Retry-After"]}'
    assert refused.headers["RateLimit-Reset"] == refused.headers["Retry-After"]
    async with Api(limited_server[0].url, token=newcomers_token()) as other:
        assert (await other.get(PATH)).status == 200


async def test_rate_leaves_alone(newcomer: Api) -> None:
    """What is public, cancelling and preflights are answered, and not counted, however much somebody has asked."""
    for _ in range(LIMIT + 1):
        answer = await newcomer.get(PATH)
    assert answer.status == 429
    for path in PUBLIC:
        answer = await newcomer.get(path)
        assert answer.status == 200
        assert "RateLimit" not in answer.headers
    assert (await newcomer.post("/api/chat/response/none/cancel")).status == 404
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert (await newcomer.ask("OPTIONS", "/api/chat", headers=asked)).status == 204
    refused = await newcomer.get(PATH, headers={"Origin": ORIGIN})
    assert refused.status == 429
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert {"RateLimit", "RateLimit-Policy"} <= set(refused.headers["Access-Control-Expose-Headers"].split(", "))


async def test_rate_by_address(open_limited_server: tuple[Server, int]) -> None:
    """Where the server is open each address has its own rate, as a trusted proxy tells it; nobody else's claim counts."""
    url = open_limited_server[0].url
    async with Api(url, address="198.51.100.1") as one, Api(url, address="198.51.100.2") as other:
        statuses = [(await one.get(PATH)).status for _ in range(LIMIT + 1)]
        assert statuses == [200] * LIMIT + [429]
        assert (await other.get(PATH)).status == 200
        claimed = {"X-Forwarded-For": "203.0.113.5, 198.51.100.1"}
        assert (await one.get(PATH, headers=claimed)).status == 429


async def test_rate_of_a_socket(newcomer: Api, limited_server: tuple[Server, int]) -> None:
    """Connecting and what makes work count like requests; what does not may go on; who goes on regardless is let go."""
    token = newcomers_token()
    async with open_socket(limited_server[0].url, key=token) as socket:
        await socket.until("session.created")
        for number in range(LIMIT - 1):
            await socket.add(f"n° {number}")
        await socket.send("response.create", event_id="mine")
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("rate_limited", "mine")
        await socket.send("session.update", session={"temperature": 0.1})
        await socket.until("session.updated")
        for _ in range(REFUSALS_LIMIT):
            await socket.send("response.create")
        assert await socket.closed() == 1008
    async with open_socket(limited_server[0].url, key=token) as socket:
        assert await socket.closed() == 1008
        assert socket.seen[0]["error"]["code"] == "rate_limited"
    async with Api(limited_server[0].url, token=token) as same:
        assert (await same.get(PATH)).status == 429


@pytest.mark.behaviour("rate_limits")
async def test_rate_is_told(limited_server: tuple[Server, int], limited_bridges: FakeBridges) -> None:
    """With each response a socket is told how many requests are left."""
    async with open_socket(limited_server[0].url, key=newcomers_token()) as socket:
        await socket.add("eins")
        await socket.send("response.create")
        (told,) = (await socket.until("rate_limits.updated"))["rate_limits"]
        assert (told["name"], told["limit"], told["remaining"]) == ("requests", LIMIT, LIMIT - 3)
        assert 0 < told["reset_seconds"] <= 60
        assert (await socket.done())["status"] == "completed"


async def test_connections(limited_server: tuple[Server, int], limited_bridges: FakeBridges) -> None:
    """A user has so many sockets and unanswered requests at a time; one too many is refused, until another is over."""
    url, token = limited_server[0].url, newcomers_token()
    limited_bridges.mode = BridgesMode(shape="ndjson", hold_after=0)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Api(url, token=token))
        for _ in range(CONNECTIONS - 1):
            socket = await stack.enter_async_context(open_socket(url, key=token))
            await socket.until("session.created")
        stream = await stack.enter_async_context(api.stream("longtemps"))
        response = (await created(stream))["id"]
        refused = await api.get(PATH)
        assert refused.error == (429, "rate_limited")
        assert refused.headers["Retry-After"] == "1"
        async with open_socket(url, key=token) as one_too_many:
            assert await one_too_many.closed() == 1008
        async with Api(url, token=newcomers_token()) as other:
            assert (await other.get(PATH)).status == 200
        # Whoever has too much open may always end some of it.
        assert (await api.post(f"/api/chat/response/{response}/cancel")).status == 200
        await stream.read()
        async with asyncio.timeout(10):
            # The client sees an answer's end a moment before the server has done with it.
            while (await api.get(PATH)).status != 200:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.2)


async def test_open_server_has_no_users(open_limited_server: tuple[Server, int]) -> None:
    """Where the server is open each address has a share, and what one has open keeps no other out, nor this machine."""
    url = open_limited_server[0].url
    address, another = {"X-Forwarded-For": "198.51.100.77"}, {"X-Forwarded-For": "198.51.100.78"}
    async with open_socket(url, headers=address) as one, open_socket(url, headers=another) as other:
        await one.until("session.created")
        await other.until("session.created")
        async with open_socket(url, headers=address) as same:
            assert await same.closed() == 1008
            assert same.seen[0]["error"]["code"] == "rate_limited"
        async with Api(url, address="198.51.100.77") as api:
            refused = await api.get(PATH)
            assert (refused.error, refused.headers["Retry-After"]) == ((429, "rate_limited"), "1")
            assert (await api.get("/health")).status in (200, 503)
        async with open_socket(url) as own, open_socket(url) as again:
            await own.until("session.created")
            await again.until("session.created")


async def test_sockets_of_one_user(limited_server: tuple[Server, int], limited_bridges: FakeBridges) -> None:
    """A user has fewer sockets than requests; the next is closed with 1008 and told why, and requests are still answered."""
    token = newcomers_token()
    url = limited_server[0].url
    async with AsyncExitStack() as stack:
        for _ in range(SOCKETS):
            await (await stack.enter_async_context(open_socket(url, key=token))).until("session.created")
        async with open_socket(url, key=token) as refused:
            assert await refused.closed() == 1008
            error = refused.seen[0]["error"]
            assert (error["code"], f"{SOCKETS} WebSockets" in error["message"]) == ("rate_limited", True)
        async with Api(url, token=token) as same:
            assert (await same.get(PATH)).status == 200


async def test_bad_credentials_slow_down(limited_server: tuple[Server, int], limited_bridges: FakeBridges) -> None:
    """After many bad credentials from an address its refusals come late or as 429; good ones from there come at once."""
    url, address = limited_server[0].url, "198.51.100.200"
    async with Api(url, token="guess-0123456789", address=address) as guesser:
        statuses = [(await guesser.get(PATH)).status for _ in range(100)]
        assert statuses == [401] * 100
        started = asyncio.get_running_loop().time()
        held = [asyncio.create_task(guesser.get(PATH)) for _ in range(60)]
        await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        async with Api(url, token=newcomers_token(), address=address) as neighbour:
            assert (await neighbour.get(PATH)).status == 200
        assert not all(task.done() for task in held), "the good one was not kept waiting for the refusals"
        answers = await asyncio.gather(*held)
        assert asyncio.get_running_loop().time() - started > 0.5
        late = [answer for answer in answers if answer.status == 429]
        assert {answer.error for answer in answers} == {(401, "unauthenticated"), (429, "rate_limited")}
        # How many exactly depends on how long the first hundred took.
        assert len(late) >= 20
        assert all(answer.headers["Retry-After"] == "2" for answer in late)
    async with Api(url, token="guess-0123456789", address="198.51.100.201") as elsewhere:
        assert (await elsewhere.get(PATH)).status == 401


async def test_missing_credentials_are_no_guess(limited_server: tuple[Server, int]) -> None:
    """Requests without credentials, or with a token that has expired, are refused at once, however many there are."""
    expired = make_token("lent", lifetime_s=-3_600)
    for token in ("", expired):
        async with Api(limited_server[0].url, token=token, address="198.51.100.202") as api, asyncio.timeout(8):
            assert {(await api.get(PATH)).status for _ in range(150)} == {401}
