"""The local copy of a turn that another worker runs."""

from __future__ import annotations

import asyncio
from typing import Protocol

from jarvis_core.models import Caller, Status, TurnRecord
from jarvis_core.turns.log import OPENING, Step, Turn


class RemoteTurn(Turn):
    """A turn that another worker runs."""

    def __init__(self, caller: Caller, record: TurnRecord) -> None:
        super().__init__(caller, record.conversation_id, record.id, record.user_message_id)
        self.worker_id = record.worker or ""
        self.memories = record.memories
        self.synced = asyncio.Event()
        """Set once its worker has sent anything about it."""
        self.told_at = 0.0
        """When its worker or the store last told of it."""
        self.needs_store_check = False
        """Whether to compare it with the store at the next check."""
        self.left_at = 0.0
        """When the last reader left."""
        self.append(Step.CREATED)

    def extend(self, at: int, text: str) -> bool:
        """
        Append the text that begins at the code point *at*, as far as it is new; return False where text before it is
        missing.
        """
        length = len(self.logged_text())
        if at > length:
            return False
        fresh = text[length - at :]
        if fresh:
            self.append(*(() if self.opened else OPENING), fresh)
        return True


class LocalTurns(Protocol):
    """The turns that run on this worker."""

    def get(self, owner: str, turn_id: str) -> Turn | None:
        """Return a turn that runs here or ended here not long ago."""
        ...

    def attach(self, turn: Turn) -> None:
        """Count a reader in."""
        ...

    async def detach(self, turn: Turn) -> None:
        """Count a reader out."""
        ...

    async def stop(self, turn: Turn, status: Status = ..., reason: str = ...) -> None:
        """Stop a turn; returns when it has ended."""
        ...
