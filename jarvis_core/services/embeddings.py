"""
Embeddings, of the Python bridges or of an OpenAI-compatible server; a vector that cannot be used never gets any further.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from jarvis_core.errors import BadGateway
from jarvis_core.models import Caller, Embedding, InputType
from jarvis_core.services.contract import (
    NONSENSE,
    EmbedAnswer,
    EmbedBatchAnswer,
    EmbedBatchRequest,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EmbedRequest,
)
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Answer, Refused, Transport
from jarvis_core.settings import Memory, Neighbours

T = TypeVar("T")

DIMENSION_LIMIT = 4_000
"""What pgvector can index as halfvec."""
E5_PREFIXES: dict[InputType, str] = {"query": "query: ", "passage": "passage: "}
"""E5 models were trained with these before their texts (https://huggingface.co/intfloat/multilingual-e5-small)."""
NO_PREFIXES: dict[InputType, str] = {"query": "", "passage": ""}

_encoder = msgspec.json.Encoder()
_one_decoder = msgspec.json.Decoder(EmbedAnswer)
_batch_decoder = msgspec.json.Decoder(EmbedBatchAnswer)
_openai_decoder = msgspec.json.Decoder(EmbeddingsAnswer)


class BridgesEmbedder:
    """``Embedder`` behind the bridges; they do not name their model, so its dimension stands for it."""

    def __init__(self, transport: Transport, settings: Neighbours, mint: TokenMint | None) -> None:
        self._transport = transport
        self._timeout_s = settings.embeddings_timeout_s
        self._mint = mint

    async def embed(self, texts: list[str], input_type: InputType, caller: Caller) -> list[Embedding]:
        """Ask for the vectors, one text in a call of its own and several in one."""
        headers = {"Content-Type": "application/json"}
        if self._mint is not None:
            headers["Authorization"] = "Bearer " + self._mint.token(caller)
        if len(texts) == 1:
            body = _encoder.encode(EmbedRequest(texts[0], input_type))
            answer = await self._call("/api/embeddings/embed", body, headers)
            found = [_decode(self._transport, _one_decoder, answer)]
        else:
            body = _encoder.encode(EmbedBatchRequest(texts, input_type))
            answer = await self._call("/api/embeddings/embed-batch", body, headers)
            found = _decode(self._transport, _batch_decoder, answer).embeddings
        if len(found) != len(texts):
            raise _unusable(self._transport, f"{len(found)} vectors for {len(texts)} texts")
        return [self._embedding(one) for one in found]

    async def _call(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        return await self._transport.call("POST", path, body=body, headers=headers, timeout_s=self._timeout_s)

    def _embedding(self, answer: EmbedAnswer) -> Embedding:
        vector = _unpacked(self._transport, answer.vector)
        dimension = int(answer.dimension)
        if len(vector) != dimension:
            raise _unusable(self._transport, f"{len(vector)} numbers for {dimension} dimensions")
        return _checked(self._transport, f"python_bridges/{dimension}", vector)


class OpenAiEmbedder:
    """``Embedder`` behind ``POST /embeddings``."""

    def __init__(self, transport: Transport, settings: Neighbours, memory: Memory) -> None:
        self._transport = transport
        self._timeout_s = settings.embeddings_timeout_s
        self._model = memory.embeddings_model
        self._headers = {"Content-Type": "application/json"}
        if memory.embeddings_api_key is not None:
            self._headers["Authorization"] = "Bearer " + memory.embeddings_api_key.reveal()
            transport.hide(memory.embeddings_api_key.reveal())
        self._prefixes = E5_PREFIXES if "e5" in self._model.lower() else NO_PREFIXES
        self._encoding_format: Literal["float"] | UnsetType = "float"
        """What is asked for, until the server refuses to be asked."""

    async def embed(self, texts: list[str], input_type: InputType, caller: Caller) -> list[Embedding]:
        """Ask for the vectors; *caller* is not told to the server."""
        prefix = self._prefixes[input_type]
        request = EmbeddingsRequest(self._model, [prefix + text for text in texts], self._encoding_format)
        try:
            answer = await self._call(request)
        except Refused as exc:
            if request.encoding_format is UNSET or exc.status not in (400, 422) or b"encoding_format" not in exc.answer:
                raise
            request.encoding_format = self._encoding_format = UNSET
            answer = await self._call(request)
        found = sorted(_decode(self._transport, _openai_decoder, answer).data, key=lambda one: one.index or 0)
        if len(found) != len(texts):
            raise _unusable(self._transport, f"{len(found)} vectors for {len(texts)} texts")
        return [_checked(self._transport, self._model, _unpacked(self._transport, one.embedding)) for one in found]

    async def _call(self, request: EmbeddingsRequest) -> Answer:
        body = _encoder.encode(request)
        return await self._transport.call(
            "POST", "/embeddings", body=body, headers=self._headers, timeout_s=self._timeout_s
        )


def _decode(transport: Transport, decoder: msgspec.json.Decoder[T], answer: Answer) -> T:
    try:
        return decoder.decode(answer.body)
    except NONSENSE as exc:
        raise _unusable(transport, "what is not its contract") from exc


def _unpacked(transport: Transport, vector: list[float] | str) -> tuple[float, ...]:
    """Return the numbers of *vector*, which may be base64 of float32 little-endian."""
    if not isinstance(vector, str):
        return tuple(vector)
    try:
        data = base64.b64decode(vector, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _unusable(transport, "a vector that is not base64") from exc
    if len(data) % 4:
        raise _unusable(transport, f"{len(data)} bytes, which is no whole number of float32")
    return struct.unpack(f"<{len(data) // 4}f", data)


def _checked(transport: Transport, model: str, vector: tuple[float, ...]) -> Embedding:
    if not 0 < len(vector) <= DIMENSION_LIMIT:
        raise _unusable(transport, f"a vector of {len(vector)} dimensions")
    if not 0 < math.hypot(*vector) < math.inf:
        raise _unusable(transport, "a vector that is zero or not a number")
    return Embedding(model, vector)


def _unusable(transport: Transport, what: str) -> BadGateway:
    transport.health.learn("degraded", f"embeddings: {what}")
    return BadGateway(f"{transport.name} sent {what}.", details={"neighbour": transport.name})
