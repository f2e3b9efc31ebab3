"""
Tickets: credentials for one thing and a short time, for clients that must not have, or cannot send, a caller's own.

A ticket is signed with what all workers of an installation have, its credentials, so each of them knows a ticket of another.
Whoever changes these takes back every ticket.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from jarvis_core.errors import Unauthenticated
from jarvis_core.models import Caller
from jarvis_core.settings import Auth, parse_api_keys

TICKET_LIMIT_CHARS = 2_048
SPENT_LIMIT = 10_000
"""Tickets for one use that are remembered as spent; beyond that the oldest is forgotten, which has ended by then."""

Kind = Literal["socket", "events"]
"""What it lets in: one WebSocket, or the events of one turn as often as it takes."""
PREFIXES: dict[Kind, str] = {"socket": "ek_", "events": "tk_"}
"""``ek_`` is what OpenAI's ephemeral keys begin with."""


class _Claims(Struct, array_like=True):
    """What a ticket says."""

    user_id: str
    username: str
    subject: str
    """What it is for, beside its kind."""
    good_until_s: float
    ends_at_s: float | None
    """When what it let in has to end, because its caller's own credentials do; None never."""
    nonce: bytes


class Tickets:
    """Issues and checks the tickets of one installation."""

    def __init__(self, settings: Auth, *, now: Callable[[], float] = time.time) -> None:
        material = hashlib.sha256(b"jarvis tickets")
        if settings.jwt_secret is not None:
            material.update(settings.jwt_secret.reveal().encode())
        for key, name in sorted(parse_api_keys(settings.api_keys).items()):
            material.update(f"\0{name}:{key}".encode())
        self._key = material.digest()
        self._now = now
        self._spent: dict[bytes, float] = {}
        """Nonces of tickets for one use, and until when each would be good; the oldest first."""

    def issue(
        self, kind: Kind, caller: Caller, subject: str = "", *, lifetime_s: float, ends_at_s: float = math.inf
    ) -> tuple[str, float]:
        """Return a ticket of *caller*'s for *subject*, and until when it is good, in seconds since 1970."""
        good_until_s = min(self._now() + lifetime_s, ends_at_s)
        claims = _Claims(
            caller.user_id,
            caller.username,
            subject,
            good_until_s,
            None if ends_at_s == math.inf else ends_at_s,
            os.urandom(12),
        )
        body = msgspec.msgpack.encode(claims)
        signed = body + self._signature(kind, body)
        return PREFIXES[kind] + base64.urlsafe_b64encode(signed).decode().rstrip("="), good_until_s

    def check(self, kind: Kind, ticket: str, subject: str = "") -> tuple[Caller, float]:
        """
        Return whose *ticket* it is, and when what it lets in has to end; one for a socket is spent by it, in this worker.

        Raises ``Unauthenticated``.
        """
        claims = self._read(kind, ticket)
        if not hmac.compare_digest(claims.subject.encode(), subject.encode()):
            raise Unauthenticated("The ticket is for something else.")
        if self._now() >= claims.good_until_s:
            raise Unauthenticated("The ticket has expired.")
        if kind == "socket":
            self._spend(claims)
        return Caller(claims.user_id, claims.username), math.inf if claims.ends_at_s is None else claims.ends_at_s

    def _read(self, kind: Kind, ticket: str) -> _Claims:
        text = ticket.removeprefix(PREFIXES[kind])
        try:
            if len(ticket) > TICKET_LIMIT_CHARS or text == ticket:
                raise _bad()
            signed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            body, signature = signed[:-32], signed[-32:]
            if not hmac.compare_digest(self._signature(kind, body), signature):
                raise _bad()
            return msgspec.msgpack.decode(body, type=_Claims)
        except (binascii.Error, ValueError, msgspec.DecodeError) as exc:
            raise _bad() from exc

    def _spend(self, claims: _Claims) -> None:
        if claims.nonce in self._spent:
            raise Unauthenticated("The ticket was used before: it lets one WebSocket in.")
        if len(self._spent) >= SPENT_LIMIT:
            del self._spent[next(iter(self._spent))]
        self._spent[claims.nonce] = claims.good_until_s

    def _signature(self, kind: Kind, body: bytes) -> bytes:
        return hmac.new(self._key, kind.encode() + b"\0" + body, hashlib.sha256).digest()


def _bad() -> Unauthenticated:
    return Unauthenticated("The ticket is not valid.", guessed=True)
