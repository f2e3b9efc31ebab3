"""Memories over a store and an embedder in the test's own hands: what sockets cannot bring about at will."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from jarvis_core import memory as memory_module
from jarvis_core.errors import BadGateway, DeadlineExceeded, NotFound, RateLimited, RequestError, Unavailable
from jarvis_core.memory import EMBEDDED_CHARS, NOTHING_RECALLED, RECALL_HEAD, Memories
from jarvis_core.models import Caller, Embedding, InputType, Memory
from jarvis_core.settings import Memory as MemorySettings
from jarvis_core.store.memories import Found, MemoryStore, NewMemory
from jarvis_core.words.normalization import terms_of

pytestmark = pytest.mark.every_python

ANN = Caller("ann", "Ann")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TURN_S = 0.2
"""``recall_timeout_s`` here."""


class Embedder:
    """Gives (length of the text, 1) as a vector, or does what it is told."""

    def __init__(self, model: str = "m", dimension: int = 2) -> None:
        self.model = model
        self.dimension = dimension
        self.calls: list[tuple[list[str], str, Caller]] = []
        self.error: Exception | None = None
        self.refused = ""
        """A call that has this text is a BadGateway."""
        self.vector: tuple[float, ...] | None = None
        self.hang = False

    async def embed(self, texts: list[str], input_type: InputType, caller: Caller) -> list[Embedding]:
        """Embed as the protocol has it."""
        self.calls.append((texts, input_type, caller))
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        if self.refused in texts:
            raise BadGateway("too long")
        return [Embedding(self.model, self.vector or self._vector(text)) for text in texts]

    def _vector(self, text: str) -> tuple[float, ...]:
        return (float(len(text)), *[1.0] * (self.dimension - 1))


class Store:
    """Keeps what it is told in lists."""

    def __init__(self) -> None:
        self.vectors_available = True
        self.added: list[tuple[str, NewMemory, Embedding | None, float]] = []
        self.searches: list[tuple[str, list[str], Embedding | None, int]] = []
        self.found: list[Found] = []
        self.waiting: list[tuple[str, str, str]] = []
        self.claimed: list[tuple[str, str, str]] = []
        self.released = 0
        self.asked_due: list[tuple[str, int | None]] = []
        self.claims_s: set[float] = set()
        self.stored: list[tuple[str, str, str]] = []
        """(id, model, content) of vectors that came late."""
        self.gone: set[str] = set()
        self.baselines: list[tuple[str, int, float, float]] = []
        self.tended = 0
        self.search_error: Exception | None = None
        self.search_hangs = False
        self.changed = asyncio.Event()

    async def add(
        self, owner: str, entry: NewMemory, embedding: Embedding | None, *, near_threshold: float
    ) -> tuple[Memory, bool]:
        """Keep an entry."""
        self.added.append((owner, entry, embedding, near_threshold))
        return memory(entry.id, entry.content, embedded=embedding is not None), False

    async def search(
        self, owner: str, terms: list[str], embedding: Embedding | None, *, limit: int
    ) -> tuple[list[Found], int]:
        """Find what was laid ready."""
        self.searches.append((owner, terms, embedding, limit))
        if self.search_hangs:
            await asyncio.Event().wait()
        if self.search_error is not None:
            raise self.search_error
        return self.found[:limit], len(self.found)

    async def due(
        self, model: str, limit: int, *, dimension: int | None = None, claim_s: float
    ) -> list[tuple[str, str, str]]:
        """Give what waits, once."""
        self.asked_due.append((model, dimension))
        self.claims_s.add(claim_s)
        given, self.waiting = self.waiting[:limit], self.waiting[limit:]
        self.claimed += given
        self.changed.set()
        return given

    async def release(self, memory_ids: list[str]) -> None:
        """Have what was given wait again."""
        self.released += 1
        self.waiting += [one for one in self.claimed if one[0] in memory_ids]
        self.claimed = [one for one in self.claimed if one[0] not in memory_ids]
        self.changed.set()

    async def store_vector(
        self, owner: str, memory_id: str, embedding: Embedding, *, content: str, near_threshold: float
    ) -> str | None:
        """Keep a vector that came late."""
        assert (owner, near_threshold) in (("ann", 0.9), ("bob", 0.9))
        if memory_id in self.gone:
            raise NotFound("gone")
        self.stored.append((memory_id, embedding.model, content))
        self.changed.set()
        return memory_id

    async def set_baseline(self, model: str, dimension: int, mean: float, spread: float) -> None:
        """Keep a baseline."""
        self.baselines.append((model, dimension, mean, spread))
        self.changed.set()

    async def tend_indexes(self) -> None:
        """Count."""
        self.tended += 1
        self.changed.set()
        if self.tended == 1:
            raise Unavailable("away")


def memory(memory_id: str, content: str, *, embedded: bool = True) -> Memory:
    """Make a stored entry."""
    return Memory(memory_id, content, 0.5, NOW, NOW, None, embedded)


def found(memory_id: str, content: str, score: float) -> Found:
    """Make an entry that was found."""
    return Found(memory(memory_id, content), score, 0.5, 0.5, 0.5, 1.0)


@pytest.fixture
def store() -> Store:
    """Give an empty store."""
    return Store()


@pytest.fixture
def embedder() -> Embedder:
    """Give an embedder that works."""
    return Embedder()


def make(store: Store, embedder: Embedder | None, *, open_s: float = 10.0, **settings: Any) -> Memories:
    """Put them together."""
    chosen = {"recall_timeout_s": TURN_S, "merge_threshold": 0.9, "due_interval_s": 0.01, **settings}
    return Memories(cast("MemoryStore", store), embedder, MemorySettings(**chosen), open_s=open_s)


@asynccontextmanager
async def working(memories: Memories) -> AsyncIterator[None]:
    """Embed in the background."""
    task = asyncio.create_task(memories.keep_embedded())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(store: Store, condition: Callable[[], bool]) -> None:
    """Wait for the store to come to *condition*."""
    async with asyncio.timeout(5):
        while not condition():
            store.changed.clear()
            await store.changed.wait()


# Adding and searching


async def test_add_and_search(store: Store, embedder: Embedder) -> None:
    """A fact is embedded as a passage and a question as a query, in the caller's name."""
    memories = make(store, embedder)
    stored = await memories.add(ANN, "Le code est 4711", importance=0.7, source="chat")
    (added,) = store.added
    assert (added[0], added[3]) == ("ann", 0.9)
    assert (added[1].importance, added[1].source, added[1].terms) == (0.7, "chat", terms_of("Le code est 4711"))
    assert stored.memory.embedded
    assert (await memories.search(ANN, "le code ?", limit=3)).mode == "hybrid"
    assert store.searches[0][3] == 3
    assert embedder.calls == [(["Le code est 4711"], "passage", ANN), (["le code ?"], "query", ANN)]


async def test_long_text(store: Store, embedder: Embedder) -> None:
    """What is longer than the model's limit is stored whole and embedded by its beginning."""
    await make(store, embedder).add(ANN, "é" * 50_000)
    assert store.added[0][1].content == "é" * 50_000
    assert embedder.calls[0][0] == ["é" * EMBEDDED_CHARS]


async def test_without_embeddings(store: Store, embedder: Embedder) -> None:
    """Without an embedder, or without pgvector, nobody is asked, and the mode tells."""
    store.vectors_available = False
    for memories in (make(store, embedder), make(store, None)):
        assert not (await memories.add(ANN, "x")).memory.embedded
        assert (await memories.search(ANN, "x", limit=1)).mode == "lexical"
        await memories.keep_embedded()  # nothing to do, so it ends
        store.vectors_available = True
    assert embedder.calls == []


@pytest.mark.parametrize("error", [Unavailable("away"), DeadlineExceeded("late")], ids=lambda error: error.code)
async def test_circuit(store: Store, embedder: Embedder, error: RequestError) -> None:
    """Embeddings that kept somebody waiting in vain are left alone for a while, by every request, and then asked again."""
    memories = make(store, embedder, open_s=0.05)
    embedder.error = error
    assert not (await memories.add(ANN, "x")).memory.embedded
    assert (await memories.search(ANN, "x", limit=1)).mode == "lexical"
    assert await memories.recall(ANN, "x", room_chars=5_000) == NOTHING_RECALLED
    assert len(embedder.calls) == 1
    embedder.error = None
    await asyncio.sleep(0.06)
    assert (await memories.search(ANN, "x", limit=1)).mode == "hybrid"


@pytest.mark.parametrize("error", [BadGateway("zeros"), RateLimited("too many")], ids=lambda error: error.code)
async def test_failure_of_one(store: Store, embedder: Embedder, error: RequestError) -> None:
    """A text that is refused, or a caller who asked too often, takes no vectors from the others."""
    memories = make(store, embedder)
    embedder.error = error
    assert not (await memories.add(ANN, "x")).memory.embedded
    assert (await memories.search(ANN, "x", limit=1)).mode == "lexical"
    embedder.error = None
    assert (await memories.search(Caller("bob"), "x", limit=1)).mode == "hybrid"


# Recalling


async def test_recall(store: Store, embedder: Embedder) -> None:
    """What is good enough goes into the prompt, the best first, each on a line of its own."""
    store.found = [found("1", "Zoé aime\n le  thé", 0.9), found("2", "Le chat est Félix", 0.5), found("3", "x", 0.24)]
    recalled = await make(store, embedder).recall(ANN, "thé ?", room_chars=5_000)
    assert recalled.ids == ["1", "2"]
    assert recalled.text == RECALL_HEAD + "- Zoé aime le thé\n- Le chat est Félix\n"
    assert store.searches[0][3] == MemorySettings().recall_limit


@pytest.mark.parametrize(("room", "setting"), [(300, 5_000), (5_000, 300)])
async def test_recall_within_its_budget(store: Store, embedder: Embedder, room: int, setting: int) -> None:
    """What does not fit is left out for what does; the budget counts code points, and the heading is part of it."""
    texts = {"1": "a" * 100, "2": "😀" * 200, "3": "é" * (300 - len(RECALL_HEAD) - 103 - 3), "4": "b"}
    store.found = [found(one, text, 0.9) for one, text in texts.items()]
    recalled = await make(store, embedder, recall_chars=setting).recall(ANN, "?", room_chars=room)
    assert recalled.ids == ["1", "3"]
    assert len(recalled.text) == 300


@pytest.mark.parametrize(
    ("settings", "room"),
    [({"recall_limit": 0}, 5_000), ({"recall_chars": 0}, 5_000), ({}, 0), ({}, -2), ({}, len(RECALL_HEAD))],
)
async def test_no_room(store: Store, embedder: Embedder, settings: dict[str, int], room: int) -> None:
    """Where nothing can be recalled nobody is asked."""
    store.found = [found("1", "x", 0.9)]
    assert await make(store, embedder, **settings).recall(ANN, "x", room_chars=room) == NOTHING_RECALLED
    assert (store.searches, embedder.calls) == ([], [])


async def test_recall_without_its_vector(store: Store, embedder: Embedder) -> None:
    """A turn does not wait for slow embeddings, and the next ones do not ask; who has the time still does."""
    store.found = [found("1", "x", 0.9)]
    memories = make(store, embedder)
    embedder.hang = True
    async with asyncio.timeout(2):
        assert (await memories.recall(ANN, "x", room_chars=5_000)).ids == ["1"]
        assert (await memories.recall(ANN, "x", room_chars=5_000)).ids == ["1"]
    assert [search[2] for search in store.searches] == [None, None]
    assert len(embedder.calls) == 1
    embedder.hang = False
    assert (await memories.search(ANN, "x", limit=1)).mode == "hybrid"


@pytest.mark.parametrize("error", [Unavailable("away"), ValueError("a defect"), None], ids=["away", "defect", "slow"])
async def test_recall_never_fails(store: Store, embedder: Embedder, error: Exception | None) -> None:
    """A turn goes on without memories, whatever is wrong with them, and after a bounded wait."""
    store.search_error, store.search_hangs = error, error is None
    async with asyncio.timeout(2):
        assert await make(store, embedder).recall(ANN, "x", room_chars=5_000) == NOTHING_RECALLED


# Embedding later


async def test_due(store: Store, embedder: Embedder) -> None:
    """Entries without a vector get one in the background: a call for each owner, in the owner's name."""
    store.waiting = [("1", "ann", "one"), ("2", "bob", "two"), ("3", "ann", "three")]
    async with working(make(store, embedder)):
        await until(store, lambda: len(store.stored) == 3)
    assert sorted(store.stored) == [("1", "m", "one"), ("2", "m", "two"), ("3", "m", "three")]
    assert embedder.calls[2:] == [
        (["one", "three"], "passage", Caller("ann", "ann")),
        (["two"], "passage", Caller("bob", "bob")),
    ]
    assert set(store.asked_due) == {("m", 2)}
    assert store.claims_s == {0.01}, "what fails is due again at the next look"


async def test_long_text_later(store: Store, embedder: Embedder) -> None:
    """What is longer than the model's limit is embedded by its beginning in the background too, and named whole."""
    store.waiting = [("1", "ann", "é" * 50_000)]
    async with working(make(store, embedder)):
        await until(store, lambda: bool(store.stored))
    assert embedder.calls[2][0] == ["é" * EMBEDDED_CHARS]
    assert store.stored[0][2] == "é" * 50_000


async def test_add_wakes_the_work(store: Store, embedder: Embedder) -> None:
    """An entry that was stored without a vector is looked after at once, not at the next interval."""
    memories = make(store, embedder, due_interval_s=3_600.0)
    async with working(memories):
        await until(store, lambda: bool(store.asked_due))
        embedder.error = BadGateway("zeros")
        await memories.add(ANN, "x")
        embedder.error = None
        store.waiting = [("1", "ann", "x")]
        await until(store, lambda: bool(store.stored))


async def test_add_while_it_is_looked(store: Store, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that comes while others are looked for, and was not seen, does not wait for the next interval."""
    memories = make(store, embedder, due_interval_s=3_600.0)
    looked, added = asyncio.Event(), asyncio.Event()
    due = store.due

    async def late(*arguments: Any, **fields: Any) -> list[tuple[str, str, str]]:
        seen = await due(*arguments, **fields)
        looked.set()
        await added.wait()
        return seen

    monkeypatch.setattr(store, "due", late)
    async with working(memories):
        await looked.wait()
        embedder.error = BadGateway("zeros")
        await memories.add(ANN, "x")
        embedder.error = None
        store.waiting = [("1", "ann", "x")]
        added.set()
        await until(store, lambda: bool(store.stored))


async def test_one_text_that_is_refused(store: Store, embedder: Embedder) -> None:
    """A text that the model does not take keeps its neighbours from nothing; nor does one that was deleted meanwhile."""
    store.waiting = [("1", "ann", "one"), ("2", "ann", "poison"), ("3", "ann", "three"), ("4", "ann", "four")]
    store.gone = {"3"}
    embedder.refused = "poison"
    async with working(make(store, embedder)):
        await until(store, lambda: len(store.stored) == 2)
    assert [one for one, _, _ in store.stored] == ["1", "4"]


async def test_work_goes_on_after_failures(store: Store, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a neighbour that fails nor a defect ends the work."""
    memories = make(store, embedder)
    embedder.error = RateLimited("too many")
    async with working(memories):
        async with asyncio.timeout(5):
            while len(embedder.calls) < 3:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
        embedder.error = None
        due = store.due

        async def defective(*_arguments: object, **_fields: object) -> list[tuple[str, str, str]]:
            monkeypatch.setattr(store, "due", due)
            raise ValueError("a defect")

        monkeypatch.setattr(store, "due", defective)
        store.waiting = [("1", "ann", "one")]
        await until(store, lambda: bool(store.stored))


@pytest.mark.parametrize("error", [Unavailable("away"), BadGateway("nonsense"), ValueError("a defect")])
async def test_failure_gives_back(
    store: Store, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What failed is tried again after the pause that follows a failure, and does not wait for its claim too."""
    monkeypatch.setattr(memory_module, "DUE_PAUSE_S", 0.01)
    memories = make(store, embedder, due_interval_s=3_600.0)
    async with working(memories):
        await until(store, lambda: bool(store.asked_due))
        embedder.error = BadGateway("zeros")
        await memories.add(ANN, "what wakes the work")
        embedder.error = error
        store.waiting = [("1", "ann", "one"), ("2", "bob", "two")]
        await until(store, lambda: store.released == 2)
        embedder.error = None
        await until(store, lambda: len(store.stored) == 2)


async def test_baseline(store: Store, embedder: Embedder) -> None:
    """How near unrelated texts are is measured once for each model, whatever the vectors' lengths."""
    embedder.vector = (3e200, 4e200)
    memories = make(store, embedder)
    async with working(memories):
        await until(store, lambda: len(store.asked_due) >= 3)
        assert [(one[:2], one[3]) for one in store.baselines] == [(("m", 2), 0.0)]
        assert store.baselines[0][2] == pytest.approx(1.0)
        assert [call[1] for call in embedder.calls] == ["query", "passage"]
        # Another model answers a request: it is measured, and what is due is due for that one.
        embedder.model, embedder.vector = "n", (1.0, 2.0, 3.0)
        await memories.search(ANN, "x", limit=1)
        await until(store, lambda: store.asked_due[-1] == ("n", 3))
    assert [one[:2] for one in store.baselines] == [("m", 2), ("n", 3)]
    assert all(math.isfinite(number) for one in store.baselines for number in one[2:])


async def test_model_that_changes_while_it_is_measured(store: Store, embedder: Embedder) -> None:
    """Vectors of two models are not compared: the new one is measured the next time."""

    class Changing(Embedder):
        async def embed(self, texts: list[str], input_type: InputType, caller: Caller) -> list[Embedding]:
            made = await super().embed(texts, input_type, caller)
            self.dimension = 3
            return made

    with capture_logs() as logged:
        async with working(make(store, Changing())):
            await until(store, lambda: bool(store.baselines))
    assert "error" not in {one["log_level"] for one in logged}
    assert [one[:2] for one in store.baselines] == [("m", 3)]


async def test_indexes(store: Store, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are looked after again and again, also when the database was away."""
    monkeypatch.setattr("jarvis_core.memory.INDEX_INTERVAL_S", 0.001)
    task = asyncio.create_task(make(store, embedder).keep_indexed())
    await until(store, lambda: store.tended >= 3)
    task.cancel()
    await asyncio.wait([task])
