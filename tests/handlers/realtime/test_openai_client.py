"""OpenAI's own realtime client, and a standard EventSource, against the core."""

from __future__ import annotations

import array
import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
import openai
import pytest
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import (
    ConversationItemAdded,
    ConversationItemDone,
    ConversationItemInputAudioTranscriptionCompletedEvent,
    ConversationItemInputAudioTranscriptionFailedEvent,
    InputAudioBufferClearedEvent,
    InputAudioBufferCommittedEvent,
    RealtimeErrorEvent,
    RealtimeServerEvent,
    ResponseAudioDeltaEvent,
    ResponseAudioDoneEvent,
    ResponseAudioTranscriptDeltaEvent,
    ResponseAudioTranscriptDoneEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseDoneEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    SessionCreatedEvent,
    SessionUpdatedEvent,
)

from tests.fakes.content import tone
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.event_source import EventSource, Message
from tests.handlers.events import DELTA
from tests.system.server import Server

BASES = ("/v1", "/ws")
"""The client puts /realtime behind what it is given."""

RECORDING = array.array("h", (round(32_767 * value) for value in array.array("f", tone(1.0, 24_000)))).tobytes()
"""A second of sound as 16-bit samples."""

EventT = TypeVar("EventT")


@asynccontextmanager
async def connected(server: Server, base: str, key: str = ALICE) -> AsyncIterator[AsyncRealtimeConnection]:
    """Connect as the documentation of OpenAI's client says."""
    address = f"ws://127.0.0.1:{server.port}{base}"
    options: Any = {"proxy": None}
    async with (
        openai.AsyncOpenAI(api_key=key, base_url=f"{server.url}/v1", websocket_base_url=address) as client,
        client.realtime.connect(model="jarvis", websocket_connection_options=options) as connection,
    ):
        yield connection


async def say(connection: AsyncRealtimeConnection, text: str) -> None:
    """Add a user's message."""
    content: Any = [{"type": "input_text", "text": text}]
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})


async def events_until(connection: AsyncRealtimeConnection, kind: type) -> list[RealtimeServerEvent]:
    """Read events up to the first of this kind, and hold each against the client's model of it."""
    events = []
    async for event in connection:
        # The client itself takes whatever comes; a validation finds what is missing or of another type.
        type(event).model_validate(event.to_dict())
        events.append(event)
        if isinstance(event, kind):
            return events
    raise AssertionError(f"the connection ended before {kind.__name__}: {events}")


def one(events: list[RealtimeServerEvent], kind: type[EventT]) -> EventT:
    """Return the only event of this kind."""
    [event] = [event for event in events if isinstance(event, kind)]
    return event


@pytest.mark.parametrize("base", BASES)
async def test_text_turn(server: Server, bridges: FakeBridges, base: str) -> None:
    """OpenAI's client configures a session, asks, and gets its answer in typed events."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("Il est ", "midi", ".\n"), hold_after=1)
    async with connected(server, base) as connection:
        [created] = await events_until(connection, SessionCreatedEvent)
        assert isinstance(created, SessionCreatedEvent)
        await connection.session.update(
            session={"type": "realtime", "output_modalities": ["text"], "instructions": "Sois bref."}
        )
        await events_until(connection, SessionUpdatedEvent)
        await say(connection, "Quelle heure est-il ?")
        item = (await events_until(connection, ConversationItemDone))[-1]
        assert isinstance(item, ConversationItemDone)
        await connection.response.create()
        first = (await events_until(connection, ResponseTextDeltaEvent))[-1]
        assert isinstance(first, ResponseTextDeltaEvent)
        assert first.delta == "Il est "
        bridges.gate.release()
        events = await events_until(connection, ResponseDoneEvent)
    assert first.delta + "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)) == (
        "Il est midi.\n"
    )
    assert [event.text for event in events if isinstance(event, ResponseTextDoneEvent)] == ["Il est midi.\n"]
    done = events[-1]
    assert isinstance(done, ResponseDoneEvent)
    assert done.response.status == "completed"
    assert done.response.usage is not None
    assert done.response.usage.output_tokens == 3
    assert bridges.last("/api/llm").json["system_prompt"] == "Sois bref."


@pytest.mark.every_python
@pytest.mark.parametrize("base", BASES)
async def test_cancel(server: Server, bridges: FakeBridges, base: str) -> None:
    """OpenAI's client cancels a response, and asks again on the same connection."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("half ", "a ", "word"), hold_after=1)
    async with connected(server, base) as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await say(connection, "speak")
        await connection.response.create()
        created = (await events_until(connection, ResponseCreatedEvent))[-1]
        assert isinstance(created, ResponseCreatedEvent)
        await events_until(connection, ResponseTextDeltaEvent)
        await connection.response.cancel(response_id=created.response.id or "")
        done = (await events_until(connection, ResponseDoneEvent))[-1]
        assert isinstance(done, ResponseDoneEvent)
        assert done.response.status == "cancelled"
        assert done.response.status_details is not None
        assert done.response.status_details.reason == "client_cancelled"
        await bridges.stream_closed()
        bridges.gate.release()
        await say(connection, "again")
        await connection.response.create(response={"instructions": "Vite."})
        done = (await events_until(connection, ResponseDoneEvent))[-1]
        assert isinstance(done, ResponseDoneEvent)
        assert done.response.status == "completed"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.behaviour("session.defaults")
async def test_spoken_turn(server: Server, bridges: FakeBridges, base: str) -> None:
    """OpenAI's client sends its recording as its documentation says, and hears the answer, all in typed events."""
    bridges.mode = BridgesMode(
        shape="ndjson", transcript="Quelle heure est-il ?", answer="Il est midi. À table !", speech_s_per_char=0.02
    )
    pcm: Any = {"type": "audio/pcm", "rate": 24_000}
    async with connected(server, base) as connection:
        [created] = await events_until(connection, SessionCreatedEvent)
        assert isinstance(created, SessionCreatedEvent)
        await connection.session.update(
            session={
                "type": "realtime",
                "output_modalities": ["audio"],
                "audio": {
                    "input": {
                        "format": pcm,
                        "transcription": {"model": "gpt-4o-transcribe", "language": "fr"},
                        "noise_reduction": {"type": "near_field"},
                        "turn_detection": None,
                    },
                    "output": {"format": pcm, "voice": "marin", "speed": 1.0},
                },
            }
        )
        await events_until(connection, SessionUpdatedEvent)
        sound = RECORDING
        for start in range(0, len(sound), 9_600):
            await connection.input_audio_buffer.append(audio=base64.b64encode(sound[start : start + 9_600]).decode())
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        events = await events_until(connection, ResponseDoneEvent)
        recording, answer = (event for event in events if isinstance(event, ConversationItemAdded))
        assert one(events, InputAudioBufferCommittedEvent).item_id == recording.item.id == answer.previous_item_id
        assert one(events, ResponseCreatedEvent).response.id == answer.item.id
        words = one(events, ConversationItemInputAudioTranscriptionCompletedEvent)
        assert words.transcript == "Quelle heure est-il ?"
        assert words.usage.to_dict() == {"type": "duration", "seconds": 1.0}
        assert one(events, ResponseOutputItemAddedEvent).item.id == one(events, ResponseCreatedEvent).response.id
        assert one(events, ResponseContentPartAddedEvent).part.type == "audio"
        transcript = [event.delta for event in events if isinstance(event, ResponseAudioTranscriptDeltaEvent)]
        assert transcript == ["Il est midi. ", "À table !"]
        assert one(events, ResponseAudioTranscriptDoneEvent).transcript == "Il est midi. À table !"
        assert one(events, ResponseContentPartDoneEvent).part.transcript == "Il est midi. À table !"
        one(events, ResponseAudioDoneEvent)
        assert one(events, ResponseOutputItemDoneEvent).item.to_dict()["status"] == "completed"
        heard = b"".join(
            base64.b64decode(event.delta) for event in events if isinstance(event, ResponseAudioDeltaEvent)
        )
        assert len(heard) == pytest.approx(2 * 24_000 * 0.02 * len("Il est midi.À table !"), abs=4)
        response = one(events, ResponseDoneEvent).response
        assert (response.status, response.output_modalities) == ("completed", ["audio"])
        assert not any(isinstance(event, RealtimeErrorEvent) for event in events)


@pytest.mark.every_python
async def test_interrupted(server: Server, bridges: FakeBridges) -> None:
    """OpenAI's client interrupts the voice and clears its recording, and is told when it cannot be understood."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Un deux trois. " * 8, speech_s_per_char=1.0)
    async with connected(server, "/v1") as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["audio"]})
        await say(connection, "speak")
        await connection.response.create()
        await events_until(connection, ResponseAudioDeltaEvent)
        await connection.input_audio_buffer.append(audio=base64.b64encode(RECORDING).decode())
        await connection.response.cancel()
        done = one(await events_until(connection, ResponseDoneEvent), ResponseDoneEvent)
        assert done.response.status == "cancelled"
        await connection.input_audio_buffer.clear()
        await events_until(connection, InputAudioBufferClearedEvent)
        bridges.mode = BridgesMode(shape="ndjson", faults={"/api/stt/transcribe": Fault(status=503)})
        await connection.input_audio_buffer.append(audio=base64.b64encode(RECORDING).decode())
        await connection.input_audio_buffer.commit()
        failed = (await events_until(connection, ConversationItemInputAudioTranscriptionFailedEvent))[-1]
        assert isinstance(failed, ConversationItemInputAudioTranscriptionFailedEvent)
        assert failed.error.code == "unavailable"


@pytest.mark.every_python
@pytest.mark.behaviour("error.codes")
async def test_mistake(server: Server) -> None:
    """OpenAI's client is told of a mistake as it is by OpenAI, with its event's id, and its connection stays open."""
    async with connected(server, "/v1") as connection:
        await connection.response.cancel(event_id="mine")
        error = (await events_until(connection, RealtimeErrorEvent))[-1]
        assert isinstance(error, RealtimeErrorEvent)
        assert (error.error.type, error.error.event_id) == ("invalid_request_error", "mine")
        await say(connection, "still there?")
        await connection.response.create()
        await events_until(connection, ResponseDoneEvent)


# Server-sent events

AWKWARD = ("data: x\n\n", "\r\n\r\nevent: ", "id: 5\r", "\u2028\u2029\x85", ": 😀", "\ufeff\\n", "🏳️‍🌈", '"}\n\n')
"""Deltas that would break a stream which put them in without JSON's escapes."""


async def read(response: aiohttp.ClientResponse, source: EventSource, *, dice: random.Random) -> list[Message]:
    """Read a stream in pieces of random sizes."""
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    messages = []
    body = await response.read()
    while body:
        size = dice.randrange(1, 40)
        messages += source.feed(body[:size])
        body = body[size:]
    return messages


def deltas_of(messages: list[Message]) -> str:
    """Return what the deltas add up to."""
    return "".join(msgspec.json.decode(message.data)["delta"] for message in messages if message.type == DELTA)


async def test_event_source(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An EventSource reads every event whole, whatever the text has in it and however the network cuts it."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=AWKWARD)
    dice = random.Random(3)
    async with alice.post("/api/chat", json={"content": "speak", "stream": True}) as response:
        messages = await read(response, EventSource(), dice=dice)
    assert [message.type for message in messages if message.type != DELTA] == [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    assert deltas_of(messages) == "".join(AWKWARD)
    for message in messages:
        event = msgspec.json.decode(message.data)
        assert (event["type"], str(event["seq"])) == (message.type, message.last_event_id)
    ids = [int(message.last_event_id) for message in messages]
    assert ids == sorted(set(ids))


async def test_event_source_comes_back(bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """An EventSource that comes back with its Last-Event-ID gets what it has missed, wherever it was cut off."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=AWKWARD)
    dice = random.Random(4)
    async with alice.post("/api/chat", json={"content": "speak", "stream": True}) as response:
        whole = await read(response, EventSource(), dice=dice)
    path = f"/api/chat/response/{msgspec.json.decode(whole[0].data)['response']['id']}/events"
    for number in range(len(whole) - 1):
        source = EventSource()
        seen = []
        for message in whole[: number + 1]:
            record = f"id: {message.last_event_id}\nevent: {message.type}\ndata: {message.data}\n\n"
            seen += source.feed(record.encode())
        async with alice.get(path, headers={"Last-Event-ID": source.last_event_id}) as response:
            rest = await read(response, source, dice=dice)
        assert deltas_of(seen + rest) == "".join(AWKWARD)
        assert [message for message in seen + rest if message.type != DELTA] == [
            message for message in whole if message.type != DELTA
        ]
    async with alice.get(path, headers={"Last-Event-ID": whole[-1].last_event_id}) as response:
        assert response.status == 204, "nothing is missing, and none is to come"
