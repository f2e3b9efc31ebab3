"""
Who is asking: a JWT (HS256, ``exp`` required), an API key, or anybody where the server is open.

Keys are kept as SHA-256 hashes and compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac

from jarvis_core.errors import Unauthenticated
from jarvis_core.models import Caller
from jarvis_core.settings import Auth, parse_api_keys

LEEWAY_S = 60
TOKEN_LIMIT_CHARS = 8_192
OPEN_CALLER = Caller("local")


class Credentials:
    """Turns the text of an Authorization header into a caller."""

    def __init__(self, settings: Auth) -> None:
        self._secret = settings.jwt_secret
        self._keys = {
            hashlib.sha256(key.encode()).digest(): Caller(name, name)
            for key, name in parse_api_keys(settings.api_keys).items()
        }
        self.open = self._secret is None and not self._keys
        """Whether anybody may come in."""

    def caller(self, authorization: str) -> Caller:
        """Return who sent the header *authorization* (empty: none); raises ``Unauthenticated``."""
        if self.open:
            return OPEN_CALLER
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("Credentials are needed: Authorization: Bearer …")
        if len(token) > TOKEN_LIMIT_CHARS or not token.isascii():
            raise Unauthenticated("The credentials are not valid.")
        return self._of_key(token) or self._of_jwt(token)

    def _of_key(self, token: str) -> Caller | None:
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, caller in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _of_jwt(self, token: str) -> Caller:
        if self._secret is None:
            raise Unauthenticated("The credentials are not valid.")
        import jwt  # only deployments with a secret need it

        try:
            claims = jwt.decode(
                token,
                self._secret.reveal(),
                algorithms=["HS256"],
                leeway=LEEWAY_S,
                options={"require": ["exp"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError as exc:
            raise Unauthenticated("The credentials have expired.") from exc
        except jwt.PyJWTError as exc:
            raise Unauthenticated("The credentials are not valid.") from exc
        user = claims.get("user_id") or claims.get("sub")
        if not isinstance(user, str) or not 0 < len(user) <= 256 or not user.isprintable():
            raise Unauthenticated("The credentials name no user.")
        username = claims.get("username")
        return Caller(user, username if isinstance(username, str) else user)
