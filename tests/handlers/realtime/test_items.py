"""Items that clients put between others, and delete; ids that they bring."""

from __future__ import annotations

import aiohttp
import pytest

from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, BOB
from tests.handlers.realtime_client import Event, Socket, open_push_to_talk, open_socket
from tests.handlers.shown import history, newest_conversation
from tests.system.server import Server

TRANSCRIBE = "/api/stt/transcribe"


async def put(socket: Socket, text: str, behind: str | None, **fields: object) -> Event:
    """Add a user's message behind an item; return the event that tells of it, or the error."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **fields}
    await socket.send("conversation.item.create", item=item, previous_item_id=behind)
    event = await socket.until("conversation.item.done", "error")
    shown: Event = event.get("error", event)
    return shown


async def delete(socket: Socket, item_id: str) -> Event:
    """Delete an item; return the event that tells of it, or the error."""
    await socket.send("conversation.item.delete", item_id=item_id, event_id="del")
    event = await socket.until("conversation.item.deleted", "error")
    shown: Event = event.get("error", event)
    return shown


def texts(messages: list[tuple[str, str, str]]) -> list[str]:
    """Return what messages of a history say."""
    return [text for _, text, _ in messages]


@pytest.mark.behaviour("item.previous")
async def test_places(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An item stands behind the one that it names, or at the beginning: in its event, the history and the next prompt."""
    async with open_socket(server.url, key=ALICE) as socket:
        assert (await put(socket, "two", "root", id="2"))["previous_item_id"] is None
        assert (await put(socket, "four", "2", id="4"))["previous_item_id"] == "2"
        assert (await put(socket, "one", "root", id="1"))["previous_item_id"] is None
        assert (await put(socket, "three", "2", id="3"))["previous_item_id"] == "2"
        five = await put(socket, "five", None, id="5")
        assert five["previous_item_id"] == "4"
        conversation_id = five["conversation_id"]
        assert texts(await history(alice, conversation_id)) == ["one", "two", "three", "four", "five"]
        await socket.send("response.create")
        await socket.done()
        assert "User: one\nUser: two\nUser: three\nUser: four\n" in bridges.last("/api/llm").json["prompt"]
    assert (await newest_conversation(alice))["message_count"] == 6
    # What is in the history can be named in a session that has not told of it.
    async with open_socket(server.url, key=ALICE, conversation_id=conversation_id) as socket:
        await put(socket, "zero", "root")
    assert texts(await history(alice, conversation_id))[:2] == ["zero", "one"]


async def test_pages_go_on_behind_a_place(server: Server, alice: aiohttp.ClientSession) -> None:
    """Who reads a history page by page misses nothing when an item is put before what was read."""
    async with open_socket(server.url, key=ALICE) as socket:
        for number in range(4):
            conversation_id = (await put(socket, str(number), None))["conversation_id"]
        url = f"/api/chat/history/{conversation_id}"
        async with alice.get(url, params={"limit": 2}) as answer:
            page = await answer.json()
        await put(socket, "before", "root")
        async with alice.get(url, params={"cursor": page["next_cursor"], "limit": 100}) as answer:
            rest = [message["content"] for message in (await answer.json())["messages"]]
    assert rest[-2:] == ["2", "3"]


@pytest.mark.behaviour("item.previous")
async def test_behind_what_is_being_said(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An item behind an answer that is still being given is taken, and answered next."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("first ", "answer"), hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        asked = await socket.ask("one")
        await socket.until_text("first ")
        assert (await put(socket, "two", asked["id"]))["previous_item_id"] == asked["id"]
        bridges.gate.release()
        await socket.done()
        await socket.send("response.create")
        await socket.done()
    assert bridges.last("/api/llm").json["messages"][-1]["content"].endswith("two")
    assert len(await history(alice, asked["conversation_id"])) == 4


@pytest.mark.behaviour("item.previous.unknown")
async def test_place_that_there_is_not(server: Server, alice: aiohttp.ClientSession) -> None:
    """An item behind one that there is not, or that is another's, is refused and not stored."""
    async with open_socket(server.url, key=BOB) as socket:
        others = (await socket.add("mine"))["id"]
    async with open_socket(server.url, key=ALICE) as socket:
        for behind in ("nobody", others):
            error = await put(socket, "x", behind)
            assert (error["code"], error["param"]) == ("item_create_invalid_previous_item_id", "$.previous_item_id")
        conversation_id = (await put(socket, "one", None))["conversation_id"]
        for behind in ("nobody", others):
            assert (await put(socket, "x", behind))["code"] == "item_create_invalid_previous_item_id"
    assert texts(await history(alice, conversation_id)) == ["one"]


@pytest.mark.behaviour("item.ids")
async def test_own_ids(server: Server) -> None:
    """An id that a client brings is kept, once, also where its session is taken up again."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.add("one", id="mine")
        assert (await put(socket, "two", None, id="mine"))["code"] == "item_create_duplicate_item_id"
        await socket.send("response.create")
        answer = await socket.done()
        assert (await put(socket, "two", None, id=answer["id"]))["code"] == "item_create_duplicate_item_id"
        socket.abort()
    seen = socket.seen
    async with open_socket(server.url, key=ALICE, seen=seen, resume=answer["id"], after=seen[-1]["seq"]) as socket:
        assert (await put(socket, "two", None, id="mine"))["code"] == "item_create_duplicate_item_id"
        assert (await put(socket, "two", "mine", id="next"))["previous_item_id"] == "mine"


@pytest.mark.behaviour("item.delete")
async def test_deleted(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A deleted item is in no history, no prompt and no answer over REST any more, and is deleted once."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.add("one", id="mine")
        await socket.send("response.create")
        answer = await socket.done()
        await socket.add("two")
        assert await delete(socket, "mine") == {**socket.seen[-1], "item_id": "mine"}
        assert (await delete(socket, answer["id"]))["item_id"] == answer["id"]
        conversation_id = answer["conversation_id"]
        assert texts(await history(alice, conversation_id)) == ["two"]
        assert (await newest_conversation(alice))["message_count"] == 1
        async with alice.get(f"/api/chat/response/{answer['id']}") as gone:
            assert gone.status == 404
        for item_id in ("mine", answer["id"], "nobody"):
            error = await delete(socket, item_id)
            assert (error["code"], error["event_id"]) == ("item_delete_invalid_item_id", "del")
            await socket.send("conversation.item.retrieve", item_id=item_id)
            assert (await socket.error())["code"] == "item_retrieve_invalid_item_id"
        await socket.send("response.create")
        await socket.done()
        asked = bridges.last("/api/llm").json["prompt"]
        assert asked.endswith("two")
        assert "one" not in asked
    async with open_socket(server.url, key=BOB) as socket:
        assert (await delete(socket, answer["user_message_id"]))["code"] == "item_delete_invalid_item_id"


async def test_deleted_question(server: Server, bridges: FakeBridges) -> None:
    """A message that was deleted before it was answered is not answered: what stands last is."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.add("one")
        two = await socket.add("two")
        await delete(socket, two["id"])
        await socket.send("response.create")
        await socket.done()
    asked = bridges.last("/api/llm").json["prompt"]
    assert asked.endswith("one")
    assert "two" not in asked


@pytest.mark.behaviour("item.delete")
async def test_deleted_while_it_is_said(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An answer that is deleted while it is being given ends, and is not in the history."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("first ", "answer"), hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        asked = await socket.ask("one")
        await socket.until_text("first ")
        await socket.send("conversation.item.delete", item_id=asked["id"])
        assert (await socket.done())["status"] == "cancelled"
        assert (await socket.until("conversation.item.deleted"))["item_id"] == asked["id"]
    assert texts(await history(alice, asked["conversation_id"])) == ["one"]


@pytest.mark.behaviour("item.delete")
async def test_deleted_before_its_words(server: Server, bridges: FakeBridges) -> None:
    """A recording that is deleted while it is listened to becomes no message, and nobody answers it."""
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.3)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.send("session.update", session={"audio": {"input": {"create_response": True}}})
        tone = b"".join((8_000 if n // 30 % 2 else -8_000).to_bytes(2, "little", signed=True) for n in range(24_000))
        await socket.send_raw(tone)
        await socket.send("input_audio_buffer.commit")
        item_id = (await socket.until("conversation.item.done"))["item"]["id"]
        assert (await delete(socket, item_id))["item_id"] == item_id
        words = await socket.until("conversation.item.input_audio_transcription.completed")
        assert (bool(words["transcript"]), words["conversation_id"]) == (True, None)
        assert (await delete(socket, item_id))["code"] == "item_delete_invalid_item_id"
    assert "response.created" not in [event["type"] for event in socket.seen]
