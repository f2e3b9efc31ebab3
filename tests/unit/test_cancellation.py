"""Deadlines in tasks that were cancelled before, which store and close what they have: alike on every Python."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jarvis_core import cancellation

pytestmark = pytest.mark.every_python

SHORT_S = 0.01


async def for_ever() -> None:
    """Wait for what never comes."""
    await asyncio.Event().wait()


async def miss() -> str:
    """Return how a deadline that is missed is told."""
    try:
        async with cancellation.timeout(SHORT_S):
            await for_ever()
    except BaseException as exc:  # noqa: BLE001 - the test looks at its kind
        return type(exc).__name__
    return "nothing"


async def run_cancelled(work: Callable[[], Awaitable[str]]) -> str:
    """Return what *work* returns that waits for ever, is cancelled, and goes on."""
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        return await task


async def test_deadline_is_missed() -> None:
    """Who misses a deadline gets ``TimeoutError``, and the task counts as one that nobody cancelled."""
    assert (await miss(), cancellation.requests()) == ("TimeoutError", 0)


async def test_deadline_is_kept() -> None:
    """What is done in time is done; a deadline of None never comes."""
    for delay_s in (60.0, None):
        async with cancellation.timeout(delay_s):
            await asyncio.sleep(0)


async def test_deadline_while_cleaning_up() -> None:
    """A task that closes something because it was cancelled misses a deadline as any other does."""

    missed: list[str] = []

    async def work() -> str:
        try:
            await for_ever()
        finally:
            missed.append(await miss())
        return "nothing"

    with pytest.raises(asyncio.CancelledError):
        await run_cancelled(work)
    assert missed == ["TimeoutError"]


async def test_deadline_after_a_cancellation() -> None:
    """So does one that goes on, also where the deadline is in another one."""

    async def work() -> str:
        with pytest.raises(asyncio.CancelledError):
            await for_ever()
        async with cancellation.timeout(60):
            return await miss()

    assert await run_cancelled(work) == "TimeoutError"


async def test_cancelled_inside() -> None:
    """Who is cancelled before the deadline is cancelled."""

    async def work() -> str:
        async with cancellation.timeout(60):
            await for_ever()
        return "nothing"

    with pytest.raises(asyncio.CancelledError):
        await run_cancelled(work)


async def test_both_at_once() -> None:
    """A task that is cancelled in the moment of its deadline is cancelled: whoever asked for that waits for it."""

    async def wait() -> None:
        async with cancellation.timeout(None) as limit:
            limits.append(limit)
            await for_ever()

    limits: list[cancellation.Timeout] = []
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    limits[0].reschedule(0)
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.wait([task])
    assert task.cancelled()


async def test_absorbed() -> None:
    """A task that has absorbed its cancellation counts as none that is cancelled, also for what has no part in this."""

    async def work() -> str:
        with pytest.raises(asyncio.CancelledError):
            await for_ever()
        assert cancellation.requests() == 1
        cancellation.absorb()
        assert cancellation.requests() == 0
        try:
            async with asyncio.timeout(SHORT_S):
                await for_ever()
        except TimeoutError:
            return "TimeoutError"
        return "nothing"

    assert await run_cancelled(work) == "TimeoutError"


async def test_absorbed_task_can_be_cancelled_again() -> None:
    """Who cancels such a task later ends it."""

    async def work() -> str:
        with pytest.raises(asyncio.CancelledError):
            await for_ever()
        cancellation.absorb()
        await for_ever()
        return "nothing"

    task = asyncio.ensure_future(work())
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
