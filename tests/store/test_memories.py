"""Memories: kept once, found by words and by vectors, and never somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jarvis_core.errors import Conflict, NotFound
from jarvis_core.models import Embedding, Memory, new_id
from jarvis_core.settings import Database
from jarvis_core.store.memories import LIST, PAGE_LIMIT_BYTES, Found, MemoryStore, NewMemory
from jarvis_core.store.memory_vectors import MemoryVectors
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from jarvis_core.words.normalization import fingerprint, terms_of
from tests.fakes.pgbouncer import pgbouncer

OWNER = "ann"
NOT_IDS = ["", "1", "not-a-uuid", "0" * 35 + "g", "'; drop table memories; --", "\x00", "\ud800"]
NO_DIRECTION = [[], [0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0], [1.0, -math.inf], [1e308] * 8]


@pytest.fixture
async def store(pool: Pool) -> MemoryStore:
    """Give a store on an empty database with every extension."""
    store = MemoryStore(pool)
    await store.prepare()
    assert store.vectors_available
    return store


def new(content: str, **fields: Any) -> NewMemory:
    """Describe an entry."""
    return NewMemory(new_id(), content, terms_of(content), fingerprint(content), **fields)


async def add(store: MemoryStore, content: str, vector: list[float] | None = None, **fields: Any) -> Memory:
    """Store an entry that is a new one."""
    owner = fields.pop("owner", OWNER)
    memory, merged = await store.add(owner, new(content, **fields), None if vector is None else embedded(*vector))
    assert not merged
    return memory


def embedded(*vector: float, model: str = "m") -> Embedding:
    """Return a vector."""
    return Embedding(model, vector)


def direction(degrees: float) -> list[float]:
    """Return a vector of two dimensions that turns by *degrees* from the first."""
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


async def search(
    store: MemoryStore, query: str, vector: list[float] | None = None, *, owner: str = OWNER, limit: int = 10
) -> list[Found]:
    """Return what is found."""
    embedding = None if vector is None else embedded(*vector)
    found, total = await store.search(owner, terms_of(query), embedding, limit=limit)
    assert total >= len(found)
    return found


async def contents(store: MemoryStore, query: str, vector: list[float] | None = None, **options: Any) -> list[str]:
    """Return the contents of what is found."""
    return [one.memory.content for one in await search(store, query, vector, **options)]


async def listed(store: MemoryStore, owner: str = OWNER) -> list[str]:
    """Return the contents of all entries, the newest first."""
    page, _, total = await store.fetch_page(owner, limit=200, after=None)
    assert total == len(page)
    return [memory.content for memory in page]


async def change(store: MemoryStore, memory_id: str, content: str, **options: Any) -> Memory:
    """Give an entry another content."""
    owner = options.pop("owner", OWNER)
    return await store.change(
        owner, memory_id, content=content, terms=terms_of(content), fingerprint=fingerprint(content), **options
    )


async def check_counts(pool: Pool) -> None:
    """Check that words, postings and owners agree with the entries that stand."""
    disagreeing = await pool.fetch_all("""
        with standing as (
            select owner_key, seq, terms, unnest(words) as word from memories where superseded_by is null
        ), counted as (
            select owner_key, word, count(*) as entries from standing group by 1, 2
        )
        select 'word', coalesce(w.term, c.word::text), w.entries, c.entries
        from memory_words w full join counted c on c.word = w.key and c.owner_key = w.owner_key
        where w.entries is distinct from c.entries
        union all
        select 'posting', coalesce(p.word, s.word)::text, p.memory, s.seq
        from memory_postings p full join standing s on s.word = p.word and s.seq = p.memory
        where p.word is null or s.word is null or p.length <> s.terms
        union all
        select 'owner', o.owner, o.entries, sums.entries
        from memory_owners o cross join lateral (
            select count(*) as entries, coalesce(sum(terms), 0) as terms from memories
            where owner_key = o.key and superseded_by is null
        ) sums
        where (o.entries, o.terms) <> (sums.entries, sums.terms)
    """)
    assert disagreeing == []


# Adding


async def test_add_and_fetch(store: MemoryStore, pool: Pool) -> None:
    """A new entry is found again as it was stored, with its source and importance."""
    made = await add(store, "Déjà 🙂 vu", importance=0.3, source="chat")
    assert await store.fetch(OWNER, made.id) == made
    assert (made.content, made.importance, made.source, made.embedded) == ("Déjà 🙂 vu", 0.3, "chat", False)
    assert made.created_at == made.updated_at
    assert made.created_at.utcoffset() is not None
    plain = await add(store, "plain")
    assert (plain.importance, plain.source, plain.superseded_by) == (0.5, None, None)
    assert (await add(store, "with a vector", [1, 0])).embedded
    await check_counts(pool)


async def test_the_same_words_merge(store: MemoryStore, pool: Pool) -> None:
    """The same words are one entry: what stands keeps its content and source, and has the greater importance."""
    first = await add(store, "J'aime le Café.", importance=0.4, source="chat")
    for importance, expected in ((0.2, 0.4), (0.9, 0.9), (None, 0.9)):
        merged, was_there = await store.add(OWNER, new("j'aime le cafe", importance=importance, source="other"))
        assert was_there
        assert (merged.id, merged.content, merged.source) == (first.id, "J'aime le Café.", "chat")
        assert merged.importance == expected
        assert merged.updated_at > first.updated_at
        assert merged.created_at == first.created_at
    assert await listed(store) == ["J'aime le Café."]
    await check_counts(pool)


async def test_a_hundred_at_once_are_one(store: MemoryStore, pool: Pool) -> None:
    """The same fact told a hundred times at once, with and without vectors, leaves one entry."""
    told = [
        store.add(OWNER, new("My locker is 42", importance=n / 100), embedded(1, 0) if n % 2 else None)
        for n in range(100)
    ]
    async with asyncio.timeout(30):
        results = await asyncio.gather(*told)
    assert sum(not merged for _, merged in results) == 1
    assert len({memory.id for memory, _ in results}) == 1
    page, _, total = await store.fetch_page(OWNER, limit=10, after=None)
    assert (total, page[0].importance) == (1, 0.99)
    await check_counts(pool)


async def test_many_at_once_keep_their_counts(store: MemoryStore, pool: Pool) -> None:
    """Writers of shared words in any order do not lock one another out, and the counts are right."""
    words = [f"wort{letter}" for letter in "abcdefghijkl"]
    rng = random.Random(1)

    async def live(number: int) -> None:
        owner = "ann" if number % 2 else "bob"
        memory, _ = await store.add(owner, new(f"{number} {' '.join(rng.sample(words, 6))}"), embedded(number + 1, 1))
        if number % 3 == 0:
            await change(store, memory.id, f"{number} again {' '.join(rng.sample(words, 6))}", owner=owner)
        if number % 5 == 0:
            await store.delete(owner, memory.id)

    async with asyncio.timeout(30):
        await asyncio.gather(*(live(number) for number in range(60)))
    await check_counts(pool)
    assert await pool.fetch_all("select sum(entries)::int from memory_owners") == [(48,)]


async def test_changes_at_once(store: MemoryStore, pool: Pool) -> None:
    """Changes of the same entries, to the same words, at the same time wait for one another and count right."""
    words = [f"wort{letter}" for letter in "abcdefghijklmnopqrst"]
    rng = random.Random(1)
    ids = [(await add(store, f"{number} {' '.join(words)}")).id for number in range(16)]

    async def alter(number: int) -> None:
        await change(store, ids[number % 3], f"{number} {' '.join(rng.sample(words, 15))}")

    async with asyncio.timeout(30):
        await asyncio.gather(*(alter(number) for number in range(160)))
        await check_counts(pool)
        await asyncio.gather(*(store.delete(OWNER, memory_id) for memory_id in ids))
    await check_counts(pool)
    assert await pool.fetch_all("select * from memory_words") == []


async def test_nearly_the_same_merge_where_their_vectors_agree(store: MemoryStore) -> None:
    """Nearly the same words merge where the vectors are near, and not where they are not, or are another model's."""
    first = await add(store, "I really like coffee", direction(0))

    async def tell(vector: Embedding | None) -> bool:
        memory, merged = await store.add(OWNER, new("I like coffee"), vector, near_threshold=0.97)
        if merged:
            assert memory.id == first.id
        else:
            await store.delete(OWNER, memory.id)
        return merged

    assert await tell(embedded(*direction(5)))
    assert not await tell(embedded(*direction(20)))
    assert not await tell(embedded(*direction(5), model="other"))
    assert not await tell(embedded(1, 0, 0))
    assert not await tell(None)
    assert await tell(embedded(*(1_000 * value for value in direction(5))))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("my number is 12", "my number is 13"),
        ("mon code est A-1", "mon code est A-2"),
        ("I eat fish", "I do not eat fish"),
        ("Anna lives in Rome", "Anne lives in Rome"),
        ("Paul called Marie", "Marie called Paul"),
        ("J'habite à Paris", "J'habite à Lyon"),
        ("Il mange du poisson", "Il ne mange pas de poisson"),
    ],
)
async def test_different_facts_stay_apart(store: MemoryStore, one: str, other: str) -> None:
    """Facts that differ in a number, a name or a no are two, though their vectors are the same."""
    await add(store, one, [1, 0])
    _, merged = await store.add(OWNER, new(other), embedded(1, 0), near_threshold=0.9)
    assert not merged
    assert await listed(store) == [other, one]


@pytest.mark.parametrize("vector", NO_DIRECTION)
async def test_vectors_without_a_direction_are_refused(store: MemoryStore, pool: Pool, vector: list[float]) -> None:
    """Zero, NaN and infinite vectors are a ValueError before anything is asked of the database."""
    kept = await add(store, "kept")
    calls: list[object] = []
    original = pool.fetch_in_one_trip
    pool.fetch_in_one_trip = lambda *arguments: calls.append(arguments) or original(*arguments)  # type: ignore
    for attempt in (
        store.add(OWNER, new("hello"), embedded(*vector)),
        store.search(OWNER, [], embedded(*vector), limit=1),
        store.store_vector(OWNER, kept.id, embedded(*vector), content="kept"),
        change(store, kept.id, "new", embedding=embedded(*vector)),
    ):
        with pytest.raises(ValueError):
            await attempt
    assert calls == []
    assert await listed(store) == ["kept"]
    with pytest.raises(ValueError):
        await store.add(OWNER, new("hello"), embedded(*[1.0] * 20_000))


async def test_extreme_vectors(store: MemoryStore) -> None:
    """The length of a vector does not matter, however small or large; only its direction is kept."""
    for number, scale in enumerate((1e-300, 1e-30, 1e-8, 1, 1e8, 1e150)):
        await add(store, f"scale {number}", [scale, scale])
    await add(store, "across", [-1.0, 1.0])
    found = await search(store, "", [5, 5])
    assert len(found) == 6
    assert max(one.semantic for one in found) - min(one.semantic for one in found) < 0.01


@pytest.mark.parametrize("content", ["a\0b", "\ud800", "ok \udfff"])
async def test_what_cannot_be_stored_is_refused(store: MemoryStore, content: str) -> None:
    """NUL and half surrogate pairs are a ValueError, and reach no statement."""
    kept = await add(store, "kept")
    for attempt in (store.add(OWNER, new(content)), change(store, kept.id, content)):
        with pytest.raises(ValueError):
            await attempt
    assert await contents(store, content) == []
    assert await listed(store) == ["kept"]


@pytest.mark.parametrize("content", ["🙂", "…", "?!", "le la les", "a" * 50_000, "x " * 25_000, "\u200b"])
async def test_odd_contents(store: MemoryStore, pool: Pool, content: str) -> None:
    """An entry without a word, or of nothing but one word, is kept like any other."""
    made = await add(store, content, [1, 0])
    assert (await store.fetch(OWNER, made.id)).content == content
    assert await contents(store, "", [1, 0]) == [content]
    await check_counts(pool)
    await store.delete(OWNER, made.id)
    await check_counts(pool)


async def test_many_words(store: MemoryStore, pool: Pool) -> None:
    """An entry of very many words is found by each of them."""
    await add(store, " ".join(f"w{number}" for number in range(8_000)))
    assert len(await search(store, "w7999")) == 1
    await check_counts(pool)


# Superseding


async def test_superseding(store: MemoryStore, pool: Pool) -> None:
    """A superseded entry is kept for the record, but not listed, found, counted or changed."""
    old = await add(store, "My number is 12", [1, 0])
    new_one = await add(store, "My number is 13", [1, 0.1], supersedes=old.id.upper())
    assert await listed(store) == ["My number is 13"]
    for found in (
        await contents(store, "number"),
        await contents(store, "", [1, 0]),
        await contents(store, "12", [1, 0]),
    ):
        assert found == ["My number is 13"]
    kept = await store.fetch(OWNER, old.id)
    assert (kept.content, kept.superseded_by, kept.embedded) == ("My number is 12", new_one.id, False)
    assert await store.due("m", 10) == []
    with pytest.raises(NotFound):
        await store.change(OWNER, old.id, importance=1.0)
    with pytest.raises(NotFound):
        await change(store, old.id, "else")
    assert await store.store_vector(OWNER, old.id, embedded(1, 0), content="My number is 12") is None
    await check_counts(pool)
    again, merged = await store.add(OWNER, new("My number is 12"))
    assert not merged
    assert again.id != old.id
    await check_counts(pool)


async def test_superseding_what_is_unknown(store: MemoryStore) -> None:
    """Only an entry of the owner's can be superseded; otherwise nothing is stored."""
    theirs = await add(store, "theirs", owner="bob")
    for unknown in (theirs.id, new_id(), *NOT_IDS):
        with pytest.raises(NotFound):
            await store.add(OWNER, new("mine", supersedes=unknown))
    assert await listed(store) == []
    assert await listed(store, "bob") == ["theirs"]


async def test_superseding_with_the_same_words(store: MemoryStore, pool: Pool) -> None:
    """An entry does not supersede itself, and one that merges supersedes with what stands."""
    old = await add(store, "My number is 12", [1, 0])
    same, merged = await store.add(OWNER, new("my number is 12 !", supersedes=old.id))
    assert (same.id, merged) == (old.id, True)
    assert await contents(store, "", [1, 0]) == ["My number is 12"]
    assert await listed(store) == ["My number is 12"]
    other = await add(store, "My number is 13")
    standing, merged = await store.add(OWNER, new("my number is 13", supersedes=old.id))
    assert (standing.id, merged) == (other.id, True)
    assert await listed(store) == ["My number is 13"]
    assert (await store.fetch(OWNER, old.id)).superseded_by == other.id
    repeated, merged = await store.add(OWNER, new("my number is 13", supersedes=old.id))
    assert (repeated.id, merged) == (other.id, True)
    await check_counts(pool)


async def test_superseding_what_is_near(store: MemoryStore) -> None:
    """A new wording that supersedes the old one replaces it, though it says nearly the same."""
    old = await add(store, "I really like tea", [1, 0])
    made, merged = await store.add(OWNER, new("I like tea", supersedes=old.id), embedded(1, 0), near_threshold=0.9)
    assert not merged
    assert await listed(store) == ["I like tea"]
    assert (await store.fetch(OWNER, old.id)).superseded_by == made.id


async def test_deleting_takes_the_record_along(store: MemoryStore, pool: Pool) -> None:
    """What an entry superseded goes with it: nothing stays that its owner cannot see."""
    first = await add(store, "My number is 12")
    second = await add(store, "My number is 13", supersedes=first.id)
    third = await add(store, "My number is 14", supersedes=second.id)
    await store.delete(OWNER, third.id)
    for name in ("memories", "memory_words", "memory_postings", "memory_vectors"):
        assert await pool.fetch_all(f"select * from {name}") == []  # noqa: S608
    await check_counts(pool)


# Listing, changing, deleting


async def test_pages(store: MemoryStore, pool: Pool) -> None:
    """Pages give each entry once, the newest first, under equal times and while entries are added and merged."""
    for number in range(9):
        await add(store, f"entry {number}")
    await pool.execute("update memories set created_at = '2026-01-01' where content < 'entry 5'")
    whole, _, _ = await store.fetch_page(OWNER, limit=100, after=None)
    seen: list[Memory] = []
    after: tuple[datetime, str] | None = None
    for step in range(20):
        page, _, total = await store.fetch_page(OWNER, limit=2, after=after)
        assert total == 9 + step
        if not page:
            break
        seen += page
        after = page[-1].created_at, page[-1].id
        await add(store, f"new {step}")
        await store.add(OWNER, new("entry 1", importance=0.5))
    assert [one.id for one in seen] == [one.id for one in whole]
    assert await store.fetch_page("nobody", limit=5, after=None) == ([], False, 0)


async def test_pages_end_by_their_length(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 2 MiB end a page, after one entry at least, and none is lost between two."""
    shorter = LIST.replace(f"< {PAGE_LIMIT_BYTES}", "< 100")
    assert shorter != LIST
    monkeypatch.setattr("jarvis_core.store.memories.LIST", shorter)
    texts = ["é" * 40, "b" * 30, "c" * 200, "d" * 60, "e" * 60, "f"]
    for text in texts:
        await add(store, text)
    pages: list[list[str]] = []
    after: tuple[datetime, str] | None = None
    more = True
    while more:
        page, more, total = await store.fetch_page(OWNER, limit=50, after=after)
        assert total == len(texts)
        pages.append([one.content[0] for one in page])
        after = page[-1].created_at, page[-1].id
    assert pages == [["f", "e", "d"], ["c"], ["b", "é"]]


async def test_change(store: MemoryStore, pool: Pool) -> None:
    """Another content is found by its words and not by the old ones, and has to be embedded anew."""
    made = await add(store, "Ma sœur habite à Rennes", [1, 0], source="chat")
    louder = await store.change(OWNER, made.id, importance=0.9)
    assert (louder.importance, louder.content, louder.embedded) == (0.9, made.content, True)
    changed = await change(store, made.id, "Ma sœur habite à Metz")
    assert (changed.importance, changed.source, changed.embedded) == (0.9, "chat", False)
    assert changed.created_at == made.created_at
    assert changed.updated_at > louder.updated_at > made.updated_at
    assert (await contents(store, "Rennes"), len(await search(store, "metz")), await contents(store, "", [1, 0])) == (
        [],
        1,
        [],
    )
    assert [one[0] for one in await store.due("m", 10)] == [made.id]
    again = await change(store, made.id, "Ma sœur est partie", embedding=embedded(0, 1), importance=0.1)
    assert (again.embedded, again.importance) == (True, 0.1)
    assert await contents(store, "", [0, 1]) == ["Ma sœur est partie"]
    await check_counts(pool)


async def test_change_to_what_another_says(store: MemoryStore, pool: Pool) -> None:
    """Two entries cannot come to say the same; both stay as they were."""
    await add(store, "one", [1, 0])
    second = await add(store, "two", [0, 1])
    with pytest.raises(Conflict):
        await change(store, second.id, "ONE")
    assert await listed(store) == ["two", "one"]
    assert await contents(store, "two") == ["two"]
    assert await change(store, second.id, "Two!") == await store.fetch(OWNER, second.id)
    await check_counts(pool)


async def test_forgotten_words(store: MemoryStore, pool: Pool) -> None:
    """The words of a deleted entry are gone from the database with it."""
    secret = await add(store, "The safe opens with TULIPE42", [1, 0])
    await store.delete(OWNER, secret.id)
    assert await pool.fetch_all("select * from memory_words") == []
    assert await pool.fetch_all("select * from memory_vectors") == []
    with pytest.raises(NotFound):
        await store.delete(OWNER, secret.id)
    assert await contents(store, "TULIPE42", [1, 0]) == []


async def test_owners_do_not_see_one_another(store: MemoryStore, pool: Pool) -> None:
    """Another user's entry is unknown, whatever is asked of it, is not found, and stays as it is."""
    theirs = await add(store, "Bob hides the gold in Rennes", [1, 0], owner="bob")
    await add(store, "Ann likes silver")
    assert await listed(store) == ["Ann likes silver"]
    assert await contents(store, "gold Rennes") == []
    for query in ("Renne", ""):
        assert await contents(store, query, [1, 0]) == []
    for attempt in (
        store.fetch(OWNER, theirs.id),
        store.change(OWNER, theirs.id, importance=1.0),
        change(store, theirs.id, "mine", embedding=embedded(0, 1)),
        store.delete(OWNER, theirs.id),
        store.add(OWNER, new("mine", supersedes=theirs.id)),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await store.store_vector(OWNER, theirs.id, embedded(0, 1), content=theirs.content) is None
    same, merged = await store.add(OWNER, new("Bob hides the gold in Rennes"), embedded(1, 0), near_threshold=0.1)
    assert not merged
    assert same.id != theirs.id
    assert await store.fetch("bob", theirs.id) == theirs
    assert await contents(store, "gold", [1, 0], owner="bob") == ["Bob hides the gold in Rennes"]
    await check_counts(pool)


@pytest.mark.parametrize("unknown", ["01890a5d-ac96-774b-bcce-b302099a8057", *NOT_IDS])
async def test_unknown_ids(store: MemoryStore, unknown: str) -> None:
    """What is no id of an entry is NotFound, and never an error of the database."""
    await add(store, "one")
    for attempt in (
        store.fetch(OWNER, unknown),
        store.change(OWNER, unknown, importance=1.0),
        change(store, unknown, "two"),
        store.delete(OWNER, unknown),
        store.delete("nobody", unknown),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await listed(store) == ["one"]


# Finding


async def test_words_in_both_languages(store: MemoryStore) -> None:
    """Forms, accents and ligatures of French and English words are found by one another."""
    await add(store, "Mon cœur bat pour les animaux")
    await add(store, "She organised two birthday parties in the city")
    await add(store, "Le train part à huit heures")
    for query in ("COEUR", "animal", "Quels sont les animaux ?", "animals"):
        assert (await contents(store, query))[0] == "Mon cœur bat pour les animaux"
    for query in ("organize", "cities", "Which party?"):
        assert (await contents(store, query))[0] == "She organised two birthday parties in the city"
    assert await contents(store, "the le of de") == []
    assert await contents(store, "") == []


async def test_rare_words_weigh_more(store: MemoryStore) -> None:
    """An entry with the question's rare word comes before those with its common ones, however many."""
    for number in range(30):
        await add(store, f"the meeting about the garden plan was moved {number}")
    await add(store, "Zorglub has a cat")
    assert (await contents(store, "meeting plan of Zorglub"))[0] == "Zorglub has a cat"


@pytest.mark.parametrize(
    "query",
    [
        "Zorglub",
        "what does my grandmother recommend about Zorglub",
        "is it alpha beta gamma delta epsilon zeta or Zorglub",
        "AB-1234",
        "is alpha beta gamma delta ab1234 the one",
    ],
)
async def test_rare_words_are_found_whatever_the_vectors_say(store: MemoryStore, query: str) -> None:
    """An exact name or code comes first, though everything else is nearer and more important."""
    rng = random.Random(4)
    for number in range(150):
        near = number < 20
        vector = [1.0, rng.uniform(-0.02, 0.02)] if near else [rng.uniform(-1, 1), 1]
        await add(store, f"my grandmother said thing number {number}", vector, importance=1.0)
    for number in range(60):
        word = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"][number % 6]
        await add(store, f"{word} {number}", [-1, 0.2])
    for number in range(60):
        await add(store, f"filler{number} other{number}", [0.1, 1])
    await add(store, "Zorglub carries the card AB-1234", [-1, 0.1], importance=0.0)
    found = await search(store, query, [1, 0])
    assert found[0].memory.content == "Zorglub carries the card AB-1234"
    assert found[0].semantic == 0


async def test_long_questions(store: MemoryStore) -> None:
    """Of a long question it is the rare words that count, wherever they stand."""
    for number in range(40):
        await add(store, f"a long story of many words told again {number}")
    await add(store, "Zorglub sleeps")
    common = [f"{a}{b}ko" for a in "bdfgklmn" for b in "aeiou"]
    for word in common * 3:
        await add(store, f"{word} {new_id()}")
    told = (
        " ".join(common) + " " + " ".join(f"word{number} unknown{number} long story many words" for number in range(30))
    )
    assert (await contents(store, f"{told} Zorglub"))[0] == "Zorglub sleeps"
    assert (await contents(store, f"Zorglub {told * 20}"))[0] == "Zorglub sleeps"


async def test_misspelt_names(store: MemoryStore) -> None:
    """A name that the owner never wrote so finds the one that sounds like it; a code is never guessed."""
    await add(store, "Gaëlle habite à Rennes")
    await add(store, "Matthieu aime le vélo")
    await add(store, "Le code est K7431X")
    assert await contents(store, "Gwaelle") == ["Gaëlle habite à Rennes"]
    assert await contents(store, "Matthiue") == ["Matthieu aime le vélo"]
    assert await contents(store, "Mathieu") == ["Matthieu aime le vélo"]
    assert await contents(store, "K7431Y") == []
    exact = (await search(store, "Gaëlle"))[0].lexical
    assert 0.3 < (await search(store, "Gwaelle"))[0].lexical <= 1
    assert exact == pytest.approx(1, abs=0.1)
    await add(store, "Gwaelle est au bureau")
    assert await contents(store, "Gwaelle") == ["Gwaelle est au bureau"]


async def test_paraphrases_by_vector(store: MemoryStore) -> None:
    """What is near comes before what is not, without a word in common."""
    for degrees in range(0, 180, 6):
        await add(store, f"at {degrees}", direction(degrees))
    found = await contents(store, "question", direction(89), limit=3)
    assert found[0] == "at 90"
    assert set(found) == {"at 84", "at 90", "at 96"}


async def test_why_and_score(store: MemoryStore, pool: Pool) -> None:
    """Each part is what it says, between 0 and 1, and so is the score; results come in its order."""
    rng = random.Random(2)
    for number in range(60):
        await add(
            store,
            f"note {number} about {rng.choice(['tea', 'ham'])}",
            direction(rng.uniform(0, 180)),
            importance=rng.random(),
        )
    await pool.execute("update memories set updated_at = now() - interval '90 days' where content like '%%ham'")
    found = await search(store, "tea or ham", direction(40), limit=100)
    assert found == sorted(found, key=lambda one: -one.score)
    for one in found:
        for part in (one.score, one.semantic, one.lexical, one.importance, one.recency):
            assert 0 <= part <= 1
        assert one.importance == one.memory.importance
        assert one.recency == pytest.approx(0.5 if "ham" in one.memory.content else 1, abs=0.001)
        assert one.lexical > 0
    assert {one.semantic > 0 for one in found} == {True, False}
    assert all(one.semantic == 0 for one in await search(store, "tea"))
    assert all(one.lexical == 0 for one in await search(store, "", direction(40)))


async def test_importance_and_recency_are_mild(store: MemoryStore, pool: Pool) -> None:
    """Of two that fit alike the more important and the more recent comes first; a better fit beats both."""
    await add(store, "tea plain", [1, 0])
    await add(store, "tea weighty", [1, 0], importance=1.0)
    await add(store, "tea old", [1, 0])
    await pool.execute("update memories set updated_at = '2020-01-01' where content = 'tea old'")
    await add(store, "green tea old", [1, 0], importance=0.0)
    await pool.execute("update memories set updated_at = '2020-01-01' where content = 'green tea old'")
    assert await contents(store, "green tea", [1, 0]) == ["green tea old", "tea weighty", "tea plain", "tea old"]


async def test_a_first_entry_is_found_by_meaning(store: MemoryStore) -> None:
    """With a baseline a single entry is judged by how near it is, not only by being the nearest there is."""
    await store.set_baseline("m", 2, 0.75, 0.03)
    await add(store, "only one", direction(0))
    near, far = [await search(store, "", direction(degrees)) for degrees in (25, 42)]
    assert near[0].score > 0.35
    assert far == [] or far[0].score < 0.1


async def test_unknown_owner(store: MemoryStore, pool: Pool) -> None:
    """Who never stored anything finds nothing, and leaves no trace by asking."""
    assert await search(store, "tea", [1, 0], owner="nobody") == []
    assert await pool.fetch_all("select * from memory_owners") == []


async def test_limit_and_total(store: MemoryStore) -> None:
    """No more than asked for is returned; the total says how many were found."""
    for number in range(15):
        await add(store, f"tea {number}")
    found, total = await store.search(OWNER, terms_of("tea"), None, limit=4)
    assert (len(found), total) == (4, 15)


# Models


async def test_models_do_not_mix(store: MemoryStore) -> None:
    """Vectors of another model or dimension are never compared; words go on finding all."""
    await add(store, "one tea", [1, 0])
    await store.add(OWNER, new("two tea"), embedded(1, 0, 0))
    await store.add(OWNER, new("three tea"), embedded(1, 0, model="other"))
    await store.add(OWNER, new("four tea"), None)
    for vector, expected in (
        (embedded(1, 0), "one tea"),
        (embedded(1, 0, 0), "two tea"),
        (embedded(1, 0, model="other"), "three tea"),
    ):
        found, _ = await store.search(OWNER, [], vector, limit=10)
        assert [one.memory.content for one in found] == [expected]
        found, _ = await store.search(OWNER, terms_of("tea"), vector, limit=10)
        assert len(found) == 4
        assert found[0].memory.content == expected
    assert await store.search(OWNER, [], embedded(1, 0, 0, 0), limit=10) == ([], 0)


async def test_due(store: MemoryStore) -> None:
    """What has no vector of the model is due, of anybody, once; what was embedded is not."""
    await add(store, "one")
    await add(store, "two", owner="bob")
    await add(store, "three", [1, 0])
    due = await store.due("m", 10)
    assert sorted((owner, content) for _, owner, content in due) == [("ann", "one"), ("bob", "two")]
    assert await store.due("m", 10) == []
    for memory_id, owner, content in due:
        assert await store.store_vector(owner, memory_id, embedded(1, 0), content=content) == memory_id
        assert (await store.fetch(owner, memory_id)).embedded
    assert await store.due("m", 10, claim_s=0) == []
    assert await store.due("", 10, claim_s=0) == []
    assert len(await store.due("m", 10, dimension=3)) == 3


async def test_due_again(store: MemoryStore) -> None:
    """What somebody claimed and never brought back is due again after a while."""
    await add(store, "one")
    assert len(await store.due("m", 10, claim_s=0.05)) == 1
    assert await store.due("m", 10) == []
    await asyncio.sleep(0.1)
    assert len(await store.due("m", 10)) == 1


async def test_due_after_a_failure(store: MemoryStore) -> None:
    """What is given back is due at once, after what nobody has tried; what has a vector by now is not."""
    first = await add(store, "one")
    await add(store, "two")
    claimed = {memory_id: content for memory_id, _, content in await store.due("m", 10)}
    await store.store_vector(OWNER, first.id, embedded(1, 0), content="one")
    await store.release(list(claimed))
    await store.release([])
    await add(store, "three")
    assert [(await store.due("m", 1))[0][2] for _ in range(2)] == ["three", "two"]
    assert await store.due("m", 10) == []
    old = await store.due("new", 10)
    await store.release([memory_id for memory_id, _, _ in old])
    assert [content for _, _, content in old] == ["one"]
    assert await store.due("new", 10) == [], "what has an old vector stays claimed"


async def test_due_for_many_workers(store: MemoryStore) -> None:
    """Each entry goes to one worker only, whoever asks at the same time."""
    for number in range(40):
        await add(store, f"entry {number}", [1, 0] if number % 2 else None)
    claims = await asyncio.gather(*(store.due("next", 7) for _ in range(12)))
    while more := await store.due("next", 7):
        claims.append(more)
    ids = [memory_id for claim in claims for memory_id, _, _ in claim]
    assert len(ids) == len(set(ids)) == 40
    assert all(len(claim) <= 7 for claim in claims)
    async with store._pool.transaction() as other:
        await other.execute("select from memories for update")
        assert await store.due("third", 7) == [], "nobody waits for what another is about to claim"


async def test_change_of_model(store: MemoryStore) -> None:
    """Old vectors stay until they are replaced; each model finds by what it has at the time."""
    ids = [(await add(store, f"entry {number}", direction(10 * number))).id for number in range(4)]
    assert [one[0] for one in await store.due("new", 2)] != []
    assert len(await contents(store, "", direction(0))) > 0
    await store.store_vector(OWNER, ids[0], embedded(0, 1, model="new"), content="entry 0")
    found, _ = await store.search(OWNER, [], embedded(0, 1, model="new"), limit=10)
    assert [one.memory.content for one in found] == ["entry 0"]
    assert "entry 0" not in await contents(store, "", direction(0))
    assert "entry 1" in await contents(store, "", direction(10))


async def test_vector_of_a_content_that_changed(store: MemoryStore) -> None:
    """A vector that comes back for words that are no longer there is not stored, nor for what is gone."""
    made = await add(store, "old words")
    await change(store, made.id, "new words")
    assert await store.store_vector(OWNER, made.id, embedded(1, 0), content="old words") is None
    assert not (await store.fetch(OWNER, made.id)).embedded
    await store.delete(OWNER, made.id)
    assert await store.store_vector(OWNER, made.id, embedded(1, 0), content="new words") is None
    with pytest.raises(NotFound):
        await store.store_vector(OWNER, "no id", embedded(1, 0), content="new words")


@pytest.mark.parametrize("older_is_embedded", [True, False])
async def test_merging_once_the_vector_is_known(store: MemoryStore, pool: Pool, older_is_embedded: bool) -> None:
    """Two that turn out to say the same become the older one, with what the other had superseded and its importance."""
    older = await add(store, "I like tea", [1, 0] if older_is_embedded else None)
    before = await add(store, "I like coffee")
    newer = await add(
        store, "I really like tea", None if older_is_embedded else [1, 0], importance=0.8, supersedes=before.id
    )
    late = newer if older_is_embedded else older
    assert await store.store_vector(OWNER, late.id, embedded(0, 1), content=late.content, near_threshold=0.9) == late.id
    assert len(await listed(store)) == 2
    assert (
        await store.store_vector(OWNER, late.id, embedded(1, 0.1), content=late.content, near_threshold=0.9) == older.id
    )
    assert await listed(store) == ["I like tea"]
    kept = await store.fetch(OWNER, older.id)
    assert (kept.importance, kept.embedded) == (0.8, True)
    assert (await store.fetch(OWNER, before.id)).superseded_by == older.id
    assert await contents(store, "", [1, 0]) == ["I like tea"]
    with pytest.raises(NotFound):
        await store.fetch(OWNER, newer.id)
    await check_counts(pool)


# Indexes


@pytest.fixture(params=["direct", "pooled"])
async def large(request: pytest.FixtureRequest, database: str) -> AsyncIterator[MemoryStore]:
    """
    Give a store where 40 vectors are many, in a database of its own, with 60 entries of ann's and 30 of bob's.

    And once more behind PgBouncer.
    """
    with contextlib.ExitStack() as stack:
        if request.param == "pooled":
            database = stack.enter_context(pgbouncer(database, mode="transaction")).url
        async with large_in(database) as store:
            yield store


@asynccontextmanager
async def large_in(database: str) -> AsyncIterator[MemoryStore]:
    """Lend a large store in an empty database."""
    pool = Pool(Database(max_connections=3), database)
    await pool.open()
    try:
        await migrate(pool)
        store = MemoryStore(pool, MemoryVectors(pool, index_from=40))
        await store.prepare()
        for number in range(60):
            await add(store, f"entry {number}", direction(3 * number))
        for number in range(30):
            await add(store, f"entry {number}", direction(3 * number), owner="bob")
        yield store
    finally:
        await pool.close()


def indexes(store: MemoryStore) -> dict[tuple[str, int], int]:
    """Return what the store has noted."""
    return dict(store._vectors._indexed)


async def valid_indexes(pool: Pool) -> list[str]:
    """Return the indexes that there are."""
    return [
        name
        for (name,) in await pool.fetch_all(
            "select c.relname::text from pg_index join pg_class c on c.oid = indexrelid"
            " where indisvalid and relname like 'memory_vectors_near%%' order by 1"
        )
    ]


async def test_index_of_a_large_owner(large: MemoryStore) -> None:
    """Who has many vectors gets an index, and finds the same with it as without; new entries are found as well."""
    before = [await search(large, "entry 7", direction(degrees), limit=5) for degrees in (0, 50, 111)]
    await large.tend_indexes()
    assert list(indexes(large)) == [("ann", 1)]
    assert await valid_indexes(large._pool) == ["memory_vectors_near_1_1"]
    after = [await search(large, "entry 7", direction(degrees), limit=5) for degrees in (0, 50, 111)]
    for one, other in zip(before, after, strict=True):
        assert [found.memory.id for found in one] == [found.memory.id for found in other]
    await add(large, "fresh", direction(50.5))
    assert "fresh" in await contents(large, "", direction(50.4), limit=2)
    assert await contents(large, "fresh", direction(50.5), owner="bob") != ["fresh"]


async def test_index_is_used(large: MemoryStore) -> None:
    """The statement of a large owner reads that owner's index."""
    await large.tend_indexes()
    statement = (
        large._search._by_vector("ann", 1, 2).partition("by_vector as materialized (")[2].partition("), sample")[0]
    )
    async with large._pool.transaction() as connection:
        await connection.execute(
            "select set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)"
        )
        cursor = await connection.execute(
            "explain " + statement.replace("%(vector)s", "'[1,0]'").replace("%(candidates)s", "9")
        )
        assert any("memory_vectors_near_1_1" in line for (line,) in await cursor.fetchall())


async def test_indexes_come_and_go(large: MemoryStore) -> None:
    """An index that is no longer due is dropped, one that was left half made is made anew; other processes notice."""
    other = MemoryStore(large._pool, MemoryVectors(large._pool, index_from=40))
    await other.prepare()
    assert indexes(other) == {}
    await large.tend_indexes()
    await other.prepare()
    assert indexes(other) == indexes(large) != {}
    await large._pool.execute(
        "update pg_index set indisvalid = false where indexrelid = 'memory_vectors_near_1_1'::regclass"
    )
    await other.tend_indexes()
    assert await valid_indexes(large._pool) == ["memory_vectors_near_1_1"]
    for memory in (await large.fetch_page(OWNER, limit=45, after=None))[0]:
        await large.delete(OWNER, memory.id)
    await other.tend_indexes()
    assert await valid_indexes(large._pool) == []
    assert indexes(other) == {}
    assert "entry 0" in await contents(large, "entry 0", direction(0)), "the one that has not noticed goes on"


async def test_tending_at_the_same_time(large: MemoryStore) -> None:
    """Several processes that tend at once make each index once, and disturb nobody who asks meanwhile."""
    others = [MemoryStore(large._pool, MemoryVectors(large._pool, index_from=40)) for _ in range(3)]
    for one in others:
        await one.prepare()
    async with asyncio.timeout(20):
        await asyncio.gather(*(one.tend_indexes() for one in (large, *others)))
    assert await valid_indexes(large._pool) == ["memory_vectors_near_1_1"]
    await large.tend_indexes()
    assert list(indexes(large)) == [("ann", 1)]
    assert await large._pool.fetch_all("show statement_timeout") == [("5s",)]


@pytest.mark.every_python
async def test_tending_that_is_cancelled(large: MemoryStore) -> None:
    """Who is cancelled in the midst of it ends at once, at whatever it was, and leaves it to the next one."""
    for moment_s in (0, 0, 0.001, 0.002, 0.003, 0.004, 0.006, 0.01, 0.02):
        tending = asyncio.create_task(large.tend_indexes())
        await asyncio.sleep(moment_s)
        tending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await tending
        assert tending.cancelled() or tending.exception() is None
    async with asyncio.timeout(10):
        while await valid_indexes(large._pool) != ["memory_vectors_near_1_1"]:
            await large.tend_indexes()


# Without extensions


async def test_without_pgvector(database: str) -> None:
    """Where no extension may be made, everything works but semantic search and misspelt names."""
    role = "memory_user_of_tests"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"drop role if exists {role}")
        admin.execute(f"create role {role} login")
        admin.execute(f"grant create on schema public to {role}")
        admin.execute("revoke temporary, create on database " + admin.info.dbname + " from public")
    pool = Pool(Database(max_connections=2), make_conninfo(database, user=role))
    await pool.open()
    try:
        await migrate(pool)
        store = MemoryStore(pool)
        await store.prepare()
        assert not store.vectors_available
        made, _ = await store.add(OWNER, new("Gaëlle habite à Rennes"), embedded(1, 0))
        assert not made.embedded
        _, merged = await store.add(OWNER, new("gaelle habite a rennes"), embedded(1, 0))
        assert merged
        assert await contents(store, "rennes", [1, 0]) == ["Gaëlle habite à Rennes"]
        assert await contents(store, "Gwaelle", [1, 0]) == []
        with pytest.raises(ValueError):
            await store.search(OWNER, [], embedded(0, 0), limit=1)
        assert await store.due("m", 5) == []
        assert await store.store_vector(OWNER, made.id, embedded(1, 0), content=made.content) is None
        newer = await add(store, "Gaëlle habite à Metz", [1, 0], supersedes=made.id)
        await change(store, newer.id, "Gaëlle habite à Dijon", embedding=embedded(1, 0))
        await store.tend_indexes()
        assert await listed(store) == ["Gaëlle habite à Dijon"]
        await check_counts(pool)
        # An administrator makes the extension: what was stored before is embedded then.
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("create extension vector")
        await store.prepare()
        ((memory_id, owner, content),) = await store.due("m", 5)
        assert await store.store_vector(owner, memory_id, embedded(1, 0), content=content) == newer.id
        assert await contents(store, "", [1, 0]) == ["Gaëlle habite à Dijon"]
        await store.delete(OWNER, newer.id)
    finally:
        await pool.close()
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute(f"drop owned by {role} cascade")
            admin.execute(f"drop role {role}")


async def test_preparing_together(database: str) -> None:
    """Many processes that start at once on a fresh database all find it prepared."""
    pools = [Pool(Database(max_connections=1), database) for _ in range(4)]
    try:
        for pool in pools:
            await pool.open()
        await migrate(pools[0])
        stores = [MemoryStore(pool) for pool in pools]
        async with asyncio.timeout(20):
            await asyncio.gather(*(store.prepare() for store in stores))
        assert all(store.vectors_available for store in stores)
        results = await asyncio.gather(*(store.add(OWNER, new("one"), embedded(1, 0)) for store in stores))
        assert sum(not merged for _, merged in results) == 1
    finally:
        for pool in pools:
            await pool.close()
