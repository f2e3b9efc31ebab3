"""
``POST /v1/chat/completions``: an answer of the assistant, or of the model behind it, to a conversation that the client keeps.

Nothing is stored. The assistant (``jarvis``) has its own instructions where the client gives none, and what it remembers of
the user; the model under its own name is asked with what the client says and nothing else.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jarvis_core.errors import UnknownModel
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.openai import chat_request
from jarvis_core.handlers.openai.answer import FinishReason, end_of, recalled_for, whole_of
from jarvis_core.handlers.openai.event_stream import DONE, Send, send_all
from jarvis_core.handlers.openai.models import ASSISTANT
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.memory import Memories
from jarvis_core.models import (
    CHARS_PER_TOKEN_LIMIT,
    Caller,
    Completion,
    CompletionAnswer,
    CompletionModel,
    Finish,
    new_id,
)
from jarvis_core.settings import Llm


class Function(Struct, frozen=True):
    """What is called."""

    name: str
    arguments: str


class Called(Struct, frozen=True):
    """A call that the client is to make."""

    id: str
    function: Function
    type: Literal["function"] = "function"
    index: int | UnsetType = UNSET
    """In a chunk of a stream."""


class AnswerMessage(Struct, frozen=True):
    """What the model says."""

    content: str | None
    tool_calls: list[Called] | UnsetType = UNSET
    refusal: None = None
    role: Literal["assistant"] = "assistant"


class WholeChoice(Struct, frozen=True):
    """The one choice."""

    message: AnswerMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None


class TokenCounts(Struct, frozen=True):
    """As the model's server counted; 0 where it does not tell."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Struct, frozen=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    choices: list[WholeChoice]
    usage: TokenCounts
    object: Literal["chat.completion"] = "chat.completion"


_encode = msgspec.json.Encoder().encode


class ChatCompletionHandlers:
    """The route for chat completions."""

    def __init__(self, model: CompletionModel, memories: Memories, settings: Llm, *, body_limit_bytes: int) -> None:
        self._model = model
        self._memories = memories
        self._settings = settings
        self._body_limit_bytes = body_limit_bytes

    async def complete(self, call: Call) -> Reply | None:
        """Answer ``POST /v1/chat/completions``, whole or as events."""
        asked = chat_request.read(await call.json_body(self._body_limit_bytes))
        name = asked.request.model
        assistant = name == ASSISTANT
        if not assistant and name != await self._model.fetch_name():
            raise UnknownModel(name)
        context = await recalled_for(self._memories, call.caller, asked.question) if assistant else ""
        completion, unused = chat_request.completion_of(asked, context, self._settings, assistant=assistant)
        headers: list[tuple[bytes, bytes]] = []
        if asked.request.stream:
            options = asked.request.stream_options
            usage = options is not None and options.include_usage
            await send_all(
                call,
                lambda send: self._send_chunks(send, completion, call.caller, name, unused, headers, usage=usage),
                DONE,
                headers,
            )
            return None
        body = await call.unless_left(self._whole(completion, call.caller, name, unused, headers))
        return Reply(body, headers=headers)

    async def _whole(
        self, completion: Completion, caller: Caller, name: str, unused: list[str], headers: list[tuple[bytes, bytes]]
    ) -> bytes:
        async with self._model.complete(completion, caller) as answer:
            headers += left_out([*unused, *answer.left_out])
            text, finish = await whole_of(answer, completion)
        reason = end_of(finish)
        calls = finish.calls if finish is not None else ()
        message = AnswerMessage(
            text if text or not calls else None,
            [Called(one.id, Function(one.name, one.arguments)) for one in calls] if calls else UNSET,
        )
        body = ChatCompletion(
            f"chatcmpl-{new_id()}", int(time.time()), name, [WholeChoice(message, reason)], _counts(finish, answer)
        )
        return _encode(body)

    async def _send_chunks(
        self,
        send: Send,
        completion: Completion,
        caller: Caller,
        name: str,
        unused: list[str],
        headers: list[tuple[bytes, bytes]],
        *,
        usage: bool,
    ) -> None:
        finish: Finish | None = None
        room_chars = completion.prompt.max_tokens * CHARS_PER_TOKEN_LIMIT
        async with self._model.complete(completion, caller) as answer:
            headers += left_out([*unused, *answer.left_out])
            chunk = _Chunk(name, usage=usage)
            await send(chunk.of(b'{"role":"assistant","content":""}'))
            head, tail = chunk.content_head, chunk.content_tail
            # Most of the work of a stream is here: no generator and no function in between.
            async for piece in answer.pieces():
                if isinstance(piece, str):
                    await send(b"%s%s%s" % (head, _encode(piece), tail))
                    room_chars -= len(piece)
                    if room_chars < 0:
                        finish = Finish("length")
                        break
                elif isinstance(piece, Finish):
                    finish = piece
        reason = end_of(finish)
        if finish is not None and finish.calls:
            called = [
                Called(one.id, Function(one.name, one.arguments), index=index) for index, one in enumerate(finish.calls)
            ]
            await send(chunk.of(b'{"tool_calls":%s}' % _encode(called)))
        await send(chunk.of(b"{}", reason))
        if usage:
            await send(chunk.with_usage(_counts(finish, answer)))


class _Chunk:
    """Writes the chunks of one stream, of which most differ in their text alone."""

    __slots__ = ("_head", "_usage", "content_head", "content_tail")

    def __init__(self, name: str, *, usage: bool) -> None:
        self._head = (
            b'data: {"id":"chatcmpl-%s","object":"chat.completion.chunk","created":%d,"model":%s,"choices":'
            % (
                new_id().encode(),
                int(time.time()),
                _encode(name),
            )
        )
        self._usage = b',"usage":null' if usage else b""
        self.content_head = self._head + b'[{"index":0,"delta":{"content":'
        self.content_tail = b'},"logprobs":null,"finish_reason":null}]%s}\n\n' % self._usage

    def of(self, delta: bytes, reason: FinishReason | None = None) -> bytes:
        """Return a chunk with *delta*, which is JSON."""
        return b'%s[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]%s}\n\n' % (
            self._head,
            delta,
            _encode(reason),
            self._usage,
        )

    def with_usage(self, counts: TokenCounts) -> bytes:
        """Return the last chunk of a client that asked for the counts."""
        return b'%s[],"usage":%s}\n\n' % (self._head, _encode(counts))


def _counts(finish: Finish | None, answer: CompletionAnswer) -> TokenCounts:
    completed = max(finish.tokens or 0, 0) if finish is not None else 0
    return TokenCounts(answer.prompt_tokens, completed, answer.prompt_tokens + completed)
