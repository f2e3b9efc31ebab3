#!/usr/bin/env bash
# Guess: a WebSocket on which nothing is said costs a few kilobytes, as a kept HTTP connection does; the server is written
#   in Rust.
# Seen: each takes 140 KB of the worker's memory from its handshake on, as if the buffer for its first message were filled;
#   a kept HTTP connection of the same server takes less than a quarter. One of uvicorn's takes less than half.
# Versions: granian 2.8.7, uvicorn 0.54.0, websockets 15.0.1, Python 3.11, Linux (x86-64)
# Why: a thousand assistants that wait for a word are 140 MB, whatever the application keeps for each: what bounds a worker
#   is its number of open sockets and not its work.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
  granian==2.8.7 uvicorn==0.54.0 websockets==15.0.1
cd "$directory"

cat >app.py <<'EOF'
import re
from pathlib import Path


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
    elif scope["type"] == "http":
        resident_kb = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1].encode()
        headers = [(b"content-length", b"%d" % len(resident_kb))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": resident_kb})
EOF

cat >main.py <<'EOF'
import asyncio
import socket
import subprocess
import sys

from websockets.asyncio.client import connect

COUNT = 300


async def until_listening(port):
    async with asyncio.timeout(30):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                await asyncio.sleep(0.05)


class Kept:
    """A kept HTTP connection, which tells the server's memory in KB."""

    writer = None

    async def open(self, port):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)

    async def resident_kb(self):
        self.writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        return int(await self.reader.readexactly(length))

    def close(self):
        if self.writer is not None:
            self.writer.close()


async def memory_behind(*command):
    """Return what a WebSocket costs and what a kept HTTP connection does, in KB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port), "--log-level", "error", "app:app"])
    kept, websockets, asking = [], [], Kept()
    try:
        await until_listening(port)
        for _ in range(20):  # what the first ones cost once and for all
            async with connect(f"ws://127.0.0.1:{port}/"):
                pass
        await asking.open(port)
        await asking.resident_kb()
        before = await asking.resident_kb()
        for _ in range(COUNT):
            kept.append(Kept())
            await kept[-1].open(port)
            await kept[-1].resident_kb()
        between = await asking.resident_kb()
        for _ in range(COUNT):
            websockets.append(await connect(f"ws://127.0.0.1:{port}/", ping_interval=None))
        after = await asking.resident_kb()
        return round((after - between) / COUNT), round((between - before) / COUNT)
    finally:
        for one in (*kept, asking):
            one.close()
        await asyncio.gather(*(one.close() for one in websockets))
        server.terminate()
        server.wait()


async def main():
    granian = await memory_behind("granian", "--interface", "asgi")
    uvicorn = await memory_behind("uvicorn")
    print(f"KB for a WebSocket and for a kept HTTP connection: granian {granian}, uvicorn {uvicorn}")
    as_seen = 100 <= granian[0] <= 200 and granian[1] < granian[0] / 4 and uvicorn[0] < granian[0] / 2
    if not as_seen:
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
