"""
The process that listens to microphones: ``python -m jarvis_core.codec.listener --parent PID``.

Apart from the codec's: no recording that is read keeps a conversation waiting, and without FFmpeg it is half as large.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence

# Before numpy is imported: each of its threads would cost memory, and the other processor is the server's.
os.putenv("OPENBLAS_NUM_THREADS", "1")

from jarvis_core.codec.listening import Listening
from jarvis_core.codec.messages import (
    Answer,
    DropStream,
    Encoded,
    Failed,
    Listen,
    Request,
    encoder,
    request_decoder,
)
from jarvis_core.codec.process import limit_process, report
from jarvis_core.codec.silero import Silero
from jarvis_core.errors import RequestError
from jarvis_core.processes.child import end_with_parent
from jarvis_core.processes.confinement import restrict
from jarvis_core.processes.subprocess_pool import Message, serve


class Listener:
    """What the process does: one answer for each request."""

    def __init__(self, model: Silero) -> None:
        self._listening = Listening(model)

    def handle(self, message: Message) -> list[bytes]:
        """Answer *message*; errors are answers too."""
        request: Request | None = None
        try:
            request = request_decoder.decode(message[0])
            answer, payloads = self._answer(request, message[1:])
        except RequestError as exc:
            answer, payloads = Failed(exc.code, exc.message, exc.details), []
        except Exception as exc:  # noqa: BLE001 - a defect; it must not end the process, where other streams are
            report(exc, type(request).__name__)
            answer, payloads = Failed("internal", "The sound could not be listened to, by our own fault."), []
        return [encoder.encode(answer), *payloads]

    def _answer(self, request: Request, payloads: Message) -> tuple[Answer, list[bytes]]:
        match request:
            case Listen():
                listened, samples = self._listening.listen(request, b"".join(payloads))
                return listened, [samples]
            case DropStream():
                self._listening.drop(request.stream)
                return Encoded(0.0, 0), []
            case _:
                raise TypeError("recordings and voices are the codec's")


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the parent's requests until it goes away."""
    parser = argparse.ArgumentParser(prog="jarvis_core.codec.listener")
    parser.add_argument("--parent", type=int, required=True, metavar="PID")
    options = parser.parse_args(arguments)
    listener = Listener(Silero.load())
    limit_process()
    end_with_parent(options.parent, signal.SIGKILL)
    restrict()
    serve(listener.handle, options.parent)


if __name__ == "__main__":
    main()
