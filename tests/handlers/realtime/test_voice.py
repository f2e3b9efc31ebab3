"""Voice over the WebSocket: what a session hears, and how it speaks."""

from __future__ import annotations

import array
import asyncio
import base64
import itertools
import math
import random
import signal
import time
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from jarvis_core.words.spoken_form import spoken_form
from tests.fakes.audio_engine import FakeAudioEngine
from tests.fakes.content import without_time
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import FRENCH_VOICES, BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, BOB, MakeServer, client_of
from tests.handlers.realtime_client import Event, Socket, open_push_to_talk, open_socket
from tests.handlers.shown import (
    ended,
    eventually,
    gauge,
    history,
    newest_conversation,
    open_files,
    resident_bytes,
    state_of,
)
from tests.system.server import Server

APPEND = "input_audio_buffer.append"
COMMIT = "input_audio_buffer.commit"
COMMITTED = "input_audio_buffer.committed"
COMPLETED = "conversation.item.input_audio_transcription.completed"
PIECE = "conversation.item.input_audio_transcription.delta"
FAILED = "conversation.item.input_audio_transcription.failed"
WORDS = "response.output_audio_transcript.delta"
SOUND = "response.output_audio.delta"

GENERATE = "/api/llm/generate"
TRANSCRIBE = "/api/stt/transcribe"
SYNTHESIZE = "/api/tts/synthesize"

RATE_HZ = 24_000
AMPLITUDE = 0.3
ANSWER = "Bonjour à tous. Il fait beau aujourd'hui. Sortons un peu."
SENTENCES = ("Bonjour à tous.", "Il fait beau aujourd'hui.", "Sortons un peu.")


def tone(duration_s: float, rate_hz: int = RATE_HZ) -> bytes:
    """Make 440 Hz as 16-bit samples."""
    count = round(duration_s * rate_hz)
    wave = (round(32_767 * AMPLITUDE * math.sin(2 * math.pi * 440 * n / rate_hz)) for n in range(count))
    return array.array("h", wave).tobytes()


def speaking(answer: str = ANSWER, **fields: Any) -> BridgesMode:
    """Make the bridges stream this answer word by word, and speak a hundred characters a second."""
    return BridgesMode(**{"shape": "ndjson", "answer": answer, "speech_s_per_char": 0.01, **fields})


async def configure(socket: Socket, **session: object) -> Event:
    """Change the session, and return it as it is shown."""
    await socket.send("session.update", session=session)
    event = await socket.until("session.updated", "error")
    assert event["type"] == "session.updated", event
    shown: Event = event["session"]
    return shown


async def commit(socket: Socket, duration_s: float = 0.5, rate_hz: int = RATE_HZ) -> str:
    """Say something of that length and return its item's id."""
    await socket.send_raw(tone(duration_s, rate_hz))
    await socket.send(COMMIT)
    item_id: str = (await socket.until(COMMITTED))["item_id"]
    return item_id


async def say(socket: Socket, duration_s: float = 0.5) -> Event:
    """Say something of that length and return the event that has its words."""
    await commit(socket, duration_s)
    return await socket.until(COMPLETED)


async def ask_aloud(socket: Socket, **overrides: object) -> Event:
    """Ask in writing for an answer in speech, and return the response once it is created."""
    return await socket.ask("speak", output_modalities=["audio"], **overrides)


async def messages_of(client: aiohttp.ClientSession, conversation_id: str) -> list[Event]:
    """Return the messages of a conversation as REST shows them."""
    async with client.get(f"/api/chat/history/{conversation_id}") as response:
        messages: list[Event] = (await response.json())["messages"]
    return messages


def types_of(events: list[Event]) -> list[str]:
    """Return the types of events, neighbours of one type as one."""
    return [kind for kind, _ in itertools.groupby(event["type"] for event in events)]


def spoken(bridges: FakeBridges) -> list[Event]:
    """Return what was to be spoken, in its order."""
    return [request.json for request in bridges.requests if request.path == SYNTHESIZE]


def heard(bridges: FakeBridges) -> list[Event]:
    """Return what was asked of the speech model, in its order."""
    return [request.json for request in bridges.requests if request.path == TRANSCRIBE]


def sound_by_sentence(events: list[Event]) -> list[tuple[str, bytes]]:
    """Return each piece of the transcript with the samples that came behind it."""
    pairs: list[tuple[str, bytes]] = []
    for event in events:
        if event["type"] == WORDS:
            pairs.append((event["delta"], b""))
        elif event["type"] == SOUND:
            words, sound = pairs[-1]
            pairs[-1] = (words, sound + base64.b64decode(event["delta"]))
    return pairs


# What a session hears


@pytest.mark.behaviour("session.push_to_talk", "transcription")
async def test_recording_becomes_a_message(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A committed buffer is an item at once, its words follow, and they are the user's message under the item's id."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.receive()
        item_id = await commit(socket, 1.5)
        words = await socket.until(COMPLETED)
        committed, added, done = socket.seen[1:4]
        assert types_of(socket.seen) == [
            "session.created",
            COMMITTED,
            "conversation.item.added",
            "conversation.item.done",
            PIECE,
            COMPLETED,
        ]
        assert (committed["item_id"], committed["previous_item_id"]) == (item_id, None)
        assert added["item"] == done["item"]
        assert done["item"] == {
            "id": item_id,
            "type": "message",
            "object": "realtime.item",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        assert (words["item_id"], words["content_index"]) == (item_id, 0)
        assert words["transcript"] == "a clip of 1.50 seconds"
        assert words["usage"] == {"type": "duration", "seconds": 1.5}
        assert (words["language"], words["enhanced"]) == ("fr", False)
        await socket.send("response.create")
        response = await socket.done()
        assert response["user_message_id"] == item_id
        second = await commit(socket)
        assert socket.seen[-1]["previous_item_id"] == response["id"]
        await socket.until(COMPLETED)
    shown = await messages_of(alice, response["conversation_id"])
    assert [(message["id"], message["role"], message["content"]) for message in shown] == [
        (item_id, "user", "a clip of 1.50 seconds"),
        (response["id"], "assistant", "You said: a clip of 1.50 seconds"),
        (second, "user", "a clip of 0.50 seconds"),
    ]


async def test_conversation_begins_with_its_words(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """A conversation that begins with speech is made when its words are known, and named wherever it is shown then."""
    bridges.mode = BridgesMode(shape="ndjson", transcript="Quel temps fait-il à Nantes ?")
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        words = await say(socket)
        for event in socket.seen:
            if event["type"] in ("conversation.item.added", "conversation.item.done"):
                assert event["conversation_id"] is None
        conversation_id = words["conversation_id"]
        assert (await configure(socket))["conversation_id"] == conversation_id
        await socket.send("response.create")
        assert (await socket.done())["conversation_id"] == conversation_id
    newest = await newest_conversation(alice)
    assert (newest["id"], newest["title"]) == (conversation_id, "Quel temps fait-il à Nantes ?")
    async with open_push_to_talk(server.url, key=ALICE, conversation_id=conversation_id) as socket:
        await commit(socket)
        assert (await socket.until("conversation.item.done"))["conversation_id"] == conversation_id
        assert (await socket.until(COMPLETED))["conversation_id"] == conversation_id
    assert len(await history(alice, conversation_id)) == 3


@pytest.mark.parametrize("way", ["base64", "binary", "both"])
@pytest.mark.behaviour("buffer.pieces")
async def test_buffer_in_pieces(server: Server, bridges: FakeBridges, way: str) -> None:
    """Audio comes as base64, in binary frames or both mixed, cut anywhere, also within a sample."""
    sound = tone(1.0)
    dice = random.Random(way)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        rest = sound
        while rest:
            size = dice.choice([1, 7, 333, 2_401])
            piece, rest = rest[:size], rest[size:]
            if way == "binary" or (way == "both" and dice.random() < 0.5):
                await socket.send_raw(piece)
            else:
                await socket.send(APPEND, audio=base64.b64encode(piece).decode())
        await socket.send_raw(b"")
        await socket.send(APPEND, audio="")
        await socket.send(COMMIT)
        assert (await socket.until(COMPLETED))["transcript"] == "a clip of 1.00 seconds"
        assert "error" not in types_of(socket.seen)
    [clip] = bridges.heard
    # Samples that were put together wrongly would be noise.
    assert clip.rms == pytest.approx(AMPLITUDE / math.sqrt(2), rel=0.02)
    assert clip.peak == pytest.approx(AMPLITUDE, rel=0.05)


@pytest.mark.behaviour("recording.odd_byte")
async def test_half_a_sample(server: Server, bridges: FakeBridges) -> None:
    """Of a recording that ends within a sample only that half is lost; half a sample alone is nothing to commit."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        for halves in (tone(0.5) + b"\0", tone(9.5) + b"\0"):
            await socket.send_raw(halves)
            await socket.send(COMMIT)
            heard_text = (await socket.until(COMPLETED))["transcript"]
            assert heard_text == f"a clip of {(len(halves) - 1) / 48_000:.2f} seconds"
        assert bridges.requests_seen[TRANSCRIBE] == 2
        await socket.send_raw(b"\0")
        await socket.send(COMMIT)
        assert (await socket.error())["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.behaviour("buffer.clear")
async def test_clear(server: Server, bridges: FakeBridges) -> None:
    """A cleared buffer is empty, and to commit an empty one is an error with the event's id."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.send_raw(tone(0.5))
        await socket.send("input_audio_buffer.clear")
        await socket.until("input_audio_buffer.cleared")
        await socket.send(COMMIT, event_id="too early")
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "too early")
        assert (await say(socket, 0.25))["transcript"] == "a clip of 0.25 seconds"
        await socket.send(COMMIT, event_id="again")
        assert (await socket.error())["event_id"] == "again"


@pytest.mark.parametrize("audio", ["AAA", "é", "AA=A", "not base64", "AAAA\nAAAA"])
async def test_bad_base64(server: Server, bridges: FakeBridges, audio: str) -> None:
    """What is not base64 is an error with the event's id, and leaves the buffer as it was."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.send_raw(tone(0.5))
        await socket.send(APPEND, audio=audio, event_id="bad")
        error = await socket.error()
        assert (error["code"], error["param"], error["event_id"]) == ("invalid_request", "$.audio", "bad")
        await socket.send(COMMIT)
        assert (await socket.until(COMPLETED))["transcript"] == "a clip of 0.50 seconds"


@pytest.mark.behaviour("buffer.limit")
async def test_ten_minutes(server: Server, bridges: FakeBridges) -> None:
    """The buffer takes ten minutes and no sample more; what is too much is refused and the rest is kept."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, audio={"input": {"format": {"type": "audio/pcm", "rate": 8_000}}})
        whole = bytes(2 * 8_000 * 600)
        await socket.send_raw(whole)
        await socket.send_raw(bytes(2))
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("too_large", None)
        await socket.send(APPEND, audio="AAA=", event_id="much")
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("too_large", "much")
        await socket.send("input_audio_buffer.clear")
        await socket.send_raw(whole)
        await socket.send(COMMIT)
        words = await socket.until(COMPLETED)
        assert (words["transcript"], words["usage"]["seconds"]) == ("", 600)
    assert bridges.heard == []


@pytest.mark.behaviour("transcription.delta")
async def test_words_of_a_long_recording(server: Server, bridges: FakeBridges) -> None:
    """The words of a recording of minutes are told piece by piece, as they are known."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, audio={"input": {"format": {"type": "audio/pcm", "rate": 8_000}}})
        item_id = await commit(socket, 130.0, 8_000)
        await socket.until(PIECE)
        # The rest is still to be heard.
        assert COMPLETED not in types_of(socket.seen)
        words = await socket.until(COMPLETED)
        pieces = [event["delta"] for event in socket.seen if event["type"] == PIECE and event["item_id"] == item_id]
    assert len(pieces) == 3
    assert "".join(pieces) == words["transcript"]


@pytest.mark.behaviour("session.format")
async def test_rates(server: Server, bridges: FakeBridges) -> None:
    """Audio of any rate that session.update names reaches the bridges in its true length."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        for rate_hz in (8_000, 16_000, 44_100, 48_000):
            shown = await configure(socket, audio={"input": {"format": {"type": "audio/pcm", "rate": rate_hz}}})
            assert shown["audio"]["input"]["format"]["rate"] == rate_hz
            await commit(socket, 0.7, rate_hz)
            assert (await socket.until(COMPLETED))["transcript"] == "a clip of 0.70 seconds"
            assert bridges.heard[-1].rms == pytest.approx(AMPLITUDE / math.sqrt(2), rel=0.02)


@pytest.mark.behaviour("session.format.begun")
async def test_rate_of_what_was_appended(server: Server, bridges: FakeBridges) -> None:
    """While the buffer has audio its rate stays; after a clear it may change."""
    wanted = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8_000}}}}
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.send_raw(tone(0.7))
        await socket.send("session.update", session=wanted, event_id="late")
        error = await socket.error()
        assert (error["event_id"], error["param"]) == ("late", "$.session.audio.input.format")
        await socket.send("input_audio_buffer.clear")
        await configure(socket, **wanted)
        await commit(socket, 0.7, 8_000)
        assert (await socket.until(COMPLETED))["transcript"] == "a clip of 0.70 seconds"


@pytest.mark.behaviour("transcription.empty")
async def test_silence(server: Server, bridges: FakeBridges) -> None:
    """Where nobody speaks the transcript is empty, no message is stored, and no model is asked."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, audio={"input": {"create_response": True}})
        await socket.send_raw(bytes(2 * RATE_HZ))
        await socket.send(COMMIT)
        words = await socket.until(COMPLETED)
        assert (words["transcript"], words["conversation_id"]) == ("", None)
        await socket.send_raw(tone(1 / RATE_HZ))
        await socket.send(COMMIT)
        assert (await socket.until(COMPLETED))["transcript"] == ""
        assert (await configure(socket))["conversation_id"] is None
        assert "response.created" not in types_of(socket.seen)
    assert bridges.requests_seen[TRANSCRIBE] == bridges.requests_seen[GENERATE] == 0


@pytest.mark.behaviour("transcription.failed")
async def test_transcription_fails(server: Server, bridges: FakeBridges) -> None:
    """Words that cannot be had are told as failed, and the response.create that waits for them is an error."""
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(status=500, delay_s=0.1)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        item_id = await commit(socket)
        await socket.send("response.create", event_id="waits")
        failed = await socket.until(FAILED)
        assert (failed["item_id"], failed["content_index"]) == (item_id, 0)
        assert (failed["error"]["code"], failed["error"]["type"]) == ("bad_gateway", "server_error")
        assert (await socket.error())["event_id"] == "waits"
        assert (await configure(socket))["conversation_id"] is None
        for segments in ("heard", "of_failure"):
            bridges.mode = BridgesMode(shape="ndjson", error_200=True, segments=segments)
            await commit(socket)
            assert (await socket.until(FAILED))["error"]["code"] == "bad_gateway"
        bridges.mode = BridgesMode(shape="ndjson")
        await say(socket)
        await socket.send("response.create")
        assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("transcription.order")
async def test_recordings_keep_their_order(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Recordings become messages in the order of their commits, also where the first one takes longest."""
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.4, times=1)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        ids = []
        for duration_s in (0.3, 0.6, 0.9):
            ids.append(await commit(socket, duration_s))
            if duration_s == 0.3:
                await bridges.seen(TRANSCRIBE)
        await socket.send("response.create")
        response = await socket.done()
        told = [event for event in socket.seen if event["type"] == COMPLETED]
        assert [event["item_id"] for event in told] == ids
        added = [event for event in socket.seen if event["type"] == COMMITTED]
        assert [event["previous_item_id"] for event in added] == [None, *ids[:2]]
    assert [round(clip.duration_s, 1) for clip in bridges.heard] == [0.6, 0.9, 0.3]
    assert response["user_message_id"] == ids[-1]
    assert [message["id"] for message in await messages_of(alice, response["conversation_id"])] == [
        *ids,
        response["id"],
    ]
    asked = [without_time(message["content"]) for message in bridges.last("/api/llm").json["messages"]]
    assert asked == ["\n\n".join(f"a clip of {duration_s} seconds" for duration_s in ("0.30", "0.60", "0.90"))]


async def test_room_for_recordings(make_server: MakeServer, bridges: FakeBridges) -> None:
    """All buffers share one room: without any left audio is refused, until somebody commits, clears or is lost."""
    server = make_server(AUDIO_BUFFER_LIMIT_BYTES=str(48 << 20))
    fast = {"input": {"format": {"type": "audio/pcm", "rate": 48_000}}}
    large = bytes(15 << 20)
    async with open_push_to_talk(server.url) as lost, open_push_to_talk(server.url) as socket:
        for one in (lost, socket):
            await configure(one, audio=fast)
        # Its session is kept for who comes back; its buffer is not.
        await lost.ask("hello")
        await lost.done()
        for _ in range(3):
            await lost.send_raw(large)
        await configure(lost)
        await socket.send_raw(large)
        assert (await socket.error())["code"] == "overloaded"
        lost.abort()

        async def is_taken() -> bool:
            await socket.send_raw(large)
            await socket.send("input_audio_buffer.clear")
            answer = await socket.until("error", "input_audio_buffer.cleared")
            if answer["type"] == "error":
                await socket.until("input_audio_buffer.cleared")
            return bool(answer["type"] != "error")

        await eventually(is_taken)
        for _ in range(4):
            await socket.send_raw(large)
            await socket.send(COMMIT)
            await socket.until(COMPLETED)


@pytest.mark.behaviour("buffer.expires")
async def test_idle_buffer_expires(make_server: MakeServer, bridges: FakeBridges) -> None:
    """Audio that is neither added to nor committed is dropped, and the client told; the socket stays, and hears anew."""
    server = make_server(AUDIO_BUFFER_IDLE_S="0.3")
    async with open_push_to_talk(server.url) as socket:
        await socket.send_raw(tone(0.5))
        error = await socket.error()
        assert (error["code"], error["type"]) == ("input_audio_buffer_expired", "invalid_request_error")
        await socket.until("input_audio_buffer.cleared")
        await socket.send(COMMIT)
        assert (await socket.error())["code"] == "input_audio_buffer_commit_empty"
        await commit(socket)
        assert (await socket.until(COMPLETED))["transcript"] == "a clip of 0.50 seconds"


async def test_many_idle_sockets(make_server: MakeServer, bridges: FakeBridges) -> None:
    """However many sockets of one user hold audio and are idle, another user's recording is heard."""
    server = make_server(AUDIO_BUFFER_LIMIT_BYTES=str(48 << 20), API_KEYS="ann:ann-key-1,ben:ben-key-1")
    async with AsyncExitStack() as stack:
        for number in range(12):
            idle = await stack.enter_async_context(open_push_to_talk(server.url, key="ann-key-1"))
            await configure(idle, audio={"input": {"format": {"type": "audio/pcm", "rate": 48_000}}})
            await idle.send_raw(bytes(4 << 20))
            await idle.send("input_audio_buffer.append", audio="!")
            codes = [(await idle.error())["code"]]
            if codes[0] != "invalid_request":
                codes.append((await idle.error())["code"])
            assert codes == (["invalid_request"] if number < 10 else ["rate_limited", "invalid_request"])
        socket = await stack.enter_async_context(open_push_to_talk(server.url, key="ben-key-1"))
        for _ in range(3):
            await commit(socket)
            assert (await socket.until(COMPLETED))["transcript"] == "a clip of 0.50 seconds"


async def test_too_many_recordings(server: Server, bridges: FakeBridges) -> None:
    """More recordings at a time than the limit are refused as overload, and nothing of them is lost."""
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.5)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        for _ in range(4):
            await commit(socket)
        await socket.send_raw(tone(0.3))
        await socket.send(COMMIT, event_id="fifth")
        error = await socket.error()
        assert (error["code"], error["event_id"], error["type"]) == ("overloaded", "fifth", "server_error")
        for _ in range(4):
            await socket.until(COMPLETED)
        await socket.send(COMMIT)
        assert (await socket.until(COMPLETED))["transcript"] == "a clip of 0.30 seconds"


@pytest.mark.behaviour("response.waits")
async def test_response_waits_for_the_words(server: Server, bridges: FakeBridges) -> None:
    """A response.create before the words are known waits for them; a second one is an error meanwhile."""
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.3)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        item_id = await commit(socket)
        await socket.send("response.create", response={"temperature": 1.5})
        await socket.send("response.create", event_id="second")
        assert (await socket.error())["event_id"] == "second"
        response = await socket.done()
        assert response["user_message_id"] == item_id
        assert types_of(socket.seen).index(COMPLETED) < types_of(socket.seen).index("response.created")
        await configure(socket)
        assert types_of(socket.seen).count("response.created") == 1
    assert bridges.last("/api/llm").json["temperature"] == 1.5


async def test_cancelled_before_it_was_created(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """A response that is cancelled while it waits for the words never is; the words are stored all the same."""
    bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.3)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        item_id = await commit(socket)
        await socket.send("response.create", event_id="waits")
        await socket.send("response.cancel")
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("conflict", "waits")
        words = await socket.until(COMPLETED)
        await configure(socket)
        assert "response.created" not in types_of(socket.seen)
        assert await history(alice, words["conversation_id"]) == [("user", "a clip of 0.50 seconds", "completed")]
        await socket.send("response.create")
        assert (await socket.done())["user_message_id"] == item_id


@pytest.mark.behaviour("session.create_response")
async def test_create_response(server: Server, bridges: FakeBridges) -> None:
    """With create_response each recording is answered by itself, and those that come together at once."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        shown = await configure(socket, audio={"input": {"create_response": True}})
        assert shown["audio"]["input"]["create_response"] is True
        for duration_s in (0.3, 0.4):
            item_id = await commit(socket, duration_s)
            response = await socket.done()
            assert response["user_message_id"] == item_id
            assert socket.tally.text == f"You said: a clip of {duration_s:.2f} seconds"
        bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.3)})
        await commit(socket)
        last = await commit(socket)
        assert (await socket.done())["user_message_id"] == last
        await configure(socket, audio={"input": {"create_response": False}})
        await say(socket)
        await configure(socket)
        assert types_of(socket.seen).count("response.created") == 3
        assert "error" not in types_of(socket.seen)


@pytest.mark.behaviour("transcription.language")
async def test_language(server: Server, bridges: FakeBridges) -> None:
    """The language that the session names is what the speech model is told; auto leaves it to find out, null as it is."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await say(socket)
        await configure(socket, audio={"input": {"transcription": {"language": "en-GB"}}})
        assert (await say(socket))["language"] == "en"
        await configure(socket, audio={"input": {"transcription": {"language": "auto"}}})
        await say(socket)
        await configure(socket, audio={"input": {"transcription": None}})
        await say(socket)
    assert [asked.get("language") for asked in heard(bridges)] == ["fr", "en", None, None]


@pytest.mark.behaviour("recording.lost")
async def test_lost_while_listening(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """What was committed before the socket was lost still becomes a message, and nobody answers it."""
    text = "Le train part à midi."
    bridges.mode = BridgesMode(shape="ndjson", transcript=text, faults={TRANSCRIBE: Fault(delay_s=0.3)})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, audio={"input": {"create_response": True}})
        item_id = await commit(socket)
        await socket.send_raw(tone(0.3))
        await bridges.seen(TRANSCRIBE)
        socket.abort()

    async def is_stored() -> bool:
        return bool((await newest_conversation(alice))["title"] == text)

    await eventually(is_stored)
    newest = await newest_conversation(alice)
    assert [message["id"] for message in await messages_of(alice, newest["id"])] == [item_id]
    assert bridges.requests_seen[GENERATE] == 0
    assert bridges.requests_seen[TRANSCRIBE] == 1


async def test_words_that_are_too_many(server: Server, bridges: FakeBridges) -> None:
    """A transcript that no message can hold is told as failed."""
    bridges.mode = BridgesMode(shape="ndjson", transcript="mot " * 3_000)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await commit(socket)
        assert (await socket.until(FAILED))["error"]["code"] == "invalid_request"
        assert (await configure(socket))["conversation_id"] is None


async def test_conversation_deleted_while_listening(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """Words for a conversation that was deleted meanwhile are told as failed, and the socket stays open."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        conversation_id = (await say(socket))["conversation_id"]
        async with alice.delete(f"/api/chat/conversation/{conversation_id}") as answer:
            assert answer.status == 200
        await commit(socket)
        assert (await socket.until(FAILED))["error"]["code"] == "not_found"
        await configure(socket)


@pytest.mark.behaviour("session.noise_reduction")
async def test_enhanced(make_server: MakeServer, bridges: FakeBridges) -> None:
    """The words say whether their audio had passed through the audio engine."""
    async with FakeAudioEngine() as engine:
        server = make_server(AUDIO_ENGINE_URL=engine.url)
        async with open_push_to_talk(server.url) as socket:
            assert (await say(socket))["enhanced"] is True
            shown = await configure(socket, audio={"input": {"noise_reduction": None}})
            assert shown["audio"]["input"]["noise_reduction"] is None
            asked = len(engine.requests)
            assert (await say(socket))["enhanced"] is False
            assert bridges.heard[-1].peak == pytest.approx(AMPLITUDE, rel=0.05)
            assert len(engine.requests) == asked
            shown = await configure(socket, input_audio_noise_reduction={"type": "far_field"})
            assert shown["audio"]["input"]["noise_reduction"] == {"type": "far_field"}
            assert (await say(socket))["enhanced"] is True
            assert bridges.heard[-1].peak == pytest.approx(engine.mode.gain * AMPLITUDE, rel=0.05)
            await engine.go_away()
            assert (await say(socket))["enhanced"] is False


# The session's settings of audio


@pytest.mark.behaviour("session.shown")
async def test_settings_are_shown(server: Server, bridges: FakeBridges) -> None:
    """What session.update sets of the audio is shown, the rest stays as it was, and null is null."""
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.receive()
        created = await configure(socket)
        pcm = {"type": "audio/pcm", "rate": 24_000}
        assert created["output_modalities"] == ["text"]
        assert created["audio"] == {
            "input": {
                "format": pcm,
                "transcription": {"language": None},
                "turn_detection": None,
                "noise_reduction": None,
                "create_response": False,
            },
            "output": {"format": pcm, "voice": None, "speed": 1.0, "truncate": "client"},
        }
        shown = await configure(
            socket,
            type="realtime",
            output_modalities=["audio"],
            audio={
                "input": {"turn_detection": None, "noise_reduction": None, "transcription": {"model": "whisper-1"}},
                "output": {"voice": {"id": "fr_FR-tom-medium"}, "speed": 1.5},
            },
        )
        assert shown["output_modalities"] == ["audio"]
        assert shown["audio"]["input"] == created["audio"]["input"]
        assert shown["audio"]["output"] == {
            "format": pcm,
            "voice": "fr_FR-tom-medium",
            "speed": 1.5,
            "truncate": "client",
        }
        shown = await configure(socket, audio={"output": {"format": {"type": "audio/pcm", "rate": 16_000}}})
        assert shown["audio"]["output"]["format"]["rate"] == 16_000
        assert (shown["audio"]["output"]["voice"], shown["output_modalities"]) == ("fr_FR-tom-medium", ["audio"])


# How it speaks


@pytest.mark.behaviour("response.spoken")
async def test_spoken_response(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A spoken response comes sentence by sentence, its words and then their sound, between the usual events."""
    bridges.mode = speaking()
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, output_modalities=["audio"])
        words = await say(socket)
        await socket.send("response.create")
        response = await socket.done()
    kinds = types_of(socket.seen)
    assert kinds[kinds.index("response.created") :] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *(kind for _ in SENTENCES for kind in (WORDS, SOUND)),
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert [words.strip() for words, _ in sound_by_sentence(socket.seen)] == list(SENTENCES)
    assert [asked["text"] for asked in spoken(bridges)] == list(SENTENCES)
    parts = {event["type"]: event.get("part") for event in socket.seen}
    assert parts["response.content_part.added"] == {"type": "audio", "transcript": ""}
    assert parts["response.content_part.done"] == {"type": "audio", "transcript": ANSWER}
    assert (response["status"], response["status_details"]) == ("completed", None)
    assert response["output_modalities"] == ["audio"]
    spoken_by = next(iter(FRENCH_VOICES))
    assert response["audio"] == {"output": {"format": {"type": "audio/pcm", "rate": RATE_HZ}, "voice": spoken_by}}
    assert response["output"][0]["content"] == [{"type": "output_audio", "transcript": ANSWER}]
    assert await history(alice, response["conversation_id"]) == [
        ("user", words["transcript"], "completed"),
        ("assistant", ANSWER, "completed"),
    ]


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 24_000, 48_000])
async def test_length_of_the_sound(server: Server, bridges: FakeBridges, rate_hz: int) -> None:
    """The sound of each sentence is as long as it was spoken, to its last sample, at the rate that was asked for."""
    bridges.mode = speaking()
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, audio={"output": {"format": {"type": "audio/pcm", "rate": rate_hz}}})
        await ask_aloud(socket)
        await socket.done()
        pairs = sound_by_sentence(socket.seen)
        for words, sound in pairs:
            assert len(sound) / 2 == pytest.approx(0.01 * len(words.strip()) * rate_hz, abs=1)
        samples = array.array("h", socket.tally.sound)
    # The fake speaks with an amplitude of 0.3.
    assert max(samples) / 32_768 == pytest.approx(0.3, rel=0.1)


async def test_speaks_while_the_model_goes_on(server: Server, bridges: FakeBridges) -> None:
    """The first sentence is heard while the model has not finished the second."""
    bridges.mode = speaking(hold_after=5)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await socket.until(SOUND)
        assert socket.tally.text.strip() == SENTENCES[0]
        assert bridges.gate.waiting == 1
        bridges.gate.release()
        assert (await socket.done())["status"] == "completed"
        assert socket.tally.text == ANSWER


async def test_words_are_shown_as_written_and_said_as_spoken(server: Server, bridges: FakeBridges) -> None:
    """Numbers, signs and abbreviations reach the voice as words, the client as they are; a foreign line fails no voice."""
    answer = "M. Dupont, il fait -5 °C. 日本語です。 Rendez-vous à 18h30 !"
    bridges.mode = speaking(answer)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        response = await socket.done()
        assert (response["status"], socket.tally.text) == ("completed", answer)
    assert [asked["text"] for asked in spoken(bridges)] == [
        "Monsieur Dupont, il fait moins cinq degrés Celsius.",
        "Rendez-vous à dix-huit heures trente !",
    ]


async def test_nothing_to_say(server: Server, bridges: FakeBridges) -> None:
    """What a voice cannot say is shown and not spoken; an answer without a word has no sound."""
    answer = "Voici.\n```\n```\n🎉🎉\nVoilà."
    bridges.mode = speaking(answer)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await socket.done()
        assert socket.tally.text == answer
        assert [asked["text"] for asked in spoken(bridges)] == ["Voici.", "Voilà."]
        bridges.mode = speaking("", deltas=())
        await ask_aloud(socket)
        response = await socket.done()
        assert (response["status"], socket.tally.text, socket.tally.sound) == ("failed", "", b"")
        assert response["status_details"]["reason"] == "empty"
        bridges.mode = BridgesMode(error_200=True)
        await ask_aloud(socket)
        assert (await socket.done())["status"] == "failed"
        assert types_of(socket.seen)[-2:] == ["response.created", "response.done"]


@pytest.mark.behaviour("response.spoken.ahead")
async def test_never_far_ahead(server: Server, bridges: FakeBridges) -> None:
    """No more than two sentences are spoken that are not yet heard, also for a client that does not read."""
    bridges.mode = speaking("Un deux trois. " * 8, speech_s_per_char=0.2)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        socket.connection.transport.pause_reading()
        await bridges.seen(SYNTHESIZE, 3)
        await asyncio.sleep(0.4)
        assert bridges.requests_seen[SYNTHESIZE] == 3
        socket.connection.transport.resume_reading()
        await socket.send("response.cancel")
        response = await socket.done()
        assert (response["status"], bridges.requests_seen[SYNTHESIZE]) == ("cancelled", 3)


async def test_keeps_ahead(server: Server, bridges: FakeBridges) -> None:
    """A sentence is asked for when the second before it begins to be heard, and comes before its own time."""
    bridges.mode = speaking("Un deux trois quatre. " * 6, speech_s_per_char=0.015)
    length_s = 0.015 * len("Un deux trois quatre.")
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        arrivals = []
        while (event := await socket.receive())["type"] != "response.done":
            if event["type"] == WORDS:
                arrivals.append(time.monotonic())
    asked = [request.received_at for request in bridges.requests if request.path == SYNTHESIZE]
    assert len(asked) == len(arrivals) == 6
    for number, at in enumerate(asked):
        assert at - asked[0] >= (number - 2) * length_s - 0.01, number
    for number, at in enumerate(arrivals):
        assert at - arrivals[0] <= number * length_s + 0.5, number


@pytest.mark.behaviour("barge_in.untold")
async def test_cancelled_while_speaking(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Who cancels a voice whose words are all there hears no more of it; what was not said is not told, and what was heard stays."""
    answer = "Un deux trois. " * 8
    bridges.mode = speaking(answer, speech_s_per_char=1.0)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        asked = await ask_aloud(socket)
        assert (await ended(alice, asked["id"]))["status"] == "completed"
        await socket.until(SOUND)
        await socket.send("response.cancel", response_id=asked["id"])
        response = await socket.done()
        assert (response["status"], response["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert answer.startswith(socket.tally.text)
        assert len(socket.tally.text) <= len(answer) / 2
        assert len(socket.tally.sound) < 2 * RATE_HZ * len(answer) / 2
        assert response["output"][0]["status"] == "incomplete"
        # It was stopped within its first word.
        assert await history(alice, asked["conversation_id"]) == [
            ("user", "speak", "completed"),
            ("assistant", "", "completed"),
        ]
        await socket.send("response.cancel", event_id="late")
        assert (await socket.error())["event_id"] == "late"


async def test_cancelled_while_the_model_speaks(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """A cancel ends the model's stream too; words that were not spoken are not told, and what was heard stays."""
    bridges.mode = speaking(hold_after=5)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        asked = await ask_aloud(socket)
        await socket.until(SOUND)
        await socket.send("response.cancel")
        response = await socket.done()
        assert response["status"] == "cancelled"
        assert socket.tally.text == "Bonjour à tous. "
        # It was stopped within its first word.
        kept = [("user", "speak", "completed"), ("assistant", "", "cancelled")]

        async def is_kept() -> bool:
            return await history(alice, asked["conversation_id"]) == kept

        await eventually(is_kept)
    await bridges.stream_closed()
    assert [asked["text"] for asked in spoken(bridges)] == [SENTENCES[0]]


async def test_cancelled_over_rest(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A turn that is cancelled over REST falls silent as one that is cancelled here."""
    bridges.mode = speaking(hold_after=5)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        asked = await ask_aloud(socket)
        await socket.until(SOUND)
        async with alice.post(f"/api/chat/response/{asked['id']}/cancel") as answer:
            assert answer.status == 200
        assert (await socket.done())["status"] == "cancelled"
        assert socket.tally.text == "Bonjour à tous. Il fait"


@pytest.mark.every_python
async def test_cancel_closes_what_is_being_spoken(server: Server, bridges: FakeBridges) -> None:
    """A cancel closes the request that the bridges are still working on."""
    bridges.mode = speaking(faults={SYNTHESIZE: Fault("hang")})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await bridges.seen(SYNTHESIZE)
        await asyncio.sleep(0.1)
        before = bridges.open_connections
        await socket.send("response.cancel")
        response = await socket.done()
        assert (response["status"], socket.tally.text, socket.tally.sound) == ("cancelled", "", b"")

        async def is_closed() -> bool:
            return bridges.open_connections < before

        await eventually(is_closed)
        bridges.mode = speaking()
        await ask_aloud(socket)
        assert (await socket.done())["status"] == "completed"


async def test_interrupted(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Who speaks while the assistant does (cancel, audio, commit, create, all at once) gets an answer to that."""
    bridges.mode = speaking("Un deux trois. " * 8, speech_s_per_char=0.2)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, output_modalities=["audio"])
        for number in range(10):
            await say(socket)
            await socket.send("response.create")
            await socket.until(SOUND)
            if number % 2:
                await bridges.seen(SYNTHESIZE, 3)
            sound = tone(0.5)
            await socket.send("response.cancel")
            await socket.send_raw(sound)
            await socket.send(COMMIT)
            await socket.send("response.create")
            assert (await socket.done())["status"] == "cancelled"
            await socket.until(SOUND)
            await socket.send("response.cancel")
            last = await socket.done()
            bridges.forget()
        assert "error" not in types_of(socket.seen)
    roles = [role for role, _, _ in await history(alice, last["conversation_id"])]
    assert roles == ["user", "assistant"] * 20


async def test_cancel_and_create_at_once(server: Server, bridges: FakeBridges) -> None:
    """A response.create right behind a cancel is taken: the cancelled response ends first."""
    bridges.mode = speaking("Un deux trois. " * 8, speech_s_per_char=1.0)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        for modality in ("audio", "text") * 10:
            await socket.ask("speak", output_modalities=["audio"])
            await socket.until(SOUND)
            await socket.add("again")
            await socket.send("response.cancel")
            await socket.send("response.create", response={"output_modalities": [modality]})
            assert (await socket.done())["status"] == "cancelled"
            await socket.created()
            if modality == "audio":
                await socket.send("response.cancel")
            await socket.done()


@pytest.mark.every_python
@pytest.mark.behaviour("response.spoken.failed")
async def test_voice_fails(server: Server, bridges: FakeBridges) -> None:
    """Where the voice fails in the middle one error says so, the words go on, and nothing more is to be spoken."""
    bridges.mode = speaking(hold_after=5)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await socket.until(SOUND)
        bridges.mode = BridgesMode(error_200=True)
        bridges.gate.release()
        response = await socket.done()
        assert response["status"] == "completed"
        assert socket.tally.text == ANSWER
        [error] = [event["error"] for event in socket.seen if event["type"] == "error"]
        assert (error["code"], error["type"], error["event_id"]) == ("bad_gateway", "server_error", None)
        assert [bool(sound) for _, sound in sound_by_sentence(socket.seen)] == [True, False, False]
        assert len(spoken(bridges)) == 2
        for mode in (
            speaking(speech="not_base64"),
            speaking(speech="odd"),
            speaking(faults={SYNTHESIZE: Fault("close")}),
        ):
            bridges.mode = mode
            await ask_aloud(socket)
            assert (await socket.done())["status"] == "completed"
            assert (socket.tally.text, socket.tally.sound) == (ANSWER, b"")
        assert types_of(socket.seen).count("error") == 4
        bridges.mode = speaking()
        await ask_aloud(socket)
        await socket.done()
        assert socket.tally.sound


async def test_written_in_another_language(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A question that was written is answered by a voice of its own language, and briefly; the model is told which it is."""
    bridges.mode = speaking("Yes.", voices={"fr_FR-siwis-medium": "Siwis", "en_US-amy-low": "Amy"})
    server = make_server(LLM_SPOKEN_MAX_TOKENS="99")
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, output_modalities=["audio"])
        for question, voice, told in (
            ("What is the time in New York?", "en_US-amy-low", ", in English]\n\n"),
            ("Et quelle heure est-il à Paris ?", "fr_FR-siwis-medium", ", en français]\n\n"),
            ("Nantes", "fr_FR-siwis-medium", ", en français]\n\n"),
        ):
            await socket.ask(question)
            await socket.done()
            assert bridges.last("/api/tts/synthesize").json["voice"] == voice
            asked = bridges.last("/api/llm").json
            assert f"{told}{question}" in asked["prompt"] or f"{told[:-2]}\nUser: {question}" in asked["prompt"]
            assert asked["max_tokens"] == 99
        await configure(socket, max_output_tokens=400)
        await socket.ask("Raconte une histoire.")
        await socket.done()
        assert bridges.last("/api/llm").json["max_tokens"] == 400


async def test_voice_of_the_language(make_server: MakeServer, bridges: FakeBridges) -> None:
    """Without a voice of its own a session speaks with one of the language that it heard last."""
    voices = {"fr_FR-siwis-medium": "Siwis", "en_US-amy-low": "Amy", "de_DE-eva-low": "Eva"}
    bridges.mode = speaking("Oui.", voices=voices)
    server = make_server()
    async with open_push_to_talk(server.url) as socket:
        await configure(socket, output_modalities=["audio"])
        for language in ("fr", "en", "de", "it"):
            await configure(socket, audio={"input": {"transcription": {"language": language}}})
            await say(socket)
            await socket.send("response.create")
            await socket.done()
        await configure(socket, audio={"output": {"voice": "fr_FR-siwis-medium"}})
        await say(socket)
        await socket.send("response.create")
        await socket.done()
        assert [asked.get("voice") for asked in spoken(bridges)] == [
            "fr_FR-siwis-medium",
            "en_US-amy-low",
            "de_DE-eva-low",
            None,
            "fr_FR-siwis-medium",
        ]
        assert "error" not in types_of(socket.seen)


@pytest.mark.parametrize(("speed", "asked"), [(0.5, 0.5), (1.5, 1.5), (0.25, 0.5), (3, 2)])
async def test_speed(server: Server, bridges: FakeBridges, speed: float, asked: float) -> None:
    """A voice speaks as fast as it is told to, also where the bridges' own range ends."""
    bridges.mode = speaking("Bonjour tout le monde, il fait beau.", speech_s_per_char=0.02)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await configure(socket, audio={"output": {"speed": speed}})
        await ask_aloud(socket)
        await socket.done()
        assert len(socket.tally.sound) / 2 / RATE_HZ == pytest.approx(36 * 0.02 / speed, rel=0.05)
    assert [request["speed"] for request in spoken(bridges)] == [asked]


@pytest.mark.behaviour("response.overrides")
async def test_overrides(server: Server, bridges: FakeBridges) -> None:
    """The modality, the voice and the rate of one response may differ from the session's."""
    bridges.mode = speaking("Oui.", speech_s_per_char=0.1)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await socket.receive()
        created = await configure(socket)
        output = {"voice": "fr_FR-tom-medium", "format": {"type": "audio/pcm", "rate": 8_000}, "speed": 2}
        await ask_aloud(socket, audio={"output": output})
        response = await socket.done()
        assert response["audio"]["output"] == {"format": output["format"], "voice": "fr_FR-tom-medium"}
        assert len(socket.tally.sound) == pytest.approx(2 * 8_000 * 0.2, abs=2)
        await socket.ask("write")
        response = await socket.done()
        assert (response["output_modalities"], socket.tally.sound) == (["text"], b"")
        assert "audio" not in response
        assert (await configure(socket))["audio"] == created["audio"]
        await configure(socket, output_modalities=["audio"])
        await socket.ask("write", output_modalities=["text"])
        assert (await socket.done())["output_modalities"] == ["text"]
        await socket.ask("speak")
        assert (await socket.done())["output_modalities"] == ["audio"]
    assert [(asked["voice"], asked.get("speed")) for asked in spoken(bridges)] == [
        ("fr_FR-tom-medium", 2),
        ("fr_FR-siwis-medium", None),
    ]


async def test_speech_while_a_response_runs(server: Server, bridges: FakeBridges) -> None:
    """What is said while a response runs is heard meanwhile and answered next."""
    bridges.mode = speaking(hold_after=5)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await socket.until(SOUND)
        words = await say(socket, 0.4)
        await socket.send("response.create", event_id="too early")
        assert (await socket.error())["event_id"] == "too early"
        bridges.gate.release()
        await socket.done()
        await socket.send("response.create")
        assert (await socket.done())["user_message_id"] == words["item_id"]
    assert bridges.last("/api/llm").path == GENERATE
    assert without_time(bridges.last("/api/llm").json["messages"][-1]["content"]) == "a clip of 0.40 seconds"


# Coming back


async def test_resume_at_each_event(server: Server, bridges: FakeBridges) -> None:
    """Whichever event of a spoken response was the last that arrived, the words and the sound behind it follow."""
    bridges.mode = speaking(speech_s_per_char=0.06)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        asked = await ask_aloud(socket)
        await socket.done()
        whole = socket.tally.sound
        first = next(event["seq"] for event in socket.seen if event["type"] == "response.created")
        events = socket.seen
        socket.abort()
    lost = events
    assert sum(event["type"] == SOUND for event in events) > 6
    for after in range(events[-1]["seq"] - 1, first - 1, -1):
        seen = [event for event in lost if event["seq"] <= after]
        async with open_socket(server.url, key=ALICE, resume=asked["id"], after=after, seen=seen) as socket:
            response = await socket.done()
            assert (response["status"], socket.tally.text) == ("completed", ANSWER)
            assert socket.tally.sound == whole, after
            steps = [kind for kind in types_of(socket.seen[len(seen) + 1 :]) if kind not in (WORDS, SOUND)]
            assert steps == [kind for kind in types_of(events[len(seen) :]) if kind not in (WORDS, SOUND)], after
            socket.abort()


@pytest.mark.behaviour("resume.voice")
async def test_resume_in_the_middle(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A client that is cut off time and again while the model and the voice go on misses no word and no sample."""
    answer = "Il était une fois 😀 un 𝔡ragon. Il n'avait pas de feu, mais du thé ! " * 4
    bridges.mode = speaking(answer, speech_s_per_char=0.006, delta_delay_s=0.005)
    dice = random.Random(11)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await socket.done()
        whole = socket.tally.sound
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        asked = await ask_aloud(socket)
        first = socket.seen[-1]["seq"]
        lost = socket
    cuts = 0
    while lost.seen[-1]["type"] != "response.done":
        cuts += 1
        after = dice.randrange(max(first, lost.seen[-1]["seq"] - 3), lost.seen[-1]["seq"] + 1)
        seen = [event for event in lost.seen if event["seq"] <= after]
        async with open_socket(server.url, key=ALICE, resume=asked["id"], after=after, seen=seen) as socket:
            for _ in range(dice.randrange(2, 7)):
                if (await socket.receive())["type"] == "response.done":
                    break
            socket.abort()
        lost = socket
    assert cuts > 5
    assert (lost.tally.text, lost.seen[-1]["response"]["status"]) == (answer, "completed")
    assert lost.tally.sound == whole
    assert (await history(alice, asked["conversation_id"]))[-1] == ("assistant", answer, "completed")


async def test_resumed_voice_can_be_stopped(server: Server, bridges: FakeBridges) -> None:
    """Whoever resumes a spoken response may cancel it, and what is asked next is spoken as before."""
    bridges.mode = speaking("Un deux trois. " * 8, speech_s_per_char=1.0)
    async with open_push_to_talk(server.url, key=ALICE) as lost:
        await configure(lost, output_modalities=["audio"], audio={"output": {"voice": "fr_FR-tom-medium"}})
        asked = await lost.ask("speak")
        await lost.until(SOUND)
        lost.abort()
    async with open_push_to_talk(
        server.url, key=ALICE, resume=asked["id"], after=lost.seen[-1]["seq"], seen=lost.seen
    ) as socket:
        assert (await socket.receive())["session"]["output_modalities"] == ["audio"]
        assert (await socket.until(SOUND, WORDS))["type"] == SOUND
        await socket.send("response.cancel")
        assert (await socket.done())["status"] == "cancelled"
        bridges.mode = speaking("Oui.")
        await socket.ask("speak")
        assert (await socket.done())["output_modalities"] == ["audio"]
    assert {asked["voice"] for asked in spoken(bridges)} == {"fr_FR-tom-medium"}


@pytest.mark.every_python
async def test_lost_while_speaking(server: Server, bridges: FakeBridges) -> None:
    """A lost socket ends the voice: what is being spoken is given up, and no more is asked for."""
    bridges.mode = speaking(faults={SYNTHESIZE: Fault("hang")})
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        await ask_aloud(socket)
        await bridges.seen(SYNTHESIZE)
        await asyncio.sleep(0.1)
        before = bridges.open_connections
        socket.abort()

    async def is_closed() -> bool:
        return bridges.open_connections < before

    await eventually(is_closed)
    assert bridges.requests_seen[SYNTHESIZE] == 1


# With others, and at the end


async def test_two_sockets(server: Server, bridges: FakeBridges) -> None:
    """Voices of sessions that speak at once do not mix, and neither do the recordings."""
    bridges.mode = BridgesMode(shape="ndjson", speech_s_per_char=0.02, delta_delay_s=0.002)

    async def talk(number: int) -> None:
        rate_hz = (8_000, 16_000, 24_000, 48_000)[number % 4]
        async with open_push_to_talk(server.url, key=(ALICE, BOB)[number % 2]) as socket:
            pcm = {"format": {"type": "audio/pcm", "rate": rate_hz}}
            await configure(
                socket, output_modalities=["audio"], audio={"input": {**pcm, "create_response": True}, "output": pcm}
            )
            for turn in range(2):
                duration_s = 0.2 + 0.05 * number + 0.01 * turn
                await commit(socket, duration_s, rate_hz)
                await socket.done()
                assert socket.tally.text == f"You said: a clip of {duration_s:.2f} seconds"
                said = spoken_form(socket.tally.text, "fr")
                assert len(socket.tally.sound) == pytest.approx(2 * rate_hz * 0.02 * len(said), abs=4)

    await asyncio.gather(*(talk(number) for number in range(8)))


@pytest.mark.behaviour("socket.stalled")
async def test_stalled_listener(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A client that does not read its sound holds up nobody, and gets all of it when it reads again."""
    sentence = "Un deux trois quatre cinq."
    bridges.mode = speaking(sentence, speech_s_per_char=3.0)
    async with open_push_to_talk(server.url, key=ALICE) as stalled:
        asked = await ask_aloud(stalled)
        stalled.connection.transport.pause_reading()
        await ended(alice, asked["id"])
        await bridges.seen(SYNTHESIZE)
        bridges.mode = speaking("Oui.")
        async with open_push_to_talk(server.url, key=BOB) as socket:
            for _ in range(3):
                started = time.monotonic()
                await say(socket)
                await socket.send("response.create", response={"output_modalities": ["audio"]})
                await socket.until(SOUND)
                await socket.done()
                assert time.monotonic() - started < 2
        stalled.connection.transport.resume_reading()
        assert (await stalled.done())["status"] == "completed"
        assert len(stalled.tally.sound) == pytest.approx(2 * RATE_HZ * 3 * len(sentence), abs=2)


@pytest.mark.every_python
async def test_stop_while_speaking(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A server that stops ends its voices at once: the words come whole, then 1001, and what is heard is stored."""
    server = make_server(DRAIN_TIMEOUT_S="10")
    answer = "Un deux trois. " * 8
    bridges.mode = speaking(answer, speech_s_per_char=1.0)
    async with open_push_to_talk(server.url) as speaker, open_push_to_talk(server.url) as listener:
        asked = await ask_aloud(speaker)
        await speaker.until(SOUND)
        async with client_of(server) as client:
            await ended(client, asked["id"])
        bridges.mode = BridgesMode(shape="ndjson", faults={TRANSCRIBE: Fault(delay_s=0.5)})
        await commit(listener)
        await bridges.seen(TRANSCRIBE)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await speaker.closed() == 1001
        assert speaker.seen[-1]["type"] == "response.done"
        assert speaker.tally.text == answer
        response = speaker.seen[-1]["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("incomplete", "server_stopped")
        assert await listener.closed() == 1001
    assert await asyncio.to_thread(server.wait, 5) == 0
    assert time.monotonic() - started < 5
    server.start()
    async with client_of(server) as client:
        assert (await state_of(client, asked["id"]))["content"] == answer
        newest = await newest_conversation(client)
        assert await history(client, newest["id"]) == [("user", "a clip of 0.50 seconds", "completed")]


async def test_nothing_is_left(make_server: MakeServer, bridges: FakeBridges) -> None:
    """After many spoken turns, some of them cancelled, interrupted or lost, everything is as it was before."""
    # There is room for 48 MiB of recordings at a time.
    server = make_server(WS_RESUME_GRACE_S="0.2", AUDIO_BUFFER_LIMIT_BYTES=str(48 << 20))
    dice = random.Random(5)

    async def talk() -> None:
        async with open_push_to_talk(server.url) as socket:
            await configure(socket, output_modalities=["audio"], audio={"input": {"create_response": True}})
            for _ in range(3):
                await commit(socket)
                match dice.choice(("whole", "cancel", "lose", "lose early")):
                    case "whole":
                        await socket.done()
                    case "cancel":
                        await socket.until(SOUND)
                        await socket.send("response.cancel")
                        await socket.done()
                        await socket.send_raw(tone(0.1))
                        await socket.send("input_audio_buffer.clear")
                    case "lose":
                        await socket.until(SOUND)
                        socket.abort()
                        return
                    case _:
                        await socket.send_raw(tone(0.1))
                        socket.abort()
                        return
            assert "error" not in types_of(socket.seen)

    async with client_of(server) as client:

        async def rest() -> tuple[float, int]:
            async def is_quiet() -> bool:
                counts = [await gauge(client, name) for name in ("websockets", "turns_running")]
                return counts == [0, 0]

            await eventually(is_quiet)
            # Connections to the neighbour are kept alive, as many as were needed at a time.
            bridges.drop_connections()
            await asyncio.sleep(0.5)
            return await gauge(client, "tasks"), open_files(server)

        async def talk_much(rounds: int) -> None:
            for number in range(rounds):
                bridges.mode = speaking(speech_s_per_char=0.002 if number % 2 else 0.05)
                await asyncio.gather(*(talk() for _ in range(6)))

        await talk_much(4)
        tasks, files = await rest()
        resident = resident_bytes(server)
        await talk_much(8)
        tasks_after, files_after = await rest()
        assert tasks_after <= tasks
        assert files_after <= files + 2
        assert resident_bytes(server) - resident < 16 << 20
        assert await gauge(client, "codec_processes") <= 4
