"""What an agent of LiveKit is promised whose model is OpenAI's over the realtime API (``livekit-plugins-openai``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from checks import API_KEY, MODEL, URL, control, run_checks
from livekit import rtc
from livekit.agents import Agent, AgentSession, function_tool, utils
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities
from livekit.plugins import openai
from voice import (
    LONG,
    SHORT,
    TOOL_ANSWER,
    Loudspeaker,
    Microphone,
    answer_tool,
    assert_interrupted_and_answered,
    assert_tool_answered,
    call_light,
)

WARM_UP_S = 3.0
"""So long by default nothing interrupts a session's first answer: until the cancellation of echo has adapted."""
ASKED: list[bool] = []


class MicrophoneInput(AudioInput):
    """What the microphone hears, in the place of a room."""

    def __init__(self) -> None:
        super().__init__(label="microphone")
        self._heard: asyncio.Queue[bytes] = asyncio.Queue(1_000)

    async def hear(self, samples: bytes) -> None:
        """Pass on what was heard."""
        await self._heard.put(samples)

    async def __anext__(self) -> rtc.AudioFrame:
        samples = await self._heard.get()
        return rtc.AudioFrame(samples, 24_000, 1, len(samples) // 2)


class LoudspeakerOutput(AudioOutput):
    """Plays at the pace of real time, in the place of a room, and tells when all is played or no more of it will be."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", capabilities=AudioOutputCapabilities(pause=False), sample_rate=24_000)
        self._loudspeaker = Loudspeaker()
        self._began_at: float | None = None
        self._given_s = 0.0
        self._end: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if self._began_at is None:
            self._began_at, self._given_s = time.monotonic(), 0.0
            self.on_playback_started(created_at=time.time())
        self._given_s += frame.duration
        self._loudspeaker.play(bytes(frame.data))

    def flush(self) -> None:
        super().flush()
        if self._began_at is not None and self._end is None:
            self._end = asyncio.create_task(self._play_out())

    def clear_buffer(self) -> None:
        self._loudspeaker.stop()
        if self._began_at is not None:
            if self._end is not None:
                self._end.cancel()
            self._finish(min(time.monotonic() - self._began_at, self._given_s), interrupted=True)

    async def _play_out(self) -> None:
        await self._loudspeaker.wait_quiet()
        self._finish(self._given_s, interrupted=False)

    def _finish(self, played_s: float, *, interrupted: bool) -> None:
        self._began_at = self._end = None
        self.on_playback_finished(playback_position=played_s, interrupted=interrupted)


class House(Agent):
    """An agent with a function."""

    def __init__(self) -> None:
        super().__init__(instructions="Be brief.")

    @function_tool
    async def light(self, on: bool) -> str:
        """Switch a light."""
        ASKED.append(on)
        answer_tool()
        return "done"


class Ear:
    """What a session tells; an error of any kind ends the check."""

    def __init__(self, session: AgentSession[None]) -> None:
        self._told: asyncio.Queue[Any] = asyncio.Queue(1_000)
        for kind in ("error", "close", "agent_state_changed", "conversation_item_added"):
            session.on(kind, self._told.put_nowait)

    async def until_speaking(self) -> None:
        """Wait until the assistant is heard."""
        while (event := await self._next()).type != "agent_state_changed" or event.new_state != "speaking":
            pass

    async def until_said(self, text: str, *, interrupted: bool = False) -> None:
        """Wait for the end of an answer that is, or begins with, *text*."""
        while (event := await self._next()).type != "conversation_item_added" or _role(event.item) != "assistant":
            pass
        assert event.item.interrupted is interrupted, event
        assert event.item.text_content.startswith(text), event

    async def _next(self) -> Any:
        event = await self._told.get()
        assert event.type not in ("error", "close"), event
        return event


def _role(item: Any) -> str | None:
    return item.role if item.type == "message" else None


@asynccontextmanager
async def conversing() -> AsyncIterator[tuple[Ear, Microphone]]:
    """Start an agent with its microphone open."""
    async with (
        utils.http_context.open(),
        AgentSession(llm=openai.realtime.RealtimeModel(base_url=f"{URL}/v1", api_key=API_KEY)) as session,
    ):
        heard = MicrophoneInput()
        session.input.audio, session.output.audio = heard, LoudspeakerOutput()
        ear = Ear(session)
        await session.start(House())
        async with Microphone(heard.hear) as microphone:
            yield ear, microphone


async def check_interruption() -> None:
    """What is said is answered aloud; speech interrupts the answer, and is answered in its turn."""
    control(MODEL, answer=LONG)
    async with conversing() as (ear, microphone):
        microphone.say("fx16k_fr_1")
        await ear.until_speaking()
        await asyncio.sleep(WARM_UP_S + 0.5)  # so much of it is played
        control(MODEL, answer=SHORT)
        microphone.say("fx16k_en_1")
        await ear.until_said("Hello", interrupted=True)
        await ear.until_said(SHORT)
    assert_interrupted_and_answered()


async def check_tool() -> None:
    """A function of the agent is called for what was said, its output is answered aloud, and the session goes on."""
    ASKED.clear()
    call_light()
    async with conversing() as (ear, microphone):
        microphone.say("fx16k_fr_1")
        await ear.until_said(TOOL_ANSWER)
        assert ASKED == [True]
        control(MODEL, answer=SHORT)
        microphone.say("fx16k_en_1")
        await ear.until_said(SHORT)
    assert_tool_answered()


if __name__ == "__main__":
    run_checks(globals())
