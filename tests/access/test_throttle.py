"""Bad credentials: whose refusals are held back, for how long, and how many at a time."""

from __future__ import annotations

import asyncio

import pytest

from jarvis_core.access import throttle as guesses
from jarvis_core.access.throttle import (
    ADDRESSES_LIMIT,
    ALL_WAITING_LIMIT,
    FREE_PER_MINUTE,
    LONGEST_WAIT_S,
    WAITING_LIMIT,
    AuthThrottle,
)
from jarvis_core.errors import RateLimited


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 5_000.0

    def __call__(self) -> float:
        return self.now


def test_first_ones_are_free() -> None:
    """The first of an address are answered at once, then each waits longer, up to the longest; other addresses do not."""
    counted = AuthThrottle(now=Clock())
    assert [counted.delay_s("a") for _ in range(FREE_PER_MINUTE)] == [0] * FREE_PER_MINUTE
    delays = [counted.delay_s("a") for _ in range(100)]
    assert delays == sorted(delays)
    assert 0 < delays[0] < delays[5] < delays[-1] == LONGEST_WAIT_S
    assert counted.delay_s("b") == 0


def test_one_after_another() -> None:
    """Who sends one after another gets hardly more than the free ones looked at in a minute."""
    clock = Clock()
    counted = AuthThrottle(now=clock)
    seen = []
    for _ in range(10_000):
        clock.now += counted.delay_s("a") + 0.001
        seen.append(clock.now)
    # Of the later ones, when the first are spent.
    per_minute = 60 * 1_000 / (seen[-1] - seen[-1_001])
    assert FREE_PER_MINUTE * 0.9 < per_minute < FREE_PER_MINUTE * 1.1


def test_forgiven() -> None:
    """After two quiet minutes an address is as good as new, however much came from it."""
    clock = Clock()
    counted = AuthThrottle(now=clock)
    for _ in range(100_000):
        counted.delay_s("a")
    clock.now += 120
    assert [counted.delay_s("a") for _ in range(FREE_PER_MINUTE)] == [0] * FREE_PER_MINUTE


async def test_waiting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many of one address wait at a time and so many in all; more are told at once, and what waited leaves nothing."""
    monkeypatch.setattr(guesses, "LONGEST_WAIT_S", 0.05)
    counted = AuthThrottle(now=Clock())
    addresses = [f"10.0.0.{number}" for number in range(ALL_WAITING_LIMIT // WAITING_LIMIT + 2)]
    for address in addresses:
        for _ in range(FREE_PER_MINUTE):
            counted.delay_s(address)
    for address in addresses[:2]:
        results = await asyncio.gather(*(counted.hold_back(address) for _ in range(50)), return_exceptions=True)
        assert sum(isinstance(result, RateLimited) for result in results) == 50 - WAITING_LIMIT
    results = await asyncio.gather(
        *(counted.hold_back(address) for address in addresses for _ in range(WAITING_LIMIT)), return_exceptions=True
    )
    assert sum(result is None for result in results) == ALL_WAITING_LIMIT
    assert counted._waiting == {}
    assert counted._all_waiting == 0


@pytest.mark.every_python
async def test_cancelled_wait_is_over() -> None:
    """A wait that is cancelled does not count as one that goes on."""
    counted = AuthThrottle(now=Clock())
    for _ in range(FREE_PER_MINUTE):
        counted.delay_s("a")
    waiting = asyncio.create_task(counted.hold_back("a"))
    await asyncio.sleep(0)
    assert counted._all_waiting == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (counted._waiting, counted._all_waiting) == ({}, 0)


def test_table_is_bounded() -> None:
    """However many addresses send some, no more than so many are kept."""
    counted = AuthThrottle(now=Clock())
    for number in range(2 * ADDRESSES_LIMIT):
        counted.delay_s(str(number))
    assert len(counted._levels) == ADDRESSES_LIMIT
