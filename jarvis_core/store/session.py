"""
What a session is to be like, and how the server is told: once for the session, or behind a pooler in each transaction.

A pooler such as PgBouncer lends a server's session to one client after another, at the latest at a transaction's end. What
was set in it, prepared in it or locked by it is then somebody else's, and what is asked for by a name may be what another
has prepared under that name. No startup option says how a session is to be: PgBouncer refuses those it does not know, or
drops them. So each connection finds out who is at its other end: only where that is the server itself is the process that
answers the one that greeted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
from msgspec import Struct
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.rows import TupleRow

Setting = tuple[str, str]

# Extensions' types, operators and functions are named without their schema, and whoever made the extensions may have put
# them into one where nothing is looked for. It is looked into last, and never becomes the one where tables are made.
SEARCH_PATH = """
select current_setting('search_path') || ', ' || string_agg(distinct quote_ident(n.nspname), ', ')
from pg_extension e join pg_namespace n on n.oid = e.extnamespace
where e.extname in ('vector', 'pg_trgm') and current_schema() is not null
    and n.nspname <> all (current_schemas(true)) and has_schema_privilege(n.oid, 'usage')
"""
"""The whole of it where extensions are elsewhere, else null; 3 ms the first time that a session asks such a thing."""


class Session(Struct, frozen=True):
    """One connection's."""

    pooled: bool = False
    """Whether each transaction may be in another session of the server's."""
    settings: tuple[Setting, ...] = ()
    """What each transaction has to set for itself."""
    takes_writes: bool = True
    """Whether it did so when it was greeted."""


class UtcLoader(Loader):
    """Reads points in time as UTC, whatever the session's time zone is; the driver's own gives them that one."""

    def load(self, data: Buffer) -> datetime:
        """Return what the server has written (``DateStyle`` ISO)."""
        return datetime.fromisoformat(bytes(data).decode()).astimezone(UTC)


async def greet(connection: psycopg.AsyncConnection[TupleRow], settings: Sequence[Setting], *, pooled: bool) -> Session:
    """
    Make *settings* in a new *connection*'s session, or where it is *pooled* let them be made by each transaction.

    Finds a pooler by itself. Waits for one round trip; raises ``psycopg.Error``.
    """
    pid = connection.info.backend_pid
    call = ", case when pid = %s then set_config(%s, %s, false) end"
    here = [] if pooled else settings
    statement = (
        f"select pid = %s, current_setting('transaction_read_only') = 'off'{call * len(here)} from pg_backend_pid() pid"
    )
    cursor = await connection.execute(statement, [pid, *(part for one in here for part in (pid, *one))], prepare=False)
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a row of a function
    if row[0] and not pooled:
        return Session(takes_writes=row[1])
    connection.prepare_threshold = None
    connection.adapters.register_loader("timestamptz", UtcLoader)
    each_time = tuple(one for one in settings if one[0] != "TimeZone")
    return Session(pooled=True, settings=each_time, takes_writes=row[1])


def set_locally(settings: Sequence[Setting]) -> tuple[str, Sequence[Any]]:
    """Return the statement that makes *settings* until the end of its transaction, with its parameters."""
    calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
    return f"select {calls}", [part for one in settings for part in one]


def is_definite(error: psycopg.Error) -> bool:
    """Whether the server has refused what was set: it will do so every time."""
    return (error.sqlstate or "")[:2] in {"22", "42", "55"}
