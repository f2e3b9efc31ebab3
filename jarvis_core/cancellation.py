"""
Deadlines, and what a task has to do that goes on although it was cancelled: alike on every Python from 3.11.0 on.

``asyncio.timeout`` of Python 3.11.0 to 3.11.2 (Debian 12 has 3.11.2) raises ``CancelledError`` where ``TimeoutError`` is
due, in a task that was cancelled before: in one that stores what it has, or closes what it opened, because it was
cancelled (https://github.com/python/cpython/issues/102780). Whoever may be cancelled, or is called by who may, has its
deadlines from here, which is everybody; when the lowest version is 3.11.3 these may be asyncio's again.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Timeout:
    """As ``asyncio.Timeout``: what is done inside (``async with``) is cancelled when it is due, and ``TimeoutError`` raised."""

    __slots__ = ("_cancelling", "_timeout")

    def __init__(self, when: float | None) -> None:
        self._timeout = asyncio.Timeout(when)
        self._cancelling = 0
        """How often the task had been cancelled when it came in."""

    def reschedule(self, when: float | None) -> None:
        """Have it due at *when*, of the loop's clock, or never."""
        self._timeout.reschedule(when)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._cancelling = requests()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, exc, trace)
        # Only Python 3.11.0 to 3.11.2 come here with a deadline that was missed and a task that nobody else has cancelled.
        if self._timeout.expired() and isinstance(exc, asyncio.CancelledError) and requests() <= self._cancelling:
            raise TimeoutError from exc


def timeout(delay_s: float | None) -> Timeout:
    """Return a deadline that is due in *delay_s* seconds, or never; to be entered at once."""
    return Timeout(None if delay_s is None else asyncio.get_running_loop().time() + delay_s)


def timeout_at(when: float | None) -> Timeout:
    """Return a deadline that is due at *when*, of the loop's clock, or never."""
    return Timeout(when)


def requests() -> int:
    """Return how often the running task was asked to end, but for what was absorbed."""
    return _running().cancelling()


def raise_if_requested(*, since: int) -> None:
    """Raise ``CancelledError`` where the running task was asked to end after it had been asked *since* times."""
    if requests() > since:
        raise asyncio.CancelledError


def absorb() -> None:
    """
    Have the running task count as one that was not cancelled, as it has ended what it was cancelled for and goes on.

    Only for a task's own outermost coroutine: a deadline that is entered may have cancelled it too. Libraries take a task
    whose count stays up for one that is still being cancelled.
    """
    task = _running()
    while task.cancelling():
        task.uncancel()


def _running() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio runs no coroutine outside of one
    return task
