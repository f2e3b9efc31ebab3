"""
Turns: begun, checkpointed and ended in one statement each.

That only one turn runs in a conversation is held by a unique index, whichever process asks.
"""

from __future__ import annotations

from datetime import datetime

import psycopg
from msgspec import Struct

from jarvis_core.errors import Conflict, NotFound
from jarvis_core.models import Status, TurnRecord, Utterance, is_id
from jarvis_core.store.conversations import unknown_conversation
from jarvis_core.store.pool import Pool

BEGIN_IN_NEW = """
with c as (
    insert into conversations (id, owner, title, message_count)
    values (%(conversation)s, %(owner)s, %(title)s, 1) returning id
), m as (
    insert into messages (id, conversation_id, role, content, status)
    select %(user_message)s::uuid, id, 'user', %(content)s, 'completed' from c
), t as (
    insert into turns (id, conversation_id, owner, user_message_id, status)
    select %(turn)s::uuid, id, %(owner)s, %(user_message)s::uuid, 'running' from c returning started_at
)
select started_at, null, null from t
"""

# The history is read as it was before this statement, so it ends with the message before the new one.
BEGIN_IN_EXISTING = """
with c as (
    update conversations set updated_at = now(), message_count = message_count + 1
    where id = %(conversation)s and owner = %(owner)s returning id
), m as (
    insert into messages (id, conversation_id, role, content, status)
    select %(user_message)s::uuid, id, 'user', %(content)s, 'completed' from c
), t as (
    insert into turns (id, conversation_id, owner, user_message_id, status)
    select %(turn)s::uuid, id, %(owner)s, %(user_message)s::uuid, 'running' from c returning started_at
), h as (
    select position, role, content, sum(char_length(content)) over (order by position desc) as total
    from (
        select position, role, content from messages
        where conversation_id = %(conversation)s order by position desc limit %(history_messages)s
    ) latest
)
select t.started_at, h.role, h.content
from t left join h on h.total <= %(history_chars)s
order by h.position
"""

CHECKPOINT = "update turns set content = %s, model = %s where id = %s and status = 'running'"

END = """
with t as (
    update turns set status = %(status)s, reason = %(reason)s, error = %(error)s, content = '', tokens = %(tokens)s,
        model = %(model)s, ended_at = now()
    where id = %(turn)s and status = 'running' returning id, conversation_id, ended_at
), m as (
    insert into messages (id, conversation_id, role, content, tokens, model, status)
    select id, conversation_id, 'assistant', %(content)s, %(tokens)s, %(model)s, %(status)s from t where %(keep)s
), c as (
    update conversations set updated_at = now(), message_count = message_count + %(keep)s::int
    from t where conversations.id = t.conversation_id
)
select ended_at from t
"""

CLOSE_ABANDONED = """
with t as (
    update turns set status = 'incomplete', reason = 'server_stopped', ended_at = now()
    where status = 'running' and started_at < now()
    returning id, conversation_id, content, tokens, model
), m as (
    insert into messages (id, conversation_id, role, content, tokens, model, status)
    select id, conversation_id, 'assistant', content, tokens, model, 'incomplete' from t where content <> ''
), c as (
    update conversations set message_count = message_count + 1
    from t where conversations.id = t.conversation_id and t.content <> ''
)
select count(*) from t
"""

FETCH = """
select t.id::text, t.conversation_id::text, t.user_message_id::text, t.status, t.reason, coalesce(m.content, t.content),
    t.tokens, t.model, t.memories::text[], t.started_at, t.ended_at, t.error
from turns t left join messages m on m.id = t.id
where t.owner = %s and t.id = %s
"""

HISTORY_MESSAGES = 200
"""More messages of history than this are never put into a prompt."""


class Begun(Struct, frozen=True):
    """What the store knows of a turn that it has just begun."""

    history: list[Utterance]
    """Earlier messages of the conversation, oldest first."""


class TurnStore:
    """Exchanges between a user and the assistant, running and ended."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def begin(
        self,
        *,
        owner: str,
        conversation_id: str,
        title: str | None,
        turn_id: str,
        user_message_id: str,
        content: str,
        history_chars: int,
    ) -> Begun:
        """
        Store the user's message and a running turn, and return the history, all in one transaction.

        With *title* the conversation is made; without, it has to be there. Raises ``NotFound``, or ``Conflict`` where
        another turn runs in it.
        """
        parameters = {
            "owner": owner,
            "conversation": conversation_id,
            "title": title,
            "turn": turn_id,
            "user_message": user_message_id,
            "content": content,
            "history_messages": HISTORY_MESSAGES,
            "history_chars": history_chars,
        }
        if title is None and not is_id(conversation_id):
            raise unknown_conversation()
        try:
            rows = await self._pool.fetch_all(BEGIN_IN_EXISTING if title is None else BEGIN_IN_NEW, parameters)
        except psycopg.errors.UniqueViolation as exc:
            raise Conflict("Another turn is running in this conversation; wait for it or cancel it.") from exc
        if not rows:
            raise unknown_conversation()
        return Begun([Utterance(role, text) for _, role, text in rows if role is not None])

    async def checkpoint(self, turn_id: str, content: str, model: str) -> None:
        """Store the text so far of a running turn."""
        await self._pool.execute(CHECKPOINT, (content, model, turn_id))

    async def end(
        self,
        turn_id: str,
        *,
        status: Status,
        reason: str,
        content: str,
        tokens: int,
        model: str,
        error: str | None = None,
    ) -> datetime | None:
        """
        Store how a turn ended, and the assistant's message with it; return when, or None if it was not running.

        A turn that ended without a text leaves no message, unless it completed.
        """
        row = await self._pool.fetch_one(
            END,
            {
                "turn": turn_id,
                "status": status,
                "reason": reason,
                "error": error,
                "content": content,
                "tokens": tokens,
                "model": model,
                "keep": bool(content) or status is Status.COMPLETED,
            },
        )
        ended_at: datetime | None = row[0] if row else None
        return ended_at

    async def close_abandoned(self) -> int:
        """End as ``incomplete`` every turn that a process left running, with the text it had; return how many."""
        row = await self._pool.fetch_one(CLOSE_ABANDONED)
        return int(row[0]) if row else 0

    async def fetch(self, owner: str, turn_id: str) -> TurnRecord:
        """Return a turn; raises ``NotFound``."""
        row = await self._pool.fetch_one(FETCH, (owner, turn_id)) if is_id(turn_id) else None
        if row is None:
            raise NotFound("There is no such response.")
        values = list(row)
        values[3] = Status(values[3])
        return TurnRecord(*values)
