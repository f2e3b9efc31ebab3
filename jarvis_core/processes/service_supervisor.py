"""
Starts again what dies of the services that were started beside the assistant: the database, the local bridges.

A thread does it: a start waits, and the event loop must not. Linux ends a child with the *thread* that forked it
(``child.py``), so this one ends only when it is told to, after which the children are stopped, or with the process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Sequence

from jarvis_core import log
from jarvis_core.errors import StartError
from jarvis_core.processes.child import Child

logger = log.get(__name__)

RESTART_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before a service that died is started again, for each time that it died young or did not start; the last repeats."""
YOUNG_S = 30.0
LOOK_INTERVAL_S = 0.5
"""Between two looks where the kernel does not tell of an end (before Linux 5.3)."""
INTERRUPT_INTERVAL_S = 0.1


class _Place:
    """One service: what is known of its past, and when it is to be started again."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.started_at = time.monotonic()
        self.failures = 0
        """One after another."""
        self.restart_at: float | None = None

    def delay_s(self) -> float:
        """Count a failure, and return how long to wait after it."""
        self.failures += 1
        return RESTART_DELAYS_S[min(self.failures, len(RESTART_DELAYS_S)) - 1]


class ServiceSupervisor:
    """Keeps *children* running, which have been started; who stops them does so after ``stop``."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._stopping = threading.Event()
        self._starting: dict[str, Child] = {}
        """Those whose start is under way."""
        # One each: a database that takes a minute to recover must not keep another service from its start.
        self._threads = [
            threading.Thread(target=self._run, args=(_Place(child),), name=f"supervisor of {child.name}", daemon=True)
            for child in children
        ]
        self._ear, self._mouth = os.pipe2(os.O_CLOEXEC)

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Start nothing any more; returns when no start is under way."""
        self._stopping.set()
        os.close(self._mouth)  # which wakes all
        for thread in self._threads:
            while thread.is_alive():
                for child in list(self._starting.values()):
                    if (process := child.process) is not None:
                        process.send_signal(signal.SIGTERM)  # who waits for it to be ready sees its end
                thread.join(INTERRUPT_INTERVAL_S)
        os.close(self._ear)

    def _run(self, place: _Place) -> None:
        while not self._stopping.is_set():
            try:
                self._check(place)
                self._wait(place)
            except Exception:
                # What was forked here ends with this thread.
                logger.exception("a service was not looked after through a defect", service=place.child.name)
                self._stopping.wait(LOOK_INTERVAL_S)

    def _check(self, place: _Place) -> None:
        now = time.monotonic()
        name = place.child.name
        if place.restart_at is None:
            process = place.child.process
            if process is None or process.poll() is None:
                return
            if now - place.started_at > YOUNG_S:
                place.failures = 0
            delay_s = place.delay_s()
            place.restart_at = now + delay_s
            logger.error("a service died and is started again", service=name, code=process.returncode, delay_s=delay_s)
        if now < place.restart_at or self._stopping.is_set():
            return
        self._starting[name] = place.child
        try:
            place.child.start()
        except StartError as exc:
            delay_s = place.delay_s()
            place.restart_at = time.monotonic() + delay_s
            if not self._stopping.is_set():
                logger.error("a service does not start", service=name, error=str(exc), delay_s=delay_s)  # noqa: TRY400
        else:
            place.restart_at = None
            place.started_at = time.monotonic()
            logger.info("a service runs again", service=name, start_s=round(place.started_at - now, 2))
        finally:
            del self._starting[name]

    def _wait(self, place: _Place) -> None:
        """Wait until there is something to do."""
        limit_s = None if place.restart_at is None else max(0.0, place.restart_at - time.monotonic())
        poll = select.poll()
        poll.register(self._ear, 0)  # its other end is closed
        end = None
        process = place.child.process
        if place.restart_at is None and process is not None:
            try:
                end = os.pidfd_open(process.pid)
            except OSError:
                limit_s = LOOK_INTERVAL_S
            else:
                poll.register(end, select.POLLIN)
        try:
            poll.poll(None if limit_s is None else limit_s * 1_000)
        finally:
            if end is not None:
                os.close(end)
