"""Starts tasks that one object owns, and races work against an event."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Preempted(Exception):
    """The event came before the work was done."""


def start_in(tasks: set[asyncio.Task[T]], work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start *work* as a task that *tasks* holds until it ends; the owner of *tasks* waits for it or cancels it."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def unless(event: asyncio.Future[Any], work: Coroutine[Any, Any, T]) -> T:
    """
    Return what *work* returns, or raise what it raises.

    Raises ``Preempted`` where *event* is done first, or at the same time; *work* is then cancelled and has ended.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait([task, event], return_when=asyncio.FIRST_COMPLETED)
        if event.done():
            raise Preempted
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, also where the event came first
        # Its error refers to this frame: together, and with all that the error's frames hold, they would wait for a
        # collector that looks seldom.
        del task
