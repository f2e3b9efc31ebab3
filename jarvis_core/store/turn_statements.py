"""The statements of `TurnStore`: each begins, checkpoints, ends or reads turns in one trip."""

from __future__ import annotations

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
