"""
``POST /v1/chat/completions``: an answer of the assistant, or of the model behind it, to a conversation that the client keeps.

Nothing is stored. The assistant (``jarvis``) has its own instructions where the client gives none, and what it remembers of
the user; the model under its own name is asked with what the client says and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jarvis_core.errors import UnknownModel
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.openai import chat_request
from jarvis_core.handlers.openai.event_stream import DONE, Send, send_all
from jarvis_core.handlers.openai.models import ASSISTANT
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.memory import Memories
from jarvis_core.models import (
    Caller,
    Completion,
    CompletionAnswer,
    CompletionModel,
    Discard,
    Finish,
    new_id,
)
from jarvis_core.settings import Llm
from jarvis_core.turns.outcome import REASONS as REASONS_OF_TURNS
from jarvis_core.turns.outcome import error_without_end

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

RECALL_CHARS = 5_000
"""Room for what is remembered."""
CHARS_PER_TOKEN_LIMIT = 32
"""A model that sends more code points than this for each token that it was allowed is cut off."""
REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
"""Ends that OpenAI's vocabulary has a word for; every other one is an error."""


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
        texts: list[str] = []
        finish: Finish | None = None
        async with self._model.complete(completion, caller) as answer:
            headers += left_out([*unused, *answer.left_out])
            async for piece in bounded(answer, completion):
                if isinstance(piece, str):
                    texts.append(piece)
                elif isinstance(piece, Finish):
                    finish = piece
                else:
                    texts.clear()
        reason = end_of(finish)
        calls = finish.calls if finish is not None else ()
        text = "".join(texts)
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


async def recalled_for(memories: Memories, caller: Caller, question: str) -> str:
    """Return what is remembered that matters for *question*; empty where nothing is."""
    if not question:
        return ""
    return (await memories.recall(caller, question, room_chars=RECALL_CHARS, look_first=True)).text


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


async def bounded(answer: CompletionAnswer, completion: Completion) -> AsyncGenerator[str | Discard | Finish, None]:
    """Give the pieces of *answer*, cut off where it is longer than what was allowed can be."""
    length = 0
    limit = completion.prompt.max_tokens * CHARS_PER_TOKEN_LIMIT
    async for piece in answer.pieces():
        if isinstance(piece, str):
            length += len(piece)
        yield piece
        if length > limit:
            yield Finish("length")
            return


def end_of(finish: Finish | None) -> FinishReason:
    """Return why an answer ended; raises the error of one that ended badly."""
    reason = "lost" if finish is None else finish.reason
    known = REASONS.get(reason)
    if known is None or (finish is not None and known == "tool_calls" and not finish.calls):
        raise error_without_end(REASONS_OF_TURNS.get(reason, reason))
    return known


def _counts(finish: Finish | None, answer: CompletionAnswer) -> TokenCounts:
    completed = max(finish.tokens or 0, 0) if finish is not None else 0
    return TokenCounts(answer.prompt_tokens, completed, answer.prompt_tokens + completed)
