"""What clients can make the server hold: answers that they do not read, messages that they do not end, connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.conftest import MakeServer, assert_no_defect
from tests.handlers.rest.api import Answer, Api
from tests.system.server import Server

pytestmark = pytest.mark.every_python

PATIENCE_S = 3
LIMITED = f"""
import sys
from jarvis_core import server
from jarvis_core.handlers import call
server.LOOPBACK = ()
call.SEND_TIMEOUT_S = {PATIENCE_S}
from jarvis_core.__main__ import main
sys.exit(main([]))
"""
"""A server to which this machine is as any other, and that waits for a client ``PATIENCE_S``."""
MIB = 1 << 20
KEYS = {name: f"{name}-0123456789" for name in ("ann", "bob", "cid")}
TEXT = "\x01" * (MIB - 1)
"""Of a message; six bytes each as JSON."""
MESSAGES = 3
"""Of which the first two are a page."""
PAGE_BYTES = 12 * MIB
"""And a little around the texts."""
ANSWERS_LIMIT_BYTES = 64 * MIB
MESSAGES_LIMIT_BYTES = 32 * MIB
ADDRESS_LIMIT = 60


@pytest.fixture
async def server(directory: Path, database: str, bridges: FakeBridges) -> AsyncIterator[Server]:
    """Run the server."""
    environment = {
        "DATABASE_URL": database,
        "PYTHON_BRIDGES_URL": bridges.url,
        "API_KEYS": ",".join(f"{name}:{key}" for name, key in KEYS.items()),
        "ADDRESS_CONNECTION_LIMIT": str(ADDRESS_LIMIT),
        "MESSAGES_LIMIT_BYTES": str(MESSAGES_LIMIT_BYTES),
    }
    server = Server(directory, environment, interpreter=(sys.executable, "-c", LIMITED))
    try:
        await asyncio.to_thread(server.start)
        yield server
        assert await asyncio.to_thread(server.stop) == 0
        assert_no_defect(server)
    finally:
        server.kill()


async def histories(database: str) -> dict[str, str]:
    """Store a conversation with long messages for each user; return their paths."""
    paths = {}
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for user in KEYS:
            conversation = str(uuid.uuid4())
            await connection.execute(
                "insert into conversations (id, owner, title, message_count) values (%s, %s, 'x', %s)",
                (conversation, user, MESSAGES),
            )
            for number in range(MESSAGES):
                await connection.execute(
                    "insert into messages (id, conversation_id, role, content, status)"
                    " values (%s, %s, 'assistant', %s, 'completed')",
                    (str(uuid.uuid4()), conversation, f"{number} {TEXT}"),
                )
            paths[user] = f"/api/chat/history/{conversation}"
    return paths


async def value(api: Api, name: str) -> float:
    """Return a value of /metrics."""
    text = (await api.get("/metrics")).body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"jarvis_{name} "))


async def comes_to(api: Api, name: str, wanted: float) -> None:
    """Wait until a value of /metrics is *wanted*."""
    async with asyncio.timeout(PATIENCE_S + 10):
        while await value(api, name) != wanted:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


def ask(server: Server, user: str, path: str) -> socket.socket:
    """Ask for a page, and read nothing."""
    connection = socket.socket()
    # What lies in the kernel on the way is to be little.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[user]}\r\n\r\n".encode())
    return connection


async def test_pages_end_by_their_length(server: Server, database: str) -> None:
    """A page of long messages has fewer than were asked for, and its cursor leads to the others: each is there once."""
    path = (await histories(database))["ann"]
    async with Api(server.url, token=KEYS["ann"]) as ann:
        first = (await ann.get(f"{path}?limit=200")).json
        assert [one["content"][:2] for one in first["messages"]] == ["0 ", "1 "]
        second = (await ann.get(f"{path}?limit=200&cursor={first['next_cursor']}")).json
        assert [one["content"][:2] for one in second["messages"]] == ["2 "]
        assert second["next_cursor"] is None


async def test_words_that_were_not_heard_count(server: Server, database: str) -> None:
    """What an interrupted answer went on to say, which a page does not show, is read with it, and ends it too."""
    path = (await histories(database))["ann"]
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("update messages set unheard = content where content like '0 %'")
    async with Api(server.url, token=KEYS["ann"]) as ann:
        first = (await ann.get(f"{path}?limit=200")).json
        assert [one["content"][:2] for one in first["messages"]] == ["0 "]


async def test_pages_that_nobody_reads(server: Server, database: str) -> None:
    """
    Long answers are requests until they are read: a user has a share of what may lie unread, and what is not read is
    given up with its connection. The process stays as small as the limit says, and who reads is answered.
    """
    paths = await histories(database)
    async with Api(server.url, token=KEYS["ann"]) as ann, Api(server.url, token=KEYS["bob"]) as bob:
        length = len((await bob.get(paths["bob"])).body)
        assert PAGE_BYTES < length < PAGE_BYTES + 4_096
        before = server.resident_bytes()
        with ExitStack() as stack:
            stalled = [stack.enter_context(ask(server, "ann", paths["ann"])) for _ in range(2)]
            await comes_to(ann, "unread_answers_bytes", 2 * length)
            assert await value(ann, "http_in_flight") == 3
            assert_refused(await ann.get(paths["ann"]), (429, "rate_limited"), ANSWERS_LIMIT_BYTES // 2)
            # A short answer is none of these, and another user has a share of his own.
            assert (await ann.get("/api/chat/conversations")).status == 200
            assert (await bob.get(paths["bob"])).status == 200
            for _ in range(20):
                stack.enter_context(ask(server, "ann", paths["ann"]))
            assert (await bob.get("/health")).status == 200
            await comes_to(ann, "http_in_flight", 1)
            assert await value(ann, "unread_answers_bytes") == 0
            assert server.resident_bytes() - before < ANSWERS_LIMIT_BYTES + 32 * MIB
            # Who did not read is cut off.
            await ended(stalled)
            assert not await asyncio.to_thread(is_whole, stalled[0], length)
            assert (await ann.get(paths["ann"])).status == 200


async def ended(connections: list[socket.socket]) -> None:
    """Wait until the server has closed each connection, of which something may still be unread."""
    ports = {connection.getsockname()[1] for connection in connections}
    async with asyncio.timeout(10):
        while ports & established():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.05)


def established() -> set[int]:
    """Return the ports of this machine's connections that nobody has closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "01"}


def assert_refused(answer: Answer, error: tuple[int, str], limit_bytes: int) -> None:
    """Hold a refusal against what each has to say: the limit, and when to try again."""
    assert answer.error == error
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json["details"] == {"limit_bytes": limit_bytes}
    assert str(limit_bytes) in answer.json["error"]


def is_whole(connection: socket.socket, length: int) -> bool:
    """Read what is left of an answer of *length*."""
    connection.settimeout(10)
    left = length
    with contextlib.suppress(ConnectionError):
        while left > 0 and (part := connection.recv(1 << 16)):
            left -= len(part)
    return left <= 0


async def test_everybody_together(server: Server, database: str) -> None:
    """Where many users leave much unread the next is refused as overload, and health is answered."""
    paths = await histories(database)
    async with Api(server.url, token=KEYS["cid"]) as cid:
        length = len((await cid.get(paths["cid"])).body)
        with ExitStack() as stack:
            for user in ("ann", "ann", "bob", "bob", "cid"):
                stack.enter_context(ask(server, user, paths[user]))
            await comes_to(cid, "unread_answers_bytes", 5 * length)
            assert_refused(await cid.get(paths["cid"]), (503, "overloaded"), ANSWERS_LIMIT_BYTES)
            assert (await cid.get("/health")).status == 200


# Messages without an end


async def never_ending(socket: ClientConnection, length: int, ends: asyncio.Event) -> None:
    """Send so much of a message in pieces, and its end when *ends* says so."""

    async def pieces() -> AsyncIterator[str]:
        for _ in range(length // MIB):
            yield "x" * MIB
        await ends.wait()
        yield "!"

    await socket.send(pieces())


def opened(server: Server, user: str) -> connect:
    """Return a WebSocket of *user* to be entered."""
    headers = {"Authorization": f"Bearer {KEYS[user]}"}
    return connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers=headers, proxy=None)


async def next_event(socket: ClientConnection) -> Any:
    """Return the next event."""
    async with asyncio.timeout(10):
        return msgspec.json.decode(await socket.recv())


async def test_message_without_an_end(server: Server) -> None:
    """A message of which the end does not come is given up with its socket at 24 MiB: 1009, and an error that says so."""
    ends = asyncio.Event()
    async with opened(server, "ann") as client:
        assert (await next_event(client))["type"] == "session.created"
        sending = asyncio.create_task(never_ending(client, 28 * MIB, ends))
        error = (await next_event(client))["error"]
        assert (error["code"], str(24 * MIB) in error["message"]) == ("too_large", True)
        with pytest.raises(ConnectionClosed) as closed:
            await next_event(client)
        assert (closed.value.rcvd is not None and closed.value.rcvd.code) == 1009
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    async with Api(server.url, token=KEYS["ann"]) as ann:
        await comes_to(ann, "websockets", 0)


async def test_messages_without_an_end(server: Server) -> None:
    """Where unfinished messages are too much together the longest is given up, with 1013; the others may end theirs."""
    ends = asyncio.Event()
    async with opened(server, "ann") as ann, opened(server, "bob") as bob, opened(server, "cid") as cid:
        for client in (ann, bob, cid):
            assert (await next_event(client))["type"] == "session.created"
        sending = [
            asyncio.create_task(never_ending(client, length * MIB, ends))
            for client, length in ((ann, 10), (bob, 18), (cid, 10))
        ]
        error = (await next_event(bob))["error"]
        assert (error["code"], str(MESSAGES_LIMIT_BYTES) in error["message"]) == ("overloaded", True)
        with pytest.raises(ConnectionClosed) as closed:
            await next_event(bob)
        assert (closed.value.rcvd is not None and closed.value.rcvd.code) == 1013
        ends.set()
        await asyncio.gather(*sending, return_exceptions=True)
        for client in (ann, cid):
            # It is too long for an event, but that is told when it is there, and the socket stays open.
            assert (await next_event(client))["error"]["code"] == "too_large"
            await client.send("no event")
            assert (await next_event(client))["error"]["code"] == "invalid_json"


# Connections


def has_ended(connection: socket.socket) -> bool:
    """Whether the server has closed a connection."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_connections_of_one_address(server: Server) -> None:
    """
    An address keeps so many connections, whatever it says or does not say over them; the newest are closed, and another
    address is answered meanwhile.
    """
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 60_000
    with ExitStack() as stack:
        crowd = []
        for number in range(4 * ADDRESS_LIMIT):
            one = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.9", 0))
            )
            one.sendall(head if number % 2 else b"")
            crowd.append(one)
        async with Api(server.url, token=KEYS["ann"]) as ann, asyncio.timeout(20):
            while sum(map(has_ended, crowd)) < 3 * ADDRESS_LIMIT:
                assert (await ann.get("/health")).status == 200
                await asyncio.sleep(0.05)
            # Looked at once more: no more than those.
            await asyncio.sleep(1)
            assert sum(map(has_ended, crowd)) == 3 * ADDRESS_LIMIT


async def test_connections_of_all(make_server: MakeServer) -> None:
    """Of all together one too many waits until another is closed, and is answered then."""
    server = make_server(CONNECTION_LIMIT="8")
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(8)]
        async with Api(server.url) as api:
            waiting = asyncio.create_task(api.session.get("/ready"))
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            assert not done
            crowd[0].close()
            async with await waiting as answer:
                assert answer.status == 200


def peak_bytes(server: Server) -> int:
    """Return the most memory that the server ever had in use."""
    lines = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


async def test_all_at_once(server: Server, database: str) -> None:
    """While one user does all of it at once the process stays under 256 MiB, and another is answered as ever."""
    paths = await histories(database)
    ends = asyncio.Event()
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 60_000
    async with contextlib.AsyncExitStack() as stack:
        bob = await stack.enter_async_context(Api(server.url, token=KEYS["bob"]))
        clients = [await stack.enter_async_context(opened(server, "ann")) for _ in range(8)]
        for _ in range(10):
            stack.enter_context(ask(server, "ann", paths["ann"]))
        for _ in range(ADDRESS_LIMIT):
            crowd = socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.9", 0))
            stack.enter_context(crowd).sendall(head)
        sending = [asyncio.create_task(never_ending(client, 8 * MIB, ends)) for client in clients]
        async with asyncio.timeout(20):
            while sum(client.close_code is not None for client in clients) < 4:
                assert (await bob.get("/health")).status == 200
                assert (await bob.get("/api/chat/conversations")).status == 200
                assert (await bob.say("et moi ?"))["status"] == "completed"
        ends.set()
        await asyncio.gather(*sending, return_exceptions=True)
        # What was let in, is there: else this would test nothing.
        assert 100 * MIB < peak_bytes(server) < 256 * MIB


async def test_own_machine_is_not_limited(make_server: MakeServer) -> None:
    """Programs of this machine may have more connections than one address elsewhere."""
    server = make_server(ADDRESS_CONNECTION_LIMIT="5")
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(80)]
        async with Api(server.url) as api:
            assert (await api.get("/health")).status == 200
        # Longer than it takes to close those of another address.
        await asyncio.sleep(1.5)
        assert not any(map(has_ended, crowd))
