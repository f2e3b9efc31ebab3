"""Calls of tools as items and events, in the vocabulary of the OpenAI Realtime API; ``jarvis.tool`` is ours."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from jarvis_core.tools.calls import CallRecord
from jarvis_core.turns.log import CallEntry, CallStep, ToolNote, Turn

_encode = msgspec.json.Encoder().encode


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    """A call of a tool of the client's."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "in_progress"]
    object: Literal["realtime.item"] = "realtime.item"


class FunctionOutputItem(Struct, tag_field="type", tag="function_call_output"):
    """What a client told of a call."""

    id: str
    call_id: str
    output: str
    status: Literal["completed"] = "completed"
    object: Literal["realtime.item"] = "realtime.item"


class ApprovalRequestItem(Struct, tag_field="type", tag="mcp_approval_request"):
    """A call that the client is asked to allow."""

    id: str
    server_label: str
    name: str
    arguments: str
    object: Literal["realtime.item"] = "realtime.item"


class CallItemEvent(Struct):
    """``response.output_item.added`` and ``.done``."""

    type: str
    event_id: str
    seq: int
    response_id: str
    output_index: int
    item: FunctionCallItem | ApprovalRequestItem


class ArgumentsDeltaEvent(Struct):
    """``response.function_call_arguments.delta``: all of them."""

    event_id: str
    seq: int
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    delta: str
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"


class ArgumentsDoneEvent(Struct):
    """``response.function_call_arguments.done``."""

    event_id: str
    seq: int
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    name: str
    arguments: str
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"


class ToolEvent(Struct):
    """What a tool does that runs here: ours, for who asks for it."""

    response_id: str
    call_id: str
    server: str
    name: str
    state: Literal["started", "finished", "failed"]
    elapsed_ms: int | None
    type: Literal["jarvis.tool"] = "jarvis.tool"


NAMES = {
    CallStep.ADDED: "response.output_item.added",
    CallStep.ARGUMENTS: "response.function_call_arguments.delta",
    CallStep.ARGUMENTS_DONE: "response.function_call_arguments.done",
    CallStep.DONE: "response.output_item.done",
}


def call_item(call: CallRecord, *, done: bool = True) -> FunctionCallItem | ApprovalRequestItem:
    """Return *call* as an item, as it begins or as it is when it is *done*."""
    if call.asked:
        return ApprovalRequestItem(call.id, call.server, call.name, call.arguments)
    if not done:
        return FunctionCallItem(call.id, call.call_id, call.name, "", "in_progress")
    return FunctionCallItem(call.id, call.call_id, call.name, call.arguments, "completed")


def call_event(turn: Turn, entry: CallEntry, seq: int) -> bytes:
    """Return *entry* of the log of *turn* as the JSON of an event."""
    call, name, event_id = entry.call, NAMES[entry.step], f"event_{seq}"
    # The message stands before it where the turn had said something by then.
    index = entry.place + (call.text_at > 0)
    event: Struct
    match entry.step:
        case CallStep.ADDED | CallStep.DONE:
            item = call_item(call, done=entry.step is CallStep.DONE)
            event = CallItemEvent(name, event_id, seq, turn.id, index, item)
        case CallStep.ARGUMENTS:
            event = ArgumentsDeltaEvent(event_id, seq, turn.id, call.id, index, call.call_id, call.arguments)
        case CallStep.ARGUMENTS_DONE:
            event = ArgumentsDoneEvent(event_id, seq, turn.id, call.id, index, call.call_id, call.name, call.arguments)
    return _encode(event)


def note_event(turn: Turn, note: ToolNote) -> bytes:
    """Return *note* as the JSON of an event."""
    return _encode(ToolEvent(turn.id, note.call_id, note.server, note.name, note.state, note.elapsed_ms))
