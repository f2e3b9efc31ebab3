"""What the assistant can do, as a satellite's hub asks for it (``describe``)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from jarvis_core import __version__
from jarvis_core.models import Voice

NAME = "jarvis"


class Attribution(Struct, frozen=True):
    """Who made something."""

    name: str = "Jarvis Core"
    url: str = ""


class _Artifact(Struct, frozen=True, kw_only=True):
    name: str
    description: str
    attribution: Attribution = Attribution()
    installed: bool = True
    version: str = __version__


class Model(_Artifact, frozen=True):
    """A model or a voice."""

    languages: Sequence[str]


class Recogniser(_Artifact, frozen=True):
    """Speech to text."""

    models: Sequence[Model]
    supports_transcript_streaming: bool = True


class Speaker(_Artifact, frozen=True):
    """Text to speech."""

    voices: Sequence[Model]
    supports_synthesize_streaming: bool = True


class Handler(_Artifact, frozen=True):
    """Questions to answers."""

    models: Sequence[Model]
    supports_handled_streaming: bool = True
    supports_home_control: bool = False


class Info(Struct, frozen=True):
    """All of it."""

    asr: Sequence[Recogniser] = ()
    tts: Sequence[Speaker] = ()
    handle: Sequence[Handler] = ()
    intent: Sequence[Handler] = ()
    wake: Sequence[Handler] = ()
    mic: Sequence[Handler] = ()
    snd: Sequence[Handler] = ()


def info_of(voices: Sequence[Voice], languages: Sequence[str], *, home_control: bool = False) -> Info:
    """Return what is offered with these *voices*, empty where nothing speaks or listens, and codes of *languages*."""
    recognisers: Sequence[Recogniser] = ()
    speakers: Sequence[Speaker] = ()
    if voices:
        heard = Model(name=NAME, description="Hears", languages=languages)
        recognisers = [Recogniser(name=NAME, description="Jarvis hears", models=[heard])]
        spoken = [
            Model(name=one.id, description=one.name, languages=[one.language] if one.language else languages)
            for one in voices
        ]
        speakers = [Speaker(name=NAME, description="Jarvis speaks", voices=spoken)]
    answers = Model(name=NAME, description="Answers", languages=languages)
    handler = Handler(name=NAME, description="Jarvis answers", models=[answers], supports_home_control=home_control)
    return Info(asr=recognisers, tts=speakers, handle=[handler])
