"""A circuit breaker and a retry budget, which keep a failing neighbour from being asked again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5
"""Failures in a row that open a breaker: a restart of a second, or one slow answer, does not."""
RETRY_SHARE = 0.1
"""Retries are at most this share of all requests, as in gRPC's and Finagle's budgets."""
RETRY_RESERVE = 5.0
"""Retries that the budget starts with, and the most that it saves."""


class Breaker:
    """
    Closed, open or half-open (https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker).

    *failures* in a row open it for *open_s* seconds. Then it is half-open: ``admit`` lets one call through as a probe,
    whose success closes the breaker and whose failure opens it again. Every admitted caller must report ``succeeded``,
    ``failed`` or ``abandoned``; any success closes the breaker.
    """

    def __init__(self, open_s: float, failures: int = FAILURES, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_s = open_s
        self._limit = failures
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False
        self.openings = 0
        """How often it has opened."""

    @property
    def closed(self) -> bool:
        """Whether all calls go through."""
        return self._opened_at is None

    @property
    def due(self) -> bool:
        """Whether the next call would be let through as the probe."""
        return self._opened_at is not None and not self._probing and self._clock() >= self._opened_at + self._open_s

    @property
    def wait_s(self) -> float:
        """How long until a probe is let through, in seconds; 0 where it is closed or the time has come."""
        return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self._open_s - self._clock())

    def admit(self) -> bool:
        """Whether a call may be made now."""
        if self._opened_at is None:
            return True
        if not self.due:
            return False
        self._probing = True
        return True

    def hurry(self) -> None:
        """Let a probe through now: something speaks for its success."""
        if self._opened_at is not None:
            self._opened_at = min(self._opened_at, self._clock() - self._open_s)

    def succeeded(self) -> None:
        """Take note of a call that went well."""
        self._failures = 0
        self._opened_at = None
        self._probing = False

    def failed(self) -> None:
        """Take note of a call that failed."""
        self._failures += 1
        if self._opened_at is not None or self._failures >= self._limit:
            if self._opened_at is None:
                self.openings += 1
            self._opened_at = self._clock()
            self._probing = False

    def abandoned(self) -> None:
        """Note a call that ended without a verdict; if it was the probe, the next call is the probe."""
        self._probing = False


class RetryBudget:
    """How many requests may be sent a second time: ``RETRY_SHARE`` of them all, so that retries never double a load."""

    __slots__ = ("_saved", "retries")

    def __init__(self) -> None:
        self._saved = RETRY_RESERVE
        self.retries = 0
        """How many there were."""

    def note_request(self) -> None:
        """Count a request."""
        if self._saved < RETRY_RESERVE:
            self._saved += RETRY_SHARE

    def take(self) -> bool:
        """Return whether another retry may be sent."""
        if self._saved < 1:
            return False
        self._saved -= 1
        self.retries += 1
        return True
