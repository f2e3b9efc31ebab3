"""
Turns: begun, checkpointed and ended in one statement each.

That only one turn runs in a conversation is held by a unique index, whichever process asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

import msgspec
import psycopg
from msgspec import Struct
from psycopg.rows import TupleRow

from jarvis_core.errors import BadGateway, Conflict, NotFound, RequestError, Unavailable
from jarvis_core.models import Heard, IdempotencyKey, Receipt, Status, ToolCall, TurnRecord, Utterance, is_id, new_id
from jarvis_core.store import turn_statements as sql
from jarvis_core.store.conversations import unknown_conversation
from jarvis_core.store.pool import Pool
from jarvis_core.store.tool_calls import CALL_TYPES, CallStore
from jarvis_core.store.turn_deletion import delete_turn
from jarvis_core.store.unconfirmed_turns import UnconfirmedTurns
from jarvis_core.tools.calls import GoingOn

_decode_call = msgspec.json.Decoder(tuple[str, str, str]).decode
_encode_receipt = msgspec.json.Encoder().encode
_receipt_decoder = msgspec.json.Decoder(Receipt)

HISTORY_MESSAGES = 200
"""More messages of history than this are never put into a prompt."""


class Beginning(Struct, frozen=True):
    """A turn to begin."""

    owner: str
    conversation_id: str
    turn_id: str
    user_message_id: str | None
    """None where the assistant is to speak without being asked."""
    content: str
    title: str | None
    """Of the conversation to be made; None where it is there."""
    history_chars: int
    message_is_stored: bool = False
    """Whether the user's message was stored before."""
    key: IdempotencyKey | None = None
    asked_to_act: str = ""
    """Who is to be asked to do something in this turn, and only once; kept in the place of the model until the turn ends."""


class Begun(Struct, frozen=True):
    """What is known when a turn begins."""

    history: list[Utterance]
    """What was said before, the oldest first."""
    remembers: bool = False
    """Whether the owner has memories."""
    before: str = ""
    """Of a turn that is begun again: its model, or who was asked to act and has not told whether it did."""
    older: int = 0
    """Messages of the conversation before the history."""


class TurnEnd(Struct, frozen=True):
    """How a turn ended."""

    status: Status
    reason: str
    error: RequestError | None = None
    """Why it failed, or why the rest of its text was lost; the store keeps the message alone."""
    tokens: int = 0
    model: str = ""
    ended_at: datetime | None = None
    """Of the database's clock, once it is stored there."""
    receipt: Receipt | None = None
    heard: Heard | None = None
    """How much of it was heard, where it was interrupted: the rest is stored apart."""
    prompt_tokens: int = 0
    """Read by the model; 0 where its server did not say."""

    @classmethod
    def from_record(cls, record: TurnRecord) -> Self:
        """Return how a stored turn ended."""
        error = BadGateway(record.error or "The turn failed.") if record.status is Status.FAILED else None
        return cls(
            record.status,
            record.reason or "",
            error,
            record.tokens,
            record.model,
            record.ended_at,
            record.receipt,
            prompt_tokens=record.prompt_tokens,
        )


class TurnStore:
    """Exchanges between a user and the assistant, running and ended; what is begun here is the worker *worker_id*'s."""

    def __init__(self, pool: Pool, worker_id: str | None = None) -> None:
        self._pool = pool
        self.worker_id = worker_id or new_id()
        self.unconfirmed = UnconfirmedTurns(pool, self.worker_id)
        self.calls = CallStore(pool, self.worker_id)

    async def begin(self, beginning: Beginning) -> Begun | str:
        """
        Store the user's message and a running turn in one transaction, and return what went before.

        Where the key was taken by an earlier request for the same, nothing is stored and that turn's id is returned.
        Raises ``NotFound``, or ``Conflict`` where another turn runs in the conversation or the key was used for
        another request.
        """
        if self.unconfirmed.are_new:
            # One of them may stand in the way of this one, or be what its key leads to.
            await self.unconfirmed.settle()
        if beginning.title is None and not is_id(beginning.conversation_id):
            raise unknown_conversation()
        is_unasked = beginning.user_message_id is None
        if beginning.title is not None:
            statement = sql.BEGIN_NEW_UNASKED if is_unasked else sql.BEGIN_IN_NEW
        elif beginning.message_is_stored or is_unasked:
            statement = sql.BEGIN_WITHOUT_MESSAGE
        else:
            statement = sql.BEGIN_IN_EXISTING
        parameters = self._parameters(
            beginning, asked=beginning.user_message_id if beginning.message_is_stored else None
        )
        try:
            if beginning.key is None:
                return _begun(await self._pool.fetch_all(statement, parameters), int(beginning.message_is_stored))
            return await self._begin_once(statement, parameters, beginning, beginning.key)
        except psycopg.errors.UniqueViolation as exc:
            raise another_runs() from exc
        except Unavailable:
            # Whoever asks again has another id, unless by the key that would have been taken with it.
            self.unconfirmed.add(beginning.turn_id)
            raise

    async def _begin_once(
        self, statement: str, parameters: dict[str, Any], beginning: Beginning, key: IdempotencyKey
    ) -> Begun | str:
        async with self._pool.transaction() as connection:
            taking = (beginning.owner, key.text, key.request_hash, beginning.turn_id)
            cursor = await connection.execute(sql.TAKE_KEY, taking)
            if await cursor.fetchone() is not None:
                cursor = await connection.execute(statement, parameters)
                return _begun(await cursor.fetchall(), int(beginning.message_is_stored))
            cursor = await connection.execute(sql.FETCH_KEY, (beginning.owner, key.text))
            row = await cursor.fetchone()
            if row is None or bytes(row[0]) != key.request_hash:
                raise Conflict("This idempotency key was used for another request.")
            return str(row[1])

    async def begin_again(self, beginning: Beginning) -> Begun | None:
        """
        Set a turn that ended without a message running again, and return what went before but its user's message.

        Returns None where there is no such turn, or it has a message. Raises ``Conflict`` as ``begin`` does.
        """
        parameters = self._parameters(beginning, asked=beginning.user_message_id)
        await self.unconfirmed.remove(beginning.turn_id)
        try:
            rows = await self._pool.fetch_all(sql.BEGIN_AGAIN, parameters)
        except psycopg.errors.UniqueViolation as exc:
            raise another_runs() from exc
        except Unavailable:
            # Looked at once only: later it may have been run again, by whichever process.
            self.unconfirmed.add(beginning.turn_id, open_s=0.0)
            raise
        return _begun(rows, 1) if rows else None

    async def fetch_history(self, owner: str, conversation_id: str, history_chars: int) -> Begun:
        """Return what was said in a conversation, as for a turn that begins; raises ``NotFound``."""
        parameters = {
            "conversation": conversation_id,
            "owner": owner,
            "asked": None,
            "turn": None,
            "history_chars": history_chars,
            "history_messages": HISTORY_MESSAGES,
        }
        return _begun(await self._pool.fetch_all(sql.FETCH_HISTORY, parameters), 0)

    async def go_on(self, owner: str, turn_id: str, going_on: GoingOn) -> None:
        """
        Set a turn running again that waits for its client, with what that has done.

        Raises ``Conflict`` where it does not wait, or another turn runs in its conversation.
        """
        try:
            waited = await self.calls.go_on(owner, turn_id, going_on)
        except psycopg.errors.UniqueViolation as exc:
            raise another_runs() from exc
        except Unavailable:
            self.unconfirmed.add(turn_id, open_s=0.0)
            raise
        if not waited:
            raise Conflict("This response does not wait for its client.")

    async def fetch_earlier(self, beginning: Beginning) -> Begun:
        """Return what was said before a turn that goes on, but its user's message."""
        parameters = self._parameters(beginning, asked=beginning.user_message_id)
        return _begun(await self._pool.fetch_all(sql.FETCH_HISTORY, parameters), 1)

    async def forget_keys(self) -> None:
        """Remove idempotency keys that are older than 24 hours."""
        await self._pool.execute(sql.FORGET_KEYS)

    async def checkpoint(self, texts: list[tuple[str, str, str]]) -> None:
        """Store (id, text so far, model) of running turns, in one statement."""
        if texts:
            await self._pool.execute(sql.CHECKPOINT, [list(column) for column in zip(*texts, strict=True)])

    async def end(self, turn_id: str, end: TurnEnd, content: str, memories: Sequence[str] = ()) -> datetime | None:
        """
        Store how a turn ended, and the assistant's message with it; return when, or None if it was not running here.

        One that others have closed, because they took this worker for dead, gets its real end.

        A turn that ended without a text leaves no message, unless it completed.
        """
        parameters = {
            "turn": turn_id,
            "worker": self.worker_id,
            "status": end.status,
            "reason": end.reason,
            "error": None if end.error is None else end.error.message,
            "content": content if end.heard is None else content[: end.heard.chars],
            "unheard": "" if end.heard is None else content[end.heard.chars :],
            "heard_ms": None if end.heard is None else end.heard.ms,
            "tokens": end.tokens,
            "prompt_tokens": end.prompt_tokens,
            "model": end.model,
            # As text: the driver looks at each list's elements for their type.
            "memories": f"{{{','.join(memories)}}}",
            "keep": bool(content) or end.status is Status.COMPLETED,
            "receipt": "{}" if end.receipt is None else _encode_receipt(end.receipt).decode(),
        }
        row = await self._pool.fetch_one(sql.END, parameters, patient=True)
        if row is None:
            row = await self._pool.fetch_one(sql.END_CLOSED_BY_OTHERS, parameters)
        ended_at: datetime | None = row[0] if row else None
        return ended_at

    async def keep_told(self, turn_id: str, *, kept: str, told: str) -> bool:
        """
        Store *told*, the text that a reader was given, in place of *kept*, the last that a worker that died had stored.

        Returns whether that was done: not where the turn runs again, or its text is another than *kept* by now.
        """
        row = await self._pool.fetch_one(sql.KEEP_TOLD, {"turn": turn_id, "kept": kept, "told": told})
        return row is not None and row[0] == 1

    async def truncate(self, owner: str, turn_id: str, chars: int, *, heard_ms: int, told: bool) -> None:
        """Keep of an answer the first *chars* code points as what was heard, the rest apart; raises ``NotFound``."""
        parameters = {"turn": turn_id, "owner": owner, "chars": chars, "heard_ms": heard_ms, "told": told}
        if not is_id(turn_id) or await self._pool.fetch_one(sql.TRUNCATE, parameters) is None:
            raise NotFound("There is no such response.")

    async def add_receipt(self, turn_id: str, receipt: Receipt) -> None:
        """Store what *receipt* has of a turn that has ended."""
        await self._pool.execute(sql.ADD_RECEIPT, (_encode_receipt(receipt).decode(), turn_id))

    async def delete(self, owner: str, turn_id: str) -> None:
        """Remove a turn that has ended, as ``turn_deletion.py`` has it; raises ``NotFound``."""
        if not is_id(turn_id) or not await delete_turn(self._pool, owner, turn_id):
            raise NotFound("There is no such response.")

    async def fetch(self, owner: str, turn_id: str) -> TurnRecord:
        """Return a turn; raises ``NotFound``."""
        row = await self._pool.fetch_one(sql.FETCH, (owner, turn_id)) if is_id(turn_id) else None
        if row is None:
            raise NotFound("There is no such response.")
        return _record(row)

    async def fetch_many(self, turn_ids: Sequence[str]) -> list[TurnRecord]:
        """Return those of the turns that there are, whoever's they are."""
        return [_record(row) for row in await self._pool.fetch_all(sql.FETCH_MANY, (list(turn_ids),))]

    async def fetch_running(self, owner: str, conversation_id: str) -> TurnRecord | None:
        """Return the turn that runs in a conversation, if any."""
        if not is_id(conversation_id):
            return None
        row = await self._pool.fetch_one(sql.FETCH_RUNNING, (owner, conversation_id))
        return None if row is None else _record(row)

    def _parameters(self, beginning: Beginning, *, asked: str | None) -> dict[str, Any]:
        return {
            "owner": beginning.owner,
            "worker": self.worker_id,
            "conversation": beginning.conversation_id,
            "title": beginning.title,
            "turn": beginning.turn_id,
            "user_message": beginning.user_message_id,
            "asked_to_act": beginning.asked_to_act,
            "content": beginning.content,
            "asked": asked,
            "history_messages": HISTORY_MESSAGES,
            "history_chars": beginning.history_chars,
        }


def another_runs() -> Conflict:
    """Return the error for a second turn in a conversation."""
    return Conflict("Another turn is running in this conversation; wait for it or cancel it.")


def _record(row: TupleRow) -> TurnRecord:
    values = list(row)
    values[3] = Status(values[3])
    receipt = Receipt() if values[-1] is None else _receipt_decoder.decode(values[-1])
    receipt.heard_ms = values[-2]
    values[-1] = receipt
    return TurnRecord(*values)


def _begun(rows: list[TupleRow], asked: int) -> Begun:
    """Return what *rows* tell; *asked* is how many of the messages that they count are answered by the turn."""
    if not rows:
        raise unknown_conversation()
    history = [(role, text) for _, _, role, text, _ in rows if role is not None]
    roles = [role for role, _ in history]
    calls = sum(map(roles.count, CALL_TYPES))
    older = max(0, rows[0][4] - asked - len(history) + calls)
    if not calls:
        return Begun([Utterance(role, text) for role, text in history], bool(rows[0][0]), rows[0][1], older)
    return Begun(_with_calls(history), bool(rows[0][0]), rows[0][1], older)


def _with_calls(history: list[tuple[Any, str]]) -> list[Utterance]:
    """Return *history* with its calls, as ``sql.HISTORY`` gives them, as an assistant's, and their outputs as a tool's."""
    found: list[Utterance] = []
    for role, content in history:
        if role not in CALL_TYPES:
            found.append(Utterance(role, content))
            continue
        call_id, name, text = _decode_call(content)
        if role != "function_call":
            found.append(Utterance("tool", text, call_id=call_id))
            continue
        call = ToolCall(call_id, name, text)
        if found and found[-1].calls:
            found[-1] = Utterance("assistant", "", (*found[-1].calls, call))
        else:
            found.append(Utterance("assistant", "", (call,)))
    return found
