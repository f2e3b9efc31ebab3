"""
Produces a turn: has the house or the model answer, tools called, and the end stored before readers are told.

While text arrives it is checkpointed at most a second later (``recorder.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from jarvis_core import cancellation, log
from jarvis_core.errors import RequestError, Unavailable
from jarvis_core.memory import Recalled
from jarvis_core.metrics import Histogram
from jarvis_core.models import CHARS_PER_TOKEN_LIMIT, Discard, Finish, LanguageModel, Prompt, Status, ToolTime
from jarvis_core.store.turns import Begun, TurnEnd
from jarvis_core.tools.house import HOUSE, House
from jarvis_core.turns.ask import Ask, encode_ask
from jarvis_core.turns.ended import EndedTurns
from jarvis_core.turns.log import OPENING, Turn
from jarvis_core.turns.outcome import error_without_text, outcome
from jarvis_core.turns.prompts import Prompts
from jarvis_core.turns.receipt import observe_answer
from jarvis_core.turns.recorder import TurnRecorder, read_tokens, storable_text, storable_tokens
from jarvis_core.turns.running_turn import RunningTurn
from jarvis_core.turns.tool_loop import ToolLoop
from jarvis_core.words.repetition import repeats

logger = log.get(__name__)

RETRY_AFTER_S = 5
NOT_STORED = "The answer could not be stored: the database is not available. It is stored when it is back."
LOOK_CHARS = 200
"""An answer is looked at for repetition each time it has grown by so much."""


class Producer:
    """Produces turns; *on_stored* is called with each once its end is stored, before its readers are told."""

    def __init__(
        self,
        model: LanguageModel,
        house: House | None,
        prompts: Prompts,
        tools: ToolLoop,
        recorder: TurnRecorder,
        ended: EndedTurns,
        durations: Histogram,
        on_stored: Callable[[RunningTurn], None],
    ) -> None:
        self._model = model
        self._house = house
        self._prompts = prompts
        self._tools = tools
        self._recorder = recorder
        self._ended = ended
        self._durations = durations
        self._on_stored = on_stored

    async def produce(self, turn: RunningTurn, ask: Ask, begun: Begun, recalled: Recalled | None) -> None:
        """
        Have *turn* answered, and its end stored and told; the running task is the turn's.

        Without what was *recalled* the house is asked first, and what is remembered only where it is needed.
        """
        finish: Finish | None = None
        error: RequestError | None = None
        turn.generating = True
        try:
            if recalled is None and self._house is not None:
                finish = await self._ask_house(self._house, turn, ask)
            if finish is None:
                if recalled is None:
                    recalled = await self._prompts.recall(ask, turn.caller, begun, turn.timer)
                    turn.memories = recalled.ids
                prompt = self._prompts.build(ask, begun, recalled, turn.conversation_id)
                if prompt.tools or turn.calls:
                    finish = await self._tools.run(turn, prompt, encode_ask(ask).decode(), self._generate)
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
        self._on_stored(turn)
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


def _not_stored(turn: Turn, end: TurnEnd, error: RequestError) -> TurnEnd:
    """Return what readers are told of a turn whose *end* could not be stored."""
    return msgspec.structs.replace(
        end,
        status=Status.INCOMPLETE if turn.text() else Status.FAILED,
        reason="not_stored",
        error=error,
        ended_at=datetime.now(UTC),
    )
