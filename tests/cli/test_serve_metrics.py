"""The figures a scraper reads, by the reader of Prometheus' own client."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxelastic.edge.monitoring.lookahead import Outlook
from fxelastic.edge.monitoring.recent_latencies import LatencySummary
from fxelastic.edge.monitoring.resource_monitor import Resources
from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.status import Status
from tests.edge.serving.simulation import entry

# The package is in the extra "serve", which a device may lack.
parser = pytest.importorskip("prometheus_client.parser")

STEP = entry(8.0, 0.9)
STATUS = Status(
    *("serving", 12.5, STEP, 10.0, True, 1.25, 40, 1, 3, 2, 1000, 1, False),
    events={"switched": 3, "load_failed": 1},
)


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics(status: Status, *latencies_ms: float) -> str:
    from fxelastic.cli.serve_metrics import Metrics

    made = Metrics()
    made.add([Observation(0.0, STEP, ms) for ms in latencies_ms])
    return made.text(status)


def test_names_and_labels_are_those_of_earlier_versions() -> None:
    names = {
        line.split()[0].partition("{")[0]
        for line in metrics(STATUS).splitlines()
        if not line.startswith("#")
    }
    gauges = (
        "up uptime_seconds budget_seconds budget_met latency_ratio latency_seconds "
        "subnet_estimated_seconds subnet_accuracy resident_subnets resident_bytes barred_subnets "
        "searching"
    )
    counters = (
        "requests_total requests_failed_total requests_over_budget_total switches_total "
        "events_total"
    )
    histogram = "request_seconds_bucket request_seconds_sum request_seconds_count"
    assert names == {f"fxelastic_{name}" for name in f"{gauges} {counters} {histogram}".split()}


def test_every_figure_is_there() -> None:
    read = samples(metrics(STATUS))
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
    read = samples(metrics(closed))
    assert read["fxelastic_up"] == 0
    assert "fxelastic_latency_ratio" not in read
    assert "fxelastic_subnet_accuracy" not in read


def test_samples_are_counted_by_exit() -> None:
    read = samples(metrics(replace(STATUS, exits={"end": 3, "exit@2-9": 40})))
    assert read["fxelastic_exits_totalexit@2-9"] == 40
    assert read["fxelastic_exits_totalend"] == 3


def test_the_tail_is_there() -> None:
    tail = LatencySummary(8.0, 12.0, 30.0, 0.17, 400)
    read = samples(metrics(replace(STATUS, latency=tail, n_over=68)))
    percentiles = [read[f"fxelastic_latency_percentile_seconds{p}"] for p in (50, 95, 99)]
    assert percentiles == pytest.approx([0.008, 0.012, 0.03])
    assert read["fxelastic_over_budget_share"] == 0.17
    assert read["fxelastic_requests_over_budget_total"] == 68
    shown = replace(STATUS, latency=tail)
    assert "p50 8.00, p95 12.00, p99 30.00 ms, 17% over" in str(shown)
    assert shown.to_json()["p99_ms"] == 30.0


def test_the_load_and_the_energy_are_there_where_they_are_known() -> None:
    step = replace(STEP, others={"energy_mj": 12.0})
    ahead = Outlook(1.0, 0.7, 1.6, "trend", 1.8)
    status = replace(STATUS, step=step, resources=Resources(0.0, load_index=0.4), outlook=ahead)
    read = samples(metrics(status))
    assert read["fxelastic_load_index"] == 0.4
    assert read["fxelastic_load_index_forecast"] == 0.7
    assert read["fxelastic_latency_ratio_forecast"] == 1.6
    assert read["fxelastic_subnet_energy_joules"] == 0.012
    told = status.to_json()
    assert (told["load_index"], told["ratio_ahead"], told["energy_mj"]) == (0.4, 1.6, 12.0)


def test_buckets_of_several_devices_can_be_added_up() -> None:
    def bounds(budget_ms: float) -> set[str]:
        read = samples(metrics(replace(STATUS, budget_ms=budget_ms), budget_ms))
        return {name for name in read if "_bucket" in name}

    assert bounds(3.0) == bounds(700.0)
    assert len(bounds(3.0)) > 20


def test_latencies_are_counted_in_buckets() -> None:
    read = samples(metrics(STATUS, 0.5, 5.0, 9.5, 10.0, 11.0, 500.0))
    assert read["fxelastic_request_seconds_count"] == 6
    assert read["fxelastic_request_seconds_sum"] == pytest.approx(0.536)
    assert read["fxelastic_request_seconds_bucket0.01"] == 4
    assert read["fxelastic_request_seconds_bucket+Inf"] == 6
