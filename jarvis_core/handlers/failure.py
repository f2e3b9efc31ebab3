"""Turns errors into answers: one table from an error to its HTTP status, and one body for all."""

from __future__ import annotations

import msgspec
from starlette.types import Send

from jarvis_core import log
from jarvis_core.errors import (
    BadGateway,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    MisdirectedRequest,
    NotFound,
    Overloaded,
    RateLimited,
    RequestError,
    Stopping,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from jarvis_core.handlers.call import SECURITY_HEADERS
from jarvis_core.handlers.wire import ErrorBody

STATUSES: dict[type[RequestError], int] = {
    InvalidJson: 400,
    InvalidRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    Conflict: 409,
    TooLarge: 413,
    UnsupportedMediaType: 415,
    MisdirectedRequest: 421,
    RateLimited: 429,
    BadGateway: 502,
    Overloaded: 503,
    Unavailable: 503,
    DeadlineExceeded: 504,
}
INTERNAL = RequestError("Something went wrong here; the log has the details.")

_encoder = msgspec.json.Encoder()


def status_of(error: RequestError) -> int:
    """Return the HTTP status for *error*; 500 for a class that is not in the table."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def body_of(error: RequestError, request_id: str) -> bytes:
    """Return the JSON body for *error*."""
    return _encoder.encode(ErrorBody(error.message, error.code, error.details, request_id))


def headers_of(error: RequestError) -> list[tuple[bytes, bytes]]:
    """Return the headers that *error* calls for, besides those of every answer."""
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, Stopping):
        # For proxies: a status alone does not tell them that they may retry with another server.
        headers.append((b"x-jarvis-stopping", b"1"))
    return headers


async def refuse_handshake(send: Send, error: RequestError) -> None:
    """Answer a WebSocket's handshake with an HTTP error."""
    request_id = log.request_id.get()
    own = headers_of(error)
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode()), *own, *SECURITY_HEADERS]
    await send({"type": "websocket.http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body_of(error, request_id)})
