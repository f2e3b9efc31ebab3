"""Fetches a language model for the next start, at leisure, in a process of its own: ``python -m … MODEL DIRECTORY``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.local.weights import resolve

LEISURE = 19
"""What else the machine does comes first,"""
WAIT_S = 120.0
"""and so do the first questions after a start."""


def main() -> int:
    """Fetch the model; return 1 where it cannot be had, which is tried again at the next start."""
    model, directory = sys.argv[1:]
    os.nice(LEISURE)
    time.sleep(WAIT_S)
    try:
        resolve(model, Path(directory))
    except StartError as exc:
        sys.stderr.write(f"jarvis-core: {model} is not at hand for the next start: {exc}\n")
        return 1
    sys.stderr.write(f"jarvis-core: {model} is at hand, and answers from the next start on\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
