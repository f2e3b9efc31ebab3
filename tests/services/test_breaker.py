"""The circuit breaker and the retry budget."""

from __future__ import annotations

import pytest

from jarvis_core.services.breaker import RETRY_RESERVE, RETRY_SHARE, Breaker, RetryBudget

pytestmark = pytest.mark.every_python

OPEN_S = 10.0


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Give the breaker's clock."""
    return Clock()


def opened(clock: Clock, failures: int = 1) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(OPEN_S, failures, clock)
    for _ in range(failures):
        breaker.failed()
    assert not breaker.closed
    return breaker


def is_closed(breaker: Breaker) -> bool:
    """Return whether it is closed now."""
    return breaker.closed


def test_closed_at_first(clock: Clock) -> None:
    """Calls go through while nothing has failed."""
    breaker = Breaker(OPEN_S, 1, clock)
    assert breaker.closed
    assert breaker.admit()
    assert not breaker.due
    assert breaker.wait_s == 0


def test_failures_in_a_row_open(clock: Clock) -> None:
    """So many failures in a row open it; a success between them begins the count anew."""
    breaker = Breaker(OPEN_S, 3, clock)
    for outcome in ("failed", "failed", "succeeded", "failed", "abandoned", "failed"):
        getattr(breaker, outcome)()
        assert is_closed(breaker)
    breaker.failed()
    assert not is_closed(breaker)
    assert breaker.openings == 1


def test_open_for_its_time(clock: Clock) -> None:
    """Nobody is admitted before the time is over, and everybody can see how long that is."""
    breaker = opened(clock)
    for passed_s in (0.0, 5.0, 4.9):
        clock.now_s += passed_s
        assert not breaker.admit()
    assert breaker.wait_s == pytest.approx(0.1)


def test_one_probe_at_a_time(clock: Clock) -> None:
    """After that time one is admitted, and nobody else until that one has told how it went."""
    breaker = opened(clock, 3)
    clock.now_s += OPEN_S
    assert [breaker.due, breaker.admit(), breaker.due, breaker.admit()] == [True, True, False, False]
    breaker.succeeded()
    assert is_closed(breaker)
    assert breaker.admit()


def test_probe_that_fails(clock: Clock) -> None:
    """A probe that fails opens it for as long again, however many failures it takes otherwise."""
    breaker = opened(clock, 3)
    clock.now_s += OPEN_S
    assert breaker.admit()
    breaker.failed()
    assert not breaker.admit()
    clock.now_s += OPEN_S - 0.1
    assert not breaker.admit()
    clock.now_s += 0.2
    assert breaker.admit()
    assert breaker.openings == 1


def test_probe_that_nobody_waits_for(clock: Clock) -> None:
    """A probe that was given up tells nothing, and the next who comes is the probe."""
    breaker = opened(clock)
    clock.now_s += OPEN_S
    assert breaker.admit()
    breaker.abandoned()
    assert breaker.admit()


def test_hurry(clock: Clock) -> None:
    """What speaks for a success lets the probe through before its time, and does nothing to a closed one."""
    breaker = opened(clock)
    breaker.hurry()
    assert breaker.due
    assert breaker.admit()
    breaker.succeeded()
    breaker.hurry()
    assert is_closed(breaker)


def test_retry_budget() -> None:
    """After a reserve, only a share of the requests may be sent again; what is not used is saved up to the reserve."""
    budget = RetryBudget()
    assert sum(budget.take() for _ in range(100)) == RETRY_RESERVE
    granted = 0
    for _ in range(1_000):
        budget.note_request()
        granted += budget.take()
    assert granted == pytest.approx(1_000 * RETRY_SHARE, abs=1)
    assert budget.retries == granted + RETRY_RESERVE
    for _ in range(10_000):
        budget.note_request()
    assert sum(budget.take() for _ in range(100)) == RETRY_RESERVE
