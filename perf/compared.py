"""The routes that peers have too: the same requests to each in turn."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from perf.load import LIMIT_S, Latencies, Paced, Request, drive, pace, percentiles, press, repeat, repeat_for
from perf.processes import Process, core
from perf.report import Comparison, Outcome, Row, Sample
from perf.stand import BASE, BASE_BUILD, CORE, FASTAPI, FLOOR, FORWARDED, LITELLM, LITELLM_KEY, Stand

SECONDS = float(os.environ.get("PERF_SECONDS", "3"))
"""Of each run against one server."""
CONNECTIONS = 16
MODEL_ALONE = "the model alone"

Run = Callable[[Process], Latencies]

HEALTH = Request("GET", "/health")
LIST = Request("GET", "/api/memory/list?limit=20")
SEARCH = Request("POST", "/api/memory/search", json.dumps({"query": "Où est la clé du meuble 3 ?"}).encode())
CHAT = Request(
    "POST", "/api/chat", json.dumps({"content": "Bonjour Jarvis, qui es-tu ?", "use_memory": False}).encode()
)
COMPLETION = {"model": "measured", "messages": [{"role": "user", "content": "Bonjour Jarvis, qui es-tu ?"}]}
BEARER = f"authorization: Bearer {LITELLM_KEY}\r\n"
GATEWAY_CHAT = Request("POST", "/v1/chat/completions", json.dumps(COMPLETION).encode(), BEARER)
FORWARDED_CHAT = Request("POST", "/v1/chat/completions", json.dumps(COMPLETION).encode())
CHAT_1000_TIMES = 2
"""Turns over each connection."""
WARMING = {CORE: CHAT, BASE: CHAT, FORWARDED: FORWARDED_CHAT, FASTAPI: CHAT, LITELLM: GATEWAY_CHAT, FLOOR: HEALTH}
WARMING_REQUESTS = 200


def compare(
    stand: Stand,
    title: str,
    runs: Mapping[str, Run],
    rounds: int,
    *,
    unit: str = "request",
    units: int = 1,
    rehearse: bool = False,
) -> Comparison:
    """
    Run each server's load in turn, *rounds* times; CPU is for each of *units* in a request.

    With *rehearse* a first run of each does not count; some turns before the first one never do. With ``PERF_BASE`` that
    build gets the core's load too.

    A server that fails is left out of the rest, and its failure told.
    """
    if BASE_BUILD and CORE in runs and BASE not in runs:
        runs = {**runs, BASE: runs[CORE]}
    failures: dict[str, str] = {}
    measured: list[dict[str, Sample]] = []
    for number in range(rounds):
        samples: dict[str, Sample] = {}
        for name, run in runs.items():
            if name in failures:
                continue
            begun = time.monotonic()
            try:
                process = stand.model if name == MODEL_ALONE else stand.get(name)
            except RuntimeError as exc:
                failures[name] = why(exc)
                continue
            try:
                warm_up(stand, name, process)
                if rehearse and not number:
                    run(process)
                    settle(process)
                samples[name] = sample(stand, process, run, units, stores=name in (CORE, BASE, FASTAPI))
            except Exception as exc:  # noqa: BLE001 - whatever it is, the others go on
                failures[name] = why(exc)
            settle(process)
            print(f"  {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        measured.append(samples)
    return Comparison(title, unit, measured, failures)


def sample(stand: Stand, process: Process, run: Run, units: int, *, stores: bool) -> Sample:
    """Run a load and return what it cost."""
    used_s, postgres_s = process.cpu_s(), stand.postgres.cpu_s() if stores else 0.0
    latencies = run(process)
    count = latencies.finished * units
    cpu_us = 1e6 * (process.cpu_s() - used_s) / count
    postgres_us = 1e6 * (stand.postgres.cpu_s() - postgres_s) / count if stores else 0.0
    return Sample(cpu_us, postgres_us, latencies, process.pss_mb())


def warm_up(stand: Stand, name: str, process: Process) -> None:
    """Have the pools, plans and caches of a server filled, once."""
    if name in WARMING and name not in stand.warm:
        stand.warm.add(name)
        with stand.prompt_model():
            drive(repeat(process.port, WARMING[name].message(), count=WARMING_REQUESTS, connections=2 * CONNECTIONS))
            settle(process)


def settle(process: Process, limit_s: float = 20.0) -> None:
    """Wait until *process* has nothing to do, or *limit_s* are over."""
    deadline = time.monotonic() + limit_s
    busy_s = 1.0
    while busy_s > 0.02 and time.monotonic() < deadline:
        before_s = process.cpu_s()
        time.sleep(0.2)
        busy_s = process.cpu_s() - before_s


def why(exc: BaseException) -> str:
    """Return what is shown of a failure, on one line."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    said = " ".join([str(exc) or type(exc).__name__, *getattr(exc, "__notes__", ())])
    return " ".join(said.replace("|", "/").split())[:300]


def pressed(what: Request, connections: int = CONNECTIONS) -> Run:
    """Return the load of *connections* that ask for *what* as fast as they are answered."""
    return lambda process: press(process.port, what, connections=connections, seconds=SECONDS)


def answered(what: Request) -> Run:
    """Return the same for what takes servers so long that requests left half done would count."""
    return lambda process: drive(
        repeat_for(process.port, what.message(), connections=CONNECTIONS, seconds=SECONDS), SECONDS + LIMIT_S
    )


def aim(what: str, figure: Callable[[], str], wanted: str) -> Row:
    """Return a row, with the failure in place of the figure where there is none."""
    try:
        return what, figure(), wanted
    except RuntimeError as exc:
        return what, f"not measured: {why(exc)}", wanted


def health(stand: Stand, rounds: int) -> Outcome:
    """GET /health against a bare ASGI handler on the same server, and FastAPI."""
    runs = {name: pressed(HEALTH) for name in (FLOOR, CORE, FASTAPI)}
    compared = compare(stand, "GET /health", runs, rounds, rehearse=True)
    return Outcome(
        [compared],
        [
            aim(
                "GET /health, CPU per request",
                lambda: f"{compared.cpu_us(CORE):.1f} µs, {compared.ratio(CORE, FLOOR):.2f} × the bare ASGI handler",
                "≤ 1.25 ×",
            ),
            aim("GET /health, CPU less than FastAPI", lambda: f"{compared.ratio(FASTAPI):.1f} ×", "≥ 4 ×"),
            aim(
                "GET /health with two workers, as the CPU per request would allow",
                lambda: f"{2e6 / compared.cpu_us(CORE):,.0f} requests/s on two cores of their own",
                "30,000",
            ),
        ],
    )


def two_workers(stand: Stand, rounds: int) -> Outcome:
    """GET /health of a core with two workers; what makes the load takes its share of the cores."""
    rates = []
    with core(stand.directory / "workers", **stand.core_settings(), WORKERS="2") as process:
        for _ in range(rounds):
            measured = press(process.port, HEALTH, connections=2 * CONNECTIONS, seconds=SECONDS)
            rates.append(measured.finished / measured.seconds)
    what = "requests/s on /health, two workers (the driver of the load on the same cores)"
    return Outcome(rows=[(what, f"{sorted(rates)[len(rates) // 2]:,.0f}", "30,000")])


def memory_list(stand: Stand, rounds: int) -> Outcome:
    """GET /api/memory/list of 20 of 200 entries."""
    _fill(stand)
    compared = compare(
        stand,
        "GET /api/memory/list, 20 entries",
        {name: pressed(LIST) for name in (CORE, FASTAPI)},
        rounds,
        rehearse=True,
    )
    figure = aim(
        "GET /api/memory/list of 20, CPU less than FastAPI", lambda: f"{compared.ratio(FASTAPI):.1f} ×", "≥ 4 ×"
    )
    return Outcome([compared], [figure])


def memory_search(stand: Stand, rounds: int) -> Outcome:
    """POST /api/memory/search among 200 entries; the peer looks by vectors only."""
    _fill(stand)
    title = "POST /api/memory/search among 200 (FastAPI: by vectors only, the core by words too)"
    return Outcome([compare(stand, title, {name: answered(SEARCH) for name in (CORE, FASTAPI)}, rounds, rehearse=True)])


def chat(stand: Stand, rounds: int) -> Outcome:
    """POST /api/chat with a model that answers at once; chat completions and LiteLLM only pass on, and store nothing."""
    stand.set_model()
    runs = {
        CORE: answered(CHAT),
        FORWARDED: answered(FORWARDED_CHAT),
        FASTAPI: answered(CHAT),
        LITELLM: answered(GATEWAY_CHAT),
    }
    title = (
        "POST /api/chat, model at once, stored durably (/v1/chat/completions and LiteLLM: passed on, nothing stored)"
    )
    compared = compare(stand, title, runs, rounds)
    what = "POST /api/chat, durable, model at once: CPU"
    return Outcome(
        [compared],
        [
            aim(f"{what} per request", lambda: f"{compared.cpu_us(CORE):,.0f} µs", "≤ 1,000 µs"),
            aim(f"{what} less than FastAPI", lambda: f"{compared.ratio(FASTAPI):.1f} ×", "≥ 5 ×"),
            aim(f"{what} less than LiteLLM", lambda: f"{compared.ratio(LITELLM):.1f} ×", "≥ 15 ×"),
            aim(
                "POST /v1/chat/completions, model at once: CPU per request",
                lambda: f"{compared.cpu_us(FORWARDED):,.0f} µs, {compared.ratio(FORWARDED):.2f} × POST /api/chat",
                "≤ 0.75 ×",
            ),
            aim(
                "POST /v1/chat/completions: CPU less than LiteLLM",
                lambda: f"{compared.ratio(LITELLM, FORWARDED):.1f} ×",
                "≥ 20 ×",
            ),
        ],
    )


def chat_1000(stand: Stand, rounds: int) -> Outcome:
    """POST /api/chat over 1,000 connections at once with a model that takes 200 ms."""
    stand.set_model(first_s=0.2)

    def run(process: Process) -> Latencies:
        return drive(repeat(process.port, CHAT.message(), count=1_000 * CHAT_1000_TIMES, connections=1_000))

    title = "POST /api/chat, model of 200 ms, 1,000 at once"
    # FastAPI's pool lets its waiters starve: a round takes it most of a minute.
    return Outcome([compare(stand, title, {CORE: run, FASTAPI: run}, max(1, rounds // 3))])


def added_time(stand: Stand, rounds: int) -> Outcome:
    """Time beyond the model's own at 100 requests/s, each request's by itself, from when it was due."""
    stand.set_model(first_s=0.2)
    rate, count = 100.0, round(100 * max(SECONDS, 1))

    def run(what: Request) -> Run:
        return lambda process: _beyond_model(
            drive(pace(process.port, [what.message()] * count, rate=rate)), count / rate
        )

    runs = {
        MODEL_ALONE: run(Request("POST", "/v1/chat/completions", json.dumps(COMPLETION).encode())),
        CORE: run(CHAT),
        FASTAPI: run(CHAT),
        LITELLM: run(GATEWAY_CHAT),
    }
    title = "Time added to a model of 200 ms at 100 requests/s (p50, p99 and p99.9 are what was added)"
    compared = compare(stand, title, runs, rounds)

    def figure() -> str:
        added = [one.latencies for one in compared.samples(CORE)]
        middle = len(added) // 2
        p50, p99 = (sorted(figures)[middle] for figures in ([one.p50 for one in added], [one.p99 for one in added]))
        return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"

    return Outcome(
        [compared], [aim("time added to the model's own, at 100 requests/s", figure, "p50 < 1 ms, p99 < 5 ms")]
    )


def household(stand: Stand, rounds: int) -> Outcome:
    """What several people, their screens and a monitor ask, 50 times a second; the model takes 200 ms."""
    _fill(stand)
    stand.set_model(first_s=0.2)
    rate, count = 50.0, round(50 * max(2 * SECONDS, 1))

    def run(name: str) -> Run:
        history = Request("GET", f"/api/chat/history/{stand.conversation[name]}?limit=20")
        remembering = Request("POST", "/api/chat", json.dumps({"content": "Où est la clé du meuble 3 ?"}).encode())
        conversations = Request("GET", "/api/chat/conversations?limit=20")
        mix = [HEALTH, LIST, conversations, HEALTH, history, CHAT, HEALTH, conversations, SEARCH, LIST]
        mix += [HEALTH, history, conversations, HEALTH, LIST, remembering, HEALTH, SEARCH, conversations, history]
        messages = [mix[number % len(mix)].message() for number in range(count)]
        return lambda process: _beyond_model(drive(pace(process.port, messages, rate=rate)), count / rate)

    title = (
        "A household: health, lists, histories, searches and one turn in ten, 50 requests/s (times without the model's)"
    )
    runs = {name: run(name) for name in (CORE, BASE, FASTAPI) if name in stand.conversation}
    return Outcome([compare(stand, title, runs, min(rounds, 2))])


def _fill(stand: Stand) -> None:
    """Have memories and conversations in the databases."""
    with suppress(RuntimeError):
        _ = stand.conversation


def _beyond_model(paced: list[Paced | None], seconds: float) -> Latencies:
    """Return how long answers took beyond what they say that the model took."""
    beyond = []
    for one in paced:
        if one is not None:
            own = re.search(rb"own=(\d+)", one.body)
            beyond.append(one.seconds - (int(own[1]) / 1e6 if own else 0.0))
    return percentiles(beyond, seconds, failed=paced.count(None))


SCENARIOS = (health, two_workers, memory_list, memory_search, chat, chat_1000, added_time, household)
