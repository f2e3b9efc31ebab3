"""Errors in the shapes in which model servers tell them; the words are theirs."""

from __future__ import annotations

import json

import pytest

from jarvis_core.services.answers.finish_reasons import end_named
from jarvis_core.services.answers.server_errors import ServerError, error_in, error_in_body

FIELDS = {"message": "kaput", "type": "server_error", "code": 500}


@pytest.mark.parametrize(
    "value",
    [
        {"error": FIELDS},
        {"error": "kaput"},
        {"error": {"error": FIELDS}},
        {"error": {"message": {"detail": "kaput"}}},
        {"error": {"message": json.dumps({"error": {"message": "kaput"}})}},
        {"error": True, "message": "kaput"},
        {"errors": [{"message": "kaput"}]},
        {"object": "error", **FIELDS},
        {"type": "error", "error": {"type": "api_error", "message": "kaput"}},
        {"type": "error", "message": "kaput"},
        {"status": "error", "msg": "kaput"},
        {"success": False, "message": "kaput"},
        {"detail": "kaput"},
        {"code": 400, "message": "kaput"},
        {"statusCode": 503, "message": "kaput"},
        {"code": "invalid_api_key", "message": "kaput"},
        [{"error": FIELDS}],
        {"choices": [{"index": 0, "delta": {}, "error": FIELDS, "finish_reason": "error"}]},
        {"choices": [], "error": FIELDS},
    ],
)
def test_words(value: object) -> None:
    """An error is one in whatever shape, and its words are found."""
    error = error_in(value)
    assert error is not None
    assert error.words == "kaput"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"choices": []},
        {"error": None, "choices": []},
        {"error": "", "choices": []},
        {"error": {}},
        {"error": False},
        {"code": 0, "message": "ok"},
        {"status": 200, "message": "ok"},
        {"type": "ping", "message": "still here"},
        {"choices": [{"delta": {"content": "error: kaput"}, "error": None}], "message": "x", "code": 500},
        {"object": "chat.completion.chunk", "choices": [], "usage": {}},
        [],
        "error",
        None,
        7,
    ],
)
def test_what_is_none(value: object) -> None:
    """What is not said to be an error is none."""
    assert error_in(value) is None


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, ""),
        (b"<html>502</html>", 502, ""),
        (b"no such model", 404, "no such model"),
        (b'"plain"', 400, "plain"),
        (b"null", 400, ""),
        (b'{"a": 1}', 400, '{"a": 1}'),
        (b'{"error": "x\\ny\\u0000z"}', 400, "x y z"),
        (b'{"error": "' + b"x" * 9_000 + b'"}', 400, "x" * 300),
        (b'{"error": "bad key sk-abcdef, Bearer eyJabc.def.ghi"}', 401, "bad key …, …"),
        (
            b'{"detail": [{"loc": ["body", "temperature"], "msg": "Extra", "input": "secret words"}]}',
            422,
            "body.temperature: Extra",
        ),
    ],
)
def test_bodies(body: bytes, status: int, words: str) -> None:
    """A body with an error's status always tells of one, on one line, not too long, and without credentials."""
    error = error_in_body(body, status)
    assert error is not None
    assert (error.words, error.status) == (words, status)


@pytest.mark.parametrize(
    ("value", "named", "other"),
    [
        (
            {"error": {"message": "Unsupported parameter: 'max_tokens'", "param": "max_tokens"}},
            "max_tokens",
            "temperature",
        ),
        ({"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}, "stream_options", "stream"),
        ({"error": "unknown field `temperature`"}, "temperature", "max_tokens"),
        ({"error": {"message": "stream_options is only allowed with stream"}}, "stream_options", "temperature"),
        ({"error": "max_completion_tokens is unknown"}, "max_completion_tokens", "max_tokens"),
    ],
)
def test_refused_fields(value: object, named: str, other: str) -> None:
    """The field that an error is about is known, and no other that has its name in it."""
    error = error_in(value)
    assert error is not None
    assert error.refuses(named)
    assert not error.refuses(other)


@pytest.mark.parametrize(
    ("words", "kind", "tokens"),
    [
        ("the request exceeds the available context size, try increasing it", "exceed_context_size_error", 0),
        ("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", "", 4096),
        ("Requested tokens (700) exceed context window of 512", "", 512),
        ("prompt is too long: 9000 tokens > 8192 maximum", "", 0),
        ("x", "context_length_exceeded", 0),
        ("input length (5000 tokens) exceeds the model's maximum context length (4096 tokens)", "", 4096),
    ],
)
def test_context(words: str, kind: str, tokens: int) -> None:
    """A prompt that is too long is known as that, and how long the context is where that is said."""
    error = error_in({"error": {"message": words, "code": kind}})
    assert error is not None
    assert error.is_context
    assert error.context_tokens == tokens


def test_what_it_is_about() -> None:
    """Whose fault an error is, is told by its status, its code, or its words."""
    assert ServerError("x", status=401).is_key
    assert ServerError("Incorrect API key provided").is_key
    assert ServerError("x", kind="invalid_api_key").is_key
    assert ServerError("x", status=429).is_limited
    assert ServerError("x", kind="insufficient_quota").is_limited
    assert ServerError("Loading model", kind="unavailable_error").is_busy
    assert ServerError("x", kind="content_filter").is_filtered
    assert not ServerError("the model said: content filter").is_filtered
    assert ServerError("Unexpected endpoint or method. (POST /chat/completions)").is_endpoint
    assert ServerError("Not Found", status=404).is_endpoint
    assert not ServerError("model 'x' not found", status=404).is_endpoint


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (None, None), (False, None), ("stop", "stop"), ("", "stop"), ("eos", "stop"), ("eos_token", "stop"), ("STOP", "stop"),
        ("length", "length"), ("MAX_TOKENS", "length"), ("content_filter", "content_filter"), ("SAFETY", "content_filter"),
        ("function_call", "tool_calls"), ("insufficient_system_resource", "insufficient_system_resource"), ("abort", "abort"),
        ("Something else!", "something_else"), ("x" * 500, "x" * 64), ({"type": "stop"}, "stop"), (7, "7"), ("…", "stop"),
    ],
)  # fmt: skip
def test_ends(said: object, name: str | None) -> None:
    """An end has one name, whoever tells it, and what nobody knows keeps its own."""
    assert end_named(said) == name
