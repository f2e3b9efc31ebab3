"""OpenAI-compatible model servers: every way in which they answer, and fail."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jarvis_core.errors import BadGateway, DeadlineExceeded, InvalidRequest, RateLimited, RequestError, Unavailable
from jarvis_core.models import Caller, Discard, Finish, Prompt, Utterance
from jarvis_core.services.openai_compatible import OpenAiModel
from jarvis_core.services.transport import Refused, Transport
from jarvis_core.settings import Llm, Neighbours, Secret
from tests.fakes.faults import NESTED, Fault, FaultKind
from tests.fakes.openai_compatible import FakeModelServer, ModelServerMode

pytestmark = pytest.mark.every_python

API_KEY = "sk-local"
CALLER = Caller("ann")
PROMPT = Prompt("Be brief.", [], "un deux trois", 0.5, 100)
SAID = "You said: un deux trois"
COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/models"
LATE_S = 3.0


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    """Run a model server that wants a key."""
    async with FakeModelServer(API_KEY) as server:
        yield server


@pytest.fixture
async def transport(server: FakeModelServer) -> AsyncIterator[Transport]:
    """Give the way to it; afterwards no connection is open."""
    transport = Transport("llm", server.llm_url, Neighbours(connect_timeout_s=0.5))
    yield transport
    await transport.close()
    async with asyncio.timeout(2):
        while server.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@pytest.fixture
def model(transport: Transport) -> OpenAiModel:
    """Give a model with ordinary deadlines."""
    return make_model(transport)


def make_model(
    transport: Transport,
    *,
    name: str | None = "small-model",
    key: str | None = API_KEY,
    first: float = 5,
    stall: float = 5,
    total: float = 30,
) -> OpenAiModel:
    """Make a model with these deadlines; without *name* it asks the server."""
    settings = Llm(
        model=name,
        api_key=Secret(key) if key else None,
        first_token_timeout_s=first,
        stall_timeout_s=stall,
        total_timeout_s=total,
    )
    return OpenAiModel(transport, settings)


async def collect(model: OpenAiModel, prompt: Prompt = PROMPT, into: list[str] | None = None) -> tuple[str, Finish]:
    """Return the whole text and how it ended; *into* gets the pieces as they come."""
    pieces = [] if into is None else into
    finish = None
    async with model.generate(prompt, CALLER) as stream:
        async for piece in stream:
            assert finish is None, "nothing comes after the end"
            if isinstance(piece, Finish):
                finish = piece
            elif isinstance(piece, Discard):
                pieces.clear()
            else:
                assert piece, "no piece is empty"
                pieces.append(piece)
    assert finish is not None, "an end always comes"
    return "".join(pieces), finish


async def fails(model: OpenAiModel, kind: type[RequestError], prompt: Prompt = PROMPT) -> RequestError:
    """Return the error of a call that gives no text at all."""
    pieces: list[str] = []
    with pytest.raises(kind) as caught:
        await collect(model, prompt, into=pieces)
    assert pieces == []
    return caught.value


# Answers


async def test_answer(server: FakeModelServer, model: OpenAiModel, transport: Transport) -> None:
    """The answer is its pieces, and an end with the count and the model's name."""
    server.mode = ModelServerMode(delta_delay_s=0.01)
    pieces: list[str] = []
    assert await collect(model, into=pieces) == (SAID, Finish("stop", 5, "small-model", prompt_tokens=5))
    assert len(pieces) == 5
    assert transport.health.state == "healthy"


async def test_pieces_of_one_read(server: FakeModelServer, model: OpenAiModel) -> None:
    """What comes in one read is one piece; an error behind it takes nothing from it."""
    delta = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    said = b"".join(delta % word for word in (b"un ", b"deux ", b"trois"))
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=said + end, content_type="text/event-stream")})
    pieces: list[str] = []
    assert (await collect(model, into=pieces))[1] == Finish("stop", None, "small-model")
    assert pieces == ["un deux trois"]
    error = b'data: {"error":{"message":"out of memory"}}\n\n'
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=said + error, content_type="text/event-stream")})
    pieces.clear()
    with pytest.raises(RequestError):
        await collect(model, into=pieces)
    assert pieces == ["un deux trois"]


async def test_request(server: FakeModelServer, model: OpenAiModel) -> None:
    """The request asks for a stream with its counts, and carries the conversation as messages."""
    history = [Utterance("user", "a"), Utterance("assistant", "b")]
    await collect(model, Prompt("Be brief.", history, "c", 0, 7))
    assert server.requests[-1].json == {
        "model": "small-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        "temperature": 0,
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert server.requests[-1].headers["authorization"] == f"Bearer {API_KEY}"


async def test_without_a_key(server: FakeModelServer, transport: Transport) -> None:
    """Without a key none is sent."""
    server.api_key = None
    await collect(make_model(transport, key=None))
    assert "authorization" not in server.requests[-1].headers


async def test_wrong_key(transport: Transport) -> None:
    """A key that the server refuses is a BadGateway that does not show it."""
    error = await fails(make_model(transport, key="sk-wrong"), Refused)
    assert "sk-wrong" not in f"{error.message} {error.details}"


async def test_first_model(server: FakeModelServer, transport: Transport) -> None:
    """Without a name the first model that the server lists is asked, and the list is read once."""
    server.mode = ModelServerMode(models=("first", "second"), check_model=True)
    model = make_model(transport, name=None)
    for _ in range(2):
        assert (await collect(model))[1].model == "first"
    assert server.requests_seen == {MODELS: 1, COMPLETIONS: 2}


async def test_no_model(server: FakeModelServer, transport: Transport) -> None:
    """A server without models is a BadGateway that says what to do, until it has one."""
    server.mode = ModelServerMode(models=())
    model = make_model(transport, name=None)
    assert "LLM_MODEL" in (await fails(model, BadGateway)).message
    server.mode = ModelServerMode()
    assert (await collect(model))[0] == SAID


@pytest.mark.parametrize("kind", ["nonsense", "html", "list", "null", "empty"])
async def test_no_list_of_models(server: FakeModelServer, transport: Transport, kind: FaultKind) -> None:
    """A list of models that is none is a BadGateway."""
    server.mode = ModelServerMode(faults={MODELS: Fault(kind)})
    await fails(make_model(transport, name=None), BadGateway)


async def test_list_of_models_hangs(server: FakeModelServer, transport: Transport) -> None:
    """The list of models has a deadline too."""
    server.mode = ModelServerMode(faults={MODELS: Fault("hang")})
    started = time.monotonic()
    await fails(make_model(transport, name=None, first=0.2), DeadlineExceeded)
    assert time.monotonic() - started < LATE_S


async def test_unknown_model(server: FakeModelServer, transport: Transport) -> None:
    """A model that the server does not know is a BadGateway."""
    server.mode = ModelServerMode(check_model=True)
    await fails(make_model(transport, name="unknown"), Refused)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5])
async def test_split_characters(server: FakeModelServer, model: OpenAiModel, piece_bytes: int) -> None:
    """Characters and line ends that the network cut are whole again."""
    text = "déjà vu 🙂 cœur\n漢字"
    server.mode = ModelServerMode(answer=text, piece_bytes=piece_bytes, line_ending="\r\n")
    assert (await collect(model))[0] == text


@pytest.mark.parametrize(
    "form",
    [
        {"join_deltas": 100},
        {"field_space": False},
        {"role_chunk": False},
        {"pings": 3},
        {"usage": "always"},
        {"done_marker": False},
        {"reasoning": "hm let me think"},
    ],
)
async def test_forms(server: FakeModelServer, model: OpenAiModel, form: dict[str, Any]) -> None:
    """What servers do differently changes nothing: comments, spaces, chunks of the role, of reasoning, of counts."""
    server.mode = ModelServerMode(**form)
    assert await collect(model) == (SAID, Finish("stop", 5, "small-model", prompt_tokens=5))


async def test_no_counts(server: FakeModelServer, model: OpenAiModel) -> None:
    """Counts that the server leaves out are unknown, not 0."""
    server.mode = ModelServerMode(usage="never")
    assert await collect(model) == (SAID, Finish("stop", None, "small-model"))


async def test_length(server: FakeModelServer, model: OpenAiModel) -> None:
    """An answer that was cut short by its limit says so."""
    server.mode = ModelServerMode(finish_reason="length")
    assert (await collect(model))[1].reason == "length"
    server.mode = ModelServerMode(finish_reason="length", done_marker=False)
    assert (await collect(model))[1].reason == "length"


async def test_empty_answer(server: FakeModelServer, model: OpenAiModel) -> None:
    """A model that has nothing to say ends without text."""
    server.mode = ModelServerMode(deltas=())
    text, finish = await collect(model)
    assert (text, finish.reason) == ("", "stop")


# Failures


@pytest.mark.parametrize(
    ("cut", "half_line"), [("close", False), ("close", True), ("reset", False), ("reset", True), ("end", False)]
)
async def test_cut(server: FakeModelServer, model: OpenAiModel, cut: Any, half_line: bool) -> None:
    """A stream without its end, however it broke, ends as lost: never as complete."""
    server.mode = ModelServerMode(cut_after=2, cut=cut, half_line=half_line, delta_delay_s=0.02)
    text, finish = await collect(model)
    assert (text, finish.reason) == ("You said:", "lost")
    server.mode = ModelServerMode(omit_done=True)
    text, finish = await collect(model)
    assert (text, finish.reason) == (SAID, "lost")


@pytest.mark.parametrize("half_line", [False, True])
@pytest.mark.parametrize(("cut", "kind"), [("close", Unavailable), ("reset", Unavailable), ("end", BadGateway)])
async def test_cut_before_any_text(
    server: FakeModelServer, model: OpenAiModel, cut: Any, kind: type[RequestError], half_line: bool
) -> None:
    """A stream that breaks off before any text is an error, the same wherever in a line it does."""
    server.mode = ModelServerMode(cut_after=0, cut=cut, half_line=half_line)
    await fails(model, kind)


@pytest.mark.parametrize("accident", [{"error_after": 2}, {"nonsense_after": 2}, {"huge_line_after": 2}])
async def test_error_in_the_middle(server: FakeModelServer, model: OpenAiModel, accident: dict[str, Any]) -> None:
    """An error in the middle of a stream is raised after the text before it was given, in words of ours."""
    server.mode = ModelServerMode(error_message="SECRET", delta_delay_s=0.01, **accident)
    pieces: list[str] = []
    with pytest.raises(BadGateway) as caught:
        await collect(model, into=pieces)
    assert "".join(pieces) == "You said:"
    assert "SECRET" not in caught.value.message


async def test_error_at_once(server: FakeModelServer, model: OpenAiModel, transport: Transport) -> None:
    """An error as the first event after a 200 is a BadGateway."""
    server.mode = ModelServerMode(error_after=0)
    await fails(model, BadGateway)
    assert transport.health.state == "degraded"


@pytest.mark.parametrize("kind", ["empty", "html", "nonsense", "null", "list", "wrong_type", "garbage", "redirect"])
async def test_nonsense(server: FakeModelServer, model: OpenAiModel, kind: FaultKind) -> None:
    """What is not the contract is a BadGateway."""
    server.mode = ModelServerMode(faults={"/": Fault(kind)})
    await fails(model, BadGateway)


@pytest.mark.parametrize("kind", ["empty", "nonsense", "wrong_shape", "huge_line"])
async def test_streamed_nonsense(server: FakeModelServer, model: OpenAiModel, kind: FaultKind) -> None:
    """A stream without any event of the contract is a BadGateway."""
    server.mode = ModelServerMode(faults={"/": Fault(kind, content_type="text/event-stream")})
    await fails(model, BadGateway)


async def test_nested_too_deeply(server: FakeModelServer, transport: Transport, model: OpenAiModel) -> None:
    """JSON that no decoder follows to its bottom is a BadGateway, in a chunk and in the list of models."""
    nested = b"[" * NESTED + b"]" * NESTED
    event = b'data: {"choices": [], "unexpected": %s}\n\n' % nested
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=event, content_type="text/event-stream")})
    await fails(model, BadGateway)
    server.mode = ModelServerMode(faults={MODELS: Fault("nested")})
    await fails(make_model(transport, name=None), BadGateway)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Refused), (404, Refused), (429, RateLimited), (500, Refused), (503, Unavailable), (504, DeadlineExceeded)],
)
async def test_statuses(server: FakeModelServer, model: OpenAiModel, status: int, kind: type[RequestError]) -> None:
    """Error statuses are what the transport makes of them."""
    server.mode = ModelServerMode(faults={"/": Fault(status=status)})
    await fails(model, kind)


async def test_too_long_for_the_model(server: FakeModelServer, model: OpenAiModel) -> None:
    """A message that is longer than the model can read is the caller's to shorten."""
    server.mode = ModelServerMode(context_tokens=50)
    error = await fails(model, InvalidRequest, Prompt("", [], "word " * 100, 0.5, 10))
    assert error.details is not None
    assert error.details["path"] == "$.content"


LONG_HISTORY = [Utterance("assistant" if index % 2 else "user", "mot " * 100) for index in range(40)]


@pytest.mark.parametrize("refusal", ["llama_cpp", "openai", "vllm"])
async def test_context_that_is_shorter(server: FakeModelServer, model: OpenAiModel, refusal: Any) -> None:
    """A prompt that is too long is asked again without its oldest messages; how long the context is, is remembered."""
    server.mode = ModelServerMode(context_tokens=800, context_refusal=refusal, template="alternating")
    prompt = Prompt("Be brief.", LONG_HISTORY, "un deux trois", 0.5, 100)
    for _ in range(2):
        assert (await collect(model, prompt))[0] == SAID
    assert server.requests_seen[COMPLETIONS] == 3
    assert 2 < len(server.requests[-1].json["messages"]) < 40


@pytest.mark.parametrize("shape", ["json", "pretty"])
async def test_context_that_is_not_named(server: FakeModelServer, model: OpenAiModel, shape: Any) -> None:
    """Where the server does not say how long it is half of what was sent is left out, until it fits."""
    body = b'{"error": {"message": "prompt too long", "code": "context_length_exceeded"}}'
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=body, status=400, times=2)}, shape=shape)
    prompt = Prompt("Be brief.", LONG_HISTORY, "un deux trois", 0.5, 100)
    assert (await collect(model, prompt))[0] == SAID
    lengths = [len(request.json["messages"]) for request in server.requests]
    assert lengths == sorted(set(lengths), reverse=True)
    assert len(lengths) == 3


@pytest.mark.parametrize("name", ["stream_options", "temperature", "max_tokens", "stream"])
async def test_field_that_is_refused(server: FakeModelServer, model: OpenAiModel, name: str) -> None:
    """What is refused is left out, and is not sent again."""
    server.mode = ModelServerMode(refuses=(name,))
    for _ in range(2):
        assert (await collect(model))[0] == SAID
    assert server.requests_seen[COMPLETIONS] == 3
    assert name not in server.requests[-1].json


async def test_value_that_is_refused(server: FakeModelServer, model: OpenAiModel) -> None:
    """A value that is out of the server's range is left out once, and the next one is sent."""
    body = b'{"error": {"message": "temperature must be at most 1", "param": "temperature", "code": "invalid_value"}}'
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=body, status=400, times=1)})
    assert (await collect(model, Prompt("", [], "un", 2.0, 100)))[0] == "You said: un"
    assert "temperature" not in server.requests[-1].json
    await collect(model)
    assert server.requests[-1].json["temperature"] == 0.5


async def test_answer_that_is_too_long_for_the_context(server: FakeModelServer, model: OpenAiModel) -> None:
    """Where it is the answer that was allowed too much nothing of the history is left out."""
    words = (
        b"'max_tokens' or 'max_completion_tokens' is too large: 900. This model's maximum context length is 800 tokens"
    )
    server.mode = ModelServerMode(
        faults={"/": Fault("raw", body=b'{"object":"error","message":"%s","code":400}' % words, status=400, times=1)}
    )
    history = [Utterance("user", "a"), Utterance("assistant", "b")]
    await collect(model, Prompt("", history, "c", 0, 900))
    sent = server.requests[-1].json
    assert len(sent["messages"]) == 3
    assert not {"max_tokens", "max_completion_tokens"} & sent.keys()


async def test_template_without_a_system(server: FakeModelServer, model: OpenAiModel) -> None:
    """A template that knows no system message is sent its words with the user's first one."""
    server.mode = ModelServerMode(template="no_system")
    for _ in range(2):
        assert (await collect(model))[1].reason == "stop"
    assert server.requests_seen[COMPLETIONS] == 3
    assert server.requests[-1].json["messages"] == [{"role": "user", "content": "Be brief.\n\nun deux trois"}]


async def test_refusals_come_to_an_end(server: FakeModelServer, model: OpenAiModel) -> None:
    """A server that refuses everything is not asked for ever, and its words are told."""
    server.mode = ModelServerMode(
        refuses=("stream_options", "temperature", "max_tokens", "max_completion_tokens", "model")
    )
    error = await fails(model, Refused)
    assert (
        error.message == "llm refused with status 400: Unsupported parameter: 'model' is not supported with this model."
    )
    assert server.requests_seen[COMPLETIONS] < 7


@pytest.mark.parametrize("name", ["small-model", None])
async def test_address_without_its_version(server: FakeModelServer, name: str | None) -> None:
    """A server that answers a wrong path with 200 and an error, or with 404, is told so, with a hint at /v1."""
    for unexpected in (True, False):
        server.mode = ModelServerMode(unexpected_endpoint=unexpected)
        transport = Transport("llm", server.url, Neighbours())
        error = await fails(make_model(transport, name=name), BadGateway)
        await transport.close()
        assert "/v1" in error.message
        assert error.details is not None
        assert ("Unexpected endpoint" in error.details.get("neighbour_error", "")) == unexpected


async def test_thinking_that_is_held_back(server: FakeModelServer, transport: Transport) -> None:
    """Of a model whose name says that it thinks nothing is given before it is known where its thinking ends."""
    server.mode = ModelServerMode(deltas=("hm ", "hm", "</think>", "Oui."))
    model = make_model(transport, name="deepseek-r1-distill-qwen-7b")
    pieces: list[str] = []
    assert (await collect(model, into=pieces))[0] == "Oui."
    assert pieces == ["Oui."]
    server.mode = ModelServerMode(deltas=("hm ", "hm"), finish_reason="length")
    assert (await collect(model))[0] == ""
    server.mode = ModelServerMode(deltas=("Oui", "."), delta_delay_s=0.01)
    assert (await collect(model, into=(pieces := [])))[0] == "Oui."
    assert pieces == ["Oui."]
    assert (await collect(model, into=(pieces := [])))[0] == "Oui."
    assert pieces == ["Oui", "."], "it has been seen to say when it thinks"
    server.mode = ModelServerMode(reasoning="hm hm", deltas=("Oui", "."), delta_delay_s=0.01)
    model = make_model(transport, name="qwq-32b")
    assert (await collect(model, into=(pieces := [])))[0] == "Oui."
    assert pieces == ["Oui", "."], "its server tells of its thinking"


async def test_thinking_without_end(server: FakeModelServer, model: OpenAiModel) -> None:
    """A model that thinks far more than it was allowed to say is cut off."""
    server.mode = ModelServerMode(deltas=("<think>", *("hm " * 100,) * 100), hold_after=60)
    text, finish = await collect(model, Prompt("", [], "a", 0, 10))
    assert (text, finish.reason) == ("", "length")
    await server.stream_closed()


@pytest.mark.parametrize("accident", [{"stall_after": 1}, {"cut_after": 1, "cut": "reset"}, {"cut_after": 1}])
async def test_end_that_the_connection_outlives(server: FakeModelServer, accident: dict[str, Any]) -> None:
    """After the model's own end nothing is waited for as long as for a word, and a loss of the connection is none."""
    transport = Transport("llm", server.llm_url, Neighbours(), failures=1)
    server.mode = ModelServerMode(events=(END, "never"), delta_delay_s=0.05, **accident)
    started = time.monotonic()
    assert (await collect(make_model(transport, stall=30)))[1].reason == "stop"
    assert time.monotonic() - started < 10
    assert transport.breaker.closed
    assert transport.health.state == "healthy"
    await transport.close()


async def test_end_that_is_said_all_along(server: FakeModelServer, model: OpenAiModel) -> None:
    """An empty reason in every chunk is no end, and one in the last is."""
    said = '{"choices":[{"delta":{"content":"x"},"finish_reason":""}]}'
    empty = '{"choices":[{"delta":{},"finish_reason":""}]}'
    for events, reason in (
        ((said, said), "lost"),
        ((said, empty, CHUNK), "lost"),
        ((said, empty, said), "lost"),
        ((said, said, empty), "stop"),
        ((CHUNK, empty), "stop"),
    ):
        server.mode = ModelServerMode(events=events, done_marker=False)
        assert (await collect(model))[1].reason == reason, events
        server.mode = ModelServerMode(events=events)
        assert (await collect(model))[1].reason == "stop"


CHUNK = '{"choices":[{"delta":{"content":"x"},"finish_reason":null}]}'


END = '{"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}'


async def test_went_away(server: FakeModelServer, model: OpenAiModel) -> None:
    """A server that is gone is Unavailable; when it is back, the next call works."""
    await collect(model)
    await server.go_away()
    await fails(model, Unavailable)
    await server.come_back()
    assert (await collect(model))[0] == SAID


async def test_stale_connection(server: FakeModelServer, model: OpenAiModel) -> None:
    """A kept connection that it closes under a request is not noticed."""
    await collect(model)
    server.mode = ModelServerMode(faults={"/": Fault("close_reused")})
    assert (await collect(model))[0] == SAID


# Deadlines


async def test_hang(server: FakeModelServer, transport: Transport) -> None:
    """No answer within the first token's time is DeadlineExceeded."""
    server.mode = ModelServerMode(faults={"/": Fault("hang")})
    started = time.monotonic()
    await fails(make_model(transport, first=0.2), DeadlineExceeded)
    assert time.monotonic() - started < LATE_S
    await server.stream_closed()


@pytest.mark.parametrize("pings", [0, 5])
async def test_model_loads(server: FakeModelServer, transport: Transport, pings: int) -> None:
    """A model that is being loaded may be silent for longer than one that speaks, its head sent or not."""
    server.mode = ModelServerMode(first_delay_s=0.5, pings=pings)
    assert (await collect(make_model(transport, stall=0.2)))[0] == SAID


@pytest.mark.parametrize("half_line", [False, True])
async def test_silence_after_the_head(server: FakeModelServer, transport: Transport, half_line: bool) -> None:
    """A stream that begins and never says a word is DeadlineExceeded."""
    server.mode = ModelServerMode(stall_after=0, half_line=half_line)
    started = time.monotonic()
    await fails(make_model(transport, first=0.2), DeadlineExceeded)
    assert time.monotonic() - started < LATE_S
    await server.stream_closed()


@pytest.mark.parametrize("half_line", [False, True])
async def test_stall(server: FakeModelServer, transport: Transport, half_line: bool) -> None:
    """A stream that stalls after some text ends as stalled, and its connection is closed."""
    server.mode = ModelServerMode(stall_after=2, half_line=half_line)
    started = time.monotonic()
    text, finish = await collect(make_model(transport, stall=0.2))
    assert (text, finish.reason) == ("You said:", "stalled")
    assert time.monotonic() - started < LATE_S
    await server.stream_closed()


async def test_total(server: FakeModelServer, transport: Transport) -> None:
    """A stream that goes on for too long ends as over its deadline."""
    server.mode = ModelServerMode(deltas=("a",) * 1_000, delta_delay_s=0.02)
    text, finish = await collect(make_model(transport, total=0.3))
    assert finish.reason == "deadline"
    assert text


async def test_cancelling(server: FakeModelServer, model: OpenAiModel) -> None:
    """Cancelling whoever reads closes the server's connection promptly."""
    server.mode = ModelServerMode(hold_after=1)
    task = asyncio.create_task(collect(model))
    await server.gate.reached()
    await asyncio.sleep(0.02)
    left = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await server.stream_closed() - left < 1


async def test_connections_are_kept(server: FakeModelServer, model: OpenAiModel) -> None:
    """Answers that were read to their end leave a connection that the next call uses."""
    for _ in range(4):
        await collect(model)
    assert len({request.client_port for request in server.requests}) == 1


async def test_words_that_come_in_pieces() -> None:
    """A refusal is read to its end, however the network cuts it."""
    words = b'{"error": {"message": "Unsupported parameter: temperature", "param": "temperature"}}'
    asked: list[bytes] = []
    closed: asyncio.Queue[None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.findall(rb"content-length: (\d+)", head)[0])
        asked.append(await reader.readexactly(length))
        status, body = (b"400 No", words) if b"temperature" in asked[-1] else (b"200 OK", b"data: [DONE]\n\n")
        for piece in (b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)), body[:9], body[9:]):
            writer.write(piece)
            await asyncio.sleep(0.02)
        writer.close()
        closed.put_nowait(None)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        transport = Transport("llm", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", Neighbours())
        await collect(make_model(transport))
        for _ in range(2):
            await closed.get()
        await transport.close()
    assert len(asked) == 2


@pytest.mark.parametrize("status", [401, 400, 200, 429, 503])
async def test_key_that_is_told(server: FakeModelServer, model: OpenAiModel, status: int) -> None:
    """A server that repeats our key in its error does not have it shown."""
    body = f'{{"error": {{"message": "Incorrect API key provided: {API_KEY}", "code": "invalid_api_key"}}}}'.encode()
    server.mode = ModelServerMode(faults={"/": Fault("raw", body=body, status=status)})
    error = await fails(model, RequestError)
    assert API_KEY not in f"{error.message} {error.details}"
    if status <= 401:
        assert error.details is not None
        assert error.details["neighbour_error"].startswith("Incorrect API key")
        assert "LLM_API_KEY" in error.message


@pytest.mark.parametrize("end", ["<|im_end|>", "<tool_call>", "<think>"])
async def test_model_that_goes_on(server: FakeModelServer, model: OpenAiModel, end: str) -> None:
    """A model that goes on without end after its message is left, and its answer is what it said before."""
    server.mode = ModelServerMode(deltas=("Oui.", end, *("et " * 100,) * 100), hold_after=60)
    text, finish = await collect(model, Prompt("", [], "a", 0, 10))
    assert text == "Oui."
    assert finish.reason == ("stop" if end == "<|im_end|>" else "length")
    await server.stream_closed()
