"""
The floor: a bare ASGI handler on the same server, which does nothing but write constants.

Any path gets one as long as /health's answer; a WebSocket one as long as ``session.created``. ``/stream/N/S`` is N pieces as
long as an event with a delta, S seconds apart, and over a WebSocket then an end. What the core costs more than this is the core's.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import Receive, Scope, Send

BODY = b'{"status":"healthy","version":"1.9.0","uptime_secs":10,"services":{"database":"healthy"}}'.ljust(160)
DELTA = b'data: {"type":"response.output_text.delta","delta":"mot "}'.ljust(310) + b"\n\n"
WEBSOCKET_DELTA = '{"type":"response.output_text.delta","delta":"mot "}'.ljust(260)
SESSION = '{"type":"session.created"}'.ljust(650)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"160")]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any request with the constant."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": SESSION})
        await receive()
        if scope["path"].startswith("/stream/"):
            _, _, count, delay_s = scope["path"].split("/")
            for _ in range(int(count)):
                await asyncio.sleep(float(delay_s))
                await send({"type": "websocket.send", "text": WEBSOCKET_DELTA})
            await send({"type": "websocket.send", "text": '{"type":"response.done"}'})
        await receive()
        return
    if scope["path"].startswith("/stream/"):
        _, _, count, delay_s = scope["path"].split("/")
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS[:1]})
        for _ in range(int(count)):
            await asyncio.sleep(float(delay_s))
            await send({"type": "http.response.body", "body": DELTA, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
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
