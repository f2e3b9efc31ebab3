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
from typing import NamedTuple

from perf.load import Request, press
from perf.processes import Process, bridges, core

SHARE_PERCENT = 20
"""Of one core, for each worker: the driver of the load is to have more to give than they can take."""
PERIOD_US = 20_000
ENOUGH = 0.9
"""What of its share a worker has to get for a run to count."""
ATTEMPTS = 4
"""At a run that counts."""
CONNECTIONS = 32
"""Of each worker."""
SECONDS = 4.0
GROUPS = Path("/sys/fs/cgroup/cpu")
HEALTH = Request("GET", "/health")
CHAT = Request("POST", "/api/chat", json.dumps({"content": "Bonjour Jarvis, qui es-tu ?"}).encode())

Row = tuple[str, str, str]


class Run(NamedTuple):
    """One server under load for some seconds."""

    rate: float
    """Requests a second."""
    cpu_us: float
    """Of the workers together, for each request."""
    shares: list[float]
    """Of a core, for each worker: what it got."""


def scaling(data: Path, rounds: int) -> list[Row]:
    """Throughput of two workers against one's, each on the same share of a core."""
    rows: list[Row] = []
    for name, message in (("GET /health", HEALTH), ("POST /api/chat", CHAT)):
        runs: dict[int, list[Run]] = {1: [], 2: []}
        left_out = 0
        for _ in range(rounds):
            for workers, done in runs.items():
                for _ in range(ATTEMPTS):
                    run, limited = _run(data, message, workers)
                    # On a machine that is busy with others a worker does not get what it may have.
                    if not limited or min(run.shares) >= ENOUGH * SHARE_PERCENT / 100:
                        done.append(run)
                        break
                    left_out += 1
        if not all(runs.values()):
            rows.append((f"{name}, 2 workers' throughput / 1's", "not measured: the machine is too busy", "≥ 1.8"))
            continue
        one, two = (statistics.median(run.rate for run in runs[number]) for number in (1, 2))
        costs = [statistics.median(run.cpu_us for run in runs[number]) for number in (1, 2)]
        spread = " + ".join(f"{100 * share / sum(runs[2][-1].shares):.0f} %" for share in runs[2][-1].shares)
        if limited:
            rows.append((f"{name}, 2 workers' throughput / 1's, {SHARE_PERCENT} % of a core each",
                         f"{two:.0f}/s / {one:.0f}/s = {two / one:.2f} ({left_out} runs left out: they did not get that)",
                         "≥ 1.8"))  # fmt: skip
        rows.append((f"{name}, CPU per request with 1 and with 2 workers; how 2 share it",
                     f"{costs[0]:.0f} µs; {costs[1]:.0f} µs; {spread}", "–"))  # fmt: skip
    return rows


def _run(data: Path, message: Request, workers: int) -> tuple[Run, bool]:
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
    return Run(finished / seconds, 1e6 * sum(used) / finished, [one / seconds for one in used]), limited


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
