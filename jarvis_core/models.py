"""The domain's structs (conversations, messages, prompts, transcripts, speech) and the protocols of its neighbours."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal, Protocol

import uuid_utils
from msgspec import UNSET, Raw, Struct, UnsetType

HEX_AND_DASH = frozenset("0123456789abcdefABCDEF-")

CHARS_PER_TOKEN_LIMIT = 32
"""A model that sends more code points than this for each token that it was allowed is cut off."""

Role = Literal["system", "user", "assistant"]
HealthState = Literal["healthy", "degraded", "unavailable"]
"""A neighbour's, as calls and probes show it."""


class Status(enum.StrEnum):
    """How a turn stands, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    """The model said all that it wanted to say."""
    INCOMPLETE = "incomplete"
    """Cut short: ``max_tokens``, a lost or stalled stream, a filter, the server's end."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """Nothing was said."""


class Caller(Struct, frozen=True):
    """The user on whose behalf a request is made."""

    user_id: str
    username: str = ""


class Conversation(Struct, frozen=True):
    """A stored conversation."""

    id: str
    title: str
    summary: str | None
    created_at: datetime
    updated_at: datetime
    message_count: int
    archived: bool


class Message(Struct, frozen=True):
    """A stored message; an assistant's has the id of its turn."""

    id: str
    conversation_id: str
    role: Role
    content: str
    timestamp: datetime
    tokens: int | None
    """Tokens that the model generated; None for a user's message."""
    model: str | None
    status: Status
    heard_ms: int | None = None
    """How much of its sound was heard, where that was interrupted; its content is what was heard."""
    unheard: str | UnsetType = UNSET
    """The words that were not heard, where they were asked for."""
    type: Literal["message", "function_call", "function_call_output"] = "message"
    call_id: str | UnsetType = UNSET
    """Of a call of a tool and of its output, as the name is."""
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    """A call's, as JSON."""
    output: str | UnsetType = UNSET


class ToolTime(Struct, frozen=True, gc=False):
    """One call of a tool."""

    name: str
    outcome: str
    """``finished``, ``failed``, ``unknown``, ``waiting`` for its client, or ``asked`` whether it may be made."""
    ms: int | None = None
    """How long it took, where it was made here."""


class Receipt(Struct, gc=False):
    """
    How long the parts of one turn took, in milliseconds; null where there was no such part, or it is not known yet.

    Counted from the end of the speech that was answered (``input_audio_buffer.committed``), else from the request's arrival.
    """

    end_of_turn_ms: float | None = None
    """From the last of the speech to its end, counted in samples."""
    transcription_ms: float | None = None
    """Until the words of the speech were known."""
    recall_ms: float | None = None
    """How long memories were looked for."""
    first_token_ms: float | None = None
    """Until the model's first text."""
    first_sentence_ms: float | None = None
    """Until there were enough words for the voice to begin with."""
    voice_ms: float | None = None
    """Until the first sound of the answer was sent."""
    total_ms: float | None = None
    """Until the model had said all, or was stopped."""
    voice_to_voice_ms: float | None = None
    """From the last of the speech to the first sound: ``end_of_turn_ms`` and ``voice_ms`` together."""
    end_probability: float | None = None
    """How sure the end-of-turn model was that the speech was over, 0..1."""
    heard_ms: int | None = None
    """How much of the answer's sound was heard, where that was interrupted."""
    tools: list[ToolTime] = []
    """The calls of tools, in order."""


class Heard(Struct, array_like=True, frozen=True):
    """How much of an answer was heard."""

    chars: int
    """Code points of its text, from its beginning."""
    ms: int
    """Of its sound."""


class TurnRecord(Struct, frozen=True):
    """A turn as the store has it."""

    id: str
    conversation_id: str
    user_message_id: str | None
    """None where the assistant spoke without being asked."""
    status: Status
    reason: str | None
    """Why it ended so: ``stop``, ``max_tokens``, ``stream_lost``, ``stalled``, ``server_stopped``, an error's code …"""
    content: str
    tokens: int
    model: str
    memories: list[str]
    started_at: datetime
    ended_at: datetime | None
    error: str | None
    """For a person, where the turn failed."""
    worker: str | None
    """The id of the worker process that runs it, or ran it; None where an older version did."""
    prompt_tokens: int = 0
    """Read by the model; 0 where its server did not say."""
    heard_ms: int | None = None
    """As a message's."""
    receipt: Receipt | None = None


class Memory(Struct, frozen=True):
    """A stored entry."""

    id: str
    content: str
    importance: float
    created_at: datetime
    updated_at: datetime
    """When it was last changed, or an entry with the same meaning was added."""
    source: str | None
    embedded: bool
    """Whether it has a vector, of any model."""
    superseded_by: str | None = None
    """The id of the entry that replaced it; such an entry is only fetched by its own id."""


class IdempotencyKey(Struct, frozen=True):
    """A caller's own name for a request, so that a retry is known as one."""

    text: str
    request_hash: bytes
    """Hash of the request; a different request under the same key is a client's mistake."""


class Tool(Struct, frozen=True):
    """What a model may call: a server's, or the client's own."""

    name: str
    """As the model sees it: at most 64 characters of ``[A-Za-z0-9_-]``, each once in a prompt; of a server ``server__tool``."""
    description: str = ""
    parameters: Raw = Raw(b'{"type":"object"}')
    """The JSON Schema of its arguments, an object, as whoever has the tool wrote it."""
    server: str = ""
    """The ``ToolServer`` that does it; empty where the client does."""
    own_name: str = ""
    """What its server calls it."""
    read_only: bool = False
    """Whether it changes nothing."""
    needs_approval: bool = False
    """Whether somebody has to say yes to each call."""


class ToolCall(Struct, frozen=True):
    """A model's wish that a tool be called."""

    id: str
    """Its ``call_id``; each once in a turn."""
    name: str
    arguments: str
    """JSON, as the model wrote it: unchecked."""


class ToolOutput(Struct, frozen=True):
    """What a call came to; data, whatever it says."""

    text: str
    failed: bool = False
    """Whether the tool itself says that it did not do it."""


class Utterance(Struct, frozen=True):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()
    """An assistant's, each of which a message of a tool follows."""
    call_id: str = ""
    """Of a tool's: the call whose output it is."""


class Prompt(Struct, frozen=True):
    """What a language model is asked."""

    system: str
    history: list[Utterance]
    """Earlier messages, oldest first; an adapter sends the latest that fit."""
    content: str
    """
    The newest message of the user; never shortened. Empty where the user has said nothing new: the model is to begin, or to go
    on by itself.
    """
    temperature: float
    max_tokens: int
    tools: Sequence[Tool] = ()
    """What the model may call; an adapter that cannot offer tools leaves them out."""
    tool_choice: str = "auto"
    """``auto``, ``none``, ``required``, or the name of the one that it has to call."""
    followed: Sequence[Utterance] = ()
    """What came of *content* in this turn until now: calls, and what tools answered."""
    conversation_id: str = ""
    """Where the turn is of a conversation of ours."""
    context: str = ""
    """
    What concerns the newest message alone, such as the time and what is remembered. It stands right before that message, behind
    all that is the same from turn to turn: a model that keeps what it has read reads no more than what is new.
    """
    older: int = 0
    """Messages of the conversation that came before the history."""
    examples: Sequence[Utterance] = ()
    """An exchange that shows a small model what it is to do; others do without."""


class Finish(Struct, frozen=True):
    """How a model's stream ended; its last item."""

    reason: str
    """
    ``stop`` is the model's own end; all others are none: ``length``, ``lost``, ``stalled``, ``deadline``, ``flood`` (a stream
    that brings nothing without end), ``content_filter``, ``refusal``, ``tool_calls``, ``thinking`` (it ended in the middle
    of it), or what else its server calls it.
    """
    tokens: int | None = None
    """Generated; None where the neighbour did not say."""
    model: str = ""
    calls: tuple[ToolCall, ...] = ()
    """With the reason ``tool_calls``; none where nothing was offered."""
    prompt_tokens: int = 0
    """Read; 0 where the neighbour did not say."""


class Discard(Struct, frozen=True):
    """What a model's stream has given until now was thinking that nothing told of; the answer begins after it."""


class LanguageModel(Protocol):
    """A language model: an adapter under ``services/``."""

    history_limit_chars: int
    """More history than this many code points is never used."""
    reads_ahead: bool
    """Whether ``read_ahead`` does anything."""

    def generate(
        self, prompt: Prompt, caller: Caller
    ) -> AbstractAsyncContextManager[AsyncIterator[str | Discard | Finish]]:
        """
        Ask the model; the iterator gives pieces of text as they arrive, and a ``Finish`` last.

        Entering waits for the neighbour's first sign of an answer. Leaving closes the neighbour's connection unless
        the answer was read to its end. Raises ``Unavailable``, ``BadGateway``, ``DeadlineExceeded``, ``RateLimited`` or
        ``InvalidRequest``; once text has arrived a loss is a ``Finish`` instead.
        """
        ...

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """
        Have the model read *prompt*, whose newest message is not known yet, so that it begins the answer to that sooner.

        Returns at once; a model that is busy, away or another's does nothing.
        """
        ...


class Completion(Struct, frozen=True):
    """A client's own request for an answer, for the model itself; nothing of it is stored."""

    prompt: Prompt
    """What of it every model understands."""
    messages: Raw
    """All that was said, in the words of OpenAI's chat completions, for a server that speaks them."""
    parameters: dict[str, Raw]
    """The same of what else the client asks for, by its own names."""
    needed: frozenset[str] = frozenset()
    """Those without which an answer would be none."""


class CompletionAnswer(Protocol):
    """A model's answer to a ``Completion``, as it arrives."""

    @property
    def left_out(self) -> Sequence[str]:
        """The parameters that the model's server refused, and was asked without."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """As the server counted, at the end; 0 where it does not."""
        ...

    def pieces(self) -> AsyncIterator[str | Discard | Finish]:
        """Give the answer as ``LanguageModel.generate`` does."""
        ...


class CompletionModel(Protocol):
    """A language model that is asked with a client's own parameters: an adapter under ``services/``."""

    async def fetch_name(self) -> str:
        """Return its own name; empty where its server has not told it. Raises as ``LanguageModel.generate`` does."""
        ...

    def complete(self, completion: Completion, caller: Caller) -> AbstractAsyncContextManager[CompletionAnswer]:
        """
        Ask the model, as ``LanguageModel.generate`` does.

        A parameter that its server refuses is left out, unless it is needed: that is ``InvalidRequest``.
        """
        ...


class ToolServer(Protocol):
    """A server of tools: an adapter under ``services/``, asked by ``tools/`` alone, which keeps deadlines and budgets."""

    name: str

    @property
    def state(self) -> HealthState:
        """How it is, from memory."""
        ...

    @property
    def tools(self) -> Sequence[Tool]:
        """What it has, from memory: empty while it is away; it finds itself again."""
        ...

    async def call(self, tool: Tool, arguments: Raw, caller: Caller) -> ToolOutput:
        """
        Have *tool* called once, never again by itself, with *arguments*: a JSON object that fits its schema.

        Waits as long as it is let: cancelling closes the connection. Raises ``RequestError``.
        """
        ...


class HouseAnswer(Struct, frozen=True):
    """What the house made of a sentence."""

    outcome: Literal["done", "told", "unmatched", "unknown", "failed", "unclear"]
    """
    ``done`` did it, ``told`` answers a question, ``unmatched`` is no sentence of the house's, ``unknown`` one about a thing that it
    has not, ``failed`` one that could not be done, ``unclear`` that no answer came although it may have been done.
    """
    speech: str = ""
    """In the house's own words; may be empty."""
    conversation_id: str | None = None
    """The house's own name of the conversation, where it has one."""


class HouseControl(Protocol):
    """What controls the house and understands sentences without a model: an adapter under ``services/``."""

    async def check(self, timeout_s: float) -> None:
        """Return if it is there and takes the token; raises ``RequestError``."""
        ...

    async def process(
        self, text: str, language: str, conversation_id: str | None = None, *, timeout_s: float
    ) -> HouseAnswer:
        """
        Have the house do or answer what *text* says, at most once.

        Raises ``RequestError`` where it was not done: the house was not reached, or refused.
        """
        ...


class Segment(Struct, frozen=True):
    """A stretch of a transcript."""

    start_ms: int
    """From the clip's beginning."""
    end_ms: int
    text: str


class Transcript(Struct, frozen=True):
    """The words of a clip."""

    text: str
    language: str
    """Its code, as the neighbour names it."""
    confidence: float
    """0..1."""
    segments: list[Segment]
    language_confidence: float | None = None
    """0..1, among the languages that it could be; None where it was named, or the neighbour does not say."""
    enhanced: bool = False
    """Whether the words come from the enhanced samples, where both were given."""


class Voice(Struct, frozen=True):
    """A voice that can be asked for."""

    id: str
    name: str
    language: str
    """ISO 639-1; empty where the id does not tell."""
    gender: Literal["female", "male", "unknown"]


class SpokenAudio(Struct, frozen=True):
    """A neighbour's speech: samples, or a file whose first bytes tell its format."""

    audio: bytes
    encoding: Literal["base64", "container"]
    """``base64``: of float32 little-endian mono samples."""
    sample_rate_hz: int
    """Of the samples; a file tells its own."""
    voice: str
    """The voice's id; empty where the neighbour does not name it."""


class SpeechToText(Protocol):
    """A speech-to-text model: an adapter under ``services/``."""

    async def transcribe(
        self,
        audio: bytes,
        language: str | None,
        caller: Caller,
        *,
        languages: Sequence[str] = (),
        enhanced: bytes | None = None,
    ) -> Transcript:
        """
        Return the words in *audio*: float32 little-endian mono samples at 16 kHz in base64, at most 117 s of them.

        Without *language* the neighbour finds it in *audio*, among *languages* where it can, and takes the words from
        *enhanced*, the same without its noise, where it can. Raises ``Unavailable``, ``BadGateway``,
        ``DeadlineExceeded`` or ``RateLimited``.
        """
        ...


class TextToSpeech(Protocol):
    """A text-to-speech model: an adapter under ``services/``."""

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        """
        Return *text* (1..5,000 characters) as speech at 0.5..2 times the voice's own speed.

        Raises ``Unavailable``, ``BadGateway``, ``DeadlineExceeded`` or ``RateLimited``.
        """
        ...

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        """Return the voices that there are; raises as ``synthesize`` does."""
        ...


InputType = Literal["query", "passage"]
"""Embedding models may treat questions and stored texts differently."""


class Embedding(Struct, frozen=True):
    """A text as a vector."""

    model: str
    """Whose it is; vectors of different models cannot be compared."""
    vector: tuple[float, ...]
    """Finite, and not all zero; its length is the model's dimension."""


class Embedder(Protocol):
    """An embedding model: an adapter under ``services/``."""

    async def embed(self, texts: list[str], input_type: InputType, caller: Caller) -> list[Embedding]:
        """
        Return the vector of each text (1..10,000 characters).

        Raises ``Unavailable``, ``BadGateway``, ``DeadlineExceeded`` or ``RateLimited``.
        """
        ...


class Enhancer(Protocol):
    """A noise suppressor for speech: an adapter under ``services/``."""

    async def enhance(self, audio: bytes, duration_s: float) -> bytes | None:
        """
        Return *audio* (16 kHz samples as for ``SpeechToText``) without its noise, unchecked.

        None where that cannot be had in time; never raises for a neighbour that fails.
        """
        ...

    def reject(self, complaint: str) -> None:
        """Take note that the last answer could not be used."""
        ...


class TurnEndModel(Protocol):
    """A model that hears whether a turn of speech is over: an adapter under ``services/``."""

    async def end_probability(self, audio: bytes, caller: Caller) -> float:
        """
        Return how likely, 0..1, *audio* (as for ``SpeechToText``, its last eight seconds) is the end of a turn.

        Raises ``NotFound`` where there is no such model, ``Unavailable``, ``BadGateway``, ``DeadlineExceeded`` or ``RateLimited``.
        """
        ...


def new_id() -> str:
    """Return a UUIDv7: sorts by the time it was made."""
    return str(uuid_utils.uuid7())


def is_id(text: str) -> bool:
    """Whether *text* is written as a UUID in its canonical form."""
    return (
        len(text) == 36
        and text[8] == text[13] == text[18] == text[23] == "-"
        and text.count("-") == 4
        and HEX_AND_DASH.issuperset(text)
    )
