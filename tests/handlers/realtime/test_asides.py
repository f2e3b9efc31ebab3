"""Responses out of band, and responses with a context of their own."""

from __future__ import annotations

import aiohttp
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.handlers.shown import history, newest_conversation
from tests.system.server import Server


def said(text: str, role: str = "user") -> Event:
    """Return a message of an input."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


async def aside(socket: Socket, **fields: object) -> Event:
    """Ask for a response out of band; return it once it is created."""
    await socket.send("response.create", response={"conversation": "none", **fields})
    return await socket.created()


@pytest.mark.behaviour("response.out_of_band")
async def test_out_of_band(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A response out of band is told with its metadata and no conversation, and is stored nowhere."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("one")
        first = await socket.done()
        before = len(socket.seen)
        created = await aside(
            socket, instructions="Classify.", metadata={"topic": "x"}, max_output_tokens=9, input=[said("red")]
        )
        done = await socket.done()
        assert created["id"] == done["id"]
        for response in (created, done):
            assert (response["conversation_id"], response["user_message_id"]) == (None, None)
            assert response["metadata"] == {"topic": "x"}
        assert done["output"][0]["content"][0]["text"] == "You said: red"
        asked = bridges.last("/api/llm").json
        assert (asked["system_prompt"], asked["prompt"], asked["max_tokens"]) == ("Classify.", "red", 9)
        assert not [event for event in socket.seen[before:] if event["type"].startswith("conversation.")]
        assert len(await history(alice, first["conversation_id"])) == 2
        async with alice.get(f"/api/chat/response/{done['id']}") as answer:
            assert answer.status == 404
        await socket.send("conversation.item.truncate", item_id=done["id"], content_index=0, audio_end_ms=0)
        assert (await socket.error())["code"] == "item_truncate_invalid_item_id"
        await socket.ask("two")
        assert (await socket.done())["conversation_id"] == first["conversation_id"]
    assert "red" not in bridges.last("/api/llm").json["prompt"]


@pytest.mark.behaviour("response.out_of_band")
async def test_of_the_conversation(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Without an input of its own it is told what was said in the conversation; what waits for an answer goes on waiting."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("one")
        await socket.done()
        await socket.add("two")
        await aside(socket, instructions="Sum up.")
        await socket.done()
        asked = bridges.last("/api/llm").json
        assert asked["prompt"].endswith("User: one\nAssistant: You said: one\n\nUser: two\nAssistant:")
        await socket.send("response.create")
        conversation_id = (await socket.done())["conversation_id"]
    assert [text for _, text, _ in await history(alice, conversation_id)] == [
        "one",
        "You said: one",
        "two",
        "You said: two",
    ]


async def test_nothing_is_made(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A response out of band in a session without a conversation makes none."""
    async with alice.post("/api/chat/conversation", json={}) as made:
        newest = (await made.json())["id"]
    async with open_socket(server.url, key=ALICE) as socket:
        await aside(socket, input=[])
        await socket.done()
        assert bridges.last("/api/llm").json["prompt"].endswith("…")
        await socket.send("session.update", session={})
        assert (await socket.until("session.updated"))["session"]["conversation_id"] is None
    assert (await newest_conversation(alice))["id"] == newest


@pytest.mark.behaviour("response.out_of_band.beside")
async def test_beside_another(server: Server, bridges: FakeBridges) -> None:
    """It may run beside the conversation's response, and is cancelled by its id alone; more than four are refused."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("half ", "word"), hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        main = await socket.ask("one")
        asides = [await aside(socket, input=[said(str(number))]) for number in range(4)]
        await socket.send("response.create", response={"conversation": "none", "input": []})
        assert (await socket.error())["code"] == "conversation_already_has_active_response"
        await socket.send("response.cancel", response_id=asides[1]["id"])
        done = await socket.done()
        assert (done["id"], done["status"]) == (asides[1]["id"], "cancelled")
        assert done["status_details"]["reason"] == "client_cancelled"
        await socket.send("response.cancel", response_id=asides[1]["id"])
        assert (await socket.error())["code"] == "response_cancel_not_active"
        await socket.send("response.cancel")
        assert (await socket.done())["id"] == main["id"]
        bridges.gate.release()
        assert {(await socket.done())["status"] for _ in range(3)} == {"completed"}


async def test_ends_with_its_socket(server: Server, bridges: FakeBridges) -> None:
    """When the socket is lost the model is not asked any further."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("half ", "word"), hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        await aside(socket, input=[])
        await socket.until("response.output_text.delta")
        socket.abort()
    await bridges.stream_closed()


async def test_spoken(server: Server, bridges: FakeBridges) -> None:
    """It is spoken where that is asked for."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Un instant.", speech_s_per_char=0.01)
    async with open_socket(server.url, key=ALICE) as socket:
        await aside(socket, input=[], output_modalities=["audio"])
        done = await socket.done()
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "Un instant."}]
    assert "response.output_audio.delta" in [event["type"] for event in socket.seen]


@pytest.mark.behaviour("response.input")
async def test_input_in_the_conversation(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An input replaces what the model is told was said; the answer alone is in the conversation."""
    async with open_socket(server.url, key=ALICE) as socket:
        item = await socket.add("one", id="mine")
        await socket.send("response.create")
        answer = await socket.done()
        reference = [{"type": "item_reference", "id": one} for one in (item["id"], answer["id"])]
        await socket.send("response.create", response={"input": [*reference, said("and now?")]})
        done = await socket.done()
        assert (done["conversation_id"], done["user_message_id"]) == (answer["conversation_id"], None)
        asked = [message["content"] for message in bridges.last("/api/llm").json["messages"]]
        assert asked[:-1] == ["one", "You said: one"]
        assert asked[-1].endswith("and now?")
        await socket.send("response.create", response={"input": []})
        await socket.done()
        assert bridges.last("/api/llm").json["prompt"].endswith("…")
    assert [text for _, text, _ in await history(alice, done["conversation_id"])] == [
        "one",
        "You said: one",
        "You said: and now?",
        "You said: …",
    ]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("x", "$.response.input"),
        ([5], "$.response.input[0]"),
        ([said("a"), {"type": "item_reference"}], "$.response.input[1]"),
        ([{"type": "item_reference", "id": "nobody"}], "$.response.input[0].id"),
        (
            [{"type": "message", "role": "user", "content": [{"type": "input_image"}]}],
            "$.response.input[0].content[0].type",
        ),
        ([{"type": "message", "role": "boss", "content": []}], "$.response.input[0].role"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("conversation", ["auto", "none"])
@pytest.mark.behaviour("response.input")
async def test_input_that_cannot_be(server: Server, given: object, path: str, conversation: str) -> None:
    """An input that is none is named, and no response is made."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send("response.create", response={"input": given, "conversation": conversation}, event_id="mine")
        error = await socket.error()
        assert (error["param"], error["event_id"]) == (path, "mine")
        assert "response.created" not in [event["type"] for event in socket.seen]
