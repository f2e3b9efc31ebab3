"""What clients send: everything that a contract refuses is refused by name, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import STRICT

JSON = {"Content-Type": "application/json"}
CHAT = "/api/chat"


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """Give a body without a declared length."""
    for part in parts:
        yield part


# Bodies that are not JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"FIELD",
        b'{"FIELD": "x"',
        b'{"FIELD": "x"} {}',
        b"{'FIELD': 'x'}",
        b'{"FIELD": "x",}',
        b'{"FIELD": "\xff\xfe"}',
        b'{"FIELD": "\xc3"}',
        b'{"FIELD": "\xed\xa0\x80"}',
        b'{"FIELD": "\\ud800"}',
        b'{"FIELD": "\\udc00 alone"}',
        b'{"FIELD": "a\nb"}',
        b'{"FIELD": "x", "temperature": NaN}',
        b'{"FIELD": "x", "temperature": Infinity}',
        b'{"a":' * 100_000,
        b'{"FIELD": "x", "ignored": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:36]),
)
@pytest.mark.parametrize(("path", "field"), [(CHAT, b"content"), ("/api/chat/conversation", b"title")])
async def test_not_json(api: Api, bridges: FakeBridges, path: str, field: bytes, body: bytes) -> None:
    """A body that is not JSON in UTF-8 is 400, nesting without end and lone surrogates too; no model is asked."""
    answer = await api.post(path, data=body.replace(b"FIELD", field), headers=JSON)
    assert answer.error == (400, "invalid_json")
    assert bridges.requests_seen["/api/llm/generate"] == 0


# Fields


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([], "$"),
        ("content", "$"),
        (None, "$"),
        ({}, "$"),
        ({"message": "x"}, "$"),
        ({"content": None}, "$.content"),
        ({"content": 1}, "$.content"),
        ({"content": ["x"]}, "$.content"),
        ({"content": ""}, "$.content"),
        ({"content": " \t\r\n\u00a0\u2003"}, "$.content"),
        ({"content": "a\0b"}, "$.content"),
        ({"content": "x" * 10_001}, "$.content"),
        ({"content": "é" * 10_001}, "$.content"),
        ({"content": "x", "conversation_id": 7}, "$.conversation_id"),
        ({"content": "x", "system_prompt": 7}, "$.system_prompt"),
        ({"content": "x", "system_prompt": "x" * 32_001}, "$.system_prompt"),
        ({"content": "x", "system_prompt": "a\0b"}, "$.system_prompt"),
        ({"content": "x", "temperature": "0.5"}, "$.temperature"),
        ({"content": "x", "temperature": -0.01}, "$.temperature"),
        ({"content": "x", "temperature": 2.01}, "$.temperature"),
        ({"content": "x", "max_tokens": 0}, "$.max_tokens"),
        ({"content": "x", "max_tokens": 32_001}, "$.max_tokens"),
        ({"content": "x", "max_tokens": 1.5}, "$.max_tokens"),
        ({"content": "x", "max_tokens": 10**30}, "$.max_tokens"),
        ({"content": "x", "max_tokens": True}, "$.max_tokens"),
        ({"content": "x", "use_memory": "yes"}, "$.use_memory"),
        ({"content": "x", "stream": 1}, "$.stream"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_wrong_field(api: Api, bridges: FakeBridges, body: Any, path: str) -> None:
    """A missing, wrong-typed or out-of-range field is 400 and named by its path; nothing is stored, no model asked."""
    before = (await api.get("/api/chat/conversations?limit=1")).json
    answer = await api.ask("POST", CHAT, data=json.dumps(body), headers=JSON)
    assert answer.error == (400, "invalid_request")
    assert answer.path == path
    assert answer.json["details"]["rule"]
    assert answer.json["error"].startswith(path)
    assert bridges.requests_seen["/api/llm/generate"] == 0
    assert (await api.get("/api/chat/conversations?limit=1")).json == before


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "x" * 10_000},
        {"content": "é" * 10_000},
        {"content": "😀" * 10_000},
        {"content": "\u200b\ufeff\u202e"},
        {"content": "x", "system_prompt": "y" * 32_000},
        {"content": "x", "system_prompt": ""},
        {"content": "x", "system_prompt": None, "temperature": None, "max_tokens": None, "conversation_id": None},
        {"content": "x", "temperature": 0, "max_tokens": 1},
        {"content": "x", "temperature": 2, "max_tokens": 32_000},
        {"content": "x", "use_memory": False, "unknown": {"ignored": [1, 2]}},
    ],
    ids=lambda fields: repr(fields)[:60],
)
async def test_field_at_its_limit(api: Api, fields: dict[str, Any]) -> None:
    """What is just within its limits is taken, limits count characters, null is absent, and unknown fields are ignored."""
    answer = await api.say(**fields)
    assert answer["status"] in ("completed", "incomplete")
    assert (await api.history(answer["conversation_id"]))[0] == ("user", fields["content"], "completed")


async def test_text_is_kept_as_it_is(api: Api) -> None:
    """What is said is stored and given back character by character, white space and direction marks included."""
    content = (
        "  Ça va ?\r\n\t«\u202fœuvre\u202f» \u202eabc\u202c 👩\u200d🔬 \u0301e\x7f\x01\\n\"'; drop table messages; --  "
    )
    conversation = (await api.say(content))["conversation_id"]
    assert (await api.history(conversation))[0][1] == content


@pytest.mark.parametrize("encoded", [rb'"\u00e9\ud83d\ude00"', '"é😀"'.encode()])
async def test_escapes(api: Api, encoded: bytes) -> None:
    """A pair of surrogate escapes is one character, like the character itself."""
    answer = await api.ask("POST", CHAT, data=b'{"content": ' + encoded + b"}", headers=JSON)
    assert answer.json["content"] == "You said: é😀"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "$"),
        ({"title": None}, "$.title"),
        ({"title": ""}, "$.title"),
        ({"title": "  "}, "$.title"),
        ({"title": "a\0"}, "$.title"),
        ({"title": "a\nb"}, "$.title"),
        ({"title": "\x1b[2J"}, "$.title"),
        ({"title": "a\x85b"}, "$.title"),
        ({"title": "facture\u202efdp.exe"}, "$.title"),
        ({"title": "\u2066a\u2069"}, "$.title"),
        ({"title": "x" * 201}, "$.title"),
        ({"archived": None}, "$.archived"),
        ({"archived": "true"}, "$.archived"),
        ({"archived": 1}, "$.archived"),
    ],
)
async def test_wrong_change(api: Api, fields: dict[str, Any], path: str) -> None:
    """A change of a conversation that says nothing, or something wrong, is 400 and changes nothing."""
    made = (await api.post("/api/chat/conversation", {"title": "as it was"})).json
    answer = await api.ask("PATCH", f"/api/chat/conversation/{made['id']}", fields)
    assert (answer.error, answer.path) == ((400, "invalid_request"), path)
    assert (await api.get("/api/chat/conversations?limit=1")).json["conversations"] == [made]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.0", "limit"),
        ("limit=", "limit"),
        ("limit=٣", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("archived=yes", "archived"),
        ("q=%00", "q"),
        ("q=%20", "q"),
        ("q=" + "x" * 201, "q"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%F0%9F%98%80", "cursor"),
        ("cursor=MQ", "cursor"),
        ("cursor=OTk5OS0xMi0zMVQyMzo1OTo1OSB4", "cursor"),
        ("q=%ff", ""),
        ("&".join(f"f{n}=1" for n in range(60)), ""),
    ],
    ids=lambda value: value[:40],
)
async def test_wrong_query(api: Api, query: str, field: str) -> None:
    """A malformed query is 400 and names the field."""
    answer = await api.get(f"/api/chat/conversations?{query}")
    assert answer.error == (400, "invalid_request")
    assert answer.path == (f"query.{field}" if field else "query")


@pytest.mark.parametrize("cursor", ["nonsense", "LTE", "OTk5OTk5OTk5OTk5OTk5OTk5OQ", "MS41"])
async def test_wrong_history_cursor(api: Api, cursor: str) -> None:
    """A cursor that is none of a history's is 400."""
    made = (await api.post("/api/chat/conversation", {})).json
    answer = await api.get(f"/api/chat/history/{made['id']}?cursor={cursor}")
    assert (answer.error, answer.path) == ((400, "invalid_request"), "query.cursor")


@pytest.mark.parametrize("header", ["", "x", "-1", "1.5", "9999999999"])
async def test_wrong_last_event_id(api: Api, header: str) -> None:
    """A Last-Event-ID that is no number of ours is 400; an empty one is none."""
    response_id = (await api.say("x"))["id"]
    answer = await api.get(f"/api/chat/response/{response_id}/events", headers={"Last-Event-ID": header})
    assert answer.status == (400 if header else 200)


# Kinds and sizes of bodies


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "audio/wav"]
)
async def test_wrong_kind(api: Api, kind: str) -> None:
    """A body that says it is no JSON is 415."""
    answer = await api.ask("POST", CHAT, data=b'{"content": "x"}', headers={"Content-Type": kind})
    assert answer.error == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "APPLICATION/JSON"},
        {"Content-Type": "application/vnd.jarvis+json"},
    ],
)
async def test_right_kind(api: Api, headers: dict[str, str]) -> None:
    """JSON is taken under any of its names, and where nothing is said."""
    assert (await api.ask("POST", CHAT, data=b'{"content": "x"}', headers=headers)).status == 200


LIMIT = int(STRICT["BODY_LIMIT_BYTES"])


async def test_declared_too_large(strict: Api) -> None:
    """A body that declares more than the limit is 413, with the limit in the details."""
    answer = await strict.ask("POST", CHAT, data=b"x" * (LIMIT + 1), headers=JSON)
    assert answer.error == (413, "too_large")
    assert answer.json["details"] == {"limit_bytes": LIMIT}


async def test_chunked_too_large(strict: Api) -> None:
    """A body without a declared length is 413 as soon as it is over the limit."""
    answer = await strict.ask("POST", CHAT, data=pieces(*[b"x" * 1_024] * 65), headers=JSON)
    assert answer.error == (413, "too_large")


async def test_chunked_within_the_limit(strict: Api) -> None:
    """A body in pieces is put together, characters that were cut in two included."""
    text = '{"content": "déjà vu 😀"}'.encode()
    answer = await strict.ask("POST", CHAT, data=pieces(*(text[n : n + 1] for n in range(len(text)))), headers=JSON)
    assert answer.json["content"] == "You said: déjà vu 😀"


async def test_at_the_limit(strict: Api) -> None:
    """A body of exactly the limit is taken."""
    text = b'{"content": "x"}'
    answer = await strict.ask("POST", CHAT, data=text + b" " * (LIMIT - len(text)), headers=JSON)
    assert answer.status == 200
