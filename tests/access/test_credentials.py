"""Credentials: who may come in, and as whom."""

from __future__ import annotations

import base64
import hmac
import json
import math
import time
from typing import Any

import jwt
import pytest

from jarvis_core.access.credentials import LEEWAY_S, OPEN_CALLER, TOKEN_LIMIT_CHARS, Credentials
from jarvis_core.errors import Unauthenticated
from jarvis_core.models import Caller
from jarvis_core.settings import Auth, Secret

SECRET = "0123456789abcdef0123456789abcdef"
API_KEY = "correct-horse"


HOUR_S = 3_600
TODAY = int(time.time()) // 86_400 * 86_400
"""Parameters made of it are the same in every process that runs tests."""


def credentials(*, secret: str | None = SECRET, keys: str | None = f"ann:{API_KEY},bob:12345678") -> Credentials:
    """Make credentials from plain texts."""
    return Credentials(Auth(Secret(secret) if secret else None, Secret(keys) if keys else None))


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Sign a token that is good for a day or two, unless *claims* say otherwise; a claim of None is left out."""
    good: dict[str, Any] = {"sub": "carl", "exp": TODAY + 48 * HOUR_S}
    return jwt.encode({k: v for k, v in (good | claims).items() if v is not None}, secret, algorithm=algorithm)


def named(algorithm: str, *, signed: bool = False) -> str:
    """Make a token whose head claims *algorithm*: with a good HMAC-SHA256 signature, or with none."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = part(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    text = f"{head}.{part(json.dumps({'sub': 'carl', 'exp': TODAY + 48 * HOUR_S}).encode())}"
    return f"{text}.{part(hmac.digest(SECRET.encode(), text.encode(), 'sha256')) if signed else ''}"


@pytest.mark.parametrize("header", ["", "Bearer whatever", "Basic eA==", "é"])
def test_open(header: str) -> None:
    """With neither a secret nor keys every caller is the user local, whatever is sent."""
    open_door = credentials(secret=None, keys=None)
    assert open_door.open
    assert open_door.caller(header) == OPEN_CALLER == Caller("local")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_good_tokens(scheme: str) -> None:
    """A signed token that has not expired lets its user in; the scheme's case does not matter."""
    door = credentials()
    assert not door.open
    assert door.caller(f"{scheme} {token()}") == Caller("carl", "carl")
    assert door.caller(f"{scheme}   {token()} ") == Caller("carl", "carl")


@pytest.mark.parametrize(
    ("claims", "caller"),
    [
        ({"user_id": "u-1"}, Caller("u-1", "u-1")),
        ({"user_id": "u-1", "username": "Carl"}, Caller("u-1", "Carl")),
        ({"user_id": "", "sub": "carl"}, Caller("carl", "carl")),
        ({"username": 7}, Caller("carl", "carl")),
        ({"aud": "somebody", "iss": "somewhere", "permissions": ["llm"]}, Caller("carl", "carl")),
        ({"sub": "x" * 256}, Caller("x" * 256, "x" * 256)),
    ],
)
def test_claims(claims: dict[str, Any], caller: Caller) -> None:
    """The user is user_id or else sub; an audience is not ours to judge, and clocks may differ a little."""
    assert credentials().caller(f"Bearer {token(**claims)}") == caller


def test_leeway() -> None:
    """A token that has just expired is still good: clocks do not agree to the second."""
    assert credentials().caller(f"Bearer {token(exp=int(time.time()) - LEEWAY_S // 2)}") == Caller("carl", "carl")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic " + base64.b64encode(b"ann:correct-horse").decode(),
        API_KEY,
        "Bearer wrong-horse",
        f"Bearer {API_KEY}x",
        "Bearer é",
        "Bearer " + "x" * (TOKEN_LIMIT_CHARS + 1),
        "Bearer a.b.c",
        f"Bearer {named('none')}",
        f"Bearer {named('None')}",
        f"Bearer {named('HS256')}",
        f"Bearer {named('RS256')}",
        f"Bearer {named('none', signed=True)}",
        f"Bearer {named('RS256', signed=True)}",
        f"Bearer {token(secret=SECRET[::-1])}",
        f"Bearer {token(algorithm='HS512', secret=SECRET * 2)}",
        f"Bearer {token(algorithm='HS384', secret=SECRET + SECRET[:16])}",
        f"Bearer {token()[:-2]}",
        f"Bearer {token(exp=None)}",
        f"Bearer {token(exp=TODAY - LEEWAY_S - 5)}",
        f"Bearer {token(nbf=TODAY + 36 * HOUR_S)}",
        f"Bearer {token(sub=None)}",
        f"Bearer {token(user_id=7, sub=None)}",
        f"Bearer {token(sub='x' * 257)}",
    ],
)
def test_bad_credentials(bad: str) -> None:
    """Anything else is Unauthenticated, in words that tell nothing of what was sent."""
    with pytest.raises(Unauthenticated) as caught:
        credentials().caller(bad)
    sent = bad.rpartition(" ")[2]
    assert len(sent) < 10 or sent not in caught.value.message


def test_signature_alone_decides() -> None:
    """The tokens made by hand above are refused for their algorithm or signature, and for nothing else."""
    assert credentials().caller(f"Bearer {named('HS256', signed=True)}") == Caller("carl", "carl")


def test_expired_is_said() -> None:
    """Whose token has expired is told so, to know that a new one helps."""
    with pytest.raises(Unauthenticated, match="expired"):
        credentials().caller(f"Bearer {token(exp=1)}")


def test_api_keys() -> None:
    """An API key lets in the user whom it is named for, with or without a secret for tokens."""
    for door in (credentials(), credentials(secret=None)):
        assert not door.open
        assert door.caller(f"Bearer {API_KEY}") == Caller("ann", "ann")
        assert door.caller("Bearer 12345678") == Caller("bob", "bob")
    with pytest.raises(Unauthenticated):
        credentials(secret=None).caller(f"Bearer {token()}")
    with pytest.raises(Unauthenticated):
        credentials(keys=None).caller(f"Bearer {API_KEY}")


def test_keys_are_not_kept() -> None:
    """The keys themselves are not in the object."""
    assert API_KEY not in repr(vars(credentials()))


@pytest.mark.parametrize("claims", [{"user_id": "a\x00b"}, {"exp": float("inf")}, {"exp": "soon"}, {"iat": "x"}])
def test_claims_that_nobody_can_be(claims: dict[str, Any]) -> None:
    """A user that cannot be stored, or a time that is none, is Unauthenticated and no defect."""
    with pytest.raises(Unauthenticated):
        credentials().caller(f"Bearer {token(**claims)}")


def test_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is verified with its first request and not with every one, and anew once it has reached its end."""
    verified: list[str] = []
    decode = jwt.decode

    def counted(text: str, *arguments: Any, **options: Any) -> Any:
        verified.append(text)
        return decode(text, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", counted)
    clock = time.time()
    door = Credentials(Auth(Secret(SECRET)), now=lambda: clock)
    end = int(clock) + 100
    sent = token(exp=end)
    for _ in range(5):
        assert door.caller(f"Bearer {sent}") == Caller("carl", "carl")
    clock = end + LEEWAY_S - 0.1
    door.caller(f"Bearer {sent}")
    assert len(verified) == 1
    clock = end + LEEWAY_S
    door.caller(f"Bearer {sent}")
    assert len(verified) == 2


def test_token_that_ends_is_forgotten() -> None:
    """A token that was good is refused from its end on, whatever was remembered of it."""
    door = credentials()
    end = int(time.time()) - LEEWAY_S + 2
    sent = token(exp=end)
    assert door.caller(f"Bearer {sent}") == Caller("carl", "carl")
    time.sleep(max(0.0, end + LEEWAY_S - time.time()) + 0.01)
    with pytest.raises(Unauthenticated, match="expired"):
        door.caller(f"Bearer {sent}")


def test_when_credentials_end() -> None:
    """A token ends at its ``exp``, where it came after that when it is let in no more, and a key never."""
    clock = time.time()
    door = Credentials(Auth(Secret(SECRET), Secret(f"ann:{API_KEY}")), now=lambda: clock)
    end = int(clock) + 100
    sent = f"Bearer {token(exp=end)}"
    assert door.ends_at_s(sent) == end
    clock = end + 1
    assert door.ends_at_s(sent) == end + LEEWAY_S
    assert door.ends_at_s(f"Bearer {API_KEY}") == math.inf
    assert credentials(secret=None, keys=None).ends_at_s("") == math.inf
    with pytest.raises(Unauthenticated):
        door.ends_at_s("Bearer bad")


def test_bad_ones_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found good is remembered for so many and no more; what was found bad is not kept at all."""
    monkeypatch.setattr("jarvis_core.access.credentials.VERIFIED_LIMIT", 10)
    door = credentials()
    for number in range(50):
        door.caller(f"Bearer {token(sub=f'user-{number}')}")
        with pytest.raises(Unauthenticated):
            door.caller(f"Bearer bad-{number}")
    assert len(door._verified) == 10
    assert not [sent for sent in door._verified if b"Bearer" in sent]
