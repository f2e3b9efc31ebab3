"""Speech that is sent while it is made: how long its first sound is held back, so that its file can say its length."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jarvis_core.codec.client import EncodedPiece
from jarvis_core.errors import BadGateway, InvalidRequest
from jarvis_core.handlers import speech_reply
from jarvis_core.handlers.call import BoundedSends

pytestmark = pytest.mark.every_python

UNKNOWN, KNOWN = b"????", b"12 s"


class Speech:
    """Makes pieces of speech; those whose text has a question mark wait for the gate."""

    voice = "siwis"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = asyncio.Event()
        self.cancelled = False
        self.count = 0

    async def say(self, text: str) -> EncodedPiece | None:
        if "?" in text:
            self.waiting.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if text == "fail":
            raise BadGateway("It failed.")
        if not text:
            return None
        self.count += 1
        return EncodedPiece((UNKNOWN if self.count == 1 else b"") + text.encode(), 10.0, 24_000)

    async def finish(self) -> EncodedPiece:
        return EncodedPiece(b"!", 0.0, 24_000, KNOWN)


class Client:
    """Receives."""

    def __init__(self) -> None:
        self.status = 0
        self.request_id = "1"
        self.headers: list[Any] = []
        self.heard = b""
        self.arrived = asyncio.Event()
        self.ended = False

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            self.heard += message["body"]
            self.ended = not message["more_body"]
            self.arrived.set()


async def speak(client: Any, speech: Any, *texts: str, output_format: Any = "wav") -> None:
    async with BoundedSends() as sends:
        reply = speech_reply.SpeechReply(client, sends, speech, output_format, b"audio/wav")
        for text in texts:
            await reply.say(text)
        await reply.end()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_reply, "HELD_S", 3_600.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("texts", [("a",), ("a", "b", "c"), ("", "a", "", "b", "")])
@pytest.mark.parametrize("output_format", ["wav", "mp3"])
async def test_all_is_made_in_time(texts: tuple[str, ...], output_format: str) -> None:
    """Where all is there in time the file begins with its length."""
    client = Client()
    await speak(client, Speech(), *texts, output_format=output_format)
    assert client.heard == KNOWN + "".join(texts).encode() + b"!"
    assert client.ended


@pytest.mark.parametrize("held_s", [0.0, 0.01])
async def test_what_takes_longer(monkeypatch: pytest.MonkeyPatch, held_s: float) -> None:
    """Where the next sentence takes longer the first one is sent, and the file says no length."""
    monkeypatch.setattr(speech_reply, "HELD_S", held_s)
    client, speech = Client(), Speech()
    speaking = asyncio.create_task(speak(client, speech, "a", "b?", "c"))
    await asyncio.wait_for(client.arrived.wait(), 10)
    assert client.heard == UNKNOWN + b"a"
    assert client.status == 200
    speech.gate.set()
    await asyncio.wait_for(speaking, 10)
    assert client.heard == UNKNOWN + b"ab?c!"
    assert client.ended


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("output_format", ["opus", "pcm16", "f32"])
async def test_formats_that_say_no_length(output_format: str) -> None:
    """What would say no length is sent at once."""
    client, speech = Client(), Speech()
    speaking = asyncio.create_task(speak(client, speech, "a", "b?", output_format=output_format))
    await asyncio.wait_for(client.arrived.wait(), 10)
    assert client.heard == UNKNOWN + b"a"
    speech.gate.set()
    await asyncio.wait_for(speaking, 10)
    assert client.heard == UNKNOWN + b"ab?!"


@pytest.mark.usefixtures("patient")
async def test_failure_while_it_is_held_back() -> None:
    """Speech that fails before any was sent is an error of its own."""
    client = Client()
    with pytest.raises(BadGateway):
        await speak(client, Speech(), "a", "fail")
    assert (client.status, client.heard) == (0, b"")


async def test_nothing_to_speak() -> None:
    """A text of which nothing can be spoken is refused."""
    with pytest.raises(InvalidRequest):
        await speak(Client(), Speech(), "", "")


@pytest.mark.usefixtures("patient")
async def test_cancelled_while_the_next_is_made() -> None:
    """A client that leaves ends what is being spoken."""
    client, speech = Client(), Speech()
    speaking = asyncio.create_task(speak(client, speech, "a", "b?"))
    await asyncio.wait_for(speech.waiting.wait(), 10)
    speaking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await speaking
    assert speech.cancelled
    assert client.heard == b""
