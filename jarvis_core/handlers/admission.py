"""
Who may come in and how much they may ask: what every call passes before its handler, and every WebSocket.

In this order: the name that is asked for, where the server is open (421), the origin of a browser's page (403), credentials
(401), the rate (429), connections (429). Where the server is open everybody is the same user, and each address has a share.
"""

from __future__ import annotations

import socket
from urllib.parse import parse_qs

from starlette.types import Scope

from jarvis_core.access.credentials import Credentials
from jarvis_core.access.rate_limit import Allowance, RateLimiter
from jarvis_core.access.throttle import AuthThrottle
from jarvis_core.access.tickets import PREFIXES, Tickets
from jarvis_core.errors import RateLimited, Unauthenticated
from jarvis_core.handlers.call import Call, peer_of
from jarvis_core.handlers.client_address import ClientAddresses, is_own_machine
from jarvis_core.handlers.hosts import Hosts
from jarvis_core.handlers.origin import SAFE_METHODS, Origins
from jarvis_core.models import Caller
from jarvis_core.settings import Limits, Server
from jarvis_core.shares import current_user

CONNECTIONS_RETRY_S = 1
POLICY = b"default"
"""The name of the one limit that there is, in the RateLimit fields."""
TICKET = b"ticket="
SOCKET_TICKET = f"Bearer {PREFIXES['socket']}"
KEY_SUBPROTOCOL = "openai-insecure-api-key."


class Admitted:
    """Somebody who came in over a WebSocket."""

    __slots__ = ("caller", "ends_at_s", "key", "peer", "share")

    def __init__(self, caller: Caller, key: str, peer: tuple[str, int] | None, ends_at_s: float) -> None:
        self.caller = caller
        self.peer = peer
        """The other end of its connection: its own, or a proxy's."""
        self.key = key
        """Under which its requests are counted, and have their turns."""
        self.share = ""
        """Under which it is counted as open."""
        self.ends_at_s = ends_at_s
        """When its credentials end, in seconds since 1970; infinite where they do not."""


class Admission:
    """Lets calls in, or raises the error that their clients are to see."""

    def __init__(
        self,
        credentials: Credentials,
        server: Server,
        limits: Limits,
        limiter: RateLimiter | None,
        tickets: Tickets | None = None,
    ) -> None:
        self.addresses = ClientAddresses(server.trusted_proxies)
        self.origins = Origins(server.cors_origins, self.addresses)
        self.hosts = Hosts(server.allowed_hosts, (server.host, socket.gethostname())) if credentials.open else None
        """None where credentials are needed: a page has none, whatever its name."""
        self._credentials = credentials
        self._tickets = tickets
        self._limiter = limiter
        self._policy = () if limiter is None else _policy(limiter.limit)
        self._guesses = AuthThrottle()
        self._connection_limit = limits.user_connection_limit
        self._connections: dict[str, int] = {}
        """By share: a user, or an address where the server is open."""
        self._socket_limit = limits.user_websocket_limit
        self._sockets: dict[str, int] = {}

    async def admit(self, call: Call, authorization: bytes, origin: bytes, *, counted: bool) -> str:
        """
        Let *call* in, as the caller that *authorization* names; ``leave`` lets out the share that is returned.

        One that is not *counted* is let in whatever its caller's rate and connections. Waits where its address has sent
        many bad credentials. Raises ``Forbidden``, ``Unauthenticated`` or ``RateLimited``.
        """
        if origin:
            self.origins.check(call.scope, origin)
        if not authorization and TICKET in call.scope["query_string"] and self._tickets is not None:
            call.caller = await self._caller_of_ticket(call, self._tickets)
        else:
            call.caller = await self._caller(call.scope, str(authorization, "latin-1"))
        key = self._key(call.scope, call.caller)
        current_user.set(key)
        if self._limiter is not None and counted:
            allowance = await self._limiter.take(key)
            call.headers = [*call.headers, *self._policy, *_fields(allowance)]
            if not allowance.granted:
                raise _limited(allowance)
        return self._connect(key, limited=counted)

    async def admit_socket(self, scope: Scope) -> Admitted:
        """Let a WebSocket in, as ``admit`` does a call."""
        if self.hosts is not None:
            self.hosts.check(next((value for key, value in scope["headers"] if key == b"host"), b""))
        origin = next((value for key, value in scope["headers"] if key == b"origin"), b"")
        if origin:
            self.origins.check(scope, origin)
        authorization = socket_credentials(scope)
        if authorization.startswith(SOCKET_TICKET) and self._tickets is not None and not self._credentials.open:
            try:
                caller, ends_at_s = self._tickets.check("socket", authorization.removeprefix("Bearer "))
            except Unauthenticated as error:
                await self._hold_back(scope, error)
                raise
        else:
            caller = await self._caller(scope, authorization)
            ends_at_s = self._credentials.ends_at_s(authorization)
        admitted = Admitted(caller, self._key(scope, caller), peer_of(scope), ends_at_s)
        current_user.set(admitted.key)
        await self.charge(admitted.key)
        share = self._connect(admitted.key, limited=True)
        if share and self._socket_limit:
            count = self._sockets.get(share, 0)
            if count >= self._socket_limit:
                self.leave(share)
                raise RateLimited(
                    f"{self._whose} has {count} WebSockets open; close some.",
                    details={"limit": self._socket_limit},
                    retry_after_s=CONNECTIONS_RETRY_S,
                )
            self._sockets[share] = count + 1
        admitted.share = share
        return admitted

    def leave_socket(self, admitted: Admitted) -> None:
        """Let out a WebSocket that was let in."""
        self.leave(admitted.share)
        if admitted.share and self._socket_limit:
            _less(self._sockets, admitted.share)

    async def charge(self, key: str) -> tuple[int, Allowance] | None:
        """
        Count under *key* what somebody asks over an open connection; return the limit and what is left, None without a limit.

        Raises ``RateLimited``.
        """
        if self._limiter is None:
            return None
        allowance = await self._limiter.take(key)
        if not allowance.granted:
            raise _limited(allowance)
        return self._limiter.limit, allowance

    def leave(self, share: str) -> None:
        """Let out a call that was let in."""
        if share and self._connection_limit:
            _less(self._connections, share)

    def key(self, call: Call) -> str:
        """Return under which name what *call* makes us hold is counted: its user, or its address where it has none."""
        return self._key(call.scope, call.caller) or self.addresses.key(call.scope)

    async def _caller(self, scope: Scope, authorization: str) -> Caller:
        try:
            return self._credentials.caller(authorization)
        except Unauthenticated as error:
            await self._hold_back(scope, error)
            raise

    async def _caller_of_ticket(self, call: Call, tickets: Tickets) -> Caller:
        """
        Return whose ticket the query of *call* has, which follows a turn; no other route takes one.

        An open server has nothing to sign tickets with that others do not know: there everybody is the same user anyway.
        """
        before, _, last = call.scope["path"].rpartition("/")
        if last != "events" or call.scope["method"] not in SAFE_METHODS or self._credentials.open:
            return await self._caller(call.scope, "")
        try:
            return tickets.check("events", call.query().get("ticket", ""), before.rpartition("/")[2].lower())[0]
        except Unauthenticated as error:
            await self._hold_back(call.scope, error)
            raise

    async def _hold_back(self, scope: Scope, error: Unauthenticated) -> None:
        if error.guessed:
            await self._guesses.hold_back(self.addresses.key(scope))

    def key_at(self, address: str, user: str) -> str:
        """Return under which name *user* is counted, who asks from *address* and not over HTTP."""
        return address if self._credentials.open else user

    def _key(self, scope: Scope, caller: Caller) -> str:
        return self.addresses.key(scope) if self._credentials.open else caller.user_id

    @property
    def _whose(self) -> str:
        return "This address" if self._credentials.open else "This user"

    def _connect(self, key: str, *, limited: bool) -> str:
        share = "" if self._credentials.open and is_own_machine(key) else key
        if share and self._connection_limit:
            count = self._connections.get(share, 0)
            if limited and count >= self._connection_limit:
                raise RateLimited(
                    f"{self._whose} has {count} connections and requests open; close some.",
                    details={"limit": self._connection_limit},
                    retry_after_s=CONNECTIONS_RETRY_S,
                )
            self._connections[share] = count + 1
        return share


def _less(counts: dict[str, int], share: str) -> None:
    left = counts[share] - 1
    if left:
        counts[share] = left
    else:
        del counts[share]


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
