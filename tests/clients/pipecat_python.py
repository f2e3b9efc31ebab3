"""What a pipeline of pipecat is promised whose model is OpenAI's over the realtime API (``pipecat-ai``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from checks import API_KEY, MODEL, URL, control, run_checks
from loguru import logger
from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
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

PARAMS = TransportParams(
    audio_in_enabled=True, audio_in_sample_rate=24_000, audio_out_enabled=True, audio_out_sample_rate=24_000
)
GREETING = "Hello."
ASKED: list[bool] = []


class MicrophoneInput(BaseInputTransport):
    """The beginning of the pipeline: what the microphone hears."""

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def hear(self, samples: bytes) -> None:
        """Pass on what was heard."""
        await self.push_audio_frame(InputAudioRawFrame(audio=samples, sample_rate=24_000, num_channels=1))


class LoudspeakerOutput(BaseOutputTransport):
    """The end of the pipeline: what is written is played at the pace of real time."""

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        self._loudspeaker = Loudspeaker()
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self._loudspeaker.play(frame.audio)
        await self._loudspeaker.wait_quiet()
        return True


class Ear(FrameProcessor):
    """What the pipeline tells, seen behind the model; an error of any kind ends the check."""

    def __init__(self) -> None:
        super().__init__()
        self._told: asyncio.Queue[Frame] = asyncio.Queue(10_000)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self._told.put_nowait(frame)
        await self.push_frame(frame, direction)

    async def greet(self) -> None:
        """Have the assistant speak first, as examples do; the tools are told with this, and not before a turn was heard else."""
        await self.push_frame(LLMRunFrame(), FrameDirection.UPSTREAM)

    def fail(self, error: Frame) -> None:
        """Tell of an error anywhere in the pipeline."""
        self._told.put_nowait(error)

    async def until(self, kind: type[Frame]) -> Frame:
        """Return the next frame of a kind."""
        while not isinstance(frame := await self._told.get(), kind):
            assert not isinstance(frame, ErrorFrame), frame
        return frame

    async def until_said(self, text: str) -> None:
        """Wait until a sentence was spoken, and its answer is played."""
        while (await self.until(TTSTextFrame)).text != text:
            pass
        await self.until(BotStoppedSpeakingFrame)


async def light(params: FunctionCallParams) -> None:
    """Switch a light."""
    ASKED.append(params.arguments["on"])
    answer_tool()
    await params.result_callback("done")


@asynccontextmanager
async def conversing() -> AsyncIterator[tuple[Ear, Microphone]]:
    """Run a pipeline with its microphone open."""
    logger.remove()
    tool = FunctionSchema("light", "Switch a light.", {"on": {"type": "boolean"}}, ["on"], handler=light)
    model = OpenAIRealtimeLLMService(
        api_key=API_KEY,
        base_url=f"{URL.replace('http', 'ws', 1)}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(system_instruction="Be brief."),
    )
    context = LLMContextAggregatorPair(LLMContext([{"role": "developer", "content": "Greet the user."}], tools=[tool]))
    heard, ear = MicrophoneInput(PARAMS), Ear()
    worker = PipelineWorker(
        Pipeline([heard, context.user(), model, ear, LoudspeakerOutput(PARAMS), context.assistant()])
    )
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def begin(*_: Any) -> None:
        started.set()

    @worker.event_handler("on_pipeline_error")
    async def fail(_: PipelineWorker, error: Frame) -> None:
        ear.fail(error)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    task = asyncio.create_task(runner.run())
    try:
        await started.wait()
        async with Microphone(heard.hear) as microphone:
            yield ear, microphone
    finally:
        await worker.queue_frame(CancelFrame())
        await task


async def check_interruption() -> None:
    """What is said is answered aloud; speech interrupts the answer, and is answered in its turn."""
    control(MODEL, answer=LONG)
    async with conversing() as (ear, microphone):
        microphone.say("fx16k_fr_1")
        await ear.until(BotStartedSpeakingFrame)
        await asyncio.sleep(1)  # a second of it is played
        control(MODEL, answer=SHORT)
        microphone.say("fx16k_en_1")
        await ear.until(InterruptionFrame)
        await ear.until_said(SHORT)
    assert_interrupted_and_answered()


async def check_tool() -> None:
    """A function of the context is called for what was said, its output is answered aloud, and the session goes on."""
    ASKED.clear()
    control(MODEL, answer=GREETING)
    async with conversing() as (ear, microphone):
        await ear.greet()
        await ear.until_said(GREETING)
        call_light()
        microphone.say("fx16k_fr_1")
        await ear.until_said(TOOL_ANSWER)
        assert ASKED == [True]
        control(MODEL, answer=SHORT)
        microphone.say("fx16k_en_1")
        await ear.until_said(SHORT)
    assert_tool_answered(GREETING)


if __name__ == "__main__":
    run_checks(globals())
