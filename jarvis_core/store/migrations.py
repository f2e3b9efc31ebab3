"""
Migrations: the numbered files of ``schema/``, applied in order, each once and in a transaction of its own.

Several processes may start together: an advisory lock lets one apply while the others wait, and then find nothing to do.
"""

from __future__ import annotations

from importlib import resources

import psycopg

from jarvis_core import log
from jarvis_core.errors import RequestError, StartError
from jarvis_core.store.pool import Pool

logger = log.get(__name__)
_seldom = log.LogThrottle()

LOCK_KEY = 0x6A617276_6973  # "jarvis": any constant that nothing else in this database takes
OLDEST_SERVER = 150_000


def schema_files() -> list[tuple[int, str, str]]:
    """Return (number, name, SQL) of each migration, in order."""
    files = resources.files("jarvis_core.store.schema").iterdir()
    return sorted(
        (int(file.name[:4]), file.name, file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".sql")
    )


async def migrate(pool: Pool) -> None:
    """
    Bring the schema up to date.

    Raises ``StartError`` when a newer version of this program made the schema, the server is too old, the user may not
    make tables, or there is no schema to make them in.
    """
    try:
        await _migrate(pool)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise StartError(f"DATABASE_URL: this user may not make the tables: {exc.diag.message_primary}") from exc
    except RequestError as exc:
        if _seldom.held_back("schema") is not None:
            logger.warning("the schema cannot be looked at yet", error=str(exc.__cause__ or exc).strip())
        raise
    except psycopg.errors.InvalidSchemaName as exc:
        raise StartError("DATABASE_URL: no schema of the search_path is there to make the tables in; make it") from exc


async def _migrate(pool: Pool) -> None:
    files = schema_files()
    async with pool.transaction(without_timeout=True) as connection:
        if connection.info.server_version < OLDEST_SERVER:
            raise StartError(
                f"DATABASE_URL: PostgreSQL {connection.info.server_version // 10_000} is too old; 15 or newer is needed"
            )
        await connection.execute("set local statement_timeout = 0")
        await connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        await connection.execute(
            "create table if not exists schema_versions"
            " (number integer primary key, name text not null, applied_at timestamptz not null default now())"
        )
        cursor = await connection.execute("select coalesce(max(number), 0) from schema_versions")
        row = await cursor.fetchone()
    applied = row[0] if row else 0
    if applied > files[-1][0]:
        raise StartError(
            f"the database has schema {applied}, made by a newer jarvis-core; this one knows {files[-1][0]}: upgrade it"
        )
    for number, name, sql in files:
        if number > applied:
            await _apply(pool, number, name, sql)


async def _apply(pool: Pool, number: int, name: str, sql: str) -> None:
    async with pool.transaction(without_timeout=True) as connection:
        await connection.execute("set local statement_timeout = 0")
        await connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        cursor = await connection.execute("select 1 from schema_versions where number = %s", (number,))
        if await cursor.fetchone():
            return
        await connection.execute(sql.encode(), prepare=False)  # several statements at once
        await connection.execute("insert into schema_versions (number, name) values (%s, %s)", (number, name))
        logger.info("the schema was brought up to date", migration=name)
