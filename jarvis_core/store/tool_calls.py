"""
Calls of tools: stored before they are made, their outputs before the model sees them.

A call can only be stored by the worker that runs its turn. So of two that take a turn for theirs one makes calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from jarvis_core.models import new_id
from jarvis_core.store.pool import Pool
from jarvis_core.tools.calls import CallRecord, GoingOn

CALL_TYPES = frozenset({"function_call", "function_call_output"})

STORE_CALLS = """
with t as (
    update turns set request = coalesce(%(request)s, request)
    where id = %(turn)s and worker = %(worker)s and status = 'running' returning id, conversation_id
)
insert into messages (id, conversation_id, role, content, status, type, turn_id, call_id, name, server, round, text_at, asked, outcome)
select one.id, t.conversation_id, 'assistant', one.arguments, 'completed', 'function_call', t.id, one.call_id, one.name, one.server,
    %(round)s, %(text_at)s, one.state = 'asked', one.state
from t, unnest(%(ids)s::uuid[], %(call_ids)s::text[], %(names)s::text[], %(arguments)s::text[], %(servers)s::text[], %(states)s::text[])
    with ordinality as one (id, call_id, name, arguments, server, state, place)
order by one.place
returning 1
"""

OUTPUT = """
    insert into messages (id, conversation_id, role, content, status, type, turn_id, call_id, name)
    select {id}, called.conversation_id, 'assistant', {output}, 'completed', 'function_call_output', called.turn_id, called.call_id,
        called.name
"""
STORE_OUTPUT = f"""
with called as (
    update messages set outcome = %(state)s, elapsed_ms = %(elapsed_ms)s
    where turn_id = %(turn)s and call_id = %(call)s and type = 'function_call'
    returning conversation_id, turn_id, call_id, name
)
{OUTPUT.format(id="%(id)s::uuid", output="%(output)s")} from called
on conflict do nothing
"""

ADD_OUTPUT = f"""
with called as (
    update messages set outcome = 'finished' from conversations c
    where c.id = messages.conversation_id and c.owner = %(owner)s and c.id = %(conversation)s
        and messages.call_id = %(call)s and type = 'function_call' and outcome = 'waiting'
    returning messages.conversation_id, turn_id, call_id, name
)
{OUTPUT.format(id="%(id)s::uuid", output="%(output)s")} from called
returning id::text, turn_id::text
"""

FETCH = """
select c.id::text, c.call_id, c.name, c.content, c.server, c.round, c.text_at, c.asked, c.outcome, o.content, c.elapsed_ms
from messages c left join messages o on o.turn_id = c.turn_id and o.call_id = c.call_id and o.type = 'function_call_output'
where c.turn_id = %s and c.type = 'function_call'
order by c.position
"""

WAITS = "turns.status = 'incomplete' and turns.reason in ('tool_calls', 'approval_required')"
# What it said until now is the running turn's again; the message comes once more, after the outputs.
GO_ON = f"""
with l as (
    select c.id from turns join conversations c on c.id = turns.conversation_id
    where turns.id = %(turn)s and turns.owner = %(owner)s and {WAITS} for no key update of c
), t as (
    update turns set status = 'running', reason = null, error = null, ended_at = null, started_at = now(), worker = %(worker)s,
        content = coalesce((select content from messages m where m.id = turns.id), '')
    from l where turns.id = %(turn)s and {WAITS}
    returning turns.id, turns.conversation_id
), m as (
    delete from messages using t where messages.id = t.id returning 1
), c as (
    update conversations set updated_at = now(), message_count = message_count - (select count(*) from m)
    from t where conversations.id = t.conversation_id
), allowed as (
    update messages set outcome = 'begun' from t
    where messages.turn_id = t.id and messages.type = 'function_call' and messages.call_id = any(%(allowed)s::text[])
), called as (
    update messages set outcome = one.state from t, unnest(%(calls)s::text[], %(states)s::text[]) as one (call_id, state)
    where messages.turn_id = t.id and messages.type = 'function_call' and messages.call_id = one.call_id
    returning messages.conversation_id, turn_id, messages.call_id, name
), o as (
    {OUTPUT.format(id="one.id", output="one.output")}
    from called join unnest(%(ids)s::uuid[], %(calls)s::text[], %(outputs)s::text[]) as one (id, call_id, output)
        on one.call_id = called.call_id
    on conflict do nothing
)
select 1 from t
"""
FETCH_REQUEST = "select request from turns where owner = %s and id = %s"


class CallStore:
    """The calls of all turns; those of a turn that the worker *worker_id* runs are stored here."""

    def __init__(self, pool: Pool, worker_id: str) -> None:
        self._pool = pool
        self._worker_id = worker_id

    async def add(self, turn_id: str, calls: Sequence[CallRecord], request: str | None) -> bool:
        """
        Store the calls of one round, before any of them is made; return whether that was done.

        Not where another worker has taken the turn, or its conversation is gone. *request* is kept for a turn that will wait
        for its client.
        """
        rows = await self._pool.fetch_all(
            STORE_CALLS,
            {
                "turn": turn_id,
                "worker": self._worker_id,
                "request": request,
                "round": calls[0].round,
                "text_at": calls[0].text_at,
                "ids": [call.id for call in calls],
                "call_ids": [call.call_id for call in calls],
                "names": [call.name for call in calls],
                "arguments": [call.arguments for call in calls],
                "servers": [call.server for call in calls],
                "states": [call.state for call in calls],
            },
        )
        return len(rows) == len(calls)

    async def end(self, turn_id: str, call: CallRecord) -> None:
        """Store the output of *call* and what became of it; the first output stands."""
        await self._pool.execute(
            STORE_OUTPUT,
            {
                "turn": turn_id,
                "call": call.call_id,
                "id": new_id(),
                "output": call.output or "",
                "state": call.state,
                "elapsed_ms": call.elapsed_ms,
            },
        )

    async def add_output(
        self, owner: str, conversation_id: str | None, call_id: str, output: str
    ) -> tuple[str, str] | None:
        """Store the output of a call that waits for its client; return the ids of its message and turn, or None."""
        if conversation_id is None:
            return None
        parameters = {
            "owner": owner,
            "conversation": conversation_id,
            "call": call_id,
            "output": output,
            "id": new_id(),
        }
        row = await self._pool.fetch_one(ADD_OUTPUT, parameters)
        return None if row is None else (row[0], row[1])

    async def fetch(self, turn_id: str) -> list[CallRecord]:
        """Return the calls of a turn, in order."""
        return [CallRecord(*row) for row in await self._pool.fetch_all(FETCH, (turn_id,))]

    async def fetch_request(self, owner: str, turn_id: str) -> str | None:
        """Return what a turn was asked that waits for its client; None where none was kept."""
        row = await self._pool.fetch_one(FETCH_REQUEST, (owner, turn_id))
        return None if row is None else row[0]

    async def go_on(self, owner: str, turn_id: str, going_on: GoingOn) -> bool:
        """Set a turn running again that waits for its client, with what that has done; return whether it did wait."""
        row = await self._pool.fetch_one(
            GO_ON,
            {
                "owner": owner,
                "turn": turn_id,
                "worker": self._worker_id,
                "allowed": list(going_on.allowed),
                "calls": [one.call_id for one in going_on.outputs],
                "states": [one.state for one in going_on.outputs],
                "ids": [new_id() for _ in going_on.outputs],
                "outputs": [one.output for one in going_on.outputs],
            },
        )
        return row is not None
