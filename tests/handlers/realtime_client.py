"""A client of the WebSocket that holds every event against the invariants of the API as it arrives."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from jarvis_core.handlers.schemas import schemas
from tests.handlers.events import DELTA
from tests.handlers.rest.api import Document

Event = dict[str, Any]

WAIT_S = 10.0
"""Longest wait for one event: generous, for a machine with other work."""


@functools.cache
def promises() -> Document:
    """Return what the OpenAPI document says of events."""
    return Document({"paths": {}, "components": {"schemas": schemas([], []), "responses": {}}})


class Said:
    """What the events of one response add up to."""

    def __init__(self) -> None:
        self.text = ""
        """Its deltas; of its transcript where it is spoken."""
        self.sound = b""
        """The samples that came with it."""
        self._sound_ended = False

    def take(self, event: Event) -> None:
        """Count one event."""
        match event["type"]:
            case "response.output_text.delta" | "response.output_audio_transcript.delta":
                assert event["delta"]
                self.text += event["delta"]
            case "response.output_audio.delta":
                assert not self._sound_ended
                sound = base64.b64decode(event["delta"], validate=True)
                assert sound
                self.sound += sound
            case "response.output_audio.done":
                self._sound_ended = True
            case "response.output_text.done":
                assert event["text"] == self.text
            case "response.output_audio_transcript.done":
                assert self._sound_ended
                assert event["transcript"] == self.text
            case "response.content_part.done":
                assert words_of(event["part"]) == self.text
            case "response.output_item.done" if event["item"]["type"] == "message":
                assert words_of(event["item"]["content"][0]) == self.text
            case "response.done":
                output = event["response"]["output"]
                said = [words_of(item["content"][0]) for item in output if item["type"] == "message"]
                assert "".join(said) == self.text


class Tally:
    """What the events so far add up to; ``take`` raises ``AssertionError`` where one breaks an invariant."""

    def __init__(self) -> None:
        self.seq = 0
        self.active: str | None = None
        """The response of the conversation that was created and is not done."""
        self._said = Said()
        self._asides: dict[str, Said] = {}
        """The responses out of band that were created and are not done."""
        self._ended: set[str] = set()
        self._event_ids: set[str] = set()
        self._words: dict[str, str] = {}
        """Of recordings, by the item's id, as far as they were told."""

    @property
    def text(self) -> str:
        """What the active response says, or what the last one said."""
        return self._said.text

    @property
    def sound(self) -> bytes:
        """The samples that came with it."""
        return self._said.sound

    def take(self, event: Event) -> None:
        """Count one event."""
        assert event["seq"] == self.seq + 1, (self.seq, event)
        self.seq += 1
        assert event["event_id"] not in self._event_ids
        self._event_ids.add(event["event_id"])
        if event["type"] == "response.created":
            self._begin(event["response"])
        elif event["type"] == "conversation.item.input_audio_transcription.delta":
            assert event["delta"]
            self._words[event["item_id"]] = self._words.get(event["item_id"], "") + event["delta"]
        elif event["type"] == "conversation.item.input_audio_transcription.completed":
            assert self._words.pop(event["item_id"], "") == event["transcript"]
        elif (response_id := event.get("response_id") or event.get("response", {}).get("id")) is not None:
            assert response_id == self.active or response_id in self._asides, event
            (self._asides.get(response_id) or self._said).take(event)
            if event["type"] == "response.done":
                self._ended.add(response_id)
                if self._asides.pop(response_id, None) is None:
                    self.active = None

    def _begin(self, response: Event) -> None:
        assert response["id"] not in self._ended
        assert response["status"] == "in_progress"
        if response["conversation_id"] is None:
            self._asides[response["id"]] = Said()
        else:
            assert self.active is None, "one active response a session"
            self.active, self._said = response["id"], Said()


def words_of(part: Event) -> str:
    """Return the words of a part that is written or spoken."""
    words: str = part["text"] if part["type"] in ("text", "input_text", "output_text") else part["transcript"]
    return words


class Socket:
    """An open WebSocket; *seen* are the events of the one that it resumes."""

    def __init__(self, connection: ClientConnection, seen: Sequence[Event] = ()) -> None:
        self.connection = connection
        self.seen = list(seen)
        """All events, those of the resumed socket first."""
        self.tally = Tally()
        for event in seen:
            if self.tally.seq == 1 and event["seq"] == 3:
                self.tally.seq = 2  # what ``push_to_talk`` was answered
            self.tally.take(event)
        self._held: set[str] = set()
        """Kinds of events that were held against the document: each once, which takes its time."""
        self._fresh = True
        self._given: Event | None = None

    async def push_to_talk(self) -> None:
        """Have it left to the client to say where speech ends; the next event that is received is the first again."""
        created = await self.receive()
        await self.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        assert (await self.receive())["type"] == "session.updated"
        del self.seen[-2:]
        self._given = created

    async def send(self, kind: str, **fields: object) -> None:
        """Send one event."""
        await self.send_raw(msgspec.json.encode({"type": kind, **fields}).decode())

    async def send_raw(self, frame: str | bytes) -> None:
        """Send one frame as it is."""
        await self.connection.send(frame)

    async def receive(self, limit_s: float = WAIT_S) -> Event:
        """Wait for the next event."""
        if (given := self._given) is not None:
            self._given = None
            self.seen.append(given)
            return given
        async with asyncio.timeout(limit_s):
            frame = await self.connection.recv(decode=False)
        event: Event = msgspec.json.decode(frame)
        if event["type"] not in self._held:
            self._held.add(event["type"])
            promises().check_event("ServerEvent", event)
        self.tally.take(event)
        assert event["type"] == "error" or (event["type"] == "session.created") == self._fresh, (
            "the first, and only that"
        )
        self._fresh = False
        self.seen.append(event)
        return event

    async def until(self, *kinds: str, limit_s: float = WAIT_S) -> Event:
        """Wait for the first event of one of these *kinds*."""
        while (event := await self.receive(limit_s))["type"] not in kinds:
            pass
        return event

    async def until_text(self, text: str) -> None:
        """Wait until the deltas of the active response add up to *text*."""
        while self.tally.text != text:
            await self.until(DELTA)

    async def add(self, text: str, **fields: object) -> Event:
        """Add a user's message and return its item."""
        item: Event = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **fields}
        await self.send("conversation.item.create", item=item)
        whole = "\n".join(part["text"] for part in item["content"])
        while True:
            event = await self.until("conversation.item.done", "error")
            assert event["type"] == "conversation.item.done", event
            added: Event = event["item"]
            # A response that is active has items of its own.
            if added["type"] == "message" and words_of(added["content"][0]) == whole:
                return added

    async def ask(self, text: str, **overrides: object) -> Event:
        """Add a user's message, ask for a response, and return it once it is created."""
        await self.add(text)
        await self.send("response.create", **({"response": overrides} if overrides else {}))
        return await self.created()

    async def created(self) -> Event:
        """Wait for a response to be created."""
        event = await self.until("response.created", "error")
        assert event["type"] == "response.created", event
        response: Event = event["response"]
        return response

    async def done(self) -> Event:
        """Wait for the active response's end."""
        event = await self.until("response.done")
        response: Event = event["response"]
        return response

    async def error(self) -> Event:
        """Wait for an error."""
        event = await self.until("error")
        error: Event = event["error"]
        return error

    async def closed(self, limit_s: float = WAIT_S) -> int | None:
        """Read to the end and return the closing code."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.receive(limit_s)
        return self.connection.close_code

    def abort(self) -> None:
        """Drop the connection without a word, as a network does."""
        self.connection.transport.abort()


@asynccontextmanager
async def open_socket(
    url: str,
    path: str = "/ws",
    *,
    key: str | None = None,
    headers: dict[str, str] | None = None,
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
    seen: Sequence[Event] = (),
    **query: str | int,
) -> AsyncIterator[Socket]:
    """Connect to the server at *url* with the credentials *key*; what is open at the end is closed."""
    address = url.replace("http", "ws", 1) + path + (f"?{urlencode(query)}" if query else "")
    async with connect(
        address,
        additional_headers={**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})},
        origin=Origin(origin) if origin else None,
        subprotocols=[Subprotocol(one) for one in subprotocols] or None,
        compression=None,
        proxy=None,
        max_size=None,
        max_queue=4,
        close_timeout=2,
    ) as connection:
        yield Socket(connection, seen)


@asynccontextmanager
async def open_push_to_talk(url: str, path: str = "/ws", **options: Any) -> AsyncIterator[Socket]:
    """Connect as ``open_socket`` does, to a session in which the client says where speech ends."""
    async with open_socket(url, path, **options) as socket:
        await socket.push_to_talk()
        yield socket
