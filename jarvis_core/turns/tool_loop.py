"""
The calls of tools in a turn: the model is asked, what it calls is done, and it is asked again with what came of it.

Each call is stored before it is made, and its output before the model sees it. A call of which no output is stored, because
its process died or its turn was cancelled, is never made again: its outcome is unknown. A call of the client's, or one
that somebody has to allow, ends the turn for now: it goes on once that was done (``GoingOn``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from jarvis_core.errors import RequestError, Unavailable
from jarvis_core.models import Finish, Prompt, Tool, ToolCall, Utterance, new_id
from jarvis_core.store.tool_calls import CallStore
from jarvis_core.tasks import start_in
from jarvis_core.tools.budget import Budget
from jarvis_core.tools.calls import CallRecord, CallState
from jarvis_core.tools.runner import ToolRunner
from jarvis_core.tools.toolbox import Toolbox
from jarvis_core.turns.log import ToolNote, Turn
from jarvis_core.turns.running_turn import RunningTurn

NOBODY = "(none)"
"""The server of a call of what is no tool, or that was not made."""
UNKNOWN = "Outcome unknown: it may have been done, and its answer was lost."
ARGUMENTS_LIMIT_CHARS = 100_000
GAVE_UP = "I could not finish: too many calls of tools were needed. Je n'ai pas pu terminer : il aurait fallu trop d'appels d'outils."
LIMIT_REASON = "tools_limit"

Generate = Callable[[RunningTurn, Prompt], Awaitable[Finish | None]]


class ToolLoop:
    """
    Runs the turns that have tools.

    Owns the tasks that store what came of calls; ``close`` waits for them.
    """

    def __init__(self, store: CallStore, toolbox: Toolbox) -> None:
        self.toolbox = toolbox
        self.runner = ToolRunner(toolbox)
        self._store = store
        self._storing: set[asyncio.Task[None]] = set()

    def choose(self, question: str, own: Sequence[Tool] | UnsetType) -> Sequence[Tool]:
        """Return the tools of a turn."""
        if own is UNSET and not self.toolbox.servers:
            return ()
        return self.toolbox.choose(question, () if own is UNSET else own)

    async def close(self) -> None:
        """Wait until what came of calls is stored; the store's deadlines bound that."""
        if self._storing:
            await asyncio.wait(self._storing)

    async def run(self, turn: RunningTurn, prompt: Prompt, request: str, generate: Generate) -> Finish | None:
        """
        Produce *turn*, and return how it ended, as *generate* does; with calls where it waits for its client.

        *request* is kept for then.
        """
        tools = {tool.name: tool for tool in prompt.tools}
        made = [call for call in turn.calls if call.server != NOBODY]
        budget = Budget(
            self.toolbox.settings,
            [(call.name, call.arguments) for call in made],
            sum(call.elapsed_ms or 0 for call in made) / 1_000,
        )
        await self._take_up(turn, tools, budget)
        tokens: int | None = None
        last = Finish("stop", 0)
        while True:
            waiting = tuple(
                ToolCall(call.call_id, call.name, call.arguments)
                for call in turn.calls
                if call.state in ("waiting", "asked")
            )
            if waiting:
                asked = any(call.state == "asked" for call in turn.calls)
                return Finish("approval_required" if asked else "tool_calls", tokens, last.model, waiting)
            text = turn.text()
            if turn.calls and text and not text[-1].isspace():
                turn.append_text("\n\n")
            choice = "none" if budget.over else "auto" if turn.calls else prompt.tool_choice
            finish = await generate(
                turn, msgspec.structs.replace(prompt, followed=followed_by(turn), tool_choice=choice)
            )
            if finish is None:
                return None
            if finish.tokens is not None:
                tokens = (tokens or 0) + finish.tokens
            last = msgspec.structs.replace(finish, tokens=tokens, calls=())
            if not finish.calls:
                return last
            if budget.over:
                if len(turn.text().strip()) <= len(text.strip()):
                    turn.append_text(GAVE_UP)
                return msgspec.structs.replace(last, reason=LIMIT_REASON)
            await self._take(turn, finish.calls, tools, budget, request)

    async def _take_up(self, turn: RunningTurn, tools: dict[str, Tool], budget: Budget) -> None:
        """Make the calls that were allowed; of others that were begun it is not known what came of them."""
        begun = [call for call in turn.calls if call.state == "begun" and call.output is None]
        for call in begun:
            if call.call_id not in turn.allowed:
                await self._end(turn, call, "unknown", UNKNOWN)
        await self._make(turn, [call for call in begun if call.call_id in turn.allowed], tools, budget)

    async def _take(
        self, turn: Turn, calls: Sequence[ToolCall], tools: dict[str, Tool], budget: Budget, request: str
    ) -> None:
        """Store the *calls* of one round, and make those that are made here."""
        number = turn.calls[-1].round + 1 if turn.calls else 0
        text_at = len(turn.logged_text())
        taken = {call.call_id for call in turn.calls}
        records: list[CallRecord] = []
        refusals: dict[str, str] = {}
        for call in calls:
            tool = tools.get(call.name)
            refusal = budget.refuse(call.name, call.arguments)
            if refusal is None and len(call.arguments) > ARGUMENTS_LIMIT_CHARS:
                refusal = "Not called: the arguments are too long."
            if refusal is None:
                refusal = self.runner.refuse(call.name, call.arguments, tool)
            call_id = call.id if call.id not in taken else "call_" + new_id().replace("-", "")
            taken.add(call_id)
            state: CallState = "begun"
            if refusal is not None or tool is None:
                refusals[call_id] = refusal or ""
            elif not tool.server:
                state = "waiting"
            elif tool.needs_approval:
                state = "asked"
            server = NOBODY if refusal is not None or tool is None else tool.server
            arguments = storable(call.arguments)[:ARGUMENTS_LIMIT_CHARS]
            name = storable(call.name)[:64]
            records.append(
                CallRecord(new_id(), call_id, name, arguments, server, number, text_at, state == "asked", state)
            )
        waits = any(one.state in ("waiting", "asked") for one in records)
        if not await self._store.add(turn.id, records, request if waits else None):
            raise Unavailable("This response is not this worker's any more.")
        for record in records:
            turn.append_call(record)
        for record in records:
            if record.call_id in refusals:
                await self._end(turn, record, "failed", refusals[record.call_id])
        await self._make(turn, [one for one in records if one.state == "begun"], tools, budget)

    async def _make(self, turn: Turn, calls: Sequence[CallRecord], tools: dict[str, Tool], budget: Budget) -> None:
        """Make *calls* side by side; a cancelled turn leaves none of them running."""
        if not calls:
            return
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._make_one(turn, call, tools.get(call.name), budget.left_s)) for call in calls]
        try:
            done, _ = await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            budget.spend(time.monotonic() - began_s)
        for task in done:
            if (error := task.exception()) is not None:
                raise error

    async def _make_one(self, turn: Turn, call: CallRecord, tool: Tool | None, timeout_s: float) -> None:
        began_s = time.monotonic()
        turn.add_note(ToolNote(call.call_id, call.server, call.name, "started"))
        if tool is None or tool.server != call.server:
            await self._end(turn, call, "failed", f"There is no tool {call.name!r} any more.")
            return
        result = await self.runner.run(tool, call.arguments, turn.caller, timeout_s)
        call.elapsed_ms = round(1_000 * (time.monotonic() - began_s))
        # What was done is stored even where nobody wants to know it any more.
        await asyncio.shield(start_in(self._storing, self._end(turn, call, result.state, result.text)))

    async def _end(self, turn: Turn, call: CallRecord, state: CallState, output: str) -> None:
        call.output, call.state = output, state
        try:
            await self._store.end(turn.id, call)
        except RequestError:
            # Whoever takes this turn up does not know of it, and neither may the model.
            call.output, call.state = None, "begun"
            raise
        finally:
            ended: Literal["finished", "failed"] = "finished" if state == "finished" else "failed"
            turn.add_note(ToolNote(call.call_id, call.server, call.name, ended, call.elapsed_ms))


def followed_by(turn: Turn) -> list[Utterance]:
    """Return what came of a turn's question until now, for the model: what it said, its calls, and what came of them."""
    followed: list[Utterance] = []
    text = turn.logged_text()
    said = 0
    rounds: dict[int, list[CallRecord]] = {}
    for call in turn.calls:
        rounds.setdefault(call.round, []).append(call)
    for calls in rounds.values():
        before, said = text[said : calls[0].text_at], max(said, calls[0].text_at)
        asked = tuple(ToolCall(call.call_id, call.name, call.arguments) for call in calls)
        followed.append(Utterance("assistant", before.strip(), asked))
        followed += [
            Utterance("tool", call.output or "(nothing)", call_id=call.call_id)
            for call in calls
            if call.output is not None
        ]
    return followed


def storable(text: str) -> str:
    """Return *text* as PostgreSQL can store it."""
    return text.replace("\0", "").encode(errors="replace").decode()
