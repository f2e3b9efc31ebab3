"""Turns that ended here not long ago, kept in memory for readers that come back; older ones are answered from the store."""

from __future__ import annotations

from collections import OrderedDict

from jarvis_core.turns.log import Turn

KEPT_TURNS = 1_000
KEPT_TEXT_CHARS = 8_000_000
"""Code points that the texts of the kept turns may have together."""


class EndedTurns:
    """Keeps the turns that ended last; drops the oldest when they are too many, or their texts too long."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        """The oldest first."""
        self._chars = 0

    def get(self, turn_id: str) -> Turn | None:
        """Return the turn, if it is kept."""
        return self._turns.get(turn_id)

    def add(self, turn: Turn) -> None:
        """Keep *turn*, which has ended."""
        self._turns[turn.id] = turn
        self._chars += len(turn.logged_text())
        while len(self._turns) > KEPT_TURNS or self._chars > KEPT_TEXT_CHARS:
            _, oldest = self._turns.popitem(last=False)
            self._chars -= len(oldest.logged_text())

    def remove(self, turn_id: str) -> None:
        """Drop a turn, if it is kept."""
        turn = self._turns.pop(turn_id, None)
        if turn is not None:
            self._chars -= len(turn.logged_text())

    def remove_conversation(self, owner: str, conversation_id: str) -> None:
        """Drop the turns of one conversation of *owner*."""
        for turn in list(self._turns.values()):
            if turn.conversation_id == conversation_id and turn.caller.user_id == owner:
                self.remove(turn.id)
