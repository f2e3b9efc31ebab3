"""Streams of sound that are listened to: to 16 kHz, and how likely each step of them is speech."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jarvis_core.codec.clip import RATE_HZ
from jarvis_core.codec.linear import expand
from jarvis_core.codec.messages import Listen, Listened
from jarvis_core.codec.resampling import resampler
from jarvis_core.codec.silero import STEP_SAMPLES, Floats, Silero, State
from jarvis_core.errors import Overloaded, Unavailable

STREAMS_LIMIT = 4_096
"""No stream is begun while there are so many; each takes a few kilobytes, more where it is resampled."""
QUIETEST_DB = -120.0


class Listening:
    """The streams that are listened to, by their number."""

    def __init__(self, model: Silero) -> None:
        self._model = model
        self._streams: dict[int, _Stream] = {}

    def listen(self, request: Listen, payload: bytes) -> tuple[Listened, bytes]:
        """
        Add *payload* to the request's stream, which the first one makes.

        Returns the steps that have become whole, and their samples (16 bits, 16 kHz, mono). Raises ``Unavailable`` where
        there is no such stream, ``Overloaded`` where there are too many for another.
        """
        if request.first:
            self.drop(request.stream)
            if len(self._streams) >= STREAMS_LIMIT:
                raise Overloaded("Too many microphones are listened to; try again in a moment.", retry_after_s=2)
            self._streams[request.stream] = _Stream(request)
        stream = self._streams.get(request.stream)
        if stream is None:
            raise Unavailable("The stream of sound was lost.", retry_after_s=1)
        samples = stream.add(payload)
        if not len(samples):
            return Listened([], []), b""
        probabilities = self._model.probabilities(stream.state, samples)
        steps = samples.reshape(-1, STEP_SAMPLES)
        power = np.einsum("ij,ij->i", steps, steps) / STEP_SAMPLES
        levels = 10 * np.log10(np.maximum(power, 10 ** (QUIETEST_DB / 10)))
        sound = np.rint(samples * 32_767).astype("<i2").tobytes()
        return Listened([round(one, 4) for one in probabilities], [round(float(one), 1) for one in levels]), sound

    def drop(self, stream: int) -> None:
        """Forget *stream*, if there is one."""
        self._streams.pop(stream, None)

    def __len__(self) -> int:
        return len(self._streams)


class _Stream:
    """One stream of sound."""

    def __init__(self, request: Listen) -> None:
        self.state = State()
        self._encoding = request.encoding
        self._half = b""
        """Half a sample: clients cut where they like."""
        self._rest: Floats = np.zeros(0, np.float32)
        """Samples that are not yet a step."""
        self._resampler = None if request.sample_rate_hz == RATE_HZ else resampler(request.sample_rate_hz, RATE_HZ)

    def add(self, payload: bytes) -> Floats:
        """Return the samples of the steps that *payload* makes whole, at 16 kHz within ±1."""
        samples = self._decode(payload)
        if self._resampler is not None and len(samples):
            samples = self._resampler.resample(samples)
            np.clip(samples, -1.0, 1.0, out=samples)
        samples = np.concatenate((self._rest, samples))
        whole = len(samples) // STEP_SAMPLES * STEP_SAMPLES
        self._rest = samples[whole:].copy()
        return samples[:whole]

    def _decode(self, payload: bytes) -> Floats:
        values: npt.NDArray[np.int16]
        if self._encoding == "pcm16":
            data = self._half + payload
            whole = len(data) // 2 * 2
            self._half = data[whole:]
            values = np.frombuffer(data, "<i2", whole // 2)
        else:
            values = expand(np.frombuffer(payload, np.uint8), self._encoding)
        return np.multiply(values, np.float32(1 / 32_768), dtype=np.float32)
