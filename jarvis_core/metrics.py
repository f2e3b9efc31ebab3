"""
Counts cheaply on the hot path, and writes Prometheus' text format when ``/metrics`` is asked for.

Counting is a dictionary look-up and a few additions; the official client library does the writing and is imported only
then. Several workers leave their counts for one another every second (``shared/worker_stats.py``), so that each answers
for all.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

SERVICE = ("service",)
TOGETHER = "\x1f"
"""Between the values of several labels."""

Kind = Literal["gauge", "counter"]
Together = Literal["sum", "least", "most"]
"""How the values of several workers are combined."""
COMBINE: dict[Together, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "least": min, "most": max}


class RouteCounts(Struct, array_like=True):
    """Requests of one route and method."""

    method: str
    route: str
    statuses: dict[int, int]
    buckets: list[int]
    sum_s: float


class Family(Struct, array_like=True):
    """The values of one metric, by its labels' values together; a metric without labels has the empty key only."""

    kind: Kind
    together: Together
    name: str
    documentation: str
    values: dict[str, float]
    labels: tuple[str, ...] = SERVICE


class Distribution(Struct, array_like=True):
    """How often each duration was observed, for one value of a histogram's label."""

    buckets: list[int]
    sum_s: float

    def add(self, other: Distribution) -> None:
        """Add the counts of another process."""
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.sum_s += other.sum_s


class HistogramCounts(Struct, array_like=True):
    """The counts of one histogram, by the value of its label."""

    name: str
    documentation: str
    label: str
    distributions: dict[str, Distribution]


class Counts(Struct, array_like=True):
    """All counts of one process."""

    routes: list[RouteCounts]
    families: list[Family]
    histograms: list[HistogramCounts] = []

    def add(self, other: Counts, *, gauges: bool = True) -> None:
        """Add another process' counts; without *gauges* only its counters, which outlive it."""
        routes = {(route.method, route.route): route for route in self.routes}
        for theirs in other.routes:
            ours = routes.get((theirs.method, theirs.route))
            if ours is None:
                copy = msgspec.structs.replace(theirs, statuses=dict(theirs.statuses), buckets=list(theirs.buckets))
                self.routes.append(copy)
                continue
            for status, count in theirs.statuses.items():
                ours.statuses[status] = ours.statuses.get(status, 0) + count
            ours.buckets = [a + b for a, b in zip(ours.buckets, theirs.buckets, strict=True)]
            ours.sum_s += theirs.sum_s
        families = {family.name: family for family in self.families}
        for more in other.families:
            if more.kind == "gauge" and not gauges:
                continue
            known = families.get(more.name)
            if known is None:
                self.families.append(msgspec.structs.replace(more, values=dict(more.values)))
                continue
            combine = COMBINE[more.together]
            for key, value in more.values.items():
                known.values[key] = combine(known.values[key], value) if key in known.values else value
        for histogram in other.histograms:
            known_as = next((one for one in self.histograms if one.name == histogram.name), None)
            if known_as is None:
                known_as = msgspec.structs.replace(histogram, distributions={})
                self.histograms.append(known_as)
            for key, distribution in histogram.distributions.items():
                known_as.distributions.setdefault(key, empty_distribution()).add(distribution)


class RouteMetrics:
    """The counters of one route and method."""

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


def empty_distribution() -> Distribution:
    """Return one without observations."""
    return Distribution([0] * (len(BUCKETS_S) + 1), 0.0)


class Histogram:
    """Durations, by the value of one label."""

    __slots__ = ("distributions",)

    def __init__(self) -> None:
        self.distributions: dict[str, Distribution] = {}

    def observe(self, value: str, duration_s: float) -> None:
        """Count one duration under the label's *value*."""
        distribution = self.distributions.get(value)
        if distribution is None:
            distribution = self.distributions[value] = empty_distribution()
        distribution.buckets[bisect.bisect_left(BUCKETS_S, duration_s)] += 1
        distribution.sum_s += duration_s


class Metrics:
    """All counters of one process."""

    def __init__(self) -> None:
        self.routes: list[RouteMetrics] = []
        self.in_flight = 0
        """Requests being answered."""
        self.others: Callable[[], Iterable[Counts]] = lambda: ()
        """Returns the counts of the other workers and of this worker's predecessors."""
        self._histograms: list[tuple[str, str, str, Histogram]] = []
        self._labels: dict[str, tuple[str, ...]] = {}
        """Of the metrics that have others than ``service``."""
        self._families: list[tuple[Kind, Together, str, str, Callable[[], dict[str, float]]]] = []
        self.gauge("http_in_flight", "Requests being answered.", lambda: self.in_flight)

    def route(self, method: str, path: str) -> RouteMetrics:
        """Add the counters of a route."""
        counters = RouteMetrics(method, path)
        self.routes.append(counters)
        return counters

    def histogram(self, name: str, documentation: str, label: str, histogram: Histogram) -> None:
        """Have *histogram* shown as ``jarvis_<name>_seconds`` with the label *label*."""
        self._histograms.append((name, documentation, label, histogram))

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Have *read* asked for the value of ``jarvis_<name>`` at each scrape; workers' values add up."""
        self._families.append(("gauge", "sum", name, documentation, lambda: {"": read()}))

    def counter(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Have *read* asked for the value of ``jarvis_<name>_total``, which only grows, at each scrape."""
        self._families.append(("counter", "sum", name, documentation, lambda: {"": read()}))

    def counts(self, name: str, documentation: str, read: Callable[[], dict[str, float]]) -> None:
        """Have *read* asked for the values of ``jarvis_<name>_total`` by service at each scrape."""
        self._families.append(("counter", "sum", name, documentation, read))

    def labelled(
        self,
        name: str,
        documentation: str,
        labels: tuple[str, ...],
        read: Callable[[], Iterable[tuple[tuple[str, ...], int]]],
    ) -> None:
        """Have *read* asked for the values of ``jarvis_<name>_total`` by the values of *labels* at each scrape."""
        self._labels[name] = labels
        self.counts(name, documentation, lambda: {TOGETHER.join(key): value for key, value in read()})

    def states(
        self, name: str, documentation: str, read: Callable[[], dict[str, float]], *, together: Together = "least"
    ) -> None:
        """Have *read* asked for the values of ``jarvis_<name>`` by service at each scrape."""
        self._families.append(("gauge", together, name, documentation, read))

    def take(self) -> Counts:
        """Return this process' counts up to now."""
        routes = [
            RouteCounts(one.method, one.route, dict(one.statuses), list(one.buckets), one.sum_s)
            for one in self.routes
            if one.statuses
        ]
        families = [
            Family(
                kind,
                together,
                name,
                documentation,
                {key: float(value) for key, value in read().items()},
                self._labels.get(name, SERVICE),
            )
            for kind, together, name, documentation, read in self._families
        ]
        histograms = [
            HistogramCounts(
                name,
                documentation,
                label,
                {value: Distribution(list(one.buckets), one.sum_s) for value, one in histogram.distributions.items()},
            )
            for name, documentation, label, histogram in self._histograms
        ]
        return Counts(routes, families, histograms)

    def write(self) -> bytes:
        """Return everything in Prometheus' text format, version 0.0.4."""
        from prometheus_client import CollectorRegistry, generate_latest  # only a scrape needs it

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # type: ignore[arg-type]  # the library asks for its base class, but uses collect() only
        return generate_latest(registry)

    def collect(self) -> Iterator[object]:
        """Give the metric families; the library's protocol of a collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counts = self.take()
        for other in self.others():
            counts.add(other)
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
        for route in counts.routes:
            for status, count in sorted(route.statuses.items()):
                labels = [route.method, route.route, str(status)]
                requests.add_metric(labels, count)
                if status >= 500:
                    errors.add_metric(labels, count)
            durations.add_metric([route.method, route.route], buckets=_cumulative(route.buckets), sum_value=route.sum_s)
        yield from (requests, errors, durations)
        for kind in counts.families:
            make = GaugeMetricFamily if kind.kind == "gauge" else CounterMetricFamily
            family = make(f"jarvis_{kind.name}", kind.documentation, labels=() if "" in kind.values else kind.labels)
            for key, value in kind.values.items():
                family.add_metric(key.split(TOGETHER) if key else [], value)
            yield family
        for histogram in counts.histograms:
            distributions = HistogramMetricFamily(
                f"jarvis_{histogram.name}_seconds", histogram.documentation, labels=[histogram.label]
            )
            for key, one in histogram.distributions.items():
                distributions.add_metric([key], buckets=_cumulative(one.buckets), sum_value=one.sum_s)
            yield distributions


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    """Return (bound, observations up to it) of each bucket."""
    return list(zip((*map(str, BUCKETS_S), "+Inf"), itertools.accumulate(counts), strict=True))
