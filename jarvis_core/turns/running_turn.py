"""A turn that runs on this worker: its task, and whether it may be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jarvis_core.models import Caller, Heard, Status
from jarvis_core.turns.log import Turn
from jarvis_core.turns.receipt import TurnTimer


class RunningTurn(Turn):
    """A turn that runs on this worker, or has ended here."""

    allowed: Sequence[str] = ()
    """The ids of the calls that its client has allowed."""

    def __init__(
        self,
        caller: Caller,
        conversation_id: str,
        turn_id: str,
        user_message_id: str | None,
        *,
        user: str,
        keep_running: bool,
        timer: TurnTimer,
    ) -> None:
        super().__init__(caller, conversation_id, turn_id, user_message_id, timer)
        self.user = user
        """The user in whose share it counts."""
        self.keep_running = keep_running
        """Whether the turn goes on without readers."""
        self.task: asyncio.Task[object] | None = None
        """Produces the turn; None before that begins, and once the turn has ended."""
        self.generating = False
        """Whether the task may be cancelled: the user's message is stored, and the end is not being stored."""
        self.asked_to_act = ""
        """Who was asked to do something and has not told yet whether it did; stored in the place of the model."""
        self.stop_reason: tuple[Status, str] | None = None
        """How the turn is to end; set by the first request to stop it."""
        self.heard: Heard | None = None
        """How much of it was heard, where that is why it stops."""

    async def stop(self, status: Status, reason: str, heard: Heard | None = None) -> None:
        """Cancel the model's stream; the first request decides the reason. Returns once the end is stored."""
        if self.stop_reason is None:
            self.stop_reason, self.heard = (status, reason), heard
            if self.generating and self.task is not None:
                self.task.cancel()
        await self.wait_ended()

    async def note_unread(self) -> None:
        """Cancel the turn, unless it goes on without readers."""
        if not self.ended and not self.keep_running:
            await self.stop(Status.CANCELLED, "client_left")
