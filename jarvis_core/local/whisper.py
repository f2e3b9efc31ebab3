"""
Transcribes speech with Whisper through CTranslate2, in a process that ``engine.py`` asks.

Whisper was trained on subtitles and hears some in any sound, so it gets only what a voice detector takes for speech. A
text that repeats itself is dropped where Whisper itself doubts that there was speech, and elsewhere cut to the words that
took some time. Told the wrong language, Whisper translates: where another language of the house is beyond doubt, the
transcript is in that language.

Whisper was trained on half a minute, and so much is encoded for every clip, most of it nothing. Its encoder takes less, for
a fraction of the work; where there is little nothing behind the words it may not find the end and say them for ever. So a
clip is heard with a second or more behind it; what repeats itself is heard once more in the whole window, and so is a clip of
which the language is in doubt.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jarvis_core.local.engine import Answer, BadRequest, Load, Loaded, Options, run
from jarvis_core.processes.subprocess_pool import Message

if TYPE_CHECKING:
    import numpy as np
    from faster_whisper import WhisperModel
    from numpy.typing import NDArray

BEAM_SIZE = 5
"""Takes no longer than 1 on short clips, where the encoder takes most of the time; a third fewer wrong words, 60 MB more."""
TOKENS_LIMIT = 224
"""Tokens of half a minute, Whisper's window: more than speech has; ends a loop after two seconds."""
TOKENS_PER_S = 16
TOKENS_FIRST = 16
"""Tokens for each second of speech, and besides: three times those of fast speech, so that a loop ends early."""
WINDOW_S = 30
FRAMES_BEHIND = 100
"""Frames of 10 ms without sound that are heard behind a clip, at least; with none, one clip of twelve was said for ever."""
FRAMES_LEAST = 1_000
"""
Of a window. Measured on 52 clips of 1 to 5 s, half of them with noise at 10 dB: 1,000 frames take 27 % of the CPU of 3,000, with
35 wrong words of 456 in place of 33; 400 take 20 %, with 39, and "Oui, merci" became "Yes, thank you".
"""
FRAMES_STEP = 500
"""Longer windows have a multiple of so many frames."""
RATE_HZ = 16_000
SILENCE = 1e-4
"""Peak of a clip that is too quiet to hold a word even when it is amplified."""
TOUCHED_S = 0.5
"""More than the error of Whisper's times."""
QUIET = 0.1
NORMAL = 0.5
"""Peaks: the detector takes a voice below `QUIET` for silence, so such a clip is amplified to `NORMAL`."""
LOOP_RATIO = 2.4
"""Compression ratio above which a text repeats itself; Whisper's own limit."""
DOUBT = 0.4
"""``no_speech_prob``; measured 0.5..0.8 on hum, tones and babble, up to 0.37 on a faint voice."""
OPENING, CLOSING = "\"'“¿([{-«", "\"'.。,，!！?？:：”)]}、»…"
"""Marks that belong to the word behind them, and to the word before them."""
CERTAIN = 0.9
UNLIKELY = 0.02
"""Overrides the named language where another one of the house has at least the first probability, and it at most the second."""
CERTAIN_S = 1.0
"""Shortest speech in which the named language is overridden: a "non" alone is an English "no" for Whisper."""


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """
    Transcribe the first payload: float32 little-endian, mono, 16 kHz.

    A second payload is the same clip without its noise: the words are taken from it, the language from the first.
    """

    language: str
    """Such as ``fr`` or ``fr-CA``; empty or ``auto``: detect it, which takes as long as the rest."""
    languages: list[str] = []
    """Codes of the languages that are spoken in the house; empty: any."""


class Segment(msgspec.Struct, frozen=True):
    """Holds one stretch of speech, in seconds of the clip."""

    id: int
    start: float
    end: float
    text: str
    confidence: float


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """Holds a transcript; the text is empty where there was no speech."""

    text: str
    language: str
    confidence: float
    """0..1: the geometric mean of the words' probabilities."""
    duration_ms: float
    """Duration of the transcription."""
    segments: list[Segment]
    language_confidence: float | None
    """0..1, of a detected language among its candidates; None where the language was named."""


_decoder = msgspec.json.Decoder(Load | Listen)


def handle(message: Message, options: Options) -> Answer:
    """Answer one request."""
    request = _decoder.decode(message[0])
    model = load(options.directory, options.threads)
    if isinstance(request, Load):
        if request.warm:
            warm(model)
        return Loaded(), ()
    return transcribe(model, message[1], message[2] if len(message) > 2 else None, request), ()


@cache
def load(directory: Path, threads: int) -> WhisperModel:
    """Load the model, once: half a second and 170 MB."""
    from faster_whisper import WhisperModel

    # Always pass a directory: a name would be looked up on the model hub.
    model = WhisperModel(str(directory), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True)
    # Encode once: most of the work, and needed twice for the same sounds, for their language and for their words.
    model.encode = Encoder(model.encode)
    return model


def warm(model: WhisperModel) -> None:
    """Listen to a second of nothing, so that all is loaded."""
    import numpy as np
    from faster_whisper.vad import get_speech_timestamps

    nothing = np.zeros(RATE_HZ, np.float32)
    get_speech_timestamps(nothing)
    listen(model, nothing, "en")


class Encoder:
    """
    Encodes as much of Whisper's window as there is sound in, and the silence behind it.

    Keeps the last result for a second call with the same features. While ``whole`` is set, which holds for one clip, windows
    are encoded whole.
    """

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        self._encode = encode
        self._last: tuple[Any, Any] | None = None
        self.whole = False

    def __call__(self, features: NDArray[np.float32]) -> Any:
        """Return the encoder's output for *features*, a window that is filled up with zeros."""
        import numpy as np

        if not self.whole:
            features = features[:, : frames_for(features)]
        if self._last is None or not np.array_equal(self._last[0], features):
            self._last = features, self._encode(features)
        return self._last[1]


def frames_for(features: NDArray[np.float32]) -> int:
    """Return how many frames of a window are to be encoded: a few sizes, for each of which memory is kept."""
    import numpy as np

    used = np.flatnonzero(features.any(axis=0))
    sound = int(used[-1]) + 1 if used.size else 0
    whole: int = features.shape[1]
    return min(whole, max(FRAMES_LEAST, -(-(sound + FRAMES_BEHIND) // FRAMES_STEP) * FRAMES_STEP))


def transcribe(model: WhisperModel, samples: bytes, cleaned: bytes | None, asked: Listen) -> Heard:
    """Transcribe *samples*; *cleaned* are the same without their noise. Raises ``BadRequest``."""
    from faster_whisper.vad import get_speech_timestamps

    started = time.monotonic()
    code = asked.language.partition("-")[0].partition("_")[0].lower()
    if code == "auto":
        code = ""
    if code and code not in model.supported_languages:
        raise BadRequest(f"language: {asked.language!r} is none that this model knows")
    recording = audible(samples)
    audio = recording if cleaned is None else audible(cleaned)
    if cleaned is not None and len(cleaned) != len(samples):
        raise BadRequest("enhanced_audio_data: is not as long as audio_data")
    confidence: float | None = None
    heard: list[Segment] = []
    chunks = [] if audio is None or recording is None else get_speech_timestamps(audio)
    model.encode.whole = False
    if audio is not None and recording is not None and chunks:
        speech = _speech(audio, chunks)
        code, confidence = find_language(model, _speech(recording, chunks), code, asked.languages)
        for part in listen(model, speech, code):
            text = part.text.strip()
            if text:
                start, end = recorded_times(part.start, part.end, chunks)
                certainty = round(math.exp(min(0.0, part.avg_logprob)), 4)
                heard.append(Segment(len(heard), round(start, 2), round(end, 2), text, certainty))
    mean = sum(math.log(max(part.confidence, 1e-4)) for part in heard) / len(heard) if heard else -math.inf
    return Heard(
        text=" ".join(part.text for part in heard),
        language=code,
        confidence=round(math.exp(mean), 4),
        duration_ms=round((time.monotonic() - started) * 1_000, 1),
        segments=heard,
        language_confidence=confidence,
    )


def recorded_times(start_s: float, end_s: float, chunks: Sequence[Mapping[str, int]]) -> tuple[float, float]:
    """
    Translate times in the concatenated *chunks* of speech into times of the recording.

    Whisper's times are about right: an end slightly past a chunk's would land behind all the silence that follows. A
    stretch with less than ``TOUCHED_S`` in a chunk, and more in others, does not touch that chunk.
    """
    pieces: list[tuple[float, float, float]] = []
    before_s = 0.0
    for chunk in chunks:
        begin, end = chunk["start"] / RATE_HZ, chunk["end"] / RATE_HZ
        silence_s = begin - before_s
        first, last = max(start_s + silence_s, begin), min(end_s + silence_s, end)
        pieces.append((last - first, min(first, end), last))
        before_s += end - begin
    enough_s = min(TOUCHED_S, max(pieces)[0])
    touched = [(first, last) for length_s, first, last in pieces if length_s >= enough_s]
    return touched[0][0], max(touched[-1][1], touched[0][0])


def find_language(
    model: WhisperModel, speech: NDArray[np.float32], named: str, house: Sequence[str]
) -> tuple[str, float | None]:
    """
    Return the language of *speech*, and its probability among the languages of the *house* (empty: all).

    Returns the *named* language, and None, unless the speech is beyond doubt in another one of the house.
    """
    if named and not {*house} - {named}:
        return named, None
    from faster_whisper.audio import pad_or_trim

    # Drop the last frame, as the transcription does: the same features are encoded once.
    features = model.feature_extractor(speech)[:, :-1][:, : model.feature_extractor.nb_max_frames]
    window = pad_or_trim(features)
    probabilities = _languages(model, window)
    if not _is_clear(probabilities, named, house):
        # In a small window "l'Italie" makes Italian of French; of most clips the language is clear in either.
        model.encode.whole = True
        probabilities = _languages(model, window)
    candidates = {code: probabilities[code] for code in house if code in probabilities} or probabilities
    best = max(candidates, key=candidates.__getitem__)
    if named:
        foreign = candidates[best] >= CERTAIN and probabilities[named] <= UNLIKELY
        if not foreign or len(speech) < CERTAIN_S * RATE_HZ:
            return named, None
    return best, round(candidates[best] / max(sum(candidates.values()), 1e-9), 4)


def _languages(model: WhisperModel, window: NDArray[np.float32]) -> dict[str, float]:
    """Return the probability of each language of a *window* of features."""
    (ranking,) = model.model.detect_language(model.encode(window))
    return {token[2:-2]: probability for token, probability in ranking}


def _is_clear(probabilities: Mapping[str, float], named: str, house: Sequence[str]) -> bool:
    """Return whether one language is beyond doubt among those of the *house*, or all: the *named* one, or against it."""
    candidates = {code: probabilities[code] for code in house if code in probabilities} or probabilities
    best = max(candidates, key=candidates.__getitem__)
    if named and best != named and not (candidates[best] >= CERTAIN and probabilities[named] <= UNLIKELY):
        return False
    return candidates[best] >= CERTAIN * max(sum(candidates.values()), 1e-9)


def listen(model: WhisperModel, speech: NDArray[np.float32], language: str) -> list[Any]:
    """Return the segments of *speech*, in its own time, without hallucinated ones."""
    encoder: Any = model.encode
    segments = _hear(model, speech, language)
    if not encoder.whole and any(part.compression_ratio > LOOP_RATIO for part in segments):
        encoder.whole = True
        segments = _hear(model, speech, language)
    return _believable(model, speech, language, segments)


def _hear(model: WhisperModel, speech: NDArray[np.float32], language: str) -> list[Any]:
    speech_s = len(speech) / RATE_HZ
    segments, _ = model.transcribe(
        speech,
        language=language,
        beam_size=BEAM_SIZE,
        temperature=0.0,
        condition_on_previous_text=False,
        max_new_tokens=min(TOKENS_LIMIT, TOKENS_FIRST + int(TOKENS_PER_S * min(speech_s, WINDOW_S))),
    )
    return list(segments)


def _believable(model: WhisperModel, speech: NDArray[np.float32], language: str, segments: list[Any]) -> list[Any]:
    speech_s = len(speech) / RATE_HZ
    believed: list[Any] = []
    for _, window in itertools.groupby(segments, key=lambda part: part.seek):
        # A segment that begins behind the end is hallucinated from the silence that fills the window.
        parts = [part for part in window if part.start < speech_s]
        if not parts or parts[0].compression_ratio <= LOOP_RATIO:
            believed += parts
        elif parts[0].no_speech_prob <= DOUBT:
            believed += _cut_loop(model, speech, language, parts)
    return believed


def _cut_loop(model: WhisperModel, speech: NDArray[np.float32], language: str, parts: list[Any]) -> list[Any]:
    """Merge the *parts* of a window into one segment, with only the words that took some time."""
    from faster_whisper.audio import pad_or_trim
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import merge_punctuations

    tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language)
    features = model.feature_extractor(speech)[:, :-1][:, parts[0].seek :][:, : model.feature_extractor.nb_max_frames]
    tokens = [token for part in parts for token in part.tokens if token < tokenizer.eot]
    words = model.find_alignment(tokenizer, [tokens], model.encode(pad_or_trim(features)), features.shape[1])[0]
    merge_punctuations(words, OPENING, CLOSING)
    said = [word for word in words if word["word"] and word["end"] > word["start"]]
    if not said:
        return []
    whole = parts[0]
    whole.text = "".join(word["word"] for word in said).rstrip(" ,;:")
    whole.end = parts[0].seek / model.frames_per_second + float(said[-1]["end"])
    return [whole]


def _speech(audio: NDArray[np.float32], chunks: list[dict[str, int]]) -> NDArray[np.float32]:
    import numpy as np

    return np.concatenate([audio[chunk["start"] : chunk["end"]] for chunk in chunks])


def audible(samples: bytes) -> NDArray[np.float32] | None:
    """Amplify *samples* to a loudness that the voice detector can judge; return None for silence."""
    import numpy as np

    audio = np.frombuffer(samples, "<f4")
    if not np.isfinite(audio).all():
        raise BadRequest("audio_data: has samples that are no numbers")
    peak = float(np.abs(audio).max(initial=0.0))
    if peak < SILENCE:
        return None
    return audio if QUIET <= peak <= 1 else audio * np.float32(NORMAL / peak)


if __name__ == "__main__":
    run(handle)
