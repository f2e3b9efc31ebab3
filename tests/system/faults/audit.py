"""What the server has, held against what it told its clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import aiohttp
import psycopg

from tests.system.faults.ledger import Calls, Ledger, Told, answer_to

SETTLE_S = 20.0
"""How long ends that could not be stored may take once the database is back: the store is tried every 5 s."""
STOP_S = 2.0
"""After so long nothing of an answer is taken any more whose turn was stopped, on a machine with other work."""
LAST = 200
"""Messages of a page."""

Message = Mapping[str, Any]


async def count_running(conninfo: str) -> int:
    """Return how many turns run, for all that the database knows."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        cursor = await connection.execute("select count(*) from turns where status = 'running'")
        row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0


async def wait_settled(conninfo: str, limit_s: float = SETTLE_S) -> int:
    """Wait until no turn runs; return how many still do after *limit_s*."""
    deadline = time.monotonic() + limit_s
    while (running := await count_running(conninfo)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return running


class Audit:
    """Holds one round's ledger against the server at *session* and its database."""

    def __init__(
        self, ledger: Ledger, session: aiohttp.ClientSession, conninfo: str, calls: Calls | None = None
    ) -> None:
        self._ledger = ledger
        self._session = session
        self._conninfo = conninfo
        self._calls = calls
        self._stored: dict[str, Message] = {}

    async def run(self, *, killed_at: float | None = None, checkpointed_s: float = 0.0) -> None:
        """
        Note in the ledger whatever is not as it was told.

        After a kill at *killed_at* (monotonic), what had been said *checkpointed_s* before has to be there.
        """
        ledger = self._ledger
        conversations = {one.conversation_id for one in ledger.turns.values()}
        conversations |= {conversation_id for conversation_id, _ in ledger.messages.values()}
        for conversation_id in conversations:
            self._check(conversation_id, self._check_history, await self._fetch_history(conversation_id))
        for message_id, (_, content) in ledger.messages.items():
            self._check(message_id, self._check_message, message_id, content)
        for told in ledger.turns.values():
            async with self._session.get(f"/api/chat/response/{told.id}") as response:
                state = await response.json()
            due = "" if killed_at is None else told.seen(killed_at - checkpointed_s)
            self._check(told.id, self._check_turn, told, state, due, killed_at is not None)
        await self._check_memories()
        await self._check_tables()

    def _check(self, who: str, check: Any, *arguments: Any) -> None:
        try:
            check(*arguments)
        except AssertionError as exc:
            self._ledger.accuse(f"audit of {who}", exc)

    async def _fetch_history(self, conversation_id: str) -> list[Message]:
        messages: list[Message] = []
        query = ""
        while True:
            async with self._session.get(f"/api/chat/history/{conversation_id}?limit={LAST}{query}") as response:
                page = await response.json()
                if response.status != 200:
                    self._ledger.accuse(f"audit of {conversation_id}", f"no history: {page}")
                    return messages
            messages += page["messages"]
            if page["next_cursor"] is None:
                self._stored |= {one["id"]: one for one in messages}
                return messages
            query = f"&cursor={page['next_cursor']}"

    def _check_history(self, messages: list[Message]) -> None:
        """An answer is to the question before it; it is whole where it is said to be, and its beginning elsewhere."""
        twice = [
            text for text, n in Counter(one["content"] for one in messages if one["role"] == "user").items() if n > 1
        ]
        assert not twice, f"kept twice: {twice}"
        question = None
        for one in messages:
            if one["role"] == "user":
                assert one["status"] == "completed", one
                question = one["content"]
                continue
            assert question is not None, f"an answer without a question: {one}"
            said = answer_to(question)
            assert said.startswith(one["content"]), f"not what the model said to {question!r}: {one}"
            assert (one["content"] == said) or one["status"] != "completed", f"cut, and called whole: {one}"
            assert one["status"] in ("completed", "incomplete", "cancelled"), one
            if one["status"] == "completed" and self._calls is not None and (calls := self._calls.of(question)):
                assert any(call.whole for call in calls), f"no call of the model came to its end: {one}"
            question = None

    def _check_message(self, message_id: str, content: str) -> None:
        stored = self._stored.get(message_id)
        assert stored is not None, f"an acknowledged message is gone: {content!r}"
        assert (stored["role"], stored["content"]) == ("user", content), stored

    def _check_turn(self, told: Told, state: Message, due: str, killed: bool) -> None:
        assert state.get("status") in ("completed", "incomplete", "failed", "cancelled"), (state, told)
        message = self._stored.get(told.id)
        if message is None:
            assert not state["content"], (state, told)
        else:
            kept = (message["content"], message["status"])
            assert kept == (state["content"], state["status"]), f"the state is not the history: {state} {message}"
        if told.final:
            assert (state["status"], state["content"]) == (told.status, told.text), f"told {told}, and kept {state}"
        elif told.text:
            assert state["content"] == told.text, f"told {told}, and kept {state}"
        elif not told.keyed and not killed:
            assert state["content"].startswith(told.seen()), f"showed {told.seen()!r}, and kept {state}"
        elif killed and told.status is None:
            assert state["content"].startswith(due), f"had shown {due!r}, and kept {state}"
        if told.stopped_at is not None and self._calls is not None:
            for call in self._calls.of(told.question):
                late_s = (call.ended_at or time.monotonic()) - told.stopped_at
                left = call.outcome != "served" or late_s < STOP_S
                assert left, f"the model spoke for {late_s:.1f} s after its turn was stopped: {told.id}"

    async def _check_memories(self) -> None:
        listed: Counter[str] = Counter()
        ids = set()
        query = ""
        while True:
            async with self._session.get(f"/api/memory/list?limit={LAST}{query}") as response:
                page = await response.json()
            for one in page["memories"]:
                listed[one["content"]] += 1
                ids.add(one["id"])
            if page["next_cursor"] is None:
                break
            query = f"&cursor={page['next_cursor']}"
        for content, memory_id in self._ledger.memories.items():
            if memory_id not in ids or listed[content] != 1:
                self._ledger.accuse("audit of memories", f"{content!r} is kept {listed[content]} times")

    async def _check_tables(self) -> None:
        """Look at all that is stored, also what no client was told of."""
        async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
            for complaint, statement in IMPOSSIBLE.items():
                cursor = await connection.execute(statement)
                if rows := await cursor.fetchmany(3):
                    self._ledger.accuse("audit of tables", f"{complaint}: {rows}")


IMPOSSIBLE = {
    "a question that is kept twice": (
        "select content, count(*) from messages where role = 'user' group by content having count(*) > 1"
    ),
    "two turns for one question": (
        "select user_message_id, count(*) from turns where user_message_id is not null"
        " group by user_message_id having count(*) > 1"
    ),
    "a failure's text as an answer": (
        "select id, content from messages where role = 'assistant' and content like 'Error:%'"
    ),
    "a turn that nobody ends": "select id, started_at from turns where status = 'running'",
    "a turn without its user's message": (
        "select t.id from turns t left join messages m on m.id = t.user_message_id where m.id is null"
    ),
    "a count that is wrong": (
        "select c.id, c.message_count, count(m.id) from conversations c left join messages m on m.conversation_id = c.id"
        " group by c.id having c.message_count <> count(m.id)"
    ),
}
"""What is never in the tables, by what to call it."""
