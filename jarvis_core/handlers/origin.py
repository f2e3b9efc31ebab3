"""
Decides which web pages may call the API (https://fetch.spec.whatwg.org/#http-cors-protocol).

A browser keeps a page of a foreign origin from reading an answer, but not from sending a request that needs no
preflight, nor from opening a WebSocket: requests that may change something are refused here.
"""

from __future__ import annotations

from starlette.types import Scope

from jarvis_core.errors import Forbidden
from jarvis_core.handlers.client_address import ClientAddresses

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
EXPOSED = (
    b"access-control-expose-headers",
    b"X-Request-ID, Retry-After, X-Sample-Rate, X-Voice, Server-Timing, RateLimit, RateLimit-Policy, RateLimit-Limit, "
    b"RateLimit-Remaining, RateLimit-Reset, Warning",
)
VARY = (b"vary", b"Origin")


class Origins:
    """The origins of ``CORS_ORIGINS``, and the server's own."""

    def __init__(self, allowed: tuple[str, ...], addresses: ClientAddresses) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._any = "*" in allowed
        self._addresses = addresses

    def allows(self, origin: bytes) -> bool:
        """Whether pages of *origin* may read answers."""
        return self._any or origin in self._allowed

    def headers(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers that let a page of *origin* read the answer, if it may."""
        if not self.allows(origin):
            return [VARY]
        return [(b"access-control-allow-origin", origin), EXPOSED, VARY]

    def check(self, scope: Scope, origin: bytes) -> None:
        """
        Raise ``Forbidden`` for a page that may not call, where browsers leave the check to the server; *origin* is not
        empty.
        """
        if self.allows(origin) or (scope["type"] == "http" and scope["method"] in SAFE_METHODS):
            return
        host = next((value for key, value in scope["headers"] if key == b"host"), b"")
        scheme, separator, authority = origin.partition(b"://")
        # A proxy may speak TLS for us without telling: a page that came by TLS is the server's own either way.
        if separator and authority == host and (scheme == b"https" or not self._addresses.secure(scope)):
            return
        raise Forbidden("Pages of this origin may not call; CORS_ORIGINS names those that may.")
