"""Credentials and proxies' headers, made up: somebody, or nobody, and never a defect."""

from __future__ import annotations

import time
from typing import Any

import jwt
from hypothesis import given
from hypothesis import strategies as st

from jarvis_core.access.credentials import LATEST_EXP_S, LEEWAY_S, Credentials, is_user
from jarvis_core.errors import Unauthenticated
from jarvis_core.handlers.client_address import ClientAddresses
from jarvis_core.models import Caller
from jarvis_core.settings import Auth, Secret
from tests.fuzz.conftest import KEY, SECRET, fuzzing
from tests.fuzz.schemas import ANYTHING, TEXTS

DOOR = Credentials(Auth(Secret(SECRET), Secret(f"fuzz:{KEY}")))
NOW = int(time.time())
TIMES = st.one_of(
    st.integers(NOW - 200, NOW + 200), st.integers(NOW + 200, 2 * LATEST_EXP_S), st.floats(), st.integers(), ANYTHING
)
CLAIMS = st.fixed_dictionaries(
    {"exp": TIMES},
    optional={
        "sub": st.one_of(TEXTS, ANYTHING),
        "user_id": st.one_of(TEXTS, ANYTHING),
        "username": ANYTHING,
        "nbf": TIMES,
        "iat": TIMES,
        "aud": ANYTHING,
        "iss": TEXTS,
    },
)


def caller(authorization: str) -> Caller | None:
    """Return who comes in, None where nobody does."""
    try:
        return DOOR.caller(authorization)
    except Unauthenticated:
        return None


@fuzzing(0.2, 200)
@given(
    st.one_of(TEXTS, TEXTS.map(lambda text: f"Bearer {text}"), st.text(".-_=aeyJ ").map(lambda text: f"Bearer {text}"))
)
def test_made_up_header(text: str) -> None:
    """Nobody comes in with a header that was made up."""
    assert caller(text) is None


@fuzzing(0.2, 300)
@given(CLAIMS)
def test_signed_claims(claims: dict[str, Any]) -> None:
    """A token with our signature lets in a user that can be one, until its end and not after, also when it comes again."""
    token = jwt.encode(claims, SECRET, algorithm="HS256")
    found = caller(f"Bearer {token}")
    assert caller(f"Bearer {token}") == found
    if found is not None:
        assert is_user(found.user_id)
        assert found.user_id in (claims.get("user_id"), claims.get("sub"))
        assert type(claims["exp"]) in (int, float)
        assert NOW - LEEWAY_S <= claims["exp"] <= LATEST_EXP_S


@fuzzing(0.2, 200)
@given(st.integers(0, 600), st.integers(1, 255), st.sampled_from([f"Bearer {KEY}", None]))
def test_one_byte(at: int, change: int, header: str | None) -> None:
    """A good header with another byte in it lets nobody in, but for what does not count in it."""
    good = header or f"Bearer {jwt.encode({'sub': 'zoé', 'exp': NOW + 3_600}, SECRET, algorithm='HS256')}"
    bad = list(good)
    at %= len(bad)
    bad[at] = chr((ord(bad[at]) + change) % 256)
    changed = "".join(bad)
    same = changed.partition(" ")[0].lower() == "bearer" and changed.strip(" ")[7:] == good[7:]
    # The last character of a signature has two bits that stand for nothing (RFC 4648, 3.5).
    last = header is None and at == len(bad) - 1
    assert (caller(changed) is None) or same or last


@fuzzing(0.2, 300)
@given(st.lists(st.text(st.characters(max_codepoint=255)) | st.ip_addresses().map(str), max_size=6), st.booleans())
def test_forwarded(hops: list[str], trusted: bool) -> None:
    """Whatever X-Forwarded-For says, somebody is named, and without a trusted proxy it is the peer."""
    headers = [(b"x-forwarded-for", ", ".join(hops).encode("latin-1"))]
    addresses = ClientAddresses(("10.0.0.0/8",) if trusted else ())
    key = addresses.key({"client": ("10.0.0.1", 1), "headers": headers})
    assert key
    assert trusted or key == "10.0.0.1"
