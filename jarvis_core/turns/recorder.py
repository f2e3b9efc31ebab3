"""
What the store is told of turns: their texts while they grow, and how they ended.

A text is checkpointed at most a second after it came, all turns' together. An end that the database does not take is
tried again for as long as the process lives.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from datetime import UTC, datetime

import msgspec

from jarvis_core import log
from jarvis_core.errors import RequestError
from jarvis_core.models import Finish
from jarvis_core.store.turns import TurnEnd, TurnStore
from jarvis_core.tasks import start_in
from jarvis_core.turns.log import Turn

logger = log.get(__name__)

CHECKPOINT_INTERVAL_S = 1.0
CHECKPOINT_TURNS = 200
"""Turns in one statement."""
STORE_RETRY_DELAYS_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between attempts to store an end; the last repeats for as long as the process lives."""
LATE_ENDS_S = 1.0
"""How long a stop waits at least for ends that could not be stored; the next start ends these turns as they were saved."""
PATIENT_ATTEMPTS = 3
"""After so many failed attempts readers are told that the end could not be stored yet."""
TOKENS_LIMIT = 2**31 - 1
"""What the store's column takes."""


class TurnRecorder:
    """
    Stores what turns say and how they end.

    Owns the checkpoint's task, and one for each end that could not be stored yet; ``close`` ends them.
    """

    def __init__(self, store: TurnStore) -> None:
        self._store = store
        self._unsaved: dict[str, Turn] = {}
        """Running turns with text that no checkpoint has."""
        self._timer: asyncio.TimerHandle | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._late_ends: set[asyncio.Task[None]] = set()

    def note_text(self, turn: Turn) -> None:
        """Have the text of *turn* stored within ``CHECKPOINT_INTERVAL_S``, or a little later where the last one takes long."""
        self._unsaved[turn.id] = turn
        if self._timer is None:
            # In no context: the lines of a checkpoint are of all turns, not of the one whose text comes first.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CHECKPOINT_INTERVAL_S, self._checkpoint, context=Context())

    def forget_text(self, turn: Turn) -> None:
        """Leave the text of *turn* to its end."""
        self._unsaved.pop(turn.id, None)

    async def store_end(self, turn: Turn, end: TurnEnd) -> TurnEnd | None:
        """
        Store how *turn* ended; return the end as it is stored, or None where ``PATIENT_ATTEMPTS`` failed.

        Then it is tried again in the background, and *turn* is corrected once that has succeeded.
        """
        for attempt in range(PATIENT_ATTEMPTS):
            if attempt:
                await asyncio.sleep(STORE_RETRY_DELAYS_S[attempt - 1])
            if (stored := await self._try_end(turn, end)) is not None:
                return stored
        start_in(self._late_ends, self._store_end_later(turn, end))
        return None

    async def close(self, deadline: float) -> None:
        """Wait for the checkpoint, and until *deadline* (of the loop's clock), at least ``LATE_ENDS_S``, for late ends."""
        if self._timer is not None:
            self._timer.cancel()
        if self._checkpointing is not None:
            await asyncio.wait([self._checkpointing])
        if self._late_ends:
            timeout_s = max(deadline - asyncio.get_running_loop().time(), LATE_ENDS_S)
            _, late = await asyncio.wait(self._late_ends, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _checkpoint(self) -> None:
        """Store the text so far of all turns with new text; the next piece of text arms the timer again."""
        loop = asyncio.get_running_loop()
        if self._checkpointing is not None and not self._checkpointing.done():
            # One attempt at a time: the next one has this one's turns too.
            self._timer = loop.call_later(CHECKPOINT_INTERVAL_S, self._checkpoint)
            return
        self._timer = None
        turns, self._unsaved = self._unsaved, {}
        if turns:
            self._checkpointing = loop.create_task(self._store_checkpoints(list(turns.values())))

    async def _store_checkpoints(self, turns: list[Turn]) -> None:
        try:
            for start in range(0, len(turns), CHECKPOINT_TURNS):
                batch = turns[start : start + CHECKPOINT_TURNS]
                await self._store.checkpoint([(turn.id, turn.text(), turn.model) for turn in batch if not turn.ended])
        except RequestError as exc:
            logger.warning("texts so far were not stored", turns=len(turns), error=str(exc))

    async def _store_end_later(self, turn: Turn, end: TurnEnd) -> None:
        attempt = PATIENT_ATTEMPTS - 1
        while True:
            await asyncio.sleep(STORE_RETRY_DELAYS_S[min(attempt, len(STORE_RETRY_DELAYS_S) - 1)])
            attempt += 1
            if (stored := await self._try_end(turn, end)) is not None:
                # Whoever looks at the turn from now on is to see what the history says.
                turn.correct_end(stored)
                logger.info("an end was stored late", reason=end.reason)
                return

    async def _try_end(self, turn: Turn, end: TurnEnd) -> TurnEnd | None:
        try:
            ended_at = await self._store.end(turn.id, end, turn.text(), turn.memories)
        except RequestError as exc:
            logger.warning("the end of a turn was not stored", error=str(exc))
            return None
        return msgspec.structs.replace(end, ended_at=ended_at or datetime.now(UTC))


def storable_tokens(finish: Finish | None, turn: Turn) -> int:
    """Return how many tokens were generated: as the neighbour counted, else one for each piece of its stream, or four bytes."""
    if finish is not None and finish.tokens is not None:
        # Whatever a neighbour counts, it can be stored.
        return min(max(finish.tokens, 0), TOKENS_LIMIT)
    return max(turn.pieces, -(-len(turn.text().encode()) // 4))


def read_tokens(finish: Finish | None) -> int:
    """Return how many tokens the model has read; 0 where its server did not say."""
    return 0 if finish is None else min(max(finish.prompt_tokens, 0), TOKENS_LIMIT)


def storable_text(text: str) -> str:
    """Return *text* without NUL, which PostgreSQL cannot store; nobody says it."""
    return text.replace("\0", "") if "\0" in text else text
