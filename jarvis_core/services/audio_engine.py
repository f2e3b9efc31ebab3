"""
Asks the audio engine to enhance clips, without ever delaying a transcription for long.

Where the engine fails, the original is used: a clip waits for its answer no longer than 250 ms and half the clip's own
length (the engine's contract), and not at all while the engine is known to fail. A copy of a clip that goes on without
waiting probes whether it is back.
"""

from __future__ import annotations

import asyncio

import msgspec

from jarvis_core import log
from jarvis_core.errors import BadGateway, RequestError
from jarvis_core.services.contract import NONSENSE, ProcessAnswer
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours

logger = log.get(__name__)

FAILURES = 1
"""So many open its breaker: nothing waits for it twice."""
PATIENCE_S = 0.25
PATIENCE_SHARE = 0.5
"""Of the clip's length, besides ``PATIENCE_S``."""
JSON_HEADERS = {"Content-Type": "application/json"}

_decoder = msgspec.json.Decoder(ProcessAnswer)


class AudioEngine:
    """
    An audio engine behind ``POST /process``; owns the task of a probe, ``close`` ends it.

    Its transport's breaker is to open at the first failure (``FAILURES``).
    """

    def __init__(self, transport: Transport, settings: Neighbours) -> None:
        self._transport = transport
        self._timeout_s = settings.audio_engine_timeout_s
        self._probe: asyncio.Task[None] | None = None

    async def enhance(self, audio: bytes, duration_s: float) -> bytes | None:
        """Return *audio* enhanced, as ``Enhancer`` has it."""
        if not self._transport.breaker.closed:
            self._look_again(audio, duration_s)
            return None
        try:
            return await self._process(audio, duration_s)
        except RequestError as exc:
            logger.debug("a clip is used as it is", error=str(exc))
            # Also for answers that the transport counts as success, such as a refusal: they may have kept the clip
            # waiting.
            self._transport.breaker.failed()
            return None

    def reject(self, complaint: str) -> None:
        """Note an unusable answer; the engine is asked again, because the answer came in time."""
        self._transport.health.learn("degraded", complaint)

    async def close(self) -> None:
        """Give up a probe that is still waiting."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    def _look_again(self, audio: bytes, duration_s: float) -> None:
        if self._transport.breaker.due and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._try(audio, duration_s))

    async def _try(self, audio: bytes, duration_s: float) -> None:
        try:
            await self._process(audio, duration_s)
        except RequestError:
            self._transport.breaker.failed()

    async def _process(self, audio: bytes, duration_s: float) -> bytes:
        timeout_s = min(self._timeout_s, PATIENCE_S + PATIENCE_SHARE * duration_s)
        body = b'{"audio_data":"%s"}' % audio
        answer = await self._transport.call("POST", "/process", body=body, headers=JSON_HEADERS, timeout_s=timeout_s)
        try:
            return _decoder.decode(answer.body).audio_data.encode("ascii")
        except NONSENSE as exc:
            self.reject("it answered nonsense")
            raise BadGateway(f"{self._transport.name} sent what is not its contract.") from exc
