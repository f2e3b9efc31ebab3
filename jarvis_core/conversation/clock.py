"""The time of a conversation: that of the sound that was heard, and of the clock where no sound comes."""

from __future__ import annotations

SLACK_MS = 500.0
"""How late sound may come before the wait for it counts as a gap: networks deliver in bursts."""


class SessionClock:
    """
    Tells how much time has passed in a conversation, in milliseconds.

    A client that streams its microphone tells the time by its samples, also where it sends a recording faster than it was
    recorded. Where it sends nothing, the time is the clock's.
    """

    def __init__(self, now_ms: float) -> None:
        self._time_ms = 0.0
        self._synced_at_ms = now_ms
        """What the clock showed at that time."""

    def at(self, now_ms: float) -> float:
        """Return the time when the clock shows *now_ms*."""
        return self._time_ms + max(0.0, now_ms - self._synced_at_ms)

    def hear(self, duration_ms: float, now_ms: float) -> None:
        """Count sound of *duration_ms* that arrived when the clock showed *now_ms*."""
        due_at_ms = self._synced_at_ms + duration_ms
        if now_ms - due_at_ms > SLACK_MS:
            self._time_ms, self._synced_at_ms = self.at(now_ms), now_ms
        else:
            self._time_ms += duration_ms
            self._synced_at_ms = min(due_at_ms, now_ms)
