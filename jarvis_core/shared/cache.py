"""
Shares short-lived state between workers: values with a lifetime, and mail from one worker to another.

Without Redis a worker keeps its values to itself and has no mail. With Redis each worker has a bounded stream as its
mailbox, read by one task; messages posted within a few milliseconds are sent together. Mail may be lost (Redis
restarts, a mailbox overflows): a worker that misses an answer asks again. A value that cannot be fetched is a miss.

Redis holds nothing that must last: while it is away each worker serves its own turns and sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import msgspec

from jarvis_core import cancellation, log
from jarvis_core.errors import Unavailable
from jarvis_core.settings import Secret
from jarvis_core.shared import redis_address
from jarvis_core.shared.mailbox import MAILBOX_TTL_S, OnMail, SharingState

if TYPE_CHECKING:
    import coredis

logger = log.get(__name__)

LOCAL_LIMIT_BYTES = 16 << 20
LOCAL_LIMIT_VALUES = 1_000
VALUE_LIMIT_BYTES = 2 << 20
"""A longer value is not kept."""
VALUE_TIMEOUT_S = 0.25
"""Longest wait for a value: without it the worker does the work itself."""

MAILBOX_LIMIT = 2_000
"""Entries of a mailbox, about; the oldest are dropped."""
OUTBOX_LIMIT_BYTES = 1 << 20
"""Messages to one worker that wait to be sent to Redis."""
ENTRY_LIMIT_BYTES = 256 << 10
FLUSH_DELAY_S = 0.005
READ_BLOCK_S = 1.0
READ_TIMEOUT_S = 3.0
"""Longest wait for an answer of Redis."""
TEND_INTERVAL_S = 1.0
RETRY_DELAY_S = 0.5
OPEN_TIMEOUT_S = 2.0
"""How long a start waits for Redis, which may come later."""


class Cache(Protocol):
    """Values and counters that workers share."""

    state: SharingState

    async def get(self, key: str) -> bytes | None:
        """Return the value of *key*; None where there is none, or the cache does not answer at once."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """Keep *value* for at most *ttl_s* seconds; does nothing where the cache is away."""
        ...

    async def increment(self, key: str, ttl_s: int) -> int:
        """
        Return how often *key* has been counted since it was first, *ttl_s* seconds ago at most.

        Raises ``Unavailable``.
        """
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class LocalCache:
    """Keeps values in the memory of one worker."""

    state: SharingState = "disabled"

    def __init__(self, limit_bytes: int = LOCAL_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._values: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._counts: dict[str, tuple[float, int]] = {}
        self._bytes = 0

    async def get(self, key: str) -> bytes | None:
        """Return the value of *key*, if there is one."""
        kept = self._values.get(key)
        if kept is None or kept[0] < asyncio.get_running_loop().time():
            return None
        self._values.move_to_end(key)
        return kept[1]

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """Keep *value*; drops the least recently used ones for it."""
        if len(value) > min(VALUE_LIMIT_BYTES, self._limit_bytes):
            return
        self._forget(key)
        self._values[key] = (asyncio.get_running_loop().time() + ttl_s, value)
        self._bytes += len(value)
        while len(self._values) > LOCAL_LIMIT_VALUES or self._bytes > self._limit_bytes:
            self._forget(next(iter(self._values)))

    async def increment(self, key: str, ttl_s: int) -> int:
        """Count *key*."""
        now = asyncio.get_running_loop().time()
        until, count = self._counts.get(key, (0.0, 0))
        if until < now:
            until, count = now + ttl_s, 0
            if len(self._counts) >= LOCAL_LIMIT_VALUES:
                self._counts = {name: kept for name, kept in self._counts.items() if kept[0] >= now}
        self._counts[key] = (until, count + 1)
        return count + 1

    async def close(self) -> None:
        """Do nothing."""

    def _forget(self, key: str) -> None:
        kept = self._values.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept[1])


class SharedCache:
    """Shares values, counters and mail through Redis or Valkey, as the worker *worker_id*: a cache and a mailbox."""

    def __init__(self, url: Secret, worker_id: str) -> None:
        self.state: SharingState = "unavailable"
        self._url = url.reveal()
        self._worker_id = worker_id
        self._mailbox = _mailbox(worker_id)
        self._client: coredis.Redis[bytes] | coredis.RedisCluster[bytes] | None = None
        self._owner: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._receive: OnMail = lambda _sender, _message: None
        self._lost: Callable[[str], None] = lambda _worker: None
        self._outbox: dict[str, list[bytes]] = {}
        self._outbox_bytes: dict[str, int] = {}
        self._due = asyncio.Event()
        import coredis.exceptions  # 0.3 s and 20 MB: only where there is a Redis

        self._errors = (coredis.exceptions.RedisError, OSError, TimeoutError)

    async def open(self) -> None:
        """Connect; returns after ``OPEN_TIMEOUT_S`` also where Redis is away, and goes on trying."""
        redis_address.parse(self._url)
        self._owner = asyncio.get_running_loop().create_task(self._own())
        with contextlib.suppress(TimeoutError):
            async with cancellation.timeout(OPEN_TIMEOUT_S):
                await self._opened.wait()

    async def close(self) -> None:
        """Send the mail that waits, and delete the mailbox."""
        if self._owner is None:
            return
        client = self._client
        if client is not None and self.state == "healthy":
            with contextlib.suppress(*self._errors):
                async with cancellation.timeout(VALUE_TIMEOUT_S):
                    await self._flush(client)
                    await client.delete([self._mailbox])
        self._owner.cancel()
        await asyncio.wait([self._owner])

    async def get(self, key: str) -> bytes | None:
        """Return the value of *key*; None where there is none, or the cache does not answer at once."""
        if self._client is not None and self.state == "healthy":
            with contextlib.suppress(*self._errors):
                async with cancellation.timeout(VALUE_TIMEOUT_S):
                    return await self._client.get(_key(key))
        return None

    async def put(self, key: str, value: bytes, ttl_s: int) -> None:
        """Keep *value*; Redis makes room as it is set up to."""
        if self._client is not None and self.state == "healthy" and len(value) <= VALUE_LIMIT_BYTES:
            with contextlib.suppress(*self._errors):
                async with cancellation.timeout(VALUE_TIMEOUT_S):
                    await self._client.set(_key(key), value, ex=ttl_s)

    async def increment(self, key: str, ttl_s: int) -> int:
        """Count *key*; raises ``Unavailable``."""
        try:
            if self._client is None or self.state != "healthy":
                raise TimeoutError
            async with cancellation.timeout(VALUE_TIMEOUT_S):
                async with self._client.pipeline(transaction=False) as pipeline:
                    count = pipeline.incr(_key(key))
                    from coredis.tokens import PureToken

                    pipeline.expire(_key(key), ttl_s, PureToken.NX)
                return int(await count)
        except self._errors as exc:
            raise Unavailable("What workers share is not available.", retry_after_s=1) from exc

    def post(self, worker_id: str, message: bytes) -> bool:
        """Send *message* to another worker soon; return whether there is room for it."""
        size = self._outbox_bytes.get(worker_id, 0) + len(message)
        if self.state != "healthy" or size > OUTBOX_LIMIT_BYTES:
            return False
        self._outbox_bytes[worker_id] = size
        self._outbox.setdefault(worker_id, []).append(message)
        self._due.set()
        return True

    def on_mail(self, receive: OnMail, lost: Callable[[str], None]) -> None:
        """Call *receive* with each message, and *lost* with the id of a worker whose mailbox is gone."""
        self._receive, self._lost = receive, lost

    async def _own(self) -> None:
        """Hold the client open, which is a task group and has to be entered and left by one task."""
        while True:
            try:
                async with AsyncExitStack() as stack:
                    client = self._client = await _enter(self._url, stack)
                    sender = asyncio.get_running_loop().create_task(self._send(client))
                    try:
                        await self._read(client)
                    finally:
                        sender.cancel()
                        await asyncio.wait([sender])
            except (*self._errors, ExceptionGroup) as exc:
                # Entering the client asks a Sentinel or a cluster; its task group wraps the errors.
                self._note_loss(exc)
            except Exception as exc:
                logger.exception("redis is not used through a defect")
                self._note_loss(exc)
            finally:
                self._client = None
            await asyncio.sleep(RETRY_DELAY_S)

    async def _read(self, client: coredis.Redis[bytes] | coredis.RedisCluster[bytes]) -> None:
        loop = asyncio.get_running_loop()
        last: str | bytes = b""
        """Id of the last entry that was read; empty where the mailbox may not exist."""
        tend_at = 0.0
        while True:
            try:
                async with cancellation.timeout(READ_TIMEOUT_S):
                    if not last:
                        last = await client.xadd(self._mailbox, {"m": b""}) or b""
                    if loop.time() >= tend_at:
                        tend_at = loop.time() + TEND_INTERVAL_S
                        if not await self._tend(client, last):
                            last = b""
                            continue
                    self._note_health()
                    entries = await client.xread({self._mailbox: last}, count=100, block=int(1_000 * READ_BLOCK_S))
            except self._errors as exc:
                # The mailbox may be gone, with its messages.
                last = b""
                self._note_loss(exc)
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            for entry in (entries or {}).get(self._mailbox.encode(), ()):
                last = entry.identifier
                self._take(entry.field_values.get(b"m", b""))

    async def _tend(self, client: coredis.Redis[bytes] | coredis.RedisCluster[bytes], last: str | bytes) -> bool:
        """Trim the entries that were read, but the last, and renew the mailbox; return whether it existed."""
        from coredis.tokens import PureToken

        async with client.pipeline(transaction=False) as pipeline:
            kept = pipeline.expire(self._mailbox, MAILBOX_TTL_S)
            pipeline.xtrim(self._mailbox, PureToken.MINID, last)  # type: ignore[arg-type]  # ids are texts
        return bool(await kept)

    def _take(self, envelope: object) -> None:
        if not isinstance(envelope, bytes) or not envelope:
            return
        try:
            sender, messages = msgspec.msgpack.decode(envelope, type=tuple[str, list[bytes]])
            for message in messages:
                self._receive(sender, message)
        except Exception:
            # A message that cannot be decoded must not end the reading of mail.
            logger.exception("mail was not read through a defect")

    async def _send(self, client: coredis.Redis[bytes] | coredis.RedisCluster[bytes]) -> None:
        while True:
            await self._due.wait()
            await asyncio.sleep(FLUSH_DELAY_S)
            try:
                async with cancellation.timeout(READ_TIMEOUT_S):
                    await self._flush(client)
            except self._errors as exc:
                self._note_loss(exc)

    async def _flush(self, client: coredis.Redis[bytes] | coredis.RedisCluster[bytes]) -> None:
        from coredis.tokens import PureToken

        self._due.clear()
        outbox, self._outbox = self._outbox, {}
        self._outbox_bytes = {}
        sent = []
        async with client.pipeline(transaction=False) as pipeline:
            for worker_id, messages in outbox.items():
                for part in _parcels(messages):
                    entry = {"m": msgspec.msgpack.encode((self._worker_id, part))}
                    added = pipeline.xadd(
                        _mailbox(worker_id),
                        entry,
                        nomkstream=True,
                        trim_strategy=PureToken.MAXLEN,
                        trim_operator=PureToken.APPROXIMATELY,
                        threshold=MAILBOX_LIMIT,
                    )
                    sent.append((worker_id, added))
        for worker_id, added in sent:
            if await added is None:
                self._lost(worker_id)

    def _note_health(self) -> None:
        if self.state != "healthy":
            self.state = "healthy"
            self._opened.set()
            logger.info("redis is used", worker=self._worker_id)

    def _note_loss(self, exc: BaseException) -> None:
        if self.state == "healthy" or not self._opened.is_set():
            logger.warning("redis is away", error=str(exc).strip().partition("\n")[0] or type(exc).__name__)
            self._opened.set()
        self.state = "unavailable"
        self._outbox.clear()
        self._outbox_bytes.clear()


def _key(name: str) -> str:
    return f"jarvis:{name}"


def _mailbox(worker_id: str) -> str:
    return _key(f"mail:{worker_id}")


def _parcels(messages: list[bytes]) -> list[list[bytes]]:
    """Return *messages* in lists that are not too large for an entry, in their order."""
    parcels: list[list[bytes]] = [[]]
    size = 0
    for message in messages:
        if parcels[-1] and size + len(message) > ENTRY_LIMIT_BYTES:
            parcels.append([])
            size = 0
        parcels[-1].append(message)
        size += len(message)
    return parcels


async def _enter(url: str, stack: AsyncExitStack) -> coredis.Redis[bytes] | coredis.RedisCluster[bytes]:
    """Return a client whose connections *stack* closes."""
    import coredis
    from coredis.connection import TCPLocation

    address = redis_address.parse(url)
    options = {**address.options, "connect_timeout": 2}
    nodes = [TCPLocation(host, port) for host, port in address.hosts]
    if address.kind == "cluster":
        return await stack.enter_async_context(coredis.RedisCluster(startup_nodes=nodes, **options))
    if address.kind == "sentinel":
        sentinel = await stack.enter_async_context(coredis.Sentinel(nodes, **options))
        return await stack.enter_async_context(sentinel.primary_for(address.service, db=address.database))
    if url.startswith("unix:"):
        return await stack.enter_async_context(coredis.Redis.from_url(url, connect_timeout=2))
    host, port = address.hosts[0]
    return await stack.enter_async_context(coredis.Redis(host, port, db=address.database, **options))
