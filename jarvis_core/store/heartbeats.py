"""
Lists the worker processes that share the database, and closes the turns of dead ones.

Compares only times of the database: clocks of several machines do not agree.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from jarvis_core.processes.child import Identity
from jarvis_core.store.pool import Pool

LEASE = "interval '3.5 seconds'"
"""Declares a worker dead that has not been seen for so long."""
NOBODYS = "interval '10 minutes'"
"""Closes a turn of an older version, which names no worker, after so long: no turn may run for longer."""

# Commit beats without waiting for the disk: a beat lost in a crash of the server is repeated a second later.
ASYNCHRONOUS = "set_config('synchronous_commit', 'off', true)"

BEAT = f"""
with me as (
    insert into workers (id, machine, pid, started)
    select %(id)s::uuid, %(machine)s, %(pid)s, %(started)s where {ASYNCHRONOUS} = 'off'
    on conflict (id) do update set seen_at = now()
    returning id
)
select now(), other.id::text, case when other.machine = %(machine)s then other.pid end, other.started,
    other.seen_at < now() - {LEASE}
from me left join workers other
    on other.id <> me.id and (other.machine = %(machine)s or other.seen_at < now() - {LEASE})
"""
FETCH_OTHERS = """
select id::text, case when machine = %(machine)s then pid end, started, false from workers where id <> %(id)s
"""
LEAVE = "delete from workers where id = %s"

# Lock the conversation before its running turn, in the order in which turns begin.
CLOSE = """
l as (
    select c.id from turns join conversations c on c.id = turns.conversation_id
    where turns.status = 'running' and {whose} order by c.id for no key update of c
), t as (
    update turns set status = 'incomplete', reason = 'server_stopped', ended_at = now()
    from l where turns.conversation_id = l.id and turns.status = 'running' and {whose}
    returning turns.id, conversation_id, content, tokens, model
), m as (
    insert into messages (id, conversation_id, role, content, tokens, model, status)
    select id, conversation_id, 'assistant', content, tokens, model, 'incomplete' from t where content <> ''
), c as (
    update conversations set message_count = message_count + 1
    from t where conversations.id = t.conversation_id and t.content <> ''
)
select count(*) from t
"""
# Skip locked rows: of several workers that reap at once, one closes a dead worker's turns.
REAP = f"""
with dead as (
    select id from workers where id = any(%(ids)s::uuid[]) and (%(unseen_since)s::timestamptz is null
        or seen_at < %(unseen_since)s::timestamptz - {LEASE})
    for update skip locked
), gone as (
    delete from workers using dead where workers.id = dead.id
), {CLOSE.format(whose="turns.worker in (select id from dead)")}
"""
HAS_NO_WORKER = "not exists (select from workers w where w.id = turns.worker)"
CLOSE_STRAYS = f"""
with {CLOSE.format(whose=f"(turns.worker is not null or turns.started_at < now() - {NOBODYS}) and {HAS_NO_WORKER}")}
"""
CLOSE_ALL_STRAYS = f"with {CLOSE.format(whose=HAS_NO_WORKER)}"


class Other(NamedTuple):
    """Describes another worker."""

    id: str
    pid: int | None
    """The process, where the worker is on the same machine; None elsewhere."""
    started: int
    late: bool
    """Whether the worker has not been seen for longer than ``LEASE``."""


class HeartbeatStore:
    """Reads and writes the table of workers for the worker *worker_id*."""

    def __init__(self, pool: Pool, worker_id: str, identity: Identity) -> None:
        self._pool = pool
        self._me = {"id": worker_id, **identity._asdict()}

    async def beat(self) -> tuple[datetime, list[Other]]:
        """Record that this worker lives; return the time, and the workers that are late or on the same machine."""
        rows = await self._pool.fetch_all(BEAT, self._me)
        return rows[0][0], [Other(*row[1:]) for row in rows if row[1] is not None]

    async def fetch_others(self) -> list[Other]:
        """Return every other worker."""
        return [Other(*row) for row in await self._pool.fetch_all(FETCH_OTHERS, self._me)]

    async def leave(self) -> None:
        """Take this worker off the list."""
        await self._pool.execute(LEAVE, (self._me["id"],))

    async def reap(self, ids: list[str], unseen_since: datetime | None = None) -> int:
        """
        Remove dead workers, and end their turns as ``incomplete`` with their last text; return how many turns.

        With *unseen_since*, spares workers that were seen within ``LEASE`` before that time, or after it.
        """
        return await self._close(REAP, ids=ids, unseen_since=unseen_since)

    async def close_strays(self, *, at_once: bool = False) -> int:
        """
        End the running turns of workers that are not on the list; return how many.

        *at_once* also ends turns of older versions, which name no worker.
        """
        return await self._close(CLOSE_ALL_STRAYS if at_once else CLOSE_STRAYS)

    async def _close(self, statement: str, **parameters: object) -> int:
        row = await self._pool.fetch_one(statement, parameters)
        return int(row[0]) if row else 0
