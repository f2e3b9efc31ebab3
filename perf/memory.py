"""
Memory: how fast is what was told found again among very many (whether it is found at all: `memory_quality`).

``memory_speed`` fills one owner with ``PERF_MEMORY_ENTRIES`` entries among ``PERF_MEMORY_TOTAL`` in all.
"""

from __future__ import annotations

import io
import os
import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from jarvis_core.models import Embedding, new_id
from jarvis_core.store.memories import Found, MemoryStore, NewMemory
from jarvis_core.store.memory_vectors import MemoryVectors
from jarvis_core.store.memory_words import sounds_of_all
from jarvis_core.store.pool import Pool
from jarvis_core.words.normalization import fingerprint, gist, terms_of
from perf.memory_corpus import people
from perf.memory_quality import TOP, Row, memory_quality
from perf.memory_stand import Floats, opened, postgres, real_model

ENTRIES = int(os.environ.get("PERF_MEMORY_ENTRIES", "100000"))
TOTAL = int(os.environ.get("PERF_MEMORY_TOTAL", "120000"))
OTHERS_EACH = 1_000
BIG, MIDDLE = "big", "middle"


def memory_speed(data: Path, rounds: int) -> list[Row]:
    """Search and add among very many entries, and what they take."""
    with postgres(data, "speed") as conninfo:
        return uvloop.run(_measure_speed(conninfo, rounds))


class Vocabulary:
    """Words as people use them: few very often, most hardly ever."""

    SYLLABLES = tuple(a + b for a in ("b", "ch", "d", "f", "g", "j", "l", "m", "n", "p", "qu", "r", "s", "t", "v", "z")
                      for b in ("a", "e", "i", "o", "u", "ou", "an", "on"))  # fmt: skip

    def __init__(self, rng: np.random.Generator, size: int = 40_000) -> None:
        self._rng = rng
        lengths = rng.integers(2, 5, size)
        self.words = ["".join(rng.choice(self.SYLLABLES, length)) for length in lengths]
        weights = 1 / (np.arange(size) + 2.7) ** 1.05
        self._weights = np.cumsum(weights / weights.sum())

    def texts(self, count: int) -> list[str]:
        """Return *count* texts of 6..18 words, in each now and then a number."""
        lengths = self._rng.integers(6, 19, count)
        drawn = np.minimum(np.searchsorted(self._weights, self._rng.random(int(lengths.sum()))), len(self.words) - 1)
        texts, start = [], 0
        for number, length in enumerate(lengths):
            words = [self.words[place] for place in drawn[start : start + length]]
            start += length
            if number % 5 == 0:
                words.append(str(int(self._rng.integers(10, 100_000))))
            texts.append(" ".join(words))
        return texts


class Space:
    """Vectors as a real model's lie: around those of real texts, where the model is there."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        model = real_model()
        everybody = list(people())
        if model is None:
            basis = rng.normal(size=(24, 384))
            self._centres = rng.normal(size=(3_000, 24)) @ basis + 8 * rng.normal(size=384)
            self.queries = (self._centres[:300] + 0.6 * rng.normal(size=(300, 384))).astype(np.float32)
        else:
            self._centres = model.passages([text for person in everybody for text in person.entries]).astype(float)
            asked = random.Random(3).sample([one.text for person in everybody for one in person.questions], 300)
            self.queries = model.queries(asked)
        self._centres /= np.linalg.norm(self._centres, axis=1, keepdims=True)

    def vectors(self, count: int) -> Floats:
        """Return *count* vectors of the length 1: each between two real ones, and a little off."""
        one, other = (self._centres[self._rng.integers(0, len(self._centres), count)] for _ in range(2))
        share = self._rng.random((count, 1))
        mixed = share * one + (1 - share) * other + 0.012 * self._rng.normal(size=one.shape)
        vectors: Floats = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
        return vectors


async def _measure_speed(conninfo: str, rounds: int) -> list[Row]:
    rng = np.random.default_rng(11)
    vocabulary, space = Vocabulary(rng), Space(rng)
    owners = {BIG: ENTRIES, MIDDLE: 4_900}
    for number in range(max(0, TOTAL - sum(owners.values())) // OTHERS_EACH):
        owners[f"other {number}"] = OTHERS_EACH
    title = f"{ENTRIES:,} entries of one owner, {sum(owners.values()):,} in all"
    async with opened(conninfo) as (pool, store):
        started = time.perf_counter()
        samples = await _fill(pool, store, owners, vocabulary, space)
        filled_s = time.perf_counter() - started
        started = time.perf_counter()
        await store.tend_indexes()
        indexed_s = time.perf_counter() - started
        sizes = await _sizes(pool)
        rows = [
            (f"memory: {title}: filled by COPY; indexes of vectors made", f"{filled_s:.0f} s; {indexed_s:.0f} s", "–")
        ]
        rows.append(("memory: on the disk", sizes, "–"))
        for owner, count in ((BIG, ENTRIES), (MIDDLE, owners[MIDDLE]), ("other 0", OTHERS_EACH)):
            if owner not in owners:
                continue
            for name, times in (await _search_times(store, owner, samples[owner], space, rounds)).items():
                aim = "p95 < 20 ms" if owner == BIG else "–"
                rows.append((f"memory: search among an owner's {count:,}, {name}", _percentiles(times), aim))
        times = [await _add_time(store, BIG, text, space) for text in vocabulary.texts(60 * rounds)]
        rows.append((f"memory: add to {ENTRIES:,}, with its vector", _percentiles(times), "< 10 ms"))
        recall = await _index_recall(pool, store, space)
        rows.append(("memory: the index finds of the nearest ten", f"{recall:.3f}", "≥ 0.95"))
    return rows


def _percentiles(times: list[float]) -> str:
    ordered = sorted(times)
    return f"p50 {statistics.median(ordered):.1f} ms, p95 {ordered[int(0.95 * len(ordered))]:.1f} ms"


async def _search_times(
    store: MemoryStore, owner: str, texts: list[str], space: Space, rounds: int
) -> dict[str, list[float]]:
    rng = random.Random(17)
    times: dict[str, list[float]] = {}
    for number in range(10 + 60 * rounds):
        words = rng.sample(rng.choice(texts).split(), 4) + rng.choice(texts).split()[:2]
        misspelt = rng.choice(words)
        words.append(misspelt[:2] + misspelt[3:] if len(misspelt) > 5 else "inconnu")
        vector = Embedding("e5", tuple(space.queries[number % len(space.queries)].tolist()))
        terms = terms_of(" ".join(words))
        for name, embedding in (("words and vectors", vector), ("words alone", None)):
            started = time.perf_counter()
            found, _ = await store.search(owner, terms, embedding, limit=TOP)
            assert found
            if number >= 10:  # the first ones make the plan, and read the files
                times.setdefault(name, []).append(1_000 * (time.perf_counter() - started))
    return times


async def _add_time(store: MemoryStore, owner: str, text: str, space: Space) -> float:
    vector = Embedding("e5", tuple(space.vectors(1)[0].tolist()))
    entry = NewMemory(new_id(), text, terms_of(text), fingerprint(text))
    started = time.perf_counter()
    await store.add(owner, entry, vector, near_threshold=0.95)
    return 1_000 * (time.perf_counter() - started)


async def _index_recall(pool: Pool, store: MemoryStore, space: Space) -> float:
    """Return how many of the nearest ten by comparing all are among the first ten by the index, through the store."""
    exact = MemoryStore(pool, MemoryVectors(pool, index_from=1 << 30))
    await exact.prepare()
    shares = []
    for query in space.queries[:100]:
        vector = Embedding("e5", tuple(query.tolist()))
        rankings: list[list[Found]] = [(await one.search(BIG, [], vector, limit=TOP))[0] for one in (exact, store)]
        best, found = ({one.memory.id for one in ranking} for ranking in rankings)
        shares.append(len(best & found) / len(best))
    return statistics.mean(shares)


async def _sizes(pool: Pool) -> str:
    rows = await pool.fetch_all(
        "select relname::text, pg_table_size(oid) / 1e6, pg_indexes_size(oid) / 1e6 from pg_class"
        " where relkind = 'r' and relname in ('memories', 'memory_words', 'memory_postings', 'memory_vectors') order by 1"
    )
    return ", ".join(f"{name} {table:.0f} + {indexes:.0f} MB" for name, table, indexes in rows)


async def _fill(
    pool: Pool, store: MemoryStore, owners: dict[str, int], vocabulary: Vocabulary, space: Space
) -> dict[str, list[str]]:
    """Store all entries by COPY, as ``add`` would have; returns some texts of each owner."""
    samples: dict[str, list[str]] = {}
    one = Embedding("e5", tuple(space.vectors(1)[0].tolist()))
    model_key = await store._vectors.model_key(one)
    await pool.execute("alter table memory_postings drop constraint memory_postings_pkey")
    seq = word_key = 0
    for owner_key, (owner, count) in enumerate(owners.items(), 1):
        texts = list(dict.fromkeys(vocabulary.texts(count)))
        samples[owner] = texts[:500]
        keys: dict[str, int] = {}
        entries: Counter[str] = Counter()
        total = 0
        memories, postings = io.StringIO(), io.StringIO()
        first = seq + 1
        for text in texts:
            seq += 1
            terms = terms_of(text)
            total += len(terms)
            times = Counter(terms)
            entries.update(times.keys())
            own = []
            for term, often in times.items():
                key = keys.get(term)
                if key is None:
                    word_key += 1
                    key = keys[term] = word_key
                own.append(key)
                postings.write(f"{key}\t{seq}\t{often}\t{len(terms)}\n")
            listed = ",".join(map(str, own))
            hashes = f"\\\\x{fingerprint(text).hex()}\t\\\\x{gist(text).hex()}"
            memories.write(
                f"{seq}\t{uuid.uuid4()}\t{owner_key}\t{text}\t0.5\t{hashes}\t{{{listed}}}\t{len(terms)}\tt\n"
            )
        words = io.StringIO()
        for (term, key), sounds in zip(keys.items(), sounds_of_all(owner, keys), strict=True):
            words.write(f"{key}\t{owner_key}\t{term}\t{sounds}\t{entries[term]}\n")
        async with pool.without_timeout() as connection:
            await connection.execute(
                "insert into memory_owners (key, owner, entries, terms) overriding system value values (%s, %s, %s, %s)",
                (owner_key, owner, len(texts), total),
            )
            for table, columns, text_data in (
                (
                    "memories",
                    "seq, id, owner_key, content, importance, fingerprint, gist, words, terms, embedded",
                    memories,
                ),
                ("memory_words", "key, owner_key, term, sounds, entries", words),
                ("memory_postings", "word, memory, times, length", postings),
            ):
                async with connection.cursor().copy(f"copy {table} ({columns}) from stdin") as copy:
                    await copy.write(text_data.getvalue())
            statement = "copy memory_vectors (memory, owner_key, model_key, embedding) from stdin with (format binary)"
            async with connection.cursor().copy(statement) as copy:
                await copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
                for start in range(first, seq + 1, 10_000):
                    batch = range(start, min(start + 10_000, seq + 1))
                    await copy.write(_binary_rows(batch, owner_key, model_key, space.vectors(len(batch))))
                await copy.write(b"\xff\xff")
    async with pool.without_timeout() as connection:
        await connection.execute("set maintenance_work_mem = '512MB'")
        await connection.execute("alter table memory_postings add primary key (word, memory) include (times, length)")
        for table, column, next_one in (
            ("memories", "seq", seq + 1),
            ("memory_words", "key", word_key + 1),
            ("memory_owners", "key", len(owners) + 1),
        ):
            await connection.execute(f"alter table {table} alter column {column} restart with {next_one}")
        for table in ("memory_owners", "memories", "memory_words", "memory_postings", "memory_vectors"):
            await connection.execute(f"vacuum analyze {table}")
    return samples


def _binary_rows(seqs: range, owner_key: int, model_key: int, vectors: Floats) -> bytes:
    """Return rows of memory_vectors as COPY reads them: https://www.postgresql.org/docs/current/sql-copy.html."""
    dimension = vectors.shape[1]
    rows: npt.NDArray[Any] = np.empty(
        len(seqs),
        [("fields", ">i2"), *((f"{name}{part}", ">i4") for name in ("seq", "owner", "model") for part in ("_bytes", "")),
         ("bytes", ">i4"), ("dimension", ">i2"), ("unused", ">i2"), ("vector", ">f2", (dimension,))],
    )  # fmt: skip
    rows["fields"] = 4
    for name, values in (("seq", np.arange(seqs.start, seqs.stop)), ("owner", owner_key), ("model", model_key)):
        rows[f"{name}_bytes"] = 4
        rows[name] = values
    rows["bytes"] = 4 + 2 * dimension
    rows["dimension"], rows["unused"] = dimension, 0
    rows["vector"] = vectors
    return rows.tobytes()


SCENARIOS: tuple[Callable[[Path, int], list[Row]], ...] = (memory_quality, memory_speed)
