"""Shared by the stand-in's handlers: reading a body, answering in JSON, reporting failures, queueing for an engine."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from jarvis_core.errors import BadGateway, DeadlineExceeded, InvalidRequest, Overloaded, RequestError, Unavailable

T = TypeVar("T")

AUDIO_BODY_LIMIT_BYTES = 16 << 20
"""Of a request with audio in it: two minutes of it in base64, or half a minute as a list of numbers."""
FLOAT_BYTES = 4
LEEWAY_S = 60
"""What the clock of who signs a token may be off."""
WAITING_LIMIT = 32
"""Requests that wait for an engine; further ones are refused."""

encode = msgspec.json.encode


def answer(value: object, status: int = 200) -> web.Response:
    """Return *value* as JSON."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


def absent(what: str) -> web.HTTPNotImplemented:
    """Return the error for an engine that the stand-in was started without, for which waiting is of no use."""
    return web.HTTPNotImplemented(text=f"the local stand-in has no {what}")


async def read(request: web.Request, decoder: msgspec.json.Decoder[T], limit_bytes: int) -> T:
    """Return the decoded body; raises ``InvalidRequest`` or the status 413."""
    body = await request.clone(client_max_size=limit_bytes).read()
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:  # also when a field is wrong
        raise InvalidRequest(str(exc)) from exc


def samples_of(encoded: str) -> bytes:
    """Return the float32 samples in base64; raises ``InvalidRequest``."""
    try:
        samples = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as exc:  # ValueError: it is not even ASCII
        raise InvalidRequest("audio_data: is not base64") from exc
    if len(samples) % FLOAT_BYTES:
        raise InvalidRequest("audio_data: is not float32, its length is not a multiple of 4 bytes")
    return samples


@web.middleware
async def failures_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every failure with ``{"error": …}``."""
    try:
        return await handler(request)
    except web.HTTPException as failure:
        return answer({"error": failure.text}, failure.status)
    except RequestError as exc:
        status = status_of(exc)
        if status >= 500 and not isinstance(exc, Overloaded):
            log(f"{request.path}: {exc}")
        return answer({"error": exc.message}, status)


@web.middleware
async def only_under_private_names(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """
    Answer only who asks for an IP address or a name of one label: a container's, or ``localhost``.

    Every other one may be the name of a page of the web that was pointed to this machine.
    """
    name = request.host.rpartition("@")[2]
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if "." in name.rstrip("."):
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return answer({"error": "the local stand-in does not answer under this name"}, 421)
    return await handler(request)


def only_with_token(secret: str, open_paths: tuple[str, ...]) -> Middleware:
    """Answer only who has a token that is signed with *secret* and has not expired; *open_paths*, and what is below, anybody."""
    import jwt

    @web.middleware
    async def look(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not any(request.path == path or request.path.startswith(f"{path}/") for path in open_paths):
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            try:
                if scheme.lower() != "bearer":
                    raise jwt.InvalidTokenError("there is none")
                jwt.decode(token.strip(), secret, algorithms=["HS256"], leeway=LEEWAY_S, options={"require": ["exp"]})
            except jwt.PyJWTError as exc:
                return answer({"error": f"a token signed with this service's secret is needed: {exc}"}, 401)
        return await handler(request)

    return look


def status_of(error: RequestError) -> int:
    """Return the HTTP status for one of the errors that handlers raise."""
    match error:
        case InvalidRequest():
            return 400
        case Overloaded() | Unavailable():
            return 503
        case DeadlineExceeded():
            return 504
        case BadGateway() | _:
            return 500


def log(line: str) -> None:
    """Write *line* to standard error."""
    sys.stderr.write(f"jarvis bridges: {line}\n")
    sys.stderr.flush()


class RequestQueue:
    """Lets one request at a time use an engine; a waiting request may be cancelled."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """
        Wait until no other request uses the engine, and hold it for the block; raises ``Overloaded`` when too many
        wait.
        """
        if self._waiting >= WAITING_LIMIT:
            raise Overloaded(f"{WAITING_LIMIT} requests are waiting already")
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()
