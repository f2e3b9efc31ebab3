"""
Who is asking, and how much of something that all share one user may have of it.

A fixed limit for each user either leaves most of it unused or, with enough users, is no limit. So the limit moves: a user
may take more while it has no more than ``GREED`` times what is left free ("dynamic thresholds", Choudhury and Hahne,
IEEE/ACM Transactions on Networking 6, 1998). One user alone gets three quarters, two get three sevenths each, and there
is always something left for who comes next. Who waits for a turn, and in which order, is in ``fair_queue.py``.
"""

from __future__ import annotations

from contextvars import ContextVar

GREED = 3
NOBODY = ""
"""The core itself: it has a turn like a user, and no share."""

current_user: ContextVar[str] = ContextVar("current_user", default=NOBODY)
"""
For whom the running task works: set where a request comes in, and handed down to the tasks that it starts.

A user's id; where the server is open, and everybody is the same user, the client's address.
"""


class Shares:
    """Counts what each user has of *limit*."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        """By all together."""
        self._by_user: dict[str, int] = {}

    @property
    def free(self) -> int:
        """How much nobody has."""
        return self.limit - self.taken

    def held_by(self, user: str) -> int:
        """Return how much *user* has."""
        return self._by_user.get(user, 0)

    def is_greedy(self, user: str) -> bool:
        """Whether *user* has so much that what is left is for others."""
        return user != NOBODY and self._by_user.get(user, 0) > GREED * (self.limit - self.taken)

    def take(self, user: str, amount: int = 1) -> bool:
        """Have *user* hold *amount* more, if there is so much left and it may take more; return whether it does."""
        if amount > self.limit - self.taken or self.is_greedy(user):
            return False
        self.add(user, amount)
        return True

    def add(self, user: str, amount: int = 1) -> None:
        """Have *user* hold *amount* more, whatever is left."""
        self.taken += amount
        self._by_user[user] = self._by_user.get(user, 0) + amount

    def give_back(self, user: str, amount: int = 1) -> None:
        """Have *user* hold *amount* less."""
        self.taken -= amount
        left = self._by_user[user] - amount
        if left:
            self._by_user[user] = left
        else:
            del self._by_user[user]
