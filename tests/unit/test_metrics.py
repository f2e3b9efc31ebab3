"""Metrics: what the official parser reads out of what is written."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jarvis_core.metrics import BUCKETS_S, Counts, Histogram, Metrics


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample by name and labels, as the official parser reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.write().decode())
        for sample in family.samples
    }


def test_requests_are_counted() -> None:
    """Requests are counted by method, route and status; those of 500 and more also as errors."""
    metrics = Metrics()
    route = metrics.route("GET", "/api/chat/history/{id}")
    for status in (200, 200, 404, 500, 503):
        route.observe(status, 0.01)
    samples = read(metrics)

    def count(name: str, status: str) -> float | None:
        labels = (("method", "GET"), ("route", "/api/chat/history/{id}"), ("status", status))
        return samples.get((name, labels))

    assert [count("jarvis_http_requests_total", status) for status in ("200", "404", "500", "503")] == [2, 1, 1, 1]
    assert [count("jarvis_http_errors_total", status) for status in ("200", "404", "500", "503")] == [None, None, 1, 1]


def test_durations_are_a_histogram() -> None:
    """Durations are counted in cumulative buckets whose bounds are inclusive, with a sum and a count."""
    metrics = Metrics()
    route = metrics.route("POST", "/api/chat")
    for duration_s in (0.0, 0.001, 0.0011, 0.3, 299.0, 1_000.0):
        route.observe(200, duration_s)
    samples = read(metrics)
    name = "jarvis_http_request_duration_seconds"
    labels = (("method", "POST"), ("route", "/api/chat"))

    def bucket(bound: str) -> float:
        return samples[(f"{name}_bucket", (("le", bound), *labels))]

    assert [bucket(bound) for bound in ("0.001", "0.0025", "0.25", "0.5", "300.0", "+Inf")] == [2, 3, 3, 4, 5, 6]
    assert samples[(f"{name}_count", labels)] == 6
    assert samples[(f"{name}_sum", labels)] == pytest.approx(1299.3021)
    assert sum(1 for sample, _ in samples if sample == f"{name}_bucket") == len(BUCKETS_S) + 1


def test_histograms_of_workers_add_up() -> None:
    """A histogram is shown by the values of its label, those of other workers with it."""
    ours, others = Histogram(), Histogram()
    ours.observe("voice", 0.2)
    others.observe("voice", 0.3)
    others.observe("total", 7.0)
    metrics, elsewhere = Metrics(), Metrics()
    metrics.histogram("turn", "Parts of turns.", "part", ours)
    elsewhere.histogram("turn", "Parts of turns.", "part", others)
    metrics.others = lambda: [elsewhere.take(), Counts([], [])]
    for _ in range(2):
        samples = read(metrics)
        assert samples[("jarvis_turn_seconds_bucket", (("le", "0.25"), ("part", "voice")))] == 1
        assert samples[("jarvis_turn_seconds_count", (("part", "voice"),))] == 2
        assert samples[("jarvis_turn_seconds_sum", (("part", "voice"),))] == pytest.approx(0.5)
        assert samples[("jarvis_turn_seconds_count", (("part", "total"),))] == 1


def test_routes_that_nobody_asked_for_are_left_out() -> None:
    """A route without requests has no samples, and requests in flight are always there."""
    metrics = Metrics()
    metrics.route("GET", "/health")
    assert read(metrics) == {("jarvis_http_in_flight", ()): 0}
    metrics.in_flight = 3
    assert read(metrics)[("jarvis_http_in_flight", ())] == 3


def test_gauges_are_read_at_each_scrape() -> None:
    """Gauges and states are asked anew each time, and labels are escaped."""
    metrics = Metrics()
    running = [1.0]
    metrics.gauge("turns_running", "Turns.", lambda: running[0])
    metrics.states("service_up", "Up.", lambda: {"database": 1.0, 'odd"\\\nname': 0.0})
    assert read(metrics)[("jarvis_turns_running", ())] == 1
    running[0] = 7
    samples = read(metrics)
    assert samples[("jarvis_turns_running", ())] == 7
    assert samples[("jarvis_service_up", (("service", "database"),))] == 1
    assert samples[("jarvis_service_up", (("service", 'odd"\\\nname'),))] == 0
