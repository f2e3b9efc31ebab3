"""Turns that are taken out of their conversations."""

from __future__ import annotations

import pytest

from jarvis_core.errors import NotFound
from jarvis_core.models import new_id
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import TurnStore
from tests.store.test_turn_store import KEY, OWNER, beginning, counts, following, say


@pytest.fixture
def store(pool: Pool) -> TurnStore:
    """Give a store on an empty database."""
    return TurnStore(pool)


async def test_question_and_answer_go(store: TurnStore, pool: Pool) -> None:
    """Both are gone, with the key that led to them, and the conversation counts what is left; a later prompt has neither."""
    first = beginning("one")
    second = following(first, "two", key=KEY)
    await say(store, first)
    await say(store, second)
    await store.delete(OWNER, second.turn_id)
    assert await counts(pool) == (1, 2, 1, 0)
    conversation = await ConversationStore(pool).fetch(OWNER, first.conversation_id)
    assert conversation.message_count == 2
    begun = await say(store, following(first, "three"))
    assert not isinstance(begun, str)
    assert [one.content for one in begun.history] == ["one", "Salut"]


async def test_last_turn_of_a_conversation(store: TurnStore, pool: Pool) -> None:
    """A conversation of which nothing is left, whose title would tell what was said, goes too."""
    turn = beginning()
    await say(store, turn)
    await store.delete(OWNER, turn.turn_id)
    assert await counts(pool) == (0, 0, 0, 0)


async def test_question_that_another_turn_answers(store: TurnStore, pool: Pool) -> None:
    """A question with two answers stays with the one that is left."""
    first = beginning()
    second = following(first, user_message_id=first.user_message_id, message_is_stored=True)
    await say(store, first)
    await say(store, second)
    await store.delete(OWNER, first.turn_id)
    assert await counts(pool) == (1, 2, 1, 0)


async def test_what_is_not_deleted(store: TurnStore, pool: Pool) -> None:
    """A turn that runs, another's, an unknown one and what is no id are not there to be deleted."""
    running = beginning()
    await store.begin(running)
    ended = beginning()
    await say(store, ended)
    for owner, turn_id in ((OWNER, running.turn_id), ("bob", ended.turn_id), (OWNER, new_id()), (OWNER, "x")):
        with pytest.raises(NotFound):
            await store.delete(owner, turn_id)
    assert await counts(pool) == (2, 3, 2, 0)
