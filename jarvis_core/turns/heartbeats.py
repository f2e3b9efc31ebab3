"""
Which workers live: each says so every second, and ends the turns of those who do not.

A worker is dead when its process is gone from the machine that both are on, or when the database has not heard of it for
``LEASE``. Silence proves little where the database itself was silent: only a worker whose own last beats were all in
time takes others for dead, and one that was taken for dead and lives still stores what its turns come to.
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
"""A beat that takes longer says nothing of the others: theirs may have waited as long."""
STEADY_BEATS = 6
"""In time, one after another, before the silence of others counts: longer than the lease."""
STRAYS_EVERY_BEATS = 30


class Heartbeats:
    """
    One worker's place among all that share the database.

    *alone*: nobody shares it, so whatever was left running is over. *embedded*: only processes of this machine use it.
    """

    def __init__(self, store: HeartbeatStore, *, alone: bool, embedded: bool) -> None:
        self._store = store
        self._alone = alone
        self._embedded = embedded
        self._steady = 0

    async def arrive(self) -> None:
        """Join the others, and end what dead ones left, as far as that is certain at once; raises ``Unavailable``."""
        if not self._alone:
            await self._store.beat()
        # On another machine than ours nobody lives who uses our embedded server; on ours the processes tell.
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
        """Beat for as long as this worker lives; for a task of its own."""
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
        """Take leave of the others; does nothing where the database is away."""
        if not self._alone:
            with contextlib.suppress(RequestError):
                await self._store.leave()
