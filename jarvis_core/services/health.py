"""Tracks a neighbour's health."""

from __future__ import annotations

import time

from jarvis_core import log
from jarvis_core.models import HealthState

logger = log.get(__name__)


class Health:
    """The health of one neighbour, as real calls and probes have shown it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: HealthState = "healthy"
        """Healthy until a call or probe shows otherwise."""
        self.changed_at = self._seen_at = 0.0
        """When the state last changed, and when it was last confirmed (monotonic)."""
        self.changes = 0
        """How often the state has changed."""

    def learn(self, state: HealthState, why: str = "") -> None:
        """Set *state* as a call or probe just showed it; logs a change once."""
        self._seen_at = time.monotonic()
        if state != self.state:
            self.state = state
            self.changed_at = self._seen_at
            self.changes += 1
            if state == "healthy":
                logger.info("a neighbour is back", neighbour=self.name)
            else:
                logger.warning("a neighbour is not well", neighbour=self.name, state=state, why=why)

    def hear(self, state: HealthState, changed_at: float) -> None:
        """Set *state* as another worker of this machine saw it at *changed_at*, unless this one has seen it later."""
        if state != self.state and changed_at > self._seen_at:
            self.state = state
            self.changed_at = self._seen_at = changed_at
            logger.info("another worker saw a neighbour change", neighbour=self.name, state=state)
