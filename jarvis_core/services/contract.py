"""The structs of the neighbours' own contracts; fields of our own are marked as such."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

FAILURE_MARK = "Error:"
"""How the text of a failure of the bridges starts, in an answer with status 200 and without counts or segments."""


NONSENSE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""Errors of decoding an answer that breaks the contract; the last where it is nested too deeply."""

Seconds = Annotated[float, Meta(ge=-1_000_000, le=1_000_000)]
"""A time in a clip; speech models are known to be a little early or late, but none is off by days."""


class CalledFunction(Struct):
    """What a call is of."""

    name: str
    arguments: str
    """JSON."""


class MessageCall(Struct):
    """A call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct):
    """One message of a chat prompt (OpenAI's vocabulary)."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[MessageCall] | UnsetType = UNSET
    """An assistant's."""
    tool_call_id: str | UnsetType = UNSET
    """A tool's."""


class GenerateRequest(Struct, omit_defaults=True):
    """
    ``POST /api/llm/generate`` of the bridges.

    ``stream``, ``messages`` and ``conversation_id`` are ours: the reference ignores them, the local stand-in understands them.
    """

    prompt: str
    """1..10,000 code points."""
    system_prompt: str | UnsetType = UNSET
    """At most 5,000 code points."""
    temperature: float | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    messages: list[ChatMessage] | UnsetType = UNSET
    conversation_id: str | UnsetType = UNSET


class ReadAheadRequest(Struct):
    """``POST /api/llm/read-ahead`` of the local stand-in: what the next prompt of a conversation will begin with."""

    system_prompt: str
    messages: list[ChatMessage]
    conversation_id: str


class GenerateAnswer(Struct):
    """The bridges' whole answer, or one line of their stream."""

    text: str | None = None
    thinking: Any = None
    """As Ollama has it; no part of the answer."""
    done: bool = False
    model: Any = None
    tokens_generated: Any = None
    tokens_prompt: Any = None
    finish_reason: Any = None
    error: Any = None
    """A text, or an object in which there is one."""


class StreamOptions(Struct):
    """Asks for the chunk with the token counts."""

    include_usage: bool = True


class OfferedFunction(Struct):
    """A tool, as a model is told of it."""

    name: str
    description: str
    parameters: Raw


class OfferedTool(Struct):
    """The only type of tool that these servers know."""

    function: OfferedFunction
    type: Literal["function"] = "function"


class ChosenName(Struct):
    """The name of a function."""

    name: str


class ChosenTool(Struct):
    """The one that is to be called."""

    function: ChosenName
    type: Literal["function"] = "function"


class CompletionRequest(Struct):
    """``POST /chat/completions``."""

    model: str
    messages: list[ChatMessage]
    temperature: float | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    stream_options: StreamOptions | UnsetType = UNSET
    max_completion_tokens: int | UnsetType = UNSET
    """What newer servers call ``max_tokens``."""
    tools: list[OfferedTool] | UnsetType = UNSET
    tool_choice: str | ChosenTool | UnsetType = UNSET


class Delta(Struct):
    """
    What a chunk adds, or the message of a whole completion.

    Strict is only what is needed; what the fields hold differs from server to server.
    """

    content: Any = None
    """A text, or a list of parts."""
    reasoning_content: Any = None
    """Thinking, like the two that follow."""
    reasoning: Any = None
    thinking: Any = None
    refusal: Any = None
    """What a model says in place of an answer."""
    tool_calls: Any = None
    function_call: Any = None


class Choice(Struct):
    """A choice of a chunk, of which one is asked for."""

    delta: Delta | None = None
    message: Delta | None = None
    """In a whole completion."""
    text: Any = None
    """In a completion of the older kind."""
    finish_reason: Any = None
    index: Any = None
    error: Any = None


class Completion(Struct):
    """One chunk of a chat completion, or a whole one."""

    choices: list[Choice] | None = None
    model: Any = None
    usage: Any = None
    """Token counts; their chunk has no choices."""
    error: Any = None


class Model(Struct):
    """A model of the server."""

    id: str


class Models(Struct):
    """``GET /models``."""

    data: list[Model] = []


class TranscribedSegment(Struct):
    """A stretch of a transcript, in seconds."""

    start: Seconds = 0.0
    end: Seconds = 0.0
    text: str | None = None


class TranscribeAnswer(Struct):
    """A transcript of the bridges; a failure is a text that starts with ``Error: ``."""

    text: str
    language: str | None = None
    confidence: float | None = None
    segments: list[TranscribedSegment] | None = None
    language_confidence: float | None = None
    """Ours, as is the next: how sure the local stand-in is of a language that it was to find out,"""
    enhanced: bool = False
    """and whether it took the words from ``enhanced_audio_data``."""


class TurnEndAnswer(Struct):
    """``POST /api/turn/end``, which is ours: the reference does not have it, the local stand-in does."""

    probability: Annotated[float, Meta(ge=0, le=1)]
    """That the turn is over."""


class SynthesizeRequest(Struct, omit_defaults=True):
    """``POST /api/tts/synthesize`` of the bridges: an explicit null is answered with 400 or 500."""

    text: str
    voice: str | UnsetType = UNSET
    speed: float | UnsetType = UNSET
    """0.5..2.0; a value outside passes their validation and then fails."""


class SynthesizeAnswer(Struct):
    """Speech; a failure has no samples."""

    audio_data: str
    """Base64 of float32 little-endian mono samples."""
    sample_rate: Annotated[float, Meta(ge=1, le=1_000_000, multiple_of=1)]
    """In Hz; some JSON encoders write 22050.0."""
    voice: str | None = None


class Voices(Struct):
    """``GET /api/tts/voices``: labels by id."""

    voices: dict[str, str]


class ProcessAnswer(Struct):
    """``POST /process`` of the audio engine; ``frames`` and ``latency_ms`` are not used."""

    audio_data: str


class EmbedRequest(Struct, omit_defaults=True):
    """``POST /api/embeddings/embed`` of the bridges; ``input_type`` is ours, which the reference ignores."""

    text: str
    """1..10,000 code points."""
    input_type: Literal["query", "passage"] | UnsetType = UNSET


class EmbedBatchRequest(Struct, omit_defaults=True):
    """``POST /api/embeddings/embed-batch`` of the bridges."""

    texts: list[str]
    input_type: Literal["query", "passage"] | UnsetType = UNSET


class EmbedAnswer(Struct):
    """A vector: base64 of float32 little-endian."""

    vector: str | list[float]
    """The latter where a server has unpacked it."""
    dimension: Annotated[float, Meta(ge=0, le=1_000_000, multiple_of=1)]
    """Some JSON encoders write 384.0."""


class EmbedBatchAnswer(Struct):
    """As many as there were texts."""

    embeddings: list[EmbedAnswer]


class EmbeddingsRequest(Struct):
    """``POST /embeddings`` of an OpenAI-compatible server."""

    model: str
    input: list[str]
    encoding_format: Literal["float"] | UnsetType = UNSET


class EmbeddingData(Struct):
    """One vector; *index* is the number of its input."""

    embedding: list[float] | str
    """Numbers as asked for, or base64 of float32 little-endian, which some servers always send."""
    index: int | None = None


class EmbeddingsAnswer(Struct):
    """All of them, in any order."""

    data: list[EmbeddingData]
    model: str | None = None
