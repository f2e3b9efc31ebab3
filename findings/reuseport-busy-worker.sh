#!/usr/bin/env bash
# Guess: of two workers on one port, one that is busy takes no connections meanwhile: the kernel gives who connects to the
#   worker that waits for somebody.
# Seen: so it is where the workers accept from one socket (uvicorn's): nobody waits for the busy one. Where each has a
#   listening socket of its own (Granian's, SO_REUSEPORT) about half of all new connections wait for the busy worker,
#   although the other one is idle: the kernel chooses by a hash of the addresses and not by who is free.
# Versions: granian 2.8.7, uvicorn 0.54.0, Python 3.11, Linux 6
# Why: with sockets of their own more workers do not keep one blocking call from the clients of others: of N workers a busy
#   one holds up every Nth client, for as long as the call takes. What blocks belongs into a thread or a process.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input granian==2.8.7 uvicorn==0.54.0
cd "$directory"

cat >app.py <<'EOF'
import time
from pathlib import Path

BUSY_LIMIT_S = 4


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/busy":
        Path("busy").touch()
        end = time.monotonic() + BUSY_LIMIT_S
        while not Path("free").exists() and time.monotonic() < end:
            time.sleep(0.01)  # as a long computation or a blocking call would
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
EOF

cat >main.py <<'EOF'
import contextlib
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

CONNECTIONS = 60
PATIENCE_S = 2


def ask(port, path="/"):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return connection


def unanswered(connections, limit_s):
    """Return those of *connections* that are not answered within *limit_s*."""
    waiting = set(connections)
    end = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for one in waiting:
            selector.register(one, selectors.EVENT_READ)
        while waiting and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                waiting.discard(key.fileobj)
    return waiting


def waiting_behind(*command):
    """Return how many sockets listen, how many connections wait while one of two workers is busy, and how many later."""
    for name in ("busy", "free"):
        Path(name).unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", *command, "--workers", "2", "--port", str(port), "--log-level", "critical", "app:app"]
    server = subprocess.Popen(line)
    connections = []
    try:
        for _ in range(600):
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                connections.append(ask(port))
                break
        time.sleep(3)  # until both workers are there
        connections.append(ask(port, "/busy"))
        while not Path("busy").exists():
            time.sleep(0.01)
        sockets = Path("/proc/net/tcp").read_text().splitlines()
        listening = sum(f":{port:04X} " in line and line.split()[3] == "0A" for line in sockets)
        asked = [ask(port) for _ in range(CONNECTIONS)]
        connections += asked
        waiting = unanswered(asked, PATIENCE_S)
        Path("free").touch()
        return listening, len(waiting), len(unanswered(waiting, 10))
    finally:
        for one in connections:
            one.close()
        server.terminate()
        server.wait()


seen = {"granian": waiting_behind("granian", "--interface", "asgi"), "uvicorn": waiting_behind("uvicorn")}
for name, (listening, waiting, later) in seen.items():
    print(
        f"{name}: {listening} listening sockets; of {CONNECTIONS} connections {waiting} wait for the busy worker, "
        f"and {later} once it is free"
    )
listening, waiting, later = seen["granian"]
as_seen = listening == 2 and CONNECTIONS / 6 <= waiting <= CONNECTIONS * 5 / 6 and later == 0
if not as_seen or seen["uvicorn"] != (1, 0, 0):
    sys.exit("not as it was seen before")
EOF
"$python" main.py
