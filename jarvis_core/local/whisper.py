"""
Speech to text: Whisper through CTranslate2, as a process that ``engine.py`` asks.

Whisper was trained on subtitles and hears some in any sound: what a voice detector does not take for speech it never
gets, and what it repeats over and over is not believed where it doubts itself that somebody spoke.
"""

from __future__ import annotations

import math
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jarvis_core.local.engine import Answer, BadRequest, Load, Loaded, Options, run
from jarvis_core.processes.subprocess_pool import Message

if TYPE_CHECKING:
    import numpy as np
    from faster_whisper import WhisperModel
    from numpy.typing import NDArray

BEAM_SIZE = 5
"""Takes no longer than 1 on short clips (the encoder does), has a third fewer wrong words and 60 MB more."""
TOKENS_LIMIT = 224
"""Of half a minute, which is Whisper's window: more than anybody says, and where a loop ends after two seconds."""
SILENCE = 1e-4
"""Peak of what is too quiet to hold a word even when it is amplified."""
QUIET = 0.1
NORMAL = 0.5
"""Peaks: the detector takes a voice below `QUIET` for silence, so it is brought to `NORMAL`."""
LOOP_RATIO = 2.4
"""How far text can be compressed that repeats itself; Whisper's own limit."""
DOUBT = 0.4
"""``no_speech_prob``; measured 0.5..0.8 on hum, tones and babble, up to 0.37 on a faint voice."""


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """Transcribe the payload: float32 little-endian, mono, 16 kHz."""

    language: str
    """Such as ``fr`` or ``fr-CA``; empty or ``auto``: find out, which takes as long as the rest."""


class Segment(msgspec.Struct, frozen=True):
    """What was said in one stretch, in seconds of the clip."""

    id: int
    start: float
    end: float
    text: str
    confidence: float


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """What was said; the text is empty when nobody spoke."""

    text: str
    language: str
    confidence: float
    """0..1: the geometric mean of the words' probabilities."""
    duration_ms: float
    """Of the work."""
    segments: list[Segment]


_decoder = msgspec.json.Decoder(Load | Listen)


def handle(message: Message, options: Options) -> Answer:
    """Answer one request."""
    request = _decoder.decode(message[0])
    model = load(options.directory, options.threads)
    if isinstance(request, Load):
        return Loaded(), ()
    return transcribe(model, message[1], request.language), ()


@cache
def load(directory: Path, threads: int) -> WhisperModel:
    """Load the model, once: half a second and 170 MB."""
    from faster_whisper import WhisperModel

    # A directory, always: a name would be looked up on the model hub.
    return WhisperModel(str(directory), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True)


def transcribe(model: WhisperModel, samples: bytes, language: str) -> Heard:
    """Return what is said in *samples*; raises ``BadRequest``."""
    import numpy as np
    from faster_whisper.vad import get_speech_timestamps

    started = time.monotonic()
    code = language.partition("-")[0].partition("_")[0].lower()
    if code == "auto":
        code = ""
    if code and code not in model.supported_languages:
        raise BadRequest(f"language: {language!r} is none that this model knows")
    audio = audible(np.frombuffer(samples, "<f4"))
    heard: list[Segment] = []
    # Of what has no voice in it, the language would be guessed at length.
    if audio is not None and (code or get_speech_timestamps(audio)):
        segments, info = model.transcribe(
            audio,
            language=code or None,
            beam_size=BEAM_SIZE,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=True,
            max_new_tokens=TOKENS_LIMIT,
        )
        code = info.language
        for segment in segments:
            text = segment.text.strip()
            if text and not (segment.compression_ratio > LOOP_RATIO and segment.no_speech_prob > DOUBT):
                confidence = round(math.exp(min(0.0, segment.avg_logprob)), 4)
                times = round(segment.start, 2), round(segment.end, 2)
                heard.append(Segment(len(heard), *times, text, confidence))
    mean = sum(math.log(max(part.confidence, 1e-4)) for part in heard) / len(heard) if heard else -math.inf
    return Heard(
        text=" ".join(part.text for part in heard),
        language=code,
        confidence=round(math.exp(mean), 4),
        duration_ms=round((time.monotonic() - started) * 1_000, 1),
        segments=heard,
    )


def audible(audio: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return *audio* with a loudness that the voice detector can judge, None when it is silence."""
    import numpy as np

    if not np.isfinite(audio).all():
        raise BadRequest("audio_data: has samples that are no numbers")
    peak = float(np.abs(audio).max(initial=0.0))
    if peak < SILENCE:
        return None
    return audio if QUIET <= peak <= 1 else audio * np.float32(NORMAL / peak)


if __name__ == "__main__":
    run(handle)
