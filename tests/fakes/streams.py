"""
A model's answer in pieces: its pace, its accidents, and the record of what became of it.

Positions count deltas: ``cut_after=2`` sends two and then cuts; the number of all deltas means just before the
terminator.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal, NoReturn, Protocol

import msgspec
from aiohttp import web

from .content import split_words
from .faults import Fault, forever, sever

Outcome = Literal["open", "served", "client_left", "cut", "stopped"]


class FaultyMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every fake's mode has."""

    faults: dict[str, Fault] = {}
    """Path prefix → what goes wrong there."""


class StreamMode(FaultyMode, frozen=True, kw_only=True):
    """How a streamed answer is played; all at their defaults it is whole, clean and without any delay."""

    answer: str | None = None
    """The text; None is "You said: " and the last words of the user."""
    deltas: tuple[str, ...] | None = None
    """The exact pieces; None is a word each."""
    first_delay_s: float = 0.0
    """Between the head of the answer and the first delta (the model loads)."""
    delta_delay_s: float = 0.0
    """Before each further delta."""
    hold_after: int | None = None
    """Before each delta from this position on, wait for the gate."""
    stall_after: int | None = None
    """Send nothing more, and keep the connection open."""
    cut_after: int | None = None
    """Break off, as ``cut`` says."""
    half_line: bool = False
    """Begin the next delta's line before going silent or breaking off."""
    cut: Literal["close", "reset", "end"] = "close"
    """FIN inside the chunked body, a TCP reset, or a clean end of the HTTP message without any terminator."""
    error_after: int | None = None
    """Send the neighbour's error event instead of the rest."""
    error_message: str = "model runner has unexpectedly stopped"
    """What that event says."""
    nonsense_after: int | None = None
    """Put a line that is not JSON between two deltas."""
    huge_line_after: int | None = None
    """Put a line of ``huge_line_bytes`` between two deltas; its text is one long word."""
    huge_line_bytes: int = 4 * 1024 * 1024
    """How long that line is."""
    flood_after: int | None = None
    """From this position on send without end what brings nothing, as ``flood`` says, until the client leaves."""
    flood: Literal["comments", "empty", "bytes", "long_comments"] = "comments"
    """Comments; events, or lines, without a character; a comment of one byte to a network chunk; comments of 64 KiB."""
    content_type: str | None = None
    """What the stream is labelled in place of what it is; the empty text is no label."""
    pings: int = 0
    """Keep-alive comments before the first delta, spread over ``first_delay_s`` (event streams only)."""
    omit_done: bool = False
    """End the HTTP message cleanly after all deltas, without the terminator."""
    omit_counts: bool = False
    """Leave the token counts out of the terminator."""
    join_deltas: int = 1
    """So many deltas go out in one network write, the terminator with the last; waits send what is there."""
    piece_bytes: int = 0
    """Cut what is sent into network writes of so many bytes: 1 splits every character and line end, 0 nothing."""
    piece_pause_s: float = 0.0
    """Between those; 0 only yields to the loop, which is enough for a client on the same one."""
    line_ending: Literal["\n", "\r\n", "\r"] = "\n"
    """Of events and lines; a lone CR is legal in event streams only."""


class Script(Protocol):
    """How one neighbour writes the parts of a stream."""

    content_type: str

    def opening(self) -> bytes:
        """Write what comes before the first delta."""

    def delta(self, text: str) -> bytes:
        """Write one piece of the answer."""

    def empty(self) -> bytes:
        """Write an event, or a line, that brings nothing."""

    def error(self, message: str) -> bytes:
        """Write the error event."""

    def raw(self, line: str) -> bytes:
        """Write *line* as the payload of an event."""

    def ping(self) -> bytes:
        """Write a keep-alive comment; empty where the format has none."""

    def closing(self, deltas: int) -> bytes:
        """Write the terminator with the counts."""


class ModelStream:
    """One call of the model, from its request to the end of its answer."""

    def __init__(self, body: bytes = b"") -> None:
        self.body = body
        """The request's."""
        self.whole = False
        """Whether the answer was given to its end, the terminator included."""
        self.started_at = time.monotonic()
        self.first_sent_at: float | None = None
        self.ended_at: float | None = None
        """When the answer ended or the loss of the connection was noticed (monotonic)."""
        self.deltas_sent = 0
        self.outcome: Outcome = "open"
        self._ended = asyncio.Event()

    def end(self, outcome: Outcome) -> None:
        """Record the outcome; only the first counts."""
        if self.outcome == "open":
            self.outcome = outcome
            self.ended_at = time.monotonic()
            self._ended.set()

    async def wait_ended(self, timeout_s: float) -> None:
        """Wait until the outcome is known; raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            await self._ended.wait()


class Gate:
    """Holds streams at a position until the test lets them go on; shut at first."""

    def __init__(self) -> None:
        self._held: deque[asyncio.Future[None]] = deque()
        self._arrived = asyncio.Event()
        self._permits = 0
        self._open = False
        self.arrivals = 0
        """How often a stream came to the gate."""

    @property
    def waiting(self) -> int:
        """How many streams are held now."""
        return len(self._held)

    async def enter(self) -> None:
        """Wait for a permit (the stream's side)."""
        self.arrivals += 1
        if self._open:
            return
        if self._permits:
            self._permits -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._held.append(place)
        self._arrived.set()
        try:
            await place
        finally:
            if place in self._held:
                self._held.remove(place)

    async def reached(self, streams: int = 1, timeout_s: float = 5.0) -> None:
        """Wait until so many *streams* are held here; raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            while self.waiting < streams:
                self._arrived.clear()
                await self._arrived.wait()

    def step(self, deltas: int = 1) -> None:
        """Let so many *deltas* pass, whichever stream they are of; the end of a stream counts as one."""
        for _ in range(deltas):
            while self._held and self._held[0].done():
                self._held.popleft()  # its client has just left
            if self._held:
                self._held.popleft().set_result(None)
            else:
                self._permits += 1

    def release(self) -> None:
        """Let everything pass, now and later."""
        self._open = True
        self.step(sum(not place.done() for place in self._held))

    def shut(self) -> None:
        """Hold again what comes from now on."""
        self._open = False
        self._permits = 0


class Player:
    """Plays one answer to one client."""

    def __init__(self, request: web.Request, mode: StreamMode, script: Script, gate: Gate, stream: ModelStream) -> None:
        self._request = request
        self._mode = mode
        self._script = script
        self._gate = gate
        self._stream = stream
        self._unsent = bytearray()
        label = script.content_type if mode.content_type is None else mode.content_type
        self._response = web.StreamResponse(headers={"Content-Type": label, "Cache-Control": "no-cache"})

    async def play(self, text: str) -> web.StreamResponse:
        """Send *text* as the mode says; ends early by a cut or an error event."""
        mode = self._mode
        deltas = mode.deltas if mode.deltas is not None else split_words(text)
        await self._response.prepare(self._request)
        await self._wait_first()
        self._add(self._script.opening())
        for position in range(len(deltas) + 1):
            if mode.half_line and position in (mode.stall_after, mode.cut_after):
                line = self._script.delta(deltas[position])
                self._add(line[: len(line) // 2])
            if position == mode.stall_after:
                await self._flush()
                await forever()
            if position == mode.cut_after:
                await self._flush()
                return self._cut()
            if position == mode.flood_after:
                await self._flood()
            if position == mode.error_after:
                self._add(self._script.error(mode.error_message))
                break
            if position == mode.nonsense_after:
                self._add(self._script.raw("{nonsense"))
            if position == mode.huge_line_after:
                self._add(self._script.delta("x" * mode.huge_line_bytes))
            if mode.hold_after is not None and position >= mode.hold_after:
                await self._flush()
                await self._gate.enter()
            if position == len(deltas):
                if not mode.omit_done:
                    self._add(self._script.closing(len(deltas)))
                    self._stream.whole = True
                break
            if position and mode.delta_delay_s:
                await self._flush()
                await asyncio.sleep(mode.delta_delay_s)
            self._add(self._script.delta(deltas[position]))
            if (position + 1) % mode.join_deltas == 0:
                await self._flush()
            self._stream.deltas_sent += 1
            if position == 0:
                self._stream.first_sent_at = time.monotonic()
        await self._flush()
        return self._response

    async def _wait_first(self) -> None:
        pings = self._mode.pings
        for _ in range(pings):
            self._add(self._script.ping())
            await self._flush()
            await asyncio.sleep(self._mode.first_delay_s / pings)
        if not pings and self._mode.first_delay_s:
            await asyncio.sleep(self._mode.first_delay_s)

    async def _flood(self) -> NoReturn:
        await self._flush()
        junk = {
            "comments": b": nothing\n\n" * 500,
            "empty": self._script.empty() * 100,
            "bytes": b":",
            "long_comments": b":" + b"x" * 65_536 + b"\n",
        }[self._mode.flood]
        while True:
            for _ in range(50):
                await self._response.write(junk)
            await asyncio.sleep(0)

    def _cut(self) -> web.StreamResponse:
        self._stream.end("cut")
        if self._mode.cut != "end":
            sever(self._request, reset=self._mode.cut == "reset")
        return self._response

    def _add(self, data: bytes) -> None:
        if self._mode.line_ending != "\n":
            data = data.replace(b"\n", self._mode.line_ending.encode())
        self._unsent += data

    async def _flush(self) -> None:
        if not self._unsent:
            return
        data, self._unsent = bytes(self._unsent), bytearray()
        if not self._mode.piece_bytes:
            await self._response.write(data)
            return
        for piece in _pieces(data, self._mode.piece_bytes):
            await self._response.write(piece)
            await asyncio.sleep(self._mode.piece_pause_s)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))
