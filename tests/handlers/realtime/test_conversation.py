"""Whole conversations: ten turns as they were recorded, a minute of noise, and interruptions at any moment."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
from functools import partial
from typing import NamedTuple

import aiohttp
import numpy as np
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE, MakeServer, client_of
from tests.handlers.realtime.recorded import RATE_HZ, Microphone, Noise, clips, listened_to
from tests.handlers.realtime.test_turns_of_speech import STARTED, STOPPED, is_at_a_words_end, messages
from tests.handlers.realtime_client import Event, open_push_to_talk
from tests.handlers.shown import eventually
from tests.system.server import REPOSITORY, Server

PACES = [float(pace) for pace in os.environ.get("CONVERSATION_PACES", "0.05,0.02").split(",")]
"""How slowly the conversation is spoken each time, by its own length: ``make conversation`` has it in real time."""
MOMENTS = int(os.environ.get("CONVERSATION_MOMENTS", "16"))
"""Answers that are interrupted."""
SOUND = "response.output_audio.delta"
SHORT = "D'accord."
LONG = (
    "Il était une fois un gardien de phare qui parlait aux oiseaux. Chaque soir il montait les deux cents marches. "
    "Une mouette blanche venait alors lui raconter la mer. Un jour elle apporta une clé rouillée dans son bec. "
    "Le vieil homme chercha longtemps quelle porte elle ouvrait. Il finit par trouver un coffre derrière la lampe. "
    "Dedans dormait une carte que personne ne savait lire. Demain, dit-il, nous partirons vers le nord. "
)
CHAR_S = 0.05


class Course(NamedTuple):
    """What came of a conversation."""

    turns_ms: list[int]
    """How long each turn of speech was."""
    ends: list[str]
    """How each response ended."""
    history: list[Event]


async def converse(
    server: Server, bridges: FakeBridges, client: aiohttp.ClientSession, pace: float, detection: Event
) -> Course:
    """Speak the ten turns, each when the answer to the one before was heard or is to be interrupted."""
    spoken = clips()
    async with listened_to(server, ALICE, **detection) as socket:
        microphone = Microphone(socket, pace)
        await microphone.hush(1.0)
        for number, clip in enumerate(spoken):
            following = spoken[number + 1].kind if number + 1 < len(spoken) else "turn"
            answer = SHORT if following == "turn" and clip.kind != "backchannel" else LONG
            bridges.mode = BridgesMode(shape="ndjson", answer=answer, speech_s_per_char=CHAR_S)
            microphone.below_db = 20.0 if number % 2 else 10.0
            microphone.noise_at = 5 * RATE_HZ * number
            begun = len(socket.seen)
            await microphone.say(clip.samples)
            if clip.kind == "backchannel":
                await microphone.hush(0.5)
                continue
            await microphone.hush(0.6)
            if following == "turn":
                await microphone.hush_until(partial(is_answered, socket.seen, begun))
            else:
                # What is heard of the answer is told by the microphone alone: it says nothing before the answer begins.
                await microphone.hush_until(partial(is_over, socket.seen, begun))
                await eventually(partial(_is_heard, socket.seen, begun))
            await microphone.hush(1.5)
        seen = socket.seen
    starts = [event["audio_start_ms"] for event in seen if event["type"] == STARTED]
    stops = [event["audio_end_ms"] for event in seen if event["type"] == STOPPED]
    done = [event["response"] for event in seen if event["type"] == "response.done"]
    assert not [event for event in seen if event["type"] == "error"]
    return Course(
        [stop - start for start, stop in zip(starts, stops, strict=True)],
        [f"{one['status']} {(one['status_details'] or {}).get('reason', '')}".strip() for one in done],
        await messages(client, done[-1]["conversation_id"]),
    )


def _last(seen: list[Event], begun: int) -> dict[str, int]:
    """Return where the last event of each type is behind the event *begun*."""
    return {event["type"]: number for number, event in enumerate(seen[begun:])}


def is_over(seen: list[Event], begun: int) -> bool:
    """Return whether somebody has spoken since the event *begun*, and does no more."""
    last = _last(seen, begun)
    return STOPPED in last and last.get(STARTED, 0) <= last[STOPPED]


def is_answered(seen: list[Event], begun: int) -> bool:
    """Return whether what was said since the event *begun* was answered to the end."""
    last = _last(seen, begun)
    return is_over(seen, begun) and last[STOPPED] < last.get("response.created", -1) < last.get("response.done", -1)


async def _is_heard(seen: list[Event], begun: int) -> bool:
    """Return whether the answer to it has begun to be spoken."""
    last = _last(seen, begun)
    return last[STOPPED] < last.get("response.created", -1) < last.get(SOUND, -1)


async def assert_same_at_any_pace(
    server: Server, bridges: FakeBridges, client: aiohttp.ClientSession, **detection: str
) -> Course:
    """Have the conversation at each pace, hold them against one another, and return one."""
    first, *others = [await converse(server, bridges, client, pace, detection) for pace in PACES]
    for other in others:
        # Places are counted in samples; where the recording is cut into pieces the noise is another.
        assert other.turns_ms == pytest.approx(first.turns_ms, abs=100)
        assert other.ends == first.ends
        assert len(other.history) == len(first.history)
        for one, again in zip(first.history, other.history, strict=True):
            assert (one["role"], one["status"]) == (again["role"], again["status"])
            assert (one["heard_ms"] is None) == (again["heard_ms"] is None)
            if one["heard_ms"] is not None:
                # What the microphone sends while the answer is on its way counts as heard or not: some 20 ms of the clock.
                assert again["heard_ms"] == pytest.approx(one["heard_ms"], abs=400 + 20 / min(PACES))
                assert is_at_a_words_end(one["content"], LONG)
                assert is_at_a_words_end(again["content"], LONG)
    return first


def assert_whole(course: Course) -> None:
    """Check that each turn was found once, none was cut, and two answers were interrupted."""
    assert len(course.turns_ms) == 10
    assert course.ends.count("cancelled turn_detected") == 2
    assert course.ends.count("completed") == 8
    assert [one["role"] for one in course.history] == ["user", "assistant"] * 10


@pytest.mark.behaviour("detection.pause")
async def test_without_a_model(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """Ten turns with noise, pauses, two interruptions and an "mm-hmm" are ten turns, as fast or slow as they are streamed."""
    assert_whole(await assert_same_at_any_pace(server, bridges, alice, type="semantic_vad"))


async def test_server_vad(server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession) -> None:
    """A fixed silence of half a second finds each turn too, and cuts the two that have a longer pause."""
    course = await converse(server, bridges, alice, PACES[-1], {"type": "server_vad"})
    assert 10 <= len(course.turns_ms) <= 12
    # What was answered in such a pause may be interrupted, too.
    assert course.ends.count("cancelled turn_detected") >= 2


async def _has(seen: list[Event], kind: str) -> bool:
    return any(event["type"] == kind for event in seen)


@pytest.mark.model
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the local engines are not installed")
async def test_with_the_model(make_server: MakeServer, bridges: FakeBridges) -> None:
    """With the model that hears the end of a sentence they are ten turns too."""
    from jarvis_core.local.catalogue import CATALOGUE
    from jarvis_core.local.smart_turn import SmartTurn
    from jarvis_core.local.weights import ensure

    model = SmartTurn(ensure(CATALOGUE["smart-turn-v3.2"], REPOSITORY / ".cache" / "models"), 1)
    bridges.judge = lambda audio: model.probability(np.frombuffer(audio, "<f4"))
    server = make_server(API_KEYS=f"alice:{ALICE}")
    async with client_of(server, ALICE) as client:
        course = await converse(server, bridges, client, PACES[0], {"type": "semantic_vad"})
    assert_whole(course)


@pytest.mark.behaviour("detection.noise", "barge_in.noise")
async def test_a_minute_of_noise(server: Server, bridges: FakeBridges) -> None:
    """Hum, fan, keys and music as loud as speech are no turn, and neither they nor the assistant's own voice interrupt it."""
    noise = Noise()
    makers = (noise.hum, noise.fan, noise.keys, noise.music)
    sounds = [make(15 * RATE_HZ) for make in makers]
    own_voice = np.concatenate([clip.samples for clip in clips()]) * np.float32(0.1)
    async with listened_to(server, ALICE, type="server_vad") as socket:
        microphone = Microphone(socket, 0.0)
        for make in makers:
            await microphone.say(make(5 * RATE_HZ))
        assert not [event for event in socket.seen if event["type"] == STARTED]
        bridges.mode = BridgesMode(shape="ndjson", answer=LONG, speech_s_per_char=1.0)
        await microphone.say(clips()[0].samples)
        await microphone.hush_until(lambda: any(event["type"] == SOUND for event in socket.seen))
        begun = len(socket.seen)
        for sound in (*sounds, own_voice):
            await microphone.say(sound)
        await socket.send("input_audio_buffer.clear")
        await eventually(lambda: _has(socket.seen, "input_audio_buffer.cleared"))
        assert not {event["type"] for event in socket.seen[begun:]} & {STARTED, "response.done"}


@pytest.mark.behaviour("heard.everywhere", "heard.unsaid")
async def test_interrupted_at_any_moment(make_server: MakeServer, bridges: FakeBridges) -> None:
    """
    Of an answer that is stopped at any moment the history has a prefix, to a word's end, within 0.4 s of what a client played
    that counts samples and plays in real time; so it does on another worker, and when the first one was killed.
    """
    # The fake says every character in the same time.
    bridges.mode = BridgesMode(shape="ndjson", answer=LONG, speech_s_per_char=CHAR_S)
    server, other = make_server(), make_server()
    dice = random.Random(7)

    async def listen(moment_s: float) -> tuple[str, str, float]:
        async with open_push_to_talk(server.url) as socket:
            await socket.send("session.update", session={"output_modalities": ["audio"]})
            await socket.until("session.updated")
            await socket.ask("tell me")
            await socket.until(SOUND)
            loop, played_from = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            stop_at = played_from + moment_s
            while (left_s := stop_at - loop.time()) > 0:
                try:
                    await socket.receive(left_s)
                except TimeoutError:
                    break
            await socket.send("response.cancel")
            # What had come by then was played, and no more of it than there was time for.
            got_s = len(socket.tally.sound) / 2 / 24_000
            played_s = min(loop.time() - played_from, got_s)
            done = await socket.done()
            assert done["status"] == "cancelled"
            return done["conversation_id"], done["id"], played_s

    found: list[tuple[str, str, float]] = []
    for start in range(0, MOMENTS, 16):
        moments = [dice.uniform(0.05, 4.0) for _ in range(start, min(MOMENTS, start + 16))]
        found += await asyncio.gather(*map(listen, moments))

    async def kept(client: aiohttp.ClientSession) -> list[Event]:
        return [(await messages(client, conversation_id))[1] for conversation_id, _, _ in found]

    async with client_of(server) as client, client_of(other) as another:
        first = await kept(client)
        assert await kept(another) == first
        server.kill()
        assert await kept(another) == first
    for (_, response_id, played_s), answer in zip(found, first, strict=True):
        assert answer["id"] == response_id
        assert is_at_a_words_end(answer["content"], LONG)
        heard_s = answer["heard_ms"] / 1_000
        # On a machine with other work an event is late by a tenth of a second or two.
        assert heard_s == pytest.approx(played_s, abs=0.4)
        # Of what was played a word may be missing that had just begun.
        said_s = CHAR_S * len(answer["content"])
        longest_s = CHAR_S * max(map(len, LONG.split()))
        assert -0.4 - longest_s <= said_s - heard_s <= 0.4, (said_s, heard_s)
