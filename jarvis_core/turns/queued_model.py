"""The language model behind a queue, in which each user has a turn, whatever they ask it for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from jarvis_core.fair_queue import FairQueue
from jarvis_core.models import (
    Caller,
    Completion,
    CompletionAnswer,
    CompletionModel,
    Discard,
    Finish,
    LanguageModel,
    Prompt,
)

A = TypeVar("A")

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
        self.reads_ahead = model.reads_ahead
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

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Have the model read *prompt* in advance, where nobody waits for it."""
        if not self._queue.waiting:
            await self._model.read_ahead(prompt, caller)


class QueuedCompletions:
    """A ``CompletionModel`` that waits in *queue*, the same as the turns', as ``QueuedModel`` does."""

    def __init__(self, model: CompletionModel, queue: FairQueue, *, timeout_s: float) -> None:
        self._model = model
        self._queue = queue
        self._timeout_s = timeout_s

    async def fetch_name(self) -> str:
        """Return the model's own name, as ``CompletionModel`` has it."""
        return await self._model.fetch_name()

    def complete(self, completion: Completion, caller: Caller) -> AbstractAsyncContextManager[CompletionAnswer]:
        """Ask the model, as ``CompletionModel`` has it, once there is a place."""
        return _Answer(self._queue, self._timeout_s, self._model.complete(completion, caller))


class _Answer(AbstractAsyncContextManager[A], Generic[A]):
    """One answer, and the place that it has; a generator in its stead would cost every turn twice as much."""

    __slots__ = ("_asking", "_queue", "_timeout_s", "_user")

    def __init__(self, queue: FairQueue, timeout_s: float, asking: AbstractAsyncContextManager[A]) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._asking = asking
        self._user = ""

    async def __aenter__(self) -> A:
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
