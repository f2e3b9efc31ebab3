"""What the calls of one turn may cost: how many, how long, and how often the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from jarvis_core.settings import Tools

SAME_CALLS_LIMIT = 2
"""The same call with the same arguments is not made more often in one turn."""


class Budget:
    """Counts the calls of one turn; *made* are (name, arguments) of those before, which took *spent_s* seconds."""

    def __init__(self, settings: Tools, made: Iterable[tuple[str, str]], spent_s: float) -> None:
        self._settings = settings
        self._made = 0
        self._same: Counter[tuple[str, bytes]] = Counter()
        self._left_s = settings.timeout_s - spent_s
        self.over = False
        """Whether the model may call nothing more."""
        for name, arguments in made:
            self._count(name, arguments)

    def refuse(self, name: str, arguments: str) -> str | None:
        """Count a call; return why it is not made, where it is not."""
        if self._count(name, arguments) > SAME_CALLS_LIMIT:
            self.over = True
            return "Not called: it was called with these arguments before. Answer with what there is."
        if self._made > self._settings.call_limit:
            self.over = True
            return f"Not called: {self._settings.call_limit} calls were made, and no more may be. Answer with what there is."
        if self._left_s <= 0:
            self.over = True
            return "Not called: the time for tools is over. Answer with what there is."
        return None

    @property
    def left_s(self) -> float:
        """How long calls may take now."""
        return max(self._left_s, 0.0)

    def spend(self, elapsed_s: float) -> None:
        """Take note of how long calls took."""
        self._left_s -= elapsed_s

    def _count(self, name: str, arguments: str) -> int:
        try:
            plain = msgspec.json.encode(msgspec.json.decode(arguments), order="deterministic")
        except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError):
            plain = arguments.encode(errors="replace")
        self._made += 1
        self._same[name, plain] += 1
        return self._same[name, plain]
