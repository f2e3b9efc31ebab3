"""A circuit breaker: who has just failed is left alone for a while, then tried once."""

from __future__ import annotations

import time


class Breaker:
    """
    Closed, open or half-open (https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker).

    The first failure opens it for *open_s* seconds. After that ``try_probe`` lets one through at a time; its success
    closes the breaker, its failure opens it again.
    """

    def __init__(self, open_s: float) -> None:
        self._open_s = open_s
        self._opened_at: float | None = None
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self._opened_at is None

    def try_probe(self) -> bool:
        """Whether the caller is the one that may try now; it has to tell how that went."""
        if self._opened_at is None or self._probing or time.monotonic() < self._opened_at + self._open_s:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Take note of a call that went well."""
        self._opened_at = None
        self._probing = False

    def failed(self) -> None:
        """Take note of a call that failed."""
        self._opened_at = time.monotonic()
        self._probing = False
