"""
The local stand-in for the audio engine: its contract, with WebRTC's noise suppression behind it.

The process of the bridges' stand-in serves it under ``/audio``: a process of its own would cost 40 MB for a few
milliseconds of work. Its libraries, numpy included, are imported with the first clip.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from aiohttp import web

from jarvis_core import __version__
from jarvis_core.errors import InvalidRequest
from jarvis_core.local.http import AUDIO_BODY_LIMIT_BYTES, FLOAT_BYTES, RequestQueue, answer, read, samples_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFIX = "/audio"
SAMPLE_RATE_HZ = 16_000
CLIP_LIMIT_S = 120
SAMPLES_LIMIT = 30 * SAMPLE_RATE_HZ
"""Of a list of numbers, which takes five times the room."""
LEVEL = 2
"""Of 0..4. At 10 dB above white noise it adds 10 dB, and Whisper hears no worse at any level; from 3 on it does."""
FRAME_SAMPLES = 160
DELAY_SAMPLES = 96
"""Delay of the output: the overlap of the windows of 256."""
QUIET = 0.1
NORMAL = 0.5
"""Peaks: a clip below `QUIET` is processed at `NORMAL`, or 16 bits would not do for it."""
SILENCE = 1e-4
SPEECH_RMS = 0.1
"""The level that speech is amplified to, -20 dB,"""
GAIN_LIMIT = 4.0
"""by no more than this,"""
PEAK_LIMIT = 0.95
"""and so that it does not clip."""
SPEECH_FRAMES = 10
"""Fewer with a voice in them, a tenth of a second, are no speech: nothing is amplified."""
FIRST_FRAMES = 10
"""The library's voice detector takes these windows for speech, whatever they hold."""
CONTRAST = 2.5
"""Between a voice and the tenth of the clip that is quietest; measured 3.4 and more at 0 dB, steady noise has 1.2."""


class ProcessRequest(msgspec.Struct, frozen=True):
    """The body of POST /process."""

    audio_data: Annotated[str, msgspec.Meta(min_length=1)]
    """Base64 of float32 little-endian mono samples at 16 kHz."""


class DspRequest(msgspec.Struct, frozen=True):
    """The body of POST /dsp."""

    samples: Annotated[list[float], msgspec.Meta(max_length=SAMPLES_LIMIT)]


class Result(msgspec.Struct, frozen=True):
    """A clip without its noise."""

    samples: bytes
    input_rms: float
    output_rms: float


_process_decoder = msgspec.json.Decoder(ProcessRequest)
_dsp_decoder = msgspec.json.Decoder(DspRequest)


class AudioEngine:
    """The handlers."""

    def __init__(self) -> None:
        self._queue = RequestQueue()
        self._processed = 0
        self._work_s = 0.0
        self._latency_ms = 0.0
        self._levels = 0.0, 0.0
        self._started = time.monotonic()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the engine's contract under ``PREFIX``."""
        router.add_get(PREFIX + "/health", self.health)
        router.add_get(PREFIX + "/stats", self.stats)
        router.add_post(PREFIX + "/process", self.process)
        router.add_post(PREFIX + "/dsp", self.dsp)

    async def health(self, _: web.Request) -> web.Response:
        """Tell that it is there."""
        return answer({"status": "healthy", "service": "jarvis-local-audio", "version": __version__})

    async def stats(self, _: web.Request) -> web.Response:
        """Tell how the last clip went, and how busy it has been."""
        input_rms, output_rms = self._levels
        return answer(
            {
                "latency_ms": self._latency_ms,
                "cpu_usage_percent": round(100 * self._work_s / max(time.monotonic() - self._started, 1e-3), 2),
                "processed_frames": self._processed,
                "dropped_frames": 0,
                "input_level_db": decibels(input_rms),
                "output_level_db": decibels(output_rms),
            }
        )

    async def process(self, request: web.Request) -> web.Response:
        """Take the noise out of a clip."""
        samples = samples_of((await read(request, _process_decoder, AUDIO_BODY_LIMIT_BYTES)).audio_data)
        if len(samples) > CLIP_LIMIT_S * SAMPLE_RATE_HZ * FLOAT_BYTES:
            raise InvalidRequest(f"audio_data: is longer than {CLIP_LIMIT_S} s")
        cleaned = await self._suppress(samples)
        return answer(
            {
                "audio_data": base64.b64encode(cleaned).decode("ascii"),
                "frames": len(cleaned) // FLOAT_BYTES,
                "latency_ms": self._latency_ms,
            }
        )

    async def dsp(self, request: web.Request) -> web.Response:
        """Do the same to a list of numbers."""
        asked = await read(request, _dsp_decoder, AUDIO_BODY_LIMIT_BYTES)
        cleaned = await self._suppress(float32(asked.samples))
        return answer({"samples": memoryview(cleaned).cast("f").tolist()})

    async def _suppress(self, samples: bytes) -> bytes:
        async with self._queue.slot():
            started = time.monotonic()
            result = await asyncio.to_thread(suppress, samples)
            elapsed_s = time.monotonic() - started
        self._work_s += elapsed_s
        self._latency_ms = round(1_000 * elapsed_s, 2)
        self._processed += len(samples) // FLOAT_BYTES
        self._levels = result.input_rms, result.output_rms
        return result.samples


def suppress(samples: bytes) -> Result:
    """
    Return *samples* without the noise, as many and at the same times, within ±1; raises ``InvalidRequest``.

    Speech that is too quiet comes out louder, silence and noise do not.
    """
    import numpy as np
    from webrtc_noise_gain import AudioProcessor

    audio = np.frombuffer(samples, "<f4")
    if not np.isfinite(audio).all():
        raise InvalidRequest("the samples must be numbers")
    audio = np.clip(audio, -1, 1)
    peak = float(np.abs(audio).max(initial=0))
    if peak < SILENCE:
        return Result(audio.astype("<f4").tobytes(), rms(audio), rms(audio))
    scale = 1.0 if peak >= QUIET else NORMAL / peak
    padded = np.zeros(-(-(len(audio) + DELAY_SAMPLES) // FRAME_SAMPLES) * FRAME_SAMPLES, "<i2")
    padded[: len(audio)] = np.rint(audio * (32_767 * scale))
    processor = AudioProcessor(0, LEVEL)  # of its own gain control it has none
    frames = [processor.Process10ms(frame.tobytes()) for frame in padded.reshape(-1, FRAME_SAMPLES)]
    whole = np.frombuffer(b"".join(frame.audio for frame in frames), "<i2").astype(np.float32) / 32_767
    cleaned = whole[DELAY_SAMPLES : DELAY_SAMPLES + len(audio)] / np.float32(scale)
    gain = 1.0
    if speech_rms := voice_rms(whole, [frame.is_speech for frame in frames]) / scale:
        room = PEAK_LIMIT / max(float(np.abs(cleaned).max()), SILENCE)
        gain = max(1.0, min(SPEECH_RMS / speech_rms, GAIN_LIMIT, room))
    cleaned = np.clip(cleaned * np.float32(gain), -1, 1)
    return Result(cleaned.astype("<f4").tobytes(), rms(audio), rms(cleaned))


def voice_rms(audio: NDArray[np.floating[Any]], is_speech: list[bool]) -> float:
    """Return how loud the voice in *audio* is, whose frames *is_speech* judges; 0 when there is none."""
    import numpy as np

    frames = audio.reshape(-1, FRAME_SAMPLES)
    voiced = frames[np.array(is_speech) & (np.arange(len(frames)) >= FIRST_FRAMES)]
    floor = np.percentile(np.sqrt(np.mean(np.square(frames), axis=1)), 10)
    loudness = rms(voiced)
    return loudness if len(voiced) >= SPEECH_FRAMES and loudness > CONTRAST * floor else 0.0


def float32(values: list[float]) -> bytes:
    """Return numbers as float32 samples; numbers that are too large become infinite."""
    import numpy as np

    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype("<f4").tobytes()


def rms(audio: NDArray[np.floating[Any]]) -> float:
    """Return the root of the mean square; 0 of nothing."""
    import numpy as np

    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if audio.size else 0.0


def decibels(amplitude: float) -> float:
    """Return an amplitude in dB below full scale, -120 at the least."""
    return round(20 * math.log10(max(amplitude, 1e-6)), 1)
