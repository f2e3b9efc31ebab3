"""
The local stand-in for the Python bridges: their HTTP contract, with a language model on this machine behind it.

``python -m jarvis_core.local.bridges --model FILE`` runs it; ``launcher.py`` starts it as a child. Two processes:

- The server (aiohttp) listens at once. It checks requests, and notices clients that leave.
- The language model (``llama.py``), forked from it.

When either ends, so does the other; a supervisor needs to watch only the first. Nothing here has a state worth closing,
so SIGTERM keeps its default action: an end within milliseconds, also while a model is loading or talking.

Beyond the contract a request may carry ``stream`` (the answer is ``application/x-ndjson``: ``{"text": …}`` lines, then
one with ``"done": true`` and the counts, or one with ``error`` when the engine fails on the way) and ``messages`` (the
conversation, its newest message last, in place of ``prompt``). Speech and embeddings answer 503: their engines are to
become entries of ``SERVICES`` and routes of ``create_app``, beside the language model's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from jarvis_core import __version__
from jarvis_core.errors import BadGateway, InvalidRequest, Overloaded, RequestError
from jarvis_core.local.llama import ChatMessage, Delta, Done, Engine, ModelOptions, fork_engine

BODY_LIMIT_BYTES = 4 << 20
STALLED_READER_LIMIT_S = 30
LAST_WORDS_LIMIT_S = 1
STATUSES: dict[type[RequestError], int] = {InvalidRequest: 400, Overloaded: 503, BadGateway: 500}

SERVICES = ("ollama_llm", "whisper_stt", "piper_tts", "embeddings")
ABSENT = (
    ("POST", "/api/stt/transcribe"),
    ("POST", "/api/tts/synthesize"),
    ("GET", "/api/tts/voices"),
    ("POST", "/api/embeddings/embed"),
    ("POST", "/api/embeddings/embed-batch"),
)


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
            raise InvalidRequest("messages: the last one must be the user's")
        return list(self.messages)


HEALTH_PATIENCE_S = 4.0
"""Less than the core's own deadline for the question."""

_encode = msgspec.json.encode
_request_decoder = msgspec.json.Decoder(GenerateRequest)


def create_app(engine: Engine) -> web.Application:
    """Return the HTTP side of the stand-in."""
    model = LanguageModel(engine)
    app = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_failures_as_json])
    app.router.add_get("/health", model.health)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/api/llm/models", model.models)
    app.router.add_post("/api/llm/generate", model.generate)
    for method, path in ABSENT:
        app.router.add_route(method, path, _absent)
    return app


class LanguageModel:
    """The handlers of the language model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def health(self, _: web.Request) -> web.Response:
        """
        Tell what works; "healthy" as soon as all that the stand-in has does.

        The core asks once at its start and not again for a while: an answer waits for the model, for a few seconds.
        """
        await self._engine.wait_loaded(HEALTH_PATIENCE_S)
        services = dict.fromkeys(SERVICES, "❌")
        if self._engine.loaded:
            services["ollama_llm"] = "✅"
        status = "healthy" if self._engine.loaded else "degraded"
        return _json(
            {"status": status, "service": "jarvis-local-bridges", "version": __version__, "services": services}
        )

    async def models(self, _: web.Request) -> web.Response:
        """Name the only model."""
        return _json({"models": [self._engine.model_name]})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer a prompt or a conversation, whole or as it is said."""
        try:
            asked = _request_decoder.decode(await request.read())
        except msgspec.DecodeError as exc:  # also when a field is wrong
            raise InvalidRequest(str(exc)) from exc
        conversation = asked.conversation()
        async with self._engine.turn():
            messages = await self._engine.fit(asked.system_prompt, conversation, asked.max_tokens)
            async with aclosing(self._engine.generate(messages, asked.temperature, asked.max_tokens)) as pieces:
                return await (_stream(request, pieces) if asked.stream else _whole(pieces))


async def _whole(pieces: AsyncIterator[Delta | Done]) -> web.Response:
    texts: list[str] = []
    async for piece in pieces:
        if isinstance(piece, Done):
            fields = msgspec.structs.asdict(piece)
            del fields["done"]
            return _json({"text": "".join(texts), **fields})
        texts.append(piece.text)
    raise BadGateway("the answer has no end")


async def _stream(request: web.Request, pieces: AsyncIterator[Delta | Done]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    try:
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(request)
            # The buffers of a socket hold most answers; a reader that does not even take those has hung up in its way.
            async with asyncio.timeout(STALLED_READER_LIMIT_S):
                await response.write(_encode(piece) + b"\n")
    except BadGateway as exc:
        if not response.prepared:
            raise
        _log(f"the language model failed: {exc}")
        await response.write(_encode({"error": exc.message}) + b"\n")
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response


async def _ready(_: web.Request) -> web.Response:
    return _json({"status": "ready", "version": __version__})


async def _absent(_: web.Request) -> web.Response:
    raise web.HTTPServiceUnavailable(text="the local stand-in has no such engine")


@web.middleware
async def _failures_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as failure:
        return _json({"error": failure.text}, failure.status)
    except RequestError as exc:
        if isinstance(exc, BadGateway):
            _log(f"the language model failed: {exc}")
        return _json({"error": exc.message}, STATUSES[type(exc)])


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def _log(line: str) -> None:
    sys.stderr.write(f"jarvis bridges: {line}\n")
    sys.stderr.flush()


class Options(argparse.Namespace):
    """The command line."""

    host: str
    port: int
    fd: int | None
    model: Path
    model_name: str | None
    context: int
    threads: int
    parallel: int


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="jarvis_core.local.bridges", description="A local stand-in for the bridges.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8005)
    parser.add_argument("--fd", type=int, help="a listening socket to use in place of host and port")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--model-name", help="what clients are told; the file's name without its suffix by default")
    parser.add_argument("--context", type=int, default=4096, help="tokens of a prompt and its answer")
    parser.add_argument("--threads", type=int, default=0, help="0 is one fewer than there are cores")
    parser.add_argument("--parallel", type=int, default=1, help="answers at the same time, each with its own context")
    return parser.parse_args(arguments, namespace=Options())


async def serve(engine: Engine, listener: socket.socket, source: int) -> bool:
    """Serve until the model's process ends; return whether it had been of use before."""
    runner = web.AppRunner(
        create_app(engine), handler_cancellation=True, access_log=None, shutdown_timeout=LAST_WORDS_LIMIT_S
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    reader = asyncio.StreamReader()
    pipe = os.fdopen(source, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    address = (await reader.readline()).decode().strip()
    if not address:
        return False
    try:
        await engine.open(address)
        await reader.read()
    finally:
        await runner.cleanup()  # those who wait for an answer are told
        await engine.close()
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stand-in until it is killed; return 1 when the model's process has ended."""
    options = parse(arguments)
    if options.fd is not None:
        listener = socket.socket(fileno=options.fd)
    else:
        listener = socket.create_server((options.host, options.port), backlog=128)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_DFL)
    key = secrets.token_urlsafe(32)
    model = ModelOptions(options.model, options.context, options.parallel, options.threads)
    pid, source = fork_engine(model, key, listener)
    engine = Engine(options.model_name or options.model.stem, key, options.parallel)
    if asyncio.run(serve(engine, listener, source)):
        why = "the language model's process ended"
    else:
        why = (
            f"{options.model} cannot be loaded as a language model: delete it to have it fetched again,"
            " or set LOCAL_LLM_MODEL to another GGUF file"
        )
    _log(f"{why} (exit status {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})")
    return 1


if __name__ == "__main__":
    sys.exit(main())
