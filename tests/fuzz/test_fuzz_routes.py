"""Every route of the document, with what it allows, nearly allows and does not: always an answer, and one of the document's."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from jarvis_core.handlers.failure import STATUSES
from tests.fuzz.conftest import KEY, fuzzing
from tests.fuzz.schemas import ANYTHING, TEXTS, mutants, values
from tests.handlers.rest.api import Answer, Document
from tests.system.server import REPOSITORY, Server

ANSWER_LIMIT_S = 120.0
"""Five thousand characters at a tenth of the speed are forty minutes of audio, whose encoding takes a busy machine half a minute."""
CODES = {(status, kind.code) for kind, status in STATUSES.items()}
NEIGHBOURS = {502, 503, 504}
"""What may be said where a neighbour cannot do what is asked; every other 5xx is a defect."""
CLIPS = [(REPOSITORY / "tests/fixtures/audio" / name).read_bytes() for name in ("fx16k_en_1.webm", "fx16k_en_1.mp3")]
MEDIA_TYPES = [
    "application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "audio/wav", "audio/webm",
    "application/octet-stream", "multipart/form-data", "multipart/form-data; boundary=x", "application/ld+json", "", ";", "é",
]  # fmt: skip


class Received(Answer):
    """An answer that came without an event loop."""

    def __init__(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        self.status = answer.status
        self.headers = CIMultiDict(answer.getheaders())  # type: ignore[assignment]  # it reads the same
        self.content_type = answer.getheader("Content-Type", "").partition(";")[0]
        self.body = body


class Client:
    """Asks the server over one connection, as long as that lives."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_LIMIT_S)
        self.document = self._read("/openapi.json")
        self.judge = Document(self.document)
        conversation = self._read("/api/chat", {"content": "Bonjour"})
        memory = self._read("/api/memory/add", {"content": "Le vélo est au garage."})
        self.ids = [conversation["id"], conversation["conversation_id"], memory["id"]]
        self.operations = [
            (method.upper(), path, operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        ]
        """(method, path, what the document says)"""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Received:
        """Send a request and return its answer; fails where there is none within ``ANSWER_LIMIT_S``."""
        try:
            return self._ask(method, target, body, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A connection that was kept may be closed at any time: once more over a new one.
            self._connection.close()
            return self._ask(method, target, body, headers)
        except TimeoutError:
            self._connection.close()
            raise AssertionError(f"no answer to {method} {target} {headers} {body!r}") from None

    def _ask(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Received:
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        return Received(answer, answer.read())

    def _read(self, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        method = "GET" if body is None else "POST"
        answer = self.ask(method, path, None if body is None else json.dumps(body).encode(), headers)
        assert answer.status == 200, answer.body
        return answer.json


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    """Give a client that knows the document, and has something of its own."""
    client = Client(server)
    yield client
    client.close()


@st.composite
def requests(draw: st.DrawFn, client: Client) -> tuple[str, str, bytes | None, dict[str, str]]:
    """Make up a request: method, target, body, headers."""
    method, path, operation = draw(st.sampled_from(client.operations))
    if "{id}" in path:
        one = draw(st.one_of(st.sampled_from(client.ids), st.uuids().map(str), TEXTS))
        path = path.replace("{id}", quote(one.encode("utf-8", "surrogatepass"), safe=""))
    headers = {"Authorization": f"Bearer {KEY}"}
    query: dict[str, Any] = {}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" or draw(st.integers(0, 2)) == 0:
            continue
        sound = values(parameter["schema"], {}).map(
            lambda value: str(value).lower() if value in (True, False) else value
        )
        value = draw(st.one_of(sound, TEXTS))
        if parameter["in"] == "query":
            query[parameter["name"]] = value
        else:
            headers[parameter["name"]] = as_header(str(value))
    if draw(st.integers(0, 9)) == 0:
        query[draw(TEXTS)] = draw(TEXTS)
    pairs = [
        (name.encode("utf-8", "surrogatepass"), str(one).encode("utf-8", "surrogatepass"))
        for name, one in query.items()
    ]
    target = path + ("?" + urlencode(pairs) if pairs else "")
    if draw(st.integers(0, 19)) == 0:
        target += "?" + quote(draw(st.binary(max_size=20)), safe="%&=;+")
    if draw(st.integers(0, 4)) == 0:
        headers["Accept"] = as_header(
            draw(st.one_of(st.sampled_from(["audio/*", "text/event-stream", "audio/ogg"]), TEXTS))
        )
    if draw(st.integers(0, 9)) == 0:
        headers["X-Request-ID"] = as_header(draw(TEXTS))
    return method, target, draw(bodies(operation, client, headers)), headers


@st.composite
def bodies(draw: st.DrawFn, operation: dict[str, Any], client: Client, headers: dict[str, str]) -> bytes | None:
    """Make up a body, and put its type into *headers*."""
    if "requestBody" not in operation:
        return draw(st.sampled_from([None, None, b"", b"{}", b"["]))
    content = operation["requestBody"]["content"]
    headers["Content-Type"] = "application/json"
    way = draw(st.integers(0, 11))
    if way == 0:
        headers["Content-Type"] = draw(st.sampled_from(MEDIA_TYPES))
    if way == 1:
        return draw(st.binary(max_size=200))
    if way == 2 and len(content) > 1:
        headers["Content-Type"] = draw(st.sampled_from(["audio/wav", "application/octet-stream"]))
        clip = draw(st.sampled_from(CLIPS))
        return clip[: draw(st.integers(0, len(clip)))] if draw(st.booleans()) else draw(st.binary(max_size=400))
    if way == 3:
        return json.dumps(draw(ANYTHING)).encode()
    sound = values(content["application/json"]["schema"], client.document["components"]["schemas"])
    made = draw(mutants(sound) if way < 8 else sound)
    if isinstance(made, dict):
        for name in ("conversation_id", "supersedes"):
            if name in made and draw(st.booleans()):
                made[name] = draw(st.sampled_from(client.ids))
    encoded = json.dumps(made, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return encoded[: draw(st.integers(0, len(encoded)))] if way == 4 else encoded


def as_header(text: str) -> str:
    """Return *text* as a header may hold it: one line of Latin-1."""
    return "".join(one for one in text if one == "\t" or (" " <= one <= "\xff" and one != "\x7f")).strip()


def check(client: Client, method: str, target: str, answer: Received) -> None:
    """Hold an answer against the document and against what all answers have."""
    assert answer.headers["X-Request-ID"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.status < 500 or answer.status in NEIGHBOURS, answer.body
    client.judge.check(method, target.partition("?")[0], answer)
    if answer.status >= 400 and not (answer.status == 503 and target.startswith(("/health", "/ready"))):
        assert answer.json.keys() == {"error", "code", "details", "request_id"}
        assert (answer.status, answer.code) in CODES
        assert answer.json["request_id"] == answer.headers["X-Request-ID"]


def test_every_request_has_an_answer(client: Client) -> None:
    """Whatever is asked, the answer comes, is one that the document names, and is no defect."""
    statuses: dict[int, int] = {}

    @fuzzing(0.85, 900)
    @given(requests(client))
    def ask(request: tuple[str, str, bytes | None, dict[str, str]]) -> None:
        answer = client.ask(*request)
        check(client, request[0], request[1], answer)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1

    ask()
    # Both sides of every fence were walked on.
    assert {200, 400, 404} <= statuses.keys(), statuses
    assert statuses[200] > sum(statuses.values()) / 10
