"""The public structs of tools: what a client offers, what it is asked to do, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from jarvis_core.errors import InvalidRequest
from jarvis_core.models import Tool
from jarvis_core.turns.log import Turn

PARAMETERS_LIMIT_BYTES = 64 << 10
"""Of one tool's schema, as JSON."""
ToolName = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9_-]{1,64}$")]


class ToolBody(Struct, frozen=True, omit_defaults=True):
    """A function of the client's that the assistant may have called; nothing is run here."""

    name: ToolName
    description: Annotated[str, Meta(max_length=4_096)] | None = None
    """What it does, and when it is to be called."""
    parameters: dict[str, Any] | None = None
    """The JSON Schema of its arguments."""
    type: Literal["function"] = "function"
    strict: bool | None = None
    """As OpenAI has it; arguments are always held against the schema."""


class ChosenFunction(Struct, frozen=True, tag_field="type", tag="function"):
    """The one function that is to be called."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | ChosenFunction


class ToolCallBody(Struct, frozen=True, omit_defaults=True):
    """A call that waits for the client."""

    call_id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""
    server: str | UnsetType = UNSET
    """Whose tool it is, where the client is asked to allow the call."""


class OutputBody(Struct, frozen=True):
    """What came of a call."""

    call_id: Annotated[str, Meta(max_length=64)]
    output: Annotated[str, Meta(max_length=200_000)]
    """Any text, such as JSON; what is over 16 KiB is left out."""


class OutputsRequest(Struct, frozen=True):
    """The outputs of all calls that wait for the client; the turn goes on."""

    outputs: Annotated[list[OutputBody], Meta(min_length=1, max_length=128)]
    stream: bool = False
    """Answer with server-sent events."""


class ApproveRequest(Struct, frozen=True):
    """Whether the calls that wait for it may be made; the turn goes on either way."""

    approve: bool
    """Whether they may be made."""
    reason: Annotated[str, Meta(max_length=1_000)] | None = None
    """Told to the model where they may not."""


def own_tools(
    bodies: list[ToolBody] | None, choice: ToolChoice | None, path: str = "$"
) -> tuple[list[Tool] | UnsetType, str | UnsetType]:
    """Return the client's tools, at *path*, and its choice among them; raises ``InvalidRequest`` that names what is wrong."""
    tools: list[Tool] = []
    for place, body in enumerate(bodies or ()):
        parameters = msgspec.json.encode({"type": "object"} if body.parameters is None else body.parameters)
        if len(parameters) > PARAMETERS_LIMIT_BYTES:
            rule = f"must have at most {PARAMETERS_LIMIT_BYTES} bytes"
            raise InvalidRequest.field(f"{path}.tools[{place}].parameters", rule)
        if any(tool.name == body.name for tool in tools):
            raise InvalidRequest.field(f"{path}.tools[{place}].name", "is another tool's, too")
        tools.append(Tool(body.name, (body.description or "").replace("\0", ""), msgspec.Raw(parameters)))
    if choice is None:
        return (tools if bodies else UNSET), UNSET
    if isinstance(choice, str):
        return (tools if bodies else UNSET), choice
    if all(tool.name != choice.name for tool in tools):
        raise InvalidRequest.field(f"{path}.tool_choice.name", "is none of the tools'")
    return tools, choice.name


def waiting_calls(turn: Turn) -> list[ToolCallBody] | UnsetType:
    """Return the calls of *turn* that wait for its client."""
    calls = [
        ToolCallBody(call.call_id, call.name, call.arguments, call.server or UNSET)
        for call in turn.calls
        if call.state in ("waiting", "asked")
    ]
    return calls or UNSET
