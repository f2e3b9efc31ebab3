"""
What goes wrong before or instead of an answer, the same for every fake.

A mode maps path prefixes to faults, ``{"/api/llm": Fault("hang"), "/": Fault(status=503, times=1)}``; the longest
prefix that fits the path is used.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Literal

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

FaultKind = Literal[
    "none",
    "hang",
    "close",
    "reset",
    "close_reused",
    "close_after",
    "empty",
    "html",
    "nonsense",
    "null",
    "list",
    "wrong_shape",
    "nested",
    "raw",
    "wrong_type",
    "truncated",
    "short_body",
    "garbage",
    "huge_line",
    "trickle",
    "redirect",
]
"""
``none``         the normal answer, unless ``status`` says otherwise (with ``delay_s``: late)
``hang``         accepts the request and never answers
``close``        closes the connection without an answer
``reset``        the same with a TCP reset
``close_reused`` closes without an answer when the connection has served a request before: kept-alive, but stale
``close_after``  answers, promises to keep the connection, and closes it
``empty``        no body
``html``         a page of HTML
``nonsense``     labelled JSON, but is not
``null``, ``list``, ``wrong_shape``  JSON, but not the struct
``nested``       JSON with more lists inside one another than a decoder follows, in a field that nobody knows
``raw``          ``body``, labelled JSON
``wrong_type``   bytes labelled application/octet-stream
``truncated``    the normal answer cut in half, as a complete HTTP message
``short_body``   the normal answer cut in half, under the Content-Length of the whole
``garbage``      not HTTP at all
``huge_line``    ``size_bytes`` without a line break
``trickle``      a byte of white space every ``delay_s`` (0.02) for ever: each wait is short, the whole never ends
``redirect``     307 to ``/elsewhere``; following it leaks the token
"""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to fail."""

    kind: FaultKind = "none"
    status: int = 0
    """The status of the answer; 0 is the usual one. With kind ``none`` an error in the neighbour's own shape."""
    delay_s: float = 0.0
    """Wait before anything is sent, the head included."""
    times: int | None = None
    """How many requests fail before all is well again; None is for ever. Counted anew whenever the mode is set."""
    retry_after_s: int | None = None
    """The Retry-After header; None leaves it out, as the bridges do."""
    message: str = ""
    """The message of an error; empty is one that fits the status."""
    content_type: str = ""
    """Overrides the label of an answer that is made up here."""
    body: bytes = b""
    """For ``raw``."""
    size_bytes: int = 32 * 1024 * 1024
    """For ``huge_line``."""


def choose(faults: Mapping[str, Fault], path: str) -> str | None:
    """Return the longest prefix in *faults* that fits *path*."""
    return max((prefix for prefix in faults if path.startswith(prefix)), key=len, default=None)


def sever(request: web.BaseRequest, *, reset: bool = False) -> None:
    """Close the connection under *request*: what was written still goes out, unless it is a *reset*."""
    transport = request.transport
    if transport is None:
        return
    if reset:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


async def forever() -> None:
    """Wait until cancelled: the client leaves or the server stops."""
    await asyncio.Event().wait()


NESTED = 100_000
"""Lists inside one another."""

_MADE_UP: dict[str, tuple[str, bytes]] = {
    "empty": ("application/json", b""),
    "html": ("text/html; charset=utf-8", b"<!doctype html><html><title>Error</title><h1>Nothing to see</h1></html>"),
    "nonsense": ("application/json", b"this is {not JSON"),
    "null": ("application/json", b"null"),
    "list": ("application/json", b"[]"),
    "wrong_shape": ("application/json", b'{"unexpected": true}'),
    "nested": ("application/json", b'{"unexpected": ' + b"[" * NESTED + b"]" * NESTED + b"}"),
    "raw": ("application/json", b""),
    "wrong_type": ("application/octet-stream", b"\x00\x01\x02\x03binary"),
}


async def misbehave(fault: Fault, request: web.Request, handler: Handler, *, reused: bool) -> web.StreamResponse:
    """Answer *request* the wrong way; *handler* gives the right one. Errors of kind ``none`` are not made here."""
    kind = fault.kind
    if kind in _MADE_UP:
        content_type, body = _MADE_UP[kind]
        content_type = fault.content_type or content_type
        return web.Response(status=fault.status or 200, body=fault.body or body, headers={"Content-Type": content_type})
    if kind == "hang":
        await forever()
    if kind in {"close", "reset"} or (kind == "close_reused" and reused):
        sever(request, reset=kind == "reset")
        return web.Response()
    if kind == "garbage":
        if request.transport is not None:
            request.transport.write(b"220 mail.example ESMTP ready\r\n")
        sever(request)
        return web.Response()
    if kind == "redirect":
        return web.Response(status=fault.status or 307, headers={"Location": "/elsewhere"})
    if kind in {"huge_line", "trickle"}:
        return await _pour(fault, request)
    response = await handler(request)
    if kind == "close_after":
        await response.prepare(request)
        await response.write_eof()
        sever(request)
    elif kind in {"truncated", "short_body"}:
        return await _halve(response, request, honest=kind == "truncated")
    return response


async def _pour(fault: Fault, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=fault.status or 200, headers={"Content-Type": fault.content_type or "application/json"}
    )
    await response.prepare(request)
    if fault.kind == "trickle":
        while True:
            await response.write(b" ")
            await asyncio.sleep(fault.delay_s or 0.02)
    piece = b"x" * 65536
    for _ in range(-(-fault.size_bytes // len(piece))):
        await response.write(piece)
    return response


async def _halve(response: web.StreamResponse, request: web.Request, *, honest: bool) -> web.StreamResponse:
    body = response.body if isinstance(response, web.Response) else None
    if not isinstance(body, bytes):
        raise TypeError("only a whole answer can be cut in half: a stream has cut_after")
    half = body[: len(body) // 2]
    content_type = {"Content-Type": response.headers["Content-Type"]}
    if honest:
        return web.Response(status=response.status, body=half, headers=content_type)
    short = web.StreamResponse(status=response.status, headers=content_type)
    short.content_length = len(body)
    await short.prepare(request)
    await short.write(half)
    sever(request)
    return short
