"""
Memories: kept once each, and changed with their words and counts in one transaction.

How they are found is in ``memory_search.py``. An owner's row in ``memory_owners`` is locked first by whoever writes: so
the same fact, told a hundred times at once, is one entry, and no two writers wait for each other's words.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
from msgspec import Struct
from psycopg.rows import TupleRow

from jarvis_core.errors import Conflict, NotFound
from jarvis_core.models import Embedding, is_id
from jarvis_core.models import Memory as Memory
from jarvis_core.store.memory_search import MEMORY, MemorySearch, memory_of
from jarvis_core.store.memory_search import Found as Found
from jarvis_core.store.memory_vectors import CLAIM, RELEASE, STORE_VECTOR, MemoryVectors, literal
from jarvis_core.store.memory_words import (
    COUNT_WORDS,
    LOCK_OR_MAKE_OWNER,
    LOCK_OWNER,
    OWNER_KEY,
    PLANNER,
    POST,
    UNPOST,
    fetch_as_planned,
    unless_long,
    word_parameters,
)
from jarvis_core.store.pool import Pool
from jarvis_core.words.normalization import fingerprint as fingerprint_of

PAGE_LIMIT_BYTES = 2 << 20
"""Texts of so many bytes together end a page, whatever number was asked for; as JSON they may take six times as much."""
CONTENT = 1
"""Its place in ``MEMORY``."""

CLAIM_S = 60.0
"""How long a text may be away to be embedded before somebody else tries."""

SAME_WORDS = f"""
select seq, id, 0 as difference from memories
where owner_key = {OWNER_KEY} and fingerprint = %(fingerprint)s and superseded_by is null
"""
NEARLY_SAME = f"""
union all
select m.seq, m.id, 1 from memories m join memory_vectors v on v.memory = m.seq and v.model_key = %(model_key)s
where m.owner_key = {OWNER_KEY} and m.gist = %(gist)s and m.superseded_by is null
    and m.id is distinct from %(supersedes)s::uuid and v.embedding <#> %(vector)s::halfvec <= - %(threshold)s::float8
"""
STORE_VECTOR_OF_NEW = """, vector as (
    insert into memory_vectors (memory, owner_key, model_key, embedding)
    select seq, owner_key, %(model_key)s, %(vector)s::halfvec from made
)"""
ADD = f"""
with same as materialized (
    select seq from ({{same}}) one order by difference, seq limit 1
), fresh as materialized (
    select {OWNER_KEY} as owner_key where not exists (select from same)
), {COUNT_WORDS.format(target="fresh")}, made as (
    insert into memories (id, owner_key, content, importance, source, fingerprint, gist, words, terms, embedded)
    select %(id)s, owner_key, %(content)s, coalesce(%(importance)s, 0.5), %(source)s, %(fingerprint)s, %(gist)s,
        coalesce((select array_agg(key) from found), '{{{{}}}}'), %(length)s, {{embedded}}
    from fresh
    returning *
), {POST.format(target="made")}, merged as (
    update memories m set importance = greatest(m.importance, %(importance)s), updated_at = clock_timestamp()
    from same where m.seq = same.seq
    returning m.*
) {{vector}}
select {MEMORY}, false from made union all select {MEMORY}, true from merged
"""
ADD_WITHOUT_VECTOR = ADD.format(same=SAME_WORDS, embedded="false", vector="")
ADD_WITH_VECTOR = ADD.format(same=SAME_WORDS + NEARLY_SAME, embedded="true", vector=STORE_VECTOR_OF_NEW)

OWNED = f"select 1 from memories where owner_key = {OWNER_KEY} and id = %(id)s"
SUPERSEDE = f"""
with target as materialized (
    select seq, owner_key, words, terms from memories
    where owner_key = {OWNER_KEY} and id = %(id)s and id <> %(standing)s and superseded_by is null
), {UNPOST.format(target="target")}
update memories m set superseded_by = %(standing)s, words = '{{}}', terms = 0, embedded = false
from target t where m.seq = t.seq
"""
DROP_VECTOR = f"""
delete from memory_vectors where memory in (select seq from memories where owner_key = {OWNER_KEY} and id = %(id)s)
"""

STORE_VECTOR_OF_CHANGED = f"""
insert into memory_vectors (memory, owner_key, model_key, embedding)
select seq, owner_key, %(model_key)s, %(vector)s::halfvec from memories
where owner_key = {OWNER_KEY} and id = %(id)s and superseded_by is null
"""

HAS_ANY = "select 1 from memory_owners where owner = %(owner)s and entries > 0"

FETCH = f"select {MEMORY} from memories where owner_key = {OWNER_KEY} and id = %(id)s"

# One row with nulls tells the total where the page is empty. Rows without a content are the next page's: their texts are
# not even read.
LIST = f"""
select o.entries, {MEMORY.replace(" content", f" case when before_bytes < {PAGE_LIMIT_BYTES} then content end")}
from (select {OWNER_KEY} as key) k left join memory_owners o using (key) left join lateral (
    select *, sum(octet_length(content)) over (order by created_at desc, id desc) - octet_length(content) as before_bytes
    from (
        select * from memories m
        where owner_key = k.key and superseded_by is null
            and (%(after_time)s::timestamptz is null or (created_at, id) < (%(after_time)s, %(after_id)s::uuid))
        order by m.created_at desc, m.id desc limit %(limit)s
    ) one
) page on true
"""

CHANGE_IMPORTANCE = f"""
update memories set importance = coalesce(%(importance)s, importance), updated_at = clock_timestamp()
where owner_key = {OWNER_KEY} and id = %(id)s and superseded_by is null
returning {MEMORY}
"""
FORGET_WORDS = f"""
with target as materialized (
    select seq, owner_key, words, terms from memories
    where owner_key = {OWNER_KEY} and id = %(id)s and superseded_by is null
), {UNPOST.format(target="target")}
select 1
"""
CHANGE_CONTENT = f"""
with target as materialized (
    select seq, owner_key from memories where owner_key = {OWNER_KEY} and id = %(id)s and superseded_by is null
), {COUNT_WORDS.format(target="target")}, {POST.format(target="target")}
update memories m set content = %(content)s, importance = coalesce(%(importance)s, importance), fingerprint = %(fingerprint)s,
    gist = %(gist)s, words = coalesce((select array_agg(key) from found), '{{}}'), terms = %(length)s,
    embedded = %(embedded)s, claimed_until = null, updated_at = clock_timestamp()
from target t where m.seq = t.seq
returning {MEMORY}
"""

DELETE = f"""
with target as materialized (
    select seq, owner_key, words, terms from memories
    where owner_key = {OWNER_KEY} and id = %(id)s and superseded_by is null
), {UNPOST.format(target="target")}
delete from memories where owner_key = {OWNER_KEY} and id = %(id)s returning 1
"""


class NewMemory(Struct, frozen=True):
    """Something to remember."""

    id: str
    content: str
    terms: list[str]
    """What it is found by, ``normalization.terms_of`` the content."""
    fingerprint: bytes
    """``normalization.fingerprint`` of the content."""
    importance: float | None = None
    """0..1; None for 0.5, or what an entry has that says the same."""
    source: str | None = None
    supersedes: str | None = None
    """The id of the entry that this one replaces."""


class MemoryStore:
    """What users want remembered; ``prepare`` it before use. Every call but ``due`` is scoped to one owner."""

    def __init__(self, pool: Pool, vectors: MemoryVectors | None = None) -> None:
        self._pool = pool
        self._vectors = vectors or MemoryVectors(pool)
        self._search = MemorySearch(pool, self._vectors)

    @property
    def vectors_available(self) -> bool:
        """Whether there is semantic search; without it everything else works."""
        return self._vectors.available

    async def prepare(self) -> None:
        """Make what the schema's migrations cannot: extensions, and what needs them. Raises ``Unavailable``."""
        await self._vectors.prepare()

    async def tend_indexes(self) -> None:
        """Make the vectors' indexes that are due; takes minutes where one is, but nobody waits for it."""
        await self._vectors.tend_indexes()

    async def set_baseline(self, model: str, dimension: int, mean: float, spread: float) -> None:
        """Store how near a question and an unrelated text are by this model: the mean and the deviation of the cosine."""
        await self._vectors.set_baseline(model, dimension, mean, spread)

    async def add(
        self, owner: str, entry: NewMemory, embedding: Embedding | None = None, *, near_threshold: float = 1.0
    ) -> tuple[Memory, bool]:
        """
        Store an entry, or merge it into one that says the same; return what stands, and whether it was there before.

        The same is said by the same words, and by nearly the same words (``normalization.gist``) where the vectors' cosine is
        at least *near_threshold*. What stands keeps its content, and has the greater importance of the two. Raises
        ``NotFound`` where *supersedes* is not an entry of the owner's, ``ValueError`` for a vector without a direction.
        """
        parameters: dict[str, Any] = {
            "owner": owner,
            "id": entry.id,
            "importance": entry.importance,
            "source": entry.source,
            "supersedes": entry.supersedes,
            **await unless_long(
                len(entry.content), word_parameters, owner, entry.content, entry.terms, entry.fingerprint
            ),
            **(await self._vector(embedding, near_threshold) if embedding is not None else {}),
        }
        statement = ADD_WITH_VECTOR if "vector" in parameters else ADD_WITHOUT_VECTOR
        if entry.supersedes is None:
            _, rows = await fetch_as_planned(self._pool, (LOCK_OR_MAKE_OWNER, parameters), (statement, parameters))
            return _added(rows[0])
        return await self._supersede(parameters, statement, known(entry.supersedes))

    async def _supersede(self, parameters: dict[str, Any], statement: str, superseded: str) -> tuple[Memory, bool]:
        async with self._pool.transaction() as connection:
            await connection.execute(PLANNER)
            await connection.execute(LOCK_OR_MAKE_OWNER, parameters)
            of_old = {"owner": parameters["owner"], "id": superseded}
            cursor = await connection.execute(OWNED, of_old)
            if await cursor.fetchone() is None:
                raise unknown_memory()
            cursor = await connection.execute(statement, parameters)
            row = await cursor.fetchone()
            assert row is not None  # noqa: S101 - either of the two
            memory, merged = _added(row)
            if memory.id != superseded.lower():
                await connection.execute(SUPERSEDE, {**of_old, "standing": memory.id})
                if self.vectors_available:
                    await connection.execute(DROP_VECTOR, of_old)
            return memory, merged

    async def fetch(self, owner: str, memory_id: str) -> Memory:
        """Return one entry, also a superseded one; raises ``NotFound``."""
        return _one(await self._pool.fetch_all(FETCH, {"owner": owner, "id": known(memory_id)}))

    async def fetch_page(
        self, owner: str, *, limit: int, after: tuple[datetime, str] | None
    ) -> tuple[list[Memory], bool, int]:
        """
        Return at most *limit* entries that stand, the newest first, fewer where they are long; whether there are more, and
        how many there are in all.

        *after* is the (created_at, id) of the last one seen.
        """
        rows = await self._pool.fetch_all(
            LIST,
            {
                "owner": owner,
                "after_time": after[0] if after else None,
                "after_id": after[1] if after else None,
                "limit": limit + 1,
            },
        )
        found = [row[1:] for row in rows if row[1] is not None]
        page = [memory_of(row) for row in found[:limit] if row[CONTENT] is not None]
        return page, len(page) < len(found), rows[0][0] or 0

    async def change(
        self,
        owner: str,
        memory_id: str,
        *,
        content: str | None = None,
        importance: float | None = None,
        terms: list[str] | None = None,
        fingerprint: bytes = b"",
        embedding: Embedding | None = None,
    ) -> Memory:
        """
        Change what is not None; another *content* comes with its *terms* and *fingerprint*, and loses the old vector.

        Raises ``NotFound``, ``Conflict`` where another entry says the same as the new content, or ``ValueError`` for a
        vector without a direction.
        """
        parameters: dict[str, Any] = {"owner": owner, "id": known(memory_id), "importance": importance}
        if content is None:
            return _one(await self._pool.fetch_all(CHANGE_IMPORTANCE, parameters))
        parameters |= await unless_long(len(content), word_parameters, owner, content, terms or [], fingerprint)
        parameters |= await self._vector(embedding, 1.0) if embedding is not None else {}
        parameters["embedded"] = "vector" in parameters
        statements = [(LOCK_OWNER, parameters), (FORGET_WORDS, parameters), (CHANGE_CONTENT, parameters)]
        if self.vectors_available:
            statements.insert(1, (DROP_VECTOR, parameters))
        if parameters["embedded"]:
            statements.insert(-1, (STORE_VECTOR_OF_CHANGED, parameters))
        try:
            *_, rows = await fetch_as_planned(self._pool, *statements)
        except psycopg.errors.UniqueViolation as exc:
            raise Conflict("Another memory says the same.") from exc
        return _one(rows)

    async def delete(self, owner: str, memory_id: str) -> None:
        """Remove an entry and what it superseded; raises ``NotFound``."""
        parameters = {"owner": owner, "id": known(memory_id)}
        _, rows = await fetch_as_planned(self._pool, (LOCK_OWNER, parameters), (DELETE, parameters))
        if not rows:
            raise unknown_memory()

    async def has_any(self, owner: str) -> bool:
        """Whether *owner* has told anything."""
        return await self._pool.fetch_one(HAS_ANY, {"owner": owner}) is not None

    async def search(
        self, owner: str, query_terms: list[str], embedding: Embedding | None, *, limit: int
    ) -> tuple[list[Found], int]:
        """
        Return the *limit* entries that answer a question best, the best first, and how many were found.

        *query_terms* are ``normalization.terms_of`` the question. Raises ``ValueError`` for a vector without a direction.
        """
        return await self._search.search(owner, query_terms, embedding, limit=limit)

    async def due(
        self, model: str, limit: int, *, dimension: int | None = None, claim_s: float = CLAIM_S
    ) -> list[tuple[str, str, str]]:
        """
        Return (id, owner, content) of at most *limit* entries of anybody that have no vector of *model*.

        They are the caller's for *claim_s* seconds, or until it gives them back (``release``); nobody else gets them until
        then. Without *dimension* any of the
        model's will do; while *model* is empty, because none has answered yet, any of any model's.
        """
        if not self.vectors_available:
            return []
        parameters = {"model": model, "dimension": dimension, "limit": limit, "claim_s": claim_s}
        (rows,) = await fetch_as_planned(self._pool, (CLAIM, parameters))
        return [(memory_id, owner, content) for memory_id, owner, content in rows]

    async def release(self, memory_ids: list[str]) -> None:
        """
        Give back what was due and has no vector yet, so that anybody may try again; it comes after what nobody has tried.

        What has one of another model stays claimed: those that come next are not put in an order, and may be many.
        """
        if memory_ids:
            await self._pool.execute(RELEASE, {"ids": memory_ids})

    async def store_vector(
        self, owner: str, memory_id: str, embedding: Embedding, *, content: str, near_threshold: float = 1.0
    ) -> str | None:
        """
        Store the vector of *content*, and merge the entry with one that says the same, as ``add`` does.

        Returns the id of the one that stands, which is the older; None where the entry is gone or its content is another
        by now, or there is no pgvector: the vector is then of no use. Raises ``ValueError`` for a vector without a
        direction.
        """
        parameters = {
            "owner": owner,
            "id": known(memory_id),
            "fingerprint": await unless_long(len(content), fingerprint_of, content),
            **await self._vector(embedding, near_threshold),
        }
        if "vector" not in parameters:
            return None
        _, rows = await fetch_as_planned(self._pool, (LOCK_OWNER, parameters), (STORE_VECTOR, parameters))
        return rows[0][0] if rows else None

    async def _vector(self, embedding: Embedding, near_threshold: float) -> dict[str, Any]:
        vector = literal(embedding)  # what is wrong is wrong with or without pgvector
        if not self.vectors_available:
            return {}
        model_key = await self._vectors.model_key(embedding)
        return {"model_key": model_key, "vector": vector, "threshold": near_threshold}


def known(memory_id: str) -> str:
    """Return *memory_id* if it can be one; raises ``NotFound``."""
    if not is_id(memory_id):
        raise unknown_memory()
    return memory_id


def unknown_memory() -> NotFound:
    """Return the error for an entry that does not exist, or not for this caller."""
    return NotFound("There is no such memory.")


def _added(row: TupleRow) -> tuple[Memory, bool]:
    *values, merged = row
    return memory_of(tuple(values)), merged


def _one(rows: list[TupleRow]) -> Memory:
    if not rows:
        raise unknown_memory()
    return memory_of(rows[0])
