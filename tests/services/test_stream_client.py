"""Our HTTP client's connections, over real sockets on loopback: how they are made, kept, left and closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import time
import weakref
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from jarvis_core.errors import BadGateway, Unavailable
from jarvis_core.services import stream_client as module
from jarvis_core.services.http1 import HIGH_WATER_BYTES, Connection, Disconnected, NotHttp, Response
from jarvis_core.services.stream_client import ConnectTimeout, NotConnected, StreamClient
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Neighbours

pytestmark = pytest.mark.every_python

FILES = Path(__file__).parents[1] / "fixtures" / "tls"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nvoix"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nvoix"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LATE_S = 5.0
"""A generous bound on what must take no time, or about 0.2 s."""


class Neighbour:
    """A server that answers each request with the same bytes, and notes what it was sent."""

    def __init__(self, answer: bytes = ANSWER) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.bodies: list[bytes] = []
        self.asked = asyncio.Semaphore(0)
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.closes = False
        """Whether it closes the connection after an answer."""
        self.begun: bytes | None = None
        """With this, and nothing more, it answers what comes second over a connection."""
        self.gate = asyncio.Event()
        """Answers wait for it."""
        self.gate.set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> int:
        """Start, and return the port."""
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=tls)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Close every connection."""
        assert self._server is not None
        self._server.close()
        for writer in list(self.open):
            writer.transport.abort()
        await self.until_open(0)

    async def until_open(self, number: int) -> None:
        """Wait until so many connections are open."""
        async with asyncio.timeout(LATE_S):
            while len(self.open) != number:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.002)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        asked = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, length = head.partition(b"content-length: ")
                self.bodies.append(await reader.readexactly(int(length.partition(b"\r")[0])))
                self.requests.append(head)
                self.asked.release()
                # Who goes away meanwhile is seen.
                waiting, left = asyncio.ensure_future(self.gate.wait()), asyncio.ensure_future(reader.read(1))
                await asyncio.wait([waiting, left], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if left.done():
                    return
                left.cancel()
                await asyncio.wait([left])
                asked += 1
                if asked == 2 and self.begun is not None:
                    writer.write(self.begun)
                    return
                writer.write(self.answer)
                if self.closes:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()


@pytest.fixture
async def neighbour() -> AsyncIterator[Neighbour]:
    """Give a neighbour that is yet to be started."""
    neighbour = Neighbour()
    yield neighbour
    await neighbour.stop()


@pytest.fixture
async def url(neighbour: Neighbour) -> str:
    """Start the neighbour, and give its address."""
    return f"http://127.0.0.1:{await neighbour.start()}"


@contextlib.contextmanager
def client_of(url: str, connect_timeout_s: float = LATE_S) -> Iterator[StreamClient]:
    """Give a client of *url*."""
    client = StreamClient(url, connect_timeout_s=connect_timeout_s)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def client(url: str) -> Iterator[StreamClient]:
    """Give a client of the neighbour."""
    with client_of(url) as client:
        yield client


async def ask(client: StreamClient, path: str = "/api", headers: dict[str, str] | None = None) -> Response:
    """Send a request."""
    async with asyncio.timeout(2 * LATE_S):
        return await client.request("POST", path, headers, b"{}")


async def read(response: Response) -> bytes:
    """Read to the end."""
    data = b""
    async with asyncio.timeout(2 * LATE_S):
        while part := await response.read():
            data += part
    return data


async def whole(client: StreamClient, path: str = "/api") -> bytes:
    """Send a request, read its answer, and let the connection go."""
    response = await ask(client, path)
    data = await read(response)
    response.release()
    return data


Addresses = list[tuple[Any, Any, int, str, tuple[Any, ...]]]


def look_up_by(
    monkeypatch: pytest.MonkeyPatch, look_up: Callable[[], Awaitable[Addresses]], name: str = "bridges"
) -> None:
    """Have *name* looked up by *look_up*; the loop may look up addresses too."""
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    def getaddrinfo(host: str, *asked: Any, **more: Any) -> Awaitable[Any]:
        return look_up() if host == name else real(host, *asked, **more)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


def address(port: int, host: str = "127.0.0.1") -> tuple[Any, Any, int, str, tuple[Any, ...]]:
    """Return what a look-up gives for it."""
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)


def unused_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# Requests


async def test_request(neighbour: Neighbour, client: StreamClient, url: str) -> None:
    """A request says what the server must know, once, and asks for a body that is not compressed."""
    await ask(client, "/api/llm?a=b", {"X-Request-Id": "é"})
    port = url.rpartition(":")[2]
    assert neighbour.requests == [
        (
            f"POST /api/llm?a=b HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: */*\r\naccept-encoding: identity\r\n"
            "content-length: 2\r\nX-Request-Id: é\r\n\r\n"
        ).encode()
    ]
    assert neighbour.bodies == [b"{}"]


@pytest.mark.parametrize(
    ("base", "line", "host", "user"),
    [
        ("http://127.0.0.1:80", "/api", "127.0.0.1", None),
        ("http://127.0.0.1:81", "/api", "127.0.0.1:81", None),
        ("https://127.0.0.1:80", "/api", "127.0.0.1:80", None),
        ("http://127.0.0.1:81/", "/api", "127.0.0.1:81", None),
        ("http://bridges/v1", "/v1/api", "bridges", None),
        ("http://bridges/v1/", "/v1/api", "bridges", None),
        ("http://bridges/un%20mot", "/un%20mot/api", "bridges", None),
        ("http://[::1]:81", "/api", "[::1]:81", None),
        ("http://us%40er:p%3Aw%20%C3%A9@bridges", "/api", "bridges", b"us@er:p:w \xc3\xa9"),
        ("http://user@bridges", "/api", "bridges", b"user:"),
    ],
)
async def test_address(
    neighbour: Neighbour,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    line: str,
    host: str,
    user: bytes | None,
) -> None:
    """What stands in the address is in the request: its path, its host with a port that is not the usual one, its user."""

    async def here() -> Addresses:
        return [address(int(url.rpartition(":")[2]))]

    look_up_by(monkeypatch, here, URL(base).host or "")
    with client_of(base) as client:
        client._tls = None  # who is asked speaks none
        await ask(client)
    head = neighbour.requests[0].decode().split("\r\n")
    assert head[0] == f"POST {line} HTTP/1.1"
    assert [text for text in head if text.startswith("host: ")] == [f"host: {host}"]
    sent = [text.removeprefix("authorization: Basic ") for text in head if text.startswith("authorization: ")]
    assert [b64decode(text) for text in sent] == ([] if user is None else [user])


async def test_ipv6(neighbour: Neighbour) -> None:
    """A server is reached by an address of IPv6."""
    try:
        port = await neighbour.start("::1")
    except OSError:
        await neighbour.start()
        pytest.skip("this machine has no IPv6")
    with client_of(f"http://[::1]:{port}") as client:
        assert await whole(client) == b"voix"


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
async def test_header_with_a_line_end(neighbour: Neighbour, client: StreamClient, value: str) -> None:
    """A header that would begin another line is refused, and nothing is sent."""
    with pytest.raises(ValueError, match="X-User"):
        await ask(client, headers={"X-User": value})
    assert neighbour.connections == 0


async def test_large_request_and_answer(neighbour: Neighbour, client: StreamClient) -> None:
    """Bodies that do not fit into any buffer arrive whole, also where the reader is slower than the network."""
    body = bytes(range(256)) * 16_000
    neighbour.answer = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    response = await client.request("POST", "/api", None, body)
    await asyncio.sleep(0.05)
    assert 0 < response._unread < len(body) - HIGH_WATER_BYTES  # the rest waits in the network
    assert await read(response) == body
    response.release()
    assert neighbour.bodies == [body]
    assert await whole(client) == body
    assert neighbour.connections == 1


# Connections that are kept


async def test_one_after_the_other(neighbour: Neighbour, client: StreamClient) -> None:
    """Requests that follow one another use one connection."""
    for _ in range(10):
        assert await whole(client) == b"voix"
    assert (neighbour.connections, len(neighbour.requests)) == (1, 10)


async def test_at_once(neighbour: Neighbour, client: StreamClient) -> None:
    """Requests at once have a connection each, and those are used again."""
    for _ in range(3):
        assert await asyncio.gather(*(whole(client) for _ in range(6))) == [b"voix"] * 6
        assert (neighbour.connections, len(neighbour.open)) == (6, 6)


async def test_idle(neighbour: Neighbour, client: StreamClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that nobody needs for a while are closed, those that are used are not."""
    monkeypatch.setattr(module, "IDLE_LIMIT_S", 0.3)
    await asyncio.gather(*(whole(client) for _ in range(3)))
    held = await ask(client)
    assert len(neighbour.open) == 3
    await neighbour.until_open(1)
    assert await read(held) == b"voix"
    held.release()
    assert await whole(client) == b"voix"
    assert neighbour.connections == 3
    await neighbour.until_open(0)
    assert await whole(client) == b"voix"
    assert neighbour.connections == 4


async def test_last_used_first(neighbour: Neighbour, client: StreamClient) -> None:
    """The connection that was used last is used next, so that those that are not needed grow old."""
    first, second = await asyncio.gather(ask(client), ask(client))
    for response in (first, second):
        await read(response)
        response.release()
    ports = [writer.get_extra_info("peername") for writer in neighbour.open]
    third = await ask(client)
    assert third._connection is second._connection
    assert len(set(ports)) == 2


async def test_stale(neighbour: Neighbour, client: StreamClient) -> None:
    """A connection that the server has closed meanwhile is not used; nor is one on which it said something by itself."""
    await whole(client)
    for writer in list(neighbour.open):
        writer.close()
    await until(lambda: not client._all)
    assert await whole(client) == b"voix"
    assert neighbour.connections == 2
    for writer in list(neighbour.open):
        writer.write(ANSWER)
    await until(lambda: not client._all)
    assert await whole(client) == b"voix"
    assert (neighbour.connections, len(client._all)) == (3, 1)


async def test_closed_just_now(neighbour: Neighbour, client: StreamClient) -> None:
    """Nor is one that was closed in the same moment, of which the loop has not told yet."""
    await whole(client)
    client._idle[0].data_received(b"x")
    assert len(client._idle) == 1
    assert await whole(client) == b"voix"
    assert neighbour.connections == 2


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 2"])
async def test_closed_when_asked_again(neighbour: Neighbour, client: StreamClient, begun: bytes) -> None:
    """A kept connection on which nothing comes but its end costs a new one; one that broke in an answer is an error."""
    assert await whole(client) == b"voix"
    neighbour.begun = begun
    if begun:
        with pytest.raises(Disconnected):
            await ask(client)
        assert neighbour.connections == 1
    else:
        assert await whole(client) == b"voix"
        assert neighbour.connections == 2
    assert len(neighbour.requests) == neighbour.connections + 1


async def test_closed_before_the_first_answer(neighbour: Neighbour, client: StreamClient) -> None:
    """A new connection that is closed without an answer is an error at once."""
    neighbour.answer, neighbour.closes = b"", True
    with pytest.raises(Disconnected):
        await ask(client)
    assert neighbour.connections == 1


async def test_closed_after_each_answer(neighbour: Neighbour, client: StreamClient) -> None:
    """A server that closes after each answer is asked over new connections, and none of the old is held."""
    neighbour.closes = True
    for answer in (ANSWER, UNTIL_CLOSE, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nvoix"):
        neighbour.answer = answer
        for _ in range(2):
            response = await ask(client)
            assert await read(response) == b"voix"
            response.release()
            await until(lambda: not client._all)
    assert (neighbour.connections, client._idle) == (6, [])


# Connections that cannot be made


async def test_refused() -> None:
    """Where nobody listens there is no connection."""
    with client_of(f"http://127.0.0.1:{unused_port()}") as client:
        for _ in range(2):
            with pytest.raises(NotConnected):
                await ask(client)
        assert client._all == set()


async def test_host_that_does_not_answer() -> None:
    """A host that takes no connections is waited for no longer than a connection may take."""
    with socket.socket() as listener, contextlib.ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):  # the queue of connections that nobody accepts
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        with client_of(f"http://127.0.0.1:{port}", 0.2) as client:
            started = time.monotonic()
            with pytest.raises(ConnectTimeout, match=r"0\.2 s"):
                await ask(client)
            assert 0.15 < time.monotonic() - started < LATE_S


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64, "a..b"])
async def test_name_that_nobody_knows(host: str) -> None:
    """A name that cannot be looked up, or be a name, is no connection."""
    with client_of(f"http://{host}:8005") as client:
        for _ in range(2):
            with pytest.raises(NotConnected):
                await ask(client)


async def test_look_up_that_hangs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up no longer than a connection may take, once for all who wait; what comes of it later is used."""
    answered = asyncio.Event()
    look_ups: list[None] = []

    async def stalled() -> Addresses:
        look_ups.append(None)
        await answered.wait()
        return [address(int(url.rpartition(":")[2]))]

    look_up_by(monkeypatch, stalled)
    with client_of("http://bridges:8005", 0.2) as client:
        started = time.monotonic()
        errors = await asyncio.gather(*(ask(client) for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in errors] == [ConnectTimeout] * 5
        assert 0.15 < time.monotonic() - started < LATE_S
        answered.set()
        client._connect_timeout_s = LATE_S
        assert await whole(client) == b"voix"
    assert len(look_ups) == 1


async def test_look_ups_are_few(neighbour: Neighbour, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects at once shares one look-up; its outcome is used for a while, unless it failed."""
    calls = Counter[str]()

    async def unknown() -> Addresses:
        calls["unknown"] += 1
        await asyncio.sleep(0)
        raise socket.gaierror(socket.EAI_NONAME, "nobody knows it")

    async def known() -> Addresses:
        calls["known"] += 1
        await asyncio.sleep(0)
        return [address(int(url.rpartition(":")[2]))]

    with client_of("http://bridges:8005") as client:
        look_up_by(monkeypatch, unknown)
        for _ in range(2):
            errors = await asyncio.gather(*(ask(client) for _ in range(4)), return_exceptions=True)
            assert [type(error) for error in errors] == [NotConnected] * 4
        assert calls == {"unknown": 2}
        look_up_by(monkeypatch, known)
        await asyncio.gather(*(ask(client) for _ in range(4)))
        await asyncio.gather(*(ask(client) for _ in range(4)))
        assert calls == {"unknown": 2, "known": 1}
        client._addresses_stale_at = asyncio.get_running_loop().time()
        await asyncio.gather(*(ask(client) for _ in range(4)))
        assert calls == {"unknown": 2, "known": 2}
    assert neighbour.connections == 12


@pytest.mark.parametrize("who", ["refuses", "is silent"])
async def test_second_address(url: str, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Where the first address refuses, or does not answer soon, the second one is tried."""
    with socket.socket() as listener, contextlib.ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        first = listener.getsockname()[1]
        if who == "is silent":
            listener.listen(0)
            for _ in range(4):
                other = others.enter_context(socket.socket())
                other.setblocking(False)
                other.connect_ex(("127.0.0.1", first))

        async def both() -> Addresses:
            return [address(first), address(int(url.rpartition(":")[2]))]

        look_up_by(monkeypatch, both)
        monkeypatch.setattr(module, "HAPPY_EYEBALLS_DELAY_S", 0.02)
        with client_of("http://bridges:8005") as client:
            started = time.monotonic()
            assert await whole(client) == b"voix"
            assert time.monotonic() - started < LATE_S / 2


async def test_no_address_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every address refuses there is no connection."""

    async def both() -> Addresses:
        return [address(unused_port()), address(unused_port())]

    look_up_by(monkeypatch, both)
    with client_of("http://bridges:8005") as client, pytest.raises(NotConnected):
        await ask(client)


# TLS


def server_tls() -> ssl.SSLContext:
    """Return what a server has whose certificate is for ``localhost`` and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FILES / "own.pem", FILES / "own.key")
    return context


@pytest.fixture
async def secure_port(neighbour: Neighbour) -> int:
    """Start the neighbour with TLS, and give its port."""
    return await neighbour.start(tls=server_tls())


@pytest.mark.parametrize("authority", ["own.pem"], indirect=True)
@pytest.mark.usefixtures("authority")
async def test_tls(neighbour: Neighbour, secure_port: int) -> None:
    """Requests go over TLS where the certificate is known, over one connection, which is closed as a plain one is."""
    for host in ("localhost", "127.0.0.1"):
        with client_of(f"https://{host}:{secure_port}") as client:
            for _ in range(3):
                assert await whole(client) == b"voix"
            assert len(neighbour.open) == 1
        await neighbour.until_open(0)
    assert neighbour.connections == 2


@pytest.mark.parametrize("authority", ["own.pem"], indirect=True)
@pytest.mark.usefixtures("authority")
async def test_tls_large_answer(neighbour: Neighbour, secure_port: int) -> None:
    """Back pressure works over TLS too."""
    body = bytes(range(256)) * 16_000
    neighbour.answer = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with client_of(f"https://localhost:{secure_port}") as client:
        for _ in range(2):
            response = await ask(client)
            await asyncio.sleep(0.05)
            assert await read(response) == body
            response.release()
    assert neighbour.connections == 1


@pytest.mark.parametrize(
    ("authority", "host"), [("p521.pem", "localhost"), ("own.pem", "bridges")], indirect=["authority"]
)
@pytest.mark.usefixtures("authority", "neighbour")
async def test_wrong_certificate(secure_port: int, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """A certificate that nobody knows, or of another name, is no connection, and the neighbour is Unavailable."""

    async def here() -> Addresses:
        return [address(secure_port)]

    look_up_by(monkeypatch, here)
    with client_of(f"https://{host}:{secure_port}") as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(client)
        assert client._all == set()
    async with transport_to(f"https://{host}:{secure_port}") as transport:
        with pytest.raises(Unavailable):
            await through(transport)
        assert transport.budget.retries == 0


async def test_no_tls_there() -> None:
    """A server that speaks no TLS is no connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with client_of(f"https://localhost:{port}") as client, pytest.raises((ssl.SSLError, NotConnected)):
            await ask(client)


async def test_handshake_that_hangs() -> None:
    """A server that takes the connection and then says nothing is not waited for longer than a connection may take."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        with client_of(url, 0.2) as client, pytest.raises(ConnectTimeout):
            await ask(client)


# Leaving and closing


async def test_cancelled_while_waiting(neighbour: Neighbour, client: StreamClient) -> None:
    """Whoever stops waiting for a head closes the connection at once, a kept one too."""
    await whole(client)
    neighbour.gate.clear()
    asking = asyncio.create_task(ask(client))
    for _ in range(2):
        await asyncio.wait_for(neighbour.asked.acquire(), LATE_S)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await neighbour.until_open(0)
    assert (neighbour.connections, client._idle) == (1, [])


async def test_cancelled_while_connecting() -> None:
    """Whoever stops waiting for a connection leaves none behind."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        with client_of(f"https://localhost:{listener.getsockname()[1]}") as client:
            asking = asyncio.create_task(ask(client))
            other, _ = await asyncio.wait_for(loop.sock_accept(listener), LATE_S)
            accepted.append(other)
            assert await loop.sock_recv(other, 1)
            asking.cancel()
            await asyncio.wait([asking])
            async with asyncio.timeout(LATE_S):
                with contextlib.suppress(ConnectionError):
                    while await loop.sock_recv(other, 1 << 16):
                        pass
        other.close()


@pytest.mark.parametrize("authority", ["own.pem"], indirect=True)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.usefixtures("authority")
async def test_cancelled_at_any_moment(neighbour: Neighbour, scheme: str) -> None:
    """Whenever a request is cancelled, its connection is kept or closed, and nothing else is left."""
    port = await neighbour.start(tls=server_tls() if scheme == "https" else None)
    with client_of(f"{scheme}://127.0.0.1:{port}") as client:
        for moments in range(120):
            asking = asyncio.create_task(whole(client))
            for _ in range(moments):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda: client._all == set(client._idle))
            for connection in list(client._all) if moments % 2 else ():
                connection.close()  # so that the next one has to connect
        await neighbour.until_open(len(client._idle))
        assert await whole(client) == b"voix"


@pytest.mark.parametrize("authority", ["own.pem"], indirect=True)
@pytest.mark.usefixtures("authority")
async def test_cancelled_when_connected(secure_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was made in the moment in which nobody wants it any more is closed, not taken leave of slowly."""
    lost: list[Connection] = []

    class Unwanted(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            asking.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.append(self)

    with client_of(f"https://127.0.0.1:{secure_port}") as client:
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(module, "Connection", Unwanted)
                asking = asyncio.create_task(ask(client))
                await asyncio.wait([asking])
            assert asking.cancelled()
            await asyncio.sleep(0.01)
            assert await whole(client) == b"voix"
            client._idle[0].close()
        assert len(lost) == 3


async def test_closing(neighbour: Neighbour, client: StreamClient) -> None:
    """Closing closes the connections that are idle and those that are used; whoever reads there sees that it is lost."""
    idle, used = await ask(client), await ask(client)
    await read(idle)
    idle.release()
    neighbour.answer = UNTIL_CLOSE
    until_close = await ask(client)  # over the idle one
    assert await until_close.read() == b"voix"
    reading = asyncio.create_task(until_close.read())
    neighbour.answer = ANSWER
    idle = await ask(client)
    await read(idle)
    idle.release()
    await asyncio.sleep(0)
    client.close()
    with pytest.raises(Disconnected):
        await reading
    used.release()
    await neighbour.until_open(0)
    assert await read(used) == b"voix"  # which was here already
    await until(lambda: not client._all)
    assert client._idle == []


async def test_given_back_after_closing(neighbour: Neighbour, client: StreamClient) -> None:
    """A connection that is given back to a closed client is closed."""
    neighbour.gate.clear()
    client.close()
    asking = asyncio.create_task(whole(client))
    await asyncio.wait_for(neighbour.asked.acquire(), LATE_S)
    neighbour.gate.set()
    assert await asking == b"voix"
    await neighbour.until_open(0)


async def test_closing_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the look-up of a client that is closed has no connection, and is not cancelled."""

    async def stalled() -> Addresses:
        await asyncio.sleep(2 * LATE_S)
        return []

    look_up_by(monkeypatch, stalled)
    with client_of("http://bridges:8005") as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(2)]
        await asyncio.sleep(0.01)
        client.close()
        for error in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(error, NotConnected)


async def test_nothing_stays(neighbour: Neighbour, client: StreamClient) -> None:
    """Connections that were closed, broken off or cut are freed at once, without the collector."""
    gc.collect()
    gc.disable()
    try:
        gone: list[weakref.ref[object]] = []
        for end in ("closed", "cut", "nonsense", "cancelled"):
            neighbour.answer = CHUNKED + b"4\r\nvoix\r\n"
            if end == "cancelled":
                neighbour.gate.clear()
                asking = asyncio.create_task(ask(client))
                await until(lambda: len(neighbour.requests) == 4)
                gone += [weakref.ref(connection) for connection in client._all]
                asking.cancel()
                await asyncio.wait([asking])
                del asking
            else:
                response = await ask(client)
                gone.append(weakref.ref(response._connection))
                if end == "cut":
                    next(iter(neighbour.open)).transport.abort()
                elif end == "nonsense":
                    next(iter(neighbour.open)).write(b"x\r\n")
                if end == "closed":
                    response.close()
                else:
                    with pytest.raises((Disconnected, NotHttp)):
                        await read(response)
                del response
            await until(lambda: not client._all)
            await neighbour.until_open(0)
        assert len(gone) == 4
        await asyncio.sleep(0.01)
        assert [reference() for reference in gone] == [None] * 4
    finally:
        gc.enable()


# Through the transport


@contextlib.asynccontextmanager
async def transport_to(url: str) -> AsyncIterator[Transport]:
    """Give the way to a neighbour."""
    transport = Transport("bridges", url, Neighbours(connect_timeout_s=LATE_S))
    try:
        yield transport
    finally:
        await transport.close()


async def through(transport: Transport) -> tuple[bytes, str | None]:
    """Ask for a stream, and return what came of it and why it ended before its time."""
    data = b""
    async with transport.stream(
        "POST", "/api", body=b"{}", first_byte_timeout_s=LATE_S, stall_timeout_s=LATE_S, total_timeout_s=LATE_S
    ) as source:
        while part := await source.read():
            data += part
        return data, source.lost


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        (CHUNKED + b"4\r\nvoix\r\nnonsense\r\n", "lost"),
        (CHUNKED + b"4\r\nvoix0\r\n\r\n", "lost"),
        (CHUNKED + b"4\r\nvoix\r\n0\r\n\r\n", None),
        (ANSWER + b"nonsense", None),
    ],
)
async def test_stream(neighbour: Neighbour, url: str, answer: bytes, lost: str | None) -> None:
    """Nonsense in a body ends the stream as lost, and what came before it was given; behind the body it matters to nobody."""
    neighbour.answer = answer
    async with transport_to(url) as transport:
        assert await through(transport) == (b"voix", lost)
    assert len(neighbour.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nvoix",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\nvoix",
    ],
)
async def test_no_answer(neighbour: Neighbour, url: str, answer: bytes) -> None:
    """An answer that is compressed, changes the protocol or has no length that is one is a BadGateway, and not asked for again."""
    neighbour.answer = answer
    async with transport_to(url) as transport:
        with pytest.raises(BadGateway):
            await through(transport)
        await neighbour.until_open(0)
        assert transport.health.state == "degraded"
    assert len(neighbour.requests) == 1


async def until(fulfilled: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(LATE_S):
        while not fulfilled():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)
