"""
Starts several worker processes, restarts those that die, and ends all together.

The supervising process answers no request and has no event loop: it waits for signals, for workers that end, and for a
line from each worker. A worker writes ``ready`` to its control socket once it serves, with lines for the banner and tabs
between them, or ``failed`` and the reason as a sentence; the socket closes when the worker ends. Workers are forked from the main thread, because Linux ends them with
the thread that forked them (``child.py``).
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from types import FrameType

from jarvis_core import log
from jarvis_core.errors import StartError
from jarvis_core.processes.child import Backoff

logger = log.get(__name__)

RESTART_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""
How long to wait before a restart, by the number of deaths in a row soon after a start; the last repeats.
"""
READY_DELAY_S = 1.0
"""The longest of these delays for a worker that had written ``ready``."""
LINGER_S = 5.0
"""How much longer than draining may take the workers have to end before they are killed."""
LINE_LIMIT_BYTES = 16_384
PULSE_INTERVAL_S = 1.0
STILL_CHECKS = 30
"""A worker whose pulse has not changed at so many checks is killed: it holds connections and serves none of them."""


Pulse = Callable[[int], float]
"""Returns, for a worker's number, a value that changes for as long as the worker's event loop runs."""


Spawn = Callable[[int, socket.socket], "subprocess.Popen[bytes]"]
"""Starts the worker with this number, which inherits its end of the control socket."""


class _Slot:
    """One worker by its number: the process that runs as this worker now, and its history."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        self.unread = b""
        self.ready = False
        self.told: list[str] = []
        """What it told when it was ready."""
        self.failure = ""
        self.started_at = 0.0
        self.backoff = Backoff(RESTART_DELAYS_S)
        self.restart_at: float | None = None
        self.pulse = 0.0
        self.still_checks = 0

    def poll(self) -> bool:
        """Return whether the worker's process runs."""
        return self.process is not None and self.process.poll() is None


class WorkerSupervisor:
    """
    Keeps *workers* processes running until a signal.

    Calls *on_ready* once, when all of them serve. Gives them *drain_timeout_s* to end after a signal. Kills a worker
    whose *pulse* stands still.
    """

    def __init__(
        self,
        spawn: Spawn,
        workers: int,
        *,
        drain_timeout_s: float,
        on_ready: Callable[[], None],
        pulse: Pulse = lambda _number: time.monotonic(),
    ) -> None:
        self._spawn = spawn
        self._slots = [_Slot(number) for number in range(workers)]
        self._drain_timeout_s = drain_timeout_s
        self._on_ready = on_ready
        self._pulse = pulse
        self._pulse_at = 0.0
        self._announced = False
        self._stops = 0
        """The number of signals to stop that have come."""
        self._kill_at = float("inf")
        self._selector = selectors.DefaultSelector()

    @property
    def told(self) -> list[str]:
        """Lines of the banner, as the first worker told them when it was ready."""
        return self._slots[0].told

    def run(self) -> int:
        """
        Serve until SIGTERM or SIGINT, the second of which ends all at once; return the exit code.

        Raises ``StartError`` where a worker cannot start at first; once all have served, a worker is restarted without
        limit.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._selector.close)
            stack.callback(self._kill)
            stack.enter_context(self._signals())
            for slot in self._slots:
                self._start(slot)
            while not (self._stops and not any(slot.poll() for slot in self._slots)):
                self._wait()
                self._check_workers()
            # One that served was up, for whoever sent the signal; 130 is the end of a start.
            return 0 if self._announced or any(slot.ready for slot in self._slots) else 130

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals wake the selector."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)

        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stops += 1
            self._kill_at = time.monotonic() + (self._drain_timeout_s if self._stops == 1 else 0.0) + LINGER_S
            for slot in self._slots:
                if slot.process is not None and slot.poll():
                    slot.process.send_signal(signal.SIGTERM)

        numbers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGCHLD: lambda _number, _frame: None}
        before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.unregister(reader)
            reader.close()
            writer.close()

    def _start(self, slot: _Slot) -> None:
        slot.restart_at = None
        slot.ready, slot.unread, slot.failure = False, b"", ""
        slot.still_checks = 0
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                slot.process = self._spawn(slot.number, theirs)
        except (OSError, subprocess.SubprocessError) as exc:
            ours.close()
            if not self._announced:
                raise StartError(f"a worker cannot be started: {exc}") from exc
            logger.error("a worker could not be started", worker=slot.number, error=str(exc))  # noqa: TRY400 - expected
            slot.restart_at = time.monotonic() + RESTART_DELAYS_S[-1]
            return
        slot.started_at = time.monotonic()
        ours.setblocking(False)
        slot.control = ours
        self._selector.register(ours, selectors.EVENT_READ, slot)
        if self._stops:
            # The signal came before this process was there to be sent it.
            slot.process.send_signal(signal.SIGTERM)

    def _wait(self) -> None:
        now = time.monotonic()
        moments = [slot.restart_at for slot in self._slots if slot.restart_at is not None]
        # Nothing is started again after a signal.
        moments = [self._kill_at] if self._stops else [*moments, self._pulse_at]
        for key, _ in self._selector.select(max(0.0, min(moments) - now)):
            if isinstance(key.data, _Slot):
                self._read_control(key.data)
            elif isinstance(key.fileobj, socket.socket):
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(4_096)

    def _read_control(self, slot: _Slot) -> bool:
        """Read the worker's control socket, and close it where the worker has; return whether anything was read."""
        if slot.control is None:
            return False
        try:
            received = slot.control.recv(LINE_LIMIT_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            received = b""
        slot.unread = (slot.unread + received)[-LINE_LIMIT_BYTES:]
        while b"\n" in slot.unread:
            line, _, slot.unread = slot.unread.partition(b"\n")
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "ready":
                slot.ready, slot.told = True, rest.split("\t") if rest else []
            slot.failure = rest if word == "failed" else slot.failure
        if not received:
            self._close_control(slot)
        return bool(received)

    def _close_control(self, slot: _Slot) -> None:
        if slot.control is not None:
            self._selector.unregister(slot.control)
            slot.control.close()
            slot.control = None

    def _check_workers(self) -> None:
        """Restart, announce or kill workers where that is due."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is not None and not slot.poll():
                self._reap(slot, now)
            if slot.restart_at is not None and now >= slot.restart_at and not self._stops:
                self._start(slot)
        if not self._announced and not self._stops and all(slot.ready for slot in self._slots):
            self._announced = True
            self._on_ready()
        if self._stops and now >= self._kill_at:
            self._kill()
        if not self._stops and now >= self._pulse_at:
            self._pulse_at = now + PULSE_INTERVAL_S
            self._check_pulses()

    def _check_pulses(self) -> None:
        """
        Kill workers whose pulse stands still; checks are counted, not seconds, because the whole machine may have been
        suspended.
        """
        for slot in self._slots:
            if not slot.ready or slot.process is None:
                continue
            pulse = self._pulse(slot.number)
            slot.still_checks = slot.still_checks + 1 if pulse == slot.pulse else 0
            slot.pulse = pulse
            if slot.still_checks >= STILL_CHECKS:
                logger.error("a worker stands still and is killed", worker=slot.number)
                slot.still_checks = 0
                slot.process.kill()

    def _reap(self, slot: _Slot, now: float) -> None:
        while self._read_control(slot):
            pass
        self._close_control(slot)
        process, slot.process = slot.process, None
        if self._stops or process is None:
            return
        if not self._announced:
            raise StartError(slot.failure or f"a worker ended with {process.returncode}; the log above may say why")
        delay_s = slot.backoff.delay_s(now - slot.started_at)
        if slot.ready:
            # It could start, so the next process is likely to serve at least for a while.
            delay_s = min(delay_s, READY_DELAY_S)
        slot.restart_at = now + delay_s
        logger.error(
            "a worker died and is started again",
            worker=slot.number,
            code=process.returncode,
            reason=slot.failure or None,
            delay_s=delay_s,
        )

    def _kill(self) -> None:
        """Kill every worker that still runs."""
        for slot in self._slots:
            if slot.process is not None:
                if slot.poll():
                    slot.process.kill()
                slot.process.wait()
            self._close_control(slot)
