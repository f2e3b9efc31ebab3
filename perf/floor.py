"""The floor: a bare ASGI handler on the same server, that writes a constant as long as /health's answer."""

from __future__ import annotations

import sys

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import Receive, Scope, Send

BODY = b'{"status":"healthy","version":"1.9.0","uptime_secs":10,"services":{"database":"healthy"}}'.ljust(160)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"160")]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any request with the constant."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def main(port: int) -> None:
    """Serve on loopback until killed."""
    server = Server(
        app,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto,
        backlog=2_048,
        log_level=LogLevels.critical,
    )
    await server.serve()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
