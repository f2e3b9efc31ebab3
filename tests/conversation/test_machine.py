"""The conversation as a state machine: whatever is heard and answered in whichever order, it says nothing impossible."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jarvis_core.conversation.clock import SessionClock
from jarvis_core.conversation.detection import CONFIRM_STEPS, INTERRUPT_STEPS, PAUSE_MS, STEP_MS, Thresholds, Waits
from jarvis_core.conversation.machine import (
    ASKED_MS,
    CUT_WINDOW_MS,
    LIMIT_MS,
    SHORT_MS,
    Action,
    Conversation,
    Kind,
    Manner,
)

FIXED_MS = 800
WAITS = Waits(0.9, 0.5, 250, 640, 2_000)
SPEECH, HUSH, SPEECH_FAR, BETWEEN = (0.9, -20.0), (0.1, -60.0), (0.9, -45.0), (0.4, -30.0)


class Listening(RuleBasedStateMachine):
    """Speech and silence, answers that begin, sound and end, clients that commit and clear."""

    def __init__(self) -> None:
        super().__init__()
        self.conversation = Conversation(Manner(Thresholds(silence_ms=FIXED_MS), waits=WAITS))
        self.judgement: float | None = None
        """What the model will say."""
        self.asked = False
        self.wait_ms = FIXED_MS
        self.time_ms = 0.0
        self.open = False
        self.early = False
        self.start_ms = 0
        self.taken_ms = 0
        self.sent_ms = 0.0
        self.answering = False

    @rule(
        steps=st.lists(st.tuples(st.sampled_from([SPEECH, HUSH, SPEECH_FAR, BETWEEN]), st.integers(1, 30)), max_size=6)
    )
    def hear(self, steps: list[tuple[tuple[float, float], int]]) -> None:
        """Feed some sound, and look at what is to be done."""
        for step, count in steps:
            for _ in range(count):
                self.time_ms += STEP_MS
                heard = self.conversation.assistant_heard(self.time_ms)
                if self.conversation.awaits_judgement:
                    self.judge()
                for action in self.conversation.hear([step], self.time_ms):
                    self.look_at(action, heard=heard)

    def look_at(self, action: Action, *, heard: bool) -> None:
        """Hold an action against what came before."""
        match action.kind:
            case Kind.BEGIN:
                assert not self.open
                assert self.taken_ms <= action.start_ms < self.conversation.position_ms
                self.open, self.start_ms = True, action.start_ms
            case Kind.INTERRUPT:
                assert self.open
                if heard:
                    self.conversation.silence(self.time_ms)
                    self.conversation.end_answer()
                    self.answering = False
            case Kind.ASK:
                assert self.open
                assert not self.asked
                assert self.start_ms <= action.start_ms < action.end_ms == self.conversation.position_ms
                assert action.end_ms - action.start_ms <= ASKED_MS
                self.asked, self.wait_ms = True, FIXED_MS
            case Kind.LISTEN:
                assert self.open
                assert not self.early
                assert action.start_ms == self.start_ms
                self.early = True
            case Kind.FORGET:
                assert self.early
                self.early = self.asked = False
                self.wait_ms = FIXED_MS
            case Kind.COMMIT | Kind.CUT:
                assert self.open
                assert action.start_ms == self.start_ms
                assert self.taken_ms <= action.start_ms < action.end_ms <= self.conversation.position_ms
                self.taken_ms = action.end_ms
                self.early = False
                if action.kind is Kind.COMMIT:
                    assert self.wait_ms <= action.silence_ms < self.wait_ms + STEP_MS
                    self.asked, self.wait_ms = False, FIXED_MS
                self.open, self.start_ms = action.kind is Kind.CUT, action.end_ms

    @rule()
    def commit(self) -> None:
        """The client says that it is over."""
        start_ms = self.conversation.commit()
        assert start_ms == (self.start_ms if self.open else self.taken_ms)
        self.open, self.early, self.taken_ms = False, False, self.conversation.position_ms
        self.asked, self.wait_ms = False, FIXED_MS

    @rule(judgement=st.none() | st.sampled_from([0.0, 0.5, 0.7, 0.9, 1.0]))
    def think(self, judgement: float | None) -> None:
        """Have the model be of another opinion from now on."""
        self.judgement = judgement

    @rule()
    def judge(self) -> None:
        """The model says how likely the turn is over: asked or not, early or at the last moment."""
        self.conversation.judge(self.judgement)
        if self.asked and self.judgement is not None:
            self.wait_ms = WAITS.silence_ms(self.judgement)
            if self.conversation._detector.spoken_ms < SHORT_MS:
                self.wait_ms = min(self.wait_ms, FIXED_MS)
        self.asked = False

    @rule()
    def begin_answer(self) -> None:
        """Begin to answer."""
        self.conversation.begin_answer()
        self.answering, self.sent_ms = True, 0.0

    @rule(duration_ms=st.integers(1, 3_000))
    def send_sound(self, duration_ms: int) -> None:
        """Send sound of the answer."""
        if self.answering:
            self.conversation.send_sound(duration_ms, self.time_ms)
            self.sent_ms += duration_ms

    @rule()
    def end_answer(self) -> None:
        """Have the answer end."""
        self.conversation.end_answer()
        self.answering = False

    @rule()
    def silence(self) -> None:
        """Stop its sound."""
        self.conversation.silence(self.time_ms)

    @invariant()
    def nothing_is_heard_that_was_not_sent(self) -> None:
        """What was heard is between nothing and all that was sent."""
        assert 0 <= self.conversation.heard_ms(self.time_ms) <= self.sent_ms

    @invariant()
    def what_is_needed_is_kept(self) -> None:
        """The sound of an open turn is kept from its beginning."""
        assert self.conversation.speaking == self.open
        if self.open:
            assert self.conversation.keep_from_ms == self.start_ms


TestListening = Listening.TestCase
TestListening.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def feed(conversation: Conversation, *parts: tuple[tuple[float, float], int]) -> list[tuple[Kind, int, int]]:
    """Feed (step, count of it) and return what is to be done."""
    return [
        (action.kind, action.start_ms, action.end_ms)
        for step, count in parts
        for action in conversation.hear([step] * count, 0.0)
    ]


@pytest.mark.behaviour("transcription.early")
def test_turn() -> None:
    """A turn begins with its prefix, is listened to early in each pause, and ends after the silence."""
    conversation = Conversation(Manner(Thresholds(silence_ms=480), prefix_padding_ms=96))
    pause = PAUSE_MS // STEP_MS
    found = feed(conversation, (HUSH, 20), (SPEECH, 10), (HUSH, pause), (BETWEEN, 1), (HUSH, 15))
    assert found == [
        (Kind.BEGIN, 17 * 32, (20 + CONFIRM_STEPS) * 32),
        (Kind.INTERRUPT, 0, 0),
        (Kind.LISTEN, 17 * 32, (30 + pause) * 32),
        (Kind.FORGET, 0, 0),
        (Kind.LISTEN, 17 * 32, (31 + 2 * pause) * 32),
        (Kind.COMMIT, 17 * 32, (30 + pause + 1 + 15) * 32),
    ]


@pytest.mark.parametrize(
    ("sound", "begins"),
    [
        ((SPEECH, INTERRUPT_STEPS - 1), False),
        ((SPEECH, INTERRUPT_STEPS), True),
        ((SPEECH_FAR, 100), False),
        ((BETWEEN, 100), False),
    ],
)
@pytest.mark.behaviour("barge_in.length")
def test_what_interrupts(sound: tuple[tuple[float, float], int], begins: bool) -> None:
    """While the assistant is heard only speech of 200 ms that is loud enough begins a turn; an echo does not."""
    conversation = Conversation(Manner())
    conversation.begin_answer()
    assert bool(feed(conversation, (HUSH, 10), sound)) is begins


@pytest.mark.behaviour("detection.changed")
def test_another_silence_in_a_pause() -> None:
    """A client that asks for a shorter silence in the middle of a pause has it there, with a model as without."""
    for waits, judgement in ((None, None), (WAITS, 0.95)):
        conversation = Conversation(Manner(Thresholds(silence_ms=5_000), waits=waits))
        feed(conversation, (SPEECH, 20), (HUSH, 5))
        conversation.judge(judgement)
        conversation.lead(
            Manner(Thresholds(silence_ms=500), waits=None if waits is None else Waits(0.9, 0.5, 500, 640, 2_000))
        )
        assert [kind for kind, _, _ in feed(conversation, (HUSH, 10))] == []
        assert [kind for kind, _, _ in feed(conversation, (HUSH, 1))] == [Kind.COMMIT]


@pytest.mark.parametrize(("steps", "wait_ms"), [(10, FIXED_MS), (40, 2_000)])
@pytest.mark.behaviour("detection.semantic_vad.one_word")
def test_one_word(steps: int, wait_ms: int) -> None:
    """A single word, of which a model knows nothing, is waited for no longer than without one; a sentence is."""
    conversation = Conversation(Manner(Thresholds(silence_ms=FIXED_MS), waits=WAITS))
    feed(conversation, (SPEECH, steps), (HUSH, 5))
    conversation.judge(0.1)
    found = feed(conversation, (HUSH, 100))
    assert [kind for kind, _, _ in found] == [Kind.COMMIT]
    assert wait_ms <= found[0][2] - steps * STEP_MS < wait_ms + STEP_MS


@pytest.mark.behaviour("detection.short_word")
def test_short_word() -> None:
    """A word of a tenth of a second is a turn while nobody else is heard; one step is not."""
    assert feed(Conversation(Manner()), (HUSH, 10), (SPEECH, CONFIRM_STEPS))[0][0] is Kind.BEGIN
    assert not feed(Conversation(Manner()), (HUSH, 10), (SPEECH, 1), (HUSH, 10), (SPEECH, 1))


@pytest.mark.behaviour("detection.limit")
def test_long_speech_is_cut_where_it_is_quietest() -> None:
    """Speech without a pause becomes several turns that leave nothing out."""
    conversation = Conversation(Manner(Thresholds(0.5, 500), prefix_padding_ms=0))
    half = CUT_WINDOW_MS // STEP_MS // 2
    whole = LIMIT_MS // STEP_MS + 1
    found = feed(conversation, (SPEECH, whole - half), (BETWEEN, 1), (SPEECH, half + 100), (HUSH, 20))
    turns = [(start, end) for kind, start, end in found if kind in (Kind.CUT, Kind.COMMIT)]
    assert turns[0] == (0, (whole - half + 1) * STEP_MS)
    assert turns[1][0] == turns[0][1]
    assert [kind for kind, _, _ in found].count(Kind.CUT) == 1


def test_clock() -> None:
    """A client that sends sound tells the time by it, at any pace; where none comes the clock does."""
    clock = SessionClock(1_000)
    for number in range(50):
        clock.hear(100, 1_000 + 10 * number)  # ten times as fast
    assert clock.at(1_490) == 5_000
    assert clock.at(3_490) == 7_000
    clock.hear(100, 3_490)
    assert clock.at(3_490) == 7_000
    slow = SessionClock(0)
    for number in range(1, 50):
        slow.hear(100, 100 * number + (number * 37) % 90)  # as a network delivers
    assert slow.at(4_900 + (49 * 37) % 90) == pytest.approx(4_900, abs=100)
