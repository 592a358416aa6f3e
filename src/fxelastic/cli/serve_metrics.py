"""The metrics of a runtime in Prometheus' text format.

Importing this module needs `prometheus_client`, which the extra ``serve`` installs.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.status import Status

# This version supports the metrics' names, and every version of Prometheus reads it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bounds of the buckets, in seconds. They are the same on every device and for every budget, so
# that the counts of several devices can be added up: five a decade, from 0.1 ms to 100 s.
_BOUNDS_S = tuple(
    float(f"{step}e{power}") for power in range(-4, 2) for step in ("1", "1.6", "2.5", "4", "6.3")
) + (100.0,)


class Metrics:
    """Counts the latencies of requests, and writes them with a runtime's status."""

    def __init__(self) -> None:
        """Start with no requests."""
        self._counts = [0] * (len(_BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    def add(self, observations: Sequence[Observation]) -> None:
        """Count requests."""
        with self._lock:
            for seen in observations:
                seconds = seen.actual_ms / 1e3
                self._counts[bisect_left(_BOUNDS_S, seconds)] += 1
                self._sum_s += seconds

    def text(self, status: Status) -> str:
        """All metrics in the text format."""
        with self._lock:
            counts, sum_s = list(self._counts), self._sum_s
        bounds = (*map(repr, _BOUNDS_S), "+Inf")
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        # A separate registry: the global one has the metrics of other libraries.
        registry = CollectorRegistry()
        registry.register(_Snapshot(status, buckets, sum_s))
        return generate_latest(registry).decode()


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """A collector for `prometheus_client` that returns the metrics of one moment."""

    status: Status
    buckets: list[tuple[str, int]]
    sum_s: float

    def collect(self) -> Iterable[Metric]:
        """The metrics; called by the registry."""
        status = self.status
        for name, text, value in _gauges(status):
            if value is not None:
                yield GaugeMetricFamily(f"fxelastic_{name}", text, value=float(value))
        for name, text, count in (
            ("requests_total", "Requests", status.n_requests),
            ("requests_failed_total", "Requests that no subnet could answer", status.n_failed),
            ("requests_over_budget_total", "Requests over the budget", status.n_over),
            ("switches_total", "Switches of the subnet in use", status.n_switches),
            *(
                (("requests_unmeasured_total", "Requests without an estimate at their sizes", n),)
                if (n := status.n_unmeasured)
                else ()
            ),
        ):
            yield CounterMetricFamily(f"fxelastic_{name}", text, value=count)
        events = CounterMetricFamily("fxelastic_events_total", "Events by kind", labels=["kind"])
        for kind, count in sorted(status.events.items()):
            events.add_metric([kind], count)
        yield events
        if status.exits:
            exits = CounterMetricFamily(
                "fxelastic_exits_total", "Samples that left cascades, by exit", labels=["exit"]
            )
            for name, count in status.exits.items():
                exits.add_metric([name], count)
            yield exits
        histogram = HistogramMetricFamily("fxelastic_request_seconds", "Latency of requests")
        histogram.add_metric([], self.buckets, self.sum_s)
        yield histogram
        if (tail := status.latency) is not None:
            percentiles = GaugeMetricFamily(
                "fxelastic_latency_percentile_seconds",
                "Percentiles of the latencies of the last 10 s",
                labels=["percentile"],
            )
            for name, ms in (("50", tail.p50_ms), ("95", tail.p95_ms), ("99", tail.p99_ms)):
                percentiles.add_metric([name], ms / 1e3)
            yield percentiles


def _gauges(status: Status) -> tuple[tuple[str, str, float | None], ...]:
    step, latency_ms, ahead = status.step, status.latency_ms, status.outlook
    return (
        ("up", "Whether the runtime serves", status.state == "serving"),
        ("uptime_seconds", "Time since the start", status.uptime_s),
        ("budget_seconds", "Latency budget of a request", status.budget_ms / 1e3),
        ("budget_met", "Whether the budget is expected to be kept", status.budget_met),
        ("latency_ratio", "Actual over estimated latency (r)", status.ratio),
        (
            "latency_seconds",
            "Median latency of the latest requests",
            None if latency_ms is None else latency_ms / 1e3,
        ),
        (
            "over_budget_share",
            "Share of the requests of the last 10 s over the budget",
            None if status.latency is None else status.latency.share_over,
        ),
        (
            "subnet_estimated_seconds",
            "Estimated latency of the subnet in use",
            None if step is None else step.ms / 1e3,
        ),
        (
            "subnet_accuracy",
            "Accuracy of the subnet in use, as searched",
            None if step is None else step.accuracy,
        ),
        ("load_index", "Use of the device's resources, from 0 to 1", status.load_index),
        (
            "load_index_forecast",
            "Load index expected in a second",
            None if ahead is None else ahead.load_index,
        ),
        (
            "latency_ratio_forecast",
            "Ratio r expected in a second",
            None if ahead is None else ahead.ratio,
        ),
        (
            "subnet_energy_joules",
            "Energy of a request on the subnet in use",
            None if status.energy_mj is None else status.energy_mj / 1e3,
        ),
        ("resident_subnets", "Subnets in memory", status.resident),
        ("resident_bytes", "Memory of their weights", status.resident_bytes),
        ("barred_subnets", "Subnets that failed and are not served now", status.barred),
        ("searching", "Whether a search for quicker subnets runs", status.searching),
    )
