"""
Run every scenario and print what was measured; the aims are the issues', the figures are what was measured.

``python -m perf [SCENARIO ...]``; without a name all are run and perf/RESULTS.md is written. CPU is what the kernel charged
to the server's threads. Peers are asked in turn with what they are compared to, and the median of the rounds' ratios
counts: these machines are shared and noisy.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from perf import compared, credentials, household, life, scale, streaming, voice, voice_to_voice
from perf import memory as memory_store
from perf.compared import SECONDS, why
from perf.report import NO_AIM, Outcome, Row, table, write_results
from perf.stand import Stand

ROUNDS = int(os.environ.get("PERF_ROUNDS", "3"))
LIMIT_S = float(os.environ.get("PERF_LIMIT_S", "900"))
"""What has not begun by then is left out of a run of all."""

Scenario = Callable[[Stand, int], Outcome]


def of_data(measure: Callable[[Path, int], list[Row]], stand: Stand, rounds: int) -> Outcome:
    """Run a scenario that starts everything itself, over a directory."""
    return Outcome(rows=measure(stand.data, rounds))


SCENARIOS: dict[str, Scenario] = {
    **{one.__name__: one for one in (*life.SCENARIOS, *compared.SCENARIOS, *streaming.SCENARIOS)},
    **{
        one.__name__: partial(of_data, one)
        for one in (
            *voice.SCENARIOS,
            *memory_store.SCENARIOS,
            *household.SCENARIOS,
            *credentials.SCENARIOS,
            *scale.SCENARIOS,
            *voice_to_voice.SCENARIOS,
        )
    },
}

ONLY_BY_NAME = {"voice_to_voice"}
"""Not part of a run of all: needs a gigabyte of models, and a machine that does nothing else."""


def main() -> int:
    """Run the scenarios named on the command line, or all; return 1 when one failed or was interrupted."""
    wanted = sys.argv[1:]
    unknown = [name for name in wanted if name not in SCENARIOS]
    if unknown:
        print(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    # So that what was started is stopped, and what was measured is told.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    failures = 0
    complete = not wanted
    with tempfile.TemporaryDirectory(prefix="jarvis-perf-", dir="/tmp") as directory:
        stand = Stand(Path(directory))
        try:
            for name in wanted or (one for one in SCENARIOS if one not in ONLY_BY_NAME):
                begun = time.monotonic()
                if complete and begun - started > LIMIT_S:
                    outcomes.append(Outcome(rows=[(name, f"not run: {LIMIT_S:.0f} s were over", NO_AIM)]))
                    continue
                print(f"{name} …", file=sys.stderr, flush=True)
                try:
                    outcomes.append(SCENARIOS[name](stand, ROUNDS))
                except KeyboardInterrupt:
                    complete = False
                    failures += 1
                    print("interrupted; what was measured until then:", file=sys.stderr)
                    break
                except Exception as exc:  # noqa: BLE001 - the others go on
                    failures += 1
                    traceback.print_exc()
                    outcomes.append(Outcome(rows=[(name, f"failed: {why(exc)}", NO_AIM)]))
                print(f"{name} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        finally:
            stand.close()
    for outcome in outcomes:
        for comparison in outcome.comparisons:
            print("\n".join(comparison.lines()))
    print("\n".join(table([row for outcome in outcomes for row in outcome.rows])))
    if complete:
        path = write_results(
            outcomes,
            rounds=ROUNDS,
            seconds=SECONDS,
            took_s=time.monotonic() - started,
            postgres=stand.postgres_version,
        )
        print(f"written to {path}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
