"""Speech: windows put together, voices chosen and remembered, texts cut into what is spoken at once."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jarvis_core import speech
from jarvis_core.codec.client import Clip, EncodedPiece, Window
from jarvis_core.errors import InvalidRequest, Overloaded, RateLimited, Unavailable
from jarvis_core.models import Caller, Segment, SpokenAudio, Transcript, Voice
from jarvis_core.settings import Speech
from jarvis_core.speech import (
    PIECE_CHARS,
    Heard,
    SpeechOptions,
    Synthesizer,
    Transcriber,
    Voices,
    language_code,
    pieces_of,
)

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

    async def transcribe(self, audio: bytes, language: str | None, caller: Caller) -> Transcript:
        self.asked.append((audio, language, caller))
        return self.transcripts.pop(0)


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
    clip: Clip, listener: StubListener, enhancer: StubEnhancer | None = None, **settings: Any
) -> tuple[Transcriber, StubCodec]:
    codec = StubCodec(clip)
    return Transcriber(codec, listener, enhancer, Speech(**settings)), codec  # type: ignore[arg-type]


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


def test_room() -> None:
    """So much audio is held at a time and no more; what is done with, well or not, makes room."""
    one, _ = transcriber(Clip(0, [], None), StubListener(), buffer_limit_bytes=36 << 20)
    with one.room(30 << 20), one.room(6 << 20), one.room(0):
        with pytest.raises(Overloaded) as caught, one.room(1):
            pass
        assert caught.value.retry_after_s
    with pytest.raises(ZeroDivisionError), one.room(36 << 20):
        raise ZeroDivisionError
    with one.room(36 << 20):
        pass


# Voices


SIWIS = Voice("fr_FR-siwis", "Siwis", "fr", "female")
TOM = Voice("fr_FR-tom", "Tom", "fr", "male")
AMY = Voice("en_US-amy", "Amy", "en", "female")
NOBODY = Voice("who", "Who", "", "unknown")


class StubSpeaker:
    """Knows voices, or fails; speaks one sample."""

    def __init__(self, *answers: list[Voice] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.let_go: asyncio.Event | None = None
        self.said: list[tuple[str, str | None, float]] = []
        self.voice = ""

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        self.asked += 1
        if self.let_go is not None:
            await self.let_go.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        self.said.append((text, voice, speed))
        return SpokenAudio(b"AAAAAA==", "base64", 16_000, self.voice)

    async def transcribe(self, audio: bytes, language: str | None, caller: Caller) -> Transcript:
        raise NotImplementedError


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let hours pass on the loop's clock."""

    def forward(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + seconds)

    return forward


async def settled(voices: Voices) -> None:
    """Wait for a question that is asked behind the callers' backs."""
    while voices._asking is not None:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)


async def test_voices_are_asked_for_once() -> None:
    """Many who want to know wait for one question, and later ones for none."""
    speaker = StubSpeaker([SIWIS, AMY])
    speaker.let_go = asyncio.Event()
    voices = Voices(speaker, Speech())
    asking = [asyncio.create_task(voices.fetch(ANN)) for _ in range(5)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    await asyncio.sleep(0)
    speaker.let_go.set()
    assert await asyncio.gather(*asking) == [[SIWIS, AMY]] * 4
    assert await voices.fetch(ANN) == [SIWIS, AMY]
    assert speaker.asked == 1


async def test_voices_are_asked_for_again(pass_time: Any) -> None:
    """After an hour they are asked for anew, while whoever wants to know gets the old ones at once."""
    speaker = StubSpeaker([SIWIS], [SIWIS, AMY])
    voices = Voices(speaker, Speech())
    assert await voices.fetch(ANN) == [SIWIS]
    pass_time(speech.VOICES_FRESH_S - 1)
    assert await voices.fetch(ANN) == [SIWIS]
    assert speaker.asked == 1
    pass_time(1)
    assert await voices.fetch(ANN) == [SIWIS]
    await settled(voices)
    assert await voices.fetch(ANN) == [SIWIS, AMY]
    assert speaker.asked == 2


async def test_last_known_voices(pass_time: Any) -> None:
    """Voices that were known stay while the neighbour fails, which is asked again after waits that double."""
    speaker = StubSpeaker([SIWIS], Unavailable("away"), Unavailable("away"), [AMY])
    voices = Voices(speaker, Speech())
    await voices.fetch(ANN)
    pass_time(speech.VOICES_FRESH_S)
    for asked in (2, 3, 4):
        for _ in range(3):
            assert await voices.fetch(ANN) == [SIWIS]
            await settled(voices)
            if asked == 4:
                break
        assert speaker.asked == asked
        wait_s = speech.VOICES_RETRY_S * 2 ** (asked - 2)
        pass_time(wait_s - 1)
        assert await voices.fetch(ANN) == [AMY if asked == 4 else SIWIS]
        assert speaker.asked == asked
        pass_time(1)
    assert await voices.fetch(ANN) == [AMY]
    assert speaker.asked == 4


async def test_voices_that_were_never_known(pass_time: Any) -> None:
    """While they were never known the neighbour's error is everybody's, until it is asked again."""
    speaker = StubSpeaker(Unavailable("away"), RateLimited("slow down"), [SIWIS])
    voices = Voices(speaker, Speech())
    for kind in (Unavailable, RateLimited):
        for _ in range(3):
            with pytest.raises(kind):
                await voices.fetch(ANN)
        pass_time(2 * speech.VOICES_RETRY_S)
    assert await voices.fetch(ANN) == [SIWIS]
    assert speaker.asked == 3


async def test_close_while_voices_are_asked_for() -> None:
    """Closing gives the question up."""
    speaker = StubSpeaker([SIWIS])
    speaker.let_go = asyncio.Event()
    voices = Voices(speaker, Speech())
    asking = asyncio.create_task(voices.fetch(ANN))
    while not speaker.asked:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    asking.cancel()
    async with asyncio.timeout(1):
        await voices.close()
        await voices.close()
    assert voices._asking is None


async def test_languages() -> None:
    """Languages are told once each, the default first, the others in order; what has none is left out."""
    known = [AMY, NOBODY, TOM, Voice("zu-x", "Zulu", "zu", "unknown"), SIWIS, Voice("de-x", "D", "de", "male")]
    for default, codes in (
        ("fr-FR", "fr de en zu"),
        ("en", "en de fr zu"),
        ("auto", "de en fr zu"),
        ("it", "de en fr zu"),
    ):
        voices = Voices(StubSpeaker(known), Speech(default_language=default))
        languages = await voices.languages(ANN)
        assert [one.code for one in languages] == codes.split()
        names = {one.code: one.name for one in languages}
        assert (names["fr"], names["en"], names["de"], names["zu"]) == ("Français", "English", "Deutsch", "zu")


@pytest.mark.parametrize(
    ("voice", "language", "default", "chosen"),
    [
        (None, None, "fr", "fr_FR-siwis"),
        (None, None, "en-GB", "en_US-amy"),
        (None, None, "it", None),
        (None, None, "auto", None),
        (None, "en", "fr", "en_US-amy"),
        (None, "EN_us", "fr", "en_US-amy"),
        (None, "auto", "fr", "fr_FR-siwis"),
        (None, "auto", "auto", None),
        ("fr_FR-tom", None, "fr", "fr_FR-tom"),
        ("FR_fr-Tom", "en", "fr", "fr_FR-tom"),
        ("who", "fr", "fr", "who"),
        ("gone", None, "fr", "fr_FR-siwis"),
        ("gone", "en", "fr", "en_US-amy"),
        ("gone", None, "it", None),
    ],
)
async def test_choice(voice: str | None, language: str | None, default: str, chosen: str | None) -> None:
    """The voice that was asked for speaks if there is one, else the first of the language, else of the default one."""
    voices = Voices(StubSpeaker([NOBODY, SIWIS, TOM, AMY]), Speech(default_language=default))
    assert await voices.choose(SpeechOptions("wav", voice, language), ANN) == chosen


async def test_language_without_a_voice() -> None:
    """A language that nobody speaks is an error that names those that there are, unless anything will do."""
    voices = Voices(StubSpeaker([NOBODY, TOM, AMY]), Speech())
    for voice in (None, "gone"):
        with pytest.raises(InvalidRequest) as caught:
            await voices.choose(SpeechOptions("wav", voice, "it"), ANN)
        assert caught.value.details == {"path": "$.language", "rule": "no voice speaks it; there are en, fr"}
        assert await voices.choose(SpeechOptions("wav", voice, "it", strict=False), ANN) is None


async def test_voices_that_tell_no_language() -> None:
    """Where no voice tells its language any is allowed, and the neighbour chooses."""
    voices = Voices(StubSpeaker([NOBODY]), Speech())
    assert await voices.choose(SpeechOptions("wav", None, "it"), ANN) is None


@pytest.mark.parametrize("voice", [None, "somebody"])
async def test_choice_without_voices(voice: str | None) -> None:
    """Where the voices are not known the caller's is asked for as it is."""
    answers: list[list[Voice] | Exception] = [Unavailable("away"), []]
    for known in answers:
        voices = Voices(StubSpeaker(known), Speech())
        chosen = await voices.choose(SpeechOptions("wav", voice, "it"), ANN)
        assert chosen == (voice if isinstance(known, Exception) else None)


# Speaking


class StubEncoding:
    """A codec that takes note of how it is asked to encode."""

    def __init__(self) -> None:
        self.options: list[tuple[str, int | None, float]] = []
        self.fed: list[SpokenAudio] = []

    @asynccontextmanager
    async def encode(
        self, output_format: str, *, output_rate_hz: int | None, tempo: float
    ) -> AsyncIterator[StubEncoding]:
        self.options.append((output_format, output_rate_hz, tempo))
        yield self

    async def feed(self, spoken: SpokenAudio) -> EncodedPiece:
        self.fed.append(spoken)
        return EncodedPiece(b"piece", 1.0, 16_000)

    async def finish(self) -> EncodedPiece:
        return EncodedPiece(b"rest", 0.0, 16_000)


@pytest.mark.parametrize(
    ("speed", "asked", "tempo"),
    [(0.1, 0.5, 0.2), (0.25, 0.5, 0.5), (0.5, 0.5, 1), (1, 1, 1), (1.7, 1.7, 1), (2, 2, 1), (3, 2, 1.5)],
)
async def test_speed(speed: float, asked: float, tempo: float) -> None:
    """What the neighbour's own speed cannot do is done to its sound."""
    codec, speaker = StubEncoding(), StubSpeaker([SIWIS])
    synthesizer = Synthesizer(codec, speaker, Voices(speaker, Speech()))  # type: ignore[arg-type]
    options = SpeechOptions("mp3", speed=speed, sample_rate_hz=24_000)
    async with synthesizer.utterer(options, ANN) as utterer:
        assert (await utterer.say("Un.")).data == b"piece"
        assert (await utterer.finish()).data == b"rest"
    assert codec.options == [("mp3", 24_000, tempo)]
    assert speaker.said == [("Un.", "fr_FR-siwis", asked)]


async def test_who_spoke_goes_on() -> None:
    """Whoever the neighbour lets speak the first piece speaks the others too, and is named."""
    codec, speaker = StubEncoding(), StubSpeaker([])
    synthesizer = Synthesizer(codec, speaker, Voices(speaker, Speech()))  # type: ignore[arg-type]
    async with synthesizer.utterer(SpeechOptions("wav"), ANN) as utterer:
        names = [utterer.voice]
        for speaker.voice in ("somebody", ""):
            await utterer.say("Un.")
            names.append(utterer.voice)
    assert names == [None, "somebody", "somebody"]
    assert [voice for _, voice, _ in speaker.said] == [None, "somebody"]


# Texts


def test_first_sentence_is_alone() -> None:
    """The first sentence is spoken alone, so that it is heard soon; the others together as far as they fit."""
    assert pieces_of("Un. Deux. Trois. Quatre.") == ["Un.", "Deux. Trois. Quatre."]
    assert pieces_of("Un.") == ["Un."]


def test_pieces_are_short() -> None:
    """No piece is longer than its limit, each is filled as far as sentences allow, and nothing is lost."""
    sentences = [f"Ceci est la phrase numéro {n}." for n in range(60)]
    pieces = pieces_of(" ".join(sentences))
    assert " ".join(pieces) == " ".join(sentences)
    assert pieces[0] == sentences[0]
    assert max(map(len, pieces)) <= PIECE_CHARS
    assert min(map(len, pieces[1:-1])) > PIECE_CHARS - 40
    endless = "mot " * 500
    assert max(map(len, pieces_of(endless))) <= PIECE_CHARS
    assert "".join(pieces_of("x" * 1_000)) == "x" * 1_000


@pytest.mark.parametrize("text", ["", " ", "**", "🙂", "---\n\n***", "« … »", "```\n```", "![]()", "!?"])
def test_nothing_to_say(text: str) -> None:
    """Where nothing can be said there is no piece."""
    assert pieces_of(text) == []


def test_pieces_can_be_said() -> None:
    """What only the eye needs is in no piece, and a sentence of nothing else makes none."""
    assert pieces_of("## Titre\n\n🙂\n\n- **Un** `mot`\n- [deux](https://x.org)") == ["Titre", "Un mot deux"]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("fr", "fr"),
        ("fr-FR", "fr"),
        ("fr_FR", "fr"),
        ("EN", "en"),
        ("zh-Hans-CN", "zh"),
        ("auto", None),
        ("AUTO", None),
    ],
)
def test_language_code(language: str, code: str | None) -> None:
    """A language is known by the code in front; "auto" is none."""
    assert language_code(language) == code


async def test_room_for_what_was_decoded() -> None:
    """A small file that is a long clip is refused where there is no room for its samples, and takes none then."""
    clip = Clip(600_000, [Window(0, 600_000, bytes(40 << 20))], None)
    one, _ = transcriber(clip, StubListener(), buffer_limit_bytes=36 << 20)
    with pytest.raises(Overloaded):
        await hear(one)
    with one.room(36 << 20):
        pass


def test_growing_room() -> None:
    """Room is taken as audio arrives, not before, and given back at the end."""
    one, _ = transcriber(Clip(0, [], None), StubListener(), buffer_limit_bytes=36 << 20)
    with one.growing_room() as grow, one.room(35 << 20):
        grow(1 << 19)
        grow(1 << 20)
        with pytest.raises(Overloaded):
            grow((1 << 20) + 1)
    with one.room(36 << 20):
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
    monkeypatch.setattr(speech, "READING_TIMEOUT_S", 0.05)
    codec = SlowCodec(Clip(0, [], None))
    one = Transcriber(codec, StubListener(), None, Speech())  # type: ignore[arg-type]
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
