"""OpenAI-compatible model servers: Ollama, llama.cpp, vLLM, LM Studio, LocalAI and their like."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType

import msgspec
from msgspec import UNSET, Struct

from jarvis_core import log
from jarvis_core.errors import BadGateway, RequestError
from jarvis_core.models import CHARS_PER_TOKEN_LIMIT, Caller, Completion, Prompt, Utterance
from jarvis_core.services.answers.completions import CompletionStream
from jarvis_core.services.answers.finish_reasons import STOP
from jarvis_core.services.answers.forwarded import ForwardedRequest, ForwardedStream
from jarvis_core.services.answers.messages import (
    BETWEEN,
    first_kept,
    in_order,
    system_texts,
    with_calls,
    without_system,
)
from jarvis_core.services.answers.server_errors import ServerError, error_in_body
from jarvis_core.services.answers.stream import (
    Piece,
    error_of_status,
    refusal_error,
    request_error,
)
from jarvis_core.services.contract import (
    NONSENSE,
    ChatMessage,
    ChosenName,
    ChosenTool,
    CompletionRequest,
    Models,
    OfferedFunction,
    OfferedTool,
    StreamOptions,
)
from jarvis_core.services.stream import Stream
from jarvis_core.services.transport import Refused, Transport
from jarvis_core.settings import Llm

logger = log.get(__name__)

BYTES_PER_TOKEN = 3
"""An estimate on the safe side: English has about 4 bytes of UTF-8 a token, French 3.5, Chinese 3."""
TOKENS_PER_MESSAGE = 8
"""What a chat template puts around each message, at most."""
ATTEMPTS = 6
"""Each leaves out one more of what a server refuses."""
OPTIONAL = ("stream_options", "temperature", "max_completion_tokens", "max_tokens", "tool_choice", "tools", "stream")
"""Fields that an answer can be had without, in the order in which they are tried without."""
NO_SYSTEM = "system"
"""In place of a field's name: the system message, which goes into the user's first one then."""

REPEATABLE = (400, 413, 422, 500, 501)
"""Statuses of an error that may be about a field; llama.cpp has 500 for what a template refuses."""
CONTEXT_LEAST_TOKENS = 256
OUTPUT_LEAST_BYTES = 64
"""Of a tool's output that is told, however many there are."""
CUT = " … (cut: too long for the model)"

_SYSTEM_REFUSED = re.compile(
    r"system (?:role|message|prompt)s?\b.{0,40}not|roles must alternate|only user", re.IGNORECASE
)
_RENAMED = re.compile(r"\bmax_completion_tokens\b")
_THINKS_UNTOLD = re.compile(
    r"deepseek[-_ ]?r1|r1[-_]distill|\bqwq\b|thinking|reason(?:er|ing)\b|magistral|openthinker|marco-o1|skywork-o1|exaone-deep|glm-z1",
    re.IGNORECASE,
)
"""Names of models whose templates open their thinking in the prompt, so that only its end is told."""
_VERSION = re.compile(r"/v\d")
_TOOLS_REFUSED = re.compile(r"\btools?\b|\btool[_ -]|function[_ ]call", re.IGNORECASE)
"""In an error of a server that was offered tools, whatever is wrong with them."""
_TOOLS_UNKNOWN = re.compile(
    r"support|--jinja|--enable-auto-tool-choice|not permitted|unknown field|extra", re.IGNORECASE
)
"""In one whose server, model or template takes none."""

_encoder = msgspec.json.Encoder()
_models_decoder = msgspec.json.Decoder(Models)


class Asked(Struct):
    """What one turn asks for, and what is left out of it by now."""

    prompt: Prompt
    context_tokens: int
    left_out: set[str]
    lasting: set[str]
    """What to leave out from now on, once an answer was had without it."""


class _Answering(AbstractAsyncContextManager[AsyncIterator[Piece]]):
    """One answer of *model*; each turn has one, and a generator would cost twice as much."""

    __slots__ = ("_answer", "_model", "_prompt", "_streaming")

    def __init__(self, model: OpenAiModel, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt

    async def __aenter__(self) -> AsyncIterator[Piece]:
        self._streaming, self._answer = await self._model.ask(self._prompt)
        return self._answer.pieces()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            self._model.learn_of(self._answer)
        await self._streaming.__aexit__(kind, exc, trace)


class OpenAiModel:
    """
    A model behind ``POST /chat/completions``.

    What the server refuses is left out from then on; the limit of its context is learnt from what it says of it.
    """

    reads_ahead = False

    def __init__(self, transport: Transport, settings: Llm) -> None:
        self._transport = transport
        self._settings = settings
        self._model = settings.model or ""
        self._headers = {"Content-Type": "application/json"}
        if settings.api_key is not None:
            self._headers["Authorization"] = "Bearer " + settings.api_key.reveal()
            transport.hide(settings.api_key.reveal())
        self._context_tokens = settings.context_tokens
        self._left_out: set[str] = set()
        self._opens_thinking = bool(_THINKS_UNTOLD.search(self._model))
        """Whether the model's thinking is told by its end only: as its name has it, until an answer has shown it."""
        self._hint = "" if _VERSION.search(transport.base_url) else " LLM_URL may lack the /v1 at its end."
        """What may be wrong with the address where there is nothing under it."""
        self.history_limit_chars = settings.context_tokens * BYTES_PER_TOKEN

    def generate(self, prompt: Prompt, caller: Caller) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
        """
        Ask the model, as ``LanguageModel`` has it; *caller* is not told to it.

        A server that refuses a field, or the length of the prompt, is asked again without, within the same time.
        """
        return _Answering(self, prompt)

    async def ask(self, prompt: Prompt) -> tuple[AbstractAsyncContextManager[Stream], CompletionStream]:
        """Return an answer that has begun, and what is to be left once it was read; raises as ``generate`` does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.first_token_timeout_s
        if not self._model:
            await self.fetch_name()
        asked = Asked(prompt, self._context_tokens, self._left_out.copy(), set())
        for attempt in range(ATTEMPTS):
            error: ServerError | None
            cause: Refused | None = None
            streaming = self._transport.stream(
                "POST",
                "/chat/completions",
                body=_encoder.encode(self._request(asked)),
                headers=self._headers,
                first_byte_timeout_s=max(deadline - loop.time(), 0.0),
                stall_timeout_s=self._settings.stall_timeout_s,
                total_timeout_s=self._settings.total_timeout_s,
            )
            try:
                stream = await streaming.__aenter__()
            except Refused as exc:
                error, cause = error_of_status(exc), exc
            else:
                try:
                    answer = CompletionStream(
                        self._transport,
                        stream,
                        model=self._model,
                        limit_chars=prompt.max_tokens * CHARS_PER_TOKEN_LIMIT,
                        opened=self._opens_thinking,
                        hint=self._hint,
                        tools=() if "tools" in asked.left_out else prompt.tools,
                    )
                    error = await answer.wait_begun()
                except BaseException:
                    await streaming.__aexit__(*sys.exc_info())
                    raise
                if error is None:
                    self._left_out |= asked.lasting
                    return streaming, answer
                await streaming.__aexit__(None, None, None)
            if attempt + 1 == ATTEMPTS or not self._leave_out(asked, error):
                raise self._refusal(error, cause) from cause
            logger.info(
                "a model's server is asked again", neighbour=self._transport.name, without=sorted(asked.left_out)
            )
        raise AssertionError("the last attempt raises")

    async def fetch_name(self) -> str:
        """Return what the server calls the model: as the settings have it, or the first that it lists."""
        if not self._model:
            self._model = await self._first_model()
            self._opens_thinking = bool(_THINKS_UNTOLD.search(self._model))
        return self._model

    @asynccontextmanager
    async def complete(self, completion: Completion, caller: Caller) -> AsyncIterator[ForwardedStream]:
        """Ask the model with a client's own parameters, as ``CompletionModel`` has it; *caller* is not told to it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.first_token_timeout_s
        asked = ForwardedRequest(completion, await self.fetch_name(), without=self._left_out & {"stream_options"})
        for attempt in range(ATTEMPTS):
            error: ServerError | None
            cause: Refused | None = None
            answer = None
            try:
                async with self._transport.stream(
                    "POST",
                    "/chat/completions",
                    body=asked.body(),
                    headers=self._headers,
                    first_byte_timeout_s=max(deadline - loop.time(), 0.0),
                    stall_timeout_s=self._settings.stall_timeout_s,
                    total_timeout_s=self._settings.total_timeout_s,
                ) as stream:
                    answer = ForwardedStream(
                        self._transport,
                        stream,
                        left_out=asked.refused,
                        tools=() if "tools" in asked.refused else completion.prompt.tools,
                        model=self._model,
                        limit_chars=completion.prompt.max_tokens * CHARS_PER_TOKEN_LIMIT,
                        opened=self._opens_thinking,
                        hint=self._hint,
                    )
                    error = await answer.wait_begun()
                    if error is None:
                        yield answer
                        self.learn_of(answer)
                        return
            except Refused as exc:
                if answer is not None:
                    raise
                error, cause = error_of_status(exc), exc
            if attempt + 1 == ATTEMPTS or not asked.leave_out(error):
                raise asked.complaint(error, self._refusal(error, cause)) from cause
            logger.info("a client's request is asked again", neighbour=self._transport.name, without=asked.refused)

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Do nothing: what another's server reads may have its price."""

    def _request(self, asked: Asked) -> CompletionRequest:
        prompt, left_out = asked.prompt, asked.left_out
        messages = fit(prompt, asked.context_tokens, tools="tools" not in left_out)
        request = CompletionRequest(self._model, without_system(messages) if NO_SYSTEM in left_out else messages)
        if "temperature" not in left_out:
            request.temperature = prompt.temperature
        if "max_tokens" not in left_out:
            request.max_tokens = prompt.max_tokens
        elif "max_completion_tokens" not in left_out:
            request.max_completion_tokens = prompt.max_tokens
        if "stream" not in left_out:
            request.stream = True
            if "stream_options" not in left_out:
                request.stream_options = StreamOptions()
        if prompt.tools and "tools" not in left_out:
            request.tools = [
                OfferedTool(OfferedFunction(tool.name, tool.description, tool.parameters)) for tool in prompt.tools
            ]
            if prompt.tool_choice != "auto" and "tool_choice" not in left_out:
                named = prompt.tool_choice not in ("none", "required")
                request.tool_choice = ChosenTool(ChosenName(prompt.tool_choice)) if named else prompt.tool_choice
        return request

    def _leave_out(self, asked: Asked, error: ServerError) -> bool:
        """Have *asked* be without what *error* refuses; return whether it is another request now."""
        if error.status and error.status not in REPEATABLE:
            return False
        if error.is_context and not error.is_about_answer:
            return self._shorten(asked, error)
        request = self._request(asked)
        refused = next((name for name in OPTIONAL if getattr(request, name) is not UNSET and error.refuses(name)), None)
        if refused is None and NO_SYSTEM not in asked.left_out and _SYSTEM_REFUSED.search(error.words):
            refused = NO_SYSTEM
        if refused is None and request.tools is not UNSET and _TOOLS_REFUSED.search(error.words):
            refused = "tools"
        if refused is None:
            return False
        names = {refused}
        if refused == "max_tokens" and (error.is_about_value or "max_completion_tokens" not in error.words):
            names.add("max_completion_tokens")
        asked.left_out |= names
        # One tool with a schema that it does not take says nothing of the next ones.
        once = error.is_about_value or (refused == "tools" and not _TOOLS_UNKNOWN.search(error.words))
        if not once:
            asked.lasting |= names
        return True

    def _shorten(self, asked: Asked, error: ServerError) -> bool:
        """Have *asked* be without the oldest of its history, or at last without ``max_tokens``, which some count as used."""
        tools = "tools" not in asked.left_out
        before = fit(asked.prompt, asked.context_tokens, tools=tools)
        if CONTEXT_LEAST_TOKENS <= error.context_tokens < asked.context_tokens:
            asked.context_tokens = self._context_tokens = error.context_tokens
        else:
            asked.context_tokens //= 2
        while asked.context_tokens:
            if len(fit(asked.prompt, asked.context_tokens, tools=tools)) < len(before):
                return True
            asked.context_tokens //= 2
        if "max_tokens" in asked.left_out and "max_completion_tokens" in asked.left_out:
            return False
        asked.left_out |= {"max_tokens", "max_completion_tokens"}
        return True

    def _refusal(self, error: ServerError, cause: Refused | None) -> RequestError:
        """Return the request's error for *error*, which came with the status that *cause* has, or inside of an answer."""
        hint = self._hint if error.is_endpoint else ""
        if cause is None:
            return request_error(self._transport, error, hint=hint)
        return refusal_error(self._transport, error, cause, hint=hint)

    def learn_of(self, answer: CompletionStream) -> None:
        """Take note of how the model's thinking is told, for the next answer."""
        if answer.filter.unopened:
            self._opens_thinking = True
        elif answer.filter.given and answer.reason == STOP:
            self._opens_thinking = False

    async def _first_model(self) -> str:
        try:
            answer = await self._transport.call(
                "GET", "/models", headers=self._headers, timeout_s=self._settings.first_token_timeout_s
            )
        except Refused as exc:
            raise self._refusal(error_of_status(exc), exc) from exc
        told = error_in_body(answer.body)
        if told is not None:
            raise self._refusal(told, None)
        try:
            models = _models_decoder.decode(answer.body)
        except NONSENSE as exc:
            raise BadGateway(
                f"{self._transport.name} sent what is not its contract.{self._hint}",
                details={"neighbour": self._transport.name},
            ) from exc
        if not models.data:
            raise BadGateway(f"{self._transport.name} has no model; load one, or name it in LLM_MODEL.")
        return models.data[0].id


def fit(prompt: Prompt, context_tokens: int, *, tools: bool = True) -> list[ChatMessage]:
    """
    Return the chat messages for *prompt*: as many of the latest of its history as fit, by estimate.

    What the model may write is left free, but never more than half of the context for it. Where something has to go, more goes
    at once, as ``first_kept`` has it. Calls and outputs are there where *tools* are offered.
    """
    room = context_tokens - min(prompt.max_tokens, context_tokens // 2)
    room -= estimate_tokens(prompt.system) + estimate_tokens(prompt.content) + estimate_tokens(prompt.context)
    tools = tools and bool(prompt.tools)
    followed = prompt.followed
    if tools:
        room -= sum(estimate_tokens(tool.description) + len(bytes(tool.parameters)) // 3 for tool in prompt.tools)
        followed = _shortened(prompt.followed, max(room, 0) * BYTES_PER_TOKEN)
        room -= sum(map(_tokens_of, followed))
    size_of = _tokens_of if tools else _text_tokens_of
    history = prompt.history[first_kept([size_of(one) for one in prompt.history], room, prompt.older) :]
    system = prompt.system
    if history and (texts := system_texts(history)):
        system = BETWEEN.join([system, *texts] if system else texts)
    if tools:
        messages = with_calls(history, prompt.content, followed, prompt.context)
    else:
        messages = in_order(history, prompt.content, prompt.context)
    return [ChatMessage("system", system), *messages] if system else messages


def _shortened(followed: Sequence[Utterance], room_bytes: int) -> Sequence[Utterance]:
    """Return what *followed* with its outputs cut alike, where all together are more than *room_bytes*."""
    outputs = [len(one.content.encode()) for one in followed if one.role == "tool"]
    if not outputs or sum(outputs) <= room_bytes:
        return followed
    share = max(room_bytes // len(outputs), OUTPUT_LEAST_BYTES)
    return [
        msgspec.structs.replace(one, content=one.content.encode()[:share].decode(errors="ignore") + CUT)
        if one.role == "tool" and len(one.content.encode()) > share
        else one
        for one in followed
    ]


def _tokens_of(utterance: Utterance) -> int:
    return estimate_tokens(utterance.content) + sum(estimate_tokens(call.arguments) for call in utterance.calls)


def _text_tokens_of(utterance: Utterance) -> int:
    return estimate_tokens(utterance.content)


def estimate_tokens(text: str) -> int:
    """Return about how many tokens *text* is inside a chat prompt; rather too many."""
    length = len(text) if text.isascii() else len(text.encode())
    return length // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
