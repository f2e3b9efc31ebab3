"""The client's own tools over the WebSocket: a call, its output, and the response that knows of it, written and spoken."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.openai_compatible import FakeModelServer, ModelCalls
from tests.fakes.python_bridges import FakeBridges
from tests.handlers.realtime_client import Socket, open_push_to_talk
from tests.handlers.rest.api import Api
from tests.system.server import Server

LIGHT = {
    "type": "function",
    "name": "light_on",
    "description": "Switches a lamp on.",
    "parameters": {"type": "object", "properties": {"room": {"type": "string"}}},
}
ARGUMENTS = '{"room": "salon"}'


def reply(body: dict[str, Any]) -> str | ModelCalls:
    """Call once, and tell what came of it."""
    last = body["messages"][-1]
    return f"Told: {last['content']}" if last["role"] == "tool" else ModelCalls((("light_on", ARGUMENTS),))


async def call_of(socket: Socket) -> Any:
    """Wait for a response that calls; return the call's item."""
    done = await socket.done()
    assert (done["status"], done["status_details"]) == ("completed", None)
    [item] = done["output"]
    assert item | {"type": "function_call", "name": "light_on", "arguments": ARGUMENTS, "status": "completed"} == item
    return item


async def give(socket: Socket, call_id: str, output: str) -> None:
    """Tell what came of a call, and ask for the response."""
    item = {"type": "function_call_output", "call_id": call_id, "output": output}
    await socket.send("conversation.item.create", item=item)
    added = await socket.until("conversation.item.done", "error")
    assert added["item"] | item == added["item"], added
    await socket.send("response.create")


@pytest.mark.parametrize("modality", ["text", "audio"])
@pytest.mark.behaviour("tools")
async def test_round_trip(
    model_server: tuple[Server, int, int], model: FakeModelServer, house: Api, modality: str
) -> None:
    """A call is an item of the response and of the conversation; its output, and what is said then, are of the same one."""
    model.reply = reply
    async with (
        FakeBridges(port=model_server[2]),
        open_push_to_talk(model_server[0].url) as socket,
    ):
        await socket.send("session.update", session={"tools": [LIGHT], "output_modalities": [modality]})
        updated = await socket.until("session.updated")
        assert updated["session"]["tools"][0]["name"] == "light_on"
        await socket.ask("Allume le salon")
        call = await call_of(socket)
        names = [event["type"] for event in socket.seen if event.get("item", {}).get("type") == "function_call"]
        assert names == [
            "response.output_item.added",
            "conversation.item.added",
            "response.output_item.done",
            "conversation.item.done",
        ]
        arguments = [event for event in socket.seen if "function_call_arguments" in event["type"]]
        assert [event.get("delta") or event["arguments"] for event in arguments] == [ARGUMENTS] * 2
        await give(socket, call["call_id"], "on")
        created = await socket.created()
        done = await socket.done()
        assert done["status"] == "completed"
        assert socket.tally.text == "Told: on"
        again = {"type": "function_call_output", "call_id": call["call_id"], "output": "off"}
        await socket.send("conversation.item.create", item=again)
        assert (await socket.error())["param"] == "$.item.call_id"
    messages = await house.messages(created["conversation_id"])
    assert [message["type"] for message in messages] == ["message", "function_call", "function_call_output", "message"]
    assert model.requests[-1].json["messages"][-3]["content"] == "Allume le salon"


@pytest.mark.behaviour("tools.refused")
async def test_tools_that_cannot_be(model_server: tuple[Server, int, int], model: FakeModelServer) -> None:
    """Tools that cannot be offered are named in an error, and the rest of the settings holds."""
    del model
    async with open_push_to_talk(model_server[0].url) as socket:
        await socket.send("session.update", session={"tools": [LIGHT, LIGHT], "temperature": 0.25})
        session = (await socket.until("session.updated"))["session"]
        assert (await socket.error())["param"] == "$.session.tools[1].name"
        assert (session["tools"], session["temperature"]) == ([], 0.25)
