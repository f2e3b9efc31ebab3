"""The stand-in's embeddings over HTTP: the bridges' contract, and beyond it ``input_type``, ``query`` or ``passage``."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from jarvis_core.local import e5
from jarvis_core.local.engine import Engine
from jarvis_core.local.http import absent, answer, read
from jarvis_core.local.llama import default_threads

EMBED_LIMIT_S = 60.0
"""A text takes some 15 ms of an idle core, a batch so many times that."""
BODY_LIMIT_BYTES = 4 << 20
BATCH_LIMIT = 256

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]


class EmbedRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/embeddings/embed; the limit is the reference implementation's, in code points."""

    text: Text
    input_type: Literal["query", "passage"] = "passage"


class EmbedBatchRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/embeddings/embed-batch."""

    texts: Annotated[list[Text], msgspec.Meta(max_length=BATCH_LIMIT)]
    input_type: Literal["query", "passage"] = "passage"


_one_decoder = msgspec.json.Decoder(EmbedRequest)
_batch_decoder = msgspec.json.Decoder(EmbedBatchRequest)


class Embeddings:
    """The handlers; *present* is whether there is to be a model, which is used where its package is installed."""

    def __init__(self, *, present: bool, threads: int = 0) -> None:
        directory = e5.directory() if present else None
        self._engine: Engine[e5.Embedded] | None = None
        if directory is not None:
            self._engine = Engine(
                "embedding", e5.__name__, e5.Embedded, directory, threads or default_threads(), kill_cancelled=False
            )

    @property
    def states(self) -> dict[str, bool]:
        """Whether the engine works, by its name in the bridges' /health; empty without an engine."""
        return {} if self._engine is None else {"embeddings": not self._engine.broken}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve embeddings; without an engine the routes say so."""
        router.add_post("/api/embeddings/embed", self.embed)
        router.add_post("/api/embeddings/embed-batch", self.embed_batch)

    async def embed(self, request: web.Request) -> web.Response:
        """Answer with the vector of one text."""
        engine = self._present()
        asked = await read(request, _one_decoder, BODY_LIMIT_BYTES)
        (one,) = await _vectors(engine, [asked.text], asked.input_type)
        return answer(one)

    async def embed_batch(self, request: web.Request) -> web.Response:
        """Answer the vectors of several texts."""
        engine = self._present()
        asked = await read(request, _batch_decoder, BODY_LIMIT_BYTES)
        vectors = await _vectors(engine, asked.texts, asked.input_type) if asked.texts else []
        return answer({"embeddings": vectors, "count": len(vectors)})

    async def close(self) -> None:
        """End the engine's process."""
        if self._engine is not None:
            await self._engine.close()

    def _present(self) -> Engine[e5.Embedded]:
        if self._engine is None:
            raise absent("embeddings")
        return self._engine


async def _vectors(engine: Engine[e5.Embedded], texts: list[str], input_type: str) -> list[dict[str, object]]:
    embedded, vectors = await engine.ask(e5.Embed(texts, input_type == "query"), timeout_s=EMBED_LIMIT_S)
    return [
        {"text": text, "vector": base64.b64encode(vector).decode("ascii"), "dimension": embedded.dimension}
        for text, vector in zip(texts, vectors, strict=True)
    ]
