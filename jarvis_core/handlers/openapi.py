"""``GET /openapi.json``: OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1), from the routes and the structs they use."""

from __future__ import annotations

import typing
from http import HTTPStatus
from typing import Any

import msgspec

from jarvis_core import __version__
from jarvis_core.handlers.failure import STATUSES
from jarvis_core.handlers.router import Route
from jarvis_core.handlers.wire import ErrorBody

REFERENCE = "#/components/schemas/{name}"
BYTES = {"type": "string", "format": "binary"}
FORM = {
    "type": "object",
    "properties": {
        "file": BYTES,
        "language": {"type": "string"},
        "format": {"type": "string"},
        "sample_rate": {"type": "integer"},
    },
    "required": ["file"],
}
"""An upload from a page's form: the file, and the fields that JSON has beside it."""

LIMITED = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until the next try makes sense."},
    "RateLimit": {"schema": {"type": "string"}, "description": "What is left (draft-ietf-httpapi-ratelimit-headers)."},
    "RateLimit-Policy": {"schema": {"type": "string"}, "description": "The limit, and its window in seconds."},
}
"""Headers of an answer with status 429; the last two where the server has a limit, and then every answer has them."""


def document(routes: list[Route]) -> bytes:
    """Return the document for *routes* as JSON."""
    kinds: list[Any] = [ErrorBody]
    for route in routes:
        kinds += [kind for kind in (route.request, route.response, *(other[1] for other in route.other)) if kind]
    _, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
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
                "description": "The core of a self-hosted voice assistant. Every answer carries X-Request-ID.",
            },
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}, {}],
            "paths": paths,
            "components": {
                "schemas": components,
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


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.handler.__name__}",
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.public:
        operation["security"] = []
    if route.request is not None:
        content: dict[str, Any] = {"application/json": {"schema": _reference(route.request)}}
        for kind in route.uploads:
            content[kind] = {"schema": FORM if kind == "multipart/form-data" else BYTES}
        # Nothing at all is an empty recording.
        operation["requestBody"] = {"required": not route.uploads, "content": content}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if "{id}" in route.path:
        parameters.append(
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
        )
    parameters += [
        {"name": field.name, "in": "query", "schema": field.schema(), "description": field.description}
        for field in route.query
    ]
    for name, description in route.headers:
        parameters.append({"name": name, "in": "header", "schema": {"type": "string"}, "description": description})
    return parameters


def _responses(route: Route) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "Done."}
    if route.response is not None:
        ok["content"] = {"application/json": {"schema": _reference(route.response)}}
    else:
        ok["content"] = {route.media_type: {"schema": {"type": "string"}}}
    if "text/event-stream" in ok["content"]:
        # A stream of events is no text that a schema could describe.
        ok["content"]["text/event-stream"] = {}
    for kind in route.media:
        ok["content"][kind] = {"schema": BYTES}
    responses: dict[str, Any] = {"200": ok}
    for status, struct, description in route.other:
        if status == 204:
            responses["204"] = {"description": description}
        elif struct is None:
            ok["content"]["text/event-stream"] = {}
        else:
            responses[str(status)] = {
                "description": description,
                "content": {"application/json": {"schema": _reference(struct)}},
            }
    for status in sorted((set(STATUSES.values()) | {500}) - {426}):
        if route.public and status not in (405, 421, 500):
            continue
        responses.setdefault(
            str(status),
            {
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"schema": _reference(ErrorBody)}},
                **({"headers": LIMITED} if status == 429 else {}),
            },
        )
    return responses


def _reference(kind: Any) -> dict[str, Any]:
    if typing.get_origin(kind) is list:
        return {"type": "array", "items": _reference(typing.get_args(kind)[0])}
    return {"$ref": REFERENCE.format(name=kind.__name__)}
