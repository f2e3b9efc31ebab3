"""
Every part, built once in order and closed in reverse: the only place that knows concrete adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from jarvis_core import cancellation, log
from jarvis_core.access.credentials import Credentials
from jarvis_core.access.rate_limit import InProcessLimiter, RateLimiter, SharedLimiter
from jarvis_core.access.tickets import Tickets
from jarvis_core.codec.client import Codec
from jarvis_core.errors import RequestError, StartError
from jarvis_core.fair_queue import FairQueue, reserved
from jarvis_core.memory import NOBODY, Memories
from jarvis_core.metrics import Histogram, Metrics
from jarvis_core.models import CompletionModel, Embedder, new_id
from jarvis_core.processes.child import own_identity, trim_heap
from jarvis_core.services import audio_engine, python_bridges
from jarvis_core.services.audio_engine import AudioEngine
from jarvis_core.services.breaker import FAILURES
from jarvis_core.services.bridges_speech import BridgesSpeech
from jarvis_core.services.embeddings import BridgesEmbedder, OpenAiEmbedder
from jarvis_core.services.home_assistant import HomeAssistant
from jarvis_core.services.openai_compatible import OpenAiModel
from jarvis_core.services.python_bridges import BridgesModel
from jarvis_core.services.speech_unavailable import NoSpeech
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Transport
from jarvis_core.services.turn_end import BridgesTurnEnd
from jarvis_core.settings import Database, Settings, WorkerGroup, without_userinfo
from jarvis_core.shared.cache import Cache, LocalCache, SharedCache
from jarvis_core.shared.mailbox import Mailbox, NoMailbox
from jarvis_core.shared.worker_stats import WorkerStats
from jarvis_core.speech.cache import SpeechCache
from jarvis_core.speech.queued_speech import QueuedSpeech
from jarvis_core.speech.synthesis import Synthesizer, Voices
from jarvis_core.speech.transcription import Transcriber
from jarvis_core.speech.turn_ends import TurnEnds
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.store.heartbeats import HeartbeatStore
from jarvis_core.store.memories import MemoryStore
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import TurnStore
from jarvis_core.tools.house import House
from jarvis_core.tools.toolbox import Toolbox
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.heartbeats import Heartbeats
from jarvis_core.turns.household import Household
from jarvis_core.turns.queued_model import QueuedCompletions, QueuedModel
from jarvis_core.turns.remote import RemoteTurns
from jarvis_core.turns.tool_loop import ToolLoop
from jarvis_core.turns.turns import Turns

if TYPE_CHECKING:
    from jarvis_core.services.mcp import McpServer

logger = log.get(__name__)

PROBED = ("python_bridges", "audio_engine")
"""The neighbours that are asked how they are; of the others their answers tell."""
START_DEADLINE_S = 30.0
"""How long a start waits for a database that is starting too."""
HOUSE_SERVER = "home_assistant"
"""The house among the neighbours."""
FIRST_LOOK_S = 1.0
"""How long a start waits to learn how the house and the servers of tools are."""
HOUSEKEEPING_INTERVAL_S = 1.0
EMBEDDED_PROBE_INTERVAL_S = 1.0
"""Between two questions to a neighbour that was started here: it does not count them as the real ones do."""
STATS_INTERVAL_S = 1.0
FORGET_INTERVAL_S = 3_600.0
TRIM_INTERVAL_S = 10.0
"""How often free heap is given back to the system."""
CONNECTIONS_RESERVE = 16
"""Of those to one neighbour, for what is not a turn."""
SPEECH_CONCURRENCY = 8
CODEC_PROCESSES_LIMIT = 4
"""Each has about 60 MB while there is audio to work on."""


@dataclass(slots=True, kw_only=True)
class Container:
    """The parts of one worker process, through which handlers reach them."""

    settings: Settings
    pool: Pool
    turns: Turns
    toolbox: Toolbox
    servers: Sequence[McpServer]
    completions: CompletionModel
    """The model of the turns, for what a client asks of itself."""
    house: House | None
    """None where none is configured."""
    conversations: Conversations
    memories: Memories
    transcriber: Transcriber
    synthesizer: Synthesizer
    voices: Voices
    embedder: Embedder | None
    codec: Codec
    neighbours: dict[str, Transport]
    """By the name under which /health shows them, and ``llm``."""
    metrics: Metrics
    credentials: Credentials
    tickets: Tickets
    limiter: RateLimiter | None
    """None where there is no limit."""
    cache: Cache
    remote_turns: RemoteTurns | None
    """None where no other worker can be."""
    draining: bool = False
    """Whether a stop was asked for."""

    def remarks(self) -> list[str]:
        """Return the lines of the banner about what acts."""
        lines = []
        if self.house is not None and self.settings.home.url is not None:
            address = without_userinfo(self.settings.home.url)
            if self.house.trouble:
                lines.append(f"missing:  Home Assistant at {address}, which is looked for again: {self.house.trouble}")
            else:
                lines.append(f"yours:    Home Assistant at {address}, asked before the language model")
        there = [one for one in self.servers if not one.trouble]
        if there:
            count = sum(len(one.tools) for one in there)
            lines.append(f"yours:    {count} tools of {', '.join(one.name for one in there)} (MCP_SERVERS)")
        away = [one for one in self.servers if one.trouble]
        lines += [f"missing:  the tools of {one.name}, which is looked for again: {one.trouble}" for one in away]
        return lines


@asynccontextmanager
async def open_container(settings: Settings, group: WorkerGroup) -> AsyncIterator[Container]:
    """
    Build every part, and close them in reverse order; a part that fails to close does not keep the others from it.

    The limits of the database's connections and of the codec's processes are the *group*'s, and divided by its workers.

    Waits for the database, at most ``START_DEADLINE_S``. Raises ``StartError``.
    """
    async with AsyncExitStack() as stack:
        storage = await _open_storage(settings, group, stack)
        neighbours = _open_neighbours(settings, stack)
        secret = group.bridges_secret or settings.auth.jwt_secret
        mint = None if secret is None else TokenMint(secret)
        memory_store = MemoryStore(storage.pool)
        with _database_needed():
            await memory_store.prepare()
        embedder = _embedder(settings, neighbours, mint)
        memories = Memories(
            memory_store,
            embedder,
            settings.memory,
            open_s=settings.neighbours.breaker_open_s,
        )
        model, completions = _queued_model(settings, group, neighbours, mint)
        speech = _open_speech(settings, group, neighbours, mint, storage.cache, stack)
        house = _house(settings, neighbours, speech.voices)
        durations = Histogram()
        servers = _tool_servers(settings, stack)
        tools = ToolLoop(storage.turns.calls, Toolbox(servers, settings.tools))
        turns = Turns(
            storage.turns,
            model,
            settings.llm,
            memories,
            storage.remote_turns,
            house=house,
            household=Household(settings.llm.time_zone, settings.speech.default_language, settings.speech.languages),
            limit=settings.server.turn_limit,
            durations=durations,
            tools=tools,
        )
        if storage.remote_turns is not None:
            storage.remote_turns.serve(turns)
            stack.push_async_callback(_quietly, "the other workers' turns", storage.remote_turns.close)
        container = Container(
            settings=settings,
            pool=storage.pool,
            turns=turns,
            toolbox=tools.toolbox,
            servers=servers,
            completions=completions,
            house=house,
            conversations=Conversations(_conversations(settings, storage.pool), turns),
            memories=memories,
            transcriber=speech.transcriber,
            synthesizer=speech.synthesizer,
            voices=speech.voices,
            embedder=embedder,
            codec=speech.codec,
            neighbours=neighbours,
            metrics=Metrics(),
            cache=storage.cache,
            remote_turns=storage.remote_turns,
            credentials=Credentials(settings.auth),
            tickets=Tickets(settings.auth),
            limiter=_limiter(settings, storage.cache),
        )
        _describe(container, speech.kept)
        container.metrics.labelled(
            "tool_calls", "Calls of tools of servers.", ("server", "tool", "outcome"), tools.runner.outcomes.items
        )
        container.metrics.histogram(
            "turn", "How long the parts of turns took, as their receipts tell it.", "part", durations
        )
        container.metrics.states(
            "waiting",
            "Requests that wait for their turn.",
            lambda: {"model": model.waiting, **speech.queued.waiting},
            together="sum",
        )
        _start_background(container, group, storage, stack)
        looks = [one.looked for one in servers] if house is None else [house.looked, *(one.looked for one in servers)]
        if looks:
            await _first_looks(looks)
        try:
            yield container
        finally:
            container.draining = True
            await turns.close(drain_timeout_s=settings.server.drain_timeout_s)


class _Storage(NamedTuple):
    """The stores, and the parts shared with other workers."""

    pool: Pool
    turns: TurnStore
    heartbeats: Heartbeats
    cache: Cache
    remote_turns: RemoteTurns | None


async def _open_storage(settings: Settings, group: WorkerGroup, stack: AsyncExitStack) -> _Storage:
    """Open the stores and join the other workers; *stack* closes them."""
    if settings.database.url is None:
        raise StartError("DATABASE_URL: no database was given, and none was started (run `jarvis-core`)")
    alone = group.embedded_database and group.workers == 1
    # One of this worker's connections is for its heartbeats.
    share = max(2, settings.database.max_connections // group.workers) - 1
    pool = await _open_database(
        settings.database if alone else msgspec.structs.replace(settings.database, max_connections=share),
        settings.database.url.reveal(),
    )
    stack.push_async_callback(_quietly, "the database", pool.close)
    turns = TurnStore(pool, new_id())
    with _database_needed():
        heartbeats = await _open_heartbeats(settings.database, group, turns.worker_id, pool, stack, alone=alone)
    cache, mailbox = await _open_shared(settings, turns.worker_id, stack)
    return _Storage(pool, turns, heartbeats, cache, None if alone else RemoteTurns(turns, mailbox))


def _open_neighbours(settings: Settings, stack: AsyncExitStack) -> dict[str, Transport]:
    """Return the way to each neighbour that there is, by its name; *stack* closes them."""
    neighbours: dict[str, Transport] = {}
    for name, url in (
        ("python_bridges", settings.neighbours.python_bridges_url),
        ("audio_engine", settings.neighbours.audio_engine_url),
        ("llm", settings.llm.url),
        ("embeddings", settings.memory.embeddings_url),
        (HOUSE_SERVER, settings.home.url),
    ):
        if url is not None:
            failures = audio_engine.FAILURES if name == "audio_engine" else FAILURES
            neighbours[name] = Transport(name, url, settings.neighbours, failures=failures)
            stack.push_async_callback(_quietly, name, neighbours[name].close)
    return neighbours


class _Speech(NamedTuple):
    """The parts for speech."""

    codec: Codec
    transcriber: Transcriber
    synthesizer: Synthesizer
    voices: Voices
    kept: SpeechCache
    queued: QueuedSpeech


def _open_speech(
    settings: Settings,
    group: WorkerGroup,
    neighbours: dict[str, Transport],
    mint: TokenMint | None,
    cache: Cache,
    stack: AsyncExitStack,
) -> _Speech:
    """Build the parts for speech, also where no neighbour serves it; *stack* closes them."""
    processes = min(CODEC_PROCESSES_LIMIT, len(os.sched_getaffinity(0)))
    codec = Codec(limit=max(1, processes // group.workers))
    stack.push_async_callback(_quietly, "the audio codec", codec.close)
    bridges = neighbours.get("python_bridges")
    queued = QueuedSpeech(
        NoSpeech() if bridges is None else BridgesSpeech(bridges, settings.neighbours, mint),
        settings.speech.concurrency or (2 if "python_bridges" in group.embedded_neighbours else SPEECH_CONCURRENCY),
        stt_timeout_s=settings.neighbours.stt_timeout_s,
        tts_timeout_s=settings.neighbours.tts_timeout_s,
    )
    engine = None
    if "audio_engine" in neighbours:
        engine = AudioEngine(neighbours["audio_engine"], settings.neighbours)
        stack.push_async_callback(_quietly, "the audio engine", engine.close)
    kept = SpeechCache(
        queued, settings.neighbours.python_bridges_url or "", cache, limit_bytes=settings.speech.cache_bytes
    )
    voices = Voices(kept, settings.speech)
    stack.push_async_callback(_quietly, "the voices", voices.close)
    turn_end: BridgesTurnEnd | None = None
    if settings.neighbours.python_bridges_url is not None:
        transport = Transport("turn_end", settings.neighbours.python_bridges_url, settings.neighbours)
        stack.push_async_callback(_quietly, "the end of turns", transport.close)
        turn_end = BridgesTurnEnd(transport, mint)
    turn_ends = TurnEnds(turn_end, codec)
    stack.push_async_callback(_quietly, "the end of turns", turn_ends.close)
    transcriber = Transcriber(codec, queued, engine, voices, settings.speech, turn_ends)
    return _Speech(codec, transcriber, Synthesizer(codec, kept, voices), voices, kept, queued)


def _start_background(container: Container, group: WorkerGroup, storage: _Storage, stack: AsyncExitStack) -> None:
    """Start the background tasks; *stack* cancels them."""
    stats = WorkerStats(group.stats_descriptors, group.worker) if group.stats_descriptors else None
    if stats is not None:
        container.metrics.others = stats.counts
    if not group.worker:
        # One is enough: what was read is the model's, whoever asks.
        container.turns.read_ahead(NOBODY, Ask(""))
    for work in (
        _keep_house(container, storage.turns, _probe_intervals(container.settings, group)),
        container.memories.keep_embedded(),
        container.memories.keep_indexed(),
        storage.heartbeats.keep(),
        *([container.house.keep()] if container.house is not None else []),
        *([_share_stats(container, stats)] if stats is not None else []),
    ):
        stack.push_async_callback(_cancel, asyncio.get_running_loop().create_task(work))


def _queued_model(
    settings: Settings, group: WorkerGroup, neighbours: dict[str, Transport], mint: TokenMint | None
) -> tuple[QueuedModel, QueuedCompletions]:
    """Return the language model behind its queue, for turns and for others; what waits there is bounded as turns are."""
    embedded = "llm" not in neighbours and "python_bridges" in group.embedded_neighbours
    connections = settings.neighbours.connection_limit
    # The same connections are for speech and embeddings.
    most = 1 if embedded else connections - min(connections // 4, CONNECTIONS_RESERVE)
    places = settings.llm.concurrency or most
    model = _language_model(settings, neighbours, mint, embedded=embedded)
    queue = FairQueue(places, waiting_limit=settings.server.turn_limit, user_limit=places - reserved(places))
    timeout_s = settings.llm.first_token_timeout_s
    return QueuedModel(model, queue, timeout_s=timeout_s), QueuedCompletions(model, queue, timeout_s=timeout_s)


def _language_model(
    settings: Settings, neighbours: dict[str, Transport], mint: TokenMint | None, *, embedded: bool
) -> OpenAiModel | BridgesModel:
    if "llm" in neighbours:
        return OpenAiModel(neighbours["llm"], settings.llm)
    if "python_bridges" in neighbours:
        return BridgesModel(neighbours["python_bridges"], settings.llm, mint, reads_ahead=embedded)
    raise StartError("PYTHON_BRIDGES_URL or LLM_URL: no language model was given, and none was started")


def _house(settings: Settings, neighbours: dict[str, Transport], voices: Voices) -> House | None:
    transport = neighbours.get(HOUSE_SERVER)
    if transport is None:
        return None

    async def spoken() -> list[str]:
        try:
            return [language.code for language in await voices.languages(NOBODY)]
        except RequestError:
            return []

    return House(
        HomeAssistant(transport, settings.home),
        settings.home,
        settings.speech,
        spoken=spoken,
        is_well=lambda: transport.health.state == "healthy",
    )


def _tool_servers(settings: Settings, stack: AsyncExitStack) -> list[McpServer]:
    """Return the servers of tools; *stack* closes them."""
    if not settings.tools.servers:
        return []
    # Imported where there is one, like what only some deployments need.
    from jarvis_core.services.mcp import McpServer

    servers = [McpServer(name, one) for name, one in settings.tools.servers.items()]
    for server in servers:
        stack.push_async_callback(_quietly, f"the tools of {server.name}", server.close)
        stack.push_async_callback(_cancel, asyncio.get_running_loop().create_task(server.keep()))
    return servers


async def _first_looks(looks: Sequence[asyncio.Event]) -> None:
    """Wait until it is known how the house and the servers of tools are, which the banner tells, but not for long."""
    with contextlib.suppress(TimeoutError):
        async with cancellation.timeout(FIRST_LOOK_S):
            for looked in looks:
                await looked.wait()


def _conversations(settings: Settings, pool: Pool) -> ConversationStore:
    return ConversationStore(
        pool,
        search_timeout_s=settings.database.search_timeout_s,
        user_searches=settings.limits.user_search_limit,
    )


def _limiter(settings: Settings, cache: Cache) -> RateLimiter | None:
    limit = settings.limits.rate_limit_per_minute
    if not limit:
        return None
    return InProcessLimiter(limit) if settings.cache.redis_url is None else SharedLimiter(limit, cache)


def _embedder(settings: Settings, neighbours: dict[str, Transport], mint: TokenMint | None) -> Embedder | None:
    if "embeddings" in neighbours:
        return OpenAiEmbedder(neighbours["embeddings"], settings.neighbours, settings.memory)
    if "python_bridges" in neighbours:
        return BridgesEmbedder(neighbours["python_bridges"], settings.neighbours, mint)
    return None


async def _open_database(settings: Database, conninfo: str) -> Pool:
    """Return an open pool on a database whose schema is up to date; the caller closes it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_DEADLINE_S
    while True:
        pool = Pool(settings, conninfo)
        try:
            await pool.open()
            await migrate(pool)
        except RequestError as exc:
            await pool.close()
            if loop.time() >= deadline:
                cause = str(exc.__cause__).strip().partition("\n")[0]
                raise StartError(f"DATABASE_URL: the database does not answer: {cause}") from exc
        except BaseException:
            await pool.close()
            raise
        else:
            return pool
        await asyncio.sleep(0.2)


@contextlib.contextmanager
def _database_needed() -> Iterator[None]:
    """Have a start end with a line where the database, which had answered, does not do so any more."""
    try:
        yield
    except RequestError as exc:
        raise StartError("DATABASE_URL: the database went away during the start") from exc


async def _open_heartbeats(
    settings: Database, group: WorkerGroup, worker_id: str, pool: Pool, stack: AsyncExitStack, *, alone: bool
) -> Heartbeats:
    """
    Join the workers that share the database; *stack* leaves them.

    Heartbeats have a connection of their own, so that a busy worker is not taken for dead.
    """
    if settings.url is not None and not alone:
        pool = Pool(msgspec.structs.replace(settings, max_connections=1), settings.url.reveal())
        stack.push_async_callback(_quietly, "the beats' connection", pool.close)
        await pool.open()
    store = HeartbeatStore(pool, worker_id, own_identity())
    heartbeats = Heartbeats(store, alone=alone, embedded=group.embedded_database)
    stack.push_async_callback(_quietly, "the heartbeats", heartbeats.leave)
    await heartbeats.arrive()
    return heartbeats


async def _open_shared(settings: Settings, worker_id: str, stack: AsyncExitStack) -> tuple[Cache, Mailbox]:
    url = settings.cache.redis_url
    if url is None:
        return LocalCache(), NoMailbox()
    shared = SharedCache(url, worker_id)
    stack.push_async_callback(_quietly, "the cache", shared.close)
    await shared.open()
    return shared, shared


def _probe_intervals(settings: Settings, group: WorkerGroup) -> dict[str, float]:
    """
    Return the seconds between two probes of each neighbour; empty where another worker of the group probes them.

    One worker probes for all, and the others read the result in its statistics: the bridges limit requests by address.
    """
    if group.worker:
        return {}
    return {
        name: EMBEDDED_PROBE_INTERVAL_S if name in group.embedded_neighbours else settings.neighbours.probe_interval_s
        for name in PROBED
    }


async def _keep_house(container: Container, turn_store: TurnStore, probe_intervals_s: dict[str, float]) -> None:
    """Probe the neighbours rarely, settle unconfirmed turns, forget old keys and trim the heap."""
    loop = asyncio.get_running_loop()
    probe_at = dict.fromkeys(probe_intervals_s, loop.time())
    forget_at = -1e9
    trim_at = loop.time()
    while True:
        if loop.time() >= trim_at:
            trim_at = loop.time() + TRIM_INTERVAL_S
            trim_heap()
        if container.pool.healthy:
            with contextlib.suppress(RequestError):
                await turn_store.unconfirmed.settle()
        for name, interval_s in probe_intervals_s.items():
            if name in container.neighbours and loop.time() >= probe_at[name]:
                probe_at[name] = loop.time() + interval_s
                await python_bridges.probe(container.neighbours[name])
        if loop.time() >= forget_at and container.pool.healthy:
            forget_at = loop.time() + FORGET_INTERVAL_S
            with contextlib.suppress(RequestError):
                await turn_store.forget_keys()
        await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)


async def _share_stats(container: Container, stats: WorkerStats) -> None:
    """Write this worker's counts and health for the other workers of this machine, and read theirs."""
    while True:
        for page in stats.others():
            for name, (state, changed_at) in page.health.items():
                if name in container.neighbours:
                    container.neighbours[name].health.hear(state, changed_at)
        states = {
            name: (transport.health.state, transport.health.changed_at)
            for name, transport in container.neighbours.items()
        }
        stats.write(container.metrics.take(), states)
        await asyncio.sleep(STATS_INTERVAL_S)


def _describe(container: Container, kept: SpeechCache) -> None:
    container.metrics.gauge("turns_running", "Turns that run here.", lambda: container.turns.running)
    container.metrics.gauge("database_losses", "How often the database has gone away.", lambda: container.pool.losses)
    container.metrics.gauge("codec_processes", "Processes of the audio codec.", lambda: container.codec.processes)
    container.metrics.gauge("tasks", "Tasks on the event loop.", lambda: len(asyncio.all_tasks()))

    def up() -> dict[str, float]:
        states = {name: float(transport.health.state == "healthy") for name, transport in container.neighbours.items()}
        return {"database": float(container.pool.healthy), **states}

    def each(read: Callable[[Transport], float]) -> Callable[[], dict[str, float]]:
        return lambda: {name: read(transport) for name, transport in container.neighbours.items()}

    metrics = container.metrics
    metrics.counter("turns_refused", "Turns refused as too many.", lambda: container.turns.refused)
    metrics.counts("neighbour_changes", "Changes of a neighbour's health.", each(lambda one: one.health.changes))
    metrics.counts("neighbour_retries", "Requests that were sent a second time.", each(lambda one: one.budget.retries))
    metrics.counts(
        "breaker_openings", "Times that a neighbour's breaker opened.", each(lambda one: one.breaker.openings)
    )
    metrics.states(
        "breaker_open", "1 while a neighbour is left alone.", each(lambda one: not one.breaker.closed), together="most"
    )
    if container.house is not None:
        outcomes = container.house.outcomes
        metrics.counts("house_sentences", "Sentences that the house was asked, by what came of them.", lambda: outcomes)
    metrics.counter("speech_kept", "Times that speech was not made anew.", lambda: kept.hits)
    metrics.states("service_up", "1 where a service was well when it was last seen, else 0.", up)


async def _quietly(name: str, close: object) -> None:
    try:
        await close()  # type: ignore[operator]
    except Exception:
        logger.exception("a part did not close well", part=name)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
