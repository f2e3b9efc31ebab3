"""
A turn: one exchange between a user and the assistant, as a log with readers.

One producer reads the model's stream and appends to the log; any number of readers follow it, each with a cursor of its
own. A reader that is behind gets what it missed with the pieces of text merged, so a slow client neither holds up the
model nor fills memory; a client that comes back goes on from the last entry that it saw.

The user's message is stored before the model is asked. While text arrives it is checkpointed at most a second later. How
a turn ended is stored before its readers are told. Every way to stop a turn is ``Turns.stop``: it closes the model's
connection, stores what was said, and then returns.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
from collections import OrderedDict
from datetime import UTC, datetime

from msgspec import Struct

from jarvis_core import log
from jarvis_core.errors import BadGateway, RequestError, Unavailable
from jarvis_core.models import Caller, Finish, LanguageModel, Prompt, Status, TurnRecord, new_id
from jarvis_core.settings import Llm
from jarvis_core.store.turns import TurnStore

logger = log.get(__name__)

CHECKPOINT_INTERVAL_S = 1.0
KEPT_TURNS = 1_000
"""Ended turns kept in memory for readers that come back; older ones are answered from the store."""
KEPT_TEXT_CHARS = 8_000_000
"""What the texts of those may add up to."""
CHARS_PER_TOKEN_LIMIT = 32
"""A model that sends more code points than this for each token that it was allowed is cut off."""
STORE_RETRY_DELAYS_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between attempts to store an end; the last repeats for as long as the process lives."""
PATIENT_ATTEMPTS = 3
"""After so many failed attempts readers are told that the end could not be stored yet."""
TITLE_CHARS = 80


class Step(enum.Enum):
    """What happened, besides text; each is one event on the wire."""

    CREATED = "created"
    """Stored, and about to ask the model."""
    ITEM_ADDED = "item_added"
    """The model began to speak."""
    PART_ADDED = "part_added"
    TEXT_DONE = "text_done"
    PART_DONE = "part_done"
    ITEM_DONE = "item_done"
    ENDED = "ended"
    """Always the last entry, and there is exactly one."""


OPENING = (Step.ITEM_ADDED, Step.PART_ADDED)
CLOSING = (Step.TEXT_DONE, Step.PART_DONE, Step.ITEM_DONE)

Entry = str | Step


class Ask(Struct, frozen=True):
    """What a user wants said."""

    content: str
    conversation_id: str | None = None
    """None makes a conversation."""
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    use_memory: bool = True


class Turn:
    """
    One exchange, running or ended.

    Each entry of the log ends at a position: a ``Step`` counts 1, a text its code points. So a position means the same
    however the text was cut into pieces, and whether the turn is read from memory or from the store.
    """

    def __init__(self, caller: Caller, conversation_id: str, turn_id: str, user_message_id: str) -> None:
        self.id = turn_id
        self.user_message_id = user_message_id
        self.conversation_id = conversation_id
        self.caller = caller
        self.status = Status.RUNNING
        self.reason = ""
        self.error: RequestError | None = None
        """Why it failed; also set where text had arrived and the rest was lost to an error."""
        self.tokens = 0
        self.model = ""
        self.memories: list[str] = []
        self.ended_at: datetime | None = None
        self.readers = 0
        self.keep_running = False
        """Whether it goes on without readers."""
        self.pieces = 0
        """How many pieces of text the model has sent."""
        self._text = ""
        self._unjoined: list[str] = []
        self._entries: list[Entry] = []
        self._positions: list[int] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._ended = asyncio.Event()

    @classmethod
    def from_record(cls, caller: Caller, record: TurnRecord) -> Turn:
        """Return an ended turn as the store has it."""
        turn = cls(caller, record.conversation_id, record.id, record.user_message_id)
        turn.status, turn.reason = record.status, record.reason or ""
        turn.tokens, turn.model, turn.memories = record.tokens, record.model, record.memories
        turn.ended_at = record.ended_at
        turn.append(Step.CREATED)
        if record.content:
            turn.append(*OPENING, record.content)
        if record.status is Status.FAILED:
            turn.error = BadGateway(record.error or "The turn failed.")
        turn.end()
        return turn

    @property
    def ended(self) -> bool:
        """Whether the last entry is in the log."""
        return self._ended.is_set()

    @property
    def opened(self) -> bool:
        """Whether the model began to speak."""
        return len(self._entries) > 1 and self._entries[1] is Step.ITEM_ADDED

    def text(self) -> str:
        """Return all text up to now."""
        if self._unjoined:
            self._text += "".join(self._unjoined)
            self._unjoined.clear()
        return self._text

    def append(self, *entries: Entry) -> None:
        """Add to the log and wake the readers; for the producer."""
        position = self._positions[-1] if self._positions else 0
        for entry in entries:
            if isinstance(entry, str):
                position += len(entry)
                self._unjoined.append(entry)
                self.pieces += 1
            else:
                position += 1
            self._entries.append(entry)
            self._positions.append(position)
        if self._waiting:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting.clear()

    def end(self) -> None:
        """Add the last entries; for the producer, once the end is stored."""
        self._ended.set()
        if not self.opened and self.status is Status.COMPLETED:
            self.append(*OPENING)
        self.append(*(CLOSING if self.opened else ()), Step.ENDED)

    async def wait_ended(self) -> None:
        """Wait until the turn has ended and its end is stored."""
        await self._ended.wait()


class Reader:
    """A cursor in a turn's log; as many as you like follow one turn, and none holds it up."""

    __slots__ = ("_after", "_future", "_index", "turn")

    def __init__(self, turn: Turn, after: int = 0) -> None:
        self.turn = turn
        self._after = after
        self._index = bisect.bisect_right(turn._positions, after)
        self._future: asyncio.Future[None] | None = None

    def take(self) -> list[tuple[int, Entry]]:
        """Return (position, entry) of all that is new, neighbouring texts merged into one; never waits."""
        turn = self.turn
        entries = turn._entries
        taken: list[tuple[int, Entry]] = []
        texts: list[str] = []
        for index in range(self._index, len(entries)):
            entry = entries[index]
            position = turn._positions[index]
            if isinstance(entry, str):
                # A reader that resumes may begin in the middle of a text.
                fresh = position - self._after
                texts.append(entry if fresh >= len(entry) else entry[len(entry) - fresh :])
            else:
                if texts:
                    taken.append((self._after, "".join(texts)))
                    texts.clear()
                taken.append((position, entry))
            self._after = position
        if texts:
            taken.append((self._after, texts[0] if len(texts) == 1 else "".join(texts)))
        self._index = len(entries)
        return taken

    async def next(self) -> list[tuple[int, Entry]]:
        """Wait for something new and take it; empty when there is nothing more to come, or after ``wake``."""
        if self._index >= len(self.turn._entries) and not self.turn.ended:
            self._future = asyncio.get_running_loop().create_future()
            self.turn._waiting.append(self._future)
            await self._future
        return self.take()

    def wake(self) -> None:
        """Let a waiting ``next`` return with what there is."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class _Production:
    """The producer's side of a running turn: its task, and why it was told to stop."""

    __slots__ = ("checkpoint", "generating", "stop_reason", "task", "timer")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.checkpoint: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.generating = True
        self.stop_reason: tuple[Status, str] | None = None


class Turns:
    """
    Starts, follows and stops turns.

    Owns a task for each running turn; ``close`` ends them all.
    """

    def __init__(self, store: TurnStore, model: LanguageModel, settings: Llm) -> None:
        self._store = store
        self._model = model
        self._settings = settings
        self._productions: dict[str, _Production] = {}
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        """Running turns, and ended ones for a while."""
        self._kept_chars = 0
        self._late_ends: set[asyncio.Task[None]] = set()

    async def find(self, caller: Caller, turn_id: str) -> Turn:
        """Return a turn of *caller*, running or ended, from memory or the store; raises ``NotFound``."""
        turn = self.get(caller.user_id, turn_id)
        return turn if turn is not None else Turn.from_record(caller, await self._store.fetch(caller.user_id, turn_id))

    async def start(self, ask: Ask, caller: Caller) -> Turn:
        """
        Store the user's message, then ask the model; returns once the message is stored.

        Raises ``NotFound`` for an unknown conversation, ``Conflict`` while another turn runs in it, ``Unavailable``
        without a database. What goes wrong later is the turn's ``error``.
        """
        turn = Turn(caller, ask.conversation_id or new_id(), new_id(), new_id())
        begun = await self._store.begin(
            owner=caller.user_id,
            conversation_id=turn.conversation_id,
            title=title_from(ask.content) if ask.conversation_id is None else None,
            turn_id=turn.id,
            user_message_id=turn.user_message_id,
            content=ask.content,
            history_chars=self._model.history_limit_chars,
        )
        prompt = Prompt(
            system=self._settings.system_prompt if ask.system_prompt is None else ask.system_prompt,
            history=begun.history,
            content=ask.content,
            temperature=self._settings.temperature if ask.temperature is None else ask.temperature,
            max_tokens=self._settings.max_tokens if ask.max_tokens is None else ask.max_tokens,
        )
        turn.append(Step.CREATED)
        self._turns[turn.id] = turn
        production = self._productions[turn.id] = _Production()
        production.task = asyncio.get_running_loop().create_task(self._produce(turn, production, prompt))
        return turn

    def get(self, owner: str, turn_id: str) -> Turn | None:
        """Return a turn that runs here or ended here not long ago, if it is *owner*'s."""
        turn = self._turns.get(turn_id)
        return turn if turn is not None and turn.caller.user_id == owner else None

    def running_in(self, owner: str, conversation_id: str) -> Turn | None:
        """Return the turn that runs here in a conversation of *owner*, if any."""
        for turn_id in self._productions:
            turn = self._turns[turn_id]
            if turn.conversation_id == conversation_id and turn.caller.user_id == owner:
                return turn
        return None

    @property
    def running(self) -> int:
        """How many turns run here."""
        return len(self._productions)

    def attach(self, turn: Turn) -> None:
        """Count a reader in; each has to ``detach``."""
        turn.readers += 1

    async def detach(self, turn: Turn) -> None:
        """Count a reader out; with the last one a turn that nobody waits for is cancelled."""
        turn.readers -= 1
        if turn.readers == 0 and not turn.ended and not turn.keep_running:
            await self.stop(turn, Status.CANCELLED, "client_left")

    async def stop(self, turn: Turn, status: Status = Status.CANCELLED, reason: str = "cancelled") -> None:
        """
        Stop *turn*; returns when the model's connection is closed and the end is stored.

        Whoever asks first decides the reason; a turn that has already got its last word keeps its own end.
        """
        production = self._productions.get(turn.id)
        if production is not None and production.task is not None and production.stop_reason is None:
            production.stop_reason = (status, reason)
            if production.generating:
                production.task.cancel()
        await turn.wait_ended()

    async def close(self, *, drain_timeout_s: float) -> None:
        """
        End all running turns: they get *drain_timeout_s* to end by themselves, then are stored as ``incomplete``.

        Also waits for ends that could not be stored yet, at most as long again.
        """
        tasks = [production.task for production in self._productions.values() if production.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        running = [self._turns[turn_id] for turn_id in self._productions]
        for turn in running:
            await self.stop(turn, Status.INCOMPLETE, "server_stopped")
        if self._late_ends:
            _, late = await asyncio.wait(self._late_ends, timeout=drain_timeout_s)
            for task in late:
                task.cancel()

    async def _produce(self, turn: Turn, production: _Production, prompt: Prompt) -> None:
        finish: Finish | None = None
        try:
            finish = await self._generate(turn, production, prompt)
        except RequestError as exc:
            turn.error = exc
        except asyncio.CancelledError:
            if production.stop_reason is None:
                production.stop_reason = (Status.INCOMPLETE, "server_stopped")
        except Exception:
            logger.exception("a turn failed through a defect", response_id=turn.id)
            turn.error = RequestError("Something went wrong here.")
        # Critical section: from here on the task is not cancelled by ``stop``, so the end is stored.
        production.generating = False
        if production.timer is not None:
            production.timer.cancel()
        if production.checkpoint is not None:
            await asyncio.wait([production.checkpoint])
        text = turn.text()
        turn.status, turn.reason = _outcome(finish, production.stop_reason, turn.error, has_text=bool(text))
        if finish is not None:
            turn.model = finish.model or turn.model
        turn.tokens = _tokens(finish, turn)
        await self._store_end(turn)

    async def _generate(self, turn: Turn, production: _Production, prompt: Prompt) -> Finish | None:
        """Read the model's stream into the log; returns None when the model was cut off here."""
        finish = None
        length = 0
        limit = prompt.max_tokens * CHARS_PER_TOKEN_LIMIT
        loop = asyncio.get_running_loop()
        async with self._model.generate(prompt, turn.caller) as pieces:
            async for piece in pieces:
                if isinstance(piece, Finish):
                    finish = piece
                    continue
                if length:
                    turn.append(piece)
                else:
                    turn.append(*OPENING, piece)
                length += len(piece)
                if length > limit:
                    return Finish("length")
                if production.timer is None:
                    production.timer = loop.call_later(CHECKPOINT_INTERVAL_S, self._checkpoint, turn, production)
        return finish

    def _checkpoint(self, turn: Turn, production: _Production) -> None:
        """Store the text so far, one attempt at a time; the next piece of text arms the timer again."""
        production.timer = None
        if production.generating and (production.checkpoint is None or production.checkpoint.done()):
            production.checkpoint = asyncio.get_running_loop().create_task(self._store_checkpoint(turn))

    async def _store_checkpoint(self, turn: Turn) -> None:
        try:
            await self._store.checkpoint(turn.id, turn.text(), turn.model)
        except RequestError as exc:
            logger.warning("a checkpoint was not stored", response_id=turn.id, error=str(exc))

    async def _store_end(self, turn: Turn) -> None:
        """Store the end and tell the readers; a database that is away is tried again in the background."""
        for attempt in range(PATIENT_ATTEMPTS):
            if attempt:
                await asyncio.sleep(STORE_RETRY_DELAYS_S[attempt - 1])
            if await self._try_store_end(turn):
                self._tell_end(turn)
                return
        task = asyncio.get_running_loop().create_task(self._store_end_later(turn, turn.status, turn.reason))
        self._late_ends.add(task)
        task.add_done_callback(self._late_ends.discard)
        turn.error = Unavailable(
            "The answer could not be stored: the database is not available. It is stored when it is back.",
            retry_after_s=5,
        )
        turn.status, turn.reason = (Status.INCOMPLETE if turn.text() else Status.FAILED), "not_stored"
        self._tell_end(turn)

    async def _store_end_later(self, turn: Turn, status: Status, reason: str) -> None:
        attempt = PATIENT_ATTEMPTS - 1
        while True:
            await asyncio.sleep(STORE_RETRY_DELAYS_S[min(attempt, len(STORE_RETRY_DELAYS_S) - 1)])
            attempt += 1
            if await self._try_store_end(turn, status, reason):
                logger.info("an end was stored late", response_id=turn.id)
                return

    async def _try_store_end(self, turn: Turn, status: Status | None = None, reason: str | None = None) -> bool:
        try:
            ended_at = await self._store.end(
                turn.id,
                status=status or turn.status,
                reason=reason or turn.reason,
                content=turn.text(),
                tokens=turn.tokens,
                model=turn.model,
                error=turn.error.message if turn.error is not None else None,
            )
        except RequestError as exc:
            logger.warning("the end of a turn was not stored", response_id=turn.id, error=str(exc))
            return False
        turn.ended_at = ended_at or datetime.now(UTC)
        return True

    def _tell_end(self, turn: Turn) -> None:
        self._productions.pop(turn.id, None)
        turn.ended_at = turn.ended_at or datetime.now(UTC)
        turn.end()
        self._turns.move_to_end(turn.id)
        self._kept_chars += len(turn.text())
        ended = [turn_id for turn_id in self._turns if turn_id not in self._productions] if self._over() else []
        for turn_id in ended:
            if not self._over():
                break
            self._kept_chars -= len(self._turns.pop(turn_id).text())

    def _over(self) -> bool:
        return len(self._turns) - len(self._productions) > KEPT_TURNS or self._kept_chars > KEPT_TEXT_CHARS


def _outcome(
    finish: Finish | None, stopped: tuple[Status, str] | None, error: RequestError | None, *, has_text: bool
) -> tuple[Status, str]:
    """Return how a turn ended, and why."""
    if error is not None:
        return (Status.INCOMPLETE if has_text else Status.FAILED), error.code
    if finish is not None and finish.reason in ("stop", "length"):
        return (Status.COMPLETED, "stop") if finish.reason == "stop" else (Status.INCOMPLETE, "max_tokens")
    if stopped is not None:
        return stopped
    return Status.INCOMPLETE, {"stalled": "stalled", "deadline": "timeout"}.get(
        finish.reason if finish else "", "stream_lost"
    )


def _tokens(finish: Finish | None, turn: Turn) -> int:
    """Return how many tokens were generated: as the neighbour counted, else about one for each piece of its stream."""
    if finish is not None and finish.tokens is not None:
        return finish.tokens
    return turn.pieces if turn.pieces > 1 else -(-len(turn.text().encode()) // 4)


def title_from(content: str) -> str:
    """Return a conversation's title: the start of its first message, on one line, cut between words."""
    line = " ".join(content[: 4 * TITLE_CHARS].split())
    if len(line) <= TITLE_CHARS:
        return line or "…"
    cut = line[: TITLE_CHARS - 1]
    return (cut.rpartition(" ")[0] or cut) + "…"
