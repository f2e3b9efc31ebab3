"""The beginning of an answer whose model's template opens its thinking in the prompt: only the end of thinking is told."""

from __future__ import annotations

from jarvis_core.services.answers.template_marks import LONGEST_CHARS, THINKING_CLOSED, Mark, find_closed, mark_at


class UntoldThinking:
    """Holds back what a model writes until it is known whether it is thinking."""

    __slots__ = ("_chars", "_held", "_tail", "chars", "closed")

    def __init__(self) -> None:
        self.closed = False
        """Whether thinking was closed."""
        self.chars = 0
        """How much of it was thinking."""
        self._held: list[str] = []
        self._chars = 0
        self._tail = ""

    def feed(self, text: str) -> str | None:
        """Return what follows the thinking, or the whole where that is told by itself; None while neither is known."""
        return self._read(text, final=False)

    def end(self, *, cut: bool) -> str:
        """Return what was held back, which is no thinking where the answer has come to its end, and is where that was *cut*."""
        rest = self._read("", final=True)
        if rest is None:
            rest = "" if cut else "".join(self._held)
            self.chars = self._chars if cut else 0
        return rest

    def _read(self, text: str, *, final: bool) -> str | None:
        before, self._chars = self._chars, self._chars + len(text)
        self._held.append(text)
        text = self._tail + text
        self._tail = text[-LONGEST_CHARS:]
        if before < LONGEST_CHARS:
            mark = mark_at("".join(self._held).lstrip())
            if mark is not None and mark[0] is Mark.UNDECIDED and not final:
                return None
            if mark is not None and mark[0] in (Mark.THINKING, Mark.CHANNEL, Mark.HEADER):
                return "".join(self._held)
        found = find_closed(THINKING_CLOSED, text, quoting=True, final=final)
        if found is None:
            return None
        self.closed = True
        self.chars = self._chars - len(text) + found[0]
        return text[found[1] :]
