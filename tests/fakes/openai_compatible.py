"""
An OpenAI-compatible model server: what Ollama, llama.cpp, vLLM, LM Studio and LocalAI have in common.

Set ``LLM_URL`` to ``llm_url``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import msgspec
from aiohttp import web

from .command import make_parser, read_mode, serve
from .content import embed, encode_base64, split_words
from .server import STREAM, FakeServer, Refusal, json_response
from .streams import StreamMode


class ModelServerMode(StreamMode, frozen=True, kw_only=True):
    """How the model server behaves; ``error_after`` sends ``data: {"error": …}``, ``pings`` are ``: ping`` comments."""

    shape: Literal["sse", "json"] = "sse"
    """"json" answers whole although a stream was asked for."""
    models: tuple[str, ...] = ("small-model",)
    """What /models lists."""
    check_model: bool = False
    """404 for a model that is not listed."""
    reasoning: str | None = None
    """Sent as ``delta.reasoning_content`` before the answer, which it is not part of."""
    role_chunk: bool = True
    """Open with a chunk of the role and null content."""
    finish_reason: Literal["stop", "length", "content_filter"] | None = "stop"
    """In the last chunk with a choice; None leaves that chunk out, as a server that breaks down does."""
    usage: Literal["asked", "always", "never"] = "asked"
    """The chunk with empty ``choices``: when ``stream_options.include_usage`` asks for it, or always, or never."""
    done_marker: bool = True
    """False leaves out ``[DONE]`` alone; ``omit_done`` leaves out the finish reason and the usage too."""
    field_space: bool = True
    """Write ``data: {…}``; False writes the equally legal ``data:{…}``."""
    context_tokens: int | None = None
    """400 ``exceed_context_size_error`` when the messages have more words than that."""
    dimension: int = 384
    """Of the vectors."""
    vectors: Literal["words", "zero", "huge", "null", "base64", "missing", "reversed", "no_index"] = "words"
    """
    Good ones, or: all zeros, whose squares overflow, of nulls (what NaN is in JSON), packed although floats were asked
    for, one fewer than there are texts, the last text's first, without ``index``.
    """


_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


class FakeModelServer(FakeServer[ModelServerMode]):
    """The model server; with an *api_key* it answers 401 to any other."""

    model_paths: ClassVar[frozenset[str]] = frozenset({"/v1/chat/completions"})

    def __init__(self, api_key: str | None = None, *, mode: ModelServerMode | None = None, port: int = 0) -> None:
        super().__init__(mode or ModelServerMode(), port=port)
        self.api_key = api_key
        self.reply: Callable[[dict[str, Any]], str] | None = None
        """Makes the answer from the request body; the mode's ``answer`` and "You said: " stand behind it."""

    @property
    def llm_url(self) -> str:
        """What ``LLM_URL`` is set to."""
        return f"{self.url}/v1"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self._health),
            web.get("/v1/models", self._models),
            web.post("/v1/chat/completions", self._complete),
            web.post("/v1/embeddings", self._embed),
        ]

    def error_response(self, status: int, message: str) -> web.Response:
        kind = _ERROR_TYPES.get(status, "server_error")
        return json_response({"error": {"code": status, "message": message, "type": kind}}, status)

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        self._admit(request)
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "fake"} for name in self.mode.models]
        return json_response({"object": "list", "data": data})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        mode = self.mode
        body = await self._read(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refusal(400, "'messages' is a required property")
        prompt_tokens = sum(len(split_words(content_text(message))) for message in messages)
        if mode.context_tokens is not None and prompt_tokens > mode.context_tokens:
            return _exceed_context(prompt_tokens, mode.context_tokens)
        text = self._answer_text(body, messages)
        model = str(body.get("model", mode.models[0]))
        if body.get("stream") is True and mode.shape == "sse":
            script = ChunkScript(mode, model, prompt_tokens, asked_usage=_asks_usage(body))
            return await self.play(request, mode, script, text)
        if mode.first_delay_s:
            await asyncio.sleep(mode.first_delay_s)
        if mode.hold_after is not None:
            await self.gate.enter()
        request[STREAM].whole = True
        message = {"role": "assistant", "content": text}
        if mode.reasoning is not None:
            message["reasoning_content"] = mode.reasoning
        return json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": model,
                "choices": [{"index": 0, "message": message, "finish_reason": mode.finish_reason}],
                "usage": _usage(prompt_tokens, len(split_words(text))),
            }
        )

    def _answer_text(self, body: dict[str, Any], messages: list[Any]) -> str:
        if self.reply is not None:
            return self.reply(body)
        if self.mode.answer is not None:
            return self.mode.answer
        said = [content_text(message) for message in messages if message.get("role") == "user"]
        return f"You said: {said[-1].strip() if said else ''}"

    async def _embed(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refusal(400, "'input' must be a string or a list of strings")
        mode = self.mode.vectors
        packed = body.get("encoding_format") == "base64" or mode == "base64"
        data: list[dict[str, object]] = []
        for index, text in enumerate(texts):
            vector = embed(text, self.mode.dimension)
            values: object = encode_base64(vector) if packed else memoryview(vector).cast("f").tolist()
            if mode in ("zero", "huge", "null"):
                values = [{"zero": 0, "huge": 1.3e154, "null": None}[mode]] * self.mode.dimension
            place = {} if mode == "no_index" else {"index": index}
            data.append({"object": "embedding", **place, "embedding": values})
        data = data[:-1] if mode == "missing" else data[::-1] if mode == "reversed" else data
        tokens = sum(len(split_words(text)) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "model": body.get("model"), "data": data, "usage": usage})

    async def _read(self, request: web.Request) -> dict[str, Any]:
        self._admit(request)
        try:
            body = msgspec.json.decode(await request.read(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Refusal(400, f"invalid JSON: {error}") from error
        if self.mode.check_model and body.get("model") not in self.mode.models:
            raise Refusal(404, f"model '{body.get('model')}' not found")
        return body

    def _admit(self, request: web.Request) -> None:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise Refusal(401, "Invalid API Key")


class ChunkScript:
    """Writes ``chat.completion.chunk`` events."""

    content_type = "text/event-stream"

    def __init__(self, mode: ModelServerMode, model: str, prompt_tokens: int, *, asked_usage: bool) -> None:
        self._mode = mode
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._with_usage = mode.usage == "always" or (mode.usage == "asked" and asked_usage)
        self._field = b"data: " if mode.field_space else b"data:"

    def opening(self) -> bytes:
        """Write the role, then the reasoning."""
        head = b""
        if self._mode.role_chunk:
            head = self._choice({"role": "assistant", "content": None})
        for words in split_words(self._mode.reasoning or ""):
            head += self._choice({"reasoning_content": words})
        return head

    def delta(self, text: str) -> bytes:
        """Write ``choices[0].delta.content``."""
        return self._choice({"content": text})

    def error(self, message: str) -> bytes:
        """Write the error as the only field of an event."""
        return self._event({"error": {"code": 500, "message": message, "type": "server_error"}})

    def raw(self, line: str) -> bytes:
        """Write *line* as an event's data."""
        return self._field + line.encode() + b"\n\n"

    def ping(self) -> bytes:
        """Write a comment."""
        return b": ping\n\n"

    def closing(self, deltas: int) -> bytes:
        """Write the finish reason, the usage and ``[DONE]``."""
        tail = b""
        if self._mode.finish_reason is not None:
            tail += self._choice({}, self._mode.finish_reason)
        if self._with_usage and not self._mode.omit_counts:
            tail += self._event({"choices": [], "usage": _usage(self._prompt_tokens, deltas)})
        return tail + (self.raw("[DONE]") if self._mode.done_marker else b"")

    def _choice(self, delta: dict[str, str | None], finish_reason: str | None = None) -> bytes:
        return self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def _event(self, fields: dict[str, object]) -> bytes:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self._model}
        return self._field + msgspec.json.encode(fields if "error" in fields else head | fields) + b"\n\n"


def content_text(message: dict[str, Any]) -> str:
    """Return a message's text, whether its content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""


def _asks_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


def _exceed_context(prompt_tokens: int, context_tokens: int) -> web.Response:
    """Refuse as llama.cpp does."""
    error = {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": prompt_tokens,
        "n_ctx": context_tokens,
    }
    return json_response({"error": error}, 400)


def main() -> None:
    """Serve until told to stop."""
    parser = make_parser("Fake OpenAI-compatible model server")
    parser.add_argument("--api-key", help="refuse any other; without it any is taken")
    parser.add_argument("--delta-delay-s", type=float)
    options = parser.parse_args()
    mode = read_mode(options, ModelServerMode, delta_delay_s=options.delta_delay_s)
    serve(FakeModelServer(options.api_key, mode=mode, port=options.port))


if __name__ == "__main__":
    main()
