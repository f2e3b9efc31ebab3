"""Turns on a real database, with a model in the test's own hands: what sockets cannot bring about at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from jarvis_core import log
from jarvis_core.errors import NotFound, Overloaded, RateLimited
from jarvis_core.models import Caller, Finish, IdempotencyKey, Prompt, Status
from jarvis_core.settings import Llm
from jarvis_core.shares import current_user
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import TurnStore
from jarvis_core.turns import recorder
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.log import Reader, Step
from jarvis_core.turns.turns import Turns

pytestmark = pytest.mark.every_python

CALLER = Caller("zoé")


class Model:
    """Says what it is told, and then waits to be left if it is told so."""

    history_limit_chars = 1_000
    reads_ahead = False

    def __init__(self, *pieces: str, endless: bool = False) -> None:
        self.pieces = pieces
        self.endless = endless
        self.asked = 0
        self.left = 0

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Do nothing."""

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[str | Finish]]:
        """Answer *prompt*, whatever it is."""
        assert (prompt.content, caller) == ("hello", CALLER)
        self.asked += 1
        try:
            yield self._pieces()
        finally:
            self.left += 1

    async def _pieces(self) -> AsyncIterator[str | Finish]:
        for piece in self.pieces:
            yield piece
        if self.endless:
            await asyncio.Event().wait()
        yield Finish("stop", len(self.pieces), "model")


@pytest.mark.parametrize("key", [None, IdempotencyKey("k", b"hash")], ids=["without key", "with key"])
async def test_stopped_before_its_first_step(pool: Pool, key: IdempotencyKey | None) -> None:
    """A turn that is stopped before its task has taken a step ends as any other, and its conversation is free."""
    turns = Turns(TurnStore(pool), Model("word", endless=True), Llm())
    turn = await turns.start(Ask("hello"), CALLER, key)
    async with asyncio.timeout(5):
        await turns.stop(turn)
    assert (turn.status, turn.reason) == (Status.CANCELLED, "cancelled")
    assert turn._entries[-1] is Step.ENDED
    assert turns.running == 0
    again = await turns.start(Ask("hello", turn.conversation_id), CALLER)
    await turns.stop(again)


async def test_a_model_that_repeats_itself_is_stopped(pool: Pool) -> None:
    """An answer that goes round in circles is incomplete, and its model left, long before it may have no more tokens."""
    model = Model("Once upon a time. ", *["I am at home, ", "and I do not know. "] * 500, endless=True)
    turns = Turns(TurnStore(pool), model, Llm())
    turn = await turns.start(Ask("hello"), CALLER)
    async with asyncio.timeout(5):
        while not turn.ended:  # noqa: ASYNC110 - nothing is said of it but to readers
            await asyncio.sleep(0.005)
    assert (turn.status, turn.reason) == (Status.INCOMPLETE, "repetition")
    assert 300 < len(turn.text()) < 800
    assert model.left == 1


async def test_defect_while_the_end_is_stored(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while the end is stored, the readers are told that the turn has ended."""
    store = TurnStore(pool)
    turns = Turns(store, Model("word"), Llm())

    async def end(*_arguments: object, **_fields: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(store, "end", end)
    turn = await turns.start(Ask("hello"), CALLER)
    async with asyncio.timeout(5):
        await turn.wait_ended()
    assert (turn.status, turn.reason, turn.text()) == (Status.INCOMPLETE, "not_stored", "word")
    assert turns.running == 0


async def test_end_is_stored_before_it_is_shown(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its end is stored a turn is running for whoever looks at it."""
    store = TurnStore(pool)
    turns = Turns(store, Model("word"), Llm())
    store_end = store.end
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def end(*arguments: Any) -> datetime | None:
        arrived.set()
        await go_on.wait()
        return await store_end(*arguments)

    monkeypatch.setattr(store, "end", end)
    turn = await turns.start(Ask("hello"), CALLER)
    async with asyncio.timeout(5):
        await arrived.wait()
        assert (turn.status, turn.reason, turn.ended) == (Status.RUNNING, "", False)
        go_on.set()
        await turn.wait_ended()
    assert (turn.status, turn.reason) == (Status.COMPLETED, "stop")


async def test_whose_the_log_lines_are(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are written for a turn name it; those of a checkpoint, which is of all turns, name none."""
    store = TurnStore(pool)
    turns = Turns(store, Model("word", endless=True), Llm())
    store_end = store.end
    names: dict[str, tuple[str, str] | None] = {}
    stored = asyncio.Event()

    async def checkpoint(_texts: object) -> None:
        names["checkpoint"] = log.current_turn.get()
        stored.set()

    async def end(*arguments: Any) -> datetime | None:
        names["end"] = log.current_turn.get()
        return await store_end(*arguments)

    monkeypatch.setattr(store, "checkpoint", checkpoint)
    monkeypatch.setattr(store, "end", end)
    monkeypatch.setattr(recorder, "CHECKPOINT_INTERVAL_S", 0.01)
    turn = await turns.start(Ask("hello"), CALLER)
    async with asyncio.timeout(5):
        await stored.wait()
        await turns.stop(turn)
    assert names == {"checkpoint": None, "end": (turn.id, turn.conversation_id)}


async def test_stopped_by_several(pool: Pool) -> None:
    """Of those who stop a turn at once the first decides why, and each returns when it has ended."""
    model = Model("word", endless=True)
    turns = Turns(TurnStore(pool), model, Llm())
    turn = await turns.start(Ask("hello"), CALLER)
    async with asyncio.timeout(5):
        reader = Reader(turn)
        while not turn.text():
            await reader.next()
        reasons = ("first", "second", "third")
        await asyncio.gather(*(turns.stop(turn, reason=reason) for reason in reasons))
    assert (turn.status, turn.reason, turn.text()) == (Status.CANCELLED, "first", "word")
    assert (model.asked, model.left) == (1, 1)


async def test_share_of_one_user(pool: Pool) -> None:
    """One user's turns leave room for another's, and the refusal says whose they are; those that ended do not count."""
    turns = Turns(TurnStore(pool), Model("word", endless=True), Llm(), limit=8)
    current_user.set("zoé")
    running = [await turns.start(Ask("hello"), CALLER) for _ in range(7)]
    with pytest.raises(RateLimited) as caught:
        await turns.start(Ask("hello"), CALLER)
    assert caught.value.retry_after_s
    assert turns.refused == 1
    current_user.set("ben")
    running.append(await turns.start(Ask("hello"), CALLER))
    with pytest.raises(Overloaded):
        await turns.start(Ask("hello"), CALLER)
    for turn in running:
        await turns.stop(turn)
    current_user.set("zoé")
    for _ in range(10):
        await turns.stop(await turns.start(Ask("hello"), CALLER))
    with pytest.raises(NotFound):
        await turns.start(Ask("hello", "00000000-0000-0000-0000-000000000000"), CALLER)
    await asyncio.sleep(0)
    assert turns._shares.taken == 0
