"""
Who speaks when: how soon a turn that is over is committed, and an answer that is interrupted stops; and how often a pause is
taken for an end, by a fixed silence and by the model that hears ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import statistics
import time
import wave
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect

from jarvis_core.codec.silero import STEP_SAMPLES, Silero, State
from jarvis_core.conversation.detection import STEP_MS, Thresholds, steps_of
from jarvis_core.conversation.machine import Conversation, Kind, Manner
from jarvis_core.handlers.realtime.config import WAITS
from perf.processes import core, free_port
from perf.report import Row
from tests.fakes.python_bridges import BridgesMode, FakeBridges

REPOSITORY = Path(__file__).parent.parent
CLIP = REPOSITORY / "tests" / "fixtures" / "audio" / "fx16k_fr_1.wav"
WEIGHTS = REPOSITORY / ".cache" / "models"
SPOKEN = REPOSITORY / ".cache" / "perf" / "pauses"
RATE_HZ = 16_000
PIECE_S = 0.02
"""Sound in one message, as browsers and telephones send it."""
SPEECH = 0.02
"""Amplitude from which on a sample is speech: 20 dB below the clip's."""
SILENCE_MS = steps_of(Thresholds().silence_ms) * STEP_MS
"""Of ``server_vad``, in whole steps: what ends a turn is counted in samples."""
SOCKETS = 4
"""At once: so many that the clip's place in the detector's steps differs."""
ANSWER = (
    "Il était une fois un gardien de phare qui parlait aux oiseaux. Chaque soir il montait les deux cents marches. "
    "Une mouette blanche venait alors lui raconter la mer. Un jour elle apporta une clé rouillée dans son bec. "
)
PAUSES_MS = (300, 450, 600, 800, 1_000, 1_250, 1_500, 1_750)
"""How long who looks for a word is silent; people's pauses in a sentence are as long."""
ROOM = 0.0005

Samples = NDArray[np.float32]


def turn_taking(data: Path, rounds: int) -> list[Row]:
    """Measure both through the real server, and the pauses where the local engines are installed."""
    port = free_port()
    with core(data, f"http://127.0.0.1:{port}") as process:
        measured = uvloop.run(_converse(process.port, port, rounds))
    return [
        (
            "server_vad, 500 ms: from the detector's last step of speech to the commit",
            _figures(measured.ends),
            "≤ 540 ms",
        ),
        (
            "server_vad, 500 ms: silence behind the last sample of speech that the detector takes for speech",
            _figures(measured.tails),
            "–",
        ),
        ("interruption: from its first sample of speech to the answer's end", _figures(measured.stops), "≤ 250 ms"),
        ("interruption: from its detection to the answer's end", _figures(measured.ours), "≤ 50 ms"),
        *_pauses(),
    ]


def _figures(times_ms: list[float]) -> str:
    return f"p50 {statistics.median(times_ms):.0f} ms, longest {max(times_ms):.0f} ms"


class Measured(NamedTuple):
    """Times of the turns, in milliseconds."""

    ends: list[float]
    """Counted from the step behind the last one of speech, which the samples tell."""
    tails: list[float]
    stops: list[float]
    ours: list[float]


async def _converse(core_port: int, bridges_port: int, rounds: int) -> Measured:
    measured = Measured([], [], [], [])
    mode = BridgesMode(shape="ndjson", answer=ANSWER, transcript="Raconte.", speech_s_per_char=0.1)

    async def one(number: int) -> None:
        await asyncio.sleep(0.037 * number)
        async with connect(f"ws://127.0.0.1:{core_port}/ws", compression=None, max_size=None) as socket:
            heard = {"format": {"type": "audio/pcm", "rate": RATE_HZ}}
            session = {"output_modalities": ["audio"], "audio": {"input": heard}}
            await socket.send(json.dumps({"type": "session.update", "session": session}))
            arrivals = Arrivals(socket)
            taking = asyncio.create_task(arrivals.take())
            microphone = Microphone(socket)
            for turn in range(rounds + 1):
                await microphone.speak(_room(0.3))
                first, last = await microphone.speak(_clip())
                await microphone.speak_until(arrivals, "input_audio_buffer.committed", turn + 1)
                if turn:
                    # The first one has the process that listens start; the others interrupt the answer to the one before.
                    silent = microphone.at(arrivals.stopped_ms[turn] - SILENCE_MS)
                    measured.ends.append(1_000 * (arrivals.at("input_audio_buffer.committed", turn) - silent))
                    measured.tails.append(1_000 * (silent - last))
                    end = arrivals.at("response.done", turn - 1)
                    measured.stops.append(1_000 * (end - first))
                    measured.ours.append(1_000 * (end - arrivals.at("input_audio_buffer.speech_started", turn)))
                await microphone.speak_until(arrivals, "response.created", turn + 1)
                await microphone.speak(_room(1.0))
            taking.cancel()
            await asyncio.wait([taking])

    async with FakeBridges(mode=mode, port=bridges_port):
        await asyncio.gather(*map(one, range(SOCKETS)))
    return measured


class Arrivals:
    """When events of each kind came."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._times: dict[str, list[float]] = {}
        self.stopped_ms: list[int] = []
        """Where turns of speech were over, in all sound that was sent."""

    async def take(self) -> None:
        """Note events as they come."""
        while True:
            event: dict[str, Any] = json.loads(await self._socket.recv())
            self._times.setdefault(event["type"], []).append(time.perf_counter())
            if event["type"] == "input_audio_buffer.speech_stopped":
                self.stopped_ms.append(event["audio_end_ms"])
            if event["type"] == "error":
                raise RuntimeError(event["error"]["message"])

    def count(self, kind: str) -> int:
        """Return how many have come."""
        return len(self._times.get(kind, ()))

    def at(self, kind: str, number: int) -> float:
        """Return when one came."""
        return self._times[kind][number]


class Microphone:
    """Sends sound as it is spoken, without a gap: a sample's place tells when it was spoken."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._begun = time.perf_counter()
        self._sent = 0

    def at(self, place_ms: float) -> float:
        """Return when what is at *place_ms* was spoken."""
        return self._begun + place_ms / 1_000

    async def speak(self, samples: Samples) -> tuple[float, float]:
        """Send *samples*; return when the first and the last one of speech had been spoken."""
        loud = np.flatnonzero(np.abs(samples) > SPEECH)
        start_s = self._begun + self._sent / RATE_HZ
        step = round(PIECE_S * RATE_HZ)
        data = np.rint(samples * 32_767).astype("<i2")
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            self._sent += len(piece)
            await asyncio.sleep(max(0.0, self._begun + self._sent / RATE_HZ - time.perf_counter()))
            await self._socket.send(piece.tobytes())
        if not len(loud):
            return start_s, start_s
        return start_s + loud[0] / RATE_HZ, start_s + loud[-1] / RATE_HZ

    async def speak_until(self, arrivals: Arrivals, kind: str, count: int) -> None:
        """Send silence until so many events of a *kind* have come."""
        async with asyncio.timeout(10):
            while arrivals.count(kind) < count:
                await self.speak(_room(0.1))


def _clip() -> Samples:
    with wave.open(str(CLIP)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32_768
    return samples[: np.flatnonzero(np.abs(samples) > SPEECH)[-1]].astype(np.float32)


def _room(duration_s: float) -> Samples:
    return np.random.default_rng(0).normal(0, ROOM, round(duration_s * RATE_HZ)).astype(np.float32)


def _pauses() -> list[Row]:
    """Count the pauses that end a turn, and how long ends are waited for."""
    what = "pauses in sentences, three voices, both languages"
    if any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "kokoro_onnx")):
        return [(what, "not measured: the local engines are not installed", "–")]
    from jarvis_core.local.catalogue import CATALOGUE
    from jarvis_core.local.smart_turn import SmartTurn
    from jarvis_core.local.weights import ensure
    from perf import pauses

    said = pauses.load(lambda: ensure(CATALOGUE["kokoro-82m"], WEIGHTS), SPOKEN)
    listener = Listener(SmartTurn(ensure(CATALOGUE["smart-turn-v3.2"], WEIGHTS), 1), Silero.load())
    manners = {
        "500 ms of silence": Manner(Thresholds(silence_ms=500)),
        **{
            f"semantic_vad, {eagerness}": Manner(Thresholds(silence_ms=800), waits=WAITS[eagerness])
            for eagerness in ("medium", "low", "high")
        },
    }
    rows: list[Row] = []
    fixed = 0.0
    for name, manner in manners.items():
        shares, waits = [], []
        for language in ("f", "a"):
            spoken = [one for one in said if one.voice.startswith(language)]
            patience_ms = [listener.patience_ms(one, place, manner) for one in spoken for place in one.pauses]
            cut = [pause_ms >= one for one in patience_ms for pause_ms in PAUSES_MS]
            shares.append(sum(cut) / len(cut))
            waits += [listener.wait_ms(one, manner) for one in spoken]
        share = statistics.mean(shares)
        fixed = fixed or share
        aim = f"≤ {fixed / 3:.0%}, < 500 ms" if name.endswith("medium") else "–"
        figures = f"{share:.0%} cut (French {shares[0]:.0%}, English {shares[1]:.0%}), median wait {statistics.median(waits):.0f} ms"
        rows.append((f"{what}: {name}", figures, aim))
    return rows


class Listener:
    """Hears sentences as a session does, without the network: voice detection, the model, the conversation."""

    def __init__(self, model: Any, silero: Silero) -> None:
        self._model = model
        self._silero = silero
        self._judged: dict[bytes, float] = {}
        self._probabilities: dict[bytes, list[float]] = {}
        """By the sound: the manners hear the same."""

    def patience_ms(self, said: Any, place: int, manner: Manner) -> float:
        """Return how long a pause at *place* may be before it ends the turn: what comes behind it is not known by then."""
        place_ms = 1_000 * place / RATE_HZ
        return next(end_ms for end_ms, _ in self._ends(said.samples[:place], manner) if end_ms > place_ms) - place_ms

    def wait_ms(self, said: Any, manner: Manner) -> int:
        """Return how long it is silent before the whole sentence is over."""
        return self._ends(said.samples, manner)[-1][1]

    def _ends(self, samples: Samples, manner: Manner) -> list[tuple[float, int]]:
        """Return where turns end in *samples* (ms), and the silence before each."""
        lead = RATE_HZ // 2
        sound = np.concatenate([np.zeros(lead, np.float32), samples, np.zeros(4 * RATE_HZ, np.float32)])
        sound = sound + np.random.default_rng(0).normal(0, ROOM, len(sound)).astype(np.float32)
        sound = sound[: len(sound) // STEP_SAMPLES * STEP_SAMPLES]
        conversation = Conversation(manner)
        asked: Samples = sound[:0]
        found = []
        key = sound.tobytes()
        if key not in self._probabilities:
            self._probabilities[key] = self._silero.probabilities(State(), sound)
        for probability in self._probabilities[key]:
            if conversation.awaits_judgement:
                conversation.judge(self._judge(asked))
            for action in conversation.hear([(probability, -20.0)], 0.0):
                if action.kind is Kind.ASK:
                    asked = sound[action.start_ms * 16 : action.end_ms * 16]
                elif action.kind is Kind.COMMIT:
                    found.append((action.end_ms - 1_000 * lead / RATE_HZ, action.silence_ms))
        return found

    def _judge(self, samples: Samples) -> float:
        key = samples.tobytes()
        if key not in self._judged:
            self._judged[key] = self._model.probability(samples)
        return self._judged[key]
