"""``POST /v1/embeddings``: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from jarvis_core.errors import InvalidRequest, UnknownModel
from jarvis_core.handlers.call import Call, Reply, text_field
from jarvis_core.handlers.openai.models import EMBEDDING, EMBEDDING_NAMES, check_model
from jarvis_core.models import Caller, Embedder

TEXTS_LIMIT = 2_048
"""As OpenAI's."""
TEXT_LIMIT_CHARS = 10_000
"""What an ``Embedder`` takes."""
BATCH = 64
"""Texts in one request to the embedding model."""
INPUT_TYPE: Literal["query"] = "query"
"""
Nobody tells whether a text is a question or what is to be found; for models that tell them apart this is what is compared
with its like (https://huggingface.co/intfloat/multilingual-e5-small#faq).
"""


class EmbeddingsBody(Struct, frozen=True):
    """``POST /v1/embeddings``."""

    model: str
    input: str | list[str | int | list[int]]
    """A text, or several; tokens are refused: they are of a model that is not here."""
    encoding_format: Literal["float", "base64"] = "float"
    """base64 is of float32, little-endian."""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """Cut to so many, and brought to length one again."""


_decoder = msgspec.json.Decoder(EmbeddingsBody)
_encode = msgspec.json.Encoder().encode


class EmbeddingHandlers:
    """The route for embeddings; *embedder* is None where there is no embedding model."""

    def __init__(self, embedder: Embedder | None, *, body_limit_bytes: int) -> None:
        self._embedder = embedder
        self._body_limit_bytes = body_limit_bytes

    async def embed(self, call: Call) -> Reply:
        """Answer ``POST /v1/embeddings``."""
        request = await call.decode(_decoder, self._body_limit_bytes)
        check_model(request.model, EMBEDDING_NAMES)
        if self._embedder is None:
            raise UnknownModel(request.model)
        texts = _texts(request.input)
        vectors = await call.unless_left(_embed(self._embedder, texts, call.caller))
        found = len(vectors[0])
        if request.dimensions is not None and request.dimensions > found:
            raise InvalidRequest.field("$.dimensions", f"must be at most {found}: the model has no more")
        parts: list[bytes] = []
        for index, vector in enumerate(vectors):
            if request.dimensions is not None and request.dimensions < found:
                vector = shortened(vector, request.dimensions)
            value = _packed(vector) if request.encoding_format == "base64" else _encode(vector)
            parts.append(b'{"object":"embedding","index":%d,"embedding":%s}' % (index, value))
            if index % BATCH == BATCH - 1:
                # A long list takes many milliseconds; others get their turn.
                await asyncio.sleep(0)
        body = b'{"object":"list","data":[%s],"model":"%s","usage":{"prompt_tokens":0,"total_tokens":0}}'
        return Reply(body % (b",".join(parts), EMBEDDING.encode()))


async def _embed(embedder: Embedder, texts: list[str], caller: Caller) -> list[Sequence[float]]:
    vectors: list[Sequence[float]] = []
    for start in range(0, len(texts), BATCH):
        found = await embedder.embed(texts[start : start + BATCH], INPUT_TYPE, caller)
        vectors += [one.vector for one in found]
    return vectors


def _texts(given: str | Sequence[str | int | list[int]]) -> list[str]:
    """Return the texts of the input; raises ``InvalidRequest``."""
    several = [given] if isinstance(given, str) else given
    if not 0 < len(several) <= TEXTS_LIMIT:
        raise InvalidRequest.field("$.input", f"must be a text or a list of 1 to {TEXTS_LIMIT} texts")
    texts: list[str] = []
    for index, text in enumerate(several):
        path = "$.input" if isinstance(given, str) else f"$.input[{index}]"
        if not isinstance(text, str):
            raise InvalidRequest.field(path, "is not a text; tokens are of a model that this server has not")
        if len(text_field(path, text)) > TEXT_LIMIT_CHARS:
            raise InvalidRequest.field(path, f"must have at most {TEXT_LIMIT_CHARS} characters")
        texts.append(text)
    return texts


def shortened(vector: Sequence[float], dimensions: int) -> list[float]:
    """Return the first *dimensions* of *vector*, brought to length one."""
    cut = vector[:dimensions]
    length = math.hypot(*cut)
    return [value / length for value in cut] if length else list(cut)


def _packed(vector: Sequence[float]) -> bytes:
    return b'"%s"' % base64.b64encode(struct.pack(f"<{len(vector)}f", *vector))
