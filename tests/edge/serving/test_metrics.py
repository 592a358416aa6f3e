"""The figures a scraper reads, by the reader of Prometheus' own client."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fxelastic.edge.serving.metrics import LatencyHistogram, prometheus
from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.status import Status
from tests.edge.serving.simulation import entry

STEP = entry(8.0, 0.9)
STATUS = Status(
    *("serving", 12.5, STEP, 10.0, True, 1.25, 40, 1, 3, 2, 1000, 1, False),
    events={"switched": 3, "load_failed": 1},
)


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_is_there() -> None:
    read = samples(prometheus(STATUS))
    assert read["fxelastic_budget_seconds"] == 0.01
    assert read["fxelastic_latency_ratio"] == 1.25
    assert read["fxelastic_latency_seconds"] == pytest.approx(0.01)
    assert read["fxelastic_requests_total"] == 40
    assert read["fxelastic_requests_failed_total"] == 1
    assert read["fxelastic_switches_total"] == 3
    assert read["fxelastic_events_totalswitched"] == 3
    assert read["fxelastic_up"] == 1


def test_what_is_not_known_is_left_out() -> None:
    closed = Status("closed", 1.0, None, 10.0, True, None, 0, 0, 0, 0, 0, 0, False)
    read = samples(prometheus(closed))
    assert read["fxelastic_up"] == 0
    assert "fxelastic_latency_ratio" not in read
    assert "fxelastic_subnet_accuracy" not in read


def test_latencies_are_counted_in_buckets() -> None:
    latencies = LatencyHistogram(10.0)
    latencies.add([Observation(0.0, STEP, ms) for ms in (0.5, 5.0, 9.5, 10.0, 11.0, 500.0)])
    read = samples(prometheus(STATUS, latencies))
    assert read["fxelastic_request_seconds_count"] == 6
    assert read["fxelastic_request_seconds_sum"] == pytest.approx(0.536)
    assert read["fxelastic_request_seconds_bucket0.01"] == 4
    assert read["fxelastic_request_seconds_bucket+Inf"] == 6
