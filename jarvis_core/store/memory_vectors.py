"""
Vectors of memories: where pgvector is there, and the indexes of those who have many.

Each large owner has an index of its own for each model, made at run time. One index over everybody would have to be
read until enough of the owner's own were found, ten times as far for an owner of a tenth; it would be ten times as long
in the making; and those with few entries, who are most, would pay for it without using it: theirs are compared one by one.
"""

from __future__ import annotations

import math
from contextlib import suppress

import psycopg

from jarvis_core import log
from jarvis_core.models import Embedding, new_id
from jarvis_core.store.connections import Connection
from jarvis_core.store.memory_words import OWNER_KEY, UNPOST
from jarvis_core.store.pool import Pool

logger = log.get(__name__)

INDEX_FROM = 5_000
"""An owner of so many vectors gets an index; comparing that many one by one takes as long as searching it (perf/memory.py)."""
DIMENSION_LIMIT = 16_000
INDEX_DIMENSION_LIMIT = 4_000
"""Both of ``halfvec``: https://github.com/pgvector/pgvector#half-precision-vectors."""
MAINTENANCE_MEMORY = "256MB"
"""An index that does not fit is built many times slower; 100,000 vectors of 384 dimensions take 120 MB."""
EF_CONSTRUCTION = 128
EF_INSERTION = 64
"""
How widely neighbours are looked for when an index is made, and when an entry is added to it.

Twice pgvector's default finds 2 % more of the nearest ten and takes a minute for 100,000; for one added it would cost 3 ms.
"""
LOCK_KEY = 0x6A617276_6D66
INDEX_PREFIX = "memory_vectors_near_"

MAKE_EXTENSION = "create extension if not exists {}"
# Of pgvector 0.7 or newer, and of pg_trgm, where this user's search_path finds them, whoever made them.
AVAILABLE = "select to_regtype('halfvec') is not null, to_regprocedure('similarity(text, text)') is not null"
NOT_TO_BE_HAD = (
    psycopg.errors.InsufficientPrivilege,  # only an administrator may make the extension
    psycopg.errors.FeatureNotSupported,  # it is not installed on the server
    psycopg.errors.UndefinedFile,  # installed in part
)

# Half precision halves what is read; over 384 dimensions the products differ by 0.00005 (perf/memory.py). Rows are kept
# whole up to a page: a vector out of line costs a second look-up.
MAKE_TABLE = (
    """
create table if not exists memory_vectors (
    memory    integer primary key references memories (seq) on delete cascade,
    owner_key integer not null,
    model_key integer not null,
    embedding halfvec not null
) with (toast_tuple_target = 8160)
""",
    "create index if not exists memory_vectors_of_owner on memory_vectors (model_key, owner_key, memory)",
    """
create table if not exists memory_indexing (
    only_one      boolean primary key default true check (only_one),
    holder        uuid not null,
    claimed_until timestamptz not null
)
""",
)

MODEL_KEY = """
with made as (
    insert into memory_models (name, dimension) values (%(name)s, %(dimension)s) on conflict do nothing returning key
)
select key from made union all select key from memory_models where name = %(name)s and dimension = %(dimension)s
"""
SET_BASELINE = "update memory_models set mean = %s, spread = %s where key = %s"

CLAIM = """
with due as (
    (select seq from memories where not embedded and superseded_by is null
        and (claimed_until is null or claimed_until < now())
     order by claimed_until nulls first, seq limit %(limit)s)
    union all
    (select m.seq from memory_models o join memory_vectors v on v.model_key = o.key join memories m on m.seq = v.memory
     where %(model)s <> '' and (o.name <> %(model)s or o.dimension <> coalesce(%(dimension)s::integer, o.dimension))
        and (m.claimed_until is null or m.claimed_until < now())
     limit %(limit)s)
    limit %(limit)s
), mine as (
    select seq from memories where seq in (select seq from due) and (claimed_until is null or claimed_until < now())
    for update skip locked
)
update memories m set claimed_until = now() + make_interval(secs => %(claim_s)s)
from mine join memories e using (seq) join memory_owners o on o.key = e.owner_key
where m.seq = mine.seq
returning m.id::text, o.owner, m.content
"""

RELEASE = """
update memories set claimed_until = now() where id = any(%(ids)s::uuid[]) and not embedded and claimed_until > now()
"""

# The older of two that say the same stands; what the other superseded was superseded by what stands.
STORE_VECTOR = f"""
with target as materialized (
    select seq, id, owner_key, words, terms, importance, gist from memories
    where owner_key = {OWNER_KEY} and id = %(id)s and fingerprint = %(fingerprint)s and superseded_by is null
), twin as materialized (
    select m.seq, m.id, m.owner_key, m.words, m.terms, m.importance
    from target t join memories m on m.owner_key = t.owner_key and m.gist = t.gist and m.seq <> t.seq
        and m.superseded_by is null
    join memory_vectors v on v.memory = m.seq and v.model_key = %(model_key)s
    where v.embedding <#> %(vector)s::halfvec <= - %(threshold)s::float8
    order by m.seq limit 1
), stands as materialized (
    select seq, id from (select seq, id from target union all select seq, id from twin) one order by seq limit 1
), lost as materialized (
    select * from (
        select seq, id, owner_key, words, terms, importance from target
        union all select seq, id, owner_key, words, terms, importance from twin
    ) one where seq <> (select seq from stands)
), {UNPOST.format(target="lost")}, handed_on as (
    update memories m set superseded_by = stands.id from lost, stands where m.superseded_by = lost.id
), removed as (
    delete from memories m using lost where m.seq = lost.seq
), kept as (
    update memories m set embedded = true, claimed_until = null,
        importance = greatest(m.importance, (select importance from lost)),
        updated_at = case when exists (select from lost) then clock_timestamp() else m.updated_at end
    from stands where m.seq = stands.seq
), vector as (
    insert into memory_vectors as v (memory, owner_key, model_key, embedding)
    select t.seq, t.owner_key, %(model_key)s, %(vector)s::halfvec from target t join stands using (seq)
    on conflict (memory) do update set model_key = excluded.model_key, embedding = excluded.embedding
)
select id::text from stands
"""

LARGE = """
select o.owner, o.key, m.key, m.dimension, c.vectors
from memory_owners o cross join memory_models m cross join lateral (
    select count(*) as vectors from (
        select from memory_vectors v where v.model_key = m.key and v.owner_key = o.key limit %(index_from)s
    ) one
) c
where o.entries >= %(index_from)s / 2 and m.dimension <= %(dimension_limit)s and c.vectors >= %(index_from)s / 2
"""
# Two that made or dropped indexes of one table at a time would wait for each other. A lock of the session's would be lost
# behind a pooler; a claim holds until an index is seen being made (another user's work is not shown, and may be this), and
# is made anew before each. Who dies leaves it for a moment.
CLAIM_INDEXES = """
insert into memory_indexing as i (holder, claimed_until)
select %(me)s::uuid, now() + interval '30 seconds' where not exists (
    select from pg_stat_progress_create_index
    where datname = current_database() and coalesce(relid = 'memory_vectors'::regclass, true)
)
on conflict (only_one) do update set holder = excluded.holder, claimed_until = excluded.claimed_until
    where i.holder = excluded.holder or i.claimed_until < now()
returning 1
"""
LEAVE_INDEXES = "update memory_indexing set claimed_until = now() where holder = %(me)s"
# What cannot be run in a transaction finds nothing by its name alone, behind a pooler.
SCHEMAS = """
select quote_ident(t.nspname), quote_ident(e.nspname)
from pg_class c join pg_namespace t on t.oid = c.relnamespace, pg_type y join pg_namespace e on e.oid = y.typnamespace
where c.oid = 'memory_vectors'::regclass and y.oid = 'halfvec'::regtype
"""
INDEXES = """
select c.relname::text, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indrelid = 'memory_vectors'::regclass and starts_with(c.relname, %s)
"""


def literal(embedding: Embedding) -> str:
    """
    Return *embedding*, scaled to the length 1, as pgvector reads it.

    Raises ``ValueError`` for one that has no direction (nothing in it, zeros, NaN, infinity) or too many dimensions.
    """
    length = math.hypot(*embedding.vector)
    if not 0 < length < math.inf:
        raise ValueError(f"a vector of {embedding.model} has the length {length}")
    if len(embedding.vector) > DIMENSION_LIMIT:
        raise ValueError(f"a vector of {embedding.model} has {len(embedding.vector)} dimensions")
    # Divided, not multiplied by the inverse: that is infinite for the smallest lengths.
    return "[" + ",".join([f"{value / length:.5g}" for value in embedding.vector]) + "]"


class MemoryVectors:
    """Which models, extensions and indexes there are; ``prepare`` it before use."""

    def __init__(self, pool: Pool, *, index_from: int = INDEX_FROM) -> None:
        self._pool = pool
        self._index_from = index_from
        self._me = {"me": new_id()}
        self._models: dict[tuple[str, int], int] = {}
        self._indexed: dict[tuple[str, int], int] = {}
        self.available = False
        """Whether there is semantic search: pgvector, new enough, and the table."""
        self.likeness_available = False
        """Whether misspelt words are found: pg_trgm."""

    async def prepare(self) -> None:
        """
        Make the extensions and the table where that is allowed, and note what there is.

        What a server does not have is done without. Raises ``Unavailable``.
        """
        for name in ("vector", "pg_trgm"):
            with suppress(*NOT_TO_BE_HAD):
                await self._make(MAKE_EXTENSION.format(name))
        row = await self._pool.fetch_one(AVAILABLE)
        self.available, self.likeness_available = row if row is not None else (False, False)
        if self.available:
            try:
                await self._make(*MAKE_TABLE)
            except NOT_TO_BE_HAD:
                self.available = False
        if self.available:
            await self._note_indexes()
        else:
            logger.warning("there is no pgvector 0.7 or newer: memories are found by their words only")

    async def _make(self, *statements: str) -> None:
        # "if not exists" alone does not help two that make the same thing at the same time.
        async with self._pool.transaction() as connection:
            await connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
            for statement in statements:
                await connection.execute(statement)

    async def model_key(self, embedding: Embedding) -> int:
        """Return the key of the embedding's model and dimension; asks the database the first time."""
        return await self._model_key(embedding.model, len(embedding.vector))

    async def _model_key(self, name: str, dimension: int) -> int:
        known = self._models.get((name, dimension))
        if known is None:
            row = None
            while row is None:  # one that another process makes at this moment is seen by the next statement
                row = await self._pool.fetch_one(MODEL_KEY, {"name": name, "dimension": dimension})
            known = self._models[name, dimension] = int(row[0])
        return known

    async def set_baseline(self, model: str, dimension: int, mean: float, spread: float) -> None:
        """Store how near a question and an unrelated text are on average by this model, and the standard deviation."""
        await self._pool.execute(SET_BASELINE, (mean, spread, await self._model_key(model, dimension)))

    def index_of(self, owner: str, model_key: int) -> int | None:
        """Return the owner's key where there is an index of their vectors of the model."""
        return self._indexed.get((owner, model_key))

    async def tend_indexes(self) -> None:
        """
        Make the indexes that are due and drop those that no longer are, without holding anybody up.

        One process at a time does this, which can take minutes; the others only note what there is.
        """
        if not self.available:
            return
        async with self._pool.without_timeout() as connection:
            if await self._due(connection) and await self._claim(connection):
                await self._tend(connection)
        await self._note_indexes()

    async def _claim(self, connection: Connection) -> bool:
        return bool(await connection.run(CLAIM_INDEXES, self._me))

    async def _tend(self, connection: Connection) -> None:
        if not connection.session.pooled:
            await connection.execute("select set_config('maintenance_work_mem', %s, false)", (MAINTENANCE_MEMORY,))
        try:
            for what, *statements in await self._due(connection):
                if not await self._claim(connection):
                    return
                for statement in statements:
                    await connection.execute(statement.encode(), prepare=False)
                logger.info(what)
        finally:
            if not (connection.closed or connection.session.pooled):
                await connection.execute("reset maintenance_work_mem")
        await connection.run(LEAVE_INDEXES, self._me)

    async def _due(self, connection: Connection) -> list[tuple[str, ...]]:
        """Return what is to be done, each in words and as statements, which name all schemas."""
        ((tables, extension),) = await connection.run(SCHEMAS, ())
        wanted = {
            _index_name(model, owner): (model, owner, dimension, count)
            for _, owner, model, dimension, count in await connection.run(LARGE, self._limits())
        }
        there: dict[str, bool] = dict(await connection.run(INDEXES, (INDEX_PREFIX,)))
        unwanted = [name for name, valid in there.items() if not valid or name not in wanted]
        due: list[tuple[str, ...]] = [
            (f"the index {name} of memories was dropped", f"drop index concurrently if exists {tables}.{name}")
            for name in unwanted
        ]
        due += [
            (
                f"the index {name} of memories was made",
                f"create index concurrently {name} on {tables}.memory_vectors"
                f" using hnsw ((embedding::{extension}.halfvec({dimension:d})) {extension}.halfvec_ip_ops)"
                f" with (ef_construction = {EF_CONSTRUCTION}) where model_key = {model:d} and owner_key = {owner:d}",
                f"alter index {tables}.{name} set (ef_construction = {EF_INSERTION})",
            )
            for name, (model, owner, dimension, count) in wanted.items()
            if not there.get(name) and count >= self._index_from
        ]
        return due

    async def _note_indexes(self) -> None:
        names = {name for name, valid in await self._pool.fetch_all(INDEXES, (INDEX_PREFIX,)) if valid}
        large = await self._pool.fetch_all(LARGE, self._limits()) if names else []
        self._indexed = {(owner, model): key for owner, key, model, *_ in large if _index_name(model, key) in names}

    def _limits(self) -> dict[str, int]:
        return {"index_from": self._index_from, "dimension_limit": INDEX_DIMENSION_LIMIT}


def _index_name(model_key: int, owner_key: int) -> str:
    return f"{INDEX_PREFIX}{model_key}_{owner_key}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
