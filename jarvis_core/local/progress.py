"""How far a fetch of weights has come, and how a person is shown it."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

REDRAW_INTERVAL_S = 0.1


class Progress(Protocol):
    """Hears of a fetch: which model, how many bytes there are, how many there will be."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int, /) -> None: ...


def quietly(name: str, done_bytes: int, total_bytes: int, /) -> None:
    """Ignore the progress."""


class ProgressPrinter:
    """
    Shows a fetch to a person: one line that is rewritten on a terminal, elsewhere a line for each tenth.

    Close it before anything else is written.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began: tuple[float, int] | None = None
        self._shown_s = 0.0
        self._shown_tenth = -1
        self._line_is_open = False

    def __call__(self, name: str, done_bytes: int, total_bytes: int, /) -> None:
        """Show that there are *done_bytes* of *total_bytes*."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, done_bytes
        began_s, began_bytes = self._began
        tenth = 10 * done_bytes // total_bytes
        complete = done_bytes >= total_bytes
        if self._terminal:
            if now - self._shown_s < REDRAW_INTERVAL_S and not complete:
                return
        elif tenth == self._shown_tenth:
            return
        self._shown_s, self._shown_tenth = now, tenth
        rate = (done_bytes - began_bytes) / 1e6 / max(now - began_s, 0.001)
        line = (
            f"{name}: {100 * done_bytes // total_bytes} %, {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB,"
            f" {rate:.1f} MB/s"
        )
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._line_is_open = self._terminal
        if complete:
            self.close()
        self._stream.flush()

    def close(self) -> None:
        """End the line that is being rewritten, if there is one."""
        if self._line_is_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_is_open = False
