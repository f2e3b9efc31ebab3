"""
A server of tools that speaks the Model Context Protocol over streamable HTTP, and does everything wrong that it is told to.

What it has: ``echo`` (reads only), ``switch``, ``slow``, ``big``, ``picture``, ``structured``, ``failing``; each call is written down.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Literal

import msgspec
from aiohttp import web

from .command import make_parser, read_mode, serve
from .faults import forever, sever
from .server import FakeServer, json_response
from .streams import FaultyMode

PATH = "/mcp"
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"description": "Say a text again.", "inputSchema": TEXT, "annotations": {"readOnlyHint": True}},
    "switch": {"description": "Switch the lamp.", "inputSchema": EMPTY},
    "slow": {"description": "Take a minute.", "inputSchema": EMPTY},
    "big": {"description": "Give a megabyte.", "inputSchema": EMPTY},
    "picture": {"description": "Give a picture.", "inputSchema": EMPTY},
    "structured": {"description": "Give numbers.", "inputSchema": EMPTY},
    "failing": {"description": "Fail.", "inputSchema": EMPTY},
}
Bad = Literal[
    "", "html", "no_json", "no_result", "wrong_result", "wrong_id", "error", "stall", "half", "cut", "huge", "status_500", "status_400",
]  # fmt: skip


class McpMode(FaultyMode, frozen=True, kw_only=True):
    """How the server behaves; ``faults`` are for everything below its path."""

    answers: Literal["json", "events"] = "json"
    """One JSON, or an event stream with comments, progress and a ping in it."""
    sessions: bool = True
    """Whether it begins sessions, and knows no request without one."""
    listens: bool = True
    """Whether it has a stream for what it tells by itself; else 405."""
    bad: dict[str, Bad] = msgspec.field(default_factory=dict)
    """Method → how its answer is wrong; ``cut`` closes the connection once the tool was called."""
    page: int = 0
    """Tools on a page of the list; 0 is all."""
    tools: dict[str, dict[str, Any]] = msgspec.field(default_factory=lambda: TOOLS)
    capable: bool = True
    """Whether it says that it has tools."""


class FakeMcp(FakeServer[McpMode]):
    """The server; with *token* it takes no other."""

    def __init__(self, token: str | None = None, *, mode: McpMode | None = None, port: int = 0) -> None:
        super().__init__(mode or McpMode(), port=port)
        self.token = token
        self.calls: list[tuple[str, dict[str, Any]]] = []
        """The tools that were called, with their arguments."""
        self.methods: list[str] = []
        self.sessions: set[str] = set()
        self.listeners: set[web.StreamResponse] = set()
        self.replies: list[dict[str, Any]] = []
        """What was answered to what the server asked."""
        self._listening = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [web.post(PATH, self._post), web.get(PATH, self._listen), web.delete(PATH, self._end)]

    @property
    def mcp_url(self) -> str:
        """Where it is asked."""
        return self.url + PATH

    async def listened(self) -> None:
        """Wait until somebody listens."""
        async with asyncio.timeout(5):
            await self._listening.wait()

    async def tell(self, method: str) -> None:
        """Tell everybody who listens."""
        for listener in list(self.listeners):
            await listener.write(_event({"jsonrpc": "2.0", "method": method}))

    def _refused(self, request: web.Request, method: str) -> web.Response | None:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized")
        if method == "initialize" or not self.mode.sessions:
            return None
        if request.headers.get("Mcp-Session-Id") not in self.sessions:
            return json_response(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Session not found"}}, 404
            )
        if method and not request.headers.get("MCP-Protocol-Version"):
            return json_response(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "No version"}}, 400
            )
        return None

    async def _post(self, request: web.Request) -> web.StreamResponse:
        message = msgspec.json.decode(await request.read(), type=dict[str, Any])
        method = message.get("method", "")
        if "application/json" not in request.headers.get("Accept", ""):
            return web.Response(status=406)
        if refused := self._refused(request, method):
            return refused
        if "method" not in message:
            self.replies.append(message)
            return web.Response(status=202)
        self.methods.append(method)
        if "id" not in message:
            return web.Response(status=202)
        result = await self._result(method, message.get("params") or {})
        headers = {}
        if method == "initialize" and self.mode.sessions:
            headers["Mcp-Session-Id"] = uuid.uuid4().hex
            self.sessions.add(headers["Mcp-Session-Id"])
        answer = {"jsonrpc": "2.0", "id": message["id"], **result}
        return await self._reply(request, self.mode.bad.get(method, ""), answer, headers)

    async def _reply(
        self, request: web.Request, bad: Bad, answer: dict[str, Any], headers: dict[str, str]
    ) -> web.StreamResponse:
        match bad:
            case "html":
                return web.Response(text="<html>", content_type="text/html")
            case "no_json":
                return web.Response(text="{not", content_type="application/json")
            case "no_result":
                answer = {"jsonrpc": "2.0", "id": answer["id"]}
            case "wrong_result":
                answer["result"] = {"tools": "none", "content": "none", "protocolVersion": 1}
            case "wrong_id":
                answer["id"] = 10_000
            case "error":
                answer = {"jsonrpc": "2.0", "id": answer["id"], "error": {"code": -32602, "message": "Unknown tool"}}
            case "status_500":
                return web.Response(status=500, text="Internal Server Error")
            case "status_400":
                return json_response({"error": "bad"}, 400)
            case "cut":
                sever(request)
                return web.Response()
            case "huge":
                return web.Response(body=b" " * (5 << 20), content_type="application/json")
            case _:
                pass
        if self.mode.answers == "json" and bad not in ("stall", "half"):
            response = json_response(answer)
            response.headers.update(headers)
            return response
        return await self._as_events(request, bad, answer, headers)

    async def _as_events(
        self, request: web.Request, bad: Bad, answer: dict[str, Any], headers: dict[str, str]
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
        await stream.prepare(request)
        await stream.write(b": hello\n\nid: 1\ndata: \n\n")
        await stream.write(_event({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}))
        if bad == "stall":
            await forever()
        data = _event(answer)
        if bad == "half":
            await stream.write(data[: len(data) // 2])
            sever(request)
            return stream
        if answer["id"] and self.mode.sessions:
            await stream.write(_event({"jsonrpc": "2.0", "id": "ping-1", "method": "ping"}))
            await stream.write(
                _event({"jsonrpc": "2.0", "id": "ask-1", "method": "sampling/createMessage", "params": {}})
            )
        for at in range(0, len(data), 1 << 16):
            await stream.write(data[at : at + (1 << 16)])
        await stream.write_eof()
        return stream

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request, "GET"):
            return refused
        if not self.mode.listens:
            return web.Response(status=405)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        self.listeners.add(stream)
        self._listening.set()
        try:
            await forever()
        finally:
            self.listeners.discard(stream)
        return stream

    async def _end(self, request: web.Request) -> web.Response:
        self.sessions.discard(request.headers.get("Mcp-Session-Id", ""))
        self.methods.append("DELETE")
        return web.Response()

    async def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            return {
                "result": {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {"listChanged": True}} if self.mode.capable else {},
                    "serverInfo": {"name": "fake", "version": "1"},
                }
            }
        if method == "tools/list":
            return {"result": self._page(int(params.get("cursor", "0")))}
        if method == "tools/call":
            return await self._called(params["name"], params.get("arguments") or {})
        return {"error": {"code": -32601, "message": "Method not found"}}

    def _page(self, at: int) -> dict[str, Any]:
        tools = [{"name": name, **tool} for name, tool in self.mode.tools.items()]
        size = self.mode.page or len(tools)
        page: dict[str, Any] = {"tools": tools[at : at + size]}
        if at + size < len(tools):
            page["nextCursor"] = str(at + size)
        return page

    async def _called(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((name, arguments))
        match name:
            case "slow":
                await asyncio.sleep(60)
            case "big":
                return {"result": {"content": [{"type": "text", "text": "x" * (1 << 20)}]}}
            case "picture":
                return {
                    "result": {
                        "content": [
                            {"type": "image", "mimeType": "image/png", "data": "AAAA"},
                            {"type": "resource", "resource": {"uri": "file:///a", "text": "words"}},
                            {"type": "resource_link", "uri": "file:///b", "name": "b"},
                            {"type": "of the future"},
                        ]
                    }
                }
            case "structured":
                return {"result": {"content": [], "structuredContent": {"n": 1}}}
            case "failing":
                return {"result": {"content": [{"type": "text", "text": "no"}], "isError": True}}
            case _:
                pass
        return {"result": {"content": [{"type": "text", "text": str(arguments.get("text", "done"))}], "isError": False}}


def _event(message: object) -> bytes:
    return b"event: message\r\ndata: " + msgspec.json.encode(message) + b"\r\n\r\n"


def main() -> None:
    """Serve until told to stop."""
    parser = make_parser("Fake server of tools (MCP)")
    parser.add_argument("--token")
    options = parser.parse_args()
    serve(FakeMcp(options.token, mode=read_mode(options, McpMode), port=options.port))


if __name__ == "__main__":
    main()
