"""What credentials cost a request: CPU of the same route, open and with each kind of credential."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import jwt
import uvloop

from perf.load import repeat, request
from perf.processes import Process, bridges, core

Row = tuple[str, str, str]

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "a-key-of-the-measurement-0123456789"
PATH = "/api/voice/languages"
"""Answered from memory: next to nothing else is in the figure."""
REQUESTS = 10_000


def credentials(data: Path, rounds: int) -> list[Row]:
    """CPU per request of a server with credentials, less that of an open one; the servers take turns."""
    token = jwt.encode({"sub": "perf", "user_id": "perf", "exp": int(time.time()) + 86_400}, SECRET, algorithm="HS256")
    plain = request("GET", PATH)
    ways = {
        "a JWT": request("GET", PATH, headers=f"authorization: Bearer {token}\r\n"),
        "an API key": request("GET", PATH, headers=f"authorization: Bearer {KEY}\r\n"),
    }
    limited = {"JWT_SECRET": SECRET, "API_KEYS": f"perf:{KEY}", "RATE_LIMIT_PER_MINUTE": "1000000"}
    dearer: dict[str, list[float]] = {}
    with (
        bridges() as model,
        core(data, f"http://127.0.0.1:{model.port}") as unlocked,
        core(
            data.with_name("locked"), f"http://127.0.0.1:{model.port}", JWT_SECRET=SECRET, API_KEYS=f"perf:{KEY}"
        ) as locked,
        core(data.with_name("limited"), f"http://127.0.0.1:{model.port}", **limited) as limits,
    ):
        for _ in range(max(rounds, 5)):
            for name, message in ways.items():
                dearer.setdefault(f"{name} instead of none", []).append(
                    _cpu_us(locked, message) - _cpu_us(unlocked, plain)
                )
            message = ways["a JWT"]
            dearer.setdefault("a JWT and a rate limit instead of neither", []).append(
                _cpu_us(limits, message) - _cpu_us(unlocked, plain)
            )
    return [
        (f"GET {PATH}, CPU per request: {name}", f"{statistics.median(figures):+.1f} µs", "≤ 15 µs")
        for name, figures in dearer.items()
    ]


def _cpu_us(process: Process, message: bytes) -> float:
    before = process.cpu_s()
    uvloop.run(repeat(process.port, message, count=REQUESTS, connections=16))
    return 1e6 * (process.cpu_s() - before) / REQUESTS


SCENARIOS = (credentials,)
