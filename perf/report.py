"""What was measured, as tables: against the aims, and against the peers."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from perf.load import Latencies, wrk_version
from perf.processes import ROOT
from perf.stand import BASE, BASE_BUILD, CORE, GATEWAY_PYTHON, PEERS_PYTHON

Row = tuple[str, str, str]
"""What, measured, aim."""

NO_AIM = "–"
OURS = ("granian", "starlette", "msgspec", "uvloop", "psycopg", "aiohttp")
PEERS = ("fastapi", "uvicorn", "pydantic", "sqlalchemy", "asyncpg", "httpx")
GATEWAY = ("litellm",)


class Sample(NamedTuple):
    """One run against one server."""

    cpu_us: float
    """Of the server for each unit."""
    postgres_us: float
    """Of PostgreSQL for each unit; 0 where the server has none."""
    latencies: Latencies
    pss_mb: float


class Comparison:
    """Servers that did the same work in turn."""

    def __init__(self, title: str, unit: str, rounds: Sequence[dict[str, Sample]], failures: dict[str, str]) -> None:
        self.title = title
        self.unit = unit
        self._samples: dict[str, list[Sample]] = {}
        for samples in rounds:
            for name, sample in samples.items():
                self._samples.setdefault(name, []).append(sample)
        self._rounds = rounds
        self.failures = failures

    def cpu_us(self, name: str) -> float:
        """Return the median CPU for each unit; raises ``RuntimeError`` where the server was not measured."""
        return statistics.median(sample.cpu_us for sample in self.samples(name))

    def samples(self, name: str) -> list[Sample]:
        """Return the runs of one server; raises ``RuntimeError`` where it was not measured."""
        if name not in self._samples:
            raise RuntimeError(f"{name} was not measured: {self.failures.get(name, 'no run was whole')}")
        return self._samples[name]

    def ratio(self, name: str, to: str = CORE) -> float:
        """Return the median of the rounds' ratios of CPU; raises ``RuntimeError`` where there is no such round."""
        ratios = [one[name].cpu_us / one[to].cpu_us for one in self._rounds if name in one and to in one]
        if not ratios:
            self.samples(name)
            self.samples(to)
        return statistics.median(ratios)

    def lines(self) -> list[str]:
        """Return it as a table in Markdown."""
        lines = [
            f"### {self.title}",
            "",
            f"| server | CPU µs/{self.unit} | × {CORE} | PostgreSQL µs | requests/s | p50 ms | p99 ms | p99.9 ms | PSS MB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [self._line(name) for name in self._samples]
        lines += [f"| {name} | failed: {why} | | | | | | | |" for name, why in self.failures.items()]
        return [*lines, "", *self._against_base()]

    def _against_base(self) -> list[str]:
        """Return what the core's CPU is of the earlier build's, in each round and in the median."""
        ratios = [one[CORE].cpu_us / one[BASE].cpu_us for one in self._rounds if CORE in one and BASE in one]
        if not ratios:
            return []
        told = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        return [f"CPU {statistics.median(ratios):.3f} × that of `{BASE_BUILD}` (rounds: {told}).", ""]

    def _line(self, name: str) -> str:
        samples = self._samples[name]

        def median(values: Sequence[float]) -> float:
            return statistics.median(values)

        latencies = [sample.latencies for sample in samples]
        try:
            ratio = f"{self.ratio(name):.2f}"
        except RuntimeError:
            ratio = ""
        postgres_us = median([sample.postgres_us for sample in samples])
        figures = (
            f"{median([sample.cpu_us for sample in samples]):,.1f}",
            ratio,
            f"{postgres_us:,.0f}" if postgres_us else "",
            f"{median([one.finished / one.seconds for one in latencies]):,.0f}",
            f"{median([one.p50 for one in latencies]):,.2f}",
            f"{median([one.p99 for one in latencies]):,.2f}",
            f"{median([one.p999 for one in latencies]):,.2f}",
            f"{median([sample.pss_mb for sample in samples]):.0f}",
        )
        failed = sum(one.failed for one in latencies)
        note = f" ({failed} of its requests failed)" if failed else ""
        return f"| {name}{note} | {' | '.join(figures)} |"


class Outcome(NamedTuple):
    """Of a scenario."""

    comparisons: Sequence[Comparison] = ()
    rows: Sequence[Row] = ()


def table(rows: Sequence[Row]) -> list[str]:
    """Return *rows* as a table in Markdown."""
    return ["| what | measured | aim |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def write_results(outcomes: Sequence[Outcome], *, rounds: int, seconds: float, took_s: float, postgres: str) -> Path:
    """Write perf/RESULTS.md and return its path."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    lines = [
        "# Results",
        "",
        f"`{f'PERF_BASE={BASE_BUILD} ' if BASE_BUILD else ''}PERF_ROUNDS={rounds} PERF_SECONDS={seconds:g} make perf` on {time.strftime('%Y-%m-%d')}, in {took_s / 60:.0f} minutes, "
        f"at commit {commit()}.",
        "",
        *machine(postgres),
        "",
        "CPU is what the kernel charged to the server's threads for each request; PostgreSQL's is its own column. The",
        "servers were asked in turn, round after round, and the median counts; a ratio is the median of the rounds' ratios.",
        f"Load and server share the {os.cpu_count()} cores, so requests/s are no server's limit on cores of its own.",
        "",
        "## Against the aims",
        "",
        *table([row for row in rows if row[2] != NO_AIM]),
        "",
        "## Against the peers",
        "",
        *(line for outcome in outcomes for comparison in outcome.comparisons for line in comparison.lines()),
        "## More",
        "",
        *table([row for row in rows if row[2] == NO_AIM]),
        "",
    ]
    path = Path(__file__).with_name("RESULTS.md")
    path.write_text("\n".join(lines))
    return path


def machine(postgres: str) -> list[str]:
    """Return what it was measured on."""
    memory_kb = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    load = os.getloadavg()
    return [
        f"- {os.cpu_count()} cores ({model[0] if model else 'unknown'}), {memory_kb / 1e6:.0f} GB, "
        f"{platform.system()} {platform.release()}; load averages at the end {', '.join(f'{one:.1f}' for one in load)}",
        f"- Python {platform.python_version()}, PostgreSQL {postgres or 'not started'}, "
        f"load by {'wrk ' + wrk_version() if wrk_version() else 'our own driver (wrk is not installed)'}",
        f"- core: {versions(ROOT / '.venv' / 'bin' / 'python', OURS)}",
        f"- peer: {versions(PEERS_PYTHON, PEERS)}; gateway: {versions(GATEWAY_PYTHON, GATEWAY)}",
    ]


def versions(python: Path, packages: Sequence[str]) -> str:
    """Return the versions of *packages* in the environment of *python*."""
    script = (
        "import importlib.metadata as m, sys\nprint(', '.join(f'{name} {m.version(name)}' for name in sys.argv[1:]))"
    )
    try:
        told = subprocess.run(
            [python, "-c", script, *packages], capture_output=True, text=True, check=True, timeout=30, cwd="/"
        )
    except (OSError, subprocess.SubprocessError):
        return "not installed"
    return told.stdout.strip()


def commit() -> str:
    """Return the commit that is checked out, with a mark where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    return told.stdout.strip() or "unknown"
