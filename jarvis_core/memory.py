"""
Keeps what users told the assistant to remember, and finds it again by meaning and by words.

Adding an entry asks no language model, only an embedding model, and waits for that only briefly: where no vector can be
had, the entry is stored without it, is found by its words, and gets the vector later. So do entries whose vector is of
a model that is no longer used.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from datetime import datetime
from typing import Literal

from msgspec import Struct

from jarvis_core import cancellation, log
from jarvis_core.errors import BadGateway, DeadlineExceeded, NotFound, RequestError, Unavailable
from jarvis_core.models import Caller, Embedder, Embedding, InputType, Memory, new_id
from jarvis_core.settings import Memory as MemorySettings
from jarvis_core.store.memories import CLAIM_S, Found, MemoryStore, NewMemory
from jarvis_core.store.memory_words import unless_long
from jarvis_core.words.normalization import fingerprint, terms_of

logger = log.get(__name__)

EMBEDDED_CHARS = 10_000
"""More of an entry is not embedded: the bridges' limit, and far more than the models read."""
DUE_BATCH = 16
DUE_INTERVAL_S = 2.0
"""Between two batches: the bridges take 30 calls a minute. Shorter where ``due_interval_s`` is."""
DUE_PAUSE_S = 30.0
"""After a failure; shorter where ``due_interval_s`` is."""
INDEX_INTERVAL_S = 300.0
"""How often it is looked whether an owner has so many vectors that an index is due."""
NOBODY = Caller("local", "local")
"""In whose name the model is asked about itself."""
UNRELATED = (
    ("Quelle est ma couleur préférée ?", "The boiler was serviced in March by the plumber."),
    ("When does the train leave?", "Elle est allergique aux cacahuètes."),
    ("Comment s'appelle le chat des voisins ?", "The spare key is under the third flower pot."),
    ("What should I buy for dinner?", "Son numéro de passeport se termine par 42."),
    ("Où ai-je garé la voiture ?", "My brother studied law in Lyon."),
    ("Which doctor did we see last year?", "Le mot de passe du wifi est sur le frigo."),
    ("Quand est son anniversaire ?", "The garden needs water twice a week in summer."),
    ("How tall is the tower?", "Il préfère le thé au café le matin."),
)
"""Pairs of a question and a statement; no question has anything to do with any of the statements."""
RECALL_HEAD = "What you remember of what the user told you before:\n"


class Stored(Struct, frozen=True):
    """The outcome of adding an entry."""

    memory: Memory
    merged: bool
    """Whether the entry was merged into one that existed before."""


class Results(Struct, frozen=True):
    """The entries found, the best first."""

    results: list[Found]
    total: int
    """How many entries were candidates."""
    mode: Literal["hybrid", "lexical"]


class Recalled(Struct, frozen=True):
    """The memories that go into a prompt."""

    ids: list[str]
    text: str
    """Empty where nothing was found."""


NOTHING_RECALLED = Recalled([], "")


class Memories:
    """The memories of all users; every call is scoped to one of them, and raises ``NotFound`` for another's."""

    def __init__(
        self, store: MemoryStore, embedder: Embedder | None, settings: MemorySettings, *, open_s: float = 10.0
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._settings = settings
        self._open_s = open_s
        """How long requests do without embeddings after the embedder was unavailable or late."""
        self._closed_until = 0.0
        """Until when requests do not ask for embeddings, because the embedder was unavailable or late."""
        self._slow_until = 0.0
        """Until when turns do not ask for embeddings, because the embedder was too slow for a turn."""
        self._model: tuple[str, int] | None = None
        """(name, dimension) of the model that made the last vector; None before the first."""
        self._measured: tuple[str, int] | None = None
        """The model whose baseline was measured."""
        self._work = asyncio.Event()

    @property
    def semantic(self) -> bool:
        """Whether the database can compare meanings."""
        return self._store.vectors_available

    async def add(
        self,
        caller: Caller,
        content: str,
        *,
        importance: float | None = None,
        source: str | None = None,
        supersedes: str | None = None,
    ) -> Stored:
        """
        Keep *content*, or find that it is kept already.

        Raises ``NotFound`` where *supersedes* is no entry of the caller's, ``Unavailable`` without a database.
        """
        embedding = await self._embed(content, "passage", caller, timeout_s=None)
        entry = NewMemory(
            id=new_id(),
            content=content,
            importance=importance,
            source=source,
            supersedes=supersedes,
            terms=await unless_long(len(content), terms_of, content),
            fingerprint=await unless_long(len(content), fingerprint, content),
        )
        memory, merged = await self._store.add(
            caller.user_id, entry, embedding, near_threshold=self._settings.merge_threshold
        )
        if embedding is None:
            self._work.set()
        return Stored(memory, merged)

    async def search(self, caller: Caller, query: str, *, limit: int) -> Results:
        """Return the best entries for *query* with their scores."""
        embedding = await self._embed(query, "query", caller, timeout_s=None)
        found, total = await self._store.search(
            caller.user_id, await unless_long(len(query), terms_of, query), embedding, limit=limit
        )
        return Results(found, total, "lexical" if embedding is None or not self._store.vectors_available else "hybrid")

    async def recall(self, caller: Caller, question: str, *, room_chars: int, look_first: bool = False) -> Recalled:
        """
        Return the memories that matter for an answer to *question*, in at most *room_chars*.

        *look_first* whether there are any: for who does not know it and has told nothing, nothing is looked for. Never raises for an absent neighbour or database, and waits no longer than ``recall_timeout_s``: an answer
        without memories is better than none.
        """
        room = min(room_chars, self._settings.recall_chars) - len(RECALL_HEAD)
        if not self._settings.recall_limit or room <= 0:
            return NOTHING_RECALLED
        try:
            async with cancellation.timeout(self._settings.recall_timeout_s):
                if look_first and not await self._store.has_any(caller.user_id):
                    return NOTHING_RECALLED
                embedding = await self._embed(question, "query", caller, timeout_s=self._settings.recall_timeout_s / 2)
                terms = await unless_long(len(question), terms_of, question)
                found, _ = await self._store.search(caller.user_id, terms, embedding, limit=self._settings.recall_limit)
        except (TimeoutError, RequestError) as exc:
            logger.warning("a turn begins without memories", error=type(exc).__name__)
            return NOTHING_RECALLED
        except Exception:
            # The turn is stored by now and has to run, also after a defect here.
            logger.exception("a turn begins without memories through a defect")
            return NOTHING_RECALLED
        ids: list[str] = []
        lines: list[str] = []
        for one in found:
            line = f"- {' '.join(one.memory.content.split())}\n"
            if one.score < self._settings.recall_threshold:
                break
            if len(line) <= room:
                room -= len(line)
                ids.append(one.memory.id)
                lines.append(line)
        return Recalled(ids, RECALL_HEAD + "".join(lines) if lines else "")

    async def fetch_page(
        self, owner: str, *, limit: int, after: tuple[datetime, str] | None
    ) -> tuple[list[Memory], bool, int]:
        """
        Return at most *limit* entries, the newest first, fewer where they are long; whether there are more, and how many
        there are in all.
        """
        return await self._store.fetch_page(owner, limit=limit, after=after)

    async def fetch(self, owner: str, memory_id: str) -> Memory:
        """Return one entry."""
        return await self._store.fetch(owner, memory_id)

    async def change(self, caller: Caller, memory_id: str, *, content: str | None, importance: float | None) -> Memory:
        """Change the fields that are not None; new content gets a new vector."""
        if content is None:
            return await self._store.change(caller.user_id, memory_id, importance=importance)
        embedding = await self._embed(content, "passage", caller, timeout_s=None)
        changed = await self._store.change(
            caller.user_id,
            memory_id,
            content=content,
            importance=importance,
            terms=await unless_long(len(content), terms_of, content),
            fingerprint=await unless_long(len(content), fingerprint, content),
            embedding=embedding,
        )
        if embedding is None:
            self._work.set()
        return changed

    async def delete(self, owner: str, memory_id: str) -> None:
        """Remove an entry for good."""
        await self._store.delete(owner, memory_id)

    async def keep_embedded(self) -> None:
        """Embed entries that have no vector of the current model, for ever; for a task of its own."""
        if self._embedder is None or not self._store.vectors_available:
            return
        interval_s, pause_s = (min(wait_s, self._settings.due_interval_s) for wait_s in (DUE_INTERVAL_S, DUE_PAUSE_S))
        while True:
            self._work.clear()  # before the query, which may miss an entry that is added meanwhile
            try:
                done = await self._embed_due(self._embedder)
            except RequestError as exc:
                logger.info("entries wait for their vectors", error=str(exc))
                await asyncio.sleep(pause_s)
                continue
            except Exception:
                logger.exception("entries were not embedded through a defect")
                await asyncio.sleep(pause_s)
                continue
            if done:
                await asyncio.sleep(interval_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with cancellation.timeout(self._settings.due_interval_s):
                    await self._work.wait()

    async def keep_indexed(self) -> None:
        """Make and drop the vectors' indexes as needed, for ever; for a task of its own."""
        while self._store.vectors_available:
            try:
                await self._store.tend_indexes()
            except RequestError as exc:
                logger.info("indexes were not looked after", error=str(exc))
            except Exception:
                logger.exception("indexes were not looked after through a defect")
            await asyncio.sleep(INDEX_INTERVAL_S)

    async def _embed_due(self, embedder: Embedder) -> int:
        if self._model is None or self._measured != self._model:
            await self._measure(embedder)
        assert self._model is not None  # noqa: S101 - it has just been measured
        name, dimension = self._model
        claim_s = min(CLAIM_S, self._settings.due_interval_s)
        due = await self._store.due(name, DUE_BATCH, dimension=dimension, claim_s=claim_s)
        by_owner: dict[str, list[tuple[str, str]]] = {}
        for memory_id, owner, content in due:
            by_owner.setdefault(owner, []).append((memory_id, content))
        try:
            for owner, entries in by_owner.items():
                await self._embed_for(embedder, owner, entries)
        except Exception:
            # They wait for the pause that follows, and not for their claim to run out as well.
            await self._store.release([memory_id for memory_id, _, _ in due])
            raise
        return len(due)

    async def _embed_for(self, embedder: Embedder, owner: str, entries: list[tuple[str, str]]) -> None:
        try:
            await self._embed_entries(embedder, owner, entries)
        except BadGateway:
            # The model may refuse one text, such as one that is too long for it: embed the others without it.
            if not await self._embed_one_by_one(embedder, owner, entries):
                raise

    async def _embed_one_by_one(self, embedder: Embedder, owner: str, entries: list[tuple[str, str]]) -> int:
        done = 0
        for entry in entries if len(entries) > 1 else ():
            with contextlib.suppress(BadGateway):
                await self._embed_entries(embedder, owner, [entry])
                done += 1
        return done

    async def _embed_entries(self, embedder: Embedder, owner: str, entries: list[tuple[str, str]]) -> None:
        texts = [content[:EMBEDDED_CHARS] for _, content in entries]
        embeddings = await embedder.embed(texts, "passage", Caller(owner, owner))
        self._note(embeddings[0])
        for (memory_id, content), embedding in zip(entries, embeddings, strict=True):
            with contextlib.suppress(NotFound):  # it was deleted meanwhile
                await self._store.store_vector(
                    owner, memory_id, embedding, content=content, near_threshold=self._settings.merge_threshold
                )

    async def _measure(self, embedder: Embedder) -> None:
        """Find out the model's name and dimension, and measure the cosine between unrelated texts."""
        questions = await embedder.embed([question for question, _ in UNRELATED], "query", NOBODY)
        statements = await embedder.embed([statement for _, statement in UNRELATED], "passage", NOBODY)
        name, dimension = _model_of(questions[0])
        if any(_model_of(one) != (name, dimension) for one in (*questions, *statements)):
            raise BadGateway("The model of the embeddings changed meanwhile.")
        self._note(questions[0])
        cosines = [_cosine(one.vector, other.vector) for one in questions for other in statements]
        mean = math.fsum(cosines) / len(cosines)
        deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in cosines) / len(cosines))
        await self._store.set_baseline(name, dimension, mean, deviation)
        self._measured = name, dimension

    async def _embed(
        self, text: str, input_type: InputType, caller: Caller, *, timeout_s: float | None
    ) -> Embedding | None:
        """Return the vector of *text*; None where it cannot be had, or not within *timeout_s* seconds."""
        loop = asyncio.get_running_loop()
        if self._embedder is None or not self._store.vectors_available:
            return None
        if loop.time() < (self._closed_until if timeout_s is None else max(self._closed_until, self._slow_until)):
            return None
        try:
            async with cancellation.timeout(timeout_s):
                (embedding,) = await self._embedder.embed([text[:EMBEDDED_CHARS]], input_type, caller)
        except TimeoutError:
            logger.info("embeddings are too slow for a turn", waited_s=timeout_s)
            self._slow_until = loop.time() + self._open_s
            return None
        except (Unavailable, DeadlineExceeded):
            # These failures kept the caller waiting. Others come at once, and concern this text or this caller.
            self._closed_until = loop.time() + self._open_s
            return None
        except RequestError as exc:
            logger.warning("a text is not embedded", error=str(exc))
            return None
        self._note(embedding)
        return embedding

    def _note(self, embedding: Embedding) -> None:
        model = _model_of(embedding)
        if model != self._model:
            self._model = model
            self._work.set()


def _model_of(embedding: Embedding) -> tuple[str, int]:
    return embedding.model, len(embedding.vector)


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    # Each divided by its length first: products of large values would be infinite.
    length, other_length = math.hypot(*one), math.hypot(*other)
    return math.fsum((a / length) * (b / other_length) for a, b in zip(one, other, strict=True))
