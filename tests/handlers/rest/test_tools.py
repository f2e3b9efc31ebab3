"""The client's own tools over REST: offered, called, answered; stored, replayed, retried."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.openai_compatible import FakeModelServer, ModelCalls
from tests.handlers.events import Event, read_events
from tests.handlers.rest.api import Api

LIGHT = {
    "type": "function",
    "name": "light_on",
    "description": "Switches a lamp on.",
    "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
}
TIME = {"type": "function", "name": "time"}
ARGUMENTS = '{"room": "salon"}'


def after_calls(*calls: tuple[str, str], text: str = "", answer: str = "C'est fait.") -> Any:
    """Make a model that calls, and answers once it has seen what came of it."""

    def reply(body: dict[str, Any]) -> str | ModelCalls:
        return answer if body["messages"][-1]["role"] == "tool" else ModelCalls(calls, text)

    return reply


async def say(house: Api, content: str = "Allume le salon", **fields: Any) -> Any:
    """Say something with the lamp's tool; return the answer."""
    return await house.say(content, tools=[LIGHT, TIME], **fields)


def outputs_for(reply: Any, output: str = "on") -> dict[str, Any]:
    """Return the outputs for all calls that *reply* waits for."""
    return {"outputs": [{"call_id": call["call_id"], "output": output} for call in reply["tool_calls"]]}


async def go_on(house: Api, reply: Any, **fields: Any) -> Any:
    """Give the outputs that a turn waits for; return its answer."""
    answer = await house.post(f"/api/chat/response/{reply['id']}/outputs", {**outputs_for(reply), **fields})
    assert answer.status == 200, answer.body
    return answer.json


async def test_round_trip(house: Api, model: FakeModelServer) -> None:
    """A call waits for its client, and the same turn goes on with the output; the history has both, in order."""
    model.reply = after_calls(("light_on", ARGUMENTS))
    reply = await say(house)
    assert (reply["status"], reply["reason"], reply["content"]) == ("incomplete", "tool_calls", "")
    [call] = reply["tool_calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("light_on", {"room": "salon"})
    assert (await house.state(reply["id"]))["tool_calls"] == [call]
    ended = await go_on(house, reply)
    assert (ended["id"], ended["status"], ended["content"]) == (reply["id"], "completed", "C'est fait.")
    assert "tool_calls" not in ended
    messages = await house.messages(reply["conversation_id"])
    assert [(one["type"], one["role"], one["content"]) for one in messages] == [
        ("message", "user", "Allume le salon"),
        ("function_call", "assistant", ""),
        ("function_call_output", "assistant", ""),
        ("message", "assistant", "C'est fait."),
    ]
    assert messages[1] | {"call_id": call["call_id"], "name": "light_on", "arguments": ARGUMENTS} == messages[1]
    assert messages[2] | {"call_id": call["call_id"], "output": "on"} == messages[2]
    state = await house.state(reply["id"])
    assert [(one["name"], one["outcome"]) for one in state["receipt"]["tools"]] == [("light_on", "finished")]


async def test_next_turn_knows(house: Api, model: FakeModelServer) -> None:
    """A later turn with tools is told of earlier calls and what came of them; one without is not."""
    model.reply = after_calls(("light_on", ARGUMENTS))
    reply = await say(house)
    await go_on(house, reply)
    model.reply = None
    await say(house, "Merci", conversation_id=reply["conversation_id"])
    told = model.requests[-1].json["messages"][1:]
    assert [one["role"] for one in told] == ["user", "assistant", "tool", "assistant", "user"]
    assert told[2]["content"] == "on"
    assert told[1]["tool_calls"][0]["id"] == told[2]["tool_call_id"] == reply["tool_calls"][0]["call_id"]
    await house.say("Merci", conversation_id=reply["conversation_id"])
    request = model.requests[-1].json
    assert {one["role"] for one in request["messages"]} == {"system", "user", "assistant"}
    assert "tools" not in request


NAMES = [
    "response.created",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]


def merged(events: list[Event]) -> list[str]:
    """Return the events' names, texts as one."""
    names: list[str] = []
    for event in events:
        if not names or (names[-1], event.name) != ("response.output_text.delta",) * 2:
            names.append(event.name)
    return names


async def test_events(house: Api, model: FakeModelServer) -> None:
    """Calls are events in the vocabulary's own shape, the same when they are replayed; the turn goes on behind them."""
    model.reply = after_calls(("light_on", ARGUMENTS), text="Un instant.")
    async with house.stream("Allume le salon", tools=[LIGHT]) as response:
        events = await read_events(response)
    assert merged(events) == NAMES
    done = events[-1].data["response"]
    assert done["status_details"] | {"reason": "tool_calls"} == done["status_details"]
    text, call = done["output"]
    assert (text["type"], call["type"], call["name"], call["arguments"]) == (
        "message",
        "function_call",
        "light_on",
        ARGUMENTS,
    )
    deltas = [event for event in events if "function_call_arguments" in event.name]
    assert {event.data["output_index"] for event in deltas} == {1}
    assert {event.data["item_id"] for event in deltas} == {call["id"]}
    assert deltas[0].data["delta"] == deltas[1].data["arguments"] == ARGUMENTS
    # The first event knows by now which model it is.
    assert (await house.follow(done["id"]))[1:] == events[1:]

    path = f"/api/chat/response/{done['id']}/outputs"
    body = {"outputs": [{"call_id": call["call_id"], "output": "on"}], "stream": True}
    async with house.session.post(path, json=body) as response:
        rest = await read_events(response)
    assert merged(rest) == ["response.output_text.delta", *NAMES[-4:]]
    [called] = [
        event.id for event in events if event.name == NAMES[7] and event.data["item"]["type"] == "function_call"
    ]
    assert rest[0].id > called
    assert [one["type"] for one in rest[-1].data["response"]["output"]] == ["message", "function_call"]
    whole = await house.follow(done["id"])
    assert whole[1 : len(events) - 4] == events[1:-4]
    assert whole[-1].data == rest[-1].data
    assert (await house.state(done["id"]))["content"] == "Un instant.\n\nC'est fait."
    assert await house.follow(done["id"], params={"after": called}) == [event for event in whole if event.id > called]


async def test_several_calls(house: Api, model: FakeModelServer) -> None:
    """Calls side by side wait together: one of them alone is not enough, and two rounds are two."""
    model.reply = after_calls(("light_on", ARGUMENTS), ("time", "{}"))
    reply = await say(house)
    path = f"/api/chat/response/{reply['id']}/outputs"
    whole = outputs_for(reply)["outputs"]
    for wrong in (whole[:1], [*whole, whole[0]], [{"call_id": "call_unknown", "output": ""}]):
        answer = await house.post(path, {"outputs": wrong})
        assert (answer.status, answer.path) == (400, "$.outputs")

    def reply_again(body: dict[str, Any]) -> str | ModelCalls:
        outputs = sum(one["role"] == "tool" for one in body["messages"])
        return "Voilà." if outputs > 2 else ModelCalls((("time", "{}"),))

    model.reply = reply_again
    again = await go_on(house, reply)
    assert (again["reason"], [call["name"] for call in again["tool_calls"]]) == ("tool_calls", ["time"])
    assert (await go_on(house, again))["content"] == "Voilà."


async def test_given_twice(house: Api, model: FakeModelServer) -> None:
    """Outputs that come again find the turn as it is: nothing is asked twice."""
    model.reply = after_calls(("light_on", ARGUMENTS))
    reply = await say(house)
    first, asked = await go_on(house, reply), len(model.requests)
    assert await go_on(house, reply) == first
    assert len(model.requests) == asked
    answer = await house.post(
        f"/api/chat/response/{first['id']}/outputs", {"outputs": [{"call_id": "x", "output": ""}]}
    )
    assert answer.error == (409, "conflict")


async def test_retry_by_key(house: Api, model: FakeModelServer) -> None:
    """A retry by its key gets the calls that wait, not another model's answer."""
    model.reply = after_calls(("light_on", ARGUMENTS))
    body = {"content": "Allume", "tools": [LIGHT]}
    headers = {"Idempotency-Key": "tools-retry"}
    first = (await house.post("/api/chat", body, headers=headers)).json
    asked = len(model.requests)
    again = (await house.post("/api/chat", body, headers=headers)).json
    assert (again, len(model.requests)) == (first, asked)
    await go_on(house, first)
    assert (await house.post("/api/chat", body, headers=headers)).json["content"] == "C'est fait."
    other = await house.post("/api/chat", body | {"tools": [TIME]}, headers=headers)
    assert other.error == (409, "conflict")


async def test_arguments_that_do_not_fit(house: Api, model: FakeModelServer) -> None:
    """The client sees no call that does not fit its schema, nor one of a tool that it does not have; the model is told why."""
    model.reply = after_calls(("light_on", '{"room": 3}'), ("fly", "{}"), ("time", "[]"), answer="Pardon.")
    reply = await say(house)
    assert (reply["status"], reply["content"]) == ("completed", "Pardon.")
    told = [one["content"] for one in model.requests[-1].json["messages"] if one["role"] == "tool"]
    assert ["$.room must be string" in told[0], "no tool 'fly'" in told[1], "no JSON object" in told[2]] == [True] * 3


async def test_same_call_again_and_again(house: Api, model: FakeModelServer) -> None:
    """A model that calls the same for ever ends with a sentence, and the third call is not made."""
    model.reply = lambda _: ModelCalls((("light_on", ARGUMENTS),))
    reply = await say(house)
    made = 0
    while reply["reason"] == "tool_calls":
        made += 1
        reply = await go_on(house, reply)
    assert (made, reply["status"], reply["reason"]) == (2, "incomplete", "tools_limit")
    assert reply["content"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"tools": [LIGHT | {"name": "bad name"}]}, "$.tools[0].name"),
        ({"tools": [LIGHT | {"name": "x" * 65}]}, "$.tools[0].name"),
        ({"tools": [LIGHT, LIGHT]}, "$.tools[1].name"),
        ({"tools": [LIGHT | {"parameters": {"description": "x" * 200_000}}]}, "$.tools[0].parameters"),
        ({"tools": [LIGHT | {"parameters": [1]}]}, "$.tools[0].parameters"),
        ({"tools": [LIGHT | {"type": "web_search"}]}, "$.tools[0].type"),
        ({"tools": [TIME | {"name": f"t{n}"} for n in range(129)]}, "$.tools"),
        ({"tools": [LIGHT], "tool_choice": {"type": "function", "name": "time"}}, "$.tool_choice.name"),
    ],
)
async def test_bad_tools(house: Api, model: FakeModelServer, fields: dict[str, Any], path: str) -> None:
    """Tools that cannot be offered are named, and nothing is stored."""
    answer = await house.post("/api/chat", {"content": "Allume", **fields})
    assert (answer.status, answer.path) == (400, path)
    assert not model.requests


async def test_many_tools(house: Api, model: FakeModelServer) -> None:
    """Of more tools than may be offered those are that fit the question."""
    many = [{"type": "function", "name": f"thing_{n}", "description": f"Does thing {n}."} for n in range(40)]
    await house.say("Allume la lampe du salon, lamp on", tools=[*many, LIGHT])
    offered = [tool["function"]["name"] for tool in model.requests[-1].json["tools"]]
    assert len(offered) == 20
    assert "light_on" in offered


async def test_cancelled_while_it_waits(house: Api, model: FakeModelServer) -> None:
    """A turn that waits has ended: its conversation goes on, and the call that nobody answered is unknown to the model."""
    model.reply = after_calls(("light_on", ARGUMENTS))
    reply = await say(house)
    model.reply = None
    await say(house, "Autre chose", conversation_id=reply["conversation_id"])
    told = model.requests[-1].json["messages"]
    assert [one["role"] for one in told[-4:]] == ["user", "assistant", "tool", "user"]
    assert "unknown" in told[-2]["content"].lower()
