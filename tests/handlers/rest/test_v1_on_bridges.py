"""``/v1`` before the bridges, which understand texts alone: what they are not told is named, and what they cannot do is refused."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import AsUser, make_token

HELLO = [{"role": "user", "content": "Hello there"}]


async def complete(api: Api, **fields: object) -> aiohttp.ClientResponse:
    """Ask for a chat completion; the answer is read."""
    async with api.session.post(
        "/v1/chat/completions", json={"model": "jarvis", "messages": HELLO, **fields}
    ) as response:
        await response.read()
    return response


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """Return the data of a stream's events; its last word as text."""
    found = [part.removeprefix("data: ") for part in (await response.text()).split("\n\n") if part]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


async def test_completion(api: Api, bridges: FakeBridges) -> None:
    """The bridges get the conversation and its instructions; what else was asked for is named in the Warning."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ann"},
        {"role": "assistant", "content": "Hello Ann"},
        *HELLO,
    ]
    response = await complete(api, messages=messages, seed=7, temperature=0.25, max_tokens=50, tools=[], user=None)
    body = await response.json()
    assert body["choices"][0]["message"]["content"] == "You said: Hello there"
    assert response.headers["Warning"] == '299 jarvis-core "left out: seed"'
    sent = bridges.last("/api/llm/generate").json
    assert (sent["system_prompt"], sent["temperature"], sent["max_tokens"]) == ("Be brief.", 0.25, 50)
    assert "My name is Ann" in sent["prompt"]


async def test_nothing_left_out(api: Api) -> None:
    """Without such parameters there is no Warning."""
    assert "Warning" not in (await complete(api, temperature=0.25)).headers


async def test_format_that_they_cannot(api: Api) -> None:
    """An answer in a form that cannot be had is refused, and nothing is asked."""
    response = await complete(api, response_format={"type": "json_object"})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "response_format"
    assert (await complete(api, response_format={"type": "text"})).status == 200


async def test_more_than_they_can_read(api: Api) -> None:
    """A message that is longer than they take is an error that says so."""
    response = await complete(api, messages=[{"role": "user", "content": "x" * 10_001}])
    assert (await response.json())["error"]["code"] == "context_length_exceeded"


async def test_stream(api: Api, bridges: FakeBridges) -> None:
    """A streamed answer comes in pieces, ends once, and is told to be over; one that breaks off has an error before that."""
    chunks = await events(await complete(api, stream=True))
    assert chunks[-1] == "[DONE]"
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks[:-1]) == "You said: Hello there"
    assert [one["choices"][0]["finish_reason"] for one in chunks[:-1]][-2:] == [None, "stop"]
    bridges.mode = BridgesMode(shape="ndjson", cut_after=2)
    chunks = await events(await complete(api, stream=True))
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["error"]["type"] == "server_error"
    assert all(one["choices"][0]["finish_reason"] is None for one in chunks[:-2])


async def test_bad_bodies(api: Api) -> None:
    """What is no JSON, no form, a form without a file or of another kind is refused in OpenAI's shape."""
    async with api.session.post(
        "/v1/chat/completions", data=b"{", headers={"Content-Type": "application/json"}
    ) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_json")
    async with api.session.post("/v1/embeddings", data=b"x", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415
    async with api.session.post("/v1/audio/transcriptions", json={"file": "x"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (415, "unsupported_media_type")
    for form, param in (({"model": "whisper-1"}, "file"), ({"file": "RIFF"}, "file"), ({}, "body")):
        parts = "".join(
            f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in form.items()
        )
        async with api.session.post(
            "/v1/audio/transcriptions",
            data=parts + ("--limit--\r\n" if form else ""),
            headers={"Content-Type": "multipart/form-data; boundary=limit"},
        ) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, param)


async def test_body_over_its_limit(strict: Api) -> None:
    """A body over its limit is refused before it is read."""
    messages = [{"role": "user", "content": "x" * 70_000}]
    async with strict.session.post("/v1/chat/completions", json={"model": "jarvis", "messages": messages}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (413, "too_large")


async def test_stored_response_names_what_had_no_effect(api: Api) -> None:
    """A stored response is a turn, which has no parameters of the model but two; the others are named."""
    body = {"model": "jarvis", "input": "Hello", "top_p": 0.5, "tool_choice": "auto", "service_tier": "flex"}
    async with api.session.post("/v1/responses", json=body) as response:
        answer = await response.json()
        assert response.headers["Warning"] == '299 jarvis-core "left out: service_tier, top_p"'
    assert answer["status"] == "completed"
    assert await api.history(answer["conversation"]["id"]) == [
        ("user", "Hello", "completed"),
        ("assistant", "You said: Hello", "completed"),
    ]


async def test_response_of_somebody_else(strict: Api, as_user: AsUser) -> None:
    """Nobody sees, stops or deletes another's response."""
    async with strict.session.post("/v1/responses", json={"model": "jarvis", "input": "Hello"}) as response:
        response_id = (await response.json())["id"]
    stranger = as_user(make_token("stranger"))
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        async with stranger.session.request(method, f"/v1/responses/{response_id}{path}") as response:
            assert response.status == 404
    async with strict.session.get(f"/v1/responses/{response_id}") as response:
        assert response.status == 200
