"""
Turns: begun, checkpointed and ended in one statement each.

That only one turn runs in a conversation is held by a unique index, whichever process asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

import msgspec
import psycopg
from msgspec import Struct
from psycopg.rows import TupleRow

from jarvis_core.errors import BadGateway, Conflict, NotFound, RequestError, Unavailable
from jarvis_core.models import Heard, IdempotencyKey, Receipt, Status, ToolCall, TurnRecord, Utterance, is_id, new_id
from jarvis_core.store.conversations import unknown_conversation
from jarvis_core.store.pool import Pool
from jarvis_core.store.tool_calls import CALL_TYPES, CallStore
from jarvis_core.store.turn_deletion import delete_turn
from jarvis_core.store.unconfirmed_turns import UnconfirmedTurns
from jarvis_core.tools.calls import GoingOn

STORED_MESSAGE = """
    insert into messages (id, conversation_id, role, content, status)
    select %(user_message)s::uuid, id, 'user', %(content)s, 'completed' from c
"""
STARTED_TURN = """
    insert into turns (id, conversation_id, owner, user_message_id, status, worker, model)
    select %(turn)s::uuid, id, %(owner)s, %(user_message)s::uuid, 'running', %(worker)s::uuid, %(asked_to_act)s from c
    returning conversation_id, '' as before
"""

# Whether there is anything to recall: for who has told nothing, nothing is looked for.
REMEMBERS = "exists (select from memory_owners where owner = %(owner)s and entries > 0)"

# The assistant is to speak without being asked.
BEGIN_NEW_UNASKED = f"""
with c as (
    insert into conversations (id, owner, title) values (%(conversation)s, %(owner)s, %(title)s) returning id
), t as ({STARTED_TURN})
select {REMEMBERS}, t.before, null, null, 0 from t
"""

BEGIN_IN_NEW = f"""
with c as (
    insert into conversations (id, owner, title, message_count)
    values (%(conversation)s, %(owner)s, %(title)s, 1) returning id
), m as ({STORED_MESSAGE}), t as ({STARTED_TURN})
select {REMEMBERS}, t.before, null, null, 0 from t
"""

# As it was before the statement: with the message that was stored before its turn, without one that is stored now.
MESSAGES = "(select message_count from conversations where id = t.conversation_id)"

# What a statement's parts read is as it was before the statement. The history is all that was said, also what was said
# after a message that was stored before its turn, but that message.
HISTORY = """
    select position, role, content, sum(char_length(content)) over (order by position desc) as total
    from (
        select position, case when turn_id is null then role else type end as role,
            case when turn_id is null then content else json_build_array(call_id, name, content)::text end as content
        from messages
        where conversation_id = %(conversation)s and (%(asked)s::uuid is null or id <> %(asked)s)
            and (turn_id is null or turn_id is distinct from %(turn)s::uuid)
        order by position desc limit %(history_messages)s
    ) latest
"""
WITH_HISTORY = f"""
select {REMEMBERS}, t.before, h.role, h.content, {MESSAGES}
from t left join h on h.total <= %(history_chars)s order by position
"""

BEGIN_IN_EXISTING = f"""
with c as (
    update conversations set updated_at = now(), message_count = message_count + 1
    where id = %(conversation)s and owner = %(owner)s returning id
), m as ({STORED_MESSAGE}), t as ({STARTED_TURN}), h as ({HISTORY})
{WITH_HISTORY}
"""

BEGIN_WITHOUT_MESSAGE = f"""
with c as (
    update conversations set updated_at = now()
    where id = %(conversation)s and owner = %(owner)s returning id
), t as ({STARTED_TURN}), h as ({HISTORY})
{WITH_HISTORY}
"""

# Only a turn that left no message may be begun again: what a user was given stays.
BEGIN_AGAIN = f"""
with b as (
    select id, model from turns where id = %(turn)s and owner = %(owner)s for update
), t as (
    update turns set status = 'running', reason = null, error = null, ended_at = null, started_at = now(),
        receipt = null, worker = %(worker)s, model = %(asked_to_act)s
    from b where turns.id = b.id and status in ('failed', 'incomplete')
        and not exists (select from messages where messages.id = turns.id)
    returning turns.conversation_id, b.model as before
), h as ({HISTORY})
{WITH_HISTORY}
"""

FETCH_HISTORY = f"""
with t as (
    select id as conversation_id, '' as before from conversations where id = %(conversation)s and owner = %(owner)s
), h as ({HISTORY})
{WITH_HISTORY}
"""

KEY_LIFETIME = "interval '24 hours'"

TAKE_KEY = f"""
insert into idempotency_keys as k (owner, key, request_hash, turn_id) values (%s, %s, %s, %s)
on conflict (owner, key) do update
    set request_hash = excluded.request_hash, turn_id = excluded.turn_id, created_at = now()
    where k.created_at < now() - {KEY_LIFETIME}
returning 1
"""
FETCH_KEY = "select request_hash, turn_id::text from idempotency_keys where owner = %s and key = %s"
FORGET_KEYS = f"delete from idempotency_keys where created_at < now() - {KEY_LIFETIME}"

CHECKPOINT = """
update turns set content = fresh.content, model = fresh.model
from unnest(%s::uuid[], %s::text[], %s::text[]) as fresh (id, content, model)
where turns.id = fresh.id and turns.status = 'running'
"""

# Whoever begins a turn locks its conversation before it looks for a running one: who ends it locks them in the same order.
ENDED_TURN = """
with l as (
    select c.id from turns join conversations c on c.id = turns.conversation_id
    where turns.id = %(turn)s and {open} for no key update of c
), t as (
    update turns set status = %(status)s, reason = %(reason)s, error = %(error)s, content = '', tokens = %(tokens)s,
        model = %(model)s, memories = %(memories)s::uuid[], ended_at = now(),
        receipt = jsonb_strip_nulls(%(receipt)s::jsonb), prompt_tokens = %(prompt_tokens)s
    from l where turns.id = %(turn)s and turns.worker = %(worker)s and {open}
    returning turns.id, conversation_id, ended_at
), m as (
    insert into messages (id, conversation_id, role, content, unheard, heard_ms, tokens, model, status)
    select id, conversation_id, 'assistant', %(content)s, %(unheard)s, %(heard_ms)s, %(tokens)s, %(model)s, %(status)s
    from t where %(keep)s
    {where_there_is_one}
), c as (
    update conversations set updated_at = now(), message_count = message_count + {added}
    from t where conversations.id = t.conversation_id
)
select ended_at from t
"""
END = ENDED_TURN.format(open="turns.status = 'running'", where_there_is_one="", added="%(keep)s::int")

# Others took this process for dead and closed its turn with the text up to the last checkpoint: what it really came to
# takes that one's place.
CLOSED_BY_OTHERS = "turns.status = 'incomplete' and turns.reason = 'server_stopped'"
# Of a message that was truncated by then, no more is heard of its whole text.
HEARD = """
        content = case when {told} messages.heard_ms is null then {text}
            else left({text}, char_length(messages.content)) end,
        unheard = case when {told} messages.heard_ms is null then excluded.unheard
            else substr({text}, char_length(messages.content) + 1) end
"""
END_CLOSED_BY_OTHERS = ENDED_TURN.format(
    open=CLOSED_BY_OTHERS,
    where_there_is_one="""
    on conflict (id) do update set tokens = excluded.tokens, model = excluded.model, status = excluded.status,
        heard_ms = coalesce(excluded.heard_ms, messages.heard_ms), """
    + HEARD.format(text="excluded.content", told="excluded.heard_ms is not null or")
    + """
    returning xmax = 0 as added
    """,
    added="(select count(*) from m where added)",
)

# Only in place of what the reader's text was compared with: of several readers the next one compares anew.
KEEP_TOLD = f"""
with l as (
    select c.id from turns join conversations c on c.id = turns.conversation_id
    where turns.id = %(turn)s and {CLOSED_BY_OTHERS} for no key update of c
), t as (
    update turns set content = '' from l where turns.id = %(turn)s and {CLOSED_BY_OTHERS}
    returning turns.id, conversation_id, tokens, model, status
), m as (
    insert into messages (id, conversation_id, role, content, tokens, model, status)
    select id, conversation_id, 'assistant', %(told)s, tokens, model, status from t
    on conflict (id) do update set {HEARD.format(text="excluded.content", told="")} where messages.content = %(kept)s
    returning xmax = 0 as added
), c as (
    update conversations set updated_at = now(), message_count = message_count + (select count(*) from m where added)
    from t where conversations.id = t.conversation_id
)
select count(*) from m
"""

# What was worked out here gives way to what the client tells; of several that it tells the least counts.
TRUNCATE = """
with t as (
    select id from turns where id = %(turn)s and owner = %(owner)s
), m as (
    update messages m set
        content = left(m.content || m.unheard, %(chars)s),
        unheard = substr(m.content || m.unheard, %(chars)s + 1),
        heard_ms = %(heard_ms)s, heard_told = %(told)s
    from t where m.id = t.id and m.role = 'assistant' and (
        m.heard_ms is null or (%(told)s and (not m.heard_told or %(chars)s < char_length(m.content)))
    )
)
select 1 from t
"""

# Of a voice that began when the text was whole.
ADD_RECEIPT = "update turns set receipt = coalesce(receipt, '{}') || jsonb_strip_nulls(%s::jsonb) where id = %s"

RECORD = """
select t.id::text, t.conversation_id::text, t.user_message_id::text, t.status, t.reason, coalesce(m.content, t.content),
    t.tokens, t.model, t.memories::text[], t.started_at, t.ended_at, t.error, t.worker::text, t.prompt_tokens, m.heard_ms,
    t.receipt::text
from turns t left join messages m on m.id = t.id
"""
FETCH = f"{RECORD} where t.owner = %s and t.id = %s"
FETCH_MANY = f"{RECORD} where t.id = any(%s::uuid[])"
FETCH_RUNNING = f"{RECORD} where t.owner = %s and t.conversation_id = %s and t.status = 'running'"

_decode_call = msgspec.json.Decoder(tuple[str, str, str]).decode
_encode_receipt = msgspec.json.Encoder().encode
_receipt_decoder = msgspec.json.Decoder(Receipt)

HISTORY_MESSAGES = 200
"""More messages of history than this are never put into a prompt."""


class Beginning(Struct, frozen=True):
    """A turn to begin."""

    owner: str
    conversation_id: str
    turn_id: str
    user_message_id: str | None
    """None where the assistant is to speak without being asked."""
    content: str
    title: str | None
    """Of the conversation to be made; None where it is there."""
    history_chars: int
    message_is_stored: bool = False
    """Whether the user's message was stored before."""
    key: IdempotencyKey | None = None
    asked_to_act: str = ""
    """Who is to be asked to do something in this turn, and only once; kept in the place of the model until the turn ends."""


class Begun(Struct, frozen=True):
    """What is known when a turn begins."""

    history: list[Utterance]
    """What was said before, the oldest first."""
    remembers: bool = False
    """Whether the owner has memories."""
    before: str = ""
    """Of a turn that is begun again: its model, or who was asked to act and has not told whether it did."""
    older: int = 0
    """Messages of the conversation before the history."""


class TurnEnd(Struct, frozen=True):
    """How a turn ended."""

    status: Status
    reason: str
    error: RequestError | None = None
    """Why it failed, or why the rest of its text was lost; the store keeps the message alone."""
    tokens: int = 0
    model: str = ""
    ended_at: datetime | None = None
    """Of the database's clock, once it is stored there."""
    receipt: Receipt | None = None
    heard: Heard | None = None
    """How much of it was heard, where it was interrupted: the rest is stored apart."""
    prompt_tokens: int = 0
    """Read by the model; 0 where its server did not say."""

    @classmethod
    def from_record(cls, record: TurnRecord) -> Self:
        """Return how a stored turn ended."""
        error = BadGateway(record.error or "The turn failed.") if record.status is Status.FAILED else None
        return cls(
            record.status,
            record.reason or "",
            error,
            record.tokens,
            record.model,
            record.ended_at,
            record.receipt,
            prompt_tokens=record.prompt_tokens,
        )


class TurnStore:
    """Exchanges between a user and the assistant, running and ended; what is begun here is the worker *worker_id*'s."""

    def __init__(self, pool: Pool, worker_id: str | None = None) -> None:
        self._pool = pool
        self.worker_id = worker_id or new_id()
        self.unconfirmed = UnconfirmedTurns(pool, self.worker_id)
        self.calls = CallStore(pool, self.worker_id)

    async def begin(self, beginning: Beginning) -> Begun | str:
        """
        Store the user's message and a running turn in one transaction, and return what went before.

        Where the key was taken by an earlier request for the same, nothing is stored and that turn's id is returned.
        Raises ``NotFound``, or ``Conflict`` where another turn runs in the conversation or the key was used for
        another request.
        """
        if self.unconfirmed.are_new:
            # One of them may stand in the way of this one, or be what its key leads to.
            await self.unconfirmed.settle()
        if beginning.title is None and not is_id(beginning.conversation_id):
            raise unknown_conversation()
        is_unasked = beginning.user_message_id is None
        if beginning.title is not None:
            statement = BEGIN_NEW_UNASKED if is_unasked else BEGIN_IN_NEW
        elif beginning.message_is_stored or is_unasked:
            statement = BEGIN_WITHOUT_MESSAGE
        else:
            statement = BEGIN_IN_EXISTING
        parameters = self._parameters(
            beginning, asked=beginning.user_message_id if beginning.message_is_stored else None
        )
        try:
            if beginning.key is None:
                return _begun(await self._pool.fetch_all(statement, parameters), int(beginning.message_is_stored))
            return await self._begin_once(statement, parameters, beginning, beginning.key)
        except psycopg.errors.UniqueViolation as exc:
            raise another_runs() from exc
        except Unavailable:
            # Whoever asks again has another id, unless by the key that would have been taken with it.
            self.unconfirmed.add(beginning.turn_id)
            raise

    async def _begin_once(
        self, statement: str, parameters: dict[str, Any], beginning: Beginning, key: IdempotencyKey
    ) -> Begun | str:
        async with self._pool.transaction() as connection:
            taking = (beginning.owner, key.text, key.request_hash, beginning.turn_id)
            cursor = await connection.execute(TAKE_KEY, taking)
            if await cursor.fetchone() is not None:
                cursor = await connection.execute(statement, parameters)
                return _begun(await cursor.fetchall(), int(beginning.message_is_stored))
            cursor = await connection.execute(FETCH_KEY, (beginning.owner, key.text))
            row = await cursor.fetchone()
            if row is None or bytes(row[0]) != key.request_hash:
                raise Conflict("This idempotency key was used for another request.")
            return str(row[1])

    async def begin_again(self, beginning: Beginning) -> Begun | None:
        """
        Set a turn that ended without a message running again, and return what went before but its user's message.

        Returns None where there is no such turn, or it has a message. Raises ``Conflict`` as ``begin`` does.
        """
        parameters = self._parameters(beginning, asked=beginning.user_message_id)
        await self.unconfirmed.remove(beginning.turn_id)
        try:
            rows = await self._pool.fetch_all(BEGIN_AGAIN, parameters)
        except psycopg.errors.UniqueViolation as exc:
            raise another_runs() from exc
        except Unavailable:
            # Looked at once only: later it may have been run again, by whichever process.
            self.unconfirmed.add(beginning.turn_id, open_s=0.0)
            raise
        return _begun(rows, 1) if rows else None

    async def fetch_history(self, owner: str, conversation_id: str, history_chars: int) -> Begun:
        """Return what was said in a conversation, as for a turn that begins; raises ``NotFound``."""
        parameters = {
            "conversation": conversation_id,
            "owner": owner,
            "asked": None,
            "turn": None,
            "history_chars": history_chars,
            "history_messages": HISTORY_MESSAGES,
        }
        return _begun(await self._pool.fetch_all(FETCH_HISTORY, parameters), 0)

    async def go_on(self, owner: str, turn_id: str, going_on: GoingOn) -> None:
        """
        Set a turn running again that waits for its client, with what that has done.

        Raises ``Conflict`` where it does not wait, or another turn runs in its conversation.
        """
        try:
            waited = await self.calls.go_on(owner, turn_id, going_on)
        except psycopg.errors.UniqueViolation as exc:
            raise another_runs() from exc
        except Unavailable:
            self.unconfirmed.add(turn_id, open_s=0.0)
            raise
        if not waited:
            raise Conflict("This response does not wait for its client.")

    async def fetch_earlier(self, beginning: Beginning) -> Begun:
        """Return what was said before a turn that goes on, but its user's message."""
        parameters = self._parameters(beginning, asked=beginning.user_message_id)
        return _begun(await self._pool.fetch_all(FETCH_HISTORY, parameters), 1)

    async def forget_keys(self) -> None:
        """Remove idempotency keys that are older than 24 hours."""
        await self._pool.execute(FORGET_KEYS)

    async def checkpoint(self, texts: list[tuple[str, str, str]]) -> None:
        """Store (id, text so far, model) of running turns, in one statement."""
        if texts:
            await self._pool.execute(CHECKPOINT, [list(column) for column in zip(*texts, strict=True)])

    async def end(self, turn_id: str, end: TurnEnd, content: str, memories: Sequence[str] = ()) -> datetime | None:
        """
        Store how a turn ended, and the assistant's message with it; return when, or None if it was not running here.

        One that others have closed, because they took this worker for dead, gets its real end.

        A turn that ended without a text leaves no message, unless it completed.
        """
        parameters = {
            "turn": turn_id,
            "worker": self.worker_id,
            "status": end.status,
            "reason": end.reason,
            "error": None if end.error is None else end.error.message,
            "content": content if end.heard is None else content[: end.heard.chars],
            "unheard": "" if end.heard is None else content[end.heard.chars :],
            "heard_ms": None if end.heard is None else end.heard.ms,
            "tokens": end.tokens,
            "prompt_tokens": end.prompt_tokens,
            "model": end.model,
            # As text: the driver looks at each list's elements for their type.
            "memories": f"{{{','.join(memories)}}}",
            "keep": bool(content) or end.status is Status.COMPLETED,
            "receipt": "{}" if end.receipt is None else _encode_receipt(end.receipt).decode(),
        }
        row = await self._pool.fetch_one(END, parameters, patient=True)
        if row is None:
            row = await self._pool.fetch_one(END_CLOSED_BY_OTHERS, parameters)
        ended_at: datetime | None = row[0] if row else None
        return ended_at

    async def keep_told(self, turn_id: str, *, kept: str, told: str) -> bool:
        """
        Store *told*, the text that a reader was given, in place of *kept*, the last that a worker that died had stored.

        Returns whether that was done: not where the turn runs again, or its text is another than *kept* by now.
        """
        row = await self._pool.fetch_one(KEEP_TOLD, {"turn": turn_id, "kept": kept, "told": told})
        return row is not None and row[0] == 1

    async def truncate(self, owner: str, turn_id: str, chars: int, *, heard_ms: int, told: bool) -> None:
        """Keep of an answer the first *chars* code points as what was heard, the rest apart; raises ``NotFound``."""
        parameters = {"turn": turn_id, "owner": owner, "chars": chars, "heard_ms": heard_ms, "told": told}
        if not is_id(turn_id) or await self._pool.fetch_one(TRUNCATE, parameters) is None:
            raise NotFound("There is no such response.")

    async def add_receipt(self, turn_id: str, receipt: Receipt) -> None:
        """Store what *receipt* has of a turn that has ended."""
        await self._pool.execute(ADD_RECEIPT, (_encode_receipt(receipt).decode(), turn_id))

    async def delete(self, owner: str, turn_id: str) -> None:
        """Remove a turn that has ended, as ``turn_deletion.py`` has it; raises ``NotFound``."""
        if not is_id(turn_id) or not await delete_turn(self._pool, owner, turn_id):
            raise NotFound("There is no such response.")

    async def fetch(self, owner: str, turn_id: str) -> TurnRecord:
        """Return a turn; raises ``NotFound``."""
        row = await self._pool.fetch_one(FETCH, (owner, turn_id)) if is_id(turn_id) else None
        if row is None:
            raise NotFound("There is no such response.")
        return _record(row)

    async def fetch_many(self, turn_ids: Sequence[str]) -> list[TurnRecord]:
        """Return those of the turns that there are, whoever's they are."""
        return [_record(row) for row in await self._pool.fetch_all(FETCH_MANY, (list(turn_ids),))]

    async def fetch_running(self, owner: str, conversation_id: str) -> TurnRecord | None:
        """Return the turn that runs in a conversation, if any."""
        if not is_id(conversation_id):
            return None
        row = await self._pool.fetch_one(FETCH_RUNNING, (owner, conversation_id))
        return None if row is None else _record(row)

    def _parameters(self, beginning: Beginning, *, asked: str | None) -> dict[str, Any]:
        return {
            "owner": beginning.owner,
            "worker": self.worker_id,
            "conversation": beginning.conversation_id,
            "title": beginning.title,
            "turn": beginning.turn_id,
            "user_message": beginning.user_message_id,
            "asked_to_act": beginning.asked_to_act,
            "content": beginning.content,
            "asked": asked,
            "history_messages": HISTORY_MESSAGES,
            "history_chars": beginning.history_chars,
        }


def another_runs() -> Conflict:
    """Return the error for a second turn in a conversation."""
    return Conflict("Another turn is running in this conversation; wait for it or cancel it.")


def _record(row: TupleRow) -> TurnRecord:
    values = list(row)
    values[3] = Status(values[3])
    receipt = Receipt() if values[-1] is None else _receipt_decoder.decode(values[-1])
    receipt.heard_ms = values[-2]
    values[-1] = receipt
    return TurnRecord(*values)


def _begun(rows: list[TupleRow], asked: int) -> Begun:
    """Return what *rows* tell; *asked* is how many of the messages that they count are answered by the turn."""
    if not rows:
        raise unknown_conversation()
    history = [(role, text) for _, _, role, text, _ in rows if role is not None]
    roles = [role for role, _ in history]
    calls = sum(map(roles.count, CALL_TYPES))
    older = max(0, rows[0][4] - asked - len(history) + calls)
    if not calls:
        return Begun([Utterance(role, text) for role, text in history], bool(rows[0][0]), rows[0][1], older)
    return Begun(_with_calls(history), bool(rows[0][0]), rows[0][1], older)


def _with_calls(history: list[tuple[Any, str]]) -> list[Utterance]:
    """Return *history* with its calls, as ``HISTORY`` gives them, as an assistant's, and their outputs as a tool's."""
    found: list[Utterance] = []
    for role, content in history:
        if role not in CALL_TYPES:
            found.append(Utterance(role, content))
            continue
        call_id, name, text = _decode_call(content)
        if role != "function_call":
            found.append(Utterance("tool", text, call_id=call_id))
            continue
        call = ToolCall(call_id, name, text)
        if found and found[-1].calls:
            found[-1] = Utterance("assistant", "", (*found[-1].calls, call))
        else:
            found.append(Utterance("assistant", "", (call,)))
    return found
