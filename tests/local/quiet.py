"""What a stand-in has written to its log."""

from __future__ import annotations

from pathlib import Path

CLOSED = "is closed to other users"
"""The one line of root's stand-ins where root's Python, or the models, are closed to their user."""


def complaints(log_path: Path) -> list[str]:
    """Return the lines of the log, but for the one that says that the stand-in stays root."""
    lines = log_path.read_text().splitlines()
    assert sum(CLOSED in line for line in lines) <= 1
    return [line for line in lines if CLOSED not in line]
