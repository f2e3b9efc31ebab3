"""Calls of tools by a model, in every shape that servers have for them, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from jarvis_core.errors import BadGateway
from jarvis_core.models import Caller, Discard, Finish, Prompt, Tool, ToolCall, Utterance
from jarvis_core.services.answers.filter import AnswerFilter
from jarvis_core.services.answers.messages import with_calls
from jarvis_core.services.answers.written_calls import read_calls
from jarvis_core.services.openai_compatible import OpenAiModel
from jarvis_core.services.python_bridges import pack
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Llm, Neighbours
from tests.fakes.openai_compatible import FakeModelServer, ModelCalls, ModelServerMode

CALLER = Caller("ann")
SCHEMA = Raw(b'{"type":"object","properties":{"room":{"type":"string"}}}')
TOOLS = (Tool("light_on", "Switches a lamp on.", SCHEMA), Tool("time", "Tells the time."))
PROMPT = Prompt("", [], "Light, please.", 0.5, 200, tools=TOOLS)
PLAIN = Prompt("", [], "Light, please.", 0.5, 200)
KITCHEN = {"room": "kitchen"}
WANTED = [("light_on", KITCHEN)]
BOTH = [("light_on", KITCHEN), ("time", {})]


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    """Run a model server."""
    async with FakeModelServer() as server:
        yield server


@pytest.fixture
async def model(server: FakeModelServer) -> AsyncIterator[OpenAiModel]:
    """Give the model behind it; afterwards no connection is open."""
    transport = Transport("llm", server.llm_url, Neighbours(connect_timeout_s=5))
    yield OpenAiModel(transport, Llm(model="small-model", first_token_timeout_s=5, stall_timeout_s=5))
    await transport.close()
    async with asyncio.timeout(2):
        while server.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


async def collect(model: OpenAiModel, prompt: Prompt = PROMPT) -> tuple[str, Finish]:
    """Return what is spoken, and the end."""
    text, finish = "", None
    async with model.generate(prompt, CALLER) as pieces:
        async for piece in pieces:
            if isinstance(piece, Finish):
                finish = piece
            else:
                text = "" if isinstance(piece, Discard) else text + piece
    assert finish is not None
    return text, finish


def called(finish: Finish) -> list[tuple[str, Any]]:
    """Return (name, arguments) of the calls, whose ids are all different."""
    assert len({call.id for call in finish.calls}) == len(finish.calls)
    assert all(9 <= len(call.id) <= 64 for call in finish.calls)
    return [(call.name, json.loads(call.arguments)) for call in finish.calls]


def events(*deltas: dict[str, Any], end: str | None = "tool_calls") -> tuple[str, ...]:
    """Return the chunks with *deltas*, and the one that tells why it ended."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    if end is not None:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
    return tuple(json.dumps(chunk) for chunk in chunks)


def part(name: str | None = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    """Return a delta with one fragment of a call."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{**fields, "function": function}]}


TEXT = json.dumps(KITCHEN)
LIGHT, TIME = "call_light_1", "call_time_22"

SHAPES: dict[str, tuple[tuple[str, ...], list[tuple[str, Any]]]] = {
    "openai": (
        events(
            part("light_on", "", index=0, id=LIGHT, type="function"),
            part(None, TEXT[:5], index=0),
            part(None, TEXT[5:], index=0),
            part("time", "", index=1, id=TIME),
            part(None, "{}", index=1),
        ),
        BOTH,
    ),
    "interleaved": (
        events(
            part("light_on", TEXT[:4], index=0, id=LIGHT),
            part("time", "{", index=1, id=TIME),
            part(None, TEXT[4:], index=0),
            part(None, "}", index=1),
        ),
        BOTH,
    ),
    "no index": (
        events(part("light_on", TEXT[:5], id=LIGHT), part(None, TEXT[5:]), part("time", "{}", id=TIME)),
        BOTH,
    ),
    "neither index nor id": (events(part("light_on", TEXT), part("time", "{}")), BOTH),
    "all of them index 0": (
        events(part("light_on", TEXT, index=0, id=LIGHT), part("time", "{}", index=0, id=TIME)),
        BOTH,
    ),
    "two under one id": (
        events(part("light_on", TEXT, index=0, id="call_0"), part("time", "{}", index=1, id="call_0")),
        BOTH,
    ),
    "two under one long id without index": (
        events(part("light_on", TEXT, id="call_000000"), part("time", "{}", id="call_000000")),
        BOTH,
    ),
    "id and name again with each piece": (
        events(
            part("light_on", TEXT[:5], index=0, id=LIGHT),
            part("light_on", TEXT[5:9], index=0, id=LIGHT),
            part("light_on", TEXT[9:], index=0, id=LIGHT),
        ),
        WANTED,
    ),
    "empty ids": (events(part("light_on", TEXT, index=0, id=""), part("time", None, index=1, id=None)), BOTH),
    "name in pieces": (events(part("light", "", index=0, id=LIGHT), part("_on", "", index=0), part(None, TEXT, index=0)), WANTED),
    "an object": (events(part("light_on", KITCHEN, index=0, id=LIGHT)), WANTED),
    "JSON in JSON": (events(part("light_on", json.dumps(TEXT), index=0, id=LIGHT)), WANTED),
    "no arguments": (events(part("time", None, index=0), end="stop"), [("time", {})]),
    "null arguments": (events(part("time", "null", index=0)), [("time", {})]),
    "no envelope": (events({"tool_calls": [{"name": "light_on", "arguments": KITCHEN}]}), WANTED),
    "one that is no list": (events({"tool_calls": {"index": 0, "function": {"name": "light_on", "arguments": TEXT}}}), WANTED),
    "older": (
        events({"function_call": {"name": "light_on", "arguments": TEXT[:5]}}, {"function_call": {"arguments": TEXT[5:]}}, end="function_call"),
        WANTED,
    ),
    "ends with stop": (events(part("light_on", TEXT, index=0, id=LIGHT), end="stop"), WANTED),
    "ends with length": (
        events(part("light_on", TEXT, index=0, id=LIGHT), part("time", '{"zone": "Eur', index=1, id=TIME), end="length"),
        WANTED,
    ),
    "both ways": (
        events({"content": '<tool_call>{"name": "light_on", "arguments": {"room": "kitchen"}}</tool_call>'}, part("light_on", TEXT, index=0, id=LIGHT)),
        WANTED,
    ),
    "unknown name": (events(part("fly", "{}", index=0, id=LIGHT)), [("fly", {})]),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("join", [1, 100])
async def test_shapes(server: FakeModelServer, model: OpenAiModel, shape: str, join: int) -> None:
    """However a server streams calls, they are those that the model made, once each, and nothing is spoken."""
    told, wanted = SHAPES[shape]
    server.mode = ModelServerMode(events=told, join_deltas=join)
    text, finish = await collect(model)
    assert (text, finish.reason) == ("", "tool_calls")
    assert called(finish) == wanted


@pytest.mark.parametrize("shape", ["json", "sse"])
async def test_whole_and_streamed(server: FakeModelServer, model: OpenAiModel, shape: Any) -> None:
    """A whole answer has the same calls as a streamed one, and what was said before them."""
    server.mode = ModelServerMode(shape=shape)
    server.reply = lambda _: ModelCalls((("light_on", TEXT), ("time", "{}")), "One moment.")
    text, finish = await collect(model)
    assert text == "One moment."
    assert called(finish) == BOTH


WRITTEN = {
    "hermes": '<tool_call>\n{"name": "light_on", "arguments": {"room": "kitchen"}}\n</tool_call>',
    "llama": '{"name": "light_on", "parameters": {"room": "kitchen"}}',
    "fenced": '```json\n{"name": "light_on", "arguments": {"room": "kitchen"}}\n```',
    "mistral": '[TOOL_CALLS][{"name": "light_on", "arguments": {"room": "kitchen"}}]',
    "newer mistral": '[TOOL_CALLS]light_on[ARGS]{"room": "kitchen"}',
    "llama's function": '<function=light_on>{"room": "kitchen"}</function>',
    "qwen coder": "<tool_call>\n<function=light_on>\n<parameter=room>\nkitchen\n</parameter>\n</function>\n</tool_call>",
    "deepseek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>light_on\n```json\n{"room": "kitchen"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "gpt-oss": '<|channel|>commentary to=functions.light_on <|constrain|>json<|message|>{"room": "kitchen"}<|call|>',
    "openai in text": '{"tool_calls": [{"function": {"name": "light_on", "arguments": "{\\"room\\": \\"kitchen\\"}"}}]}',
    "list": '[{"name": "light_on", "arguments": {"room": "kitchen"}}]',
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("piece", [1, 7, 1_000])
async def test_calls_in_the_text(server: FakeModelServer, model: OpenAiModel, written: str, piece: int) -> None:
    """A call that comes as text is understood where tools were offered, and never spoken, however it is cut."""
    text = WRITTEN[written]
    server.mode = ModelServerMode(deltas=tuple(text[at : at + piece] for at in range(0, len(text), piece)))
    spoken, finish = await collect(model)
    assert (spoken.strip(), finish.reason) == ("", "tool_calls")
    assert called(finish) == WANTED


@pytest.mark.parametrize("written", WRITTEN)
async def test_nothing_offered(server: FakeModelServer, model: OpenAiModel, written: str) -> None:
    """Where nothing was offered nothing is called, and nothing of it spoken."""
    server.mode = ModelServerMode(answer=WRITTEN[written])
    spoken, finish = await collect(model, PLAIN)
    assert (spoken.strip(), finish.calls) == ("", ())


@pytest.mark.parametrize(
    ("told", "ends"),
    [
        (events({"content": "It is on."}), ("It is on.", "stop")),
        (events({"content": "It is on."}, end="stop"), ("It is on.", "stop")),
        (events(part("light_on", TEXT[:5], index=0), end="length"), ("", "length")),
        (events(part("light_on", TEXT, index=0), end="content_filter"), ("", "content_filter")),
    ],
)
async def test_ends_without_calls(
    server: FakeModelServer, model: OpenAiModel, told: tuple[str, ...], ends: tuple[str, str]
) -> None:
    """An end that speaks of calls where there are none is an ordinary one, and a call that was cut off is none."""
    server.mode = ModelServerMode(events=told)
    text, finish = await collect(model)
    assert ((text, finish.reason), finish.calls) == (ends, ())


async def test_stream_that_breaks(server: FakeModelServer, model: OpenAiModel) -> None:
    """Of a stream that breaks off nothing is called, however whole its calls look."""
    server.mode = ModelServerMode(
        events=events({"content": "Well."}, part("light_on", TEXT, index=0), end=None), done_marker=False
    )
    text, finish = await collect(model)
    assert (text, finish.reason, finish.calls) == ("Well.", "lost", ())
    server.mode = ModelServerMode(events=events(part("light_on", TEXT, index=0), end=None), done_marker=False)
    with pytest.raises(BadGateway):
        await collect(model)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", None),
        ("none", "none"),
        ("required", "required"),
        ("time", {"type": "function", "function": {"name": "time"}}),
    ],
)
async def test_request(server: FakeModelServer, model: OpenAiModel, choice: str, sent: object) -> None:
    """The model is told of the tools as whoever has them wrote them, of earlier calls and of what came of them."""
    call = ToolCall("call_123456", "time", "{}")
    history = [Utterance("user", "Hi"), Utterance("assistant", "Hello")]
    followed = (Utterance("assistant", "Well.", (call,)), Utterance("tool", "noon", call_id=call.id))
    prompt = msgspec.structs.replace(PROMPT, history=history, tool_choice=choice, followed=followed)
    await collect(model, prompt)
    body = server.requests[-1].json
    assert body["tools"][0] == {
        "type": "function",
        "function": {
            "name": "light_on",
            "description": "Switches a lamp on.",
            "parameters": {"type": "object", "properties": {"room": {"type": "string"}}},
        },
    }
    assert body.get("tool_choice") == sent
    assert body["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Light, please."},
        {
            "role": "assistant",
            "content": "Well.",
            "tool_calls": [{"id": "call_123456", "type": "function", "function": {"name": "time", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "noon", "tool_call_id": "call_123456"},
    ]


@pytest.mark.parametrize("refusal", ["openai", "text", "in_200"])
async def test_model_without_tools(server: FakeModelServer, model: OpenAiModel, refusal: Any) -> None:
    """A server whose model takes no tools is asked without from then on, and answers."""
    server.mode = ModelServerMode(refuses=("tools",), refusal=refusal, answer="Hm.")
    for _ in range(2):
        assert (await collect(model))[0] == "Hm."
    assert [("tools" in request.json) for request in server.requests] == [True, False, False]


async def test_long_outputs_fit(server: FakeModelServer, model: OpenAiModel) -> None:
    """What tools told is cut alike where all of it together is more than the model reads."""
    calls = tuple(ToolCall(f"call_{n:06}", "time", "{}") for n in range(4))
    outputs = tuple(Utterance("tool", "x" * 16_000, call_id=call.id) for call in calls)
    await collect(model, msgspec.structs.replace(PROMPT, followed=(Utterance("assistant", "", calls), *outputs)))
    told = [message["content"] for message in server.requests[-1].json["messages"] if message["role"] == "tool"]
    assert len(told) == 4
    assert sum(map(len, told)) < 8_192 * 3
    assert all("cut" in text for text in told)


CALL = ToolCall("call_aaaaaa", "time", "{}")


def test_bridges_see_no_tools() -> None:
    """Models of the bridges are told what was said, and nothing of calls."""
    history = [
        Utterance("user", "a"),
        Utterance("assistant", "", (CALL,)),
        Utterance("tool", "noon", call_id=CALL.id),
        Utterance("assistant", "b"),
    ]
    packed = pack(Prompt("", history, "c", 0.5, 10, tools=TOOLS))
    assert [(one.role, one.content) for one in packed.messages or ()] == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert "noon" not in packed.prompt


UTTERANCES = st.one_of(
    st.builds(Utterance, st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["", "a", "b"])),
    st.builds(lambda n: Utterance("assistant", "", (ToolCall(f"call_{n}", "time", "{}"),)), st.integers(0, 2)),
    st.builds(lambda n: Utterance("tool", "x", call_id=f"call_{n}"), st.integers(0, 2)),
)


@given(st.lists(UTTERANCES, max_size=8), st.lists(UTTERANCES, max_size=4))
def test_every_call_has_its_output(history: list[Utterance], followed: list[Utterance]) -> None:
    """Whatever a history lacks, each call is followed by its output, and no output stands alone."""
    messages = with_calls(history, "now", followed)
    assert messages[0].role == "user"
    waiting: set[str] = set()
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id in waiting
            waiting.discard(str(message.tool_call_id))
            continue
        assert not waiting
        if message.tool_calls:
            waiting = {call.id for call in message.tool_calls}
    assert not waiting


@given(st.text(alphabet='{}[]":,<>/tool_callname argumens\\|`', max_size=200))
def test_any_text(text: str) -> None:
    """Whatever is written where a call should stand, it is read or left out."""
    for call in read_calls([text, f"<tool_call>{text}"]):
        assert call.name


@given(st.sampled_from(sorted(WRITTEN)), st.lists(st.integers(1, 40), max_size=8))
def test_cuts_change_no_call(written: str, cuts: list[int]) -> None:
    """A call that stands in the text is the same however the text was cut."""
    text = WRITTEN[written]
    found = AnswerFilter()
    at = 0
    for length in (*cuts, len(text)):
        found.feed(text[at : at + length])
        at += length
    found.end()
    assert [(call.name, json.loads(call.arguments)) for call in read_calls(found.calls)] == WANTED
