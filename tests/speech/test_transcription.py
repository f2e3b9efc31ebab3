"""Transcription: windows put together, room for the audio that is worked on, and uploads read in turn."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from jarvis_core.codec.client import Clip, Window
from jarvis_core.errors import Overloaded, Unavailable
from jarvis_core.models import Caller, Segment, Transcript
from jarvis_core.settings import Speech
from jarvis_core.speech import transcription
from jarvis_core.speech.synthesis import Language
from jarvis_core.speech.transcription import Heard, Transcriber
from jarvis_core.speech.turn_ends import TurnEnds

pytestmark = pytest.mark.every_python

ANN = Caller("ann")
AUDIO = base64.b64encode(bytes(4 * 160))
"""A window's samples, 160 of them."""
ENHANCED = base64.b64encode(b"\1\0\0\0" * 160)


# Windows


class StubCodec:
    """A codec whose clips are what the test says, and that finds no fault with an enhanced window but ``complaint``."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.complaint = ""
        self.checked: list[tuple[bytes, int]] = []

    async def decode_upload(self, *_: object, **__: object) -> Clip:
        return self.clip

    async def decode_pcm(self, *_: object, **__: object) -> Clip:
        return self.clip

    async def check_enhanced(self, answer: bytes, samples: int) -> tuple[bytes, str]:
        self.checked.append((answer, samples))
        return (b"", self.complaint) if self.complaint else (answer, "")


class StubListener:
    """Hears what the test says, one transcript after another."""

    def __init__(self, *transcripts: Transcript) -> None:
        self.transcripts = list(transcripts)
        self.asked: list[tuple[bytes, str | None, Caller]] = []
        self.languages: list[list[str]] = []
        self.enhanced: list[bytes | None] = []

    async def transcribe(
        self,
        audio: bytes,
        language: str | None,
        caller: Caller,
        *,
        languages: Sequence[str] = (),
        enhanced: bytes | None = None,
    ) -> Transcript:
        self.asked.append((audio, language, caller))
        self.languages.append(list(languages))
        self.enhanced.append(enhanced)
        return self.transcripts.pop(0)


class StubVoices:
    """Voices that speak what the test says, or nobody knows what."""

    def __init__(self, *codes: str) -> None:
        self.codes = codes

    async def languages(self, caller: Caller) -> list[Language]:
        if not self.codes:
            raise Unavailable("nobody knows")
        return [Language(code, code) for code in self.codes]


class StubEnhancer:
    """Answers what the test says, one window after another."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.durations_s: list[float] = []
        self.complaints: list[str] = []

    async def enhance(self, audio: bytes, duration_s: float) -> bytes | None:
        self.durations_s.append(duration_s)
        return self.answers.pop(0)

    def reject(self, complaint: str) -> None:
        self.complaints.append(complaint)


def transcriber(
    clip: Clip,
    listener: StubListener,
    enhancer: StubEnhancer | None = None,
    voices: StubVoices | None = None,
    **settings: Any,
) -> tuple[Transcriber, StubCodec]:
    codec = StubCodec(clip)
    ends = TurnEnds(None, codec)  # type: ignore[arg-type]
    one = Transcriber(codec, listener, enhancer, voices or StubVoices("fr", "en"), Speech(**settings), ends)  # type: ignore[arg-type]
    return one, codec


async def hear(one: Transcriber, language: str | None = None) -> Heard:
    return await one.transcribe_upload([b"x"], "audio/wav", ANN, language=language)


def said(text: str, *segments: Segment, language: str = "fr", confidence: float = 1.0) -> Transcript:
    return Transcript(text, language, confidence, list(segments))


async def test_windows_are_one_transcript() -> None:
    """Texts are joined, times count from the clip's start, and confidence is weighed by length; silence is left out."""
    clip = Clip(
        30_000,
        [
            Window(0, 10_000, AUDIO),
            Window(10_000, 10_000, b""),
            Window(20_000, 5_000, AUDIO),
            Window(25_000, 5_000, AUDIO),
        ],
        None,
    )
    listener = StubListener(
        said("un", Segment(0, 4_000, "u"), Segment(4_000, 10_000, "n"), confidence=1.0),
        said("", confidence=0.0, language="en"),
        said("trois", Segment(100, 4_900, "trois"), confidence=0.5, language="de"),
    )
    heard = await hear(transcriber(clip, listener)[0])
    assert heard == Heard(
        "un trois",
        "fr",
        0.625,
        30_000,
        [Segment(0, 4_000, "u"), Segment(4_000, 10_000, "n"), Segment(25_100, 29_900, "trois")],
        enhanced=False,
    )
    assert len(listener.asked) == 3


async def test_times_stay_within_the_clip() -> None:
    """A segment that begins before or ends after the clip is cut to it."""
    clip = Clip(2_000, [Window(1_000, 1_000, AUDIO)], None)
    listener = StubListener(said("oh", Segment(-500, 99_000, "oh")))
    assert (await hear(transcriber(clip, listener)[0])).segments == [Segment(1_000, 2_000, "oh")]


async def test_times_stay_within_what_was_heard() -> None:
    """A segment that reaches far beyond its window ends with it, one behind it has no length, none ends before it begins."""
    clip = Clip(20_000, [Window(0, 5_000, AUDIO), Window(5_000, 5_000, AUDIO)], None)
    listener = StubListener(
        said("a b c", Segment(0, 29_000, "a"), Segment(28_000, 29_000, "b"), Segment(3_000, 1_000, "c")),
        said("d", Segment(-1_000, 6_000, "d")),
    )
    assert (await hear(transcriber(clip, listener)[0])).segments == [
        Segment(0, 5_000, "a"),
        Segment(5_000, 5_000, "b"),
        Segment(3_000, 3_000, "c"),
        Segment(5_000, 10_000, "d"),
    ]


async def test_silence() -> None:
    """Where no window has sound nobody is asked, and the language is the one that was asked for."""
    clip = Clip(2_000, [Window(0, 2_000, b"")], None)
    for asked, told in ((None, "fr"), ("en-GB", "en"), ("auto", "")):
        heard = await hear(transcriber(clip, StubListener(), StubEnhancer())[0], asked)
        assert heard == Heard("", told, 0.0, 2_000, [], enhanced=False)
    assert await hear(transcriber(Clip(0, [], None), StubListener())[0]) == Heard("", "fr", 0.0, 0, [], enhanced=False)


@pytest.mark.parametrize(
    ("named", "asked", "default", "language"),
    [
        (None, None, "fr", "fr"),
        (None, None, "en-US", "en"),
        (None, None, "auto", None),
        (None, "de_DE", "fr", "de"),
        ("it", "de", "fr", "it"),
        ("auto", "de", "fr", None),
        ("", "de", "fr", "de"),
    ],
)
async def test_language(named: str | None, asked: str | None, default: str, language: str | None) -> None:
    """The body's language counts for more than the query's, and that for more than the default."""
    listener = StubListener(said("oui"))
    one, _ = transcriber(Clip(1_000, [Window(0, 1_000, AUDIO)], named), listener, default_language=default)
    await hear(one, asked)
    assert listener.asked == [(AUDIO, language, ANN)]


ONE_WINDOW = Clip(1_000, [Window(0, 1_000, AUDIO)], None)


async def test_language_is_found_in_the_recording_as_it_came() -> None:
    """What has its noise taken away is for the words alone; the answer says how sure the language is."""
    listener = StubListener(
        msgspec.structs.replace(said("oui"), language_confidence=0.9, enhanced=True),
        msgspec.structs.replace(said("oui"), language_confidence=0.9),
    )
    one, _ = transcriber(ONE_WINDOW, listener, StubEnhancer(ENHANCED, ENHANCED))
    heard = await hear(one, "auto")
    assert (heard.language, heard.language_confidence, heard.enhanced) == ("fr", 0.9, True)
    assert (listener.asked, listener.enhanced) == ([(AUDIO, None, ANN)], [ENHANCED])
    assert not (await hear(one, "auto")).enhanced, "whose ears know nothing of the second recording took the first"


@pytest.mark.parametrize(
    ("settings", "voices", "languages"),
    [
        ((), ("fr", "en"), ["fr", "en"]),
        (("de-AT", "fr", "de"), ("fr", "en"), ["de", "fr"]),
        ((), (), []),
    ],
)
async def test_languages_of_the_house(settings: tuple[str, ...], voices: tuple[str, ...], languages: list[str]) -> None:
    """What is found is one of the settings' languages, or else of the voices', or any where nobody knows those."""
    listener = StubListener(said("oui"))
    await hear(transcriber(ONE_WINDOW, listener, voices=StubVoices(*voices), languages=settings)[0], "auto")
    assert listener.languages == [languages]


async def test_house_of_one_language() -> None:
    """Where the settings name one language there is nothing to be found out."""
    listener = StubListener(said("ja"))
    heard = await hear(transcriber(ONE_WINDOW, listener, languages=("de",))[0], "auto")
    assert (listener.asked, heard.language_confidence) == ([(AUDIO, "de", ANN)], None)


@pytest.mark.parametrize(("default", "second"), [("en", "en"), ("auto", "fr"), ("it", "fr")])
async def test_language_of_nobody_here(default: str, second: str) -> None:
    """A language that is not one of the house's is not believed: it is heard again in one that is."""
    listener = StubListener(said("¿Qué es?", language="es"), said("Qu'est-ce ?", language=second))
    one, _ = transcriber(ONE_WINDOW, listener, StubEnhancer(ENHANCED), default_language=default)
    heard = await hear(one, "auto")
    assert listener.asked == [(AUDIO, None, ANN), (ENHANCED, second, ANN)]
    assert (heard.text, heard.language, heard.language_confidence) == ("Qu'est-ce ?", second, None)


@pytest.mark.parametrize("told", ["", "french", "FR"])
async def test_language_that_is_no_code(told: str) -> None:
    """What a neighbour calls the language in its own way is left as it is."""
    listener = StubListener(said("oui", language=told))
    assert (await hear(transcriber(ONE_WINDOW, listener)[0], "auto")).language == told
    assert len(listener.asked) == 1


async def test_a_recording_is_in_one_language() -> None:
    """The language of the first words is that of the windows behind them; one without words tells none."""
    clip = Clip(3_000, [Window(start, 1_000, AUDIO) for start in (0, 1_000, 2_000)], None)
    listener = StubListener(
        said("", language="en"), msgspec.structs.replace(said("oui"), language_confidence=0.8), said("non")
    )
    heard = await hear(transcriber(clip, listener)[0], "auto")
    assert [language for _, language, _ in listener.asked] == [None, None, "fr"]
    assert (heard.text, heard.language, heard.language_confidence) == ("oui non", "fr", 0.8)


async def test_pcm_is_heard_alike() -> None:
    """Samples of a known kind go the same way as uploads."""
    listener = StubListener(said("oui"))
    one, _ = transcriber(Clip(1_000, [Window(0, 1_000, AUDIO)], None), listener)
    heard = await one.transcribe_pcm([b"x"], "pcm16", 24_000, ANN, language="en")
    assert (heard.text, listener.asked) == ("oui", [(AUDIO, "en", ANN)])


async def test_enhanced_windows() -> None:
    """Windows pass through the engine, which is told their length; its samples are counted and then used."""
    clip = Clip(3_000, [Window(0, 2_000, AUDIO), Window(2_000, 1_000, AUDIO)], None)
    listener, enhancer = StubListener(said("a"), said("b")), StubEnhancer(ENHANCED, ENHANCED)
    one, codec = transcriber(clip, listener, enhancer)
    assert (await hear(one)).enhanced
    assert enhancer.durations_s == [2.0, 1.0]
    assert codec.checked == [(ENHANCED, 160)] * 2
    assert [audio for audio, _, _ in listener.asked] == [ENHANCED] * 2


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6, 160])
async def test_count_of_samples(samples: int) -> None:
    """How many samples a window has is read from its base64, whatever its padding."""
    audio = base64.b64encode(bytes(4 * samples))
    one, codec = transcriber(Clip(1, [Window(0, 1, audio)], None), StubListener(said("")), StubEnhancer(ENHANCED))
    await hear(one)
    assert codec.checked == [(ENHANCED, samples)]


async def test_partly_enhanced() -> None:
    """A clip of which one window did not pass through the engine is not enhanced; that window is heard as it was."""
    clip = Clip(2_000, [Window(0, 1_000, AUDIO), Window(1_000, 1_000, AUDIO)], None)
    for answers in ([ENHANCED, None], [None, ENHANCED]):
        listener = StubListener(said("a"), said("b"))
        one, _ = transcriber(clip, listener, StubEnhancer(*answers))
        assert not (await hear(one)).enhanced
        assert [audio for audio, _, _ in listener.asked] == [answer or AUDIO for answer in answers]


async def test_unusable_window() -> None:
    """What the engine made unusable is not used, and it is told."""
    listener, enhancer = StubListener(said("a")), StubEnhancer(ENHANCED)
    one, codec = transcriber(Clip(1_000, [Window(0, 1_000, AUDIO)], None), listener, enhancer)
    codec.complaint = "half of it is missing"
    assert not (await hear(one)).enhanced
    assert listener.asked[0][0] == AUDIO
    assert enhancer.complaints == ["half of it is missing"]


async def test_enhancing_never_fails_a_call() -> None:
    """Where an enhanced window cannot even be checked the original is used."""
    listener, enhancer = StubListener(said("a")), StubEnhancer(ENHANCED)
    one, codec = transcriber(Clip(1_000, [Window(0, 1_000, AUDIO)], None), listener, enhancer)

    async def overloaded(answer: bytes, samples: int) -> tuple[bytes, str]:
        raise Overloaded("no time")

    codec.check_enhanced = overloaded  # type: ignore[method-assign]
    heard = await hear(one)
    assert (heard.text, heard.enhanced) == ("a", False)
    assert listener.asked[0][0] == AUDIO


async def test_transcript_without_nul() -> None:
    """What no text may hold is left out of what was heard."""
    one, _ = transcriber(Clip(1_000, [Window(0, 1_000, AUDIO)], None), StubListener(said("a\0b")))
    assert (await hear(one)).text == "ab"


# Room


def test_room() -> None:
    """So much audio is held at a time and no more; what is done with, well or not, makes room."""
    one, _ = transcriber(Clip(0, [], None), StubListener(), buffer_limit_bytes=36 << 20)
    with one.held.reserve(30 << 20), one.held.reserve(6 << 20), one.held.reserve(0):
        with pytest.raises(Overloaded) as caught, one.held.reserve(1):
            pass
        assert caught.value.retry_after_s
    with pytest.raises(ZeroDivisionError), one.held.reserve(36 << 20):
        raise ZeroDivisionError
    with one.held.reserve(36 << 20):
        pass


async def test_room_for_what_was_decoded() -> None:
    """A small file that is a long clip is refused where there is no room for its samples, and takes none then."""
    clip = Clip(600_000, [Window(0, 600_000, bytes(40 << 20))], None)
    one, _ = transcriber(clip, StubListener(), buffer_limit_bytes=36 << 20)
    with pytest.raises(Overloaded):
        await hear(one)
    with one.held.reserve(36 << 20):
        pass


def test_reserve_growing() -> None:
    """Room is taken as audio arrives, not before, and given back at the end."""
    one, _ = transcriber(Clip(0, [], None), StubListener(), buffer_limit_bytes=36 << 20)
    with one.held.growing() as grow, one.held.reserve(35 << 20):
        grow(1 << 19)
        grow(1 << 20)
        with pytest.raises(Overloaded):
            grow((1 << 20) + 1)
    with one.held.reserve(36 << 20):
        pass


# Turns


class SlowCodec(StubCodec):
    """A codec that reads uploads until it is told to go on."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        self.reading = 0
        self.let_go = asyncio.Event()

    async def decode_upload(self, *_: object, **__: object) -> Clip:
        self.reading += 1
        try:
            await self.let_go.wait()
        finally:
            self.reading -= 1
        return self.clip


async def test_uploads_of_one_user_are_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends many recordings has one read at a time, and others' are read beside it; too long a wait is an error."""
    monkeypatch.setattr(transcription, "READING_TIMEOUT_S", 0.05)
    codec = SlowCodec(Clip(0, [], None))
    one = Transcriber(codec, StubListener(), None, StubVoices(), Speech(), TurnEnds(None, codec))  # type: ignore[arg-type]
    callers = (ANN, ANN, Caller("bob"), ANN)
    asked = [asyncio.create_task(one.transcribe_upload([b"x"], "audio/wav", caller)) for caller in callers]
    await asyncio.sleep(0.01)
    assert codec.reading == 2
    with pytest.raises(Overloaded):
        await asked[1]
    asked[3].cancel()
    codec.let_go.set()
    assert (await asked[0]).text == (await asked[2]).text == ""
    assert (await hear(one)).text == ""
