"""A turn that another worker runs, as this one knows it."""

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
        """Whether its worker has said anything of it."""
        self.told_at = 0.0
        """When anybody, worker or store, last knew something of it."""
        self.needs_store_check = False
        """Whether the store is to be looked into at once."""
        self.left_at = 0.0
        """When the last reader left."""
        self.append(Step.CREATED)

    def extend(self, at: int, text: str) -> bool:
        """Take the text from the code point *at* on; return whether nothing is missing before it."""
        length = len(self.text())
        if at > length:
            return False
        fresh = text[length - at :]
        if fresh:
            self.append(*(() if self.opened else OPENING), fresh)
        return True


class LocalTurns(Protocol):
    """What is needed of those who run turns here."""

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
