"""
The Python bridges' language model.

Their prompt is single-shot: the history is packed into ``prompt`` within 10,000 code points, the latest messages first.
The chat form goes along as ``messages`` for those who understand it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from jarvis_core.errors import BadGateway, RequestError
from jarvis_core.models import Caller, Finish, Prompt, Utterance
from jarvis_core.services.contract import FAILURE_MARK, NONSENSE, ChatMessage, GenerateAnswer, GenerateRequest
from jarvis_core.services.lines import LineBuffer
from jarvis_core.services.stream import Stream
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Llm

PROMPT_LIMIT_CHARS = 10_000
SYSTEM_LIMIT_CHARS = 5_000
PROBE_TIMEOUT_S = 5.0
ANSWER_LIMIT_BYTES = 4 << 20

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(GenerateAnswer)


class BridgesModel:
    """The bridges' language model; streams where they can, takes the whole answer where they cannot."""

    history_limit_chars = PROMPT_LIMIT_CHARS

    def __init__(self, transport: Transport, settings: Llm, mint: TokenMint | None) -> None:
        self._transport = transport
        self._settings = settings
        self._mint = mint
        self._streams = False
        """Whether this neighbour has been seen to stream."""

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[str | Finish]]:
        """
        Ask the model, as ``LanguageModel`` has it.

        A neighbour that has not been seen to stream may be thinking up its whole answer before its first byte (the
        reference gives its own model 120 s), so it has twice the first-token deadline.
        """
        headers = {"Content-Type": "application/json"}
        if self._mint is not None:
            headers["Authorization"] = "Bearer " + self._mint.token(caller)
        first_token_timeout_s = self._settings.first_token_timeout_s
        async with self._transport.stream(
            "POST",
            "/api/llm/generate",
            body=_encoder.encode(pack(prompt)),
            headers=headers,
            first_byte_timeout_s=first_token_timeout_s if self._streams else 2 * first_token_timeout_s,
            stall_timeout_s=self._settings.stall_timeout_s,
            total_timeout_s=self._settings.total_timeout_s,
        ) as stream:
            if stream.content_type == "application/json":
                self._streams = False
                yield self._whole(stream)
            elif stream.content_type in ("application/x-ndjson", "text/event-stream"):
                self._streams = True
                yield self._pieces(stream)
            else:
                raise BadGateway(f"{self._transport.name} answered with {stream.content_type}.")

    async def _whole(self, stream: Stream) -> AsyncIterator[str | Finish]:
        parts = []
        length = 0
        while chunk := await stream.read():
            parts.append(chunk)
            length += len(chunk)
            if length > ANSWER_LIMIT_BYTES:
                parts.clear()  # or the error would hold them, wherever it is kept
                raise BadGateway(f"{self._transport.name} sent more than {ANSWER_LIMIT_BYTES >> 20} MiB.")
        if stream.lost:
            raise self._transport.lost(stream)
        answer = self._decode(b"".join(parts))
        if answer.error:
            raise self._failed(answer.error)
        if answer.text is None:
            raise self._nonsense()
        if answer.text.startswith(FAILURE_MARK) and not answer.tokens_generated:
            raise self._failed(answer.text)
        if answer.text:
            yield answer.text
        yield _finish(answer)

    async def _pieces(self, stream: Stream) -> AsyncIterator[str | Finish]:
        buffer = LineBuffer()
        held: str | None = ""
        """Text that may yet turn out to be a failure's; None once it cannot be."""
        while True:
            chunk = await stream.read()
            if not chunk and stream.lost is not None:
                break  # what is left of a line was cut off
            for line in buffer.feed(chunk) if chunk else buffer.end():
                answer = self._decode(line)
                text = answer.text or ""
                if held is not None:
                    if text and not held:
                        stream.begin()
                    held += text
                    if held.startswith(FAILURE_MARK) or FAILURE_MARK.startswith(held):
                        text = ""
                        if answer.done and held.startswith(FAILURE_MARK) and not answer.tokens_generated:
                            raise self._failed(held)
                    if text or answer.done:
                        text, held = held, None
                if answer.error:
                    raise self._failed(answer.error)
                if text:
                    yield text
                if answer.done:
                    await stream.finish()
                    yield _finish(answer)
                    return
            if not chunk:
                break
        if held:
            if held.startswith(FAILURE_MARK):
                raise self._failed(held)
            yield held
        elif held is not None:
            raise self._transport.lost(stream) if stream.lost else self._nonsense()
        yield Finish(stream.lost or "lost")

    def _decode(self, text: bytes) -> GenerateAnswer:
        try:
            return _decoder.decode(text)
        except NONSENSE as exc:
            raise self._nonsense() from exc

    def _nonsense(self) -> BadGateway:
        self._transport.health.learn("degraded", "it answered nonsense")
        return BadGateway(f"{self._transport.name} sent what is not its contract.")

    def _failed(self, text: str) -> BadGateway:
        self._transport.health.learn("degraded", text[:200])
        return BadGateway(f"{self._transport.name} reported that its language model failed.")


async def probe(transport: Transport) -> None:
    """Ask ``/health`` once, to learn how the bridges are; being told to ask less often means that they live."""
    with contextlib.suppress(RequestError):  # the transport has taken note
        answer = await transport.call("GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        if b'"degraded"' in answer.body:
            transport.health.learn("degraded", "it says so itself")


def pack(prompt: Prompt) -> GenerateRequest:
    """
    Put *prompt* into the bridges' single-shot form.

    The newest message is always whole; of the history the latest messages that fit beside it are taken.
    """
    head = "Conversation so far:\n"
    tail = f"\nUser: {prompt.content}\nAssistant:"
    room = PROMPT_LIMIT_CHARS - len(head) - len(tail)
    kept: list[Utterance] = []
    lines: list[str] = []
    for utterance in reversed(prompt.history):
        line = f"{'User' if utterance.role == 'user' else 'Assistant'}: {utterance.content}\n"
        room -= len(line)
        if room < 0:
            break
        kept.append(utterance)
        lines.append(line)
    kept.reverse()
    messages = [ChatMessage("assistant" if one.role == "assistant" else "user", one.content) for one in kept]
    return GenerateRequest(
        prompt=head + "".join(reversed(lines)) + tail if lines else prompt.content,
        system_prompt=prompt.system[:SYSTEM_LIMIT_CHARS] or msgspec.UNSET,
        temperature=prompt.temperature,
        max_tokens=prompt.max_tokens,
        stream=True,
        messages=[*messages, ChatMessage("user", prompt.content)] if messages else msgspec.UNSET,
    )


def _finish(answer: GenerateAnswer) -> Finish:
    return Finish("length" if answer.finish_reason == "length" else "stop", answer.tokens_generated, answer.model)
