#!/usr/bin/env bash
# Guess: a WebSocket that the application closes is closed, whatever else the application does: the task that reads from
#   it gets a disconnect.
# Seen: while a `receive` is pending the close waits for it. The client sees no close, and `send` does not return, until
#   the client happens to send something. A close that meets no pending `receive` arrives at once.
# Versions: granian 2.8.7, websockets 15.0.1, Python 3.11
# Why: whoever reads in one task and closes from another (a client that is too slow, a server that stops) has to cancel the
#   reading first; otherwise a silent client is never told that it is to go.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input granian==2.8.7 websockets==15.0.1
cd "$directory"

cat >app.py <<'EOF'
import asyncio


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/pending":
        pending = asyncio.ensure_future(receive())
        await asyncio.sleep(0.1)
    await send({"type": "websocket.close", "code": 4001})
    if scope["path"] == "/pending":
        await pending
EOF

cat >main.py <<'EOF'
import asyncio
import socket
import subprocess
import sys

from websockets.asyncio.client import connect

PATIENCE_S = 3


async def closes(websocket):
    """Return whether *websocket* is closed by the server before PATIENCE_S are over."""
    try:
        await asyncio.wait_for(websocket.wait_closed(), PATIENCE_S)
    except TimeoutError:
        return False
    return websocket.close_code == 4001


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
    server = subprocess.Popen([sys.executable, "-m", "granian", *options, "app:app"])
    try:
        await until_listening(port)
        async with connect(f"ws://127.0.0.1:{port}/alone") as websocket:
            alone = await closes(websocket)
        async with connect(f"ws://127.0.0.1:{port}/pending") as websocket:
            pending = await closes(websocket)
            await websocket.send("anything")
            after = await closes(websocket)
    finally:
        server.terminate()
        server.wait()
    print(f"closed: without a pending receive {alone}; with one {pending}, and once the client sent something {after}")
    if (alone, pending, after) != (True, False, True):
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
