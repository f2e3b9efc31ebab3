"""How much of what all share one user may have, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_core.errors import Overloaded, RateLimited
from jarvis_core.fair_queue import FairQueue, QueueFull, reserved
from jarvis_core.shares import NOBODY, Shares, current_user

pytestmark = pytest.mark.every_python

LONG_S = 1_000.0
USERS = st.sampled_from(["anna", "ben", "chris"])


# Shares


def fill(shares: Shares, *users: str) -> dict[str, int]:
    """Have *users* take one after another, until none of them may."""
    while [user for user in users if shares.take(user)]:
        pass
    return {user: shares.held_by(user) for user in users}


def test_one_user_leaves_a_quarter() -> None:
    """One user alone gets three quarters, two get three sevenths each, and there is something left for the next."""
    assert fill(Shares(1_000), "anna") == {"anna": 751}
    assert fill(Shares(700), "anna", "ben") == {"anna": 301, "ben": 300}
    many = [f"user {number}" for number in range(30)]
    shares = Shares(1_000)
    fill(shares, *many)
    assert shares.take("one more")


def test_who_came_first_has_not_all() -> None:
    """A user who took all that one may have leaves enough for another to have some, and for a third."""
    shares = Shares(100)
    assert fill(shares, "anna") == {"anna": 76}
    assert fill(shares, "ben") == {"ben": 19}
    assert fill(shares, "chris") == {"chris": 4}


def test_few_are_not_kept_back() -> None:
    """Of very few one user may have all: nothing is left unused for others who are not there."""
    for limit in (1, 2, 3, 4):
        assert fill(Shares(limit), "anna") == {"anna": limit}


def test_core_itself_has_no_share() -> None:
    """What is done for nobody is bounded by the limit alone."""
    assert fill(Shares(100), NOBODY) == {NOBODY: 100}


@given(st.integers(1, 60), st.lists(st.tuples(USERS, st.integers(1, 9), st.booleans()), max_size=80))
def test_books_are_kept(limit: int, steps: list[tuple[str, int, bool]]) -> None:
    """Never more is taken than there is; what was given back can be taken again, and is counted for nobody."""
    shares = Shares(limit)
    held: list[tuple[str, int]] = []
    for user, amount, gives_back in steps:
        if gives_back and held:
            shares.give_back(*held.pop())
        elif shares.take(user, amount):
            held.append((user, amount))
        expected: Counter[str] = Counter()
        for owner, part in held:
            expected[owner] += part
        assert shares.taken == sum(expected.values()) <= limit
        assert {one: shares.held_by(one) for one in ("anna", "ben", "chris")} == {
            one: expected[one] for one in ("anna", "ben", "chris")
        }
    for owner, part in held:
        shares.give_back(owner, part)
    assert (shares.taken, shares.free) == (0, limit)


# Turns


class Crowd:
    """Users at a queue; each request takes a place and keeps it until it is told to go."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.served: list[tuple[str, int]] = []
        """Requests in the order in which they got a place: the user, and which of the user's."""
        self.inside: list[tuple[str, int]] = []
        self.came: Counter[str] = Counter()
        self.waiting: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def come(self, user: str) -> None:
        """Have *user* ask once more."""
        self.came[user] += 1
        request = user, self.came[user]
        self.waiting[request] = asyncio.create_task(self._ask(*request))
        await settle()

    async def _ask(self, user: str, number: int) -> None:
        if not self.queue.take(user):
            await self.queue.wait(user, asyncio.get_running_loop().time() + LONG_S)
        self.waiting.pop((user, number))
        self.served.append((user, number))
        self.inside.append((user, number))

    async def go(self, place: int = 0) -> None:
        """Have one of those inside go, if there is any."""
        if self.inside:
            user, _ = self.inside.pop(place % len(self.inside))
            self.queue.give_back(user)
            await settle()

    async def lose(self, place: int) -> None:
        """Have one of those who wait stop waiting, if there is any."""
        if self.waiting:
            await self._cancel([list(self.waiting)[place % len(self.waiting)]])

    async def lose_while_served(self, user: str) -> None:
        """Have one inside go, and all requests of *user* leave in the moment in which one of them may be given its place."""
        if self.inside:
            self.queue.give_back(self.inside.pop(0)[0])
            await self._cancel([request for request in self.waiting if request[0] == user])

    async def _cancel(self, requests: list[tuple[str, int]]) -> None:
        tasks = [self.waiting.pop(request) for request in requests]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settle()

    async def all_go(self) -> None:
        """Have everybody be served, one after another."""
        while self.inside:
            await self.go()


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(4):
        await asyncio.sleep(0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "come", "go", "lose", "lose while served"]), USERS, st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=200)
@given(st.integers(1, 4), st.one_of(st.none(), st.integers(1, 3)), STEPS)
def test_queue(places: int, user_limit: int | None, steps: list[tuple[str, str, int]]) -> None:
    """
    Whoever comes and goes: no more places are lent than there are, none is left free that somebody could have, each
    user's requests are served in their order and none waits for more than one of each other user's for each of its own.
    """

    async def run() -> None:
        crowd = Crowd(FairQueue(places, waiting_limit=10_000, user_limit=user_limit))
        queue = crowd.queue
        came_at: dict[tuple[str, int], tuple[int, int]] = {}
        for what, user, number in steps:
            if what == "come":
                before = sum(owner == user for owner, _ in crowd.waiting)
                came_at[user, crowd.came[user] + 1] = len(crowd.served), before
                await crowd.come(user)
            elif what == "go":
                await crowd.go(number)
            elif what == "lose":
                await crowd.lose(number)
            else:
                await crowd.lose_while_served(user)
            held = Counter(owner for owner, _ in crowd.inside)
            assert queue.taken == len(crowd.inside) <= places
            assert queue.waiting == len(crowd.waiting)
            assert not user_limit or not held or max(held.values()) <= user_limit
            if len(crowd.inside) < places:
                assert all(user_limit and held[owner] >= user_limit for owner, _ in crowd.waiting)
        await crowd.all_go()
        assert not crowd.waiting
        assert (queue.taken, queue.waiting) == (0, 0)
        for user in crowd.came:
            numbers = [number for owner, number in crowd.served if owner == user]
            assert numbers == sorted(numbers)
        if user_limit is None:
            for place, (user, number) in enumerate(crowd.served):
                since, before = came_at[user, number]
                others = Counter(owner for owner, _ in crowd.served[since:place] if owner != user)
                assert all(count <= before + 1 for count in others.values()), (user, number, others)

    asyncio.run(run())


async def test_who_asks_for_little_is_served_in_turn() -> None:
    """Behind a user with a thousand requests another's one is the second to be served, and a third's the third."""
    crowd = Crowd(FairQueue(1, waiting_limit=10_000))
    for _ in range(1_000):
        await crowd.come("anna")
    await crowd.come("ben")
    await crowd.come("chris")
    for _ in range(3):
        await crowd.go()
    assert crowd.served == [("anna", 1), ("anna", 2), ("ben", 1), ("chris", 1)]
    await crowd.all_go()


async def test_reserve() -> None:
    """A user who may not have all places leaves some free, which others get without waiting."""
    crowd = Crowd(FairQueue(4, waiting_limit=100, user_limit=4 - reserved(4)))
    for _ in range(6):
        await crowd.come("anna")
    assert crowd.queue.taken == 3
    assert not crowd.queue.take("anna")
    assert crowd.queue.take("ben")
    crowd.queue.give_back("ben")
    await crowd.all_go()
    assert len(crowd.served) == 6


def test_reserve_is_small() -> None:
    """Nothing is kept back of a few places, and never more than a few of many."""
    assert [reserved(places) for places in (1, 2, 3, 4, 8, 32, 1_000)] == [0, 0, 0, 1, 2, 8, 8]


async def test_waiting_is_bounded() -> None:
    """A user's waiting is bounded so that others may wait too; then everybody's is, and each is told which it was."""
    queue = FairQueue(1, waiting_limit=8)
    crowd = Crowd(queue)
    await crowd.come("anna")
    for _ in range(7):
        await crowd.come("anna")
    with pytest.raises(QueueFull) as caught:
        await queue.wait("anna", LONG_S)
    assert caught.value.greedy
    await crowd.come("ben")
    with pytest.raises(QueueFull) as caught:
        await queue.wait("chris", LONG_S)
    assert not caught.value.greedy
    await crowd.all_go()
    assert len(crowd.served) == 9


async def test_deadline() -> None:
    """Who was not served in time is told, and stands in nobody's way."""
    queue = FairQueue(1, waiting_limit=8)
    assert queue.take("anna")
    with pytest.raises(TimeoutError):
        await queue.wait("ben", asyncio.get_running_loop().time() + 0.01)
    assert queue.waiting == 0
    queue.give_back("anna")
    assert queue.take("chris")


async def test_dismissal() -> None:
    """All who wait can be told that there will be no turn; who has a place gives it back as ever."""
    queue = FairQueue(1, waiting_limit=8)
    assert queue.take("anna")
    waiting = [asyncio.create_task(queue.wait(user, LONG_S * 1e6)) for user in ("anna", "ben", "ben")]
    await settle()
    queue.dismiss(ZeroDivisionError)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 3
    queue.give_back("anna")
    assert (queue.taken, queue.waiting) == (0, 0)


async def refusal_of(work: Callable[[], Awaitable[object]]) -> tuple[type[BaseException], int | None, str]:
    """Return what *work* is refused with, when to try again, and the words."""
    with pytest.raises((Overloaded, RateLimited)) as caught:
        await work()
    return type(caught.value), caught.value.retry_after_s, caught.value.message


async def test_refusals_say_what_and_when() -> None:
    """A refusal names what was waited for and when to try again; 429 is for a user's own share, 503 for everybody's."""
    queue = FairQueue(1, waiting_limit=2)
    current_user.set("anna")

    async def enter(timeout_s: float = LONG_S) -> None:
        async with queue.place(timeout_s, "the oven", retry_after_s=7):
            pass

    async with queue.place(1, "the oven", retry_after_s=7):
        assert await refusal_of(lambda: enter(0.01)) == (Overloaded, 7, "There was no turn for the oven within 0.01 s.")
        waiting = [asyncio.create_task(enter()) for _ in range(2)]
        await settle()
        kind, retry_after_s, words = await refusal_of(enter)
        assert (kind, retry_after_s, words) == (Overloaded, 7, "Too many requests wait for the oven.")
    await asyncio.gather(*waiting)
    queue = FairQueue(1, waiting_limit=8)
    async with queue.place(1, "the oven", retry_after_s=7):
        waiting = [asyncio.create_task(enter()) for _ in range(7)]
        await settle()
        assert (await refusal_of(enter))[:2] == (RateLimited, 7)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert queue.waiting == 0
