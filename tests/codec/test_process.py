"""The codec's process, as the core uses it: one answer for each request, whatever was sent."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from jarvis_core.codec import __main__ as child
from jarvis_core.codec.clip import to_base64
from jarvis_core.codec.encode import Streams
from jarvis_core.codec.messages import (
    Answer,
    Checked,
    CheckEnhanced,
    Decoded,
    DecodePcm,
    DecodeUpload,
    DropStream,
    Encode,
    Encoded,
    Failed,
    Request,
    Window,
    answer_decoder,
    encoder,
)
from jarvis_core.codec.process import MEMORY_LIMIT_BYTES
from jarvis_core.processes.confinement import CODEC_ID
from jarvis_core.processes.subprocess_pool import LENGTH, SubprocessPool
from tests.codec.sounds import AUDIO, flac_bomb, silence, to_pcm, tone, wav

MIB = 1 << 20


@pytest.fixture
async def pool() -> AsyncIterator[SubprocessPool]:
    """Give a pool of one codec process."""
    pool = SubprocessPool("codec", "jarvis_core.codec")
    yield pool
    await pool.close()


def threads(pool: SubprocessPool) -> int:
    """Return how many threads the process has."""
    (codec,) = pool._subprocesses
    return len(list(Path(f"/proc/{codec.process.pid}/task").iterdir()))


def told_of(pid: int, what: str) -> str:
    """Return what the kernel tells of a process."""
    return Path(f"/proc/{pid}/{what}").read_text()


async def ask(pool: SubprocessPool, request: Request, *payloads: bytes) -> tuple[Answer, list[bytes]]:
    header, *answered = await pool.call(encoder.encode(request), payloads, timeout_s=30.0)
    return answer_decoder.decode(header), answered


def memory_bytes(pool: SubprocessPool) -> int:
    """Return the most memory that the process ever had."""
    (codec,) = pool._subprocesses
    status = Path(f"/proc/{codec.process.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


async def test_speech(pool: SubprocessPool) -> None:
    """A recording comes back as one window of samples in base64."""
    data = (AUDIO / "fx16k_fr_1.webm").read_bytes()
    answer, payloads = await ask(pool, DecodeUpload("audio/webm"), data[:1_000], data[1_000:])
    assert isinstance(answer, Decoded)
    assert answer.duration_ms == pytest.approx(2_250, abs=20)
    assert answer.windows == [Window(0, answer.duration_ms, False)]
    assert answer.language is None
    (window,) = payloads
    samples = np.frombuffer(base64.b64decode(window), "<f4")
    assert len(samples) == pytest.approx(answer.duration_ms * 16, abs=16)
    assert 0.1 < np.abs(samples).max() <= 1.0


async def test_json_with_a_language(pool: SubprocessPool) -> None:
    """What the request's own fields name comes back with the clip."""
    body = json.dumps({"audio_data": base64.b64encode(wav(tone(1.0))).decode(), "language": "fr"}).encode()
    answer, _ = await ask(pool, DecodeUpload("application/json"), body)
    assert answer == Decoded(1_000, [Window(0, 1_000, False)], "fr")


async def test_windows(pool: SubprocessPool) -> None:
    """A long clip comes in windows that follow one another; a silent one has no samples."""
    clip = np.concatenate([tone(2.0), silence(3.0), tone(1.5)])
    answer, payloads = await ask(pool, DecodePcm("pcm16", 16_000, window_s=2.5), to_pcm(clip, "s16"))
    assert isinstance(answer, Decoded)
    assert answer.duration_ms == 6_500
    assert [window.silent for window in answer.windows] == [False, True, False]
    assert [bool(payload) for payload in payloads] == [True, False, True]
    ends = [window.start_ms + window.duration_ms for window in answer.windows]
    assert [window.start_ms for window in answer.windows] == [0, *ends[:-1]]
    assert ends[-1] == 6_500
    assert len(base64.b64decode(payloads[0])) == answer.windows[0].duration_ms * 64


async def test_nothing_said(pool: SubprocessPool) -> None:
    """An empty body is a clip without windows, one sample and silence have a silent one."""
    assert await ask(pool, DecodeUpload("audio/wav"), b"") == (Decoded(0, []), [])
    assert await ask(pool, DecodeUpload("audio/wav"), wav(silence(0.0))) == (Decoded(0, []), [])
    assert await ask(pool, DecodePcm("f32", 16_000), bytes(4)) == (Decoded(0, [Window(0, 0, True)]), [b""])
    assert await ask(pool, DecodePcm("f32", 8_000), silence(1.0, 8_000).tobytes()) == (
        Decoded(1_000, [Window(0, 1_000, True)]),
        [b""],
    )


@pytest.mark.parametrize(
    ("request_", "payload", "code", "words"),
    [
        (DecodeUpload("text/plain"), b"hello", "unsupported_media_type", "text/plain"),
        (DecodeUpload("application/json"), b"{", "invalid_json", "JSON"),
        (DecodeUpload("audio/webm"), tone(1.0).tobytes(), "invalid_request", "body: is not WebM"),
        (DecodeUpload("", limit_bytes=100), bytes(101), "too_large", "100 bytes"),
        (DecodePcm("f32", 16_000), b"abc", "invalid_request", "audio: is neither a known kind"),
        (DecodePcm("f32", 999), bytes(4), "invalid_request", "999 samples a second"),
        (DecodePcm("f32", 16_000, limit_s=1.0), bytes(4 * 17_000 * 2), "too_large", "longer than 1 s"),
        (Encode(1, "wav", sample_rate_hz=16_000, first=True), b"nonsense!", "bad_gateway", "base64"),
        (Encode(1, "wav", sample_rate_hz=16_000), to_base64(tone(0.1)), "unavailable", "was lost"),
    ],
)
async def test_complaints(pool: SubprocessPool, request_: Request, payload: bytes, code: str, words: str) -> None:
    """What is wrong is an answer, and the process goes on."""
    answer, payloads = await ask(pool, request_, payload)
    assert isinstance(answer, Failed)
    assert (answer.code, payloads) == (code, [])
    assert words in answer.message
    assert await ask(pool, DecodeUpload(""), b"") == (Decoded(0, []), [])
    assert pool.running == 1


async def test_stream_of_speech(pool: SubprocessPool) -> None:
    """Pieces make a file across requests, until the stream is dropped."""
    begin = Encode(5, "wav", sample_rate_hz=24_000, first=True)
    request = Encode(5, "wav", sample_rate_hz=24_000)
    piece = to_base64(tone(0.5, rate_hz=24_000))
    answer, first = await ask(pool, begin, piece)
    assert answer == Encoded(500.0, 24_000)
    _, second = await ask(pool, request, piece)
    assert first[0][:4] == b"RIFF"
    assert first[0][44:] == second[0]
    assert await ask(pool, DropStream(5)) == (Encoded(0.0, 0), [])
    answer, _ = await ask(pool, request, piece)
    assert isinstance(answer, Failed)
    _, again = await ask(pool, begin, piece)
    assert again == first


async def test_enhanced_window(pool: SubprocessPool) -> None:
    """What the audio engine answers is checked there too."""
    samples = tone(0.1)
    assert await ask(pool, CheckEnhanced(1_600), to_base64(samples)) == (Checked(), [to_base64(samples)])
    answer, payloads = await ask(pool, CheckEnhanced(1_601), to_base64(samples))
    assert isinstance(answer, Checked)
    assert answer.complaint
    assert payloads == []


async def test_bomb_in_little_memory(pool: SubprocessPool) -> None:
    """Days of silence in 24 MiB are refused at ten minutes, in the memory of ten minutes."""
    answer, _ = await ask(pool, DecodeUpload("audio/flac"), flac_bomb(24 * MIB))
    assert answer == Failed("too_large", "The audio is longer than 600 s.", {"limit_s": 600})
    assert memory_bytes(pool) < 250 * MIB


async def test_longest_clip_in_bounded_memory(pool: SubprocessPool) -> None:
    """Ten minutes in the largest JSON body that is taken need a fraction of the process's limit."""
    sound = np.random.default_rng(1).integers(-9_000, 9_000, 600 * 16_000, dtype="<i2").tobytes()
    head = wav(tone(1.0)[:0], data_size=len(sound), riff_size=len(sound) + 36)
    note = b"junk" + (6 * MIB).to_bytes(4, "little") + bytes(6 * MIB)
    body = b'{"audio_data": "' + base64.b64encode(head[:12] + note + head[12:] + sound) + b'"}'
    assert len(body) > 32 * MIB
    answer, payloads = await ask(pool, DecodeUpload("application/json"), body)
    assert isinstance(answer, Decoded)
    assert answer.duration_ms == 600_000
    assert sum(len(payload) for payload in payloads) > 48 * MIB
    assert memory_bytes(pool) < MEMORY_LIMIT_BYTES // 2


def serve_once(requests: Sequence[list[bytes]]) -> tuple[list[list[bytes]], str]:
    """Run a process on *requests* in a row; return its answers, and what it wrote to standard error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "jarvis_core.codec", "--parent", str(os.getpid())],
            stdin=theirs.fileno(),
            stderr=subprocess.PIPE,
        )
        theirs.close()
        answers = []
        with ours.makefile("rb") as source:
            for parts in requests:
                ours.sendall(LENGTH.pack(len(parts)) + b"".join(LENGTH.pack(len(part)) for part in parts))
                for part in parts:
                    ours.sendall(part)
                (count,) = LENGTH.unpack(source.read(LENGTH.size))
                lengths = [length for (length,) in LENGTH.iter_unpack(source.read(count * LENGTH.size))]
                answers.append([source.read(length) for length in lengths])
            ours.shutdown(socket.SHUT_RDWR)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    return answers, errors.decode()


def test_nothing_on_standard_error() -> None:
    """Neither FFmpeg nor a library has a word to say about what strangers send."""
    chance = random.Random(3)
    whole = {
        "audio/mpeg": (AUDIO / "fx16k_en_1.mp3").read_bytes(),
        "audio/webm": (AUDIO / "fx16k_en_1.webm").read_bytes(),
        "audio/wav": (AUDIO / "fx16k_en_1.wav").read_bytes(),
        "multipart/form-data; boundary=x": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n--x--\r\nrest',
    }
    requests = []
    for content_type, data in whole.items():
        for _ in range(10):
            damaged = bytearray(data)
            for _ in range(20):
                damaged[chance.randrange(len(data) if chance.random() < 0.5 else 60)] = chance.randrange(256)
            requests.append([encoder.encode(DecodeUpload(content_type)), bytes(damaged)])
        requests.append([encoder.encode(DecodeUpload(content_type)), data])
    answers, errors = serve_once(requests)
    kinds = {type(answer_decoder.decode(answer[0])) for answer in answers}
    assert kinds == {Decoded, Failed}
    assert errors == ""


def test_defect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is an answer and one line that says where, without anything of the audio."""

    def fail(data: bytes, *_: object, **__: object) -> None:
        raise RuntimeError(data)

    monkeypatch.setattr(child, "decode_audio", fail)
    codec = child.Codec()
    header, *payloads = codec.handle([encoder.encode(DecodeUpload("audio/wav")), b"secret"])
    answer = answer_decoder.decode(header)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.details, payloads) == ("internal", None, [])
    assert "secret" not in answer.message
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "RuntimeError on DecodeUpload at test_process.py:" in errors
    assert "secret" not in errors


def test_unknown_request(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no request at all is a defect too, and does not end the process."""
    (header,) = child.Codec().handle([b"\xff"])
    answer = answer_decoder.decode(header)
    assert isinstance(answer, Failed)
    assert answer.code == "internal"
    assert "codec: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (DecodeUpload(""), "too_large"),
        (DecodePcm("f32", 16_000), "too_large"),
        (Encode(1, "wav", first=True), "bad_gateway"),
    ],
)
def test_no_memory(monkeypatch: pytest.MonkeyPatch, request_: Request, code: str) -> None:
    """A client's request for which there is not enough memory is too large; of speech the neighbour made too much."""
    (header,) = without_memory(monkeypatch).handle([encoder.encode(request_), b""])
    answer = answer_decoder.decode(header)
    assert isinstance(answer, Failed)
    assert answer.code == code


def test_no_memory_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audio engine's answer for which there is not enough memory is unusable, and no call fails because of it."""
    (header,) = without_memory(monkeypatch).handle([encoder.encode(CheckEnhanced(1)), b""])
    answer = answer_decoder.decode(header)
    assert isinstance(answer, Checked)
    assert "memory" in answer.complaint


def without_memory(monkeypatch: pytest.MonkeyPatch) -> child.Codec:
    """Return a codec that has none left for anything."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    for name in ("decode_audio", "read_headerless", "check_enhanced"):
        monkeypatch.setattr(child, name, fail)
    monkeypatch.setattr(Streams, "encode", fail)
    return child.Codec()


async def test_limits(pool: SubprocessPool) -> None:
    """The process has a limit of memory and leaves no core file, and numpy starts no threads in it."""
    await ask(pool, DecodeUpload(""), b"")
    (codec,) = pool._subprocesses
    told = {line[:26].strip(): line[26:].split()[:2] for line in told_of(codec.process.pid, "limits").splitlines()}
    assert told["Max address space"] == [str(MEMORY_LIMIT_BYTES)] * 2
    assert told["Max core file size"] == ["0", "0"]
    assert threads(pool) == 1


@pytest.mark.every_python
async def test_interrupts_are_ignored(pool: SubprocessPool) -> None:
    """Ctrl-C is the parent's business."""
    await ask(pool, DecodeUpload(""), b"")
    (codec,) = pool._subprocesses
    codec.process.send_signal(signal.SIGINT)
    assert await ask(pool, DecodeUpload(""), b"") == (Decoded(0, []), [])


async def test_knows_nothing_and_may_nothing(pool: SubprocessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads strangers' files has no secret of ours, no privilege, and no way to get one."""
    monkeypatch.setenv("JWT_SECRET", "told to nobody")
    monkeypatch.setenv("API_KEYS", "kitchen:told-to-nobody")
    await ask(pool, DecodeUpload(""), b"")
    (codec,) = pool._subprocesses
    told = told_of(codec.process.pid, "status").splitlines()
    status = dict(line.split(":\t", 1) for line in told if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    if os.geteuid() == 0:
        assert set(status["Uid"].split()) == {str(CODEC_ID)}
    assert "told" not in told_of(codec.process.pid, "environ")
