"""
What a neighbour says when it cannot do what was asked, in whatever shape it says it.

Model servers put errors into bodies of every status, into single events of a stream, and into one another: OpenAI's
``{"error": {"message", "type", "code", "param"}}``, a bare string there, vLLM's ``{"object": "error", …}``, FastAPI's
``{"detail": [{"loc", "msg"}]}``, a message that is an object again, a list around it all. This is the one place that knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import msgspec
from msgspec import Struct

from jarvis_core.services.contract import NONSENSE

WORDS_LIMIT_CHARS = 300
NESTING_LIMIT = 6

_MESSAGES = ("message", "msg", "detail", "details", "error", "error_message", "description", "reason", "title")
"""Where the words are, the best first."""
_KINDS = ("code", "type", "kind", "status", "error_type", "error_code")
_STATUSES = ("code", "status", "status_code", "statusCode", "http_status")

_GOOD_CODES = ("ok", "200", "success")

_CONTEXT = re.compile(
    r"context[_ ]length[_ ]exceeded|exceed_context_size|maximum context length|(?:exceeds?|larger than|longer than)\b.{0,40}"
    r"\bcontext|context (?:size|length|window).{0,30}exceed|(?:prompt|input)(?: is)? too long|too many (?:input )?tokens",
    re.IGNORECASE | re.DOTALL,
)
_CONTEXT_TOKENS = re.compile(
    r"(?:maximum context length is|context (?:size|length|window)(?: is| of)?|n_ctx\W{1,4})\s*\(?(\d{2,8})",
    re.IGNORECASE,
)
_ANSWER_TOO_LONG = re.compile(r"max_(?:completion_)?tokens\b.{0,60}\btoo (?:large|big|high)", re.IGNORECASE)
_KEY = re.compile(
    r"invalid.{0,3}api.{0,3}key|incorrect api key|authentication|unauthori[sz]ed|invalid token", re.IGNORECASE
)
_LIMITED = re.compile(r"rate.?limit|quota|too many requests", re.IGNORECASE)
_BUSY = re.compile(r"overloaded|unavailable_error|loading model|service.?unavailable|server is busy", re.IGNORECASE)
_FILTERED = re.compile(r"content.?(?:filter|policy)|responsible.?ai", re.IGNORECASE)
_UNKNOWN_ENDPOINT = re.compile(r"(?:unexpected|unknown|no such|invalid) (?:endpoint|route|path|url)", re.IGNORECASE)
_BEYOND_RANGE = re.compile(
    r"too (?:large|big|high|long)|at most|less than|greater than|maximum|between|exceed", re.IGNORECASE
)
_CREDENTIALS = re.compile(r"\b(?:sk-[\w-]{4,}|Bearer\s+\S+|eyJ[\w-]{8,}\.[\w.-]+)")


class ServerError(Struct, frozen=True):
    """An error as a server told it."""

    words: str
    """The server's own, on one line, without anything that looks like a credential."""
    kind: str = ""
    """Its codes and types, as they are."""
    status: int = 0
    """As HTTP has them; 0 where it does not say."""
    params: tuple[str, ...] = ()
    """The fields of the request that it names by themselves."""
    context_tokens: int = 0
    """How long the context is, where that is what it says."""

    @property
    def is_context(self) -> bool:
        """Whether the prompt is longer than the model can read."""
        return bool(_CONTEXT.search(self.kind) or _CONTEXT.search(self.words))

    @property
    def is_key(self) -> bool:
        """Whether it is our key that is refused."""
        return self.status in (401, 403) or bool(_KEY.search(self.kind) or _KEY.search(self.words))

    @property
    def is_limited(self) -> bool:
        """Whether too much was asked lately."""
        return self.status == 429 or bool(_LIMITED.search(self.kind))

    @property
    def is_busy(self) -> bool:
        """Whether the server says that it cannot now, and may later."""
        return self.status in (503, 529) or bool(_BUSY.search(self.kind) or _BUSY.search(self.words))

    @property
    def is_filtered(self) -> bool:
        """Whether a filter keeps the question from the model."""
        return bool(_FILTERED.search(self.kind))

    @property
    def is_endpoint(self) -> bool:
        """Whether the address may be wrong: there is nothing under this path."""
        missing = self.status in (404, 405) and "model" not in self.words.lower()
        return missing or bool(_UNKNOWN_ENDPOINT.search(self.words))

    def refuses(self, name: str) -> bool:
        """Whether it is about the field *name* of the request."""
        if self.params:
            return name in self.params
        return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"{self.words} {self.kind}") is not None

    @property
    def is_about_answer(self) -> bool:
        """Whether it is not the prompt that is too long, but what was allowed for the answer."""
        return bool(_ANSWER_TOO_LONG.search(self.words))

    @property
    def is_about_value(self) -> bool:
        """Whether another value of what it refuses might do."""
        return bool(_BEYOND_RANGE.search(self.words))


def error_in_body(body: bytes, status: int = 0) -> ServerError | None:
    """Return the error that a whole *body* tells of; with an error's *status* there always is one."""
    try:
        value: object = msgspec.json.decode(body)
    except NONSENSE:
        if not status:
            return None
        text = body.decode(errors="replace").strip()
        return ServerError("" if text.startswith("<") else clean(text), status=status)
    error = error_in(value)
    if error is None and status:
        words = clean(_words_of(value))
        return ServerError(words, status=status)
    if error is not None and status:
        return msgspec.structs.replace(error, status=status)
    return error


def error_in(value: object) -> ServerError | None:
    """Return the error in a decoded body or event, None where it tells of none."""
    if isinstance(value, list):
        return next((error for one in cast("list[object]", value) if (error := error_in(one)) is not None), None)
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    inner = fields.get("error") or fields.get("errors")
    if inner:
        # ``{"error": true, "message": …}`` has its words beside it.
        return error_of(fields if isinstance(inner, bool | int) else inner)
    says_error = any(
        str(fields.get(name, "")).lower() in ("error", "failed", "failure") for name in ("object", "type", "status")
    )
    if says_error or fields.get("success") is False:
        return error_of(fields)
    if fields.get("choices") is None and any(fields.get(name) for name in ("detail", "message", "msg")):
        if fields.get("detail") or _status_of(fields) or str(fields.get("code") or "ok").lower() not in _GOOD_CODES:
            return error_of(fields)
        return None
    return next(
        (error_of(error) for choice in _dicts(fields.get("choices")) if (error := choice.get("error"))),
        None,
    )


def error_of(value: object) -> ServerError:
    """Return what is known to be an error, whatever shape it has: a text, or JSON that was decoded."""
    everything = list(_walk(value))
    kinds = [str(part[name]) for part in everything for name in _KINDS if isinstance(part.get(name), str | int)]
    params = [str(part["param"]) for part in everything if isinstance(part.get("param"), str)]
    for part in everything:
        place = part.get("loc")
        if isinstance(place, list):
            params += [str(name) for name in cast("list[object]", place) if isinstance(name, str) and name != "body"]
    words = clean(_words_of(value))
    tokens = next(
        (
            part[name]
            for part in everything
            for name in ("n_ctx", "max_context_length")
            if isinstance(part.get(name), int)
        ),
        0,
    )
    if not tokens and (told := _CONTEXT_TOKENS.search(words)) is not None:
        tokens = int(told[1])
    status = next((code for part in everything if (code := _status_of(part))), 0)
    return ServerError(words, clean(" ".join(kinds)), status, tuple(params), max(tokens, 0))


def clean(text: str) -> str:
    """Return *text* on one line, not too long, and without what looks like a credential."""
    text = "".join(character if character.isprintable() else " " for character in text[: 4 * WORDS_LIMIT_CHARS])
    return _CREDENTIALS.sub("…", " ".join(text.split()))[:WORDS_LIMIT_CHARS]


def _status_of(part: dict[str, Any]) -> int:
    for name in _STATUSES:
        text = str(part.get(name, ""))
        if len(text) == 3 and text.isascii() and text.isdigit() and 400 <= int(text) <= 599:
            return int(text)
    return 0


def _words_of(value: object, depth: int = 0) -> str:
    """Return the sentence in *value*; its JSON where none can be told."""
    if isinstance(value, str):
        nested = _decoded(value) if value[:1] in ("{", "[") and depth < NESTING_LIMIT else None
        return value if nested is None else _words_of(nested, depth + 1)
    if depth < NESTING_LIMIT and isinstance(value, list):
        return "; ".join(filter(None, (_words_of(one, depth + 1) for one in cast("list[object]", value)[:5])))
    if depth < NESTING_LIMIT and isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        for name in _MESSAGES:
            if (
                fields.get(name)
                and not isinstance(fields[name], bool)
                and (words := _words_of(fields[name], depth + 1))
            ):
                place = fields.get("loc")
                where = ".".join(map(str, cast("list[object]", place))) if isinstance(place, list) else ""
                return f"{where}: {words}" if where else words
        return "" if depth else json.dumps(fields)
    return "" if value is None else str(value)


def _decoded(text: str) -> object:
    try:
        return cast("object", msgspec.json.decode(text))
    except (*NONSENSE, ValueError):
        return None


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (one for one in value if isinstance(one, dict))


def _walk(value: object, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Give every object in *value* that may belong to the error, the outermost first."""
    if depth >= NESTING_LIMIT:
        return
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = _decoded(value)
    if isinstance(value, list):
        for one in cast("list[object]", value)[:5]:
            yield from _walk(one, depth + 1)
    elif isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        yield fields
        for name in (*_MESSAGES, "innererror", "metadata"):
            if isinstance(fields.get(name), dict | list | str):
                yield from _walk(fields[name], depth + 1)
