"""The servers under the fakes: streams, records, control from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .faults import Fault
from .python_bridges import BridgesMode, FakeBridges
from .streams import Outcome

GENERATE = "/api/llm/generate"
ASK = {"prompt": "un deux trois quatre", "stream": True}
Client = aiohttp.ClientSession


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    async with FakeBridges(mode=BridgesMode(shape="ndjson")) as server:
        yield server


async def send(client: Client, server: FakeBridges, body: object = ASK) -> tuple[int, str, bytes]:
    async with client.post(server.url + GENERATE, json=body) as response:
        return response.status, response.headers.get("Content-Type", ""), await response.read()


async def lines(client: Client, server: FakeBridges) -> list[dict[str, Any]]:
    _, _, body = await send(client, server)
    return [json.loads(line) for line in body.splitlines()]


# Streams


async def test_clean_stream(bridges: FakeBridges, client: Client) -> None:
    """A stream is a line for each word and one with the counts."""
    events = await lines(client, bridges)
    assert "".join(event["text"] for event in events[:-1]) == "You said: un deux trois quatre"
    assert len(events) == 7
    assert events[-1] == {
        "done": True,
        "model": "mistral:latest",
        "tokens_generated": 6,
        "tokens_prompt": 4,
        "duration_ms": 25.5,
    }
    assert (bridges.streams[-1].outcome, bridges.streams[-1].deltas_sent) == ("served", 6)


@pytest.mark.parametrize("cut", ["close", "reset", "end"])
async def test_cut_stream(bridges: FakeBridges, client: Client, cut: str) -> None:
    """A cut after two deltas breaks the message, or ends it cleanly without a terminator."""
    bridges.mode = BridgesMode(shape="ndjson", cut_after=2, cut=cut)  # type: ignore[arg-type]
    expected = {"close": aiohttp.ClientPayloadError, "reset": aiohttp.ClientError}.get(cut)
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        assert [event["text"] for event in await lines(client, bridges)] == ["You", " said:"]
    assert (bridges.streams[-1].outcome, bridges.streams[-1].deltas_sent) == ("cut", 2)


async def test_no_done_and_no_counts(bridges: FakeBridges, client: Client) -> None:
    """The terminator can be missing, or its counts."""
    bridges.mode = BridgesMode(shape="ndjson", omit_done=True)
    assert all("done" not in event for event in await lines(client, bridges))
    bridges.mode = BridgesMode(shape="ndjson", omit_counts=True)
    assert (await lines(client, bridges))[-1] == {"done": True, "model": "mistral:latest"}


async def test_error_in_the_middle(bridges: FakeBridges, client: Client) -> None:
    """An error line ends the stream after what was said before."""
    bridges.mode = BridgesMode(shape="ndjson", error_after=1, error_message="out of memory")
    assert await lines(client, bridges) == [{"text": "You"}, {"error": "out of memory"}]


async def test_nonsense_and_huge_lines(bridges: FakeBridges, client: Client) -> None:
    """A line between two deltas is not JSON, or long."""
    bridges.mode = BridgesMode(shape="ndjson", nonsense_after=1)
    _, _, body = await send(client, bridges)
    assert body.splitlines()[1] == b"{nonsense"
    bridges.mode = BridgesMode(shape="ndjson", huge_line_after=1, huge_line_bytes=300_000)
    assert len((await lines(client, bridges))[1]["text"]) == 300_000


@pytest.mark.parametrize("shape", ["ndjson", "sse"])
async def test_split_characters(bridges: FakeBridges, client: Client, shape: str) -> None:
    """Network chunks end inside characters, and the whole is the same."""
    text = "déjà vu 🙂 cœur"
    bridges.mode = BridgesMode(shape=shape, answer=text, piece_bytes=1)  # type: ignore[arg-type]
    async with client.post(bridges.url + GENERATE, json=ASK) as response:
        pieces = [piece async for piece, _ in response.content.iter_chunks()]
    whole = b"".join(pieces).decode()
    payloads = [json.loads(line.removeprefix("data: ")) for line in whole.splitlines() if line]
    assert "".join(event.get("text", "") for event in payloads) == text
    assert max(map(len, pieces)) == 1
    assert len("🙂".encode()) == 4


async def test_joined_deltas(bridges: FakeBridges, client: Client) -> None:
    """Several lines may come in one network chunk, the last one with the terminator; a wait sends what is there."""

    async def joined(mode: BridgesMode) -> list[int]:
        bridges.mode = mode
        async with client.post(bridges.url + GENERATE, json=ASK) as response:
            return [piece.count(b"\n") async for piece, _ in response.content.iter_chunks()]

    assert await joined(BridgesMode(shape="ndjson", answer="a b c d e", join_deltas=2)) == [2, 2, 2]
    bridges.gate.release()
    assert await joined(BridgesMode(shape="ndjson", answer="a b c d e", join_deltas=9, hold_after=3)) == [3, 1, 1, 1]


async def test_event_stream_with_pings(bridges: FakeBridges, client: Client) -> None:
    """Events may be preceded by comments and end their lines with CR LF."""
    bridges.mode = BridgesMode(shape="sse", answer="oui", pings=2, line_ending="\r\n")
    _, content_type, body = await send(client, bridges)
    assert content_type == "text/event-stream"
    assert body.startswith(b': ping\r\n\r\n: ping\r\n\r\ndata: {"text":"oui"}\r\n\r\ndata: {"done":true')


async def test_gate(bridges: FakeBridges, client: Client) -> None:
    """The gate holds a stream at its place, lets single deltas pass, and opens."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    async with client.post(bridges.url + GENERATE, json=ASK) as response:
        assert await response.content.readline() == b'{"text":"You"}\n'
        await bridges.gate.reached()
        assert bridges.streams[-1].deltas_sent == 1
        bridges.gate.step()
        assert await response.content.readline() == b'{"text":" said:"}\n'
        await bridges.gate.reached()
        assert (bridges.streams[-1].deltas_sent, bridges.open_streams) == (2, 1)
        bridges.gate.release()
        assert (await response.read()).count(b"\n") == 5
    assert bridges.gate.arrivals == 6


async def test_permits_in_advance(bridges: FakeBridges, client: Client) -> None:
    """What the gate let pass beforehand is not held, and no more than that."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    bridges.gate.step(2)
    async with client.post(bridges.url + GENERATE, json=ASK):
        await bridges.gate.reached()
        assert bridges.streams[-1].deltas_sent == 3


@pytest.mark.parametrize("mode", [BridgesMode(stall_after=2), BridgesMode(hold_after=2), BridgesMode(delta_delay_s=9)])
async def test_leaving_a_silent_stream_is_noticed(bridges: FakeBridges, client: Client, mode: BridgesMode) -> None:
    """The client's leaving is noticed within milliseconds even while nothing is written."""
    bridges.mode = BridgesMode(
        shape="ndjson", stall_after=mode.stall_after, hold_after=mode.hold_after, delta_delay_s=mode.delta_delay_s
    )
    response = await client.post(bridges.url + GENERATE, json=ASK)
    await response.content.readline()
    assert (bridges.open_streams, bridges.last_stream_closed_at) == (1, None)
    response.close()
    left_at = time.monotonic()
    noticed_at = await bridges.stream_closed(1)
    assert -0.01 < noticed_at - left_at < 0.5
    assert (bridges.open_streams, bridges.last_stream_closed_at) == (0, noticed_at)


async def test_leaving_a_busy_stream_is_noticed(bridges: FakeBridges, client: Client) -> None:
    """A client that stops reading and leaves ends the stream, although the buffers were full."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("x" * 60_000,) * 2000)
    response = await client.post(bridges.url + GENERATE, json=ASK)
    await response.content.readline()
    await asyncio.sleep(0.05)
    assert bridges.streams[-1].deltas_sent < 2000
    response.close()
    await bridges.stream_closed(1)


async def test_stream_closed_needs_a_client_that_left(bridges: FakeBridges, client: Client) -> None:
    """A stream that was served to its end was not left, and without one there is nothing to wait for."""
    with pytest.raises(TimeoutError):
        await bridges.stream_closed(0.05)
    await send(client, bridges)
    with pytest.raises(AssertionError, match="served"):
        await bridges.stream_closed(1)


@pytest.mark.parametrize(("action", "outcome"), [("drop", "cut"), ("stop", "stopped")])
async def test_server_ends_an_open_stream(client: Client, action: str, outcome: Outcome) -> None:
    """Dropping connections or stopping ends the open streams, and tells that from a client's leaving."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson", stall_after=1)) as server:
        response = await client.post(server.url + GENERATE, json=ASK)
        await response.content.readline()
        if action == "drop":
            server.drop_connections()
            await server.streams[-1].wait_ended(1)
    assert server.streams[-1].outcome == outcome
    response.close()


# Records and control


async def test_away_and_back(bridges: FakeBridges, client: Client) -> None:
    """Away, connections are dropped and refused; back, it answers on the same port."""
    await send(client, bridges)
    assert bridges.open_connections == 1
    port = bridges.port
    await bridges.go_away()
    assert bridges.open_connections == 0
    with pytest.raises(aiohttp.ClientConnectorError):
        await send(client, bridges)
    await bridges.come_back()
    assert (bridges.port, (await send(client, bridges))[0]) == (port, 200)


async def test_recorded_requests(bridges: FakeBridges, client: Client) -> None:
    """A request is kept as it came."""
    before = time.monotonic()
    async with client.post(bridges.url + GENERATE + "?a=1", json=ASK, headers={"X-Request-ID": "r1"}):
        pass
    recorded = bridges.requests[-1]
    assert (recorded.method, recorded.path, recorded.query, recorded.json) == ("POST", GENERATE, "a=1", ASK)
    assert recorded.headers["x-request-id"] == "r1"
    assert before <= recorded.received_at <= time.monotonic()
    bridges.forget()
    assert (bridges.requests, bridges.streams) == ([], [])


async def test_concurrent_streams_are_counted(bridges: FakeBridges, client: Client) -> None:
    """Open streams are counted while they are open, and the peak stays."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=0)
    calls = [asyncio.create_task(send(client, bridges)) for _ in range(20)]
    await bridges.gate.reached(20)
    assert (bridges.open_streams, bridges.open_connections) == (20, 20)
    bridges.gate.release()
    await asyncio.gather(*calls)
    assert (bridges.open_streams, bridges.peak_streams) == (0, 20)


async def test_control_in_process(bridges: FakeBridges, client: Client) -> None:
    """POST replaces the mode, PATCH changes it, and what is unknown is refused."""
    control = bridges.url + "/_control"
    async with client.post(control, json={"shape": "sse", "faults": {GENERATE: {"kind": "hang"}}}) as response:
        assert response.status == 200
    assert bridges.mode == BridgesMode(shape="sse", faults={GENERATE: Fault("hang")})
    async with client.patch(control, json={"answer": "oui"}) as response:
        assert (await response.json())["answer"] == "oui"
    assert bridges.mode.shape == "sse"
    async with client.post(control, json={"no_such_field": 1}) as response:
        assert response.status == 400
    async with client.post(control, json={}):
        assert bridges.mode == BridgesMode()
    async with client.post(control + "/dance") as response:
        assert response.status == 404


@pytest.mark.parametrize("name", ["python_bridges", "openai_compatible", "audio_engine"])
async def test_own_process(client: Client, name: str) -> None:
    """Each fake runs as a process, takes its mode from outside, goes away, comes back and stops when told to."""
    arguments = ["-m", f"tests.fakes.{name}", "--port", "0", "--mode", '{"faults": {"/health": {"status": 503}}}']
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=root, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = (await asyncio.wait_for(process.stdout.readline(), 10)).decode().strip()
        assert await status_of(client, url) == 503
        async with client.post(url + "/_control", json={"faults": {"/health": {"status": 429}}}):
            pass
        assert await status_of(client, url) == 429
        async with client.post(url + "/_control", json={}):
            assert await status_of(client, url) == 200
        async with client.post(url + "/_control/away?n=1"):
            pass
        await asyncio.sleep(0.3)
        assert await status_of(client, url) is None
        while (status := await status_of(client, url)) is None:  # noqa: ASYNC110  # it is another process
            await asyncio.sleep(0.05)
        assert status == 200
        async with client.get(url + "/_state") as response:
            state = await response.json()
        assert (state["requests_seen"]["/health"], state["open_streams"]) == (4, 0)
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 5) == 0


async def status_of(client: Client, url: str) -> int | None:
    try:
        async with client.get(url + "/health") as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return None
