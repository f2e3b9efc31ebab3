"""Turns in doubt: the connection broke before it was known whether they were begun. If they were, nobody runs them."""

from __future__ import annotations

import asyncio
import time

from jarvis_core.errors import RequestError
from jarvis_core.store.pool import Pool

END_DOUBTFUL = """
update turns set status = 'failed', reason = 'not_started', error = %s, ended_at = now()
where id = any(%s::uuid[]) and status = 'running' and worker = %s returning id::text
"""
DOUBT_S = 10.0
"""How long a statement may still be under way after its connection broke: the kernel goes on sending what was written."""
DOUBTS_LIMIT = 10_000
"""The first that fail are those in doubt; who comes while the database is away never reached it."""


class UnconfirmedTurns:
    """Those that the worker *worker_id* may have begun; the task that asks for them ends by the pool's own deadline."""

    def __init__(self, pool: Pool, worker_id: str) -> None:
        self._pool = pool
        self._worker_id = worker_id
        self._doubts: dict[str, float] = {}
        """By turn: until when it is open whether it was begun (monotonic)."""
        self.are_new = False
        """Whether the database has not been asked since the last one was added."""
        self._settling: asyncio.Task[RequestError | None] | None = None

    def add(self, turn_id: str, *, open_s: float = DOUBT_S) -> None:
        """Doubt whether a turn was begun, for *open_s* seconds and until the database was asked once."""
        if len(self._doubts) < DOUBTS_LIMIT:
            self._doubts[turn_id] = time.monotonic() + open_s
            self.are_new = True

    async def remove(self, turn_id: str) -> None:
        """Leave a turn to whoever runs it again; waits while doubts are being settled."""
        if turn_id in self._doubts:
            if self._settling is not None:
                await asyncio.wait([self._settling])
            self._doubts.pop(turn_id, None)

    async def settle(self) -> None:
        """
        End as ``failed`` what was begun although its connection broke before it was told so: nobody runs these turns.

        Free of cost while there are none; to be called now and then, as one may be committed late. Raises
        ``Unavailable``.
        """
        if not self._doubts:
            return
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle())
        error = await asyncio.shield(self._settling)
        if error is not None:
            raise error

    async def _settle(self) -> RequestError | None:
        self.are_new = False
        doubts = list(self._doubts)
        try:
            error = "The database was lost when the turn began."
            rows = await self._pool.fetch_all(END_DOUBTFUL, (error, doubts, self._worker_id))
        except RequestError as exc:
            self.are_new = True
            return exc
        finally:
            self._settling = None
        settled = {turn_id for (turn_id,) in rows}
        now = time.monotonic()
        for turn_id in doubts:
            if turn_id in settled or self._doubts.get(turn_id, now) <= now:
                self._doubts.pop(turn_id, None)
        return None
