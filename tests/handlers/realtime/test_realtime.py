"""The WebSocket, over real sockets; ``realtime_client.py`` holds every event against the invariants on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket as sockets
import time
from typing import Any

import aiohttp
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.fakes.content import without_time
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, BOB, MakeServer, client_of
from tests.handlers.event_source import EventSource
from tests.handlers.events import DELTA
from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.handlers.shown import ended, eventually, gauge, history, newest_conversation, resident_bytes, state_of
from tests.system.server import Server

ASTRAL = "Il était une fois 😀 un 𝔡ragon 🏳️‍🌈 qui n'avait pas de feu, 火, ni d'eau 💧💧, mais du thé. "
UNKNOWN_ID = "01a20000-0000-7000-8000-000000000000"


def streaming(*deltas: str, **fields: Any) -> BridgesMode:
    """Make the bridges stream these deltas."""
    return BridgesMode(shape="ndjson", deltas=deltas, **fields)


# A turn


@pytest.mark.behaviour("item.assistant", "response.usage", "response.events")
async def test_turn(server: Server, bridges: FakeBridges) -> None:
    """A text turn comes as the Realtime API's events in their order, numbered from 1."""
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("count")
        await socket.until_text("one ")
        bridges.gate.release()
        response = await socket.done()
    assert [(event["seq"], event["type"]) for event in socket.seen] == [
        (1, "session.created"),
        (2, "conversation.item.added"),
        (3, "conversation.item.done"),
        (4, "response.created"),
        (5, "response.output_item.added"),
        (6, "conversation.item.added"),
        (7, "response.content_part.added"),
        (8, DELTA),
        (9, DELTA),
        (10, "response.output_text.done"),
        (11, "response.content_part.done"),
        (12, "response.output_item.done"),
        (13, "conversation.item.done"),
        (14, "response.done"),
    ]
    assert (response["status"], response["status_details"]) == ("completed", None)
    assert response["output"][0]["content"] == [{"type": "output_text", "text": "one two"}]
    usage = response["usage"]
    assert (usage["output_tokens"], usage["total_tokens"]) == (2, usage["input_tokens"] + 2)
    assert usage["input_tokens"] > 0


async def test_stored_is_shown(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A turn over the socket is in the history with the ids that the socket told, in a conversation with its title."""
    async with open_socket(server.url, key=ALICE) as socket:
        item = await socket.add("Quelle heure est-il ?")
        await socket.send("response.create")
        response = await socket.done()
    assert response["user_message_id"] == item["id"]
    assert response["output"][0]["id"] == response["id"]
    async with alice.get(f"/api/chat/history/{response['conversation_id']}") as answer:
        messages = (await answer.json())["messages"]
    assert [(message["id"], message["role"], message["content"]) for message in messages] == [
        (item["id"], "user", "Quelle heure est-il ?"),
        (response["id"], "assistant", "You said: Quelle heure est-il ?"),
    ]
    assert messages[1]["tokens"] == response["usage"]["output_tokens"]
    assert messages[1]["model"] == response["model"] == bridges.mode.models[0]
    newest = await newest_conversation(alice)
    assert (newest["id"], newest["title"]) == (response["conversation_id"], "Quelle heure est-il ?")
    assert newest["message_count"] == 2


async def test_conversation_goes_on(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """The next turn, on this socket or on another with ?conversation_id=, knows what was said before."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("my name is Zoé")
        first = await socket.done()
        await socket.ask("I live in Nantes")
        second = await socket.done()
        items = [event["item"]["id"] for event in socket.seen if event["type"] == "conversation.item.done"]
        previous = [event["previous_item_id"] for event in socket.seen if event["type"] == "conversation.item.done"]
    assert items == [first["user_message_id"], first["id"], second["user_message_id"], second["id"]]
    assert previous == [None, *items[:-1]]
    async with open_socket(server.url, key=ALICE, conversation_id=first["conversation_id"]) as socket:
        assert (await socket.receive())["session"]["conversation_id"] == first["conversation_id"]
        await socket.ask("who am I?")
        third = await socket.done()
    assert third["conversation_id"] == second["conversation_id"] == first["conversation_id"]
    assert [without_time(message["content"]) for message in bridges.last("/api/llm").json["messages"]] == [
        "my name is Zoé",
        "You said: my name is Zoé",
        "I live in Nantes",
        "You said: I live in Nantes",
        "who am I?",
    ]
    assert len(await history(alice, first["conversation_id"])) == 6


async def test_message_while_a_response_runs(server: Server, bridges: FakeBridges) -> None:
    """A message that is added while a response runs is answered next, by a model that is told of that response."""
    bridges.mode = streaming("first ", "answer", hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("one")
        await socket.until_text("first ")
        await socket.add("two")
        bridges.gate.release()
        await socket.done()
        await socket.send("response.create")
        await socket.done()
    asked = [without_time(message["content"]) for message in bridges.last("/api/llm").json["messages"]]
    assert asked[-1] == "two"
    assert sorted(asked[:-1]) == ["first answer", "one"]


async def test_items_without_a_response(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Items that nobody asked to be answered are stored, shown, and told to the model with the next question."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.add("The user is a pilot.", role="system")
        await socket.add("Bonjour !", role="assistant", content=[{"type": "output_text", "text": "Bonjour !"}])
        await socket.add(
            "a", content=[{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], id="my"
        )
        conversation_id = socket.seen[-1]["conversation_id"]
        assert socket.seen[-1]["item"]["id"] == "my"
        assert await history(alice, conversation_id) == [
            ("system", "The user is a pilot.", "completed"),
            ("assistant", "Bonjour !", "completed"),
            ("user", "a\nb", "completed"),
        ]
        assert bridges.requests_seen["/api/llm/generate"] == 0
        await socket.send("response.create")
        await socket.done()
    asked = bridges.last("/api/llm").json
    assert asked["system_prompt"].endswith("\n\nThe user is a pilot.")
    assert "Assistant: Bonjour !\n" in asked["prompt"]
    # A template takes no assistant that begins.
    assert [without_time(message["content"]) for message in asked["messages"]] == ["…", "Bonjour !", "a\nb"]


@pytest.mark.behaviour("barge_in.reason")
async def test_cancelled(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A cancelled response ends as cancelled, and what it had said is in the history."""
    bridges.mode = streaming("half ", "a ", "word", hold_after=2)
    async with open_socket(server.url, key=ALICE) as socket:
        asked = await socket.ask("speak")
        await socket.until_text("half a ")
        await socket.send("response.cancel", response_id=asked["id"])
        response = await socket.done()
        assert (response["status"], response["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert response["output"][0]["status"] == "incomplete"
        assert await history(alice, asked["conversation_id"]) == [
            ("user", "speak", "completed"),
            ("assistant", "half a ", "cancelled"),
        ]
        bridges.mode = BridgesMode(shape="ndjson")
        await socket.ask("again")
        assert (await socket.done())["status"] == "completed"


async def test_cancel_right_behind_create(server: Server, bridges: FakeBridges) -> None:
    """A cancel that arrives together with the create ends the response, and the conversation is free again."""
    bridges.mode = streaming("a", "b", hold_after=0)
    async with open_socket(server.url, key=ALICE) as socket:
        for _ in range(20):
            await socket.add("go")
            socket.connection.transport.pause_reading()
            await socket.send("response.create")
            await socket.send("response.cancel")
            socket.connection.transport.resume_reading()
            assert (await socket.done())["status"] == "cancelled"


async def test_next_create_right_behind_done(server: Server) -> None:
    """A client may ask for the next response as soon as it has seen the last one's response.done."""
    async with open_socket(server.url, key=ALICE) as socket:
        for number in range(100):
            await socket.ask(f"turn {number}")
            assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("response.again")
async def test_failed_turn_is_answered_again(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """A turn that failed is told and stored as failed, and the next response.create answers the same message."""
    bridges.mode = BridgesMode(error_200=True)
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("please")
        failed = await socket.done()
        assert (failed["status"], failed["output"]) == ("failed", [])
        assert failed["status_details"]["error"]["code"] == "bad_gateway"
        assert await history(alice, failed["conversation_id"]) == [("user", "please", "completed")]
        state = await state_of(alice, failed["id"])
        assert (state["status"], state["reason"], state["content"]) == ("failed", "bad_gateway", "")
        bridges.mode = BridgesMode(shape="ndjson")
        await socket.send("response.create")
        answered = await socket.done()
    assert (answered["status"], answered["user_message_id"]) == ("completed", failed["user_message_id"])
    assert await history(alice, failed["conversation_id"]) == [
        ("user", "please", "completed"),
        ("assistant", "You said: please", "completed"),
    ]


async def test_response_without_a_word_is_answered_again(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """A message whose response was cancelled before its first word can be answered by the next response.create."""
    bridges.mode = streaming("late", hold_after=0)
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("please")
        await bridges.gate.reached()
        await socket.send("response.cancel")
        assert (await socket.done())["output"] == []
        await bridges.stream_closed()
        bridges.gate.release()
        await socket.send("response.create")
        answered = await socket.done()
    assert await history(alice, answered["conversation_id"]) == [
        ("user", "please", "completed"),
        ("assistant", "late", "completed"),
    ]


# Settings of the session and of one response


@pytest.mark.behaviour("session.shown")
async def test_session_update(server: Server, bridges: FakeBridges) -> None:
    """What session.update sets is confirmed, and is what the model is asked with from then on."""
    async with open_socket(server.url, key=ALICE) as socket:
        created = (await socket.receive())["session"]
        await socket.ask("before")
        await socket.done()
        asked = bridges.last("/api/llm").json
        assert asked["system_prompt"].startswith(created["instructions"])
        assert asked["temperature"] == created["temperature"]
        assert asked["max_tokens"] == created["max_output_tokens"]
        wanted = {"instructions": "Parle comme un pirate.", "temperature": 0.25, "max_output_tokens": 77}
        await socket.send("session.update", session={**wanted, "type": "realtime", "tools": []}, event_id="mine")
        updated = (await socket.until("session.updated"))["session"]
        assert updated == {**created, **wanted, "conversation_id": updated["conversation_id"]}
        for _ in range(2):
            await socket.ask("after")
            await socket.done()
            asked = bridges.last("/api/llm").json
            assert (asked["system_prompt"], asked["temperature"]) == ("Parle comme un pirate.", 0.25)
            assert asked["max_tokens"] == 77
        await socket.send("session.update", session={"max_output_tokens": "inf", "instructions": ""})
        await socket.until("session.updated")
        await socket.ask("at last")
        await socket.done()
        asked = bridges.last("/api/llm").json
        assert "system_prompt" not in asked
        assert (asked["temperature"], asked["max_tokens"]) == (0.25, created["max_output_tokens"])


@pytest.mark.behaviour("response.overrides")
async def test_response_overrides(server: Server, bridges: FakeBridges) -> None:
    """What response.create sets holds for that response only."""
    async with open_socket(server.url, key=ALICE) as socket:
        created = (await socket.receive())["session"]
        await socket.ask("once", instructions="Sois bref.", temperature=1.5, max_output_tokens=5)
        await socket.done()
        asked = bridges.last("/api/llm").json
        assert (asked["system_prompt"], asked["temperature"], asked["max_tokens"]) == ("Sois bref.", 1.5, 5)
        await socket.ask("again")
        await socket.done()
        asked = bridges.last("/api/llm").json
        assert asked["system_prompt"].startswith(created["instructions"])
        assert asked["temperature"] == created["temperature"]
        assert asked["max_tokens"] == created["max_output_tokens"]


# A client's mistakes


def item(**fields: object) -> Event:
    """Make a conversation.item.create with a sound item, but for *fields*."""
    content = [{"type": "input_text", "text": "x"}]
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": content, **fields},
    }


def without(event: Event, name: str) -> Event:
    """Leave a field of the item out."""
    return {**event, "item": {key: value for key, value in event["item"].items() if key != name}}


def session(**fields: object) -> Event:
    """Make a session.update."""
    return {"type": "session.update", "session": fields}


def create(**fields: object) -> Event:
    """Make a response.create with overrides."""
    return {"type": "response.create", "response": fields}


ITEM = "$.item"
PART = "$.item.content[0]"
CODES = {
    "commit of nothing": "input_audio_buffer_commit_empty",
    "nothing to cancel": "response_cancel_not_active",
    "unknown response to cancel": "response_cancel_not_active",
}
"""Of the Realtime API; every other mistake is an invalid_request."""
MISTAKES: dict[str, tuple[Event, str]] = {
    "unknown type": ({"type": "response.destroy"}, "$.type"),
    "no type": ({}, "$"),
    "type of another type": ({"type": 5}, "$.type"),
    "audio that is not base64": ({"type": "input_audio_buffer.append", "audio": "AAA"}, "$.audio"),
    "audio of another type": ({"type": "input_audio_buffer.append", "audio": [0]}, "$.audio"),
    "append without audio": ({"type": "input_audio_buffer.append"}, "$"),
    "commit of nothing": ({"type": "input_audio_buffer.commit"}, "$.type"),
    "no session": ({"type": "session.update"}, "$"),
    "session of another type": ({"type": "session.update", "session": []}, "$.session"),
    "temperature out of range": (session(temperature=2.1), "$.session.temperature"),
    "temperature as text": (session(temperature="1"), "$.session.temperature"),
    "instructions too long": (session(instructions="x" * 32_001), "$.session.instructions"),
    "instructions with NUL": (session(instructions="a\0b"), "$.session.instructions"),
    "blank instructions": (session(instructions=" \n"), "$.session.instructions"),
    "no tokens": (session(max_output_tokens=0), "$.session.max_output_tokens"),
    "tokens in words": (session(max_output_tokens="many"), "$.session.max_output_tokens"),
    "no modality": (session(output_modalities=[]), "$.session.output_modalities"),
    "both modalities": (session(output_modalities=["text", "audio"]), "$.session.output_modalities"),
    "unknown modality": (session(output_modalities=["smell"]), "$.session.output_modalities[0]"),
    "audio of another shape": (session(audio=[]), "$.session.audio"),
    "detection of turns": (
        session(audio={"input": {"turn_detection": {"type": "telepathy"}}}),
        "$.session.audio.input.turn_detection.type",
    ),
    "endless silence": (
        session(audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 60_000}}}),
        "$.session.audio.input.turn_detection.silence_duration_ms",
    ),
    "Opus in": (session(audio={"input": {"format": {"type": "audio/opus"}}}), "$.session.audio.input.format.type"),
    "rate too low": (session(audio={"input": {"format": {"rate": 7_999}}}), "$.session.audio.input.format.rate"),
    "rate too high": (session(audio={"output": {"format": {"rate": 48_001}}}), "$.session.audio.output.format.rate"),
    "rate in parts": (session(audio={"output": {"format": {"rate": 8e3 + 0.5}}}), "$.session.audio.output.format.rate"),
    "voice without a name": (session(audio={"output": {"voice": ""}}), "$.session.audio.output.voice"),
    "voice without an id": (session(audio={"output": {"voice": {"name": "x"}}}), "$.session.audio.output.voice"),
    "speed too low": (session(audio={"output": {"speed": 0.09}}), "$.session.audio.output.speed"),
    "speed too high": (session(audio={"output": {"speed": 3.1}}), "$.session.audio.output.speed"),
    "language too long": (
        session(audio={"input": {"transcription": {"language": "x" * 11}}}),
        "$.session.audio.input.transcription.language",
    ),
    "no item": ({"type": "conversation.item.create"}, "$"),
    "item without role": (without(item(), "role"), ITEM),
    "item without content": (without(item(), "content"), ITEM),
    "item without type": (without(item(), "type"), ITEM),
    "unknown role": (item(role="robot"), "$.item.role"),
    "item of another type": (item(type="function_call"), "$.item.type"),
    "empty content": (item(content=[]), "$.item.content"),
    "too many parts": (item(content=[{"type": "input_text", "text": "x"}] * 101), "$.item.content"),
    "part without type": (item(content=[{"text": "x"}]), "$.item.content[0]"),
    "audio part": (item(content=[{"type": "input_audio", "audio": "AAAA"}]), f"{PART}.type"),
    "part without text": (item(content=[{"type": "input_text"}]), f"{PART}.text"),
    "empty text": (item(content=[{"type": "input_text", "text": ""}]), "$.item.content[0].text"),
    "blank text": (item(content=[{"type": "input_text", "text": " \t"}]), f"{PART}.text"),
    "text with NUL": (item(content=[{"type": "input_text", "text": "a\0"}]), f"{PART}.text"),
    "text of another type": (item(content=[{"type": "input_text", "text": 5}]), "$.item.content[0].text"),
    "text too long": (item(content=[{"type": "input_text", "text": "é" * 10_001}]), "$.item.content[0].text"),
    "parts too long": (item(content=[{"type": "input_text", "text": "x" * 6_000}] * 2), "$.item.content"),
    "id too long": (item(id="x" * 129), "$.item.id"),
    "override out of range": (create(temperature=-1), "$.response.temperature"),
    "override with NUL": (create(instructions="\0"), "$.response.instructions"),
    "override to both": (create(output_modalities=["audio", "text"]), "$.response.output_modalities"),
    "override of the rate": (create(audio={"output": {"format": {"rate": 1}}}), "$.response.audio.output.format.rate"),
    "override of the input": (create(input=[{"type": "message"}]), "$.response.input[0]"),
    "another conversation": (create(conversation="mine"), "$.response.conversation"),
    "an unknown conversation": (create(conversation=5), "$.response.conversation"),
    "response of another type": ({"type": "response.create", "response": []}, "$.response"),
    "cancel with an id of another type": ({"type": "response.cancel", "response_id": 1}, "$.response_id"),
    "nothing to cancel": ({"type": "response.cancel"}, "$.response_id"),
    "unknown response to cancel": ({"type": "response.cancel", "response_id": UNKNOWN_ID}, "$.response_id"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.behaviour("session.instructions.length", "error.codes")
async def test_mistake(server: Server, name: str) -> None:
    """A client's mistake is an error with its event_id and the field, and the socket stays open."""
    event, path = MISTAKES[name]
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(json.dumps({**event, "event_id": "evt-1"}))
        error = await socket.error()
        assert (error["event_id"], error["param"]) == ("evt-1", path), error
        assert (error["type"], error["code"]) == ("invalid_request_error", CODES.get(name, "invalid_request"))
        assert error["message"]
        await socket.send_raw(json.dumps(event))
        assert (await socket.error())["event_id"] is None
        await socket.ask("still there?")
        assert (await socket.done())["status"] == "completed"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "invalid_json"),
        ("hello", "invalid_json"),
        ('{"type":', "invalid_json"),
        ('{"type": "response.cancel"} {}', "invalid_json"),
        (r'{"type": "response.cancel", "event_id": "\ud800"}', "invalid_json"),
        (json.dumps(item(content=[{"type": "input_text", "text": "\ud83d"}])), "invalid_json"),
        ("[" * 200_000, "invalid_request"),
        ('{"a":' * 100_000, "invalid_json"),
        ('{"type": "response.create", "response": {"input": ' + "[" * 200_000, "invalid_json"),
        ('{"type": "response.create", "unknown": ' + "[" * 200_000, "invalid_json"),
        ("[]", "invalid_request"),
        ("null", "invalid_request"),
        ("5", "invalid_request"),
        ('{"type": "response.create", "event_id": 5}', "invalid_request"),
        (json.dumps({"type": "response.create", "event_id": "x" * 513}), "invalid_request"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_frame_that_is_no_event(server: Server, frame: str, code: str) -> None:
    """A frame that is no event (not JSON, too deep, lone surrogates) is an error, and the socket stays open."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(frame)
        error = await socket.error()
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        await socket.ask("still there?")
        assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("session.update.partial")
async def test_what_can_be_set_is_set(server: Server) -> None:
    """Of a session.update whose values are partly wrong the rest holds, and each wrong one is named."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send(
            "session.update",
            event_id="mixed",
            session={
                "type": "realtime",
                "instructions": "Be brief.",
                "temperature": 9,
                "output_modalities": ["audio"],
                "tools": [{"type": "function", "name": "f"}],
                "tracing": "auto",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 16_000},
                        "noise_reduction": {"type": "near_field"},
                        "transcription": {"model": "whisper-1", "language": "fr"},
                        "turn_detection": {"type": "server_vad", "threshold": 2, "silence_duration_ms": 700},
                    },
                    "output": {"speed": "fast", "voice": "marin"},
                },
            },
        )
        shown = (await socket.until("session.updated"))["session"]
        assert (shown["instructions"], shown["output_modalities"]) == ("Be brief.", ["audio"])
        assert shown["temperature"] != 9
        assert shown["audio"]["input"]["format"]["rate"] == 16_000
        assert shown["audio"]["input"]["transcription"] == {"language": "fr"}
        assert shown["audio"]["input"]["turn_detection"] == {
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 700,
            "create_response": True,
            "interrupt_response": True,
            "idle_timeout_ms": None,
        }
        assert (shown["audio"]["output"]["voice"], shown["audio"]["output"]["speed"]) == ("marin", 1.0)
        errors = [await socket.error() for _ in range(3)]
        assert {(error["param"], error["event_id"]) for error in errors} == {
            ("$.session.temperature", "mixed"),
            ("$.session.audio.input.turn_detection.threshold", "mixed"),
            ("$.session.audio.output.speed", "mixed"),
        }


@pytest.mark.behaviour("session.update.null")
async def test_null_is_not_said(server: Server) -> None:
    """Null leaves a setting as it is, at every depth, and so does an absent one."""
    async with open_socket(server.url, key=ALICE) as socket:
        audio = {"input": {"transcription": {"language": "fr"}}, "output": {"voice": "x", "speed": 1.5}}
        await socket.send("session.update", session={"instructions": "Be brief.", "temperature": 0.3, "audio": audio})
        before = (await socket.until("session.updated"))["session"]
        nulls: dict[str, object] = dict.fromkeys(
            ("instructions", "temperature", "max_output_tokens", "audio", "output_modalities")
        )
        deep = {"input": {"transcription": None, "format": None, "turn_detection": {"threshold": None}}, "output": None}
        part = {"input": {"transcription": {"model": "m", "language": None}}, "output": {"voice": None, "speed": None}}
        for session in (nulls, {"audio": deep}, {"audio": part}, {}):
            await socket.send("session.update", session=session)
            assert (await socket.until("session.updated"))["session"] == before
        await socket.add("hello")
        await socket.send("response.create", response={**nulls, "input": None, "conversation": None, "metadata": None})
        assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("item.ids")
async def test_an_id_is_used_once(server: Server) -> None:
    """A second item under an id that the client has brought already is an error, and nothing is stored."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(json.dumps(item(id="mine")))
        await socket.until("conversation.item.done")
        await socket.send_raw(json.dumps({**item(id="mine"), "event_id": "again"}))
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("item_create_duplicate_item_id", "again")


async def test_unknown_fields(server: Server) -> None:
    """Unknown fields of a client's event are ignored."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(json.dumps({**item(color="red"), "previous_item_id": None, "mood": {"a": [1]}}))
        await socket.until("conversation.item.done")
        await socket.send("response.create", response={"tools": [], "conversation": "auto"}, nonsense=1)
        assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("error.active")
async def test_two_creates(server: Server, bridges: FakeBridges) -> None:
    """A response.create while a response is active is an error, and that response goes on."""
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url, key=ALICE) as socket:
        asked = await socket.ask("count")
        await socket.add("and again")
        await socket.send("response.create", event_id="second")
        error = await socket.error()
        assert (error["event_id"], error["type"]) == ("second", "invalid_request_error")
        assert error["code"] == "conversation_already_has_active_response"
        bridges.gate.release()
        response = await socket.done()
        assert (response["id"], response["status"]) == (asked["id"], "completed")
        await socket.send("response.create")
        assert (await socket.done())["status"] == "completed"


APPEND = '{"type": "input_audio_buffer.append", "event_id": "long", "audio": "%s"}'


@pytest.mark.parametrize(
    "frame", ["x" * ((1 << 20) + 1), "é" * ((1 << 19) + 1), bytes((15 << 20) + 1)], ids=["text", "UTF-8", "samples"]
)
@pytest.mark.behaviour("frame.too_large")
async def test_too_large(server: Server, frame: str | bytes) -> None:
    """An event over 1 MiB (in UTF-8), or audio over 15 MiB, is an error that names the limit, and the socket stays open."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(frame)
        error = await socket.error()
        assert (error["code"], error["type"]) == ("too_large", "invalid_request_error")
        assert str(1 << 20 if isinstance(frame, str) else 15 << 20) in error["message"]
        await socket.ask("still there?")
        assert (await socket.done())["status"] == "completed"


@pytest.mark.behaviour("frame.too_large")
async def test_long_append(server: Server) -> None:
    """An append may be longer than other events: 9 MiB of samples in base64 are taken, and its event_id is told where not."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(APPEND % ("A" * (12 << 20)))
        await socket.send("input_audio_buffer.clear")
        await socket.until("input_audio_buffer.cleared")
        await socket.send_raw((APPEND % "").replace("append", "commit").replace('""', '"' + "A" * (1 << 20) + '"'))
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("too_large", "long")


async def test_largest(server: Server) -> None:
    """A text of exactly 1 MiB is read."""
    event = json.dumps({"type": "session.update", "session": {}, "padding": ""})
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.send_raw(event.replace('""', '"' + "x" * ((1 << 20) - len(event)) + '"'))
        await socket.until("session.updated")


async def test_text_that_is_not_utf8(server: Server) -> None:
    """A text frame that is not UTF-8 breaks the protocol and closes the socket; the server stays."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.receive()
        await socket.connection.send(b'{"type": "\xff\xfe"}', text=True)
        with contextlib.suppress(ConnectionClosed):
            await socket.closed()
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("still there?")
        await socket.done()


async def test_deleted_conversation(server: Server, alice: aiohttp.ClientSession) -> None:
    """A message to a conversation that was deleted meanwhile is an error, and the socket stays open."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("hello")
        conversation_id = (await socket.done())["conversation_id"]
        async with alice.delete(f"/api/chat/conversation/{conversation_id}") as answer:
            assert answer.status == 200
        await socket.send_raw(json.dumps({**item(), "event_id": "late"}))
        error = await socket.error()
        assert (error["code"], error["event_id"]) == ("not_found", "late")
        await socket.send("session.update", session={})
        await socket.until("session.updated")


# The handshake


async def refusal_of(server: Server, path: str = "/ws", **arguments: Any) -> InvalidStatus:
    """Connect in vain and return why."""
    with pytest.raises(InvalidStatus) as caught:
        async with open_socket(server.url, path, **arguments):
            pass
    return caught.value


@pytest.mark.parametrize("conversation_id", [UNKNOWN_ID, "x", "-" * 36, "a\0", "é"])
async def test_unknown_conversation(server: Server, conversation_id: str) -> None:
    """A handshake for an unknown conversation is answered with 404 and the usual error body."""
    refused = await refusal_of(server, key=ALICE, conversation_id=conversation_id)
    assert refused.response.status_code == 404
    body = msgspec.json.decode(refused.response.body or b"")
    assert body["code"] == "not_found"
    assert body["request_id"] == refused.response.headers["X-Request-ID"]


async def test_foreign_conversation(server: Server) -> None:
    """Another user's conversation is unknown, also to whoever would resume its response."""
    async with open_socket(server.url, key=ALICE) as socket:
        await socket.ask("secret")
        response = await socket.done()
        foreign = await refusal_of(server, key=BOB, conversation_id=response["conversation_id"])
        assert foreign.response.status_code == 404
        foreign = await refusal_of(server, key=BOB, resume=response["id"], after=1)
        assert foreign.response.status_code == 404
        assert b"conversation_id" not in (foreign.response.body or b"")
        await socket.ask("mine still")
        await socket.done()


async def test_unknown_path(server: Server) -> None:
    """A handshake at another path is answered with 404."""
    assert (await refusal_of(server, "/wss", key=ALICE)).response.status_code == 404


@pytest.mark.parametrize(
    "arguments",
    [
        {"key": ALICE},
        {"headers": {"authorization": f"bearer {ALICE}"}},
        {"token": ALICE},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{ALICE}"]},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{ALICE}", "openai-beta.realtime-v1"]},
    ],
    ids=["header", "lower case", "query", "subprotocol", "subprotocols"],
)
@pytest.mark.parametrize("path", ["/ws", "/v1/realtime"])
async def test_credentials(server: Server, alice: aiohttp.ClientSession, path: str, arguments: dict[str, Any]) -> None:
    """Credentials in the header, the query or the subprotocol let in as their user, at both addresses of the socket."""
    async with open_socket(server.url, path, **arguments) as socket:
        assert socket.connection.subprotocol == ("realtime" if "subprotocols" in arguments else None)
        await socket.ask("who am I?")
        response = await socket.done()
    assert len(await history(alice, response["conversation_id"])) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"key": "wrong"},
        {"headers": {"authorization": f"Basic {ALICE}"}},
        {"token": "wrong"},
        {"token": ""},
        {"subprotocols": ["realtime"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
        {"key": "wrong", "token": ALICE},
    ],
    ids=["none", "header", "scheme", "query", "empty", "no subprotocol", "subprotocol", "the header decides"],
)
async def test_bad_credentials(server: Server, arguments: dict[str, Any]) -> None:
    """No or bad credentials close the socket with 1008 after an error that says so, and nothing else is told."""
    async with open_socket(server.url, **arguments) as socket:
        assert await socket.closed() == 1008
        assert [(event["type"], event["error"]["code"]) for event in socket.seen] == [("error", "unauthenticated")]


async def test_refused_client_that_talks_on(server: Server) -> None:
    """Who sends events at once with bad credentials still sees why it is closed."""
    for _ in range(3):
        async with open_socket(server.url, key="wrong") as socket:
            for _ in range(20):
                await socket.send("response.create")
            assert await socket.closed() == 1008
        assert socket.seen[0]["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3001", "http://[::1", "x"])
async def test_foreign_origin(server: Server, origin: str) -> None:
    """A page of a foreign origin is refused with 403, whatever credentials it has."""
    assert (await refusal_of(server, key=ALICE, origin=origin)).response.status_code == 403


async def test_allowed_origins(server: Server) -> None:
    """Pages of CORS_ORIGINS (by default http://localhost:3000) and of the server's own host may connect."""
    for origin in ("http://localhost:3000", f"http://127.0.0.1:{server.port}"):
        async with open_socket(server.url, key=ALICE, origin=origin) as socket:
            await socket.receive()


async def test_configured_origins(make_server: MakeServer) -> None:
    """CORS_ORIGINS replaces the default, and the open server lets everybody in."""
    server = make_server(CORS_ORIGINS="https://a.example,https://b.example")
    for origin in ("https://a.example", "https://b.example", None):
        async with open_socket(server.url, origin=origin) as socket:
            await socket.receive()
    assert (await refusal_of(server, origin="http://localhost:3000")).response.status_code == 403


# Two sockets


async def test_two_sockets_in_one_conversation(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession
) -> None:
    """While one socket's response runs, another socket's in the same conversation is a conflict; then it is answered."""
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url, key=ALICE) as one:
        first = await one.ask("from one")
        async with open_socket(server.url, key=ALICE, conversation_id=first["conversation_id"]) as two:
            await two.add("from two")
            await two.send("response.create", event_id="too early")
            error = await two.error()
            assert (error["code"], error["event_id"]) == ("conflict", "too early")
            bridges.gate.release()
            assert (await one.done())["status"] == "completed"
            await two.send("response.create")
            second = await two.done()
    assert second["status"] == "completed"
    assert [content for _, content, _ in await history(alice, first["conversation_id"])] == [
        "from one",
        "from two",
        "one two",
        "one two",
    ]


async def test_many_sockets(server: Server, bridges: FakeBridges) -> None:
    """Each of many sockets gets its own answers only."""
    bridges.mode = BridgesMode(shape="ndjson", delta_delay_s=0.002)

    async def talk(number: int) -> None:
        async with open_socket(server.url, key=random.choice((ALICE, BOB))) as socket:
            for turn in range(3):
                words = f"socket {number} turn {turn} says hello"
                await socket.ask(words)
                await socket.done()
                assert socket.tally.text == f"You said: {words}"

    await asyncio.gather(*(talk(number) for number in range(25)))


# Coming back


async def resume(server: Server, lost: Socket, response_id: str, after: int | None = None) -> Any:
    """Go on where *lost* was, as a client does that has seen its events up to *after* (default: all)."""
    seen = [event for event in lost.seen if after is None or event["seq"] <= after]
    return open_socket(server.url, key=ALICE, resume=response_id, after=seen[-1]["seq"], seen=seen)


async def test_resume(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A client that was cut off in the middle of the deltas, time and again, misses nothing and gets nothing twice."""
    dice = random.Random(20)
    # Different each time: an answer that goes round in circles is stopped.
    text = "".join(f"{number}. {ASTRAL}" for number in range(20))
    deltas = []
    rest = text
    while rest:
        size = dice.randrange(1, 12)
        deltas.append(rest[:size])
        rest = rest[size:]
    bridges.mode = streaming(*deltas, delta_delay_s=0.001)
    async with open_socket(server.url, key=ALICE) as socket:
        asked = await socket.ask("tell me a story")
        await socket.until(DELTA)
        lost = socket
    cuts = 0
    while lost.seen[-1]["type"] != "response.done":
        cuts += 1
        after = dice.choice([lost.seen[-1]["seq"], dice.randrange(4, lost.seen[-1]["seq"] + 1)])
        async with await resume(server, lost, asked["id"], after) as socket:
            for _ in range(dice.randrange(1, 25)):
                if (await socket.receive())["type"] == "response.done":
                    break
            socket.abort()
        lost = socket
    assert cuts > 5
    assert lost.tally.text == text
    assert lost.seen[-1]["response"]["status"] == "completed"
    assert await history(alice, asked["conversation_id"]) == [
        ("user", "tell me a story", "completed"),
        ("assistant", text, "completed"),
    ]


@pytest.mark.parametrize("after", range(4, 15))
@pytest.mark.behaviour("resume")
async def test_resume_at_each_event(server: Server, bridges: FakeBridges, after: int) -> None:
    """Whichever event was the last that arrived, the ones behind it follow, also when the turn ended meanwhile."""
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url, key=ALICE) as lost:
        asked = await lost.ask("count")
        await lost.until_text("one ")
        bridges.gate.release()
        await lost.done()
        assert lost.seen[-1]["seq"] == 14
        lost.abort()
    async with await resume(server, lost, asked["id"], after) as socket:
        if after < 14:
            assert (await socket.done())["status"] == "completed"
            rest = [event["type"] for event in socket.seen[after:] if event["type"] != DELTA]
            assert rest == [
                "session.created",
                *(event["type"] for event in lost.seen[after:] if event["type"] != DELTA),
            ]
        await socket.ask("go on")
        assert (await socket.done())["conversation_id"] == asked["conversation_id"]


async def test_resume_after_the_end(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A turn that ended while its client was away is told to its end, in as few deltas as may be."""
    bridges.mode = streaming("one ", "two ", "three ", "four", hold_after=1)
    async with open_socket(server.url, key=ALICE) as lost:
        asked = await lost.ask("count")
        await lost.until_text("one ")
        lost.abort()
    bridges.gate.release()
    assert (await ended(alice, asked["id"]))["status"] == "completed"
    async with await resume(server, lost, asked["id"]) as socket:
        response = await socket.done()
    assert [event["delta"] for event in socket.seen if event["type"] == DELTA] == ["one ", "two three four"]
    assert response["status"] == "completed"


async def test_resume_while_the_old_socket_is_open(server: Server, bridges: FakeBridges) -> None:
    """Whoever resumes takes the response over: the old socket gets nothing more of it and is closed."""
    bridges.mode = streaming("one ", "two ", "three", hold_after=1)
    async with open_socket(server.url, key=ALICE) as old:
        asked = await old.ask("count")
        await old.until_text("one ")
        async with await resume(server, old, asked["id"]) as socket:
            await socket.receive()
            bridges.gate.step()
            await socket.until_text("one two ")
            assert await old.closed() == 1000
            assert old.tally.text == "one "
            bridges.gate.release()
            assert (await socket.done())["status"] == "completed"
    assert socket.tally.text == "one two three"


async def test_resume_twice_at_once(server: Server, bridges: FakeBridges) -> None:
    """When two come back for one response at once, one of them is served to the end."""
    bridges.mode = streaming("one ", "two ", "three", hold_after=1)
    async with open_socket(server.url, key=ALICE) as old:
        asked = await old.ask("count")
        await old.until_text("one ")
        old.abort()
    ends = []

    async def come_back() -> None:
        async with await resume(server, old, asked["id"]) as socket:
            bridges.gate.release()
            with contextlib.suppress(ConnectionClosed):
                ends.append((await socket.done())["status"])

    async with asyncio.timeout(5):
        await asyncio.gather(*(come_back() for _ in range(5)))
    assert "completed" in ends


async def test_resumed_session_is_the_same(server: Server, bridges: FakeBridges) -> None:
    """What session.update had set, and the power to cancel, are with whoever resumes."""
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url, key=ALICE) as lost:
        await lost.send("session.update", session={"instructions": "Sois bref.", "temperature": 0.5})
        asked = await lost.ask("count")
        await lost.until_text("one ")
        lost.abort()
    async with await resume(server, lost, asked["id"]) as socket:
        assert (await socket.receive())["session"]["instructions"] == "Sois bref."
        await socket.send("response.cancel")
        assert (await socket.done())["status"] == "cancelled"
        await bridges.stream_closed()
        bridges.gate.release()
        await socket.ask("again")
        await socket.done()
    assert bridges.last("/api/llm").json["temperature"] == 0.5
    assert [without_time(message["content"]) for message in bridges.last("/api/llm").json["messages"]] == [
        "count",
        "one ",
        "again",
    ]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "٣", "9" * 13, "1e3"])
async def test_bad_resume(server: Server, after: str) -> None:
    """A place to resume at that is no number is a bad request, told in the handshake."""
    assert (await refusal_of(server, key=ALICE, resume=UNKNOWN_ID, after=after)).response.status_code == 400


async def test_unknown_resume(server: Server, alice: aiohttp.ClientSession) -> None:
    """What was never a response, or never one of a socket, cannot be resumed."""
    assert (await refusal_of(server, key=ALICE, resume=UNKNOWN_ID)).response.status_code == 404
    assert (await refusal_of(server, key=ALICE, resume="-" * 36)).response.status_code == 404
    async with alice.post("/api/chat", json={"content": "hello"}) as answer:
        turn = await answer.json()
    refused = await refusal_of(server, key=ALICE, resume=turn["id"])
    assert refused.response.status_code == 404
    details = msgspec.json.decode(refused.response.body or b"")["details"]
    assert details == {"response_id": turn["id"], "conversation_id": turn["conversation_id"]}


async def test_grace(make_server: MakeServer, bridges: FakeBridges) -> None:
    """After the grace the turn of a lost socket is cancelled: the model's connection closed, the partial text stored."""
    server = make_server(WS_RESUME_GRACE_S="0.4")
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url) as lost:
        asked = await lost.ask("count")
        await lost.until_text("one ")
        lost.abort()
        left_at = time.monotonic()
    async with client_of(server) as client:
        await asyncio.sleep(0.2)
        assert (await state_of(client, asked["id"]))["status"] == "running"
        assert 0.3 < await bridges.stream_closed() - left_at < 2
        state = await ended(client, asked["id"])
        assert (state["status"], state["reason"]) == ("cancelled", "client_left")
        assert await history(client, asked["conversation_id"]) == [
            ("user", "count", "completed"),
            ("assistant", "one ", "cancelled"),
        ]
    assert (await refusal_of(server, resume=asked["id"], after=1)).response.status_code == 404


async def test_grace_begins_anew(make_server: MakeServer, bridges: FakeBridges) -> None:
    """Who resumes within the grace has a grace of their own when they are lost in turn."""
    server = make_server(WS_RESUME_GRACE_S="0.5")
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url) as socket:
        asked = await socket.ask("count")
        await socket.until_text("one ")
        socket.abort()
    for _ in range(4):
        await asyncio.sleep(0.25)
        async with open_socket(
            server.url, resume=asked["id"], after=socket.seen[-1]["seq"], seen=socket.seen
        ) as socket:
            await socket.receive()
            socket.abort()
    async with open_socket(server.url, resume=asked["id"], after=socket.seen[-1]["seq"], seen=socket.seen) as socket:
        bridges.gate.release()
        assert (await socket.done())["status"] == "completed"


# A client that does not read

HUGE_DELTAS = ("😀" * 1_000,) * 1_000
HUGE_BYTES = 4_000_000


async def read_text(response: aiohttp.ClientResponse) -> str:
    """Return what the deltas of a stream of server-sent events add up to."""
    source = EventSource()
    messages = [message async for chunk in response.content.iter_any() for message in source.feed(chunk)]
    return "".join(msgspec.json.decode(message.data)["delta"] for message in messages if message.type == DELTA)


@pytest.mark.behaviour("socket.stalled")
async def test_stalled_reader(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """
    A client that stops reading holds up neither the model, nor other readers, nor /health, and costs bounded memory.

    When it reads again it gets everything, in fewer and larger deltas.
    """
    bridges.mode = BridgesMode(shape="ndjson", deltas=HUGE_DELTAS, join_deltas=8)
    before = resident_bytes(server)
    narrow = sockets.socket()
    narrow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 16_384)
    narrow.connect(("127.0.0.1", server.port))
    narrow.setblocking(False)
    async with connect(
        f"ws://127.0.0.1:{server.port}/ws?token={ALICE}",
        sock=narrow, compression=None, proxy=None, max_size=None, max_queue=1, close_timeout=2,
    ) as connection:  # fmt: skip
        stalled = Socket(connection)
        asked = await stalled.ask("everything")
        connection.transport.pause_reading()
        async with alice.get(f"/api/chat/response/{asked['id']}/events") as response:
            following = asyncio.create_task(read_text(response))
            slowest_s = 0.0
            until = time.monotonic() + 3
            while time.monotonic() < until:
                started = time.monotonic()
                async with alice.get("/health") as answer:
                    assert answer.status == 200
                slowest_s = max(slowest_s, time.monotonic() - started)
                await asyncio.sleep(0.01)
            async with asyncio.timeout(10):
                assert await following == "".join(HUGE_DELTAS)
        assert bridges.streams[-1].outcome == "served"
        assert (await state_of(alice, asked["id"]))["status"] == "completed"
        bridges.mode = BridgesMode(shape="ndjson")
        async with alice.post("/api/chat", json={"content": "hello"}) as answer:
            assert answer.status == 200
        assert slowest_s < 0.5
        grown = resident_bytes(server) - before
        assert grown < 20 * HUGE_BYTES, grown
        connection.transport.resume_reading()
        await stalled.done()
        assert stalled.tally.text == "".join(HUGE_DELTAS)
        deltas = [event for event in stalled.seen if event["type"] == DELTA]
        assert len(deltas) < len(HUGE_DELTAS)


# The server goes away


@pytest.mark.every_python
@pytest.mark.behaviour("socket.stop")
async def test_stop(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A server that stops lets a running response end within the drain time, then closes all sockets with 1001."""
    server = make_server(DRAIN_TIMEOUT_S="10")
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url) as busy, open_socket(server.url) as idle:
        await busy.ask("count")
        await busy.until_text("one ")
        await idle.receive()
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        await idle.add("are you there?")
        await idle.send("response.create", event_id="late")
        error = await idle.error()
        assert (error["code"], error["event_id"], error["type"]) == ("unavailable", "late", "server_error")
        bridges.gate.release()
        assert await busy.closed() == 1001
        assert (busy.seen[-1]["type"], busy.seen[-1]["response"]["status"]) == ("response.done", "completed")
        assert await idle.closed() == 1001
    assert await asyncio.to_thread(server.wait, 3) == 0


@pytest.mark.every_python
async def test_stop_does_not_wait_for_ever(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A response that runs longer than the drain time is told as incomplete before the socket is closed with 1001."""
    server = make_server(DRAIN_TIMEOUT_S="0.3")
    bridges.mode = streaming("one ", "two", hold_after=1)
    async with open_socket(server.url) as socket:
        await socket.ask("count")
        await socket.until_text("one ")
        server.signal(signal.SIGTERM)
        assert await socket.closed() == 1001
    response = socket.seen[-1]["response"]
    assert (response["status"], response["status_details"]["reason"]) == ("incomplete", "server_stopped")
    assert socket.tally.text == "one "
    assert await asyncio.to_thread(server.wait, 3) == 0


@pytest.mark.every_python
async def test_stop_with_clients_that_do_not_read(make_server: MakeServer, bridges: FakeBridges) -> None:
    """Clients that do not read do not keep a server from stopping."""
    server = make_server(DRAIN_TIMEOUT_S="5", LLM_MAX_TOKENS="32000")
    bridges.mode = BridgesMode(shape="ndjson", deltas=HUGE_DELTAS[:500], join_deltas=8)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            socket = await stack.enter_async_context(open_socket(server.url))
            await socket.ask("everything")
            socket.connection.transport.pause_reading()
            stack.callback(socket.abort)
        async with client_of(server) as client:

            async def none_runs() -> bool:
                return await gauge(client, "turns_running") == 0

            await eventually(none_runs)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 10) == 0
        assert time.monotonic() - started < 6
