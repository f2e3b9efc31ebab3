"""
Listens to a session's microphone: sound goes in, and what the conversation is to do comes out.

Owns the sound of the turn of speech that is open, and its early transcript.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from jarvis_core.codec.client import Microphone
from jarvis_core.conversation.clock import SessionClock
from jarvis_core.conversation.machine import Action, Conversation, Manner
from jarvis_core.errors import Overloaded, RateLimited, RequestError
from jarvis_core.handlers.events import AudioFormat, PcmFormat
from jarvis_core.handlers.realtime.audio import Recording
from jarvis_core.handlers.realtime.refusals import BufferExpired, BufferGaveWay, CommitEmpty
from jarvis_core.models import Caller
from jarvis_core.speech.held_audio import AudioHold
from jarvis_core.speech.transcription import CLIP_RATE_HZ, Heard, Tell, Transcriber, clip_bytes

CLIP_FORMAT = PcmFormat(CLIP_RATE_HZ)
MS_BYTES = 2 * CLIP_RATE_HZ // 1_000
FREE_BYTES = 64 << 10
"""Two seconds, which every session has beside the buffer limit."""


class Hearing:
    """The microphone of one session, and the conversation that is led by it."""

    def __init__(self, transcriber: Transcriber, on_lost: Callable[[RequestError], None]) -> None:
        self._transcriber = transcriber
        self._on_lost = on_lost
        """Told why sound was dropped."""
        self._loop = asyncio.get_running_loop()
        self._microphone: Microphone | None = None
        self._format: AudioFormat | None = None
        self._heard_at = 0.0
        self.conversation = Conversation(Manner())
        self.clock = SessionClock(self._now_ms())
        self.item_id: str | None = None
        """The item that the open turn of speech will be."""
        self.early: EarlyTranscript | None = None
        self._sound = bytearray()
        self._sound_from_ms = 0
        self._hold: AudioHold | None = None
        """Of more than ``FREE_BYTES``: of speech."""
        self._asking: asyncio.Task[float | None] | None = None
        """Asks whether the turn is over."""
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def time_ms(self) -> float:
        """Return the conversation's time."""
        return self.clock.at(self._now_ms())

    async def hear(self, data: bytes, audio_format: AudioFormat) -> AsyncGenerator[Action, None]:
        """Yield what is to be done after *data* has come; raises ``Overloaded`` or ``Unavailable``."""
        if self._microphone is None or audio_format != self._format:
            await self._hang_up()
            self._microphone = self._transcriber.listen(audio_format.encoding, audio_format.rate)
            self._format = audio_format
        self._heard_at = self._loop.time()
        async for sound in self._microphone.hear(data):
            self._keep(sound.samples)
            self.clock.hear(len(sound.samples) / MS_BYTES, self._now_ms())
            # One by one where a model is asked: sound that comes fast waits for it too, so that its pace changes nothing.
            one_by_one = self.conversation.manner.waits is not None
            for steps in ([step] for step in sound.steps) if one_by_one else [sound.steps]:
                if self.conversation.awaits_judgement:
                    asking, self._asking = self._asking, None
                    self.conversation.judge(None if asking is None else await asking)
                for action in self.conversation.hear(steps, self.time_ms):
                    yield action
            self._forget_before(self.conversation.keep_from_ms)

    def recording(self, start_ms: int, end_ms: int) -> Recording:
        """Return the sound from *start_ms* to *end_ms*; raises ``Overloaded``."""
        start = max(0, start_ms - self._sound_from_ms) * MS_BYTES
        samples = bytes(self._sound[start : max(0, end_ms - self._sound_from_ms) * MS_BYTES])
        hold = self._transcriber.held.hold()
        hold.grow(len(samples) + clip_bytes(len(samples) / MS_BYTES / 1_000))
        return Recording([samples], CLIP_FORMAT, hold)

    def commit(self) -> Recording:
        """Return all sound that belongs to no turn yet, because the client says that it is one; raises ``CommitEmpty``."""
        start_ms = self.conversation.commit()
        if self.conversation.position_ms <= max(start_ms, self._sound_from_ms):
            raise CommitEmpty
        recording = self.recording(start_ms, self.conversation.position_ms)
        self._forget_before(self.conversation.position_ms)
        return recording

    def clear(self) -> None:
        """Drop the sound, and the turn of speech that is open."""
        self.conversation.clear()
        self.item_id = None
        self.forget_early()
        self._forget_before(self.conversation.position_ms)

    def listen_early(
        self, start_ms: int, end_ms: int, language: str | None, caller: Caller, *, clean: bool = True
    ) -> None:
        """Begin to transcribe a turn of speech that may be over, where there is room for it: it can wait for the end."""
        self._drop_early()
        with contextlib.suppress(Overloaded, RateLimited):
            recording = self.recording(start_ms, end_ms)
            self.early = EarlyTranscript(self._transcriber, recording, language, caller, clean=clean)

    def expect_words(self) -> None:
        """Have ready what the words of a turn that has begun will need."""
        self._transcriber.expect()

    @property
    def suppresses_noise(self) -> bool:
        """Whether there is what suppresses noise."""
        return self._transcriber.suppresses_noise

    async def knows_ends(self, caller: Caller) -> bool:
        """Return whether a model tells the end of a turn; waits where that is not known."""
        return await self._transcriber.turn_ends.look(caller)

    def ask_whether_over(self, start_ms: int, end_ms: int, caller: Caller) -> None:
        """Begin to ask the model, where there is room for what it is to hear: silence can decide."""
        self._drop_question()
        with contextlib.suppress(Overloaded, RateLimited):
            recording = self.recording(start_ms, end_ms)
            asking = self._transcriber.turn_ends.probability(recording.parts, caller)
            self._asking = self._loop.create_task(asking)
            self._asking.add_done_callback(lambda _: recording.close())

    def take_early(self) -> EarlyTranscript | None:
        """Return the early transcript, for the caller to own."""
        early, self.early = self.early, None
        return early

    def forget_early(self) -> None:
        """Drop the early transcript, and whether the turn was over: speech goes on."""
        self._drop_question()
        self._drop_early()

    def _drop_early(self) -> None:
        if (early := self.take_early()) is not None:
            early.drop()

    def _drop_question(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    async def close(self) -> None:
        """Listen no more."""
        self.clear()
        await self._hang_up()

    async def _hang_up(self) -> None:
        microphone, self._microphone = self._microphone, None
        if microphone is not None:
            await microphone.close()

    def _keep(self, samples: bytes) -> None:
        length_bytes = len(self._sound) + len(samples)
        if length_bytes > FREE_BYTES:
            if self._hold is None:
                self._hold = self._transcriber.held.hold(self._give_way)
            self._hold.grow(length_bytes)
            if self._expiry is None:
                self._expire_later(self._transcriber.buffer_idle_s)
        self._sound += samples

    def _forget_before(self, place_ms: int) -> None:
        if place_ms > self._sound_from_ms:
            del self._sound[: (place_ms - self._sound_from_ms) * MS_BYTES]
            self._sound_from_ms = place_ms
        if len(self._sound) <= FREE_BYTES and self._hold is not None:
            self._hold.close()
            self._hold = None
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None

    def _expire_later(self, wait_s: float) -> None:
        self._expiry = self._loop.call_later(wait_s, self._expire)

    def _expire(self) -> None:
        """Drop speech in whose middle the microphone fell silent for good."""
        idle_s = self._transcriber.buffer_idle_s
        quiet_s = self._loop.time() - self._heard_at
        if quiet_s < idle_s:
            self._expire_later(idle_s - quiet_s)
            return
        self.clear()
        self._on_lost(BufferExpired(idle_s))

    def _give_way(self) -> None:
        self.clear()
        self._on_lost(BufferGaveWay())

    def _now_ms(self) -> float:
        return 1_000 * self._loop.time()


class EarlyTranscript:
    """The transcript of a turn of speech that may be over, begun before it is known to be."""

    def __init__(
        self, transcriber: Transcriber, recording: Recording, language: str | None, caller: Caller, *, clean: bool
    ) -> None:
        self._recording = recording
        self._known: list[str] = []
        """Words that were not told yet."""
        self._tell: Tell | None = None
        self._task = asyncio.get_running_loop().create_task(
            transcriber.transcribe_pcm(
                recording.parts,
                recording.format.encoding,
                recording.format.rate,
                caller,
                language=language,
                tell=self._note,
                clean=clean,
            )
        )
        self._task.add_done_callback(lambda _: recording.close())

    async def heard(self, tell: Tell) -> Heard:
        """Wait for the transcript, and *tell* its words from now on; raises as ``Transcriber.transcribe_pcm`` does."""
        while self._known:
            await tell(self._known.pop(0))
        self._tell = tell
        return await self._task

    async def _note(self, words: str) -> None:
        """Tell *words*, or keep them while nobody may know that there are any."""
        if self._tell is None:
            self._known.append(words)
        else:
            await self._tell(words)

    def drop(self) -> None:
        """Transcribe it no further."""
        self._task.add_done_callback(_retrieve)
        self._task.cancel()


def _retrieve(task: asyncio.Task[Heard]) -> None:
    """Take note of a failure that nobody waits for."""
    if not task.cancelled():
        task.exception()
