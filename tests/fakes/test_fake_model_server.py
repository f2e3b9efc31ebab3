"""The fake model server speaks as OpenAI-compatible servers do, accidents included."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from .faults import Fault
from .openai_compatible import FakeModelServer, ModelServerMode

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "un"},
    {"role": "assistant", "content": "deux"},
    {"role": "user", "content": [{"type": "text", "text": "trois quatre"}]},
]
ASK = {"model": "small-model", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
Client = aiohttp.ClientSession


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer() as server:
        yield server


async def complete(client: Client, server: FakeModelServer, body: dict[str, Any] = ASK) -> str:
    async with client.post(server.llm_url + "/chat/completions", json=body) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        return (await response.read()).decode()


def events(body: str) -> list[Any]:
    payloads = [line.removeprefix("data:").strip() for line in body.splitlines() if line.startswith("data:")]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def said(chunks: list[Any], field: str = "content") -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk != "[DONE]" and chunk.get("choices")]
    return "".join(choice["delta"].get(field) or "" for choice in choices)


async def test_clean_stream(server: FakeModelServer, client: Client) -> None:
    """A stream has a role, deltas, a finish reason, usage under empty choices, and [DONE]."""
    chunks = events(await complete(client, server))
    assert said(chunks) == "You said: trois quatre"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert chunks[-1] == "[DONE]"
    assert server.streams[-1].outcome == "served"


async def test_usage_only_when_asked(server: FakeModelServer, client: Client) -> None:
    """Without ``include_usage`` no usage is sent, unless the server always does."""
    assert "usage" not in await complete(client, server, {"messages": MESSAGES, "stream": True})
    server.mode = ModelServerMode(usage="always")
    assert "usage" in await complete(client, server, {"messages": MESSAGES, "stream": True})
    server.mode = ModelServerMode(omit_counts=True)
    assert "usage" not in await complete(client, server)


async def test_incomplete_ends(server: FakeModelServer, client: Client) -> None:
    """A clean end of the message may lack [DONE], or the finish reason too."""
    server.mode = ModelServerMode(cut_after=2, cut="end")
    chunks = events(await complete(client, server))
    assert (said(chunks), chunks[-1]["choices"][0]["finish_reason"]) == ("You said:", None)
    server.mode = ModelServerMode(done_marker=False)
    assert "usage" in events(await complete(client, server))[-1]
    server.mode = ModelServerMode(omit_done=True)
    chunks = events(await complete(client, server))
    assert (said(chunks), "[DONE]" in chunks) == ("You said: trois quatre", False)
    server.mode = ModelServerMode(cut_after=2)
    with pytest.raises(aiohttp.ClientPayloadError):
        await complete(client, server)


async def test_error_event_after_200(server: FakeModelServer, client: Client) -> None:
    """A failure in the middle is one event whose only field is the error."""
    server.mode = ModelServerMode(error_after=1, error_message="out of memory")
    chunks = events(await complete(client, server))
    assert said(chunks[:-1]) == "You"
    assert chunks[-1] == {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}


async def test_variations_of_the_stream(server: FakeModelServer, client: Client) -> None:
    """Pings, reasoning, ``length``, CR LF, no space after the colon and split characters are all legal."""
    server.mode = ModelServerMode(
        answer="déjà 🙂",
        reasoning="the user wants an emoji",
        finish_reason="length",
        pings=3,
        line_ending="\r\n",
        field_space=False,
        piece_bytes=1,
    )
    body = await complete(client, server)
    assert body.startswith(": ping\r\n\r\n" * 3 + 'data:{"')
    assert body.replace("\r\n", "").count("\n") == 0
    chunks = events(body)
    assert (said(chunks), said(chunks, "reasoning_content")) == ("déjà 🙂", "the user wants an emoji")
    assert chunks[-3]["choices"][0]["finish_reason"] == "length"


async def test_slow_first_token_and_stall(server: FakeModelServer) -> None:
    """Pings come while the model loads; a stall leaves the connection open."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5, sock_read=0.4)) as client:
        server.mode = ModelServerMode(first_delay_s=0.6, pings=6)
        assert "[DONE]" in await complete(client, server)
        server.mode = ModelServerMode(first_delay_s=0.6)
        with pytest.raises(aiohttp.SocketTimeoutError):
            await complete(client, server)
        server.mode = ModelServerMode(stall_after=2)
        with pytest.raises(aiohttp.SocketTimeoutError):
            await complete(client, server)
        await server.stream_closed(1)
        assert server.streams[-1].deltas_sent == 2


async def test_whole_answer(server: FakeModelServer, client: Client) -> None:
    """Without a stream, or from a server that cannot, the answer is one JSON object."""
    for mode, body in ((ModelServerMode(), {"messages": MESSAGES}), (ModelServerMode(shape="json"), ASK)):
        server.mode = mode
        async with client.post(server.llm_url + "/chat/completions", json=body) as response:
            answer = await response.json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "You said: trois quatre"}
        assert answer["usage"]["completion_tokens"] == 4


async def test_refusals(server: FakeModelServer, client: Client) -> None:
    """Errors are objects: a long context, an unknown model, a bad body, and 429 with Retry-After."""

    async def refused(mode: ModelServerMode, body: dict[str, Any]) -> tuple[int, dict[str, Any], str | None]:
        server.mode = mode
        async with client.post(server.llm_url + "/chat/completions", json=body) as response:
            return response.status, (await response.json())["error"], response.headers.get("Retry-After")

    status, error, _ = await refused(ModelServerMode(context_tokens=5), ASK)
    assert (status, error["type"], error["n_prompt_tokens"]) == (400, "exceed_context_size_error", 6)
    status, error, _ = await refused(ModelServerMode(check_model=True), ASK | {"model": "other"})
    assert (status, error["message"]) == (404, "model 'other' not found")
    assert (await refused(ModelServerMode(), {"messages": []}))[0] == 400
    status, error, retry_after = await refused(
        ModelServerMode(faults={"/v1/chat": Fault(status=429, retry_after_s=7)}), ASK
    )
    assert (status, error["type"], retry_after) == (429, "rate_limit_error", "7")
    assert (await refused(ModelServerMode(faults={"/": Fault(status=500)}), ASK))[0] == 500


async def test_api_key(client: Client) -> None:
    """Another key is a 401, and what came is recorded."""
    async with FakeModelServer("the-key") as server:
        statuses = []
        for key in ("the-key", "another"):
            async with client.get(server.llm_url + "/models", headers={"Authorization": f"Bearer {key}"}) as response:
                statuses.append(response.status)
        assert statuses == [200, 401]
        assert [recorded.headers["authorization"] for recorded in server.requests] == [
            "Bearer the-key",
            "Bearer another",
        ]


async def test_models_and_embeddings(server: FakeModelServer, client: Client) -> None:
    """Models are listed; a text, or a list of them, is embedded."""
    async with client.get(server.llm_url + "/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["small-model"]
    async with client.post(server.llm_url + "/embeddings", json={"input": ["un", "un", "deux"]}) as response:
        vectors = [entry["embedding"] for entry in (await response.json())["data"]]
    assert (len(vectors[0]), vectors[0] == vectors[1], vectors[0] == vectors[2]) == (384, True, False)
