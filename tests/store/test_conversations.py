"""Conversations and their messages: pages, search, owners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from jarvis_core.errors import DeadlineExceeded, NotFound
from jarvis_core.models import Conversation, Message, new_id
from jarvis_core.settings import Database
from jarvis_core.shares import current_user
from jarvis_core.store.conversations import LIST, SEARCH_PLANNER, ConversationStore
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool

OWNER = "ann"
NOT_IDS = [
    "",
    "1",
    "not-a-uuid",
    "0" * 36,
    "-" * 36,
    "00000000-0000-0000-0000-00000000000g",
    "'; drop table messages; --",
    "\x00",
]


@pytest.fixture
def store(pool: Pool) -> ConversationStore:
    """Give a store on an empty database."""
    return ConversationStore(pool)


async def make(store: ConversationStore, *titles: str, owner: str = OWNER) -> list[str]:
    """Make conversations one after the other, and return their ids."""
    return [(await store.create(owner, new_id(), title)).id for title in titles]


async def listed(
    store: ConversationStore,
    *,
    owner: str = OWNER,
    limit: int = 100,
    after: tuple[datetime, str] | None = None,
    query: str | None = None,
    archived: bool | None = None,
) -> list[Conversation]:
    """Return a page."""
    return await store.fetch_page(owner, limit=limit, after=after, query=query, archived=archived)


async def titles(store: ConversationStore, query: str | None = None, *, archived: bool | None = None) -> list[str]:
    """Return the titles that are found."""
    return [conversation.title for conversation in await listed(store, query=query, archived=archived)]


async def paged(store: ConversationStore, limit: int) -> list[Conversation]:
    """Return all conversations, read page by page."""
    found: list[Conversation] = []
    after = None
    while page := await listed(store, limit=limit, after=after):
        assert len(page) <= limit
        found += page
        after = page[-1].updated_at, page[-1].id
    return found


async def say(pool: Pool, conversation_id: str, *texts: str) -> None:
    """Store messages of the user."""
    for text in texts:
        await ConversationStore(pool).add_message(OWNER, conversation_id, None, new_id(), "user", text)


async def test_create_and_fetch(store: ConversationStore) -> None:
    """A new conversation is empty, not archived, and found again as it was made."""
    made = await store.create(OWNER, new_id(), "Déjà 🙂")
    assert await store.fetch(OWNER, made.id) == made
    assert (made.title, made.summary, made.message_count, made.archived) == ("Déjà 🙂", None, 0, False)
    assert made.created_at == made.updated_at
    assert made.created_at.utcoffset() is not None


async def test_newest_first(store: ConversationStore, pool: Pool) -> None:
    """The list begins with the conversation that was used last."""
    first, _, _ = await make(store, "a", "b", "c")
    assert await titles(store) == ["c", "b", "a"]
    await say(pool, first, "hello")
    assert await titles(store) == ["a", "c", "b"]
    await store.change(OWNER, first, title="A", archived=None)
    assert await titles(store) == ["A", "c", "b"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_under_equal_times(store: ConversationStore, pool: Pool, limit: int) -> None:
    """Pages give each conversation once, in one order, where many were changed at the same time."""
    await make(store, *"abcdefg")
    await pool.execute("update conversations set updated_at = '2026-01-01' where title in ('a', 'b', 'c', 'd', 'e')")
    whole = await listed(store)
    assert len(whole) == 7
    assert await paged(store, limit) == whole


async def test_search_in_titles_and_messages(store: ConversationStore, pool: Pool) -> None:
    """A query is found anywhere in titles and messages, whatever the case."""
    garden, *_ = await make(store, "Le jardin", "Cuisine", "ÉCOLE")
    await say(pool, garden, "Où sont les Tomates ?", "encore les tomates")
    assert await titles(store, "jard") == ["Le jardin"]
    assert await titles(store, "TOMATE") == ["Le jardin"]
    assert await titles(store, "école") == ["ÉCOLE"]
    assert await titles(store, "i") == ["Le jardin", "Cuisine"]
    assert await titles(store, "nothing") == []


@pytest.mark.parametrize("query", ["%", "_", "\\", "100%", "a_b", "\\%", "'", '"', "%%", "a\\b"])
async def test_search_takes_signs_as_they_are(store: ConversationStore, query: str) -> None:
    """Signs that mean something to LIKE or SQL are looked for as they are."""
    await make(store, "nothing special", f"before {query} after", "100 percent axb ab")
    assert await titles(store, query) == [f"before {query} after"]


async def test_search_and_pages(store: ConversationStore) -> None:
    """Pages of a search continue like pages of everything."""
    await make(store, "x1", "y", "x2", "x3")
    page = await listed(store, query="x", limit=2)
    assert [one.title for one in page] == ["x3", "x2"]
    after = page[-1].updated_at, page[-1].id
    assert [one.title for one in await listed(store, query="x", limit=2, after=after)] == ["x1"]


async def test_archived(store: ConversationStore) -> None:
    """Archived conversations are listed with all, alone, or not at all."""
    first, _ = await make(store, "a", "b")
    changed = await store.change(OWNER, first, title=None, archived=True)
    assert (changed.title, changed.archived) == ("a", True)
    assert sorted(await titles(store)) == ["a", "b"]
    assert await titles(store, archived=True) == ["a"]
    assert await titles(store, archived=False) == ["b"]
    assert not (await store.change(OWNER, first, title=None, archived=False)).archived


async def test_change(store: ConversationStore) -> None:
    """A change changes what is given and nothing else, and the time of the last use."""
    made = await store.create(OWNER, new_id(), "a")
    changed = await store.change(OWNER, made.id, title="b", archived=None)
    assert (changed.title, changed.archived, changed.created_at) == ("b", False, made.created_at)
    assert changed.updated_at > made.updated_at


async def test_owners_do_not_see_one_another(store: ConversationStore, pool: Pool) -> None:
    """Another user's conversation is unknown, whatever is asked of it, and stays as it is."""
    (theirs,) = await make(store, "theirs", owner="bob")
    assert await listed(store) == []
    assert await titles(store, "theirs") == []
    for attempt in (
        store.fetch(OWNER, theirs),
        store.change(OWNER, theirs, title="mine", archived=None),
        store.delete(OWNER, theirs),
        store.fetch_history(OWNER, theirs, limit=10, after=0),
        store.add_message(OWNER, theirs, None, new_id(), "user", "hello"),
    ):
        with pytest.raises(NotFound):
            await attempt
    kept = await store.fetch("bob", theirs)
    assert (kept.title, kept.message_count) == ("theirs", 0)
    assert await pool.fetch_all("select * from messages") == []


@pytest.mark.parametrize("unknown", ["01890a5d-ac96-774b-bcce-b302099a8057", *NOT_IDS])
async def test_unknown_ids(store: ConversationStore, unknown: str) -> None:
    """What is no id of a conversation is NotFound, and never an error of the database."""
    for attempt in (
        store.fetch(OWNER, unknown),
        store.change(OWNER, unknown, title="a", archived=None),
        store.delete(OWNER, unknown),
        store.fetch_history(OWNER, unknown, limit=10, after=0),
    ):
        with pytest.raises(NotFound):
            await attempt


async def history(store: ConversationStore, conversation_id: str, limit: int) -> list[Message]:
    """Return all messages, read page by page."""
    messages: list[Message] = []
    after: int | None = 0
    while after is not None:
        page, after = await store.fetch_history(OWNER, conversation_id, limit=limit, after=after)
        assert len(page) == limit or after is None
        messages += page
    return messages


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10])
async def test_history_pages(store: ConversationStore, pool: Pool, count: int) -> None:
    """Pages of history give each message once, oldest first, and say at the last that it is the last."""
    first, other = await make(store, "a", "b")
    for number in range(count):
        await say(pool, first, f"message {number}")
        await say(pool, other, f"other {number}")
    assert [message.content for message in await history(store, first, 5)] == [f"message {n}" for n in range(count)]
    page, after = await store.fetch_history(OWNER, first, limit=5, after=0)
    assert (after is None) == (count <= 5)
    assert all(message.conversation_id == first for message in page)
    assert (await store.fetch(OWNER, first)).message_count == count


async def test_deleting_takes_everything(store: ConversationStore, pool: Pool) -> None:
    """A deleted conversation takes its messages and turns with it, and leaves those of others."""
    first, second = await make(store, "a", "b")
    await say(pool, first, "one", "two")
    await say(pool, second, "three")
    await pool.execute(
        "insert into turns (id, conversation_id, owner, user_message_id, status) values (%s, %s, %s, %s, 'completed')",
        (new_id(), first, OWNER, new_id()),
    )
    await store.delete(OWNER, first)
    assert await titles(store) == ["b"]
    assert await pool.fetch_all("select content from messages") == [("three",)]
    assert await pool.fetch_all("select id from turns") == []
    with pytest.raises(NotFound):
        await store.delete(OWNER, first)


async def test_add_message_makes_a_conversation(store: ConversationStore) -> None:
    """A message with a title makes its conversation."""
    conversation_id = new_id()
    await store.add_message(OWNER, conversation_id, "New", new_id(), "user", "Bonjour")
    made = await store.fetch(OWNER, conversation_id)
    assert (made.title, made.message_count) == ("New", 1)
    (message,) = await history(store, conversation_id, 5)
    assert (message.role, message.content, message.status) == ("user", "Bonjour", "completed")


# Long searches


@pytest.fixture
async def wide_pool(database: str) -> AsyncIterator[Pool]:
    """Give a pool with connections enough for a few searches at a time, on an empty database."""
    wide = Pool(Database(max_connections=16), database)
    await wide.open()
    try:
        await migrate(wide)
        yield wide
    finally:
        await wide.close()


SLOW = "select pg_sleep(1), %(owner)s::text"
HELD = "select pg_advisory_xact_lock(17) where %(owner)s::text <> 'ben'"
"""A search that goes on for as long as somebody holds a lock, but for one user."""


async def test_search_ends_in_time(wide_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that takes too long ends sooner than other statements, and says so; the connection is as before."""
    store = ConversationStore(wide_pool, search_timeout_s=0.1)
    before = await wide_pool.fetch_one("show statement_timeout")
    with monkeypatch.context() as patch:
        patch.setattr("jarvis_core.store.conversations.LIST", SLOW)
        with pytest.raises(DeadlineExceeded) as caught:
            await titles(store, "x")
    assert "0.1 s" in caught.value.message
    assert caught.value.retry_after_s
    assert await titles(store, "x") == []
    assert await wide_pool.fetch_one("show statement_timeout") == before


async def search_as(store: ConversationStore, user: str) -> list[str]:
    """Search, as *user*."""
    current_user.set(user)
    return [conversation.title for conversation in await listed(store, owner=user, query="x")]


@pytest.mark.every_python
async def test_two_searches_of_a_user(wide_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two searches of a user go on at a time; the others wait, and meanwhile another user's is done."""
    store = ConversationStore(wide_pool, search_timeout_s=30)
    monkeypatch.setattr("jarvis_core.store.conversations.LIST", HELD)

    async def waiting_for_the_lock() -> int:
        row = await wide_pool.fetch_one("select count(*) from pg_locks where locktype = 'advisory' and not granted")
        assert row is not None
        return int(row[0])

    async with wide_pool.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock(17)")
        searches = [asyncio.create_task(search_as(store, "ann")) for _ in range(6)]
        while await waiting_for_the_lock() < 2:  # noqa: ASYNC110 - it is the database that is waited for
            await asyncio.sleep(0.01)
        for _ in range(10):
            assert await asyncio.create_task(search_as(store, "ben")) == []
        assert await waiting_for_the_lock() == 2
        searches[5].cancel()
        monkeypatch.undo()
    results = await asyncio.gather(*searches[:5], return_exceptions=True)
    assert [type(result) for result in results[2:]] == [list] * 3


async def test_search_looks_only_through_the_users_own(store: ConversationStore, pool: Pool) -> None:
    """However much others have said, a search reads only what its user has: by conversation, and not all messages."""
    await make(store, *(f"mine {number}" for number in range(200)))
    for number in range(20):
        (theirs,) = await make(store, str(number), owner="ben")
        await pool.execute(
            "insert into messages (id, conversation_id, role, content, status)"
            " select gen_random_uuid(), %s, 'user', repeat('long ', 500), 'completed' from generate_series(1, 100)",
            (theirs,),
        )
    await pool.execute("analyze conversations, messages")
    parameters = {"owner": OWNER, "archived": None, "after_time": None, "after_id": None, "pattern": "%x%", "limit": 9}
    _, rows = await pool.fetch_in_one_trip([(SEARCH_PLANNER, ("1000",)), (f"explain {LIST}", parameters)])
    plan = "\n".join(line for (line,) in rows)
    assert "Seq Scan on messages" not in plan, plan
    assert "Index Cond: (conversation_id = c.id)" in plan, plan


async def test_titles_of_older_versions(store: ConversationStore) -> None:
    """A title that an older version let in is shown without what acts on the line it is shown on."""
    (made,) = await make(store, "deux\nlignes \x1b[31m\u202een rouge")
    assert await titles(store) == ["deux lignes [31men rouge"]
    assert (await store.fetch(OWNER, made)).title == "deux lignes [31men rouge"
    assert (await store.change(OWNER, made, title=None, archived=True)).title == "deux lignes [31men rouge"
