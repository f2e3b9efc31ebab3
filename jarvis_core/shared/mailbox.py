"""Mail from one worker to another. It may be lost: a worker that misses an answer asks again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

SharingState = Literal["disabled", "healthy", "unavailable"]
"""Whether workers can share anything now; ``disabled`` where there is no Redis."""
OnMail = Callable[[str, bytes], None]
"""Called with each message: (sender's worker id, content)."""

MAILBOX_TTL_S = 30
"""A mailbox expires when its owner has not renewed it for so long; mail to it is refused then."""


class Mailbox(Protocol):
    """One worker's mailbox, and the way to those of the others."""

    state: SharingState

    def post(self, worker_id: str, message: bytes) -> bool:
        """Send *message* to another worker; return whether there is room for it."""
        ...

    def on_mail(self, receive: OnMail, lost: Callable[[str], None]) -> None:
        """Call *receive* with each message, and *lost* with the id of a worker whose mailbox is gone."""
        ...


class NoMailbox:
    """Takes mail and delivers none: there is no way to another worker."""

    state: SharingState = "disabled"

    def post(self, worker_id: str, message: bytes) -> bool:
        """Drop *message*."""
        return True

    def on_mail(self, receive: OnMail, lost: Callable[[str], None]) -> None:
        """Do nothing: there is no mail."""
