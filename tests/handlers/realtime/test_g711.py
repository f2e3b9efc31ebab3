"""Telephones' audio over the WebSocket: bytes of 8 bits in, bytes of 8 bits out, and every place and length as with PCM."""

from __future__ import annotations

import math
from typing import Literal

import aiohttp
import numpy as np
import pytest
import soxr

from jarvis_core.codec.linear import compress, expand
from jarvis_core.handlers.events import AlawFormat
from jarvis_core.handlers.realtime import snapshot
from jarvis_core.handlers.realtime.config import default_config
from jarvis_core.handlers.realtime.dialogue import DialogueState
from jarvis_core.settings import Llm
from tests.fakes.python_bridges import FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.realtime.test_turns_of_speech import COMPLETED, STARTED, STOPPED, clip, messages, silence, speaking
from tests.handlers.realtime_client import Event, Socket, open_push_to_talk, open_socket
from tests.system.server import Server

Kind = Literal["mulaw", "alaw"]
NAMES: dict[Kind, tuple[str, str]] = {"mulaw": ("audio/pcmu", "g711_ulaw"), "alaw": ("audio/pcma", "g711_alaw")}
KINDS = pytest.mark.parametrize("kind", ["mulaw", "alaw"])
RATE_HZ = 8_000


def telephoned(sound: bytes, kind: Kind) -> bytes:
    """Return *sound*, 16 bits at 16 kHz, as a telephone sends it."""
    samples = soxr.resample(np.frombuffer(sound, "<i2"), 16_000, RATE_HZ)
    return compress(samples, kind).tobytes()


def rms(data: bytes, kind: Kind) -> float:
    """Return the root of the mean square of what *data* stands for, within 1."""
    samples = expand(np.frombuffer(data, np.uint8), kind) / 32_768
    return math.sqrt(np.mean(np.square(samples)))


async def configure(socket: Socket, **session: object) -> Event:
    """Change the session, and return its audio as it is shown."""
    await socket.send("session.update", session=session)
    audio: Event = (await socket.until("session.updated"))["session"]["audio"]
    return audio


@KINDS
@pytest.mark.behaviour("session.g711")
async def test_recording(server: Server, bridges: FakeBridges, kind: Kind) -> None:
    """A committed recording reaches the bridges in its true length and loudness; an odd byte is a sample."""
    name, _ = NAMES[kind]
    tone = np.rint(0.3 * 32_767 * np.sin(2 * np.pi * 440 * np.arange(5_601) / RATE_HZ)).astype(np.int16)
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        shown = await configure(socket, audio={"input": {"format": {"type": name}}})
        assert shown["input"]["format"] == {"type": name}
        await socket.send_raw(compress(tone, kind).tobytes())
        await socket.send("input_audio_buffer.commit")
        words = await socket.until(COMPLETED)
        assert (words["transcript"], words["usage"]["seconds"]) == ("a clip of 0.70 seconds", 0.7)
        assert bridges.heard[-1].rms == pytest.approx(0.3 / math.sqrt(2), rel=0.02)
        # Ten minutes are as many bytes as there are samples.
        await socket.send_raw(bytes(600 * RATE_HZ))
        await socket.send_raw(bytes(1))
        assert (await socket.error())["code"] == "too_large"


@KINDS
@pytest.mark.behaviour("session.g711")
async def test_turn_of_speech(server: Server, bridges: FakeBridges, kind: Kind) -> None:
    """Speech from a telephone is found where it is found in PCM."""
    _, flat = NAMES[kind]
    sound = silence(1) + clip("fx16k_fr_1") + silence(1.5)
    places: list[list[int]] = []
    for settings, data in (
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}}, sound),
        ({"input_audio_format": flat}, telephoned(sound, kind)),
    ):
        async with open_socket(server.url, key=ALICE) as socket:
            await configure(socket, **settings)
            await socket.send_raw(data)
            started, stopped = await socket.until(STARTED), await socket.until(STOPPED)
            places.append([started["audio_start_ms"], stopped["audio_end_ms"]])
            heard_s = (await socket.until(COMPLETED))["usage"]["seconds"]
            # Not the silence behind it, which the early transcript has no part of.
            assert 0 <= stopped["audio_end_ms"] - started["audio_start_ms"] - 1_000 * heard_s <= 500
    assert places[1] == pytest.approx(places[0], abs=100)


@KINDS
@pytest.mark.behaviour("session.g711")
async def test_answer(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession, kind: Kind) -> None:
    """An answer is as long and as loud as it was spoken, and so is what was heard of it."""
    name, flat = NAMES[kind]
    bridges.mode = speaking()
    async with open_push_to_talk(server.url, key=ALICE) as socket:
        shown = await configure(socket, modalities=["audio", "text"], output_audio_format=flat)
        assert shown["output"]["format"] == {"type": name}
        asked = await socket.ask("speak")
        await socket.until("response.output_audio.done")
        sound = socket.tally.sound
        # A hundred characters have ten seconds; the fake speaks a tone with an amplitude of 0.3.
        assert len(sound) / RATE_HZ == pytest.approx(0.1 * len(socket.tally.text.replace(". ", ".")), abs=0.1)
        assert rms(sound, kind) == pytest.approx(0.3 / math.sqrt(2), rel=0.1)
        done = await socket.done()
        assert done["audio"]["output"]["format"] == {"type": name}
        await socket.send("conversation.item.truncate", item_id=asked["id"], content_index=0, audio_end_ms=2_000)
        await socket.until("conversation.item.truncated")
    kept = (await messages(alice, done["conversation_id"]))[1]
    assert (kept["content"], kept["heard_ms"]) == ("Bonjour à tous et à", 2_000)


@pytest.mark.parametrize(
    ("given", "shown", "param"),
    [
        ({"type": "audio/pcmu", "rate": 8_000}, {"type": "audio/pcmu"}, None),
        ({"type": "audio/pcmu", "rate": 16_000}, {"type": "audio/pcm", "rate": 16_000}, "rate"),
        ({"rate": 48_000}, {"type": "audio/pcm", "rate": 48_000}, None),
        ({"type": "audio/pcm"}, {"type": "audio/pcm", "rate": 16_000}, None),
        ({"type": None, "rate": None}, {"type": "audio/pcm", "rate": 16_000}, None),
        ({"type": "audio/mp3", "rate": 44_100}, {"type": "audio/pcm", "rate": 16_000}, "type"),
        ({"type": "audio/pcm", "rate": 4_000}, {"type": "audio/pcm", "rate": 16_000}, "rate"),
        ("g711_ulaw", {"type": "audio/pcm", "rate": 16_000}, ""),
    ],
)
@pytest.mark.parametrize("way", ["input", "output"])
@pytest.mark.behaviour("session.format")
async def test_formats(server: Server, way: str, given: object, shown: Event, param: str | None) -> None:
    """A format is taken whole; one that cannot be is named and leaves what was."""
    async with open_socket(server.url, key=ALICE) as socket:
        await configure(socket, audio={way: {"format": {"type": "audio/pcm", "rate": 16_000}}})
        audio = await configure(socket, audio={way: {"format": given}})
        assert audio[way]["format"] == shown
        if param is not None:
            assert (await socket.error())["param"] == f"$.session.audio.{way}.format.{param}".rstrip(".")
        back = await configure(socket, audio={way: {"format": {"type": "audio/pcma"}}})
        assert back[way]["format"] == {"type": "audio/pcma"}
        again = await configure(socket, audio={way: {"format": {"type": "audio/pcm"}}})
        assert again[way]["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert [event["type"] for event in socket.seen].count("error") == (param is not None)


def test_handed_over() -> None:
    """A session that goes on elsewhere keeps its format."""
    config = default_config("sess_1", None, Llm(), "audio")
    config.audio.output.format = AlawFormat()
    left = snapshot.SessionSnapshot(
        None, config, config, [], DialogueState(None, None, None, False, {}), None, None, [], None, None
    )
    assert snapshot.decode(snapshot.encode(left)).config.audio.output.format == AlawFormat()
