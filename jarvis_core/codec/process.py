"""What every process of the codec does with its life: little memory, no core file, and one line on a defect."""

from __future__ import annotations

import os
import resource
import sys
import traceback

MEMORY_LIMIT_BYTES = 1 << 30
"""Of address space: 0.2 GiB are taken at the start, 0.4 GiB by ten minutes in 25 MiB of base64 (measured)."""


def limit_process() -> None:
    """Bound what this process may take, for good."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def report(exc: Exception, request: str) -> None:
    """Write one line on a defect: what and where, but not the message, which may hold what somebody said."""
    frames = traceback.extract_tb(exc.__traceback__)
    places = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))  # noqa: PTH119
    sys.stderr.write(f"codec: {type(exc).__name__} on {request} at {places}\n")
    sys.stderr.flush()
