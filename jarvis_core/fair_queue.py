"""A queue for what only so many can have at a time, in which each user has a turn whatever the others do."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from jarvis_core.errors import JarvisError, Overloaded, RateLimited, RequestError
from jarvis_core.shares import Shares, current_user

RESERVE_LIMIT = 8
"""Of places that one user leaves to others; that many can begin at once, and the next ones have their turn."""


class QueueFull(JarvisError):
    """As many wait as may; *greedy* where this user has its share of the waiting, and others may still come."""

    def __init__(self, *, greedy: bool) -> None:
        super().__init__("too many wait")
        self.greedy = greedy


class FairQueue:
    """
    Lends *places*; who finds none free waits for one.

    A place that becomes free goes to the next user who waits for one, and among what one user waits for to the first. So
    a request waits for at most one of each other user, however many those have sent. No user has more than *user_limit*
    places, if that is given: places that are held for long are worth a reserve (``reserved``).

    At most *waiting_limit* wait, and a user's part of them is bounded as ``Shares`` has it. Whoever has taken a place,
    by ``take`` or ``wait``, has to ``give_back``.
    """

    def __init__(self, places: int, *, waiting_limit: int, user_limit: int | None = None) -> None:
        self.places = places
        self._free = places
        self._user_limit = user_limit
        self._held: dict[str, int] = {}
        """By user; kept only where there is a limit."""
        self._queues: dict[str, deque[asyncio.Future[bool]]] = {}
        """Of the users who wait, the next one first. What waits is told whether it was given a place."""
        self._waiting = Shares(waiting_limit)

    @property
    def taken(self) -> int:
        """How many places are not free."""
        return self.places - self._free

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting.taken

    def take(self, user: str) -> bool:
        """Take a place for *user* if it can have one at once; return whether it can."""
        # Who waits while a place is free has all that it may have: nobody is overtaken here.
        if not self._free:
            return False
        if self._user_limit is not None:
            held = self._held.get(user, 0)
            if held >= self._user_limit:
                return False
            self._held[user] = held + 1
        self._free -= 1
        return True

    async def wait(self, user: str, deadline: float | None) -> None:
        """
        Wait for a place; to be called where ``take`` found none.

        Raises ``QueueFull`` at once, ``TimeoutError`` at *deadline* (of the loop's clock; None is for who bounds the wait
        itself), and what ``dismiss`` says.
        """
        if not self._waiting.take(user):
            raise QueueFull(greedy=self._waiting.free > 0)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._queues.setdefault(user, deque()).append(turn)
        timer = None if deadline is None else loop.call_at(deadline, _answer, turn, False)
        try:
            given = await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None and turn.result():
                self.give_back(user)  # it was given in the moment of leaving
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.give_back(user)
            self._leave(user, turn)
        if not given:
            raise TimeoutError

    def give_back(self, user: str) -> None:
        """Let the next one have the place that *user* had."""
        self._free += 1
        if self._user_limit is not None:
            left = self._held[user] - 1
            if left:
                self._held[user] = left
            else:
                del self._held[user]
        if self._queues:
            self._serve()

    def dismiss(self, error: Callable[[], Exception]) -> None:
        """Have all who wait get what *error* makes, one each."""
        queues, self._queues = self._queues, {}
        for turns in queues.values():
            for turn in turns:
                if not turn.done():
                    turn.set_exception(error())

    @asynccontextmanager
    async def place(self, timeout_s: float, what: str, *, retry_after_s: int) -> AsyncIterator[None]:
        """
        Hold a place for the current user during the block; waits at most *timeout_s* seconds for it.

        Raises ``Overloaded`` or ``RateLimited``, which name *what* is waited for.
        """
        user = await self.enter(timeout_s, what, retry_after_s=retry_after_s)
        try:
            yield
        finally:
            self.give_back(user)

    async def enter(self, timeout_s: float, what: str, *, retry_after_s: int) -> str:
        """Take a place for the current user as ``place`` does, and return the user, who is to give it back."""
        user = current_user.get()
        if not self.take(user):
            try:
                await self.wait(user, asyncio.get_running_loop().time() + timeout_s)
            except QueueFull as exc:
                raise refusal(what, retry_after_s, greedy=exc.greedy) from exc
            except TimeoutError as exc:
                raise Overloaded(
                    f"There was no turn for {what} within {timeout_s:g} s.", retry_after_s=retry_after_s
                ) from exc
        return user

    def _serve(self) -> None:
        """Give the free places to the users who wait and may have one, in turn."""
        while self._free:
            user = next((one for one in self._queues if self._may_have(one)), None)
            if user is None:
                return
            turns = self._queues.pop(user)
            while turns:
                if _answer(turns.popleft(), True):
                    self._free -= 1
                    if self._user_limit is not None:
                        self._held[user] = self._held.get(user, 0) + 1
                    break
            if turns:
                self._queues[user] = turns

    def _may_have(self, user: str) -> bool:
        return self._user_limit is None or self._held.get(user, 0) < self._user_limit

    def _leave(self, user: str, turn: asyncio.Future[bool]) -> None:
        turns = self._queues.get(user)
        if turns is not None:
            with contextlib.suppress(ValueError):
                turns.remove(turn)
            if not turns:
                del self._queues[user]


def reserved(places: int) -> int:
    """Return how many of *places* one user is to leave to others: one of four, and never more than a few."""
    return min(places // 4, RESERVE_LIMIT)


def refusal(what: str, retry_after_s: int, *, greedy: bool) -> RequestError:
    """Return the error for who may not wait for *what*: for its own sake where it is *greedy*, else for everybody's."""
    if greedy:
        return RateLimited(
            f"Too many requests of this user wait for {what}; wait for some of them.", retry_after_s=retry_after_s
        )
    return Overloaded(f"Too many requests wait for {what}.", retry_after_s=retry_after_s)


def _answer(turn: asyncio.Future[bool], given: bool) -> bool:
    """Tell who waits whether it is given a place; return whether it was still waiting."""
    if turn.done():
        return False
    turn.set_result(given)
    return True
