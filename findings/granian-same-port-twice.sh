#!/usr/bin/env bash
# Guess: a second server on a port that is taken ends with "address already in use"; the first one is not touched.
# Seen: Granian starts, says that it listens, and from then on gets about half of the first one's new connections: it binds
#   with SO_REUSEPORT by itself, with one worker too. uvicorn refuses to start.
# Versions: granian 2.8.7, uvicorn 0.54.0, Python 3.11, Linux
# Why: an old server that was forgotten and a new one answer by turns, and nothing says so. It is also what lets workers
#   that are processes of our own share a port without any hand-over of a socket.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input granian==2.8.7 uvicorn==0.54.0
cd "$directory"

cat >app.py <<'EOF'
import os


async def app(scope, receive, send):
    if scope["type"] == "http":
        body = os.environ["NAME_OF_THIS_ONE"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
EOF

cat >main.py <<'EOF'
import collections
import http.client
import os
import socket
import subprocess
import sys
import time

CONNECTIONS = 100


def ask(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def share_of_second(*command):
    """Start two servers on one port; return how many new connections the second one gets, None if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers = []
    try:
        for name in ("first", "second"):
            environment = {**os.environ, "NAME_OF_THIS_ONE": name}
            line = [sys.executable, "-m", *command, "--port", str(port), "--log-level", "critical", "app:app"]
            servers.append(subprocess.Popen(line, env=environment))
            # The first answers soon; the second one has ended soon, or answers now and then.
            limit = time.monotonic() + 30
            while servers[-1].poll() is None and time.monotonic() < limit:
                try:
                    if ask(port) == name:
                        break
                except OSError:
                    time.sleep(0.05)
        if servers[1].poll() is not None:
            return None
        return collections.Counter(ask(port) for _ in range(CONNECTIONS))["second"]
    finally:
        for server in servers:
            server.terminate()
            server.wait()


granian, uvicorn = share_of_second("granian", "--interface", "asgi"), share_of_second("uvicorn")
print(f"of {CONNECTIONS} connections the second server gets: granian {granian}, uvicorn {uvicorn} (None: it ended)")
if granian is None or not CONNECTIONS / 4 <= granian <= CONNECTIONS * 3 / 4 or uvicorn is not None:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
