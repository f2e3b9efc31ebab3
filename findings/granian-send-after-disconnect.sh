#!/usr/bin/env bash
# Guess: once a client has gone, ASGI's `send` raises an OSError, as ASGI 2.4 asks for; at the least it lets the event
#   loop turn, as it did while the client was there.
# Seen: the WebSocket's and the stream's `send` succeed a thousand times after the disconnect was received, and the event
#   loop does not turn once meanwhile. With the client there each of them lets it turn.
# Versions: granian 2.8.7, websockets 15.0.1, Python 3.11
# Why: a producer that only sends learns nothing of the client's leaving and keeps the whole worker for itself for as long
#   as it produces. So `receive` is watched beside it, and whoever sends gives the loop its turn.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input granian==2.8.7 websockets==15.0.1
cd "$directory"

cat >app.py <<'EOF'
import asyncio

SENDS = 1_000


async def turns_during(send, message):
    """Send SENDS times; return how often the event loop turned meanwhile."""
    turns = 0
    done = False

    def turn():
        nonlocal turns
        turns += 1
        if not done:
            asyncio.get_running_loop().call_soon(turn)

    asyncio.get_running_loop().call_soon(turn)
    for _ in range(SENDS):
        await send(message)
    done = True
    return turns


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    kind = scope["type"]
    if kind == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = {"type": "websocket.send", "text": "hello"}
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        message = {"type": "http.response.body", "body": b"hello", "more_body": True}
    there = await turns_during(send, message)
    while not (await receive())["type"].endswith(".disconnect"):
        pass
    try:
        gone = f"{await turns_during(send, message)} turns, no error"
    except OSError as exc:
        gone = f"{type(exc).__name__}"
    often = "at least as many" if there >= SENDS else "fewer"
    print(f"{kind}: {often} turns of the loop as sends with the client, {gone} without it", flush=True)
EOF

cat >main.py <<'EOF'
import asyncio
import socket
import subprocess
import sys

from websockets.asyncio.client import connect


async def until_listening(port):
    async with asyncio.timeout(30):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                await asyncio.sleep(0.05)


async def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--interface", "asgi", "--port", str(port), "--log-level", "error"]
    server = subprocess.Popen([sys.executable, "-m", "granian", *options, "app:app"], stdout=subprocess.PIPE, text=True)
    try:
        await until_listening(port)
        async with connect(f"ws://127.0.0.1:{port}/") as websocket:
            for _ in range(1_000):
                await websocket.recv()
        first = await asyncio.wait_for(asyncio.to_thread(server.stdout.readline), 30)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        text = b""
        while text.count(b"hello") < 1_000:
            text += await reader.read(65_536)
        writer.close()
        second = await asyncio.wait_for(asyncio.to_thread(server.stdout.readline), 30)
    finally:
        server.terminate()
        server.wait()
    seen = first + second
    print(seen, end="")
    expected = "".join(
        f"{kind}: at least as many turns of the loop as sends with the client, 0 turns, no error without it\n"
        for kind in ("websocket", "http")
    )
    if seen != expected:
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
