"""``GET /openapi.json``: OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1), from the routes and the structs they use."""

from __future__ import annotations

import typing
from http import HTTPStatus
from typing import Any

import msgspec

from jarvis_core import __version__
from jarvis_core.handlers.failure import STATUSES
from jarvis_core.handlers.router import Route
from jarvis_core.handlers.schemas import reference, schemas
from jarvis_core.handlers.wire import ErrorBody

BYTES = {"type": "string", "format": "binary"}
FORM = {
    "title": "Recording",
    "description": "An upload from a page's form: the file, and the fields that JSON has beside it.",
    "type": "object",
    "properties": {
        "file": {**BYTES, "description": "The recording."},
        "language": {"type": "string", "description": "What is spoken; `auto` finds out."},
        "format": {"type": "string", "description": "`pcm16` or `f32`, of samples without a header."},
        "sample_rate": {"type": "integer", "description": "Of samples without a header, in Hz."},
    },
    "required": ["file"],
}
EVENTS = {
    "type": "string",
    "description": "Server-sent events: each has an event of `StreamEvent` as its `data`, and the event's type as its `event`.",
    "contentMediaType": "text/event-stream",
    "contentSchema": reference("StreamEvent"),
}

TAGS = {
    "chat": "Turns: what the user says, and the assistant's answer.",
    "conversations": "What was said.",
    "memory": "What is remembered.",
    "voice": "Audio to text, and text to audio.",
    "server": "How the core is.",
}
WITH_A_BODY = (413, 415)
"""Statuses of answers to bodies alone."""
ERRORS = {*STATUSES.values(), 500} - {426}
"""Statuses of errors; the one that is left out is no route's of the document."""

HEADERS = {
    "RequestId": {
        "required": True,
        "schema": {"type": "string"},
        "description": "The request's own id where it had one, else a new one; the log has it too.",
    },
    "RetryAfter": {"schema": {"type": "integer"}, "description": "Seconds until the next try makes sense."},
    "RateLimit": {"schema": {"type": "string"}, "description": "What is left (draft-ietf-httpapi-ratelimit-headers)."},
    "RateLimitPolicy": {"schema": {"type": "string"}, "description": "The limit, and its window in seconds."},
    "ServerTiming": {"schema": {"type": "string"}, "description": "How long the parts of the turn took, in ms."},
    "Allow": {"schema": {"type": "string"}, "description": "The methods that the path has."},
    "Authenticate": {"schema": {"type": "string"}, "description": "`Bearer`."},
}
"""Of answers."""


def _headers(**names: str) -> dict[str, Any]:
    return {name.replace("_", "-"): {"$ref": f"#/components/headers/{key}"} for name, key in names.items()}


REQUEST_ID = _headers(X_Request_ID="RequestId")
HEADERS_OF = {
    401: _headers(WWW_Authenticate="Authenticate"),
    405: _headers(Allow="Allow"),
    429: _headers(Retry_After="RetryAfter", RateLimit="RateLimit", RateLimit_Policy="RateLimitPolicy"),
    503: _headers(Retry_After="RetryAfter"),
}
"""By status; the limit's where the server has one, and then every answer has them."""

AN_ID = "01a20ae2-174a-7232-a16a-74ffd537723c"
EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {"content": "What is on my list for today?"},
    "OutputsRequest": {"outputs": [{"call_id": "call_1", "output": '{"temperature": 21}'}]},
    "ApproveRequest": {"approve": True},
    "CreateConversation": {"title": "Groceries"},
    "ChangeConversation": {"archived": True},
    "AddMemory": {"content": "The spare key is at the neighbour's.", "importance": 0.8},
    "SearchMemories": {"query": "Where is the spare key?", "limit": 5},
    "ChangeMemory": {"importance": 0.9},
    "TranscribeRequest": {"audio_data": "AAAAAAAAAAA=", "format": "pcm16", "sample_rate": 16_000},
    "SynthesizeRequest": {"text": "Hello! What can I do?", "language": "en"},
}
"""A request of each kind."""


def document(routes: list[Route]) -> bytes:
    """Return the document for *routes* as JSON."""
    answers: list[Any] = [ErrorBody]
    for route in routes:
        answers += [kind for kind in (route.response, *(other[1] for other in route.other)) if kind]
    components = schemas(answers, [route.request for route in routes if route.request])
    for name, example in EXAMPLES.items():
        if name in components:
            components[name]["examples"] = [example]
    components["Recording"] = FORM
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return msgspec.json.encode(
        {
            "openapi": "3.1.1",
            "info": {
                "title": "Jarvis Core",
                "version": __version__,
                "license": {"name": "MIT", "identifier": "MIT"},
                "description": "The core of a self-hosted voice assistant. Its WebSocket, `/ws`, takes `ClientEvent` and "
                "sends `ServerEvent`, each a text message of JSON; streams over HTTP have `StreamEvent`.",
            },
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}, {}],
            "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": components,
                "responses": _errors(),
                "headers": HEADERS,
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "A JWT or an API key; not needed while the server is open.",
                    }
                },
            },
        }
    )


def operation_id(route: Route) -> str:
    """Return the name of *route*: its handler's, as JavaScript writes names."""
    first, *rest = route.handler.__name__.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _tag(path: str) -> str:
    parts = path.split("/")
    if parts[1] != "api":
        return "server"
    return "conversations" if parts[3:] and parts[3] in ("conversation", "conversations", "history") else parts[2]


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": operation_id(route),
        "tags": [_tag(route.path)],
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.description:
        operation["description"] = route.description
    if route.public:
        operation["security"] = []
    if route.request is not None:
        content: dict[str, Any] = {"application/json": {"schema": _schema(route.request)}}
        for kind in route.uploads:
            content[kind] = {"schema": reference("Recording") if kind == "multipart/form-data" else BYTES}
        # Nothing at all is an empty recording.
        operation["requestBody"] = {"required": not route.uploads, "content": content}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if "{id}" in route.path:
        schema = {"type": "string", "format": "uuid"}
        parameters.append({"name": "id", "in": "path", "required": True, "schema": schema, "description": "Its id."})
    parameters += [
        {
            "name": field.name,
            "in": "query",
            "schema": field.schema(),
            "description": field.description.replace("``", "`"),
        }
        for field in route.query
    ]
    for name, description in route.headers:
        parameters.append({"name": name, "in": "header", "schema": {"type": "string"}, "description": description})
    return parameters


def _responses(route: Route) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "Done.", "headers": REQUEST_ID}
    if route.response is not None:
        ok["content"] = {"application/json": {"schema": _schema(route.response)}}
    else:
        events = route.media_type == "text/event-stream"
        ok["content"] = {route.media_type: {"schema": EVENTS if events else {"type": "string"}}}
    for kind in route.media:
        ok["content"][kind] = {"schema": BYTES}
    if route.path == "/api/chat":
        ok["headers"] = {**REQUEST_ID, **_headers(Server_Timing="ServerTiming")}
    responses: dict[str, Any] = {"200": ok}
    for status, struct, description in route.other:
        responses[str(status)] = {"description": description, "headers": REQUEST_ID}
        if struct is not None:
            responses[str(status)]["content"] = {"application/json": {"schema": _schema(struct)}}
    for status in sorted(ERRORS):
        if (route.public and status not in (405, 421, 500)) or (route.request is None and status in WITH_A_BODY):
            continue
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{_name(status)}"})
    return responses


def _errors() -> dict[str, Any]:
    return {
        _name(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {**REQUEST_ID, **HEADERS_OF.get(status, {})},
            "content": {"application/json": {"schema": _schema(ErrorBody)}},
        }
        for status in sorted(ERRORS)
    }


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


def _schema(kind: Any) -> dict[str, Any]:
    if typing.get_origin(kind) is list:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0])}
    return reference(kind.__name__)
