"""Tasks that are owned, and work that is raced against an event."""

from __future__ import annotations

import asyncio
import gc

import pytest

from jarvis_core.tasks import Preempted, start_in, unless

pytestmark = pytest.mark.every_python


async def wait_for(event: asyncio.Event) -> str:
    """Work that ends with *event*."""
    await event.wait()
    return "done"


async def test_owned_tasks() -> None:
    """A task is held for as long as it runs."""
    tasks: set[asyncio.Task[str]] = set()
    event = asyncio.Event()
    task = start_in(tasks, wait_for(event))
    assert tasks == {task}
    event.set()
    assert await task == "done"
    await asyncio.sleep(0)
    assert not tasks


async def test_work_comes_first() -> None:
    """What the work returns is returned, and the event is left waiting."""
    never = asyncio.get_running_loop().create_future()
    event = asyncio.Event()
    event.set()
    assert await unless(never, wait_for(event)) == "done"
    assert not never.done()


async def test_work_fails() -> None:
    """The work's error is raised."""

    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await unless(asyncio.get_running_loop().create_future(), fail())


@pytest.mark.parametrize("reason", [None, ValueError("at its end")])
async def test_event_comes_first(reason: Exception | None) -> None:
    """Work that an event preempts is cancelled, and has ended when that is told, however it ends."""
    loop = asyncio.get_running_loop()
    event = loop.create_future()
    ended = []
    untold: list[object] = []
    loop.set_exception_handler(lambda _, context: untold.append(context))

    async def work() -> None:
        try:
            event.set_result(None)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)
            if reason is not None:
                raise reason

    with pytest.raises(Preempted):
        await unless(event, work())
    assert ended == [True]
    gc.collect()
    assert not untold, "nobody is left to look at the work's error"


async def test_event_at_the_same_time() -> None:
    """An event that comes with the end of the work goes before it."""
    event = asyncio.get_running_loop().create_future()

    async def work() -> None:
        event.set_result(None)

    with pytest.raises(Preempted):
        await unless(event, work())


async def test_cancelled() -> None:
    """A race that is cancelled takes its work with it."""
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    race = asyncio.create_task(unless(asyncio.get_running_loop().create_future(), work()))
    await asyncio.sleep(0)
    race.cancel()
    await asyncio.wait([race])
    assert race.cancelled()
    assert ended.is_set()
