"""What the model is asked: instructions, what is remembered, what was said before, and what it may call."""

from __future__ import annotations

import time

from msgspec import UNSET

from jarvis_core.memory import NOTHING_RECALLED, Memories, Recalled
from jarvis_core.models import Caller, LanguageModel, Prompt, Utterance
from jarvis_core.settings import Llm
from jarvis_core.store.turns import Begun
from jarvis_core.tools.house import HOUSE, UNCLEAR
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.household import EXAMPLES, Household
from jarvis_core.turns.receipt import TurnTimer, elapsed_ms
from jarvis_core.turns.tool_loop import ToolLoop

CONTEXT_RESERVE_CHARS = 200
"""Room in a prompt for what is neither said nor remembered."""


class Prompts:
    """Builds the prompts of turns."""

    def __init__(
        self, model: LanguageModel, settings: Llm, household: Household, memories: Memories | None, tools: ToolLoop
    ) -> None:
        self._model = model
        self._settings = settings
        self._household = household
        self._memories = memories
        self._tools = tools

    async def recall(self, ask: Ask, caller: Caller, begun: Begun, timer: TurnTimer) -> Recalled:
        """Return what is remembered that belongs to the question of *ask*; takes the time for the receipt."""
        question = ask.latest(begun.history)[1] if ask.context is None else ""
        if self._memories is None or not ask.use_memory or not begun.remembers or not question:
            return NOTHING_RECALLED
        room_chars = self._model.history_limit_chars - len(question) - CONTEXT_RESERVE_CHARS
        began_s = time.perf_counter()
        recalled = await self._memories.recall(caller, question, room_chars=room_chars)
        timer.receipt.recall_ms = elapsed_ms(began_s)
        return recalled

    def build(self, ask: Ask, begun: Begun, recalled: Recalled, conversation_id: str) -> Prompt:
        """Return what the model is asked; what changes from turn to turn is in its context."""
        history, content = ask.latest([*begun.history, *ask.before] if ask.before else begun.history)
        tools = () if ask.aside else self._tools.choose(content, ask.tools)
        settings, household = self._settings, self._household
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
