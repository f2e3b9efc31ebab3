"""
Identifies callers by a JWT (HS256, ``exp`` required) or an API key; an open server takes every caller for one user.

Keys are kept as SHA-256 hashes and compared in constant time. Verified credentials are cached under a keyed hash with a
key of this process, so that a token is verified once and not with every request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable

from jarvis_core.errors import Unauthenticated
from jarvis_core.models import Caller
from jarvis_core.settings import Auth, Secret, parse_api_keys

LEEWAY_S = 60
TOKEN_LIMIT_CHARS = 8_192
HEADER_LIMIT_CHARS = TOKEN_LIMIT_CHARS + 100
LATEST_EXP_S = 253_402_300_799
"""The end of the year 9999; a later ``exp`` is refused as a mistake or an attack."""
USER_LIMIT_CHARS = 256
VERIFIED_LIMIT = 4_096
"""Credentials that are remembered, at about 0.5 KB each; over that the oldest is verified anew."""
FOREVER_S = float("inf")
OPEN_CALLER = Caller("local")


class Credentials:
    """Turns the text of an Authorization header into a caller."""

    def __init__(self, settings: Auth, *, now: Callable[[], float] = time.time) -> None:
        self._secret = settings.jwt_secret
        self._keys = {
            hashlib.sha256(key.encode()).digest(): Caller(name, name)
            for key, name in parse_api_keys(settings.api_keys).items()
        }
        self._now = now
        self._verified: dict[bytes, tuple[Caller, float]] = {}
        """By the header's hash: (caller, valid until, in seconds since 1970)."""
        self._verified_key = os.urandom(32)
        self.open = self._secret is None and not self._keys
        """Whether no credentials are needed."""

    def caller(self, authorization: str) -> Caller:
        """
        Return the caller of a request with the header *authorization* (empty: none; several are joined with commas, as
        in HTTP).

        Raises ``Unauthenticated``.
        """
        if self.open:
            return OPEN_CALLER
        if len(authorization) > HEADER_LIMIT_CHARS or not authorization.isascii():
            raise _bad()
        digest = self._digest(authorization)
        verified = self._verified.get(digest)
        if verified is not None:
            if self._now() < verified[1]:
                return verified[0]
            del self._verified[digest]
        scheme, _, token = authorization.partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("Credentials are needed: Authorization: Bearer …")
        if len(token) > TOKEN_LIMIT_CHARS:
            raise _bad()
        caller, good_until_s = self._of_key(token), FOREVER_S
        if caller is None:
            if self._secret is None:
                raise _bad()
            caller, good_until_s = self._of_jwt(token, self._secret)
        if len(self._verified) >= VERIFIED_LIMIT:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = (caller, good_until_s)
        return caller

    def ends_at_s(self, authorization: str) -> float:
        """
        Return when what ``caller`` lets in ends, in seconds since 1970: a token with its ``exp``, a key never.

        A token that came after its ``exp``, by a clock that differs from ours, ends where it would be let in no more.
        Raises ``Unauthenticated``.
        """
        self.caller(authorization)
        if self.open:
            return FOREVER_S
        let_in_until_s = self._verified[self._digest(authorization)][1]
        exp_s = let_in_until_s - LEEWAY_S
        return exp_s if self._now() < exp_s else let_in_until_s

    def _digest(self, authorization: str) -> bytes:
        return hashlib.blake2b(authorization.encode(), digest_size=32, key=self._verified_key).digest()

    def _of_key(self, token: str) -> Caller | None:
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, caller in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _of_jwt(self, token: str, secret: Secret) -> tuple[Caller, float]:
        """Return the caller that *token* names, and until when the token is valid."""
        import jwt  # only deployments with a secret need it

        try:
            claims = jwt.decode(
                token,
                secret.reveal(),
                algorithms=["HS256"],
                leeway=LEEWAY_S,
                options={"require": ["exp"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError as exc:
            # We have signed it, so its sender has guessed nothing.
            raise Unauthenticated("The credentials have expired.") from exc
        except jwt.PyJWTError as exc:
            raise _bad() from exc
        exp = claims["exp"]
        # PyJWT reads texts as numbers too, and does not mind how far the time is.
        if type(exp) not in (int, float) or exp > LATEST_EXP_S:
            raise _bad()
        user = claims.get("user_id") or claims.get("sub")
        if not isinstance(user, str) or not is_user(user):
            raise Unauthenticated("The credentials name no user.")
        username = claims.get("username")
        return Caller(user, username if isinstance(username, str) else user), int(exp) + LEEWAY_S


def is_user(text: str) -> bool:
    """Whether *text* can be a user's id."""
    return 0 < len(text) <= USER_LIMIT_CHARS and text.isprintable()


def _bad() -> Unauthenticated:
    return Unauthenticated("The credentials are not valid.", guessed=True)
