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
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jarvis_core import cancellation, log
from jarvis_core.errors import Conflict, Overloaded, RateLimited, RequestError, Stopping, Unavailable
from jarvis_core.memory import NOTHING_RECALLED, Memories, Recalled
from jarvis_core.metrics import Histogram
from jarvis_core.models import (
    Caller,
    Discard,
    Finish,
    Heard,
    IdempotencyKey,
    LanguageModel,
    Prompt,
    Status,
    Tool,
    ToolTime,
    TurnRecord,
    Utterance,
    new_id,
)
from jarvis_core.settings import Llm, Tools
from jarvis_core.shares import Shares, current_user
from jarvis_core.store.turns import Beginning, Begun, TurnEnd, TurnStore
from jarvis_core.tools.calls import WAITING_REASONS, CallRecord, GoingOn
from jarvis_core.tools.house import HOUSE, UNCLEAR, House
from jarvis_core.tools.toolbox import Toolbox
from jarvis_core.turns.ended import EndedTurns
from jarvis_core.turns.household import EXAMPLES, Household
from jarvis_core.turns.log import OPENING, Step, Turn
from jarvis_core.turns.outcome import error_without_text, outcome
from jarvis_core.turns.receipt import TurnTimer, elapsed_ms, observe_answer, observe_voice
from jarvis_core.turns.recorder import TurnRecorder, read_tokens, storable_text, storable_tokens
from jarvis_core.turns.remote import RemoteTurns
from jarvis_core.turns.running_turn import RunningTurn
from jarvis_core.turns.tool_loop import ToolLoop
from jarvis_core.words.repetition import repeats
from jarvis_core.words.titles import NEW_TITLE, title_from

logger = log.get(__name__)

CHARS_PER_TOKEN_LIMIT = 32
"""A model that sends more code points than this for each token that it was allowed is cut off."""
RETRY_AFTER_S = 5
READ_AHEAD_LIMIT = 8
"""Conversations that the model is to read in advance at a time; it reads one after another."""
NOT_STORED = "The answer could not be stored: the database is not available. It is stored when it is back."
LOOK_CHARS = 200
"""An answer is looked at for repetition each time it has grown by so much."""
CONTEXT_RESERVE_CHARS = 200
"""Room in a prompt for what is neither said nor remembered."""


class Ask(Struct, frozen=True):
    """What a user wants said."""

    content: str
    """Empty where nothing new is said: the assistant is to begin, or to go on."""
    conversation_id: str | None = None
    """None makes a conversation."""
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    use_memory: bool = True
    stored_message_id: str | None = None
    """The user's message, where it was stored before."""
    spoken: bool = False
    """Whether the answer is for the ear."""
    language: str | None = None
    """In which it was said; None where nobody knows."""
    ask_house: bool = True
    """Whether the house is asked before the model, where there is one."""
    before: list[Utterance] = []
    """What was said between the history and the content, which the client keeps: the model is told, and it is not stored."""
    tools: list[Tool] | UnsetType = UNSET
    """The client's own."""
    tool_choice: str | UnsetType = UNSET
    """As a prompt's."""
    context: list[Utterance] | None = None
    """What the model is told was said before, in place of the conversation's history and of what is remembered."""
    aside: bool = False
    """Whether the answer belongs to no conversation: nothing is stored or remembered, and it runs beside others."""


Starting = Coroutine[None, None, tuple[Turn, Coroutine[None, None, None] | None]]
"""Stores a turn; returns it, and what produces it where it is to be run here."""


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
        self._model = model
        self._memories = memories
        self._house = house
        self._settings = settings
        self.household = household or Household()
        self._running: dict[str, RunningTurn] = {}
        self._ended = EndedTurns()
        self._recorder = TurnRecorder(store)
        self._closing = False
        self._starting: dict[asyncio.Future[Turn], asyncio.Task[None]] = {}
        """Requests on their way to the store: what will be the turn, and the task that begins it and then produces it."""
        self._keyed: dict[tuple[str, str], asyncio.Future[Turn]] = {}
        """Those of them with an idempotency key, by user and key."""
        self._reading_ahead: dict[str, asyncio.Task[None]] = {}
        """By conversation: what the model is to read in advance."""

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
        begun = self._run_apart(self._start(ask, caller, key, timer or TurnTimer(time.perf_counter())), user, name)
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
        begun = self._run_apart(self._go_on(caller, turn_id, going_on, timer, keep_running), user, None)
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

    def _run_apart(self, starting: Starting, user: str, name: tuple[str, str] | None) -> asyncio.Future[Turn]:
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

    async def _go_on(
        self, caller: Caller, turn_id: str, going_on: GoingOn, timer: TurnTimer, keep_running: bool
    ) -> tuple[Turn, Coroutine[None, None, None] | None]:
        before = await self.find(caller, turn_id)
        if going_on.is_done(before.calls):
            return before, None
        going_on.check(before.calls)
        kept = await self._store.calls.fetch_request(caller.user_id, before.id)
        if kept is None:
            raise Conflict("This response does not wait for its client.")
        ask = _decode_ask(kept)
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
        recalled = await self._recall(ask, caller, begun, timer)
        calls = await self._store.calls.fetch(turn.id)
        # From then on it is run, whatever happens.
        await self._store.go_on(caller.user_id, turn.id, going_on)
        going_on.apply(calls)
        turn.allowed = going_on.allowed
        return self._run(turn, ask, begun, recalled, text=before.text(), calls=calls)

    async def _begin_and_produce(
        self,
        begun: asyncio.Future[Turn],
        starting: Starting,
        user: str,
        name: tuple[str, str] | None,
    ) -> None:
        """Tell *begun* which turn a request of *user* is, and produce it, unless it runs or has ended already."""
        producing = None
        try:
            turn, producing = await starting
            begun.set_result(turn)
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
            if producing is None:
                self._shares.give_back(user)
        if producing is not None:
            await producing

    async def _start(
        self, ask: Ask, caller: Caller, key: IdempotencyKey | None, timer: TurnTimer
    ) -> tuple[Turn, Coroutine[None, None, None] | None]:
        """Store the user's message; return the turn, and what produces it where it is to be run here."""
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
        return self._run(turn, ask, begun, await self._recall(ask, caller, begun, timer))

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

    async def _start_aside(
        self, ask: Ask, caller: Caller, timer: TurnTimer
    ) -> tuple[Turn, Coroutine[None, None, None]]:
        """Return a turn that has no conversation, is stored nowhere and found by nobody; it ends with its last reader."""
        begun = Begun(ask.context or [])
        if ask.context is None and ask.conversation_id is not None:
            limit = self._model.history_limit_chars
            begun = await self._store.fetch_history(caller.user_id, ask.conversation_id, limit)
        turn = RunningTurn(caller, "", new_id(), None, user=current_user.get(), keep_running=False, timer=timer)
        log.bind_turn(turn.id, "")
        return self._run(turn, ask, begun, NOTHING_RECALLED)

    async def _recall(self, ask: Ask, caller: Caller, begun: Begun, timer: TurnTimer) -> Recalled:
        question = _latest(ask, begun.history)[1] if ask.context is None else ""
        if self._memories is None or not ask.use_memory or not begun.remembers or not question:
            return NOTHING_RECALLED
        room_chars = self._model.history_limit_chars - len(question) - CONTEXT_RESERVE_CHARS
        began_s = time.perf_counter()
        recalled = await self._memories.recall(caller, question, room_chars=room_chars)
        timer.receipt.recall_ms = elapsed_ms(began_s)
        return recalled

    async def _join(
        self, ask: Ask, caller: Caller, beginning: Beginning, turn_id: str, timer: TurnTimer
    ) -> tuple[Turn, Coroutine[None, None, None] | None]:
        """Return the turn that an earlier request with the same key began, run again if it came to nothing."""
        turn = await self.find(caller, turn_id)
        if turn.status not in (Status.FAILED, Status.INCOMPLETE) or turn.text() or turn.reason in WAITING_REASONS:
            return turn, None
        again = msgspec.structs.replace(
            beginning,
            turn_id=turn.id,
            conversation_id=turn.conversation_id,
            user_message_id=turn.user_message_id,
        )
        begun = await self._store.begin_again(again)
        if begun is None:
            return turn, None
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
        return self._run(fresh, ask, begun, await self._recall(ask, caller, begun, timer), calls=calls)

    def _run(
        self,
        turn: RunningTurn,
        ask: Ask,
        begun: Begun,
        recalled: Recalled | None,
        *,
        text: str = "",
        calls: Sequence[CallRecord] = (),
    ) -> tuple[Turn, Coroutine[None, None, None]]:
        """
        Have the running task run *turn*, of which came *text* and *calls* before.

        Without what was *recalled* the house is asked first, and what is remembered only where it is needed.
        """
        if recalled is not None:
            turn.memories = recalled.ids
        turn.append(Step.CREATED)
        if calls:
            turn.replay_before(text, calls)
        self._ended.remove(turn.id)
        self._running[turn.id] = turn
        turn.task = asyncio.current_task()
        return turn, self._produce(turn, ask, begun, recalled)

    def _prompt(self, ask: Ask, begun: Begun, recalled: Recalled, conversation_id: str) -> Prompt:
        """Return what the model is asked; what changes from turn to turn is in its context."""
        history, content = _latest(ask, [*begun.history, *ask.before] if ask.before else begun.history)
        tools = () if ask.aside else self._tools.choose(content, ask.tools)
        settings, household = self._settings, self.household
        system, told = ask.system_prompt, ""
        examples: tuple[Utterance, ...] = ()
        if system is None or (system and system == settings.system_prompt):
            # Whoever brings instructions of their own is told no more than they say.
            now = household.now()
            # The house was asked before; a local model is offered no tools.
            can_act = bool(tools) and not self._model.reads_ahead
            system = household.instructions(settings.system_prompt, now, can_act=can_act)
            told = household.context(now, ask.language or household.language_of(ask.content))
            examples = () if can_act else EXAMPLES
        max_tokens = settings.max_tokens if ask.max_tokens is None else ask.max_tokens
        if ask.spoken and max_tokens == settings.max_tokens:
            max_tokens = min(max_tokens, settings.spoken_max_tokens)
        unclear = UNCLEAR if begun.before == HOUSE else ""
        return Prompt(
            system=system,
            history=history,
            content=content,
            temperature=settings.temperature if ask.temperature is None else ask.temperature,
            max_tokens=max_tokens,
            conversation_id=conversation_id,
            context="\n\n".join(part for part in (recalled.text, unclear, told) if part),
            examples=examples,
            older=begun.older if ask.context is None else 0,
            tools=tools,
            tool_choice="auto" if ask.tool_choice is UNSET else ask.tool_choice,
        )

    def read_ahead(self, caller: Caller, ask: Ask) -> None:
        """
        Have the model read what *ask*, whose content is not known yet, will follow, where that makes its answer sooner.

        Without a conversation that is the instructions. Returns at once.
        """
        name = ask.conversation_id or ""
        if self._model.reads_ahead and name not in self._reading_ahead and len(self._reading_ahead) < READ_AHEAD_LIMIT:
            task = asyncio.get_running_loop().create_task(self._read_ahead(caller, ask, name))
            self._reading_ahead[name] = task
            task.add_done_callback(lambda _: self._reading_ahead.pop(name, None))

    async def _read_ahead(self, caller: Caller, ask: Ask, conversation_id: str) -> None:
        begun = Begun([])
        try:
            if conversation_id:
                limit = self._model.history_limit_chars
                begun = await self._store.fetch_history(caller.user_id, conversation_id, limit)
            await self._model.read_ahead(self._prompt(ask, begun, NOTHING_RECALLED, conversation_id), caller)
        except RequestError as exc:
            logger.info("nothing was read in advance", error=exc.message)
        except Exception:
            logger.exception("nothing was read in advance through a defect")

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
        for task in self._reading_ahead.values():
            task.cancel()
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

    async def _produce(self, turn: RunningTurn, ask: Ask, begun: Begun, recalled: Recalled | None) -> None:
        finish: Finish | None = None
        error: RequestError | None = None
        turn.generating = True
        try:
            if recalled is None and self._house is not None:
                finish = await self._ask_house(self._house, turn, ask)
            if finish is None:
                if recalled is None:
                    recalled = await self._recall(ask, turn.caller, begun, turn.timer)
                    turn.memories = recalled.ids
                prompt = self._prompt(ask, begun, recalled, turn.conversation_id)
                if prompt.tools or turn.calls:
                    finish = await self._tools.run(turn, prompt, _encode_ask(ask).decode(), self._generate)
                else:
                    finish = await self._generate(turn, prompt)
            if finish is not None and not turn.text() and not finish.calls:
                raise error_without_text(finish)
        except RequestError as exc:
            error = exc.bare()
        except asyncio.CancelledError:
            if turn.stop_reason is None:
                turn.stop_reason = (Status.INCOMPLETE, "server_stopped")
        except Exception:
            logger.exception("a turn failed through a defect")
            error = RequestError("Something went wrong here.")
        # Critical section: from here on the task is not cancelled by ``stop``, so the end is stored.
        turn.generating = False
        cancellation.absorb()
        self._recorder.forget_text(turn)
        turn.timer.note_end()
        if turn.calls:
            turn.timer.receipt.tools = [ToolTime(call.name, call.state, call.elapsed_ms) for call in turn.calls]
        status, reason = outcome(finish, turn.stop_reason, error, has_text=bool(turn.text()))
        model = "" if finish is None else storable_text(finish.model)
        if turn.asked_to_act and not turn.text():
            model = turn.asked_to_act
        end = TurnEnd(status, reason, error, storable_tokens(finish, turn), model, receipt=turn.timer.receipt)
        end = msgspec.structs.replace(end, heard=turn.heard if turn.text() else None, prompt_tokens=read_tokens(finish))
        observe_answer(self._durations, turn.timer.receipt)
        try:
            stored: TurnEnd | None = msgspec.structs.replace(end, ended_at=datetime.now(UTC))
            if turn.conversation_id:
                stored = await self._recorder.store_end(turn, end)
            if stored is None:
                stored = _not_stored(turn, end, Unavailable(NOT_STORED, retry_after_s=RETRY_AFTER_S))
        except Exception:
            # Whatever went wrong, its readers wait for its end.
            logger.exception("the end of a turn was not stored through a defect")
            stored = _not_stored(turn, end, RequestError("Something went wrong here."))
        # Not before: whoever looks at the turn takes this for its stored end.
        self._running.pop(turn.id, None)
        self._shares.give_back(turn.user)
        turn.task = None
        turn.end(stored)
        if turn.conversation_id and stored.heard is None:
            self._ended.add(turn)

    async def _ask_house(self, house: House, turn: RunningTurn, ask: Ask) -> Finish | None:
        """Put what the house says into the log; returns None where the model is to be asked."""
        turn.asked_to_act = HOUSE
        reply = await house.ask(ask.content, ask.language, turn.conversation_id)
        if not reply.is_unclear:
            turn.asked_to_act = ""
        if not (speech := storable_text(reply.speech)):
            return None
        turn.append(*OPENING, speech)
        return Finish("stop", 0, HOUSE)

    async def _generate(self, turn: RunningTurn, prompt: Prompt) -> Finish | None:
        """Read the model's stream into the log; returns None when the model was cut off here."""
        finish = None
        length = len(turn.logged_text())
        limit = prompt.max_tokens * CHARS_PER_TOKEN_LIMIT + length
        look_at = min(limit, length + LOOK_CHARS)
        async with self._model.generate(prompt, turn.caller) as pieces:
            async for piece in pieces:
                if not isinstance(piece, str):
                    if isinstance(piece, Discard):
                        turn.discard_text()
                    else:
                        finish = piece
                    continue
                if "\0" in piece:
                    piece = storable_text(piece)
                if not piece:
                    continue
                if length:
                    turn.append(piece)
                else:
                    turn.timer.note_first_token()
                    turn.append(*OPENING, piece)
                length += len(piece)
                if length > look_at:
                    if length > limit:
                        return Finish("length")
                    # Rarely, and more rarely as the text grows: it is put together for this.
                    if repeats(turn.text()):
                        return Finish("repetition")
                    look_at = min(limit, length + max(LOOK_CHARS, length // 8))
                if turn.conversation_id:
                    self._recorder.note_text(turn)
        return finish


def _latest(ask: Ask, history: list[Utterance]) -> tuple[list[Utterance], str]:
    """Return what was said before and what the user said last, which is in *history* where *ask* has nothing new."""
    history = history if ask.context is None else ask.context
    if not ask.content and history and history[-1].role == "user":
        return history[:-1], history[-1].content
    return history, ask.content


_encode_ask = msgspec.json.Encoder().encode
_decode_ask = msgspec.json.Decoder(Ask).decode


def _not_stored(turn: Turn, end: TurnEnd, error: RequestError) -> TurnEnd:
    """Return what readers are told of a turn whose *end* could not be stored."""
    return msgspec.structs.replace(
        end,
        status=Status.INCOMPLETE if turn.text() else Status.FAILED,
        reason="not_stored",
        error=error,
        ended_at=datetime.now(UTC),
    )
