"""
The parent of several workers: starts them, starts again what dies, and ends all together.

It answers no request and has no event loop: what it needs is signals, its workers' ends, and a line from each. A
worker's control socket carries ``ready`` once it serves, or ``failed`` with the reason for a person; its end comes with
the worker's. The workers are forked from the main thread, whose end would be theirs (``child.py``).
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

logger = log.get(__name__)

RESTART_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Before a worker that died is started again, for each time that it died young; the last repeats."""
READY_DELAY_S = 1.0
"""The longest of them for one that had come to serve."""
YOUNG_S = 30.0
LINGER_S = 5.0
"""How much longer than draining may take the workers have to end before they are killed."""
LINE_LIMIT_BYTES = 16_384
PULSE_INTERVAL_S = 1.0
STILL_LOOKS = 30
"""A worker whose pulse has stood still at so many looks is killed: it would keep clients and serve none."""


Pulse = Callable[[int], float]
"""Gives a number that changes while the worker with that number is alive."""


Spawn = Callable[[int, socket.socket], "subprocess.Popen[bytes]"]
"""Starts the worker with this number, which has its end of the control socket as its own."""


class _Slot:
    """One worker's place: whoever fills it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        self.said = b""
        self.ready = False
        self.failure = ""
        self.started_at = 0.0
        self.deaths = 0
        """One after another of workers that had not lived long."""
        self.restart_at: float | None = None
        self.pulse = 0.0
        self.still_looks = 0

    def poll(self) -> bool:
        """Whether a worker is here that has not ended."""
        return self.process is not None and self.process.poll() is None


class WorkerSupervisor:
    """
    Keeps *workers* processes running until a signal.

    *on_ready* is called once, when all of them serve. *drain_timeout_s* is how long they may take to end. *pulse* tells
    whether one that runs does anything.
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
        """How many signals to stop have come."""
        self._kill_at = float("inf")
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """
        Serve until SIGTERM or SIGINT, the second of which ends all at once; return the exit code.

        Raises ``StartError`` where a worker cannot start; one that had started is started again for as long as it takes.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._selector.close)
            stack.callback(self._kill)
            stack.enter_context(self._signals())
            for slot in self._slots:
                self._start(slot)
            while not (self._stops and not any(slot.poll() for slot in self._slots)):
                self._wait()
                self._check_pulses()
            return 0 if self._announced else 130

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
        slot.ready, slot.said, slot.failure = False, b"", ""
        slot.still_looks = 0
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
            # The signal came before there was anybody to tell.
            slot.process.send_signal(signal.SIGTERM)

    def _wait(self) -> None:
        now = time.monotonic()
        moments = [slot.restart_at for slot in self._slots if slot.restart_at is not None]
        # Nothing is started again after a signal.
        moments = [self._kill_at] if self._stops else [*moments, self._pulse_at]
        for key, _ in self._selector.select(max(0.0, min(moments) - now)):
            if isinstance(key.data, _Slot):
                self._hear(key.data)
            elif isinstance(key.fileobj, socket.socket):
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(4_096)

    def _hear(self, slot: _Slot) -> bool:
        """Take what the worker says; return whether there was anything, and let go of a socket that it has closed."""
        if slot.control is None:
            return False
        try:
            said = slot.control.recv(LINE_LIMIT_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            said = b""
        slot.said = (slot.said + said)[-LINE_LIMIT_BYTES:]
        while b"\n" in slot.said:
            line, _, slot.said = slot.said.partition(b"\n")
            word, _, rest = line.decode(errors="replace").partition(" ")
            slot.ready = slot.ready or word == "ready"
            slot.failure = rest if word == "failed" else slot.failure
        if not said:
            self._let_go(slot)
        return bool(said)

    def _let_go(self, slot: _Slot) -> None:
        if slot.control is not None:
            self._selector.unregister(slot.control)
            slot.control.close()
            slot.control = None

    def _check_pulses(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is not None and not slot.poll():
                self._bury(slot, now)
            if slot.restart_at is not None and now >= slot.restart_at and not self._stops:
                self._start(slot)
        if not self._announced and not self._stops and all(slot.ready for slot in self._slots):
            self._announced = True
            self._on_ready()
        if self._stops and now >= self._kill_at:
            self._kill()
        if not self._stops and now >= self._pulse_at:
            self._pulse_at = now + PULSE_INTERVAL_S
            self._take_pulses()

    def _take_pulses(self) -> None:
        """Kill workers that stand still: the clock alone would not do, as the whole machine may have stood still."""
        for slot in self._slots:
            if not slot.ready or slot.process is None:
                continue
            pulse = self._pulse(slot.number)
            slot.still_looks = slot.still_looks + 1 if pulse == slot.pulse else 0
            slot.pulse = pulse
            if slot.still_looks >= STILL_LOOKS:
                logger.error("a worker stands still and is killed", worker=slot.number)
                slot.still_looks = 0
                slot.process.kill()

    def _bury(self, slot: _Slot, now: float) -> None:
        while self._hear(slot):
            pass
        self._let_go(slot)
        process, slot.process = slot.process, None
        if self._stops or process is None:
            return
        if not self._announced:
            raise StartError(slot.failure or f"a worker ended with {process.returncode}; the log above may say why")
        slot.deaths = 1 if now - slot.started_at > YOUNG_S else slot.deaths + 1
        delay_s = RESTART_DELAYS_S[min(slot.deaths, len(RESTART_DELAYS_S)) - 1]
        if slot.ready:
            # It can start, so the next one serves at least for a while.
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
        """End at once what is left."""
        for slot in self._slots:
            if slot.process is not None:
                if slot.poll():
                    slot.process.kill()
                slot.process.wait()
            self._let_go(slot)
