"""
Turns errors into answers: one table from an error to its HTTP status, and one body for all; but below ``/v1`` the one that
OpenAI's clients read.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET
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
    UpgradeRequired,
)
from jarvis_core.handlers.call import SECURITY_HEADERS
from jarvis_core.handlers.openai.wire import ErrorAnswer, ErrorFields
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
    UpgradeRequired: 426,
    RateLimited: 429,
    BadGateway: 502,
    Overloaded: 503,
    Unavailable: 503,
    DeadlineExceeded: 504,
}
INTERNAL = RequestError("Something went wrong here; the log has the details.")

OPENAI_PATHS = "/v1/"
"""What the paths begin with whose errors are in OpenAI's shape."""
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Of the other statuses below 500 the type is ``invalid_request_error``, from there on ``server_error``."""

_encoder = msgspec.json.Encoder()


def status_of(error: RequestError) -> int:
    """Return the HTTP status for *error*; 500 for a class that is not in the table."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def body_of(error: RequestError, request_id: str, path: str) -> bytes:
    """Return the JSON body for *error*, as clients of *path* read it."""
    if path.startswith(OPENAI_PATHS):
        return _encoder.encode(ErrorAnswer(openai_fields(error)))
    return _encoder.encode(ErrorBody(error.message, error.code, error.details, request_id))


def openai_fields(error: RequestError) -> ErrorFields:
    """Return *error* in the words of OpenAI's API; the codes are ours."""
    status = status_of(error)
    kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = (error.details or {}).get("path")
    return ErrorFields(
        message=error.message,
        type=kind,
        param=param.removeprefix("$.") if isinstance(param, str) else None,
        code=error.code,
        details=error.details or UNSET,
    )


def headers_of(error: RequestError) -> list[tuple[bytes, bytes]]:
    """Return the headers that *error* calls for, besides those of every answer."""
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, UpgradeRequired):
        headers.append((b"upgrade", b"websocket"))
    if isinstance(error, Stopping):
        # For proxies: a status alone does not tell them that they may retry with another server.
        headers.append((b"x-jarvis-stopping", b"1"))
    return headers


async def refuse_handshake(send: Send, error: RequestError, path: str) -> None:
    """Answer a WebSocket's handshake on *path* with an HTTP error."""
    request_id = log.request_id.get()
    own = headers_of(error)
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode()), *own, *SECURITY_HEADERS]
    await send({"type": "websocket.http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body_of(error, request_id, path)})
