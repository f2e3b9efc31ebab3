"""The door for satellites, by the ``wyoming`` package's own client, in the order in which Home Assistant calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.handle import Handled, HandledChunk, HandledStart, HandledStop, NotHandled
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped, SynthesizeVoice

from tests.codec.sounds import to_pcm, tone
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, MakeServer, client_of
from tests.system.server import Server, free_port

LIMIT_S = 10
RATE_HZ = 16_000
ALICES = {"API_KEYS": f"alice:{ALICE}", "WYOMING_USER": "alice"}


@pytest.fixture
def port() -> int:
    """Name a free port."""
    return free_port()


@pytest.fixture
def server(make_server: MakeServer, port: int, bridges: FakeBridges) -> Server:
    """Run a server with a door for satellites, who are alice."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("Bon", "jour. ", "Oui."), transcript="Quelle heure est-il ?")
    return make_server(WYOMING_PORT=str(port), **ALICES)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[AsyncTcpClient]:
    async with asyncio.timeout(LIMIT_S), AsyncTcpClient("127.0.0.1", port) as client:
        yield client


async def read_until(client: AsyncTcpClient, kind: str) -> list[Event]:
    """Return what comes, without pings, to the first event of *kind*."""
    events: list[Event] = []
    while not events or events[-1].type != kind:
        event = await client.read_event()
        assert event is not None, events
        if event.type != "ping":
            events.append(event)
    return events


def sound(seconds: float = 0.5) -> Iterator[Event]:
    """Give a microphone's events."""
    form: dict[str, Any] = {"rate": RATE_HZ, "width": 2, "channels": 1}
    samples = to_pcm(tone(seconds), "s16")
    yield AudioStart(**form).event()
    for start in range(0, len(samples), 2_048):
        yield AudioChunk(audio=samples[start : start + 2_048], **form).event()
    yield AudioStop().event()


async def ask(port: int, text: str, **context: str) -> list[Event]:
    async with client(port) as satellite:
        await satellite.write_event(Transcript(text, context=context or None, language="fr").event())
        events: list[Event] = []
        while not events or events[-1].type not in ("handled", "not-handled"):
            event = await satellite.read_event()
            assert event is not None
            if event.type != "ping":
                events.append(event)
        return events


async def test_pipeline(server: Server, port: int) -> None:
    """Described, heard, answered, spoken: each over a connection of its own; REST has the history."""
    async with client(port) as hub:
        await hub.write_event(Describe().event())
        info = Info.from_event((await read_until(hub, "info"))[-1])
    assert [program.name for program in info.asr] == ["jarvis"]
    assert info.asr[0].models[0].languages[0] == "fr"
    assert info.handle[0].supports_handled_streaming
    assert info.tts[0].supports_synthesize_streaming
    voice = info.tts[0].voices[0].name

    async with client(port) as satellite:
        await satellite.write_event(Transcribe(language="fr_FR").event())
        for event in sound():
            await satellite.write_event(event)
        heard = Transcript.from_event((await read_until(satellite, "transcript"))[-1])
    assert (heard.text, heard.language) == ("Quelle heure est-il ?", "fr")

    events = await ask(port, heard.text, conversation_id="01KB0000000000000000000001", satellite_id="kitchen")
    assert Handled.from_event(events[-1]).text == "Bonjour. Oui."

    async with client(port) as satellite:
        await satellite.write_event(Synthesize("Bonjour. Oui.", voice=SynthesizeVoice(name=voice)).event())
        spoken = await read_until(satellite, "audio-stop")
    start = AudioStart.from_event(spoken[0])
    chunks = [AudioChunk.from_event(event) for event in spoken[1:-1]]
    assert (start.rate, start.width, start.channels) == (22_050, 2, 1)
    assert sum(chunk.seconds for chunk in chunks) == pytest.approx(13 * 0.05, rel=0.3)
    async with client_of(server, ALICE) as alice:
        listed = (await (await alice.get("/api/chat/conversations")).json())["conversations"]
        assert [one["title"] for one in listed] == ["Quelle heure est-il ?"]
        history = (await (await alice.get(f"/api/chat/history/{listed[0]['id']}")).json())["messages"]
        assert [one["content"] for one in history] == ["Quelle heure est-il ?", "Bonjour. Oui."]


async def test_streams(server: Server, port: int) -> None:
    """Pieces come between their start and the whole, which comes before their end."""
    async with client(port) as satellite:
        for event in sound():
            await satellite.write_event(event)
        heard = await read_until(satellite, "transcript-stop")
        assert [event.type for event in heard] == [
            "transcript-start",
            "transcript-chunk",
            "transcript",
            "transcript-stop",
        ]
        assert TranscriptChunk.from_event(heard[1]).text == "Quelle heure est-il ?"

        await satellite.write_event(Transcript("Bonjour", language="fr").event())
        answered = await read_until(satellite, HandledStop().event().type)
        assert HandledStart.from_event(answered[0]).context is not None
        pieces = [HandledChunk.from_event(event).text for event in answered[1:-2]]
        assert "".join(pieces) == Handled.from_event(answered[-2]).text == "Bonjour. Oui."

        await satellite.write_event(SynthesizeStart().event())
        for piece in ("Il est mi", "di. Et qu", "art."):
            await satellite.write_event(SynthesizeChunk(piece).event())
        # As Home Assistant does, for servers that know no pieces.
        await satellite.write_event(Synthesize("Il est midi. Et quart.").event())
        await satellite.write_event(SynthesizeStop().event())
        spoken = await read_until(satellite, SynthesizeStopped().event().type)
    assert [event.type for event in spoken if event.type != "audio-chunk"] == [
        "audio-start",
        "audio-stop",
        "synthesize-stopped",
    ]
    seconds = sum(AudioChunk.from_event(event).seconds for event in spoken if event.type == "audio-chunk")
    assert seconds == pytest.approx(22 * 0.05, rel=0.3)


async def test_conversations(server: Server, port: int, bridges: FakeBridges) -> None:
    """A name of the client's is one conversation on every connection; an id of ours is that conversation."""
    await ask(port, "un", conversation_id="their own")
    await ask(port, "deux", conversation_id="their own")
    async with client_of(server, ALICE) as alice:
        made = await (await alice.post("/api/chat", json={"content": "par REST"})).json()
        answered = await ask(port, "trois", conversation_id=made["conversation_id"])
        assert Handled.from_event(answered[-1]).context == {"conversation_id": made["conversation_id"]}
        # Without a name each is a conversation of its own, whose id the answer tells.
        alone = Handled.from_event((await ask(port, "seul"))[-1])
        assert alone.context is not None
        again = Handled.from_event((await ask(port, "encore", **alone.context))[-1])
        assert again.context == alone.context
        listed = (await (await alice.get("/api/chat/conversations")).json())["conversations"]
        assert {one["title"]: one["message_count"] for one in listed} == {"un": 4, "par REST": 4, "seul": 4}


async def test_model_is_away(server: Server, port: int, bridges: FakeBridges) -> None:
    """What cannot be answered, heard or said is told, each in its own event; the door stays open."""
    bridges.mode = BridgesMode(error_200=True)
    failed = NotHandled.from_event((await ask(port, "Bonjour", conversation_id="c"))[-1])
    assert failed.text
    assert failed.context == {"conversation_id": "c"}
    assert NotHandled.from_event((await ask(port, " \n"))[-1]).text == "There was nothing to answer."
    async with client(port) as satellite:
        for event in sound():
            await satellite.write_event(event)
        assert Error.from_event((await read_until(satellite, "error"))[-1]).code == "bad_gateway"
        assert await satellite.read_event() is None
    async with client(port) as satellite:
        await satellite.write_event(Synthesize("Bonjour").event())
        assert Error.from_event((await read_until(satellite, "error"))[-1]).code == "bad_gateway"
    async with client(port) as satellite:
        await satellite.write_event(Ping("there?").event())
        assert Pong.from_event((await read_until(satellite, "pong"))[-1]).text == "there?"


async def test_who_leaves_stops_the_model(server: Server, port: int, bridges: FakeBridges) -> None:
    """A satellite that leaves while the model is silent has its turn cancelled; another one is answered meanwhile."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("un ", "deux"), hold_after=1)
    async with client(port) as satellite:
        await satellite.write_event(Transcript("Raconte", context={"conversation_id": "long"}).event())
        await read_until(satellite, "handled-chunk")
        async with client(port) as other:
            await other.write_event(Describe().event())
            await read_until(other, "info")
    async with client_of(server, ALICE) as alice, asyncio.timeout(LIMIT_S):
        listed = (await (await alice.get("/api/chat/conversations")).json())["conversations"]
        while True:
            messages = (await (await alice.get(f"/api/chat/history/{listed[0]['id']}")).json())["messages"]
            if len(messages) == 2 and messages[1]["status"] != "running":
                break
    assert (messages[1]["status"], messages[1]["content"]) == ("cancelled", "un ")


async def test_slow_answers(server: Server, port: int, bridges: FakeBridges) -> None:
    """While a model thinks something comes at least every two seconds: satellites hang up in silence."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("enfin",), first_delay_s=2.5)
    async with client(port) as satellite:
        await satellite.write_event(Transcript("Bonjour").event())
        event = await satellite.read_event()
        assert event is not None
        assert event.type == "ping"
        assert Handled.from_event((await read_until(satellite, "handled"))[-1]).text == "enfin"


HEAD = {"type": "describe"}
BAD_FRAMES = {
    "no JSON": b"GET / HTTP/1.1\r\n\r\n",
    "no object": b"[]\n",
    "no type": b"{}\n",
    "long head": b'{"type": "describe", "data": {"text": "' + b"x" * 10_000_000 + b'"}}\n',
    "long data": json.dumps({**HEAD, "data_length": 1 << 40}).encode() + b"\n",
    "long payload": json.dumps({**HEAD, "payload_length": 1 << 40}).encode() + b"\n",
    "negative length": json.dumps({**HEAD, "payload_length": -1}).encode() + b"\n",
    "data that is none": json.dumps({**HEAD, "data_length": 4}).encode() + b"\nnull",
    "a field of another type": json.dumps({"type": "audio-start", "data": {"rate": "fast"}}).encode() + b"\n",
    "too many channels": json.dumps(
        {"type": "audio-start", "data": {"rate": 16_000, "width": 2, "channels": 1_000}}
    ).encode()
    + b"\n",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_bad_frames(server: Server, port: int, name: str) -> None:
    """What is no frame, or too long, is told and ends its connection; the next one is served, and nothing grows."""
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(BAD_FRAMES[name])
        answer = json.loads(await reader.readline())
        assert answer["type"] == "error"
        failure = json.loads(await reader.readexactly(answer["data_length"]))
        assert failure["code"] == "invalid_request"
        assert failure["text"]
        writer.close()
    async with client(port) as hub:
        await hub.write_event(Describe().event())
        assert (await read_until(hub, "info"))[-1].type == "info"


async def test_unknown_events(server: Server, port: int) -> None:
    """Unknown events and fields are ignored, never a reason to close; so is what ends before it begins."""
    async with client(port) as satellite:
        await satellite.write_event(Event("run-pipeline", {"start_stage": "wake", "end_stage": "tts"}))
        await satellite.write_event(Event("voice-started", {"timestamp": None}, b"\0" * 1_000))
        await satellite.write_event(Event("synthesize-stop"))
        await satellite.write_event(Event("audio-stop", {"timestamp": 1}))
        assert Transcript.from_event((await read_until(satellite, "transcript"))[-1]).text == ""
        await satellite.write_event(Event("describe", {"new": [1]}))
        assert (await read_until(satellite, "info"))[-1].type == "info"


async def test_data_in_the_head(server: Server, port: int) -> None:
    """Data stands in the head's line, behind it, or in both; what stands behind it wins."""
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        behind = b'{"text": "behind"}'
        for line, text in (
            (b'{"type": "ping", "data": {"text": "inside"}}\n', "inside"),
            (b'{"type": "ping", "data": null}\n', None),
            (b'{"type": "ping", "data": {"text": "x", "y": 1}, "data_length": %d}\n' % len(behind) + behind, "behind"),
        ):
            writer.write(line)
            head = json.loads(await reader.readline())
            assert head["type"] == "pong"
            assert json.loads(await reader.readexactly(head["data_length"])) == {"text": text}
        writer.close()


async def test_stop(server: Server, port: int) -> None:
    """A stop ends open connections, and takes no longer for them."""
    async with client(port) as satellite:
        await satellite.write_event(Ping().event())
        await read_until(satellite, "pong")
        assert await asyncio.to_thread(server.stop) == 0
        assert await satellite.read_event() is None


async def test_two_workers(make_server: MakeServer, port: int, bridges: FakeBridges) -> None:
    """Each worker answers at the door, and a name means the same conversation on both; beyond loopback it is said."""
    server = make_server(WYOMING_PORT=str(port), WYOMING_HOST="0.0.0.0", WORKERS="2")
    await asyncio.gather(*(ask(port, f"n° {number}", conversation_id="one") for number in range(1)))
    for number in range(6):
        answered = await ask(port, f"n° {number}", conversation_id="one")
        assert answered[-1].type == "handled"
    async with client_of(server) as anybody:
        listed = (await (await anybody.get("/api/chat/conversations")).json())["conversations"]
        assert [one["message_count"] for one in listed] == [14]
        health = await (await anybody.get("/health")).json()
        assert health["warnings"][0].startswith("WYOMING_PORT: whoever reaches port")
    assert "without credentials" in server.stderr
