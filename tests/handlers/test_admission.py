"""What calls and WebSockets pass before they are let in."""

from __future__ import annotations

import pytest
from starlette.types import Scope

from jarvis_core.access.credentials import Credentials
from jarvis_core.access.rate_limit import InProcessLimiter
from jarvis_core.errors import Forbidden, RateLimited, Unauthenticated
from jarvis_core.handlers.admission import Admission, socket_credentials
from jarvis_core.settings import Auth, Limits, Secret, Server

KEY = "a-key-0123456789"
AUTH = Auth(api_keys=Secret(f"ann:{KEY},bob:another-{KEY}"))


def handshake(*headers: tuple[str, str], query: str = "", offered: tuple[str, ...] = ()) -> Scope:
    """Make a WebSocket's scope."""
    lines = [(name.encode(), value.encode()) for name, value in headers]
    return {
        "type": "websocket", "headers": lines, "query_string": query.encode(), "subprotocols": list(offered),
        "client": ("127.0.0.1", 1), "scheme": "ws",
    }  # fmt: skip


def admission(*, auth: Auth = AUTH, rate: int = 0, connections: int = 0, sockets: int = 0) -> Admission:
    """Make one that lets ann and bob in."""
    limiter = InProcessLimiter(rate) if rate else None
    limits = Limits(user_connection_limit=connections, user_websocket_limit=sockets)
    return Admission(Credentials(auth), Server(), limits, limiter)


HEADER = ("authorization", f"Bearer {KEY}")
OFFERED = f"openai-insecure-api-key.{KEY}"


@pytest.mark.parametrize(
    "scope",
    [
        handshake(HEADER),
        handshake(query=f"token={KEY}"),
        handshake(offered=("realtime", OFFERED)),
        handshake(HEADER, query="token=other", offered=("openai-insecure-api-key.other",)),
        handshake(query="token=other", offered=(OFFERED,)),
    ],
    ids=["header", "query", "subprotocol", "the header counts first", "then the subprotocol"],
)
async def test_roads(scope: Scope) -> None:
    """A WebSocket may bring its credentials in three ways, of which the first that is there counts."""
    assert (await admission().admit_socket(scope)).caller.user_id == "ann"


@pytest.mark.parametrize(
    "scope",
    [
        handshake(),
        handshake(("authorization", ""), ("cookie", f"token={KEY}")),
        handshake(HEADER, HEADER),
        handshake(HEADER, ("authorization", "Bearer other")),
        handshake(("authorization", "Bearer other"), query=f"token={KEY}"),
        handshake(query=f"token={KEY}&token={KEY}"),
        handshake(query="token="),
        handshake(query="token=%00%ff"),
        handshake(offered=(OFFERED, OFFERED)),
        handshake(offered=("openai-insecure-api-key.",)),
        handshake(offered=(OFFERED.upper(),)),
    ],
)
async def test_no_road(scope: Scope) -> None:
    """Of two credentials neither is taken, nor one that another way of more weight contradicts."""
    with pytest.raises(Unauthenticated):
        await admission().admit_socket(scope)


def test_several_tokens_are_seen_as_such() -> None:
    """Several tokens of one kind are no token that somebody could have."""
    assert socket_credentials(handshake(query="token=a&token=b")) == "Bearer a, Bearer b"


async def test_connections_are_let_out() -> None:
    """Each user has so many at a time; who leaves makes room, and nothing is kept of who has left."""
    door = admission(connections=2)
    for _ in range(3):
        one, two = [await door.admit_socket(handshake(HEADER)) for _ in range(2)]
        with pytest.raises(RateLimited):
            await door.admit_socket(handshake(HEADER))
        other = await door.admit_socket(handshake(query=f"token=another-{KEY}"))
        for admitted in (one, two, other):
            door.leave_socket(admitted)
    assert door._connections == {}


async def test_sockets_are_let_out() -> None:
    """Each user has fewer WebSockets than connections; one that is refused for it leaves none behind."""
    door = admission(connections=3, sockets=1)
    for _ in range(2):
        admitted = await door.admit_socket(handshake(HEADER))
        for _ in range(3):
            with pytest.raises(RateLimited, match=r"This user has 1 WebSockets open; close some\."):
                await door.admit_socket(handshake(HEADER))
        door.leave_socket(await door.admit_socket(handshake(query=f"token=another-{KEY}")))
        assert door._connections == {"ann": 1}
        door.leave_socket(admitted)
    assert (door._connections, door._sockets) == ({}, {})


async def test_shares_of_an_open_server_are_by_address() -> None:
    """Where nobody has a name each address (for IPv6 each /64) has its share; this machine's own programs have no limit."""
    door = admission(auth=Auth(), connections=2)
    scopes = [{**handshake(), "client": (peer, 1)} for peer in ("198.51.100.1", "2001:db8::1", "2001:db8::2")]
    first = [await door.admit_socket(scope) for scope in scopes]
    await door.admit_socket(scopes[0])
    for scope in scopes:
        with pytest.raises(RateLimited, match=r"This address has 2 connections"):
            await door.admit_socket(scope)
    for _ in range(9):
        await door.admit_socket(handshake())
    door.leave_socket(first[0])
    await door.admit_socket(scopes[0])


async def test_rate_of_an_open_server_is_by_address() -> None:
    """Where nobody has a name, the address is what counts; a refused handshake opens no connection."""
    door = admission(auth=Auth(), rate=1, connections=1)
    admitted = await door.admit_socket(handshake())
    assert admitted.key == "127.0.0.1"
    with pytest.raises(RateLimited):
        await door.charge(admitted.key)
    with pytest.raises(RateLimited):
        await door.admit_socket(handshake())
    elsewhere = {**handshake(), "client": ("127.0.0.2", 1)}
    assert (await door.admit_socket(elsewhere)).key == "127.0.0.2"


async def test_origin_comes_first() -> None:
    """A foreign page is told so whatever its credentials, and costs its user nothing."""
    door = admission(rate=1)
    with pytest.raises(Forbidden):
        await door.admit_socket(handshake(HEADER, ("origin", "https://evil.example")))
    await door.admit_socket(handshake(HEADER))
