"""The stand-in's answer to whether a turn of speech is over: ``POST /api/turn/end``, which the bridges do not have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web

from jarvis_core.errors import InvalidRequest
from jarvis_core.local import smart_turn
from jarvis_core.local.engine import Engine
from jarvis_core.local.http import RequestQueue, absent, answer, read, samples_of
from jarvis_core.local.log_mel import RATE_HZ

JUDGE_LIMIT_S = 10.0
"""It takes 0.05 s of an idle core, and is of no use after half a second; the first one loads the model."""
BODY_LIMIT_BYTES = 2 << 20
"""Eight seconds are 0.7 MB in base64."""
THREADS = 1
"""A second one would take as long to wake as it would save."""


class TurnEndRequest(msgspec.Struct, frozen=True):
    """The body of POST /api/turn/end."""

    audio_data: Annotated[str, msgspec.Meta(min_length=1)]
    """Base64 of float32 little-endian mono samples: what was said last, with the silence behind it; eight seconds count."""
    sample_rate: int = RATE_HZ


_decoder = msgspec.json.Decoder(TurnEndRequest)


class TurnEnd:
    """The handler; *path* is the model's, None where there is none."""

    def __init__(self, path: Path | None) -> None:
        self._queue = RequestQueue()
        self._engine: Engine[smart_turn.Judged] | None = None
        if path is not None:
            self._engine = Engine(
                "end of turn", smart_turn.__name__, smart_turn.Judged, path, THREADS, kill_cancelled=False
            )

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the route; without an engine it says so."""
        router.add_post("/api/turn/end", self.judge)

    async def judge(self, request: web.Request) -> web.Response:
        """Answer how likely the turn is over."""
        if self._engine is None:
            raise absent("end of turn")
        asked = await read(request, _decoder, BODY_LIMIT_BYTES)
        if asked.sample_rate != RATE_HZ:
            raise InvalidRequest(f"sample_rate: must be {RATE_HZ}")
        samples = samples_of(asked.audio_data)
        async with self._queue.slot():
            judged, _ = await self._engine.ask(smart_turn.Judge(), [samples], timeout_s=JUDGE_LIMIT_S)
        return answer({"probability": judged.probability, "duration_ms": judged.duration_ms})

    async def close(self) -> None:
        """End the engine's process."""
        if self._engine is not None:
            await self._engine.close()
