"""Turns in the database: begun, checkpointed, ended, each in one step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from jarvis_core.errors import Conflict, DeadlineExceeded, NotFound, Unavailable
from jarvis_core.models import Heard, IdempotencyKey, Receipt, Status, Utterance, new_id
from jarvis_core.processes.child import own_identity
from jarvis_core.settings import Database
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.store.heartbeats import HeartbeatStore
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import HISTORY_MESSAGES, Beginning, Begun, TurnEnd, TurnStore
from tests.fakes.relay import DatabaseRelay

OWNER = "ann"
KEY = IdempotencyKey("k-1", b"hash of the request")


@pytest.fixture
def store(pool: Pool) -> TurnStore:
    """Give a store on an empty database."""
    return TurnStore(pool)


@pytest.fixture
def presence(pool: Pool) -> HeartbeatStore:
    """Give the list of workers as one sees it that runs no turn."""
    return HeartbeatStore(pool, new_id(), own_identity())


@pytest.fixture
def conversations(pool: Pool) -> ConversationStore:
    """Give the conversations of the same database."""
    return ConversationStore(pool)


def beginning(content: str = "Bonjour", **changes: Any) -> Beginning:
    """Describe a turn of OWNER in a new conversation, unless *changes* say otherwise."""
    fields: dict[str, Any] = {
        "owner": OWNER,
        "conversation_id": new_id(),
        "turn_id": new_id(),
        "user_message_id": new_id(),
        "content": content,
        "title": "A title",
        "history_chars": 10_000,
    }
    return Beginning(**fields | changes)


def following(first: Beginning, content: str = "Et toi ?", **changes: Any) -> Beginning:
    """Describe a turn in the conversation of *first*."""
    return beginning(content, conversation_id=first.conversation_id, **{"title": None} | changes)


async def end(store: TurnStore, turn: Beginning, content: str = "Salut", status: Status = Status.COMPLETED) -> None:
    """End a running turn."""
    assert await store.end(turn.turn_id, TurnEnd(status, "stop", tokens=2, model="m"), content)


async def say(store: TurnStore, turn: Beginning, answer: str = "Salut") -> Begun | str:
    """Begin and end a turn, and return what it was told of what went before."""
    begun = await store.begin(turn)
    await end(store, turn, answer)
    return begun


async def counts(pool: Pool) -> tuple[int, ...]:
    """Return how many conversations, messages, turns and keys are stored."""
    row = await pool.fetch_one(
        "select (select count(*) from conversations), (select count(*) from messages),"
        " (select count(*) from turns), (select count(*) from idempotency_keys)"
    )
    assert row is not None
    return tuple(row)


# Begin


async def test_begin_in_new(store: TurnStore, conversations: ConversationStore) -> None:
    """A turn in a new conversation makes it, with the user's message in it, and has no history."""
    turn = beginning()
    assert await store.begin(turn) == Begun([])
    made = await conversations.fetch(OWNER, turn.conversation_id)
    assert (made.title, made.message_count) == ("A title", 1)
    (message,), _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0)
    assert (message.id, message.role, message.content) == (turn.user_message_id, "user", "Bonjour")
    assert (message.status, message.tokens, message.model) == (Status.COMPLETED, None, None)
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.status, record.content, record.reason, record.ended_at) == (Status.RUNNING, "", None, None)
    assert (record.conversation_id, record.user_message_id) == (turn.conversation_id, turn.user_message_id)


async def test_history_is_what_was_before(store: TurnStore, conversations: ConversationStore) -> None:
    """A turn in a conversation gets the messages before its own, oldest first."""
    first = beginning()
    await say(store, first)
    second = following(first)
    assert await say(store, second, "Bien") == Begun([Utterance("user", "Bonjour"), Utterance("assistant", "Salut")])
    assert await store.begin(following(first, "Au revoir")) == Begun(
        [
            Utterance("user", "Bonjour"),
            Utterance("assistant", "Salut"),
            Utterance("user", "Et toi ?"),
            Utterance("assistant", "Bien"),
        ]
    )
    assert (await conversations.fetch(OWNER, first.conversation_id)).message_count == 5


async def test_history_is_bounded_by_characters(store: TurnStore, pool: Pool) -> None:
    """The history is the latest messages that fit, counted in code points, without a gap."""
    first = beginning("🙂" * 10)
    await say(store, first, "b" * 20)
    await say(store, following(first, "c" * 3), "d" * 4)
    for history_chars, expected in ((37, "🙂bcd"), (36, "bcd"), (27, "bcd"), (26, "cd"), (4, "d"), (3, ""), (0, "")):
        turn = following(first, "x", history_chars=history_chars)
        begun = await store.begin(turn)
        assert isinstance(begun, Begun)
        assert "".join(one.content[0] for one in begun.history) == expected
        # Leave no trace.
        await end(store, turn, "", Status.FAILED)
        await pool.execute("delete from messages where id = %s", (turn.user_message_id,))


async def test_history_is_bounded_by_messages(store: TurnStore, pool: Pool) -> None:
    """However short they are, no more than so many messages are read."""
    first = beginning()
    await say(store, first)
    await pool.execute(
        "insert into messages (id, conversation_id, role, content, status)"
        " select gen_random_uuid(), %s, 'user', n::text, 'completed' from generate_series(1, 300) n",
        (first.conversation_id,),
    )
    begun = await store.begin(following(first))
    assert isinstance(begun, Begun)
    assert [one.content for one in begun.history] == [str(n) for n in range(301 - HISTORY_MESSAGES, 301)]


@pytest.mark.parametrize("conversation_id", ["", "not-a-uuid", "g" * 36, "01890a5d-ac96-774b-bcce-b302099a8057"])
async def test_begin_in_unknown(store: TurnStore, pool: Pool, conversation_id: str) -> None:
    """A turn in an unknown conversation is NotFound, and nothing is stored."""
    for key in (None, KEY):
        with pytest.raises(NotFound):
            await store.begin(beginning(conversation_id=conversation_id, title=None, key=key))
    assert await counts(pool) == (0, 0, 0, 0)


async def test_begin_in_foreign(store: TurnStore, pool: Pool) -> None:
    """Another user's conversation is unknown, and nothing is added to it."""
    first = beginning()
    await say(store, first)
    with pytest.raises(NotFound):
        await store.begin(following(first, owner="bob"))
    assert await counts(pool) == (1, 2, 1, 0)


async def test_one_running_turn(store: TurnStore, pool: Pool) -> None:
    """A second turn in a conversation where one runs is a Conflict that stores nothing; afterwards it may."""
    first = beginning()
    await store.begin(first)
    with pytest.raises(Conflict):
        await store.begin(following(first))
    assert await counts(pool) == (1, 1, 1, 0)
    await end(store, first)
    await store.begin(following(first))
    other = beginning()
    await store.begin(other)


async def test_one_of_many_wins(store: TurnStore, pool: Pool) -> None:
    """Of turns that begin at the same moment in one conversation exactly one runs."""
    first = beginning()
    await say(store, first)
    results = await asyncio.gather(*(store.begin(following(first)) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, Begun) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert await counts(pool) == (1, 3, 2, 0)


async def test_stored_message(store: TurnStore, conversations: ConversationStore) -> None:
    """A turn for a message that was stored before stores it no second time, and has all others as history."""
    first = beginning()
    await say(store, first)
    message_id = new_id()
    await conversations.add_message(OWNER, first.conversation_id, None, message_id, "user", "Et toi ?")
    turn = following(first, user_message_id=message_id, message_is_stored=True)
    assert await store.begin(turn) == Begun([Utterance("user", "Bonjour"), Utterance("assistant", "Salut")])
    assert (await conversations.fetch(OWNER, first.conversation_id)).message_count == 3


# Keys


async def test_key_begins_once(store: TurnStore, pool: Pool) -> None:
    """A request that comes again under its key stores nothing and names the turn of the first."""
    first = beginning(key=KEY)
    assert await store.begin(first) == Begun([])
    for again in (beginning(key=KEY), beginning(key=KEY)):
        assert await store.begin(again) == first.turn_id
    assert await counts(pool) == (1, 1, 1, 1)


async def test_keys_at_the_same_moment(store: TurnStore, pool: Pool) -> None:
    """Requests that come together under one key begin one turn, and all learn which."""
    turns = [beginning(key=KEY) for _ in range(6)]
    results = await asyncio.gather(*(store.begin(turn) for turn in turns))
    (winner,) = [turn.turn_id for turn, result in zip(turns, results, strict=True) if result == Begun([])]
    assert sorted(str(result) for result in results if result != Begun([])) == [winner] * 5
    assert await counts(pool) == (1, 1, 1, 1)


async def test_key_for_another_request(store: TurnStore, pool: Pool) -> None:
    """A key that was used for another request is a Conflict; another user's key is no concern."""
    await store.begin(beginning(key=KEY))
    with pytest.raises(Conflict, match="idempotency key"):
        await store.begin(beginning(key=IdempotencyKey(KEY.text, b"another hash")))
    assert await store.begin(beginning(key=KEY, owner="bob")) == Begun([])
    assert await counts(pool) == (2, 2, 2, 2)


async def test_key_of_a_refused_request(store: TurnStore, pool: Pool) -> None:
    """A request that is refused does not use up its key."""
    first = beginning()
    await store.begin(first)
    with pytest.raises(Conflict, match="Another turn"):
        await store.begin(following(first, key=KEY))
    assert (await counts(pool))[3] == 0
    await end(store, first)
    assert isinstance(await store.begin(following(first, key=KEY)), Begun)


async def test_keys_are_forgotten(store: TurnStore, pool: Pool) -> None:
    """After 24 hours a key may be used anew, and is removed when nobody does."""
    await store.begin(beginning(key=KEY))
    await pool.execute("update idempotency_keys set created_at = now() - interval '23 hours'")
    await store.forget_keys()
    assert (await counts(pool))[3] == 1
    await pool.execute("update idempotency_keys set created_at = now() - interval '25 hours'")
    assert await store.begin(beginning(key=IdempotencyKey(KEY.text, b"another hash"))) == Begun([])
    await pool.execute("update idempotency_keys set created_at = now() - interval '25 hours'")
    await store.forget_keys()
    assert (await counts(pool))[3] == 0


async def test_begin_again(store: TurnStore, pool: Pool) -> None:
    """A turn that left no message may run again, with the history before its own message."""
    first = beginning()
    await say(store, first)
    turn = following(first)
    await store.begin(turn)
    await end(store, turn, "", Status.FAILED)
    history = [Utterance("user", "Bonjour"), Utterance("assistant", "Salut")]
    assert await store.begin_again(turn) == Begun(history, before="m")
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.status, record.reason, record.error, record.ended_at) == (Status.RUNNING, None, None, None)
    assert await store.begin_again(turn) is None
    await end(store, turn, "Oui")
    assert await store.begin_again(turn) is None
    assert await counts(pool) == (1, 4, 2, 0)


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.CANCELLED, Status.INCOMPLETE])
async def test_what_was_given_stays(store: TurnStore, status: Status) -> None:
    """A turn that left a message is not run again."""
    turn = beginning()
    await store.begin(turn)
    await end(store, turn, "Oui", status)
    assert await store.begin_again(turn) is None


async def test_begin_again_beside_another(store: TurnStore) -> None:
    """A turn cannot run again while another runs in its conversation."""
    turn = beginning()
    await store.begin(turn)
    await end(store, turn, "", Status.FAILED)
    await store.begin(following(turn))
    with pytest.raises(Conflict):
        await store.begin_again(turn)


# Checkpoint and end


async def test_end(store: TurnStore, conversations: ConversationStore) -> None:
    """An ended turn has its message, under its own id, and the conversation counts it and moves up."""
    turn = beginning()
    await store.begin(turn)
    before = await conversations.fetch(OWNER, turn.conversation_id)
    ended_at = await store.end(turn.turn_id, TurnEnd(Status.INCOMPLETE, "max_tokens", tokens=7, model="m"), "Sal🙂")
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.status, record.reason, record.content) == (Status.INCOMPLETE, "max_tokens", "Sal🙂")
    assert (record.tokens, record.model, record.error, record.ended_at) == (7, "m", None, ended_at)
    (_, message), _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0)
    assert (message.id, message.role, message.content) == (turn.turn_id, "assistant", "Sal🙂")
    assert (message.status, message.tokens, message.model) == (Status.INCOMPLETE, 7, "m")
    after = await conversations.fetch(OWNER, turn.conversation_id)
    assert after.message_count == 2
    assert after.updated_at > before.updated_at


async def test_receipt(store: TurnStore) -> None:
    """A turn's times are stored with its end; those of a voice that begins later are added, and a new run has none of them."""
    turn = beginning()
    await store.begin(turn)
    assert (await store.fetch(OWNER, turn.turn_id)).receipt == Receipt()
    receipt = Receipt(first_token_ms=12.5, total_ms=40.1)
    await store.end(turn.turn_id, TurnEnd(Status.FAILED, "timeout", receipt=receipt), "")
    assert (await store.fetch(OWNER, turn.turn_id)).receipt == receipt
    await store.add_receipt(turn.turn_id, Receipt(voice_ms=90.0))
    whole = Receipt(first_token_ms=12.5, total_ms=40.1, voice_ms=90.0)
    assert (await store.fetch(OWNER, turn.turn_id)).receipt == whole
    await store.begin_again(turn)
    assert (await store.fetch(OWNER, turn.turn_id)).receipt == Receipt()


@pytest.mark.parametrize(
    ("status", "content", "messages"),
    [
        (Status.COMPLETED, "", 2),
        (Status.COMPLETED, "a", 2),
        (Status.CANCELLED, "", 1),
        (Status.CANCELLED, "a", 2),
        (Status.INCOMPLETE, "", 1),
        (Status.FAILED, "", 1),
    ],
)
async def test_who_leaves_a_message(
    store: TurnStore, conversations: ConversationStore, status: Status, content: str, messages: int
) -> None:
    """A turn that ended without a text leaves no message, unless it completed."""
    turn = beginning()
    await store.begin(turn)
    await end(store, turn, content, status)
    stored, _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0)
    assert len(stored) == messages
    assert (await conversations.fetch(OWNER, turn.conversation_id)).message_count == messages


async def test_error_of_a_failed_turn(store: TurnStore) -> None:
    """Why a turn failed is kept, for a person."""
    turn = beginning()
    await store.begin(turn)
    await store.end(turn.turn_id, TurnEnd(Status.FAILED, "timeout", DeadlineExceeded("Late.")), "")
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.status, record.reason, record.error) == (Status.FAILED, "timeout", "Late.")


async def test_ending_twice(store: TurnStore, pool: Pool) -> None:
    """A turn ends once: whoever ends it again is told that it was not running, and changes nothing."""
    turn = beginning()
    await store.begin(turn)
    results = await asyncio.gather(
        *(store.end(turn.turn_id, TurnEnd(Status.COMPLETED, "stop", tokens=1, model="m"), f"{n}") for n in range(5))
    )
    assert sum(result is not None for result in results) == 1
    assert await counts(pool) == (1, 2, 1, 0)
    await store.checkpoint([(turn.turn_id, "too late", "m")])
    assert (await store.fetch(OWNER, turn.turn_id)).content in set("01234")


async def test_end_of_a_deleted_conversation(store: TurnStore, conversations: ConversationStore, pool: Pool) -> None:
    """A turn whose conversation was deleted ends without a trace."""
    turn = beginning()
    await store.begin(turn)
    await conversations.delete(OWNER, turn.conversation_id)
    result = await store.end(turn.turn_id, TurnEnd(Status.COMPLETED, "stop", tokens=1, model="m"), "a")
    assert result is None
    await store.checkpoint([(turn.turn_id, "a", "m")])
    assert await counts(pool) == (0, 0, 0, 0)


async def test_checkpoint(store: TurnStore, conversations: ConversationStore) -> None:
    """A checkpoint is the turn's text so far, and no message."""
    turn = beginning()
    await store.begin(turn)
    await store.checkpoint([(turn.turn_id, "Sal", "m")])
    await store.checkpoint([(turn.turn_id, "Salut", "m")])
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.status, record.content, record.model) == (Status.RUNNING, "Salut", "m")
    assert (await conversations.fetch(OWNER, turn.conversation_id)).message_count == 1


async def test_end_of_a_turn_that_others_closed(
    store: TurnStore, conversations: ConversationStore, presence: HeartbeatStore
) -> None:
    """A worker that was taken for dead stores what its turns came to, each once: a message replaced, or added."""
    with_text, without = beginning(), beginning()
    for turn in (with_text, without):
        await store.begin(turn)
    await store.checkpoint([(with_text.turn_id, "Sal", "m")])
    assert await presence.close_strays() == 2
    for turn in (with_text, without):
        assert (await store.fetch(OWNER, turn.turn_id)).status is Status.INCOMPLETE
        for _ in range(2):  # a second time, where the answer to the first was lost
            await store.end(turn.turn_id, TurnEnd(Status.COMPLETED, "stop", tokens=2, model="m"), "Salut")
        record = await store.fetch(OWNER, turn.turn_id)
        assert (record.status, record.reason, record.content) == (Status.COMPLETED, "stop", "Salut")
        messages, _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0)
        assert [(one.role, one.content, one.status) for one in messages] == [
            ("user", "Bonjour", Status.COMPLETED),
            ("assistant", "Salut", Status.COMPLETED),
        ]
        assert (await conversations.fetch(OWNER, turn.conversation_id)).message_count == 2


@pytest.mark.behaviour("heard.with_the_end")
async def test_what_was_heard_is_stored_with_the_end(store: TurnStore, conversations: ConversationStore) -> None:
    """The end of a turn that was interrupted has what was heard, and the rest apart, in one statement; all of it is one text."""
    turn = beginning()
    await store.begin(turn)
    heard = Heard(7, 900)
    await store.end(turn.turn_id, TurnEnd(Status.CANCELLED, "turn_detected", heard=heard), "Bonjour à tous")
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.content, record.heard_ms) == ("Bonjour", 900)
    (_, answer), _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0, unheard=True)
    assert (answer.content, answer.unheard) == ("Bonjour", " à tous")
    await store.truncate(OWNER, turn.turn_id, 9, heard_ms=1_200, told=True)
    assert (await store.fetch(OWNER, turn.turn_id)).content == "Bonjour à"


@pytest.mark.behaviour("heard.closed_by_others")
async def test_truncated_where_others_closed_it(
    store: TurnStore, conversations: ConversationStore, presence: HeartbeatStore
) -> None:
    """A turn of which less was heard than others had stored keeps that, whatever its worker or a reader had more of it."""
    for late_end in (True, False):
        turn = beginning()
        await store.begin(turn)
        await store.checkpoint([(turn.turn_id, "Bonjour à", "m")])
        await presence.close_strays()
        await store.truncate(OWNER, turn.turn_id, 3, heard_ms=300, told=True)
        if late_end:
            await store.end(turn.turn_id, TurnEnd(Status.COMPLETED, "stop"), "Bonjour à tous")
        else:
            assert await store.keep_told(turn.turn_id, kept="Bon", told="Bonjour à tous")
        (_, answer), _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0, unheard=True)
        assert (answer.content, answer.unheard, answer.heard_ms) == ("Bon", "jour à tous", 300)


async def test_text_that_a_reader_was_told(
    store: TurnStore, conversations: ConversationStore, presence: HeartbeatStore
) -> None:
    """What a reader was told of a dead worker's turn takes the place of the text that it was compared with, and no other's."""
    turn = beginning()
    await store.begin(turn)
    await store.checkpoint([(turn.turn_id, "Sal", "m")])
    assert not await store.keep_told(turn.turn_id, kept="Sal", told="Salut"), "it runs"
    await presence.close_strays()
    assert not await store.keep_told(turn.turn_id, kept="", told="Sa")
    assert await store.keep_told(turn.turn_id, kept="Sal", told="Salut")
    assert not await store.keep_told(turn.turn_id, kept="Sal", told="Salu")
    messages, _ = await conversations.fetch_history(OWNER, turn.conversation_id, limit=9, after=0)
    assert [(one.content, one.status) for one in messages] == [
        ("Bonjour", Status.COMPLETED),
        ("Salut", Status.INCOMPLETE),
    ]
    assert (await conversations.fetch(OWNER, turn.conversation_id)).message_count == 2
    assert await store.end(turn.turn_id, TurnEnd(Status.COMPLETED, "stop", tokens=3, model="m"), "Salut, toi")
    assert (await store.fetch(OWNER, turn.turn_id)).content == "Salut, toi", "its worker lived, and knows best"


async def test_end_of_somebody_elses_turn(store: TurnStore, pool: Pool, presence: HeartbeatStore) -> None:
    """A worker ends no turn that another one runs: also not one of its own that another one has begun again."""
    other = TurnStore(pool)
    turn = beginning(key=KEY)
    await store.begin(turn)
    assert await other.end(turn.turn_id, TurnEnd(Status.FAILED, "x"), "") is None
    await presence.close_strays()
    assert await other.begin_again(turn) is not None
    assert await store.end(turn.turn_id, TurnEnd(Status.FAILED, "x"), "") is None
    record = await store.fetch(OWNER, turn.turn_id)
    assert (record.status, record.worker) == (Status.RUNNING, other.worker_id)


async def test_end_and_next_begin_at_once(store: TurnStore, pool: Pool) -> None:
    """A turn that begins in the moment in which another one ends does not lock that one out, nor the other way round."""
    ending = beginning()
    await store.begin(ending)
    with pytest.raises(psycopg.errors.UniqueViolation):  # noqa: PT012 - it is what ends the transaction
        async with pool.transaction() as connection, asyncio.timeout(0.9):
            # As a beginning: it has the conversation, and has not yet looked for a running turn.
            await connection.execute(
                "update conversations set updated_at = now() where id = %s", (ending.conversation_id,)
            )
            task = asyncio.create_task(end(store, ending))
            await asyncio.sleep(0.1)
            await connection.execute(
                "insert into turns (id, conversation_id, owner, user_message_id, status)"
                " values (gen_random_uuid(), %s, 'ann', gen_random_uuid(), 'running')",
                (ending.conversation_id,),
            )
    await task


@pytest.mark.parametrize("turn_id", ["", "x", "g" * 36, "01890a5d-ac96-774b-bcce-b302099a8057"])
async def test_fetch_unknown(store: TurnStore, turn_id: str) -> None:
    """An unknown turn is NotFound."""
    with pytest.raises(NotFound):
        await store.fetch(OWNER, turn_id)


async def test_fetch_foreign(store: TurnStore) -> None:
    """Another user's turn is unknown."""
    turn = beginning()
    await store.begin(turn)
    with pytest.raises(NotFound):
        await store.fetch("bob", turn.turn_id)


@pytest.fixture
async def lossy(relay: DatabaseRelay) -> AsyncIterator[Pool]:
    """Give a pool on an empty database behind the relay."""
    pool = Pool(Database(max_connections=4, timeout_s=1.0), relay.conninfo)
    await pool.open()
    try:
        await migrate(pool)
        yield pool
    finally:
        await pool.close()


async def come_back(relay: DatabaseRelay, pool: Pool) -> None:
    """Let the database be reached again, and wait until that is known."""
    await relay.come_back()
    async with asyncio.timeout(5):
        while not pool.healthy:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_turn_whose_beginning_was_not_heard_of(lossy: Pool, relay: DatabaseRelay) -> None:
    """A turn that was begun, but whose connection broke before that was known, is nobody's, and not in the way."""
    store = TurnStore(lossy)
    first = beginning()
    await say(store, first)
    # The statement is prepared by then, which would have been a question of its own.
    await say(store, following(first, "Ça va ?"))
    lost = following(first)
    relay.lose_answers()
    with pytest.raises(Unavailable):
        await store.begin(lost)
    with pytest.raises(Unavailable):
        await store.begin(following(first))
    await come_back(relay, lossy)
    fourth = following(first, "Toujours là ?")
    begun = await store.begin(fourth)
    assert isinstance(begun, Begun)
    assert "Et toi ?" in [one.content for one in begun.history], "it had come as far as the database"
    record = await store.fetch(OWNER, lost.turn_id)
    assert (record.status, record.reason) == (Status.FAILED, "not_started")
    assert (await store.fetch(OWNER, fourth.turn_id)).status is Status.RUNNING


async def test_key_of_a_turn_whose_beginning_was_not_heard_of(lossy: Pool, relay: DatabaseRelay) -> None:
    """The retry of a request whose turn was begun unheard of gets that turn, run again and left to run."""
    store = TurnStore(lossy)
    first = beginning(key=KEY)
    relay.lose_answers(to=b"COMMIT")
    with pytest.raises(Unavailable):
        await store.begin(first)
    await come_back(relay, lossy)
    assert await store.begin(beginning(key=KEY)) == first.turn_id
    assert (await store.fetch(OWNER, first.turn_id)).status is Status.FAILED
    relay.lose_answers()
    with pytest.raises(Unavailable):
        await store.begin_again(first)
    await come_back(relay, lossy)
    await store.unconfirmed.settle()
    assert await store.begin_again(first) is not None
    await store.unconfirmed.settle()
    assert (await store.fetch(OWNER, first.turn_id)).status is Status.RUNNING


async def test_turn_in_doubt_that_runs_again(store: TurnStore) -> None:
    """A turn that is begun again is no longer in doubt: what settles doubts leaves it running."""
    turn = beginning()
    await store.begin(turn)
    await end(store, turn, "", Status.FAILED)
    store.unconfirmed.add(turn.turn_id)
    assert await store.begin_again(turn) is not None
    await store.unconfirmed.settle()
    assert (await store.fetch(OWNER, turn.turn_id)).status is Status.RUNNING


async def test_turn_that_is_to_run_again_while_doubts_are_settled(store: TurnStore, pool: Pool) -> None:
    """A turn that is just being ended because of a doubt is begun again after that, not beside it."""
    turn = beginning()
    await store.begin(turn)
    store.unconfirmed.add(turn.turn_id)
    async with pool.transaction() as connection:
        await connection.execute("select from turns where id = %s for update", (turn.turn_id,))
        settling = asyncio.create_task(store.unconfirmed.settle())
        await asyncio.sleep(0.1)
        again = asyncio.create_task(store.begin_again(turn))
        await asyncio.sleep(0.1)
        assert not settling.done()
    await settling
    assert await again is not None
    assert (await store.fetch(OWNER, turn.turn_id)).status is Status.RUNNING
