"""What clients send to ``/api/memory``: what the contract refuses is refused by name, and nothing is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.memories import ADD, LIST, SEARCH, add, embedded_texts, entry, listed
from tests.handlers.rest.test_every_route import UNKNOWN

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "$"),
        ([], "$"),
        ({"content": None}, "$.content"),
        ({"content": 7}, "$.content"),
        ({"content": ""}, "$.content"),
        ({"content": " \t\r\n\u00a0\u2003"}, "$.content"),
        ({"content": "a\0b"}, "$.content"),
        ({"content": "x" * 50_001}, "$.content"),
        ({"content": "😀" * 50_001}, "$.content"),
        ({"content": "x", "importance": -0.001}, "$.importance"),
        ({"content": "x", "importance": 1.001}, "$.importance"),
        ({"content": "x", "importance": "0.5"}, "$.importance"),
        ({"content": "x", "importance": True}, "$.importance"),
        ({"content": "x", "importance": 10**400}, "$.importance"),
        ({"content": "x", "source": ""}, "$.source"),
        ({"content": "x", "source": " "}, "$.source"),
        ({"content": "x", "source": "a\0"}, "$.source"),
        ({"content": "x", "source": "x" * 201}, "$.source"),
        ({"content": "x", "source": 7}, "$.source"),
        ({"content": "x", "supersedes": 7}, "$.supersedes"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_wrong_addition(ann: Api, embeddings: FakeBridges, fields: Any, path: str) -> None:
    """What cannot be kept is 400 and named; nothing is kept or embedded."""
    answer = await ann.ask("POST", ADD, data=json.dumps(fields), headers=JSON)
    assert (answer.error, answer.path) == ((400, "invalid_request"), path)
    assert await listed(ann) == []
    assert not isinstance(fields, dict) or fields.get("content") not in [text for text, _ in embedded_texts(embeddings)]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "$"),
        ({"query": None}, "$.query"),
        ({"query": ""}, "$.query"),
        ({"query": " \n"}, "$.query"),
        ({"query": "a\0"}, "$.query"),
        ({"query": "x" * 1_001}, "$.query"),
        ({"query": ["x"]}, "$.query"),
        ({"query": "x", "limit": 0}, "$.limit"),
        ({"query": "x", "limit": 101}, "$.limit"),
        ({"query": "x", "limit": 1.5}, "$.limit"),
        ({"query": "x", "limit": "1"}, "$.limit"),
        ({"query": "x", "limit": None}, "$.limit"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_wrong_search(ann: Api, fields: Any, path: str) -> None:
    """A question that is none is 400 and named."""
    answer = await ann.ask("POST", SEARCH, data=json.dumps(fields), headers=JSON)
    assert (answer.error, answer.path) == ((400, "invalid_request"), path)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "$"),
        ({"source": "x"}, "$"),
        ({"content": None}, "$.content"),
        ({"content": ""}, "$.content"),
        ({"content": "\u2003"}, "$.content"),
        ({"content": "a\0"}, "$.content"),
        ({"content": "x" * 50_001}, "$.content"),
        ({"importance": None}, "$.importance"),
        ({"importance": 2}, "$.importance"),
        ({"content": "y", "importance": -1}, "$.importance"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_wrong_change(ann: Api, fields: Any, path: str) -> None:
    """A change that says nothing, or something wrong, is 400 and changes nothing."""
    made = await add(ann, "tel quel")
    before = (await ann.get(entry(made))).json
    answer = await ann.ask("PATCH", entry(made), fields)
    assert (answer.error, answer.path) == ((400, "invalid_request"), path)
    assert (await ann.get(entry(made))).json == before


@pytest.mark.parametrize(
    "body",
    [b"", b'{"F": "\\ud800"}', b'{"F": "\xed\xa0\x80"}', b'{"F": "x", "importance": NaN, "limit": NaN}', b'{"F": '],
    ids=repr,
)
async def test_not_json(ann: Api, body: bytes) -> None:
    """Lone surrogates, NaN and what is cut are no JSON."""
    kept = entry(await add(ann, "x"))
    for method, path, field in (("POST", ADD, b"content"), ("POST", SEARCH, b"query"), ("PATCH", kept, b"content")):
        answer = await ann.ask(method, path, data=body.replace(b"F", field), headers=JSON)
        assert answer.error == (400, "invalid_json")
    assert await listed(ann) == ["x"]


async def test_credentials_are_asked_for(memory_server: Any) -> None:
    """Without credentials nothing is told."""
    async with Api(memory_server[0].url) as anybody:
        for method, path in (("POST", ADD), ("POST", SEARCH), ("GET", LIST), ("GET", entry(UNKNOWN))):
            assert (await anybody.ask(method, path)).error == (401, "unauthenticated")
