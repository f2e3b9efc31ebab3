"""A neighbour's answer that is read as it arrives."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

from jarvis_core import cancellation, log
from jarvis_core.services.breaker import Breaker
from jarvis_core.services.http1 import NotHttp, Response

logger = log.get(__name__)

END_TIMEOUT_S = 0.05
LAST_WORDS_S = 2.0
"""How long is waited for what may follow the end of what was waited for: counts, and the end of the body."""

Loss = Literal["lost", "stalled", "deadline", "flood"]
"""Why a stream ended before its time: it broke, it was silent, it took too long, it brought nothing without end."""


class Stream:
    """
    An answer that is read as it arrives.

    ``lost`` tells after the iteration why it ended before its time; None is a clean end of the body. The times count
    from *asked_at*, on the loop's clock.
    """

    def __init__(
        self,
        response: Response,
        *,
        asked_at: float,
        first_byte_timeout_s: float,
        stall_timeout_s: float,
        total_timeout_s: float,
        breaker: Breaker,
    ) -> None:
        self.content_type = response.content_type
        self.lost: Loss | None = None
        self.parts = 0
        """How many pieces the network, or the server, has cut the body into until now."""
        self._response = response
        self._breaker = breaker
        self._loop = asyncio.get_running_loop()
        self._patience_s = first_byte_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._asked_at = self._touched = asked_at
        self._over = False
        """Whether all that was waited for is here."""
        self._deadline = asked_at + total_timeout_s
        # One timer that looks at the clock when it fires costs less than a deadline armed anew for every chunk.
        self._timer = self._loop.call_at(self._due(), self._check_deadline)
        self._is_due_sooner = False
        """Whether the timer is to be armed anew before anything is waited for."""

    def begin(self) -> None:
        """
        Note that what was waited for has begun to come: from now on the neighbour may be silent for the stall's time.

        Until then for the first byte's: a model that is still being loaded may have sent its head already.
        """
        self._patience_s = self._stall_timeout_s
        self._breaker.succeeded()
        self._is_due_sooner = True

    @property
    def age_s(self) -> float:
        """How long ago it was asked for."""
        return self._loop.time() - self._asked_at

    def expect_end(self) -> None:
        """Note that all that was waited for is here: what may follow is waited for ``LAST_WORDS_S`` only."""
        if not self._over:
            self._over = True
            self._patience_s = min(self._patience_s, LAST_WORDS_S)
            self._is_due_sooner = True

    def give_up(self, why: Loss) -> None:
        """Close the connection; *why* is what ``lost`` tells from now on."""
        self.lost = self.lost or why
        self._response.close()

    def _due(self) -> float:
        return min(self._touched + self._patience_s, self._deadline)

    def _check_deadline(self) -> None:
        now = self._loop.time()
        if now < self._due():
            self._timer = self._loop.call_at(self._due(), self._check_deadline)
            return
        if self._over:
            self._response.close()
        else:
            self.give_up("deadline" if now >= self._deadline else "stalled")

    async def read(self) -> bytes:
        """Wait for the next bytes; empty at the end, with ``lost`` set when the connection broke or stalled."""
        if self._is_due_sooner:
            self._is_due_sooner = False
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due(), self._check_deadline)
        try:
            chunk = await self._response.read()
        except (OSError, NotHttp) as exc:
            if not self._over:
                logger.debug("a stream broke", error=named(exc), lost=self.lost)
                self.lost = self.lost or "lost"
            return b""
        self.parts = self._response.parts
        self._touched = self._loop.time()
        return chunk

    async def finish(self) -> None:
        """
        Read to the end of a body whose last item has been seen, so that the connection can be used again.

        Waits at most ``END_TIMEOUT_S``; a neighbour that is slower than that costs a new connection instead.
        """
        if self._response.at_end:  # as nearly always: it came with the last item
            return
        with contextlib.suppress(TimeoutError):
            async with cancellation.timeout(END_TIMEOUT_S):
                while not self._response.at_end and await self.read():
                    pass

    def close(self) -> None:
        """Stop reading; the connection is closed unless the whole answer had been read."""
        self._timer.cancel()
        if self._response.at_end and self.lost is None:
            self._response.release()
            self._breaker.succeeded()
        else:
            self._response.close()
            if self.lost is not None:
                self._breaker.failed()


def named(exc: BaseException) -> str:
    """Return what the log shows of a foreign error; its ``repr`` may show the request's headers, and so its token."""
    return f"{type(exc).__name__}: {str(exc)[:200]}"
