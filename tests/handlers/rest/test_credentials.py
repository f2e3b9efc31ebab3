"""Who may come in, and whom the neighbour is told about."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import jwt
import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import API_KEY, SECRET, AsUser, make_token

OTHER_SECRET = SECRET.swapcase()
PUBLIC = ("/health", "/ready", "/metrics", "/openapi.json")


def unsigned(**claims: object) -> str:
    """Make a token whose header says that it needs no signature."""
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        make_token("zoé"),
        f"Token {make_token('zoé')}",
        "Bearer not-a-token",
        "Bearer a.b.c",
        f"Bearer {make_token('zoé', secret=OTHER_SECRET)}",
        f"Bearer {make_token('zoé', lifetime_s=-3_600)}",
        f"Bearer {make_token('zoé', exp=None)}",
        f"Bearer {make_token('zoé', algorithm='HS512')}",
        f"Bearer {make_token('zoé', nbf=32_503_680_000)}",
        f"Bearer {make_token('', sub='')}",
        f"Bearer {make_token('x', user_id=None, sub=None)}",
        f"Bearer {make_token('x', user_id=7)}",
        f"Bearer {make_token('x' * 300)}",
        f"Bearer {unsigned(sub='zoé', exp=32_503_680_000)}",
        f"Bearer {make_token('zoé')}x",
        f"Bearer {make_token('zoé')[:-4]}",
        f"Bearer {API_KEY}x",
        f"Bearer {API_KEY[:-1]}",
        f"Bearer {API_KEY.upper()}",
        "Bearer " + "x" * 9_000,
        f"Bearer {SECRET}",
    ],
    ids=range(25),
)
async def test_refused(strict: Api, authorization: str) -> None:
    """Missing, foreign, expired, unsigned or broken credentials are 401, before anything else is looked at."""
    headers = {"Authorization": authorization}
    for method, path in (("POST", "/api/chat"), ("GET", "/api/chat/conversations"), ("GET", "/api/chat/history/x")):
        answer = await strict.ask(method, path, data=b"{" if method == "POST" else None, headers=headers)
        assert answer.error == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        token = authorization.partition(" ")[2].strip()
        assert not token or token not in answer.json["error"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: f"Bearer {make_token('zoé')}",
        lambda: f"bearer {make_token('zoé')}",
        lambda: f"BEARER   {make_token('zoé')}",
        lambda: f"Bearer {make_token('zoé', aud='somebody', iss='us', permissions=['llm'])}",
        lambda: f"Bearer {make_token('zoé', lifetime_s=-30)}",
        lambda: f"Bearer {API_KEY}",
    ],
    ids=["jwt", "lower", "upper", "more claims", "clocks differ by less than a minute", "key"],
)
async def test_taken(strict: Api, make: Callable[[], str]) -> None:
    """A signed token, or a key, is taken; the scheme's case is no matter."""
    answer = await strict.get("/api/chat/conversations", headers={"Authorization": make()})
    assert answer.status == 200


async def test_public(as_user: AsUser) -> None:
    """Health, readiness, metrics and the document need no credentials, and bad ones do not keep anybody from them."""
    for api in (as_user(""), as_user("bad")):
        for path in PUBLIC:
            assert (await api.get(path)).status == 200


async def test_user_is_user_id_before_sub(as_user: AsUser, strict_bridges: FakeBridges) -> None:
    """The user of a token is its ``user_id``, else its ``sub``; the same user by either sees the same conversations."""
    by_id = as_user(make_token("somebody", user_id="léa", sub="other"))
    by_sub = as_user(make_token("léa", user_id=None))
    conversation = (await by_id.say("c'est moi"))["conversation_id"]
    assert await by_sub.history(conversation) == await by_id.history(conversation)
    assert (await as_user(make_token("other")).get(f"/api/chat/history/{conversation}")).status == 404


async def test_key_has_a_user_of_its_own(as_user: AsUser, strict_bridges: FakeBridges) -> None:
    """A key's user is its name, the same as a token's with that name."""
    conversation = (await as_user(API_KEY).say("à la cuisine"))["conversation_id"]
    assert len(await as_user(make_token("kitchen")).history(conversation)) == 2


@pytest.mark.parametrize(("token", "user"), [(make_token("zoé-9"), "zoé-9"), (API_KEY, "kitchen")])
async def test_neighbour_is_told_who_asks(as_user: AsUser, strict_bridges: FakeBridges, token: str, user: str) -> None:
    """The neighbour gets a token of ours that names the caller, for it counts by user; never the caller's own."""
    await as_user(token).say("qui suis-je ?")
    sent = strict_bridges.last("/api/llm").headers["authorization"].removeprefix("Bearer ")
    claims = jwt.decode(sent, SECRET, algorithms=["HS256"])
    assert (claims["user_id"], claims["sub"]) == (user, user)
    assert "aud" not in claims
    assert sent != token


async def test_open_server_takes_any_credentials(api: Api) -> None:
    """A server without credentials asks for none, and is not disturbed by some."""
    conversation = (await api.say("ouvert"))["conversation_id"]
    answer = await api.get(f"/api/chat/history/{conversation}", headers={"Authorization": "Bearer anything"})
    assert answer.status == 200
