"""
An OpenAI-compatible model server: what Ollama, llama.cpp, vLLM, LM Studio and LocalAI have in common, and what each has of its
own.

Set ``LLM_URL`` to ``llm_url``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import msgspec
from aiohttp import web

from tests.fakes.content import without_time

from .command import make_parser, read_mode, serve
from .content import embed, encode_base64, split_words
from .server import STREAM, FakeServer, Refusal, json_response
from .streams import StreamMode


class ModelServerMode(StreamMode, frozen=True, kw_only=True):
    """How the model server behaves; ``error_after`` sends ``data: {"error": …}``, ``pings`` are ``: ping`` comments."""

    shape: Literal["sse", "json", "pretty", "ndjson"] = "sse"
    """"json" answers whole although a stream was asked for, "pretty" so on many lines; "ndjson" has a chunk a line."""
    events: tuple[str, ...] | None = None
    """The exact data of the events in place of the deltas; the role, the finish reason and the usage are theirs to have."""
    frames: Literal["plain", "bom", "split", "no_blanks"] = "plain"
    """Of the event stream: with a byte-order mark before it, each event's data on two lines, no blank lines between events."""
    content: Literal["text", "parts"] = "text"
    """Of a delta and of a message: a text, or a list of parts as Mistral and OpenAI have it."""
    template: Literal["any", "alternating", "no_system"] = "any"
    """What order of messages is taken: any; what Gemma's, Mistral's and Qwen's templates take; the same without a system's."""
    refuses: tuple[str, ...] = ()
    """Fields of the request that are answered with an error, as ``refusal`` writes it."""
    refusal: Literal["openai", "mistral", "fastapi", "text", "in_200"] = "openai"
    context_refusal: Literal["llama_cpp", "openai", "vllm"] = "llama_cpp"
    """How ``context_tokens`` is said to be exceeded."""
    error_shape: Literal[
        "object", "string", "nested", "vllm", "fastapi", "anthropic", "list", "choice", "event", "field", "text"
    ] = "object"
    """How ``error_after`` tells of the error."""
    unexpected_endpoint: bool = False
    """Whatever is not under /v1 is answered with 200 and an error, as LM Studio does."""
    models: tuple[str, ...] = ("small-model",)
    """What /models lists."""
    check_model: bool = False
    """404 for a model that is not listed."""
    reasoning: str | None = None
    """Sent before the answer, which it is not part of."""
    reasoning_field: Literal["reasoning_content", "reasoning", "parts"] = "reasoning_content"
    """Where: a field of the delta, or parts of the content."""
    role_chunk: bool = True
    """Open with a chunk of the role and null content."""
    finish_reason: str | None = "stop"
    """In the last chunk with a choice; None leaves that chunk out, as a server that breaks down does."""
    usage: Literal["asked", "always", "never"] = "asked"
    """The chunk with empty ``choices``: when ``stream_options.include_usage`` asks for it, or always, or never."""
    float_usage: bool = False
    """Counts with a decimal point."""
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


class ModelCalls(msgspec.Struct, frozen=True):
    """An answer that calls tools, after some text or none; in OpenAI's own shape."""

    calls: tuple[tuple[str, str], ...]
    """(name, arguments) of each."""
    text: str = ""

    def message(self) -> dict[str, object]:
        """Return it as a whole message."""
        calls = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in self.numbered()
        ]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}

    def events(self, model: str, *, with_usage: bool) -> tuple[str, ...]:
        """Return it as the data of events: each call's arguments come in two pieces."""
        deltas: list[dict[str, object]] = [{"role": "assistant", "content": None}]
        deltas += [{"content": word} for word in split_words(self.text)]
        for index, (call_id, name, arguments) in enumerate(self.numbered()):
            half = len(arguments) // 2
            begun = {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            deltas.append({"tool_calls": [{"index": index, **begun}]})
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": part}}]}
                for part in (arguments[:half], arguments[half:])
            ]
        choices: list[dict[str, object]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
        chunks: list[dict[str, object]] = [{"choices": [choice]} for choice in choices]
        if with_usage:
            chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        return tuple(msgspec.json.encode(head | chunk).decode() for chunk in chunks)

    def numbered(self) -> list[tuple[str, str, str]]:
        """Return (id, name, arguments) of each; the ids of another answer are others."""
        head = f"call_{id(self):x}"
        return [(f"{head}_{number}", name, arguments) for number, (name, arguments) in enumerate(self.calls)]


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
        self.reply: Callable[[dict[str, Any]], str | ModelCalls] | None = None
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
            web.route("*", "/{path:.*}", self._no_endpoint),
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

    async def _no_endpoint(self, request: web.Request) -> web.Response:
        if not self.mode.unexpected_endpoint:
            raise Refusal(404, "Not found")
        message = f"Unexpected endpoint or method. ({request.method} {request.path}). Returning 200 anyway"
        return json_response({"error": message})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        mode = self.mode
        body = await self._read(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refusal(400, "'messages' is a required property")
        check_template(mode, messages)
        refused = next((name for name in mode.refuses if name in body), None)
        if refused is not None:
            return refuse_field(refused, mode.refusal)
        prompt_tokens = sum(len(split_words(content_text(message))) for message in messages)
        if mode.context_tokens is not None and prompt_tokens > mode.context_tokens:
            return exceed_context(prompt_tokens, mode.context_tokens, mode.context_refusal)
        answer = self._answer_text(body, messages)
        model = str(body.get("model", mode.models[0]))
        text = answer if isinstance(answer, str) else answer.text
        if isinstance(answer, ModelCalls):
            mode = msgspec.structs.replace(mode, events=answer.events(model, with_usage=_asks_usage(body)))
        if body.get("stream") is True and mode.shape in ("sse", "ndjson"):
            script = ChunkScript(mode, model, prompt_tokens, asked_usage=_asks_usage(body))
            if mode.events is not None:
                mode = msgspec.structs.replace(mode, deltas=mode.events)
            return await self.play(request, mode, script, text)
        if mode.first_delay_s:
            await asyncio.sleep(mode.first_delay_s)
        if mode.hold_after is not None:
            await self.gate.enter()
        request[STREAM].whole = True
        if mode.deltas is not None:
            text = "".join(mode.deltas)
        message: dict[str, object] = {"role": "assistant", "content": content_of(mode, text)}
        if mode.reasoning is not None:
            message |= reasoning_of(mode, mode.reasoning, text)
        if isinstance(answer, ModelCalls):
            message = answer.message()
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": mode.finish_reason}],
            "usage": _usage(mode, prompt_tokens, len(split_words(text))),
        }
        if mode.shape == "pretty":
            return web.Response(
                body=msgspec.json.format(msgspec.json.encode(completion)), content_type="application/json"
            )
        return json_response(completion)

    def _answer_text(self, body: dict[str, Any], messages: list[Any]) -> str | ModelCalls:
        if self.reply is not None:
            return self.reply(body)
        if self.mode.answer is not None:
            return self.mode.answer
        said = [content_text(message) for message in messages if message.get("role") == "user"]
        return f"You said: {without_time(said[-1]).strip() if said else ''}"

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
        self._end = b"\n\n"
        if mode.shape == "ndjson":
            self._field, self._end = b"", b"\n"
            self.content_type = "application/x-ndjson"
        elif mode.frames == "no_blanks":
            self._end = b"\n"

    def opening(self) -> bytes:
        """Write the role, then the reasoning."""
        mode = self._mode
        head = b"\xef\xbb\xbf" if mode.frames == "bom" else b""
        if mode.events is not None:
            return head
        if mode.role_chunk:
            head += self._choice({"role": "assistant", "content": None})
        for words in split_words(mode.reasoning or ""):
            head += self._choice(reasoning_of(mode, words))
        return head

    def delta(self, text: str) -> bytes:
        """Write ``choices[0].delta.content``."""
        return (
            self.raw(text) if self._mode.events is not None else self._choice({"content": content_of(self._mode, text)})
        )

    def empty(self) -> bytes:
        """Write a delta without a character."""
        return self._choice({"content": ""})

    def error(self, message: str) -> bytes:
        """Write the error as ``error_shape`` says."""
        fields = {"code": 500, "message": message, "type": "server_error"}
        whole: dict[str, object] = {"error": fields}
        match self._mode.error_shape:
            case "string":
                whole = {"error": message}
            case "nested":
                whole = {
                    "error": {"message": {"detail": [{"loc": ["body"], "msg": message, "type": "x"}]}, "code": None}
                }
            case "vllm":
                whole = {"object": "error", **fields}
            case "fastapi":
                whole = {"detail": message}
            case "anthropic":
                whole = {"type": "error", "error": {"type": "overloaded", "message": message}}
            case "choice":
                whole = {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": fields}]}
            case "list":
                return self.raw(msgspec.json.encode([whole]).decode())
            case "event":
                return b"event: error\n" + self.raw(msgspec.json.encode(fields).decode())
            case "field":
                return b"error: " + msgspec.json.encode(fields) + b"\n\n"
            case "text":
                return self.raw(f"[ERROR] {message}")
            case _:
                pass
        return self.raw(msgspec.json.encode(whole).decode())

    def raw(self, line: str) -> bytes:
        """Write *line* as an event's data."""
        data = line.encode()
        if self._mode.frames == "split":
            # Between two fields; never within a text, as long as that has no comma before a quote.
            at = data.find(b',"') + 1
            data = data[:at] + b"\n" + self._field + data[at:] if at else data
        return self._field + data + self._end

    def ping(self) -> bytes:
        """Write a comment."""
        return b": ping\n\n"

    def closing(self, deltas: int) -> bytes:
        """Write the finish reason, the usage and ``[DONE]``."""
        tail = b""
        if self._mode.events is None:
            if self._mode.finish_reason is not None:
                tail += self._choice({}, self._mode.finish_reason)
            if self._with_usage and not self._mode.omit_counts:
                tail += self._event({"choices": [], "usage": _usage(self._mode, self._prompt_tokens, deltas)})
        return tail + (self.raw("[DONE]") if self._mode.done_marker else b"")

    def _choice(self, delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        return self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def _event(self, fields: dict[str, object]) -> bytes:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self._model}
        return self.raw(msgspec.json.encode(head | fields).decode())


def content_text(message: dict[str, Any]) -> str:
    """Return a message's text, whether its content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""


def _asks_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _usage(mode: ModelServerMode, prompt_tokens: int, tokens: int) -> dict[str, float]:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    # A float that is whole would be written as one; servers that have floats also have means.
    return {name: count + 0.5 for name, count in counts.items()} if mode.float_usage else dict(counts)


def content_of(mode: ModelServerMode, text: str) -> object:
    """Return *text* as the content of a delta or a message."""
    return [{"type": "text", "text": text}] if mode.content == "parts" else text


def reasoning_of(mode: ModelServerMode, thinking: str, answer: str = "") -> dict[str, object]:
    """Return the fields of a delta or a message that have *thinking*, and the *answer* where both are in one."""
    if mode.reasoning_field != "parts":
        return {mode.reasoning_field: thinking}
    parts: list[object] = [{"type": "thinking", "thinking": [{"type": "text", "text": thinking}], "closed": False}]
    return {"content": [*parts, {"type": "text", "text": answer}] if answer else parts}


def check_template(mode: ModelServerMode, messages: list[dict[str, Any]]) -> None:
    """Raise ``Refusal`` where a template would."""
    if mode.template == "any":
        return
    roles = [message.get("role") for message in messages]
    if roles[0] == "system":
        if mode.template == "no_system":
            raise Refusal(500, "Error rendering prompt: System role not supported")
        roles = roles[1:]
    if "system" in roles:
        raise Refusal(400, "System message must be at the beginning.")
    if roles != ["user" if index % 2 == 0 else "assistant" for index in range(len(roles))]:
        raise Refusal(400, "Conversation roles must alternate user/assistant/user/assistant/...")
    if not all(content_text(message).strip() for message in messages):
        raise Refusal(400, "Assistant message must have either content or tool_calls, but not none.")


def refuse_field(name: str, shape: str) -> web.Response:
    """Refuse the field *name* of a request, as servers do."""
    other = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
    error: dict[str, object] = {
        "message": f"Unsupported parameter: '{name}' is not supported with this model.{other}",
        "type": "invalid_request_error",
        "param": name,
        "code": "unsupported_parameter",
    }
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 1}]
    match shape:
        case "mistral":
            body = {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error", "code": None}
            return json_response(body, 422)
        case "fastapi":
            return json_response({"detail": detail}, 422)
        case "text":
            return web.Response(status=400, text=f"unknown field `{name}`, expected one of `model`, `messages`")
        case "in_200":
            return json_response({"error": error})
        case _:
            return json_response({"error": error}, 400)


def exceed_context(prompt_tokens: int, context_tokens: int, shape: str) -> web.Response:
    """Refuse a prompt that is too long, as servers do."""
    said = (
        f"This model's maximum context length is {context_tokens} tokens. However, you requested {prompt_tokens} tokens"
    )
    error: dict[str, object] = {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": prompt_tokens,
        "n_ctx": context_tokens,
    }
    if shape == "openai":
        error = {
            "message": said,
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    elif shape == "vllm":
        return json_response({"object": "error", "message": said, "type": "BadRequestError", "code": 400}, 400)
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
