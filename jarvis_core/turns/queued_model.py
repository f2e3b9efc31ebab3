"""The language model behind a queue, in which each user has a turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from jarvis_core.fair_queue import FairQueue
from jarvis_core.models import Caller, Discard, Finish, LanguageModel, Prompt

RETRY_AFTER_S = 5

Pieces = AsyncIterator[str | Discard | Finish]


class QueuedModel:
    """
    A ``LanguageModel`` that is asked for as many answers at a time as *queue* has places.

    Entering an answer waits at most *timeout_s* seconds for a place, and then as the model does; it also raises
    ``Overloaded`` or ``RateLimited`` where there is none.
    """

    def __init__(self, model: LanguageModel, queue: FairQueue, *, timeout_s: float) -> None:
        self.history_limit_chars = model.history_limit_chars
        self._model = model
        self._queue = queue
        self._timeout_s = timeout_s

    @property
    def waiting(self) -> int:
        """How many answers wait for a place."""
        return self._queue.waiting

    def generate(self, prompt: Prompt, caller: Caller) -> AbstractAsyncContextManager[Pieces]:
        """Ask the model, as ``LanguageModel`` has it, once there is a place."""
        return _Answer(self._queue, self._timeout_s, self._model.generate(prompt, caller))


class _Answer(AbstractAsyncContextManager[Pieces]):
    """One answer, and the place that it has; a generator in its stead would cost every turn twice as much."""

    __slots__ = ("_asking", "_queue", "_timeout_s", "_user")

    def __init__(self, queue: FairQueue, timeout_s: float, asking: AbstractAsyncContextManager[Pieces]) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._asking = asking
        self._user = ""

    async def __aenter__(self) -> Pieces:
        self._user = await self._queue.enter(self._timeout_s, "the language model", retry_after_s=RETRY_AFTER_S)
        try:
            return await self._asking.__aenter__()
        except BaseException:
            self._queue.give_back(self._user)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._asking.__aexit__(kind, exc, trace)
        finally:
            self._queue.give_back(self._user)
