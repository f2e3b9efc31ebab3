"""The circuit breaker: one failure opens it, one probe at a time closes it again."""

from __future__ import annotations

import pytest

from jarvis_core.services import breaker
from jarvis_core.services.breaker import Breaker

OPEN_S = 10.0


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the breaker's clock."""
    clock = Clock()
    monkeypatch.setattr(breaker, "time", clock)
    return clock


def lets_pass(one: Breaker) -> bool:
    """Return whether it is closed now."""
    return one.closed


def test_closed_at_first(clock: Clock) -> None:
    """Calls go through, and nobody probes, while nothing has failed."""
    one = Breaker(OPEN_S)
    assert one.closed
    assert not one.try_probe()
    one.succeeded()
    assert one.closed


def test_first_failure_opens(clock: Clock) -> None:
    """The first failure keeps everybody away for its time, to the end."""
    one = Breaker(OPEN_S)
    one.failed()
    for passed_s in (0.0, 5.0, 4.9):
        clock.now_s += passed_s
        assert not one.closed
        assert not one.try_probe()


def test_one_probe_at_a_time(clock: Clock) -> None:
    """After that time one may try, and nobody else until that one has told how it went."""
    one = Breaker(OPEN_S)
    one.failed()
    clock.now_s += OPEN_S
    assert one.try_probe()
    clock.now_s += 100 * OPEN_S
    assert not one.try_probe()
    assert not one.closed


def test_success_closes(clock: Clock) -> None:
    """A probe that went well closes it; the next failure opens it like the first."""
    one = Breaker(OPEN_S)
    one.failed()
    clock.now_s += OPEN_S
    assert one.try_probe()
    one.succeeded()
    assert lets_pass(one)
    assert not one.try_probe()
    one.failed()
    assert not lets_pass(one)
    assert not one.try_probe()
    clock.now_s += OPEN_S
    assert one.try_probe()


def test_failed_probe_opens_anew(clock: Clock) -> None:
    """A probe that failed opens it for its whole time again."""
    one = Breaker(OPEN_S)
    one.failed()
    clock.now_s += 3 * OPEN_S
    assert one.try_probe()
    clock.now_s += 5
    one.failed()
    clock.now_s += OPEN_S - 0.1
    assert not one.try_probe()
    clock.now_s += 0.1
    assert one.try_probe()


def test_late_failures_prolong(clock: Clock) -> None:
    """Calls that were under way when it opened, and fail later, count."""
    one = Breaker(OPEN_S)
    one.failed()
    clock.now_s += 8
    one.failed()
    clock.now_s += 8
    assert not one.try_probe()
    clock.now_s += 2
    assert one.try_probe()
