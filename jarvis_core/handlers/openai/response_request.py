"""A request for a response: what it may say, and what it means for a turn or for the model alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import decode, text_field
from jarvis_core.handlers.openai.chat_request import SentMessage
from jarvis_core.handlers.tool_wire import ToolBody, ToolChoice, own_tools
from jarvis_core.models import Tool, ToolCall, Utterance

CONTENT_LIMIT_CHARS = 100_000
"""Of the user's newest message."""
OWN = frozenset(
    {
        *(
            "model",
            "input",
            "instructions",
            "previous_response_id",
            "conversation",
            "store",
            "stream",
            "stream_options",
        ),
        *("temperature", "max_output_tokens", "metadata", "user", "text", "tools", "tool_choice", "top_p"),
        *("parallel_tool_calls", "include", "truncation", "safety_identifier", "prompt_cache_key", "reasoning"),
    }
)
"""Fields that mean something here, or whose absence changes nothing of an answer."""
OF_THE_MODEL = ("top_p", "reasoning")
"""Those that a turn does not know."""


class ContentPart(Struct, frozen=True):
    """A part of a message."""

    type: str
    text: str = ""
    refusal: str = ""


class InputItem(Struct, frozen=True):
    """A message, a call that the model has asked for, or what came of it; an easy message has no type."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] = "user"
    content: str | list[ContentPart] = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[ContentPart] = ""


class TextOptions(Struct, frozen=True):
    """How the text is to be written."""

    format: dict[str, Any] | None = None


class ConversationParam(Struct, frozen=True):
    """A conversation, as an object."""

    id: str


class ResponseRequest(Struct, frozen=True):
    """``POST /v1/responses``."""

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=10_000)]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationParam | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: float | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    user: str | None = None


class Said(Struct):
    """What the input says, in the words of a turn."""

    content: str
    """The user's newest message."""
    before: list[Utterance]
    """What the input has before it."""
    instructions: list[str]
    outputs: dict[str, str] = {}
    """Of the client's tools, by the call's id, where the input ends with them: a turn that waits for them is to go on."""


_decoder = msgspec.json.Decoder(ResponseRequest)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
_NEUTRAL = (b"null", b"[]", b"false", b"{}")


def read(body: bytes) -> tuple[ResponseRequest, dict[str, Raw]]:
    """Return the request in *body*, and all its fields; raises ``InvalidRequest``."""
    return decode(_decoder, body), _fields_decoder.decode(body)


def is_plain_text(request: ResponseRequest) -> bool:
    """Whether the answer may be any text."""
    if request.text is None or request.text.format is None:
        return True
    return bool(request.text.format.get("type", "text") == "text")


def unknown_fields(fields: dict[str, Raw], *, stored: bool) -> list[str]:
    """Return the fields that have no effect on a response that is *stored*, or is not."""
    names = [name for name, raw in fields.items() if name not in OWN and bytes(raw) not in _NEUTRAL]
    if stored:
        names += [name for name in OF_THE_MODEL if name in fields and bytes(fields[name]) not in _NEUTRAL]
    return names


def said_in(request: ResponseRequest) -> Said:
    """Return what the input says; raises ``InvalidRequest`` for what a turn does not know."""
    instructions = [request.instructions] if request.instructions else []
    if isinstance(request.input, str):
        return Said(_content("$.input", request.input), [], instructions)
    messages: list[Utterance] = []
    outputs: dict[str, str] = {}
    last = "$.input"
    for number, item in enumerate(request.input):
        path = f"$.input[{number}]"
        match item.type:
            case "reasoning":
                pass
            case "message":
                text = _text(f"{path}.content", item.content)
                if item.role in ("system", "developer"):
                    instructions.append(text)
                else:
                    messages.append(Utterance("user" if item.role == "user" else "assistant", text))
                    last = f"{path}.content"
                    outputs = {}
            case "function_call":
                messages.append(Utterance("assistant", "", (ToolCall(item.call_id, item.name, item.arguments),)))
            case "function_call_output":
                text = _text(f"{path}.output", item.output)
                messages.append(Utterance("tool", text, call_id=item.call_id))
                outputs[item.call_id] = text
            case _:
                raise InvalidRequest.field(f"{path}.type", f"{item.type[:40]!r} is nothing that is understood here")
    if outputs:
        return Said("", messages, instructions, outputs)
    if not messages or messages[-1].role != "user":
        raise InvalidRequest.field("$.input", "must end with a message of the user, or with the outputs of calls")
    return Said(_content(last, messages.pop().content), messages, instructions)


def tools_in(request: ResponseRequest) -> tuple[list[Tool] | UnsetType, str | UnsetType]:
    """Return the client's tools and its choice among them, for a turn; raises ``InvalidRequest``."""
    for number, tool in enumerate(request.tools or ()):
        _check_kind(number, tool)
    try:
        bodies = msgspec.convert(request.tools, list[ToolBody] | None)
        choice = msgspec.convert(request.tool_choice, ToolChoice | None)
    except msgspec.ValidationError as exc:
        raise InvalidRequest.field("$.tools", str(exc)) from exc
    return own_tools(bodies, choice)


def sent_in(request: ResponseRequest) -> tuple[list[str], list[SentMessage]]:
    """Return the input as instructions, and chat messages; raises ``InvalidRequest`` for what is no text."""
    instructions = [request.instructions] if request.instructions else []
    if isinstance(request.input, str):
        return instructions, [SentMessage("user", text_field("$.input", request.input))]
    messages: list[SentMessage] = []
    for number, item in enumerate(request.input):
        path = f"$.input[{number}]"
        match item.type:
            case "reasoning":
                pass
            case "message":
                text = _text(f"{path}.content", item.content)
                if item.role in ("system", "developer") and not messages:
                    instructions.append(text)
                else:
                    messages.append(SentMessage("system" if item.role == "developer" else item.role, text))
            case "function_call":
                call = {
                    "id": item.call_id,
                    "type": "function",
                    "function": {"name": item.name, "arguments": item.arguments},
                }
                # Calls that were asked for together are one message of the model's.
                if not messages or messages[-1].role != "assistant" or not isinstance(messages[-1].tool_calls, list):
                    messages.append(SentMessage("assistant", None, tool_calls=[]))
                calls = messages[-1].tool_calls
                if isinstance(calls, list):
                    calls.append(Raw(_encode(call)))
            case "function_call_output":
                text = _text(f"{path}.output", item.output)
                messages.append(SentMessage("tool", text, tool_call_id=item.call_id))
            case _:
                raise InvalidRequest.field(f"{path}.type", f"{item.type[:40]!r} is nothing that is understood here")
    if not messages:
        raise InvalidRequest.field("$.input", "must have more than instructions")
    return instructions, messages


def parameters_of(request: ResponseRequest, fields: dict[str, Raw]) -> tuple[dict[str, Raw], frozenset[str]]:
    """Return what else is asked for in the words of chat completions, and what of it is needed; raises ``InvalidRequest``."""
    parameters: dict[str, Raw] = {}
    for name in ("top_p", "parallel_tool_calls", "user"):
        if name in fields and bytes(fields[name]) != b"null":
            parameters[name] = fields[name]
    if request.reasoning and isinstance(request.reasoning.get("effort"), str):
        parameters["reasoning_effort"] = Raw(_encode(request.reasoning["effort"]))
    needed = frozenset[str]()
    if request.text is not None and request.text.format is not None and not is_plain_text(request):
        wanted = request.text.format
        if wanted["type"] == "json_schema":
            schema = {name: value for name, value in wanted.items() if name != "type"}
            wanted = {"type": "json_schema", "json_schema": schema}
        parameters["response_format"] = Raw(_encode(wanted))
        needed = frozenset({"response_format"})
    if request.tools:
        parameters["tools"] = Raw(_encode([_tool(number, tool) for number, tool in enumerate(request.tools)]))
        if isinstance(request.tool_choice, str):
            parameters["tool_choice"] = Raw(_encode(request.tool_choice))
        elif request.tool_choice is not None:
            chosen = {"type": "function", "function": {"name": request.tool_choice.get("name")}}
            parameters["tool_choice"] = Raw(_encode(chosen))
    return parameters, needed


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as chat completions have it."""
    _check_kind(number, tool)
    kept = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in kept if tool.get(name) is not None}}


def _check_kind(number: int, tool: dict[str, Any]) -> None:
    if tool.get("type") != "function":
        rule = "must be function: other tools are of OpenAI's own service"
        raise InvalidRequest.field(f"$.tools[{number}].type", rule)


def _text(path: str, content: str | list[ContentPart]) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            raise InvalidRequest.field(
                f"{path}[{place}].type", f"must be text: {part.type[:40]!r} is nothing that is understood here"
            )
        texts.append(part.text or part.refusal)
    return "".join(texts)


def _content(path: str, text: str) -> str:
    if len(text_field(path, text)) > CONTENT_LIMIT_CHARS:
        raise InvalidRequest.field(path, f"must have at most {CONTENT_LIMIT_CHARS} characters")
    return text
