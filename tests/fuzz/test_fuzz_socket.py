"""The WebSocket, with events that it knows, nearly knows and does not: the socket stays open, and every event is in its place."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from jarvis_core.handlers.realtime.wire import ClientEvent
from tests.fuzz.conftest import KEY, fuzzing
from tests.fuzz.schemas import ANYTHING, TEXTS, mutants, values
from tests.handlers.realtime_client import Tally
from tests.system.server import Server

WAIT_S = 15.0
(SCHEMA,), COMPONENTS = msgspec.json.schema_components([ClientEvent])
EVENTS = values(SCHEMA, COMPONENTS)
MESSAGE = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Bonjour"}]},
}
RESPOND, CANCEL = {"type": "response.create"}, {"type": "response.cancel"}
SPEAK = {"type": "session.update", "session": {"output_modalities": ["audio"]}}
APPEND = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(range(256)) * 40).decode()}
COMMIT, CLEAR = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}
PHRASES: list[list[dict[str, Any]]] = [
    [MESSAGE], [RESPOND], [CANCEL], [APPEND], [COMMIT], [CLEAR], [SPEAK],
    [MESSAGE, RESPOND], [SPEAK, MESSAGE, RESPOND], [MESSAGE, RESPOND, CANCEL], [APPEND, COMMIT], [APPEND, COMMIT, RESPOND],
]  # fmt: skip
"""Without them nothing that is made up would get as far as a response."""
DEEP = ["[" * 200_000, '{"type":' * 20_000, '{"type":"session.update","session":' * 10_000]


def write(event: Any) -> str:
    """Return *event* as a text frame may carry it."""
    return json.dumps(event).encode("utf-8", "replace").decode()


MADE_UP = st.one_of(
    EVENTS.map(write),
    mutants(EVENTS).map(write),
    ANYTHING.map(write),
    TEXTS.map(lambda text: text.encode("utf-8", "replace").decode()),
    st.sampled_from(DEEP),
    st.binary(max_size=1_000),
    st.integers(0, 20_000).map(bytes),
)
FRAMES = st.lists(
    st.one_of(st.sampled_from(PHRASES).map(lambda phrase: [*map(write, phrase)]), MADE_UP.map(lambda one: [one])),
    min_size=1,
    max_size=6,
).map(lambda parts: [frame for part in parts for frame in part])


SPOKEN = bytes(9_600)
COMMIT = {"type": "input_audio_buffer.commit"}
ASKED = write(
    {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    }
)
ANSWER = write({"type": "response.create"})
"""What leads to each of the events that are to be seen, whatever chance brings."""


def read_until_answered(socket: Connection, tally: Tally, event_id: str) -> None:
    """Read to the error that the client's event *event_id* causes."""
    while True:
        event = read(socket, tally)
        if event["type"] == "error" and event["error"]["event_id"] == event_id:
            return


def read(socket: Connection, tally: Tally) -> dict[str, Any]:
    """Read an event, which passes the checks of *tally* and tells of no defect."""
    event: dict[str, Any] = json.loads(socket.recv(timeout=WAIT_S))
    tally.take(event)
    assert event["type"] != "error" or event["error"]["code"] != "internal", event
    return event


def test_socket_stays_open(server: Server) -> None:
    """Whatever frames come, each is answered or refused, and the next one is still taken."""
    seen: set[str] = set()

    class Watched(Tally):
        def take(self, event: dict[str, Any]) -> None:
            super().take(event)
            seen.add(event["type"])

    @fuzzing(0.12, 120)
    @given(FRAMES)
    @example([write({"type": "session.update", "session": {"type": "realtime"}}), SPOKEN, write(COMMIT), ASKED, ANSWER])
    def talk(frames: list[str | bytes]) -> None:
        address = f"ws://127.0.0.1:{server.port}/ws?token={KEY}"
        with connect(address, proxy=None, compression=None, max_size=None, close_timeout=1) as socket:
            tally = Watched()
            try:
                for number, frame in enumerate(frames):
                    socket.send(frame)
                    socket.send(write({"type": "no such event", "event_id": f"fuzz-{number}"}))
                    read_until_answered(socket, tally, f"fuzz-{number}")
                while tally.active:
                    read(socket, tally)
            except ConnectionClosed as closed:
                raise AssertionError(f"the socket was closed: {closed}") from closed

    talk()
    assert {"session.updated", "response.done", "input_audio_buffer.committed", "error"} <= seen


def test_handshake(server: Server) -> None:
    """Whatever a handshake asks for, it is taken, or refused with an error like any other."""
    fields = st.sampled_from(["conversation_id", "resume", "after", "token", "model", "\0", "é"])
    outcomes: set[int] = set()

    @fuzzing(0.03, 60)
    @given(
        st.lists(st.tuples(fields, st.one_of(TEXTS, st.uuids().map(str), st.integers().map(str))), max_size=4),
        st.binary(),
    )
    def greet(query: list[tuple[str, str]], noise: bytes) -> None:
        pairs = [(name, value.encode("utf-8", "surrogatepass")) for name, value in query]
        address = f"ws://127.0.0.1:{server.port}/ws?{urlencode(pairs)}&{quote(noise, safe='%&=+;')}"
        headers = {"Authorization": f"Bearer {KEY}"}
        refused = None
        try:
            with connect(address, additional_headers=headers, proxy=None, close_timeout=1) as socket:
                assert json.loads(socket.recv(timeout=WAIT_S))["type"] == "session.created"
        except InvalidStatus as exc:
            refused = exc.response
        if refused is not None:
            assert refused.status_code in (400, 404)
            assert json.loads(refused.body or b"").keys() == {"error", "code", "details", "request_id"}
        outcomes.add(101 if refused is None else refused.status_code)

    greet()
    assert {101, 404} <= outcomes
