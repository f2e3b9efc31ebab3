"""
How much somebody may ask in a minute.

Each key has as many requests at once as the limit says, and they come back evenly: with 60 a minute one in each second. It is
the generic cell rate algorithm (ITU-T I.371), which keeps one number for each key, the time at which all will have come
back, and makes nobody wait for the turn of a minute. Workers that share a store count together in it, by the minute on the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from jarvis_core.errors import Unavailable

WINDOW_S = 60
KEYS_LIMIT = 65_536
"""Counts that are kept, at about 0.2 KB each; over that the one that was made first is forgotten."""


class Allowance(NamedTuple):
    """What became of one request."""

    granted: bool
    remaining: int
    """How many more would be granted now."""
    reset_s: int
    """Until the next one is granted where this one was not, else until all have come back."""


class RateLimiter(Protocol):
    """Counts what each key takes: of one process, or in a store that several share."""

    limit: int
    """Per key and minute."""

    async def take(self, key: str) -> Allowance:
        """Take one from what *key* has left; where nothing is left it is refused, and not counted."""
        ...


class InProcessLimiter:
    """Counts of this process alone."""

    def __init__(self, limit: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._full_at: dict[str, float] = {}
        """When all of a key's requests will have come back, by the clock of *now*."""

    async def take(self, key: str) -> Allowance:
        """Take one from what *key* has left; never waits."""
        now = self._now()
        allowance, full_at = judge(self.limit, self._full_at.get(key, now), now)
        if allowance.granted:
            if len(self._full_at) >= KEYS_LIMIT and key not in self._full_at:
                del self._full_at[next(iter(self._full_at))]
            self._full_at[key] = full_at
        return allowance


def judge(limit: int, full_at: float, now: float) -> tuple[Allowance, float]:
    """Return whether one more may be had at *now*, and when all will have come back then, in seconds."""
    step_s = WINDOW_S / limit
    then = max(full_at, now) + step_s
    # A hair's breadth for what sums of floats lose.
    over_s = then - now - WINDOW_S - step_s / 1_000
    if over_s > 0:
        return Allowance(False, 0, max(1, math.ceil(over_s))), full_at
    remaining = int((WINDOW_S - (then - now)) / step_s + 0.001)
    return Allowance(True, remaining, math.ceil(then - now)), then


class Counter(Protocol):
    """A store that several workers count in."""

    async def increment(self, key: str, ttl_s: int) -> int:
        """Return how often *key* has been counted, this time too; it is forgotten after *ttl_s*. Raises ``Unavailable``."""
        ...


class SharedLimiter:
    """
    Counts of all workers, by the minute on the clock.

    While the store is away each worker counts alone: nobody is refused for that, and nobody let in without a limit.
    """

    def __init__(self, limit: int, counter: Counter, *, now: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self._counter = counter
        self._now = now
        self._alone = InProcessLimiter(limit)
        self._minute = 0
        self._spent: set[str] = set()
        """Keys that have nothing left in this minute: whoever goes on all the same costs the store nothing."""

    async def take(self, key: str) -> Allowance:
        """Take one from what *key* has left; waits for the store, which has a deadline of its own."""
        now = self._now()
        minute = int(now // WINDOW_S)
        left_s = math.ceil(WINDOW_S - now % WINDOW_S)
        if minute != self._minute:
            self._minute = minute
            self._spent.clear()
        if key in self._spent:
            return Allowance(False, 0, left_s)
        try:
            count = await self._counter.increment(f"rate:{minute}:{key}", 2 * WINDOW_S)
        except Unavailable:
            return await self._alone.take(key)
        if count >= self.limit and minute == self._minute and len(self._spent) < KEYS_LIMIT:
            self._spent.add(key)
        return Allowance(count <= self.limit, max(0, self.limit - count), left_s)
