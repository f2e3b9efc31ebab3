"""Many sockets on which everything happens in any order: every response ends once, and nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, client_of
from tests.handlers.realtime.test_turns_of_speech import RATE_HZ, clip, silence
from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.handlers.shown import eventually, gauge, open_files
from tests.system.server import Server

SOCKETS = int(os.environ.get("CONVERSATION_SOCKETS", "48"))
"""How many there are, 24 at a time; ``make conversation`` has a thousand."""
AT_ONCE = 24
STEPS = 8
SPEECH = clip("fx16k_fr_1")
EXPECTED = {
    "conversation_already_has_active_response",
    "response_cancel_not_active",
    "input_audio_buffer_commit_empty",
    "item_truncate_invalid_item_id",
    "invalid_request",
    "conflict",
    "overloaded",
}
"""What a client that does anything at any time is told."""

pytestmark = pytest.mark.every_python


class Client:
    """Does anything in any order on one socket, and then on those that take it up again."""

    def __init__(self, server: Server, dice: random.Random, outcomes: Counter[str]) -> None:
        self._server = server
        self._dice = dice
        self._outcomes = outcomes

    async def run(self) -> None:
        """Live, be cut off, and come back, where that is not too late."""
        try:
            await self._run()
        except InvalidStatus as exc:
            if exc.response.status_code != 404:
                raise
            self._outcomes["too late"] += 1

    async def _run(self) -> None:
        seen: list[Event] = []
        resume: dict[str, str | int] = {}
        for _ in range(self._dice.randint(1, 2)):
            async with open_socket(self._server.url, seen=seen, **resume) as socket:  # type: ignore[arg-type]
                try:
                    await self._live(socket)
                except ConnectionClosed:
                    self._outcomes["closed"] += 1
                if self._dice.random() < 0.5:
                    socket.abort()
                self._check(socket.seen)
                last = next((one["response"]["id"] for one in reversed(socket.seen) if "response" in one), None)
                if last is None:
                    return
                seen, resume = socket.seen, {"resume": last, "after": socket.seen[-1]["seq"]}

    async def _live(self, socket: Socket) -> None:
        created = await socket.receive()
        detection = {"type": "server_vad"} if self._dice.random() < 0.5 else None
        audio = {"input": {"format": {"type": "audio/pcm", "rate": RATE_HZ}, "turn_detection": detection}}
        if created["type"] == "session.created":
            await socket.send("session.update", session={"output_modalities": ["audio"], "audio": audio})
        for _ in range(STEPS):
            await self._step(socket)
            await self._look(socket)
        if self._dice.random() < 0.6:
            while socket.tally.active is not None:
                await socket.receive()

    async def _step(self, socket: Socket) -> None:
        """Do something."""
        ids = [event["item_id"] for event in socket.seen if "item_id" in event] or ["nobody"]
        match self._dice.randrange(9):
            case 0 | 1:
                await socket.send_raw(SPEECH + silence(0.6))
            case 2:
                await socket.send("input_audio_buffer.commit")
            case 3:
                await socket.send("input_audio_buffer.clear")
            case 4:
                item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "well?"}]}
                await socket.send("conversation.item.create", item=item)
                await socket.send("response.create")
            case 5:
                await socket.send("response.create")
            case 6:
                await socket.send("response.cancel")
            case 7:
                place_ms = self._dice.randint(0, 3_000)
                item_id = self._dice.choice(ids)
                await socket.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=place_ms)
            case _:
                await socket.send("session.update", session={"turn_detection": self._dice.choice([None, {}])})

    async def _look(self, socket: Socket) -> None:
        """Take what comes within a moment."""
        try:
            async with asyncio.timeout(self._dice.uniform(0.0, 0.1)):
                while True:
                    await socket.receive()
        except TimeoutError:
            return

    def _check(self, seen: list[Event]) -> None:
        """Hold against one another what begins and what ends; the rest is held as it arrives."""
        begun = [event["response"]["id"] for event in seen if event["type"] == "response.created"]
        ended = [event["response"]["id"] for event in seen if event["type"] == "response.done"]
        assert len(set(begun)) == len(begun)
        assert len(set(ended)) == len(ended)
        assert ended == begun[: len(ended)]
        for event in seen:
            if event["type"] == "error":
                assert event["error"]["code"] in EXPECTED, event
        self._outcomes.update(event["type"] for event in seen)
        self._outcomes.update(event["response"]["status"] for event in seen if event["type"] == "response.done")


@pytest.mark.behaviour("response.events")
async def test_anything_in_any_order(make_server: MakeServer, bridges: FakeBridges) -> None:
    """Whatever is sent, cut off and taken up again: one end for each response, and then nothing is left."""
    bridges.mode = BridgesMode(shape="ndjson", answer="Bonjour à tous. Il fait beau. Sortons.", speech_s_per_char=0.01)
    server = make_server(WS_RESUME_GRACE_S="0.5", RATE_LIMIT_PER_MINUTE="0")
    outcomes: Counter[str] = Counter()

    async def rest(client: object) -> tuple[float, int]:
        async def is_quiet() -> bool:
            return [await gauge(client, name) for name in ("websockets", "turns_running")] == [0, 0]  # type: ignore[arg-type]

        await eventually(is_quiet)
        bridges.drop_connections()
        await asyncio.sleep(0.5)
        return await gauge(client, "tasks"), open_files(server)  # type: ignore[arg-type]

    async def crowd(count: int, seed: int) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with places:
                await Client(server, random.Random(f"{seed}/{number}"), outcomes).run()

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    async with client_of(server) as client:
        await crowd(AT_ONCE, 0)
        tasks, files = await rest(client)
        await crowd(SOCKETS, 1)
        tasks_after, files_after = await rest(client)
    assert tasks_after <= tasks
    assert files_after <= files + 2
    # It was no empty exercise.
    for kind in ("completed", "cancelled", "input_audio_buffer.speech_started", "conversation.item.truncated"):
        assert outcomes[kind], outcomes
