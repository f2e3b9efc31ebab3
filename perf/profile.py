"""
Where the core's time goes in a scenario: a flame graph, and the functions that cost most.

``python -m perf.profile [SCENARIO]`` puts SCENARIO.svg and SCENARIO.txt under .cache/profile. py-spy looks at the stacks
from outside, once for the graph and once for the table, for ``PROFILE_SECONDS`` each; ``PROFILE_NATIVE=1`` has it look into
extensions too. What a server may be looked at by is the system's to say: root, or a ptrace_scope of 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from perf import streams
from perf.compared import CHAT, CONNECTIONS, HEALTH, LIST, SEARCH, warm_up
from perf.load import Request, drive, pace, press
from perf.processes import ROOT, Process
from perf.stand import CORE, PEERS_PYTHON, Stand
from perf.streaming import CORE_STREAM, DELTA

SECONDS = float(os.environ.get("PROFILE_SECONDS", "10"))
NATIVE = os.environ.get("PROFILE_NATIVE", "") not in ("", "0")
RATE_HZ = 250
LISTED = 40
NO_PYTHON = "(the server's threads outside of Python)"
DIRECTORY = ROOT / ".cache" / "profile"

Load = Callable[[Process], object]


def asked(what: Request) -> Load:
    """Return a load of one request, again and again."""
    return lambda process: press(process.port, what, connections=CONNECTIONS, seconds=2)


def followed(process: Process) -> object:
    """Follow a hundred turns as server-sent events."""
    return drive(streams.events(process.port, CORE_STREAM, DELTA, at_once=100, spread_s=1.0))


def talked(process: Process) -> object:
    """Have a hundred turns over WebSockets."""
    return drive(streams.turns(process.port, at_once=100, spread_s=1.0))


def paced(process: Process) -> object:
    """Have a hundred turns a second."""
    return drive(pace(process.port, [CHAT.message()] * 200, rate=100))


LOADS: dict[str, Load] = {
    "chat": asked(CHAT),
    "chat_paced": paced,
    "health": asked(HEALTH),
    "memory_list": asked(LIST),
    "memory_search": asked(SEARCH),
    "sse": followed,
    "websockets": talked,
}


def main() -> int:
    """Profile the scenario that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "chat"
    if name not in LOADS:
        print(f"there is no scenario {name}; there are {', '.join(LOADS)}", file=sys.stderr)
        return 2
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    graph, stacks = DIRECTORY / f"{name}.svg", DIRECTORY / f"{name}.stacks"
    with tempfile.TemporaryDirectory(prefix="jarvis-perf-", dir="/tmp") as directory:
        stand = Stand(Path(directory))
        try:
            process = stand.get(CORE)
            if name.startswith("memory"):
                _ = stand.conversation
            warm_up(stand, CORE, process)
            if name in ("sse", "websockets"):
                stand.set_model(first_s=0.2, deltas=30, delta_s=0.1)
            record(process, LOADS[name], "flamegraph", graph)
            record(process, LOADS[name], "raw", stacks)
        finally:
            stand.close()
    lines = [f"# {name}, {SECONDS:g} s at {RATE_HZ} Hz", *summary(stacks.read_text())]
    (DIRECTORY / f"{name}.txt").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))
    print(f"\nflame graph: {graph.relative_to(ROOT)}", file=sys.stderr)
    return 0


def record(process: Process, load: Load, form: str, output: Path) -> None:
    """Have py-spy write *output* while *load* goes on; raises ``RuntimeError`` with what it said where it cannot."""
    command = [str(PEERS_PYTHON.with_name("py-spy")), "record", "--pid", str(process.pid), "--format", form]
    command += ["--rate", str(RATE_HZ), "--duration", f"{SECONDS:.0f}", "--function", "--output", str(output)]
    command += ["--native"] if NATIVE else []
    try:
        spy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as exc:
        raise RuntimeError(f"py-spy is not there: make profile installs it ({exc})") from exc
    try:
        while spy.poll() is None:
            load(process)
    finally:
        spy.terminate()
        said, _ = spy.communicate(timeout=30)
    if spy.returncode or not output.exists():
        raise RuntimeError(f"py-spy failed: {said.strip()[-500:]}")


def summary(stacks: str) -> list[str]:
    """Return the functions with the greatest share of the samples, with what they call and by themselves."""
    inclusive: Counter[str] = Counter()
    own: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";") if stack else [NO_PYTHON]
        total += int(count)
        own[frames[-1]] += int(count)
        inclusive.update(dict.fromkeys(frames, int(count)))
    lines = []
    for title, counted in (("by itself", own), ("with what it calls", inclusive)):
        lines += ["", f"{title} ({total} samples)", ""]
        lines += [f"{100 * count / total:6.1f} %  {frame}" for frame, count in counted.most_common(LISTED)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
