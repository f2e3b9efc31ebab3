"""
What is counted, cheaply on the hot path, and written in Prometheus' text format when somebody asks.

Counting is a dictionary look-up and a few additions; the official client library does the writing and is imported only
then.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class RouteMetrics:
    """Requests of one route and method."""

    __slots__ = ("buckets", "method", "route", "statuses", "sum_s")

    def __init__(self, method: str, route: str) -> None:
        self.method = method
        self.route = route
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, status: int, duration_s: float) -> None:
        """Count one answered request."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.buckets[bisect.bisect_left(BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s


class Metrics:
    """All counters of one process."""

    def __init__(self) -> None:
        self.routes: list[RouteMetrics] = []
        self.in_flight = 0
        """Requests being answered."""
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._counters: list[tuple[str, str, Callable[[], float]]] = []
        self._counts: list[tuple[str, str, Callable[[], dict[str, float]]]] = []
        self._states: list[tuple[str, str, Callable[[], dict[str, float]]]] = []

    def route(self, method: str, path: str) -> RouteMetrics:
        """Add the counters of a route."""
        counters = RouteMetrics(method, path)
        self.routes.append(counters)
        return counters

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Have *read* asked for the value of ``jarvis_<name>`` at each scrape."""
        self._gauges.append((name, documentation, read))

    def counter(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Have *read* asked for the value of ``jarvis_<name>_total``, which only grows, at each scrape."""
        self._counters.append((name, documentation, read))

    def counts(self, name: str, documentation: str, read: Callable[[], dict[str, float]]) -> None:
        """Have *read* asked for the values of ``jarvis_<name>_total`` by service at each scrape."""
        self._counts.append((name, documentation, read))

    def states(self, name: str, documentation: str, read: Callable[[], dict[str, float]]) -> None:
        """Have *read* asked for the values of ``jarvis_<name>`` by service at each scrape."""
        self._states.append((name, documentation, read))

    def write(self) -> bytes:
        """Return everything in Prometheus' text format, version 0.0.4."""
        from prometheus_client import CollectorRegistry, generate_latest  # only a scrape needs it

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # type: ignore[arg-type]  # the library asks for its base class, but uses collect() only
        return generate_latest(registry)

    def collect(self) -> Iterable[object]:
        """Give the metric families; the library's protocol of a collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily(
            "jarvis_http_requests", "Requests answered.", labels=["method", "route", "status"]
        )
        errors = CounterMetricFamily(
            "jarvis_http_errors",
            "Requests answered with a status of 500 or more.",
            labels=["method", "route", "status"],
        )
        durations = HistogramMetricFamily(
            "jarvis_http_request_duration_seconds",
            "From the request's head to the answer's end.",
            labels=["method", "route"],
        )
        for route in self.routes:
            if not route.statuses:
                continue
            for status, count in sorted(route.statuses.items()):
                labels = [route.method, route.route, str(status)]
                requests.add_metric(labels, count)
                if status >= 500:
                    errors.add_metric(labels, count)
            total = 0
            buckets = []
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), route.buckets, strict=True):
                total += count
                buckets.append((bound, total))
            durations.add_metric([route.method, route.route], buckets=buckets, sum_value=route.sum_s)
        yield from (requests, errors, durations)
        yield GaugeMetricFamily("jarvis_http_in_flight", "Requests being answered.", value=self.in_flight)
        for name, documentation, read in self._gauges:
            yield GaugeMetricFamily(f"jarvis_{name}", documentation, value=read())
        for name, documentation, read in self._counters:
            yield CounterMetricFamily(f"jarvis_{name}", documentation, value=read())
        for kind, families in ((GaugeMetricFamily, self._states), (CounterMetricFamily, self._counts)):
            for name, documentation, read_all in families:
                family = kind(f"jarvis_{name}", documentation, labels=["service"])
                for service, value in read_all().items():
                    family.add_metric([service], value)
                yield family
