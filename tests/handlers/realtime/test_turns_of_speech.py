"""Turns of speech that the server finds itself: where they begin and end, who is interrupted, and what was heard."""

from __future__ import annotations

import array
import asyncio
import random
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.system.server import Server

AUDIO = Path(__file__).parents[2] / "fixtures" / "audio"
STARTED = "input_audio_buffer.speech_started"
STOPPED = "input_audio_buffer.speech_stopped"
COMMITTED = "input_audio_buffer.committed"
COMPLETED = "conversation.item.input_audio_transcription.completed"
SOUND = "response.output_audio.delta"
RATE_HZ = 16_000
CHUNK_S = 0.1
ANSWER = "Bonjour à tous et à toutes. Il fait très beau aujourd'hui dehors. Sortons donc un peu ensemble."
LONG_ANSWER = f"{ANSWER} Demain il pleuvra sans doute. Après-demain aussi, dit-on. Puis reviendra le soleil. {ANSWER}"


def clip(name: str) -> bytes:
    """Return the samples of a recording, 16 bits at 16 kHz."""
    with wave.open(str(AUDIO / f"{name}.wav")) as file:
        samples: bytes = file.readframes(file.getnframes())
    return samples


def silence(duration_s: float) -> bytes:
    """Return a room in which nobody speaks: noise at -60 dB."""
    noise = random.Random(0)
    return array.array("h", (noise.randint(-40, 40) for _ in range(round(duration_s * RATE_HZ)))).tobytes()


async def play(socket: Socket, *sounds: bytes, pace: float = 0.1) -> None:
    """Send sound in pieces of 0.1 s, each after *pace* times its length."""
    sound = b"".join(sounds)
    step = round(2 * RATE_HZ * CHUNK_S)
    for start in range(0, len(sound), step):
        await socket.send_raw(sound[start : start + step])
        await asyncio.sleep(CHUNK_S * pace)


def speaking(**fields: Any) -> BridgesMode:
    """Make the bridges hear "Quelle heure est-il ?" and answer aloud, a hundred characters in ten seconds."""
    return BridgesMode(**{"shape": "ndjson", "answer": ANSWER, "speech_s_per_char": 0.1, **fields})


@asynccontextmanager
async def conversing(server: Server, **detection: object) -> AsyncIterator[Socket]:
    """Open a session that listens and answers aloud."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.receive()
        audio = {"input": {"format": {"type": "audio/pcm", "rate": RATE_HZ}}}
        if detection:
            audio["input"]["turn_detection"] = detection
        await socket.send("session.update", session={"output_modalities": ["audio"], "audio": audio})
        await socket.until("session.updated")
        yield socket


@pytest.mark.behaviour("session.defaults", "detection.events")
async def test_speech_becomes_a_turn(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Speech is found, becomes a message when it is over, and is answered, without a word from the client."""
    bridges.mode = speaking()
    async with conversing(server) as socket:
        sound = clip("fx16k_fr_1")
        playing = asyncio.create_task(play(socket, silence(1), sound, silence(1.5)))
        started = await socket.until(STARTED)
        stopped = await socket.until(STOPPED)
        committed = await socket.until(COMMITTED)
        completed = await socket.until(COMPLETED)
        await socket.created()
        done = await socket.done()
        await playing
    assert started["item_id"] == stopped["item_id"] == committed["item_id"] == completed["item_id"]
    # The clip has 0.35 s of silence before its words and after them.
    assert 900 <= started["audio_start_ms"] <= 1_400
    assert 1_000 * (1 + len(sound) / 2 / RATE_HZ) <= stopped["audio_end_ms"] <= 1_000 * (1.6 + len(sound) / 2 / RATE_HZ)
    assert done["status"] == "completed"
    async with alice.get(f"/api/chat/history/{completed['conversation_id']}") as response:
        messages = (await response.json())["messages"]
    assert [(one["role"], one["content"], one["heard_ms"]) for one in messages] == [
        ("user", completed["transcript"], None),
        ("assistant", ANSWER, None),
    ]


async def ask(socket: Socket) -> None:
    """Ask aloud, in a tenth of real time, and wait until the answer is heard."""
    await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(0.8))
    await socket.until(SOUND)


async def messages(client: aiohttp.ClientSession, conversation_id: str, **query: str) -> list[Event]:
    """Return a conversation as REST shows it."""
    async with client.get(f"/api/chat/history/{conversation_id}", params=query) as response:
        found: list[Event] = (await response.json())["messages"]
    return found


def is_at_a_words_end(text: str, whole: str) -> bool:
    """Return whether *text* is the beginning of *whole*, cut behind a word."""
    return whole.startswith(text) and (not text or whole[len(text) :][:1] in ("", " "))


@pytest.mark.behaviour("barge_in.reason", "heard.everywhere", "heard.history")
async def test_speech_interrupts(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Who speaks while the answer is heard stops it, and the history has what was heard, everywhere."""
    bridges.mode = speaking(answer=LONG_ANSWER)
    async with conversing(server) as socket:
        await ask(socket)
        response_id = socket.seen[-1]["response_id"]
        # The microphone tells the time: three seconds of the answer are heard.
        await play(socket, silence(3))
        await play(socket, clip("fx16k_en_2"))
        done = await socket.done()
        conversation_id = done["conversation_id"]
        await play(socket, silence(1))
        await socket.until(STOPPED)
        await socket.created()
        prompts = bridges.requests
        await socket.done()
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
    found = await messages(alice, conversation_id, unheard="true")
    answer = found[1]
    assert answer["id"] == response_id
    assert 3_000 <= answer["heard_ms"] <= 4_500
    assert is_at_a_words_end(answer["content"], LONG_ANSWER)
    assert 0.1 * len(answer["content"]) * 1_000 <= answer["heard_ms"]
    assert LONG_ANSWER.startswith(answer["content"] + answer["unheard"])
    assert [one["role"] for one in found] == ["user", "assistant", "user", "assistant"]
    # Neither the next prompt nor the response itself has more.
    asked = [one.json for one in prompts if one.path == "/api/llm/generate"][-1]
    assert answer["content"] in str(asked)
    assert answer["unheard"].strip() not in str(asked)
    async with alice.get(f"/api/chat/response/{response_id}") as response:
        state = await response.json()
    assert (state["content"], state["heard_ms"]) == (answer["content"], answer["heard_ms"])
    assert state["receipt"] == {**done["receipt"], "heard_ms": answer["heard_ms"]}


@pytest.mark.behaviour("response.receipt")
async def test_receipt(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """The times of a spoken turn are stored before they are told, also where the voice begins after the text is whole."""
    bridges.mode = speaking(answer="Bonjour. Au revoir.", hold_text="Bonjour")
    async with conversing(server) as socket:
        await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(0.8))
        response_id = (await socket.created())["id"]
        await bridges.gate.reached()
        state: Event = {"status": "running"}
        while state["status"] == "running":
            async with alice.get(f"/api/chat/response/{response_id}") as response:
                state = await response.json()
        assert state["receipt"]["voice_ms"] is None
        bridges.gate.release()
        receipt = (await socket.done())["receipt"]
        # All of it was heard. From now on it is read from the store.
        await socket.send("conversation.item.truncate", item_id=response_id, content_index=0, audio_end_ms=60_000)
        await socket.until("conversation.item.truncated")
    # Half a second of silence ends a turn of speech, in steps of 32 ms.
    assert receipt["end_of_turn_ms"] == 512
    assert receipt["voice_to_voice_ms"] == pytest.approx(receipt["end_of_turn_ms"] + receipt["voice_ms"])
    for order in (("transcription", "first_token", "first_sentence", "voice"), ("first_token", "total", "voice")):
        times = [receipt[f"{part}_ms"] for part in order]
        assert times == sorted(times)
    assert state["receipt"] == {**receipt, "voice_ms": None, "voice_to_voice_ms": None}
    async with alice.get(f"/api/chat/response/{response_id}") as response:
        stored = await response.json()
    assert stored["receipt"] == {**receipt, "heard_ms": stored["heard_ms"]}
    assert stored["heard_ms"] > 0


@pytest.mark.behaviour("barge_in.untold", "heard.told")
async def test_told_what_the_server_truncates(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """A client that asks for it is told what was kept of an interrupted answer, as it is in the history."""
    bridges.mode = speaking(answer=LONG_ANSWER)
    async with conversing(server) as socket:
        await socket.send("session.update", session={"audio": {"output": {"truncate": "server"}}})
        shown = (await socket.until("session.updated"))["session"]
        assert shown["audio"]["output"]["truncate"] == "server"
        await ask(socket)
        await play(socket, silence(2), clip("fx16k_en_2"))
        done = await socket.done()
        told = await socket.until("conversation.item.truncated")
    answer = next(one for one in await messages(alice, done["conversation_id"]) if one["id"] == done["id"])
    assert (told["item_id"], told["content_index"], told["audio_end_ms"]) == (done["id"], 0, answer["heard_ms"])
    # What was not spoken by then was not told either.
    transcript = done["output"][0]["content"][0]["transcript"]
    assert transcript.startswith(answer["content"])
    assert len(transcript) < len(LONG_ANSWER)


@pytest.mark.behaviour("detection.idle_timeout")
async def test_nobody_says_anything(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Behind an answer that was played a silence of so many milliseconds of sound has the assistant go on, once."""
    bridges.mode = speaking(answer="Bonjour.")
    async with conversing(server) as socket:
        detection = {"type": "server_vad", "idle_timeout_ms": 5_000}
        await socket.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        assert (await socket.until("session.updated"))["session"]["audio"]["input"]["turn_detection"]["idle_timeout_ms"]
        await play(socket, silence(6), clip("fx16k_fr_1"), silence(0.8))
        first = await socket.done()
        await play(socket, silence(3))
        # It has been played by now, at the microphone's time.
        await play(socket, silence(6))
        told = await socket.until("input_audio_buffer.timeout_triggered")
        assert 5_000 <= told["audio_end_ms"] - told["audio_start_ms"] <= 5_032
        assert (await socket.until(COMMITTED))["item_id"] == told["item_id"]
        words = await socket.until(COMPLETED)
        assert (words["item_id"], words["transcript"]) == (told["item_id"], "")
        second = await socket.done()
        assert second["user_message_id"] is None
        await socket.send("conversation.item.retrieve", item_id=told["item_id"])
        await socket.until("conversation.item.retrieved")
    assert [one["role"] for one in await messages(alice, first["conversation_id"])] == [
        "user",
        "assistant",
        "assistant",
    ]
    assert [event["type"] for event in socket.seen].count("input_audio_buffer.timeout_triggered") == 1


@pytest.mark.behaviour("heard.client_corrects", "heard.late", "error.codes")
async def test_client_corrects(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """What the client says it has played counts more than what the server worked out; the least that it says."""
    bridges.mode = speaking()
    async with conversing(server) as socket:
        await ask(socket)
        item_id = socket.seen[-1]["item_id"]
        await play(socket, silence(4), clip("fx16k_en_2"))
        conversation_id = (await socket.done())["conversation_id"]

        async def truncate(audio_end_ms: int) -> tuple[int, str]:
            await socket.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms)
            event = await socket.until("conversation.item.truncated", "error")
            assert (event["type"], event.get("audio_end_ms")) == ("conversation.item.truncated", audio_end_ms), event
            answer = next(one for one in await messages(alice, conversation_id) if one["id"] == item_id)
            return answer["heard_ms"], answer["content"]

        worked_out = next(one for one in await messages(alice, conversation_id) if one["id"] == item_id)
        longer, text = await truncate(worked_out["heard_ms"] + 1_000)
        assert longer == worked_out["heard_ms"] + 1_000
        assert text.startswith(worked_out["content"])
        assert len(text) > len(worked_out["content"])
        assert await truncate(2_000) == (2_000, "Bonjour à tous et à")
        assert (await truncate(60_000))[0] == 2_000
        assert await truncate(0) == (0, "")
        await socket.send("conversation.item.truncate", item_id="nobody", content_index=0, audio_end_ms=0)
        assert (await socket.error())["code"] == "item_truncate_invalid_item_id"
        # It is still a conversation: an answer of which nothing was heard is not sent to the model.
        await play(socket, silence(1))
        await socket.created()
        await socket.done()
    asked = [one.json for one in bridges.requests if one.path == "/api/llm/generate"][-1]
    assert "Bonjour" not in str(asked)


@pytest.mark.behaviour("detection.pause")
async def test_pause_is_no_end(server: Server, bridges: FakeBridges) -> None:
    """A pause that is shorter than the silence asked for leaves one turn, whose words are those of both parts."""
    bridges.mode = speaking()
    async with conversing(server, type="server_vad", silence_duration_ms=900, create_response=False) as socket:
        await play(socket, silence(1), clip("fx16k_fr_1"), silence(0.1), clip("fx16k_en_1"), silence(1.5))
        await socket.until(COMPLETED)
        assert [one["type"] for one in socket.seen].count(STARTED) == 1
        assert [one["type"] for one in socket.seen].count(STOPPED) == 1
        async with asyncio.timeout(5):
            await socket.send("response.create")
            await socket.created()
            await socket.done()


@pytest.mark.behaviour("detection.samples")
async def test_same_events_at_any_pace(server: Server, bridges: FakeBridges) -> None:
    """Places are counted in samples: a recording that comes at once has the events of one that comes slowly."""
    found = []
    for pace, step in ((0.3, 1), (0.0, 7)):
        async with conversing(server, type="server_vad", create_response=False) as socket:
            sound = silence(1) + clip("fx16k_fr_1") + silence(1) + clip("fx16k_en_2") + silence(1)
            if step == 1:
                await play(socket, sound, pace=pace)
            else:
                for start in range(0, len(sound), 70_001):
                    await socket.send_raw(sound[start : start + 70_001])
            for _ in range(2):
                await socket.until(COMPLETED)
            found.append(
                [
                    (one["type"], one.get("audio_start_ms"), one.get("audio_end_ms"))
                    for one in socket.seen
                    if one["type"] in (STARTED, STOPPED)
                ]
            )
    assert found[0] == found[1]
    assert len(found[0]) == 4


@pytest.mark.behaviour("detection.noise")
async def test_noise_is_no_turn(server: Server, bridges: FakeBridges) -> None:
    """Hum, hiss, clicks and a tone are nobody's turn."""
    noise = random.Random(1)
    hum = array.array("h", (round(3_000 * (n % 320 < 160) - 1_500) for n in range(3 * RATE_HZ))).tobytes()
    hiss = array.array("h", (round(noise.gauss(0, 1_500)) for _ in range(3 * RATE_HZ))).tobytes()
    clicks = bytearray(silence(3))
    for start in range(0, len(clicks), RATE_HZ):
        clicks[start : start + 200] = bytes(noise.randbytes(200))
    async with conversing(server) as socket:
        await play(socket, hum, hiss, bytes(clicks), silence(1))
        await socket.send("input_audio_buffer.clear")
        await socket.until("input_audio_buffer.cleared")
        assert STARTED not in [one["type"] for one in socket.seen]
        assert not [one for one in bridges.requests if one.path == "/api/stt/transcribe"]


@pytest.mark.behaviour("resume.detection")
async def test_resumed(server: Server, bridges: FakeBridges) -> None:
    """A session that is taken up again finds turns of speech as it was told to before."""
    bridges.mode = speaking(answer="Oui.")
    async with conversing(server, type="server_vad", silence_duration_ms=3_000) as socket:
        await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(3.3), pace=0.0)
        done = await socket.done()
        seen = socket.seen
    after = seen[-1]["seq"]
    async with open_socket(server.url, key=ALICE, resume=done["id"], after=after, seen=seen) as socket:
        await socket.receive()
        await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(1.5), clip("fx16k_en_1"), silence(3.3), pace=0.0)
        # Both clips and the pause between them are one turn.
        assert (await socket.until(STOPPED))["audio_end_ms"] > 9_000
