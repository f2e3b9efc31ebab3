"""
Tells the database every second that this worker lives, and ends the turns of workers that died.

A worker is dead when its process is gone from this machine, or when the database has had no beat of it for ``LEASE``. A
missing beat proves little while the database itself is slow: a worker declares others dead only while its own last beats
were all in time. A worker that was wrongly declared dead still stores its turns' ends.
"""

from __future__ import annotations

import asyncio
import contextlib

from jarvis_core import log
from jarvis_core.errors import RequestError
from jarvis_core.processes.child import lives
from jarvis_core.store.heartbeats import HeartbeatStore

logger = log.get(__name__)

BEAT_INTERVAL_S = 1.0
SLOW_BEAT_S = 0.5
"""Counts a beat as late that takes longer: the other workers' beats may have waited as long."""
STEADY_BEATS = 6
"""Requires so many beats in time, in a row, before another worker's silence counts: longer than the lease."""
STRAYS_EVERY_BEATS = 30


class Heartbeats:
    """
    Keeps one worker on the list of those that share the database, and reaps the dead ones.

    *alone*: no other worker uses the database, so every turn that is still running is over. *embedded*: only processes of
    this machine use the database.
    """

    def __init__(self, store: HeartbeatStore, *, alone: bool, embedded: bool) -> None:
        self._store = store
        self._alone = alone
        self._embedded = embedded
        self._steady = 0

    async def arrive(self) -> None:
        """Join the other workers, and end the turns of certainly dead ones; raises ``Unavailable``."""
        if not self._alone:
            await self._store.beat()
        # No worker of another machine can use our embedded server; for this machine the process table tells.
        dead = [
            other.id
            for other in await self._store.fetch_others()
            if (self._embedded if other.pid is None else not lives(other.pid, other.started))
        ]
        closed = await self._store.reap(dead) if dead else 0
        closed += await self._store.close_strays(at_once=self._embedded)
        if closed:
            logger.warning("turns that the last run left were closed as incomplete", turns=closed)

    async def keep(self) -> None:
        """Beat until cancelled; run it as a task."""
        if self._alone:
            return
        loop = asyncio.get_running_loop()
        beats = 0
        due = loop.time()
        while True:
            due = max(due + BEAT_INTERVAL_S, loop.time())
            await asyncio.sleep(due - loop.time())
            beats += 1
            began = loop.time()
            try:
                seen_at, others = await self._store.beat()
                in_time = began - due < SLOW_BEAT_S and loop.time() - began < SLOW_BEAT_S
                self._steady = self._steady + 1 if in_time else 0
                gone = [other.id for other in others if other.pid is not None and not lives(other.pid, other.started)]
                closed = await self._store.reap(gone) if gone else 0
                if self._steady >= STEADY_BEATS:
                    late = [other.id for other in others if other.late and other.id not in gone]
                    closed += await self._store.reap(late, seen_at) if late else 0
                    if beats % STRAYS_EVERY_BEATS == 0:
                        closed += await self._store.close_strays()
                if closed:
                    logger.warning("turns of workers that died were closed as incomplete", turns=closed)
            except RequestError:
                self._steady = 0

    async def leave(self) -> None:
        """Take this worker off the list; does nothing while the database is away."""
        if not self._alone:
            with contextlib.suppress(RequestError):
                await self._store.leave()
