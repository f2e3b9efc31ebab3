"""
A turn: one exchange between a user and the assistant, as a log with readers.

One producer reads the model's stream and appends to the log (``log.py``); any number of readers follow it. What it
says and how it ends is stored by ``recorder.py``.

The user's message is stored before the model is asked. While text arrives it is checkpointed at most a second later. How
a turn ended is stored before its readers are told. Every way to stop a turn is ``Turns.stop``: it closes the model's
connection, stores what was said, and then returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine

from jarvis_core import log
from jarvis_core.errors import Overloaded, RateLimited, RequestError, Stopping, Unavailable
from jarvis_core.memory import Memories
from jarvis_core.metrics import Histogram
from jarvis_core.models import (
    Caller,
    Heard,
    IdempotencyKey,
    LanguageModel,
    Status,
    TurnRecord,
)
from jarvis_core.settings import Llm, Tools
from jarvis_core.shares import Shares, current_user
from jarvis_core.store.turns import TurnStore
from jarvis_core.tools.calls import GoingOn
from jarvis_core.tools.house import House
from jarvis_core.tools.toolbox import Toolbox
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.ended import EndedTurns
from jarvis_core.turns.household import Household
from jarvis_core.turns.log import Turn
from jarvis_core.turns.producer import RETRY_AFTER_S, Producer
from jarvis_core.turns.prompts import Prompts
from jarvis_core.turns.read_ahead import ReadAhead
from jarvis_core.turns.receipt import TurnTimer, observe_voice
from jarvis_core.turns.recorder import TurnRecorder
from jarvis_core.turns.remote import RemoteTurns
from jarvis_core.turns.running_turn import RunningTurn
from jarvis_core.turns.starter import Production, Starter
from jarvis_core.turns.tool_loop import ToolLoop

logger = log.get(__name__)


class Turns:
    """
    Starts, follows and stops turns.

    Owns a task for each running turn; ``close`` ends them all.
    """

    def __init__(
        self,
        store: TurnStore,
        model: LanguageModel,
        settings: Llm,
        memories: Memories | None = None,
        remote_turns: RemoteTurns | None = None,
        *,
        house: House | None = None,
        household: Household | None = None,
        limit: int = 2_000,
        durations: Histogram | None = None,
        tools: ToolLoop | None = None,
    ) -> None:
        self._durations = durations or Histogram()
        self._tools = tools or ToolLoop(store.calls, Toolbox((), Tools()))
        self._shares = Shares(limit)
        self.refused = 0
        """Turns that were refused as too many."""
        self._store = store
        self._remote_turns = remote_turns
        self.household = household or Household()
        self._running: dict[str, RunningTurn] = {}
        self._ended = EndedTurns()
        self._recorder = TurnRecorder(store)
        self._closing = False
        self._starting: dict[asyncio.Future[Turn], asyncio.Task[None]] = {}
        """Requests on their way to the store: what will be the turn, and the task that begins it and then produces it."""
        self._keyed: dict[tuple[str, str], asyncio.Future[Turn]] = {}
        """Those of them with an idempotency key, by user and key."""
        prompts = Prompts(model, settings, self.household, memories, self._tools)
        self._read_ahead = ReadAhead(model, store, prompts)
        self._producer = Producer(
            model, house, prompts, self._tools, self._recorder, self._ended, self._durations, self._let_go
        )
        self._starter = Starter(store, model, house, prompts, self._producer, self.find)

    async def find(self, caller: Caller, turn_id: str) -> Turn:
        """Return a turn of *caller*, running or ended, here or on another worker; raises ``NotFound``."""
        turn = self.get(caller.user_id, turn_id)
        if turn is None:
            return await self._from_record(caller, await self._store.fetch(caller.user_id, turn_id))
        if turn.ended and self._remote_turns is not None and turn.reason != "not_stored":
            # Its conversation may have been deleted on another worker.
            with contextlib.suppress(Unavailable):
                record = await self._store.fetch(caller.user_id, turn_id)
                if record.heard_ms is not None:
                    self._ended.remove(turn_id)
                    return await self._from_end(caller, record)
        return turn

    async def _from_end(self, caller: Caller, record: TurnRecord) -> Turn:
        return Turn.from_record(caller, record, await self._store.calls.fetch(record.id))

    async def _from_record(self, caller: Caller, record: TurnRecord) -> Turn:
        # It may have come here, or ended, while the store was asked.
        turn = self.get(caller.user_id, record.id)
        if turn is not None:
            return turn
        if record.status is Status.RUNNING and self._remote_turns is not None:
            return await self._remote_turns.follow(caller, record)
        return await self._from_end(caller, record)

    async def take_session(self, caller: Caller, turn_id: str, after: int) -> tuple[Turn, bytes] | None:
        """
        Return a turn and what another worker had left of its session, which ends there; None where there is none.

        Raises ``NotFound`` for an unknown turn.
        """
        record = await self._store.fetch(caller.user_id, turn_id)
        if self._remote_turns is None or record.worker is None:
            return None
        if record.worker == self._store.worker_id and self._remote_turns.moved_to(turn_id) is None:
            return None
        worker_id = self._remote_turns.moved_to(turn_id) or record.worker
        left = await self._remote_turns.take_session(worker_id, caller, turn_id, after)
        return None if left is None else (await self._from_record(caller, record), left)

    def check_open(self) -> None:
        """Raise ``Stopping`` after `close`."""
        if self._closing:
            raise Stopping("The server is stopping.", retry_after_s=RETRY_AFTER_S)

    async def start(
        self, ask: Ask, caller: Caller, key: IdempotencyKey | None = None, timer: TurnTimer | None = None
    ) -> Turn:
        """
        Store the user's message, then ask the model; returns once the message is stored.

        The house is asked before the model, where there is one. *timer* takes the turn's times; without one they are counted
        from here.

        With *key*, a request that came before under it is joined instead: its turn is returned, running or ended; one
        that ended without an answer is run again. Raises ``NotFound`` for an unknown conversation, ``Conflict`` while
        another turn runs in it or where the key was used for another request, ``Overloaded`` while as many turns run as
        may (``RateLimited``: of this user's), ``Stopping`` after `close`, ``Unavailable`` without a database. What goes wrong later is the turn's ``error``.
        """
        self.check_open()
        name = None if key is None else (caller.user_id, key.text)
        while name is not None and (first := self._keyed.get(name)) is not None:
            # Another request with this key is between here and the database; it decides which turn this is.
            await asyncio.wait([first])
        user = self._take_share()
        begun = self._run_apart(
            self._starter.start(ask, caller, key, timer or TurnTimer(time.perf_counter())), user, name
        )
        try:
            return await asyncio.shield(begun)
        finally:
            del begun  # its error refers to this frame: together they would wait for the collector

    async def go_on(
        self, caller: Caller, turn_id: str, going_on: GoingOn, timer: TurnTimer, *, keep_running: bool = False
    ) -> Turn:
        """
        Have a turn go on that waits for its client, with what that has done; returns once that is stored.

        A request that comes again finds the turn as it is. Raises as ``start`` does, and ``InvalidRequest`` where it is not what the
        turn waits for.
        """
        self.check_open()
        user = self._take_share()
        begun = self._run_apart(self._starter.go_on(caller, turn_id, going_on, timer, keep_running), user, None)
        try:
            return await asyncio.shield(begun)
        finally:
            del begun

    def _take_share(self) -> str:
        """Count a turn of the current user, who is returned; raises ``RateLimited`` or ``Overloaded``."""
        user = current_user.get()
        if not self._shares.take(user):
            self.refused += 1
            if self._shares.free:
                raise RateLimited(
                    "This user has as many turns running as one may; wait for one to end.", retry_after_s=1
                )
            raise Overloaded("As many turns run as may; try again.", retry_after_s=1)
        return user

    def _run_apart(
        self, starting: Coroutine[None, None, Turn | Production], user: str, name: tuple[str, str] | None
    ) -> asyncio.Future[Turn]:
        """
        Start a turn of *user* in a task of its own, under the *name* of its key; return what will be the turn.

        Whoever asks may be cancelled, but a turn that was committed is run.
        """
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[Turn] = loop.create_future()
        if name is not None:
            self._keyed[name] = begun
        self._starting[begun] = loop.create_task(self._begin_and_produce(begun, starting, user, name))
        return begun

    async def _begin_and_produce(
        self,
        begun: asyncio.Future[Turn],
        starting: Coroutine[None, None, Turn | Production],
        user: str,
        name: tuple[str, str] | None,
    ) -> None:
        """Tell *begun* which turn a request of *user* is, and produce it, unless it runs or has ended already."""
        started = None
        try:
            started = await starting
            if isinstance(started, Production):
                turn = started.turn
                self._ended.remove(turn.id)
                self._running[turn.id] = turn
                turn.task = asyncio.current_task()
                begun.set_result(turn)
            else:
                begun.set_result(started)
        except asyncio.CancelledError:
            begun.cancel()
            raise
        except Exception as exc:  # noqa: BLE001 - whoever asked gets it
            begun.set_exception(exc)
        finally:
            del self._starting[begun]
            del begun
            if name is not None:
                del self._keyed[name]
            if not isinstance(started, Production):
                self._shares.give_back(user)
        if isinstance(started, Production):
            await started.work

    def read_ahead(self, caller: Caller, ask: Ask) -> None:
        """
        Have the model read what *ask*, whose content is not known yet, will follow, where that makes its answer sooner.

        Without a conversation that is the instructions. Returns at once.
        """
        self._read_ahead.start(caller, ask)

    def _let_go(self, turn: RunningTurn) -> None:
        self._running.pop(turn.id, None)
        self._shares.give_back(turn.user)

    async def add_output(self, caller: Caller, conversation_id: str | None, call_id: str, output: str) -> str | None:
        """
        Store the client's *output* for a call of a conversation that waits for it; the next turn there is told of it.

        Returns the id of its message; None where no such call waits.
        """
        stored = await self._store.calls.add_output(caller.user_id, conversation_id, call_id, output)
        if stored is None:
            return None
        message_id, turn_id = stored
        turn = self.get(caller.user_id, turn_id)
        for call in () if turn is None else turn.calls:
            if call.call_id == call_id:
                call.state, call.output = "finished", output
        return message_id

    def get(self, owner: str, turn_id: str) -> Turn | None:
        """Return a turn that runs here or ended here not long ago, if it is *owner*'s."""
        turn = self._running.get(turn_id) or self._ended.get(turn_id)
        return turn if turn is not None and turn.caller.user_id == owner and turn.conversation_id else None

    async def find_running(self, owner: str, conversation_id: str) -> Turn | None:
        """Return the turn that runs in a conversation of *owner*, here or on another worker, if any."""
        for turn in self._running.values():
            if turn.conversation_id == conversation_id and turn.caller.user_id == owner:
                return turn
        record = None if self._remote_turns is None else await self._store.fetch_running(owner, conversation_id)
        return None if record is None else await self._from_record(Caller(owner), record)

    def forget_conversation(self, owner: str, conversation_id: str) -> None:
        """Let go of the ended turns of a deleted conversation: what it said is not to be had here either."""
        self._ended.remove_conversation(owner, conversation_id)

    def forget_turn(self, turn_id: str) -> None:
        """Let go of an ended turn whose answer was removed."""
        self._ended.remove(turn_id)

    @property
    def running(self) -> int:
        """How many turns run here."""
        return len(self._running)

    def attach(self, turn: Turn) -> None:
        """Count a reader in; each has to ``detach``."""
        turn.readers += 1

    async def detach(self, turn: Turn) -> None:
        """Count a reader out; with the last one a turn that nobody waits for is cancelled."""
        turn.readers -= 1
        if turn.readers == 0:
            await turn.note_unread()

    async def stop(
        self,
        turn: Turn,
        status: Status = Status.CANCELLED,
        reason: str = "cancelled",
        heard: Heard | None = None,
    ) -> None:
        """
        Stop *turn*; returns when the model's connection is closed and the end is stored, with no more text than was *heard*.

        Whoever asks first decides the reason; a turn that has already got its last word keeps its own end. Raises
        ``Unavailable`` for a turn of a worker that cannot be reached.
        """
        await turn.stop(status, reason, heard)

    async def delete(self, caller: Caller, turn: Turn) -> None:
        """
        Remove *turn* with its question and its answer, and its conversation where nothing else is in it; one that runs is
        cancelled first.

        A question that other turns answer too stays. Raises ``NotFound`` where it is gone already.
        """
        if not turn.ended:
            await self.stop(turn)
        await self._store.delete(caller.user_id, turn.id)
        self._ended.remove(turn.id)

    async def truncate(self, caller: Caller, turn_id: str, chars: int, *, heard_ms: int, told: bool = False) -> None:
        """
        Keep of an ended turn's answer the first *chars* code points, which were heard in *heard_ms* of its sound.

        *told* by the client, it corrects what was worked out here; of several that it tells the least counts. Raises
        ``NotFound``.
        """
        await self._store.truncate(caller.user_id, turn_id, chars, heard_ms=heard_ms, told=told)
        # From now on it is read from the store, on every worker.
        self._ended.remove(turn_id)

    def note_first_sound(self, turn: Turn) -> None:
        """Take note that sound of *turn* was sent, the first time."""
        if turn.timer.note_first_sound():
            observe_voice(self._durations, turn.timer.receipt)

    async def store_receipt(self, turn: Turn) -> None:
        """Store the receipt of *turn* where it has changed since the turn's end was stored; a failure is logged."""
        if not (turn.timer.unstored and turn.ended and turn.conversation_id):
            return
        try:
            await self._store.add_receipt(turn.id, turn.timer.receipt)
            turn.timer.unstored = False
        except RequestError as exc:
            logger.warning("the times of a turn's voice were not stored", error=str(exc))

    async def close(self, *, drain_timeout_s: float) -> None:
        """
        End all running turns: they get *drain_timeout_s* to end by themselves, then are stored as ``incomplete``.

        Ends that could not be stored yet get what is left of that time, as ``TurnRecorder.close`` has it.
        """
        self._closing = True
        self._read_ahead.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_timeout_s
        if self._starting:
            await asyncio.wait(self._starting)  # each is bounded by the store's own deadline
        tasks = [turn.task for turn in self._running.values() if turn.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        turns = list(self._running.values())
        # All at once: each waits for its end to be stored, or for that to fail.
        await asyncio.gather(*(turn.stop(Status.INCOMPLETE, "server_stopped") for turn in turns))
        await self._tools.close()
        await self._recorder.close(deadline)
