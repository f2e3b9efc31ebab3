"""The structs of ``/v1/responses``: OpenAI's, and what of ours goes with them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from jarvis_core.errors import RateLimited, RequestError
from jarvis_core.models import ToolCall

PREFIX = "resp_"
ITEM_PREFIX = "msg_"
CALL_PREFIX = "fc_"
"""What some clients know ids by; the rest of one is the turn's."""

Status = Literal["completed", "failed", "in_progress", "cancelled", "incomplete"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct):
    """What was said."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(Struct):
    """A message of the assistant."""

    id: str
    content: list[OutputText]
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class FunctionCall(Struct):
    """A call that the client is to make."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"
    type: Literal["function_call"] = "function_call"


class ApprovalRequest(Struct):
    """A call of a tool of a server's that somebody has to allow: ``POST /api/chat/response/{id}/approve``."""

    id: str
    server_label: str
    name: str
    arguments: str
    type: Literal["mcp_approval_request"] = "mcp_approval_request"


OutputItem = OutputMessage | FunctionCall | ApprovalRequest


class InputTokens(Struct, frozen=True):
    """Nobody counts these: zeros."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokens(Struct, frozen=True):
    """Nobody counts these: zeros."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    """Token counts; 0 where the model's server does not tell."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens = InputTokens()
    output_tokens_details: OutputTokens = OutputTokens()


class ResponseFailure(Struct):
    """Why there is no answer, or only half of one."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str
    details: dict[str, Any] | UnsetType = UNSET
    """Ours."""


class Incomplete(Struct):
    """Why an answer is not whole, where that is no failure."""

    reason: Literal["max_output_tokens", "content_filter"]


class ConversationId(Struct):
    """Our conversation."""

    id: str


class TextFormat(Struct, frozen=True):
    """Plain text, or what else was asked for."""

    type: str = "text"


class TextConfig(Struct, frozen=True):
    """How the text is written."""

    format: TextFormat = TextFormat()


class Response(Struct):
    """An answer, as far as it has come."""

    id: str
    created_at: float
    status: Status
    model: str
    output: list[OutputItem]
    error: ResponseFailure | None = None
    incomplete_details: Incomplete | None = None
    usage: ResponseUsage | None = None
    conversation: ConversationId | None = None
    """Ours, where the response is stored; ``/api/chat`` and ``/ws`` know it by the same id."""
    previous_response_id: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    store: bool = True
    metadata: dict[str, str] = {}
    tools: list[Any] = []
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    text: TextConfig = TextConfig()
    truncation: Literal["disabled"] = "disabled"
    background: bool = False
    user: str | None = None
    object: Literal["response"] = "response"


class ResponseEvent(Struct):
    """``response.created``, ``.in_progress``, ``.completed``, ``.incomplete`` and ``.failed``."""

    type: str
    sequence_number: int
    response: Response


class ItemEvent(Struct):
    """``response.output_item.added`` and ``.done``."""

    type: str
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(Struct):
    """``response.content_part.added`` and ``.done``."""

    type: str
    sequence_number: int
    item_id: str
    part: OutputText
    output_index: int = 0
    content_index: int = 0


class TextDone(Struct):
    """``response.output_text.done``."""

    sequence_number: int
    item_id: str
    text: str
    logprobs: list[Any] = []
    output_index: int = 0
    content_index: int = 0
    type: Literal["response.output_text.done"] = "response.output_text.done"


class ArgumentsDelta(Struct):
    """``response.function_call_arguments.delta``: all of them at once."""

    sequence_number: int
    item_id: str
    output_index: int
    delta: str
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"


class ArgumentsDone(Struct):
    """``response.function_call_arguments.done``."""

    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"


class InputText(Struct):
    """What the user said."""

    text: str
    type: Literal["input_text"] = "input_text"


class InputMessage(Struct):
    """The user's message, as it is stored."""

    id: str
    content: list[InputText]
    status: ItemStatus = "completed"
    role: Literal["user"] = "user"
    type: Literal["message"] = "message"


class InputItems(Struct):
    """``GET /v1/responses/{id}/input_items``."""

    data: list[InputMessage]
    """None where the assistant spoke without being asked."""
    first_id: str | None
    last_id: str | None
    has_more: bool = False
    object: Literal["list"] = "list"


class DeletedResponse(Struct):
    """It is gone."""

    id: str
    deleted: Literal[True] = True
    object: Literal["response"] = "response"


def failure_of(error: RequestError) -> ResponseFailure:
    """Return *error* as a response has it."""
    code: Literal["server_error", "rate_limit_exceeded"] = "server_error"
    if isinstance(error, RateLimited):
        code = "rate_limit_exceeded"
    return ResponseFailure(code, error.message, error.details or UNSET)


def usage_of(input_tokens: int, output_tokens: int) -> ResponseUsage:
    """Return the counts."""
    return ResponseUsage(input_tokens, output_tokens, input_tokens + output_tokens)


def call_item(call: ToolCall, number: int) -> FunctionCall:
    """Return a call of the model's as an item."""
    return FunctionCall(f"{CALL_PREFIX}{number}_{call.id}"[:64], call.id, call.name, call.arguments)


def made_at(turn_id: str) -> float:
    """Return when an id was made, in seconds since 1970: a UUIDv7 begins with it (RFC 9562, 5.7)."""
    return int(turn_id.replace("-", "")[:12], 16) / 1_000
