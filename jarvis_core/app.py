"""
The ASGI application: Starlette's lifespan around our router.

Starlette's own stack (error middleware, exception middleware, a linear scan over regular expressions) would cost each
request more than its work: ``Application`` puts the dictionary router in its place and keeps the rest.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET, UnsetType
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from jarvis_core import log
from jarvis_core.codec.request import TranscribeRequest
from jarvis_core.container import HOUSE_SERVER, Container, open_container
from jarvis_core.handlers import openapi, query
from jarvis_core.handlers.admission import Admission
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.chat import ChatHandlers
from jarvis_core.handlers.health import HealthHandlers
from jarvis_core.handlers.memory import MemoryHandlers
from jarvis_core.handlers.openai.chat import ChatCompletionHandlers
from jarvis_core.handlers.openai.client_secrets import ClientSecretHandlers
from jarvis_core.handlers.openai.embeddings import EmbeddingHandlers
from jarvis_core.handlers.openai.models import ModelHandlers
from jarvis_core.handlers.openai.responses import ResponseHandlers
from jarvis_core.handlers.openai.speech import SpeechHandlers
from jarvis_core.handlers.openai.transcriptions import TranscriptionHandlers
from jarvis_core.handlers.openai.unstored_responses import UnstoredResponses
from jarvis_core.handlers.realtime.session import Session
from jarvis_core.handlers.realtime.sockets import Realtime, upgrade_required
from jarvis_core.handlers.router import Route, Router
from jarvis_core.handlers.tool_wire import ApproveRequest, OutputsRequest
from jarvis_core.handlers.voice import VoiceHandlers
from jarvis_core.handlers.wire import (
    AddMemory,
    ChangeConversation,
    ChangeMemory,
    ChatReply,
    ChatRequest,
    ConversationBody,
    ConversationPage,
    CreateConversation,
    Deleted,
    HealthBody,
    HistoryPage,
    LanguageBody,
    MemoryBody,
    MemoryPage,
    NotReadyBody,
    ReadyBody,
    ResponseState,
    SearchMemories,
    SearchReply,
    ServiceState,
    ServiceStates,
    StoredMemory,
    SynthesizeReply,
    SynthesizeRequest,
    TicketReply,
    ToolServer,
    TranscribeReply,
    VoiceBody,
)
from jarvis_core.models import Caller
from jarvis_core.settings import Settings, WorkerGroup

if TYPE_CHECKING:
    from jarvis_core.wyoming.listener import WyomingListener

logger = log.get(__name__)


UPLOADS = ("multipart/form-data", "audio/*", "video/webm", "video/mp4", "application/ogg", "application/octet-stream")
GC_THRESHOLDS = (10_000, 20, 50)
"""A request leaves no cycles behind, so looking for them seldom is enough; the default is (700, 10, 10)."""


TELL_TIMEOUT_S = 0.5
"""How long requests whose turns were stopped have to tell their clients."""


class _Started(NamedTuple):
    """The parts that exist between the start and the stop."""

    container: Container
    realtime: Realtime
    routes: Router
    satellites: WyomingListener | None


class Application(Starlette):
    """Starlette with our router in place of its middleware stack."""

    def __init__(self, settings: Settings, group: WorkerGroup, on_ready: Callable[[list[str]], None]) -> None:
        super().__init__(lifespan=self._lifespan)
        self._settings = settings
        self._group = group
        self._on_ready = on_ready
        self._started: _Started | None = None
        """None until every part was opened."""
        self._life: asyncio.Task[None] | None = None
        """The router and sockets that run between the start and the stop."""
        self.failure: Exception | None = None
        """Why the start failed: a ``StartError``, or a defect."""

    @property
    def started(self) -> bool:
        """Whether every part was opened."""
        return self._started is not None

    @property
    def open_sockets(self) -> Iterable[Session]:
        """The WebSockets that are open."""
        return () if self._started is None else self._started.realtime.sessions

    def take_stalled(self) -> set[tuple[str, int]]:
        """Return the other ends of connections that were given up because nobody reads there, each once."""
        if self._started is None:
            return set()
        stalled = self._started.routes.stalled | self._started.realtime.stalled
        self._started.routes.stalled.clear()
        self._started.realtime.stalled.clear()
        return stalled

    async def drain(self, timeout_s: float) -> None:
        """Be not ready, and wait until turns and requests have ended; after *timeout_s* seconds they are stopped."""
        if self._started is None:
            return
        container, realtime, routes, satellites = self._started
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        container.draining = True
        await container.turns.close(drain_timeout_s=timeout_s)
        left_s = max(deadline - loop.time(), TELL_TIMEOUT_S)
        if satellites is not None:
            await satellites.close()
        await asyncio.gather(routes.drain(left_s), realtime.close())

    async def close(self) -> None:
        """Close every part where the server does not come to it: it waits for clients that do not read."""
        if self._life is not None and not self._life.done():
            self._life.cancel()
            await asyncio.wait([self._life])

    def build_middleware_stack(self) -> ASGIApp:
        """Return Starlette with the lifespan alone, which serves until the start has finished."""
        return self.router

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Serve one ASGI connection."""
        if self._started is None or scope["type"] == "lifespan":
            return super().__call__(scope, receive, send)
        return self._started.routes(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._life = asyncio.current_task()
        try:
            async with open_container(self._settings, self._group) as container, AsyncExitStack() as stack:
                admission = admission_for(container)
                realtime = realtime_for(container, admission)
                routes = router_for(container, realtime, admission)
                satellites = listener_for(container, admission, self._group)
                if satellites is not None:
                    await satellites.open()
                    stack.push_async_callback(satellites.close)
                # Everything allocated up to now stays: exclude it from garbage collection.
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLDS)
                self.middleware_stack = routes
                self._started = _Started(container, realtime, routes, satellites)
                self._on_ready(container.remarks())
                yield
        except asyncio.CancelledError:
            # By ``close``: it is a stop like any other, and told as such.
            if self._started is None:
                raise
        except Exception as exc:
            if self._started is None:
                self.failure = exc
            raise


def create_app(
    settings: Settings, group: WorkerGroup | None = None, *, on_ready: Callable[[list[str]], None] = lambda _: None
) -> Application:
    """
    Return the application of one worker of *group*, or of the only worker. It opens its parts when the server starts
    the lifespan, and then calls *on_ready* with lines for the banner; ``failure`` is set where that fails.
    """
    return Application(settings, group or WorkerGroup(), on_ready)


def admission_for(container: Container) -> Admission:
    """Return the checks that requests and WebSockets pass before they are served."""
    settings = container.settings
    return Admission(container.credentials, settings.server, settings.limits, container.limiter, container.tickets)


def router_for(container: Container, realtime: Realtime, admission: Admission) -> Router:
    """Return the router with every route over *container*'s parts."""
    routes = routes_for(container)
    documented = routes.copy()
    document = b""

    async def openapi_document(_call: Call) -> Reply:
        # Built when first asked for, which most servers never are: it takes MB and tenths of a second.
        nonlocal document
        # Beside the loop, which sound is to go on through.
        document = document or await asyncio.to_thread(openapi.document, documented)
        return Reply(document)

    routes.append(Route("GET", "/openapi.json", openapi_document, "This document.", public=True))
    routes += openai_routes_for(container)
    # The last path is where OpenAI's client libraries connect when /ws is the base of their URLs.
    websockets = dict.fromkeys(("/ws", "/v1/realtime", "/ws/realtime"), realtime.serve)
    routes += [Route("GET", path, upgrade_required, "Only a WebSocket is answered here.") for path in websockets]
    router = Router(
        routes,
        websockets,
        admission=admission,
        metrics=container.metrics,
        request_limit=container.settings.server.request_limit,
        answers_limit_bytes=container.settings.server.answers_limit_bytes,
    )
    container.metrics.gauge(
        "unread_answers_bytes", "Long answers that clients have not read yet.", lambda: router.long_answers.held_bytes
    )
    container.metrics.counter("requests_refused", "Requests refused as too many.", lambda: router.refused)
    return router


def realtime_for(container: Container, admission: Admission) -> Realtime:
    """Return the WebSocket's handler over *container*'s parts."""
    realtime = Realtime(
        container.turns,
        container.conversations,
        container.transcriber,
        container.synthesizer,
        admission,
        container.settings.llm,
        resume_grace_s=container.settings.server.ws_resume_grace_s,
        socket_limit=container.settings.server.websocket_limit,
    )
    if container.remote_turns is not None:
        container.remote_turns.hand_over = realtime.hand_over
    container.metrics.gauge("websockets", "Open WebSockets.", lambda: realtime.connected)
    return realtime


def listener_for(container: Container, admission: Admission, group: WorkerGroup) -> WyomingListener | None:
    """Return the door for satellites over *container*'s parts; None where there is to be none."""
    settings = container.settings.wyoming
    if settings.port is None:
        return None
    # Imported where it is needed: most servers have no such door.
    from jarvis_core.wyoming.listener import WyomingListener
    from jarvis_core.wyoming.satellite import Assistant

    assistant = Assistant(
        container.turns,
        container.conversations,
        container.transcriber,
        container.synthesizer,
        container.voices,
        Caller(settings.user, settings.user),
        key=lambda address: admission.key_at(address, settings.user),
        charge=admission.charge,
        home_control=container.settings.moves_things,
    )
    listener = WyomingListener(assistant, settings, shared=group.workers > 1)
    container.metrics.gauge("satellites", "Open connections of satellites.", lambda: listener.connected)
    container.metrics.counter("satellites_refused", "Connections refused as too many.", lambda: listener.refused)
    return listener


def routes_for(container: Container) -> list[Route]:
    """Return the route table, but for the document that is made from it."""
    health = HealthHandlers(
        container.metrics,
        lambda: service_states(container),
        lambda: not_ready_reasons(container),
        lambda: tool_servers(container),
        warnings_of(container.settings),
    )
    chat = ChatHandlers(
        container.turns,
        container.conversations,
        container.tickets,
        body_limit_bytes=container.settings.server.body_limit_bytes,
    )
    memory = MemoryHandlers(container.memories, body_limit_bytes=container.settings.server.body_limit_bytes)
    voice = VoiceHandlers(
        container.transcriber,
        container.synthesizer,
        container.voices,
        body_limit_bytes=container.settings.server.body_limit_bytes,
    )
    return [
        Route("GET", "/health", health.get_health, "How the core and its neighbours are.", public=True,
              response=HealthBody, other=((503, HealthBody, "Unhealthy: the database is unusable."),)),
        Route("GET", "/ready", health.get_readiness, "Whether requests are taken.", public=True,
              response=ReadyBody, other=((503, NotReadyBody, "Not ready, and why."),)),
        Route("GET", "/metrics", health.get_metrics, "Counters in Prometheus' text format.", public=True,
              media_type="text/plain"),
        Route("POST", "/api/chat", chat.send_chat, "Say something; the assistant answers.",
              description="With `stream`, or `Accept: text/event-stream`, it answers as `/api/chat/stream` does.",
              request=ChatRequest, response=ChatReply, query=(query.EVENTS,), headers=(query.IDEMPOTENCY_KEY,)),
        Route("POST", "/api/chat/stream", chat.stream_chat, "Say something; the answer is told as it comes.",
              description="Always events: `stream` and `Accept` change nothing.",
              request=ChatRequest, media_type="text/event-stream",
              query=(query.EVENTS,), headers=(query.IDEMPOTENCY_KEY,)),
        Route("GET", "/api/chat/response/{id}", chat.get_response, "A turn's state and its text so far.",
              response=ResponseState),
        Route("GET", "/api/chat/response/{id}/events", chat.follow_response, "Follow a turn, or replay it.",
              media_type="text/event-stream",
              query=(query.AFTER, query.EVENTS, query.TICKET),
              headers=(("Last-Event-ID", "In place of after; what browsers send when they come back."),),
              other=((204, None, "There is nothing more to come after this event, and no sense in coming back."),)),
        Route("POST", "/api/chat/response/{id}/ticket", chat.issue_ticket,
              "A ticket for a browser's own EventSource, which can send no header: for the events of this turn alone.",
              response=TicketReply),
        Route("POST", "/api/chat/response/{id}/cancel", chat.cancel_response, "Stop a turn; answers once the model has stopped.",
              response=ResponseState, exempt_from_limits=True),
        Route("POST", "/api/chat/response/{id}/outputs", chat.send_outputs,
              "Give the outputs of the calls that a turn waits for; it goes on.",
              description="With `stream`, or `Accept: text/event-stream`, it answers with the events that follow.",
              request=OutputsRequest, response=ChatReply,
              query=(query.EVENTS,)),
        Route("POST", "/api/chat/response/{id}/approve", chat.approve_calls,
              "Allow the calls that a turn asks about, or not; it goes on.",
              request=ApproveRequest, response=ResponseState),
        Route("GET", "/api/chat/conversations", chat.list_conversations, "Conversations, newest first.",
              response=ConversationPage,
              query=(query.LIMIT, query.CURSOR, query.SOUGHT, query.ARCHIVED)),
        Route("POST", "/api/chat/conversation", chat.create_conversation, "Make an empty conversation.",
              request=CreateConversation, response=ConversationBody),
        Route("PATCH", "/api/chat/conversation/{id}", chat.change_conversation, "Rename or archive a conversation.",
              request=ChangeConversation, response=ConversationBody),
        Route("DELETE", "/api/chat/conversation/{id}", chat.delete_conversation,
              "Delete a conversation with its messages; a running turn is cancelled.", response=Deleted),
        Route("GET", "/api/chat/history/{id}", chat.get_history, "Messages of a conversation, oldest first.",
              response=HistoryPage, query=(query.LIMIT, query.CURSOR, query.UNHEARD)),
        Route("POST", "/api/memory/add", memory.add_memory, "Remember something; what says the same is one entry.",
              request=AddMemory, response=StoredMemory),
        Route("POST", "/api/memory/search", memory.search_memories, "What is remembered, by meaning and by words.",
              request=SearchMemories, response=SearchReply),
        Route("GET", "/api/memory/list", memory.list_memories, "All that is remembered, newest first.",
              response=MemoryPage, query=(query.LIMIT, query.CURSOR)),
        Route("GET", "/api/memory/entry/{id}", memory.get_memory, "One entry, also one that was superseded.",
              response=MemoryBody),
        Route("PATCH", "/api/memory/entry/{id}", memory.change_memory, "Change an entry's words or importance.",
              request=ChangeMemory, response=MemoryBody),
        Route("DELETE", "/api/memory/entry/{id}", memory.delete_memory, "Forget an entry.", response=Deleted),
        Route("POST", "/api/voice/transcribe", voice.transcribe, "What a recording says.",
              request=TranscribeRequest, response=TranscribeReply, uploads=UPLOADS,
              query=(query.LANGUAGE, query.FORMAT, query.SAMPLE_RATE)),
        Route("POST", "/api/voice/synthesize", voice.synthesize, "Speak a text: the whole of it, in base64.",
              description="With `Accept: audio/*` it answers as `/api/voice/speech` does.",
              request=SynthesizeRequest, response=SynthesizeReply),
        Route("POST", "/api/voice/speech", voice.stream_speech, "Speak a text: the audio, as it is made.",
              description="`format` says which audio it is, else `Accept`; wav where neither does.",
              request=SynthesizeRequest, media_type="audio/wav",
              media=("audio/wav", "audio/mpeg", "audio/ogg", "audio/pcm", "audio/x-float32", "audio/aac", "audio/flac")),
        Route("GET", "/api/voice/voices", voice.list_voices, "Who can speak.", response=list[VoiceBody]),
        Route("GET", "/api/voice/languages", voice.list_languages, "What can be spoken.", response=list[LanguageBody]),
    ]  # fmt: skip


def openai_routes_for(container: Container) -> list[Route]:
    """Return the routes below ``/v1``, which OpenAI's own document describes."""
    models = ModelHandlers(
        container.completions,
        speaks="python_bridges" in container.neighbours,
        embeds=container.embedder is not None,
    )
    body_limit_bytes = container.settings.server.body_limit_bytes
    chat = ChatCompletionHandlers(
        container.completions, container.memories, container.settings.llm, body_limit_bytes=body_limit_bytes
    )
    responses = ResponseHandlers(
        container.turns,
        container.conversations,
        container.completions,
        UnstoredResponses(container.completions, container.memories, container.conversations, container.settings.llm),
        body_limit_bytes=body_limit_bytes,
    )
    secrets = ClientSecretHandlers(container.tickets, container.credentials, body_limit_bytes=body_limit_bytes)
    embeddings = EmbeddingHandlers(container.embedder, body_limit_bytes=body_limit_bytes)
    transcriptions = TranscriptionHandlers(container.transcriber)
    speech = SpeechHandlers(container.synthesizer, container.voices, body_limit_bytes=body_limit_bytes)
    return [
        Route("GET", "/v1/models", models.list_models, "The models that may be named."),
        Route("GET", "/v1/models/{id}", models.model, "One of them."),
        Route("POST", "/v1/chat/completions", chat.complete, "An answer to a conversation that the client keeps."),
        Route("POST", "/v1/responses", responses.respond, "An answer in a conversation that is kept here."),
        Route("GET", "/v1/responses/{id}", responses.response, "A response, as far as it has come."),
        Route("DELETE", "/v1/responses/{id}", responses.delete, "Take a question and its answer out of the history."),
        Route("POST", "/v1/responses/{id}/cancel", responses.cancel, "Stop a response.", exempt_from_limits=True),
        Route("GET", "/v1/responses/{id}/input_items", responses.input_items, "What the user said."),
        Route("POST", "/v1/realtime/client_secrets", secrets.create, "A ticket for one WebSocket."),
        Route("POST", "/v1/embeddings", embeddings.embed, "Texts as vectors."),
        Route("POST", "/v1/audio/transcriptions", transcriptions.transcribe, "What a recording says."),
        Route("POST", "/v1/audio/speech", speech.speak, "A text as speech, from the first sentence on."),
    ]


def warnings_of(settings: Settings) -> list[str]:
    """Return what the owner should know of *settings* for as long as they hold."""
    wyoming = settings.wyoming
    if wyoming.port is None or ipaddress.ip_address(wyoming.host).is_loopback:
        return []
    return [f"WYOMING_PORT: whoever reaches port {wyoming.port} asks, hears and reads without credentials."]


WORST_FIRST: tuple[ServiceState, ...] = ("unavailable", "degraded", "healthy")


def service_states(container: Container) -> ServiceStates:
    """Return the state of each part."""

    def state(name: str) -> ServiceState:
        transport = container.neighbours.get(name)
        return "disabled" if transport is None else transport.health.state

    # /health shows the language model under the bridges, also where another server runs it.
    bridges = {state(name) for name in ("llm", "python_bridges") if name in container.neighbours}
    database: ServiceState = "unavailable"
    if container.pool.healthy:
        # Without pgvector memories are found by their words only.
        database = "healthy" if container.memories.semantic else "degraded"
    return ServiceStates(
        database=database,
        python_bridges=next((one for one in WORST_FIRST if one in bridges), "disabled"),
        audio_engine=state("audio_engine"),
        cache=container.cache.state,
    )


def tool_servers(container: Container) -> dict[str, ToolServer] | UnsetType:
    """Return how each part is that acts; unset where there is none."""
    servers = {one.name: ToolServer(one.state, len(one.tools)) for one in container.toolbox.servers}
    if container.house is not None:
        servers[HOUSE_SERVER] = ToolServer(container.neighbours[HOUSE_SERVER].health.state)
    return servers or UNSET


def not_ready_reasons(container: Container) -> list[str]:
    """Return why requests are not taken now; empty when they are."""
    reasons = []
    if container.draining:
        reasons.append("draining")
    if not container.pool.healthy:
        reasons.append("database unavailable")
    return reasons
