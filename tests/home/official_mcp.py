"""
A server of tools as somebody else would write one, with the official `mcp` package: ``python official_mcp.py PORT [json] [stateless]``.
"""

import asyncio
import sys
from typing import Any

from mcp.server import MCPServer  # type: ignore[import-not-found, unused-ignore]
from mcp.server.mcpserver import Context  # type: ignore[import-not-found, unused-ignore]
from mcp.types import ToolAnnotations  # type: ignore[import-not-found, unused-ignore]

server: Any = MCPServer("official")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))  # type: ignore[untyped-decorator, unused-ignore]
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()  # type: ignore[untyped-decorator, unused-ignore]
async def slow(seconds: float, ctx: Context) -> str:
    """Take a while, and tell of it."""
    await ctx.report_progress(0, 1)
    await asyncio.sleep(seconds)
    return "done"


@server.tool()  # type: ignore[untyped-decorator, unused-ignore]
def fail() -> str:
    """Fail."""
    raise ValueError("it failed")


@server.tool()  # type: ignore[untyped-decorator, unused-ignore]
async def learn(name: str, ctx: Context) -> str:
    """Have one tool more from now on."""
    server.add_tool(lambda: name, name=name, description="What was learnt.")
    await ctx.notify_tools_changed()
    await ctx.session.send_tool_list_changed()
    return "learnt"


if __name__ == "__main__":
    server.run(
        "streamable-http",
        port=int(sys.argv[1]),
        json_response="json" in sys.argv,
        stateless_http="stateless" in sys.argv,
    )
