"""Chat as server-sent events: following, coming back, leaving and not reading."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import DELTA, Event, iterate_events, read_events, text_of
from tests.handlers.rest.api import Api, created
from tests.system.server import Server

WORDS = ("Il ", "était ", "une ", "fois 😀", ".")
TEXT = "".join(WORDS)
OPENING = ["response.created", "response.output_item.added", "response.content_part.added"]
CLOSING = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]


def check(events: Sequence[Event], text: str, status: str) -> None:
    """Hold a whole stream against the promises: order, ids, one end, deltas that add up to every ``done``."""
    names = [event.name for event in events]
    assert names == [*OPENING, *[DELTA] * (len(names) - 7), *CLOSING]
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))
    for event in events:
        assert event.data["type"] == event.name
        assert event.data["seq"] == event.id
        assert event.data.get("response_id", events[0].data["response"]["id"]) == events[0].data["response"]["id"]
    assert len({event.data["event_id"] for event in events}) == len(events)
    assert text_of(events) == text
    text_done, part_done, item_done, done = (event.data for event in events[-4:])
    assert text_done["text"] == part_done["part"]["text"] == item_done["item"]["content"][0]["text"] == text
    response = done["response"]
    assert (response["status"], response["output"]) == (status, [item_done["item"]])
    assert events[0].data["response"]["status"] == "in_progress"


@pytest.mark.parametrize("by", ["field", "header", "path"])
@pytest.mark.parametrize("shape", ["json", "ndjson", "sse"])
async def test_stream(api: Api, bridges: FakeBridges, shape: Any, by: str) -> None:
    """Asked for by field, by Accept or by path, an answer comes as events in order that add up to what is stored."""
    bridges.mode = BridgesMode(shape=shape, answer=TEXT, deltas=WORDS)
    headers = {"Accept": "text/event-stream" if by == "header" else "application/json"}
    body = {"content": "raconte", "stream": by == "field"}
    path = "/api/chat/stream" if by == "path" else "/api/chat"
    async with api.session.post(path, json=body, headers=headers) as response:
        assert response.headers["Cache-Control"] == "no-store"
        events = await read_events(response)
    document = await api.document()
    for event in events:
        document.check_event("StreamEvent", event.data)
    check(events, TEXT, "completed")
    first, last = events[0].data["response"], events[-1].data["response"]
    assert last["usage"]["output_tokens"] == 5
    assert last["model"] == "mistral:latest"
    messages = (await api.get(f"/api/chat/history/{first['conversation_id']}")).json["messages"]
    assert [(message["id"], message["content"]) for message in messages] == [
        (first["user_message_id"], "raconte"),
        (first["id"], TEXT),
    ]


async def test_first_word_comes_before_the_last_is_said(api: Api, bridges: FakeBridges) -> None:
    """Every word reaches the client while the model is still holding back the next one."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, hold_after=1)
    async with api.stream("raconte") as response:
        events: list[Event] = []
        for said in range(1, len(WORDS) + 1):
            text = "".join(WORDS[:said])
            events += await read_events(response, until=text[len(text_of(events)) :])
            assert text_of(events) == text
            assert bridges.streams[-1].deltas_sent == said
            bridges.gate.step()
        bridges.gate.release()
        events += await read_events(response)
    check(events, TEXT, "completed")


@pytest.mark.parametrize("by_header", [False, True])
async def test_come_back(api: Api, bridges: FakeBridges, by_header: bool) -> None:
    """A client that comes back goes on after any event, or any character, that it names, running or ended."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, hold_after=2)

    def place(after: int) -> dict[str, Any]:
        return {"headers": {"Last-Event-ID": str(after)}} if by_header else {"params": {"after": str(after)}}

    async with api.stream("raconte") as response:
        head = await read_events(response, until="Il était ")
        response_id = head[0].data["response"]["id"]
        following = asyncio.create_task(api.follow(response_id, **place(head[-1].id)))
        whole_task = asyncio.create_task(api.follow(response_id))
        await asyncio.sleep(0.05)
        bridges.gate.release()
        rest = await read_events(response)
    followed, whole = await following, await whole_task
    check([*head, *rest], TEXT, "completed")
    check([*head, *followed], TEXT, "completed")
    check(whole, TEXT, "completed")
    for after in range(whole[-1].id + 2):
        if by_header and after >= whole[-1].id:
            # There is nothing more to come, and a browser is to be told so.
            answer = await api.get(f"/api/chat/response/{response_id}/events", **place(after))
            assert answer.status == 204
            continue
        again = await api.follow(response_id, **place(after))
        # Three events lie before the text, so its n-th character has the number 3 + n.
        assert text_of(again) == TEXT[max(0, after - 3) :][: None if after < 3 + len(TEXT) else 0]
        assert all(event.id > after for event in again)
        # The first event of a replay knows more than that of a live stream: the model's name.
        assert [event for event in again if event.name not in (DELTA, "response.created")] == [
            event for event in whole if event.name not in (DELTA, "response.created") and event.id > after
        ]
        assert ("response.created" in [event.name for event in again]) == (after == 0)


async def test_header_wins_over_the_query(api: Api) -> None:
    """Last-Event-ID names the place where both it and ``after`` are there: a browser that comes back keeps its address."""
    response_id = (await api.say("x"))["id"]
    events = await api.follow(response_id, params={"after": "1"}, headers={"Last-Event-ID": "2"})
    assert events[0].id == 3


# How streams end


async def test_failed(api: Api, bridges: FakeBridges) -> None:
    """A turn that fails before its first word is a stream of two events, the second with the error."""
    bridges.mode = BridgesMode(shape="ndjson", error_200=True)
    async with api.stream("raconte") as response:
        events = await read_events(response)
    assert [event.name for event in events] == ["response.created", "response.done"]
    response_body = events[-1].data["response"]
    assert (response_body["status"], response_body["output"]) == ("failed", [])
    assert response_body["status_details"]["error"]["code"] == "bad_gateway"
    assert "Error: Ollama" not in response_body["status_details"]["error"]["message"]


@pytest.mark.parametrize("mode", [{"cut_after": 2}, {"cut_after": 2, "cut": "reset"}, {"error_after": 2}])
async def test_incomplete(api: Api, bridges: FakeBridges, mode: dict[str, Any]) -> None:
    """A stream that the neighbour loses ends in order, as incomplete, with what had come."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, **mode)
    async with api.stream("raconte") as response:
        events = await read_events(response)
    check(events, "Il était ", "incomplete")
    assert events[-1].data["response"]["status_details"]["reason"]


async def test_unknown_conversation(api: Api) -> None:
    """What is wrong before the turn begins is an error like any other, also where a stream was asked for."""
    answer = await api.post("/api/chat", {"content": "x", "stream": True, "conversation_id": "x"})
    assert answer.error == (404, "not_found")


async def test_cancelled(api: Api, bridges: FakeBridges) -> None:
    """Cancelling ends every reader's stream in order, as cancelled."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, hold_after=2)
    async with api.stream("raconte") as response:
        head = await read_events(response, until="Il était ")
        response_id = head[0].data["response"]["id"]
        follower = asyncio.create_task(api.follow(response_id))
        await asyncio.sleep(0.05)
        assert (await api.post(f"/api/chat/response/{response_id}/cancel")).json["status"] == "cancelled"
        rest = await read_events(response)
    check([*head, *rest], "Il était ", "cancelled")
    check(await follower, "Il était ", "cancelled")


# Leaving


async def wait_status(api: Api, response_id: str) -> Any:
    """Wait until a turn has ended and return its state."""
    async with asyncio.timeout(5):
        while (state := await api.state(response_id))["status"] == "running":  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)
    return state


async def test_reader_leaves(api: Api, bridges: FakeBridges) -> None:
    """The only reader's leaving cancels the turn: the model's connection is closed, and what it said is kept."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, hold_after=2)
    async with api.stream("raconte") as response:
        head = await read_events(response, until="Il était ")
    await bridges.stream_closed()
    state = await wait_status(api, head[0].data["response"]["id"])
    assert (state["status"], state["reason"], state["content"]) == ("cancelled", "client_left", "Il était ")
    assert (await api.history(state["conversation_id"]))[1] == ("assistant", "Il était ", "cancelled")


@pytest.mark.every_python
async def test_reader_leaves_before_the_first_word(api: Api, bridges: FakeBridges) -> None:
    """Leaving while the model is still silent closes its connection too."""
    bridges.mode = BridgesMode(shape="ndjson", faults={"/api/llm": Fault("hang")})
    async with api.stream("raconte") as response:
        response_id = (await created(response))["id"]
        await bridges.seen("/api/llm/generate")
    await bridges.stream_closed()
    assert (await wait_status(api, response_id))["status"] == "cancelled"


async def test_one_of_two_readers_leaves(api: Api, bridges: FakeBridges) -> None:
    """A turn goes on for as long as somebody follows it, whoever asked for it."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, hold_after=2)
    async with api.stream("raconte") as response:
        response_id = (await created(response))["id"]
        await bridges.gate.reached()
        path = f"/api/chat/response/{response_id}/events"
        async with api.session.get(path) as follower:
            await created(follower)
            response.close()
            await asyncio.sleep(0.1)
            bridges.gate.release()
            await read_events(follower)
    assert (await wait_status(api, response_id))["status"] == "completed"


async def test_follower_leaves(api: Api, bridges: FakeBridges) -> None:
    """A follower's leaving does not disturb the one who asked."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=WORDS, hold_after=2)
    async with api.stream("raconte") as response:
        head = await read_events(response, until="Il était ")
        path = f"/api/chat/response/{head[0].data['response']['id']}/events"
        async with api.session.get(path) as follower:
            await created(follower)
            follower.close()
        await asyncio.sleep(0.1)
        bridges.gate.release()
        rest = await read_events(response)
    check([*head, *rest], TEXT, "completed")


# Not reading


class StalledReader:
    """A client that sends a request and then reads nothing, behind buffers as small as the kernel allows."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._socket.connect(("127.0.0.1", port))

    def send(self, method: str, path: str, body: object = None) -> None:
        """Send a request."""
        content = b"" if body is None else msgspec.json.encode(body)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        )
        self._socket.sendall(head.encode() + b"\r\n\r\n" + content)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


async def test_reader_stalls(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """
    A reader that does not read holds up neither the model, nor others, nor the turn's other readers.

    The turn goes on to its end and is stored.
    """
    bridges.mode = BridgesMode(shape="ndjson", deltas=("x" * 1_000,) * 900, hold_after=0)
    conversation = (await api.post("/api/chat/conversation", {})).json["id"]
    reader = StalledReader(open_server[0].port)
    try:
        body = {"content": "long", "conversation_id": conversation, "stream": True, "max_tokens": 32_000}
        reader.send("POST", "/api/chat", body)
        await bridges.gate.reached()
        bridges.gate.release()
        await bridges.streams[-1].wait_ended(5)
        async with asyncio.timeout(1):
            assert (await api.get("/health")).status == 200
        async with asyncio.timeout(5):
            while len(messages := await api.messages(conversation)) < 2:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.02)
        assert len(text_of(await api.follow(messages[1]["id"]))) == 900_000
    finally:
        reader.close()
    assert bridges.streams[-1].outcome == "served"
    assert (len(messages[1]["content"]), messages[1]["status"]) == (900_000, "completed")


async def test_stalled_replays(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """Many readers of an ended turn that do not read cost the others nothing, and their leaving is no trouble."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=("y" * 1_000,) * 900)
    response_id = (await api.say("long", max_tokens=32_000))["id"]
    readers = [StalledReader(open_server[0].port) for _ in range(30)]
    try:
        for reader in readers:
            reader.send("GET", f"/api/chat/response/{response_id}/events")
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            assert (await api.get("/health")).status == 200
            assert len(text_of(await api.follow(response_id))) == 900_000
    finally:
        for reader in readers:
            reader.close()
    async with asyncio.timeout(2):
        assert (await api.get("/health")).status == 200


async def test_stalled_readers_fill_no_memory(api: Api, bridges: FakeBridges, open_server: tuple[Server, int]) -> None:
    """
    Readers that do not read cost at most what their answer is long: the text five times, as the events repeat it.

    The server's ``send`` does not wait for the client, so an answer that is not read is kept whole.
    """
    bridges.mode = BridgesMode(shape="ndjson", deltas=("z" * 1_000,) * 900)
    response_id = (await api.say("long", max_tokens=32_000))["id"]
    await api.follow(response_id)
    before_bytes = open_server[0].resident_bytes()
    readers = [StalledReader(open_server[0].port) for _ in range(40)]
    try:
        for reader in readers:
            reader.send("GET", f"/api/chat/response/{response_id}/events")
        await asyncio.sleep(1)
        assert open_server[0].resident_bytes() - before_bytes < len(readers) * 6 * 900_000
    finally:
        for reader in readers:
            reader.close()


async def test_slow_reader_gets_everything(api: Api, bridges: FakeBridges) -> None:
    """A reader that begins late gets the whole text, in fewer and longer pieces."""
    bridges.mode = BridgesMode(shape="ndjson", deltas=tuple(f"{n} " for n in range(2_000)))
    async with api.stream("compte", max_tokens=32_000) as response:
        response_id = (await created(response))["id"]
        await wait_status(api, response_id)
        events = [event async for event in iterate_events(response)]
    assert text_of(events) == "".join(f"{n} " for n in range(2_000))
    late = await api.follow(response_id)
    assert len([event for event in late if event.name == DELTA]) == 1
    check(late, text_of(events), "completed")
