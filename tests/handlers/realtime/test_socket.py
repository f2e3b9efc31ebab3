"""Sending over one WebSocket, whose server tells of each send when it is done, as Granian does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from jarvis_core.handlers.realtime import socket as realtime_socket
from jarvis_core.handlers.realtime.socket import POLICY, Socket
from jarvis_core.handlers.realtime.wire import ClearedEvent

pytestmark = pytest.mark.every_python


class Wire:
    """What is sent, and whether the client takes it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.sends: list[asyncio.Future[None]] = []
        self.most_at_once = 0

    def send(self, message: Any) -> asyncio.Future[None]:
        """Begin to send, as Granian: before anybody waits for it."""
        self.messages.append(message)
        self.sends.append(asyncio.get_running_loop().create_future())
        self.most_at_once = max(self.most_at_once, sum(not send.done() for send in self.sends))
        return self.sends[-1]

    def seqs(self) -> list[int]:
        return [msgspec.json.decode(message["text"])["seq"] for message in self.messages if "text" in message]


async def emit(socket: Socket) -> None:
    await socket.emit(lambda seq: ClearedEvent(f"event_{seq}", seq))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def test_the_end_of_a_send_is_not_waited_for(wire: Wire) -> None:
    """An event is begun to be sent at once, and only the next one waits until it is sent."""
    socket = Socket(wire.send)
    await emit(socket)
    second = asyncio.create_task(emit(socket))
    await settle()
    assert wire.seqs() == [1]
    assert not second.done()
    wire.sends[0].set_result(None)
    await second
    assert wire.seqs() == [1, 2]


async def test_one_at_a_time(wire: Wire) -> None:
    """Of several who send at once each waits for those before it, and the numbers go out in their order."""
    socket = Socket(wire.send)

    async def say(times: int) -> None:
        for _ in range(times):
            if not socket.is_free:
                await socket.free()
            socket.seq += 1
            socket.begin(f'{{"seq":{socket.seq}}}')

    tasks = [asyncio.create_task(work) for work in (say(5), emit(socket), say(5), emit(socket))]
    while not all(task.done() for task in tasks):
        await settle()
        wire.sends[-1].set_result(None)
    assert wire.seqs() == list(range(1, 13))
    assert wire.most_at_once == 1


async def test_nobody_is_overtaken(wire: Wire) -> None:
    """Who waits to send comes before who finds the last send done."""
    socket = Socket(wire.send)
    await emit(socket)
    waiting = asyncio.create_task(emit(socket))
    await settle()
    wire.sends[0].set_result(None)
    assert not socket.is_free
    await waiting


async def test_client_that_does_not_read(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not take an event for long is lost, and nothing more is sent to it."""
    monkeypatch.setattr(realtime_socket, "SEND_TIMEOUT_S", 0.01)
    socket = Socket(wire.send)
    await emit(socket)
    await emit(socket)
    assert (socket.gone, socket.code) == (True, POLICY)
    await emit(socket)
    assert wire.seqs() == [1]


async def test_leaving_while_somebody_waits(wire: Wire) -> None:
    """What is being sent is given up when the client has gone, and who waits to send goes on without sending."""
    socket = Socket(wire.send)
    await emit(socket)
    waiting = asyncio.create_task(emit(socket))
    await settle()
    socket.leave()
    await asyncio.wait_for(waiting, 5)
    assert wire.sends[0].cancelled()
    assert wire.seqs() == [1]


async def test_who_waits_may_be_cancelled(wire: Wire) -> None:
    """Somebody who is cancelled while waiting is cancelled, also after the client has gone; the others go on."""
    socket = Socket(wire.send)
    await emit(socket)
    first, second = (asyncio.create_task(socket.free()) for _ in range(2))
    await settle()
    first.cancel()
    await asyncio.wait([first, second], timeout=5)
    assert first.cancelled()
    assert second.done()
    assert not second.cancelled()
    await emit(socket)
    third = asyncio.create_task(socket.free())
    await settle()
    socket.leave()
    third.cancel()
    await asyncio.wait([third], timeout=5)
    assert third.cancelled()


async def test_what_goes_wrong_is_told(wire: Wire) -> None:
    """The error of a send is raised to who sends next."""
    socket = Socket(wire.send)
    await emit(socket)
    wire.sends[0].set_exception(RuntimeError("no transport"))
    with pytest.raises(RuntimeError, match="no transport"):
        await emit(socket)


async def test_the_close_comes_last(wire: Wire) -> None:
    """The close is sent after what is being sent."""
    socket = Socket(wire.send)
    await emit(socket)
    socket.close(POLICY)
    closing = asyncio.create_task(socket.say_goodbye("why"))
    await settle()
    assert len(wire.messages) == 1
    wire.sends[0].set_result(None)
    await settle()
    wire.sends[1].set_result(None)
    await closing
    assert wire.messages[1] == {"type": "websocket.close", "code": POLICY, "reason": "why"}


async def test_server_that_sends_when_it_is_waited_for() -> None:
    """A ``send`` that is a coroutine, as ASGI has it, is served too."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    socket = Socket(send)
    await emit(socket)
    await emit(socket)
    await socket.free()
    assert [msgspec.json.decode(message["text"])["seq"] for message in sent] == [1, 2]
