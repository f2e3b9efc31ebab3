"""What the voice agents of OpenAI's Agents SDK for Python are promised (``openai-agents``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents import function_tool, set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession, RealtimeSessionEvent
from checks import API_KEY, MODEL, URL, control, run_checks
from voice import (
    LONG,
    SHORT,
    Loudspeaker,
    Microphone,
    answer_tool,
    assert_interrupted_and_answered,
    assert_tool_answered,
    call_light,
)

ASKED: list[bool] = []


@function_tool
def light(on: bool) -> str:
    """Switch a light."""
    ASKED.append(on)
    answer_tool()
    return "done"


class Ear:
    """What a session tells; an error of any kind ends the check."""

    def __init__(self, session: RealtimeSession) -> None:
        self._events = aiter(session)
        self.loudspeaker = Loudspeaker()

    async def until(self, *types: str) -> RealtimeSessionEvent:
        """Return the next event of one of the *types*."""
        async for event in self._events:
            assert event.type != "error", event
            if event.type == "raw_model_event":
                assert event.data.type not in ("error", "exception"), event.data
            elif event.type == "audio":
                self.loudspeaker.play(event.audio.data)
            if event.type in types:
                return event
        raise AssertionError("the session is over")


@asynccontextmanager
async def conversing() -> AsyncIterator[tuple[Ear, Microphone]]:
    """Connect an agent, and have its microphone open."""
    set_tracing_disabled(disabled=True)
    agent = RealtimeAgent(name="house", instructions="Be brief.", tools=[light])
    url = f"{URL.replace('http', 'ws', 1)}/v1/realtime"
    async with (
        await RealtimeRunner(agent).run(model_config={"url": url, "api_key": API_KEY}) as session,
        Microphone(session.send_audio) as microphone,
    ):
        yield Ear(session), microphone


async def check_interruption() -> None:
    """What is said is answered aloud; speech interrupts the answer, and is answered in its turn."""
    control(MODEL, answer=LONG)
    async with conversing() as (ear, microphone):
        microphone.say("fx16k_fr_1")
        await ear.until("audio")
        await asyncio.sleep(1)  # a second of it is played
        control(MODEL, answer=SHORT)
        microphone.say("fx16k_en_1")
        await ear.until("audio_interrupted")
        await ear.until("agent_end")
        await ear.until("audio")
        await ear.until("agent_end")
    assert_interrupted_and_answered()


async def check_tool() -> None:
    """A function of the agent is called for what was said, its output is answered aloud, and the session goes on."""
    ASKED.clear()
    call_light()
    async with conversing() as (ear, microphone):
        microphone.say("fx16k_fr_1")
        await ear.until("tool_end")
        await ear.until("audio")
        await ear.until("audio_end")
        await ear.loudspeaker.wait_quiet()
        assert ASKED == [True]
        control(MODEL, answer=SHORT)
        microphone.say("fx16k_en_1")
        await ear.until("audio")
        await ear.until("audio_end")
    assert_tool_answered()


if __name__ == "__main__":
    run_checks(globals())
