"""
Runs a speech engine in a process of its own: the protocol, and both of its sides.

The process (``whisper.py``, ``kokoro.py``) is started, and its model loaded, with the first request, so that a house
without speech pays no memory for it. It answers one request after another. A running request cannot be cancelled: when
its client leaves, the process is killed, and a new one loads the model at once.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from jarvis_core.errors import BadGateway, DeadlineExceeded, InvalidRequest, RequestError, Unavailable
from jarvis_core.processes.child import end_with_parent
from jarvis_core.processes.confinement import ENGINES_ID, python_paths, restrict, weights_paths
from jarvis_core.processes.permissions import Permissions
from jarvis_core.processes.subprocess_pool import Message, Part, SubprocessPool, serve
from jarvis_core.tasks import start_in

LOAD_LIMIT_S = 120.0
"""For half a second's work, on a machine that has much else to do."""

ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Be ready for the next request; answered by ``Loaded``."""

    warm: bool = False
    """Do a little work as well: the first takes longer than the next."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is in memory."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """There is no answer."""

    error: str
    """One line for a person."""
    client: bool = False
    """Whether it is the request's fault."""


class BadRequest(Exception):
    """Raised by the engine's process for a malformed request."""


class Engine(Generic[ReplyT]):
    """
    An engine, seen from the server.

    *module* is run as ``python -m MODULE --parent PID --threads N DIRECTORY``; it answers with a *reply* and payloads.
    With *kill_cancelled* the work for a client that has left is not done to its end, and the model is loaded anew.
    """

    def __init__(
        self,
        name: str,
        module: str,
        reply: type[ReplyT],
        directory: Path,
        threads: int,
        *,
        kill_cancelled: bool = True,
    ) -> None:
        self._pool = SubprocessPool(
            name, module, ["--threads", str(threads), str(directory)], kill_cancelled=kill_cancelled
        )
        self._decoder: msgspec.json.Decoder[ReplyT | Loaded | Failed] = msgspec.json.Decoder(reply | Loaded | Failed)
        self._name = name
        self._loading: set[asyncio.Task[None]] = set()
        self.broken = False
        """Whether the last request failed, and not by its own fault."""

    async def ask(
        self, request: msgspec.Struct, payloads: Sequence[Part] = (), *, timeout_s: float
    ) -> tuple[ReplyT, list[bytes]]:
        """
        Return the engine's answer to *request*.

        Raises ``InvalidRequest``, ``BadGateway`` when the engine fails, ``Unavailable`` when its process ends, and
        ``DeadlineExceeded``.
        """
        try:
            answer = await self._pool.call(msgspec.json.encode(request), payloads, timeout_s=timeout_s)
        except (asyncio.CancelledError, DeadlineExceeded):
            self._load()
            raise
        except Unavailable:
            self.broken = True
            raise
        reply = self._decoder.decode(answer[0])
        if isinstance(reply, Failed):
            if reply.client:
                raise InvalidRequest(reply.error)
            self.broken = True
            raise BadGateway(f"the {self._name} failed: {reply.error}")
        self.broken = False
        assert not isinstance(reply, Loaded)  # noqa: S101 - only `_load` asks for that
        return reply, answer[1:]

    async def warm(self) -> None:
        """Start the process, and have it load its model and do a little work; what fails is told with the next request."""
        with suppress(RequestError):
            await self._pool.call(msgspec.json.encode(Load(warm=True)), timeout_s=LOAD_LIMIT_S)

    async def close(self) -> None:
        """End the process."""
        for task in self._loading:
            task.cancel()
        await self._pool.close()

    def _load(self) -> None:
        """Start the next process, in place of the killed one, and have it load its model in the background."""

        async def load() -> None:
            with suppress(RequestError):
                await self._pool.call(msgspec.json.encode(Load()), timeout_s=LOAD_LIMIT_S)

        start_in(self._loading, load())


def permissions(
    *weights: Path | None, writes: bool = False, port: int | None = None, asks: bool = False
) -> Permissions:
    """
    Return what a process of the stand-in may do, which reads *weights*.

    *writes* is whether it makes temporary files, *port* where it listens on TCP, or with *asks* whoever it asks there.
    """
    python = python_paths()
    ports = () if port is None else (port,)
    return python._replace(
        readable=(*python.readable, *weights_paths(*weights)),
        writable=(*python.writable, *((tempfile.gettempdir(),) if writes else ())),
        listens_at=ports,
        connects_to=ports if asks else (),
    )


class Options(argparse.Namespace):
    """The command line of an engine's process."""

    parent: int
    threads: int
    directory: Path


Answer = tuple[msgspec.Struct, Sequence[Part]]


def run(handle: Callable[[Message, Options], Answer], *, writes: bool = False) -> None:
    """
    Answer requests with *handle*, the engine's process' side; returns when the parent goes away.

    It may read its model and what its interpreter loads, and nothing else: no network, and no file to write, but for
    temporary ones where it *writes* any. Errors of *handle* are sent to the parent, ``BadRequest`` as the client's fault.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(namespace=Options())
    end_with_parent(options.parent, signal.SIGKILL)
    restrict(permissions(options.directory, writes=writes), user_id=ENGINES_ID)

    def answer(message: Message) -> Sequence[Part]:
        try:
            reply, payloads = handle(message, options)
        except BadRequest as exc:
            reply, payloads = Failed(str(exc), client=True), ()
        except Exception as exc:  # noqa: BLE001 - whatever an engine may raise is told, and the next request may do
            reply, payloads = Failed(f"{type(exc).__name__}: {exc}".partition("\n")[0][:300]), ()
        return [msgspec.json.encode(reply), *payloads]

    serve(answer, options.parent)
