"""A real Home Assistant does what it is told through the core, and answers; no model is asked."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.events import read_events
from tests.handlers.rest.api import Api
from tests.home.real_house import RealHouse

GENERATE = "/api/llm/generate"
ADDED_LIMIT_S = 0.015
ROUNDS = 60

SENTENCES = [
    # What is said, the level of all lamps before it, and then that of one; None: the answer begins with "yes".
    ("Allume la lumière du salon", 0, "salon", 100),
    ("Éteins la lumière du salon.", 50, "salon", 0),
    ("Allume la lumière de la cuisine !", 0, "cuisine", 100),
    ("éteins la lumière de la cuisine", 50, "cuisine", 0),
    ("Allume la lampe de chevet", 0, "chambre", 100),
    ("Mets la lampe de chevet à 30 %", 100, "chambre", 30),
    ("Règle la luminosité de la lumière du salon à 50 %", 100, "salon", 50),
    ("Éteins les lumières de la chambre", 50, "chambre", 0),
    ("Allume toutes les lumières", 0, "cuisine", 100),
    ("Est-ce que la lumière de la cuisine est allumée ?", 50, "cuisine", None),
    ("Turn on the living room light", 0, "salon", 100),
    ("Turn off the living room light.", 50, "salon", 0),
    ("Switch on the kitchen light", 0, "cuisine", 100),
    ("turn off the kitchen light", 50, "cuisine", 0),
    ("Turn on the bedside lamp!", 0, "chambre", 100),
    ("Set the bedside lamp to 40%", 100, "chambre", 40),
    ("Set living room light brightness to 60%", 100, "salon", 60),
    ("Turn off the lights in the bedroom", 50, "chambre", 0),
    ("Turn on the lights in the kitchen", 0, "cuisine", 100),
    ("Is the kitchen light on?", 50, "cuisine", None),
]


@pytest.mark.parametrize(("said", "before", "lamp", "after"), SENTENCES, ids=[said for said, *_ in SENTENCES])
async def test_sentence(
    api: Api, bridges: FakeBridges, house: RealHouse, said: str, before: int, lamp: str, after: int | None
) -> None:
    """The state changes, the answer is the house's, and it is stored; no model is asked."""
    await asyncio.to_thread(house.set_lamps, before)
    turn = await api.say(said)
    assert (turn["model"], turn["status"], turn["tokens"]) == ("home-assistant", "completed", 0)
    level = await asyncio.to_thread(house.level, lamp)
    if after is None:
        assert turn["content"].startswith(("Oui", "Yes")), turn["content"]
    elif after == 100:
        assert level > 0, turn["content"]  # it is switched on as bright as it was
    else:
        assert level == after, turn["content"]
    assert await api.history(turn["conversation_id"]) == [
        ("user", said, "completed"),
        ("assistant", turn["content"], "completed"),
    ]
    assert bridges.requests_seen[GENERATE] == 0


async def test_streamed(api: Api, bridges: FakeBridges, house: RealHouse) -> None:
    """The same comes as events."""
    await asyncio.to_thread(house.set_lamps, 0)
    async with api.stream("Allume la lumière du salon") as response:
        events = await read_events(response)
    assert (events[-1].name, events[-1].data["response"]["model"]) == ("response.done", "home-assistant")
    assert await asyncio.to_thread(house.level, "salon") > 0
    assert bridges.requests_seen[GENERATE] == 0


@pytest.mark.parametrize(
    "said",
    [
        "Bonjour, comment vas-tu ?",
        "Quelle heure est-il ?",
        "Mon vélo est au garage",
        "Donne-moi une recette de crêpes",
        "Ajoute du lait à la liste de courses",
        "What is the temperature?",
        "Tell me a story",
        "Remember that my bike is in the garage",
    ],
)
async def test_for_the_model(api: Api, bridges: FakeBridges, said: str) -> None:
    """What is not the house's is the model's, also where Home Assistant takes a question for a device or fails at it."""
    assert (await api.say(said))["content"] == f"You said: {said}"
    assert bridges.requests_seen[GENERATE] == 1


async def test_unknown_device(api: Api, bridges: FakeBridges) -> None:
    """A device that is not there is told of in the house's own words."""
    turn = await api.say("Allume le four")
    assert (turn["model"], "four" in turn["content"]) == ("home-assistant", True)
    assert bridges.requests_seen[GENERATE] == 0


async def test_added_time(api: Api, bridges: FakeBridges, house: RealHouse, capsys: pytest.CaptureFixture[str]) -> None:
    """The core adds at most ``ADDED_LIMIT_S`` (median) to what the house itself takes, its storing included."""
    said = "Allume la lumière du salon"
    await api.say(said)
    alone, through = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await asyncio.to_thread(house.process, said, "fr")
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        await api.say(said)
        through.append(time.perf_counter() - began)
    p50_alone, p50_through = statistics.median(alone), statistics.median(through)
    with capsys.disabled():
        print(  # noqa: T201 - what is measured is shown
            f"\nHome Assistant alone {1_000 * p50_alone:.1f} ms, through the core {1_000 * p50_through:.1f} ms (median of {ROUNDS})"
        )
    assert p50_through - p50_alone < ADDED_LIMIT_S
    assert bridges.requests_seen[GENERATE] == 0
