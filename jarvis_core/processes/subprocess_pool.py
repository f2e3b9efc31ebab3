"""
Child processes for what would hold up the event loop, or could take the whole server with it: codecs and engines.

A worker answers one request after another over a socket pair. It is started when first needed, replaced when it dies,
and ended when it has been idle for long. In a process of its own a decoder that crashes on a hostile file harms one
request, one that does not end can be killed, and Python's global lock is nobody else's.

A message is ``<count of parts><length of each>`` (unsigned 64-bit, little-endian), then the parts; the first is the
header, in whatever form the two sides agree on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from jarvis_core import cancellation, log
from jarvis_core.errors import DeadlineExceeded, Overloaded, RequestError, Unavailable
from jarvis_core.processes.child import end_with_parent

logger = log.get(__name__)

PARTS_LIMIT = 1 << 16
LENGTH = struct.Struct("<Q")
END_LOOK_INTERVAL_S = 0.01
END_LOOKS = 50
"""A worker that is told to end does nothing but end: it is killed after half a second."""

CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""What a process does to itself; SIGKILL comes from remote_turns: the system's memory is short, or somebody has a reason."""

Part = bytes | bytearray | memoryview
Message = list[bytes]
"""The header and the payloads."""


class WorkerDied(Unavailable):
    """
    The process ended in the middle of a request, or, when that was not *begun*, before it.

    *crashed* says that a signal ended it, not its own defect.
    """

    def __init__(self, *, crashed: bool, begun: bool = True) -> None:
        super().__init__("The process that does this has died.", retry_after_s=1)
        self.crashed = crashed
        self.begun = begun


class _Subprocess:
    """One process; its requests wait for one another."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process = process
        self.pending = 0
        """Requests that it answers or that wait for it."""
        self.sessions = 0
        self.idle_timer: asyncio.TimerHandle | None = None
        self.dead = False
        self.current: asyncio.Task[Message] | None = None
        """Of the requests the one that it answers now; the others can still be taken back."""
        self._connection = connection
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, message: Sequence[Part], begin: Callable[[], None]) -> Message:
        """Send *message* once its turn has come, which *begin* is told, and return the answer; raises ``WorkerDied``."""
        async with self._lock:
            if self.dead:
                raise WorkerDied(crashed=False, begun=False)
            self.current = asyncio.current_task()
            begin()
            if self._reader is None or self._writer is None:
                self._reader, self._writer = await asyncio.open_connection(sock=self._connection)
            try:
                return await self._exchange(self._reader, self._writer, message)
            except (OSError, EOFError) as exc:
                status = await self.ended()
                self.kill()
                raise WorkerDied(crashed=-status in CRASHES) from exc
            except BaseException:
                # In the middle of a message nobody else can follow.
                self.kill()
                raise
            finally:
                self.current = None

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        message: Sequence[Part],
    ) -> Message:
        writer.write(LENGTH.pack(len(message)) + b"".join(LENGTH.pack(len(part)) for part in message))
        for part in message:
            # In pieces: a write of many megabytes at once would hold the loop.
            for start in range(0, len(part), 1 << 18):
                writer.write(memoryview(part)[start : start + (1 << 18)])
                await writer.drain()
        (count,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if not 0 < count <= PARTS_LIMIT:
            raise EOFError
        lengths = [size for (size,) in LENGTH.iter_unpack(await reader.readexactly(count * LENGTH.size))]
        return [await reader.readexactly(length) for length in lengths]

    def stay(self) -> None:
        """Do not end for having been idle: there is something to do."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()

    def kill(self) -> None:
        """End the process now."""
        self.dead = True
        self.process.kill()

    async def ended(self) -> int:
        """Wait for the end of a process that was told to end, and kill it when it does not; return its exit status."""
        for _ in range(END_LOOKS):
            if (status := self.process.poll()) is not None:
                return status
            await asyncio.sleep(END_LOOK_INTERVAL_S)
        self.process.kill()
        return await asyncio.to_thread(self.process.wait)

    def close(self) -> None:
        """Take leave of the process: it ends when it sees its socket closed."""
        self.dead = True
        self.stay()
        if self._writer is not None:
            self._writer.close()
        else:
            self._connection.close()


class Session:
    """One worker for requests that build on one another; lent by ``SubprocessPool.session``."""

    def __init__(self, workers: SubprocessPool, worker: _Subprocess) -> None:
        self._workers = workers
        self._worker = worker

    async def call(self, header: bytes, payloads: Sequence[Part] = (), *, timeout_s: float) -> Message:
        """
        As ``SubprocessPool.call``, but always of the same worker, and never refused: it was let in with the session.

        Raises ``WorkerDied`` once that worker is gone.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        return await self._workers._call(self._worker, [header, *payloads], deadline, timeout_s)


class SubprocessPool:
    """
    A pool of at most *limit* processes that each run ``python -m MODULE ARGUMENTS``, whose ``main`` calls ``serve``.

    *idle_s* seconds after its last request a process is ended; None keeps it. More than *waiting_limit* requests at a
    time, and more than *session_limit* sessions, are refused. With *kill_cancelled* a process whose request was cancelled is killed, so that it does not work on
    for nobody; otherwise it finishes, and the answer is thrown away. Use it from one event loop, in the main thread: a
    child ends with the thread that made it.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        limit: int = 1,
        idle_s: float | None = None,
        waiting_limit: int = 64,
        session_limit: int = 128,
        kill_cancelled: bool = False,
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, "--parent", str(os.getpid()), *arguments]
        self._limit = limit
        self._idle_s = idle_s
        self._waiting_limit = waiting_limit
        self._session_limit = session_limit
        self._kill_cancelled = kill_cancelled
        self._workers: list[_Subprocess] = []
        self._leaving: set[_Subprocess] = set()
        self._reapers: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Task[Message]] = set()
        self._closed = False

    @property
    def running(self) -> int:
        """How many processes there are."""
        return len(self._workers)

    @property
    def pending(self) -> int:
        """How many requests are being answered or wait."""
        return sum(worker.pending for worker in self._workers)

    def start(self) -> None:
        """Start a process if there is none, so that the first request need not wait for it."""
        if not self._workers and not self._closed:
            self._rest(self._spawn())

    async def call(self, header: bytes, payloads: Sequence[Part] = (), *, timeout_s: float) -> Message:
        """
        Have a worker answer *header* with *payloads*; return the answer's header and payloads.

        Waits at most *timeout_s* seconds for its turn, and as long again for the answer. Raises ``DeadlineExceeded``
        (the process is killed), ``WorkerDied``, ``Overloaded`` when too many wait or its turn did not come in time,
        ``Unavailable`` when no process can be started.
        """
        if self.pending >= self._waiting_limit:
            raise self._overloaded()
        deadline = asyncio.get_running_loop().time() + timeout_s
        message = [header, *payloads]
        while True:
            try:
                return await self._call(self._pick(), message, deadline, timeout_s)
            except WorkerDied as exc:
                # What the process died of was another request, behind which this one waited.
                if exc.begun:
                    raise

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """
        Lend one worker for several requests that build on one another; others may use it in between.

        Raises ``Overloaded`` when there are too many sessions, ``Unavailable`` when no process can be started.
        """
        if sum(worker.sessions for worker in self._workers) >= self._session_limit:
            raise self._overloaded()
        worker = self._pick()
        worker.sessions += 1
        worker.stay()
        try:
            yield Session(self, worker)
        finally:
            worker.sessions -= 1
            self._rest(worker)

    async def close(self) -> None:
        """End every process; requests that run fail."""
        self._closed = True
        for worker in [*self._workers, *self._leaving]:
            worker.close()
        for worker in [*self._workers, *self._leaving]:
            await self._reap(worker)
        self._workers.clear()
        if tasks := self._calls | self._reapers:
            await asyncio.wait(tasks)

    async def _call(self, worker: _Subprocess, message: Sequence[Part], deadline: float, work_s: float) -> Message:
        """Wait until *deadline* for the worker's turn, and *work_s* seconds from then for its answer."""
        loop = asyncio.get_running_loop()
        limit = cancellation.timeout_at(deadline)
        expiry: asyncio.TimerHandle | None = None
        expired = False

        def begin() -> None:
            # A timer of its own: whoever waits may have left, but no process is to hang for ever.
            nonlocal expiry
            expiry = loop.call_later(work_s, expire)

        def expire() -> None:
            nonlocal expired
            expired = True
            worker.kill()

        worker.stay()
        worker.pending += 1
        task = loop.create_task(worker.ask(message, begin))
        self._calls.add(task)

        def done(_: asyncio.Task[Message]) -> None:
            if expiry is not None:
                expiry.cancel()
            self._done(worker, task)

        task.add_done_callback(done)
        try:
            while True:
                try:
                    async with limit:
                        return await asyncio.shield(task)
                except TimeoutError as exc:
                    if worker.current is not task:
                        task.cancel()
                        raise self._overloaded() from exc
                    # Its turn has come meanwhile: from here on its own time counts.
                    limit = cancellation.timeout(None)
        except WorkerDied as exc:
            if expired:
                raise DeadlineExceeded(f"The {self.name} did not answer within {work_s:g} s.") from exc
            raise
        except asyncio.CancelledError:
            if worker.current is not task:
                task.cancel()
            elif self._kill_cancelled:
                worker.kill()
            raise

    def _overloaded(self) -> Overloaded:
        return Overloaded(f"Too many requests wait for the {self.name}.", retry_after_s=1)

    def _done(self, worker: _Subprocess, task: asyncio.Task[Message]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, RequestError):
            logger.error("a worker's request failed", worker=self.name, error=repr(error))
        worker.pending -= 1
        self._rest(worker)

    def _pick(self) -> _Subprocess:
        """Return the worker with the least to do, a new one while that is allowed; raises ``Unavailable``."""
        if self._closed:
            raise Unavailable("The server is stopping.", retry_after_s=5)
        for worker in [*self._workers]:
            if not worker.pending and worker.process.poll() is not None:
                # It died, or somebody killed it, while it had nothing to do.
                worker.dead = True
                self._rest(worker)
        alive = [worker for worker in self._workers if not worker.dead]
        least = min(alive, key=lambda worker: worker.pending + worker.sessions, default=None)
        if least is None or (least.pending + least.sessions and len(alive) < self._limit):
            return self._spawn()
        return least

    def _spawn(self) -> _Subprocess:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(
                    self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
                )
            ours.setblocking(False)
        except OSError as exc:
            ours.close()
            raise Unavailable(f"The {self.name} cannot be started.", retry_after_s=5) from exc
        worker = _Subprocess(process, ours)
        self._workers.append(worker)
        return worker

    def _rest(self, worker: _Subprocess) -> None:
        """See what becomes of a worker that has done something: dead ones are buried, idle ones may go."""
        if worker not in self._workers:
            return
        if worker.dead:
            self._dismiss(worker)
        elif self._idle_s is not None and not worker.pending and not worker.sessions:
            worker.stay()
            worker.idle_timer = asyncio.get_running_loop().call_later(self._idle_s, self._dismiss, worker)

    def _dismiss(self, worker: _Subprocess) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        if self._closed:
            return
        worker.close()
        self._leaving.add(worker)
        task = asyncio.get_running_loop().create_task(self._reap(worker))
        self._reapers.add(task)
        task.add_done_callback(self._reapers.discard)

    async def _reap(self, worker: _Subprocess) -> None:
        """Wait for the end of a process that was told to end."""
        await worker.ended()
        self._leaving.discard(worker)


Handle = Callable[[Message], Sequence[Part]]


def serve(handle: Handle, parent_pid: int) -> None:
    """
    Answer requests with *handle* until the parent goes away; the child's side.

    A handler that raises ends the process, which its parent takes for a death: errors that are answers are its own.
    """
    end_with_parent(parent_pid, signal.SIGKILL)
    # Ctrl-C and a supervisor's SIGTERM to the whole group are the parent's business: it takes leave by closing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as connection, contextlib.suppress(EOFError, ConnectionError):
        connection.setblocking(True)
        while True:
            (count,) = LENGTH.unpack(_read(connection, LENGTH.size))
            lengths = [size for (size,) in LENGTH.iter_unpack(_read(connection, count * LENGTH.size))]
            answer = handle([_read(connection, length) for length in lengths])
            connection.sendall(LENGTH.pack(len(answer)) + b"".join(LENGTH.pack(len(part)) for part in answer))
            for part in answer:
                connection.sendall(part)
            del answer


def _read(connection: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(buffer)
