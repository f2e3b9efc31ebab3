"""Turns on a real database and a fake model server: what is stored and what is told, whoever leaves, stops or breaks in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jarvis_core.errors import Conflict, NotFound, Overloaded, Unavailable
from jarvis_core.models import Caller, IdempotencyKey, Message, Status, TurnRecord, new_id
from jarvis_core.services.python_bridges import BridgesModel
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Database, Llm, Neighbours
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import Beginning, Begun, TurnEnd, TurnStore
from jarvis_core.turns import ended as ended_turns
from jarvis_core.turns import recorder as turn_recorder
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.log import Reader, Step, Turn
from jarvis_core.turns.running_turn import RunningTurn
from jarvis_core.turns.turns import Turns
from jarvis_core.words.titles import title_from
from tests.fakes.content import without_time
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.fakes.relay import DatabaseRelay

pytestmark = pytest.mark.every_python

ANN = Caller("ann")
ASK = Ask("un deux trois")
SAID = "You said: un deux trois"
GENERATE = "/api/llm/generate"
READ_AHEAD = "/api/llm/read-ahead"
LLM = Llm(first_token_timeout_s=5, stall_timeout_s=5, total_timeout_s=30)


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run bridges that stream."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson")) as server:
        yield server


@pytest.fixture
async def model(bridges: FakeBridges) -> AsyncIterator[BridgesModel]:
    """Give the model behind them; afterwards no connection to it is open."""
    transport = Transport("bridges", bridges.url, Neighbours(connect_timeout_s=0.5))
    yield BridgesModel(transport, LLM, None)
    await transport.close()
    async with asyncio.timeout(2):
        while bridges.open_connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@pytest.fixture
async def turns(pool: Pool, model: BridgesModel) -> AsyncIterator[Turns]:
    """Give turns on an empty database; afterwards none runs."""
    turns = Turns(TurnStore(pool), model, LLM)
    yield turns
    await turns.close(drain_timeout_s=0)
    assert turns.running == 0


@pytest.fixture
async def frail_pool(relay: DatabaseRelay, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    """Give a pool whose database can go away, and that gives it up soon."""
    monkeypatch.setattr("jarvis_core.store.pool.GRACE_S", 0.1)
    pool = Pool(Database(max_connections=4, timeout_s=0.5), relay.conninfo)
    await pool.open()
    await migrate(pool)
    yield pool
    await pool.close()


@pytest.fixture
async def frail_turns(frail_pool: Pool, model: BridgesModel) -> AsyncIterator[Turns]:
    """Give turns whose database can go away."""
    turns = Turns(TurnStore(frail_pool), model, LLM)
    yield turns
    await turns.close(drain_timeout_s=0)


async def ended(turn: Turn, within_s: float = 10.0) -> Turn:
    """Wait until the turn has ended."""
    async with asyncio.timeout(within_s):
        await turn.wait_ended()
    return turn


async def until_text(turn: Turn, text: str) -> None:
    """Wait until the model has said so much."""
    async with asyncio.timeout(5):
        while turn.text() != text:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


async def stored(pool: Pool, turn: Turn) -> TurnRecord:
    """Return the turn as the database has it."""
    return await TurnStore(pool).fetch(turn.caller.user_id, turn.id)


async def history(pool: Pool, turn: Turn) -> list[Message]:
    """Return the messages of the turn's conversation."""
    store = ConversationStore(pool)
    messages, _ = await store.fetch_history(turn.caller.user_id, turn.conversation_id, limit=100, after=0)
    return messages


def ends_once(turn: Turn) -> bool:
    """Whether the log has exactly one end, as its last entry."""
    entries = [entry for _, entry in Reader(turn).take()]
    return entries.count(Step.ENDED) == 1 and entries[-1] is Step.ENDED


# Completed


async def test_completed(turns: Turns, pool: Pool) -> None:
    """A turn that completes has the model's text, its counts and its message, all stored before its readers are told."""
    turn = await turns.start(ASK, ANN)
    reader = Reader(turn)
    while (await asyncio.wait_for(reader.next(), 5))[-1][1] is not Step.ENDED:
        pass
    assert (turn.status, turn.reason, turn.error) == (Status.COMPLETED, "stop", None)
    assert (turn.text(), turn.tokens, turn.model) == (SAID, 5, "mistral:latest")
    asked, answered = await history(pool, turn)
    assert (asked.id, asked.role, asked.content) == (turn.user_message_id, "user", ASK.content)
    assert (answered.id, answered.role, answered.content) == (turn.id, "assistant", SAID)
    assert (answered.status, answered.tokens, answered.model) == (Status.COMPLETED, 5, "mistral:latest")
    assert (await stored(pool, turn)).ended_at == turn.ended_at
    assert ends_once(turn)
    assert turns.running == 0


async def test_message_is_stored_before_the_model_is_asked(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """When the model is asked, the user's message and the running turn are in the database."""
    seen: list[Any] = []

    def reply(body: dict[str, Any]) -> str:
        seen.append(body)
        return "ok"

    bridges.reply = reply
    bridges.mode = BridgesMode(shape="ndjson", hold_after=0)
    turn = await turns.start(ASK, ANN)
    assert not seen, "the model was asked before start returned"
    await bridges.gate.reached()
    (message,) = await history(pool, turn)
    assert (message.content, message.status) == (ASK.content, Status.COMPLETED)
    record = await stored(pool, turn)
    assert (record.status, record.content, record.ended_at) == (Status.RUNNING, "", None)
    bridges.gate.release()
    assert (await ended(turn)).text() == "ok"


async def test_conversation_goes_on(turns: Turns, bridges: FakeBridges) -> None:
    """The next turn of a conversation gives the model what was said before."""
    first = await ended(await turns.start(ASK, ANN))
    second = await ended(await turns.start(Ask("quatre", first.conversation_id), ANN))
    assert second.text() == "You said: quatre"
    messages = bridges.requests[-1].json["messages"]
    assert [{**one, "content": without_time(one["content"])} for one in messages] == [
        {"role": "user", "content": ASK.content},
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": "quatre"},
    ]


async def test_read_ahead(pool: Pool, bridges: FakeBridges) -> None:
    """A local model is to read in advance what the next prompt will begin with: the instructions, and what was said."""
    transport = Transport("bridges", bridges.url, Neighbours())
    turns = Turns(TurnStore(pool), BridgesModel(transport, LLM, None, reads_ahead=True), LLM)
    first = await ended(await turns.start(ASK, ANN))
    for conversation_id in (None, first.conversation_id):
        seen = bridges.requests_seen[READ_AHEAD]
        for _ in range(2):  # once is enough
            turns.read_ahead(ANN, Ask("", conversation_id, system_prompt="Be brief."))
        async with asyncio.timeout(5):
            while bridges.requests_seen[READ_AHEAD] == seen:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)
    ahead = bridges.last(READ_AHEAD).json
    await ended(await turns.start(Ask("quatre", first.conversation_id, system_prompt="Be brief."), ANN))
    asked = bridges.last(GENERATE).json
    assert asked["messages"][:-1] == ahead["messages"][:-1]
    assert (len(ahead["messages"]), ahead["messages"][-1]["role"]) == (3, "user")
    assert (ahead["system_prompt"], ahead["conversation_id"]) == (asked["system_prompt"], asked["conversation_id"])
    assert bridges.requests_seen[READ_AHEAD] == 2
    await turns.close(drain_timeout_s=0)
    await transport.close()


async def test_nothing_is_read_ahead_of_others(turns: Turns, bridges: FakeBridges) -> None:
    """Models of others are sent nothing that nobody asked."""
    turns.read_ahead(ANN, Ask(""))
    await ended(await turns.start(ASK, ANN))
    assert bridges.requests_seen[READ_AHEAD] == 0


async def test_history_is_numbered(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """Of a history that does not reach back to the beginning it is known how much went before, in each way to begin a turn."""
    store = TurnStore(pool)
    conversation_id = (await ended(await turns.start(ASK, ANN))).conversation_id
    for n in range(3):
        await ended(await turns.start(Ask(f"message {n}", conversation_id), ANN))
    begun = await store.fetch_history("ann", conversation_id, 50)
    assert (begun.older, [one.content for one in begun.history]) == (
        5,
        ["You said: message 1", "message 2", "You said: message 2"],
    )
    stored = new_id()
    conversations = ConversationStore(pool)
    await conversations.add_message("ann", conversation_id, None, stored, "user", "asked")
    for at, beginning in enumerate(
        (
            Beginning("ann", conversation_id, new_id(), stored, "asked", None, 60, message_is_stored=True),
            Beginning("ann", conversation_id, new_id(), new_id(), "next", None, 60),
        )
    ):
        other = await store.begin(beginning)
        assert isinstance(other, Begun)
        assert other.older + len(other.history) == 8 + at
        await store.end(beginning.turn_id, TurnEnd(Status.FAILED, "x"), "")


async def test_what_is_asked(turns: Turns, bridges: FakeBridges) -> None:
    """What a request leaves open comes from the settings; what it says goes to the model, an empty prompt too."""
    await ended(await turns.start(ASK, ANN))
    body = bridges.requests[-1].json
    assert body["system_prompt"].startswith(LLM.system_prompt)
    assert (body["temperature"], body["max_tokens"]) == (LLM.temperature, LLM.max_tokens)
    await ended(await turns.start(Ask("a", system_prompt="Be brief.", temperature=0, max_tokens=7), ANN))
    body = bridges.requests[-1].json
    assert (body["system_prompt"], body["temperature"], body["max_tokens"]) == ("Be brief.", 0, 7)
    await ended(await turns.start(Ask("a", system_prompt=""), ANN))
    assert "system_prompt" not in bridges.requests[-1].json


async def test_refused(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """An unknown or foreign conversation is NotFound, a busy one a Conflict; the model is not asked, nothing is stored."""
    first = await ended(await turns.start(ASK, ANN))
    bridges.mode = BridgesMode(shape="ndjson", hold_after=0)
    running = await turns.start(Ask("a", first.conversation_id), ANN)
    await bridges.gate.reached()
    with pytest.raises(Conflict):
        await turns.start(Ask("b", first.conversation_id), ANN)
    for conversation_id, caller in ((new_id(), ANN), (first.conversation_id, Caller("bob"))):
        with pytest.raises(NotFound):
            await turns.start(Ask("b", conversation_id), caller)
    assert bridges.requests_seen[GENERATE] == 2
    assert len(await history(pool, first)) == 3
    assert turns.running == 1
    assert await turns.find_running("ann", first.conversation_id) is running
    assert await turns.find_running("bob", first.conversation_id) is None


async def test_find(turns: Turns, pool: Pool, model: BridgesModel) -> None:
    """A turn is found while it runs, after it ended, and by another process from the database; by its owner only."""
    turn = await turns.start(ASK, ANN)
    assert await turns.find(ANN, turn.id) is turn
    await ended(turn)
    assert await turns.find(ANN, turn.id) is turn
    elsewhere = await Turns(TurnStore(pool), model, LLM).find(ANN, turn.id)
    assert (elsewhere.status, elsewhere.text(), elsewhere.tokens) == (Status.COMPLETED, SAID, 5)
    assert Reader(elsewhere).take()[-1] == Reader(turn).take()[-1]
    for caller, turn_id in ((Caller("bob"), turn.id), (ANN, new_id()), (ANN, "nonsense")):
        with pytest.raises(NotFound):
            await turns.find(caller, turn_id)


async def test_what_is_kept_is_bounded(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ended turns a bounded number and length is kept in memory, the latest; the others come from the database."""
    monkeypatch.setattr(ended_turns, "KEPT_TURNS", 3)
    made = [await ended(await turns.start(ASK, ANN)) for _ in range(5)]
    assert [turns.get("ann", turn.id) is turn for turn in made] == [False, False, True, True, True]
    assert (await turns.find(ANN, made[0].id)).text() == SAID
    monkeypatch.setattr(ended_turns, "KEPT_TEXT_CHARS", 2 * len(SAID))
    last = await ended(await turns.start(ASK, ANN))
    assert [turns.get("ann", turn.id) is turn for turn in (*made, last)] == [False] * 4 + [True, True]


# Failed and cut short


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (BridgesMode(error_200=True), "bad_gateway"),
        (BridgesMode(shape="ndjson", error_200=True), "bad_gateway"),
        (BridgesMode(shape="ndjson", error_after=0), "bad_gateway"),
        (BridgesMode(faults={"/": Fault(status=500)}), "bad_gateway"),
        (BridgesMode(faults={"/": Fault(status=429)}), "rate_limited"),
        (BridgesMode(faults={"/": Fault("close")}), "unavailable"),
        (BridgesMode(faults={"/": Fault(status=504)}), "timeout"),
    ],
)
async def test_failed(turns: Turns, bridges: FakeBridges, pool: Pool, mode: BridgesMode, code: str) -> None:
    """A turn whose model says nothing fails, and says why; only the user's message is in the history."""
    bridges.mode = mode
    turn = await ended(await turns.start(ASK, ANN))
    assert (turn.status, turn.reason, turn.text()) == (Status.FAILED, code, "")
    assert turn.error is not None
    assert turn.error.code == code
    assert turn.error.__traceback__ is None, "the error is kept, and not what its call had at hand"
    assert turn.error.__cause__ is None
    assert turn.error.__context__ is None
    record = await stored(pool, turn)
    assert (record.status, record.reason, record.error) == (Status.FAILED, code, turn.error.message)
    assert [message.role for message in await history(pool, turn)] == ["user"]
    assert [entry for _, entry in Reader(turn).take()] == [Step.CREATED, Step.ENDED]
    bridges.mode = BridgesMode(shape="ndjson")
    after = await ended(await turns.start(Ask("encore", turn.conversation_id), ANN))
    assert after.status is Status.COMPLETED


@pytest.mark.parametrize(
    ("accident", "reason"),
    [
        ({"cut_after": 2, "delta_delay_s": 0.02}, "stream_lost"),
        ({"cut_after": 2, "cut": "end"}, "stream_lost"),
        ({"error_after": 2, "delta_delay_s": 0.02}, "bad_gateway"),
        ({"nonsense_after": 2, "delta_delay_s": 0.02}, "bad_gateway"),
    ],
)
async def test_cut_short(turns: Turns, bridges: FakeBridges, pool: Pool, accident: dict[str, Any], reason: str) -> None:
    """A turn whose model breaks off is incomplete, and what was said is stored."""
    bridges.mode = BridgesMode(shape="ndjson", **accident)
    turn = await ended(await turns.start(ASK, ANN))
    assert (turn.status, turn.reason, turn.text()) == (Status.INCOMPLETE, reason, "You said:")
    message = (await history(pool, turn))[-1]
    assert (message.id, message.content, message.status) == (turn.id, "You said:", Status.INCOMPLETE)


@pytest.mark.parametrize(
    ("deadlines", "accident", "expected"),
    [
        ({"stall_timeout_s": 0.2}, {"stall_after": 2}, (Status.INCOMPLETE, "stalled", "You said:")),
        ({"total_timeout_s": 0.5}, {"hold_after": 2}, (Status.INCOMPLETE, "timeout", "You said:")),
        ({"first_token_timeout_s": 0.2}, {"stall_after": 0}, (Status.FAILED, "timeout", "")),
    ],
)
async def test_deadlines(
    pool: Pool, bridges: FakeBridges, deadlines: Any, accident: Any, expected: tuple[Status, str, str]
) -> None:
    """A model that misses a deadline leaves an incomplete turn with what it said, or a failed one without."""
    bridges.mode = BridgesMode(shape="ndjson", **accident)
    settings = Llm(**deadlines)
    transport = Transport("bridges", bridges.url, Neighbours())
    turns = Turns(TurnStore(pool), BridgesModel(transport, settings, None), settings)
    try:
        turn = await ended(await turns.start(ASK, ANN))
        assert (turn.status, turn.reason, turn.text()) == expected
        await bridges.stream_closed()
    finally:
        await turns.close(drain_timeout_s=1)
        await transport.close()


async def test_model_that_does_not_stop(turns: Turns, bridges: FakeBridges) -> None:
    """A model that says far more than it was allowed is cut off, and its connection closed."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("x" * 50,) * 10_000, delta_delay_s=0.001)
    turn = await ended(await turns.start(Ask("a", max_tokens=5), ANN))
    assert (turn.status, turn.reason) == (Status.INCOMPLETE, "max_tokens")
    assert len(turn.text()) < 50 * 10
    await bridges.stream_closed()


@pytest.mark.parametrize(("said", "kept"), [("a\0b", "ab"), ("\0", ""), ("", "")])
async def test_text_that_cannot_be_stored(turns: Turns, bridges: FakeBridges, pool: Pool, said: str, kept: str) -> None:
    """What PostgreSQL cannot store is left out, and the turn ends like any other."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=(said,))
    turn = await ended(await turns.start(ASK, ANN))
    assert (turn.status, turn.text()) == (Status.COMPLETED if kept else Status.FAILED, kept)
    assert (await stored(pool, turn)).content == kept


async def test_defect_in_the_model(pool: Pool) -> None:
    """A defect in an adapter fails the turn; it does not leave its readers waiting."""

    class Broken:
        history_limit_chars = 100
        reads_ahead = False

        async def read_ahead(self, *_: object) -> None:
            pass

        def generate(self, *_: object) -> Any:
            raise KeyError("SECRET")

    turns = Turns(TurnStore(pool), Broken(), LLM)
    turn = await ended(await turns.start(ASK, ANN))
    assert (turn.status, turn.reason) == (Status.FAILED, "internal")
    assert turn.error is not None
    assert "SECRET" not in turn.error.message


# Stopped


async def test_cancelled(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """Stopping a turn closes the model's connection and stores what was said, and then returns."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    turn = await turns.start(ASK, ANN)
    await bridges.gate.reached()
    await until_text(turn, "You said:")
    async with asyncio.timeout(5):
        await turns.stop(turn)
    assert (turn.status, turn.reason, turn.text()) == (Status.CANCELLED, "cancelled", "You said:")
    assert await bridges.stream_closed(timeout_s=1)
    message = (await history(pool, turn))[-1]
    assert (message.id, message.content, message.status) == (turn.id, "You said:", Status.CANCELLED)
    assert ends_once(turn)
    assert turns.running == 0


async def test_cancelled_before_any_text(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """A turn that is stopped before the model spoke leaves no message."""
    bridges.mode = BridgesMode(faults={"/": Fault("hang")})
    turn = await turns.start(ASK, ANN)
    await bridges.seen(GENERATE)
    async with asyncio.timeout(5):
        await turns.stop(turn)
    assert (turn.status, turn.text()) == (Status.CANCELLED, "")
    await bridges.stream_closed(timeout_s=1)
    assert len(await history(pool, turn)) == 1


async def test_cancelled_at_once(turns: Turns, pool: Pool) -> None:
    """A turn that is stopped in the moment of its start ends like any other."""
    turn = await turns.start(ASK, ANN)
    async with asyncio.timeout(5):
        await turns.stop(turn)
    assert (turn.status, turn.reason) == (Status.CANCELLED, "cancelled")
    assert (await stored(pool, turn)).status is Status.CANCELLED


async def test_stopping_at_any_moment(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """Whenever a turn is stopped, by however many, it ends once, and the database says what its readers were told."""
    for delay_s in [number * 0.002 for number in range(15)]:
        turn = await turns.start(ASK, ANN)
        await asyncio.sleep(delay_s)
        async with asyncio.timeout(5):
            await asyncio.gather(*(turns.stop(turn, reason=f"reason {number}") for number in range(3)))
        assert ends_once(turn)
        record = await stored(pool, turn)
        assert (record.status, record.content) == (turn.status, turn.text())
        assert turn.status in (Status.CANCELLED, Status.COMPLETED)
        assert turn.reason in ("reason 0", "stop")
    assert turns.running == 0


async def test_stopping_an_ended_turn(turns: Turns) -> None:
    """Stopping a turn that has ended changes nothing."""
    turn = await ended(await turns.start(ASK, ANN))
    async with asyncio.timeout(1):
        await turns.stop(turn)
    assert (turn.status, turn.reason) == (Status.COMPLETED, "stop")
    assert ends_once(turn)


# Readers


async def test_last_reader_leaves(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """A turn whose last reader leaves is cancelled, and its text so far stored; those before it change nothing."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    turn = await turns.start(ASK, ANN)
    turns.attach(turn)
    turns.attach(turn)
    await until_text(turn, "You said:")
    await turns.detach(turn)
    assert turn.status is Status.RUNNING
    left = time.monotonic()
    await turns.detach(turn)
    assert await bridges.stream_closed() - left < 1
    assert (turn.status, turn.reason) == (Status.CANCELLED, "client_left")
    assert (await stored(pool, turn)).content == "You said:"


async def test_keep_running(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """A turn that is to go on without readers goes on to its end."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    turn = await turns.start(ASK, ANN)
    assert isinstance(turn, RunningTurn)
    turn.keep_running = True
    turns.attach(turn)
    await until_text(turn, "You said:")
    await turns.detach(turn)
    assert turn.status is Status.RUNNING
    bridges.gate.release()
    await ended(turn)
    assert (await stored(pool, turn)).content == SAID


async def test_reader_leaves_after_the_end(turns: Turns) -> None:
    """A reader that leaves after the end changes nothing."""
    turn = await turns.start(ASK, ANN)
    turns.attach(turn)
    await ended(turn)
    await turns.detach(turn)
    assert turn.status is Status.COMPLETED


async def test_slow_reader_does_not_hold_up_the_model(turns: Turns, bridges: FakeBridges) -> None:
    """A reader that never reads holds up nobody, and finds the text merged when it looks."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("word ",) * 2_000)
    turn = await turns.start(Ask("a", max_tokens=32_000), ANN)
    slow = Reader(turn)
    await ended(turn)
    texts = [entry for _, entry in slow.take() if isinstance(entry, str)]
    assert texts == ["word " * 2_000]


# Keys


KEY = IdempotencyKey("k-1", b"hash")


async def test_key_joins(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """Requests under one key are one turn, while it runs and afterwards, and the model is asked once."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    started = await asyncio.gather(*(turns.start(ASK, ANN, KEY) for _ in range(5)))
    assert len({id(turn) for turn in started}) == 1
    await bridges.gate.reached()
    assert await turns.start(ASK, ANN, KEY) is started[0]
    bridges.gate.release()
    await ended(started[0])
    assert (await turns.start(ASK, ANN, KEY)).text() == SAID
    assert bridges.requests_seen[GENERATE] == 1
    assert len(await history(pool, started[0])) == 2


async def test_key_after_a_restart(turns: Turns, pool: Pool, model: BridgesModel) -> None:
    """Another process answers a key from the database."""
    first = await ended(await turns.start(ASK, ANN, KEY))
    again = await Turns(TurnStore(pool), model, LLM).start(ASK, ANN, KEY)
    assert (again.id, again.text(), again.ended) == (first.id, SAID, True)


async def test_key_of_a_failed_turn(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """A turn that came to nothing runs again under its key, with its own message and no second one."""
    bridges.mode = BridgesMode(faults={"/": Fault(status=503)})
    first = await ended(await turns.start(ASK, ANN, KEY))
    assert first.status is Status.FAILED
    bridges.mode = BridgesMode(shape="ndjson")
    again = await ended(await turns.start(ASK, ANN, KEY))
    assert (again.id, again.status, again.text()) == (first.id, Status.COMPLETED, SAID)
    assert [message.content for message in await history(pool, again)] == [ASK.content, SAID]
    assert (await turns.find(ANN, first.id)).text() == SAID


async def test_client_of_a_key_leaves_early(turns: Turns, bridges: FakeBridges) -> None:
    """A request with a key that is cancelled on its way to the database starts its turn all the same."""
    task = asyncio.create_task(turns.start(ASK, ANN, KEY))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (await ended(await turns.start(ASK, ANN, KEY))).text() == SAID
    assert bridges.requests_seen[GENERATE] == 1


# The database


async def test_checkpoint(turns: Turns, bridges: FakeBridges, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is in the database about a second after it came, though the turn goes on, and again after the next."""
    assert turn_recorder.CHECKPOINT_INTERVAL_S <= 1
    monkeypatch.setattr(turn_recorder, "CHECKPOINT_INTERVAL_S", 0.3)
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    turn = await turns.start(ASK, ANN)
    for text in ("You", "You said:"):
        await until_text(turn, text)
        async with asyncio.timeout(4):
            while (await stored(pool, turn)).content != text:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        bridges.gate.step()
    record = await stored(pool, turn)
    assert record.status is Status.RUNNING
    bridges.gate.release()
    assert (await ended(turn)).text() == SAID
    assert (await stored(pool, turn)).content == SAID


async def test_away_at_the_start(frail_turns: Turns, relay: DatabaseRelay, bridges: FakeBridges) -> None:
    """Without a database no turn starts, and the model is not asked."""
    await relay.go_away()
    with pytest.raises(Unavailable):
        await frail_turns.start(ASK, ANN)
    assert bridges.requests_seen[GENERATE] == 0
    assert frail_turns.running == 0


async def test_away_in_the_middle(
    frail_turns: Turns,
    frail_pool: Pool,
    relay: DatabaseRelay,
    bridges: FakeBridges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database that is away while the model speaks, and back at the end, is not noticed."""
    monkeypatch.setattr(turn_recorder, "CHECKPOINT_INTERVAL_S", 0.1)
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    turn = await frail_turns.start(ASK, ANN)
    await bridges.gate.reached()
    await relay.go_away()
    bridges.gate.step()
    await asyncio.sleep(0.5)
    await relay.come_back()
    bridges.gate.release()
    await ended(turn)
    assert (turn.status, turn.text(), turn.error) == (Status.COMPLETED, SAID, None)
    assert (await stored(frail_pool, turn)).content == SAID


@pytest.mark.parametrize("silent", [False, True])
async def test_away_at_the_end(
    frail_turns: Turns, frail_pool: Pool, relay: DatabaseRelay, bridges: FakeBridges, *, silent: bool
) -> None:
    """Where the end cannot be stored its readers are told so, in bounded time; it is stored when the database is back."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=3)
    turn = await frail_turns.start(ASK, ANN)
    await bridges.gate.reached()
    if silent:
        relay.hang()
    else:
        await relay.go_away()
    bridges.gate.release()
    await ended(turn, within_s=15)
    assert (turn.status, turn.reason, turn.text()) == (Status.INCOMPLETE, "not_stored", SAID)
    assert isinstance(turn.error, Unavailable)
    assert ends_once(turn)
    await relay.come_back()
    async with asyncio.timeout(10):
        while True:
            try:
                if (record := await stored(frail_pool, turn)).status is not Status.RUNNING:
                    break
            except Unavailable:
                pass
            await asyncio.sleep(0.05)
    assert (record.status, record.reason, record.content) == (Status.COMPLETED, "stop", SAID)


async def test_late_end_has_no_error(
    frail_turns: Turns, frail_pool: Pool, relay: DatabaseRelay, bridges: FakeBridges
) -> None:
    """An end that is stored late says how the turn ended, not that it could not be stored."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=3)
    turn = await frail_turns.start(ASK, ANN)
    await bridges.gate.reached()
    await relay.go_away()
    bridges.gate.release()
    await ended(turn)
    await relay.come_back()
    await frail_turns.close(drain_timeout_s=10)
    record = await stored(frail_pool, turn)
    assert (record.status, record.error) == (Status.COMPLETED, None)


class SlowStore(TurnStore):
    """A store whose answer to ``begin`` is still on its way when it is committed."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.committed = asyncio.Event()

    async def begin(self, beginning: Beginning) -> Begun | str:
        """Begin, and take a while to say so."""
        begun = await super().begin(beginning)
        self.committed.set()
        await asyncio.sleep(0.2)
        return begun


async def test_client_leaves_while_the_message_is_stored(pool: Pool, model: BridgesModel) -> None:
    """A client that leaves between the commit and its answer leaves no turn behind that runs for ever."""
    store = SlowStore(pool)
    turns = Turns(store, model, LLM)
    task = asyncio.create_task(turns.start(ASK, ANN))
    await store.committed.wait()
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(1)
    await turns.close(drain_timeout_s=1)
    assert await pool.fetch_all("select status from turns") != [("running",)]


async def test_closing_while_a_message_is_stored(pool: Pool, model: BridgesModel) -> None:
    """A turn that is on its way to the database when the process closes is ended by it too."""
    store = SlowStore(pool)
    turns = Turns(store, model, LLM)
    task = asyncio.create_task(turns.start(ASK, ANN))
    await store.committed.wait()
    await turns.close(drain_timeout_s=1)
    assert await pool.fetch_all("select status from turns") != [("running",)]
    assert turns.running == 0
    await asyncio.wait([task])


async def test_beginning_that_nobody_learns_of(frail_turns: Turns, frail_pool: Pool, relay: DatabaseRelay) -> None:
    """A turn whose beginning was stored, but not confirmed, is ended when the database is back: the next one may run."""
    first = await ended(await frail_turns.start(ASK, ANN))
    ask = msgspec.structs.replace(ASK, conversation_id=first.conversation_id)
    # The statement is prepared by then, which would have been a question of its own.
    await ended(await frail_turns.start(ask, ANN))
    relay.keep_answers()
    with pytest.raises(Unavailable):
        await frail_turns.start(ask, ANN)
    await relay.come_back()
    async with asyncio.timeout(15):
        while True:
            try:
                turn = await frail_turns.start(ask, ANN)
                break
            except Unavailable:
                await asyncio.sleep(0.1)
    await ended(turn)
    rows = await frail_pool.fetch_all("select status, reason from turns order by started_at")
    assert rows == [*[("completed", "stop")] * 2, ("failed", "not_started"), ("completed", "stop")]
    assert frail_turns.running == 0


# Too much work


async def test_as_many_turns_as_may_run(pool: Pool, model: BridgesModel, bridges: FakeBridges) -> None:
    """Who asks for one turn too many is told at once and nothing is stored; when one has ended there is room again."""
    turns = Turns(TurnStore(pool), model, LLM, limit=2)
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    running = [await turns.start(ASK, ANN) for _ in range(2)]
    with pytest.raises(Overloaded):
        await turns.start(ASK, ANN)
    assert turns.refused == 1
    assert await pool.fetch_one("select count(*) from turns") == (2,)
    await turns.stop(running[0])
    bridges.gate.release()
    await ended(await turns.start(ASK, ANN))
    await turns.close(drain_timeout_s=5)


async def test_limit_counts_those_who_are_on_their_way(pool: Pool, model: BridgesModel) -> None:
    """Of many who ask at the same moment no more than may run get a turn."""
    turns = Turns(TurnStore(pool), model, LLM, limit=3)
    results = await asyncio.gather(*(turns.start(ASK, ANN) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, Overloaded) for result in results) == 17
    await turns.close(drain_timeout_s=5)


# The end of the process


async def test_close_lets_turns_end(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """Closing waits for running turns to end by themselves, and starts no new ones."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    turn = await turns.start(ASK, ANN)
    await bridges.gate.reached()
    closing = asyncio.create_task(turns.close(drain_timeout_s=5))
    await asyncio.sleep(0.02)
    with pytest.raises(Unavailable):
        await turns.start(ASK, ANN)
    bridges.gate.release()
    async with asyncio.timeout(4):
        await closing
    assert turn.status is Status.COMPLETED
    assert (await stored(pool, turn)).content == SAID


async def test_close_stops_what_does_not_end(turns: Turns, bridges: FakeBridges, pool: Pool) -> None:
    """Turns that do not end in time are stored as incomplete, with what they had."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    running = [await turns.start(ASK, ANN) for _ in range(3)]
    for turn in running:
        await until_text(turn, "You said:")
    async with asyncio.timeout(5):
        await turns.close(drain_timeout_s=0.1)
    for turn in running:
        assert (turn.status, turn.reason) == (Status.INCOMPLETE, "server_stopped")
        record = await stored(pool, turn)
        assert (record.status, record.reason, record.content) == (Status.INCOMPLETE, "server_stopped", "You said:")
    await bridges.stream_closed()
    assert turns.running == 0


async def test_close_waits_for_late_ends(
    frail_turns: Turns, frail_pool: Pool, relay: DatabaseRelay, bridges: FakeBridges
) -> None:
    """Closing waits for ends that could not be stored yet."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=3)
    turn = await frail_turns.start(ASK, ANN)
    await bridges.gate.reached()
    await relay.go_away()
    bridges.gate.release()
    await ended(turn)
    await relay.come_back()
    async with asyncio.timeout(12):
        await frail_turns.close(drain_timeout_s=10)
    assert (await stored(frail_pool, turn)).status is Status.COMPLETED


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("Bonjour", "Bonjour"),
        ("  deux\n\tlignes  ", "deux lignes"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("mot " * 30, "mot " * 18 + "mot…"),
        ("🙂" * 200, "🙂" * 79 + "…"),
        ("\x1b[2J\x07rouge\x9b31m", "[2Jrouge31m"),
        ("un \x00 deux\u2028trois", "un deux trois"),
        ("facture\u202efdp.exe\u2066", "facturefdp.exe"),
        ("\x1b\u202e", "…"),
        ("famille 👨\u200d👩\u200d👧, שלום\u200f!", "famille 👨\u200d👩\u200d👧, שלום\u200f!"),
    ],
)
def test_titles(content: str, title: str) -> None:
    """A title is the start of the first message on one line, at most 80 code points, cut between words.

    Nothing of it acts on what it is shown on: no control, no override of the direction.
    """
    made = title_from(content)
    assert len(made) <= 80
    assert made == title
