"""Whose address counts, and which pages may call: behind proxies and without."""

from __future__ import annotations

import pytest
from starlette.types import Scope

from jarvis_core.errors import Forbidden
from jarvis_core.handlers.client_address import ClientAddresses
from jarvis_core.handlers.origin import Origins

PROXY = "10.0.0.2"
TRUSTED = (PROXY, "192.168.0.0/16", "2001:db8:1::/48")


def scope(peer: str | None, *forwarded: str, proto: str = "", scheme: str = "http", host: str = "jarvis.home") -> Scope:
    """Make a request's scope."""
    headers = [(b"host", host.encode()), *((b"x-forwarded-for", line.encode("latin-1")) for line in forwarded)]
    if proto:
        headers.append((b"x-forwarded-proto", proto.encode()))
    client = None if peer is None else (peer, 1234)
    return {"type": "http", "method": "POST", "scheme": scheme, "client": client, "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "key"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.1"], "198.51.100.1"),
        (PROXY, ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        (PROXY, ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        (PROXY, ["6.6.6.6, 198.51.100.1, 192.168.3.4"], "198.51.100.1"),
        (PROXY, ["192.168.1.1, 192.168.3.4"], "192.168.1.1"),
        (PROXY, ["6.6.6.6, unknown"], PROXY),
        (PROXY, ["6.6.6.6, é, 192.168.3.4"], "192.168.3.4"),
        (PROXY, [""], PROXY),
        (PROXY, [",,,"], PROXY),
        (PROXY, ["198.51.100.1:5060"], "198.51.100.1"),
        (PROXY, ["[2001:db8:2:3::7]:5060"], "2001:db8:2:3::/64"),
        (PROXY, ["2001:db8:2:3::7"], "2001:db8:2:3::/64"),
        (PROXY, ["::ffff:198.51.100.1"], "198.51.100.1"),
        (PROXY, ["6.6.6.6, " * 5_000 + "198.51.100.1"], "198.51.100.1"),
        (PROXY, ["6.6.6.6" + ", 192.168.0.1" * 5_000], "192.168.0.1"),
        ("::ffff:10.0.0.2", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1::5", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:9:9:1:2:3:4", [], "2001:db8:9:9::/64"),
        ("10.0.0.3", ["198.51.100.1"], "10.0.0.3"),
        (None, ["198.51.100.1"], "unknown"),
        ("not an address", [], "unknown"),
    ],
)
def test_client(peer: str | None, forwarded: list[str], key: str) -> None:
    """The client is the last hop that is no trusted proxy, and what it claims itself is not believed."""
    assert ClientAddresses(TRUSTED).key(scope(peer, *forwarded)) == key


def test_nobody_is_trusted_by_default() -> None:
    """Without trusted proxies the peer is the client, whatever it says."""
    assert ClientAddresses(()).key(scope("127.0.0.1", "198.51.100.1", proto="https")) == "127.0.0.1"
    assert not ClientAddresses(()).secure(scope("127.0.0.1", "198.51.100.1", proto="https"))


@pytest.mark.parametrize(
    ("peer", "proto", "scheme", "secure"),
    [
        (PROXY, "https", "http", True),
        (PROXY, "HTTPS", "http", True),
        (PROXY, "http, https", "http", True),
        (PROXY, "https, http", "http", False),
        (PROXY, "", "http", False),
        (PROXY, "", "https", True),
        (PROXY, "", "wss", True),
        ("203.0.113.9", "https", "http", False),
    ],
)
def test_scheme(peer: str, proto: str, scheme: str, secure: bool) -> None:
    """Whether the client speaks TLS is seen, or said by a trusted proxy."""
    assert ClientAddresses(TRUSTED).secure(scope(peer, proto=proto, scheme=scheme)) is secure


ORIGINS = Origins(("https://a.example",), ClientAddresses(TRUSTED))


@pytest.mark.parametrize(
    ("origin", "where"),
    [
        ("https://a.example", scope("203.0.113.9")),
        ("http://jarvis.home", scope("203.0.113.9")),
        ("https://jarvis.home", scope("203.0.113.9")),
        ("https://jarvis.home", scope("203.0.113.9", scheme="https")),
        ("https://jarvis.home", scope(PROXY, proto="https")),
        ("https://evil.example", {**scope("203.0.113.9"), "method": "GET"}),
    ],
)
def test_origin_may_call(origin: str, where: Scope) -> None:
    """Pages of CORS_ORIGINS and of the server itself may call, and every page what changes nothing."""
    ORIGINS.check(where, origin.encode())


@pytest.mark.parametrize(
    ("origin", "where"),
    [
        ("https://evil.example", scope("203.0.113.9")),
        ("null", scope("203.0.113.9")),
        ("jarvis.home", scope("203.0.113.9")),
        ("http://jarvis.home:81", scope("203.0.113.9")),
        ("http://jarvis.home", scope("203.0.113.9", scheme="https")),
        ("http://jarvis.home", scope(PROXY, proto="https")),
        ("http://a.example", scope("203.0.113.9")),
        ("https://evil.example", {**scope("203.0.113.9"), "type": "websocket", "method": "GET"}),
    ],
)
def test_origin_may_not_call(origin: str, where: Scope) -> None:
    """Pages of other origins may not, nor one that came without TLS to a server that is reached with it."""
    with pytest.raises(Forbidden):
        ORIGINS.check(where, origin.encode())


def test_any_origin() -> None:
    """With * every page may."""
    Origins(("*",), ClientAddresses(())).check(scope("203.0.113.9"), b"https://evil.example")
