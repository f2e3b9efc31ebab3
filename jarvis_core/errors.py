"""
The closed tree of errors.

Foreign errors become one of these where they enter (an adapter, the store, a decoder), with ``from exc``;
``handlers/failure.py`` alone decides what a client sees of each.

JarvisError
├── StartError              the process cannot start: one line for a person, then exit
│   └── SettingsError       a setting is unknown or malformed
└── RequestError            a request cannot be answered as asked; has a code
    ├── InvalidJson         the body is not JSON
    ├── InvalidRequest      a field is missing, wrong-typed or out of range
    │   └── ContextTooLong  more than the model can read
    ├── Unauthenticated     no or bad credentials
    ├── Forbidden           somebody else's
    ├── NotFound            unknown path or id
    │   └── UnknownModel    no model of this name
    ├── MethodNotAllowed    known path, other method
    ├── UpgradeRequired     a plain request where only a WebSocket is answered
    ├── Conflict            another turn runs, or an idempotency key used for another request
    ├── MisdirectedRequest  asked under a name that is not this server's
    ├── TooLarge            a body or message over its limit
    ├── UnsupportedMediaType
    ├── RateLimited         too many requests from one caller
    ├── Overloaded          load is shed
    ├── Unavailable         a neighbour or the database is away
    │   └── Stopping        this worker takes no new turns; another one may
    ├── BadGateway          a neighbour answered nonsense or reported a failure
    └── DeadlineExceeded    a neighbour missed its deadline
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class JarvisError(Exception):
    """Any error that this package raises on purpose."""


class StartError(JarvisError):
    """
    The process cannot start.

    The message is one line: what is wrong and what to do about it. The command line prints it and exits with 1.
    """


class SettingsError(StartError):
    """A setting is unknown or malformed; the message names it."""


class RequestError(JarvisError):
    """
    A request cannot be answered as asked.

    *message* is one sentence for a person and never holds a secret, a path or a stack; *details* is a JSON object for
    programs; *retry_after_s* is when trying again makes sense.
    """

    code: ClassVar[str] = "internal"

    def __init__(
        self, message: str, *, details: dict[str, Any] | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s

    def bare(self) -> Self:
        """
        Return the same error without its traceback, cause and context.

        For errors that are stored: the frames of a traceback hold every local variable, such as megabytes of an answer.
        """
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__)
        return error


class InvalidJson(RequestError):
    """The body is not JSON."""

    code = "invalid_json"


class InvalidRequest(RequestError):
    """A field is missing, wrong-typed or out of range; ``details`` has ``path`` and ``rule``."""

    code = "invalid_request"

    @classmethod
    def field(cls, path: str, rule: str) -> InvalidRequest:
        """Name the field at *path* (``$.content``) and the *rule* that it breaks."""
        return cls(f"{path}: {rule}", details={"path": path, "rule": rule})


class ContextTooLong(InvalidRequest):
    """More than the model can read; in the words of OpenAI's API, whose clients look at the code."""

    code = "context_length_exceeded"

    def __init__(self, details: dict[str, Any] | None = None) -> None:
        super().__init__(
            "messages: are longer than the model can read", details={**(details or {}), "path": "$.messages"}
        )


class Unauthenticated(RequestError):
    """No or bad credentials; *guessed* where they may have been made up, which is counted against their sender."""

    code = "unauthenticated"

    def __init__(self, message: str, *, guessed: bool = False) -> None:
        super().__init__(message)
        self.guessed = guessed


class Forbidden(RequestError):
    """Access to another user's, or from a page that may not call."""

    code = "forbidden"


class NotFound(RequestError):
    """An unknown path or id; another user's id is unknown too."""

    code = "not_found"


class UnknownModel(NotFound):
    """A model that is not listed; in the words of OpenAI's API, whose clients look at the code."""

    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no model {name[:100]!r}; GET /v1/models lists them.", details={"path": "$.model"})


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method; *allow* is the value of the Allow header."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message, details={"allow": allow})
        self.allow = allow


class UpgradeRequired(RequestError):
    """The path is a WebSocket's, and the request does not ask for one."""

    code = "upgrade_required"


class Conflict(RequestError):
    """Another turn runs in the conversation, or an idempotency key was used for another request."""

    code = "conflict"


class MisdirectedRequest(RequestError):
    """An open server was asked under a name that any page of the web may have."""

    code = "misdirected_request"


class TooLarge(RequestError):
    """A body or message is over its limit."""

    code = "too_large"


class UnsupportedMediaType(RequestError):
    """The route does not take a body of this kind."""

    code = "unsupported_media_type"


class RateLimited(RequestError):
    """Too many requests from one caller."""

    code = "rate_limited"


class Overloaded(RequestError):
    """Load is shed; trying again later makes sense."""

    code = "overloaded"


class Unavailable(RequestError):
    """A neighbour or the database is away; *retry_after_s* says when to try again."""

    code = "unavailable"


class Stopping(Unavailable):
    """
    This worker takes no new turns. Nothing was begun or stored: the request may be sent to another worker at once.
    """


class BadGateway(RequestError):
    """A neighbour answered nonsense, or reported a failure."""

    code = "bad_gateway"


class DeadlineExceeded(RequestError):
    """A neighbour missed its deadline."""

    code = "timeout"


BY_CODE: dict[str, type[RequestError]] = {kind.code: kind for kind in RequestError.__subclasses__()}
"""The class of each code; ``Stopping``, which shares its parent's code, is not told between processes."""


def _codes(kind: type[RequestError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


CODES = tuple(sorted(_codes(RequestError)))
"""Every code that an error may have."""


def of_code(code: str, message: str, details: dict[str, Any] | None = None) -> RequestError:
    """Return the error with *code*, as another process told of it; an unknown code is a defect."""
    kind = BY_CODE.get(code, RequestError)
    error = RequestError(message) if kind is MethodNotAllowed else kind(message)
    error.details = details
    return error
