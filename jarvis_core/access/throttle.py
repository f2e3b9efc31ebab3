"""
Delays the refusals of bad credentials, by the address that they come from.

Only refusals are delayed. Credentials are always checked, and good ones are answered at once, whatever else came from
their address: a guesser cannot lock out other clients behind the same proxy. The first ``FREE_PER_MINUTE`` refusals of
an address go out at once, so that a device with an old key learns of it; each further refusal waits longer, up to
``LONGEST_WAIT_S``, until the address has been quiet for a while. A client that guesses in sequence so gets about
``FREE_PER_MINUTE`` guesses checked; of parallel guesses ``WAITING_LIMIT`` wait and the others get 429. A key's length
is what protects it all the same: addresses are cheap.
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
"""How much longer each further refusal waits than the one before."""
LONGEST_WAIT_S = 2.0
HIGHEST_LEVEL = FREE_PER_MINUTE + LONGEST_WAIT_S / STEP_S
WAITING_LIMIT = 16
"""Refusals of one address that wait at a time."""
ALL_WAITING_LIMIT = 512
ADDRESSES_LIMIT = 4_096
"""Addresses that are counted, at about 0.3 KB each; beyond that the oldest address is forgotten."""


class AuthThrottle:
    """Counts bad credentials by address, for one process."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._levels: dict[str, tuple[float, float]] = {}
        """
        By address: (level, when). The level grows by one with each guess and sinks by ``FREE_PER_MINUTE`` in a minute.
        """
        self._waiting: dict[str, int] = {}
        self._all_waiting = 0

    def delay_s(self, address: str) -> float:
        """Count a guess from *address*; return how long to delay its refusal."""
        now = self._now()
        level, seen = self._levels.get(address, (0.0, now))
        level = max(0.0, level - (now - seen) * FREE_PER_MINUTE / 60) + 1
        if len(self._levels) >= ADDRESSES_LIMIT and address not in self._levels:
            del self._levels[next(iter(self._levels))]
        self._levels[address] = (min(level, HIGHEST_LEVEL), now)
        return min(LONGEST_WAIT_S, max(0.0, level - FREE_PER_MINUTE) * STEP_S)

    async def hold_back(self, address: str) -> None:
        """
        Count a guess from *address*, and wait for as long as its refusal is to be delayed.

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
