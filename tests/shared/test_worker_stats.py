"""Notes: what one worker leaves and the others read, and what they come to together."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from jarvis_core.metrics import Metrics
from jarvis_core.services.health import Health
from jarvis_core.shared import worker_stats as notes_module
from jarvis_core.shared.worker_stats import WorkerStats
from tests.unit.test_metrics import read

pytestmark = pytest.mark.every_python


@pytest.fixture
def pages() -> Iterator[list[int]]:
    """Make the pages of three workers."""
    descriptors = [os.memfd_create(f"page-{number}") for number in range(3)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def worker(requests: int, *, running: float = 0, up: float = 1, openings: float = 0) -> Metrics:
    """Give a worker's metrics."""
    metrics = Metrics()
    route = metrics.route("GET", "/health")
    for _ in range(requests):
        route.observe(200, 0.01)
    metrics.gauge("turns_running", "Turns.", lambda: running)
    metrics.states("service_up", "Up.", lambda: {"database": up})
    metrics.states("breaker_open", "Open.", lambda: {"llm": 1 - up}, together="most")
    metrics.counter("turns_refused", "Refused.", lambda: openings)
    return metrics


REQUESTS = ("jarvis_http_requests_total", (("method", "GET"), ("route", "/health"), ("status", "200")))
BUCKET = ("jarvis_http_request_duration_seconds_bucket", (("le", "0.01"), ("method", "GET"), ("route", "/health")))
RUNNING = ("jarvis_turns_running", ())
REFUSED = ("jarvis_turns_refused_total", ())
AGE = ("jarvis_worker_counts_age_seconds", ())
UP = ("jarvis_service_up", (("service", "database"),))
OPEN = ("jarvis_breaker_open", (("service", "llm"),))


def test_workers_add_up(pages: list[int]) -> None:
    """Whichever worker is asked answers for all: counts and gauges add up, a service is up where all see it so."""
    workers = [worker(3, running=1, openings=2), worker(4, running=5, up=0), worker(5)]
    all_stats = [WorkerStats(pages, number) for number in range(3)]
    for metrics, stats in zip(workers, all_stats, strict=True):
        metrics.others = stats.counts
        stats.write(metrics.take(), {})
    for metrics in workers:
        for _ in range(2):  # asking changes nothing
            samples = read(metrics)
            assert (samples[REQUESTS], samples[BUCKET], samples[RUNNING], samples[REFUSED]) == (12, 12, 6, 2)
            assert (samples[UP], samples[OPEN]) == (0, 1)


def test_counts_outlive_their_worker(pages: list[int]) -> None:
    """What a dead worker counted is still counted when another one has its place, and when that one dies too."""
    alive = worker(1)
    alive.others = WorkerStats(pages, 1).counts
    for generation in range(3):
        stats = WorkerStats(pages, 0)
        metrics = worker(10, running=1)
        metrics.others = stats.counts
        stats.write(metrics.take(), {})
        stats.write(metrics.take(), {})
        assert read(metrics)[REQUESTS] == 10 * (generation + 1)
        assert read(metrics)[RUNNING] == 1
        assert read(alive)[REQUESTS] == 10 * (generation + 1) + 1


def test_who_stands_still(pages: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker that has not written for long only what it counted is told, not what it was doing."""
    WorkerStats(pages, 0).write(worker(3, running=7).take(), {"llm": ("unavailable", 1.0)})
    alive = worker(1)
    alive.others = WorkerStats(pages, 1).counts
    assert read(alive)[RUNNING] == 7
    monkeypatch.setattr(notes_module, "FRESH_S", -1.0)
    assert (read(alive)[RUNNING], read(alive)[REQUESTS]) == (0, 4)
    assert [page.health for page in WorkerStats(pages, 1).others()] == [{}]


def test_age(pages: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """How old the others' counts are is told beside them: of the oldest page of those who still write."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    alone = worker(1)
    assert AGE not in read(alone), "what one process counts is of now"
    alone.others = WorkerStats(pages, 2).counts
    assert read(alone)[AGE] == 0
    for number in range(2):
        WorkerStats(pages, number).write(worker(3).take(), {})
        now += 0.5
    assert read(alone)[AGE] == 1
    now += notes_module.FRESH_S - 0.75
    assert read(alone)[AGE] == notes_module.FRESH_S - 0.25, "the first one writes no more"
    assert read(alone)[REQUESTS] == 7


def test_page_that_is_being_written(pages: list[int]) -> None:
    """A page that is not whole is left out, as is one that nobody has written."""
    WorkerStats(pages, 0).write(worker(3).take(), {})
    os.pwrite(pages[0], b"\xff", 40)
    assert WorkerStats(pages, 1).others() == []


def test_health_that_another_worker_saw() -> None:
    """A neighbour's change that another worker saw is news, unless something was seen here since."""
    health = Health("llm")
    health.learn("healthy")
    health.hear("unavailable", 1.0)
    assert health.state == "healthy"
    theirs = Health("llm")
    theirs.learn("unavailable")
    health.hear(theirs.state, theirs.changed_at)
    assert (health.state, health.changed_at, health.changes) == ("unavailable", theirs.changed_at, 0)
    health.learn("healthy")
    theirs.hear(health.state, health.changed_at)
    assert theirs.state == "healthy"
