"""
Deadlines, and the absorbing of a cancellation by a task that goes on, alike on every Python from 3.11.0 on.

``asyncio.timeout`` of Python 3.11.0 to 3.11.2 (Debian 12 has 3.11.2) raises ``CancelledError`` where ``TimeoutError``
is due, in a task that was cancelled before, such as one that stores or closes something because it was cancelled
(https://github.com/python/cpython/issues/102780). Any code may run in such a task, so all of it uses these deadlines,
which are asyncio's own from 3.11.3 on.
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Self


class Timeout(asyncio.Timeout):  # type: ignore[misc]  # final for type checkers; this adds nothing on later Pythons
    """Cancels the block (``async with``) when it is due and raises ``TimeoutError``, as ``asyncio.Timeout`` does."""

    if sys.version_info < (3, 11, 3):

        async def __aenter__(self) -> Self:
            self._requests = requests()
            await super().__aenter__()
            return self

        async def __aexit__(
            self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
        ) -> None:
            await super().__aexit__(kind, exc, trace)
            if self.expired() and isinstance(exc, asyncio.CancelledError) and requests() <= self._requests:
                raise TimeoutError from exc


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
