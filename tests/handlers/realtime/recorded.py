"""A recorded conversation of ten turns, the noises of a household, and a microphone that streams them."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tests.handlers.realtime_client import Event, Socket, open_socket
from tests.system.server import Server

Samples = NDArray[np.float32]

DIRECTORY = Path(__file__).parents[2] / "fixtures" / "conversation"
RATE_HZ = 16_000
CHUNK_S = 0.1
ROOM = 10 ** (-60 / 20)
"""Of a quiet room: root of the mean square."""
SPEECH = 10 ** (-20 / 20)
"""The same of the clips, more or less."""
PAUSES_MS = (450, 100, 350)
"""How much longer than the voice the speaker looks for a word, one time after another: two times longer than ``server_vad`` waits."""


class Clip(NamedTuple):
    """Something that somebody says."""

    kind: Literal["turn", "interrupts", "backchannel"]
    text: str
    samples: Samples


def clips() -> list[Clip]:
    """Return the conversation's clips in their order, with the pauses in them."""
    found: list[Clip] = []
    pauses = list(PAUSES_MS)
    for number, given in enumerate(tomllib.loads((DIRECTORY / "clips.toml").read_text())["clip"], 1):
        with av.open(str(DIRECTORY / f"{number:02}.ogg")) as file:
            resampler = av.AudioResampler("s16", "mono", RATE_HZ)
            frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32) / 32_768
        for place_ms in given["pauses_ms"]:
            at = place_ms * RATE_HZ // 1_000
            gap = np.zeros(pauses.pop(0) * RATE_HZ // 1_000, np.float32)
            samples = np.concatenate([samples[:at], gap, samples[at:]])
        if given["kind"] == "backchannel":
            # Who only says that they listen says it quietly.
            samples = samples * np.float32(10 ** (-16 / 20))
        found.append(Clip(given["kind"], given["text"], samples.astype(np.float32)))
    return found


class Noise:
    """The noises of a household, the same each time."""

    def __init__(self) -> None:
        self._dice = np.random.default_rng(0)

    def room(self, count: int) -> Samples:
        """Return hardly anything."""
        return self._dice.normal(0, ROOM, count).astype(np.float32)

    def hum(self, count: int) -> Samples:
        """Return a transformer: 50 Hz and what is above it."""
        time = np.arange(count) / RATE_HZ
        return _loud(np.sum([np.sin(2 * np.pi * 50 * n * time) / n for n in (1, 2, 3, 4, 6)], axis=0))

    def fan(self, count: int) -> Samples:
        """Return moving air: noise that falls with the frequency, and a blade."""
        spectrum = np.fft.rfft(self._dice.normal(0, 1, count))
        hz = np.fft.rfftfreq(count, 1 / RATE_HZ)
        air = np.fft.irfft(spectrum / np.maximum(hz, 80), count)
        time = np.arange(count) / RATE_HZ
        return _loud(air * (1 + 0.2 * np.sin(2 * np.pi * 23 * time)))

    def keys(self, count: int) -> Samples:
        """Return somebody who types."""
        samples = np.zeros(count)
        at = 0
        while (at := at + int(self._dice.uniform(0.08, 0.35) * RATE_HZ)) < count - 800:
            samples[at : at + 800] += self._dice.normal(0, 1, 800) * np.exp(-np.arange(800) / 90)
        return _loud(samples)

    def music(self, count: int) -> Samples:
        """Return chords from a loudspeaker."""
        time = np.arange(count) / RATE_HZ
        samples = np.zeros(count)
        for number, start in enumerate(range(0, count, RATE_HZ // 2)):
            end = min(count, start + RATE_HZ)
            fading = np.exp(-3 * (time[start:end] - time[start]))
            for note in ((0, 4, 7), (5, 9, 12), (7, 11, 14), (9, 12, 16))[number // 4 % 4]:
                tone_hz = 196 * 2 ** (note / 12)
                for overtone in (1, 2, 3):
                    samples[start:end] += fading * np.sin(2 * np.pi * overtone * tone_hz * time[start:end]) / overtone
        return _loud(samples)

    def household(self, count: int) -> Samples:
        """Return a fan, somebody who types, and a radio in the next room."""
        return _loud(self.fan(count) + 0.5 * self.keys(count) + 0.3 * self.music(count))


def _loud(samples: NDArray[np.floating[Any]]) -> Samples:
    """Return *samples* as loud as speech is."""
    return np.asarray(samples * SPEECH / np.sqrt(np.mean(np.square(samples))), np.float32)


class Microphone:
    """Streams what is said into a session, *pace* times as slow as it is said, with noise *below_db* below the speech."""

    def __init__(self, socket: Socket, pace: float, below_db: float = 40.0) -> None:
        self.socket = socket
        self.below_db = below_db
        self._pace = pace
        self._noise = Noise().household(60 * RATE_HZ)
        self.noise_at = 0
        """The next sample of the noise; who sets it has the same noise again."""

    async def say(self, samples: Samples) -> None:
        """Send *samples* in pieces of 0.1 s."""
        step = round(RATE_HZ * CHUNK_S)
        for start in range(0, len(samples), step):
            part = np.pad(samples[start : start + step], (0, max(0, step - len(samples) + start)))
            noise = self._noise[self.noise_at : self.noise_at + step]
            self.noise_at = (self.noise_at + step) % (len(self._noise) - step)
            mixed = np.clip(part + noise * np.float32(10 ** (-self.below_db / 20)), -1, 1)
            await self.socket.send_raw(np.rint(mixed * 32_767).astype("<i2").tobytes())
            await asyncio.sleep(CHUNK_S * self._pace)

    async def hush(self, duration_s: float) -> None:
        """Say nothing for a while."""
        await self.say(np.zeros(round(duration_s * RATE_HZ), np.float32))

    async def hush_until(self, come: Callable[[], bool], limit_s: float = 20.0) -> None:
        """Say nothing until something has *come*, in *limit_s* seconds."""
        async with asyncio.timeout(limit_s):
            while not come():
                await self.hush(CHUNK_S)


@asynccontextmanager
async def listened_to(server: Server, key: str | None = None, **detection: object) -> AsyncIterator[Socket]:
    """Open a session that answers aloud, and take its events as they come."""
    async with open_socket(server.url, key=key) as socket:
        heard: Event = {"format": {"type": "audio/pcm", "rate": RATE_HZ}, "turn_detection": detection}
        await socket.send("session.update", session={"output_modalities": ["audio"], "audio": {"input": heard}})
        await socket.until("session.updated")

        async def take() -> None:
            while True:
                await socket.receive(60.0)

        taking = asyncio.create_task(take())
        try:
            yield socket
            assert not taking.done(), taking.exception()
        finally:
            taking.cancel()
            await asyncio.wait([taking])
