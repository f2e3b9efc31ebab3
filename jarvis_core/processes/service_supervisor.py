"""
Restarts the services beside the assistant (the database, the local bridges) when they die.

Each service has a thread, because a start blocks and the event loop must not. Linux ends a child with the *thread* that
forked it (``child.py``), so a thread ends only at ``stop``, after which the children are stopped, or with the process.
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
from jarvis_core.processes.child import Backoff, Child

logger = log.get(__name__)

RESTART_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""
How long to wait before a restart, by the number of failures in a row (a death soon after a start, or a start that
failed); the last repeats.
"""
POLL_INTERVAL_S = 0.5
"""How often a process is polled where the kernel has no pidfd (before Linux 5.3)."""
INTERRUPT_INTERVAL_S = 0.1


class _Service:
    """One service, its failures, and when it is to be restarted."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.started_at = time.monotonic()
        self.backoff = Backoff(RESTART_DELAYS_S)
        self.restart_at: float | None = None


class ServiceSupervisor:
    """Restarts each of *children*, which have been started, when it dies; call ``stop`` before stopping them."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._stopping = threading.Event()
        self._starting: dict[str, Child] = {}
        """Services that are being started, by name."""
        # One thread each: a database that takes a minute to recover must not delay another service's start.
        self._threads = [
            threading.Thread(target=self._run, args=(_Service(child),), name=f"supervisor of {child.name}", daemon=True)
            for child in children
        ]
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC)

    def start(self) -> None:
        """Start the threads that watch the services."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Restart nothing any more; returns when no start is under way."""
        self._stopping.set()
        os.close(self._wake_writer)  # wakes every thread
        for thread in self._threads:
            while thread.is_alive():
                for child in list(self._starting.values()):
                    if (process := child.process) is not None:
                        process.send_signal(signal.SIGTERM)  # the thread that waits for its readiness then sees its end
                thread.join(INTERRUPT_INTERVAL_S)
        os.close(self._wake_reader)

    def _run(self, service: _Service) -> None:
        while not self._stopping.is_set():
            try:
                self._check(service)
                self._wait(service)
            except Exception:
                # Go on: the kernel ends what this thread has forked when the thread ends.
                logger.exception("a service was not looked after through a defect", service=service.child.name)
                self._stopping.wait(POLL_INTERVAL_S)

    def _check(self, service: _Service) -> None:
        now = time.monotonic()
        name = service.child.name
        if service.restart_at is None:
            process = service.child.process
            if process is None or process.poll() is None:
                return
            delay_s = service.backoff.delay_s(now - service.started_at)
            service.restart_at = now + delay_s
            logger.error("a service died and is started again", service=name, code=process.returncode, delay_s=delay_s)
        if now < service.restart_at or self._stopping.is_set():
            return
        self._starting[name] = service.child
        try:
            service.child.start()
        except StartError as exc:
            delay_s = service.backoff.delay_s()
            service.restart_at = time.monotonic() + delay_s
            if not self._stopping.is_set():
                logger.error("a service does not start", service=name, error=str(exc), delay_s=delay_s)  # noqa: TRY400
        else:
            service.restart_at = None
            service.started_at = time.monotonic()
            logger.info("a service runs again", service=name, start_s=round(service.started_at - now, 2))
        finally:
            del self._starting[name]

    def _wait(self, service: _Service) -> None:
        """Wait until the service ends, its restart is due, or ``stop`` is called."""
        limit_s = None if service.restart_at is None else max(0.0, service.restart_at - time.monotonic())
        poll = select.poll()
        poll.register(self._wake_reader, 0)  # its other end is closed
        end = None
        process = service.child.process
        if service.restart_at is None and process is not None:
            try:
                end = os.pidfd_open(process.pid)
            except OSError:
                limit_s = POLL_INTERVAL_S
            else:
                poll.register(end, select.POLLIN)
        try:
            poll.poll(None if limit_s is None else limit_s * 1_000)
        finally:
            if end is not None:
                os.close(end)
