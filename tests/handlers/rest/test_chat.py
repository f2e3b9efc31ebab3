"""``POST /api/chat`` with a whole answer: how turns end, what is stored, and what clients may do meanwhile."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import pytest

from jarvis_core.settings import Llm
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import read_events
from tests.handlers.rest.api import Answer, Api, created

GENERATE = "/api/llm/generate"
SHAPES = ["json", "ndjson", "sse"]


def faulty(kind: FaultKind = "none", **options: Any) -> BridgesMode:
    """Go wrong at the model."""
    return BridgesMode(shape="ndjson", faults={GENERATE: Fault(kind, **options)})


async def failed_turn(api: Api, answer: Answer) -> Any:
    """Return the state of the turn that a failed request names; its question is stored, and no answer."""
    details = answer.json["details"]
    messages = await api.history(details["conversation_id"])
    assert [role for role, _, _ in messages] == ["user"]
    state = await api.state(details["response_id"])
    assert (state["status"], state["content"]) == ("failed", "")
    assert state["error"] == answer.json["error"]
    return state


@pytest.mark.parametrize("shape", SHAPES)
async def test_completed(api: Api, bridges: FakeBridges, shape: Any) -> None:
    """An answer is the same however the neighbour sends it, and has all that the contract promises."""
    bridges.mode = BridgesMode(shape=shape)
    answer = await api.say("un deux trois")
    assert answer["content"] == "You said: un deux trois"
    assert (answer["status"], answer["role"], answer["tokens"]) == ("completed", "assistant", 5)
    assert answer["model"] == "mistral:latest"
    assert answer["memories"] == []
    assert uuid.UUID(answer["id"]).version == uuid.UUID(answer["conversation_id"]).version == 7
    assert await api.history(answer["conversation_id"]) == [
        ("user", "un deux trois", "completed"),
        ("assistant", "You said: un deux trois", "completed"),
    ]


async def test_receipt(api: Api, bridges: FakeBridges) -> None:
    """An answer's head, its state, its events and the metrics tell the same times of it."""

    async def counted(part: str) -> float:
        text = (await api.get("/metrics")).body.decode()
        found = re.search(rf'jarvis_turn_seconds_count{{part="{part}"}} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = await counted("total")
    bridges.mode = BridgesMode(hold_after=1)
    asking = asyncio.create_task(api.post("/api/chat", {"content": "un deux trois", "use_memory": False}))
    await bridges.gate.reached()
    bridges.gate.release()
    answer = await asking
    assert answer.status == 200
    receipt = (await api.state(answer.json["id"]))["receipt"]
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert told == {name: str(receipt[f"{name}_ms"]) for name in ("first_token", "total")}
    assert 0 < receipt["first_token_ms"] <= receipt["total_ms"]
    nothing = {"end_of_turn_ms", "transcription_ms", "recall_ms", "first_sentence_ms", "voice_ms", "voice_to_voice_ms"}
    assert {name for name, value in receipt.items() if value is None} == {*nothing, "end_probability", "heard_ms"}
    assert (await api.follow(answer.json["id"]))[-1].data["response"]["receipt"] == receipt
    assert await counted("total") == before + 1


async def test_asked_as_told(api: Api, bridges: FakeBridges) -> None:
    """The model gets the request's own instructions and numbers, and the product's where it has none."""
    question = "Quetzalcoatl?"  # nothing that other tests have this server remember
    await api.say(question, system_prompt="Sois bref.", temperature=0, max_tokens=7)
    asked = bridges.last("/api/llm").json
    assert (asked["system_prompt"], asked["temperature"], asked["max_tokens"]) == ("Sois bref.", 0, 7)
    await api.say(question)
    asked = bridges.last("/api/llm").json
    default = Llm()
    assert asked["system_prompt"].startswith(default.system_prompt)
    assert asked["stream"] is True
    assert (asked["temperature"], asked["max_tokens"]) == (default.temperature, default.max_tokens)


async def test_long_history_is_packed(api: Api, bridges: FakeBridges) -> None:
    """A history beyond the neighbour's limit is cut to the latest messages that fit; the question is always whole."""
    conversation = (await api.say("le tout premier message"))["conversation_id"]
    for n in range(4):
        await api.say(f"message {n} " + "x" * 1_900, conversation_id=conversation)
    question = "question " + "y" * 4_000
    assert (await api.say(question, conversation_id=conversation))["status"] == "completed"
    prompt = bridges.last("/api/llm").json["prompt"]
    assert len(prompt) <= 10_000
    assert question in prompt
    assert "message 3" in prompt
    assert "le tout premier message" not in prompt


async def test_question_is_stored_before_the_model_is_asked(api: Api, bridges: FakeBridges) -> None:
    """While the model has only just been asked, the user's message is in the history of the running server."""
    bridges.mode = BridgesMode(hold_after=0)
    conversation = (await api.post("/api/chat/conversation", {})).json["id"]
    asking = asyncio.create_task(api.say("garde-moi", conversation_id=conversation))
    await bridges.gate.reached()
    assert await api.history(conversation) == [("user", "garde-moi", "completed")]
    bridges.gate.release()
    assert (await asking)["status"] == "completed"


async def test_question_is_stored_when_the_model_is_away(api: Api, bridges: FakeBridges) -> None:
    """A question that could not be answered is not lost, and the next answer knows it."""
    await bridges.go_away()
    answer = await api.post("/api/chat", {"content": "tu es là ?"})
    assert answer.error == (503, "unavailable")
    await failed_turn(api, answer)
    await bridges.come_back()
    again = await api.say("et maintenant ?", conversation_id=answer.json["details"]["conversation_id"])
    assert again["status"] == "completed"
    assert "tu es là ?" in bridges.last("/api/llm").json["prompt"]


# How turns end


async def test_length(api: Api, bridges: FakeBridges) -> None:
    """A model that sends far more than max_tokens allows is cut off; the answer is incomplete."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("x" * 100,) * 50, hold_after=10)
    answer = await api.say("bavarde", max_tokens=4)
    assert answer["status"] == "incomplete"
    assert 0 < len(answer["content"]) <= 1_000
    await bridges.stream_closed()
    state = await api.state(answer["id"])
    assert (state["status"], state["reason"]) == ("incomplete", "max_tokens")


@pytest.mark.parametrize("cut", ["close", "reset", "end"])
@pytest.mark.parametrize("shape", ["ndjson", "sse"])
async def test_lost_stream(api: Api, bridges: FakeBridges, shape: Any, cut: Any) -> None:
    """A stream that breaks off is an incomplete answer with what had come, however it breaks; it is stored so."""
    bridges.mode = BridgesMode(shape=shape, cut_after=2, cut=cut)
    answer = await api.say("jusqu'ici et pas plus loin")
    assert (answer["status"], answer["content"]) == ("incomplete", "You said:")
    assert (await api.state(answer["id"]))["reason"] == "stream_lost"
    assert (await api.history(answer["conversation_id"]))[1] == ("assistant", "You said:", "incomplete")


async def test_stalled_stream(strict: Api, strict_bridges: FakeBridges) -> None:
    """A stream that stalls is left after its deadline and is an incomplete answer."""
    strict_bridges.mode = BridgesMode(shape="ndjson", stall_after=2)
    answer = await strict.say("attends")
    assert (answer["status"], answer["content"]) == ("incomplete", "You said:")
    assert (await strict.state(answer["id"]))["reason"] == "stalled"
    await strict_bridges.stream_closed()


async def test_endless_stream(strict: Api, strict_bridges: FakeBridges) -> None:
    """A stream that never stalls and never ends is left after the total deadline."""
    strict_bridges.mode = BridgesMode(shape="ndjson", deltas=("mot ",) * 1_000, delta_delay_s=0.05)
    answer = await strict.say("raconte")
    assert answer["status"] == "incomplete"
    assert (await strict.state(answer["id"]))["reason"] == "timeout"
    assert answer["content"].startswith("mot mot ")
    await strict_bridges.stream_closed()


async def test_error_in_the_middle(api: Api, bridges: FakeBridges) -> None:
    """A model that fails after some words leaves an incomplete answer that says why."""
    bridges.mode = BridgesMode(shape="ndjson", error_after=2)
    answer = await api.say("aïe")
    assert (answer["status"], answer["content"]) == ("incomplete", "You said:")
    state = await api.state(answer["id"])
    assert state["reason"] == "bad_gateway"
    assert state["error"]
    assert "model runner" not in state["error"], "the neighbour's own words are for the log"


@pytest.mark.parametrize("shape", SHAPES)
async def test_failure_as_an_answer(api: Api, bridges: FakeBridges, shape: Any) -> None:
    """The neighbour's "200 Error: …" is 502, and never an answer in the history."""
    bridges.mode = BridgesMode(shape=shape, error_200=True)
    answer = await api.post("/api/chat", {"content": "ça marche ?"})
    assert answer.error == (502, "bad_gateway")
    state = await failed_turn(api, answer)
    assert state["reason"] == "bad_gateway"
    bridges.mode = BridgesMode(shape=shape)
    again = await api.say("et là ?", conversation_id=answer.json["details"]["conversation_id"])
    assert "Error:" not in bridges.last("/api/llm").json["prompt"]
    assert again["status"] == "completed"


@pytest.mark.parametrize("shape", SHAPES)
async def test_answer_that_begins_like_a_failure(api: Api, bridges: FakeBridges, shape: Any) -> None:
    """An answer may begin with "Error: " where the model did generate it."""
    bridges.mode = BridgesMode(shape=shape, answer="Error: that is how Python's messages often start.")
    answer = await api.say("comment commencent les erreurs ?")
    assert (answer["status"], answer["content"]) == ("completed", "Error: that is how Python's messages often start.")


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        (faulty(status=500), 502, "bad_gateway"),
        (faulty(status=400), 502, "bad_gateway"),
        (faulty(status=401), 502, "bad_gateway"),
        (faulty(status=404), 502, "bad_gateway"),
        (faulty(status=502), 503, "unavailable"),
        (faulty(status=503), 503, "unavailable"),
        (faulty(status=504), 504, "timeout"),
        (faulty(status=429), 429, "rate_limited"),
        (faulty(status=429, retry_after_s=7), 429, "rate_limited"),
        (faulty("redirect"), 502, "bad_gateway"),
        (faulty("html"), 502, "bad_gateway"),
        (faulty("nonsense"), 502, "bad_gateway"),
        (faulty("empty"), 502, "bad_gateway"),
        (faulty("null"), 502, "bad_gateway"),
        (faulty("list"), 502, "bad_gateway"),
        (faulty("wrong_shape"), 502, "bad_gateway"),
        (faulty("wrong_type"), 502, "bad_gateway"),
        (faulty("close"), 503, "unavailable"),
        (faulty("reset"), 503, "unavailable"),
        (BridgesMode(shape="ndjson", cut_after=0, cut="end"), 502, "bad_gateway"),
        (BridgesMode(shape="ndjson", error_after=0), 502, "bad_gateway"),
        (BridgesMode(shape="ndjson", nonsense_after=0), 502, "bad_gateway"),
        (BridgesMode(shape="ndjson", huge_line_after=0), 502, "bad_gateway"),
        (BridgesMode(faults={GENERATE: Fault("truncated")}), 502, "bad_gateway"),
        (BridgesMode(faults={GENERATE: Fault("short_body")}), 503, "unavailable"),
    ],
    ids=lambda value: str(value.faults.get(GENERATE, "stream"))[:60] if isinstance(value, BridgesMode) else str(value),
)
async def test_neighbour_in_trouble(api: Api, bridges: FakeBridges, mode: BridgesMode, status: int, code: str) -> None:
    """Whatever the neighbour does before its first word is one of our errors, and the question is stored."""
    bridges.mode = mode
    answer = await api.post("/api/chat", {"content": "bonjour"})
    assert answer.error == (status, code)
    fault = mode.faults.get(GENERATE, Fault())
    if status in (429, 503):
        assert int(answer.headers["Retry-After"]) == (fault.retry_after_s or int(answer.headers["Retry-After"])) > 0
    await failed_turn(api, answer)
    assert "/elsewhere" not in bridges.requests_seen, "a redirect would carry the token elsewhere"


async def test_neighbour_hangs(strict: Api, strict_bridges: FakeBridges) -> None:
    """A neighbour that never answers is 504 after the deadline, and its connection is closed."""
    strict_bridges.mode = faulty("hang")
    answer = await strict.post("/api/chat", {"content": "bonjour"})
    assert answer.error == (504, "timeout")
    await strict_bridges.stream_closed()
    await failed_turn(strict, answer)


@pytest.mark.every_python
async def test_stale_connection(api: Api, bridges: FakeBridges) -> None:
    """A connection that the neighbour had closed meanwhile costs the user nothing."""
    assert (await api.say("un"))["status"] == "completed"
    bridges.mode = BridgesMode(shape="ndjson", faults={GENERATE: Fault("close_reused", times=1)})
    assert (await api.say("deux"))["content"] == "You said: deux"


# Together


async def test_second_turn_in_the_same_conversation(api: Api, bridges: FakeBridges) -> None:
    """While a turn runs in a conversation another is 409, and afterwards it is welcome."""
    bridges.mode = BridgesMode(hold_after=0)
    conversation = (await api.post("/api/chat/conversation", {})).json["id"]
    asking = asyncio.create_task(api.say("un", conversation_id=conversation))
    await bridges.gate.reached()
    second = await api.post("/api/chat", {"content": "deux", "conversation_id": conversation})
    assert second.error == (409, "conflict")
    bridges.gate.release()
    await asking
    assert await api.history(conversation) == [("user", "un", "completed"), ("assistant", "You said: un", "completed")]
    assert (await api.say("trois", conversation_id=conversation))["status"] == "completed"


async def test_many_at_once(api: Api, bridges: FakeBridges) -> None:
    """Many turns run side by side, and each gets its own answer."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    asking = [asyncio.create_task(api.say(f"numéro {n}")) for n in range(40)]
    await bridges.gate.reached(40)
    assert (await api.get("/health")).status == 200
    bridges.gate.release()
    answers = await asyncio.gather(*asking)
    assert [answer["content"] for answer in answers] == [f"You said: numéro {n}" for n in range(40)]


async def test_retry_joins(api: Api, bridges: FakeBridges) -> None:
    """A retry with the same Idempotency-Key gets the running turn's answer, and later the stored one: one turn in all."""
    bridges.mode = BridgesMode(hold_after=0)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    tries = [asyncio.create_task(api.post("/api/chat", {"content": "une fois"}, headers=key)) for _ in range(3)]
    await bridges.gate.reached()
    await asyncio.sleep(0.05)
    bridges.gate.release()
    answers = [(await one).json for one in tries]
    answers.append((await api.post("/api/chat", {"content": "une fois"}, headers=key)).json)
    assert all(answer == answers[0] for answer in answers)
    assert bridges.requests_seen[GENERATE] == 1
    assert len(await api.history(answers[0]["conversation_id"])) == 2
    other = await api.post("/api/chat", {"content": "autre chose"}, headers=key)
    assert other.error == (409, "conflict")


async def test_wrong_key(api: Api) -> None:
    """An Idempotency-Key that is too long is 400."""
    answer = await api.post("/api/chat", {"content": "x"}, headers={"Idempotency-Key": "k" * 256})
    assert answer.error == (400, "invalid_request")


# Leaving and cancelling


async def leave(api: Api, bridges: FakeBridges, **headers: str) -> str:
    """Ask, wait until the model is held at the gate, and leave; return the conversation's id."""
    conversation: str = (await api.post("/api/chat/conversation", {})).json["id"]
    body = {"content": "raconte", "conversation_id": conversation}
    asking = asyncio.create_task(api.post("/api/chat", body, headers=headers))
    await bridges.gate.reached()
    for _ in range(3):
        # What the model has said lies in the server's socket; once it has answered others it has read that too.
        await api.get("/ready")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    return conversation


async def test_client_that_leaves(api: Api, bridges: FakeBridges) -> None:
    """A client that leaves cancels its turn: the model's connection is closed, and what it had said is kept."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("il ", "était ", "une fois"), hold_after=2)
    conversation = await leave(api, bridges)
    await bridges.stream_closed()
    async with asyncio.timeout(2):
        while len(messages := await api.history(conversation)) < 2:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
    assert messages == [("user", "raconte", "completed"), ("assistant", "il était ", "cancelled")]
    bridges.mode = BridgesMode(shape="ndjson")
    assert (await api.say("continue", conversation_id=conversation))["status"] == "completed"
    assert "il était " in bridges.last("/api/llm").json["prompt"]


async def test_client_that_leaves_before_the_first_word(api: Api, bridges: FakeBridges) -> None:
    """A client that leaves before the model's first word frees the model and its conversation at once."""
    bridges.mode = BridgesMode(hold_after=0)
    conversation = await leave(api, bridges)
    await bridges.stream_closed()
    bridges.mode = BridgesMode()
    async with asyncio.timeout(2):
        while (await api.post("/api/chat", {"content": "?", "conversation_id": conversation})).status == 409:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [role for role, _, _ in await api.history(conversation)] == ["user", "user", "assistant"]


async def test_client_with_a_key_that_leaves(api: Api, bridges: FakeBridges) -> None:
    """The turn of a client that sent a key goes on without it, for its retry."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    conversation = await leave(api, bridges, **{"Idempotency-Key": str(uuid.uuid4())})
    await asyncio.sleep(0.1)
    bridges.gate.release()
    async with asyncio.timeout(2):
        while len(messages := await api.history(conversation)) < 2:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
    assert messages[1] == ("assistant", "You said: raconte", "completed")


async def test_cancelled(api: Api, bridges: FakeBridges) -> None:
    """Cancelling answers with the final state once the model's connection is closed; the waiting client gets its part."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    conversation = (await api.post("/api/chat/conversation", {})).json["id"]
    async with api.stream("arrête-toi", conversation_id=conversation) as response:
        response_id = (await read_events(response, until="You said:"))[0].data["response"]["id"]
        state = (await api.post(f"/api/chat/response/{response_id}/cancel")).json
        answered_at = asyncio.get_running_loop().time()
        assert await bridges.stream_closed() <= answered_at + 0.05
    assert (state["status"], state["reason"], state["content"]) == ("cancelled", "cancelled", "You said:")
    assert (await api.history(conversation))[1] == ("assistant", "You said:", "cancelled")
    assert (await api.post(f"/api/chat/response/{response_id}/cancel")).json == state
    assert await api.state(response_id) == state


async def test_cancelling_what_has_ended(api: Api) -> None:
    """Cancelling a turn that has ended changes nothing and tells how it ended."""
    answer = await api.say("fini")
    state = (await api.post(f"/api/chat/response/{answer['id']}/cancel")).json
    assert (state["status"], state["content"]) == ("completed", answer["content"])
    assert await api.state(answer["id"]) == state


async def test_state_while_it_runs(api: Api, bridges: FakeBridges) -> None:
    """A running turn tells its text so far."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    async with api.stream("dis-moi") as response:
        await bridges.gate.reached()
        response_id = (await created(response))["id"]
        async with asyncio.timeout(2):
            while (state := await api.state(response_id))["content"] != "You said:":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        assert (state["status"], state["ended_at"], state["reason"]) == ("running", None, None)
        bridges.gate.release()
        await response.read()
    assert (await api.state(response_id))["status"] == "completed"
