"""
Runs one worker: the application in Granian's embedded server, until a signal.

Run as a module it is one of several workers, and reads its assignment from its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvloop
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.errors import FatalError
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server

from jarvis_core import log
from jarvis_core.access.connections import LOOPBACK, ConnectionWatch, listening, listening_port
from jarvis_core.access.tls import certificate_of
from jarvis_core.app import Application, create_app
from jarvis_core.errors import StartError
from jarvis_core.processes.child import give_memory_back, machine_memory_bytes, raise_open_files_limit
from jarvis_core.settings import Assignment, Settings, WorkerGroup, parse_networks

HEAD_LIMIT_BYTES = 64 << 10
"""
Of a request's head. Over that Granian answers 431, without a body, before the application is told; a head of up to twice as
much that comes at once it may still take.
"""
STREAM_LIMIT = 32
"""Requests at a time on one connection of HTTP/2, each with a head and an answer of its own."""
STREAM_BUFFER_BYTES = 64 << 10
"""What Granian takes of an answer for each stream of HTTP/2 whose client does not read."""
CONNECTION_LIMIT = 65_536
CONNECTION_BYTES = 128 << 10
"""What a connection over HTTP/1.1 can take by a head that does not end, an answer that is not read and all around it."""
MEMORY_SHARE = 4
"""All connections may take this part of the memory: a quarter."""
FILES_KEPT = 4_096
"""Open files that are kept for everything but clients."""
LINGER_S = 0.5
"""How long clients may take for the rest of their answers, when the time for draining is over."""
LISTENING_INTERVAL_S = 0.1
KERNEL_BUFFER_BYTES = 256 << 10
"""
What the kernel keeps of a connection, for each direction; it takes twice as much memory for it (socket(7)). By itself it would
take 4 MiB of what nobody reads, and more of what we have not read. Enough for 2.5 MB/s to a client 100 ms away, and for
eight seconds of speech to one that reads as it plays.
"""
IDLE_S = 60
LOOK_INTERVAL_S = 15
LOOKS = 4
"""A connection on which nothing came for so long is looked at so often; nothing back, and it is closed: after two minutes."""
INTERRUPTED = 130
"""The exit code of a start that a signal ended."""


def connection_limit(open_files: int, memory_bytes: int) -> int:
    """
    Return how many clients may connect with *open_files*, of which some are kept for neighbours and the database, and
    with *memory_bytes* for this worker.

    Further clients wait to be accepted, even for /health, so that one address has far fewer (``ConnectionWatch``).
    """
    files = max(open_files // 2, open_files - FILES_KEPT)
    return min(CONNECTION_LIMIT, files, memory_bytes // MEMORY_SHARE // CONNECTION_BYTES)


def run(settings: Settings, group: WorkerGroup, *, on_ready: Callable[[list[str]], None]) -> int:
    """
    Serve until a signal; return the exit code. Raises ``StartError``.

    Gives *on_ready* the lines of the banner that only this process knows.
    """
    give_memory_back()
    return uvloop.run(_serve(settings, group, on_ready))


def main() -> int:
    """Serve as the worker that the standard input describes, and tell the parent; return the exit code."""
    assignment = Assignment.decode(sys.stdin.buffer.read())
    log.set_up(assignment.settings.log)
    with socket.socket(fileno=assignment.control) as control:
        # Subprocesses of this worker must not inherit the control socket.
        control.set_inheritable(False)
        try:
            return run(
                assignment.settings,
                assignment.group,
                on_ready=lambda remarks: control.sendall(("ready " + "\t".join(remarks) + "\n").encode()),
            )
        except StartError as exc:
            with contextlib.suppress(OSError):
                control.sendall(b"failed " + str(exc).replace("\n", " ").encode() + b"\n")
            return 1
        except KeyboardInterrupt:
            return INTERRUPTED


async def bound_connections(other_port: int | None = None) -> None:
    """
    Have the kernel close connections whose clients vanished (a phone without a network, a machine without power), and keep
    no more than ``KERNEL_BUFFER_BYTES`` of each on its way.

    Waits until this process listens on a port beside *other_port*, which it may listen on sooner. Options of the listening socket hold for each connection that it accepts (Linux).
    Granian (2.8.7) has no setting for it, does not expose its socket, and sends no pings over WebSockets: without this
    the sessions of such clients would be kept for ever.
    """
    while listening_port(other_port) is None:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(LISTENING_INTERVAL_S)
    for one in listening():
        with one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_BYTES)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER_BYTES)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LOOK_INTERVAL_S)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LOOKS)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1_000 * (IDLE_S + LOOKS * LOOK_INTERVAL_S))


class _Stop:
    """The stop of a server by signals: the first lets running turns end, the second ends them at once."""

    def __init__(
        self, app: Application, server: Server, serving: asyncio.Task[None], *, drain_timeout_s: float
    ) -> None:
        self._app = app
        self._server = server
        self._serving = serving
        self._drain_timeout_s = drain_timeout_s
        self._stops: list[asyncio.Task[None]] = []

    @property
    def asked_for(self) -> bool:
        """Whether a signal came after the start."""
        return bool(self._stops)

    def on_signal(self) -> None:
        """Stop the server, or break off its start."""
        if not self._app.started:
            self._serving.cancel()
            return
        stop = self._stop(0.0 if self._stops else self._drain_timeout_s)
        self._stops.append(asyncio.get_running_loop().create_task(stop))

    async def wait(self) -> None:
        """Wait until every stop that was asked for has ended."""
        await asyncio.wait(self._stops)

    async def _stop(self, drain_timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_timeout_s
        await self._app.drain(drain_timeout_s)
        self._server.stop()  # type: ignore[no-untyped-call]  # granian has no annotation there
        # Granian (2.8.7) would wait for ever for a client that does not read its answer.
        await asyncio.wait([self._serving], timeout=max(deadline - loop.time(), LINGER_S))
        if not self._serving.done():
            await self._app.close()
            self._serving.cancel()


def _server_of(app: Application, settings: Settings, group: WorkerGroup) -> Server:
    """
    Return Granian's embedded server for *app*.

    It runs in this process and loop: a worker process of its own would cost 25 MB more, and would answer signals before
    running turns are stored.
    """
    files = certificate_of(settings.server)
    open_files = raise_open_files_limit()
    return Server(
        app,
        address=settings.server.host,
        port=settings.server.port,
        interface=Interfaces.ASGI,
        # Without TLS no browser speaks HTTP/2, and one connection of it can hold as much as 32 others.
        http=HTTPModes.auto if files else HTTPModes.http1,
        backlog=2_048,
        backpressure=settings.server.connection_limit
        or connection_limit(open_files, machine_memory_bytes() // group.workers),
        http1_settings=HTTP1Settings(max_buffer_size=HEAD_LIMIT_BYTES),
        http2_settings=HTTP2Settings(
            max_headers_size=HEAD_LIMIT_BYTES,
            max_concurrent_streams=STREAM_LIMIT,
            max_send_buffer_size=STREAM_BUFFER_BYTES,
        ),
        ssl_cert=files.certificate if files else None,
        ssl_key=files.key if files else None,
        ssl_protocol_min=SSLProtocols.tls12,
        log_level=LogLevels.error,
        log_dictconfig={"handlers": {}, "formatters": {}, "loggers": {"_granian": {"propagate": True}}},
    )


def _watch_of(app: Application, settings: Settings) -> ConnectionWatch:
    """Return what looks after the connections that the server below us keeps."""
    return ConnectionWatch(
        lambda: app.open_sockets,
        app.take_stalled,
        address_limit=settings.limits.address_connection_limit,
        messages_limit_bytes=settings.server.messages_limit_bytes,
        unlimited=(*LOOPBACK, *parse_networks(settings.server.trusted_proxies)),
        other_port=settings.wyoming.port,
    )


async def _serve(settings: Settings, group: WorkerGroup, on_ready: Callable[[list[str]], None]) -> int:
    app = create_app(settings, group, on_ready=on_ready)
    server = _server_of(app, settings, group)
    log.set_up(settings.log)
    # Granian would log a failed start with a traceback; it is told below, in one line.
    logging.getLogger("_granian").addFilter(lambda _: app.started)
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve())
    bounding = loop.create_task(bound_connections(settings.wyoming.port))
    watching = loop.create_task(_watch_of(app, settings).run())
    stop = _Stop(app, server, serving, drain_timeout_s=settings.server.drain_timeout_s)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.on_signal)
    try:
        await serving
    except asyncio.CancelledError:
        if not stop.asked_for:
            # The end of this loop cancels the start itself, which closes everything it had opened.
            return INTERRUPTED
    except FatalError:
        if app.failure is None:
            raise
    finally:
        bounding.cancel()
        watching.cancel()
    if app.failure is not None:
        raise app.failure
    if not stop.asked_for:
        raise StartError("the server ended unexpectedly; the log above may say why")
    await stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
