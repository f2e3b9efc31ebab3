"""How soon a server is there, and what it takes of the memory, before and after a million requests."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from perf.compared import CHAT, CONNECTIONS, HEALTH, LIST, why
from perf.load import drive, press, repeat
from perf.processes import Process, core
from perf.report import NO_AIM, Outcome, Row
from perf.stand import FASTAPI, LITELLM, Stand

SOAK_REQUESTS = int(os.environ.get("PERF_SOAK_REQUESTS", "1000000"))
SOAK_PIECE_S = 10.0
SOAK_LIMIT_S = 150.0


def boot(stand: Stand, rounds: int) -> Outcome:
    """Time from the start of the process to /ready over existing data; the peers' to their first answer."""

    def own() -> AbstractContextManager[Process]:
        return core(stand.data, LLM_URL=stand.model_url)

    with own():
        pass  # makes the data directory
    seconds = [_boot_s(own) for _ in range(max(rounds, 3))]
    rows: list[Row] = [
        (
            "boot to ready, existing data, its own PostgreSQL included",
            f"{1_000 * statistics.median(seconds):.0f} ms",
            "< 1,000 ms",
        )
    ]
    for name, start in ((FASTAPI, stand.start_fastapi), (LITELLM, stand.start_litellm)):
        try:
            figure = f"{1_000 * statistics.median([_boot_s(start) for _ in range(min(rounds, 2))]):.0f} ms"
        except RuntimeError as exc:
            figure = f"failed: {why(exc)}"
        rows.append((f"boot of {name} to its first answer, without a database of its own", figure, NO_AIM))
    return Outcome(rows=rows)


def _boot_s(start: Callable[[], AbstractContextManager[Process]]) -> float:
    started = time.perf_counter()
    with start():
        return time.perf_counter() - started


def memory(stand: Stand, _rounds: int) -> Outcome:
    """Memory of the core with its own PostgreSQL when it is idle, and after ``PERF_SOAK_REQUESTS``."""
    stand.set_model()
    with core(stand.data, LLM_URL=stand.model_url) as process:
        time.sleep(2)
        rows = _memory_rows(process, "idle memory", "< 50 MB")
        served = _soak(process)
        time.sleep(2)
        rows += _memory_rows(process, f"memory after {served:,} requests", "< 64 MB")
    return Outcome(rows=rows)


def _memory_rows(process: Process, when: str, wanted: str) -> list[Row]:
    return [
        (f"{when}: the core's process, PSS (RSS)", f"{process.pss_mb():.1f} MB ({process.rss_mb():.1f} MB)", wanted),
        (f"{when}: with its embedded PostgreSQL, PSS", f"{process.all_pss_mb():.1f} MB", NO_AIM),
    ]


def _soak(process: Process) -> int:
    """Make requests, most of them cheap ones; returns how many were answered."""
    served = 0
    for what, count in ((CHAT, SOAK_REQUESTS // 200), (LIST, SOAK_REQUESTS // 50)):
        served += drive(repeat(process.port, what.message(), count=count, connections=CONNECTIONS)).finished
    deadline = time.monotonic() + SOAK_LIMIT_S
    while served < SOAK_REQUESTS and time.monotonic() < deadline:
        served += press(process.port, HEALTH, connections=2 * CONNECTIONS, seconds=SOAK_PIECE_S).finished
    return served


SCENARIOS = (boot, memory)
