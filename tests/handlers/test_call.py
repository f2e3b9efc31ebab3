"""A request's body, as it arrives or does not."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from starlette.types import Message

from jarvis_core.errors import InvalidRequest, TooLarge
from jarvis_core.handlers import call as call_module
from jarvis_core.handlers.call import Call, ClientLeft

pytestmark = pytest.mark.every_python


def make_call(*messages: Message | None) -> Call:
    """Make a call whose client sends *messages*; None is nothing for ever."""
    waiting = list(messages)

    async def receive() -> Message:
        message = waiting.pop(0)
        if message is None:
            await asyncio.Event().wait()
            raise AssertionError
        return message

    async def send(_: Message) -> None:
        raise AssertionError

    return Call({"type": "http", "headers": []}, receive, send, "id", "", 0.0)


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_body_in_pieces() -> None:
    """The pieces of a body are given as they came, and each is told of as it comes."""
    seen: list[int] = []
    call = make_call(part(b"ab", more=True), part(b"", more=True), part(b"c", more=False))
    assert await call.body_parts(3, seen.append) == [b"ab", b"", b"c"]
    assert seen == [2, 2, 3]


async def test_body_that_is_too_long() -> None:
    """A body is refused as soon as it is over its limit."""
    call = make_call(part(b"ab", more=True), part(b"cd", more=True), None)
    with pytest.raises(TooLarge):
        await call.body(3)


async def test_body_that_stops_arriving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends half of its body and then nothing is told so."""
    monkeypatch.setattr(call_module, "BODY_PAUSE_S", 0.01)
    call = make_call(part(b"ab", more=True), None)
    with pytest.raises(InvalidRequest, match="stopped arriving"):
        await call.body(3)


async def test_body_that_comes_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then is told to hurry; one that is slow but steady enough is not."""
    monkeypatch.setattr(call_module, "BODY_PAUSE_S", 0.1)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return part(b"a", more=True)

    call = make_call()
    call.receive = receive
    async with asyncio.timeout(5):
        with pytest.raises(InvalidRequest, match="too slowly"):
            await call.body(1_000_000)
        monkeypatch.setattr(call_module, "BODY_RATE_BYTES_S", 10)
        call = make_call()
        call.receive = receive
        with pytest.raises(TooLarge):
            await call.body(50)


async def test_fast_beginning_earns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has sent much at once may be no slower with the rest than any other."""
    monkeypatch.setattr(call_module, "BODY_PAUSE_S", 0.1)
    begun = False

    async def receive() -> Message:
        nonlocal begun
        if begun:
            await asyncio.sleep(0.01)
        body = b"a" if begun else bytes(1 << 20)
        begun = True
        return part(body, more=True)

    call = make_call()
    call.receive = receive
    async with asyncio.timeout(5):
        with pytest.raises(InvalidRequest, match="too slowly"):
            await call.body(1 << 30)


async def test_client_that_leaves() -> None:
    """A client that leaves in the middle of its body is not answered."""
    call = make_call(part(b"ab", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeft):
        await call.body(3)


async def test_body_that_is_as_long_as_it_says() -> None:
    """Behind a body of the length that was declared nothing is waited for, unless it is sent in chunks."""
    call = make_call(part(b"ab", more=True), part(b"c", more=True), None)
    call.scope["headers"] = [(b"content-length", b"3")]
    async with asyncio.timeout(5):
        assert await call.body(3) == b"abc"
    assert not call.body_pending
    call = make_call(part(b"abc", more=True), part(b"d", more=False))
    call.scope["headers"] = [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")]
    assert await call.body(9) == b"abcd"


async def test_body_in_pieces_is_read_to_its_end() -> None:
    """Pieces of a body are read until the server says that it is whole: who sends it may be watched more than once then."""
    call = make_call(part(b"ab", more=True), part(b"c", more=True), part(b"", more=False))
    call.scope["headers"] = [(b"content-length", b"3")]
    async with asyncio.timeout(5):
        assert await call.body_parts(3) == [b"ab", b"c", b""]
    assert not call.body_pending


async def test_client_that_is_watched() -> None:
    """A client that leaves is told of, whatever it sent before; not to who has stopped watching."""
    told: list[str] = []
    left: Message = {"type": "http.disconnect"}
    watches = [
        make_call(part(b"a", more=True), part(b"", more=False), left).watch(lambda: told.append("first")),
        make_call(part(b"", more=False), left).watch(lambda: told.append("second")),
        make_call(part(b"", more=False), None).watch(lambda: told.append("third")),
    ]
    watches[1].cancel()
    async with asyncio.timeout(5):
        while not watches[0].over:  # noqa: ASYNC110 - a turn of the loop for each message
            await asyncio.sleep(0)
    watches[2].cancel()
    assert (told, [watch.over for watch in watches]) == (["first"], [True, False, False])


class Answer:
    """What may be large."""


async def test_work_that_fails_leaves_nothing_behind() -> None:
    """What was at hand when a request's work failed is free once the error was told, without the garbage collector."""
    answers: list[weakref.ref[Answer]] = []

    async def work() -> None:
        answer = Answer()
        answers.append(weakref.ref(answer))
        await asyncio.sleep(0)
        raise TooLarge("too large")

    async def handle() -> str:
        try:
            await make_call(None).unless_left(work())
        except TooLarge as error:
            return error.code
        return ""

    gc.disable()
    try:
        assert await handle() == "too_large"
        await asyncio.sleep(0)
        assert answers[0]() is None
    finally:
        gc.enable()
