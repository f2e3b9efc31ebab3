#!/usr/bin/env bash
# Guess: a request that is refused a connection leaves nothing behind once its exception is handled; what is left is freed
#   by its reference counts.
# Seen: each leaves some 80 objects in cycles that only the garbage collector frees: exceptions, their frames, and
#   the request with its body. More than twenty of them are of aiohappyeyeballs, which connects for aiohttp.
#   asyncio.open_connection, refused by the same port, leaves none.
# Versions: aiohttp 3.14.5, aiohappyeyeballs 2.7.1, Python 3.11
# Why: a server that lets the collector come seldom, or freezes its heap, grows for as long as a neighbour is away and is
#   asked again and again, by the size of what it was to be sent.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input aiohttp==3.14.5 aiohappyeyeballs==2.7.1
cd "$directory"

cat >main.py <<'EOF'
import asyncio
import gc
import socket
import sys
import weakref

import aiohappyeyeballs
import aiohttp

TIMES = 100


class Body(bytearray):
    """What is to be sent; whether it is still there can be seen."""


async def main():
    with socket.socket() as bound:  # and not listening: every connection is refused
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        async def with_aiohttp():
            body = Body(b"something to be sent")
            bodies.append(weakref.ref(body))
            try:
                async with session.post(f"http://127.0.0.1:{port}/", data=body):
                    pass
            except aiohttp.ClientConnectorError:
                pass

        async def with_aiohappyeyeballs():
            address = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)
            try:
                await aiohappyeyeballs.start_connection([address])
            except ConnectionRefusedError:
                pass

        async def with_asyncio():
            try:
                await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                pass

        seen = {}
        bodies = []
        async with aiohttp.ClientSession() as session:
            for refused in (with_aiohttp, with_aiohappyeyeballs, with_asyncio):
                await refused()
                gc.collect()
                bodies.clear()
                gc.disable()
                for _ in range(TIMES):
                    await refused()
                if refused is with_aiohttp:
                    bodies_left = sum(body() is not None for body in bodies)
                gc.enable()
                seen[refused.__name__] = gc.collect() / TIMES
    counts = ", ".join(f"{name} {count:.0f}" for name, count in seen.items())
    print(f"left in cycles by each refused connection: {counts}; bodies left of {TIMES}: {bodies_left}")
    if bodies_left < TIMES or seen["with_aiohttp"] < 40 or seen["with_aiohappyeyeballs"] < 10 or seen["with_asyncio"] >= 1:
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
