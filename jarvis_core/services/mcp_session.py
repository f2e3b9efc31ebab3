"""
A session with a server of tools: the Model Context Protocol over streamable HTTP, as far as calling tools takes it.

A client of our own for four calls (``initialize``, ``notifications/initialized``, ``tools/list``, ``tools/call``): the official
package brings 28 others, takes 0.55 s to import and 64 MB, more than the whole core. An answer is one JSON or an event stream
(https://modelcontextprotocol.io/specification/2025-11-25/basic/transports), in which the server may also ask and tell; of what it asks
only ``ping`` is answered, and of what it tells only ``tools/list_changed`` is heard. Each request has a connection of its own, so that
none is lost to one that was kept too long.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from yarl import URL

from jarvis_core import __version__
from jarvis_core.errors import BadGateway, DeadlineExceeded, RequestError, Unavailable
from jarvis_core.services.ca_certificates import authorities
from jarvis_core.services.contract import NONSENSE
from jarvis_core.services.stream import named

PROTOCOL_VERSION = "2025-11-25"
BODY_LIMIT_BYTES = 4 << 20
"""Of an answer; a result of a tool is cut much sooner, but has to be read."""
ACCEPT = "application/json, text/event-stream"
METHOD_NOT_FOUND = -32601
LIST_CHANGED = "notifications/tools/list_changed"
SESSION = "Mcp-Session-Id"


class Refused(BadGateway):
    """The server answered with an error of its own: it has not done what it was asked."""


class SessionLost(Refused):
    """The server does not know the session any more; a new one has to be begun."""


class ClientInfo(Struct, frozen=True):
    """Who asks."""

    name: str = "jarvis-core"
    version: str = __version__


class Initialize(Struct, frozen=True, rename="camel"):
    """The parameters of ``initialize``."""

    protocol_version: str = PROTOCOL_VERSION
    capabilities: dict[str, str] = {}
    client_info: ClientInfo = ClientInfo()


class ListTools(Struct, frozen=True, omit_defaults=True):
    """The parameters of ``tools/list``."""

    cursor: str | UnsetType = UNSET


class CallTool(Struct, frozen=True):
    """The parameters of ``tools/call``."""

    name: str
    arguments: Raw


class Request(Struct, frozen=True, omit_defaults=True):
    """What is asked, or told where it has no id."""

    method: str
    params: Initialize | ListTools | CallTool | UnsetType = UNSET
    id: int | UnsetType = UNSET


class Reply(Struct, frozen=True, omit_defaults=True):
    """What is answered to what the server asks."""

    id: int | str
    result: dict[str, str] | UnsetType = UNSET
    error: dict[str, int | str] | UnsetType = UNSET


class ErrorBody(Struct, frozen=True):
    """Why something was not done."""

    message: str = ""
    code: int = 0


class Incoming(Struct, frozen=True):
    """An answer, or what the server asks or tells."""

    id: int | str | None = None
    method: str | None = None
    result: Raw | UnsetType = UNSET
    error: ErrorBody | None = None


class Tools(Struct, frozen=True):
    """Of what a server offers."""

    list_changed: bool = msgspec.field(default=False, name="listChanged")


class Capabilities(Struct, frozen=True):
    """What a server offers."""

    tools: Tools | None = None


class Initialized(Struct, frozen=True):
    """The answer to ``initialize``."""

    protocol_version: str = msgspec.field(name="protocolVersion")
    capabilities: Capabilities = Capabilities()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Incoming | list[Incoming])
_initialized_decoder = msgspec.json.Decoder(Initialized)


class McpSession:
    """
    One session with the server *name* at *url*; *on_change* is called when it tells that its tools have changed.

    Nothing here has a deadline: callers cancel, which closes the connection. Errors are ``RequestError``; those that are
    ``Refused`` mean that nothing was done.
    """

    def __init__(self, name: str, url: str, token: str | None, on_change: Callable[[], None]) -> None:
        self.name = name
        self.url = url
        self.may_tell = False
        """Whether the server may tell something without being asked."""
        self._on_change = on_change
        self._headers = {"Accept": ACCEPT, "Content-Type": "application/json"}
        self._token = token or ""
        if token is not None:
            self._headers["Authorization"] = "Bearer " + token
        self._ids = itertools.count(1)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, ssl=authorities() if URL(url).scheme == "https" else True),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
        )

    async def begin(self) -> None:
        """Begin a session; one that there was is forgotten."""
        for header in (SESSION, "MCP-Protocol-Version"):
            self._headers.pop(header, None)
        initialized = self._decoded(_initialized_decoder, await self.ask("initialize", Initialize()))
        self._headers["MCP-Protocol-Version"] = initialized.protocol_version
        tools = initialized.capabilities.tools
        if tools is None:
            raise BadGateway(f"{self.name} has no tools.")
        # The official package does not announce that it tells of changes, and does.
        self.may_tell = tools.list_changed or SESSION in self._headers
        await self._tell(Request("notifications/initialized"))

    async def ask(self, method: str, params: Initialize | ListTools | CallTool) -> Raw:
        """Return the result of a request."""
        number = next(self._ids)
        body = _encoded(Request(method, params, number))
        try:
            async with self._http.post(self.url, data=body, headers=self._headers, allow_redirects=False) as response:
                await self._check(response)
                if method == "initialize" and SESSION in response.headers:
                    self._headers[SESSION] = response.headers[SESSION]
                async for message in self._messages(response):
                    if message.method is None and message.id == number:
                        return self._result(message)
                    await self._heed(message)
        except (aiohttp.ClientError, OSError) as exc:
            raise self._lost(exc) from exc
        raise Unavailable(f"{self.name} broke off before its answer; it may have been done, or not.", retry_after_s=5)

    async def listen(self) -> bool:
        """Hear what the server tells without being asked, until it closes that stream; return whether it has one."""
        headers = {**self._headers, "Accept": "text/event-stream"}
        try:
            async with self._http.get(self.url, headers=headers, allow_redirects=False) as response:
                if response.status != 200 or response.content_type != "text/event-stream":
                    return False
                async for message in self._messages(response, endless=True):
                    await self._heed(message)
                return True
        except (aiohttp.ClientError, OSError) as exc:
            raise self._lost(exc) from exc

    async def close(self) -> None:
        """End the session where the server has one, and close every connection."""
        try:
            if SESSION in self._headers:
                async with self._http.delete(self.url, headers=self._headers, allow_redirects=False):
                    pass
        except (aiohttp.ClientError, OSError):
            pass  # it is gone already
        finally:
            await self._http.close()

    async def _tell(self, message: Request | Reply) -> None:
        async with self._http.post(
            self.url, data=_encoded(message), headers=self._headers, allow_redirects=False
        ) as response:
            await self._check(response)

    async def _heed(self, message: Incoming) -> None:
        if message.method == LIST_CHANGED:
            self._on_change()
        elif message.method is not None and message.id is not None:
            reply = Reply(message.id, error={"code": METHOD_NOT_FOUND, "message": "Method not found"})
            if message.method == "ping":
                reply = Reply(message.id, result={})
            # What was asked meanwhile goes on, whatever becomes of this.
            with contextlib.suppress(RequestError, aiohttp.ClientError, OSError):
                await self._tell(reply)

    async def _messages(self, response: aiohttp.ClientResponse, *, endless: bool = False) -> AsyncIterator[Incoming]:
        if response.content_type != "text/event-stream":
            for message in self._parsed(await self._read(response)):
                yield message
            return
        events = EventBuffer(self.name, endless=endless)
        async for data in response.content.iter_any():
            for text in events.feed(data):
                for message in self._parsed(text):
                    yield message

    def _parsed(self, text: bytes) -> list[Incoming]:
        try:
            found = _decoder.decode(text)
        except NONSENSE as exc:
            raise self._nonsense() from exc
        return found if isinstance(found, list) else [found]

    def _decoded(self, decoder: msgspec.json.Decoder[Any], raw: Raw) -> Any:
        try:
            return decoder.decode(raw)
        except NONSENSE as exc:
            raise self._nonsense() from exc

    def _result(self, message: Incoming) -> Raw:
        if message.error is not None:
            words = message.error.message[:500]
            raise Refused(f"{self.name} refused: {words.replace(self._token, '…') if self._token else words}")
        if message.result is UNSET:
            raise self._nonsense()
        # It is a view of what was read: of one call's megabyte, where a server answers several at once.
        return message.result.copy()

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 300:
            return
        if response.status in (401, 403):
            raise Refused(f"{self.name} does not accept the credentials that it is sent (status {response.status}).")
        if response.status == 404 and SESSION in self._headers:
            raise SessionLost(f"{self.name} does not know the session any more.")
        if response.status >= 500:
            raise Unavailable(f"{self.name} is not well (status {response.status}).", retry_after_s=5)
        raise Refused(f"{self.name} refused with status {response.status}.")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        length = 0
        async for part in response.content.iter_any():
            length += len(part)
            if length > BODY_LIMIT_BYTES:
                raise too_long(self.name)
            parts.append(part)
        return b"".join(parts)

    def _lost(self, exc: Exception) -> RequestError:
        if isinstance(exc, TimeoutError):
            return DeadlineExceeded(f"{self.name} did not answer in time.")
        if isinstance(exc, aiohttp.ClientConnectorError):
            return Unavailable(f"{self.name} is not available.", retry_after_s=5)
        return Unavailable(
            f"{self.name} broke off; it may have been done, or not ({named(exc)[:200]}).", retry_after_s=5
        )

    def _nonsense(self) -> BadGateway:
        return BadGateway(f"{self.name} sent what is not its contract.")


class EventBuffer:
    """Cuts a stream of server-sent events into their data; comments, names and ids of events are left out."""

    def __init__(self, name: str, *, endless: bool) -> None:
        self._name = name
        self._endless = endless
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that are whole by now; raises ``BadGateway`` for one that is too long."""
        self._bytes += len(piece)
        self._buffer += piece
        found = []
        *lines, rest = self._buffer.replace(b"\r\n", b"\n").split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(bytes(line[5:].removeprefix(b" ")))
            elif not line and self._data:
                # Servers begin a stream with an event that has only an id.
                if data := b"\n".join(self._data):
                    found.append(data)
                self._data.clear()
        if self._endless and not self._data:
            self._bytes = len(rest)
        if self._bytes > BODY_LIMIT_BYTES:
            raise too_long(self._name)
        return found


def too_long(name: str) -> BadGateway:
    """Return the error for an answer of the server *name* that is too long."""
    return BadGateway(f"{name} sent more than {BODY_LIMIT_BYTES >> 20} MiB.")


def _encoded(message: Request | Reply) -> bytes:
    # The version stands first in every message, and is the same in all.
    return b'{"jsonrpc":"2.0",' + _encoder.encode(message)[1:]
