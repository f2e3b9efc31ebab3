"""
Chat completions as servers really send them: chunk by chunk or whole, in the shapes of a dozen implementations.

A struct takes what is nearly always sent; what it cannot decode is looked at once more without one. What is not understood is
skipped, but for what sounds like an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from jarvis_core.errors import RequestError
from jarvis_core.models import Tool, ToolCall
from jarvis_core.services.answers.finish_reasons import STOP, end_named
from jarvis_core.services.answers.native_calls import NativeCalls
from jarvis_core.services.answers.server_errors import ServerError, error_in, error_of
from jarvis_core.services.answers.stream import AnswerStream, request_error
from jarvis_core.services.contract import NONSENSE, Choice, Completion, Delta
from jarvis_core.services.lines import DONE
from jarvis_core.services.stream import Stream
from jarvis_core.services.transport import Transport

COUNT_LIMIT = 2**53
NESTING_LIMIT = 4
THINKING_PARTS = ("thinking", "reasoning", "redacted_thinking", "reasoning_text", "thought")

_decode = msgspec.json.Decoder(Completion).decode


class _TextDelta(Struct, gc=False):
    """A delta with nothing in it but text; in a field of type None there must be nothing."""

    content: str | None = None
    reasoning_content: None = None
    reasoning: None = None
    thinking: None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _TextChoice(Struct):
    delta: _TextDelta | None = None
    finish_reason: Any = None
    index: Literal[0] = 0
    message: None = None
    text: None = None
    error: None = None


class _TextChunk(Struct):
    """Nearly all chunks, for which nothing else is looked at."""

    choices: list[_TextChoice] = []
    model: str | None = None
    usage: Any = None
    error: None = None


_decode_text = msgspec.json.Decoder(_TextChunk).decode


class CompletionStream(AnswerStream):
    """The answer of a server that speaks OpenAI's protocol; *hint* goes with what may be an error of ours."""

    def __init__(
        self,
        transport: Transport,
        stream: Stream,
        *,
        model: str,
        limit_chars: int,
        opened: bool = False,
        hint: str = "",
        tools: Sequence[Tool] = (),
    ) -> None:
        super().__init__(transport, stream, model=model, limit_chars=limit_chars, opened=opened)
        self._hint = hint
        self._told: NativeCalls | None = None
        """The calls that are told beside the text; None where no *tools* were offered."""
        if tools:
            self.offered = True
            self._told = NativeCalls({tool.name for tool in tools})
        self._refused = False
        """Whether the model itself refused to answer."""
        self._doubtful = False
        """Whether the end that was told may be none."""

    def take(self, line: bytes) -> str:
        """Take a chunk; return what it adds to the answer."""
        if line == DONE:
            self.over = True
            return ""
        try:
            chunk = _decode_text(line)
        except NONSENSE:
            return self._take_other(line)
        if chunk.model != self.model:
            self.name_model(chunk.model)
        if chunk.usage is not None:
            self._count(chunk.usage)
            if not chunk.choices:
                return ""
        if not self.plain or len(chunk.choices) != 1:
            return self._take_other(line)
        choice = chunk.choices[0]
        content = None if choice.delta is None else choice.delta.content
        text = self.say(content) if content else ""
        if choice.finish_reason is not None:
            self._end(choice.finish_reason, has_text=bool(content))
        return text

    def _take_other(self, line: bytes) -> str:
        """Take what is more than a piece of text."""
        try:
            chunk = _decode(line)
        except NONSENSE:
            return self._take_odd(line.strip())
        if chunk.error or not (chunk.choices or chunk.usage):
            error = error_in(msgspec.json.decode(line))
            if error is not None:
                raise self.failed(error)
        return self._take_chunk(chunk)

    def failed(self, error: ServerError) -> RequestError:
        """Return the request's error for what the server told."""
        return request_error(self._transport, error, hint=self._hint if error.is_endpoint else "")

    def _take_chunk(self, chunk: Completion) -> str:
        if chunk.model != self.model:
            self.name_model(chunk.model)
        if chunk.usage is not None:
            self._count(chunk.usage)
        text = ""
        for choice in chunk.choices or ():
            if choice.index:
                continue  # one was asked for
            if choice.error:
                raise self.failed(error_of(choice.error))
            delta = choice.delta
            if delta is not None:
                content = delta.content
                if type(content) is str and content:
                    text += self.say(content)
                else:
                    text += self._take_content(content)
                if (
                    delta.reasoning_content
                    or delta.reasoning
                    or delta.thinking
                    or delta.refusal
                    or delta.tool_calls
                    or delta.function_call
                ):
                    text += self._take_rest(delta)
            if choice.message is not None:
                text += self._take_content(choice.message.content) + self._take_rest(choice.message, whole=True)
            if choice.text:
                text += self._take_content(choice.text)
            if choice.message is not None:
                self._end(choice.finish_reason or STOP)
            elif choice.finish_reason is not None:
                self._end(choice.finish_reason, has_text=bool(delta is not None and delta.content))
            elif self.reason is not None and self._doubtful and text:
                self.reason = None
        return text

    def _end(self, said: object, *, has_text: bool = False) -> None:
        """Take note of why the model stopped, as its server *said* in a chunk that has text or none."""
        # Some servers say the empty text in every chunk, others in the last one.
        self._doubtful = said == ""
        if self._doubtful:
            self.plain = False
        if self._doubtful and has_text:
            self.reason = None
            return
        reason = end_named(said)
        if reason is not None:
            self.reason = "refusal" if reason == STOP and self._refused else reason
            if not self._doubtful:
                self._stream.expect_end()

    def _take_content(self, content: object, depth: int = 0) -> str:
        """Return what *content*, a text or a list of parts, adds to the answer."""
        if isinstance(content, str):
            return self.say(content) if content else ""
        if depth >= NESTING_LIMIT:
            return ""
        if isinstance(content, list):
            texts = ""
            for part in cast("list[object]", content):
                withdrawals = self.filter.withdrawals
                text = self._take_content(part, depth + 1)
                texts = text if self.filter.withdrawals != withdrawals else texts + text
            return texts
        if not isinstance(content, dict):
            return ""
        part = cast("dict[str, Any]", content)
        kind = str(part.get("type", "text"))
        if kind in THINKING_PARTS:
            return self._think(part.get("thinking") or part.get("reasoning") or part.get("text") or part.get("summary"))
        if kind == "refusal" or part.get("refusal"):
            self._refused = True
            return self._take_content(part.get("refusal"), depth + 1)
        return self._take_content(part.get("text") or part.get("content"), depth + 1) if "text" in kind else ""

    def _take_rest(self, delta: Delta, *, whole: bool = False) -> str:
        """Take what a delta, or a *whole* message, has beside its content."""
        text = ""
        for thinking in (delta.reasoning_content, delta.reasoning, delta.thinking):
            if thinking:
                text += self._think(thinking)
                break
        if delta.refusal:
            self._refused = True
            text += self._take_content(delta.refusal)
        if delta.tool_calls or delta.function_call:
            self.called = True
            if self._told is not None:
                told = self._told.take(delta.tool_calls, whole=whole)
                self.note_hidden(told or self._told.take(delta.function_call, whole=whole))
        return text

    def made_calls(self, *, cut: bool) -> list[ToolCall]:
        """Return the calls of tools: those that were told, else those that stand in the text."""
        told = [] if self._told is None else self._told.calls(cut=cut)
        return told or super().made_calls(cut=cut)

    def _think(self, thinking: object) -> str:
        return self.think(_length(thinking)) if thinking else ""

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            counts = cast("dict[str, Any]", usage)
            if (generated := _count_in(counts.get("completion_tokens"))) is not None:
                self.tokens = generated
            self.prompt_tokens = max(_count_in(counts.get("prompt_tokens")) or 0, self.prompt_tokens)

    def _take_odd(self, line: bytes) -> str:
        """Take what is not quite a chunk."""
        if not line or line == DONE:
            self.over = self.over or line == DONE
            return ""
        try:
            value: object = msgspec.json.decode(line)
        except NONSENSE:
            try:
                # It takes lone surrogates, numbers that are none, and bytes that are no UTF-8.
                value = json.loads(line.decode(errors="surrogateescape"))
            except (ValueError, RecursionError):
                self.take_words(line)
                return ""
            self.odd = True
        self.plain = False
        text = self._take_value(value)
        self.odd = False
        return text

    def _take_value(self, value: object) -> str:
        error = error_in(value)
        if error is not None:
            raise self.failed(error)
        if isinstance(value, str):
            self.take_words(value.encode(errors="replace"))
        if isinstance(value, list):
            return "".join(self._take_value(one) for one in cast("list[object]", value) if isinstance(one, dict))
        return self._take_chunk(_as_chunk(cast("dict[str, Any]", value))) if isinstance(value, dict) else ""


def _as_chunk(fields: dict[str, Any]) -> Completion:
    """Return what can be used of a chunk in another shape than the struct's."""
    found = fields.get("choices")
    if isinstance(found, dict):
        found = [found]
    choices = [
        Choice(
            delta=_as_delta(one.get("delta")),
            message=_as_delta(one.get("message")),
            text=one.get("text"),
            finish_reason=one.get("finish_reason"),
            index=one.get("index"),
            error=one.get("error"),
        )
        for one in (found if isinstance(found, list) else [])
        if isinstance(one, dict)
    ]
    return Completion(choices, fields.get("model"), fields.get("usage"))


def _as_delta(value: object) -> Delta | None:
    if isinstance(value, str):
        return Delta(content=value)
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    return Delta(**{name: fields.get(name) for name in Delta.__struct_fields__})


def _length(thinking: object, depth: int = 0) -> int:
    """Return how much text there is in *thinking*."""
    if isinstance(thinking, str):
        return len(thinking)
    if depth < NESTING_LIMIT and isinstance(thinking, list):
        return sum(_length(one, depth + 1) for one in cast("list[object]", thinking))
    if depth < NESTING_LIMIT and isinstance(thinking, dict):
        return sum(
            _length(one, depth + 1) for name, one in cast("dict[str, object]", thinking).items() if name != "type"
        )
    return 0


def _count_in(told: object) -> int | None:
    """Return *told* where it is a count."""
    is_count = isinstance(told, int | float) and not isinstance(told, bool) and abs(told) < COUNT_LIMIT
    return int(cast("float", told)) if is_count else None
