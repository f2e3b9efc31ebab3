"""
Which language model ``LOCAL_LLM_MODEL=auto`` is: the larger one where the machine carries it and it is at hand.

Of forty household questions the larger one answers two thirds acceptably and the smaller one half (``python -m perf household``);
it takes three times the memory, and twice the time for a word.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from jarvis_core.local.catalogue import CATALOGUE
from jarvis_core.local.checksums import is_verified

AUTO = "auto"
SMALL, LARGE = "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"
MEMORY_GB = {SMALL: 0.7, LARGE: 1.9}
"""What each takes, with a context of 4,096 tokens (measured)."""
CORES = 2.0
"""With one, its first word and the voice would wait for one another."""
FREE_BYTES = 4 << 30
"""The model, the engines of speech (0.8 GB), and as much again for whatever else the machine does."""


class Choice(Struct, frozen=True):
    """The model to begin with, and what is said of it."""

    model: str
    remark: str
    fetch_later: str = ""
    """The model to have at hand at the next start; empty where there is no better one for this machine."""


def choose(models: Path, *, cores: float, free_bytes: int) -> Choice:
    """Return the model for a machine with *cores*, and *free_bytes* of memory; looks for files below *models*."""
    cost = f"{MEMORY_GB[LARGE]} GB of memory"
    if cores < CORES or free_bytes < FREE_BYTES:
        return Choice(
            SMALL, f"LOCAL_LLM_MODEL={LARGE} answers better, takes {cost} and more than this machine has to spare"
        )
    large = CATALOGUE[LARGE]
    if is_verified(large.directory(models), large.files[0]):
        return Choice(
            LARGE, f"takes {cost}; LOCAL_LLM_MODEL={SMALL} takes {MEMORY_GB[SMALL]}, is quicker, and answers worse"
        )
    size = f"{large.size_bytes / 1e9:.1f} GB"
    return Choice(SMALL, f"{LARGE}, which answers better, is fetched for the next start: {size}, {cost}", LARGE)


def usable_cores() -> float:
    """Return how many cores this process may use, a container's quota included."""
    cores = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):  # no cgroup v2, or "max": no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, int(quota) / int(period))
    return cores
