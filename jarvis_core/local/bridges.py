"""
The local stand-in for the Python bridges: their HTTP contract, with a language model on this machine behind it.

``python -m jarvis_core.local.bridges --model FILE`` runs it; ``launcher.py`` starts it as a child. Two processes:

- The server (aiohttp) listens at once. It checks requests, fits a conversation into the model's context, lets requests
  wait their turn, and notices clients that leave.
- The engine, forked from it, is llama.cpp's own HTTP server on a loopback port of its own, with a key that only the two
  know. It is a process of its own because loading a model holds Python's global lock for seconds, and because a broken
  model file can end it without an exception.

When either ends, so does the other; a supervisor needs to watch only the first. Nothing here has a state worth closing,
so SIGTERM keeps its default action: an end within milliseconds, also while a model is loading or talking.

Beyond the contract a request may carry ``stream`` (the answer is ``application/x-ndjson``: ``{"text": …}`` lines, then
one with ``"done": true`` and the counts, or one with ``error`` when the engine fails on the way) and ``messages`` (the
conversation, its newest message last, in place of ``prompt``). Speech and embeddings answer 503: their engines are to
become entries of ``SERVICES`` and routes of ``create_app``, beside the language model's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Literal

import aiohttp
import msgspec
from aiohttp import web

CONTEXT_TOKENS = 4096
THREADS_LIMIT = 8
"""More threads than this wait for memory, not for one another's sums."""
BATCH_TOKENS = 64
"""A cancelled request stops after one or two batches: about 1 s each with one slow core, and 7 % slower than 512."""
PROMPT_CACHE_MIB = 128
"""Memory for conversations that come back after another one; llama.cpp's own default is 8 GiB."""
ANSWER_SHARE = 4
"""A conversation is cut until a quarter of the context, or ``max_tokens`` when that is less, is left for the answer."""

WAITING_LIMIT = 32
"""Requests that wait for their turn; one more is refused with 503."""
BODY_LIMIT_BYTES = 4 << 20
STALLED_READER_LIMIT_S = 30
ENGINE_CONNECT_LIMIT_S = 5
ENGINE_SILENCE_LIMIT_S = 120
"""Between two events; the engine reports each batch of a long prompt."""

SERVICES = ("ollama_llm", "whisper_stt", "piper_tts", "embeddings")
ABSENT = (
    ("POST", "/api/stt/transcribe"),
    ("POST", "/api/tts/synthesize"),
    ("GET", "/api/tts/voices"),
    ("POST", "/api/embeddings/embed"),
    ("POST", "/api/embeddings/embed-batch"),
)


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation; ``system`` is only ever ours."""

    role: Literal["system", "user", "assistant"]
    content: str


class PastMessage(ChatMessage, frozen=True):
    """One message as a client may send it."""

    role: Literal["user", "assistant"]


class GenerateRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/llm/generate; the limits are the reference implementation's, in code points."""

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
    system_prompt: Annotated[str, msgspec.Meta(max_length=5_000)] = ""
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.7
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=32_000)] = 512
    stream: bool = False
    messages: Annotated[tuple[PastMessage, ...], msgspec.Meta(max_length=1_000)] = ()
    """Oldest first, ending with the user's newest; empty means *prompt* alone."""

    def conversation(self) -> list[ChatMessage]:
        """Return what to answer, without the system prompt."""
        if not self.messages:
            return [ChatMessage("user", self.prompt)]
        if self.messages[-1].role != "user":
            raise web.HTTPBadRequest(text="messages: the last one must be the user's")
        return list(self.messages)


class Delta(msgspec.Struct, frozen=True):
    """What the model has just said; never empty, never half a character."""

    text: str


class Done(msgspec.Struct, frozen=True):
    """The end of an answer."""

    model: str
    tokens_generated: int
    tokens_prompt: int
    duration_ms: float
    finish_reason: Literal["stop", "length"]
    done: bool = True


class Answer(msgspec.Struct, frozen=True):
    """A whole answer."""

    text: str
    model: str
    tokens_generated: int
    tokens_prompt: int
    duration_ms: float
    finish_reason: Literal["stop", "length"]


class _ChunkDelta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _ChunkDelta = _ChunkDelta()
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct, frozen=True):
    """One event of the engine's stream; the one with *usage* has no choices and is the last."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class _TokenCount(msgspec.Struct, frozen=True):
    input_tokens: int


class _Generation(msgspec.Struct, frozen=True):
    n_ctx: int


class _Properties(msgspec.Struct, frozen=True):
    default_generation_settings: _Generation


class EngineFailed(Exception):
    """The engine is gone, silent, or answered nonsense."""


_encode = msgspec.json.encode
_request_decoder = msgspec.json.Decoder(GenerateRequest)
_chunk_decoder = msgspec.json.Decoder(_Chunk)


class Engine:
    """The language model, seen from the server."""

    def __init__(self, model_name: str, key: str, parallel: int) -> None:
        self.model_name = model_name
        self.context_tokens = 0
        self._key = key
        self._session: aiohttp.ClientSession | None = None
        self._loaded = asyncio.Event()
        self._slots = asyncio.Semaphore(parallel)
        self._waiting = 0

    @property
    def loaded(self) -> bool:
        """Whether the model can answer now."""
        return self._loaded.is_set()

    async def open(self, address: str) -> None:
        """Begin to use the engine that has loaded its model and listens at *address*."""
        self._session = aiohttp.ClientSession(
            address,
            headers={"Authorization": f"Bearer {self._key}"},
            # One connection a request: closing it is how a generation is cancelled.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(sock_connect=ENGINE_CONNECT_LIMIT_S, sock_read=ENGINE_SILENCE_LIMIT_S),
        )
        async with self._session.get("/props") as response:
            properties = msgspec.json.decode(await response.read(), type=_Properties)
        self.context_tokens = properties.default_generation_settings.n_ctx
        self._loaded.set()

    async def close(self) -> None:
        """Close what `open` opened."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """
        Wait until the model is loaded and free, and keep it for the block.

        Waits as long as the client does: its leaving cancels the wait. Raises 503 when too many wait.
        """
        if self._waiting >= WAITING_LIMIT:
            raise web.HTTPServiceUnavailable(text="too many requests are waiting for the model")
        self._waiting += 1
        try:
            await self._loaded.wait()
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def fit(self, system_prompt: str, conversation: Sequence[ChatMessage], max_tokens: int) -> list[ChatMessage]:
        """
        Return the conversation as the model gets it, its oldest messages dropped until there is room for the answer.

        Raises 400 when the newest message alone is longer than the context.
        """
        head = [ChatMessage("system", system_prompt)] if system_prompt else []
        room = self.context_tokens - min(max_tokens, self.context_tokens // ANSWER_SHARE)
        # What is kept begins with something that the user said.
        starts = [place for place, message in enumerate(conversation) if message.role == "user"]
        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high) // 2
            if await self._count([*head, *conversation[starts[middle] :]]) <= room:
                high = middle
            else:
                low = middle + 1
        fitting = [*head, *conversation[starts[low] :]]
        if low == len(starts) - 1 and (tokens := await self._count(fitting)) >= self.context_tokens:
            raise web.HTTPBadRequest(
                text=f"the message and the system prompt are {tokens} tokens long, the context {self.context_tokens}"
            )
        return fitting

    async def generate(
        self, messages: Sequence[ChatMessage], temperature: float, max_tokens: int
    ) -> AsyncIterator[Delta | Done]:
        """
        Stream the model's answer; the last item is the only `Done`.

        Closing the iterator stops the model. Raises `EngineFailed`.
        """
        started = time.monotonic()
        body = {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Without these reports the engine does not see that its client has gone until a long prompt is read.
            "return_progress": True,
            "temperature": temperature,
            "top_p": 0.9,
            "repeat_penalty": 1.05,
            "max_tokens": max_tokens,
        }
        finish_reason: Literal["stop", "length"] | None = None
        async with self._ask("/v1/chat/completions", body) as response:
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = _chunk_decoder.decode(line[len(b"data: ") :])
                if chunk.error:
                    raise EngineFailed(bytes(chunk.error).decode())
                for choice in chunk.choices:
                    if choice.delta.content:
                        yield Delta(choice.delta.content)
                    if choice.finish_reason is not None:
                        finish_reason = "length" if choice.finish_reason == "length" else "stop"
                if chunk.usage is not None and finish_reason is not None:
                    yield Done(
                        model=self.model_name,
                        tokens_generated=chunk.usage.completion_tokens,
                        tokens_prompt=chunk.usage.prompt_tokens,
                        duration_ms=round((time.monotonic() - started) * 1000, 1),
                        finish_reason=finish_reason,
                    )
                    return
        raise EngineFailed("the answer was cut")

    async def _count(self, messages: Sequence[ChatMessage]) -> int:
        async with self._ask("/v1/chat/completions/input_tokens", {"messages": messages}) as response:
            return msgspec.json.decode(await response.read(), type=_TokenCount).input_tokens

    @asynccontextmanager
    async def _ask(self, path: str, body: object) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None  # noqa: S101 - only after `turn`
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(path, data=_encode(body), headers=headers) as response:
                if response.status != 200:
                    raise EngineFailed(f"{path} answered {response.status}: {(await response.text())[:300]}")
                yield response
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as exc:
            raise EngineFailed(f"{type(exc).__name__}: {exc}") from exc
