"""Clients of every kind, each of which asks again and again, and keeps the books of what it is told."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import aiohttp
import msgspec
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from tests.codec.sounds import tone
from tests.handlers.events import DELTA, iterate_events
from tests.handlers.realtime_client import Socket, open_socket
from tests.system.faults.ledger import LENGTHS, Ledger, Told, answer_to

PATIENCE_S = 15.0
"""Longest time that one request may take, whatever fails: more than all deadlines of the server in a row."""
PAUSE_S = 0.02
"""Between two requests of one client, so that refusals do not become a flood."""
NEW_CONVERSATION = 0.2
"""How often a client begins one."""
LOST = (aiohttp.ClientError, ConnectionClosed, ConnectionError, InvalidMessage)
EVENT_CODES = ("conflict", "unavailable", "overloaded")
"""What an event may be refused with."""
CANCEL = "cancel"
"""The id of the events that cancel."""
HEALTH = {"/health": (200, 503), "/ready": (200, 503), "/metrics": (200,), "/openapi.json": (200,)}
"""What may be answered there."""


class World(NamedTuple):
    """What all clients of a round share."""

    url: str
    session: aiohttp.ClientSession
    ledger: Ledger
    dice: random.Random


class Client:
    """One client; ``run`` repeats ``step``, and accuses the server of what must not be."""

    kind: ClassVar[str]

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.session, self.ledger, self.dice = world.session, world.ledger, world.dice
        self.name = f"{self.kind} {self.ledger.name}.{number}"
        self.conversation_id: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until *stop* is set, or until the server is killed where that may be."""
        while not stop.is_set():
            started = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.step()
            except TimeoutError:
                self.ledger.accuse(self.name, f"no end after {PATIENCE_S} s, or after a wait of its own")
            except LOST as exc:
                if self.ledger.mortal:
                    return
                self.ledger.accuse(self.name, exc)
                self.conversation_id = None
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is written down, and the others go on
                self.ledger.accuse(self.name, exc)
                self.conversation_id = None
            self.ledger.took(self.kind, time.monotonic() - started)
            await asyncio.sleep(PAUSE_S)

    async def step(self) -> None:
        """Ask once."""
        raise NotImplementedError

    def question(self) -> str:
        """Return a question that nobody has asked."""
        if self.dice.random() < NEW_CONVERSATION:
            self.conversation_id = None
        return f"{self.name} {next(self.ledger.numbers)}"

    async def refused(self, response: aiohttp.ClientResponse, question: str, *, keyed: bool = False) -> str:
        """Take an error, and return its code."""
        body = msgspec.json.decode(await response.read())
        code = self.ledger.refusal(response.status, response.headers, body)
        self.ledger.failed(body, question, keyed=keyed)
        self.ledger.count(self.kind, code)
        if code == "conflict":
            # The end of the last turn may still be on its way to the database.
            self.conversation_id = None
        return code


class Whole(Client):
    """Asks for whole answers."""

    kind = "json"

    async def step(self) -> None:
        question = self.question()
        body = {"content": question, "conversation_id": self.conversation_id}
        async with self.session.post("/api/chat", json=body) as response:
            if response.status != 200:
                await self.refused(response, question)
                return
            answer = await response.json()
        assert answer["status"] in ("completed", "incomplete"), answer
        self.ledger.answered(answer, question)
        self.ledger.count(self.kind, answer["status"])
        self.conversation_id = answer["conversation_id"]


class Streamed(Client):
    """Follows answers as server-sent events to their end."""

    kind = "sse"

    async def step(self) -> None:
        question = self.question()
        told = await self.follow(question)
        if told is not None:
            assert told.status in ("completed", "incomplete", "failed"), told
            self.ledger.count(self.kind, str(told.status))

    async def follow(self, question: str, *, key: str | None = None, leave_after: int | None = None) -> Told | None:
        """
        Ask, and read to the end; returns None where that was refused.

        With *leave_after* the connection is left after so many deltas, or at the end where there are not so many.
        """
        body = {"content": question, "conversation_id": self.conversation_id, "stream": True}
        headers = {} if key is None else {"Idempotency-Key": key}
        response = await self.session.post("/api/chat", json=body, headers=headers)
        try:
            if response.status != 200:
                await self.refused(response, question, keyed=key is not None)
                return None
            return await self._read(response, question, keyed=key is not None, leave_after=leave_after)
        finally:
            response.close()

    async def _read(
        self, response: aiohttp.ClientResponse, question: str, *, keyed: bool, leave_after: int | None
    ) -> Told:
        told: Told | None = None
        text, position, told_text = "", 0, None
        async for event in iterate_events(response):
            assert event.id > position, "ids grow"
            position = event.id
            if told is None:
                assert event.name == "response.created", event
                told = self.ledger.created(event.data["response"], question, keyed=keyed)
                told.deltas = []  # a retry is told all from the beginning
                self.conversation_id = told.conversation_id
                continue
            assert told.status is None or keyed, "nothing comes after the end"
            if event.name == DELTA:
                text += event.data["delta"]
                told.deltas.append((time.monotonic(), event.data["delta"]))
            elif event.name == "response.output_text.done":
                told_text = event.data["text"]
            elif event.name == "response.done":
                self.ledger.done(event.data["response"])
                assert told.text == text, "the deltas add up to the answer"
                assert told_text in (None, text), "and so does the text that is told before"
                assert await response.content.read() == b"", "nothing comes after the end"
                return told
            await self.seen(told, len(told.deltas))
            if leave_after is not None and len(told.deltas) >= leave_after:
                return told
        raise AssertionError(f"a stream ended without its last event: {told}")

    async def seen(self, told: Told, deltas: int) -> None:
        """Do what is to be done after so many *deltas*."""


class Interrupter(Streamed):
    """Asks for long answers only, so that there is something left to interrupt."""

    def question(self) -> str:
        while len(answer_to(question := super().question()).split()) < LENGTHS[-1]:
            pass
        return question


class Leaver(Interrupter):
    """Leaves in the middle of an answer, which then stops."""

    kind = "leaver"

    async def step(self) -> None:
        self.conversation_id = None
        told = await self.follow(self.question(), leave_after=self.dice.randrange(4))
        if told is None:
            return
        if told.status is None:
            told.stopped_at = time.monotonic()
        self.ledger.count(self.kind, told.status or "left")


class Canceller(Interrupter):
    """Cancels answers by another request, and reads them to their end."""

    kind = "canceller"
    _cancelled: Mapping[str, Any] | None = None
    _cancel_after = 0

    async def step(self) -> None:
        self._cancel_after = self.dice.randrange(4)
        self._cancelled = None
        told = await self.follow(self.question())
        if told is None:
            return
        self.ledger.count(self.kind, str(told.status))
        self._compare(told, self._cancelled)

    def _compare(self, told: Told, cancelled: Mapping[str, Any] | None) -> None:
        if cancelled is not None:
            assert (told.status, told.text) == (cancelled["status"], cancelled["content"]), (told, cancelled)

    async def seen(self, told: Told, deltas: int) -> None:
        if self._cancelled is not None or deltas < self._cancel_after:
            return
        async with self.session.post(f"/api/chat/response/{told.id}/cancel") as response:
            # Whatever is away: the turn runs here, or has just ended here.
            assert response.status == 200, await response.text()
            cancelled: Mapping[str, Any] = await response.json()
        told.stopped_at = time.monotonic()
        assert cancelled["status"] != "running", cancelled
        self._cancelled = cancelled


class Retrier(Streamed):
    """Asks under an idempotency key until it has an answer, and gives up waiting now and then."""

    kind = "retrier"

    async def step(self) -> None:
        self.conversation_id = None
        question = self.question()
        self.ledger.unanswered.add(question)
        for attempt in range(8):
            try:
                async with asyncio.timeout(self.dice.uniform(0.02, 0.3) if attempt < 2 else PATIENCE_S):
                    outcome = await self._try(question, streamed=self.dice.random() < 0.5)
            except TimeoutError:
                if attempt >= 2:
                    raise
                outcome = "left"
            self.ledger.count(self.kind, outcome)
            if outcome in ("completed", "incomplete"):
                self.ledger.unanswered.discard(question)
                return
            await asyncio.sleep(self.dice.uniform(0.05, 0.3))

    async def _try(self, question: str, *, streamed: bool) -> str:
        # A retry is the same request: without a conversation, which the first one made.
        self.conversation_id = None
        if streamed:
            told = await self.follow(question, key=question)
            if told is None:
                return "refused"
            self._note(question, told.id)
            return str(told.status)
        headers = {"Idempotency-Key": question}
        body = {"content": question, "conversation_id": None}
        async with self.session.post("/api/chat", json=body, headers=headers) as response:
            if response.status != 200:
                return await self.refused(response, question, keyed=True)
            answer = await response.json()
        self._note(question, answer["id"])
        self.ledger.answered(answer, question, keyed=True)
        assert answer["status"] in ("completed", "incomplete"), answer
        return str(answer["status"])

    def _note(self, question: str, turn_id: str) -> None:
        assert self.ledger.keys.setdefault(question, turn_id) == turn_id, "a key is one turn's"


class OverSocket(Client):
    """Talks over a WebSocket, cancels now and then, and sometimes drops the connection."""

    kind = "websocket"

    async def step(self) -> None:
        query: dict[str, Any] = {} if self.conversation_id is None else {"conversation_id": self.conversation_id}
        try:
            async with open_socket(self.world.url, **query) as socket:
                for _ in range(self.dice.randrange(1, 6)):
                    question = self.question()
                    if not await self._ask(socket, question):
                        await asyncio.sleep(0.1)
                    if self.dice.random() < 0.1:
                        socket.abort()
                        return
                self.conversation_id = socket.seen[-1].get("conversation_id", self.conversation_id)
        except InvalidStatus as exc:
            body = msgspec.json.decode(exc.response.body or b"{}")
            self.ledger.count(self.kind, self.ledger.refusal(exc.response.status_code, exc.response.headers, body))
            await asyncio.sleep(0.1)

    async def _ask(self, socket: Socket, question: str) -> bool:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]}
        await socket.send("conversation.item.create", item=item)
        event = await self._reply(socket, "conversation.item.done")
        if event["type"] == "error":
            return self._complained(event)
        conversation_id = event["conversation_id"]
        self.ledger.messages[event["item"]["id"]] = (conversation_id, question)
        await socket.send("response.create")
        event = await self._reply(socket, "response.created")
        if event["type"] == "error":
            return self._complained(event)
        told = self.ledger.created(event["response"], question)
        cancel_after = self.dice.choice((None, None, None, 0, 2))
        while True:
            if cancel_after is not None and len(told.deltas) >= cancel_after:
                cancel_after = None
                await socket.send("response.cancel", event_id=CANCEL)
            event = await socket.until(DELTA, "response.done", limit_s=PATIENCE_S)
            if event["type"] == "response.done":
                self.ledger.done(event["response"])
                self.ledger.count(self.kind, str(told.status))
                return True
            told.deltas.append((time.monotonic(), event["delta"]))

    async def _reply(self, socket: Socket, kind: str) -> Mapping[str, Any]:
        """Wait for what answers the last event; that a response was over when it was to be cancelled is no answer to it."""
        while True:
            event = await socket.until(kind, "error", limit_s=PATIENCE_S)
            if event["type"] != "error" or event["error"]["event_id"] != CANCEL:
                return event

    def _complained(self, event: Mapping[str, Any]) -> bool:
        code = event["error"]["code"]
        assert code in EVENT_CODES, event
        self.ledger.count(self.kind, code)
        return False


class Rememberer(Client):
    """Adds memories, repeats what failed, and looks for what it was told is kept."""

    kind = "memory"

    async def step(self) -> None:
        name = self.name.replace(" ", "").replace(".", "x")
        word = f"{name}q{next(self.ledger.numbers)}z"
        content = f"fact {word} of {word}s kind {word}k"
        for _ in range(4):
            async with self.session.post("/api/memory/add", json={"content": content}) as response:
                if response.status == 200:
                    body = await response.json()
                    assert body["content"] == content, body
                    self.ledger.memories[content] = body["id"]
                    self.ledger.count(self.kind, "added")
                    break
                await self.refused(response, content)
            await asyncio.sleep(0.1)
        else:
            return
        async with self.session.post("/api/memory/search", json={"query": word}) as response:
            if response.status != 200:
                await self.refused(response, word)
                return
            found = await response.json()
        assert content in [one["content"] for one in found["results"]], (content, found)
        self.ledger.count(self.kind, found["mode"])


class Speaker(Client):
    """Has texts spoken, whole and as they are made."""

    kind = "speech"
    S_PER_CHAR = 0.05
    """Of the fake's voice."""

    async def step(self) -> None:
        text = "Une phrase de plus. " * self.dice.randrange(1, 4)
        if self.dice.random() < 0.5:
            async with self.session.post("/api/voice/synthesize", json={"text": text}) as response:
                if response.status != 200:
                    await self.refused(response, text)
                    return
                body = await response.json()
            seconds = (len(base64.b64decode(body["audio_data"])) - 44) / 2 / body["sample_rate"]
            assert abs(seconds - body["duration_ms"] / 1e3) < 0.05, body["duration_ms"]
            assert abs(seconds - len(text.strip()) * self.S_PER_CHAR) < 0.3, (seconds, len(text))
            self.ledger.count(self.kind, "spoken")
            return
        try:
            async with self.session.post(
                "/api/voice/synthesize", json={"text": text, "format": "f32"}, headers={"Accept": "audio/*"}
            ) as response:
                if response.status != 200:
                    await self.refused(response, text)
                    return
                size = len(await response.read())
                seconds = size / 4 / int(response.headers["X-Sample-Rate"])
        except aiohttp.ClientPayloadError:
            # There is no other way to say that the rest of the sound is missing.
            self.ledger.count(self.kind, "broke off")
            return
        assert abs(seconds - len(text.strip()) * self.S_PER_CHAR) < 0.3, (seconds, len(text))
        self.ledger.count(self.kind, "streamed")


class Listener(Client):
    """Has recordings written down."""

    kind = "recording"

    async def step(self) -> None:
        seconds = self.dice.randrange(20, 150) / 100
        headers = {"Content-Type": "application/octet-stream"}
        async with self.session.post(
            "/api/voice/transcribe", data=tone(seconds).tobytes(), headers=headers
        ) as response:
            if response.status != 200:
                await self.refused(response, "")
                return
            body = await response.json()
        assert body["text"] == f"a clip of {seconds:.2f} seconds", body
        self.ledger.count(self.kind, "enhanced" if body["enhanced"] else "as it came")


class Reader(Client):
    """Reads what others were told, which is there from then on."""

    kind = "reader"

    async def step(self) -> None:
        ended = [one for one in self.ledger.turns.values() if one.final and one.text and not one.keyed]
        if not ended:
            return
        told = self.dice.choice(ended[-50:])
        status, text = told.status, told.text
        async with self.session.get(f"/api/chat/response/{told.id}") as response:
            if response.status != 200:
                await self.refused(response, "")
            else:
                body = await response.json()
                assert (body["status"], body["content"]) == (status, text), (body, told)
                self.ledger.count(self.kind, "response")
        async with self.session.get(f"/api/chat/history/{told.conversation_id}?limit=200") as response:
            if response.status != 200:
                await self.refused(response, "")
                return
            messages = (await response.json())["messages"]
        found = [one for one in messages if one["id"] == told.id]
        assert [(one["content"], one["status"]) for one in found] == [(text, status)], (found, told)
        self.ledger.count(self.kind, "history")


class Watcher(Client):
    """Asks what machines ask, which is answered from memory whatever happens."""

    kind = "watcher"

    async def step(self) -> None:
        for path, statuses in HEALTH.items():
            started = time.monotonic()
            async with self.session.get(path) as response:
                await response.read()
                assert response.status in statuses, (path, response.status)
            self.ledger.took(path, time.monotonic() - started)
            self.ledger.count(path, str(response.status))


EVERYBODY: Mapping[type[Client], int] = {
    Whole: 3,
    Streamed: 2,
    Leaver: 1,
    Canceller: 1,
    Retrier: 2,
    OverSocket: 3,
    Rememberer: 1,
    Speaker: 1,
    Listener: 1,
    Reader: 1,
    Watcher: 1,
}
"""How many of each."""
TALKERS: Mapping[type[Client], int] = {Whole: 4, Streamed: 4, OverSocket: 4, Retrier: 2, Rememberer: 1}
"""Those whose words have to be kept."""


async def run_clients(
    kinds: Mapping[type[Client], int],
    url: str,
    ledger: Ledger,
    dice: random.Random,
    duration_s: float,
) -> None:
    """Have so many clients of each kind ask for *duration_s*, or until the server is killed where that may be."""
    stop = asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        world = World(url, session, ledger, dice)
        async with asyncio.TaskGroup() as group:
            for kind, count in kinds.items():
                for number in range(count):
                    group.create_task(kind(world, number).run(stop))
            await asyncio.sleep(duration_s)
            stop.set()
