"""A request for a chat completion: what it may say, and what the model is asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import decode
from jarvis_core.models import Completion, Prompt, Role, Tool, Utterance
from jarvis_core.settings import Llm

MAX_TOKENS_LIMIT = 32_000
"""What bounds an answer for which the client names no limit, from a model that it names by the model's own name."""
OWN = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "store", "logprobs", "top_logprobs", "audio"),
        *("max_tokens", "max_completion_tokens"),
    }
)
"""Fields that are not passed on as they are."""
SYSTEM = ("system", "developer")
"""Roles that mean the same; only newer models know the second."""
ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
"""What a model that knows of texts alone is told of."""
BETWEEN = "\n\n"


class StreamOptions(Struct, frozen=True):
    """Of a streamed answer."""

    include_usage: bool = False


class Part(Struct, frozen=True):
    """A part of a message."""

    type: str
    text: str = ""
    refusal: str = ""


class Message(Struct, frozen=True):
    """A message of the conversation, which the client keeps."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[Raw] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType = UNSET
    function_call: dict[str, Any] | UnsetType | None = UNSET


class OfferedFunction(Struct, frozen=True):
    """What of a function matters here."""

    name: str = ""


class OfferedTool(Struct, frozen=True):
    """A tool of the client's."""

    function: OfferedFunction = OfferedFunction()


class ChatCompletionRequest(Struct, frozen=True):
    """``POST /v1/chat/completions``; what else the body has is passed on to the model's server."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    store: bool | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    tools: list[OfferedTool] | None = None
    functions: list[OfferedFunction] | None = None


class SentMessage(Struct):
    """A message as every server takes it: its content is text."""

    role: str
    content: str | None
    name: str | UnsetType = UNSET
    tool_calls: list[Raw] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType = UNSET
    function_call: dict[str, Any] | UnsetType | None = UNSET


_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])
_kind_decoder = msgspec.json.Decoder(Part)
_encode = msgspec.json.Encoder().encode
_NULL = b"null"
_EMPTY = b"[]"


class Asked(Struct):
    """A request that was checked, before what the assistant remembers is added."""

    request: ChatCompletionRequest
    fields: dict[str, Raw]
    system: str
    """What the messages begin with."""
    messages: list[SentMessage]
    """The others."""

    @property
    def question(self) -> str:
        """What the user said last; empty where the user said nothing."""
        return question_in(self.messages)


def question_in(messages: Sequence[SentMessage]) -> str:
    """Return what the user said last; empty where the user said nothing."""
    return next((one.content for one in reversed(messages) if one.role == "user" and one.content), "")


def read(body: bytes) -> Asked:
    """Return the request in *body*; raises ``InvalidRequest`` for what cannot be had here."""
    request = decode(_decoder, body)
    if request.n not in (None, 1):
        raise InvalidRequest.field("$.n", "must be 1")
    fields = _fields_decoder.decode(body)
    for name in ("logprobs", "top_logprobs"):
        if name in fields and bytes(fields[name]) not in (_NULL, b"false", b"0"):
            raise InvalidRequest.field(f"$.{name}", "cannot be had: probabilities are not passed on")
    if "audio" in fields and bytes(fields["audio"]) != _NULL:
        raise InvalidRequest.field("$.audio", "cannot be had here: POST /v1/audio/speech and /v1/realtime speak")
    system: list[str] = []
    messages: list[SentMessage] = []
    for number, message in enumerate(request.messages):
        text = _text(message.content, number)
        if message.role in SYSTEM:
            if not messages:
                system.append(text or "")
                continue
            messages.append(SentMessage("system", text))
            continue
        messages.append(
            SentMessage(
                message.role, text, message.name, message.tool_calls, message.tool_call_id, message.function_call
            )
        )
    if not messages:
        raise InvalidRequest.field("$.messages", "must have more than instructions")
    return Asked(request, fields, BETWEEN.join(filter(None, system)), messages)


def completion_of(asked: Asked, context: str, settings: Llm, *, assistant: bool) -> tuple[Completion, list[str]]:
    """Return what the model is asked, with *context* for the newest message, and the fields that have no effect here."""
    request = asked.request
    parameters = {
        name: raw for name, raw in asked.fields.items() if name not in OWN and bytes(raw) not in (_NULL, _EMPTY)
    }
    needed = frozenset[str]()
    if "response_format" in parameters:
        if decode(_kind_decoder, bytes(parameters["response_format"])).type == "text":
            del parameters["response_format"]
        else:
            needed = frozenset({"response_format"})
    completion = asked_of_model(
        asked.messages,
        asked.system,
        context,
        parameters,
        settings,
        assistant=assistant,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        needed=needed,
        tools=[*(one.function.name for one in request.tools or ()), *(one.name for one in request.functions or ())],
    )
    return completion, ["store"] if request.store else []


def asked_of_model(
    messages: Sequence[SentMessage],
    system: str,
    context: str,
    parameters: dict[str, Raw],
    settings: Llm,
    *,
    assistant: bool,
    max_tokens: int | None,
    temperature: float | None,
    needed: frozenset[str],
    tools: Sequence[str],
) -> Completion:
    """
    Return *messages* and *parameters* as the model is asked with them; *context* goes before the user's newest message.

    What a client does not name the *assistant* has from *settings*, its instructions too, and the model behind it from its own
    server.
    """
    if assistant and not system:
        system = settings.system_prompt
    if assistant and max_tokens is None:
        max_tokens = settings.max_tokens
    if assistant and temperature is None:
        temperature = settings.temperature
    if max_tokens is not None:
        parameters["max_tokens"] = Raw(b"%d" % max_tokens)
    if temperature is not None:
        parameters["temperature"] = Raw(_encode(temperature))
    prompt = _prompt_of(
        messages,
        system,
        settings.temperature if temperature is None else temperature,
        min(max_tokens or MAX_TOKENS_LIMIT, MAX_TOKENS_LIMIT),
        tools,
        context,
    )
    if context:
        messages = _with_context(messages, context)
    sent = [SentMessage("system", system), *messages] if system else messages
    return Completion(prompt, Raw(_encode(sent)), parameters, needed)


def _text(content: str | list[Part] | None, number: int) -> str | None:
    """Return the text of a message; raises ``InvalidRequest`` for what is no text."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            path = f"$.messages[{number}].content[{place}].type"
            raise InvalidRequest.field(path, f"must be text: {part.type[:40]!r} is nothing that is understood here")
        texts.append(part.text or part.refusal)
    return "".join(texts)


def _with_context(messages: Sequence[SentMessage], context: str) -> list[SentMessage]:
    """Return *messages* with *context* before what the user said last, as ``Prompt.context`` has it."""
    told = list(messages)
    for place in range(len(told) - 1, -1, -1):
        if told[place].role == "user":
            told[place] = msgspec.structs.replace(told[place], content=f"{context}{BETWEEN}{told[place].content}")
            break
    return told


def _prompt_of(
    messages: Sequence[SentMessage],
    system: str,
    temperature: float,
    max_tokens: int,
    tools: Sequence[str],
    context: str,
) -> Prompt:
    """Return the messages for a model that knows of texts alone; the last one with any is what it answers."""
    said = [Utterance(ROLES[one.role], one.content) for one in messages if one.content and one.role in ROLES]
    content = said.pop().content if said else ""
    return Prompt(
        system=system,
        history=said,
        content=content,
        temperature=temperature,
        max_tokens=max_tokens,
        tools=[Tool(name) for name in tools if name],
        context=context,
    )
