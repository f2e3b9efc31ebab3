"""
Sends answers that are too long to be given to the server below at once.

Granian (2.8.7) takes a whole answer, however long, and says at once that it is sent: what a client does not read would
lie there, counted by nobody. A long answer is given to it in slices, each when the one before has found room, so that it
stays a request that is being answered until it is written, but for its last ``BELOW`` slices.
"""

from __future__ import annotations

from jarvis_core.errors import Overloaded, RateLimited
from jarvis_core.handlers.call import BoundedSends, Call, Reply

SLICE_BYTES = 64 << 10
"""An answer up to this length is sent at once, as nearly all are."""
BELOW = 3
"""Slices that lie in the server below us when the last one has found room."""
RETRY_AFTER_S = 5


class LongAnswers:
    """Bounds what long answers hold together, and what one caller's do, so that nobody's readers keep others from theirs."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._share_bytes = limit_bytes // 2
        self._held: dict[str, int] = {}
        """By caller."""
        self.held_bytes = 0

    def hold(self, key: str, length_bytes: int) -> None:
        """
        Count an answer to the caller *key*, which ``release`` ends; the caller's only one is let in whatever its length.

        Raises ``RateLimited`` where the caller does not read answers, and ``Overloaded`` where many do not.
        """
        own = self._held.get(key, 0)
        if own and own + length_bytes > self._share_bytes:
            raise RateLimited(
                f"Answers of {own} bytes to this caller are not read yet; the limit is {self._share_bytes}.",
                details={"limit_bytes": self._share_bytes},
                retry_after_s=RETRY_AFTER_S,
            )
        if self.held_bytes and self.held_bytes + length_bytes > self._limit_bytes:
            raise Overloaded(
                f"Answers of {self.held_bytes} bytes are not read yet; the limit is {self._limit_bytes}.",
                details={"limit_bytes": self._limit_bytes},
                retry_after_s=RETRY_AFTER_S,
            )
        self._held[key] = own + length_bytes
        self.held_bytes += length_bytes

    def release(self, key: str, length_bytes: int) -> None:
        """End what ``hold`` began."""
        self.held_bytes -= length_bytes
        left = self._held[key] - length_bytes
        if left:
            self._held[key] = left
        else:
            del self._held[key]


async def send_slices(call: Call, reply: Reply) -> None:
    """Send a body whose head was sent; raises ``ClientStalled`` where its client reads nothing for ``SEND_TIMEOUT_S``."""
    body = reply.body
    async with BoundedSends() as sends:
        for start in range(0, len(body), SLICE_BYTES):
            end = start + SLICE_BYTES
            await sends.wait(
                call.send({"type": "http.response.body", "body": body[start:end], "more_body": end < len(body)})
            )
