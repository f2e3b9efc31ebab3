"""
The language and embedding model of the measurements: OpenAI's protocol, raw over asyncio, so that it costs little.

How it answers is set for all that follow by ``GET /_mode?first_s=0.2&deltas=20&delta_s=0.02``. The last word of each
answer tells how many microseconds the model itself took, from the request's last byte to the answer's last: what a client
measures beyond that was added on the way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import deque
from typing import cast
from urllib.parse import parse_qsl

import msgspec
import uvloop

from perf.load import content_length

DIMENSION = 384
WORD = "mot "
MODEL = "measured"
CHUNK = (
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"measured",'
    '"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}'
)
USAGE = (
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"measured","choices":[],'
    '"usage":{"prompt_tokens":20,"completion_tokens":%d,"total_tokens":%d}}'
)
COMPLETION = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1750000000,"model":"measured",'
    '"choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":20,"completion_tokens":%d,"total_tokens":%d}}'
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Mode(msgspec.Struct, frozen=True):
    """How the language model answers."""

    first_s: float = 0.0
    """Until its first word."""
    deltas: int = 20
    delta_s: float = 0.0
    """Between its words; with 0 all are sent in one piece."""


class Asked(msgspec.Struct):
    """What is looked at of a request."""

    stream: bool = False
    input: str | list[str] = ""


_decoder = msgspec.json.Decoder(Asked)
_mode = Mode()


class Connection(asyncio.Protocol):
    """One client; its requests are answered one after another."""

    def __init__(self) -> None:
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._due: deque[bytes] = deque()
        self._mode = _mode
        self._asked_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < content_length(head):
            return
        self._buffer = b""
        self._answer(head.partition(b" HTTP/")[0].decode(), body)

    def _answer(self, request: str, body: bytes) -> None:
        global _mode
        _, _, path = request.partition(" ")
        if path.startswith("/_mode?"):
            _mode = msgspec.convert(dict(parse_qsl(path.partition("?")[2])), Mode, strict=False)
            self._send_json("{}")
        elif path.endswith("/chat/completions"):
            self._asked_at = time.perf_counter()
            self._mode = _mode
            answer = self._begin_stream if _decoder.decode(body).stream else self._complete
            if _mode.first_s:
                self._loop.call_later(_mode.first_s, answer)
            else:
                answer()
        elif path.endswith("/embeddings"):
            asked = _decoder.decode(body).input
            texts = [asked] if isinstance(asked, str) else asked
            data = [
                f'{{"object":"embedding","index":{number},"embedding":{vector_of(text)}}}'
                for number, text in enumerate(texts)
            ]
            usage = '"usage":{"prompt_tokens":8,"total_tokens":8}'
            self._send_json(f'{{"object":"list","model":"{MODEL}","data":[{",".join(data)}],{usage}}}')
        else:
            self._send_json(f'{{"object":"list","data":[{{"id":"{MODEL}","object":"model","owned_by":"perf"}}]}}')

    def _own_time(self) -> str:
        return f"own={1e6 * (time.perf_counter() - self._asked_at):.0f}"

    def _complete(self) -> None:
        mode = self._mode
        if mode.deltas * mode.delta_s:
            self._mode = Mode(0, mode.deltas, 0)
            self._loop.call_later(mode.deltas * mode.delta_s, self._complete)
            return
        content = WORD * mode.deltas + self._own_time()
        self._send_json(COMPLETION % (content, mode.deltas + 1, mode.deltas + 21))

    def _send_json(self, body: str) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write((head + body).encode())

    def _begin_stream(self) -> None:
        self._transport.write(STREAM_HEAD)
        if self._mode.delta_s:
            self._send_word(self._mode.deltas)
        else:
            self._transport.write(b"".join([*[WORD_CHUNK] * self._mode.deltas, self._last_chunks()]))

    def _send_word(self, left: int) -> None:
        if left:
            self._transport.write(WORD_CHUNK)
            self._loop.call_later(self._mode.delta_s, self._send_word, left - 1)
        else:
            self._transport.write(self._last_chunks())

    def _last_chunks(self) -> bytes:
        count = self._mode.deltas + 1
        last = CHUNK % (json.dumps({"content": self._own_time()}), "null")
        end = CHUNK % ("{}", '"stop"')
        return b"".join([*map(_chunked, (last, end, USAGE % (count, count + 20), "[DONE]")), b"0\r\n\r\n"])


def _chunked(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


WORD_CHUNK = _chunked(CHUNK % (json.dumps({"content": WORD}), "null"))


def vector_of(text: str) -> str:
    """Return a vector as JSON: the same for the same text, and of no meaning."""
    digest = hashlib.shake_128(text.encode()).digest(DIMENSION)
    return "[" + ",".join(f"{(byte - 127.5) / 128:.6f}" for byte in digest) + "]"


async def main(port: int) -> None:
    """Serve on loopback until killed."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=2_048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
