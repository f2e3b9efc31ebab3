"""
Bad credentials, by the address that they came from: whoever sends many is answered late.

The rule, and why. Credentials are always looked at, and good ones are answered at once, whatever else came from their
address: nobody can lock out others who come through the same proxy. A refusal is what is held back. The first
``FREE_PER_MINUTE`` of an address are answered at once, so that a device with an old key is told so; then each one waits
longer, up to ``LONGEST_WAIT_S``, until there were none for a while. Who sends them one after another gets no more than about
``FREE_PER_MINUTE`` looked at; of those who send many at once ``WAITING_LIMIT`` wait, and the others are told to come back
later. What keeps a key from being guessed is its length all the same: many addresses are cheap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from jarvis_core import log
from jarvis_core.errors import RateLimited

logger = log.get(__name__)
_lines = log.LogThrottle()

FREE_PER_MINUTE = 100
STEP_S = 0.1
"""How much longer each refusal beyond those waits than the one before it."""
LONGEST_WAIT_S = 2.0
HIGHEST_LEVEL = FREE_PER_MINUTE + LONGEST_WAIT_S / STEP_S
WAITING_LIMIT = 16
"""Refusals of one address that are held back at a time."""
ALL_WAITING_LIMIT = 512
ADDRESSES_LIMIT = 4_096
"""Addresses that are kept count of, at about 0.3 KB each; over that the one that was seen first is forgotten."""


class AuthThrottle:
    """Counts them for one process."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._levels: dict[str, tuple[float, float]] = {}
        """(level, when): it grows by one with each guess and sinks by ``FREE_PER_MINUTE`` in a minute."""
        self._waiting: dict[str, int] = {}
        self._all_waiting = 0

    def delay_s(self, address: str) -> float:
        """Count a guess from *address*, and return how long its refusal is to be held back."""
        now = self._now()
        level, seen = self._levels.get(address, (0.0, now))
        level = max(0.0, level - (now - seen) * FREE_PER_MINUTE / 60) + 1
        if len(self._levels) >= ADDRESSES_LIMIT and address not in self._levels:
            del self._levels[next(iter(self._levels))]
        self._levels[address] = (min(level, HIGHEST_LEVEL), now)
        return min(LONGEST_WAIT_S, max(0.0, level - FREE_PER_MINUTE) * STEP_S)

    async def hold_back(self, address: str) -> None:
        """
        Count a guess from *address*, and wait as long as its refusal is to be held back.

        Raises ``RateLimited`` at once where too many are waiting.
        """
        delay_s = self.delay_s(address)
        if not delay_s:
            return
        held_back = _lines.held_back("guesses")
        if held_back is not None:
            logger.warning("many bad credentials come from one address", address=address, held_back=held_back)
        waiting = self._waiting.get(address, 0)
        if waiting >= WAITING_LIMIT or self._all_waiting >= ALL_WAITING_LIMIT:
            raise RateLimited("Too many credentials were not valid.", retry_after_s=int(LONGEST_WAIT_S))
        self._waiting[address] = waiting + 1
        self._all_waiting += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._all_waiting -= 1
            left = self._waiting[address] - 1
            if left:
                self._waiting[address] = left
            else:
                del self._waiting[address]
