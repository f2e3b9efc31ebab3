"""Takes a turn out of its conversation: the question, the answer, and what led to them."""

from __future__ import annotations

from jarvis_core.store.pool import Pool

# Whoever begins a turn in the conversation locks it first, too.
DELETE = """
with l as (
    select c.id from turns join conversations c on c.id = turns.conversation_id
    where turns.id = %(turn)s and turns.owner = %(owner)s for no key update of c
), t as (
    delete from turns using l
    where turns.id = %(turn)s and turns.owner = %(owner)s and turns.status <> 'running'
    returning turns.id, turns.conversation_id, turns.user_message_id
), k as (
    delete from idempotency_keys using t where idempotency_keys.turn_id = t.id
), calls as (
    delete from messages using t where messages.turn_id = t.id
), m as (
    delete from messages using t
    where messages.conversation_id = t.conversation_id and (messages.id = t.id or messages.turn_id = t.id or (
        messages.id = t.user_message_id
        and not exists (select from turns o where o.user_message_id = t.user_message_id and o.id <> t.id)
    ))
    returning messages.type
), c as (
    update conversations set message_count = message_count - (select count(*) from m where type = 'message')
    from t where conversations.id = t.conversation_id
    returning message_count
)
select t.conversation_id, c.message_count from t, c
"""
DELETE_EMPTY = """
delete from conversations c
where c.id = %s and message_count = 0
    and not exists (select from messages m where m.conversation_id = c.id)
    and not exists (select from turns where turns.conversation_id = c.id)
"""


async def delete_turn(pool: Pool, owner: str, turn_id: str) -> bool:
    """
    Remove a turn that has ended with its messages, and its conversation where nothing else is in it.

    The user's message stays where another turn answers it too. Returns whether there was such a turn.
    """
    row = await pool.fetch_one(DELETE, {"turn": turn_id, "owner": owner})
    if row is None:
        return False
    if row[1] == 0:
        # What it is called is what was said in it.
        await pool.execute(DELETE_EMPTY, (row[0],))
    return True
