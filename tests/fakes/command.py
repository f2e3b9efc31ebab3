"""Run one fake as a process of its own: ``python -m tests.fakes.python_bridges --port 8005``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any, TypeVar

import msgspec
import uvloop

from .server import FakeServer
from .streams import FaultyMode

ModeT = TypeVar("ModeT", bound=FaultyMode)


def make_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser with what every fake takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="0 is a free one; the URL is the first line of the output")
    parser.add_argument("--mode", default="{}", metavar="JSON", help="fields of the mode, as for POST /_control")
    return parser


def read_mode(options: argparse.Namespace, mode_type: type[ModeT], **fields: object) -> ModeT:
    """Take the mode from the command line; *fields* that are not None are options of their own."""
    given = msgspec.json.decode(options.mode, type=dict[str, Any])
    return msgspec.convert(given | {name: value for name, value in fields.items() if value is not None}, mode_type)


def serve(server: FakeServer[Any]) -> None:
    """Serve until SIGTERM or SIGINT."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with server:
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            await stop.wait()

    uvloop.run(main())
