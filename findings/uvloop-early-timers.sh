#!/usr/bin/env bash
# Guess: `asyncio.sleep(0.0014)` lasts 1.4 ms or longer, on every event loop, and `loop.time()` has the clock's resolution.
# Seen: uvloop rounds what is to be waited for to whole milliseconds, down too: what is less than half of one is over in the
#   same turn of the loop, and a sleep of 1.4 ms may end after 1.0, now and then at once. `loop.time()` has whole
#   milliseconds. asyncio's own loop never ends a sleep early.
# Versions: uvloop 0.23.0, Python 3.11
# Why: a pause of 0.4 ms between attempts is none, and a loop of such pauses spins. What measures latency or paces requests
#   by the loop's clock counts milliseconds where it means to count microseconds; time.perf_counter does not.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input uvloop==0.23.0
cd "$directory"

cat >main.py <<'EOF'
import asyncio
import sys
import time

import uvloop

TIMES = 200


async def shortest_ms(wanted_ms):
    """Return the shortest of TIMES sleeps of *wanted_ms*."""
    shortest = float("inf")
    for _ in range(TIMES):
        begun = time.perf_counter()
        await asyncio.sleep(wanted_ms / 1_000)
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest * 1_000


async def look():
    loop = asyncio.get_running_loop()
    sleeps = {wanted_ms: await shortest_ms(wanted_ms) for wanted_ms in (0.4, 1.4)}
    readings = []
    for _ in range(TIMES):
        time.sleep(0.0003)
        await asyncio.sleep(0)
        readings.append(loop.time() * 1_000)
    whole = all(abs(reading - round(reading)) < 1e-4 for reading in readings)
    return sleeps, whole


seen = {"asyncio": asyncio.run(look()), "uvloop": uvloop.run(look())}
for name, (sleeps, whole) in seen.items():
    shortest = ", ".join(f"{wanted_ms} ms takes {taken_ms:.2f}" for wanted_ms, taken_ms in sleeps.items())
    print(f"{name}: at the least a sleep of {shortest}; loop.time() has {'whole milliseconds' if whole else 'fractions'}")
sleeps, whole = seen["uvloop"]
own_sleeps, own_whole = seen["asyncio"]
early = sleeps[0.4] < 0.2 and sleeps[1.4] < 1.4
if not (early and whole) or own_whole or any(taken_ms < wanted_ms for wanted_ms, taken_ms in own_sleeps.items()):
    sys.exit("not as it was seen before")
EOF
"$python" main.py
