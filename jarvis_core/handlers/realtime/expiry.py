"""Ends a socket with the credentials that it was opened with."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

LOOK_INTERVAL_S = 60.0
"""Longest sleep: the loop's clock stands still while the machine is suspended, and the world's may be set anew."""


class Expiry:
    """Calls *expired* once it is *ends_at_s*, in seconds since 1970; never where that is infinite."""

    def __init__(self, ends_at_s: float, expired: Callable[[], None]) -> None:
        self._ends_at_s = ends_at_s
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Wait for the end, on the running loop."""
        if self._ends_at_s != math.inf:
            self._look()

    def stop(self) -> None:
        """Wait no longer; safe to call before ``start`` and after the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        left_s = self._ends_at_s - time.time()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(min(left_s, LOOK_INTERVAL_S), self._look)
        else:
            self._timer = None
            self._expired()
