"""Sends a session's response to its client, and remembers how far it has come."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from jarvis_core import log
from jarvis_core.conversation.ledger import Ledger
from jarvis_core.handlers.call import BoundedSends, ClientLeft
from jarvis_core.handlers.realtime.dialogue import Dialogue
from jarvis_core.handlers.realtime.hearing import Hearing
from jarvis_core.handlers.realtime.output import Output
from jarvis_core.handlers.realtime.socket import CLOSE_TIMEOUT_S, DEFECT, GOING_AWAY, Socket
from jarvis_core.handlers.realtime.wire import SessionBody
from jarvis_core.speech.narration import START, Cursor
from jarvis_core.turns.log import Step, Turn
from jarvis_core.turns.turns import Turns

logger = log.get(__name__)

LEDGERS_LIMIT = 16
"""Responses of a session of which it is known what was said when: clients truncate the last one, late at worst."""


class ResponseStream:
    """
    The response that a session sends, or the last one that it has sent.

    Owns the task that sends the events.
    """

    def __init__(self, turns: Turns, socket: Socket, dialogue: Dialogue, config: SessionBody, hearing: Hearing) -> None:
        self._turns = turns
        self.turn: Turn | None = None
        self.output: Output | None = None
        self.config = config
        """The settings with which the response was asked for."""
        self.active = False
        """Whether its ``response.done`` is still to come."""
        self._socket = socket
        self._dialogue = dialogue
        self._hearing = hearing
        self.ledgers: dict[str, Ledger] = {}
        """By the id of the item: what was said in the last responses as sound."""
        self._marks: list[tuple[int, Cursor]] = []
        """(seq, place) of each event that was sent."""
        self._resume_at: Cursor | None = None
        self._pump: asyncio.Task[None] | None = None
        self._end_free = asyncio.Event()
        self._end_free.set()

    def begin(self, turn: Turn, output: Output, config: SessionBody) -> None:
        """Send *turn* from its start; the response before it has been sent."""
        self.turn, self.output, self.config, self._marks = turn, output, config, []
        self._follow(output, START)

    def marks_seen(self, after: int) -> list[tuple[int, Cursor]]:
        """Return the marks of the events up to the number *after*."""
        return self._marks[: bisect.bisect_right(self._marks, after, key=lambda mark: mark[0])]

    def take_over(self, previous: ResponseStream, after: int) -> None:
        """Take the turn of another session of this worker, to ``resume`` after the event with the number *after*."""
        turn, previous.turn = previous.turn, None
        self.ledgers = previous.ledgers
        self.restore(turn, previous.output, previous.config, previous.marks_seen(after))

    def restore(
        self, turn: Turn | None, output: Output | None, config: SessionBody, marks: list[tuple[int, Cursor]]
    ) -> None:
        """Have *turn* to ``resume`` after the last of *marks*."""
        self.turn, self.output, self.config, self._marks = turn, output, config, marks
        self._resume_at = marks[-1][1] if marks else START

    def resume(self) -> None:
        """Continue sending a response that was taken over, if there is one."""
        if self._resume_at is not None and self.output is not None and self.turn is not None:
            self._follow(self.output, self._resume_at)

    @property
    def end_free(self) -> bool:
        """Whether the response's end may be told."""
        return self._end_free.is_set()

    @contextmanager
    def end_held(self) -> Iterator[None]:
        """Keep the response's end from being told meanwhile."""
        self._end_free.clear()
        try:
            yield
        finally:
            self._end_free.set()

    async def wait_sent(self) -> None:
        """Wait until the whole response was sent, or its client is lost."""
        if self._pump is not None and not self._pump.done():
            await asyncio.wait([self._pump])

    async def say_goodbye(self) -> None:
        """Send the rest of a response that has ended, then stop; waits ``CLOSE_TIMEOUT_S`` at most."""
        if self._pump is not None and self.turn is not None and self.turn.ended:
            if self.output is not None and self._socket.code == GOING_AWAY:
                # No session can resume it after this: send the rest as text, without the voice.
                self.output.silence("server_stopped")
            await asyncio.wait([self._pump], timeout=CLOSE_TIMEOUT_S)
        await self.stop()

    async def stop(self) -> None:
        """Cancel the task that sends the events."""
        if (pump := self._pump) is not None:
            pump.cancel()
            await asyncio.wait([pump])
            # Its cancellation refers to this object: without the reference both are freed at once, not by the garbage
            # collector, which runs rarely.
            if self._pump is pump:
                self._pump = None

    def _follow(self, output: Output, after: Cursor) -> None:
        self.active = True
        if output.ledger is not None:
            self.ledgers[output.turn.id] = output.ledger
            while len(self.ledgers) > LEDGERS_LIMIT:
                del self.ledgers[next(iter(self.ledgers))]
        self._hearing.conversation.begin_answer(0.0 if output.ledger is None else output.ledger.sent_ms)
        self._pump = asyncio.get_running_loop().create_task(self._send_events(output, after))

    async def _send_events(self, output: Output, after: Cursor) -> None:
        """Send the events of a response after the place *after*, to its end."""
        log.bind_turn(output.turn.id, output.turn.conversation_id)
        socket = self._socket
        try:
            async with BoundedSends() as sends, aclosing(output.events(after)) as events:
                async for event in events:
                    if event.step is Step.ENDED:
                        await self._end_free.wait()
                        await self._turns.store_receipt(output.turn)
                    if not socket.is_free:
                        await sends.wait(socket.free())
                    socket.seq += 1
                    self._marks.append((socket.seq, event.place))
                    if event.step is Step.ITEM_ADDED:
                        self._add_item(output)
                    elif event.item_id is not None:
                        self._dialogue.last_item_id = event.item_id
                    elif event.step is Step.ENDED:
                        # Before it is sent: a client that has seen it may ask for the next response.
                        self._end(output.turn)
                    if event.sound_ms and output.ledger is not None:
                        self._turns.note_first_sound(output.turn)
                        output.ledger.send(event.sound_ms)
                        self._hearing.conversation.send_sound(event.sound_ms, self._hearing.time_ms)
                    socket.begin(event.write(socket.seq).decode())
                await sends.wait(socket.free())
            if self.active:
                self._end(output.turn)
        except ClientLeft:
            socket.lose()
        except Exception:
            logger.exception("the events of a response failed through a defect")
            socket.close(DEFECT)

    def _add_item(self, output: Output) -> None:
        """Make the assistant's item the conversation's last, unless a connection that was lost has told of it already."""
        if output.previous_item_id is None and self._dialogue.last_item_id != output.turn.id:
            output.previous_item_id = self._dialogue.note_answer(output.turn.id)

    def _end(self, turn: Turn) -> None:
        self.active = False
        self._hearing.conversation.end_answer()
        if not (turn.text() or turn.calls):
            # The next response.create answers the message again, as this turn gave no text.
            self._dialogue.ask_again()
