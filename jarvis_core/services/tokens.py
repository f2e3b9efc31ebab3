"""Tokens for the bridges: they count their limits by the user that a token names, so each caller gets its own."""

from __future__ import annotations

import time

from jarvis_core.models import Caller
from jarvis_core.settings import Secret

LIFETIME_S = 900
RENEW_BEFORE_S = 60
CACHED_CALLERS = 1_024


class TokenMint:
    """Signs (HS256) the claims that the bridges want; without ``aud``, which they refuse."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._cache: dict[Caller, tuple[float, str]] = {}

    def token(self, caller: Caller) -> str:
        """Return a token for *caller* that is good for at least another minute."""
        now = time.time()
        cached = self._cache.get(caller)
        if cached is not None and now < cached[0] - RENEW_BEFORE_S:
            return cached[1]
        import jwt  # only deployments with a secret need it

        claims = {
            "sub": caller.user_id,
            "user_id": caller.user_id,
            "username": caller.username or caller.user_id,
            "iat": int(now),
            "exp": int(now) + LIFETIME_S,
            "permissions": ["llm", "stt", "tts", "embeddings"],
        }
        token = jwt.encode(claims, self._secret.reveal(), algorithm="HS256")
        if len(self._cache) >= CACHED_CALLERS:
            self._cache.clear()
        self._cache[caller] = (now + LIFETIME_S, token)
        return token
