"""
Voice: what the core adds to its neighbours' own time, and what audio costs it.

The neighbours are fakes that answer at once; what a scenario asks of them directly, in the same run, is taken off.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
import uvloop
from starlette.types import Message
from websockets.asyncio.client import connect

from jarvis_core.codec.client import Codec, Microphone
from jarvis_core.conversation.machine import Conversation, Manner
from jarvis_core.handlers.call import Call
from jarvis_core.handlers.voice import VoiceHandlers
from jarvis_core.services.bridges_speech import BridgesSpeech
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours, Speech
from jarvis_core.speech.synthesis import Synthesizer, Voices
from jarvis_core.speech.transcription import CLIP_LIMIT_BYTES, CLIP_LIMIT_S, Transcriber
from jarvis_core.speech.turn_ends import TurnEnds
from perf.load import Latencies, repeat, request
from perf.processes import Process, bridges, core, free_port
from perf.report import Row
from perf.turn_taking import turn_taking
from tests.fakes.python_bridges import BridgesMode, FakeBridges

CLIP = Path(__file__).parent.parent / "tests" / "fixtures" / "audio" / "fx16k_en_1.wav"
PIECE_BYTES = 16 << 10
"""As the server hands a body on."""
REQUESTS = 60
FIRST_SOUNDS = 20
LISTENED_CLIPS = 8
MICROPHONE_HZ = 24_000
MICROPHONE_PIECES_S = 10
"""Pieces of sound a second, as clients send them."""
SENTENCE = "Bonjour Camille, il est dix heures et il fait beau."
LONG_TEXT = " ".join(f"Voici la phrase numéro {number}, qui se lit à voix haute." for number in range(90))[:5_000]


def transcribe_and_synthesize(data: Path, rounds: int) -> list[Row]:
    """Time of both routes less the bridges' own time for the same, one request at a time."""
    wav = CLIP.read_bytes()
    samples = np.frombuffer(wav[44:], "<i2").astype("<f4") / 32_768
    heard = json.dumps({"audio_data": base64.b64encode(samples.tobytes()).decode(), "language": "fr"}).encode()
    uploads = {
        "WAV": _raw(wav),
        "WebM": _raw(CLIP.with_suffix(".webm").read_bytes()),
        "MP3": _raw(CLIP.with_suffix(".mp3").read_bytes()),
    }
    speak = request("POST", "/api/voice/synthesize", json.dumps({"text": SENTENCE}).encode())
    direct_hear = request("POST", "/api/stt/transcribe", heard)
    direct_speak = request("POST", "/api/tts/synthesize", json.dumps({"text": SENTENCE}).encode())
    added: dict[str, list[float]] = {}
    with bridges(shape="ndjson") as model, core(data, f"http://127.0.0.1:{model.port}") as process:
        for message in (*uploads.values(), speak):
            _ask(process, message, 5)
        for _ in range(rounds):
            base = _ask(model, direct_hear, REQUESTS).p50
            for name, message in uploads.items():
                added.setdefault(f"transcribe, {name} of 2.4 s", []).append(_ask(process, message, REQUESTS).p50 - base)
            base = _ask(model, direct_speak, REQUESTS).p50
            added.setdefault("synthesize, a sentence of 2.5 s as WAV in JSON", []).append(
                _ask(process, speak, REQUESTS).p50 - base
            )
    return [
        (f"POST /api/voice/{name}: added to the bridge's own time", f"p50 {statistics.median(times):+.1f} ms", "–")
        for name, times in added.items()
    ]


def first_sound(data: Path, rounds: int) -> list[Row]:
    """Time from the token that makes the first sentence certain to its sound at the client, over a WebSocket."""
    port = free_port()
    with core(data, f"http://127.0.0.1:{port}") as process:
        ours, own = uvloop.run(_first_sounds(process.port, port, rounds * FIRST_SOUNDS))
    figures = f"p50 {statistics.median(ours):.1f} ms, of which the bridge's own {statistics.median(own):.1f} ms"
    return [("/ws: from the first sentence's last token to its first sound", figures, "–")]


async def _first_sounds(core_port: int, bridges_port: int, count: int) -> tuple[list[float], list[float]]:
    ours, own = [], []
    deltas = ("Bonjour Camille. ", "Il ", "est dix heures.")
    mode = BridgesMode(shape="ndjson", deltas=deltas, hold_after=1)
    async with FakeBridges(mode=mode, port=bridges_port) as fake:
        for _ in range(count):
            fake.gate.shut()
            async with connect(f"ws://127.0.0.1:{core_port}/ws", compression=None, max_size=None) as socket:
                for event in (
                    {"type": "session.update", "session": {"output_modalities": ["audio"]}},
                    {"type": "conversation.item.create", "item": _user_item("Bonjour")},
                    {"type": "response.create"},
                ):
                    await socket.send(json.dumps(event))
                await fake.gate.reached()
                released = time.perf_counter()
                fake.gate.release()
                while b'"response.output_audio.delta"' not in await socket.recv(decode=False):
                    pass
                ours.append(1_000 * (time.perf_counter() - released))
            own.append(await _own_time(bridges_port, deltas[0]))
    return ours, own


async def _own_time(port: int, text: str) -> float:
    message = request("POST", "/api/tts/synthesize", json.dumps({"text": text}).encode())
    return (await repeat(port, message, count=1, connections=1)).p50


def decoding(_data: Path, _rounds: int) -> list[Row]:
    """How much faster than real time ten minutes of each kind are decoded and resampled, in the codec's process."""
    return uvloop.run(_decode_all())


async def _decode_all() -> list[Row]:
    rows = []
    codec = Codec(limit=1)
    try:
        for name, made in recordings():
            parts = [made[start : start + PIECE_BYTES] for start in range(0, len(made), PIECE_BYTES)]
            started = time.perf_counter()
            clip = await codec.decode_upload(
                parts, "application/octet-stream", limit_s=CLIP_LIMIT_S, limit_bytes=CLIP_LIMIT_BYTES
            )
            seconds = time.perf_counter() - started
            if not 598_000 < clip.duration_ms <= 600_000:
                raise RuntimeError(f"{name}: {clip.duration_ms} ms were decoded")
            figures = f"{clip.duration_ms / 1_000 / seconds:.0f} × real time ({seconds:.1f} s)"
            rows.append((f"decode and resample ten minutes, {name}", figures, "–"))
    finally:
        await codec.close()
    return rows


def listening(data: Path, rounds: int) -> list[Row]:
    """What a microphone that is listened to costs a second, and its steps; and how soon its turns are over."""
    return uvloop.run(_listen(rounds)) + turn_taking(data, rounds)


async def _listen(rounds: int) -> list[Row]:
    with CLIP.open("rb") as file:
        speech = file.read()[44:]
    sound = np.frombuffer(speech * LISTENED_CLIPS, "<i2")
    samples = soxr.resample(sound, 16_000, MICROPHONE_HZ).astype("<i2").tobytes()
    duration_s = len(samples) / 2 / MICROPHONE_HZ
    own, theirs = [], []
    longest = [0.0]
    codec = Codec(limit=1)
    try:
        for turn in range(rounds + 2):
            microphone = codec.listen("pcm16", MICROPHONE_HZ)
            ours_s, children_s = time.process_time(), _children_cpu_s()
            # Steps are looked at in the last round only: to look costs more than to listen.
            with longest_step() if turn > rounds else nullcontext([0.0]) as longest:
                await _hear(microphone, samples)
            own.append(1_000 * (time.process_time() - ours_s) / duration_s)
            theirs.append(1_000 * (_children_cpu_s() - children_s) / duration_s)
            await microphone.close()
    finally:
        await codec.close()
    # The first one starts the process.
    server_ms, process_ms = statistics.median(own[1:-1]), statistics.median(theirs[1:-1])
    return [
        ("voice detection: CPU a second of sound, the process that listens", f"{process_ms:.1f} ms", "≤ 8 ms"),
        ("voice detection: CPU a second of sound, the server", f"{server_ms:.1f} ms", "≤ 2 ms"),
        ("voice detection: longest step of the event loop", f"{longest[0]:.1f} ms of CPU", "≤ 5 ms"),
    ]


async def _hear(microphone: Microphone, samples: bytes) -> None:
    conversation = Conversation(Manner())
    piece_bytes = 2 * MICROPHONE_HZ // MICROPHONE_PIECES_S
    for start in range(0, len(samples), piece_bytes):
        async for heard in microphone.hear(samples[start : start + piece_bytes]):
            conversation.hear(heard.steps, 500 * start / MICROPHONE_HZ)


def _children_cpu_s() -> float:
    """Return the CPU of this process's living children."""
    return sum(Process(pid).own_cpu_s() for pid in Process(os.getpid()).pids()[1:])


def held_loop(_data: Path, _rounds: int) -> list[Row]:
    """
    The longest time that one step of the event loop takes while the largest requests are answered.

    Counted in CPU time of the loop's thread, so that other work of the machine does not count.
    """
    wav = recording("wav", "pcm_s16le", 16_000, 1)
    with bridges(shape="ndjson", transcript="dix minutes", speech_s_per_char=0.065) as model:
        return uvloop.run(_hold_loop(wav, f"http://127.0.0.1:{model.port}"))


async def _hold_loop(wav: bytes, bridges_url: str) -> list[Row]:
    settings = Neighbours()
    transport = Transport("python_bridges", bridges_url, settings)
    speech = BridgesSpeech(transport, settings, None)
    codec = Codec(limit=1)
    voices = Voices(speech, Speech())
    handlers = VoiceHandlers(
        Transcriber(codec, speech, None, voices, Speech(), TurnEnds(None, codec)),
        Synthesizer(codec, speech, voices),
        voices,
        body_limit_bytes=1 << 20,
    )
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x.wav"\r\n\r\n' + wav + b"\r\n--b--\r\n"
    requests: dict[str, tuple[Callable[[Call], Any], bytes, bytes]] = {
        "transcribe ten minutes as they are": (handlers.transcribe, b"audio/wav", wav),
        "transcribe ten minutes in a form": (handlers.transcribe, b"multipart/form-data; boundary=b", form),
        "transcribe ten minutes in JSON": (
            handlers.transcribe,
            b"application/json",
            json.dumps({"audio_data": base64.b64encode(wav).decode()}).encode(),
        ),
        "synthesize 5,000 characters as JSON": (
            handlers.synthesize,
            b"application/json",
            json.dumps({"text": LONG_TEXT}).encode(),
        ),
    }
    rows = []
    try:
        for name, (handler, content_type, body) in requests.items():
            with longest_step() as longest:
                reply = await handler(_call(content_type, body))
            if reply.status != 200:
                raise RuntimeError(f"{name}: {reply.status}")
            rows.append((f"longest step of the event loop: {name}", f"{longest[0]:.1f} ms of CPU", "< 20 ms"))
    finally:
        await codec.close()
        await transport.close()
    return rows


@contextmanager
def longest_step() -> Iterator[list[float]]:
    """Measure the loop's steps meanwhile; the list has the longest one's milliseconds of CPU."""
    loop = asyncio.get_running_loop()
    longest = [0.0]
    seen = time.thread_time()
    handle: asyncio.Handle

    def look() -> None:
        nonlocal seen, handle
        now = time.thread_time()
        longest[0] = max(longest[0], 1_000 * (now - seen))
        seen = now
        handle = loop.call_soon(look)

    handle = loop.call_soon(look)
    try:
        yield longest
    finally:
        handle.cancel()


def recordings() -> Iterator[tuple[str, bytes]]:
    """Make ten minutes of noise and tones in each kind of file."""
    for name, container, encoder, rate_hz, channels in (
        ("WAV, 16 kHz mono", "wav", "pcm_s16le", 16_000, 1),
        ("FLAC, 16 kHz mono", "flac", "flac", 16_000, 1),
        ("MP3, 44.1 kHz stereo", "mp3", "libmp3lame", 44_100, 2),
        ("Ogg/Opus, 48 kHz stereo", "ogg", "libopus", 48_000, 2),
        ("WebM/Opus, 48 kHz stereo", "webm", "libopus", 48_000, 2),
        ("MP4/AAC, 48 kHz stereo", "mp4", "aac", 48_000, 2),
    ):
        yield name, recording(container, encoder, rate_hz, channels)


def recording(container: str, encoder: str, rate_hz: int, channels: int, seconds: int = 599) -> bytes:
    """Make a file: a second of a voice-like sound, again and again."""
    file = io.BytesIO()
    moment = np.arange(rate_hz) / rate_hz
    noise = np.random.default_rng(7).normal(0, 0.01, rate_hz)
    second = (0.3 * np.sin(2 * np.pi * 220 * moment) * np.sin(2 * np.pi * 3 * moment) + noise).astype("f4")
    pcm = (second * 32_767).astype("<i2")
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(encoder, rate=rate_hz, layout="mono" if channels == 1 else "stereo")
        resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate_hz)
        for number in range(seconds):
            frame = av.AudioFrame.from_ndarray(
                np.repeat(pcm, channels)[None, :], format="s16", layout="mono" if channels == 1 else "stereo"
            )
            frame.sample_rate = rate_hz
            frame.pts = number * rate_hz
            for one in resampler.resample(frame):
                output.mux(stream.encode(one))
        output.mux(stream.encode(None))
    return file.getvalue()


def _call(content_type: bytes, body: bytes) -> Call:
    pieces = [body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES)]
    waiting = asyncio.Event()

    async def receive() -> Message:
        if not pieces:
            await waiting.wait()
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(_message: Message) -> None:
        return

    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": headers}
    return Call(scope, receive, send, "perf", "", 0.0)


def _raw(body: bytes) -> bytes:
    head = (
        "POST /api/voice/transcribe HTTP/1.1\r\nhost: perf\r\ncontent-type: application/octet-stream\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _ask(process: Process, message: bytes, count: int) -> Latencies:
    return uvloop.run(repeat(process.port, message, count=count, connections=1))


def _user_item(text: str) -> dict[str, object]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


SCENARIOS: Sequence[Callable[[Path, int], list[Row]]] = (
    transcribe_and_synthesize,
    first_sound,
    decoding,
    listening,
    held_loop,
)
