"""The bridges' language model: every way in which they answer, and fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from jarvis_core.errors import BadGateway, DeadlineExceeded, RateLimited, RequestError, Unavailable
from jarvis_core.models import Caller, Discard, Finish, Prompt, Utterance
from jarvis_core.services import tokens
from jarvis_core.services.python_bridges import BridgesModel
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Refused, Transport
from jarvis_core.settings import Llm, Neighbours, Secret
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges

pytestmark = pytest.mark.every_python

SECRET = "0123456789abcdef0123456789abcdef"
ANN, BOB = Caller("ann", "Ann"), Caller("bob")
PROMPT = Prompt("Be brief.", [], "un deux trois", 0.5, 100)
SAID = "You said: un deux trois"
LATE_S = 3.0
STREAMED: tuple[Any, ...] = ("ndjson", "sse")
SHAPES: tuple[Any, ...] = ("json", *STREAMED)


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run bridges that check tokens."""
    async with FakeBridges(SECRET) as server:
        yield server


@pytest.fixture
async def transport(bridges: FakeBridges) -> AsyncIterator[Transport]:
    """Give the way to them; afterwards no connection is open."""
    transport = Transport("bridges", bridges.url, Neighbours(connect_timeout_s=0.5))
    yield transport
    await transport.close()
    async with asyncio.timeout(2):
        while bridges.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@pytest.fixture
def model(transport: Transport) -> BridgesModel:
    """Give the model behind them, with ordinary deadlines."""
    return make_model(transport)


def make_model(transport: Transport, *, first: float = 5, stall: float = 5, total: float = 30) -> BridgesModel:
    """Make a model with these deadlines."""
    settings = Llm(first_token_timeout_s=first, stall_timeout_s=stall, total_timeout_s=total)
    return BridgesModel(transport, settings, TokenMint(Secret(SECRET)))


async def collect(
    model: BridgesModel, prompt: Prompt = PROMPT, caller: Caller = ANN, into: list[str] | None = None
) -> tuple[str, Finish]:
    """Return the whole text and how it ended; *into* gets the pieces as they come."""
    pieces = [] if into is None else into
    finish = None
    async with model.generate(prompt, caller) as stream:
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


async def fails(model: BridgesModel, kind: type[RequestError]) -> RequestError:
    """Return the error of a call that gives no text at all."""
    pieces: list[str] = []
    with pytest.raises(kind) as caught:
        await collect(model, into=pieces)
    assert pieces == []
    assert "Error" not in caught.value.message
    return caught.value


# Answers


@pytest.mark.parametrize("shape", SHAPES)
async def test_answer(bridges: FakeBridges, model: BridgesModel, transport: Transport, shape: Any) -> None:
    """Whole or streamed, the answer is its text, and an end with the counts and the model's name."""
    bridges.mode = BridgesMode(shape=shape, delta_delay_s=0.01)
    pieces: list[str] = []
    assert await collect(model, into=pieces) == (SAID, Finish("stop", 5, "mistral:latest", prompt_tokens=3))
    assert len(pieces) == (1 if shape == "json" else 5)
    assert transport.health.state == "healthy"


async def test_request(bridges: FakeBridges, model: BridgesModel) -> None:
    """The request has what was asked, within the contract, and no field that is null."""
    await collect(model)
    assert bridges.requests[-1].json == {
        "prompt": "un deux trois",
        "system_prompt": "Be brief.",
        "temperature": 0.5,
        "max_tokens": 100,
        "stream": True,
    }
    assert bridges.requests[-1].headers["content-type"] == "application/json"
    await collect(model, Prompt("", [Utterance("user", "a"), Utterance("assistant", "b")], "c", 0, 1))
    body = bridges.requests[-1].json
    assert body.keys() == {"prompt", "temperature", "max_tokens", "stream", "messages"}
    assert None not in body.values()


@pytest.mark.parametrize("size", [1, 9_000, 10_000])
async def test_long_messages_pass(bridges: FakeBridges, model: BridgesModel, size: int) -> None:
    """A message of up to 10,000 code points is taken, whatever the history and the instructions are."""
    bridges.mode = BridgesMode(answer="ok")
    history = [Utterance("user", "é" * 4_000), Utterance("assistant", "🙂" * 4_000)] * 3
    assert (await collect(model, Prompt("s" * 5_000, history, "🙂" * size, 0.7, 32_000)))[0] == "ok"
    assert "🙂" * size in bridges.requests[-1].json["prompt"]


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 5])
async def test_split_characters(bridges: FakeBridges, model: BridgesModel, shape: Any, piece_bytes: int) -> None:
    """Characters and line ends that the network cut are whole again."""
    text = "déjà vu 🙂 cœur\n漢字"
    bridges.mode = BridgesMode(shape=shape, answer=text, piece_bytes=piece_bytes, line_ending="\r\n")
    text_read, finish = await collect(model)
    assert text_read == text
    assert finish.reason == "stop"


@pytest.mark.parametrize("shape", STREAMED)
async def test_joined_deltas(bridges: FakeBridges, model: BridgesModel, shape: Any) -> None:
    """Many lines in one network chunk are read like as many chunks."""
    bridges.mode = BridgesMode(shape=shape, join_deltas=100)
    assert (await collect(model))[0] == SAID


async def test_pings(bridges: FakeBridges, model: BridgesModel) -> None:
    """Keep-alive comments are no text."""
    bridges.mode = BridgesMode(shape="sse", pings=3)
    assert (await collect(model))[0] == SAID


@pytest.mark.parametrize("shape", SHAPES)
async def test_no_counts(bridges: FakeBridges, model: BridgesModel, shape: Any) -> None:
    """Counts that the neighbour leaves out are unknown, not 0."""
    bridges.mode = BridgesMode(shape=shape, omit_counts=True)
    assert await collect(model) == (SAID, Finish("stop", None, "mistral:latest"))


# Failures that look like answers


@pytest.mark.parametrize("shape", SHAPES)
async def test_failure_as_200(bridges: FakeBridges, model: BridgesModel, transport: Transport, shape: Any) -> None:
    """A failure that comes as 200 and "Error: …" is a BadGateway, and not a word of it is text."""
    bridges.mode = BridgesMode(shape=shape, error_200=True)
    await fails(model, BadGateway)
    assert transport.health.state == "degraded"


@pytest.mark.parametrize(
    "accident", [{"omit_done": True}, {"cut_after": 1}, {"cut_after": 3}, {"cut_after": 3, "cut": "end"}]
)
async def test_failure_without_its_end(bridges: FakeBridges, model: BridgesModel, accident: dict[str, Any]) -> None:
    """Such a failure is one too where its stream breaks off before the counts."""
    bridges.mode = BridgesMode(shape="ndjson", error_200=True, **accident)
    await fails(model, BadGateway)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["Error: is a word too", "Error", "Errors: none", "E", "Err, no", "error: x"])
async def test_answers_that_look_like_failures(
    bridges: FakeBridges, model: BridgesModel, shape: Any, text: str
) -> None:
    """An answer that begins like a failure, and has a count of tokens, is an answer, whole."""
    bridges.mode = BridgesMode(shape=shape, answer=text, deltas=tuple(text))
    read, finish = await collect(model)
    assert read == text
    assert finish.reason == "stop"


async def test_text_is_not_held_back(bridges: FakeBridges, model: BridgesModel) -> None:
    """Text that cannot be a failure is given as soon as it comes."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("Err", "and", " done"), hold_after=2)
    pieces: list[str] = []
    task = asyncio.create_task(collect(model, into=pieces))
    await bridges.gate.reached()
    await asyncio.sleep(0.05)
    assert "".join(pieces) == "Errand"
    bridges.gate.release()
    assert (await task)[0] == "Errand done"


# Failures


@pytest.mark.parametrize(
    "kind", ["empty", "html", "nonsense", "null", "list", "wrong_shape", "nested", "wrong_type", "garbage", "redirect"]
)
async def test_nonsense(bridges: FakeBridges, model: BridgesModel, kind: FaultKind) -> None:
    """What is not the contract is a BadGateway."""
    bridges.mode = BridgesMode(faults={"/": Fault(kind)})
    await fails(model, BadGateway)


@pytest.mark.parametrize("kind", ["nonsense", "wrong_shape", "list", "empty"])
@pytest.mark.parametrize("content_type", ["application/x-ndjson", "text/event-stream"])
async def test_streamed_nonsense(bridges: FakeBridges, model: BridgesModel, kind: FaultKind, content_type: str) -> None:
    """A stream without any line of the contract is a BadGateway."""
    bridges.mode = BridgesMode(faults={"/": Fault(kind, content_type=content_type)})
    await fails(model, BadGateway)


async def test_truncated(bridges: FakeBridges, model: BridgesModel) -> None:
    """Half of a JSON answer is a BadGateway; half that breaks off is Unavailable."""
    bridges.mode = BridgesMode(faults={"/": Fault("truncated")})
    await fails(model, BadGateway)
    bridges.mode = BridgesMode(faults={"/": Fault("short_body")})
    await fails(model, Unavailable)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson", "text/event-stream"])
async def test_endless_line(bridges: FakeBridges, model: BridgesModel, content_type: str) -> None:
    """An answer that does not end is given up before it fills the memory."""
    bridges.mode = BridgesMode(faults={"/": Fault("huge_line", content_type=content_type)})
    await fails(model, BadGateway)


@pytest.mark.parametrize("shape", STREAMED)
async def test_huge_line_in_a_stream(bridges: FakeBridges, model: BridgesModel, shape: Any) -> None:
    """A line that is too long after some text is an error; the text before it was given."""
    bridges.mode = BridgesMode(shape=shape, huge_line_after=2)
    pieces: list[str] = []
    with pytest.raises(BadGateway):
        await collect(model, into=pieces)
    assert "".join(pieces) == "You said:"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Refused), (401, Refused), (429, RateLimited), (500, Refused), (503, Unavailable), (504, DeadlineExceeded)],
)
async def test_statuses(bridges: FakeBridges, model: BridgesModel, status: int, kind: type[RequestError]) -> None:
    """Error statuses are what the transport makes of them."""
    bridges.mode = BridgesMode(faults={"/": Fault(status=status)})
    await fails(model, kind)


async def test_their_limit(bridges: FakeBridges, model: BridgesModel) -> None:
    """Over the neighbour's limit a caller is RateLimited, with when to try again, and others are not."""
    bridges.mode = BridgesMode(enforce_limits=True)
    for _ in range(10):
        await collect(model)
    assert (await fails(model, RateLimited)).retry_after_s
    assert (await collect(model, caller=BOB))[0] == SAID


async def test_went_away(bridges: FakeBridges, model: BridgesModel) -> None:
    """Bridges that are gone are Unavailable; when they are back, the next call works."""
    await collect(model)
    await bridges.go_away()
    await fails(model, Unavailable)
    await bridges.come_back()
    assert (await collect(model))[0] == SAID


@pytest.mark.parametrize("shape", SHAPES)
async def test_stale_connection(bridges: FakeBridges, model: BridgesModel, shape: Any) -> None:
    """A kept connection that they close under a request is not noticed."""
    bridges.mode = BridgesMode(shape=shape)
    await collect(model)
    bridges.mode = BridgesMode(shape=shape, faults={"/": Fault("close_reused")})
    assert (await collect(model))[0] == SAID


# Deadlines and accidents


async def test_hang(bridges: FakeBridges, transport: Transport) -> None:
    """No answer is DeadlineExceeded: after twice the first token's time, for they may be thinking it all up first."""
    bridges.mode = BridgesMode(faults={"/": Fault("hang")})
    started = time.monotonic()
    await fails(make_model(transport, first=0.2), DeadlineExceeded)
    assert 0.35 < time.monotonic() - started < LATE_S
    await bridges.stream_closed()


async def test_hang_of_bridges_that_stream(bridges: FakeBridges, transport: Transport) -> None:
    """Who has been seen to stream has the first token's time, no more."""
    model = make_model(transport, first=1)
    bridges.mode = BridgesMode(shape="ndjson")
    await collect(model)
    bridges.mode = BridgesMode(faults={"/": Fault("hang")})
    started = time.monotonic()
    await fails(model, DeadlineExceeded)
    assert 0.9 < time.monotonic() - started < 1.9


@pytest.mark.parametrize("shape", SHAPES)
async def test_slow_first_token(bridges: FakeBridges, transport: Transport, shape: Any) -> None:
    """The first token may take longer than the time between tokens."""
    bridges.mode = BridgesMode(shape=shape, first_delay_s=0.5)
    assert (await collect(make_model(transport, stall=0.2)))[0] == SAID


@pytest.mark.parametrize("shape", STREAMED)
async def test_silence_after_the_head(bridges: FakeBridges, transport: Transport, shape: Any) -> None:
    """An answer that begins and then never says a word is DeadlineExceeded."""
    bridges.mode = BridgesMode(shape=shape, stall_after=0)
    started = time.monotonic()
    await fails(make_model(transport, first=0.2), DeadlineExceeded)
    assert time.monotonic() - started < LATE_S
    await bridges.stream_closed()


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize("half_line", [False, True])
async def test_stall(bridges: FakeBridges, transport: Transport, shape: Any, half_line: bool) -> None:
    """A stream that stalls after some text ends as stalled, and its connection is closed."""
    bridges.mode = BridgesMode(shape=shape, stall_after=2, half_line=half_line)
    started = time.monotonic()
    text, finish = await collect(make_model(transport, stall=0.2))
    assert (text, finish.reason) == ("You said:", "stalled")
    assert time.monotonic() - started < LATE_S
    await bridges.stream_closed()


async def test_total(bridges: FakeBridges, transport: Transport) -> None:
    """A stream that goes on for too long ends as over its deadline, with the text until then."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("a",) * 1_000, delta_delay_s=0.02)
    text, finish = await collect(make_model(transport, total=0.3))
    assert finish.reason == "deadline"
    assert text
    assert set(text) == {"a"}


async def test_trickle(bridges: FakeBridges, transport: Transport) -> None:
    """A whole answer that never ends, each byte of it in time, is DeadlineExceeded."""
    bridges.mode = BridgesMode(faults={"/": Fault("trickle")})
    started = time.monotonic()
    await fails(make_model(transport, total=0.3), DeadlineExceeded)
    assert time.monotonic() - started < LATE_S


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize(
    ("cut", "half_line"), [("close", False), ("close", True), ("reset", False), ("reset", True), ("end", False)]
)
async def test_cut(bridges: FakeBridges, model: BridgesModel, shape: Any, cut: Any, half_line: bool) -> None:
    """A stream that breaks off, or ends without its last line, ends as lost: never as complete."""
    bridges.mode = BridgesMode(shape=shape, cut_after=2, cut=cut, half_line=half_line, delta_delay_s=0.02)
    text, finish = await collect(model)
    assert (text, finish.reason) == ("You said:", "lost")
    bridges.mode = BridgesMode(shape=shape, omit_done=True)
    text, finish = await collect(model)
    assert (text, finish.reason) == (SAID, "lost")


@pytest.mark.parametrize("half_line", [False, True])
@pytest.mark.parametrize(("cut", "kind"), [("close", Unavailable), ("reset", Unavailable), ("end", BadGateway)])
async def test_cut_before_any_text(
    bridges: FakeBridges, model: BridgesModel, cut: Any, kind: type[RequestError], half_line: bool
) -> None:
    """A stream that breaks off before any text is an error, the same wherever in a line it does."""
    bridges.mode = BridgesMode(shape="ndjson", cut_after=0, cut=cut, half_line=half_line)
    await fails(model, kind)


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize("accident", [{"error_after": 2}, {"nonsense_after": 2}])
async def test_error_in_the_middle(
    bridges: FakeBridges, model: BridgesModel, shape: Any, accident: dict[str, int]
) -> None:
    """An error in the middle of a stream is raised after the text before it was given, in words of ours."""
    bridges.mode = BridgesMode(shape=shape, error_message="SECRET", delta_delay_s=0.01, **accident)  # type: ignore[arg-type]
    pieces: list[str] = []
    with pytest.raises(BadGateway) as caught:
        await collect(model, into=pieces)
    assert "".join(pieces) == "You said:"
    assert "SECRET" not in caught.value.message


async def test_error_at_once(bridges: FakeBridges, model: BridgesModel) -> None:
    """An error as the first line is an error without text."""
    bridges.mode = BridgesMode(shape="ndjson", error_after=0)
    await fails(model, BadGateway)


@pytest.mark.parametrize("shape", SHAPES)
async def test_cancelling(bridges: FakeBridges, model: BridgesModel, shape: Any) -> None:
    """Cancelling whoever reads closes the neighbour's connection promptly."""
    bridges.mode = BridgesMode(shape=shape, hold_after=1)
    task = asyncio.create_task(collect(model))
    await bridges.gate.reached()
    await asyncio.sleep(0.02)
    left = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await bridges.stream_closed() - left < 1


async def test_leaving_early(bridges: FakeBridges, model: BridgesModel) -> None:
    """Whoever has read enough leaves, and the neighbour's connection is closed promptly."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    async with model.generate(PROMPT, ANN) as stream:
        async for _ in stream:
            break
    left = time.monotonic()
    assert await bridges.stream_closed() - left < 1


async def test_connections_are_kept(bridges: FakeBridges, model: BridgesModel) -> None:
    """Answers that were read to their end leave a connection that the next call uses."""
    for shape in SHAPES * 2:
        bridges.mode = BridgesMode(shape=shape)
        await collect(model)
    assert len({request.client_port for request in bridges.requests}) == 1


# Tokens


def claims_of(bridges: FakeBridges, number: int = -1) -> dict[str, Any]:
    """Return the claims of the token that came with a request."""
    token = bridges.requests[number].headers["authorization"].removeprefix("Bearer ")
    claims: dict[str, Any] = jwt.decode(token, SECRET, algorithms=["HS256"])
    return claims


async def test_claims(bridges: FakeBridges, model: BridgesModel) -> None:
    """Each call carries its caller's identity in the claims that the bridges want, and no audience."""
    await collect(model, caller=ANN)
    await collect(model, caller=BOB)
    for number, (user_id, username) in enumerate((("ann", "Ann"), ("bob", "bob"))):
        claims = claims_of(bridges, number)
        assert claims.keys() == {"sub", "user_id", "username", "iat", "exp", "permissions"}
        assert (claims["sub"], claims["user_id"], claims["username"]) == (user_id, user_id, username)
        assert claims["iat"] <= time.time() < claims["exp"]
        assert isinstance(claims["permissions"], list)


async def test_tokens_are_reused_and_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is used again while it is good for another minute, then made anew."""
    mint = TokenMint(Secret(SECRET))
    first = mint.token(ANN)
    assert mint.token(ANN) == first
    assert mint.token(BOB) != first
    now = time.time()
    monkeypatch.setattr("jarvis_core.services.tokens.time.time", lambda: now + tokens.LIFETIME_S - 50)
    second = mint.token(ANN)
    assert second != first
    assert jwt.decode(second, SECRET, algorithms=["HS256"], options={"verify_iat": False})["exp"] > now + 1_000


async def test_tokens_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers come, the tokens kept are bounded."""
    monkeypatch.setattr(tokens, "CACHED_CALLERS", 4)
    mint = TokenMint(Secret(SECRET))
    for number in range(20):
        mint.token(Caller(f"user-{number}"))
    assert len(mint._cache) <= 4


async def test_without_a_secret(bridges: FakeBridges, transport: Transport) -> None:
    """Without a secret no token is sent."""
    bridges.jwt_secret = None
    assert (await collect(BridgesModel(transport, Llm(), None)))[0] == SAID
    assert "authorization" not in bridges.requests[-1].headers


# What is not the answer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("said", "answer", "reason"),
    [
        ("<think>hm hm</think>Oui.", "Oui.", "stop"),
        ("hm hm</think>Oui.", "Oui.", "stop"),
        ("<think>hm hm", "", "thinking"),
        ("Oui.<|im_end|>", "Oui.", "stop"),
        ('{"name": "HassTurnOn", "parameters": {}}', "", "tool_calls"),
        ("Écris `<think>`.", "Écris `<think>`.", "stop"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Oui.", "Oui.", "stop"),
    ],
)
async def test_what_is_not_the_answer(
    bridges: FakeBridges, model: BridgesModel, shape: Any, said: str, answer: str, reason: str
) -> None:
    """Thinking, tokens and calls in the text are left out, whole and letter by letter."""
    bridges.mode = BridgesMode(shape=shape, answer=said, deltas=tuple(said))
    text, finish = await collect(model)
    assert (text, finish.reason) == (answer, reason)


@pytest.mark.parametrize("shape", SHAPES)
async def test_thinking_of_its_own(bridges: FakeBridges, model: BridgesModel, shape: Any) -> None:
    """Thinking in a field of its own is no part of the answer; without an answer it is told."""
    bridges.mode = BridgesMode(shape=shape, thinking="hm hm hm")
    assert await collect(model) == (SAID, Finish("stop", 5, "mistral:latest", prompt_tokens=3))
    bridges.mode = BridgesMode(shape=shape, thinking="hm hm hm", answer="", deltas=())
    text, finish = await collect(model)
    assert (text, finish.reason) == ("", "thinking")


async def test_thinking_feeds_the_deadline(bridges: FakeBridges, transport: Transport) -> None:
    """A model that thinks for longer than it may be silent is not given up."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("<think>", *"hmhmhmhm", "</think>", "Oui."), delta_delay_s=0.1)
    assert (await collect(make_model(transport, stall=0.5)))[0] == "Oui."


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("said", "reason"),
    [("length", "length"), ("eos", "stop"), ("content_filter", "content_filter"), ("odd one", "odd_one")],
)
async def test_ends(bridges: FakeBridges, model: BridgesModel, shape: Any, said: str, reason: str) -> None:
    """An end is what the bridges say of it, by one name each."""
    bridges.mode = BridgesMode(shape=shape, finish_reason=said)
    text, finish = await collect(model)
    assert (text, finish.reason) == (SAID, reason)


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize("error_object", [False, True])
async def test_words_of_an_error(bridges: FakeBridges, model: BridgesModel, shape: Any, error_object: bool) -> None:
    """An error's words are in the details, whether they come as a text or in an object."""
    bridges.mode = BridgesMode(shape=shape, error_after=0, error_object=error_object, error_message="la carte a fondu")
    error = await fails(model, BadGateway)
    assert error.details is not None
    assert error.details["neighbour_error"] == "la carte a fondu"
    assert "la carte" not in error.message


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize("label", ["", "text/plain", "text/html", "application/octet-stream"])
async def test_labels(bridges: FakeBridges, model: BridgesModel, shape: Any, label: str) -> None:
    """A stream is one whatever it is labelled."""
    bridges.mode = BridgesMode(shape=shape, content_type=label)
    assert await collect(model) == (SAID, Finish("stop", 5, "mistral:latest", prompt_tokens=3))


@pytest.mark.parametrize("label", ["application/json", "text/html", ""])
async def test_lines_that_are_labelled_whole(bridges: FakeBridges, model: BridgesModel, label: str) -> None:
    """Lines are not taken for a whole answer, nor a broken stream of them for one."""
    bridges.mode = BridgesMode(shape="ndjson", content_type=label)
    assert (await collect(model))[0] == SAID
    bridges.mode = BridgesMode(shape="ndjson", content_type=label, cut_after=2, cut="end")
    text, finish = await collect(model)
    assert (text, finish.reason) == ("You said:", "lost")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"text": "a\\ud83d", "tokens_generated": 3}', "a\ufffd"),
        (b'{"text": "a\xc3", "tokens_generated": 3}', "a\ufffd"),
        (b'{"text": "Oui.", "tokens_generated": 3.5, "tokens_prompt": NaN}', "Oui."),
        (b'{\n "text": "Oui.",\n "tokens_generated": 3\n}\n', "Oui."),
        (b'\xef\xbb\xbf{"text": "Oui.", "tokens_generated": 3, "model": null}', "Oui."),
    ],
)
async def test_odd_answers(bridges: FakeBridges, model: BridgesModel, body: bytes, text: str) -> None:
    """What can be used of a whole answer is used."""
    bridges.mode = BridgesMode(faults={"/": Fault("raw", body=body)})
    said, finish = await collect(model)
    assert (said, finish.reason, finish.tokens) == (text, "stop", 3)


@pytest.mark.parametrize("shape", STREAMED)
async def test_broken_frame(bridges: FakeBridges, model: BridgesModel, transport: Transport, shape: Any) -> None:
    """A stream that ends cleanly in the middle of a line is lost, and the bridges are not well."""
    bridges.mode = BridgesMode(shape=shape, cut_after=2, cut="end", half_line=True)
    text, finish = await collect(model)
    assert (text, finish.reason) == ("You said:", "lost")
    assert transport.health.state == "degraded"


@pytest.mark.parametrize("shape", STREAMED)
@pytest.mark.parametrize("flood", ["comments", "empty", "bytes"])
async def test_flood(bridges: FakeBridges, model: BridgesModel, transport: Transport, shape: Any, flood: Any) -> None:
    """A stream that brings nothing without end is given up, long before its last deadline."""
    bridges.mode = BridgesMode(shape=shape, flood_after=2, flood=flood)
    text, finish = await collect(model)
    assert (text, finish.reason) == ("You said:", "flood")
    assert transport.health.state == "degraded"
    bridges.mode = BridgesMode(shape=shape, flood_after=0, flood=flood)
    error = await fails(model, BadGateway)
    assert error.details == {"neighbour": "bridges", "reason": "flood"}
