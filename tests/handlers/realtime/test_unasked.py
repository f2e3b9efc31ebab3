"""Responses without a user's message: the assistant begins a conversation, or goes on by itself."""

from __future__ import annotations

import aiohttp
import pytest

from tests.fakes.content import without_time
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.realtime_client import open_push_to_talk, open_socket
from tests.handlers.shown import history, newest_conversation, state_of
from tests.system.server import Server

GREET = "Greet the user."


@pytest.mark.behaviour("response.unasked")
async def test_greeting(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An empty conversation is begun by the assistant, with the instructions alone; the history has what it said."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Bonjour !")
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send("response.create", response={"instructions": GREET})
        greeting = await socket.done()
        asked = bridges.last("/api/llm").json
        assert (greeting["status"], greeting["user_message_id"]) == ("completed", None)
        assert (asked["system_prompt"], asked["prompt"]) == (GREET, "…")
        conversation_id = greeting["conversation_id"]
        item = next(event for event in socket.seen if event["type"] == "conversation.item.added")
        assert (item["item"]["id"], item["previous_item_id"]) == (greeting["id"], None)
        assert await history(alice, conversation_id) == [("assistant", "Bonjour !", "completed")]
        state = await state_of(alice, greeting["id"])
        assert (state["content"], state["user_message_id"]) == ("Bonjour !", None)
        newest = await newest_conversation(alice)
        assert (newest["title"], newest["message_count"]) == ("New conversation", 1)
        await socket.ask("Qui es-tu ?")
        assert (await socket.done())["conversation_id"] == conversation_id
    assert "Assistant: Bonjour !\n" in bridges.last("/api/llm").json["prompt"]
    newest = await newest_conversation(alice)
    assert (newest["id"], newest["title"], newest["message_count"]) == (conversation_id, "Qui es-tu ?", 3)


async def test_spoken_greeting(server: Server, bridges: FakeBridges) -> None:
    """A greeting is spoken where answers are, also where a silent recording came first."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Bonjour !", speech_s_per_char=0.01)
    async with open_push_to_talk(server.url, "/v1/realtime", key=ALICE) as socket:
        await socket.send_raw(bytes(48_000))
        await socket.send("input_audio_buffer.commit")
        await socket.send("response.create")
        greeting = await socket.done()
        assert greeting["output"][0]["content"] == [{"type": "output_audio", "transcript": "Bonjour !"}]
        assert socket.tally.sound


@pytest.mark.behaviour("response.unasked")
async def test_goes_on(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A response that is asked for when all is answered goes on from the history as it stands."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("one")
        first = await socket.done()
        await socket.send("response.create")
        second = await socket.done()
    asked = bridges.last("/api/llm").json
    assert [without_time(message["content"]) for message in asked["messages"]] == ["one", "You said: one", "…"]
    assert without_time(asked["prompt"]).endswith("User: one\nAssistant: You said: one\n\nAssistant:")
    assert await history(alice, first["conversation_id"]) == [
        ("user", "one", "completed"),
        ("assistant", "You said: one", "completed"),
        ("assistant", second["output"][0]["content"][0]["text"], "completed"),
    ]


async def test_left_unanswered(server: Server, bridges: FakeBridges) -> None:
    """What was left unanswered in a conversation that is gone on with is what the model is asked."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.add("one")
        await socket.add("two")
        conversation_id = socket.seen[-1]["conversation_id"]
    async with open_socket(server.url, key=ALICE, conversation_id=conversation_id) as socket:
        await socket.send("response.create")
        assert (await socket.done())["user_message_id"] is None
    assert without_time(bridges.last("/api/llm").json["prompt"]).endswith("User: one\n\nUser: two\nAssistant:")


@pytest.mark.parametrize("cancelled", [False, True])
async def test_failed_greeting(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession, *, cancelled: bool
) -> None:
    """A greeting that failed, or was cancelled before its first word, can be asked for again in the same conversation."""
    bridges.mode = (
        BridgesMode(shape="ndjson", deltas=("late",), hold_after=0) if cancelled else BridgesMode(error_200=True)
    )
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send("response.create")
        if cancelled:
            await bridges.gate.reached()
            await socket.send("response.cancel")
        failed = await socket.done()
        assert (failed["status"], failed["output"]) == ("cancelled" if cancelled else "failed", [])
        if cancelled:
            await bridges.stream_closed()
            bridges.gate.release()
        bridges.mode = BridgesMode(shape="ndjson", answer="Bonjour !")
        await socket.send("response.create")
        greeting = await socket.done()
        assert greeting["conversation_id"] == failed["conversation_id"]
        assert await history(alice, greeting["conversation_id"]) == [("assistant", "Bonjour !", "completed")]


async def test_resumed(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A greeting whose socket was lost goes on, and the conversation that it began gets its title from what the user says."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("Bon", "jour"), hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send("response.create")
        await socket.until_text("Bon")
        socket.abort()
    lost = socket.seen
    async with open_socket(
        server.url, key=ALICE, seen=lost, resume=socket.tally.active or "", after=lost[-1]["seq"]
    ) as socket:
        bridges.gate.release()
        assert (await socket.done())["status"] == "completed"
        await socket.ask("Salut")
        conversation_id = (await socket.done())["conversation_id"]
    newest = await newest_conversation(alice)
    assert (newest["id"], newest["title"]) == (conversation_id, "Salut")
