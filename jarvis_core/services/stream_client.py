"""
Requests whose answers are read as they arrive: what a turn waits for.

For a turn's stream aiohttp's client takes a fifth of the core's CPU, most of it for what is never used here: cookies,
redirects, compression, tracing. Its session makes all other calls.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import Mapping, Sequence

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType
from yarl import URL

from jarvis_core import cancellation
from jarvis_core.services.ca_certificates import authorities
from jarvis_core.services.http1 import ClosedIdle, Connection, Response

IDLE_LIMIT_S = 30.0
"""Connections that were not needed for so long are closed."""
ADDRESSES_FRESH_S = 30.0
HAPPY_EYEBALLS_DELAY_S = 0.25
"""RFC 8305, 5: before an address of the other family is tried too."""
CONTROLS = ("\r", "\n", "\0")


class NotConnected(ConnectionError):
    """No connection could be made; nothing was sent."""


class ConnectTimeout(TimeoutError):
    """No connection was made in time; nothing was sent."""


class StreamClient:
    """
    Connections to one server, kept open between requests.

    *base_url* is http or https, with user and password for Basic authentication where it has them. How many requests go on
    at once is for the caller to bound. To be closed in the loop that it is used in.
    """

    def __init__(self, base_url: str, *, connect_timeout_s: float) -> None:
        self._url = URL(base_url)
        self._connect_timeout_s = connect_timeout_s
        self._heads: dict[tuple[str, str], str] = {}
        self._tls = authorities() if self._url.scheme == "https" else None
        self._idle: list[Connection] = []
        """The one that was used last is the last."""
        self._all: set[Connection] = set()
        self._tidying: asyncio.TimerHandle | None = None
        self._addresses: asyncio.Task[Sequence[AddrInfoType]] | None = None
        self._addresses_stale_at = 0.0
        self._closed = False

    def close(self) -> None:
        """Close every connection, now or when it is given back."""
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        if self._addresses is not None:
            self._addresses.cancel()
        for connection in list(self._all):
            connection.close()

    async def request(self, method: str, path: str, headers: Mapping[str, str] | None, body: bytes) -> Response:
        """
        Send a request and return its answer once the head is here.

        Waits for ``connect_timeout_s`` for a connection, and without a limit for the head: the caller has the deadline.
        Where a connection that had been kept turns out to be closed it is sent once more, over a new one, as servers close
        such ones whenever they like (RFC 9112, 9.3.1); so only for what may be repeated.
        Raises ``NotConnected``, ``ConnectTimeout``, ``ssl.SSLError``, ``Disconnected`` and ``NotHttp``.
        """
        lines = [self._head(method, path), f"content-length: {len(body)}"]
        for name, value in (headers or {}).items():
            if any(control in value for control in CONTROLS):
                raise ValueError(f"the header {name} has a line end in it")
            lines.append(f"{name}: {value}")
        request = "\r\n".join([*lines, "\r\n"]).encode() + body
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                with contextlib.suppress(ClosedIdle):
                    return await _ask(connection, request)
                break
        return await _ask(await self._connect(), request)

    def keep(self, connection: Connection) -> None:
        """Have *connection* for the next request."""
        if self._closed:
            connection.transport.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._tidying is None:
            self._tidying = loop.call_later(IDLE_LIMIT_S, self._tidy)

    def forget(self, connection: Connection) -> None:
        """Let go of *connection*, which is closed."""
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def _tidy(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._idle):
            if connection.idle_since + IDLE_LIMIT_S <= loop.time():
                self._idle.remove(connection)
                connection.transport.abort()
        self._tidying = loop.call_at(self._idle[0].idle_since + IDLE_LIMIT_S, self._tidy) if self._idle else None

    def _head(self, method: str, path: str) -> str:
        """Return what each request to *path* begins with."""
        head = self._heads.get((method, path))
        if head is None:
            url = URL(str(self._url).rstrip("/") + path)
            head = f"{method} {url.raw_path_qs} HTTP/1.1\r\nhost: {url.host_port_subcomponent}\r\naccept: */*"
            head += "\r\naccept-encoding: identity"  # without it any may be used (RFC 9110, 12.5.3)
            if url.user is not None:
                secret = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
                head += f"\r\nauthorization: Basic {secret}"
            self._heads[method, path] = head
        return head

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with cancellation.timeout(self._connect_timeout_s):
                looking_up = self._resolve()
                await asyncio.wait([looking_up])
                if looking_up.cancelled():
                    raise NotConnected("closed here")
                addresses = looking_up.result()
                connected = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S, interleave=1
                )
                connection = Connection(self)
                try:
                    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    await loop.create_connection(
                        lambda: connection,
                        sock=connected,
                        ssl=self._tls,
                        server_hostname=self._url.raw_host if self._tls is not None else None,
                    )
                except BaseException:
                    if hasattr(connection, "transport"):
                        # Made in this moment: with TLS it would wait for the other side's farewell, without its socket.
                        connection.close()
                    connected.close()
                    raise
        except TimeoutError as exc:
            raise ConnectTimeout(f"no connection within {self._connect_timeout_s:g} s") from exc
        except ssl.SSLError:
            raise
        except (OSError, UnicodeError) as exc:  # the latter for a name that cannot be one
            raise NotConnected(str(exc)) from exc
        if not connection.transport.is_closing():
            self._all.add(connection)
        return connection

    def _resolve(self) -> asyncio.Task[Sequence[AddrInfoType]]:
        """Return the look-up of the server's addresses, which all who connect share for a while."""
        loop = asyncio.get_running_loop()
        task = self._addresses
        if task is None or (task.done() and (loop.time() >= self._addresses_stale_at or _failed(task))):
            self._addresses_stale_at = loop.time() + ADDRESSES_FRESH_S
            task = self._addresses = loop.create_task(self._look_up())
            task.add_done_callback(_failed)  # or it would be said to be lost where all have stopped waiting for it
        return task

    async def _look_up(self) -> Sequence[AddrInfoType]:
        host = self._url.raw_host or ""
        return await asyncio.get_running_loop().getaddrinfo(host, self._url.port, type=socket.SOCK_STREAM)


async def _ask(connection: Connection, request: bytes) -> Response:
    response = connection.ask(request)
    try:
        await response.wait_head()
    except BaseException:
        response.close()
        raise
    return response


def _failed(task: asyncio.Task[Sequence[AddrInfoType]]) -> bool:
    return task.cancelled() or task.exception() is not None
