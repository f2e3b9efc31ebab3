"""
Several workers: how throughput grows with them, and what following a turn on another worker costs.

Where control groups may be made each worker gets the same small share of a core, so that the driver of the load, the
database and the other users of the machine are in nobody's way; elsewhere only CPU per request is told.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from perf.load import Request, press
from perf.processes import Process, bridges, core

SHARE_PERCENT = 20
"""Of one core, for each worker."""
PERIOD_US = 20_000
CONNECTIONS = 32
"""Of each worker."""
SECONDS = 4.0
GROUPS = Path("/sys/fs/cgroup/cpu")
HEALTH = Request("GET", "/health")
CHAT = Request("POST", "/api/chat", json.dumps({"content": "Bonjour Jarvis, qui es-tu ?"}).encode())

Row = tuple[str, str, str]


def scaling(data: Path, rounds: int) -> list[Row]:
    """Throughput of two workers against one's, each on the same share of a core."""
    rows: list[Row] = []
    for name, message in (("GET /health", HEALTH), ("POST /api/chat", CHAT)):
        rates: dict[int, list[float]] = {1: [], 2: []}
        costs: dict[int, list[float]] = {1: [], 2: []}
        spread = ""
        limited = False
        for _ in range(min(rounds, 3)):
            for workers in (1, 2):
                with bridges(shape="ndjson", join_deltas=100) as model:
                    url = f"http://127.0.0.1:{model.port}"
                    with core(data, url, WORKERS=str(workers)) as process:
                        time.sleep(1.5)  # /ready is one worker's; the others serve by then
                        servers = _workers(process, workers)
                        with _limited(servers) as limited:
                            _drive(process, message, 1.0, CONNECTIONS * workers)
                            before = [one.own_cpu_s() for one in servers]
                            finished, seconds = _drive(process, message, SECONDS, CONNECTIONS * workers)
                            used = [one.own_cpu_s() - start for one, start in zip(servers, before, strict=True)]
                        rates[workers].append(finished / seconds)
                        costs[workers].append(1e6 * sum(used) / finished)
                        if workers == 2:
                            spread = " + ".join(f"{100 * one / sum(used):.0f} %" for one in used)
        one, two = (statistics.median(rates[number]) for number in (1, 2))
        if limited:
            rows.append((f"{name}, 2 workers' throughput / 1's, {SHARE_PERCENT} % of a core each",
                         f"{two:.0f}/s / {one:.0f}/s = {two / one:.2f}", "≥ 1.8"))  # fmt: skip
        rows.append((f"{name}, CPU per request with 1 and with 2 workers; how 2 share it",
                     f"{statistics.median(costs[1]):.0f} µs; {statistics.median(costs[2]):.0f} µs; {spread}", "–"))  # fmt: skip
    return rows


def _workers(process: Process, count: int) -> list[Process]:
    if count == 1:
        return [process]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    named = [int(pid) for pid in children if b"jarvis_core.server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [Process(pid, process.port) for pid in named]


def _drive(process: Process, message: Request, seconds: float, connections: int) -> tuple[int, float]:
    """Send *message* for so many seconds; return how often it was answered, and in how long."""
    done = press(process.port, message, connections=connections, seconds=seconds)
    return done.finished, done.seconds


@contextlib.contextmanager
def _limited(processes: list[Process]) -> Iterator[bool]:
    """Give each process its share of a core; False where that cannot be done."""
    groups = []
    try:
        for process in processes:
            group = GROUPS / f"jarvis-perf-{process.pid}"
            group.mkdir()
            groups.append(group)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US * SHARE_PERCENT // 100))
            (group / "cgroup.procs").write_text(str(process.pid))
    except OSError:
        yield False
    else:
        yield True
    finally:
        for group, process in zip(groups, processes, strict=False):
            with contextlib.suppress(OSError):
                (GROUPS / "cgroup.procs").write_text(str(process.pid))
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                group.rmdir()


SCENARIOS = (scaling,)
