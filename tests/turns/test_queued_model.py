"""The language model behind its queue: whose answer is next, and what becomes of a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from jarvis_core.errors import Overloaded, Unavailable
from jarvis_core.fair_queue import FairQueue
from jarvis_core.models import Caller, Finish, LanguageModel, Prompt
from jarvis_core.shares import current_user
from jarvis_core.turns.queued_model import QueuedModel

pytestmark = pytest.mark.every_python

PROMPT = Prompt("", [], "hello", 0.5, 10)


class Model:
    """Answers when it is told to; or fails, before its answer or in it."""

    history_limit_chars = 1_000
    reads_ahead = False

    def __init__(self, *, fails: str = "") -> None:
        self.fails = fails
        self.order: list[str] = []
        self.go_on = asyncio.Event()

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Do nothing."""

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[str | Finish]]:
        """Answer."""
        assert prompt is PROMPT
        if self.fails == "before":
            raise Unavailable("away")
        self.order.append(caller.user_id)
        yield self._pieces()

    async def _pieces(self) -> AsyncIterator[str | Finish]:
        await self.go_on.wait()
        if self.fails == "within":
            raise Unavailable("away")
        yield Finish("stop", 1, "model")


async def answer(model: LanguageModel, user: str) -> None:
    """Ask for an answer as *user*, and read it to its end."""
    current_user.set(user)
    async with model.generate(PROMPT, Caller(user)) as pieces:
        assert [piece async for piece in pieces]


async def test_users_have_turns() -> None:
    """Behind a user with many turns another's is answered second; each answer has its place until its end."""
    model = Model()
    queue = FairQueue(1, waiting_limit=100)
    queued = QueuedModel(model, queue, timeout_s=10)
    assert queued.history_limit_chars == model.history_limit_chars
    tasks = [asyncio.create_task(answer(queued, "ann")) for _ in range(10)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(answer(queued, "ben")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert model.order == ["ann"]
    model.go_on.set()
    await asyncio.gather(*tasks)
    assert model.order == ["ann", "ann", "ben", *["ann"] * 8]
    assert (queue.taken, queue.waiting) == (0, 0)


@pytest.mark.parametrize("fails", ["before", "within"])
async def test_failure_gives_the_place_back(fails: str) -> None:
    """A model that fails, before its answer or in it, does not keep a place."""
    model = Model(fails=fails)
    model.go_on.set()
    queue = FairQueue(1, waiting_limit=100)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await answer(QueuedModel(model, queue, timeout_s=10), "ann")
    assert queue.taken == 0


async def test_cancelled_turn_gives_the_place_back() -> None:
    """A turn that is cancelled, while it waits or is answered, leaves its place to the next."""
    model = Model()
    queue = FairQueue(1, waiting_limit=100)
    queued = QueuedModel(model, queue, timeout_s=10)
    tasks = [asyncio.create_task(answer(queued, user)) for user in ("ann", "ben", "chris")]
    await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
    await asyncio.wait(tasks[:2])
    model.go_on.set()
    await tasks[2]
    assert model.order == ["ann", "chris"]
    assert (queue.taken, queue.waiting) == (0, 0)


async def test_no_turn_in_time() -> None:
    """Who is not served in time is told what was waited for, and when to try again."""
    queue = FairQueue(1, waiting_limit=100)
    assert queue.take("ann")
    with pytest.raises(Overloaded, match="the language model") as caught:
        await answer(QueuedModel(Model(), queue, timeout_s=0.01), "ben")
    assert caught.value.retry_after_s
