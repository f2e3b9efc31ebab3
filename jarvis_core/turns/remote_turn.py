"""The local copy of a turn that another worker runs."""

from __future__ import annotations

import asyncio
from typing import Protocol

from jarvis_core.models import Caller, Heard, Status, TurnRecord
from jarvis_core.turns.log import OPENING, Step, Turn


class RemoteTurn(Turn):
    """A turn that another worker runs."""

    def __init__(self, caller: Caller, record: TurnRecord, control: RemoteControl) -> None:
        super().__init__(caller, record.conversation_id, record.id, record.user_message_id)
        self._control = control
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

    async def stop(self, status: Status, reason: str, heard: Heard | None = None) -> None:
        """Have its worker stop it."""
        await self._control.stop(self, reason, heard)

    async def note_unread(self) -> None:
        """Have it forgotten, unless somebody reads it again soon."""
        self._control.let_go(self)

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


class RemoteControl(Protocol):
    """Reaches the workers that run remote turns."""

    async def stop(self, remote: RemoteTurn, reason: str, heard: Heard | None) -> None:
        """Ask the turn's worker to stop it; returns when the end is stored."""
        ...

    def let_go(self, remote: RemoteTurn) -> None:
        """Note when the last reader left."""
        ...


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

    async def stop(self, turn: Turn, status: Status = ..., reason: str = ..., heard: Heard | None = ...) -> None:
        """Stop a turn; returns when it has ended."""
        ...
