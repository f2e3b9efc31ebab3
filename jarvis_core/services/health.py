"""What is known of a neighbour's health."""

from __future__ import annotations

import time
from typing import Literal

from jarvis_core import log

logger = log.get(__name__)


class Health:
    """What real calls and probes have taught about one neighbour."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Literal["healthy", "degraded", "unavailable"] = "healthy"
        """Healthy until something else is learnt: nothing has been seen to fail."""
        self.changed_at = self._seen_at = 0.0
        """When the state became what it is, and when it was last seen to be so (monotonic)."""
        self.changes = 0
        """How often the state has changed."""

    def learn(self, state: Literal["healthy", "degraded", "unavailable"], why: str = "") -> None:
        """Take note of what was just seen; a change is logged once."""
        self._seen_at = time.monotonic()
        if state != self.state:
            self.state = state
            self.changed_at = self._seen_at
            self.changes += 1
            if state == "healthy":
                logger.info("a neighbour is back", neighbour=self.name)
            else:
                logger.warning("a neighbour is not well", neighbour=self.name, state=state, why=why)

    def hear(self, state: Literal["healthy", "degraded", "unavailable"], changed_at: float) -> None:
        """Take note of what another worker of this machine saw at *changed_at*, if that is news here."""
        if state != self.state and changed_at > self._seen_at:
            self.state = state
            self.changed_at = self._seen_at = changed_at
            logger.info("another worker saw a neighbour change", neighbour=self.name, state=state)
