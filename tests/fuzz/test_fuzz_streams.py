"""
A model's streams, made up: chunks of good and odd shapes in any order, cut anywhere.

Each ends in one of the named ends, an error never ends well, and nothing of thinking, tokens or calls is in an answer; through the
running server neither in what is stored nor in what the next turn sends, and the next turn is answered.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from jarvis_core.errors import RequestError
from jarvis_core.models import Discard, Finish
from jarvis_core.services.answers.completions import CompletionStream
from jarvis_core.services.answers.stream import AnswerStream
from jarvis_core.services.python_bridges import BridgesAnswer
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours
from tests.fakes.wire import cut
from tests.fuzz.conftest import fuzzing
from tests.system.server import REPOSITORY, Server, free_port

SECRET = "PENSÉE"
"""What is thought, and never said."""
CALLED = "HassTurnOn"
MARKS = re.compile(r"<\|[a-z_]+\|>|</?think|\[/?THINK|<｜|" + f"{SECRET}|{CALLED}")
END_NAME = re.compile(r"[a-z0-9_.-]{1,64}")


class Part(NamedTuple):
    """A part of what a model writes, and what it is."""

    text: str
    hidden: bool = False


WORDS = st.sampled_from(
    [
        "Oui",
        ". ",
        "\n",
        " un",
        "deux ",
        "é",
        "🙂",
        "漢",
        "1 < 2 ",
        "a > b ",
        "{x} ",
        "[1] ",
        "<b>",
        '"',
        "\\",
        "\ud83d",
        "\ude42",
    ]
).map(Part)
HALF = re.compile("[\ud800-\udfff]")
THOUGHTS = st.sampled_from([
    f"<think>{SECRET}</think>",
    f"<think>\n{SECRET} `</think>` {SECRET}\n</think>\n\n",
    f"<thinking mode='x'>{SECRET}</thinking>",
    f"[THINK]{SECRET}[/THINK]",
    f"◁think▷{SECRET}◁/think▷",
    f"<|START_THINKING|>{SECRET}<|END_THINKING|>",
    f'{{"name": "{CALLED}", "parameters": {{"a": "}}"}}}}',
    f'[{{"name": "{CALLED}", "arguments": {{}}}}]',
    f'<tool_call>{{"name": "{CALLED}"}}</tool_call>',
    "<|vision_pad|>", "<|begin_of_text|>", "<pad>",
]).map(lambda text: Part(text, hidden=True))  # fmt: skip
ENDINGS = st.sampled_from([
    "", "", "<|im_end|>", "<|im_end|>\n<|im_start|>user\n" + SECRET, "<|eot_id|>", "<｜end▁of▁sentence｜>", "</s>[INST]" + SECRET,
    f"<think>{SECRET}", f"<|channel|>analysis<|message|>{SECRET}", f"[TOOL_CALLS]{CALLED}", f'{{"name": "{CALLED}", "parameters": {{',
]).map(lambda text: Part(text, hidden=True))  # fmt: skip
SAID = st.tuples(st.lists(st.one_of(WORDS, WORDS, THOUGHTS), max_size=8), ENDINGS).map(lambda said: [*said[0], said[1]])

THOUGHT_CHUNKS = st.sampled_from(
    [
        {"choices": [{"delta": {"reasoning_content": SECRET}}]},
        {"choices": [{"delta": {"reasoning": SECRET, "content": ""}}]},
        {"choices": [{"delta": {"thinking": SECRET}}]},
        {"choices": [{"delta": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": SECRET}]}]}}]},
        {"choices": [{"delta": {"content": [{"type": "reasoning", "text": SECRET}, 7, None]}}]},
    ]
)
ODD: st.SearchStrategy[object] = st.sampled_from(
    [
        {}, [], None, 7, "x", {"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": [{"delta": None}]}, {"choices": {}},
        {"choices": [None, 7, {"delta": 7}]}, {"choices": [{"delta": {"role": None, "content": None}, "finish_reason": None}]},
        {"choices": [{"index": 1, "delta": {"content": SECRET}}]}, {"choices": [], "usage": {"completion_tokens": 2.5}},
        {"choices": [], "usage": "x"}, {"model": 7}, {"type": "ping"}, {"choices": [{"delta": {"content": {"type": "image"}}}]},
        {"choices": [], "error": None}, {"choices": [{"delta": {"content": [{"type": "image_url", "image_url": SECRET}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"name": CALLED}}]}}]},
    ]
)  # fmt: skip
REASONS = st.sampled_from(
    ["stop", "eos", "", "length", "content_filter", "abort", "error", "tool_calls", "Odd One", 7, {"a": 1}]
)
ERRORS = st.sampled_from(
    [
        {"error": {"message": "kaput", "code": 500}}, {"error": "kaput"}, {"object": "error", "message": "kaput", "code": 400},
        {"detail": "kaput"}, [{"error": {"message": "kaput"}}], {"choices": [{"delta": {}, "error": {"message": "kaput"}}]},
        {"error": {"message": {"detail": [{"loc": ["body"], "msg": "kaput"}]}}}, {"error": {"code": 429, "message": "slow"}},
    ]
)  # fmt: skip
ERROR_EVENTS = st.sampled_from(
    [b'event: error\ndata: {"message": "kaput"}\n\n', b'error: {"code": 400}\n\n', b"data: [ERROR] kaput\n\n"]
)
LINES = st.sampled_from(
    [b": ping\n\n", b"event: message\n", b"id: 7\nretry: 10\n\n", b"\n\n\n", b"data:\n\n", b"data: ping\n\n"]
)


class Event(NamedTuple):
    """A part of a stream."""

    kind: str
    wire: bytes


def event(kind: str, value: object) -> Event:
    """Return *value* as an event."""
    text = json.dumps(value, ensure_ascii=False)
    if HALF.search(text):
        text = json.dumps(value)
    return Event(kind, f"data: {text}\n\n".encode())


class Made(NamedTuple):
    """A stream that was made up."""

    events: list[Event]
    said: str
    """What of it is the answer."""

    @property
    def wire(self) -> bytes:
        """The whole of it."""
        return b"".join(event.wire for event in self.events)


@st.composite
def streams(draw: st.DrawFn) -> Made:
    """Make up a stream: what a model says, cut into deltas anywhere, with all that servers put between them."""
    parts = draw(SAID)
    text = "".join(part.text for part in parts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    deltas = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events = [event("delta", {"choices": [{"index": 0, "delta": {"content": delta}}]}) for delta in deltas]
    ends = [event("end", {"choices": [{"delta": {}, "finish_reason": draw(REASONS)}]})] if draw(st.booleans()) else []
    done = [Event("done", b"data: [DONE]\n\n")] if draw(st.booleans()) else []
    events += ends + done
    others = draw(
        st.lists(
            st.one_of(
                THOUGHT_CHUNKS.map(lambda value: event("thought", value)),
                ODD.map(lambda value: event("odd", value)),
                LINES.map(lambda line: Event("line", line)),
                st.one_of(
                    st.just(Event("line", b"")),
                    ERRORS.map(lambda value: event("error", value)),
                    ERROR_EVENTS.map(lambda wire: Event("error", wire)),
                ),
            ),
            max_size=4,
        )
    )
    for other in others:
        events.insert(draw(st.integers(0, len(events))), other)
    return Made(events, "".join(part.text for part in parts if not part.hidden))


CUTS = st.sets(st.integers(1, 2_000), max_size=10)
LOSSES = st.sampled_from([None, None, "lost", "stalled"])


class Outcome(NamedTuple):
    """What came out of a stream."""

    text: str
    end: str
    """The reason, or the error's code."""
    called: bool


class Pieces:
    """A stream whose bytes are at hand, in the place of one that is read from a server."""

    content_type = "text/event-stream"
    parts = 0
    age_s = 0.0

    def __init__(self, pieces: list[bytes], loss: Any) -> None:
        self.lost: Any = None
        self._pieces = pieces
        self._loss = loss

    async def read(self) -> bytes:
        """Give the next piece."""
        if self._pieces:
            self.parts += 1
            return self._pieces.pop(0)
        self.lost = self._loss
        return b""

    async def finish(self) -> None:
        """There is nothing to wait for."""

    def begin(self) -> None:
        """There is no deadline."""

    def expect_end(self) -> None:
        """There is no deadline."""

    def give_up(self, why: Any) -> None:
        """Take note."""
        self.lost = why


@pytest.fixture(scope="module")
def transport() -> Iterator[tuple[asyncio.AbstractEventLoop, Transport]]:
    """Give a transport that asks nobody, and its loop."""
    loop = asyncio.new_event_loop()

    async def make() -> Transport:
        return Transport("llm", "http://127.0.0.1:9/v1", Neighbours())

    made = loop.run_until_complete(make())
    yield loop, made
    loop.run_until_complete(made.close())
    loop.close()


async def collect(answer: AnswerStream) -> Outcome:
    """Read *answer* to its end."""
    text = ""
    end = ""
    try:
        error = await answer.wait_begun()
        if error is not None:
            raise answer.failed(error)
        async for piece in answer.pieces():
            assert not end, "nothing comes after the end"
            if isinstance(piece, Finish):
                end = piece.reason
                assert END_NAME.fullmatch(end), end
            elif isinstance(piece, Discard):
                text = ""
            else:
                text += piece
        assert end, "an end always comes"
    except RequestError as exc:
        end = exc.code
    text.encode()
    return Outcome(text, end, answer.called or answer.filter.called)


def outcome(transport: tuple[asyncio.AbstractEventLoop, Transport], pieces: list[bytes], loss: Any = None) -> Outcome:
    """Return what comes out of these bytes."""
    loop, way = transport
    stream: Any = Pieces([piece for piece in pieces if piece], loss)
    return loop.run_until_complete(collect(CompletionStream(way, stream, model="m", limit_chars=10_000)))


@fuzzing(0.4, 800)
@given(made=streams(), cuts=CUTS, loss=LOSSES)
def test_stream(transport: tuple[asyncio.AbstractEventLoop, Transport], made: Made, cuts: set[int], loss: Any) -> None:
    """A stream comes to the same end however it is cut; its text has nothing in it that was not said."""
    whole = outcome(transport, [made.wire], loss)
    assert outcome(transport, cut(made.wire, cuts), loss) == whole
    assert not MARKS.search(whole.text), whole
    kinds = [event.kind for event in made.events]
    before_done = kinds[: kinds.index("done")] if "done" in kinds else kinds
    if "error" in before_done:
        assert whole.end not in ("stop", "length")
    elif whole.end == "stop":
        assert "done" in kinds or "end" in kinds, "a stream that broke is never a good end"
        assert "".join(whole.text.split()) == "".join(made.said.split()) or "odd" in kinds or HALF.search(made.said)


@fuzzing(0.2, 400)
@given(made=streams(), share=st.floats(0, 1), loss=LOSSES, cuts=CUTS)
def test_stream_that_breaks_anywhere(
    transport: tuple[asyncio.AbstractEventLoop, Transport], made: Made, share: float, loss: Any, cuts: set[int]
) -> None:
    """What is left of a stream comes to no good end unless that had come, and what was said is the beginning of what was to be."""
    wire = made.wire[: int(share * len(made.wire))]
    left = outcome(transport, [wire], loss)
    assert outcome(transport, cut(wire, cuts), loss) == left
    assert not MARKS.search(left.text), left
    if b'finish_reason": ' not in wire and b"[DONE]" not in wire:
        assert left.end != "stop"


@fuzzing(0.1, 200)
@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.sampled_from([b"", b"data: ", b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n']),
)
def test_any_bytes(transport: tuple[asyncio.AbstractEventLoop, Transport], pieces: list[bytes], before: bytes) -> None:
    """Whatever comes, it has an end."""
    assert outcome(transport, [before, *pieces]) == outcome(transport, [before + b"".join(pieces)])


@fuzzing(0.1, 200)
@given(parts=SAID, cuts=CUTS, form=st.sampled_from(["data: %s\n\n", "%s\n"]), done=st.booleans())
def test_bridges(
    transport: tuple[asyncio.AbstractEventLoop, Transport], parts: list[Part], cuts: set[int], form: str, done: bool
) -> None:
    """The bridges' streams pass through the same."""
    lines = [{"text": part.text} for part in parts] + ([{"done": True, "tokens_generated": 3}] if done else [])
    wire = "".join(form % json.dumps(line) for line in lines).encode()

    def read(pieces: list[bytes]) -> Outcome:
        loop, way = transport
        stream: Any = Pieces(pieces, None)
        return loop.run_until_complete(collect(BridgesAnswer(way, stream, model="", limit_chars=10_000)))

    whole = read([wire])
    assert read(cut(wire, cuts)) == whole
    assert not MARKS.search(whole.text), whole
    assert done or whole.end != "stop"


# Through the running server


def wait_for(port: int) -> None:
    """Wait until something listens on *port*."""
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")


@pytest.fixture(scope="module")
def model_server(postgres_conninfo: str) -> Iterator[tuple[Server, str]]:
    """Run the server on a model's server in a process of its own; give where that is told what to send."""
    port = free_port()
    with psycopg.connect(postgres_conninfo, autocommit=True) as connection:
        connection.execute("create database fuzz_streams")
    environment = {
        "DATABASE_URL": make_conninfo(postgres_conninfo, dbname="fuzz_streams"),
        "LLM_URL": f"http://127.0.0.1:{port}/v1",
        "LLM_MODEL": "small-model",
        "LLM_STALL_TIMEOUT_S": "0.3",
        "RUST_LOG": "error",
        "DRAIN_TIMEOUT_S": "1",
        "LOCAL_SPEECH": "false",
    }
    with tempfile.TemporaryDirectory(prefix="jarvis-fuzz-") as directory:
        server = Server(Path(directory), environment)
        arguments = ["-m", "tests.fakes.openai_compatible", "--port", str(port)]
        model = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            server.start()
            wait_for(port)
            yield server, f"http://127.0.0.1:{port}"
            assert server.stop() == 0
            assert "Traceback" not in server.stderr, server.stderr
            assert "defect" not in server.stderr, server.stderr
        finally:
            server.kill()
            with suppress(ProcessLookupError):
                model.kill()
            model.wait()


ENDS = ("completed", "incomplete", "failed")


async def talk(core: str, model: str, mode: dict[str, Any]) -> None:
    """Have a turn whose model behaves so, and another one."""
    async with aiohttp.ClientSession() as session:

        async def ask(method: str, url: str, body: object = None) -> tuple[int, Any]:
            async with session.request(method, url, json=body) as response:
                return response.status, await response.json()

        await ask("POST", f"{model}/_control", mode)
        status, answer = await ask("POST", f"{core}/api/chat", {"content": "Bonjour ?"})
        if status != 200:
            assert status in (400, 429, 502, 503, 504), answer
            answer = {"id": answer["details"]["response_id"], **answer["details"]}
        _, state = await ask("GET", f"{core}/api/chat/response/{answer['id']}")
        assert state["status"] in ENDS
        assert END_NAME.fullmatch(state["reason"])
        assert (state["status"] == "completed") == (state["reason"] == "stop")
        assert bool(state["content"]) == (status == 200)
        await ask("POST", f"{model}/_control", {"template": "alternating"})
        again = {"content": "Encore ?", "conversation_id": state["conversation_id"]}
        status, answer = await ask("POST", f"{core}/api/chat", again)
        assert (status, answer.get("status")) == (200, "completed"), answer
        _, history = await ask("GET", f"{core}/api/chat/history/{state['conversation_id']}")
        assert not MARKS.search(json.dumps(history, ensure_ascii=False)), history
        _, seen = await ask("GET", f"{model}/_state")
        assert not MARKS.search(json.dumps(seen["last_bodies"], ensure_ascii=False))


def test_turns(model_server: tuple[Server, str]) -> None:
    """Whatever its stream is, a turn ends in one of the named ways, stores nothing of thinking, and the next one is answered."""
    server, model = model_server

    @fuzzing(0.02, 40)
    @given(
        streams(),
        st.sampled_from([0, 0, 1, 3, 7]),
        st.one_of(st.none(), st.integers(0, 10)),
        st.booleans(),
        st.sampled_from(["close", "reset", "end"]),
        st.sampled_from(["\n", "\r\n", "\r"]),
    )
    def turn(made: Made, piece_bytes: int, cut_after: int | None, half: bool, how: str, line_ending: str) -> None:
        events = [
            one.wire[6:-2].decode() for one in made.events if one.wire.startswith(b"data: ") and one.kind != "done"
        ]
        mode: dict[str, Any] = {"events": events, "piece_bytes": piece_bytes, "line_ending": line_ending, "cut": how}
        if cut_after is not None:
            mode |= {"cut_after": min(cut_after, len(events)), "half_line": half and cut_after < len(events)}
        asyncio.run(talk(server.url, model, mode))

    turn()
