"""
A server of tools that speaks the Model Context Protocol: ``ToolServer`` over ``mcp_session.py``.

Its list of tools is kept, fetched again when it tells of a change and every five minutes, and empty while it is away; it is looked
for again by itself. A call is sent once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from jarvis_core import cancellation, log
from jarvis_core.errors import BadGateway, DeadlineExceeded, RequestError
from jarvis_core.models import Caller, HealthState, Tool, ToolOutput
from jarvis_core.services.contract import NONSENSE
from jarvis_core.services.health import Health
from jarvis_core.services.mcp_session import CallTool, ListTools, McpSession, SessionLost
from jarvis_core.settings import McpServer as Settings

logger = log.get(__name__)

T = TypeVar("T")

LIST_TIMEOUT_S = 10.0
"""For beginning a session and for a list, each."""
REFRESH_INTERVAL_S = 300.0
AWAY_DELAYS_S = (0.5, 1.0, 2.0, 5.0)
"""Between two looks at a server that is away, by how many failed in a row; the last repeats."""
LISTEN_PAUSE_S = 0.5
"""Before it is listened again to a server that has closed its stream."""
CHANGE_PAUSE_S = 0.2
"""Between a change that is told and the list that is fetched then: servers tell of each tool."""
CLOSE_TIMEOUT_S = 1.0
TOOLS_LIMIT = 1_000
PAGES_LIMIT = 100
NAME_LIMIT = 64
TOOL_LIMIT_BYTES = 32 << 10
"""Of a tool's schema and description: more would be read by the model in every turn."""
HASH_CHARS = 6
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Annotations(Struct, frozen=True):
    """What a server says of what a tool does."""

    read_only: bool | None = msgspec.field(default=None, name="readOnlyHint")


class ListedTool(Struct, frozen=True):
    """A tool as a server lists it."""

    name: str
    schema: Raw = msgspec.field(default=Raw(b'{"type":"object"}'), name="inputSchema")
    description: str | None = None
    annotations: Annotations | None = None


class ToolPage(Struct, frozen=True):
    """One page of a list; each tool is looked at by itself, so that one that is wrong takes no other with it."""

    tools: list[Raw]
    next_cursor: str | None = msgspec.field(default=None, name="nextCursor")


class Resource(Struct, frozen=True):
    """A resource in a result."""

    uri: str = ""
    text: str | None = None


class Content(Struct, frozen=True):
    """A part of a result."""

    type: str = ""
    text: str | None = None
    mime_type: str | None = msgspec.field(default=None, name="mimeType")
    uri: str | None = None
    resource: Resource | None = None


class Called(Struct, frozen=True):
    """What a tool told."""

    content: list[Content] = []
    is_error: bool | None = msgspec.field(default=None, name="isError")
    structured: Raw = msgspec.field(default=Raw(b""), name="structuredContent")


class Schema(Struct, frozen=True):
    """What is looked at of a schema: models' servers take none but those of objects."""

    type: str


_page_decoder = msgspec.json.Decoder(ToolPage)
_tool_decoder = msgspec.json.Decoder(ListedTool)
_schema_decoder = msgspec.json.Decoder(Schema)
_called_decoder = msgspec.json.Decoder(Called)


class McpServer:
    """
    The server *name*, as *settings* have it.

    Run ``keep`` for as long as it is used, and ``close`` it then.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.health = Health(name)
        self.health.state = "unavailable"
        self.looked = asyncio.Event()
        """Set once it was looked at for the first time."""
        self.trouble = "it has not answered yet"
        """Why it was not to be had when it was looked at last; empty where all was well."""
        self._settings = settings
        self._changed = asyncio.Event()
        token = None if settings.token is None else settings.token.reveal()
        self._session = McpSession(name, settings.url.rstrip(), token, self._changed.set)
        self._tools: tuple[Tool, ...] = ()
        self._beginning = asyncio.Lock()
        self._sessions = 0
        """How many were begun."""
        self._failures = 0
        """How many looks at it have failed in a row."""

    @property
    def state(self) -> HealthState:
        """How it is, from memory."""
        return self.health.state

    @property
    def tools(self) -> Sequence[Tool]:
        """What it has, from memory; empty while it is away."""
        return self._tools

    async def call(self, tool: Tool, arguments: Raw, caller: Caller) -> ToolOutput:
        """Have *tool* called, as ``ToolServer`` has it; *caller* is not told to the server."""
        request = CallTool(tool.own_name, arguments)
        number = self._sessions
        try:
            result = await self._session.ask("tools/call", request)
        except SessionLost:
            # It has forgotten the session, and so has done nothing.
            await self._begin(number)
            result = await self._session.ask("tools/call", request)
        try:
            called = _called_decoder.decode(result)
        except NONSENSE as exc:
            raise BadGateway(f"{self.name} sent what is not its contract; it may have been done, or not.") from exc
        return ToolOutput(_text_of(called), failed=bool(called.is_error))

    async def keep(self) -> None:
        """Keep the list of tools up to date, and look for the server while it is away."""
        while True:
            try:
                await self._keep_session()
            except RequestError as exc:
                self._failures += 1
                if isinstance(exc, SessionLost) and self._failures == 1:
                    # It was restarted; its tools may be others now.
                    continue
                self._tools = ()
                self.trouble = str(exc)
                self.health.learn("unavailable", self.trouble)
                self.looked.set()
            await asyncio.sleep(AWAY_DELAYS_S[min(self._failures, len(AWAY_DELAYS_S)) - 1])

    async def _keep_session(self) -> None:
        """Begin a session, and keep the list up to date until that fails."""
        await self._begin(self._sessions)
        listening = None
        if self._session.may_tell:
            listening = asyncio.get_running_loop().create_task(self._listen())
        try:
            while True:
                self._changed.clear()
                self._take(await self._list())
                self.looked.set()
                with contextlib.suppress(TimeoutError):
                    async with cancellation.timeout(REFRESH_INTERVAL_S):
                        await self._changed.wait()
                    await asyncio.sleep(CHANGE_PAUSE_S)
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.wait([listening])

    async def close(self) -> None:
        """End the session and close every connection."""
        with contextlib.suppress(TimeoutError):
            async with cancellation.timeout(CLOSE_TIMEOUT_S):
                await self._session.close()

    async def _begin(self, known: int) -> None:
        """Begin a session in place of the one with the number *known*, unless somebody else has by now."""
        async with self._beginning:
            if self._sessions == known:
                await self._in_time(self._session.begin())
                self._sessions += 1

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with cancellation.timeout(LIST_TIMEOUT_S):
                return await work
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{self.name} did not answer within {LIST_TIMEOUT_S:g} s.") from exc

    async def _listen(self) -> None:
        """Hear of changes; where that breaks off the list is fetched again, as changes may have been missed."""
        has_stream = True
        while has_stream:
            with contextlib.suppress(RequestError):
                has_stream = await self._session.listen()
            self._changed.set()
            await asyncio.sleep(LISTEN_PAUSE_S)

    async def _list(self) -> list[ListedTool]:
        """Return the tools that the server lists, those of them that can be used."""
        found: list[ListedTool] = []
        cursor = None
        for _ in range(PAGES_LIMIT):
            asked = ListTools() if cursor is None else ListTools(cursor)
            result = await self._in_time(self._session.ask("tools/list", asked))
            try:
                page = _page_decoder.decode(result)
            except NONSENSE as exc:
                raise BadGateway(f"{self.name} sent what is not its contract.") from exc
            found += [tool for raw in page.tools if (tool := self._usable(raw)) is not None]
            cursor = page.next_cursor
            if not cursor or len(found) >= TOOLS_LIMIT:
                break
        return found[:TOOLS_LIMIT]

    def _usable(self, raw: Raw) -> ListedTool | None:
        size = len(bytes(raw))
        try:
            tool = _tool_decoder.decode(raw)
            if _schema_decoder.decode(tool.schema).type != "object":
                raise msgspec.ValidationError("its schema is none of an object")
            if size > TOOL_LIMIT_BYTES:
                raise msgspec.ValidationError(f"it has {size} bytes, and may have {TOOL_LIMIT_BYTES}")
        except NONSENSE as exc:
            head = bytes(raw)[:100].decode(errors="replace")
            logger.warning("a tool cannot be offered", server=self.name, tool=head, why=str(exc))
            return None
        allowed = self._settings.allowed
        return None if allowed and tool.name not in allowed else tool

    def _take(self, listed: list[ListedTool]) -> None:
        names = names_of(self.name, [tool.name for tool in listed])
        always = self._settings.approval == "always"
        tools = []
        for tool, name in zip(listed, names, strict=True):
            read_only = tool.annotations is not None and tool.annotations.read_only is True
            tools.append(
                Tool(
                    name,
                    tool.description or "",
                    tool.schema.copy(),
                    server=self.name,
                    own_name=tool.name,
                    read_only=read_only,
                    needs_approval=always and not read_only,
                )
            )
        if len(tools) != len(self._tools):
            logger.info("a server has tools", server=self.name, tools=len(tools))
        self._tools = tuple(tools)
        self.trouble = ""
        self._failures = 0
        self.health.learn("healthy")


def names_of(server: str, tools: Sequence[str]) -> list[str]:
    """Return the names under which a model sees the *tools* of *server*, which are told apart where they are cut or alike."""
    plain = ["".join(char if char in PLAIN else "_" for char in f"{server}__{tool}") for tool in tools]
    names = []
    for tool, name in zip(tools, plain, strict=True):
        if len(name) > NAME_LIMIT or plain.count(name) > 1:
            mark = hashlib.sha256(tool.encode(errors="replace")).hexdigest()[:HASH_CHARS]
            name = f"{name[: NAME_LIMIT - HASH_CHARS - 1]}_{mark}"
        names.append(name)
    return names


def _text_of(called: Called) -> str:
    parts = []
    for part in called.content:
        if part.text is not None:
            parts.append(part.text)
        elif part.resource is not None:
            parts.append(part.resource.text or part.resource.uri)
        else:
            parts.append(part.uri or f"[{part.mime_type or part.type or 'something'} that is no text]")
    if not parts:
        return bytes(called.structured).decode(errors="replace")
    return "\n".join(parts)
