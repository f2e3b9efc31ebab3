"""Answers that are followed while they are said, and sockets that nothing happens on."""

from __future__ import annotations

import asyncio
import json

from perf import streams
from perf.compared import BEARER, COMPLETION, MODEL_ALONE, Run, aim, compare
from perf.load import drive, request
from perf.processes import Process
from perf.report import Comparison, Outcome
from perf.stand import CORE, FASTAPI, FLOOR, FORWARDED, LITELLM, Stand

IDLE_SOCKETS = 5_000
ASKED = {"content": "Bonjour Jarvis", "use_memory": False, "stream": True}
CORE_STREAM = request("POST", "/api/chat", json.dumps(ASKED).encode())
FASTAPI_STREAM = request("POST", "/api/chat/stream", json.dumps(ASKED).encode())
COMPLETION_STREAM = json.dumps({**COMPLETION, "stream": True}).encode()
MODEL_STREAM = request("POST", "/v1/chat/completions", COMPLETION_STREAM)
GATEWAY_STREAM = request("POST", "/v1/chat/completions", COMPLETION_STREAM, BEARER)
DELTA = b"output_text.delta"
CHUNK = b'"content"'
FIRST_S = 0.2


def sse(stand: Stand, rounds: int) -> Outcome:
    """Server-sent events to 100 and to 1,000 listeners at once, each of a turn of its own."""
    few = _streams(
        stand,
        rounds,
        at_once=100,
        deltas=30,
        delta_s=0.1,
        names=(MODEL_ALONE, FLOOR, CORE, FORWARDED, FASTAPI, LITELLM),
    )
    many = _streams(
        stand, min(rounds, 2), at_once=1_000, deltas=10, delta_s=0.5, spread_s=2.0, names=(MODEL_ALONE, FLOOR, CORE)
    )
    forwarded = aim(
        "a delta that /v1/chat/completions passes on, CPU",
        lambda: (
            f"{few.cpu_us(FORWARDED):.1f} µs, {few.ratio(FORWARDED, FLOOR):.2f} × the bare handler, which only sends"
        ),
        "≤ 1.5 ×",
    )
    return Outcome([few, many], [forwarded])


def _streams(
    stand: Stand,
    rounds: int,
    *,
    at_once: int,
    deltas: int,
    delta_s: float,
    names: tuple[str, ...],
    spread_s: float = 1.0,
) -> Comparison:
    stand.set_model(first_s=FIRST_S, deltas=deltas, delta_s=delta_s)
    messages = {
        MODEL_ALONE: (MODEL_STREAM, CHUNK),
        FLOOR: (request("GET", f"/stream/{deltas}/{delta_s}"), DELTA),
        CORE: (CORE_STREAM, DELTA),
        FORWARDED: (MODEL_STREAM, CHUNK),
        FASTAPI: (FASTAPI_STREAM, DELTA),
        LITELLM: (GATEWAY_STREAM, CHUNK),
    }

    def run(name: str) -> Run:
        message, mark = messages[name]
        return lambda process: drive(streams.events(process.port, message, mark, at_once=at_once, spread_s=spread_s))

    title = (
        f"Server-sent events, {at_once:,} turns of {deltas} deltas at once, one each {delta_s:g} s "
        f"(times: to the first delta, {1_000 * FIRST_S:.0f} ms of it the model's; the bare handler only sends)"
    )
    return compare(stand, title, {name: run(name) for name in names}, rounds, unit="delta", units=deltas)


def websockets(stand: Stand, rounds: int) -> Outcome:
    """One turn over each of 100 WebSockets at once."""
    deltas = 30
    stand.set_model(first_s=FIRST_S, deltas=deltas, delta_s=0.1)

    def run(path: str = "/ws") -> Run:
        return lambda process: drive(streams.turns(process.port, at_once=100, spread_s=1.0, path=path))

    title = (
        f"WebSocket, 100 turns of {deltas} deltas at once, one each 0.1 s "
        f"(times: to the first delta, {1_000 * FIRST_S:.0f} ms of it the model's; the bare handler only sends)"
    )
    runs = {FLOOR: run(f"/stream/{deltas}/0.1"), CORE: run(), FASTAPI: run()}
    return Outcome([compare(stand, title, runs, rounds, unit="delta", units=deltas)])


def idle_sockets(stand: Stand, _rounds: int) -> Outcome:
    """Memory of an open WebSocket that nothing happens on."""
    figures = []
    for name in (CORE, FLOOR):
        process = stand.get(name)
        before = process.uss_mb()
        after = drive(_open_sockets(process))
        figures.append(f"{1_024 * (after - before) / IDLE_SOCKETS:.1f} KB")
    what = f"memory per idle WebSocket, {IDLE_SOCKETS:,} open; bare handler's"
    return Outcome(rows=[(what, "; ".join(figures), "< 20 KB")])


async def _open_sockets(process: Process) -> float:
    writers = [(await streams.open_socket(process.port))[1] for _ in range(IDLE_SOCKETS)]
    await asyncio.sleep(1)
    used = process.uss_mb()
    for writer in writers:
        writer.close()
    return used


SCENARIOS = (sse, websockets, idle_sockets)
