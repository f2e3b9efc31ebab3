"""The audio engine: noise suppression and gain over HTTP, often absent, slow or wrong."""

from __future__ import annotations

import array
import base64
import binascii
import math
from typing import Any, Literal

import msgspec
from aiohttp import web

from .command import make_parser, read_mode, serve
from .content import Heard, encode_base64, hear
from .server import FakeServer, Refusal, json_response
from .streams import FaultyMode

SAMPLE_RATE_HZ = 16_000


class AudioEngineMode(FaultyMode, frozen=True, kw_only=True):
    """How the engine behaves; hanging, slowness and errors are ``faults``: ``{"/process": Fault(delay_s=2)}``."""

    effect: Literal["gain", "clip", "short", "long", "empty", "nan", "odd", "not_base64"] = "gain"
    """
    What comes back: the samples times ``gain``; or times 4 and more than 1; half of them; 160 too many; none; NaN in
    their place; a byte too many; or no base64. /dsp knows the first six, and
    writes NaN as null.
    """
    gain: float = 0.5
    """Tells processed samples from the original."""
    healthy: bool = True
    """False makes /health a 503."""
    claimed_frames: int | None = None
    """``frames`` of /process; None is the true number."""


class FakeAudioEngine(FakeServer[AudioEngineMode]):
    """The engine; it has no auth."""

    def __init__(self, *, mode: AudioEngineMode | None = None, port: int = 0) -> None:
        super().__init__(mode or AudioEngineMode(), port=port)
        self.heard: list[Heard] = []
        """The clips that were to be processed."""
        self._frames = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/stats", self._stats),
            web.post("/process", self._process),
            web.post("/dsp", self._dsp),
        ]

    def forget(self) -> None:
        super().forget()
        self.heard.clear()

    async def _health(self, request: web.Request) -> web.Response:
        del request
        if not self.mode.healthy:
            return json_response({"status": "unhealthy"}, 503)
        return json_response({"status": "healthy", "service": "audio-engine"})

    async def _stats(self, request: web.Request) -> web.Response:
        del request
        return json_response(
            {
                "latency_ms": 1.5,
                "cpu_usage_percent": 2.0,
                "processed_frames": self._frames,
                "dropped_frames": 0,
                "input_level_db": -20.0,
                "output_level_db": -26.0,
            }
        )

    async def _process(self, request: web.Request) -> web.Response:
        encoded = (await _read(request)).get("audio_data")
        if not isinstance(encoded, str) or not encoded:
            raise Refusal(400, "audio_data is required")
        try:
            audio = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise Refusal(400, "audio_data is not base64") from error
        if len(audio) % 4:
            raise Refusal(400, "audio_data is not float32")
        self.heard.append(hear(audio, SAMPLE_RATE_HZ))
        samples = self._change(array.array("f", audio))
        changed = samples.tobytes() + (b"\x00" if self.mode.effect == "odd" else b"")
        frames = len(samples) if self.mode.claimed_frames is None else self.mode.claimed_frames
        data = "*** not base64 ***" if self.mode.effect == "not_base64" else encode_base64(changed)
        return json_response({"audio_data": data, "frames": frames, "latency_ms": 1.5})

    async def _dsp(self, request: web.Request) -> web.Response:
        samples = (await _read(request)).get("samples")
        if not isinstance(samples, list) or not all(isinstance(value, int | float) for value in samples):
            raise Refusal(400, "samples must be a list of numbers")
        return json_response({"samples": self._change(array.array("f", samples)).tolist()})

    def _change(self, samples: array.array[float]) -> array.array[float]:
        self._frames += len(samples)
        match self.mode.effect:
            case "short":
                return samples[: len(samples) // 2]
            case "long":
                return samples + array.array("f", bytes(4 * 160))
            case "empty":
                return array.array("f")
            case "nan":
                return array.array("f", [math.nan]) * len(samples)
            case "clip":
                return array.array("f", [4.0 * value + math.copysign(1.0, value) for value in samples])
            case _:
                gain = self.mode.gain
                return array.array("f", [gain * value for value in samples])


async def _read(request: web.Request) -> dict[str, Any]:
    try:
        return msgspec.json.decode(await request.read(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Refusal(400, f"invalid JSON: {error}") from error


def main() -> None:
    """Serve until told to stop."""
    options = make_parser("Fake audio engine").parse_args()
    serve(FakeAudioEngine(mode=read_mode(options, AudioEngineMode), port=options.port))


if __name__ == "__main__":
    main()
