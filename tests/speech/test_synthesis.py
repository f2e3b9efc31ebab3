"""Synthesis: voices chosen and remembered, texts cut into what is spoken at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jarvis_core.codec.client import EncodedPiece
from jarvis_core.errors import InvalidRequest, RateLimited, Unavailable
from jarvis_core.models import Caller, SpokenAudio, Transcript, Voice
from jarvis_core.settings import Speech
from jarvis_core.speech import synthesis
from jarvis_core.speech.synthesis import PIECE_CHARS, SpeechOptions, Synthesizer, Voices, pieces_of

pytestmark = pytest.mark.every_python

ANN = Caller("ann")


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

    async def transcribe(self, audio: bytes, language: str | None, caller: Caller, **_: object) -> Transcript:
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
    pass_time(synthesis.VOICES_FRESH_S - 1)
    assert await voices.fetch(ANN) == [SIWIS]
    await settled(voices)
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
    pass_time(synthesis.VOICES_FRESH_S)
    for asked in (2, 3, 4):
        for _ in range(3):
            assert await voices.fetch(ANN) == [SIWIS]
            await settled(voices)
            if asked == 4:
                break
        assert speaker.asked == asked
        wait_s = synthesis.VOICES_RETRY_S * 2 ** (asked - 2)
        pass_time(wait_s - 1)
        assert await voices.fetch(ANN) == [AMY if asked == 4 else SIWIS]
        await settled(voices)
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
        pass_time(2 * synthesis.VOICES_RETRY_S)
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
    async with synthesizer.open_stream(options, ANN) as utterer:
        piece = await utterer.say("Un.")
        assert piece is not None
        assert piece.data == b"piece"
        assert (await utterer.finish()).data == b"rest"
    assert codec.options == [("mp3", 24_000, tempo)]
    assert speaker.said == [("Un.", "fr_FR-siwis", asked)]


async def test_who_spoke_goes_on() -> None:
    """Whoever the neighbour lets speak the first piece speaks the others too, and is named."""
    codec, speaker = StubEncoding(), StubSpeaker([])
    synthesizer = Synthesizer(codec, speaker, Voices(speaker, Speech()))  # type: ignore[arg-type]
    async with synthesizer.open_stream(SpeechOptions("wav"), ANN) as utterer:
        names = [utterer.voice]
        for speaker.voice in ("somebody", ""):
            await utterer.say("Un.")
            names.append(utterer.voice)
    assert names == [None, "somebody", "somebody"]
    assert [voice for _, voice, _ in speaker.said] == [None, "somebody"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SpeechOptions("wav"), "moins cinq pour cent"),
        (SpeechOptions("wav", language="en"), "minus five percent"),
        (SpeechOptions("wav", voice="en_US-amy"), "minus five percent"),
        (SpeechOptions("wav", voice="en_US-amy", language="fr"), "minus five percent"),
        (SpeechOptions("wav", voice="nobody", language="en"), "minus five percent"),
    ],
)
async def test_the_voice_decides_in_which_language_numbers_are_read(options: SpeechOptions, words: str) -> None:
    """Numbers are read in the language of whoever speaks, whatever the text is in."""
    codec, speaker = StubEncoding(), StubSpeaker([SIWIS, AMY])
    synthesizer = Synthesizer(codec, speaker, Voices(speaker, Speech()))  # type: ignore[arg-type]
    async with synthesizer.open_stream(options, ANN) as stream:
        await stream.say("-5 %")
    assert [text for text, _, _ in speaker.said] == [words]


async def test_language_of_a_voice_that_nobody_knows() -> None:
    """Where the voice's language is not known it is the one that was asked for, or the default; without one digits stay."""
    for default, language, words in (("en", None, "two"), ("fr", "en", "two"), ("auto", None, "2")):
        codec, speaker = StubEncoding(), StubSpeaker([NOBODY])
        synthesizer = Synthesizer(codec, speaker, Voices(speaker, Speech(default_language=default)))  # type: ignore[arg-type]
        async with synthesizer.open_stream(SpeechOptions("wav", language=language, strict=False), ANN) as stream:
            await stream.say("2")
        assert [text for text, _, _ in speaker.said] == [words]


async def test_what_the_voice_cannot_say_is_not_asked_for() -> None:
    """A text in letters that the voice does not read makes no sound, and nobody is asked for it."""
    codec, speaker = StubEncoding(), StubSpeaker([SIWIS])
    synthesizer = Synthesizer(codec, speaker, Voices(speaker, Speech()))  # type: ignore[arg-type]
    async with synthesizer.open_stream(SpeechOptions("wav"), ANN) as stream:
        assert await stream.say("日本語") is None
    assert speaker.said == []


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
