"""Below ``/v1`` every error is in OpenAI's shape, and nowhere else; a page and a plain GET are told what they need."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.fakes.openai_compatible import FakeModelServer
from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import API_KEY, ORIGIN


async def complaint(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the error of an answer, which has the fields that OpenAI's clients read, and a request id."""
    assert response.headers["X-Request-ID"]
    body = await response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "param", "code"} <= set(error) <= {"message", "type", "param", "code", "details"}
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/no/such/path", 404, "not_found"),
        ("BREW", "/v1/x", 404, "not_found"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-5", 404, "model_not_found"),
        ("GET", "/v1/realtime", 426, "upgrade_required"),
    ],
)
async def test_error_in_openais_shape(api: Api, method: str, path: str, status: int, code: str) -> None:
    """An unknown path, a wrong method, an unknown model and a plain GET of the WebSocket are errors in OpenAI's shape."""
    async with api.session.request(method, path) as response:
        assert response.status == status
        error = await complaint(response)
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        if status == 426:
            assert response.headers["Upgrade"] == "websocket"


async def test_error_elsewhere(api: Api) -> None:
    """Other paths keep our shape, also the WebSocket's own."""
    async with api.session.get("/ws") as response:
        assert response.status == 426
        assert (await response.json())["code"] == "upgrade_required"
    assert (await api.get("/v1")).error == (404, "not_found")


async def test_no_credentials(strict: Api) -> None:
    """Who has no key, or a wrong one, is told so in OpenAI's shape; who has one is let in."""
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer sk-of-somebody-else"}):
        for path in ("/v1/models", "/v1/realtime"):
            async with strict.session.get(path, headers=headers) as response:
                assert response.status == 401
                error = await complaint(response)
                assert (error["type"], error["code"]) == ("authentication_error", "unauthenticated")
    async with strict.session.get("/v1/models", headers={"Authorization": f"Bearer {API_KEY}"}) as response:
        assert response.status == 200


async def test_every_route_needs_credentials(strict: Api) -> None:
    """Nothing below /v1 is reached without credentials, whatever is asked."""
    unknown = "resp_019b0000-0000-7000-8000-000000000000"
    for method, path in (
        *(("POST", f"/v1/{one}") for one in ("chat/completions", "responses", "embeddings", "realtime/client_secrets")),
        *(("POST", f"/v1/audio/{one}") for one in ("speech", "transcriptions")),
        *(("GET", f"/v1/{one}") for one in ("models", "models/jarvis", f"responses/{unknown}", "realtime")),
        *(("DELETE", f"/v1/responses/{unknown}"), ("POST", f"/v1/responses/{unknown}/cancel")),
        ("GET", f"/v1/responses/{unknown}/input_items"),
    ):
        async with strict.session.request(method, path, data=b"{}", headers={"Authorization": ""}) as response:
            assert response.status == 401, path


async def test_handshake(api: Api) -> None:
    """A handshake that is refused below /v1 is refused in OpenAI's shape."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
        await api.session.ws_connect("/v1/no/such/socket")
    assert raised.value.status == 404


async def test_preflight_of_an_unknown_path(api: Api) -> None:
    """A page may ask for what is not there, and is shown the error that says so."""
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-stainless-os",
    }
    async with api.session.options("/v1/no/such/path", headers=asked) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Headers"] == "x-stainless-os"
    async with api.session.post("/v1/no/such/path", headers={"Origin": ORIGIN}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert (await complaint(response))["code"] == "not_found"


async def test_models(house: Api, model: FakeModelServer) -> None:
    """The assistant, the model behind it by its own name, and what hears, speaks and embeds are listed; each is found."""
    async with house.session.get("/v1/models") as response:
        body = await response.json()
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == [
        *("jarvis", "jarvis-hear", "jarvis-voice", "jarvis-embed", "small-model"),
    ]
    for name, meant in (("jarvis", "jarvis"), ("small-model", "small-model"), ("tts-1-hd", "jarvis-voice")):
        async with house.session.get(f"/v1/models/{name}") as response:
            assert (await response.json())["id"] == meant


async def test_models_of_a_server_that_does_not_say(api: Api, bridges: FakeBridges) -> None:
    """The bridges name their model with an answer: from then on it is listed."""
    await api.say("bonjour")
    async with api.session.get("/v1/models") as response:
        assert "mistral:latest" in [card["id"] for card in (await response.json())["data"]]
