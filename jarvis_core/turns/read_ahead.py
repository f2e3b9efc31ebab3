"""Has a model that reads its prompt slowly read in advance what an answer will follow."""

from __future__ import annotations

import asyncio

from jarvis_core import log
from jarvis_core.errors import RequestError
from jarvis_core.memory import NOTHING_RECALLED
from jarvis_core.models import Caller, LanguageModel
from jarvis_core.store.turns import Begun, TurnStore
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.prompts import Prompts

logger = log.get(__name__)

READ_AHEAD_LIMIT = 8
"""Conversations that the model is to read in advance at a time; it reads one after another."""


class ReadAhead:
    """Owns a task for each conversation that is read."""

    def __init__(self, model: LanguageModel, store: TurnStore, prompts: Prompts) -> None:
        self._model = model
        self._store = store
        self._prompts = prompts
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By conversation."""

    def close(self) -> None:
        """Cancel what is being read."""
        for task in self._tasks.values():
            task.cancel()

    def start(self, caller: Caller, ask: Ask) -> None:
        """
        Have the model read what *ask*, whose content is not known yet, will follow, where that makes its answer sooner.

        Without a conversation that is the instructions. Returns at once.
        """
        name = ask.conversation_id or ""
        if self._model.reads_ahead and name not in self._tasks and len(self._tasks) < READ_AHEAD_LIMIT:
            task = asyncio.get_running_loop().create_task(self._read(caller, ask, name))
            self._tasks[name] = task
            task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _read(self, caller: Caller, ask: Ask, conversation_id: str) -> None:
        begun = Begun([])
        try:
            if conversation_id:
                limit = self._model.history_limit_chars
                begun = await self._store.fetch_history(caller.user_id, conversation_id, limit)
            await self._model.read_ahead(self._prompts.build(ask, begun, NOTHING_RECALLED, conversation_id), caller)
        except RequestError as exc:
            logger.info("nothing was read in advance", error=exc.message)
        except Exception:
            logger.exception("nothing was read in advance through a defect")
