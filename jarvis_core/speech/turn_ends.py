"""Whether a turn of speech is over, as a model hears it, where there is one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

from jarvis_core import cancellation, log
from jarvis_core.codec.client import Codec
from jarvis_core.errors import NotFound, RequestError
from jarvis_core.models import Caller, TurnEndModel

logger = log.get(__name__)
_failures = log.LogThrottle()

RATE_HZ = 16_000
PATIENCE_S = 0.5
"""Longest wait for an answer in a conversation: after it silence decides, as without a model."""
DECODE_TIMEOUT_S = 2.0
"""It takes milliseconds, unless the codec has to be started for sound that came faster than it was spoken."""
LOOK_TIMEOUT_S = 3.0
ANSWERED_S, FAILED_S, ABSENT_S = 60.0, 5.0, 60.0
"""How long it is believed that there is a model, that it fails, and that there is none."""
SAMPLE = base64.b64encode(bytes(4 * RATE_HZ // 10))
"""Nothing to hear, for the first question: it loads the model."""


class TurnEnds:
    """Asks the model, and remembers whether there is one; owns the task of a first question."""

    def __init__(self, model: TurnEndModel | None, codec: Codec) -> None:
        self._model = model
        self._codec = codec
        self._answers = False
        """Whether the last question was answered;"""
        self._believed_until = 0.0
        """until then, of the loop's clock, that need not be asked again."""
        self._looking: asyncio.Task[None] | None = None

    async def look(self, caller: Caller) -> bool:
        """Return whether there is a model that answers; waits ``LOOK_TIMEOUT_S`` at most where that is not known."""
        if self._model is None:
            return False
        loop = asyncio.get_running_loop()
        if loop.time() >= self._believed_until:
            if self._looking is None or self._looking.done():
                self._looking = loop.create_task(self._try(self._model, caller))
            await asyncio.wait([self._looking], timeout=LOOK_TIMEOUT_S)
        return self._answers and loop.time() < self._believed_until

    async def probability(self, parts: Sequence[bytes], caller: Caller) -> float | None:
        """
        Return how likely, 0..1, a turn is over with what *parts* have: samples of 16 bits at 16 kHz.

        None where no model says so within ``PATIENCE_S``, or the sound cannot be had as the model takes it.
        """
        if self._model is None:
            return None
        try:
            async with cancellation.timeout(DECODE_TIMEOUT_S):
                clip = await self._codec.decode_pcm(parts, "pcm16", RATE_HZ, limit_s=60)
            if not clip.windows or not clip.windows[0].audio:
                return None
            async with cancellation.timeout(PATIENCE_S):
                return await self._ask(self._model, clip.windows[0].audio, caller)
        except (RequestError, TimeoutError) as exc:
            held_back = _failures.held_back(type(exc).__name__)
            if held_back is not None:
                logger.info("silence ends a turn in place of a model", error=str(exc), held_back=held_back)
            return None

    async def close(self) -> None:
        """Give up a first question."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _try(self, model: TurnEndModel, caller: Caller) -> None:
        try:
            await self._ask(model, SAMPLE, caller)
        except RequestError as exc:
            logger.info("no model tells the end of a turn", error=str(exc))

    async def _ask(self, model: TurnEndModel, audio: bytes, caller: Caller) -> float:
        self._answers, believed_s = False, FAILED_S
        try:
            probability = await model.end_probability(audio, caller)
            self._answers, believed_s = True, ANSWERED_S
        except NotFound:
            believed_s = ABSENT_S
            raise
        finally:
            self._believed_until = asyncio.get_running_loop().time() + believed_s
        return probability
