"""What a model is told of the house: the place, the day, the time, and what cannot be done."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from jarvis_core.turns.household import CANNOT, EXAMPLES, Household, place_of

PARIS = ZoneInfo("Europe/Paris")


def test_instructions() -> None:
    """The place, the language and the day end the instructions, and so does what cannot be done where nothing can."""
    house = Household("Europe/Paris", "fr", ("fr", "en"))
    now = datetime(2026, 12, 31, 23, 5, tzinfo=PARIS)
    told = "The house is in Paris. The language of the house is French. Today is Thursday 31 December 2026, tomorrow is Friday 1 January 2027."
    assert house.instructions("Be brief.", now, can_act=False) == f"Be brief. {CANNOT} {told}"
    assert house.instructions("Be brief.", now, can_act=True) == f"Be brief. {told}"


def test_instructions_stay_the_same_all_day() -> None:
    """What is the same from question to question changes at midnight only: a model reads it once a day."""
    house = Household("Europe/Paris")
    days = [
        house.instructions("", datetime(2026, 12, day, hour, tzinfo=PARIS), can_act=False)
        for day in (1, 2)
        for hour in range(24)
    ]
    assert days == [days[0]] * 24 + [days[24]] * 24
    assert days[0] != days[24]


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("fr", "[9 h 05, en français]"),
        ("en", "[09:05, in English]"),
        ("de", "[09:05, in German]"),
        (None, "[09:05]"),
        ("xx", "[09:05, in xx]"),
    ],
)
def test_context(language: str | None, told: str) -> None:
    """A question is preceded by the time, and by the language of its answer where that is known."""
    assert Household().context(datetime(2026, 12, 1, 9, 5, tzinfo=PARIS), language) == told


def test_now() -> None:
    """The time is that of the house's zone."""
    offset = Household("Asia/Kolkata").now().utcoffset()
    assert offset is not None
    assert offset.total_seconds() == 5.5 * 3_600


@pytest.mark.parametrize(
    ("zone", "place"),
    [
        ("Europe/Paris", "Paris"),
        ("America/New_York", "New York"),
        ("America/Argentina/Buenos_Aires", "Buenos Aires"),
        ("Etc/UTC", ""),
        ("UTC", ""),
        ("", ""),
        ("EST5EDT", ""),
    ],
)
def test_place(zone: str, place: str) -> None:
    """A zone tells the city that it is named after."""
    assert place_of(zone) == place


@pytest.mark.parametrize(
    ("house", "text", "language"),
    [
        (Household(), "What time is it?", "en"),
        (Household(), "Quelle heure est-il ?", "fr"),
        (Household(), "今何時ですか", None),
        (Household(default_language="de"), "Wie spät ist es?", "de"),
        (Household(default_language="auto", languages=("en",)), "Quelle heure est-il ?", None),
        (Household(), "Paul", None),
    ],
)
def test_language_of(house: Household, text: str, language: str | None) -> None:
    """A question's words tell its language among those of the house."""
    assert house.language_of(text) == language


def test_examples_take_turns() -> None:
    """The exchange that small models are shown is one that every template takes."""
    assert [one.role for one in EXAMPLES] == ["user", "assistant"] * (len(EXAMPLES) // 2)
