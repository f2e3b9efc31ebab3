"""
Sends requests to a neighbour and translates foreign errors, which happens nowhere else.

| what happens | becomes |
|---|---|
| no connection, or it breaks before an answer | ``Unavailable`` |
| no first byte, or no end, within the deadline | ``DeadlineExceeded`` |
| 429 | ``RateLimited``: the neighbours count by the caller that we name |
| 501, 502, 503 | ``Unavailable``; 501 says nothing against its health |
| 504 | ``DeadlineExceeded`` |
| any other status but 2xx, no HTTP, a body that is too long | ``BadGateway`` |
| a stream that breaks, or is no HTTP any more, before it gave anything | ``Unavailable``; later it ends as lost |
| its breaker is open | ``Unavailable``, at once |
| as many requests as it may have are on their way | ``Overloaded``, at once |

A request of whose answer no byte came is sent once more, within its deadline and the retry budget: neighbours close
idle connections whenever they like, and restart; every call made here is safe to repeat, but those that are made ``once``. A request for a stream that
found a kept connection closed is sent again at once, and takes nothing from the budget. The breaker counts failures
that kept a caller waiting or concern the neighbour as a whole (no connection, a missed deadline, 502 to 504, a broken
answer), not a neighbour's answers to single requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TypeVar

import aiohttp
from msgspec import Struct
from yarl import URL

from jarvis_core import cancellation, log
from jarvis_core.errors import BadGateway, DeadlineExceeded, Overloaded, RateLimited, RequestError, Unavailable
from jarvis_core.services.breaker import FAILURES, Breaker, RetryBudget
from jarvis_core.services.ca_certificates import authorities
from jarvis_core.services.health import Health
from jarvis_core.services.http1 import Disconnected, NotHttp, Response
from jarvis_core.services.stream import Loss, Stream, named
from jarvis_core.services.stream_client import ConnectTimeout, NotConnected, StreamClient
from jarvis_core.settings import Neighbours

logger = log.get(__name__)

RETRY_AFTER_S = 5
RATE_LIMIT_RETRY_AFTER_S = 30
"""The bridges' 429 carries no Retry-After; their windows are a minute long."""
RETRY_AFTER_LIMIT_S = 3_600
MISSING_RETRY_AFTER_S = 60
"""When to ask again for a feature that a neighbour was started without: it may have the feature after a restart."""
BODY_LIMIT_BYTES = 32 << 20
ERROR_LIMIT_BYTES = 4_096
RETRY_DELAYS_S = (0.05, 0.15)
"""Between these, by chance, is waited before a connection is tried again that was not to be had."""
WATCH_INTERVAL_S = 0.5
"""How often it is looked whether a neighbour that was not to be reached takes connections again."""

FOREIGN = (aiohttp.ClientError, OSError)
"""Errors of a connection that breaks or cannot be made."""
NOT_CONNECTED = (aiohttp.ClientConnectorError, NotConnected)
LOST_BEFORE_ANSWER = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    NotConnected,
    Disconnected,
)
LATE_CONNECTION = (aiohttp.ConnectionTimeoutError, ConnectTimeout)
NO_HTTP = (aiohttp.ClientResponseError, NotHttp)

Failure = TypeVar("Failure", bound=RequestError)
AnyResponse = TypeVar("AnyResponse", aiohttp.ClientResponse, Response)


class Refused(BadGateway):
    """A neighbour answered with an error status; *answer* is the start of its body, for the adapter and never shown."""

    def __init__(self, message: str, *, status: int, answer: bytes, details: dict[str, str | int]) -> None:
        super().__init__(message, details=details)
        self.status = status
        self.answer = answer


class Answer(Struct, frozen=True):
    """A neighbour's whole answer with a 2xx status."""

    content_type: str
    body: bytes


class _Streaming(AbstractAsyncContextManager[Stream]):
    """A request whose answer is lent as it arrives; each turn has one, and a generator would cost twice as much."""

    __slots__ = ("_begin", "_probing", "_stream", "_transport")

    def __init__(self, transport: Transport, begin: Callable[[], Awaitable[Stream]]) -> None:
        self._transport = transport
        self._begin = begin

    async def __aenter__(self) -> Stream:
        self._probing = self._transport.admit()
        try:
            self._stream = await self._begin()
        except BaseException:
            self._transport.leave(probing=self._probing)
            raise
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
        finally:
            self._transport.leave(probing=self._probing)


class Transport:
    """
    HTTP to one neighbour, with a deadline on every wait.

    At most ``connection_limit`` requests go on at once. Whole answers come through a session of aiohttp, streams over
    connections of our own; ``close`` both in the loop that this was made in. *failures* in a row open its breaker.
    """

    def __init__(self, name: str, base_url: str, settings: Neighbours, *, failures: int = FAILURES) -> None:
        self.name = name
        self.health = Health(name)
        self.breaker = Breaker(settings.breaker_open_s, failures)
        self.budget = RetryBudget()
        self.base_url = base_url.rstrip("/")
        self._secrets: list[str] = []
        self._in_flight = 0
        self._limit = settings.connection_limit
        self._watcher: asyncio.Task[None] | None = None
        self._refusals = log.LogThrottle()
        self._connect_timeout_s = settings.connect_timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.connection_limit,
                keepalive_timeout=30,
                ttl_dns_cache=30,
                ssl=authorities() if URL(base_url).scheme == "https" else True,
            ),
            # With the look-up of the name, which a resolver that is away holds up for longer than anything else.
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            skip_auto_headers=("User-Agent",),
        )
        self._streams = StreamClient(self.base_url, connect_timeout_s=settings.connect_timeout_s)

    def hide(self, secret: str) -> None:
        """Have *secret*, which is sent to this neighbour, left out of what is told of its errors."""
        self._secrets.append(secret)

    def without_secrets(self, text: str) -> str:
        """Return what a neighbour said without what is secret between it and us."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    async def close(self) -> None:
        """Close every connection."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._session.close()
        self._streams.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        once: bool = False,
    ) -> Answer:
        """
        Send a request and return its whole answer; waits at most *timeout_s* seconds for all of it.

        With *once* it is not sent again where it may have arrived: ``was_sent`` tells of the error whether it may have.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s

        def ask() -> Awaitable[aiohttp.ClientResponse]:
            url = self.base_url + path
            return self._session.request(method, url, data=body, headers=headers, allow_redirects=False)

        probing = self.admit()
        try:
            response = await self._request(ask, timeout_s, again=NOT_CONNECTED if once else LOST_BEFORE_ANSWER)
            try:
                async with cancellation.timeout_at(deadline):
                    answer = Answer(response.content_type, await self._read(response))
            except TimeoutError as exc:
                raise self._missed(timeout_s) from exc
            except FOREIGN as exc:
                raise self._away(named(exc)) from exc
            finally:
                if response.content.at_eof():
                    response.release()
                else:
                    response.close()
            self.breaker.succeeded()
            return answer
        finally:
            self.leave(probing=probing)

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        first_byte_timeout_s: float,
        stall_timeout_s: float,
        total_timeout_s: float,
    ) -> AbstractAsyncContextManager[Stream]:
        """
        Send a request and lend its answer as it arrives.

        Entering waits at most *first_byte_timeout_s* for the answer's head; leaving closes the connection unless the
        answer was read to its end.
        """
        asked_at = asyncio.get_running_loop().time()

        def ask() -> Awaitable[Response]:
            return self._streams.request(method, path, headers, body)

        async def begin() -> Stream:
            return Stream(
                await self._request(ask, min(first_byte_timeout_s, total_timeout_s)),
                asked_at=asked_at,
                first_byte_timeout_s=first_byte_timeout_s,
                stall_timeout_s=stall_timeout_s,
                total_timeout_s=total_timeout_s,
                breaker=self.breaker,
            )

        return _Streaming(self, begin)

    def was_sent(self, error: RequestError) -> bool:
        """Whether the request that ended with *error* may have arrived, so that what it asks for may have been done."""
        if "status" in (error.details or {}):
            return True
        cause = error.__cause__
        return cause is not None and not isinstance(cause, (*NOT_CONNECTED, *LATE_CONNECTION))

    def lost(self, stream: Stream) -> RequestError:
        """Return the error for a *stream* that was lost before it gave anything."""
        if stream.lost is not None:
            self.note_loss(stream.lost)
        if stream.lost == "lost":
            return self._unavailable()
        if stream.lost == "flood":
            details: dict[str, str | int] = {"neighbour": self.name, "reason": "flood"}
            return BadGateway(f"{self.name} sent without end, and nothing of an answer.", details=details)
        return DeadlineExceeded(f"{self.name} did not answer in time.", details={"neighbour": self.name})

    def note_loss(self, why: Loss) -> None:
        """Take note that a stream ended before its time, whatever it had given."""
        if why == "lost":
            self.health.learn("unavailable", "it broke off its answer")
        elif why == "flood":
            self.health.learn("degraded", "it sent without end, and nothing of an answer")
        else:
            self.health.learn("degraded", "it began an answer and fell silent")

    def admit(self) -> bool:
        """
        Count a request in, which is to be counted out by ``leave`` with what this returns: whether it probes.

        Raises ``Unavailable`` while the breaker is open, and ``Overloaded`` where there are too many.
        """
        if self._in_flight >= self._limit:
            raise Overloaded(f"{self.name} has as many requests as it may.", retry_after_s=RETRY_AFTER_S)
        probing = not self.breaker.closed
        if not self.breaker.admit():
            raise self._left_alone()
        self._in_flight += 1
        self.budget.note_request()
        return probing

    def leave(self, *, probing: bool) -> None:
        """Count a request out."""
        self._in_flight -= 1
        if probing:
            # No verdict was reported: the caller has stopped waiting.
            self.breaker.abandoned()

    def _left_alone(self) -> Unavailable:
        """Return the error for calls while the breaker is open."""
        return Unavailable(
            f"{self.name} is not available: it failed time and again, and is left alone for a while.",
            details={"neighbour": self.name},
            retry_after_s=max(1, math.ceil(self.breaker.wait_s)),
        )

    async def _request(
        self,
        ask: Callable[[], Awaitable[AnyResponse]],
        timeout_s: float,
        *,
        again: tuple[type[Exception], ...] = LOST_BEFORE_ANSWER,
    ) -> AnyResponse:
        """Return the response to what *ask* sends, which is sent once more after an error of *again*."""
        try:
            async with cancellation.timeout(timeout_s):
                try:
                    response = await ask()
                except again as exc:
                    # Never retry a half-open probe: its failure is the verdict.
                    if isinstance(exc, aiohttp.ClientSSLError) or not (self.breaker.closed and self.budget.take()):
                        raise
                    if isinstance(exc, NOT_CONNECTED):
                        await asyncio.sleep(random.uniform(*RETRY_DELAYS_S))  # noqa: S311 - no secret
                    response = await ask()
        except LATE_CONNECTION as exc:
            raise self._away(named(exc)) from exc
        except (TimeoutError, aiohttp.ServerTimeoutError) as exc:
            raise self._missed(timeout_s) from exc
        except NO_HTTP as exc:
            self.health.learn("degraded", named(exc))
            self.breaker.failed()
            raise BadGateway(f"{self.name} answered nonsense.", details={"neighbour": self.name}) from exc
        except FOREIGN as exc:
            raise self._away(named(exc)) from exc
        if response.status < 300:
            self.health.learn("healthy")
            return response
        raise await self._refusal(response)

    async def _refusal(self, response: aiohttp.ClientResponse | Response) -> RequestError:
        """Return the error that *response*, whose status is not 2xx, stands for; its connection is closed."""
        text = b""
        try:
            async with cancellation.timeout(1):
                read = response.read if isinstance(response, Response) else response.content.readany
                while len(text) < ERROR_LIMIT_BYTES and (part := await read()):
                    text = (text + part)[:ERROR_LIMIT_BYTES]
        except (TimeoutError, *NO_HTTP, *FOREIGN):
            pass  # the status alone decides; the text is for the log
        finally:
            response.close()
        status = response.status
        held_back = self._refusals.held_back(status)
        if held_back is not None:
            logger.warning(
                "a neighbour refused",
                neighbour=self.name,
                status=status,
                answer=self.without_secrets(text[:500].decode(errors="replace")),
                held_back=held_back,
            )
        details: dict[str, str | int] = {"neighbour": self.name, "status": status}
        if status == 429:
            self.health.learn("healthy")
            self.breaker.succeeded()
            return RateLimited(
                f"{self.name} takes no more requests for now.",
                details=details,
                retry_after_s=_seconds(response.headers.get("retry-after", "")),
            )
        if status == 501:
            # It is well, and says that it was made without this.
            self.breaker.succeeded()
            return Unavailable(
                f"{self.name} does not offer this.", details=details, retry_after_s=MISSING_RETRY_AFTER_S
            )
        if status in (502, 503):
            self.health.learn("unavailable", f"status {status}")
            return self._counted(
                Unavailable(f"{self.name} is not available.", details=details, retry_after_s=RETRY_AFTER_S)
            )
        if status == 504:
            self.health.learn("degraded", "status 504")
            return self._counted(DeadlineExceeded(f"{self.name} did not answer in time.", details=details))
        if status >= 500:
            self.health.learn("degraded", f"status {status}")
        self.breaker.succeeded()
        message = f"{self.name} refused with status {status}."
        if status in (401, 403):
            message = f"{self.name} does not accept the credentials that it is sent (status {status})."
        return Refused(message, status=status, answer=text, details=details)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        length = 0
        while chunk := await response.content.readany():
            length += len(chunk)
            if length > BODY_LIMIT_BYTES:
                parts.clear()  # or the error would hold them, wherever it is kept
                raise BadGateway(f"{self.name} sent more than {BODY_LIMIT_BYTES >> 20} MiB.")
            parts.append(chunk)
        return b"".join(parts)

    def _away(self, why: str) -> Unavailable:
        self.health.learn("unavailable", why)
        error = self._counted(self._unavailable())
        if not self.breaker.closed and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return error

    def _missed(self, timeout_s: float) -> DeadlineExceeded:
        self.health.learn("degraded", f"nothing within {timeout_s:g} s")
        details: dict[str, str | int] = {"neighbour": self.name}
        return self._counted(DeadlineExceeded(f"{self.name} did not answer within {timeout_s:g} s.", details=details))

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"{self.name} is not available.", details={"neighbour": self.name}, retry_after_s=RETRY_AFTER_S
        )

    def _counted(self, error: Failure) -> Failure:
        """Have the breaker count *error*."""
        self.breaker.failed()
        return error

    async def _watch(self) -> None:
        """Wait until the neighbour takes connections again, and have it tried then: to connect asks nothing of it."""
        url = URL(self.base_url)
        while not self.breaker.closed:
            await asyncio.sleep(WATCH_INTERVAL_S)
            with contextlib.suppress(OSError, TimeoutError):
                async with cancellation.timeout(self._connect_timeout_s):
                    _, writer = await asyncio.open_connection(url.host, url.port)
                writer.close()
                self.breaker.hurry()
                return


def _seconds(retry_after: str) -> int:
    """Return the seconds of a Retry-After header, at most ``RETRY_AFTER_LIMIT_S``; a default where it has no number."""
    if not (retry_after.isascii() and retry_after.isdigit()):
        return RATE_LIMIT_RETRY_AFTER_S
    # ``int`` raises on thousands of digits.
    return min(int(retry_after), RETRY_AFTER_LIMIT_S) if len(retry_after) <= 9 else RETRY_AFTER_LIMIT_S
