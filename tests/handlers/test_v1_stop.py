"""A stop of the server in the middle of what is passed on from the model."""

from __future__ import annotations

import asyncio

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import MakeServer, client_of


async def test_completion_that_a_stop_ends(make_server: MakeServer, bridges: FakeBridges) -> None:
    """A stream of chat completions that a stop cuts off tells of an error, and not of a good end."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
    server = await asyncio.to_thread(make_server, DRAIN_TIMEOUT_S="0.2")
    body = {"model": "jarvis", "messages": [{"role": "user", "content": "one two three four"}], "stream": True}
    async with client_of(server) as client, client.post("/v1/chat/completions", json=body) as response:
        read = b""
        while b"said" not in read:
            read += await response.content.readany()
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        rest = await response.content.read()
        assert b'"finish_reason":"' not in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert b'{"error":{"message":"The server is stopping."' in rest
        assert await stopping == 0
    assert bridges.open_streams == 0
