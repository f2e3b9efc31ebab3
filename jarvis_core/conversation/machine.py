"""
A conversation by voice: who speaks, when a turn of speech is over, and what has to be done.

Sound goes in as steps of 32 ms with the probability of speech; what the assistant does and sends goes in as calls; actions
come out, in the order in which they are to be done. Nothing here waits, and nobody else keeps this state. It cannot be that

- speech ends or pauses that has not begun, or begins twice;
- two turns of speech overlap, or one is committed twice;
- a turn is judged to be over by another pause than the one that was asked about;
- the assistant is interrupted while it neither answers nor is heard, or by speech of its own loudspeaker;
- sound counts as heard that was not sent, or before it was sent.

Places are milliseconds of all sound that was fed to the session; times are a ``SessionClock``'s, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from jarvis_core.conversation.detection import STEP_MS, Change, Detector, Phase, Thresholds, Waits, steps_of

LIMIT_MS = 590_000
"""Of one turn of speech: a recording may last ten minutes."""
ASKED_MS = 8_000
"""Sound by which a model judges whether a turn is over."""
SHORT_MS = 700
"""
Shorter speech is waited for no longer than without a model: of one word, such as "oui", that is never sure whether it is all.
"""
KEPT_MS = 2_000
"""Sound that is kept while nobody speaks: a client may commit it."""
CUT_WINDOW_MS = 60_000
"""A longer one is cut at the quietest place of its last minute."""


class Manner(Struct, frozen=True):
    """How a conversation is led; the names are the vocabulary's."""

    thresholds: Thresholds = Thresholds()
    prefix_padding_ms: int = 300
    """How much sound before the onset belongs to a turn of speech."""
    interrupt_response: bool = True
    waits: Waits | None = None
    """Where a model tells whether speech is over; the fixed silence holds where it does not answer."""
    idle_timeout_ms: int | None = None
    """Silence behind an answer that is over and was played, after which the assistant is to go on; None for never."""


class Kind(Enum):
    """What is to be done."""

    BEGIN = "begin"
    """Tell that speech has begun; ``start_ms`` is the prefix's beginning."""
    INTERRUPT = "interrupt"
    """Stop the answer and its voice."""
    ASK = "ask"
    """Ask whether the turn is over, by the sound from ``start_ms`` to ``end_ms``; ``judge`` takes the answer."""
    LISTEN = "listen"
    """Begin to transcribe ``start_ms`` to ``end_ms`` early: the turn may be over."""
    FORGET = "forget"
    """Drop the early transcript, and the answer that was asked for: speech goes on."""
    COMMIT = "commit"
    """The turn is over: from ``start_ms`` to ``end_ms``, silence included."""
    TIME_OUT = "time_out"
    """Nobody has said anything from ``start_ms`` to ``end_ms``, behind an answer."""
    CUT = "cut"
    """Commit a part of a turn that goes on: it has become too long."""


class Action(Struct, frozen=True):
    """One thing to do."""

    kind: Kind
    start_ms: int = 0
    end_ms: int = 0
    silence_ms: int = 0
    """How long it had been silent when the turn was over,"""
    end_probability: float | None = None
    """and how likely it was over, as the model said; None where it said nothing."""


class Conversation:
    """The state of one conversation by voice."""

    def __init__(self, manner: Manner) -> None:
        self.manner = manner
        self._detector = Detector(manner.thresholds)
        self._start_ms = 0
        """Where the turn of speech begins, with its prefix."""
        self._taken_ms = 0
        """Sound up to here belongs to an earlier turn, or was dropped."""
        self._probabilities: list[float] = []
        """Of the steps of the turn's last minute, for the place to cut it."""
        self._asked = False
        """Whether an answer is awaited in this pause."""
        self._end_probability: float | None = None
        """What was answered in this pause."""
        self._answering = False
        self._sent_ms = 0.0
        """Sound of the answer that was sent."""
        self._playing_until_ms: float | None = None
        """When all of it will have been played; None where none is to be played."""
        self._silent_from_ms: int | None = None
        """The place from which nobody speaks, behind an answer; None where somebody has spoken since, or nobody was answered."""

    @property
    def position_ms(self) -> int:
        """Return how much sound was fed."""
        return self._detector.position * STEP_MS

    @property
    def speaking(self) -> bool:
        """Return whether a turn of speech is open."""
        return self._detector.phase is not Phase.SILENT

    @property
    def awaits_judgement(self) -> bool:
        """Return whether the next step can only be taken once ``judge`` has told whether the turn is over."""
        waits = self.manner.waits
        return self._asked and waits is not None and self._detector.silence_ms + STEP_MS >= waits.short_ms

    @property
    def keep_from_ms(self) -> int:
        """Return the place before which sound is not needed any more."""
        if self.speaking:
            return self._start_ms
        return max(self._taken_ms, self.position_ms - max(KEPT_MS, self.manner.prefix_padding_ms + KEPT_MS // 4))

    def lead(self, manner: Manner) -> None:
        """Go on in another manner, from the next step on."""
        self.manner = manner
        self._detector.thresholds = manner.thresholds
        self._wait()

    def hear(self, steps: Iterable[tuple[float, float]], time_ms: float) -> list[Action]:
        """Take the next steps, each with its probability of speech and its level in dB, which were heard at *time_ms*."""
        actions: list[Action] = []
        for probability, level_db in steps:
            change = self._detector.feed(probability, level_db, assistant_heard=self.assistant_heard(time_ms))
            if change is not None:
                actions += self._follow(change)
            if self._silent_from_ms is not None:
                actions += self._time_out(self._silent_from_ms, time_ms)
            if self.speaking:
                self._probabilities.append(probability)
                if self.position_ms - self._start_ms >= LIMIT_MS:
                    actions.append(self._cut())
        return actions

    def judge(self, probability: float | None) -> None:
        """Take the answer to ``ASK``: how likely the turn is over, 0..1; None leaves the fixed silence."""
        if not self._asked:
            return
        self._asked = False
        self._end_probability = probability
        self._wait()

    def commit(self) -> int:
        """Have the turn of speech end here because the client says so; return where the sound that is not yet taken begins."""
        start_ms = self._start_ms if self.speaking else self._taken_ms
        self._detector.end()
        self._asked, self._end_probability = False, None
        self._taken_ms = self.position_ms
        return start_ms

    def clear(self) -> None:
        """Drop the turn of speech and all sound up to here."""
        self.commit()

    def begin_answer(self, sent_ms: float = 0.0) -> None:
        """
        Note that an answer begins; what is still played of the one before is not counted any more.

        *sent_ms* of its sound were sent, and played, over an earlier connection.
        """
        self._answering = True
        self._silent_from_ms = None
        self._sent_ms = sent_ms
        self._playing_until_ms = None

    def send_sound(self, duration_ms: float, time_ms: float) -> None:
        """Note that sound of the answer was sent, which is played behind what was sent before."""
        self._sent_ms += duration_ms
        self._playing_until_ms = max(time_ms, self._playing_until_ms or 0.0) + duration_ms

    def end_answer(self) -> None:
        """Note that the answer has ended; its sound may still be played."""
        self._answering = False
        self._silent_from_ms = None if self.speaking else self.position_ms

    def silence(self, time_ms: float) -> None:
        """Note that the sound of the answer is not played any further."""
        if self._playing_until_ms is not None:
            self._sent_ms = self.heard_ms(time_ms)
            self._playing_until_ms = None

    def assistant_heard(self, time_ms: float) -> bool:
        """Return whether the assistant answers, or sound of its answer is still being played."""
        return self._answering or (self._playing_until_ms is not None and time_ms < self._playing_until_ms)

    def heard_ms(self, time_ms: float) -> float:
        """Return how much sound of the answer was played."""
        if self._playing_until_ms is None:
            return self._sent_ms
        return max(0.0, self._sent_ms - max(0.0, self._playing_until_ms - time_ms))

    def _wait(self) -> None:
        """Have the detector wait for as much silence as the manner and the answer in this pause ask for."""
        probability, waits = self._end_probability, self.manner.waits
        if probability is None or waits is None:
            self._detector.wait_ms = self.manner.thresholds.silence_ms
        else:
            self._detector.wait_ms = waits.silence_ms(probability)
            if self._detector.spoken_ms < SHORT_MS:
                self._detector.wait_ms = min(self._detector.wait_ms, self.manner.thresholds.silence_ms)

    def _follow(self, change: Change) -> list[Action]:
        detector = self._detector
        match change:
            case Change.BEGAN:
                self._start_ms = max(self._taken_ms, detector.onset * STEP_MS - self.manner.prefix_padding_ms, 0)
                self._probabilities = []
                self._silent_from_ms = None
                begun = Action(Kind.BEGIN, self._start_ms, self.position_ms)
                return [begun, Action(Kind.INTERRUPT)] if self.manner.interrupt_response else [begun]
            case Change.PAUSED:
                heard = Action(Kind.LISTEN, self._start_ms, self.position_ms)
                self._asked = self.manner.waits is not None
                if not self._asked:
                    return [heard]
                return [Action(Kind.ASK, max(self._start_ms, self.position_ms - ASKED_MS), self.position_ms), heard]
            case Change.RESUMED:
                self._asked, self._end_probability = False, None
                return [Action(Kind.FORGET)]
            case Change.ENDED:
                self._taken_ms = self.position_ms
                probability, self._asked, self._end_probability = self._end_probability, False, None
                return [
                    Action(Kind.COMMIT, self._start_ms, self.position_ms, detector.silence_ms, probability),
                ]

    def _time_out(self, silent_from_ms: int, time_ms: float) -> list[Action]:
        """Look whether it has been silent for long enough, which counts from when nothing was played any more."""
        if self.assistant_heard(time_ms):
            self._silent_from_ms = self.position_ms
            return []
        timeout_ms = self.manner.idle_timeout_ms
        if timeout_ms is None or self.position_ms - silent_from_ms < timeout_ms:
            return []
        self._silent_from_ms = None
        self._taken_ms = self.position_ms
        return [Action(Kind.TIME_OUT, silent_from_ms, self.position_ms)]

    def _cut(self) -> Action:
        """End a part of the turn at the quietest step of its last minute."""
        recent = self._probabilities[-steps_of(CUT_WINDOW_MS) :]
        quietest = min(range(len(recent)), key=recent.__getitem__)
        begin_ms, end_ms = self._start_ms, self.position_ms - (len(recent) - 1 - quietest) * STEP_MS
        self._start_ms = self._taken_ms = end_ms
        self._probabilities = recent[quietest + 1 :]
        return Action(Kind.CUT, begin_ms, end_ms)
