"""
Deadlines, and the absorbing of a cancellation by a task that goes on, alike on every Python from 3.11.0 on.

``asyncio.timeout`` of Python 3.11.0 to 3.11.2 (Debian 12 has 3.11.2) raises ``CancelledError`` where ``TimeoutError``
is due, in a task that was cancelled before, such as one that stores or closes something because it was cancelled
(https://github.com/python/cpython/issues/102780). And it costs twice as much as these deadlines, of which each request has
several.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Timeout:
    """Cancels the block (``async with``) when it is due and raises ``TimeoutError``, as ``asyncio.Timeout`` does."""

    __slots__ = ("_due", "_expired", "_loop", "_requests", "_task", "_timer")

    def __init__(self, due: float | None) -> None:
        self._due = due
        self._expired = False
        self._timer: asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = _running()
        self._requests = self._task.cancelling()
        if self._due is not None:
            self._timer = self._loop.call_at(self._due, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._task = self._task, None
        # A cancellation that was requested by others, too, goes on.
        if self._expired and task is not None and task.uncancel() <= self._requests:  # noqa: SIM102
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from exc

    def reschedule(self, due: float) -> None:
        """Have the block cancelled at *due*, of the loop's clock, unless it has been cancelled or left already."""
        if self._task is None or self._expired:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._expire)

    def expired(self) -> bool:
        """Return whether the block was cancelled because it was due."""
        return self._expired

    def _expire(self) -> None:
        self._timer = None
        if self._task is not None:
            self._expired = True
            self._task.cancel()


def timeout(delay_s: float | None) -> Timeout:
    """Return a deadline that is due in *delay_s* seconds, or never; to be entered at once."""
    return Timeout(None if delay_s is None else asyncio.get_running_loop().time() + delay_s)


def timeout_at(when: float | None) -> Timeout:
    """Return a deadline that is due at *when*, of the loop's clock, or never."""
    return Timeout(when)


def requests() -> int:
    """Return how many cancellations of the running task were requested and not absorbed."""
    return _running().cancelling()


def raise_if_requested(*, since: int) -> None:
    """Raise ``CancelledError`` where the running task was asked to end after it had been asked *since* times."""
    if requests() > since:
        raise asyncio.CancelledError


def absorb() -> None:
    """
    Mark the running task as not cancelled: it has ended the work that was cancelled, and goes on.

    Only for a task's outermost coroutine: an entered deadline may have cancelled the task too. Without this, libraries
    take the task for one that is still being cancelled.
    """
    task = _running()
    while task.cancelling():
        task.uncancel()


def _running() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio runs no coroutine outside of one
    return task
