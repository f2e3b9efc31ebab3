"""
A codec's process: ``python -m jarvis_core.codec --parent PID``.

What it reads comes from strangers, and FFmpeg is large: it has little memory and leaves no core file, so that nothing
of anybody's speech gets to the disk. It needs no network and no file once it has started, and gives them up, as it does root's rights.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pkgutil
import signal
from collections.abc import Sequence

# Before numpy is imported: each of its threads would cost memory, and the other processor is the server's.
os.putenv("OPENBLAS_NUM_THREADS", "1")

import av

from jarvis_core.codec.clip import RATE_HZ, Budget, Clip, CpuLimit, check_enhanced, to_base64
from jarvis_core.codec.decode import CPU_LIMIT_S, decode_audio
from jarvis_core.codec.encode import Streams
from jarvis_core.codec.headerless import Headerless, read_headerless
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
    Listen,
    Request,
    Window,
    encoder,
    request_decoder,
)
from jarvis_core.codec.process import limit_process, report
from jarvis_core.codec.upload import read_upload
from jarvis_core.codec.windows import cut_windows, is_silent
from jarvis_core.errors import RequestError
from jarvis_core.processes.child import end_with_parent
from jarvis_core.processes.confinement import restrict
from jarvis_core.processes.subprocess_pool import Message, serve

NEVER_NEEDED = {"av.__main__", "av.datasets"}
"""A command line, and what downloads samples."""


class Codec:
    """What the process does: one answer for each request."""

    def __init__(self) -> None:
        self._streams = Streams()

    def handle(self, message: Message) -> list[bytes]:
        """Answer *message*, which it empties; errors are answers too."""
        request: Request | None = None
        try:
            request = request_decoder.decode(message.pop(0))
            answer, payloads = self._answer(request, message)
        except RequestError as exc:
            answer, payloads = Failed(exc.code, exc.message, exc.details), []
        except MemoryError:
            answer, payloads = _no_memory(request), []
        except Exception as exc:  # noqa: BLE001 - a defect; it must not end the process, where other streams are
            report(exc, type(request).__name__)
            answer, payloads = Failed("internal", "The audio could not be processed, by our own fault."), []
        return [encoder.encode(answer), *payloads]

    def _answer(self, request: Request, payloads: Message) -> tuple[Answer, list[bytes]]:
        match request:
            case DecodeUpload():
                upload = read_upload(payloads, request)
                # The body is not needed beside the audio that was in it.
                payloads.clear()
                clip = decode_audio(
                    upload.audio, upload.path, told=upload.told, claim=upload.claim, limit_s=request.limit_s
                )
                return _answer_clip(clip, request.window_s, upload.language, upload.fields)
            case DecodePcm():
                data = b"".join(payloads)
                payloads.clear()
                told = Headerless(request.encoding, request.sample_rate_hz)
                budget = Budget(request.limit_s, CpuLimit(CPU_LIMIT_S))
                clip = read_headerless(data, told, "audio", request.limit_s, budget)
                return _answer_clip(clip, request.window_s)
            case CheckEnhanced():
                complaint, samples = check_enhanced(b"".join(payloads), request.samples)
                return Checked(complaint), [] if complaint else [samples]
            case Encode():
                encoded, *sent = self._streams.encode(request, b"".join(payloads))
                return encoded, sent
            case DropStream():
                self._streams.drop(request.stream)
                return Encoded(0.0, 0), []
            case Listen():
                raise TypeError("what is listened to is the listener's")


def _no_memory(request: Request | None) -> Answer:
    """Say that *request* needs more memory than there is, by the fault of who made its audio."""
    complaint = "The audio needs more memory than there is for one request."
    match request:
        case CheckEnhanced():
            return Checked(complaint)
        case Encode():
            return Failed("bad_gateway", complaint)
        case _:
            return Failed("too_large", complaint)


def _answer_clip(
    clip: Clip, window_s: float, language: str | None = None, fields: dict[str, str] | None = None
) -> tuple[Decoded, list[bytes]]:
    windows: list[Window] = []
    payloads: list[bytes] = []
    for start, samples in cut_windows(clip.samples, window_s):
        silent = is_silent(samples)
        windows.append(Window(_to_ms(start), _to_ms(len(samples)), silent))
        payloads.append(b"" if silent else to_base64(samples))
    return Decoded(_to_ms(len(clip.samples)), windows, language, fields or {}), payloads


def _to_ms(samples: int) -> int:
    return round(samples * 1_000 / RATE_HZ)


def import_all() -> None:
    """Import the modules that PyAV would import for some streams only: no file can be opened later."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name not in NEVER_NEEDED:
            importlib.import_module(module.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the parent's requests until it goes away."""
    parser = argparse.ArgumentParser(prog="jarvis_core.codec")
    parser.add_argument("--parent", type=int, required=True, metavar="PID")
    options = parser.parse_args(arguments)
    import_all()
    limit_process()
    end_with_parent(options.parent, signal.SIGKILL)
    restrict()
    # What libraries remark on the files of strangers is nobody's log line; PyAV hands on FFmpeg's only when asked.
    logging.disable()
    serve(Codec().handle, options.parent)


if __name__ == "__main__":
    main()
