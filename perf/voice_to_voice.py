"""
From the last word of a question to the first sound of its answer, with the embedded engines.

Twelve recordings (four for each of ``PERF_ROUNDS``) are sent in real time over ``/ws``, and a client plays what comes back and
counts what it waits for. With ``PERF_BASE``, a commit or a work tree, each question is asked there too, in turn: both builds
have the same models and the same machine. ``PERF_WEIGHTS`` is the directory where the models are; they are fetched where it is not set.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import statistics
import sys
import time
import urllib.request
import wave
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect

from perf.processes import ROOT, Process, base_tree, free_port, server
from perf.report import NO_AIM, Row

AUDIO = ROOT / "tests" / "fixtures" / "audio"
RATE_HZ = 16_000
SOUND_HZ = 24_000
PIECE_S = 0.1
QUIET = 300
"""Of 16-bit samples: what is below is no word."""
HOLE_S = 0.3
ANSWER_LIMIT_S = 90.0
MODEL = "qwen2.5-coder-0.5b"
"""The same for both builds."""
QUESTIONS = (
    "Quel temps fait-il en automne à Lyon, d'habitude ?",
    "Combien de minutes faut-il pour cuire un œuf dur ?",
    "Pourquoi le ciel est-il bleu pendant la journée ?",
    "Raconte-moi une histoire courte avec un phare.",
    "Comment enlève-t-on une tache de vin rouge ?",
    "Que peut-on faire avec des restes de riz ?",
)
"""Spoken by the server's own voice; six more are fixtures of the tests."""
OURS, OTHER = "this build, push to talk", "the other build, push to talk"
LISTENING = "this build, server_vad"
BEFORE_FIRST_S = 20
"""Between the start and the first question."""
PARTS = ("end_of_turn", "transcription", "recall", "first_token", "first_sentence", "voice", "total")


class Asked(Struct):
    """What one question took."""

    waited_s: float
    """From its last word to the first sound."""
    holes_s: list[float]
    """How long the voice was silent in the middle, each time that was over ``HOLE_S``."""
    first_cpu_s: float
    """
    Of all processes, from the last word to the first sound: what is waited for where the machine does nothing else, and little
    more. It does not depend on what else the machine does.
    """
    cpu_s: float
    """Of all processes, to the answer's end."""
    sound_s: float
    receipt: dict[str, float | None]
    """Empty where the build has none."""


def voice_to_voice(data: Path, rounds: int) -> list[Row]:
    """Ask four questions aloud for each round, and wait for the voice."""
    base = os.environ.get("PERF_BASE")
    # A server for each way: what was spoken or read before costs less. The first one of all speaks the questions.
    with _started(data / "v2v-questions", ROOT) as process:
        clips = recordings(process)[: 4 * rounds]
    trees = {OURS: ROOT, **({OTHER: base_tree(base)} if base else {}), LISTENING: ROOT}
    with ExitStack() as stack:
        cores = {
            way: stack.enter_context(_started(data / f"v2v-{n}", tree)) for n, (way, tree) in enumerate(trees.items())
        }
        time.sleep(BEFORE_FIRST_S)
        asked: dict[str, list[Asked]] = {way: [] for way in cores}
        for number, clip in enumerate(clips):
            for way, process in cores.items():
                try:
                    one = asyncio.run(ask(process, clip, listens=way == LISTENING))
                except TimeoutError:
                    print(f"{number} {way}: no answer within {ANSWER_LIMIT_S} s", file=sys.stderr, flush=True)
                    continue
                asked[way].append(one)
                print(f"{number} {way}: {one}", file=sys.stderr, flush=True)
    unanswered = sum(len(clips) - len(answers) for answers in asked.values())
    rows: list[Row] = [("voice_to_voice: questions without an answer", str(unanswered), "0")] if unanswered else []
    rows += [row for way, answers in asked.items() if answers for row in describe(way, answers)]
    if base and not unanswered:
        rows += compare(asked[OURS], asked[OTHER])
    return rows


def _started(data: Path, tree: Path) -> AbstractContextManager[Process]:
    models = data / "models"
    models.mkdir(parents=True)
    if weights := os.environ.get("PERF_WEIGHTS"):
        for path in Path(weights).rglob("*"):
            if path.is_file():
                (models / path.relative_to(weights)).parent.mkdir(exist_ok=True)
                os.link(path, models / path.relative_to(weights))
    port = free_port()
    environment = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "DATA_DIR": str(data),
        "LOG_LEVEL": "error",
        "LOCAL_LLM_MODEL": MODEL,
    }
    return server(["-m", "jarvis_core"], port=port, ready="/ready", environment=environment, tree=tree)


def recordings(process: Process) -> list[bytes]:
    """Return twelve questions as 16-bit samples, from the first word to the last."""
    found = []
    for path in sorted(AUDIO.glob("fx16k_*.wav")):
        with wave.open(str(path)) as file:
            found.append(file.readframes(file.getnframes()))
    for question in QUESTIONS:
        message = urllib.request.Request(
            f"http://127.0.0.1:{process.port}/api/voice/synthesize",
            json.dumps({"text": question, "format": "wav"}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(message, timeout=120) as answer:  # noqa: S310 - of loopback
            wav = base64.b64decode(json.load(answer)["audio_data"])
        sound = np.frombuffer(wav[44:], "<i2").astype(np.float32)
        places = np.arange(0, len(sound) - 1, SOUND_HZ / RATE_HZ)
        found.append(np.interp(places, np.arange(len(sound)), sound).astype("<i2").tobytes())
    return [_words_of(samples) for samples in found]


def _words_of(samples: bytes) -> bytes:
    sound = np.frombuffer(samples, "<i2")
    loud = np.flatnonzero(np.abs(sound) > QUIET)
    return sound[loud[0] : loud[-1] + 1].tobytes()


async def ask(process: Process, clip: bytes, *, listens: bool) -> Asked:
    """Ask one question in real time, and hear the answer to its end; *listens* is whether the server finds the end of speech."""
    cpu_s = process.cpu_s()
    async with connect(f"ws://127.0.0.1:{process.port}/ws", compression=None, max_size=None) as socket:
        await _receive(socket, "session.created")
        await socket.send(json.dumps(_configuration(listens=listens)))
        await _receive(socket, "session.updated")
        microphone = asyncio.create_task(_speak(socket, clip, process, listens=listens))
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                answer = await _hear(socket, microphone, process)
        finally:
            microphone.cancel()
    answer.cpu_s = process.cpu_s() - cpu_s
    return answer


def _configuration(*, listens: bool) -> dict[str, object]:
    detection = {"type": "server_vad"} if listens else None
    given = {"format": {"type": "audio/pcm", "rate": RATE_HZ}, "turn_detection": detection}
    return {"type": "session.update", "session": {"output_modalities": ["audio"], "audio": {"input": given}}}


async def _speak(socket: ClientConnection, clip: bytes, process: Process, *, listens: bool) -> tuple[float, float]:
    """Send the clip as it is spoken; return when its last word was over, and the CPU that was used until then."""
    piece_bytes = round(2 * RATE_HZ * PIECE_S)
    silence = bytes(piece_bytes)
    began = time.monotonic()
    sound = silence * 5 + clip
    for number, start in enumerate(range(0, len(sound), piece_bytes)):
        await asyncio.sleep(max(0.0, began + number * PIECE_S - time.monotonic()))
        await socket.send(sound[start : start + piece_bytes])
    over, cpu_s = time.monotonic(), process.cpu_s()
    if listens:
        for number in range(round(2 / PIECE_S)):
            await asyncio.sleep(max(0.0, over + number * PIECE_S - time.monotonic()))
            await socket.send(silence)
    else:
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        await socket.send(json.dumps({"type": "response.create"}))
    return over, cpu_s


async def _hear(socket: ClientConnection, microphone: asyncio.Task[tuple[float, float]], process: Process) -> Asked:
    """Play what comes."""
    first = first_cpu_s = playing_until = sound_s = 0.0
    holes = []
    while True:
        event = json.loads(await socket.recv())
        now = time.monotonic()
        match event["type"]:
            case "response.output_audio.delta":
                duration_s = len(base64.b64decode(event["delta"])) / 2 / SOUND_HZ
                if not first:
                    first, first_cpu_s = now, process.cpu_s()
                if playing_until and now - playing_until > HOLE_S:
                    holes.append(round(now - playing_until, 2))
                playing_until = max(playing_until, now) + duration_s
                sound_s += duration_s
            case "response.done":
                if not first:
                    raise RuntimeError(f"there was no voice: {event['response']['status_details']}")
                receipt = event["response"].get("receipt", {})
                over, over_cpu_s = await microphone
                return Asked(
                    round(first - over, 2), holes, round(first_cpu_s - over_cpu_s, 2), 0.0, round(sound_s, 1), receipt
                )
            case "error" | "conversation.item.input_audio_transcription.failed":
                raise RuntimeError(str(event))


async def _receive(socket: ClientConnection, kind: str) -> None:
    async with asyncio.timeout(ANSWER_LIMIT_S):
        while json.loads(await socket.recv())["type"] != kind:
            pass


def describe(way: str, answers: Sequence[Asked]) -> list[Row]:
    """Return what was measured in one way."""

    def spread(values: Sequence[float], unit: str) -> str:
        ordered = sorted(values)
        return f"median {statistics.median(ordered):.2f} {unit}, p95 {ordered[round(0.95 * (len(ordered) - 1))]:.2f} {unit}"

    holes = [hole for one in answers for hole in one.holes_s]
    rows = [
        (f"{way}: from the last word to the first sound", spread([one.waited_s for one in answers], "s"), NO_AIM),
        (f"{way}: the same of the first question", f"{answers[0].waited_s:.2f} s", NO_AIM),
        (f"{way}: silences over {HOLE_S} s in {len(answers)} answers", f"{len(holes)} {holes or ''}".strip(), "0"),
        (
            f"{way}: CPU from the last word to the first sound",
            spread([one.first_cpu_s for one in answers], "s"),
            NO_AIM,
        ),
        (f"{way}: CPU of a question and its answer", spread([one.cpu_s for one in answers], "s"), NO_AIM),
    ]
    for part in PARTS:
        values = [value for one in answers if (value := one.receipt.get(f"{part}_ms")) is not None]
        if values:
            rows.append((f"{way}: {part}_ms", spread(values, "ms"), NO_AIM))
    return rows


def compare(ours: Sequence[Asked], others: Sequence[Asked]) -> list[Row]:
    """Return the ratios of this build to the other one."""

    def ratio(read: Callable[[Asked], float]) -> str:
        return f"{statistics.median(map(read, ours)) / statistics.median(map(read, others)):.2f} ×"

    return [
        ("voice to voice, this build to the other", ratio(lambda one: one.waited_s), "≤ 0.45 ×"),
        (
            "the same in CPU, which other work on the machine does not change",
            ratio(lambda one: one.first_cpu_s),
            NO_AIM,
        ),
        ("the same, first question", f"{ours[0].waited_s / others[0].waited_s:.2f} ×", "≤ 0.45 ×"),
    ]


SCENARIOS: Sequence[Callable[[Path, int], list[Row]]] = (voice_to_voice,)
