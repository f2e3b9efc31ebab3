"""Server-sent events as a client reads them (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import aiohttp
import msgspec

DELTA = "response.output_text.delta"


class Event(NamedTuple):
    """One event."""

    id: int
    name: str
    data: Any


async def iterate_events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """Give the events as they arrive; comments, and how soon to come back, are left out."""
    assert response.status == 200, await response.text()
    assert response.content_type == "text/event-stream"
    fields: dict[str, str] = {}
    async for line in response.content:
        text = line.decode().rstrip("\n")
        name, colon, value = text.partition(":")
        if name:
            assert colon
            assert name not in fields, "a field comes once in an event"
            fields[name] = value.removeprefix(" ")
        elif fields and not text:
            if fields.keys() == {"retry"}:
                fields = {}
                continue
            # What is not told again has no id.
            known = {"event", "data"} if fields.get("event") == "jarvis.tool" else {"id", "event", "data"}
            assert fields.keys() == known
            yield Event(int(fields.get("id", 0)), fields["event"], msgspec.json.decode(fields["data"]))
            fields = {}
    assert not fields, "the last event is whole"


async def read_events(response: aiohttp.ClientResponse, *, until: str | None = None) -> list[Event]:
    """Return all events to the end, or to where the deltas add up to *until* (the rest can be read later)."""
    events: list[Event] = []
    async for event in iterate_events(response):
        events.append(event)
        if until is not None and text_of(events) == until:
            break
    return events


def text_of(events: Sequence[Event]) -> str:
    """Return what the deltas add up to."""
    return "".join(event.data["delta"] for event in events if event.name == DELTA)
