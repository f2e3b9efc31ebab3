"""What browsers are told about answers, and what their pages may not do."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.handlers.rest.api import Answer, Api
from tests.handlers.rest.conftest import ORIGIN
from tests.handlers.rest.test_every_credential import BODIES
from tests.handlers.rest.test_every_route import UNKNOWN, refusal_of_a_websocket, routes

EVIL = "http://evil.example"


def assert_safe(headers: Any) -> None:
    """Hold an answer's headers against what all answers have."""
    assert headers.getall("Cache-Control") == ["no-store"]
    assert headers.getall("X-Content-Type-Options") == ["nosniff"]
    assert headers.getall("Content-Security-Policy") == ["default-src 'none'; frame-ancestors 'none'"]


async def test_every_answer_is_safe(api: Api, strict: Api) -> None:
    """Answers and errors of every route, streams and refused sockets are not cached, taken for another type, or framed."""
    for method, path in [*(await routes(api)), ("GET", "/no/such/path"), ("BREW", "/api/chat")]:
        if not path.endswith("/events"):
            assert_safe((await api.ask(method, path, BODIES.get(path))).headers)
    for options in ({"headers": {"Authorization": ""}}, {"headers": {"Origin": EVIL}}):
        assert_safe((await strict.get("/api/chat/conversations", **options)).headers)
    async with api.stream("x") as stream:
        assert_safe(stream.headers)
    spoken = {"Accept": "audio/wav"}
    async with api.session.post("/api/voice/synthesize", json={"text": "x"}, headers=spoken) as answer:
        assert answer.content_type == "audio/wav"
        assert_safe(answer.headers)
    assert_safe((await refusal_of_a_websocket(api, {})).headers)


async def changed(api: Api, origin: str, **headers: str) -> Answer:
    """Try to add a memory from a page, as its script can without a preflight."""
    content = b'{"content": "remember me"}'
    return await api.ask("POST", "/api/memory/add", data=content, headers={"Origin": origin, **headers})


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:3001", "https://localhost:3000", "x"])
async def test_foreign_page_changes_nothing(api: Api, origin: str) -> None:
    """A request of a foreign page that no preflight asks for is refused, on every route that changes something."""
    assert (await changed(api, origin)).error == (403, "forbidden")
    before = (await api.get("/api/memory/list")).json["total"]
    for method, path in await routes(api):
        if method != "GET":
            answer = await api.ask(method, path, BODIES.get(path), headers={"Origin": origin})
            assert answer.error == (403, "forbidden"), (method, path)
    assert (await api.get("/api/memory/list")).json["total"] == before


async def test_own_pages_may(api: Api) -> None:
    """Pages of CORS_ORIGINS and of the server's own host may change something, as may who is no browser."""
    for origin in (ORIGIN, str(api.session._base_url).rstrip("/")):
        assert (await changed(api, origin)).status == 200
    answer = await api.ask("POST", "/api/memory/add", data=b'{"content": "remember me"}')
    assert answer.status == 200


REBOUND = "page.example:8100"
"""The name of a page of the web, pointed to this machine."""


async def test_name_that_points_here(api: Api, strict: Api) -> None:
    """A page whose own name is pointed to an open server reads nothing and changes nothing, on any route, nor opens a socket."""
    page = {"Host": REBOUND, "Origin": f"http://{REBOUND}"}
    before = (await api.get("/api/memory/list")).json["total"]
    asked = [
        *(await routes(api)),
        ("GET", "/openapi.json"),
        ("GET", "/no/such/path"),
        ("OPTIONS", "/api/chat"),
        ("GET", "/health"),
    ]
    for method, path in asked:
        answer = await api.ask(method, path, BODIES.get(path), headers=page)
        assert answer.error == (421, "misdirected_request"), (method, path)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await api.session.ws_connect("/ws", headers=page)
    assert refused.value.status == 421
    assert (await api.get("/api/memory/list")).json["total"] == before
    # Where credentials are needed a page has none, whatever its name.
    assert (await strict.get("/api/memory/list", headers={"Host": REBOUND})).status == 200


@pytest.mark.parametrize("host", ["localhost:8100", "jarvis.local", "core:8100", "192.0.2.7", "[::1]:8100"])
async def test_names_of_a_home(api: Api, host: str) -> None:
    """Names that no page of the web can have are answered, to their own pages too."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert (await api.get("/health", headers=headers)).status == 200
    assert (await changed(api, f"http://{host}", Host=host)).status == 200


async def test_foreign_page_may_look(api: Api) -> None:
    """What changes nothing is answered to a foreign page, whose browser keeps it from reading that."""
    answer = await api.get("/api/chat/conversations", headers={"Origin": EVIL})
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("deep", ["[", '{"a":', '[{"a":', '{"content":', '{"content":[', '"'], ids=repr)
async def test_deep_nesting(api: Api, deep: str) -> None:
    """A megabyte of nesting is 400 on every route that takes JSON, and the next request is answered."""
    body = (deep * (1_000_000 // len(deep))).encode()
    for path in (*BODIES, f"/api/chat/conversation/{UNKNOWN}"):
        method = "PATCH" if UNKNOWN in path else "POST"
        answer = await api.ask(method, path, data=body, headers={"Content-Type": "application/json"})
        assert answer.status == 400, (path, answer.body[:200])
        assert answer.code in ("invalid_json", "invalid_request")
    assert (await api.get("/ready")).status == 200
