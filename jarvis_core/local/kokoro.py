"""
Text to speech: Kokoro through ONNX Runtime, as a process that ``engine.py`` asks.

eSpeak NG turns the text into phonemes (GPL-3, as is the package that calls it: another reason to have them in this
process alone), Kokoro speaks them. A voice is a file beside the model; its name tells the language and the gender.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jarvis_core.local.engine import Answer, BadRequest, Load, Loaded, Options, run
from jarvis_core.local.tempo import change_tempo
from jarvis_core.processes.subprocess_pool import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 24_000
LANGUAGES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}
"""eSpeak's, by the first letter of a voice; Japanese and Chinese need other tools."""
GENDERS = {"f": ("femme", "woman"), "m": ("homme", "man")}
"""By the second letter: in French, for a French voice, and in English."""
FAVOURITES = ("ff_siwis", "af_heart")
"""The voice of who names none, the first that is there."""
SPEEDS = (0.5, 2.0)
"""Beyond these nobody would understand; what is faster or slower is cut."""
PIECE_PHONEMES = 200
"""Spoken at once, about twelve seconds; twice as many take twice the memory, and it knows no more than 510."""
SENTENCE_PAUSE_S = 0.25
CLAUSE_PAUSE_S = 0.1
STYLES = (510, 1, 256)
"""Of a voice: one for each number of phonemes."""


class Say(msgspec.Struct, frozen=True, tag="say"):
    """Speak."""

    text: str
    voice: str
    speed: float


class Spoken(msgspec.Struct, frozen=True, tag="spoken"):
    """The samples are the payload: float32 little-endian, mono."""

    sample_rate: int
    duration_ms: float
    """Of the work."""


def voices(directory: Path) -> dict[str, str]:
    """Return a label for each voice in *directory*."""
    found = {}
    for path in sorted(directory.glob("[a-z][fm]_*.bin")):
        language, gender = path.stem[0], path.stem[1]
        if language in LANGUAGES:
            name = path.stem.partition("_")[2].replace("_", " ").title()
            found[path.stem] = f"{name} ({GENDERS[gender][language != 'f']})"
    return found


def languages(names: dict[str, str]) -> list[str]:
    """Return the codes of what the voices speak, each once."""
    return sorted({LANGUAGES[name[0]].partition("-")[0] for name in names})


def favourite(names: dict[str, str]) -> str:
    """Return the voice for who names none."""
    return next((name for name in FAVOURITES if name in names), next(iter(names), ""))


class Reader:
    """Turns text into the phonemes that Kokoro knows."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        from kokoro_onnx.tokenizer import Tokenizer

        # Makes eSpeak's library known to the phonemizer, too.
        self._tokenizer: Any = Tokenizer(vocab=vocabulary)
        self._phonemizers: dict[str, Any] = {}

    def tokens(self, phonemes: str) -> list[int]:
        """Return the numbers that stand for *phonemes*."""
        return list(self._tokenizer.tokenize(phonemes))

    def phonemes(self, text: str, language: str) -> str:
        """Return how *text* is read aloud; empty where nothing can be."""
        if language not in self._phonemizers:
            from phonemizer.backend import EspeakBackend

            self._phonemizers[language] = EspeakBackend(
                language,
                preserve_punctuation=True,
                with_stress=True,
                # Or "(en)" would be spoken before an English word in French.
                language_switch="remove-flags",
            )
        printable = "".join(character if character.isprintable() else "\n" for character in text)
        lines = [line.strip() for line in printable.split("\n") if line.strip()]
        spoken = self._phonemizers[language].phonemize(lines) if lines else []
        # A line's end is a pause also where no mark says so.
        whole = " ".join(line if line.endswith(tuple(".!?…,;:")) else f"{line}." for line in map(str.strip, spoken))
        known = " ".join("".join(one for one in whole if one in self._tokenizer.vocab).split())
        return known if any(one.isalpha() for one in known) else ""


class Kokoro:
    """The model in memory: half a second and 190 MB."""

    def __init__(self, directory: Path, threads: int) -> None:
        import onnxruntime
        from kokoro_onnx.session import embedded_vocab

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that waits in a loop takes the core of the language model.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = next(iter(sorted(directory.glob("*.onnx"))))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._run_options = onnxruntime.RunOptions()
        # Half the memory at no cost: it is given back after each piece.
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._reader = Reader(embedded_vocab(self._session))
        inputs = {one.name: one.type for one in self._session.get_inputs()}
        self._tokens_input = "input_ids" if "input_ids" in inputs else "tokens"
        self._whole_speeds = "int" in inputs["speed"]
        self._directory = directory

    def say(self, text: str, voice: str, speed: float) -> Iterator[NDArray[np.float32]]:
        """Yield the pieces of *text*, spoken, each followed by a pause; raises ``BadRequest``."""
        import numpy as np
        from kokoro_onnx.chunker import pause_after, split_phonemes
        from kokoro_onnx.trim import trim

        phonemes = self._reader.phonemes(text, LANGUAGES[voice[0]])
        if not phonemes:
            if not any(map(str.isalnum, text)):
                raise BadRequest("text: there is nothing in it that can be spoken")
            # Letters for which this language has no sound: one odd line is no reason to fail a whole answer.
            yield np.zeros(int(SENTENCE_PAUSE_S * SAMPLE_RATE_HZ), np.float32)
            return
        styles = np.fromfile(self._directory / f"{voice}.bin", "<f4").reshape(STYLES)
        speed = min(max(speed, SPEEDS[0]), SPEEDS[1])
        for piece in split_phonemes(phonemes, PIECE_PHONEMES):
            tokens = self._reader.tokens(piece)
            inputs = {
                self._tokens_input: np.array([[0, *tokens, 0]], np.int64),
                "style": styles[min(len(tokens), len(styles)) - 1],
                # Its own speed is a wish, and costs words: of 57 at speed 2 Whisper mistook 23, of those of ``tempo.py`` 4.
                "speed": np.array([1], np.int32 if self._whole_speeds else np.float32),
            }
            audio = np.asarray(self._session.run(None, inputs, self._run_options)[0], np.float32).ravel()
            yield np.clip(change_tempo(trim(audio)[0], speed, SAMPLE_RATE_HZ), -1, 1)
            pause_s = pause_after(piece, SENTENCE_PAUSE_S, CLAUSE_PAUSE_S) / speed
            yield np.zeros(round(pause_s * SAMPLE_RATE_HZ), np.float32)


_decoder = msgspec.json.Decoder(Load | Say)
_load = cache(Kokoro)


def handle(message: Message, options: Options) -> Answer:
    """Answer one request."""
    request = _decoder.decode(message[0])
    model = _load(options.directory, options.threads)
    if isinstance(request, Load):
        if request.warm and (voice := favourite(voices(options.directory))):
            for _ in model.say("Oui.", voice, 1.0):
                pass
        return Loaded(), ()
    started = time.monotonic()
    pieces = [piece.astype("<f4").tobytes() for piece in model.say(request.text, request.voice, request.speed)]
    return Spoken(SAMPLE_RATE_HZ, round((time.monotonic() - started) * 1_000, 1)), pieces


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the phonemizer counts words, and wonders
    # joblib, which the phonemizer imports, says that it may not share memory with processes that nobody wants.
    warnings.filterwarnings("ignore", module="joblib")
    run(handle, writes=True)  # eSpeak NG's library is loaded from a copy
