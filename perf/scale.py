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
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from perf.load import Request, press
from perf.processes import Process, bridges, core

SHARE_PERCENT = 20
"""Of one core, for each worker: the driver of the load is to have more to give than they can take."""
PERIOD_US = 100_000
"""Of a period of 20 ms a tenth is missing: up to 1 ms stays with the core that the worker's other thread was on."""
ENOUGH = 0.9
"""What of its share a worker has to get for a run to count."""
PAIRS = 3
"""Of runs of one and of two workers, for each round: the same second of a shared machine is as fast for both."""
ATTEMPTS = 4
"""At a run that counts."""
CONNECTIONS = 32
"""Of each worker."""
DB_CONNECTIONS = 20
"""Of each worker: a limit that two share has those of one wait for it more often, which costs a turn a tenth more."""
SECONDS = 2.0
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
    with bridges(shape="ndjson", join_deltas=100) as model, ExitStack() as stack:
        url = f"http://127.0.0.1:{model.port}"
        cores = {
            number: stack.enter_context(
                core(
                    data.with_name(f"{data.name}-{number}"),
                    url,
                    WORKERS=str(number),
                    DB_MAX_CONNECTIONS=str(DB_CONNECTIONS * number),
                )
            )
            for number in (1, 2)
        }
        time.sleep(1.5)  # /ready is one worker's; the others serve by then
        workers = {number: _workers(process, number) for number, process in cores.items()}
        limited = stack.enter_context(_limited([one for each in workers.values() for one in each]))
        for name, message in (("GET /health", HEALTH), ("POST /api/chat", CHAT)):
            for number, process in cores.items():
                _drive(process, message, 1.0, CONNECTIONS * number)
            pairs = []
            left_out: list[list[float]] = []
            for _ in range(rounds * PAIRS):
                runs = [_run(cores[number], message, workers[number], left_out, limited=limited) for number in cores]
                pairs += [(one, two) for one, two in [runs] if one is not None and two is not None]
            rows += _rows(name, pairs, left_out, limited=limited)
    return rows


def _rows(name: str, pairs: list[tuple[Run, Run]], left_out: list[list[float]], *, limited: bool) -> Iterator[Row]:
    what = f"{name}, 2 workers' throughput / 1's, {SHARE_PERCENT} % of a core each"
    if not pairs:
        got = " + ".join(f"{100 * share:.0f} %" for share in left_out[-1])
        yield what, f"not measured: the machine is too busy, they got {got}", "≥ 1.8"
        return
    one, two = (statistics.median(run.rate for run in runs) for runs in zip(*pairs, strict=True))
    costs = [statistics.median(run.cpu_us for run in runs) for runs in zip(*pairs, strict=True)]
    spread = [statistics.median(run.shares[place] for _, run in pairs) for place in (0, 1)]
    if limited:
        ratios = sorted(two.rate / one.rate for one, two in pairs)
        yield (
            what,
            f"{two:.0f}/s / {one:.0f}/s; {statistics.median(ratios):.2f} in the median of {len(pairs)} pairs of runs"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f}; {len(left_out)} runs left out: they did not get that)",
            "≥ 1.8",
        )
    yield (
        f"{name}, CPU per request with 1 and with 2 workers; how 2 share it",
        f"{costs[0]:.0f} µs; {costs[1]:.0f} µs; {' + '.join(f'{100 * share / sum(spread):.0f} %' for share in spread)}",
        "–",
    )


def _run(
    process: Process, message: Request, workers: list[Process], left_out: list[list[float]], *, limited: bool
) -> Run | None:
    """Press once on *workers*; None where they never got their share, in what they got is added to *left_out*."""
    for _ in range(ATTEMPTS):
        before = [one.own_cpu_s() for one in workers]
        finished, seconds = _drive(process, message, SECONDS, CONNECTIONS * len(workers))
        used = [one.own_cpu_s() - start for one, start in zip(workers, before, strict=True)]
        run = Run(finished / seconds, 1e6 * sum(used) / finished, [one / seconds for one in used])
        # On a machine that is busy with others a worker does not get what it may have.
        if not limited or min(run.shares) >= ENOUGH * SHARE_PERCENT / 100:
            return run
        left_out.append(run.shares)
    return None


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
