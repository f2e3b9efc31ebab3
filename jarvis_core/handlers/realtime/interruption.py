"""Stops answers that are interrupted, and keeps of them what was heard."""

from __future__ import annotations

from jarvis_core.errors import NotFound
from jarvis_core.handlers.realtime.config import SessionSettings
from jarvis_core.handlers.realtime.hearing import Hearing
from jarvis_core.handlers.realtime.refusals import NotTruncatable
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.wire import ItemTruncate, TruncatedEvent
from jarvis_core.models import Caller, Heard
from jarvis_core.turns.turns import Turns


class Interrupter:
    """Interrupts the answers of one session."""

    def __init__(
        self,
        turns: Turns,
        caller: Caller,
        socket: Socket,
        settings: SessionSettings,
        response: ResponseStream,
        hearing: Hearing,
    ) -> None:
        self._turns = turns
        self._caller = caller
        self._socket = socket
        self._settings = settings
        self._response = response
        self._hearing = hearing

    async def interrupt(self, reason: str) -> None:
        """Stop the answer that is given or still played, and its voice; *reason* is as a turn's."""
        response, conversation, time_ms = self._response, self._hearing.conversation, self._hearing.time_ms
        output = response.output
        if output is None or not conversation.assistant_heard(time_ms):
            return
        heard_ms = conversation.heard_ms(time_ms)
        conversation.silence(time_ms)
        turn, ledger = output.turn, output.ledger
        heard = None if ledger is None else Heard(ledger.heard_chars(heard_ms), round(heard_ms))
        # Silent at once. Its end is told later: whoever asks then what was said is told what was heard.
        with response.end_held():
            output.silence(reason)
            if not turn.ended:
                # What was heard is stored with the end: nobody finds more of it, whatever happens in between.
                await self._turns.stop(turn, reason=reason, heard=heard)
            if heard is not None and turn.heard_ms is None and turn.text():
                await self._turns.truncate(self._caller, turn.id, heard.chars, heard_ms=heard.ms)
        # A client that interrupts asks for the next response at once: this one must be over by then.
        await response.wait_sent()
        if heard is not None and turn.text() and self._settings.body.audio.output.truncate == "server":
            await self._tell_truncated(turn.id, 0, heard.ms)

    async def truncate(self, event: ItemTruncate) -> None:
        """
        Keep of an answer what the client says was heard; a response that is still active ends by it.

        Raises ``NotTruncatable`` for what is no answer of the assistant's.
        """
        response, item_id = self._response, event.item_id
        if response.active and response.turn is not None and response.turn.id == item_id:
            await self.interrupt("cancelled")
        ledger = response.ledgers.get(item_id)
        try:
            if ledger is not None or not event.audio_end_ms:
                heard_ms = 0 if ledger is None else min(event.audio_end_ms, round(ledger.sent_ms))
                chars = 0 if ledger is None else ledger.heard_chars(heard_ms)
                await self._turns.truncate(self._caller, item_id, chars, heard_ms=heard_ms, told=True)
            else:
                # Nothing is known of its sound: it stays as it is.
                await self._turns.find(self._caller, item_id)
        except NotFound as exc:
            raise NotTruncatable(item_id) from exc
        await self._tell_truncated(item_id, event.content_index, event.audio_end_ms)

    async def _tell_truncated(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        await self._socket.emit(lambda seq: TruncatedEvent(f"event_{seq}", seq, item_id, content_index, audio_end_ms))
