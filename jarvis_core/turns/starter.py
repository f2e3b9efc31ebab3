"""
Begins turns: stores what was said, finds the turn that an earlier request with the same key began, takes up one that waited
for its client.

What was said is stored before anybody is asked. What is returned is the turn, and what produces it, where it is to be run here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import NamedTuple

import msgspec

from jarvis_core import log
from jarvis_core.errors import Conflict
from jarvis_core.memory import NOTHING_RECALLED, Recalled
from jarvis_core.models import Caller, IdempotencyKey, LanguageModel, Status, new_id
from jarvis_core.shares import current_user
from jarvis_core.store.turns import Beginning, Begun, TurnStore
from jarvis_core.tools.calls import WAITING_REASONS, CallRecord, GoingOn
from jarvis_core.tools.house import HOUSE, House
from jarvis_core.turns.ask import Ask, decode_ask
from jarvis_core.turns.log import Step, Turn
from jarvis_core.turns.producer import Producer
from jarvis_core.turns.prompts import Prompts
from jarvis_core.turns.receipt import TurnTimer
from jarvis_core.turns.running_turn import RunningTurn
from jarvis_core.words.titles import NEW_TITLE, title_from


class Production(NamedTuple):
    """A turn that is to be run here, and what produces it."""

    turn: RunningTurn
    work: Coroutine[None, None, None]


class Starter:
    """Stores turns; *find* returns one that an earlier request began, wherever it runs."""

    def __init__(
        self,
        store: TurnStore,
        model: LanguageModel,
        house: House | None,
        prompts: Prompts,
        producer: Producer,
        find: Callable[[Caller, str], Awaitable[Turn]],
    ) -> None:
        self._store = store
        self._model = model
        self._house = house
        self._prompts = prompts
        self._producer = producer
        self._find = find

    async def go_on(
        self, caller: Caller, turn_id: str, going_on: GoingOn, timer: TurnTimer, keep_running: bool
    ) -> Turn | Production:
        """Store what the client of a turn has done that waits for it; raises as ``Turns.go_on`` does."""
        before = await self._find(caller, turn_id)
        if going_on.is_done(before.calls):
            return before
        going_on.check(before.calls)
        kept = await self._store.calls.fetch_request(caller.user_id, before.id)
        if kept is None:
            raise Conflict("This response does not wait for its client.")
        ask = decode_ask(kept)
        turn = RunningTurn(
            caller,
            before.conversation_id,
            before.id,
            before.user_message_id,
            user=current_user.get(),
            keep_running=keep_running,
            timer=timer,
        )
        log.bind_turn(turn.id, turn.conversation_id)
        begun = await self._store.fetch_earlier(self._beginning(turn, ask, None))
        recalled = await self._prompts.recall(ask, caller, begun, timer)
        calls = await self._store.calls.fetch(turn.id)
        # From then on it is run, whatever happens.
        await self._store.go_on(caller.user_id, turn.id, going_on)
        going_on.apply(calls)
        turn.allowed = going_on.allowed
        return self._run(turn, ask, begun, recalled, text=before.text(), calls=calls)

    async def start(self, ask: Ask, caller: Caller, key: IdempotencyKey | None, timer: TurnTimer) -> Turn | Production:
        """Store the user's message, unless an earlier request has; raises as ``Turns.start`` does."""
        if ask.aside:
            return await self._start_aside(ask, caller, timer)
        turn = RunningTurn(
            caller,
            ask.conversation_id or new_id(),
            new_id(),
            (ask.stored_message_id or new_id()) if ask.content else None,
            user=current_user.get(),
            keep_running=key is not None,
            timer=timer,
        )
        beginning = self._beginning(turn, ask, key)
        begun = await self._store.begin(beginning)
        if isinstance(begun, str):
            return await self._join(ask, caller, beginning, begun, timer)
        log.bind_turn(turn.id, turn.conversation_id)
        if self._house is not None and ask.ask_house and ask.content:
            return self._run(turn, ask, begun, None)
        return self._run(turn, ask, begun, await self._prompts.recall(ask, caller, begun, timer))

    def _beginning(self, turn: RunningTurn, ask: Ask, key: IdempotencyKey | None) -> Beginning:
        return Beginning(
            owner=turn.caller.user_id,
            conversation_id=turn.conversation_id,
            turn_id=turn.id,
            user_message_id=turn.user_message_id,
            content=ask.content,
            title=(title_from(ask.content) if ask.content else NEW_TITLE) if ask.conversation_id is None else None,
            history_chars=self._model.history_limit_chars,
            message_is_stored=ask.stored_message_id is not None,
            key=key,
            asked_to_act=HOUSE if self._house is not None and ask.ask_house and ask.content else "",
        )

    async def _start_aside(self, ask: Ask, caller: Caller, timer: TurnTimer) -> Production:
        """Return a turn that has no conversation, is stored nowhere and found by nobody; it ends with its last reader."""
        begun = Begun(ask.context or [])
        if ask.context is None and ask.conversation_id is not None:
            limit = self._model.history_limit_chars
            begun = await self._store.fetch_history(caller.user_id, ask.conversation_id, limit)
        turn = RunningTurn(caller, "", new_id(), None, user=current_user.get(), keep_running=False, timer=timer)
        log.bind_turn(turn.id, "")
        return self._run(turn, ask, begun, NOTHING_RECALLED)

    async def _join(
        self, ask: Ask, caller: Caller, beginning: Beginning, turn_id: str, timer: TurnTimer
    ) -> Turn | Production:
        """Return the turn that an earlier request with the same key began, run again if it came to nothing."""
        turn = await self._find(caller, turn_id)
        if turn.status not in (Status.FAILED, Status.INCOMPLETE) or turn.text() or turn.reason in WAITING_REASONS:
            return turn
        again = msgspec.structs.replace(
            beginning,
            turn_id=turn.id,
            conversation_id=turn.conversation_id,
            user_message_id=turn.user_message_id,
        )
        begun = await self._store.begin_again(again)
        if begun is None:
            return turn
        log.bind_turn(turn.id, turn.conversation_id)
        fresh = RunningTurn(
            caller,
            turn.conversation_id,
            turn.id,
            turn.user_message_id,
            user=current_user.get(),
            keep_running=True,
            timer=timer,
        )
        calls = await self._store.calls.fetch(turn.id)
        if begun.before == HOUSE:
            # It may have been done when this process, or the house, was lost.
            fresh.asked_to_act = HOUSE
        elif self._house is not None and ask.ask_house:
            return self._run(fresh, ask, begun, None, calls=calls)
        return self._run(fresh, ask, begun, await self._prompts.recall(ask, caller, begun, timer), calls=calls)

    def _run(
        self,
        turn: RunningTurn,
        ask: Ask,
        begun: Begun,
        recalled: Recalled | None,
        *,
        text: str = "",
        calls: Sequence[CallRecord] = (),
    ) -> Production:
        """
        Return what produces *turn*, of which came *text* and *calls* before.

        Without what was *recalled* the house is asked first, and what is remembered only where it is needed.
        """
        if recalled is not None:
            turn.memories = recalled.ids
        turn.append(Step.CREATED)
        if calls:
            turn.replay_before(text, calls)
        return Production(turn, self._producer.produce(turn, ask, begun, recalled))
