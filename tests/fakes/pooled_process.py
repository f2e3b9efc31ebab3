"""A worker's process that does what its requests say, to see what its pool makes of it: ``python -m tests.fakes.pooled_process``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jarvis_core.processes.subprocess_pool import Message, Part, serve


class PooledProcess:
    """Does one thing after another; a request's header is a word and what it needs to know."""

    def __init__(self) -> None:
        self._requests = 0

    def handle(self, message: Message) -> Sequence[Part]:
        """
        Do as told, and answer ``<pid> <how many requests there were>`` with payloads.

        ``echo`` sends the payloads back; ``make N`` sends N bytes; ``wait PATH`` waits until there is such a file;
        ``raise`` fails; ``exit N`` and ``signal N`` end the process.
        """
        word, _, rest = message.pop(0).decode().partition(" ")
        self._requests += 1
        payloads: Sequence[Part] = []
        match word:
            case "echo":
                payloads = message
            case "make":
                payloads = [bytes(int(rest))]
            case "wait":
                while not Path(rest).exists():
                    time.sleep(0.002)
            case "raise":
                raise ValueError(rest)
            case "exit":
                os._exit(int(rest))
            case "signal":
                os.kill(os.getpid(), int(rest))
        return [b"%d %d" % (os.getpid(), self._requests), *payloads]


if __name__ == "__main__":
    serve(PooledProcess().handle, int(sys.argv[sys.argv.index("--parent") + 1]))
