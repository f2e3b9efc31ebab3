"""
Reads a turn aloud while its text arrives: piece by piece, the text and then its sound.

A piece is a sentence; but the listener who has nothing to hear gets a first clause of it, and so much more each time as
can be made while what was sent is heard: how long the voice takes is measured. The voice keeps just ahead of the listener:
at most ``AHEAD_PIECES`` are synthesized that have not begun to play, so that little is wasted when the listener interrupts.
When a piece plays is computed from the durations sent and the clock. ``silence`` stops the voice at once; the text still
comes to its end, as it is stored.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from enum import IntEnum

from msgspec import Struct

from jarvis_core import cancellation, log
from jarvis_core.codec.client import EncodedPiece
from jarvis_core.codec.messages import SAMPLE_BYTES
from jarvis_core.conversation.ledger import Ledger
from jarvis_core.errors import RequestError
from jarvis_core.models import Caller, Status
from jarvis_core.speech.synthesis import SpeechOptions, SpeechStream, Synthesizer
from jarvis_core.tasks import Preempted, unless
from jarvis_core.turns.log import CLOSING, OPENING, Reader, Step, Turn
from jarvis_core.words.clauses import first_clause, part
from jarvis_core.words.markup import speakable
from jarvis_core.words.sentences import SentenceSplitter

logger = log.get(__name__)
_failures = log.LogThrottle()

AHEAD_PIECES = 2
"""Pieces that are synthesized before they begin to play, at most."""
AHEAD_CHARS = 120
"""A voice is never behind by more than it takes for so many: where pieces are short, more of them are synthesized."""
SENTENCE_CHARS = 300
FIRST_SENTENCE_CHARS = 160
"""The listener waits for the first sentence: a long one is cut."""
SAFETY = 0.85
"""Share of the time until the voice would fall silent in which the next piece is to be made."""
SPARE_S = 0.3
"""A piece that is begun so shortly before that comes too late, however short it is."""
FEWEST_CHARS = 30
"""Of a piece that is made shorter for its time."""
INTERRUPTIONS = ("cancelled", "turn_detected")
"""Why a voice is to stop because somebody interrupts it."""
CHUNK_S = 0.5
"""Sound in one entry."""


class Phase(IntEnum):
    """The kind of an entry, in the order in which entries come."""

    START = 0
    """Before everything."""
    CREATED = 1
    OPENING = 2
    TEXT = 3
    """A piece, or some of its sound."""
    VOICE_DONE = 4
    """The voice has said all."""
    CLOSING = 5


class Cursor(Struct, frozen=True, order=True, array_like=True):
    """The place at which an entry of a narration ends; later places compare greater."""

    phase: Phase
    at: int = 0
    """Code points of the text up to here; in other phases, the index of the step."""
    sound_bytes: int = 0
    """Bytes of the last piece's sound up to here; ``WHOLE`` for all of it."""


START = Cursor(Phase.START)
WHOLE = 1 << 62

Narrated = Step | str | bytes | RequestError
"""A step of the turn, a piece of its text, some of its sound (samples as they are sent), or why there is no more sound."""


class Narration:
    """Reads one turn aloud to one listener."""

    def __init__(self, turn: Turn, synthesizer: Synthesizer, options: SpeechOptions, caller: Caller) -> None:
        self.turn = turn
        self.ledger = Ledger()
        """The pieces that were spoken; who sends their sound notes it there."""
        self._synthesizer = synthesizer
        self._options = options
        self._sample_bytes = SAMPLE_BYTES[options.output_format]
        self._caller = caller
        self._sentences: deque[tuple[int, str]] = deque()
        """Those of which the voice has not begun with all, each with the code point of the turn's text where it begins."""
        self._unfinished = (0, "")
        """The same of the sentence that the model is writing."""
        self._begun_chars = 0
        """Up to which code point the voice has begun."""
        self._known_ends: list[int] = []
        """Where pieces ended that a listener got who comes back."""
        self._collected = False
        """Whether the turn has ended, so that no more sentences come."""
        self._changed = asyncio.Event()
        self._silence: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with a turn's reason once the voice is to stop."""
        self._begins: list[float] = []
        """When each piece begins to play."""
        self._s_per_char: float | None = None
        """How long the voice took for the last piece, for each code point."""
        self._heard_until = 0.0
        """When all sound that was sent will have been played."""
        self._stream: SpeechStream | None = None
        self._said_chars = 0
        self._told_chars = 0
        """Where the text ends that the listener was told, once the voice has ended."""
        self._interrupted = False

    @property
    def voice(self) -> str | None:
        """The id of the voice, once a sentence was spoken."""
        return None if self._stream is None else self._stream.voice

    @property
    def silenced(self) -> str | None:
        """Why the voice was stopped before it had said everything, as a turn's reason; None where it was not."""
        return self._silence.result() if self._silence.done() else None

    @property
    def interrupted(self) -> bool:
        """Whether somebody has interrupted it: what is not said by then is not told either."""
        return self._interrupted

    def transcript(self) -> str:
        """Return what is told of the answer's text: all of it, or what was said before somebody interrupted."""
        if not self._interrupted:
            return self.turn.text()
        return self.turn.logged_text()[self.turn.answer_at : self._told_chars]

    def silence(self, reason: str) -> None:
        """Stop the voice; gives up the sentence that is being spoken."""
        self._interrupted = self._interrupted or (reason in INTERRUPTIONS and not self._silence.done())
        self._fall_silent(reason)

    def _fall_silent(self, reason: str) -> None:
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
        self._sentences.clear()
        self._begins, self._said_chars, self._collected = [], 0, False
        self._unfinished, self._begun_chars = (0, ""), 0
        self._known_ends = [piece.end_chars for piece in self.ledger.spoken]
        self._heard_until, self._stream, self._s_per_char = 0.0, None, None
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
                text = self.turn.logged_text()
                told_chars = max(self._said_chars, self._seen_chars(after), self.turn.answer_at)
                if text[told_chars:] and not self._interrupted:
                    yield Cursor(Phase.TEXT, len(text), WHOLE), text[told_chars:]
                    told_chars = len(text)
                self._told_chars = told_chars
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

    def _seen_chars(self, after: Cursor) -> int:
        """Return where the text ends that the listener had been told at the place *after*."""
        if after.phase < Phase.TEXT:
            return 0
        if after.phase is Phase.TEXT:
            return after.at
        if self._interrupted:
            return self.ledger.spoken[-1].end_chars if self.ledger.spoken else 0
        return len(self.turn.logged_text())

    async def _collect(self) -> None:
        """Cut the turn's text into sentences as it arrives."""
        reader = Reader(self.turn)
        splitter = SentenceSplitter(limit_chars=SENTENCE_CHARS, first_limit_chars=FIRST_SENTENCE_CHARS)
        end = answer_at = self._begun_chars = self.ledger.answer_at = self.turn.answer_at
        try:
            ended = False
            while not ended:
                taken = await reader.next()
                ended = not taken or taken[-1][1] is Step.ENDED
                if answer_at != self.turn.answer_at:
                    # What was said before is no answer: it is not spoken as far as the voice has not begun with it.
                    splitter.end()
                    self._sentences.clear()
                    end = answer_at = self._begun_chars = self.ledger.answer_at = self.turn.answer_at
                for _, entry in taken:
                    if isinstance(entry, str):
                        end = self._collect_sentences(splitter.feed(entry), end)
                self._unfinished = end, splitter.pending
                self._changed.set()
            end = self._collect_sentences(splitter.end(), end)
            self._unfinished = end, ""
            if self.turn.status is Status.CANCELLED:
                self._fall_silent(self.turn.reason)
        finally:
            # Also after a defect: the task that waits for a sentence has to wake.
            self._collected = True
            self._changed.set()

    def _collect_sentences(self, sentences: list[str], end: int) -> int:
        """Add *sentences* that follow the code point *end* of the turn's text; return where they end."""
        for sentence in sentences:
            self._sentences.append((end, sentence))
            end += len(sentence)
        return end

    async def _until_opened(self) -> None:
        while not (self.turn.opened or self._collected):
            self._changed.clear()
            await self._changed.wait()

    async def _next_piece(self, *, muted: bool) -> tuple[int, str, bool] | None:
        """
        Wait for the next piece; return where it ends, its words, and whether they end a sentence.

        None when there are no more, or the voice is to stop.
        """
        while self.silenced is None:
            start, rest, whole = self._rest()
            length, wait_s = self._length(start, rest, whole=whole, muted=muted) if rest else (0, None)
            if length:
                self.turn.timer.note_first_sentence()
                self._begun_chars = start + length
                return self._begun_chars, rest[:length], whole and length == len(rest)
            if self._collected and not rest:
                return None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with cancellation.timeout(wait_s):
                    await self._changed.wait()
        return None

    def _rest(self) -> tuple[int, str, bool]:
        """Return what the voice has not begun with of the next sentence: where that begins, its words, and whether it is whole."""
        while self._sentences:
            start, sentence = self._sentences[0]
            if self._begun_chars < start + len(sentence):
                begun_chars = max(start, self._begun_chars)
                return begun_chars, sentence[begun_chars - start :], True
            self._sentences.popleft()
        start, sentence = self._unfinished
        begun_chars = max(start, self._begun_chars)
        return begun_chars, sentence[begun_chars - start :], False

    def _length(self, start: int, rest: str, *, whole: bool, muted: bool) -> tuple[int, float | None]:
        """
        Return how many code points of *rest* are the next piece: as many as are spoken before the listener has heard all.

        0 where that is to be seen with more of the sentence, or after the seconds that are returned beside it.
        """
        known = bisect.bisect_right(self._known_ends, start)
        if known < len(self._known_ends):
            # Pieces end for a listener that comes back where they ended before.
            length = self._known_ends[known] - start
            # A worker that was killed may have stored less than was said.
            return (length if length <= len(rest) else len(rest) if whole else 0), None
        if muted:
            return (len(rest) if whole else 0), None
        now = asyncio.get_running_loop().time()
        left_s = self._heard_until - now
        if left_s <= SPARE_S or self._s_per_char is None:
            return first_clause(rest, whole=whole), None
        if not whole:
            wait_s = left_s * SAFETY - self._s_per_char * len(rest)
            return (0, wait_s) if wait_s > 0 else (first_clause(rest, whole=False), None)
        left_s = self._heard_until - max(now, self._due())
        return part(rest, max(FEWEST_CHARS, int(left_s * SAFETY / max(self._s_per_char, 1e-6)))), None

    async def _speak(self, stack: AsyncExitStack, after: Cursor) -> AsyncGenerator[tuple[Cursor, Narrated], None]:
        """Yield the pieces and their sound, until all is spoken or the voice is to stop."""
        muted = False
        while (found := await self._next_piece(muted=muted)) is not None:
            end, text, ends_sentence = found
            if Cursor(Phase.TEXT, end, WHOLE) <= after:
                self._said_chars = end
                continue
            is_begun = after.phase is Phase.TEXT and after.at == end
            heard_bytes = after.sound_bytes if is_begun else 0
            piece: EncodedPiece | None = None
            failure: RequestError | None = None
            words = "" if muted else speakable(text)
            if words and not ends_sentence and words[-1].isalnum():
                # Or it would be read as the end of the sentence.
                words += ","
            if words:
                try:
                    piece = await unless(self._silence, self._say(stack, words))
                except Preempted:
                    return
                except RequestError as exc:
                    failure = exc
            self._said_chars = end
            if not is_begun:
                yield Cursor(Phase.TEXT, end, 0 if piece is not None else WHOLE), text
            if failure is not None:
                # From here on there are words only.
                muted = True
                held_back = _failures.held_back(failure.code)
                if held_back is not None:
                    logger.info("a voice failed", error=failure.message, held_back=held_back)
                yield Cursor(Phase.TEXT, end, WHOLE), failure
            if piece is None:
                self.ledger.begin(text, end, 0.0)
            else:
                self._begin_to_be_heard(piece.duration_ms / 1_000)
                second_bytes = self._sample_bytes * piece.sample_rate_hz
                sent_ms = 1_000 * min(heard_bytes, len(piece.data)) / second_bytes
                self.ledger.begin(text, end, piece.duration_ms, sent_ms)
                chunk_bytes = self._sample_bytes * round(CHUNK_S * piece.sample_rate_hz)
                for start in range(heard_bytes, len(piece.data), chunk_bytes):
                    if self.silenced is not None:
                        return
                    stop = start + chunk_bytes
                    sent_bytes = stop if stop < len(piece.data) else WHOLE
                    yield Cursor(Phase.TEXT, end, sent_bytes), piece.data[start:stop]

    def _due(self) -> float:
        """Return when the next piece may be made: few enough wait to be played, or they are short."""
        if len(self._begins) < AHEAD_PIECES:
            return 0.0
        return min(self._begins[-AHEAD_PIECES], self._heard_until - AHEAD_CHARS * (self._s_per_char or 0.0))

    async def _say(self, stack: AsyncExitStack, words: str) -> EncodedPiece | None:
        """Synthesize *words*, once few enough pieces wait to be played; return None where no part of them can be spoken."""
        loop = asyncio.get_running_loop()
        if (due := self._due()) > loop.time():
            await asyncio.sleep(due - loop.time())
        if self._stream is None:
            self._stream = await stack.enter_async_context(self._synthesizer.open_stream(self._options, self._caller))
        began = loop.time()
        piece = await self._stream.say(words)
        if piece is None:
            return None
        if self._s_per_char is None or len(words) >= FEWEST_CHARS:
            self._s_per_char = (loop.time() - began) / len(words)
        # Each piece is whole by itself, to the last sample that a resampler holds back: so it sounds the same, and is
        # as long, for a listener that comes back in the middle of it.
        rest = await self._stream.finish()
        return EncodedPiece(piece.data + rest.data, piece.duration_ms, piece.sample_rate_hz)

    def _begin_to_be_heard(self, duration_s: float) -> None:
        begin = max(asyncio.get_running_loop().time(), self._heard_until)
        self._heard_until = begin + duration_s
        self._begins.append(begin)
