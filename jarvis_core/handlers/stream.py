"""
Sends a turn to a client: whole, or as server-sent events
(https://html.spec.whatwg.org/multipage/server-sent-events.html).

The server's ``send`` neither fails nor waits after the client has gone, so the connection is watched by receiving; while
a client is there and does not read, it waits.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from jarvis_core.handlers.call import BoundedSends, Call, ClientLeft
from jarvis_core.handlers.call_events import note_event
from jarvis_core.handlers.events import TurnEvents
from jarvis_core.tasks import start_in
from jarvis_core.turns.log import Entry, Reader, Step, ToolNote, Turn
from jarvis_core.turns.turns import Turns

HEARTBEAT_S = 15.0
"""A comment this often keeps proxies from closing a quiet stream."""

SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
)


async def wait_for_end(call: Call, turns: Turns, turn: Turn) -> None:
    """Wait until *turn* has ended; raises ``ClientLeft`` when the client has not waited for it."""
    turns.attach(turn)
    leaving: set[asyncio.Task[None]] = set()

    def leave() -> None:
        start_in(leaving, turns.detach(turn))

    watch = call.watch(leave)
    try:
        await turn.wait_ended()
        if watch.over:
            raise ClientLeft
    finally:
        watch.cancel()
        for task in leaving:
            task.cancel()


def tool_event(turn: Turn, note: ToolNote) -> bytes:
    """Return *note* as a server-sent event; it has no id: who comes back goes on behind the last that has one."""
    return b"event: jarvis.tool\ndata: %s\n\n" % note_event(turn, note)


class _Heartbeat:
    """
    Wakes *reader* every ``HEARTBEAT_S`` seconds until it is cancelled.

    An object and not a function that names itself, which would be a cycle for the collector to find.
    """

    __slots__ = ("_handle", "_loop", "_reader")

    def __init__(self, loop: asyncio.AbstractEventLoop, reader: Reader) -> None:
        self._loop = loop
        self._reader = reader
        self._handle = loop.call_later(HEARTBEAT_S, self._beat)

    def cancel(self) -> None:
        self._handle.cancel()

    def _beat(self) -> None:
        self._handle = self._loop.call_later(HEARTBEAT_S, self._beat)
        self._reader.wake()


class EventWriter(Protocol):
    """Knows a vocabulary."""

    def server_sent(self, position: int, entry: Entry) -> bytes:
        """Return an entry of a turn's log, which ends at *position*, as server-sent events."""
        ...


async def send_events(
    call: Call,
    turns: Turns,
    turn: Turn,
    after: int = 0,
    events: EventWriter | None = None,
    *,
    first: bytes = b"",
) -> None:
    """
    Follow *turn* from position *after* to its end, or until the client leaves, as server-sent events; ours, unless *events*
    writes others. *first* goes before all of them.

    Raises ``ClientLeft`` where the client does not read.
    """
    loop = asyncio.get_running_loop()
    reader = Reader(turn, after)
    if events is None:
        events = TurnEvents(turn)
    noted = len(turn.notes) if after else 0
    notes = bool(call.scope["query_string"]) and call.query().get("events") == "jarvis"
    if notes:
        turn.note_watchers = (*turn.note_watchers, reader.wake)
    turns.attach(turn)
    watch = call.watch(reader.wake)
    heartbeat = _Heartbeat(loop, reader)
    try:
        call.status = 200
        headers = [*SSE_HEADERS, (b"x-request-id", call.request_id.encode()), *call.headers]
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})
        more = True
        async with BoundedSends() as sends:
            while more and not watch.over:
                # A note that came while something was sent has woken nobody.
                taken = reader.take() if notes and noted < len(turn.notes) else await reader.next()
                more = not turn.ended if not taken else taken[-1][1] is not Step.ENDED
                body = b"".join([events.server_sent(position, entry) for position, entry in taken])
                if notes and noted < len(turn.notes):
                    body = b"".join(tool_event(turn, note) for note in turn.notes[noted:]) + body
                    noted = len(turn.notes)
                elif not taken and more:
                    body = b": still here\n\n"
                if first:
                    body, first = first + body, b""
                await sends.wait(call.send({"type": "http.response.body", "body": body, "more_body": more}))
                if reader.behind:
                    # Neither a send nor ``next`` would give way; the others on this loop get their turn here.
                    await asyncio.sleep(0)
    finally:
        heartbeat.cancel()
        watch.cancel()
        if notes:
            turn.note_watchers = [one for one in turn.note_watchers if one != reader.wake]
        await turns.detach(turn)
