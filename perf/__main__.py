"""
Run every scenario and print a table; the aims are the issues', the figures are what was measured.

CPU is what the kernel charged to the server's threads. Peers run in the same minute, in turn with what they are compared
to, and the median of the pairs' ratios counts: these machines are shared and noisy.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from perf import credentials, memory, voice
from perf.load import Latencies, repeat, request, streams
from perf.processes import Process, bridges, core, floor

ROUNDS = int(os.environ.get("PERF_ROUNDS", "5"))
HEALTH_REQUESTS = 20_000
CHAT_REQUESTS = 2_000
IDLE_SOCKETS = 5_000
CHAT = request("POST", "/api/chat", json.dumps({"content": "Bonjour Jarvis, qui es-tu ?"}).encode())
CHAT_STREAM = request("POST", "/api/chat", json.dumps({"content": "Bonjour Jarvis", "stream": True}).encode())
DIRECT = request("POST", "/api/llm/generate", json.dumps({"prompt": "Bonjour Jarvis", "stream": True}).encode())

Row = tuple[str, str, str]


def main() -> int:
    """Run the scenarios named on the command line, or all."""
    wanted = sys.argv[1:]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="jarvis-perf-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o711)
        for scenario in SCENARIOS:
            if not wanted or scenario.__name__ in wanted:
                print(f"{scenario.__name__} …", file=sys.stderr, flush=True)
                rows += scenario(directory / "data", ROUNDS)
    table = ["| what | measured | aim |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    print("\n".join(table))
    if not wanted:
        write_results(table)
    return 0


def write_results(table: list[str]) -> None:
    """Write perf/RESULTS.md."""
    head = [
        "# Results",
        "",
        f"`make perf` on {time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores ({cpu_name()}), Python "
        f"{platform.python_version()}, {platform.system()} {platform.release()}; medians of {ROUNDS} rounds.",
        "",
    ]
    Path(__file__).with_name("RESULTS.md").write_text("\n".join([*head, *table, ""]))


def cpu_name() -> str:
    """Return what the kernel calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def boot_and_memory(data: Path, rounds: int) -> list[Row]:
    """Time from the start of the process to /ready over existing data; memory with everything open and idle."""
    times = []
    with bridges(shape="ndjson") as model:
        with core(data, url(model)):
            pass  # makes the data directory
        for _ in range(rounds):
            started = time.perf_counter()
            with core(data, url(model)) as process:
                times.append(time.perf_counter() - started)
                time.sleep(2)
                pss, uss = process.pss_mb(), process.uss_mb()
    return [
        (
            "boot to ready, existing data (PostgreSQL included)",
            f"{1_000 * statistics.median(times):.0f} ms",
            "< 1,000 ms",
        ),
        ("idle memory of the core's process (PSS; its own alone)", f"{pss:.1f} MB; {uss:.1f} MB", "< 50 MB"),
    ]


def health(data: Path, rounds: int) -> list[Row]:
    """CPU per GET /health against the bare ASGI handler's."""
    message = request("GET", "/health")
    ratios, ours, bare = [], [], []
    with bridges(shape="ndjson") as model, core(data, url(model)) as process, floor() as lowest:
        for _ in range(rounds):
            bare.append(cpu_per(lowest, HEALTH_REQUESTS, lambda: load(lowest, message, HEALTH_REQUESTS)))
            ours.append(cpu_per(process, HEALTH_REQUESTS, lambda: load(process, message, HEALTH_REQUESTS)))
            ratios.append(ours[-1] / bare[-1])
    figures = f"{statistics.median(ours):.1f} µs / {statistics.median(bare):.1f} µs = {statistics.median(ratios):.2f}"
    return [("GET /health, CPU per request / bare ASGI handler's", figures, "≤ 1.25")]


def chat(data: Path, rounds: int) -> list[Row]:
    """CPU of a durable turn with a model that answers at once."""
    figures, latencies = [], []
    with bridges(shape="ndjson", join_deltas=100) as model, core(data, url(model)) as process:
        load(process, CHAT, CHAT_REQUESTS // 4)
        for _ in range(rounds):
            run = lambda: latencies.append(load(process, CHAT, CHAT_REQUESTS))  # noqa: E731
            figures.append(cpu_per(process, CHAT_REQUESTS, run))
    rate = statistics.median(one.finished / one.seconds for one in latencies)
    return [
        (
            "POST /api/chat, durable, model at once: CPU per request",
            f"{statistics.median(figures):.0f} µs",
            "≤ 1,000 µs",
        ),
        ("the same, requests/s over 16 connections", f"{rate:.0f}", "–"),
    ]


def turn_streams(data: Path, rounds: int) -> list[Row]:
    """Time to the first delta through the core less the model's own, and CPU per forwarded delta."""
    rows: list[Row] = []
    for at_once, deltas, delay_s in ((1, 50, 0.02), (100, 50, 0.1), (1_000, 20, 0.5)):
        answer = " ".join(["mot"] * deltas)
        added50, added99, cpu, bare = [], [], [], []
        plain = request("GET", f"/stream/{deltas}/{delay_s}")
        spread_s = 2.0 if at_once > 1 else 0.0
        mode: dict[str, object] = {"shape": "ndjson", "answer": answer, "delta_delay_s": delay_s, "first_delay_s": 0.2}
        with bridges(**mode) as model, core(data, url(model)) as process, floor() as lowest:
            for _ in range(rounds if at_once < 1_000 else min(rounds, 2)):
                used = lowest.cpu_s()
                follow(lowest, plain, b"output_text.delta", at_once, spread_s)
                bare.append((lowest.cpu_s() - used) / (at_once * deltas))
                direct = follow(model, DIRECT, b'{"text"', at_once, spread_s)
                used = process.cpu_s()
                ours = follow(process, CHAT_STREAM, b"output_text.delta", at_once, spread_s)
                cpu.append((process.cpu_s() - used) / (at_once * deltas))
                added50.append(ours.p50 - direct.p50)
                added99.append(ours.p99 - direct.p99)
        aim = "p50 < 1 ms, p99 < 5 ms" if at_once == 100 else "–"
        figures = f"p50 {statistics.median(added50):+.2f} ms, p99 {statistics.median(added99):+.2f} ms"
        rows.append((f"added time to the first delta, {at_once} streams", figures, aim))
        costs = f"{1e6 * statistics.median(cpu):.0f} µs; {1e6 * statistics.median(bare):.0f} µs"
        what = f"CPU per delta of a {deltas}-delta turn, {at_once} streams; bare handler's, which only sends"
        rows.append((what, costs, "< 15 µs"))
    return rows


def idle_sockets(data: Path, _rounds: int) -> list[Row]:
    """Memory of an open WebSocket that nothing happens on."""
    with bridges(shape="ndjson") as model, core(data, url(model)) as process, floor() as lowest:
        figures = []
        for one in (process, lowest):
            before = one.uss_mb()
            after = uvloop.run(_open_sockets(one))
            figures.append(f"{1_024 * (after - before) / IDLE_SOCKETS:.1f} KB")
    what = f"memory per idle WebSocket, {IDLE_SOCKETS} open; bare handler's"
    return [(what, "; ".join(figures), "< 20 KB")]


async def _open_sockets(process: Process) -> float:
    handshake = (
        b"GET /ws HTTP/1.1\r\nhost: perf\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    writers = []
    for _ in range(IDLE_SOCKETS):
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(handshake)
        seen = b""
        while b"session.created" not in seen:
            seen += await reader.read(65_536)
        writers.append(writer)
    await asyncio.sleep(1)
    used = process.uss_mb()
    for writer in writers:
        writer.close()
    return used


def url(process: Process) -> str:
    """Return the address of *process*."""
    return f"http://127.0.0.1:{process.port}"


def load(process: Process, message: bytes, count: int) -> Latencies:
    """Send *message* *count* times over 16 connections."""
    return uvloop.run(repeat(process.port, message, count=count, connections=16))


def follow(process: Process, message: bytes, mark: bytes, at_once: int, spread_s: float) -> Latencies:
    """Follow *at_once* streams."""
    return uvloop.run(streams(process.port, message, mark, at_once=at_once, spread_s=spread_s))


def cpu_per(process: Process, count: int, run: Callable[[], object]) -> float:
    """Return the microseconds of CPU that *process* used for each of *count* requests made by *run*."""
    before = process.cpu_s()
    run()
    return 1e6 * (process.cpu_s() - before) / count


SCENARIOS = (
    boot_and_memory,
    health,
    chat,
    turn_streams,
    idle_sockets,
    *voice.SCENARIOS,
    *memory.SCENARIOS,
    *credentials.SCENARIOS,
)

if __name__ == "__main__":
    sys.exit(main())
