"""Lines: the texts of a stream, however the network cut it."""

from __future__ import annotations

import json

import pytest

from jarvis_core.errors import BadGateway
from jarvis_core.services.lines import LINE_LIMIT_BYTES, LineBuffer

OBJECTS = [{"text": "déjà vu"}, {"text": "漢字 🙂\n\\u00e9"}, {"text": ""}, {"done": True, "tokens": 3}]
TEXTS = [json.dumps(one, ensure_ascii=False).encode() for one in OBJECTS]

NDJSON = b"\n".join(TEXTS) + b"\n"
SSE = b": ping\n\nevent: message\nid: 7\nretry: 100\n" + b"".join(b"data: " + text + b"\n\n" for text in TEXTS)
SSE_TIGHT = b"".join(b"data:" + text + b"\n\n" for text in TEXTS)


def read(*chunks: bytes) -> list[bytes]:
    """Return the texts of *chunks* and of the end."""
    buffer = LineBuffer()
    texts = [text for chunk in chunks for text in buffer.feed(chunk)]
    return texts + buffer.end()


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("body", [NDJSON, SSE, SSE_TIGHT], ids=["ndjson", "sse", "sse_tight"])
def test_every_split_gives_the_same_texts(body: bytes, ending: bytes) -> None:
    """Wherever a body is cut, inside characters and line ends too, the texts are the same."""
    body = body.replace(b"\n", ending)
    assert read(body) == TEXTS
    for position in range(len(body) + 1):
        assert read(body[:position], body[position:]) == TEXTS
    for size in (1, 2, 3, 7):
        assert read(*(body[start : start + size] for start in range(0, len(body), size))) == TEXTS


def test_texts_are_given_as_soon_as_they_are_complete() -> None:
    """A text is given with its line feed, not later."""
    buffer = LineBuffer()
    assert buffer.feed(b'{"text": "a"}') == []
    assert buffer.feed(b"\n") == [b'{"text": "a"}']
    assert buffer.end() == []


def test_last_line_without_a_feed() -> None:
    """What follows the last line feed is given at the end, once."""
    buffer = LineBuffer()
    assert buffer.feed(b'{"a": 1}\n{"b": 2}') == [b'{"a": 1}']
    assert buffer.end() == [b'{"b": 2}']
    assert buffer.end() == []


def test_done_marker() -> None:
    """The end marker of chat completions is a text like any other."""
    assert read(b"data: [DONE]\n\n") == [b"[DONE]"]


@pytest.mark.parametrize("line", [b": ping", b":", b"event: error", b"id: 1", b"retry: 5", b"", b"   ", b"data:"])
def test_what_is_no_data_is_left_out(line: bytes) -> None:
    """Comments, other fields and empty lines give no text."""
    assert read(line + b"\n\n", b'data: {"a": 1}\n\n') == [b'{"a": 1}']


def test_no_limit_on_all_lines_together() -> None:
    """Many lines may add up to more than the limit of one."""
    line = b'{"text": "' + b"x" * 1_000 + b'"}\n'
    assert len(read(line * 3_000)) == 3_000


@pytest.mark.parametrize("size", [4_096, LINE_LIMIT_BYTES * 2])
def test_endless_line(size: int) -> None:
    """A line that does not end is a BadGateway before it fills the memory."""
    buffer = LineBuffer()
    for _ in range(LINE_LIMIT_BYTES // size):
        buffer.feed(b"x" * size)
    with pytest.raises(BadGateway):
        buffer.feed(b"x" * size)


def test_long_line_within_the_limit() -> None:
    """A line of nearly 1 MiB is read."""
    line = b'{"text": "' + b"x" * (LINE_LIMIT_BYTES - 100) + b'"}'
    assert read(line[:500_000], line[500_000:], b"\n") == [line]
