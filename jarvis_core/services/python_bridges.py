"""
The Python bridges' language model.

Their prompt is single-shot: the history is packed into ``prompt`` within 10,000 code points, the latest messages first.
The chat form goes along as ``messages`` for those who understand it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from jarvis_core.errors import ContextTooLong, InvalidRequest, RequestError
from jarvis_core.models import CHARS_PER_TOKEN_LIMIT, Caller, Completion, Prompt, Utterance
from jarvis_core.services.answers.finish_reasons import STOP, end_named
from jarvis_core.services.answers.forwarded import PlainAnswer, parameters_beside
from jarvis_core.services.answers.messages import (
    BETWEEN,
    SILENCE,
    answer_in,
    first_kept,
    in_order,
    system_texts,
    with_context,
)
from jarvis_core.services.answers.server_errors import ServerError, clean, error_in, error_of
from jarvis_core.services.answers.stream import (
    AnswerStream,
    Piece,
    error_of_status,
    refusal_error,
    request_error,
)
from jarvis_core.services.contract import FAILURE_MARK, NONSENSE, GenerateAnswer, GenerateRequest, ReadAheadRequest
from jarvis_core.services.lines import DONE
from jarvis_core.services.stream import Stream
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Refused, Transport
from jarvis_core.settings import Llm

PROMPT_LIMIT_CHARS = 10_000
SYSTEM_LIMIT_CHARS = 5_000
PROBE_TIMEOUT_S = 5.0
READ_AHEAD_TIMEOUT_S = 10.0
"""The stand-in may still be starting."""
STREAM_TYPES = ("application/x-ndjson", "text/event-stream")
UNDERSTOOD = frozenset({"temperature", "max_tokens"})
"""What they can be told besides the prompt."""
SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "Instructions"}

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(GenerateAnswer)


class BridgesModel:
    """The bridges' language model; streams where they can, takes the whole answer where they cannot."""

    history_limit_chars = PROMPT_LIMIT_CHARS

    def __init__(
        self, transport: Transport, settings: Llm, mint: TokenMint | None, *, reads_ahead: bool = False
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._mint = mint
        self._streams = False
        """Whether this neighbour has been seen to stream."""
        self._opens_thinking = False
        """Whether thinking was told by its end only."""
        self.reads_ahead = reads_ahead
        self._name = ""
        """As the last answer had it."""

    async def fetch_name(self) -> str:
        """Return the model's name as its last answer had it."""
        return self._name

    @asynccontextmanager
    async def complete(self, completion: Completion, caller: Caller) -> AsyncIterator[PlainAnswer]:
        """Ask the model, as ``CompletionModel`` has it: with the prompt alone, which is all that the bridges understand."""
        left_out = parameters_beside(completion.parameters, UNDERSTOOD)
        for name in left_out:
            if name in completion.needed:
                raise InvalidRequest.field(f"$.{name}", "is more than the model of this server can")
        if len(completion.prompt.content) > PROMPT_LIMIT_CHARS:
            raise ContextTooLong
        async with self.generate(completion.prompt, caller) as pieces:
            yield PlainAnswer(pieces, left_out)

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[Piece]]:
        """
        Ask the model, as ``LanguageModel`` has it.

        A neighbour that has not been seen to stream may be thinking up its whole answer before its first byte (the
        reference gives its own model 120 s), so it has twice the first-token deadline.
        """
        first_token_timeout_s = self._settings.first_token_timeout_s
        answer = None
        try:
            async with self._transport.stream(
                "POST",
                "/api/llm/generate",
                body=_encoder.encode(self._pack(prompt)),
                headers=self._headers(caller),
                first_byte_timeout_s=first_token_timeout_s if self._streams else 2 * first_token_timeout_s,
                stall_timeout_s=self._settings.stall_timeout_s,
                total_timeout_s=self._settings.total_timeout_s,
            ) as stream:
                answer = BridgesAnswer(
                    self._transport,
                    stream,
                    model="",
                    limit_chars=prompt.max_tokens * CHARS_PER_TOKEN_LIMIT,
                    opened=self._opens_thinking,
                )
                error = await answer.wait_begun()
                if error is not None:
                    raise answer.failed(error)
                self._streams = stream.content_type in STREAM_TYPES
                yield answer.pieces()
                self._name = answer.model
                if answer.filter.unopened:
                    self._opens_thinking = True
                elif answer.filter.given and answer.reason == STOP:
                    self._opens_thinking = False
        except Refused as exc:
            if answer is not None:
                raise
            raise refusal_error(self._transport, error_of_status(exc), exc, key="JWT_SECRET") from exc

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Have the local stand-in read *prompt* in advance; it answers at once, and reads while nobody asks it."""
        if not self.reads_ahead:
            return
        packed = self._pack(prompt)
        messages = packed.messages or in_order([], prompt.content, prompt.context)
        if not prompt.content:
            messages[-1].content = messages[-1].content.removesuffix(SILENCE)
        body = _encoder.encode(ReadAheadRequest(packed.system_prompt or "", messages, prompt.conversation_id))
        await self._transport.call(
            "POST", "/api/llm/read-ahead", body=body, headers=self._headers(caller), timeout_s=READ_AHEAD_TIMEOUT_S
        )

    def _pack(self, prompt: Prompt) -> GenerateRequest:
        return pack(prompt, examples=prompt.examples if self.reads_ahead else ())

    def _headers(self, caller: Caller) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._mint is not None:
            headers["Authorization"] = "Bearer " + self._mint.token(caller)
        return headers


class BridgesAnswer(AnswerStream):
    """An answer in the bridges' words: a line a piece, or one JSON for all."""

    def __init__(
        self, transport: Transport, stream: Stream, *, model: str, limit_chars: int, opened: bool = False
    ) -> None:
        super().__init__(transport, stream, model=model, limit_chars=limit_chars, opened=opened)
        self._taken = 0
        """How many lines had text, be it empty."""
        self._counted = False
        """Whether one had the counts, which come last."""
        self._held: str | None = ""
        """Text that may yet turn out to be a failure's; None once it cannot be."""
        self._said_reason: str | None = None

    def take(self, line: bytes) -> str:
        """Take a line; return what it adds to the answer."""
        if line == DONE:
            self.over = True
            return ""
        self.odd = False
        answer = self._decode(line)
        if answer is None:
            return ""
        if answer.error:
            raise self.failed(error_of(answer.error))
        self._taken += answer.text is not None
        if isinstance(answer.tokens_generated, int | float) and abs(answer.tokens_generated) < 1e15:
            self.tokens = int(answer.tokens_generated)
            self._counted = True
        read = answer.tokens_prompt
        if isinstance(read, int | float) and abs(read) < 1e15:
            self.prompt_tokens = int(read)
        if answer.finish_reason is not None:
            self._said_reason = end_named(answer.finish_reason)
        if answer.model != self.model:
            self.name_model(answer.model)
        thinking = self.think(len(str(answer.thinking))) if answer.thinking else ""
        text = thinking + self._unless_failure(answer.text or "", done=answer.done)
        if answer.done:
            self.over = True
            self.reason = self._said_reason or STOP
        return text

    def failed(self, error: ServerError) -> RequestError:
        """Return the request's error for what the bridges told."""
        return request_error(self._transport, error, key="JWT_SECRET")

    def rest(self) -> str:
        """Return what is left where the stream ended without its end; raises ``RequestError`` where that is a failure's."""
        lost = self._stream.lost is not None or self._cut
        whole = self._taken == 1 and not lost and (self._counted or self._stream.content_type not in STREAM_TYPES)
        if whole:
            self.reason = self._said_reason or STOP
        return self._unless_failure("", done=True, broken=not whole)

    def _unless_failure(self, text: str, *, done: bool, broken: bool = False) -> str:
        """Return what *text* adds to the answer, where that is not the text of a failure."""
        if self._held is None:
            return self.say(text) if text else ""
        held = self._held + text
        self._held = held
        if held.startswith(FAILURE_MARK):
            if done and (broken or not self.tokens):
                raise self.failed(ServerError(clean(held.removeprefix(FAILURE_MARK))))
            if not done:
                return ""
        elif not done and FAILURE_MARK.startswith(held):
            return ""
        self._held = None
        return self.say(held) if held else ""

    def _decode(self, line: bytes) -> GenerateAnswer | None:
        try:
            return _decoder.decode(line)
        except NONSENSE:
            pass
        try:
            # It takes lone surrogates, numbers that are none, and bytes that are no UTF-8.
            value = json.loads(line.decode(errors="surrogateescape"))
        except (ValueError, RecursionError):
            self.take_words(line.strip())
            return None
        error = error_in(value)
        if error is not None:
            raise self.failed(error)
        if not isinstance(value, dict):
            raise self.nonsense()
        self.odd, self.plain = True, False
        text = value.get("text")
        return GenerateAnswer(
            text=text if isinstance(text, str) else None,
            thinking=value.get("thinking"),
            done=value.get("done") is True,
            model=value.get("model"),
            tokens_generated=value.get("tokens_generated"),
            tokens_prompt=value.get("tokens_prompt"),
            finish_reason=value.get("finish_reason"),
        )


async def probe(transport: Transport) -> None:
    """Ask ``/health`` once, to learn how the bridges are; being told to ask less often means that they live."""
    with contextlib.suppress(RequestError):  # the transport has taken note
        answer = await transport.call("GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        if b'"degraded"' in answer.body:
            transport.health.learn("degraded", "it says so itself")


def pack(prompt: Prompt, *, examples: Sequence[Utterance] = ()) -> GenerateRequest:
    """
    Put *prompt* into the bridges' single-shot form; *examples* go before the conversation in the chat form alone.

    The newest message is always whole; of the history the latest messages that fit beside it are taken. Instructions that are
    too long for their field go on before that, in half of its room at most; what is over that is lost.
    """
    head = "Conversation so far:\n"
    tail = f"\nUser: {prompt.content}\nAssistant:" if prompt.content else "\nAssistant:"
    # What precedes a message is not worth a part of it.
    context = prompt.context if len(prompt.context) + 1 <= PROMPT_LIMIT_CHARS - len(head) - len(tail) else ""
    if context:
        tail = f"\n{context}{tail}"
    history = [one for one in prompt.history if one.role != "tool" and not one.calls]
    lines = [_line(utterance) for utterance in history]
    room = PROMPT_LIMIT_CHARS - len(head) - len(tail) - sum(len(one.content) for one in examples)
    system, more = _parted(prompt.system, room // 2)
    room -= len(more)
    first = first_kept([len(line) for line in lines], room, prompt.older)
    kept, lines = history[first:], lines[first:]
    messages = in_order([*examples, *kept], prompt.content, context)
    if more:
        messages[0].content = more + messages[0].content
    system = BETWEEN.join(part for part in (system, *system_texts(kept)) if part)
    return GenerateRequest(
        prompt=more + (head + "".join(lines) + tail if lines else with_context(prompt.content, context)),
        system_prompt=system[:SYSTEM_LIMIT_CHARS] or msgspec.UNSET,
        temperature=prompt.temperature,
        max_tokens=prompt.max_tokens,
        stream=True,
        messages=messages if len(messages) > 1 or kept else msgspec.UNSET,
        conversation_id=prompt.conversation_id or msgspec.UNSET,
    )


def _line(utterance: Utterance) -> str:
    text = answer_in(utterance.content) if utterance.role == "assistant" else utterance.content
    return f"{SPEAKERS[utterance.role]}: {text}\n"


def _parted(system: str, room: int) -> tuple[str, str]:
    """Return what of *system* fits into its field, to the end of a word, and what of the rest fits into *room*."""
    if len(system) <= SYSTEM_LIMIT_CHARS:
        return system, ""
    end = system.rfind(" ", 0, SYSTEM_LIMIT_CHARS) + 1 or SYSTEM_LIMIT_CHARS
    rest = system[end : end + max(0, room - len(BETWEEN))]
    return system[:end], rest + BETWEEN if rest else ""
