#!/usr/bin/env bash
# Guess: the headers that an application gives to `websocket.accept` (ASGI 2.1) are in the answer to the handshake.
# Seen: Granian leaves them out without a word and passes the subprotocol on. The same application behind uvicorn has both.
# Versions: granian 2.8.7, uvicorn 0.54.0, websockets 15.0.1, Python 3.11
# Why: a request id, a cookie or a rate limit's state cannot be told to a client of a WebSocket by its handshake here; they
#   have to be the first event, and a refusal has to be `websocket.http.response`.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
  granian==2.8.7 uvicorn==0.54.0 websockets==15.0.1
cd "$directory"

cat >app.py <<'EOF'
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-request-id", b"one")]})
    await receive()
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


async def seen_behind(*command):
    """Return the header and the subprotocol of the handshake's answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port), "--log-level", "error", "app:app"])
    try:
        await until_listening(port)
        async with connect(f"ws://127.0.0.1:{port}/", subprotocols=["chat"]) as websocket:
            return websocket.response.headers.get("x-request-id"), websocket.subprotocol
    finally:
        server.terminate()
        server.wait()


async def main():
    granian = await seen_behind("granian", "--interface", "asgi")
    uvicorn = await seen_behind("uvicorn")
    print(f"header and subprotocol: granian {granian}, uvicorn {uvicorn}")
    if (granian, uvicorn) != ((None, "chat"), ("one", "chat")):
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
