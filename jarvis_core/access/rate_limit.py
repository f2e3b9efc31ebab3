"""
Limits how many requests a caller may send in a minute.

A key may spend its whole limit at once and regains it evenly: with 60 a minute, one request each second. This is the
generic cell rate algorithm (ITU-T I.371), which keeps one number for each key (the time at which the whole limit is
regained) and makes no caller wait for a minute to end. Workers that share a store count in it together, by the minute
on the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from jarvis_core.errors import Unavailable

WINDOW_S = 60
KEYS_LIMIT = 65_536
"""Keys that are counted, at about 0.2 KB each; beyond that the oldest key is forgotten."""


class Allowance(NamedTuple):
    """The verdict on one request."""

    granted: bool
    remaining: int
    """How many more would be granted now."""
    reset_s: int
    """Seconds until the next request is granted, where this one was refused; else until the whole limit is regained."""


class RateLimiter(Protocol):
    """Counts the requests of each key, in one process or in a store that several processes share."""

    limit: int
    """Per key and minute."""

    async def take(self, key: str) -> Allowance:
        """Count a request of *key*, unless its limit is spent."""
        ...


class InProcessLimiter:
    """Counts of this process alone."""

    def __init__(self, limit: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._full_at: dict[str, float] = {}
        """When all of a key's requests will have come back, by the clock of *now*."""

    async def take(self, key: str) -> Allowance:
        """Count a request of *key*, unless its limit is spent; never waits."""
        now = self._now()
        allowance, full_at = judge(self.limit, self._full_at.get(key, now), now)
        if allowance.granted:
            if len(self._full_at) >= KEYS_LIMIT and key not in self._full_at:
                del self._full_at[next(iter(self._full_at))]
            self._full_at[key] = full_at
        return allowance


def judge(limit: int, full_at: float, now: float) -> tuple[Allowance, float]:
    """
    Return the verdict on a request at *now*, and the time at which the whole limit is regained after it, in seconds.
    """
    step_s = WINDOW_S / limit
    then = max(full_at, now) + step_s
    # A tolerance for rounding in sums of floats.
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
    Counts the requests to all workers together, by the minute on the clock.

    While the store is away each worker counts alone: no request is refused for that, and none escapes the limit.
    """

    def __init__(self, limit: int, counter: Counter, *, now: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self._counter = counter
        self._now = now
        self._alone = InProcessLimiter(limit)
        self._minute = 0
        self._spent: set[str] = set()
        """Keys whose limit is spent in this minute: their further requests are refused without asking the store."""

    async def take(self, key: str) -> Allowance:
        """Count a request of *key*, unless its limit is spent; waits for the store, which has a deadline of its own."""
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
