"""A runtime's figures in Prometheus' text format.

Written by hand: the format is a line for each figure, while a client library would bring global
registries and a dependency to every device.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A request may take from a tenth of the budget, in steps of about a fifth around the budget.
_SHARES = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 4.0, 10.0)


class LatencyHistogram:
    """How many requests took how long, in buckets that are shares of the budget at the start."""

    def __init__(self, budget_ms: float) -> None:
        """Begin with none."""
        self._bounds_s = tuple(share * budget_ms / 1e3 for share in _SHARES)
        self._counts = [0] * (len(_SHARES) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    def add(self, observations: Sequence[Observation]) -> None:
        """Count requests."""
        with self._lock:
            for seen in observations:
                seconds = seen.actual_ms / 1e3
                self._counts[bisect_left(self._bounds_s, seconds)] += 1
                self._sum_s += seconds

    def lines(self, name: str) -> Iterator[str]:
        """The samples of a histogram, in seconds."""
        with self._lock:
            counts, sum_s = list(self._counts), self._sum_s
        bounds = (*self._bounds_s, math.inf)
        for bound, count in zip(bounds, accumulate(counts), strict=True):
            yield _sample(f"{name}_bucket", count, {"le": _number(bound)})
        yield _sample(f"{name}_sum", sum_s)
        yield _sample(f"{name}_count", sum(counts))


def prometheus(status: Status, latencies: LatencyHistogram | None = None) -> str:
    """A runtime's figures, for a scraper.

    Args:
        status: The runtime's status.
        latencies: Its requests' latencies.

    Returns:
        Lines of the text format.
    """
    step = status.step
    gauges: list[tuple[str, str, float | None]] = [
        ("up", "Whether the runtime serves", status.state == "serving"),
        ("uptime_seconds", "Time since the start", status.uptime_s),
        ("budget_seconds", "Latency budget of a request", status.budget_ms / 1e3),
        ("budget_met", "Whether the budget is expected to be kept", status.budget_met),
        ("latency_ratio", "Actual over estimated latency (r)", status.ratio),
        (
            "latency_seconds",
            "Median latency of the latest requests",
            None if status.latency_ms is None else status.latency_ms / 1e3,
        ),
        (
            "subnet_estimated_seconds",
            "Estimated latency of the subnet in use",
            None if step is None else step.latency_ms / 1e3,
        ),
        (
            "subnet_accuracy",
            "Accuracy of the subnet in use, as searched",
            None if step is None else step.accuracy,
        ),
        ("resident_subnets", "Subnets in memory", status.resident),
        ("resident_bytes", "Memory of their weights", status.resident_bytes),
        ("barred_subnets", "Subnets that failed and are not served now", status.barred),
        ("searching", "Whether a search for quicker subnets goes on", status.searching),
    ]
    counters: list[tuple[str, str, float]] = [
        ("requests_total", "Requests", status.n_requests),
        ("requests_failed_total", "Requests that no subnet could answer", status.n_failed),
        ("switches_total", "Changes of the subnet in use", status.n_switches),
    ]
    lines: list[str] = []
    for name, text, value in gauges:
        if value is not None:
            lines += _header(name, "gauge", text)
            lines.append(_sample(f"fxelastic_{name}", value))
    for name, text, value in counters:
        lines += _header(name, "counter", text)
        lines.append(_sample(f"fxelastic_{name}", value))
    lines += _header("events_total", "counter", "Events by kind")
    for kind, count in sorted(status.events.items()):
        lines.append(_sample("fxelastic_events_total", count, {"kind": kind}))
    if latencies is not None:
        lines += _header("request_seconds", "histogram", "Latency of requests")
        lines += latencies.lines("fxelastic_request_seconds")
    return "\n".join(lines) + "\n"


def _header(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP fxelastic_{name} {text}", f"# TYPE fxelastic_{name} {kind}"]


def _sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    if not labels:
        return f"{name} {_number(value)}"
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {_number(value)}"


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
