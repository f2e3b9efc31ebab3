"""The rate limit: how many at once, how they come back, and what a client is told."""

from __future__ import annotations

import pytest

from jarvis_core.access import rate_limit
from jarvis_core.access.rate_limit import Allowance, InProcessLimiter, RateLimiter, SharedLimiter
from jarvis_core.errors import Unavailable


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.3

    def __call__(self) -> float:
        return self.now


async def granted(limiter: RateLimiter, key: str, tries: int) -> int:
    """Return how many of so many tries are granted."""
    return sum([(await limiter.take(key)).granted for _ in range(tries)])


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 1_000, 7_777])
async def test_limit_at_once(limit: int) -> None:
    """Exactly as many as the limit says are to be had at once, and after a minute as many again."""
    clock = Clock()
    limiter = InProcessLimiter(limit, now=clock)
    for _ in range(5):
        assert await granted(limiter, "ann", limit + 5) == limit
        clock.now += 60


@pytest.mark.parametrize("limit", [1, 3, 59, 600])
async def test_wait_is_long_enough_and_no_longer(limit: int) -> None:
    """Who waits as long as the refusal says is granted the next one; never is it more than a minute."""
    clock = Clock()
    limiter = InProcessLimiter(limit, now=clock)
    await granted(limiter, "ann", limit)
    for _ in range(20):
        refusal = await limiter.take("ann")
        assert not refusal.granted
        assert 1 <= refusal.reset_s <= 60
        clock.now += refusal.reset_s
        assert (await limiter.take("ann")).granted
        await granted(limiter, "ann", limit)
        clock.now += 0.37 / limit


async def test_what_is_told() -> None:
    """An allowance says how many are left, and when all will be back."""
    clock = Clock()
    limiter = InProcessLimiter(3, now=clock)
    told = [await limiter.take("ann") for _ in range(4)]
    assert told == [
        Allowance(True, 2, 20),
        Allowance(True, 1, 40),
        Allowance(True, 0, 60),
        Allowance(False, 0, 20),
    ]
    clock.now += 20
    assert await limiter.take("ann") == Allowance(True, 0, 60)


async def test_they_come_back_evenly() -> None:
    """With 60 a minute one comes back in each second, however long somebody goes on: refusals cost nothing."""
    clock = Clock()
    limiter = InProcessLimiter(60, now=clock)
    await granted(limiter, "ann", 60)
    had = 0
    for _ in range(600):
        clock.now += 0.1
        had += await granted(limiter, "ann", 3)
    assert had == 60


async def test_keys_are_apart() -> None:
    """What one takes is not missed by another."""
    limiter = InProcessLimiter(2, now=Clock())
    assert await granted(limiter, "ann", 5) == 2
    assert await granted(limiter, "bob", 5) == 2


async def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come, no more than so many are kept count of, and the last one is."""
    monkeypatch.setattr(rate_limit, "KEYS_LIMIT", 10)
    limiter = InProcessLimiter(1, now=Clock())
    for number in range(1_000):
        await limiter.take(str(number))
    assert len(limiter._full_at) == 10
    assert not (await limiter.take("999")).granted


class Store:
    """What workers share."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.asked = 0
        self.away = False

    async def increment(self, key: str, ttl_s: int) -> int:
        assert ttl_s >= 60
        self.asked += 1
        if self.away:
            raise Unavailable("It is away.")
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]


async def test_workers_count_together() -> None:
    """Several workers grant together what the limit says in a minute, and in the next one as many again."""
    clock, store = Clock(), Store()
    workers = [SharedLimiter(10, store, now=clock) for _ in range(3)]
    for _ in range(3):
        assert sum([await granted(worker, "ann", 6) for worker in workers]) == 10
        assert await granted(workers[0], "bob", 11) == 10
        refusal = await workers[0].take("ann")
        assert not refusal.granted
        clock.now += refusal.reset_s


async def test_what_is_told_of_a_shared_count() -> None:
    """An allowance of a shared count says how many are left, and when the minute is over."""
    clock = Clock()
    limiter = SharedLimiter(2, Store(), now=clock)
    left_s = 60 - int(clock.now % 60)
    told = [await limiter.take("ann") for _ in range(3)]
    assert told == [Allowance(True, 1, left_s), Allowance(True, 0, left_s), Allowance(False, 0, left_s)]


async def test_hammering_costs_the_store_nothing() -> None:
    """Whoever has nothing left is refused without asking the store."""
    store = Store()
    limiter = SharedLimiter(5, store, now=Clock())
    assert await granted(limiter, "ann", 1_000) == 5
    assert store.asked == 5


async def test_store_that_is_away() -> None:
    """While the store is away a worker counts alone: it lets nobody in without a limit, and refuses nobody for that."""
    store = Store()
    limiter = SharedLimiter(5, store, now=Clock())
    store.away = True
    assert await granted(limiter, "ann", 20) == 5
    store.away = False
    assert await granted(limiter, "bob", 20) == 5
