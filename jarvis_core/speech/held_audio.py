"""Recorded audio that is held in memory: how much, for whom, and who gives way when there is no more room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jarvis_core.errors import Overloaded, RateLimited
from jarvis_core.shares import Shares, current_user

STEP_BYTES = 1 << 20
"""A hold that grows takes ahead what it has already, up to this."""
QUIET_S = 5.0
"""A buffer to which nothing was added for so long gives way to somebody who has less."""
RETRY_AFTER_S = 2


class AudioHold:
    """Audio that is held for one user, as it arrives; to be closed."""

    def __init__(self, audio: HeldAudio, user: str, give_way: Callable[[], None] | None) -> None:
        self._audio = audio
        self.user = user
        self.give_way = give_way
        """Drops the audio, closes this and tells the client; None where it is being worked on."""
        self.touched_at = time.monotonic()
        """When audio was last added."""
        self.length_bytes = 0

    def grow(self, length_bytes: int) -> None:
        """Have it hold *length_bytes* in all; raises as ``HeldAudio.reserve`` does, and holds no more then."""
        if length_bytes > self.length_bytes:
            step = max(length_bytes - self.length_bytes, min(STEP_BYTES, self.length_bytes))
            self._audio.take(self.user, step, but=self)
            self.length_bytes += step
        self.touched_at = time.monotonic()

    def keep(self) -> None:
        """Have it give way to nobody: its audio is being worked on."""
        self.give_way = None
        self._audio.quiet.pop(self, None)

    def close(self) -> None:
        """Hold nothing more."""
        self.keep()
        if self.length_bytes:
            length_bytes, self.length_bytes = self.length_bytes, 0
            self._audio.shares.give_back(self.user, length_bytes)


class HeldAudio:
    """Counts what is held, *limit_bytes* at most, each user's share of it bounded as ``Shares`` has it."""

    def __init__(self, limit_bytes: int) -> None:
        self.shares = Shares(limit_bytes)
        self.quiet: dict[AudioHold, None] = {}
        """What can give way, in the order in which it came."""

    def hold(self, give_way: Callable[[], None] | None = None) -> AudioHold:
        """Return an empty hold for the current user; with *give_way* it may be asked to drop what it has."""
        hold = AudioHold(self, current_user.get(), give_way)
        if give_way is not None:
            self.quiet[hold] = None
        return hold

    @contextmanager
    def reserve(self, length_bytes: int) -> Iterator[None]:
        """
        Hold *length_bytes* for the current user during the block.

        Raises ``RateLimited`` where the user has its share of all that may be held, ``Overloaded`` where all of it is held.
        """
        user = current_user.get()
        self.take(user, length_bytes)
        try:
            yield
        finally:
            if length_bytes:
                self.shares.give_back(user, length_bytes)

    @contextmanager
    def growing(self) -> Iterator[Callable[[int], None]]:
        """
        Lend a function that holds audio as it arrives: it takes the number of bytes so far, and raises as ``reserve`` does.

        A client that only announces a large body takes no room from others.
        """
        hold = self.hold()
        try:
            yield hold.grow
        finally:
            hold.close()

    def take(self, user: str, length_bytes: int, *, but: AudioHold | None = None) -> None:
        """
        Have *user* hold *length_bytes* more; raises as ``reserve`` does.

        Where there is no room quiet holds give way, *but* that one: the user's own, and if it has no more than its share those
        of users who have more.
        """
        if not length_bytes or self.shares.take(user, length_bytes):
            return
        quiet = [hold for hold in self._giving_way(user, length_bytes) if hold is not but]
        if sum(hold.length_bytes for hold in quiet) + self.shares.free >= length_bytes:
            for hold in quiet:
                if hold.give_way is not None:
                    hold.give_way()
                    if self.shares.take(user, length_bytes):
                        return
        if self.shares.is_greedy(user) and self.shares.free >= length_bytes:
            raise RateLimited(
                f"Recordings of this user hold their share of {self.shares.limit >> 20} MiB of audio; finish or clear some.",
                retry_after_s=RETRY_AFTER_S,
            )
        raise Overloaded(
            f"{self.shares.limit >> 20} MiB of audio are being worked on; try again in a moment.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _giving_way(self, user: str, length_bytes: int) -> list[AudioHold]:
        """Return the quiet holds that may give way: the user's own first, then of who has most; the oldest first."""
        latest = time.monotonic() - QUIET_S
        held_by = self.shares.held_by
        least = self.shares.limit if self.shares.is_greedy(user) else held_by(user) + length_bytes
        quiet = [
            hold
            for hold in self.quiet
            if hold.touched_at <= latest and (hold.user == user or held_by(hold.user) > least)
        ]
        return sorted(quiet, key=lambda hold: (hold.user != user, -held_by(hold.user), hold.touched_at))
