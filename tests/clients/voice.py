"""What the programs of voice frameworks share: a microphone in a quiet room, and answers long enough to be interrupted."""

from __future__ import annotations

import array
import asyncio
import json
import random
import time
import wave
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from checks import MODEL, ask, control

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "audio"
STEP_S = 0.05
NOISE = 40
"""Highest sample of the room."""
LONG = (
    "Hello to all of you. The weather is very fine today. Let us go out together for a while. "
    "Tomorrow it will rain without a doubt. The day after it will rain too, as people say. Then the sun will be back."
)
"""Ten seconds of speech."""
SHORT = "Very well."
TOOL_ANSWER = "The lamp is on."


def read_recording(name: str, rate_hz: int = 24_000) -> bytes:
    """Return a recording's samples of 16 bits at another rate, between two of its own in a straight line."""
    with wave.open(str(RECORDINGS / f"{name}.wav")) as file:
        ratio = file.getframerate() / rate_hz
        samples = array.array("h", file.readframes(file.getnframes()))
    made = array.array("h")
    for place in range(int((len(samples) - 1) / ratio)):
        before, share = divmod(place * ratio, 1)
        low, high = samples[int(before)], samples[int(before) + 1]
        made.append(round(low + (high - low) * share))
    return made.tobytes()


class Microphone:
    """Sends what is said, and the room's noise otherwise, at the pace of real time from ``async with`` to its end."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], rate_hz: int = 24_000) -> None:
        self._send, self._rate_hz = send, rate_hz
        self._said = bytearray()
        self._random = random.Random(0)

    def say(self, name: str) -> None:
        """Speak a recording from now on."""
        self._said += read_recording(name, self._rate_hz)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        count = round(STEP_S * self._rate_hz)
        due_at = time.monotonic()
        while True:
            step = bytes(self._said[: 2 * count])
            del self._said[: 2 * count]
            room = array.array("h", (self._random.randint(-NOISE, NOISE) for _ in range(count - len(step) // 2)))
            await self._send(step + room.tobytes())
            due_at += STEP_S
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))


class Loudspeaker:
    """Knows how long what was received is still played, at the pace of real time; both are 24,000 samples a second."""

    def __init__(self) -> None:
        self._quiet_at = 0.0

    def play(self, samples: bytes) -> None:
        """Play samples after those before them."""
        self._quiet_at = max(self._quiet_at, time.monotonic()) + len(samples) / 48_000

    def stop(self) -> None:
        """Play nothing more of what was received."""
        self._quiet_at = 0.0

    async def wait_quiet(self) -> None:
        """Wait until all that was received is played."""
        await asyncio.sleep(max(0.0, self._quiet_at - time.monotonic()))


def call_light() -> None:
    """Have the model call the function ``light``; whoever runs it has the model answer (``answer_tool``)."""
    function = {"name": "light", "arguments": '{"on": true}'}
    call = {"index": 0, "id": "call_0123456789", "type": "function", "function": function}
    control(
        MODEL,
        events=[
            json.dumps({"model": "small-model", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
            for delta, reason in (({"tool_calls": [call]}, None), ({}, "tool_calls"))
        ],
    )


def answer_tool() -> None:
    """Have the model say what came of the call."""
    control(MODEL, answer=TOOL_ANSWER)


def latest_messages() -> list[dict[str, Any]]:
    """Return the messages of the conversation that was used last, as the server keeps them."""
    conversation = ask("GET", "/api/chat/conversations")["conversations"][0]
    shown = ask("GET", f"/api/chat/history/{conversation['id']}")["messages"]
    return [one for one in shown if one["type"] == "message"]


def assert_interrupted_and_answered() -> None:
    """Of the long answer only its beginning was heard, and the short one whole."""
    messages = latest_messages()
    assert [one["role"] for one in messages] == ["user", "assistant", "user", "assistant"], messages
    heard = messages[1]["content"]
    assert LONG.startswith(heard), messages
    assert 0 < len(heard) < len(LONG), messages
    assert messages[1]["heard_ms"] > 0, messages
    assert messages[3]["content"] == SHORT, messages


def assert_tool_answered(*before: str) -> None:
    """After the call what the model said about it was heard whole, and so was the answer to what was said next."""
    said = [one["content"] for one in latest_messages() if one["role"] == "assistant" and one["content"]]
    assert said == [*before, TOOL_ANSWER, SHORT], said
