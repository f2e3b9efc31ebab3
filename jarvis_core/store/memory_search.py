"""
Finding memories, in one statement: words by BM25 over the owner's own counts, vectors by their angle, the two fused.

Both parts are brought to 0..1 in units that do not depend on what else was found, so that they add up. The words' part
is the share of the question's weight (the sum of its words' idf) that an entry has. The vectors' part is by how many
standard deviations an entry is nearer to the question than the owner's entries are on average: embeddings differ in
what they call near (an e5 gives 0.75 to what has nothing to do with one another, others 0.1), but not in this. Equal
reciprocal ranks and min-max scaling were worse than the better half of the two alone (perf/memory_quality.py).
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from psycopg.rows import TupleRow

from jarvis_core.models import Embedding, Memory
from jarvis_core.store.memory_vectors import MemoryVectors, literal
from jarvis_core.store.memory_words import fetch_as_planned, sounds_of_all
from jarvis_core.store.pool import Pool

MEMORY = "id::text, content, importance, created_at, updated_at, source, embedded, superseded_by::text"

QUERY_TERMS_LIMIT = 200
"""A question's first so many different words are looked up."""
CANDIDATES = 60
"""Of words and of vectors each; as many as are asked for, where that is more."""

SEARCH_PLANNER = """
select set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
    set_config('hnsw.ef_search', %s, true)
"""
EF_SEARCH = "160"
"""How widely an index of vectors is searched; of 100,000 entries it finds 96 % of the nearest ten (perf/memory.py)."""

TUNING = {
    "k1": 1.2,
    "b": 0.4,  # entries are short: their length says less about them than a document's does
    # Of a long question the rarest words count.
    "words": 24,
    "unknown_words": 8,
    # A word that the owner never used counts what the rarest would, also where another stands for it: that may be a
    # wrong guess, and is not to answer for the whole question.
    "unknown": 1.0,
    # That which shares a key with it is a letter or a sound away: what has the most trigrams in common stands for it, with
    # the root of the likeness as its weight. Two swapped letters leave few in common, another word still fewer.
    "least_likeness": 0.1,
    "likeness": 0.5,
    # Postings to be read: those of the rarest words. The rest of the words count for the entries that those lead to.
    "reads": 6_000,
    "sample": 200,
    # What an owner's first entries are weighed against while they are few: as many made-up ones at the model's
    # baseline, or where nobody has told it, some a little further away than the farthest.
    "known_prior": 30,
    "prior": 8,
    "prior_spread": 0.05,
    # What has nothing to do with any entry is about as far from all of them: without a floor some would seem near.
    "least_spread": 0.015,
    "deviations": 5.0,
    "semantic": 0.65,
    "lexical": 0.7,
    # An exact word of at most so many entries (and of one in 250; not so a number or code) is found whatever the vectors
    # say: what has it comes before all that is only near, were that ever so important and recent.
    "rare": 3,
    "rare_relevance": 0.73,
    "important": 0.06,
    "recent": 0.04,
    "half_life_s": 90 * 86_400,
}

WORDS = """
o as materialized (
    select key, greatest(entries, 1)::float8 as entries,
        {k1} * (1 - {b})::float8 as base, {k1} * {b} / greatest(terms::float8 / greatest(entries, 1), 1) as per_term
    from memory_owners where owner = %(owner)s
), asked as materialized (
    select a.term, a.sounds::integer[] as sounds from unnest(%(terms)s::text[], %(sounds)s::text[]) as a (term, sounds)
), known as materialized (
    select a.term, w.key, w.entries, 1::float8 as likeness
    from asked a cross join o join memory_words w on w.owner_key = o.key and w.term = a.term
), unknown as materialized (
    select term, sounds from asked where term not in (select term from known) limit {unknown_words}
), words as materialized (
    select t.term, t.key, t.entries, t.likeness = 1 as known, sqrt(t.likeness) * ln(1 + (greatest(o.entries - t.entries, 0) + 0.5) / (t.entries + 0.5)) as weight,
        t.likeness = 1 and (t.entries <= least({rare}, o.entries / 250) or (t.entries <= {rare} and t.term ~ '[0-9]')) as rare
    from ((select * from known order by entries, key limit {words}) {words_alike}) t cross join o
), whole as materialized (
    select sum(case when w.known then w.weight else greatest(w.weight, {unknown} * ln(2 * o.entries + 2)) end) as weight
    from (select term from unknown union select term from words) a cross join o left join lateral (
        select max(weight) as weight, bool_or(known) as known from words where words.term = a.term
    ) w on true
), reading as materialized (
    select key, weight, row_number() over rarest = 1 or sum(entries) over rarest <= {reads} as leads
    from words window rarest as (order by entries, key)
), by_words as materialized (
    select p.memory
    from reading r cross join lateral (
        select memory, times, length from memory_postings where word = r.key order by memory desc limit {reads}
    ) p cross join o
    where r.leads
    group by p.memory
    order by sum(r.weight * p.times / (p.times + o.base + o.per_term * p.length)) desc, p.memory desc
    limit %(candidates)s
)"""
# "+ 0" keeps the planner from listing all words of the owner to find those few among them.
ALIKE = """
    union all
    select a.term, w.key, w.entries, greatest(w.likeness, {likeness})
    from unknown a cross join o cross join lateral (
        select key, entries, similarity(w.term, a.term)::float8 as likeness
        from memory_words w where w.sounds && a.sounds and w.sounds <> '{{}}' and w.owner_key + 0 = o.key
        order by likeness desc, key limit 1
    ) w
    where w.likeness > {least_likeness}
"""
# Each (word, entry) is looked up: "offset 0" keeps the planner from joining the candidates to all that a word stands in.
LEXICAL = """
lexical as materialized (
    select c.memory, least(1, sum(w.weight * p.times * ({k1} + 1) / (p.times + o.base + o.per_term * p.length))
        / (select weight from whole)) as share, bool_or(w.rare) as rare
    from candidates c cross join words w cross join o cross join lateral (
        select times, length from memory_postings where word = w.key and memory = c.memory offset 0
    ) p
    group by c.memory
)
"""

# An owner of few entries: each is compared, and they are the sample too.
COMPARE_ALL = """
compared as materialized (
    select v.memory, - (v.embedding <#> %(vector)s::halfvec) as cosine
    from o join memory_vectors v on v.owner_key = o.key and v.model_key = %(model_key)s
), by_vector as materialized (
    select memory from compared order by cosine desc limit %(candidates)s
), sample as materialized (
    select cosine from compared
)
"""
# The literals are what the index is for; they are integers. The sample is read in the order of an index that begins with
# the owner: by any other the planner may look for the owner's rows among everybody's.
SEARCH_INDEX = """
by_vector as materialized (
    select memory from memory_vectors
    where model_key = {model_key:d} and owner_key = {owner_key:d}
    order by embedding::halfvec({dimension:d}) <#> %(vector)s::halfvec({dimension:d}) limit %(candidates)s
), sample as materialized (
    select - (embedding <#> %(vector)s::halfvec) as cosine from (
        select embedding from memory_vectors
        where (model_key, owner_key, memory) > ({model_key:d}, {owner_key:d}, 0)
            and (model_key, owner_key, memory) < ({model_key:d}, {owner_key:d} + 1, 0)
        order by model_key, owner_key, memory limit {sample}
    ) one
)
"""
SEMANTIC = """
expected as materialized (
    select case when m.mean is null then {prior} else {known_prior} end as n,
        coalesce(m.mean, (select min(cosine) from sample) - {prior_spread}) as mean, coalesce(m.spread, {prior_spread}) as spread,
        coalesce(m.spread, {least_spread}) as least_spread
    from memory_models m where key = %(model_key)s
), background as materialized (
    select mean, greatest(sqrt(greatest(squares - mean * mean, 0)), least_spread) as spread
    from (
        select (e.n * e.mean + s.total) / (e.n + s.n) as mean,
            (e.n * (e.spread * e.spread + e.mean * e.mean) + s.squares) / (e.n + s.n) as squares, e.least_spread
        from expected e cross join (
            select count(*) as n, coalesce(sum(cosine), 0) as total, coalesce(sum(cosine * cosine), 0) as squares from sample
        ) s
    ) one
), semantic as materialized (
    select c.memory, least(1, greatest(0, (- (v.embedding <#> %(vector)s::halfvec) - b.mean) / b.spread / {deviations})) as nearness
    from candidates c join memory_vectors v on v.memory = c.memory and v.model_key = %(model_key)s cross join background b
)
"""
NO_VECTORS = "semantic as (select 0 as memory, 0::float8 as nearness where false)"
RANK = """
parts as (
    select memory, coalesce(max(share), 0) as lexical, coalesce(bool_or(rare), false) as rare, coalesce(max(nearness), 0) as semantic
    from (
        select memory, share, rare, null::float8 as nearness from lexical
        union all select memory, null, null, nearness from semantic
    ) one
    group by memory
), ranked as (
    select m.*, p.semantic, p.lexical,
        greatest(
            1 - (1 - {semantic} * p.semantic) * (1 - {lexical} * p.lexical), case when p.rare then {rare_relevance} end
        ) as relevance,
        0.5 ^ (greatest(extract(epoch from now() - m.updated_at), 0)::float8 / {half_life_s}) as recency
    from parts p join memories m on m.seq = p.memory
)
select count(*) over (), relevance / (1 - (1 - {semantic}) * (1 - {lexical}))
        * (1 - {important} - {recent} + {important} * importance + {recent} * recency) as score,
    semantic, lexical, importance, recency, {memory}
from ranked where relevance > 0
order by score desc, created_at desc, seq desc
limit %(limit)s
"""


class Found(Struct, frozen=True):
    """An entry that was found, and what each part gave; all 0..1."""

    memory: Memory
    score: float
    semantic: float
    """How much nearer than what has nothing to do with the question; 1 where it is five standard deviations."""
    lexical: float
    """How much of the question's weight the entry has in the same words; rare words weigh more."""
    importance: float
    recency: float
    """1 when it was changed just now, half as much every 90 days."""


class MemorySearch:
    """The question to the database; which one it is depends on what there is to ask with."""

    def __init__(self, pool: Pool, vectors: MemoryVectors) -> None:
        self._pool = pool
        self._vectors = vectors
        self._statements: dict[tuple[bool, str], str] = {}

    async def search(
        self, owner: str, query_terms: list[str], embedding: Embedding | None, *, limit: int
    ) -> tuple[list[Found], int]:
        """
        Return the *limit* entries that answer a question best, the best first, and how many were found.

        Raises ``ValueError`` for a vector without a direction.
        """
        terms = list(dict.fromkeys(query_terms))[:QUERY_TERMS_LIMIT]
        parameters: dict[str, Any] = {
            "owner": owner,
            "terms": terms,
            "sounds": sounds_of_all(owner, terms),
            "limit": limit,
            "candidates": max(CANDIDATES, limit),
        }
        by_vector = ""
        if embedding is not None:
            vector = literal(embedding)
            if self._vectors.available:
                model_key = await self._vectors.model_key(embedding)
                parameters |= {"vector": vector, "model_key": model_key}
                by_vector = self._by_vector(owner, model_key, len(embedding.vector))
        statement = self._statement(by_vector)
        _, rows = await fetch_as_planned(self._pool, (SEARCH_PLANNER, (EF_SEARCH,)), (statement, parameters))
        return [_found(row) for row in rows], rows[0][0] if rows else 0

    def _by_vector(self, owner: str, model_key: int, dimension: int) -> str:
        owner_key = self._vectors.index_of(owner, model_key)
        if owner_key is None:
            return COMPARE_ALL.format(**TUNING)
        return SEARCH_INDEX.format(owner_key=owner_key, model_key=model_key, dimension=dimension, **TUNING)

    def _statement(self, by_vector: str) -> str:
        # The same text each time is what lets the server keep its plan.
        key = self._vectors.likeness_available, by_vector
        statement = self._statements.get(key)
        if statement is None:
            candidates = "select memory from by_words" + (" union select memory from by_vector" if by_vector else "")
            alike = ALIKE.format(**TUNING) if self._vectors.likeness_available else ""
            parts = [
                WORDS.format(words_alike=alike, **TUNING),
                *([by_vector] if by_vector else []),
                f"candidates as materialized ({candidates})",
                LEXICAL.format(**TUNING),
                SEMANTIC.format(**TUNING) if by_vector else NO_VECTORS,
                RANK.format(memory=MEMORY, **TUNING),
            ]
            statement = self._statements[key] = "with " + ", ".join(parts)
        return statement


def memory_of(row: TupleRow) -> Memory:
    """Return what the columns ``MEMORY`` hold."""
    return Memory(*row)


def _found(row: TupleRow) -> Found:
    _, score, semantic, lexical, importance, recency, *values = row
    return Found(memory_of(tuple(values)), score, semantic, lexical, importance, recency)
