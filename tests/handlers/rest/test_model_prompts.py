"""
What a model's server is sent: messages in the order that its template takes, whatever became of the turns before, and nothing that
it refuses.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.content import without_time
from tests.fakes.faults import Fault
from tests.fakes.openai_compatible import FakeModelServer, ModelServerMode
from tests.handlers.realtime_client import open_socket
from tests.handlers.rest.api import Api, created
from tests.system.server import Server

COMPLETIONS = "/v1/chat/completions"
STRICT = ModelServerMode(template="alternating")


def roles(model: FakeModelServer) -> list[str]:
    """Return the roles of the messages that were sent last."""
    return [message["role"] for message in model.last(COMPLETIONS).json["messages"]]


def contents(model: FakeModelServer) -> list[str]:
    """Return what the messages that were sent last say, without the system's."""
    messages = model.last(COMPLETIONS).json["messages"]
    return [without_time(message["content"]) for message in messages if message["role"] != "system"]


async def fail(house: Api, model: FakeModelServer, how: str) -> str:
    """Have a conversation's first turn go wrong; return the conversation."""
    conversation: str = (await house.post("/api/chat/conversation", {})).json["id"]
    body = {"content": "Un ?", "conversation_id": conversation}
    match how:
        case "refused":
            model.mode = ModelServerMode(faults={COMPLETIONS: Fault(status=503)})
            assert (await house.post("/api/chat", body)).error == (503, "unavailable")
        case "away":
            await model.go_away()
            assert (await house.post("/api/chat", body)).error == (503, "unavailable")
            await model.come_back()
        case "empty":
            model.mode = ModelServerMode(deltas=())
            assert (await house.post("/api/chat", body)).error == (502, "bad_gateway")
        case "cancelled" | "left":
            model.mode = ModelServerMode(hold_after=0)
            async with house.stream("Un ?", conversation_id=conversation) as stream:
                response = await created(stream)
                await model.gate.reached()
                if how == "cancelled":
                    assert (await house.post(f"/api/chat/response/{response['id']}/cancel")).status == 200
            await model.stream_closed()
            async with asyncio.timeout(5):
                while (await house.state(response["id"]))["status"] == "running":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        case "cut":
            model.mode = ModelServerMode(cut_after=0)
            assert (await house.post("/api/chat", body)).error == (503, "unavailable")
    return conversation


@pytest.mark.parametrize("how", ["refused", "away", "empty", "cancelled", "left", "cut"])
async def test_after_a_failed_turn(house: Api, model: FakeModelServer, how: str) -> None:
    """A turn that came to nothing does not keep the next one from being answered; both questions are in it."""
    conversation = await fail(house, model, how)
    model.mode = STRICT
    assert (await house.say("Deux ?", conversation_id=conversation))["status"] == "completed"
    assert roles(model) == ["system", "user"]
    assert contents(model) == ["Un ?\n\nDeux ?"]
    await house.say("Trois ?", conversation_id=conversation)
    assert roles(model) == ["system", "user", "assistant", "user"]


def message(role: str, text: str) -> dict[str, Any]:
    """Return an item."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


async def test_items_in_any_order(house: Api, model_server: tuple[Server, int, int], model: FakeModelServer) -> None:
    """Whatever items a client of the WebSocket adds, the model gets one system message first and then a user and it in turn."""
    model.mode = STRICT
    async with open_socket(model_server[0].url) as socket:
        for role, text in (("assistant", "Bonjour, je suis Jarvis."), ("user", "Un"), ("user", "deux")):
            await socket.send("conversation.item.create", item=message(role, text))
            await socket.until("conversation.item.done")
        await socket.send("response.create")
        assert (await socket.done())["status"] == "completed"
        assert contents(model) == ["…", "Bonjour, je suis Jarvis.", "Un\n\ndeux"]
        for role, text in (("system", "Il est midi."), ("user", "trois"), ("system", "Sois bref."), ("user", "quatre")):
            await socket.send("conversation.item.create", item=message(role, text))
            await socket.until("conversation.item.done")
        await socket.send("response.create")
        assert (await socket.done())["status"] == "completed"
    assert roles(model) == ["system", "user", "assistant", "user", "assistant", "user"]
    assert contents(model)[-1] == "trois\n\nquatre"
    system = model.last(COMPLETIONS).json["messages"][0]["content"]
    assert system.endswith("Il est midi.\n\nSois bref.")


async def test_assistant_that_is_not_asked(
    house: Api, model_server: tuple[Server, int, int], model: FakeModelServer
) -> None:
    """A model that is to begin, or to go on, gets a user who keeps silent where its template wants one."""
    model.mode = STRICT
    async with open_socket(model_server[0].url) as socket:
        await socket.send("response.create", response={"instructions": "Salue."})
        assert (await socket.done())["status"] == "completed"
        assert (roles(model), contents(model)) == (["system", "user"], ["…"])
        assert model.last(COMPLETIONS).json["messages"][0]["content"] == "Salue."
        await socket.send("response.create", response={"instructions": ""})
        assert (await socket.done())["status"] == "completed"
        assert (roles(model), contents(model)) == (["user", "assistant", "user"], ["…", "You said: …", "…"])
        await socket.ask("Un ?")
        await socket.done()
    assert contents(model) == ["…", "You said: …\n\nYou said: …", "Un ?"]


async def test_what_the_model_said_goes_back_without_marks(
    house: Api, model_server: tuple[Server, int, int], model: FakeModelServer
) -> None:
    """An assistant's message with thinking, as an older version stored it, is sent back without; one with nothing else, not at all."""
    model.mode = STRICT
    async with open_socket(model_server[0].url) as socket:
        for role, text in (("user", "Un"), ("assistant", "<think>hm</think>Oui.<|im_end|>"), ("user", "deux")):
            await socket.send("conversation.item.create", item=message(role, text))
            await socket.until("conversation.item.done")
        for role, text in (("assistant", "<think>hm"), ("user", "trois")):
            await socket.send("conversation.item.create", item=message(role, text))
            await socket.until("conversation.item.done")
        await socket.send("response.create")
        assert (await socket.done())["status"] == "completed"
    assert contents(model) == ["Un", "Oui.", "deux\n\ntrois"]


# What is refused


@pytest.mark.parametrize("refusal", ["openai", "mistral", "fastapi", "text", "in_200"])
@pytest.mark.parametrize(
    "names", [("stream_options",), ("temperature",), ("max_tokens",), ("stream_options", "temperature")]
)
async def test_refused_fields(house: Api, model: FakeModelServer, names: tuple[str, ...], refusal: Any) -> None:
    """A field that the server refuses is left out, and from then on not sent any more."""
    model.mode = ModelServerMode(refuses=names, refusal=refusal)
    answer = await house.say("Bonjour ?", max_tokens=77)
    assert (answer["content"], answer["status"]) == ("You said: Bonjour ?", "completed")
    sent = model.last(COMPLETIONS).json
    assert not set(names) & sent.keys()
    asked = model.requests_seen[COMPLETIONS]
    await house.say("Bonjour ?")
    assert model.requests_seen[COMPLETIONS] == asked + 1
    if names == ("max_tokens",) and refusal == "openai":
        assert sent["max_completion_tokens"] == 77


async def test_refused_for_good(house: Api, model: FakeModelServer) -> None:
    """What stays refused is told with the server's own words, in the answer and in the turn's state."""
    model.mode = ModelServerMode(refuses=("model",))
    answer = await house.post("/api/chat", {"content": "Bonjour ?"})
    assert answer.error == (502, "bad_gateway")
    assert "Unsupported parameter: 'model'" in answer.json["error"]
    assert answer.json["details"]["status"] == 400
    assert "Unsupported parameter: 'model'" in answer.json["details"]["neighbour_error"]
    assert answer.json["error"] == (await house.state(answer.json["details"]["response_id"]))["error"]


async def test_too_long_for_the_context(house: Api, model: FakeModelServer) -> None:
    """Where the context is shorter than was thought the oldest of the history is left out; the newest message alone is told."""
    model.mode = ModelServerMode(answer="mot " * 60)
    conversation = (await house.say("Un " + "mot " * 30))["conversation_id"]
    for _ in range(14):
        await house.say("Encore " + "mot " * 30, conversation_id=conversation)
    model.mode = ModelServerMode(template="alternating", context_tokens=900, context_refusal="openai")
    asked = model.requests_seen[COMPLETIONS]
    answer = await house.say("Deux ?", conversation_id=conversation)
    assert answer["status"] == "completed"
    assert model.requests_seen[COMPLETIONS] == asked + 2
    assert 2 < len(roles(model)) < 30
    await house.say("Trois ?", conversation_id=conversation)
    assert model.requests_seen[COMPLETIONS] == asked + 3
    model.mode = ModelServerMode(context_tokens=5, context_refusal="vllm")
    alone = await house.post("/api/chat", {"content": "Quatre " + "mot " * 50, "conversation_id": conversation})
    assert alone.error == (400, "invalid_request")
    assert alone.path == "$.content"
    assert "longer than the model can read" in alone.json["error"]


async def test_wrong_key(house: Api, model: FakeModelServer) -> None:
    """A key that the server does not take is said to be wrong, and not shown."""
    model.api_key = "sk-another"
    answer = await house.post("/api/chat", {"content": "Bonjour ?"})
    assert answer.error == (502, "bad_gateway")
    assert "LLM_API_KEY" in answer.json["error"]
    assert "sk-of-the-house" not in answer.body.decode()
    model.api_key = "sk-of-the-house"
    assert (await house.say("Bonjour ?"))["status"] == "completed"
