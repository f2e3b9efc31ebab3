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


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (b'\xef\xbb\xbfdata: {"a": 1}\n\n', [b'{"a": 1}']),
        (b'\xef\xbb\xbf{"a": 1}\n', [b'{"a": 1}']),
        (b'data: {"a":\ndata: 1}\n\ndata: {"b": 2}\n\n', [b'{"a":\n1}', b'{"b": 2}']),
        (b'data: {"a": 1}\ndata: {"b": 2}\ndata: [DONE]\n', [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]),
        (b'event: x\ndata: {"a": 1}\nid: 7\n\n', [b'{"a": 1}']),
        ('data: {"a": "b\u2028c\u0085d"}\n\n'.encode(), ['{"a": "b\u2028c\u0085d"}'.encode()]),
        (b'{\n  "a": {\n    "b": 1\n  }\n}\n', [b'{\n"a": {\n"b": 1\n}\n}']),
        (b'[\n {"a": 1}\n]', [b'[\n{"a": 1}\n]']),
        (b"data: ping\n\ndata: 7\n\n", [b"ping", b"7"]),
        (b'data: {"a": 1}', [b'{"a": 1}']),
    ],
)
def test_frames(body: bytes, texts: list[bytes], ending: bytes) -> None:
    """Events are what the standard and the servers take for ones, wherever they are cut and however their lines end."""
    body = body.replace(b"\n", ending)
    assert read(body) == texts
    for position in range(len(body) + 1):
        assert read(body[:position], body[position:]) == texts
    assert read(*(body[at : at + 1] for at in range(len(body)))) == texts


@pytest.mark.parametrize("body", [b'event: error\ndata: {"a": 1}\n\n', b'error: {"a": 1}\n\n', b'error:{"a": 1}\n'])
def test_errors(body: bytes) -> None:
    """An error's event, or field, is told apart, and nothing that follows it is given."""
    before, after = b'data: {"b": 2}\n\n', b'data: [DONE]\n\n{"c": 3}\n'
    for size in (1, 2, 5, 1_000):
        buffer = LineBuffer()
        whole = before + body + after
        texts = [text for at in range(0, len(whole), size) for text in buffer.feed(whole[at : at + size])]
        assert texts + buffer.end() == [b'{"b": 2}']
        assert buffer.error == b'{"a": 1}'


def test_what_is_skipped_is_counted() -> None:
    """Lines that say nothing are counted, and the first that belongs to no stream is kept."""
    buffer = LineBuffer()
    assert buffer.feed(b": x\n\n" * 10 + b"id: 7\nretry: 1\ndata:\nUpstream error\nmore\n") == []
    assert (buffer.skipped, buffer.strange) == (15, b"Upstream error")


def test_one_byte_at_a_time_costs_no_more() -> None:
    """A long line that comes a byte at a time is not copied anew for each."""
    buffer = LineBuffer()
    text = b'{"text": "' + b"x" * 500_000 + b'"}'
    for at in range(len(text)):
        buffer.feed(text[at : at + 1])
    assert buffer.feed(b"\n") == [text]
