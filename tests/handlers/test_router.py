"""What becomes of a call that is cancelled, or whose client has left."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from starlette.types import Message, Scope

from jarvis_core.access.credentials import Credentials
from jarvis_core.handlers.admission import Admission
from jarvis_core.handlers.call import Call, ClientLeft, Reply
from jarvis_core.handlers.router import Route, Router
from jarvis_core.metrics import Metrics
from jarvis_core.settings import Auth, Limits, Server

pytestmark = pytest.mark.every_python


class Client:
    """A client of a router with one route; what it was sent is kept."""

    def __init__(self, *, begins: bool = False, leaves: bool = False) -> None:
        self.sent: list[Message] = []
        self.messages: list[Message] = []
        """What it sends; without any an empty body, again and again."""
        self.metrics = Metrics()
        self.reached = asyncio.Event()
        self._begins = begins
        self._leaves = leaves
        """Whether it leaves when it has sent its request, and not before its body's end."""
        routes = [Route("POST", "/wait", self._wait, ""), Route("GET", "/public", self._answer, "", public=True)]
        admission = Admission(Credentials(Auth()), Server(), Limits(), None)
        self.router = Router(
            routes, {}, admission=admission, metrics=self.metrics, request_limit=3, answers_limit_bytes=1 << 20
        )

    async def ask(self, method: str, path: str) -> None:
        """Send a request and wait for the end of its answer."""
        scope: Scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        await self.router(scope, self._receive, self._send)

    async def _wait(self, call: Call) -> Reply | None:
        if self._begins:
            call.status = 200
            await call.send({"type": "http.response.start", "status": 200, "headers": []})
        self.reached.set()
        if self._leaves:
            await call.left()
            raise ClientLeft
        await asyncio.Event().wait()
        return None

    async def _answer(self, _: Call) -> Reply:
        return Reply(b"{}")

    async def _receive(self) -> Message:
        return self.messages.pop(0) if self.messages else {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def test_drain_answers_who_has_no_answer() -> None:
    """A call that is not answered in time, and one that comes later, is 503; public routes are still answered."""
    client = Client()
    asking = asyncio.create_task(client.ask("POST", "/wait"))
    await client.reached.wait()
    await client.router.drain(0.01)
    await asking
    await client.ask("POST", "/wait")
    assert [message["status"] for message in client.sent[::2]] == [503, 503]
    assert msgspec.json.decode(client.sent[1]["body"])["code"] == "unavailable"
    assert (b"retry-after", b"5") in client.sent[0]["headers"]
    await client.ask("GET", "/public")
    assert client.sent[-2]["status"] == 200
    assert client.metrics.in_flight == 0


async def test_drain_breaks_off_what_has_begun() -> None:
    """An answer that has begun ends without its end."""
    client = Client(begins=True)
    asking = asyncio.create_task(client.ask("POST", "/wait"))
    await client.reached.wait()
    await client.router.drain(0)
    await asking
    assert [message["type"] for message in client.sent] == ["http.response.start"]
    assert client.metrics.in_flight == 0


async def test_cancelled_call_is_not_in_flight() -> None:
    """A call that is cancelled by another than the drain is not answered, and not counted any more."""
    client = Client()
    asking = asyncio.create_task(client.ask("POST", "/wait"))
    await client.reached.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.sent == []
    assert client.metrics.in_flight == 0


@pytest.mark.parametrize("more", [True, False])
async def test_client_that_leaves_unread(more: bool) -> None:
    """A body that nobody reads and that breaks off is answered; a client that leaves after its body's end is not."""
    client = Client(leaves=True)
    client.messages = [{"type": "http.request", "body": b"", "more_body": more}, {"type": "http.disconnect"}]
    await client.ask("POST", "/wait")
    assert [message["status"] for message in client.sent[::2]] == ([400] if more else [])
    assert client.metrics.in_flight == 0
