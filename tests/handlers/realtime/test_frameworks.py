"""What frameworks' sessions send by themselves, and what they wait for: older settings, metadata, an item as it is now."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, BOB
from tests.handlers.realtime.test_turns_of_speech import clip, play, silence, speaking
from tests.handlers.realtime_client import Event, Socket, open_push_to_talk, open_socket
from tests.system.server import Server

COMPLETED = "conversation.item.input_audio_transcription.completed"
PCM = {"type": "audio/pcm", "rate": 24_000}


async def updated(socket: Socket, **session: Any) -> Event:
    """Send a session.update and return the session as it is then."""
    await socket.send("session.update", session=session)
    shown: Event = (await socket.until("session.updated"))["session"]
    return shown


async def retrieve(socket: Socket, item_id: str) -> Event:
    """Ask for an item; return it, or the error."""
    await socket.send("conversation.item.retrieve", item_id=item_id, event_id=f"rci_{item_id}")
    event = await socket.until("conversation.item.retrieved", "error")
    found: Event = event["item"] if "item" in event else event["error"]
    return found


@pytest.mark.behaviour("session.update.flat")
async def test_flat_settings(server: Server) -> None:
    """Settings in the older flat shape are those of the nested one, which counts where both say something."""
    async with open_socket(server.url, "/v1/realtime", key=ALICE) as socket:
        shown = await updated(
            socket,
            modalities=["text", "audio"],
            voice="fr_FR-tom-medium",
            speed=1.25,
            input_audio_format="pcm16",
            output_audio_format="pcm16",
            input_audio_transcription={"model": "whisper-1", "language": "en"},
            turn_detection={
                "type": "server_vad",
                "threshold": 0.6,
                "silence_duration_ms": 700,
                "create_response": None,
            },
            max_response_output_tokens=333,
            tools=[],
            tool_choice="auto",
        )
        assert shown["output_modalities"] == ["audio"]
        assert shown["max_output_tokens"] == 333
        heard, said = shown["audio"]["input"], shown["audio"]["output"]
        assert (heard["format"], heard["transcription"]) == (PCM, {"language": "en"})
        assert said == {"format": PCM, "voice": "fr_FR-tom-medium", "speed": 1.25, "truncate": "client"}
        detection = heard["turn_detection"]
        assert (detection["type"], detection["threshold"], detection["silence_duration_ms"]) == ("server_vad", 0.6, 700)
        shown = await updated(
            socket,
            modalities=["text"],
            turn_detection=None,
            voice="fr_FR-upmc-medium",
            audio={"output": {"voice": "fr_FR-siwis-medium"}},
        )
        assert shown["output_modalities"] == ["text"]
        assert shown["audio"]["input"]["turn_detection"] is None
        assert shown["audio"]["output"]["voice"] == "fr_FR-siwis-medium"
        assert shown["audio"]["input"]["transcription"] == {"language": "en"}
        assert "error" not in [event["type"] for event in socket.seen]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"input_audio_format": "g726"}, "$.session.input_audio_format"),
        ({"turn_detection": {"threshold": 2}}, "$.session.turn_detection.threshold"),
        ({"modalities": []}, "$.session.modalities"),
        ({"input_audio_transcription": {"language": 1}}, "$.session.input_audio_transcription.language"),
    ],
)
async def test_flat_setting_that_cannot_be(server: Server, settings: dict[str, Any], path: str) -> None:
    """A flat setting that cannot be is named as the client named it; the others are set."""
    async with open_socket(server.url, key=ALICE) as socket:
        assert (await updated(socket, **settings, speed=2.0))["audio"]["output"]["speed"] == 2.0
        assert (await socket.error())["param"] == path


@pytest.mark.behaviour("session.update.unknown")
async def test_what_nobody_knows_here(server: Server, bridges: FakeBridges) -> None:
    """What frameworks send and nobody here knows is ignored, and a voice that there is not is replaced, without an error."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Oui.", speech_s_per_char=0.02)
    async with open_push_to_talk(server.url, "/v1/realtime", key=ALICE) as socket:
        await updated(
            socket,
            type="realtime",
            model="gpt-realtime",
            tracing="auto",
            prompt={"id": "pmpt_1"},
            tools=[{"type": "function", "name": "f", "parameters": {}}],
            tool_choice="auto",
            reasoning={"effort": "low"},
            truncation="auto",
            include=None,
            audio={"input": {"noise_reduction": {"type": "near_field"}}, "output": {"voice": "ash"}},
        )
        await socket.add("well?")
        await socket.send("response.create", response={"tool_choice": "none", "tools": [], "reasoning": {}})
        done = await socket.done()
    assert done["status"] == "completed"
    assert done["audio"]["output"]["voice"] == "fr_FR-siwis-medium"
    assert "error" not in [event["type"] for event in socket.seen]


@pytest.mark.parametrize("modality", ["text", "audio"])
@pytest.mark.behaviour("response.metadata")
async def test_metadata(server: Server, modality: str) -> None:
    """What a client gives a response is told with its beginning and its end, and with no other response."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        metadata = {"client_event_id": "é" * 500, "": ""}
        await socket.ask("one", metadata=metadata, output_modalities=[modality])
        created = next(event["response"] for event in socket.seen if event["type"] == "response.created")
        assert created["metadata"] == (await socket.done())["metadata"] == metadata
        await socket.ask("two")
        assert "metadata" not in await socket.done()


@pytest.mark.parametrize(
    "metadata", [{"n": 1}, {"k": "v" * 513}, {"k" * 65: ""}, dict.fromkeys(map(str, range(17)), "")]
)
async def test_metadata_that_cannot_be(server: Server, metadata: dict[str, object]) -> None:
    """Metadata that is no text, or too much, is an error and no response."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.add("one")
        await socket.send("response.create", response={"metadata": metadata})
        assert (await socket.error())["param"].startswith("$.response.metadata")


@pytest.mark.behaviour("item.retrieve")
async def test_retrieved_items(server: Server, bridges: FakeBridges) -> None:
    """An item is told as it is now: a message, a recording with its words, an answer with its text."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Il est midi.", transcript="Quelle heure est-il ?")
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.receive()
        assert (await retrieve(socket, "nobody"))["code"] == "item_retrieve_invalid_item_id"
        added = await socket.add("Bonjour", id="mine")
        assert await retrieve(socket, "mine") == added
        await socket.send("response.create")
        answer = await socket.done()
        assert await retrieve(socket, answer["id"]) == answer["output"][0]
        assert (await retrieve(socket, answer["user_message_id"]))["content"] == added["content"]
        await socket.send_raw(silence(0.2) + clip("fx16k_fr_1"))
        await socket.send("input_audio_buffer.commit")
        words = await socket.until(COMPLETED)
        assert (await retrieve(socket, words["item_id"]))["content"] == [
            {"type": "input_audio", "transcript": "Quelle heure est-il ?"}
        ]
    async with open_socket(server.url, key=ALICE, conversation_id=words["conversation_id"]) as socket:
        assert (await retrieve(socket, answer["id"]))["content"] == answer["output"][0]["content"]
        assert (await retrieve(socket, words["item_id"]))["role"] == "user"
    # Of another conversation, and of another user.
    for key in (ALICE, BOB):
        async with open_socket(server.url, key=key) as socket:
            await socket.add("other")
            for item_id in (answer["id"], words["item_id"], "mine"):
                error = await retrieve(socket, item_id)
                assert (error["code"], error["event_id"]) == ("item_retrieve_invalid_item_id", f"rci_{item_id}")


async def test_recording_without_words_is_retrieved(server: Server, bridges: FakeBridges) -> None:
    """A recording whose words are not known yet is an item without a transcript."""
    bridges.mode = BridgesMode(shape="ndjson")
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.send_raw(bytes(48_000))
        await socket.send("input_audio_buffer.commit")
        words = await socket.until(COMPLETED)
        assert words["transcript"] == ""
        assert (await retrieve(socket, words["item_id"]))["content"] == [{"type": "input_audio", "transcript": None}]


@pytest.mark.behaviour("item.retrieve")
async def test_interrupted_answer_is_retrieved(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """An answer that was interrupted is retrieved as what was heard of it: frameworks mend their history so."""
    bridges.mode = speaking()
    async with open_socket(server.url, "/v1/realtime", key=ALICE) as socket:
        await updated(socket, audio={"input": {"format": {"type": "audio/pcm", "rate": 16_000}}})
        await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(0.8))
        item_id = (await socket.until("response.output_audio.delta"))["item_id"]
        await play(socket, silence(2), clip("fx16k_en_2"))
        await socket.done()
        await socket.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=2_000)
        await socket.until("conversation.item.truncated")
        found = await retrieve(socket, item_id)
    assert found["content"] == [{"type": "output_audio", "transcript": "Bonjour à tous et à"}]
