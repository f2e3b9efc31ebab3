"""
Tells how likely a turn of speech is over: Smart Turn v3 through ONNX Runtime, as a process that ``engine.py`` asks.

The model (https://github.com/pipecat-ai/smart-turn) hears the last eight seconds, of whatever language, and knows the end
of a sentence by its melody and its words. Its surest answer is about 0.99.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jarvis_core.local.engine import Answer, BadRequest, Load, Loaded, Options, run
from jarvis_core.local.log_mel import RATE_HZ, log_mel
from jarvis_core.processes.subprocess_pool import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WINDOW_SAMPLES = 8 * RATE_HZ
LOUDEST = 1e6
"""Far beyond ±1, and far from what float32 cannot square."""


class Judge(msgspec.Struct, frozen=True, tag="judge"):
    """Look whether the first payload is the end of a turn: float32 little-endian, mono, 16 kHz; its last eight seconds count."""


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """The answer."""

    probability: float
    """0..1: that the turn is over."""
    duration_ms: float
    """Of the work."""


_decoder = msgspec.json.Decoder(Load | Judge)


class SmartTurn:
    """The model in memory."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def probability(self, samples: NDArray[np.float32]) -> float:
        """Return the probability, 0..1, that a turn ends with *samples*."""
        import numpy as np

        # Sound stands at the window's end, and is as loud as all else it was trained on.
        window = np.zeros(WINDOW_SAMPLES, np.float32)
        heard = samples[-WINDOW_SAMPLES:]
        window[WINDOW_SAMPLES - len(heard) :] = heard
        window = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
        (found,) = self._session.run(None, {self._input: log_mel(window)[np.newaxis]})
        return float(found[0, 0])


_load = cache(SmartTurn)


def handle(message: Message, options: Options) -> Answer:
    """Answer one request."""
    import numpy as np

    request = _decoder.decode(message[0])
    model = _load(options.directory, options.threads)
    if isinstance(request, Load):
        return Loaded(), ()
    started = time.monotonic()
    samples = np.frombuffer(message[1], "<f4")
    if not len(samples):
        raise BadRequest("audio_data: is empty")
    if not np.abs(samples).max() <= LOUDEST:
        raise BadRequest("audio_data: has samples that are no sound")
    return Judged(model.probability(samples), round((time.monotonic() - started) * 1_000, 1)), ()


if __name__ == "__main__":
    run(handle)
