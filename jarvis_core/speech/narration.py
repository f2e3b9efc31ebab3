"""
Reads a turn aloud while its text arrives: sentence by sentence, the text and then its sound.

The voice keeps just ahead of the listener: at most ``AHEAD_SENTENCES`` are synthesized that have not begun to play, so
that little is wasted when the listener interrupts. When a sentence plays is computed from the durations sent and the
clock. ``silence`` stops the voice at once; the text still comes to its end, as it is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from enum import IntEnum

from msgspec import Struct

from jarvis_core import log
from jarvis_core.codec.client import EncodedPiece
from jarvis_core.codec.messages import SAMPLE_BYTES
from jarvis_core.conversation.ledger import Ledger
from jarvis_core.errors import RequestError
from jarvis_core.models import Caller, Status
from jarvis_core.speech.synthesis import SpeechOptions, SpeechStream, Synthesizer
from jarvis_core.tasks import Preempted, unless
from jarvis_core.turns.log import CLOSING, OPENING, Reader, Step, Turn
from jarvis_core.words.markup import speakable
from jarvis_core.words.sentences import SentenceSplitter

logger = log.get(__name__)
_failures = log.LogThrottle()

AHEAD_SENTENCES = 2
"""Sentences that are synthesized before they begin to play, at most."""
SENTENCE_CHARS = 300
FIRST_SENTENCE_CHARS = 160
"""The listener waits for the first sentence: a long one is cut."""
CHUNK_S = 0.5
"""Sound in one entry."""


class Phase(IntEnum):
    """The kind of an entry, in the order in which entries come."""

    START = 0
    """Before everything."""
    CREATED = 1
    OPENING = 2
    TEXT = 3
    """A sentence, or some of its sound."""
    VOICE_DONE = 4
    """The voice has said all."""
    CLOSING = 5


class Cursor(Struct, frozen=True, order=True, array_like=True):
    """The place at which an entry of a narration ends; later places compare greater."""

    phase: Phase
    at: int = 0
    """Code points of the text up to here; in other phases, the index of the step."""
    sound_bytes: int = 0
    """Bytes of the last sentence's sound up to here; ``WHOLE`` for all of it."""


START = Cursor(Phase.START)
WHOLE = 1 << 62

Narrated = Step | str | bytes | RequestError
"""A step of the turn, a sentence, some of its sound (samples as they are sent), or why there is no more sound."""


class Narration:
    """Reads one turn aloud to one listener."""

    def __init__(self, turn: Turn, synthesizer: Synthesizer, options: SpeechOptions, caller: Caller) -> None:
        self.turn = turn
        self.ledger = Ledger()
        """The sentences that were spoken; who sends their sound notes it there."""
        self._synthesizer = synthesizer
        self._options = options
        self._sample_bytes = SAMPLE_BYTES[options.output_format]
        self._caller = caller
        self._sentences: list[tuple[int, str]] = []
        """Each with the code point of the turn's text where it ends."""
        self._begun_sentences = 0
        """How many of them the voice has begun with."""
        self._collected = False
        """Whether the turn has ended, so that no more sentences come."""
        self._changed = asyncio.Event()
        self._silence: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with a turn's reason once the voice is to stop."""
        self._begins: list[float] = []
        """When each sentence begins to play."""
        self._heard_until = 0.0
        """When all sound that was sent will have been played."""
        self._stream: SpeechStream | None = None
        self._said_chars = 0

    @property
    def voice(self) -> str | None:
        """The id of the voice, once a sentence was spoken."""
        return None if self._stream is None else self._stream.voice

    @property
    def silenced(self) -> str | None:
        """Why the voice was stopped before it had said everything, as a turn's reason; None where it was not."""
        return self._silence.result() if self._silence.done() else None

    def silence(self, reason: str) -> None:
        """Stop the voice; gives up the sentence that is being spoken."""
        if not self._silence.done():
            self._silence.set_result(reason)
            self._changed.set()

    async def entries(self, after: Cursor = START) -> AsyncGenerator[tuple[Cursor, Narrated], None]:
        """
        Yield (place, entry) of every entry after the place *after*, to the turn's end.

        A listener that comes back in the middle of a sentence gets the rest of its sound, synthesized again. Close the
        iterator to stop; only one may run at a time.
        """
        loop = asyncio.get_running_loop()
        self._sentences, self._begins, self._said_chars, self._collected = [], [], 0, False
        self._begun_sentences = 0
        self._heard_until, self._stream = 0.0, None
        collecting = loop.create_task(self._collect())
        stack = AsyncExitStack()
        try:
            created = Cursor(Phase.CREATED)
            if after < created:
                yield created, Step.CREATED
            await self._until_opened()
            if self.turn.opened:
                for number, step in enumerate(OPENING):
                    place = Cursor(Phase.OPENING, number)
                    if after < place:
                        yield place, step
                async with aclosing(self._speak(stack, after)) as spoken:
                    async for place, entry in spoken:
                        yield place, entry
                await collecting
                seen_chars = (
                    after.at
                    if after.phase is Phase.TEXT
                    else len(self.turn.logged_text())
                    if after.phase > Phase.TEXT
                    else 0
                )
                text = self.turn.logged_text()
                rest = text[max(self._said_chars, seen_chars, self.turn.answer_at) :]
                if rest:
                    yield Cursor(Phase.TEXT, len(text), WHOLE), rest
            else:
                await collecting
            steps = (*(CLOSING if self.turn.opened else ()), Step.ENDED)
            for number, step in enumerate(steps):
                place = Cursor(Phase.CLOSING, number)
                if after < place:
                    yield place, step
        finally:
            collecting.cancel()
            await stack.aclose()

    async def _collect(self) -> None:
        """Cut the turn's text into sentences as it arrives."""
        reader = Reader(self.turn)
        splitter = SentenceSplitter(limit_chars=SENTENCE_CHARS, first_limit_chars=FIRST_SENTENCE_CHARS)
        end = answer_at = self.turn.answer_at
        try:
            ended = False
            while not ended:
                taken = await reader.next()
                ended = not taken or taken[-1][1] is Step.ENDED
                if answer_at != self.turn.answer_at:
                    # What was said before is no answer: it is not spoken as far as the voice has not begun with it.
                    splitter.end()
                    del self._sentences[self._begun_sentences :]
                    end = answer_at = self.turn.answer_at
                for _, entry in taken:
                    if isinstance(entry, str):
                        end = self._collect_sentences(splitter.feed(entry), end)
                self._changed.set()
            self._collect_sentences(splitter.end(), end)
            if self.turn.status is Status.CANCELLED:
                self.silence(self.turn.reason)
        finally:
            # Also after a defect: the task that waits for a sentence has to wake.
            self._collected = True
            self._changed.set()

    def _collect_sentences(self, sentences: list[str], end: int) -> int:
        """Add *sentences* that follow the code point *end* of the turn's text; return where they end."""
        if sentences:
            self.turn.timer.note_first_sentence()
        for sentence in sentences:
            end += len(sentence)
            self._sentences.append((end, sentence))
        return end

    async def _until_opened(self) -> None:
        while not (self.turn.opened or self._collected):
            self._changed.clear()
            await self._changed.wait()

    async def _next_sentence(self) -> tuple[int, str] | None:
        """
        Wait for the next sentence; return where it ends and its words.

        None when there are no more, or the voice is to stop.
        """
        while self.silenced is None:
            if self._begun_sentences < len(self._sentences):
                self._begun_sentences += 1
                return self._sentences[self._begun_sentences - 1]
            if self._collected:
                return None
            self._changed.clear()
            await self._changed.wait()
        return None

    async def _speak(self, stack: AsyncExitStack, after: Cursor) -> AsyncGenerator[tuple[Cursor, Narrated], None]:
        """Yield the sentences and their sound, until all is spoken or the voice is to stop."""
        muted = False
        while (found := await self._next_sentence()) is not None:
            end, sentence = found
            if Cursor(Phase.TEXT, end, WHOLE) <= after:
                self._said_chars = end
                continue
            is_begun = after.phase is Phase.TEXT and after.at == end
            heard_bytes = after.sound_bytes if is_begun else 0
            piece: EncodedPiece | None = None
            failure: RequestError | None = None
            words = "" if muted else speakable(sentence)
            if words:
                try:
                    piece = await unless(self._silence, self._say(stack, words))
                except Preempted:
                    return
                except RequestError as exc:
                    failure = exc
            self._said_chars = end
            if not is_begun:
                yield Cursor(Phase.TEXT, end, 0 if piece is not None else WHOLE), sentence
            if failure is not None:
                # From here on there are words only.
                muted = True
                held_back = _failures.held_back(failure.code)
                if held_back is not None:
                    logger.info("a voice failed", error=failure.message, held_back=held_back)
                yield Cursor(Phase.TEXT, end, WHOLE), failure
            if piece is None:
                self.ledger.begin(sentence, end, 0.0)
            else:
                self._begin_to_be_heard(piece.duration_ms / 1_000)
                second_bytes = self._sample_bytes * piece.sample_rate_hz
                sent_ms = 1_000 * min(heard_bytes, len(piece.data)) / second_bytes
                self.ledger.begin(sentence, end, piece.duration_ms, sent_ms)
                chunk_bytes = self._sample_bytes * round(CHUNK_S * piece.sample_rate_hz)
                for start in range(heard_bytes, len(piece.data), chunk_bytes):
                    if self.silenced is not None:
                        return
                    stop = start + chunk_bytes
                    sent_bytes = stop if stop < len(piece.data) else WHOLE
                    yield Cursor(Phase.TEXT, end, sent_bytes), piece.data[start:stop]

    async def _say(self, stack: AsyncExitStack, words: str) -> EncodedPiece | None:
        """Synthesize *words*, once few enough sentences wait to be played; return None where no part of them can be spoken."""
        if len(self._begins) >= AHEAD_SENTENCES:
            await asyncio.sleep(self._begins[-AHEAD_SENTENCES] - asyncio.get_running_loop().time())
        if self._stream is None:
            self._stream = await stack.enter_async_context(self._synthesizer.open_stream(self._options, self._caller))
        piece = await self._stream.say(words)
        if piece is None:
            return None
        # Each sentence is whole by itself, to the last sample that a resampler holds back: so it sounds the same, and is
        # as long, for a listener that comes back in the middle of it.
        rest = await self._stream.finish()
        return EncodedPiece(piece.data + rest.data, piece.duration_ms, piece.sample_rate_hz)

    def _begin_to_be_heard(self, duration_s: float) -> None:
        begin = max(asyncio.get_running_loop().time(), self._heard_until)
        self._heard_until = begin + duration_s
        self._begins.append(begin)
