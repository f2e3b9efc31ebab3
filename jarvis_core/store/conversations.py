"""Conversations and their messages; every statement carries the owner."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET
from psycopg.rows import TupleRow

from jarvis_core.errors import DeadlineExceeded, NotFound
from jarvis_core.fair_queue import FairQueue
from jarvis_core.models import Conversation, Message, Role, Status, is_id
from jarvis_core.store.pool import Pool
from jarvis_core.store.prepared import Parameters
from jarvis_core.words.titles import clean_title

CONVERSATION = "id::text, title, summary, created_at, updated_at, message_count, archived"
PAGE_LIMIT_BYTES = 2 << 20
"""
Texts of so many bytes together end a page, whatever number was asked for: 200 answers may have 1 MB each. A page has at least
one, and as JSON up to six times as much.
"""

MESSAGE = """
m.id::text, m.conversation_id::text, m.role, m.content, m.created_at, m.tokens, m.model, m.status, m.heard_ms, m.unheard,
m.type, m.call_id, m.name
"""

CREATE = f"insert into conversations (id, owner, title) values (%s, %s, %s) returning {CONVERSATION}"

ENSURE = "insert into conversations (id, owner, title) values (%s, %s, %s) on conflict (id) do nothing"

FETCH = f"select {CONVERSATION} from conversations where owner = %s and id = %s"

# There is no index for this on purpose. By trigrams of long messages (pg_trgm, with the conversation by btree_gin) a search
# of 300 with 50,000 characters took 3 to 150 ms instead of 90 to 180, but everybody else's took three to five times as
# long, and storing such a message 13 ms instead of 3: who sends long ones would hold up others more than who searches.
# "offset 0" has messages be looked through one conversation after the other: otherwise the planner, which does not know
# what a long text costs, looks through everybody's first. And a page that is full needs no more of them.
LIST = f"""
select {CONVERSATION} from conversations c
where owner = %(owner)s
  and (%(archived)s::boolean is null or archived = %(archived)s)
  and (%(after_time)s::timestamptz is null or (updated_at, id) < (%(after_time)s, %(after_id)s::uuid))
  and (%(pattern)s::text is null or title ilike %(pattern)s
       or exists (select from messages m where m.conversation_id = c.id and m.turn_id is null
           and m.content ilike %(pattern)s offset 0))
order by updated_at desc, id desc
limit %(limit)s
"""

CHANGE = f"""
update conversations set title = coalesce(%s, title), archived = coalesce(%s, archived), updated_at = now()
where owner = %s and id = %s
returning {CONVERSATION}
"""

STORED_MESSAGE = """
    insert into messages (id, conversation_id, role, content, status)
    select %(message)s::uuid, id, %(role)s, %(content)s, 'completed' from c
"""
ADD_TO_NEW = f"""
with c as (
    insert into conversations (id, owner, title, message_count)
    values (%(conversation)s, %(owner)s, %(title)s, 1) returning id
), m as ({STORED_MESSAGE})
select 1 from c
"""
ADD_TO_EXISTING = f"""
with c as (
    update conversations set updated_at = now(), message_count = message_count + 1,
        title = coalesce(nullif(title, %(untitled)s), %(title)s)
    where id = %(conversation)s and owner = %(owner)s returning id
), m as ({STORED_MESSAGE})
select 1 from c
"""

LOCK = "select id from conversations where id = %(conversation)s and owner = %(owner)s for no key update"
"""Before the next is asked, which then sees what others have stored."""

# Those behind it get new positions, which are behind all others': pages that are read meanwhile may show them twice.
INSERT = """
with place as (
    select m.position from messages m join conversations c on c.id = m.conversation_id
    where c.id = %(conversation)s and c.owner = %(owner)s and m.id = %(behind)s
    union all
    select 0 from conversations where id = %(conversation)s and owner = %(owner)s and %(behind)s::uuid is null
), later as (
    select m.id, row_number() over (order by m.position) as number
    from messages m join place on m.position > place.position where m.conversation_id = %(conversation)s
), fresh as materialized (
    select number, nextval(pg_get_serial_sequence('messages', 'position')) as position
    from generate_series(0, (select count(*) from later)) number
), m as (
    insert into messages (id, conversation_id, position, role, content, status)
    select %(message)s::uuid, %(conversation)s, fresh.position, %(role)s, %(content)s, 'completed' from place, fresh
    where fresh.number = 0 returning id
), moved as (
    update messages set position = fresh.position from later join fresh using (number) where messages.id = later.id
)
update conversations set updated_at = now(), message_count = message_count + 1 from m
where conversations.id = %(conversation)s returning 1
"""

# An answer goes with its turn: what was said is not to be had by that either.
REMOVE = """
with l as (
    select id from conversations where id = %(conversation)s and owner = %(owner)s for no key update
), m as (
    delete from messages using l where messages.id = %(message)s and conversation_id = l.id returning messages.id
), t as (
    delete from turns using m where turns.id = m.id returning turns.id
), k as (
    delete from idempotency_keys using t where idempotency_keys.turn_id = t.id
)
update conversations set updated_at = now(), message_count = message_count - 1 from m
where conversations.id = %(conversation)s returning 1
"""

DELETE = "delete from conversations where owner = %s and id = %s returning 1"


def _of_page(columns: str, *texts: str) -> str:
    """Return *columns* with null in the place of *texts* that are not of the page."""
    for text in texts:
        columns = columns.replace(text, f"case when m.before_bytes < {PAGE_LIMIT_BYTES} then {text} end")
    return columns


# One row with nulls tells an empty conversation from an unknown one. Rows without a content are the next page's: their
# texts are not even read.
HISTORY = f"""
select m.position, {_of_page(MESSAGE, "m.content", "m.unheard")}
from conversations c
left join lateral (
    select *, sum(length) over (order by position) - length as before_bytes
    from (select *, octet_length(content) + octet_length(unheard) as length from (select * from messages where conversation_id = c.id and position > %s order by position limit %s) one) page
) m on true
where c.owner = %s and c.id = %s
order by m.position
"""

# By the primary key: the conversation is compared, not searched.
FETCH_MESSAGE = f"""
select m.position, {MESSAGE} from messages m join conversations c on c.id = m.conversation_id
where m.id = %s and c.owner = %s and c.id = %s
"""

SEARCH_PLANNER = "select set_config('statement_timeout', %s, true), set_config('enable_seqscan', 'off', true)"
"""A search has less time than other statements, and comes to a user's messages by their conversation."""
CONTENT = 4
"""Its place in a row of ``HISTORY``."""

SEARCHES_SHARE = 4
"""One connection of so many may be searching; the others are for what takes a millisecond."""
SEARCHES_WAITING_LIMIT = 64
RETRY_AFTER_S = 1


class ConversationStore:
    """
    What a user has said and heard, by conversation.

    At most *user_searches* of one user's go on at a time, each for at most *search_timeout_s*; more wait for their turn.
    """

    def __init__(self, pool: Pool, *, search_timeout_s: float = 2.0, user_searches: int = 2) -> None:
        self._pool = pool
        self._search_timeout_s = search_timeout_s
        self._searches = FairQueue(
            max(1, pool.max_connections // SEARCHES_SHARE),
            waiting_limit=SEARCHES_WAITING_LIMIT,
            user_limit=user_searches,
        )

    async def create(self, owner: str, conversation_id: str, title: str) -> Conversation:
        """Store an empty conversation."""
        row = await self._pool.fetch_one(CREATE, (conversation_id, owner, title))
        assert row is not None  # noqa: S101 - "returning" of an insert
        return _conversation(row)

    async def ensure(self, owner: str, conversation_id: str, title: str) -> None:
        """Store an empty conversation, unless it is there."""
        await self._pool.execute(ENSURE, (conversation_id, owner, title))

    async def fetch(self, owner: str, conversation_id: str) -> Conversation:
        """Return one conversation; raises ``NotFound``."""
        row = await self._pool.fetch_one(FETCH, (owner, known(conversation_id)))
        if row is None:
            raise unknown_conversation()
        return _conversation(row)

    async def fetch_page(
        self, owner: str, *, limit: int, after: tuple[datetime, str] | None, query: str | None, archived: bool | None
    ) -> list[Conversation]:
        """
        Return at most *limit* conversations, the newest first.

        *after* is the (updated_at, id) of the last one seen; *query* is looked for in titles and messages, whatever
        the case; *archived* None gives both kinds. A search raises ``RateLimited`` or ``Overloaded`` where it gets no
        turn, ``DeadlineExceeded`` where it takes too long.
        """
        parameters = {
            "owner": owner,
            "archived": archived,
            "after_time": after[0] if after else None,
            "after_id": after[1] if after else None,
            "pattern": None if query is None else f"%{_escaped(query)}%",
            "limit": limit,
        }
        rows = await (self._pool.fetch_all(LIST, parameters) if query is None else self._search(parameters))
        return [_conversation(row) for row in rows]

    async def _search(self, parameters: Parameters) -> list[TupleRow]:
        timeout_s = self._search_timeout_s
        async with self._searches.place(timeout_s, "a search of conversations", retry_after_s=RETRY_AFTER_S):
            try:
                _, rows = await self._pool.fetch_in_one_trip(
                    [(SEARCH_PLANNER, (str(round(timeout_s * 1_000)),)), (LIST, parameters)]
                )
            except DeadlineExceeded as exc:
                raise DeadlineExceeded(
                    f"The search took longer than {timeout_s:g} s.", retry_after_s=exc.retry_after_s
                ) from exc
        return rows

    async def change(
        self, owner: str, conversation_id: str, *, title: str | None, archived: bool | None
    ) -> Conversation:
        """Change what is not None; raises ``NotFound``."""
        row = await self._pool.fetch_one(CHANGE, (title, archived, owner, known(conversation_id)))
        if row is None:
            raise unknown_conversation()
        return _conversation(row)

    async def delete(self, owner: str, conversation_id: str) -> None:
        """Remove a conversation with all its messages; raises ``NotFound``."""
        if await self._pool.fetch_one(DELETE, (owner, known(conversation_id))) is None:
            raise unknown_conversation()

    async def add_message(
        self,
        owner: str,
        conversation_id: str,
        title: str | None,
        message_id: str,
        role: Role,
        content: str,
        *,
        untitled: str | None = None,
    ) -> None:
        """
        Store a message; with *title* the conversation is made, without it raises ``NotFound`` where there is none.

        With *untitled* it is there, and gets *title* where that is its title as yet.
        """
        parameters = {
            "owner": owner,
            "conversation": known(conversation_id),
            "title": title,
            "untitled": untitled,
            "message": message_id,
            "role": role,
            "content": content,
        }
        if (
            await self._pool.fetch_one(
                ADD_TO_NEW if title is not None and untitled is None else ADD_TO_EXISTING, parameters
            )
            is None
        ):
            raise unknown_conversation()

    async def insert_message(
        self, owner: str, conversation_id: str, behind: str | None, message_id: str, role: Role, content: str
    ) -> bool:
        """Store a message right behind the message *behind*, None for the beginning; return whether there is that one."""
        parameters = {
            "owner": owner,
            "conversation": known(conversation_id),
            "behind": behind,
            "message": message_id,
            "role": role,
            "content": content,
        }
        if behind is not None and not is_id(behind):
            return False
        _, rows = await self._pool.fetch_in_one_trip([(LOCK, parameters), (INSERT, parameters)])
        return bool(rows)

    async def remove_message(self, owner: str, conversation_id: str, message_id: str) -> bool:
        """Remove a message, and the turn that it is the answer of; return whether there was one."""
        parameters = {"owner": owner, "conversation": known(conversation_id), "message": message_id}
        return is_id(message_id) and await self._pool.fetch_one(REMOVE, parameters) is not None

    async def fetch_history(
        self, owner: str, conversation_id: str, *, limit: int, after: int, unheard: bool = False
    ) -> tuple[list[Message], int | None]:
        """
        Return at most *limit* messages whose position is over *after*, oldest first; fewer where they are long. *unheard* words
        are with them on demand.

        Also returns the position to go on after, None at the end. Raises ``NotFound``.
        """
        rows = await self._pool.fetch_all(HISTORY, (after, limit + 1, owner, known(conversation_id)))
        if not rows:
            raise unknown_conversation()
        page = [row for row in rows[:limit] if row[CONTENT] is not None]
        return [_message(row, unheard=unheard) for row in page], page[-1][0] if len(page) < len(rows) and page else None

    async def fetch_message(self, owner: str, conversation_id: str, message_id: str) -> Message:
        """Return one message of a conversation; raises ``NotFound``."""
        row = None
        if is_id(message_id):
            row = await self._pool.fetch_one(FETCH_MESSAGE, (message_id, owner, known(conversation_id)))
        if row is None:
            raise NotFound("There is no such message.")
        return _message(row, unheard=False)


def known(conversation_id: str) -> str:
    """Return *conversation_id* if it can be one; raises ``NotFound``."""
    if not is_id(conversation_id):
        raise unknown_conversation()
    return conversation_id


def unknown_conversation() -> NotFound:
    """Return the error for a conversation that does not exist, or not for this caller."""
    return NotFound("There is no such conversation.")


def _conversation(row: TupleRow) -> Conversation:
    identity, title, *values = row
    return Conversation(identity, clean_title(title), *values)


def _message(row: TupleRow, *, unheard: bool) -> Message:
    _position, *values, status, heard_ms, rest, kind, call_id, name = row
    values += Status(status), heard_ms, rest if unheard else UNSET
    message = Message(*values)
    if kind == "message":
        return message
    return msgspec.structs.replace(
        message,
        content="",
        type=kind,
        call_id=call_id,
        name=name,
        **{"arguments" if kind == "function_call" else "output": message.content},
    )


def _escaped(query: str) -> str:
    return query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
