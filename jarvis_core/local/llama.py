"""
A language model in a process of its own: llama.cpp, and the client that asks it.

The process is llama.cpp's own HTTP server on a loopback port, with a key that only it and its parent know. It is forked
from the server that asks it because loading a model holds Python's global lock for seconds, and because a broken model
file can end it without an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Literal, NoReturn

import aiohttp
import msgspec

from jarvis_core import cancellation
from jarvis_core.errors import BadGateway, InvalidRequest, Overloaded
from jarvis_core.local.choice import usable_cores
from jarvis_core.local.engine import permissions
from jarvis_core.processes.child import end_with_parent
from jarvis_core.processes.confinement import ENGINES_ID, restrict

THREADS_LIMIT = 8
"""More threads than this wait for memory and make nothing faster."""
BATCH_TOKENS = 64
"""A cancelled request stops after one or two batches: about 1 s each with one slow core, and 7 % slower than 512."""
PROMPT_CACHE_MIB = 128
"""Cache for conversations that continue after another one was answered; llama.cpp's own default is 8 GiB."""
ANSWER_SHARE = 4
"""A conversation is cut until a quarter of the context, or ``max_tokens`` when that is less, is left for the answer."""
WAITING_LIMIT = 32
"""Requests that wait for the model; further ones are refused."""
REUSED_TOKENS = 16
"""
Stretches of a conversation at least as long are kept where what stood before them is gone: the oldest messages, or what preceded a
question (measured: 2 s in place of 17 for what follows five exchanges that are left out). Only within one conversation, since
what was read still depends a little on what is gone.
"""
CONNECT_LIMIT_S = 5
SILENCE_LIMIT_S = 120
"""Between two events; each batch of a long prompt is one."""


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The text that the model has just generated, in whole characters."""

    text: str
    """Empty while a prompt is being read, as a sign of life after each batch, and while the model thinks."""
    thinking: str = ""
    """What it thought before it answers; no part of the answer."""


class Done(msgspec.Struct, frozen=True):
    """The end of an answer."""

    model: str
    tokens_generated: int
    tokens_prompt: int
    duration_ms: float
    finish_reason: Literal["stop", "length"]
    done: bool = True


class _ChunkDelta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _ChunkDelta = _ChunkDelta()
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class _Progress(msgspec.Struct, frozen=True):
    total: int


class _Failure(msgspec.Struct, frozen=True):
    message: str = ""


class _Chunk(msgspec.Struct, frozen=True):
    """One event of the engine's stream; the last event has *usage* and no choices."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    prompt_progress: _Progress | None = None
    error: _Failure | None = None


class _TokenCount(msgspec.Struct, frozen=True):
    input_tokens: int


class _Generation(msgspec.Struct, frozen=True):
    n_ctx: int


class _Properties(msgspec.Struct, frozen=True):
    default_generation_settings: _Generation


_encode = msgspec.json.encode
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
        self._parallel = parallel
        self._read_last = ""
        """The conversation that was read last."""
        self._reading_ahead: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        """Whether the model can answer now."""
        return self._loaded.is_set()

    async def wait_loaded(self, timeout_s: float) -> bool:
        """Wait until the model is loaded, at most *timeout_s* seconds; return whether it is."""
        with contextlib.suppress(TimeoutError):
            async with cancellation.timeout(timeout_s):
                await self._loaded.wait()
        return self.loaded

    async def open(self, address: str) -> None:
        """Begin to use the engine that has loaded its model and listens at *address*."""
        self._session = aiohttp.ClientSession(
            address,
            headers={"Authorization": f"Bearer {self._key}"},
            # One connection a request: closing it is how a generation is cancelled.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_LIMIT_S, sock_read=SILENCE_LIMIT_S),
        )
        async with self._session.get("/props") as response:
            properties = msgspec.json.decode(await response.read(), type=_Properties)
        self.context_tokens = properties.default_generation_settings.n_ctx
        self._loaded.set()

    async def close(self) -> None:
        """Close the connection to the engine."""
        await self._stop_reading_ahead()
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """
        Wait until the model is loaded and free, and keep it for the block.

        Waits as long as the client does: its leaving cancels the wait. Raises ``Overloaded`` when too many wait.
        """
        if self._waiting >= WAITING_LIMIT:
            raise Overloaded(f"{WAITING_LIMIT} requests are waiting for the model already")
        self._waiting += 1
        try:
            await self._loaded.wait()
            # What it has read by now is kept.
            await self._stop_reading_ahead()
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def read_ahead(self, system_prompt: str, conversation: Sequence[ChatMessage], conversation_id: str) -> None:
        """
        Begin to read what the next prompt will begin with, in place of what was to be read before; the first real request
        stops it. Does nothing while one is answered.
        """
        if self._waiting or (self.loaded and self._slots.locked() and self._reading_ahead is None):
            return
        await self._stop_reading_ahead()
        self._reading_ahead = asyncio.get_running_loop().create_task(
            self._read_ahead(system_prompt, conversation, conversation_id)
        )

    async def _read_ahead(self, system_prompt: str, conversation: Sequence[ChatMessage], conversation_id: str) -> None:
        await self._loaded.wait()
        async with self._slots:
            with suppress(BadGateway, InvalidRequest):
                messages = await self.fit(system_prompt, conversation, self.context_tokens)
                async with aclosing(self.generate(messages, 0.0, 1, conversation_id)) as pieces:
                    async for _ in pieces:
                        pass

    async def _stop_reading_ahead(self) -> None:
        reading, self._reading_ahead = self._reading_ahead, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])

    async def fit(self, system_prompt: str, conversation: Sequence[ChatMessage], max_tokens: int) -> list[ChatMessage]:
        """
        Drop the oldest messages of the conversation until the prompt and the answer fit the context; return the prompt.

        Raises ``InvalidRequest`` when the newest message alone is longer than the context, ``BadGateway``.
        """
        head = [ChatMessage("system", system_prompt)] if system_prompt else []
        room = self.context_tokens - min(max_tokens, self.context_tokens // ANSWER_SHARE)
        # The kept messages begin with one of the user.
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
            raise InvalidRequest(
                f"the message and the system prompt are {tokens} tokens long, the context {self.context_tokens}"
            )
        return fitting

    async def generate(
        self, messages: Sequence[ChatMessage], temperature: float, max_tokens: int, conversation_id: str = ""
    ) -> AsyncGenerator[Delta | Done, None]:
        """
        Stream the model's answer; the last item is the only `Done`. Of *conversation_id* what was read for it before is kept.

        Closing the iterator stops the model. Raises ``BadGateway``.
        """
        started = time.monotonic()
        body: dict[str, object] = {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,  # after each batch of the prompt
            "temperature": temperature,
            "top_p": 0.9,
            "repeat_penalty": 1.05,
            "max_tokens": max_tokens,
        }
        if self._parallel == 1 and conversation_id and conversation_id == self._read_last:
            body["n_cache_reuse"] = REUSED_TOKENS
        self._read_last = conversation_id
        finish_reason: Literal["stop", "length"] | None = None
        async with self._ask("/v1/chat/completions", body) as response:
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = _chunk_decoder.decode(line[len(b"data: ") :])
                if chunk.error is not None:
                    raise BadGateway(chunk.error.message)
                if chunk.prompt_progress is not None:
                    yield Delta("")
                for choice in chunk.choices:
                    if choice.delta.reasoning_content:
                        yield Delta("", choice.delta.reasoning_content)
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
        raise BadGateway("the answer was cut")

    async def _count(self, messages: Sequence[ChatMessage]) -> int:
        async with self._ask("/v1/chat/completions/input_tokens", {"messages": messages}) as response:
            return msgspec.json.decode(await response.read(), type=_TokenCount).input_tokens

    @asynccontextmanager
    async def _ask(self, path: str, body: object) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None  # noqa: S101 - only inside `slot`
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(path, data=_encode(body), headers=headers) as response:
                if response.status != 200:
                    raise BadGateway(f"{path} answered {response.status}: {(await response.text())[:300]}")
                yield response
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as exc:
            raise BadGateway(f"{type(exc).__name__}: {exc}") from exc


def default_threads() -> int:
    """
    Return the number of cores less one.

    The threads wait for each other many times a token: with one of their cores busy elsewhere, two are up to a hundred
    times slower than one.
    """
    return max(1, min(int(usable_cores()) - 1, THREADS_LIMIT))


class ModelOptions(msgspec.Struct, frozen=True):
    """The model that a process is to load, and its parameters."""

    path: Path
    """A GGUF file."""
    context_tokens: int = 4096
    """Tokens of a prompt and its answer; cut to the length that the model was trained for."""
    parallel: int = 1
    """Answers at the same time, each with a context of its own."""
    threads: int = 0
    """0 is `default_threads`."""
    port: int = 0
    """Where it listens on 127.0.0.1; the process may listen nowhere else."""


def fork_engine(options: ModelOptions, key: str, *inherited: socket.socket | IO[bytes] | None) -> tuple[int, int]:
    """
    Start the model's process, without what it would have *inherited*.

    Returns its id, and a pipe that tells its address as one line when the model is loaded, and by closing that it has
    ended. Call it from the main thread, before there is another one.
    """
    source, output = os.pipe()
    gc.freeze()  # fewer shared pages become copies
    parent_pid = os.getpid()
    pid = os.fork()
    if pid:
        os.close(output)
        return pid, source
    try:
        end_with_parent(parent_pid, signal.SIGKILL)
        os.close(source)
        for one in inherited:
            if one is not None:
                one.close()
        restrict(permissions(options.path, port=options.port), user_id=ENGINES_ID)
        run_engine(options, key, output)
    except BaseException as exc:  # noqa: BLE001 - nothing of the parent's may run in this process
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        sys.stderr.flush()
    finally:
        os._exit(1)


def run_engine(options: ModelOptions, key: str, output: int) -> NoReturn:
    """Load the model, write the address as a line to *output*, and serve until killed."""
    import xllamacpp  # 0.1 s and 30 MB that only this process needs

    params = xllamacpp.CommonParams()
    params.model.path = str(options.path)
    params.n_ctx = options.context_tokens * options.parallel
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads or default_threads()
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.fit_params = False  # it measures GPUs by loading the model once more
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.api_keys = [key]
    params.cors_origins = ""
    params.ui = False
    params.verbosity = 1  # errors
    server = xllamacpp.Server(params)
    os.write(output, f"{server.listening_address}\n".encode())
    while True:
        signal.pause()
