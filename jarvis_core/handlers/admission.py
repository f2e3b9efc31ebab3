"""
Who may come in and how much they may ask: what every call passes before its handler, and every WebSocket.

In this order: the name that is asked for, where the server is open (421), the origin of a browser's page (403), credentials
(401), the rate (429), connections (429).
"""

from __future__ import annotations

import socket
from urllib.parse import parse_qs

from starlette.types import Scope

from jarvis_core.access.credentials import Credentials
from jarvis_core.access.rate_limit import Allowance, RateLimiter
from jarvis_core.access.throttle import AuthThrottle
from jarvis_core.errors import RateLimited, Unauthenticated
from jarvis_core.handlers.call import Call
from jarvis_core.handlers.client_address import ClientAddresses
from jarvis_core.handlers.hosts import Hosts
from jarvis_core.handlers.origin import Origins
from jarvis_core.models import Caller
from jarvis_core.settings import Limits, Server
from jarvis_core.shares import current_user

CONNECTIONS_RETRY_S = 1
POLICY = b"default"
"""The name of the one limit that there is, in the RateLimit fields."""
KEY_SUBPROTOCOL = "openai-insecure-api-key."


class Admitted:
    """Somebody who came in over a WebSocket."""

    __slots__ = ("caller", "key")

    def __init__(self, caller: Caller, key: str) -> None:
        self.caller = caller
        self.key = key
        """Under which its requests are counted, and have their turns."""


class Admission:
    """Lets calls in, or raises the error that their clients are to see."""

    def __init__(self, credentials: Credentials, server: Server, limits: Limits, limiter: RateLimiter | None) -> None:
        self.addresses = ClientAddresses(server.trusted_proxies)
        self.origins = Origins(server.cors_origins, self.addresses)
        self.hosts = Hosts(server.allowed_hosts, (server.host, socket.gethostname())) if credentials.open else None
        """None where credentials are needed: a page has none, whatever its name."""
        self._credentials = credentials
        self._limiter = limiter
        self._policy = () if limiter is None else _policy(limiter.limit)
        self._guesses = AuthThrottle()
        # Where the server is open everybody is the same user, and no one user is to be kept from crowding out others.
        self._connection_limit = 0 if credentials.open else limits.user_connection_limit
        self._connections: dict[str, int] = {}
        """By user."""

    async def admit(self, call: Call, authorization: bytes, origin: bytes, *, counted: bool) -> None:
        """
        Let *call* in, as the caller that *authorization* names; ``leave`` lets it out.

        One that is not *counted* is let in whatever its caller's rate and connections. Waits where its address has sent
        many bad credentials. Raises ``Forbidden``, ``Unauthenticated`` or ``RateLimited``.
        """
        if origin:
            self.origins.check(call.scope, origin)
        call.caller = await self._caller(call.scope, str(authorization, "latin-1"))
        key = self._key(call.scope, call.caller)
        current_user.set(key)
        if self._limiter is not None and counted:
            allowance = await self._limiter.take(key)
            call.headers = [*call.headers, *self._policy, *_fields(allowance)]
            if not allowance.granted:
                raise _limited(allowance)
        if self._connection_limit:
            self._connect(call.caller, limited=counted)

    async def admit_socket(self, scope: Scope) -> Admitted:
        """Let a WebSocket in, as ``admit`` does a call."""
        if self.hosts is not None:
            self.hosts.check(next((value for key, value in scope["headers"] if key == b"host"), b""))
        origin = next((value for key, value in scope["headers"] if key == b"origin"), b"")
        if origin:
            self.origins.check(scope, origin)
        admitted = Admitted(await self._caller(scope, socket_credentials(scope)), "")
        admitted.key = self._key(scope, admitted.caller)
        current_user.set(admitted.key)
        await self.charge(admitted)
        if self._connection_limit:
            self._connect(admitted.caller, limited=True)
        return admitted

    async def charge(self, admitted: Admitted) -> None:
        """Count what somebody asks over an open WebSocket; raises ``RateLimited``."""
        if self._limiter is not None:
            allowance = await self._limiter.take(admitted.key)
            if not allowance.granted:
                raise _limited(allowance)

    def leave(self, caller: Caller) -> None:
        """Let out a call, or a WebSocket, of *caller* that was let in."""
        if self._connection_limit:
            left = self._connections[caller.user_id] - 1
            if left:
                self._connections[caller.user_id] = left
            else:
                del self._connections[caller.user_id]

    async def _caller(self, scope: Scope, authorization: str) -> Caller:
        try:
            return self._credentials.caller(authorization)
        except Unauthenticated as error:
            if error.guessed:
                await self._guesses.hold_back(self.addresses.key(scope))
            raise

    def _key(self, scope: Scope, caller: Caller) -> str:
        return self.addresses.key(scope) if self._credentials.open else caller.user_id

    def _connect(self, caller: Caller, *, limited: bool) -> None:
        count = self._connections.get(caller.user_id, 0)
        if limited and count >= self._connection_limit:
            raise RateLimited(
                f"This user has {count} connections and requests open; close some.", retry_after_s=CONNECTIONS_RETRY_S
            )
        self._connections[caller.user_id] = count + 1


def socket_credentials(scope: Scope) -> str:
    """Return the credentials of a handshake as an Authorization header: browsers cannot send that one itself."""
    # The lines of a header are one (RFC 9110, 5.3): of two credentials neither is taken.
    sent = b", ".join(value for key, value in scope["headers"] if key == b"authorization")
    if sent:
        return sent.decode("latin-1")
    offered = [one for one in scope.get("subprotocols") or () if one.startswith(KEY_SUBPROTOCOL)]
    keys = [one.removeprefix(KEY_SUBPROTOCOL) for one in offered]
    keys = keys or parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
    return "Bearer " + ", Bearer ".join(keys) if keys else ""


def _limited(allowance: Allowance) -> RateLimited:
    return RateLimited("Too many requests; the limit is per minute.", retry_after_s=allowance.reset_s)


def _policy(limit: int) -> tuple[tuple[bytes, bytes], ...]:
    """Return the fields that stay the same: of draft-ietf-httpapi-ratelimit-headers-11, and of its drafts up to 06."""
    return (
        (b"ratelimit-policy", b'"%s";q=%d;w=60' % (POLICY, limit)),
        (b"ratelimit-limit", b"%d" % limit),
    )


def _fields(allowance: Allowance) -> tuple[tuple[bytes, bytes], ...]:
    """Return how much is left: in one field now, and in two that many clients still read."""
    remaining, reset_s = allowance.remaining, allowance.reset_s
    return (
        (b"ratelimit", b'"%s";r=%d;t=%d' % (POLICY, remaining, reset_s)),
        (b"ratelimit-remaining", b"%d" % remaining),
        (b"ratelimit-reset", b"%d" % reset_s),
    )
