"""
The log of a turn, and its readers.

The producer appends; any number of readers follow, each with a cursor of its own. A reader that is behind gets the
missed pieces of text merged, and never holds up the model; a client that comes back goes on from the last position that
it saw. Events for a client that does not read stay in memory until it leaves: the server's ``send`` does not wait, so
the length of the turn is the only bound.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct

from jarvis_core.errors import RequestError
from jarvis_core.models import Caller, Heard, Status, TurnRecord
from jarvis_core.store.turns import TurnEnd
from jarvis_core.tools.calls import CallRecord
from jarvis_core.turns.receipt import TurnTimer


class Step(enum.Enum):
    """An entry of the log that is not text; each is one event on the wire."""

    CREATED = "created"
    """Stored, and about to ask the model."""
    ITEM_ADDED = "item_added"
    """The model began to speak."""
    PART_ADDED = "part_added"
    TEXT_DONE = "text_done"
    PART_DONE = "part_done"
    ITEM_DONE = "item_done"
    ENDED = "ended"
    """Always the last entry, exactly once."""


OPENING = (Step.ITEM_ADDED, Step.PART_ADDED)
CLOSING = (Step.TEXT_DONE, Step.PART_DONE, Step.ITEM_DONE)


class CallStep(enum.Enum):
    """An event about a call that is the client's to see."""

    ADDED = "added"
    ARGUMENTS = "arguments"
    ARGUMENTS_DONE = "arguments_done"
    DONE = "done"


class CallEntry(Struct, frozen=True):
    """An entry of the log about the call at *place* among those that are the client's to see; counts 1."""

    place: int
    step: CallStep
    call: CallRecord


CALLING = tuple(CallStep)
"""Of a client's own tool, whose arguments are one delta."""
ASKING = (CallStep.ADDED, CallStep.DONE)
"""Of a call that the client is asked to allow."""


class ToolNote(Struct, frozen=True):
    """Tells of a tool that runs here; no entry of the log, and not told again to a reader that comes back."""

    call_id: str
    server: str
    name: str
    state: Literal["started", "finished", "failed"]
    elapsed_ms: int | None = None


Entry = str | Step | CallEntry


class Turn:
    """
    One exchange, running or ended.

    Each entry of the log ends at a position: a ``Step`` counts 1, a text its code points. So a position means the same
    however the text was cut into pieces, and whether the turn is read from memory or from the store.
    """

    # Of the class: nearly all turns have no tools, and make none of these.
    calls: Sequence[CallRecord] = ()
    """The calls of tools, in order; those that are the client's to see are in the log, too."""
    notes: Sequence[ToolNote] = ()
    """Of tools that run here."""
    note_watchers: Sequence[Callable[[], None]] = ()
    """Told of each note."""
    went_on_at = 0
    """The position from which it went on, where it had waited for its client."""
    _opened = False
    _discarded_to = 0

    def __init__(
        self,
        caller: Caller,
        conversation_id: str,
        turn_id: str,
        user_message_id: str | None,
        timer: TurnTimer | None = None,
    ) -> None:
        self.timer = timer or TurnTimer()
        self.id = turn_id
        self.user_message_id = user_message_id
        """None where the assistant speaks without being asked."""
        self.conversation_id = conversation_id
        """Empty where it belongs to none: then it is stored nowhere."""
        self.caller = caller
        self.status = Status.RUNNING
        self.reason = ""
        self.error: RequestError | None = None
        """Why it failed; also set where text had arrived and the rest was lost to an error."""
        self.tokens = 0
        self.prompt_tokens = 0
        self.model = ""
        self.memories: list[str] = []
        self.ended_at: datetime | None = None
        self.heard_ms: int | None = None
        """How much of its sound was heard, where that was less than all; its text is what was heard."""
        self.readers = 0
        self.pieces = 0
        """How many pieces of text the model has sent."""
        self._text = ""
        """All text in the log, as far as it is joined."""
        self._answer_at = 0
        """How many code points of it came before the answer."""
        self._unjoined: list[str] = []
        self._entries: list[Entry] = []
        self._positions: list[int] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._ended = asyncio.Event()

    @classmethod
    def from_record(cls, caller: Caller, record: TurnRecord, calls: Sequence[CallRecord] = ()) -> Turn:
        """Return an ended turn as the store has it, with its *calls*."""
        turn = cls(caller, record.conversation_id, record.id, record.user_message_id)
        turn.memories, turn.heard_ms = record.memories, record.heard_ms
        turn.append(Step.CREATED)
        turn.replay(record.content, calls)
        turn.end(TurnEnd.from_record(record))
        return turn

    def replay(self, text: str, calls: Sequence[CallRecord]) -> None:
        """Append what was said before, and the *calls* between it, where they were."""
        at = 0
        for call in calls:
            if call.shown and call.text_at > at:
                self.append_text(text[at : call.text_at])
                at = call.text_at
            self.append_call(call)
        self.append_text(text[at:])

    def replay_before(self, text: str, calls: Sequence[CallRecord]) -> None:
        """Append what a turn had come to that goes on from there."""
        self.replay(text, calls)
        self.went_on_at = self._positions[-1]

    def append_text(self, text: str) -> None:
        """Append *text*, where there is any."""
        if text:
            self.append(*(() if self._opened else OPENING), text)

    def append_call(self, call: CallRecord) -> None:
        """Take *call* among the turn's; it is logged where it is the client's to see."""
        if call.shown:
            place = sum(one.shown for one in self.calls)
            self.append(*(CallEntry(place, step, call) for step in (ASKING if call.asked else CALLING)))
        self.calls = (*self.calls, call)

    def call_entries(self) -> list[CallEntry]:
        """Return the entries of the log about calls."""
        return [entry for entry in self._entries if isinstance(entry, CallEntry)]

    def add_note(self, note: ToolNote) -> None:
        """Tell whoever wants to know what a tool does."""
        self.notes = (*self.notes, note)
        for tell in self.note_watchers:
            tell()

    @property
    def message_index(self) -> int:
        """The place of the message among the turn's items: behind the calls that came before it."""
        if not self.calls:
            return 0
        shown = [call for call in self.calls if call.shown]
        return sum(call.text_at == 0 for call in shown) if self._opened else len(shown)

    @property
    def ended(self) -> bool:
        """Whether the last entry is in the log."""
        return self._ended.is_set()

    @property
    def opened(self) -> bool:
        """Whether the model began to speak."""
        return self._opened

    def text(self) -> str:
        """Return the answer up to now."""
        text = self.logged_text()
        return text[self._answer_at :] if self._answer_at else text

    def logged_text(self) -> str:
        """Return all text that was given up to now: the answer, and before it what was discarded."""
        if self._unjoined:
            self._text += "".join(self._unjoined)
            self._unjoined.clear()
        return self._text

    @property
    def answer_at(self) -> int:
        """How many code points were given before the answer, and then discarded."""
        return self._answer_at

    def discard_text(self, answer_at: int | None = None) -> None:
        """
        Have the answer begin with what is said next, or at the code point *answer_at*; for the producer.

        Readers that have not got it yet never get what came before. Positions stay as they are: who has seen some of it goes
        on behind it.
        """
        self._answer_at = len(self.logged_text()) if answer_at is None else answer_at
        self._discarded_to = self._positions[-1] if answer_at is None else 1 + len(OPENING) + answer_at

    @property
    def discarded_to(self) -> int:
        """The position up to which texts are not to be given; 0 where none was discarded."""
        return self._discarded_to if self._answer_at else 0

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
                if entry is Step.ITEM_ADDED:
                    self._opened = True
            self._entries.append(entry)
            self._positions.append(position)
        if self._waiting:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting.clear()

    def end(self, end: TurnEnd) -> None:
        """Append the last entries; for the producer, once *end* is stored: readers take it for the stored one."""
        self.correct_end(end)
        self._ended.set()
        if not self.opened and self.status is Status.COMPLETED:
            self.append(*OPENING)
        self.append(*(CLOSING if self.opened else ()), Step.ENDED)

    def correct_end(self, end: TurnEnd) -> None:
        """Show *end* from now on: readers were told before that the turn's end could not be stored."""
        self.status, self.reason, self.error = end.status, end.reason, end.error
        self.tokens, self.model, self.ended_at = end.tokens, end.model, end.ended_at
        self.prompt_tokens = end.prompt_tokens
        if end.heard is not None:
            self.heard_ms = end.heard.ms
        if end.receipt is not None:
            self.timer.receipt = end.receipt

    def step_at(self, position: int) -> Step | None:
        """Return the step that ends at *position*, None where there is none."""
        index = bisect.bisect_left(self._positions, position)
        entry = self._entries[index] if index < len(self._positions) else None
        return entry if isinstance(entry, Step) and self._positions[index] == position else None

    def closing_index(self) -> int:
        """Return the place of the first of the last entries; for a turn that has ended."""
        return len(self._entries) - 1 - (len(CLOSING) if self.opened else 0)

    async def stop(self, status: Status, reason: str, heard: Heard | None = None) -> None:
        """
        Stop the turn where it runs, and return once its end is stored; one that has ended keeps its own end.

        Of its text no more is kept than was *heard*.

        Raises ``Unavailable`` where the worker that runs it cannot be reached.
        """
        await self.wait_ended()

    async def note_unread(self) -> None:
        """Take note that the last reader has left."""

    async def wait_ended(self) -> None:
        """Wait until the turn has ended and its end is stored."""
        await self._ended.wait()


class Reader:
    """A cursor in a turn's log; any number of readers follow one turn, and none holds it up."""

    __slots__ = ("_after", "_future", "_index", "turn")

    def __init__(self, turn: Turn, after: int = 0) -> None:
        self.turn = turn
        self._after = after
        self._index = bisect.bisect_right(turn._positions, after)
        if turn.ended and turn.reason == "server_stopped" and after != turn._positions[-1]:
            # A server that was killed kept less text than this reader had seen: positions after the text are not the
            # ones that it knows, so it is told the end again, which has the text as it was kept.
            self._index = min(self._index, turn.closing_index())
        self._future: asyncio.Future[None] | None = None

    def take(self) -> list[tuple[int, Entry]]:
        """Return (position, entry) of every new entry, neighbouring texts merged; never waits."""
        turn = self.turn
        entries = turn._entries
        if self._index == len(entries) - 1 and isinstance(entry := entries[-1], str) and not turn.answer_at:
            # The next piece of text, as nearly always.
            position = turn._positions[-1]
            if position - len(entry) == self._after:
                self._index += 1
                self._after = position
                return [(position, entry)]
        discarded = turn.discarded_to
        taken: list[tuple[int, Entry]] = []
        texts: list[str] = []
        for index in range(self._index, len(entries)):
            entry = entries[index]
            position = turn._positions[index]
            if isinstance(entry, str):
                # A reader that resumes may begin in the middle of a text.
                fresh = position - self._after
                if discarded:
                    fresh = position - max(self._after, discarded)
                    if fresh <= 0:
                        self._after = max(self._after, position)
                        continue
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

    @property
    def behind(self) -> bool:
        """Whether ``take`` would return anything."""
        return self._index < len(self.turn._entries)

    async def next(self) -> list[tuple[int, Entry]]:
        """Wait for something new and take it; empty when there is nothing more to come, or after ``wake``."""
        if not self.behind and not self.turn.ended:
            self._future = asyncio.get_running_loop().create_future()
            self.turn._waiting.append(self._future)
            await self._future
        return self.take()

    def wake(self) -> None:
        """Have a waiting ``next`` return at once."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
