"""Faults that change at random: what the neighbours and the way to the database do wrong at a moment."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes.audio_engine import AudioEngineMode, FakeAudioEngine
from tests.fakes.faults import Fault
from tests.fakes.openai_compatible import FakeModelServer, ModelServerMode
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.fakes.relay import DatabaseRelay

CHANGE_S = 0.2
"""How often the weather changes."""
OVER_LIMIT_BYTES = 33 << 20
"""More than any answer may have."""

CALL_FAULTS = (
    Fault("hang"),
    Fault(delay_s=0.15),
    Fault("close"),
    Fault("reset"),
    Fault("close_reused"),
    Fault("close_after"),
    Fault(status=401),
    Fault(status=429),
    Fault(status=429, retry_after_s=1),
    Fault(status=500),
    Fault(status=502),
    Fault(status=503),
    Fault(status=504),
    Fault("empty"),
    Fault("html"),
    Fault("nonsense"),
    Fault("null"),
    Fault("list"),
    Fault("wrong_shape"),
    Fault("nested"),
    Fault("wrong_type"),
    Fault("garbage"),
    Fault("trickle"),
    Fault("redirect"),
)
"""Of every call."""
WHOLE_FAULTS = (Fault("truncated"), Fault("short_body"), Fault("huge_line", size_bytes=OVER_LIMIT_BYTES))
"""Of calls that are answered whole."""
ACCIDENTS: tuple[dict[str, Any], ...] = (
    {"cut": "close"},
    {"cut": "reset"},
    {"cut": "end"},
    {"omit_done": True},
    {"stall_after": 0},
    {"stall_after": 3},
    {"error_after": 0},
    {"error_after": 3},
    {"nonsense_after": 2},
    {"huge_line_after": 2},
    {"first_delay_s": 0.2},
    {"omit_counts": True},
)
"""Of streams."""
PACES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"delta_delay_s": 0.01},
    {"delta_delay_s": 0.03},
    {"piece_bytes": 1, "deltas_joined": True},
    {"piece_bytes": 7},
    {"join_deltas": 5},
)
"""At which streams come."""


class Weather:
    """Changes what fails around one server; *seed* decides all of it but the time."""

    def __init__(
        self,
        seed: int,
        bridges: FakeBridges,
        engine: FakeAudioEngine,
        relay: DatabaseRelay,
        model: FakeModelServer | None,
    ) -> None:
        self._dice = random.Random(seed)
        self._bridges = bridges
        self._engine = engine
        self._relay = relay
        self._model = model
        self.seen: Counter[str] = Counter()
        """How often each fault was set."""

    @asynccontextmanager
    async def stormy(self) -> AsyncIterator[None]:
        """Let faults change meanwhile; afterwards all is well."""
        tasks = [asyncio.create_task(self._change_neighbours()), asyncio.create_task(self._change_database())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self.clear()

    def flood(self) -> None:
        """Have every answer be more than is taken of any: the most memory that a call can use."""
        fault = {"/": Fault("huge_line", size_bytes=OVER_LIMIT_BYTES)}
        self._bridges.mode = BridgesMode(faults=fault)
        if self._model is not None:
            self._model.mode = ModelServerMode(faults=fault)

    async def clear(self) -> None:
        """Have everything well again."""
        await self._relay.come_back()
        self._bridges.mode = BridgesMode(shape="ndjson")
        self._engine.mode = AudioEngineMode()
        for neighbour in (self._bridges, self._engine, self._model):
            if neighbour is not None:
                await neighbour.come_back()
        if self._model is not None:
            self._model.mode = ModelServerMode()

    async def _change_neighbours(self) -> None:
        dice = self._dice
        while True:
            self._bridges.mode = self._bridges_mode()
            self._engine.mode = AudioEngineMode(
                faults=self._faults("/process"), effect=dice.choice(("gain", "gain", "clip", "short", "nan", "odd"))
            )
            if self._model is not None:
                self._model.mode = self._model_mode()
            await asyncio.sleep(CHANGE_S)
            away = dice.choice((self._bridges, self._model, self._engine)) if dice.random() < 0.1 else None
            if away is not None:
                self.seen["a neighbour is away"] += 1
                await away.go_away()
                await asyncio.sleep(CHANGE_S)
                await away.come_back()
            elif dice.random() < 0.1:
                self.seen["connections are dropped"] += 1
                self._bridges.drop_connections()

    async def _change_database(self) -> None:
        dice = self._dice
        while True:
            await asyncio.sleep(dice.uniform(0.5, 1.5))
            kind = dice.choice(("away", "hang", "drop"))
            self.seen[f"database: {kind}"] += 1
            if kind == "drop":
                await self._relay.drop_connections()
                continue
            if kind == "away":
                await self._relay.go_away()
            else:
                self._relay.hang()
            await asyncio.sleep(dice.uniform(0.1, 0.6))
            await self._relay.come_back()

    def _faults(self, path: str, *, whole: bool = True) -> dict[str, Fault]:
        if self._dice.random() < 0.5:
            return {}
        faults = CALL_FAULTS if not whole or self._dice.random() < 0.9 else WHOLE_FAULTS
        fault = self._dice.choice(faults)
        self.seen[f"{path}: {fault.status or fault.kind}"] += 1
        return {path: fault}

    def _stream(self) -> dict[str, Any]:
        dice = self._dice
        fields = dict(dice.choice(PACES))
        if fields.pop("deltas_joined", False):
            fields["join_deltas"] = 40  # a write for every byte: not many of them
        if dice.random() < 0.4:
            accident = dict(dice.choice(ACCIDENTS))
            if "cut" in accident:
                accident["cut_after"] = dice.randrange(6)
            self.seen[f"stream: {next(iter(accident))}"] += 1
            fields |= accident
        return fields

    def _bridges_mode(self) -> BridgesMode:
        dice = self._dice
        shape: Any = dice.choice(("json", "ndjson", "ndjson", "sse"))
        faults = self._faults("/api/llm", whole=shape == "json")
        for path in ("/api/stt", "/api/tts", "/api/embeddings"):
            faults |= self._faults(path)
        stream = self._stream()
        return BridgesMode(
            shape=shape,
            faults=faults,
            error_200=dice.random() < 0.1,
            vectors=dice.choice(("words", "words", "words", "zero", "nan", "short")),
            speech=dice.choice(("tone", "tone", "tone", "odd", "nan", "not_base64")),
            **stream,
        )

    def _model_mode(self) -> ModelServerMode:
        # Some servers send comments while they think, and some think aloud.
        extra = self._dice.choice(({}, {"pings": 2}, {"reasoning": "let me think"}, {"role_chunk": False}))
        return ModelServerMode(faults=self._faults("/v1/chat", whole=False), **(extra | self._stream()))
