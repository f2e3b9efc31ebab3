"""
The words of memories: which an owner has used, in how many entries, and where.

An inverted index in two tables, because PostgreSQL's own full text ranks without knowing how rare a word is, and cannot be
asked for one owner's entries only. What is here are parts of statements; each works on the rows of a part before it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from psycopg.rows import TupleRow

from jarvis_core.store.pool import Pool
from jarvis_core.store.prepared import Parameters
from jarvis_core.words.normalization import gist, sounds_of

ResultT = TypeVar("ResultT")

SMALLINT_LIMIT = 32_767

# What is asked here is looked up, never scanned for: plans that read whole tables come from statistics that lag behind, or
# from when the tables were small.
PLANNER = """
select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
    set_config('plan_cache_mode', 'force_generic_plan', true)
"""

OWNER_KEY = "(select key from memory_owners where owner = %(owner)s)"

LOCK_OR_MAKE_OWNER = """
insert into memory_owners (owner) values (%(owner)s) on conflict (owner) do update set owner = excluded.owner
"""
LOCK_OWNER = "select key from memory_owners where owner = %(owner)s for update"

# The owner is locked: nobody else makes or forgets one of their words now. Those that are there are not inserted in
# vain, because each attempt would use up a key.
COUNT_WORDS = """
counted as (
    update memory_words w set entries = entries + 1 from {target} t
    where w.owner_key = t.owner_key and w.term = any(%(terms)s) returning w.key, w.term
), coined as (
    insert into memory_words (owner_key, term, sounds, entries)
    select t.owner_key, a.term, a.sounds::integer[], 1
    from {target} t cross join unnest(%(terms)s::text[], %(sounds)s::text[]) as a (term, sounds)
    where not exists (select from memory_words w where w.owner_key = t.owner_key and w.term = a.term)
    returning key, term
), found as (
    select key, term from counted union all select key, term from coined
), grown as (
    update memory_owners o set entries = entries + 1, terms = o.terms + %(length)s from {target} t where o.key = t.owner_key
)
"""
POST = """
posted as (
    insert into memory_postings (word, memory, times, length)
    select f.key, t.seq, a.times, least(%(length)s, 32767)
    from {target} t cross join found f join unnest(%(terms)s::text[], %(times)s::smallint[]) as a (term, times) using (term)
)
"""
# What stands no longer is not found by its words, and what nobody says any more is forgotten.
UNPOST = """
unposted as (
    delete from memory_postings p using (select seq, unnest(words) as word from {target}) t
    where p.word = t.word and p.memory = t.seq
), uncounted as (
    update memory_words w set entries = w.entries - 1 from {target} t where w.key = any(t.words) and w.entries > 1
), forgotten as (
    delete from memory_words w using {target} t where w.key = any(t.words) and w.entries <= 1
), shrunk as (
    update memory_owners o set entries = o.entries - 1, terms = o.terms - t.terms from {target} t where o.key = t.owner_key
)
"""


async def fetch_as_planned(pool: Pool, *statements: tuple[str, Parameters]) -> list[list[TupleRow]]:
    """Run *statements* in one transaction and one round trip, by looking up, and return the rows of each."""
    _, *rows = await pool.fetch_in_one_trip([(PLANNER, ()), *statements])
    return rows


LONG_CHARS = 2_000
"""A text that is longer is worked on off the event loop: 50,000 characters take 40 ms and more."""


async def unless_long(length: int, work: Callable[..., ResultT], *arguments: object) -> ResultT:
    """Return what *work* returns, which is done in a thread where the text that it works on has a *length* over ``LONG_CHARS``."""
    return work(*arguments) if length <= LONG_CHARS else await asyncio.to_thread(work, *arguments)


def word_parameters(owner: str, content: str, terms: list[str], fingerprint: bytes) -> dict[str, Any]:
    """
    Return the parameters of ``COUNT_WORDS`` and ``POST``, and of the entry itself.

    Raises ``ValueError`` for a content that PostgreSQL cannot store.
    """
    if "\0" in content:
        raise ValueError("a text has a NUL")
    content.encode()  # raises for half a surrogate pair
    times = Counter(terms)
    return {
        "content": content,
        "fingerprint": fingerprint,
        "gist": gist(content),
        "length": len(terms),
        "terms": list(times),
        "times": [min(count, SMALLINT_LIMIT) for count in times.values()],
        "sounds": sounds_of_all(owner, times),
    }


def sounds_of_all(owner: str, terms: Iterable[str]) -> list[str]:
    """
    Return for each term what leads to the words of *owner* that it may be a misspelling of, as PostgreSQL reads arrays.

    Hashes of 32 bits: two that are equal by chance only cost a comparison.
    """
    hashes = ([zlib.crc32(f"{owner}\0{sound}".encode()) - (1 << 31) for sound in sounds_of(term)] for term in terms)
    return ["{" + ",".join(map(str, one)) + "}" for one in hashes]
