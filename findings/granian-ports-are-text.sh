#!/usr/bin/env bash
# Guess: scope["client"] and scope["server"] of an ASGI server are a host and a port, the port a number, as the
#   specification has it.
# Seen: both ports are text: ("127.0.0.1", "39638"). Uvicorn's are numbers.
# Versions: granian 2.8.7, uvicorn 0.38.0, Python 3.11
# Why: a look-up of a connection by its port finds nothing, and a comparison of ports is false, without an error.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input granian==2.8.7 uvicorn==0.38.0
cd "$directory"

cat >app.py <<'EOF'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) and not await send({"type": kind + ".complete"}):
            if kind == "lifespan.shutdown":
                return
    body = " ".join(type(port).__name__ for _, port in (scope["client"], scope["server"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
EOF
cat >main.py <<'EOF'
import http.client
import socket
import subprocess
import sys
import time

QUIET = ["--log-level", "error"]
SERVERS = {"granian": ["--interface", "asgi", "--no-access-log", *QUIET], "uvicorn": QUIET}


def ask(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


seen = {}
for name, options in SERVERS.items():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", name, "--port", str(port), *options, "app:app"])
    try:
        seen[name] = ask(port)
    finally:
        server.terminate()
        server.wait(10)
    print(f"{name}: the ports of client and server are {seen[name]}")
if seen != {"granian": "str str", "uvicorn": "int int"}:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
