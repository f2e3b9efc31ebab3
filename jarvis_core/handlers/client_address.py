"""
Finds a client's address: the peer's, or the one that a trusted proxy forwards for.

``X-Forwarded-For`` and ``-Proto`` can be written by anybody, so they are read only where the peer is one of
``TRUSTED_PROXIES``. Each proxy appends the address that it saw: read from the right, the first address that is not a
trusted proxy's is the client's, and everything left of it is the client's own claim.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.types import Scope

from jarvis_core.settings import Address, parse_networks

HOPS_LIMIT = 20
"""Entries of X-Forwarded-For that are looked at."""
UNKNOWN = "unknown"
LOOPBACK_6 = "::/64"
"""The key of ``::1``."""
SECURE_SCHEMES = ("https", "wss")


class ClientAddresses:
    """Finds the client's address and scheme."""

    def __init__(self, trusted_proxies: tuple[str, ...]) -> None:
        self._trusted = parse_networks(trusted_proxies)

    def key(self, scope: Scope) -> str:
        """
        Return under which name the client's requests are counted.

        That is its IPv4 address; of an IPv6 address the network (/64), of which a client has every address.
        """
        client = scope.get("client")
        if client and not self._trusted:
            return _name_of_peer(client[0])
        return _name_of(self.address(scope))

    def address(self, scope: Scope) -> Address | None:
        """Return the client's address; None where the peer has none that can be read."""
        client = scope.get("client")
        address = _parsed(client[0]) if client else None
        if address is None or not self._trusts(address):
            return address
        hops = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for").decode("latin-1")
        for hop in reversed(hops.rsplit(",", HOPS_LIMIT)[-HOPS_LIMIT:]):
            named = _parsed(_without_port(hop.strip()))
            if named is None:
                break
            address = named
            if not self._trusts(address):
                break
        return address

    def secure(self, scope: Scope) -> bool:
        """Whether the client speaks TLS, to us or to a trusted proxy."""
        if scope.get("scheme") in SECURE_SCHEMES:
            return True
        client = scope.get("client")
        peer = _parsed(client[0]) if client and self._trusted else None
        if peer is None or not self._trusts(peer):
            return False
        said = next((value for key, value in scope["headers"] if key == b"x-forwarded-proto"), b"")
        return bytes(said).rpartition(b",")[2].strip().lower() in (b"https", b"wss")

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _name_of(address: Address | None) -> str:
    if address is None:
        return UNKNOWN
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


@lru_cache(maxsize=1_024)  # of an open server each request needs it
def _name_of_peer(text: str) -> str:
    return _name_of(_parsed(text))


def is_own_machine(key: str) -> bool:
    """
    Whether a key of ``ClientAddresses`` is that of a program of this machine, or of a proxy on it that is not trusted.

    None of them is a stranger, and such a proxy is many clients.
    """
    return key.startswith("127.") or key in (LOOPBACK_6, UNKNOWN)


def _parsed(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(hop: str) -> str:
    """Return the address of ``192.0.2.1:80``, ``[2001:db8::1]:80`` or the bare address."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
