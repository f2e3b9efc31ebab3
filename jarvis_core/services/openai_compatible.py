"""OpenAI-compatible model servers: Ollama, llama.cpp, vLLM, LM Studio, LocalAI and their like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from jarvis_core.errors import BadGateway, InvalidRequest
from jarvis_core.models import Caller, Finish, Prompt
from jarvis_core.services.contract import NONSENSE, ChatMessage, Completion, CompletionRequest, Models
from jarvis_core.services.lines import LineBuffer
from jarvis_core.services.stream import Stream
from jarvis_core.services.transport import Refused, Transport
from jarvis_core.settings import Llm

BYTES_PER_TOKEN = 3
"""An estimate on the safe side: English has about 4 bytes of UTF-8 a token, French 3.5, Chinese 3."""
TOKENS_PER_MESSAGE = 8
"""What a chat template puts around each message, at most."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Completion)
_models_decoder = msgspec.json.Decoder(Models)


class OpenAiModel:
    """A model behind ``POST /chat/completions``."""

    def __init__(self, transport: Transport, settings: Llm) -> None:
        self._transport = transport
        self._settings = settings
        self._model = settings.model or ""
        self._headers = {"Content-Type": "application/json"}
        if settings.api_key is not None:
            self._headers["Authorization"] = "Bearer " + settings.api_key.reveal()
        self.history_limit_chars = settings.context_tokens * BYTES_PER_TOKEN

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[str | Finish]]:
        """Ask the model, as ``LanguageModel`` has it; *caller* is not told to it."""
        if not self._model:
            self._model = await self._first_model()
        request = CompletionRequest(
            model=self._model,
            messages=fit(prompt, self._settings.context_tokens),
            temperature=prompt.temperature,
            max_tokens=prompt.max_tokens,
        )
        try:
            async with self._transport.stream(
                "POST",
                "/chat/completions",
                body=_encoder.encode(request),
                headers=self._headers,
                first_byte_timeout_s=self._settings.first_token_timeout_s,
                stall_timeout_s=self._settings.stall_timeout_s,
                total_timeout_s=self._settings.total_timeout_s,
            ) as stream:
                if stream.content_type != "text/event-stream":
                    raise BadGateway(f"{self._transport.name} answered with {stream.content_type}.")
                yield self._pieces(stream)
        except Refused as exc:
            if exc.status == 400 and b"exceed_context_size" in exc.answer:
                raise InvalidRequest.field("$.content", "is longer than the model can read") from exc
            raise

    async def _pieces(self, stream: Stream) -> AsyncIterator[str | Finish]:
        buffer = LineBuffer()
        reason = None
        tokens = None
        model = self._model
        any_text = False
        while True:
            data = await stream.read()
            if not data and stream.lost is not None:
                break  # what is left of a line was cut off
            for line in buffer.feed(data) if data else buffer.end():
                if line == b"[DONE]":
                    await stream.finish()
                    yield Finish("length" if reason == "length" else "stop", tokens, model)
                    return
                chunk = self._decode(line)
                if chunk.usage is not None and chunk.usage.completion_tokens is not None:
                    tokens = chunk.usage.completion_tokens
                model = chunk.model or model
                for choice in chunk.choices or ():
                    reason = choice.finish_reason or reason
                    if choice.delta is not None and choice.delta.content:
                        if not any_text:
                            stream.begin()
                            any_text = True
                        yield choice.delta.content
            if not data:
                break
        if reason is not None:
            # Some servers leave out [DONE]; the model's own end has been seen.
            yield Finish("length" if reason == "length" else "stop", tokens, model)
        elif any_text:
            yield Finish(stream.lost or "lost", tokens, model)
        elif stream.lost is not None:
            raise self._transport.lost(stream)
        else:
            raise BadGateway(f"{self._transport.name} ended its stream without an answer.")

    def _decode(self, line: bytes) -> Completion:
        try:
            chunk = _decoder.decode(line)
        except NONSENSE as exc:
            raise BadGateway(f"{self._transport.name} sent what is not its contract.") from exc
        if bytes(chunk.error) not in (b"", b"null"):
            self._transport.health.learn("degraded", bytes(chunk.error)[:200].decode(errors="replace"))
            raise BadGateway(f"{self._transport.name} reported that its language model failed.")
        return chunk

    async def _first_model(self) -> str:
        answer = await self._transport.call(
            "GET", "/models", headers=self._headers, timeout_s=self._settings.first_token_timeout_s
        )
        try:
            models = _models_decoder.decode(answer.body)
        except NONSENSE as exc:
            raise BadGateway(f"{self._transport.name} sent what is not its contract.") from exc
        if not models.data:
            raise BadGateway(f"{self._transport.name} has no model; load one, or name it in LLM_MODEL.")
        return models.data[0].id


def fit(prompt: Prompt, context_tokens: int) -> list[ChatMessage]:
    """
    Return the chat messages for *prompt*: as many of the latest of its history as fit, by estimate.

    What the model may write is left free, but never more than half of the context for it.
    """
    room = context_tokens - min(prompt.max_tokens, context_tokens // 2)
    room -= estimate_tokens(prompt.system) + estimate_tokens(prompt.content)
    kept: list[ChatMessage] = []
    for utterance in reversed(prompt.history):
        room -= estimate_tokens(utterance.content)
        if room < 0:
            break
        kept.append(ChatMessage(utterance.role, utterance.content))
    kept.reverse()
    system = [ChatMessage("system", prompt.system)] if prompt.system else []
    return [*system, *kept, ChatMessage("user", prompt.content)]


def estimate_tokens(text: str) -> int:
    """Return about how many tokens *text* is inside a chat prompt; rather too many."""
    length = len(text) if text.isascii() else len(text.encode())
    return length // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
