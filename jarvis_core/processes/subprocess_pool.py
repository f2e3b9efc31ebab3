"""
Runs codecs and engines in child processes: in this one they would hold up the event loop, or take the server down with
them.

A child answers one request after another over a socket pair. It is started when first needed, replaced when it dies,
and ended when it has been idle for long. A decoder that crashes on a hostile file then harms one request, a decoder
that does not end can be killed, and no other code waits for its global interpreter lock.

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
from functools import partial

from jarvis_core import cancellation, log
from jarvis_core.errors import DeadlineExceeded, Overloaded, RequestError, Unavailable
from jarvis_core.fair_queue import FairQueue, refusal
from jarvis_core.processes.child import end_with_parent
from jarvis_core.processes.environment import for_children
from jarvis_core.shares import Shares, current_user
from jarvis_core.tasks import start_in

logger = log.get(__name__)

PARTS_LIMIT = 1 << 16
RETRY_AFTER_S = 1
LENGTH = struct.Struct("<Q")
PIECE_BYTES = 1 << 18
END_LOOK_INTERVAL_S = 0.01
END_LOOKS = 50
"""A child that is told to end does nothing but end: it is killed after half a second."""

CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""
Signals that a process brings on itself; SIGKILL comes from outside, such as from a kernel that is short of memory.
"""

Part = bytes | bytearray | memoryview
Message = list[bytes]
"""The header and the payloads."""


class SubprocessDied(Unavailable):
    """
    A subprocess ended in the middle of a request, or before it where the request was not *begun*.

    *crashed* tells that one of ``CRASHES`` ended it.
    """

    def __init__(self, *, crashed: bool, begun: bool = True) -> None:
        super().__init__("The process that does this has died.", retry_after_s=1)
        self.crashed = crashed
        self.begun = begun


class _Subprocess:
    """One process of the pool, which answers its requests one after another, those of its users in turn."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process = process
        self.pending = 0
        """Requests that it is answering or that wait for it."""
        self.sessions = 0
        self.idle_timer: asyncio.TimerHandle | None = None
        self.dead = False
        self.current: asyncio.Task[Message] | None = None
        """The request that it is answering; the others can still be cancelled without harm."""
        self._connection = connection
        # The pool bounds what waits.
        self._queue = FairQueue(1, waiting_limit=sys.maxsize)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, message: Sequence[Part], begin: Callable[[], None]) -> Message:
        """
        Wait for this user's turn, call *begin*, send *message* and return the answer; raises ``SubprocessDied``.

        Whoever asks bounds the wait.
        """
        user = current_user.get()
        if not self._queue.take(user):
            await self._queue.wait(user, None)
        try:
            if self.dead:
                raise SubprocessDied(crashed=False, begun=False)
            self.current = asyncio.current_task()
            begin()
            if self._reader is None or self._writer is None:
                self._reader, self._writer = await asyncio.open_connection(sock=self._connection)
            try:
                return await self._exchange(self._reader, self._writer, message)
            except (OSError, EOFError) as exc:
                status = await self.ended()
                self.kill()
                raise SubprocessDied(crashed=-status in CRASHES) from exc
            except BaseException:
                # Half a message is in the socket: no other request can be sent over it.
                self.kill()
                raise
            finally:
                self.current = None
        finally:
            self._queue.give_back(user)

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        message: Sequence[Part],
    ) -> Message:
        head = LENGTH.pack(len(message)) + b"".join(LENGTH.pack(len(part)) for part in message)
        if sum(map(len, message)) <= PIECE_BYTES:
            # A write for each part would wake the process as often.
            writer.write(b"".join((head, *message)))
            await writer.drain()
        else:
            writer.write(head)
            for part in message:
                # In pieces: a write of many megabytes at once would hold the loop.
                for start in range(0, len(part), PIECE_BYTES):
                    writer.write(memoryview(part)[start : start + PIECE_BYTES])
                    await writer.drain()
        (count,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if not 0 < count <= PARTS_LIMIT:
            raise EOFError
        lengths = [size for (size,) in LENGTH.iter_unpack(await reader.readexactly(count * LENGTH.size))]
        return [await reader.readexactly(length) for length in lengths]

    def stay(self) -> None:
        """Cancel the end that the process was to have for being idle."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()

    def kill(self) -> None:
        """End the process now."""
        self.dead = True
        self.process.kill()

    async def ended(self) -> int:
        """Wait for the process to end, kill it when that takes too long, and return its exit status."""
        for _ in range(END_LOOKS):
            if (status := self.process.poll()) is not None:
                return status
            await asyncio.sleep(END_LOOK_INTERVAL_S)
        self.process.kill()
        return await asyncio.to_thread(self.process.wait)

    def close(self) -> None:
        """Close the socket, upon which the process ends by itself."""
        self.dead = True
        self.stay()
        if self._writer is not None:
            self._writer.close()
        else:
            self._connection.close()


class _AnswerTimer:
    """
    Kills *child* when it has not answered *limit_s* seconds after ``start``.

    Runs apart from the caller's own deadline: a caller may leave, and a process that hangs is killed all the same.
    """

    def __init__(self, child: _Subprocess, limit_s: float) -> None:
        self._child = child
        self._limit_s = limit_s
        self._handle: asyncio.TimerHandle | None = None
        self.expired = False

    def start(self) -> None:
        """Count from now on."""
        self._handle = asyncio.get_running_loop().call_later(self._limit_s, self._expire)

    def stop(self) -> None:
        """Count no longer; safe to call before ``start``."""
        if self._handle is not None:
            self._handle.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._child.kill()


class Session:
    """Sends requests that build on one another to the same subprocess; lent by ``SubprocessPool.session``."""

    def __init__(self, pool: SubprocessPool, child: _Subprocess) -> None:
        self._pool = pool
        self._child = child

    async def call(self, header: bytes, payloads: Sequence[Part] = (), *, timeout_s: float) -> Message:
        """
        Ask the session's subprocess as ``SubprocessPool.call`` does; never refused, because the session was admitted.

        Raises ``SubprocessDied`` once that process is gone.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        return await self._pool._call(self._child, [header, *payloads], deadline, timeout_s)


class SubprocessPool:
    """
    Keeps at most *limit* processes that each run ``python -m MODULE ARGUMENTS``, whose ``main`` calls ``serve``.

    Ends a process *idle_s* seconds after its last request; None keeps it. Refuses more than *waiting_limit* requests at
    a time, and more than *session_limit* sessions, each user's share of them bounded as ``Shares`` has it. With *kill_cancelled* a process whose request was cancelled is
    killed; without it the process finishes the request and the answer is thrown away. Use it from one event loop, in
    the main thread: a child ends with the thread that made it.
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
        self._requests = Shares(waiting_limit)
        self._sessions = Shares(session_limit)
        self._kill_cancelled = kill_cancelled
        self._subprocesses: list[_Subprocess] = []
        self._leaving: set[_Subprocess] = set()
        self._reapers: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Task[Message]] = set()
        self._closed = False

    @property
    def running(self) -> int:
        """The number of processes."""
        return len(self._subprocesses)

    @property
    def pending(self) -> int:
        """The number of requests that are being answered or wait."""
        return sum(child.pending for child in self._subprocesses)

    def start(self) -> None:
        """Start a process if there is none, so that the first request need not wait for it."""
        if not self._subprocesses and not self._closed:
            self._rest(self._spawn())

    async def call(self, header: bytes, payloads: Sequence[Part] = (), *, timeout_s: float) -> Message:
        """
        Send *header* with *payloads* to the least busy process; return the answer's header and payloads.

        Waits at most *timeout_s* seconds for its turn, and as long again for the answer. Raises ``DeadlineExceeded``
        (the process is killed), ``SubprocessDied``, ``Overloaded`` when too many wait or its turn did not come in time,
        ``RateLimited`` when too many of this user's do, ``Unavailable`` when no process can be started.
        """
        user = self._admit(self._requests)
        try:
            deadline = asyncio.get_running_loop().time() + timeout_s
            message = [header, *payloads]
            while True:
                try:
                    return await self._call(self._pick(), message, deadline, timeout_s)
                except SubprocessDied as exc:
                    # The process died of an earlier request while this one waited: send it to another process.
                    if exc.begun:
                        raise
        finally:
            self._requests.give_back(user)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """
        Lend one subprocess for several requests that build on one another; other requests may use it in between.

        Raises ``Overloaded`` when there are too many sessions, ``RateLimited`` when too many are this user's,
        ``Unavailable`` when no process can be started.
        """
        user = self._admit(self._sessions)
        try:
            child = self._pick()
            child.sessions += 1
            child.stay()
            try:
                yield Session(self, child)
            finally:
                child.sessions -= 1
                self._rest(child)
        finally:
            self._sessions.give_back(user)

    async def close(self) -> None:
        """End every process; requests that run fail."""
        self._closed = True
        for child in [*self._subprocesses, *self._leaving]:
            child.close()
        for child in [*self._subprocesses, *self._leaving]:
            await self._reap(child)
        self._subprocesses.clear()
        if tasks := self._calls | self._reapers:
            await asyncio.wait(tasks)

    async def _call(self, child: _Subprocess, message: Sequence[Part], deadline: float, work_s: float) -> Message:
        """
        Wait until *deadline* for the process to begin with *message*, and *work_s* seconds from then for its answer.
        """
        limit = cancellation.timeout_at(deadline)
        timer = _AnswerTimer(child, work_s)
        child.stay()
        child.pending += 1
        task = asyncio.get_running_loop().create_task(child.ask(message, timer.start))
        self._calls.add(task)
        task.add_done_callback(partial(self._done, child, timer))
        try:
            while True:
                try:
                    async with limit:
                        return await asyncio.shield(task)
                except TimeoutError as exc:
                    if child.current is not task:
                        task.cancel()
                        raise self._overloaded() from exc
                    # The process has begun with it meanwhile: from here on ``timer`` bounds the wait.
                    limit = cancellation.timeout(None)
        except SubprocessDied as exc:
            if timer.expired:
                raise DeadlineExceeded(f"The {self.name} did not answer within {work_s:g} s.") from exc
            raise
        except asyncio.CancelledError:
            if child.current is not task:
                task.cancel()
            elif self._kill_cancelled:
                child.kill()
            raise

    def _admit(self, shares: Shares) -> str:
        """Have the current user hold one more of *shares*, and return it; raises ``Overloaded`` or ``RateLimited``."""
        user = current_user.get()
        if not shares.take(user):
            raise refusal(f"the {self.name}", RETRY_AFTER_S, greedy=shares.free > 0)
        return user

    def _overloaded(self) -> Overloaded:
        return Overloaded(f"Too many requests wait for the {self.name}.", retry_after_s=RETRY_AFTER_S)

    def _done(self, child: _Subprocess, timer: _AnswerTimer, task: asyncio.Task[Message]) -> None:
        timer.stop()
        self._calls.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, RequestError):
            logger.error("a subprocess' request failed", pool=self.name, error=repr(error))
        child.pending -= 1
        self._rest(child)

    def _pick(self) -> _Subprocess:
        """
        Return the process with the least to do, a new one where all are busy and *limit* allows it; raises
        ``Unavailable``.
        """
        if self._closed:
            raise Unavailable("The server is stopping.", retry_after_s=5)
        for child in [*self._subprocesses]:
            if not child.pending and child.process.poll() is not None:
                # It died, or was killed from outside, while it was idle.
                child.dead = True
                self._rest(child)
        alive = [child for child in self._subprocesses if not child.dead]
        least = min(alive, key=lambda child: child.pending + child.sessions, default=None)
        if least is None or (least.pending + least.sessions and len(alive) < self._limit):
            return self._spawn()
        return least

    def _spawn(self) -> _Subprocess:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(
                    self._command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=for_children(),
                    start_new_session=True,
                )
            ours.setblocking(False)
        except OSError as exc:
            ours.close()
            raise Unavailable(f"The {self.name} cannot be started.", retry_after_s=5) from exc
        child = _Subprocess(process, ours)
        self._subprocesses.append(child)
        return child

    def _rest(self, child: _Subprocess) -> None:
        """Remove *child* where it is dead; arm its idle timer where it has nothing to do."""
        if child not in self._subprocesses:
            return
        if child.dead:
            self._dismiss(child)
        elif self._idle_s is not None and not child.pending and not child.sessions:
            child.stay()
            child.idle_timer = asyncio.get_running_loop().call_later(self._idle_s, self._dismiss, child)

    def _dismiss(self, child: _Subprocess) -> None:
        if child in self._subprocesses:
            self._subprocesses.remove(child)
        if self._closed:
            return
        child.close()
        self._leaving.add(child)
        start_in(self._reapers, self._reap(child))

    async def _reap(self, child: _Subprocess) -> None:
        """Wait until *child*, which was told to end, has ended."""
        await child.ended()
        self._leaving.discard(child)


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
            head = LENGTH.pack(len(answer)) + b"".join(LENGTH.pack(len(part)) for part in answer)
            if sum(map(len, answer)) <= PIECE_BYTES:
                # A write for each part would wake the parent as often.
                connection.sendall(b"".join((head, *answer)))
            else:
                connection.sendall(head)
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
