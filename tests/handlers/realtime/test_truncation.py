"""What clients say was heard, early, late and wrong; and what is heard before a turn is over, or while nothing may interrupt."""

from __future__ import annotations

import aiohttp
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.realtime.test_turns_of_speech import (
    ANSWER,
    COMMITTED,
    COMPLETED,
    LONG_ANSWER,
    STARTED,
    ask,
    clip,
    conversing,
    messages,
    play,
    silence,
    speaking,
)
from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.handlers.shown import eventually
from tests.system.server import Server

TRANSCRIBE = "/api/stt/transcribe"


async def truncate(socket: Socket, item_id: str, audio_end_ms: int) -> None:
    """Say how much of an answer was played, and wait until that is stored."""
    await socket.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms)
    told = await socket.until("conversation.item.truncated", "error")
    assert (told["type"], told.get("item_id"), told.get("audio_end_ms")) == (
        "conversation.item.truncated",
        item_id,
        audio_end_ms,
    ), told


async def answer_of(client: aiohttp.ClientSession, conversation_id: str, item_id: str) -> Event:
    """Return an answer as REST shows it."""
    return next(one for one in await messages(client, conversation_id) if one["id"] == item_id)


@pytest.mark.behaviour("heard.early")
async def test_before_the_end(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A client that truncates what is still being spoken ends it, and keeps what it says."""
    bridges.mode = speaking(answer=LONG_ANSWER)
    async with conversing(server) as socket:
        await ask(socket)
        item_id = socket.seen[-1]["item_id"]
        await truncate(socket, item_id, 1_500)
        done = next(one["response"] for one in socket.seen if one["type"] == "response.done")
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    kept = await answer_of(alice, done["conversation_id"], item_id)
    assert (kept["heard_ms"], kept["content"]) == (1_500, "Bonjour à tous et")


@pytest.mark.behaviour("heard.no_sound")
async def test_without_sound(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Of an answer of which no sound was sent nothing is lost by any place but the beginning."""
    bridges.mode = BridgesMode(shape="ndjson", answer=ANSWER)
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("tell me")
        done = await socket.done()
        await truncate(socket, done["id"], 1_500)
        assert (await answer_of(alice, done["conversation_id"], done["id"]))["content"] == ANSWER
        await truncate(socket, done["id"], 0)
    assert (await answer_of(alice, done["conversation_id"], done["id"]))["content"] == ""


@pytest.mark.behaviour("heard.elsewhere")
async def test_from_another_session(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A session that did not speak an answer may truncate it: nothing at 0, else what is kept; it stays open."""
    bridges.mode = speaking()
    async with conversing(server) as socket:
        await ask(socket)
        item_id = socket.seen[-1]["item_id"]
        done = await socket.done()
        await truncate(socket, item_id, 2_000)
    conversation_id = done["conversation_id"]
    kept = await answer_of(alice, conversation_id, item_id)
    async with open_socket(server.url, key=ALICE, conversation_id=conversation_id) as socket:
        await truncate(socket, item_id, 1_000)
        assert await answer_of(alice, conversation_id, item_id) == kept
        await truncate(socket, item_id, 0)
        assert (await answer_of(alice, conversation_id, item_id))["content"] == ""
        await socket.ask("go on")
        assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("transcription.early")
async def test_early_words(server: Server, bridges: FakeBridges) -> None:
    """A pause is transcribed before the turn is over; nobody is told, and speech that goes on drops it."""
    bridges.mode = speaking()
    async with conversing(server, type="server_vad", silence_duration_ms=3_000, create_response=False) as socket:
        await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(1))

        async def transcribed() -> bool:
            return any(one.path == TRANSCRIBE for one in bridges.requests)

        await eventually(transcribed)
        await play(socket, clip("fx16k_en_2"), silence(3.5))
        words = await socket.until(COMPLETED)
        told = [one["type"] for one in socket.seen]
    assert [told.count(kind) for kind in (STARTED, COMMITTED, COMPLETED)] == [1, 1, 1]
    assert not [kind for kind in told[: told.index(COMMITTED)] if "transcription" in kind]
    # Both clips and the second between them.
    assert words["usage"]["seconds"] > (len(clip("fx16k_fr_1") + clip("fx16k_en_2"))) / 32_000


@pytest.mark.behaviour("barge_in.off")
async def test_not_to_be_interrupted(server: Server, bridges: FakeBridges) -> None:
    """With ``interrupt_response: false`` an answer comes to its end, and what was said meanwhile is answered behind it."""
    bridges.mode = speaking(answer=LONG_ANSWER, speech_s_per_char=0.02)
    async with conversing(server, type="server_vad", interrupt_response=False) as socket:
        await ask(socket)
        await play(socket, clip("fx16k_en_2"), silence(1), pace=0.05)
        said = (await socket.until(COMMITTED))["item_id"]
        assert "response.done" not in [one["type"] for one in socket.seen]
        first = await socket.done()
        await socket.created()
    assert first["status"] == "completed"
    second = next(one["response"] for one in reversed(socket.seen) if one["type"] == "response.created")
    assert second["user_message_id"] == said
