"""
One call and one stream to a neighbour: the only place where a foreign error becomes ours.

| what happens | becomes |
|---|---|
| no connection, or it breaks before an answer | ``Unavailable`` |
| no first byte, or no end, within the deadline | ``DeadlineExceeded`` |
| 429 | ``RateLimited``: the neighbours count by the caller that we name |
| 501, 502, 503 | ``Unavailable``; 501 says nothing against its health |
| 504 | ``DeadlineExceeded`` |
| any other status but 2xx, no HTTP, a body that is too long | ``BadGateway`` |

A request that broke on a kept-alive connection before a byte of its answer came is sent once more: neighbours close idle
connections whenever they like, and every call made here is safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import aiohttp
from msgspec import Struct

from jarvis_core import log
from jarvis_core.errors import BadGateway, DeadlineExceeded, RateLimited, RequestError, Unavailable
from jarvis_core.settings import Neighbours

logger = log.get(__name__)

RETRY_AFTER_S = 5
RATE_LIMIT_RETRY_AFTER_S = 30
"""The bridges' 429 carries no Retry-After; their windows are a minute long."""
RETRY_AFTER_LIMIT_S = 3_600
MISSING_RETRY_AFTER_S = 60
"""What a neighbour was started without, the next one may have."""
BODY_LIMIT_BYTES = 32 << 20
ERROR_LIMIT_BYTES = 4_096
END_TIMEOUT_S = 0.05

LOST_BEFORE_ANSWER = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
FOREIGN = (aiohttp.ClientError, OSError)


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


class Health:
    """What real calls and probes have taught about one neighbour."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Literal["healthy", "degraded", "unavailable"] = "healthy"
        """Healthy until something else is learnt: nothing has been seen to fail."""

    def learn(self, state: Literal["healthy", "degraded", "unavailable"], why: str = "") -> None:
        """Take note of what was just seen; a change is logged once."""
        if state != self.state:
            self.state = state
            if state == "healthy":
                logger.info("a neighbour is back", neighbour=self.name)
            else:
                logger.warning("a neighbour is not well", neighbour=self.name, state=state, why=why)


class Stream:
    """
    An answer that is read as it arrives.

    ``lost`` tells after the iteration why it ended before its time; None is a clean end of the body. The times count
    from *asked_at*, on the loop's clock.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        asked_at: float,
        first_byte_timeout_s: float,
        stall_timeout_s: float,
        total_timeout_s: float,
    ) -> None:
        self.content_type = response.content_type
        self.lost: Literal["lost", "stalled", "deadline"] | None = None
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._patience_s = first_byte_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._touched = asked_at
        self._deadline = asked_at + total_timeout_s
        # One timer that looks at the clock when it fires costs less than a deadline armed anew for every chunk.
        self._timer = self._loop.call_at(self._due(), self._look)

    def begin(self) -> None:
        """
        Note that what was waited for has begun to come: from now on the neighbour may be silent for the stall's time.

        Until then for the first byte's: a model that is still being loaded may have sent its head already.
        """
        self._patience_s = self._stall_timeout_s
        self._timer.cancel()
        self._timer = self._loop.call_at(self._due(), self._look)

    def _due(self) -> float:
        return min(self._touched + self._patience_s, self._deadline)

    def _look(self) -> None:
        now = self._loop.time()
        if now < self._due():
            self._timer = self._loop.call_at(self._due(), self._look)
            return
        self.lost = "deadline" if now >= self._deadline else "stalled"
        self._response.close()

    async def read(self) -> bytes:
        """Wait for the next bytes; empty at the end, with ``lost`` set when the connection broke or stalled."""
        try:
            chunk = await self._response.content.readany()
        except (*FOREIGN, TimeoutError) as exc:
            logger.debug("a stream broke", error=_named(exc), lost=self.lost)
            self.lost = self.lost or "lost"
            return b""
        self._touched = self._loop.time()
        return chunk

    async def finish(self) -> None:
        """
        Read to the end of a body whose last item has been seen, so that the connection can be used again.

        Waits at most ``END_TIMEOUT_S``; a neighbour that is slower than that costs a new connection instead.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                while not self._response.content.at_eof() and await self.read():
                    pass

    def close(self) -> None:
        """Stop reading; the connection is closed unless the whole answer had been read."""
        self._timer.cancel()
        if self._response.content.at_eof() and self.lost is None:
            self._response.release()
        else:
            self._response.close()


class Transport:
    """
    HTTP to one neighbour, with a deadline on every wait.

    Owns a session with at most ``connection_limit`` connections; ``close`` it in the loop that it was made in.
    """

    def __init__(self, name: str, base_url: str, settings: Neighbours) -> None:
        self.name = name
        self.health = Health(name)
        self._refusals = log.Seldom()
        self._base_url = base_url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.connection_limit, keepalive_timeout=30, ttl_dns_cache=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            skip_auto_headers=("User-Agent",),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> Answer:
        """Send a request and return its whole answer; waits at most *timeout_s* seconds for all of it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        response = await self._request(method, path, body, headers, timeout_s)
        try:
            async with asyncio.timeout_at(deadline):
                return Answer(response.content_type, await self._read(response))
        except TimeoutError as exc:
            raise self._missed(timeout_s) from exc
        except FOREIGN as exc:
            raise self._away(_named(exc)) from exc
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        first_byte_timeout_s: float,
        stall_timeout_s: float,
        total_timeout_s: float,
    ) -> AsyncIterator[Stream]:
        """
        Send a request and lend its answer as it arrives.

        Entering waits at most *first_byte_timeout_s* for the answer's head; leaving closes the connection unless the
        answer was read to its end.
        """
        asked_at = asyncio.get_running_loop().time()
        response = await self._request(method, path, body, headers, min(first_byte_timeout_s, total_timeout_s))
        stream = Stream(
            response,
            asked_at=asked_at,
            first_byte_timeout_s=first_byte_timeout_s,
            stall_timeout_s=stall_timeout_s,
            total_timeout_s=total_timeout_s,
        )
        try:
            yield stream
        finally:
            stream.close()

    def lost(self, stream: Stream) -> RequestError:
        """Return the error for a *stream* that was lost before it gave anything."""
        if stream.lost == "lost":
            return self._away("it broke off its answer")
        self.health.learn("degraded", "it began an answer and fell silent")
        return DeadlineExceeded(f"{self.name} did not answer in time.", details={"neighbour": self.name})

    async def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, timeout_s: float
    ) -> aiohttp.ClientResponse:
        url = self._base_url + path
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    response = await self._session.request(
                        method, url, data=body, headers=headers, allow_redirects=False
                    )
                except aiohttp.ClientConnectorError:
                    raise
                except LOST_BEFORE_ANSWER:
                    response = await self._session.request(
                        method, url, data=body, headers=headers, allow_redirects=False
                    )
        except (TimeoutError, aiohttp.ServerTimeoutError) as exc:
            if isinstance(exc, aiohttp.ConnectionTimeoutError):
                raise self._away(_named(exc)) from exc
            raise self._missed(timeout_s) from exc
        except aiohttp.ClientResponseError as exc:
            self.health.learn("degraded", _named(exc))
            raise BadGateway(f"{self.name} answered nonsense.", details={"neighbour": self.name}) from exc
        except FOREIGN as exc:
            raise self._away(_named(exc)) from exc
        if response.status < 300:
            self.health.learn("healthy")
            return response
        raise await self._refusal(response)

    async def _refusal(self, response: aiohttp.ClientResponse) -> RequestError:
        """Return the error that *response*, whose status is not 2xx, stands for; its connection is closed."""
        text = b""
        try:
            async with asyncio.timeout(1):
                text = await response.content.read(ERROR_LIMIT_BYTES)
        except (TimeoutError, *FOREIGN):
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
                answer=text[:500].decode(errors="replace"),
                held_back=held_back,
            )
        details: dict[str, str | int] = {"neighbour": self.name, "status": status}
        if status == 429:
            self.health.learn("healthy")
            return RateLimited(
                f"{self.name} takes no more requests for now.",
                details=details,
                retry_after_s=_seconds(response.headers.get("Retry-After", "")),
            )
        if status == 501:
            # It is well, and says that it was made without this.
            return Unavailable(
                f"{self.name} does not offer this.", details=details, retry_after_s=MISSING_RETRY_AFTER_S
            )
        if status in (502, 503):
            self.health.learn("unavailable", f"status {status}")
            return Unavailable(f"{self.name} is not available.", details=details, retry_after_s=RETRY_AFTER_S)
        if status == 504:
            self.health.learn("degraded", "status 504")
            return DeadlineExceeded(f"{self.name} did not answer in time.", details=details)
        if status >= 500:
            self.health.learn("degraded", f"status {status}")
        return Refused(f"{self.name} refused with status {status}.", status=status, answer=text, details=details)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts = []
        length = 0
        while chunk := await response.content.readany():
            length += len(chunk)
            if length > BODY_LIMIT_BYTES:
                raise BadGateway(f"{self.name} sent more than {BODY_LIMIT_BYTES >> 20} MiB.")
            parts.append(chunk)
        return b"".join(parts)

    def _away(self, why: str) -> Unavailable:
        self.health.learn("unavailable", why)
        return Unavailable(
            f"{self.name} is not available.", details={"neighbour": self.name}, retry_after_s=RETRY_AFTER_S
        )

    def _missed(self, timeout_s: float) -> DeadlineExceeded:
        self.health.learn("degraded", f"nothing within {timeout_s:g} s")
        return DeadlineExceeded(f"{self.name} did not answer within {timeout_s:g} s.", details={"neighbour": self.name})


def _seconds(retry_after: str) -> int:
    """Return what a Retry-After header asks for, at most ``RETRY_AFTER_LIMIT_S``; a number of ours where it is none."""
    if not (retry_after.isascii() and retry_after.isdigit()):
        return RATE_LIMIT_RETRY_AFTER_S
    # ``int`` raises on thousands of digits.
    return min(int(retry_after), RETRY_AFTER_LIMIT_S) if len(retry_after) <= 9 else RETRY_AFTER_LIMIT_S


def _named(exc: BaseException) -> str:
    """Return what the log shows of a foreign error; its ``repr`` may show the request's headers, and so its token."""
    return f"{type(exc).__name__}: {str(exc)[:200]}"
