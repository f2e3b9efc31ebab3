"""A turn read aloud, with a voice and a clock in the test's own hands."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jarvis_core.codec.client import EncodedPiece
from jarvis_core.errors import BadGateway
from jarvis_core.models import Caller, Status, new_id
from jarvis_core.speech.narration import CHUNK_S, START, Cursor, Narrated, Narration
from jarvis_core.speech.synthesis import SpeechOptions, SpeechStream, Synthesizer
from jarvis_core.store.turns import TurnEnd
from jarvis_core.turns.log import CLOSING, OPENING, Step, Turn
from jarvis_core.words.sentences import SentenceSplitter, split

pytestmark = pytest.mark.every_python

CALLER = Caller("zoé")
RATE_HZ = 1_000
COUNT = ("Un. ", "Deux. ", "Trois. ", "Quatre. ", "Cinq. ", "Six.")
LONG_S = 1_000.0
"""A sentence of this length is not over before the test moves the clock."""


class Clock:
    """The running loop's time, which the test may put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time
        self._ahead_s = 0.0
        monkeypatch.setattr(loop, "time", lambda: now() + self._ahead_s)

    async def advance(self, duration_s: float) -> None:
        """Let so much time pass."""
        self._ahead_s += duration_s
        await settle()


class Voice(Synthesizer):
    """Speaks with the words themselves; what it does otherwise, its fields say."""

    def __init__(self, *, duration_s: float = 0.0, chunks: int = 1) -> None:
        self.duration_s = duration_s
        """Of each sentence, as it is told."""
        self.chunks = chunks
        """How much sound each sentence has."""
        self.failing: dict[str, Exception] = {}
        self.unsayable: set[str] = set()
        self.hanging = False
        self.asked: list[str] = []
        self.given_up: list[str] = []
        self.opened = 0
        self.closed = 0

    @asynccontextmanager
    async def open_stream(self, options: SpeechOptions, caller: Caller) -> AsyncIterator[SpeechStream]:
        """Lend what speaks."""
        assert (options, caller) == (OPTIONS, CALLER)
        self.opened += 1
        try:
            yield Mouth(self)
        finally:
            self.closed += 1

    def sound(self, words: str) -> bytes:
        """Return what *words* sound like."""
        length = round(2 * CHUNK_S * RATE_HZ * (self.chunks - 0.5))
        return (words.encode() * length)[: length // 2 * 2]


class Mouth(SpeechStream):
    """The voice's side of one stream."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._rest = b""

    async def say(self, text: str) -> EncodedPiece | None:
        """Hold the end back, as a resampler does."""
        voice = self._voice
        if text in voice.unsayable:
            return None
        voice.asked.append(text)
        if voice.hanging:
            try:
                await asyncio.Event().wait()
            finally:
                voice.given_up.append(text)
        if text in voice.failing:
            raise voice.failing[text]
        sound = voice.sound(text)
        self._rest = sound[-10:]
        return EncodedPiece(sound[:-10], 1_000 * voice.duration_s, RATE_HZ)

    async def finish(self) -> EncodedPiece:
        """Give what was held back."""
        rest, self._rest = self._rest, b""
        return EncodedPiece(rest, 0.0, RATE_HZ)


OPTIONS = SpeechOptions("pcm16", sample_rate_hz=RATE_HZ, strict=False)


class Listener:
    """Takes the entries of a narration as they come."""

    def __init__(self, turn: Turn, voice: Voice) -> None:
        self.narration = Narration(turn, voice, OPTIONS, CALLER)
        self.entries: list[tuple[Cursor, Narrated]] = []
        self.task = asyncio.get_running_loop().create_task(self._take())

    async def _take(self) -> None:
        async for entry in self.narration.entries():
            self.entries.append(entry)

    @property
    def said(self) -> list[Narrated]:
        """All but the sound."""
        return [entry for _, entry in self.entries if not isinstance(entry, bytes)]

    @property
    def words(self) -> str:
        """The sentences."""
        return "".join(entry for entry in self.said if isinstance(entry, str))

    @property
    def sound(self) -> bytes:
        """All of it."""
        return b"".join(entry for _, entry in self.entries if isinstance(entry, bytes))

    async def end(self) -> None:
        """Wait for the end."""
        async with asyncio.timeout(5):
            await self.task


async def settle() -> None:
    """Let all others do what they can do now."""
    for _ in range(50):
        await asyncio.sleep(0)


def begun(*texts: str) -> Turn:
    """Make a turn that runs and has said this."""
    turn = Turn(CALLER, new_id(), new_id(), new_id())
    turn.append(Step.CREATED)
    if texts:
        turn.append(*OPENING, *texts)
    return turn


def end(turn: Turn, status: Status = Status.COMPLETED, reason: str = "stop") -> None:
    """End a turn."""
    turn.end(TurnEnd(status, reason))


def ended(*texts: str) -> Turn:
    """Make a turn that has ended."""
    turn = begun(*texts)
    end(turn)
    return turn


async def rest_of(narration: Narration, after: Cursor) -> list[tuple[Cursor, Narrated]]:
    """Return what comes after a place."""
    return [entry async for entry in narration.entries(after)]


# What is said


async def test_sentence_by_sentence() -> None:
    """Each sentence comes with its sound behind it, in pieces, between the steps of the turn."""
    voice = Voice(chunks=3)
    turn = begun()
    listener = Listener(turn, voice)
    await settle()
    assert listener.said == [Step.CREATED]
    turn.append(*OPENING, "Bon")
    turn.append("jour. Ça")
    await settle()
    assert listener.said == [Step.CREATED, *OPENING, "Bonjour. "]
    assert listener.sound == voice.sound("Bonjour.")
    turn.append(" va ?")
    end(turn)
    await listener.end()
    assert listener.said == [Step.CREATED, *OPENING, "Bonjour. ", "Ça va ?", *CLOSING, Step.ENDED]
    assert [type(entry) for _, entry in listener.entries[3:11]] == [str, bytes, bytes, bytes] * 2
    assert listener.sound == voice.sound("Bonjour.") + voice.sound("Ça va ?")
    assert listener.narration.silenced is None
    assert (voice.opened, voice.closed) == (1, 1)
    places = [place for place, _ in listener.entries]
    assert places == sorted(set(places))


async def test_what_cannot_be_said() -> None:
    """What is no words is shown and not spoken."""
    voice = Voice()
    listener = Listener(ended("Oui.\n```\n```\nNon. 🎉"), voice)
    await listener.end()
    assert listener.words == "Oui.\n```\n```\nNon. 🎉"
    assert voice.asked == ["Oui.", "Non."]


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_turn_without_words(status: Status) -> None:
    """A turn that says nothing is told in its steps, without a voice."""
    voice = Voice()
    turn = begun()
    listener = Listener(turn, voice)
    end(turn, status)
    await listener.end()
    inner = (*OPENING, *CLOSING) if status is Status.COMPLETED else ()
    assert listener.said == [Step.CREATED, *inner, Step.ENDED]
    assert voice.opened == 0


# The pace


async def test_two_sentences_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sentences are spoken beyond the one that is being heard; the next when the next begins to be heard."""
    clock = Clock(monkeypatch)
    voice = Voice(duration_s=LONG_S)
    listener = Listener(ended("".join(COUNT)), voice)
    await settle()
    assert len(voice.asked) == 3
    for number in range(3, 6):
        await clock.advance(LONG_S - 10)
        assert len(voice.asked) == number
        await clock.advance(10)
        assert len(voice.asked) == number + 1
    await listener.end()
    assert listener.words == "".join(COUNT)


async def test_listener_who_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model was slow the listener hears a sentence when it comes, and the count begins from there."""
    clock = Clock(monkeypatch)
    voice = Voice(duration_s=LONG_S)
    turn = begun("Un. Deux")
    listener = Listener(turn, voice)
    await settle()
    assert voice.asked == ["Un."]
    await clock.advance(5 * LONG_S)
    turn.append(". Trois. Quatre. Cinq. Six.")
    end(turn)
    await settle()
    assert voice.asked == ["Un.", "Deux.", "Trois.", "Quatre."]
    await clock.advance(LONG_S + 1)
    assert len(voice.asked) == 5
    listener.narration.silence("cancelled")
    await listener.end()


async def test_words_alone_do_not_wait() -> None:
    """What is not spoken takes no time: neither emoji nor what comes after the voice has failed."""
    voice = Voice(duration_s=LONG_S)
    voice.failing = {"Deux.": BadGateway("no voice")}
    listener = Listener(ended("".join(COUNT)), voice)
    await listener.end()
    assert listener.words == "".join(COUNT)
    assert voice.asked == ["Un.", "Deux."]


LIGHTHOUSES = (
    "Les phares guident les bateaux la nuit, et ils le font depuis plus de deux mille ans. Le plus ancien que l'on "
    "connaisse fut celui d'Alexandrie, qui était haut de plus de cent mètres et dont on disait que la lumière se voyait de "
    "très loin. Ensuite on brûla du bois, puis de l'huile. Aujourd'hui ils sont presque tous automatiques parce que les "
    "gardiens coûtaient cher. Voilà."
)


class VirtualTime:
    """The running loop's time, which goes on at once to when something is due."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop: Any = asyncio.get_running_loop()
        self.now = loop.time()
        select = loop._selector.select
        monkeypatch.setattr(loop, "time", lambda: self.now)

        def jump(timeout_s: float | None = None) -> Any:
            ready = select(0)
            if not ready and timeout_s:
                self.now += timeout_s
            return ready

        monkeypatch.setattr(loop._selector, "select", jump)


class SlowVoice(Voice):
    """Takes as long as Kokoro on one thread: seven tenths of what it says, and 0.4 s for each piece."""

    def take_s(self, words: str) -> float:
        """Return how long *words* take."""
        return 0.4 + 0.7 * self.length_s(words)

    def length_s(self, words: str) -> float:
        """Return how long *words* sound."""
        return len(words) / 15

    @asynccontextmanager
    async def open_stream(self, options: SpeechOptions, caller: Caller) -> AsyncIterator[SpeechStream]:
        """Lend what speaks."""
        yield SlowMouth(self)


class SlowMouth(Mouth):
    """The slow voice's side of one stream."""

    async def say(self, text: str) -> EncodedPiece | None:
        """Take a while."""
        assert isinstance(self._voice, SlowVoice)
        await asyncio.sleep(self._voice.take_s(text))
        self._voice.duration_s = self._voice.length_s(text)
        return await super().say(text)


async def write(turn: Turn, text: str, chars_s: float) -> None:
    """Have the model write *text* word by word, so many characters a second."""
    turn.append(*OPENING)
    for word in re.findall(r"\S+\s*", text):
        await asyncio.sleep(len(word) / chars_s)
        turn.append(word)
    end(turn)


@pytest.mark.parametrize(
    ("text", "chars_s"), [(LIGHTHOUSES, 60.0), (LIGHTHOUSES, 40.0), (f"{LIGHTHOUSES} " * 4, 200.0)]
)
async def test_no_holes(monkeypatch: pytest.MonkeyPatch, text: str, chars_s: float) -> None:
    """A voice that is hardly faster than its listener begins with a clause, and does not fall silent after it."""
    time = VirtualTime(monkeypatch)
    began_s, turn, voice = time.now, begun(), SlowVoice()
    writing = asyncio.create_task(write(turn, text, chars_s))
    heard_until_s = first_s = 0.0
    holes_s = []
    pieces: list[str] = []
    async for _, entry in Narration(turn, voice, OPTIONS, CALLER).entries():
        if isinstance(entry, str):
            pieces.append(entry)
            if heard_until_s and time.now > heard_until_s:
                holes_s.append(time.now - heard_until_s)
            heard_until_s = max(time.now, heard_until_s) + voice.length_s(voice.asked[-1])
            first_s = first_s or time.now - began_s
    await writing
    assert "".join(pieces) == text
    assert not [hole_s for hole_s in holes_s if hole_s > 0.3]
    # With the whole first sentence, of 87 characters, it would be two seconds later.
    assert pieces[0] == "Les phares guident les bateaux la nuit, "
    assert first_s < 60 / chars_s + 2.5
    assert sum(map(len, pieces)) / len(pieces) > 30, "as much at once as there is time for"


async def test_fast_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A voice that is made ten times as fast as it is heard says whole sentences, but for the first clause."""
    VirtualTime(monkeypatch)
    voice = SlowVoice()
    monkeypatch.setattr(SlowVoice, "take_s", lambda _, words: len(words) / 150)
    turn = begun(LIGHTHOUSES)
    end(turn)
    pieces = [
        entry for _, entry in await rest_of(Narration(turn, voice, OPTIONS, CALLER), START) if isinstance(entry, str)
    ]
    first, *others = split(LIGHTHOUSES)
    assert pieces == ["Les phares guident les bateaux la nuit, ", first.partition(", ")[2], *others]


async def test_first_clause_is_known_by_its_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes back gets the rest in the same pieces, however fast the voice is then; within a sentence a piece ends with a comma."""
    VirtualTime(monkeypatch)
    turn, voice = begun(LIGHTHOUSES), SlowVoice()
    end(turn)
    narration = Narration(turn, voice, OPTIONS, CALLER)
    whole = await rest_of(narration, START)
    asked = voice.asked
    assert all(words[-1] in ",.;" for words in asked)
    assert any(words[-1] == "," and words not in LIGHTHOUSES for words in asked)
    for number, (place, _) in enumerate(whole):
        voice.asked = []
        assert await rest_of(narration, place) == whole[number + 1 :], place
        assert voice.asked == asked[len(asked) - len(voice.asked) :]


# Silence


@pytest.mark.parametrize(("reason", "rest"), [("server_stopped", COUNT[3:]), ("cancelled", ()), ("turn_detected", ())])
async def test_silence_while_it_waits(reason: str, rest: tuple[str, ...]) -> None:
    """A voice that waits for its time stops at once, and the words come to their end, unless somebody interrupts."""
    voice = Voice(duration_s=LONG_S)
    listener = Listener(ended("".join(COUNT)), voice)
    await settle()
    listener.narration.silence(reason)
    await listener.end()
    assert len(voice.asked) == 3
    assert listener.said[3:] == [*COUNT[:3], *(["".join(rest)] if rest else []), *CLOSING, Step.ENDED]
    assert listener.narration.transcript() == "".join([*COUNT[:3], *rest])
    assert listener.narration.silenced == reason
    assert voice.closed == 1


async def test_silence_while_it_speaks() -> None:
    """A sentence that is being spoken is given up, and not told either."""
    voice = Voice()
    voice.hanging = True
    turn = begun("Un. Deux. T")
    listener = Listener(turn, voice)
    await settle()
    listener.narration.silence("cancelled")
    listener.narration.silence("too late")
    await settle()
    assert (voice.given_up, listener.said) == (["Un."], [Step.CREATED, *OPENING])
    turn.append("rois.")
    end(turn)
    await listener.end()
    assert (listener.said[3:], listener.narration.transcript()) == ([*CLOSING, Step.ENDED], "")
    assert (listener.sound, voice.asked, listener.narration.silenced) == (b"", ["Un."], "cancelled")


async def test_silence_between_two_pieces() -> None:
    """No piece of sound comes after the voice was stopped, and no other sentence."""
    voice = Voice(chunks=5)
    narration = Narration(ended("Un. Deux."), voice, OPTIONS, CALLER)
    entries = []
    async for _, entry in narration.entries():
        entries.append(entry)
        if isinstance(entry, bytes):
            narration.silence("cancelled")
    assert sum(isinstance(entry, bytes) for entry in entries) == 1
    assert [entry for entry in entries if not isinstance(entry, bytes)][3:] == ["Un. ", *CLOSING, Step.ENDED]


async def test_silence_before_the_first_word() -> None:
    """A voice that was stopped before the model spoke never speaks, and tells no words."""
    voice = Voice()
    turn = begun()
    listener = Listener(turn, voice)
    await settle()
    listener.narration.silence("cancelled")
    await settle()
    turn.append(*OPENING, "Un. Deux.")
    end(turn)
    await listener.end()
    assert (listener.words, voice.opened) == ("", 0)


@pytest.mark.parametrize(("status", "spoken"), [(Status.CANCELLED, 3), (Status.INCOMPLETE, 6)])
async def test_turn_that_is_cut_short(monkeypatch: pytest.MonkeyPatch, status: Status, spoken: int) -> None:
    """A turn that somebody cancelled falls silent; one that lost its end says what it has."""
    clock = Clock(monkeypatch)
    voice = Voice(duration_s=LONG_S)
    turn = begun("".join(COUNT))
    listener = Listener(turn, voice)
    await settle()
    end(turn, status, "cancelled")
    await settle()
    for _ in range(6):
        await clock.advance(LONG_S)
    await listener.end()
    assert (listener.words, len(voice.asked)) == ("".join(COUNT), spoken)


# What goes wrong


async def test_voice_fails() -> None:
    """A voice that fails says so once; from there on there are words only."""
    voice = Voice()
    failure = BadGateway("no voice")
    voice.failing = {"Deux.": failure, "Trois.": failure}
    listener = Listener(ended("Un. Deux. Trois."), voice)
    await listener.end()
    assert listener.said[3:] == ["Un. ", "Deux. ", failure, "Trois.", *CLOSING, Step.ENDED]
    assert (listener.sound, listener.narration.silenced) == (voice.sound("Un."), None)


async def test_sentence_that_the_voice_cannot_say() -> None:
    """Such a sentence is shown without a sound, and the voice goes on after it."""
    voice = Voice()
    voice.unsayable = {"Deux."}
    listener = Listener(ended("Un. Deux. Trois."), voice)
    await listener.end()
    assert listener.said[3:] == ["Un. ", "Deux. ", "Trois.", *CLOSING, Step.ENDED]
    assert listener.sound == voice.sound("Un.") + voice.sound("Trois.")


async def test_defect_of_the_voice() -> None:
    """A defect is not taken for a failure of the voice."""
    voice = Voice()
    voice.failing = {"Un.": ZeroDivisionError()}
    listener = Listener(ended("Un. Deux."), voice)
    with pytest.raises(ZeroDivisionError):
        await listener.end()
    assert voice.closed == 1


async def test_defect_of_the_splitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect where sentences are cut ends the narration, which would wait for them for ever."""

    def feed(_splitter: SentenceSplitter, _text: str) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(SentenceSplitter, "feed", feed)
    listener = Listener(begun("Un. Deux."), Voice())
    with pytest.raises(ZeroDivisionError):
        await listener.end()


# Coming back


async def test_goes_on_after_each_place() -> None:
    """Whatever a listener has got, it gets exactly the rest."""
    voice = Voice(chunks=3)
    narration = Narration(ended("Un. Deux. 🎉\n", "Trois."), voice, OPTIONS, CALLER)
    whole = await rest_of(narration, START)
    assert len(whole) == 3 + 3 * 4 + 4
    for number, (place, _) in enumerate(whole):
        assert await rest_of(narration, place) == whole[number + 1 :], place


async def test_goes_on_after_silence() -> None:
    """A listener that comes back to a voice that was stopped gets the rest of the words and no sound."""
    voice = Voice(chunks=3)
    narration = Narration(ended("Un. Deux. Trois."), voice, OPTIONS, CALLER)
    whole = await rest_of(narration, START)
    narration.silence("server_stopped")
    for number, (place, entry) in enumerate(whole[:-4]):
        words = "".join(entry for _, entry in whole[number + 1 :] if isinstance(entry, str))
        said = [entry for _, entry in await rest_of(narration, place)]
        assert not any(isinstance(entry, bytes) for entry in said)
        assert "".join(entry for entry in said if isinstance(entry, str)) == words, (place, entry)
    # Where it was silenced and came back once more.
    (place, _), *_ = (entry for entry in await rest_of(narration, START) if isinstance(entry[1], str))
    assert [entry for _, entry in await rest_of(narration, place)] == [*CLOSING, Step.ENDED]


@pytest.mark.parametrize("moment", ["waiting for the model", "speaking", "giving sound", "waiting for the clock"])
async def test_listener_who_leaves(moment: str) -> None:
    """Whoever leaves, at whatever moment, leaves nothing behind, and can come back."""
    voice = Voice(duration_s=LONG_S, chunks=2)
    voice.hanging = moment == "speaking"
    turn = begun(*(() if moment == "waiting for the model" else COUNT))
    before = asyncio.all_tasks()
    narration = Narration(turn, voice, OPTIONS, CALLER)
    entries = narration.entries()
    got: list[Any] = []

    async def take() -> None:
        async for entry in entries:
            got.append(entry)
            if moment == "giving sound" and isinstance(entry[1], bytes):
                return

    task = asyncio.get_running_loop().create_task(take())
    await settle()
    task.cancel()
    await asyncio.wait([task])
    await entries.aclose()
    await settle()
    assert asyncio.all_tasks() == before
    assert voice.opened == voice.closed
    assert voice.given_up == (["Un."] if voice.hanging else [])
    voice.hanging = False
    voice.duration_s = 0.0
    if moment == "waiting for the model":
        turn.append(*OPENING, *COUNT)
    end(turn)
    rest = await rest_of(narration, got[-1][0])
    words = "".join(entry for _, entry in [*got, *rest] if isinstance(entry, str))
    assert words == "".join(COUNT)
    sound = b"".join(entry for _, entry in [*got, *rest] if isinstance(entry, bytes))
    assert sound == b"".join(voice.sound(sentence.strip()) for sentence in COUNT)


async def test_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What turns out to be no answer is not spoken as far as it has not begun; the rest is the answer, with its places."""
    clock = Clock(monkeypatch)
    turn, voice = begun("Okay. ", "Hm. ", "Hm hm. ", "Tiens. ", "Alors. "), Voice(duration_s=LONG_S)
    listener = Listener(turn, voice)
    await settle()
    assert 0 < len(voice.asked) < 4
    turn.discard_text()
    turn.append("Oui. ", "Non.")
    end(turn)
    for _ in range(6):
        await clock.advance(LONG_S)
    await listener.end()
    assert voice.asked[-2:] == ["Oui.", "Non."]
    assert "Alors." not in voice.asked
    again = Listener(turn, Voice())
    await again.end()
    assert again.words == "Oui. Non."
    places = [[place for place, entry in one.entries if isinstance(entry, str)] for one in (listener, again)]
    assert places[0][-2:] == places[1], "the same places for both"
    rest = await rest_of(again.narration, places[1][0])
    assert [entry for _, entry in rest if isinstance(entry, str)] == ["Non."]
