"""A client that holds every answer against the OpenAPI document, and against what all answers have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import jsonschema  # type: ignore[import-untyped]  # it has no annotations
import msgspec

from tests.handlers.events import Event, iterate_events, read_events

ANSWER_LIMIT_S = 10.0
LINE_LIMIT_BYTES = 4 << 20
"""Of an event's data: a whole text is one event."""
ERROR = "ErrorBody"
STREAMED = {
    "/api/chat": "/api/chat/stream",
    "/api/chat/response/{id}/outputs": "/api/chat/stream",
    "/api/voice/synthesize": "/api/voice/speech",
}
"""Paths that answer as another does where they are asked to."""
TIMES = {"timestamp", "created_at", "updated_at", "ended_at"}


class Answer:
    """A whole answer."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.content_type = response.content_type
        self.body = body

    @property
    def json(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        code: str = self.json["code"]
        return code

    @property
    def error(self) -> tuple[int, str]:
        """Status and code of an error."""
        return self.status, self.code

    @property
    def path(self) -> str:
        """Of the field that a validation error names."""
        path: str = self.json["details"]["path"]
        return path


class Document:
    """The OpenAPI document as a judge of answers; a field that it does not name is wrong."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.paths: dict[str, dict[str, Any]] = document["paths"]
        self._responses: dict[str, Any] = document["components"]["responses"]
        self._components = {"schemas": _closed(document["components"]["schemas"])}

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Raise ``AssertionError`` or ``ValidationError`` when *answer* is not what the document promises."""
        if path == "/openapi.json" and answer.status == 200:
            return  # it does not describe itself
        template = self._template(path)
        if answer.status == 200 and answer.content_type != "application/json":
            template = STREAMED.get(template, template)
        operations = self.paths.get(template, {})
        operation = operations.get("get" if method == "HEAD" else method.lower())
        if operation is None:
            assert answer.status in (405 if operations else 404, 421)
            self._validate({"$ref": f"#/components/schemas/{ERROR}"}, answer.json)
            return
        assert str(answer.status) in operation["responses"], f"{answer.status} is not in the document"
        response = operation["responses"][str(answer.status)]
        if "$ref" in response:
            response = self._responses[response["$ref"].rpartition("/")[2]]
        content = response["content"]
        assert answer.content_type in content
        if answer.content_type == "application/json" and method != "HEAD":
            self._validate(content["application/json"]["schema"], answer.json)

    def check_event(self, union: str, event: Mapping[str, Any]) -> None:
        """Raise ``KeyError`` or ``ValidationError`` when *event* is none of *union*, or not what its schema promises."""
        reference = self._components["schemas"][union]["discriminator"]["mapping"][event["type"]]
        self._validate({"$ref": reference}, event)

    def check_examples(self, reference: str) -> None:
        """Raise ``KeyError`` where the schema that *reference* names has no example, ``ValidationError`` where one is wrong."""
        for example in self._components["schemas"][reference.rpartition("/")[2]]["examples"]:
            self._validate({"$ref": reference}, example)

    def _template(self, path: str) -> str:
        if path in self.paths:
            return path
        parts = path.split("/")
        for template in self.paths:
            pattern = template.split("/")
            if len(pattern) == len(parts) and all(
                (part and want.startswith("{")) or part == want for want, part in zip(pattern, parts, strict=True)
            ):
                return template
        return ""

    def _validate(self, schema: Mapping[str, Any], value: object) -> None:
        validator = jsonschema.Draft202012Validator(
            {**schema, "components": self._components}, format_checker=jsonschema.FormatChecker()
        )
        validator.validate(value)


def _closed(schema: Any) -> Any:
    """Return *schema* such that objects with properties have no others."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in closed else closed


def _times(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _times(part)
    elif isinstance(value, dict):
        for name, part in value.items():
            if name in TIMES and isinstance(part, str):
                yield part
            else:
                yield from _times(part)


class Api:
    """
    Asks one server; enter it (``async with``).

    *token* is sent as the credentials of every request, and *address* as that of which a proxy tells.
    """

    def __init__(self, url: str, *, token: str = "", address: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if address:
            headers["X-Forwarded-For"] = address
        self.session = aiohttp.ClientSession(
            url,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S),
            read_bufsize=LINE_LIMIT_BYTES,
            skip_auto_headers=("Content-Type",),
        )
        self._document: Document | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def document(self) -> Document:
        """Fetch the document, once."""
        if self._document is None:
            async with self.session.get("/openapi.json") as response:
                self._document = Document(await response.json())
        return self._document

    async def ask(self, method: str, path: str, json: object = None, **options: Any) -> Answer:
        """Send a request and return its answer, which has passed all checks; *options* are aiohttp's."""
        if json is not None:
            options["data"] = msgspec.json.encode(json)
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        async with self.session.request(method, path, **options) as response:
            answer = Answer(response, await response.read())
        assert answer.headers["X-Request-ID"]
        if answer.status == 204:
            return answer
        (await self.document()).check(method, path.partition("?")[0], answer)
        if answer.content_type == "application/json" and method != "HEAD":
            body = answer.json
            assert all(time.endswith("Z") for time in _times(body))
            if answer.status >= 400 and "code" in body:
                assert body["request_id"] == answer.headers["X-Request-ID"]
        return answer

    async def get(self, path: str, **options: Any) -> Answer:
        """Send a GET."""
        return await self.ask("GET", path, **options)

    async def post(self, path: str, json: object = None, **options: Any) -> Answer:
        """Send a POST."""
        return await self.ask("POST", path, json, **options)

    async def say(self, content: str, **fields: object) -> Any:
        """Chat, and return the body of the answer, which is a success."""
        answer = await self.post("/api/chat", {"content": content, **fields})
        assert answer.status == 200, answer.body
        return answer.json

    @asynccontextmanager
    async def stream(self, content: str, **fields: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """Chat with ``stream: true``, and lend the open answer; leaving closes its connection."""
        response = await self.session.post("/api/chat", json={"content": content, "stream": True, **fields})
        try:
            assert response.status == 200, await response.text()
            yield response
        finally:
            response.close()

    async def follow(self, response_id: str, **options: Any) -> list[Event]:
        """Return the events of a response to its end."""
        async with self.session.get(f"/api/chat/response/{response_id}/events", **options) as response:
            events = await read_events(response)
        document = await self.document()
        for event in events:
            document.check_event("StreamEvent", event.data)
        return events

    async def messages(self, conversation_id: str) -> list[Any]:
        """Return the messages of a conversation, oldest first."""
        answer = await self.get(f"/api/chat/history/{conversation_id}")
        assert answer.status == 200
        messages: list[Any] = answer.json["messages"]
        return messages

    async def history(self, conversation_id: str) -> list[tuple[str, str, str]]:
        """Return (role, content, status) of each message."""
        messages = await self.messages(conversation_id)
        return [(message["role"], message["content"], message["status"]) for message in messages]

    async def state(self, response_id: str) -> Any:
        """Return a response's state."""
        answer = await self.get(f"/api/chat/response/{response_id}")
        assert answer.status == 200
        return answer.json


async def created(response: aiohttp.ClientResponse) -> Any:
    """Return the response object of the first event."""
    event = await anext(iterate_events(response))
    assert event.name == "response.created"
    return event.data["response"]


async def in_flight(api: Api) -> float:
    """Return how many requests the server is answering, this one included."""
    text = (await api.get("/metrics")).body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("jarvis_http_in_flight "))
