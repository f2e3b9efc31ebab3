"""What all routes have in common, and those that machines ask: health, readiness, metrics, the document."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import aiohttp
import openapi_spec_validator
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jarvis_core import __version__
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import ORIGIN

UNKNOWN = str(uuid.UUID(int=7 << 76 | 2 << 62))
VARIABLE = "{id}"


async def routes(api: Api) -> list[tuple[str, str]]:
    """Return (method, path) of each route, with an unknown id where it has one."""
    document = await api.document()
    return [
        (method.upper(), path.replace(VARIABLE, UNKNOWN))
        for path, methods in document.paths.items()
        for method in methods
    ]


async def test_document_is_valid(api: Api) -> None:
    """The document is OpenAPI 3.1, and says this version."""
    async with api.session.get("/openapi.json") as response:
        document = await response.json()
    openapi_spec_validator.OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == __version__
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


async def test_document_makes_good_types(api: Api) -> None:
    """Each property is described and each enum typed; requests have no defaults, which generators take for required."""
    async with api.session.get("/openapi.json") as response:
        document = await response.json()
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        assert schema["description"], name
        for field, of_field in schema.get("properties", {}).items():
            assert of_field["description"], f"{name}.{field}"
            assert "default" not in of_field, f"{name}.{field}"
            for part in (of_field, *of_field.get("anyOf", ())):
                assert "properties" not in part, f"{name}.{field} has no name"
                assert "enum" not in part or "type" in part, f"{name}.{field}"
    assert set(schemas["ChatReply"]["required"]) == {*schemas["ChatReply"]["properties"]} - {"tool_calls"}
    assert schemas["ChatRequest"]["required"] == ["content"]
    assert {"invalid_request", "context_length_exceeded", "internal"} <= set(schemas["ErrorCode"]["enum"])
    assert schemas["ChatReply"]["properties"]["id"]["format"] == "uuid"
    assert schemas["TranscribeRequest"]["properties"]["audio_data"]["contentEncoding"] == "base64"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["tags"], path
            assert {"413", "415"} & set(operation["responses"]) == (
                {"413", "415"} if "requestBody" in operation else set()
            )


async def test_examples_of_requests_are_requests(api: Api) -> None:
    """Each kind of request has an example, which its schema allows."""
    document = await api.document()
    for methods in document.paths.values():
        for operation in methods.values():
            if "requestBody" in operation:
                document.check_examples(operation["requestBody"]["content"]["application/json"]["schema"]["$ref"])


async def test_document_has_every_route_of_the_contract(api: Api) -> None:
    """Every route of the contract that is built is in the document."""
    assert {
        ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("POST", "/api/chat"), ("POST", "/api/chat/stream"),
        ("GET", f"/api/chat/response/{UNKNOWN}"), ("GET", f"/api/chat/response/{UNKNOWN}/events"),
        ("POST", f"/api/chat/response/{UNKNOWN}/cancel"), ("GET", "/api/chat/conversations"),
        ("POST", "/api/chat/conversation"), ("PATCH", f"/api/chat/conversation/{UNKNOWN}"),
        ("DELETE", f"/api/chat/conversation/{UNKNOWN}"), ("GET", f"/api/chat/history/{UNKNOWN}"),
        ("POST", "/api/voice/transcribe"), ("POST", "/api/voice/synthesize"), ("POST", "/api/voice/speech"),
        ("GET", "/api/voice/voices"), ("GET", "/api/voice/languages"),
        ("POST", "/api/memory/add"), ("POST", "/api/memory/search"), ("GET", "/api/memory/list"),
        ("GET", f"/api/memory/entry/{UNKNOWN}"), ("PATCH", f"/api/memory/entry/{UNKNOWN}"),
        ("DELETE", f"/api/memory/entry/{UNKNOWN}"),
    } <= set(await routes(api))  # fmt: skip


# Request ids


async def test_request_id_is_the_callers(api: Api) -> None:
    """The caller's request id comes back, on errors too, from one character to 128."""
    for sent in ("x", "a b-c_d/e:f", "~" * 128):
        for path in ("/health", "/no/such/path"):
            assert (await api.get(path, headers={"X-Request-ID": sent})).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "é", "a\tb"])
async def test_request_id_that_is_unfit_is_replaced(api: Api, sent: str) -> None:
    """A request id that is empty, too long or not printable ASCII is replaced by a new one."""
    answers = [await api.get("/health", headers={"X-Request-ID": sent}) for _ in range(2)]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(ids) == 2
    assert sent not in ids


async def test_request_ids_differ(api: Api) -> None:
    """Every request without an id gets one of its own."""
    answers = [await api.get("/ready") for _ in range(20)]
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 20


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/chat/",
        "/health/",
        "/API/CHAT",
        "/api/chat/history/",
        "/api/chat/history/a/b",
        "/api/chat/response//events",
        "/api/chat/../chat/conversations/x",
        "/%00",
        "/api/chat/histor%79",
    ],
)
async def test_unknown_path(api: Api, path: str) -> None:
    """An unknown path is an error like any other, whatever the method."""
    for method in ("GET", "POST", "DELETE", "OPTIONS", "BREW"):
        assert (await api.ask(method, path)).error == (404, "not_found")


async def test_wrong_method(api: Api) -> None:
    """A known path with another method is 405, with the path's methods in Allow and in the details."""
    by_path: dict[str, set[str]] = {}
    for method, path in await routes(api):
        by_path.setdefault(path, set()).add(method)
    for path, methods in by_path.items():
        if "GET" in methods:
            methods.add("HEAD")
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - methods:
            answer = await api.ask(method, path)
            assert answer.error == (405, "method_not_allowed")
            assert answer.headers["Allow"] == answer.json["details"]["allow"] == ", ".join(sorted(methods))


async def test_unknown_id(api: Api) -> None:
    """Every route with an id answers 404 for one that is unknown, and for one that is none."""
    for method, path in await routes(api):
        if UNKNOWN in path:
            for value in (UNKNOWN, "x", "%00", UNKNOWN + "0", "é" * 20):
                body = {"title": "x", "content": "x"} if method == "PATCH" else None
                assert (await api.ask(method, path.replace(UNKNOWN, value), body)).error == (404, "not_found")


async def test_head(api: Api) -> None:
    """HEAD gives GET's status and headers, and no body."""
    conversation = (await api.say("bonjour"))["conversation_id"]
    for path in (
        "/ready",
        "/api/chat/conversations?limit=1",
        f"/api/chat/history/{conversation}",
        "/openapi.json",
        f"/api/chat/history/{UNKNOWN}",
        "/api/voice/voices",
        "/api/voice/languages",
    ):
        headers = {"X-Request-ID": "same"}
        got, asked = await api.get(path, headers=headers), await api.ask("HEAD", path, headers=headers)
        assert (asked.status, asked.body) == (got.status, b"")
        assert asked.headers["Content-Type"] == got.headers["Content-Type"]
        assert asked.headers["Content-Length"] == str(len(got.body))


# Browsers


async def test_cross_origin_request(api: Api) -> None:
    """A page of an allowed origin may read answers and errors and their headers; another may not; caches tell them apart."""
    for path in ("/health", "/no/such/path", "/api/chat/conversations", "/api/voice/voices"):
        allowed = await api.get(path, headers={"Origin": ORIGIN})
        assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert {"X-Request-ID", "Retry-After"} <= set(allowed.headers["Access-Control-Expose-Headers"].split(", "))
        refused = await api.get(path, headers={"Origin": "http://evil.example"})
        assert "Access-Control-Allow-Origin" not in refused.headers
        assert allowed.headers["Vary"] == refused.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Origin" not in (await api.get(path)).headers


async def test_cross_origin_stream(api: Api) -> None:
    """A stream may be read across origins like any answer."""
    async with api.session.post(
        "/api/chat", json={"content": "x", "stream": True}, headers={"Origin": ORIGIN}
    ) as response:
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["X-Request-ID"]


async def test_preflight(api: Api) -> None:
    """A browser's question before a request names the methods and headers, needs no credentials, and is no error."""
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    for path in ("/api/chat", f"/api/chat/conversation/{UNKNOWN}"):
        answer = await api.ask("OPTIONS", path, headers=asked)
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Access-Control-Allow-Headers"] == asked["Access-Control-Request-Headers"]
        assert {"POST", "PATCH"} & set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    refused = await api.ask("OPTIONS", "/api/chat", headers={**asked, "Origin": "http://evil.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers


async def test_preflight_needs_no_credentials(strict: Api) -> None:
    """Browsers send no credentials with the question."""
    async with strict.session.options("/api/chat", headers={"Origin": ORIGIN, "Authorization": ""}) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


# Health, readiness, metrics


async def test_health(api: Api, bridges: FakeBridges) -> None:
    """Health is learnt from real calls, and answered at once whatever the neighbour does."""
    await api.say("well")
    answer = await api.get("/health")
    assert answer.status == 200
    assert answer.json["services"] == {
        "database": "healthy",
        "python_bridges": "healthy",
        "audio_engine": "disabled",
        "cache": "disabled",
    }
    assert (answer.json["status"], answer.json["version"]) == ("healthy", __version__)
    seen = bridges.requests_seen["/health"]
    bridges.mode = BridgesMode(faults={"/": Fault(status=503)})
    assert (await api.post("/api/chat", {"content": "ill"})).status == 503
    bridges.mode = BridgesMode(faults={"/": Fault("hang")})
    async with asyncio.timeout(3):
        # The answer may be some hundred milliseconds old.
        while (ill := await api.get("/health")).json["status"] == "healthy":  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
    assert (ill.status, ill.json["status"], ill.json["services"]["python_bridges"]) == (200, "degraded", "unavailable")
    for _ in range(60):
        await api.get("/health")
    assert bridges.requests_seen["/health"] == seen, "the neighbour's own health is scarce"


async def test_ready(api: Api) -> None:
    """A running server is ready."""
    answer = await api.get("/ready")
    assert (answer.status, answer.json) == (200, {"status": "ready", "version": __version__})


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


async def counts(api: Api) -> dict[tuple[str, str, str], float]:
    """Return how many requests were answered, by method, route and status."""
    answer = await api.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (labels["method"], labels["route"], labels["status"]): value
        for name, labels, value in samples(answer.body.decode())
        if name == "jarvis_http_requests_total"
    }


async def test_metrics_count_requests(api: Api) -> None:
    """Requests are counted by route and status, never by the path with its id, and unknown paths are one."""
    await api.get("/ready")
    before = await counts(api)
    for _ in range(3):
        await api.get("/ready")
    await api.get(f"/api/chat/history/{UNKNOWN}")
    await api.get("/no/such/path")
    await api.say("count me")
    after = await counts(api)
    grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    assert grown == {
        ("GET", "/ready", "200"): 3,
        ("GET", "/metrics", "200"): 1,
        ("GET", "/api/chat/history/{id}", "404"): 1,
        ("", "unknown", "404"): 1,
        ("POST", "/api/chat", "200"): 1,
    }


async def test_metrics_tell_what_runs(api: Api, bridges: FakeBridges) -> None:
    """Running turns and requests are in the metrics while they run, and gone afterwards."""

    async def now() -> dict[str, float]:
        return {name: value for name, labels, value in samples((await api.get("/metrics")).body.decode()) if not labels}

    idle = await now()
    bridges.mode = BridgesMode(hold_after=0)
    asking = asyncio.create_task(api.say("wait"))
    await bridges.gate.reached()
    busy = await now()
    bridges.gate.release()
    await asking
    assert busy["jarvis_turns_running"] == idle["jarvis_turns_running"] + 1
    assert busy["jarvis_http_in_flight"] == idle["jarvis_http_in_flight"] + 1
    assert await now() == idle


async def refusal_of_a_websocket(api: Api, headers: dict[str, str]) -> aiohttp.WSServerHandshakeError:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await api.session.ws_connect("/no/such/socket", headers=headers)
    return caught.value


async def test_unknown_websocket(api: Api) -> None:
    """A WebSocket on an unknown path is refused with 404 and a request id, like any request."""
    refusal = await refusal_of_a_websocket(api, {})
    assert refusal.status == 404
    assert refusal.headers is not None
    assert refusal.headers["X-Request-ID"]


async def test_unknown_websocket_has_the_callers_request_id(api: Api) -> None:
    """The request id of a refused WebSocket is the caller's, like any request's."""
    refusal = await refusal_of_a_websocket(api, {"X-Request-ID": "mine"})
    assert refusal.headers is not None
    assert refusal.headers["X-Request-ID"] == "mine"
