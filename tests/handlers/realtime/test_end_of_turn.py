"""Turns whose end a model hears: how long silence is waited for, and what holds where the model is away, late or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, client_of
from tests.handlers.realtime.test_turns_of_speech import COMPLETED, RATE_HZ, STARTED, STOPPED, clip, play, silence
from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.system.server import Server

SOUND = silence(0.5) + clip("fx16k_fr_1") + silence(3.5)
LAST_MS = 2_252
"""Where the speech in it is over, within two steps."""
FIXED_MS = 800
"""The silence for medium eagerness without a model."""


@asynccontextmanager
async def listening(server: Server, **detection: object) -> AsyncIterator[tuple[Socket, Event]]:
    """Open a session with ``semantic_vad`` that answers nothing, and give how it finds turns, as it shows."""
    async with open_socket(server.url) as socket:
        turns = {"type": "semantic_vad", "create_response": False, **detection}
        heard = {"format": {"type": "audio/pcm", "rate": RATE_HZ}, "turn_detection": turns}
        await socket.send("session.update", session={"audio": {"input": heard}})
        yield socket, (await socket.until("session.updated"))["session"]["audio"]["input"]["turn_detection"]


async def waited_ms(socket: Socket, sound: bytes = SOUND) -> float:
    """Return how long it was silent before the turn was over."""
    await play(socket, sound, pace=0.0)
    stopped: float = (await socket.until(STOPPED))["audio_end_ms"]
    await socket.until(COMPLETED)
    return stopped - LAST_MS


def heard(*probabilities: float, **fields: object) -> BridgesMode:
    """Make the bridges say how likely each pause is an end."""
    return BridgesMode(shape="ndjson", turn_end="heard", end_probabilities=probabilities, **fields)  # type: ignore[arg-type]


@pytest.mark.behaviour("detection.semantic_vad")
async def test_graded_waits(make_server: MakeServer, bridges: FakeBridges) -> None:
    """The surer the model, the shorter the wait; the eagerness says how sure, and how long."""
    bridges.mode = heard(0.99)
    server = make_server()
    for eagerness, waits in (
        ("auto", {0.975: 250, 0.9: 640, 0.3: 2_000}),
        ("low", {0.985: 500, 0.95: 1_200, 0.9: 3_000}),
        ("high", {0.94: 200, 0.85: 320, 0.5: 1_200}),
    ):
        for probability, wait_ms in waits.items():
            bridges.mode = heard(probability)
            bridges.judged.clear()
            async with listening(server, eagerness=eagerness) as (socket, shown):
                assert "fallback" not in shown
                assert wait_ms - 64 <= await waited_ms(socket) <= wait_ms + 96, (eagerness, probability)
            assert len(bridges.judged) == 1
            # What was said, and 160 ms of silence.
            assert bridges.judged[0].duration_s == pytest.approx(1.9, abs=0.4)


@pytest.mark.behaviour("detection.semantic_vad.again")
async def test_speech_goes_on(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A pause of which the model is not sure is none; each one is asked about, by eight seconds of sound at most."""
    bridges.mode = heard(0.2, 0.3, 0.99)
    server = make_server()
    sound = silence(0.5) + clip("fx16k_fr_0") + silence(0.3) + clip("fx16k_fr_2") + silence(0.3) + clip("fx16k_fr_1")
    async with listening(server) as (socket, _):
        await play(socket, sound, silence(1.5), pace=0.0)
        stopped = (await socket.until(STOPPED))["audio_end_ms"]
        await socket.until(COMPLETED)
        assert [event["type"] for event in socket.seen].count(STARTED) == 1
    assert stopped >= 500 * len(sound) / RATE_HZ - 400
    assert [round(one.duration_s) for one in bridges.judged[-1:]] == [8]


@pytest.mark.behaviour("detection.samples")
async def test_any_pace(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A model that is slow makes no other turns of a recording that comes at once than of one that comes as it is spoken."""
    bridges.mode = heard(0.99, end_delay_s=0.2)
    server = make_server()
    places = []
    for pace in (0.0, 1.0):
        async with listening(server) as (socket, _):
            await play(socket, SOUND[: len(SOUND) - 4 * RATE_HZ], pace=pace)
            places.append((await socket.until(STOPPED))["audio_end_ms"])
    assert places[0] == places[1]


@pytest.mark.parametrize("trap", ["absent", "error_200"])
@pytest.mark.behaviour("detection.semantic_vad.fallback")
async def test_without_a_model(make_server: MakeServer, bridges: FakeBridges, trap: str) -> None:
    """Where no model answers, or none in its right mind, a fixed silence ends a turn, and the session shows it."""
    bridges.mode = BridgesMode(shape="ndjson", turn_end=trap)  # type: ignore[arg-type]
    server = make_server()
    async with listening(server) as (socket, shown):
        assert shown["fallback"] == "silence"
        assert FIXED_MS - 64 <= await waited_ms(socket) <= FIXED_MS + 96
        async with client_of(server) as client, client.get("/health") as response:
            assert (await response.json())["services"]["python_bridges"] == "healthy"
        await socket.send("session.update", session={"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
        shown = (await socket.until("session.updated"))["session"]["audio"]["input"]["turn_detection"]
        assert (shown["type"], "fallback" in shown) == ("server_vad", False)
    assert not bridges.judged


@pytest.mark.behaviour("detection.semantic_vad.late")
async def test_lost_on_the_way(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A model that falls silent in a conversation, or answers late, leaves the fixed silence, and nothing waits long for it."""
    bridges.mode = heard(0.99)
    server = make_server()
    async with listening(server) as (socket, shown):
        assert "fallback" not in shown
        for mode in (
            heard(0.99, end_delay_s=5.0),
            BridgesMode(shape="ndjson", turn_end="broken"),
            BridgesMode(shape="ndjson", turn_end="nan"),
        ):
            bridges.mode = mode
            begun = len(socket.seen)
            await play(socket, SOUND, pace=0.0)
            async with asyncio.timeout(4):
                stopped = (await socket.until(STOPPED))["audio_end_ms"]
            turn = next(event for event in socket.seen[begun:] if event["type"] == STARTED)
            # The prefix and the clip's beginning are some 0.1 s each.
            assert 1_700 + FIXED_MS <= stopped - turn["audio_start_ms"] <= 2_200 + FIXED_MS
            await socket.until(COMPLETED)


@pytest.mark.behaviour("response.receipt")
async def test_receipt(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A response tells how sure the model was that the turn was over, and how long it was silent."""
    bridges.mode = heard(0.975)
    server = make_server()
    async with listening(server, create_response=True) as (socket, _):
        await play(socket, SOUND, pace=0.0)
        done = await socket.done()
        assert done["receipt"]["end_probability"] == 0.975
        assert 200 <= done["receipt"]["end_of_turn_ms"] <= 320
