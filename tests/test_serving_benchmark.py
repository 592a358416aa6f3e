"""What the serving benchmark reads from a trace, and that it can say no."""

from __future__ import annotations

import pytest

from benchmarks.own_speed import OwnSpeed
from benchmarks.serve import Request, slower, worst_met
from benchmarks.serve_scenario import _longest_excess, _returned, _told
from fxelastic.report.trace import TraceData, TracedSubnet

SUBNETS = {0: TracedSubnet("a", 10.0, 0.9), 1: TracedSubnet("b", 5.0, 0.8)}


def trace(*levels: tuple[float, int, float], until_s: float, **more: object) -> TraceData:
    """Requests every 10 ms: ``(from second, subnet, latency in ms)``."""
    requests = []
    for i in range(int(100 * until_s)):
        _, subnet, latency_ms = [level for level in levels if level[0] <= i / 100][-1]
        requests.append((i / 100, subnet, latency_ms))
    return TraceData(SUBNETS, requests, **more)  # type: ignore[arg-type]


def test_the_longest_excess_is_that_of_the_running_median() -> None:
    data = trace((0, 0, 10.0), (5, 0, 20.0), (6, 1, 10.0), (8, 1, 20.0), (8.2, 1, 10.0), until_s=10)
    assert _longest_excess(data, 0, 10, budget_ms=15) == pytest.approx(1.0, abs=0.05)
    assert _longest_excess(data, 7, 10, budget_ms=15) == 0


def test_the_best_has_returned_when_it_has_served_for_a_second() -> None:
    data = trace((0, 0, 10.0), (5.5, 1, 5.0), (9, 0, 10.0), (9.5, 1, 5.0), (12, 0, 10), until_s=15)
    assert _returned(data, 10.0, 5, 15) == pytest.approx(7.0, abs=0.02)
    assert _returned(data, 10.0, 5, 12.5) is None
    assert _returned(data, 10.0, 0, 5) == 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([], False),
        ([(2, "budget_unmet")], True),
        ([(2, "budget_unmet"), (4, "budget_met")], False),
        ([(4, "budget_met"), (7, "budget_unmet")], True),
        ([(11, "budget_unmet")], False),
    ],
)
def test_what_was_said_before_holds(said: list[tuple[float, str]], told: bool) -> None:
    data = TraceData(events=[(time_s, kind, "") for time_s, kind in said])
    assert _told(data, 5, 10) is told


def test_the_time_that_the_machine_was_slow_by_itself() -> None:
    speed = OwnSpeed([(i / 100, 3.2 if 400 <= i < 500 else 2.0) for i in range(1000)])
    usual = speed.usual([(0, 3), (6, 10)])
    assert usual == 2.0
    assert speed.slow_s(0, 10, usual) == 1.0
    assert speed.slow_s(5, 10, usual) == 0


def test_what_waited_counts_and_what_the_machine_slowed_by_itself_does_not() -> None:
    held = [Request(10.0, 0.010)] * 1000
    waited = [Request(13.0, 0.010)] * 60
    by_itself = [Request(16.0, 0.016)] * 60
    found = slower([*held[60:], *waited], held)
    assert found["added"] == 0
    assert found["added_p95"] == pytest.approx(0.3)
    assert not found["met"]
    found = slower([*held[60:], *by_itself], held)
    assert found["added_p95"] == 0
    assert found["all_added_p95"] == pytest.approx(0.6)
    assert (found["n_loading_slow"], found["n_held_slow"]) == (60, 0)
    assert found["met"]


def test_a_request_that_meets_the_making_of_a_session_is_shown() -> None:
    """Of each opening the slowest request, against the slowest of as many others."""

    def requests(latencies_ms: list[float]) -> list[Request]:
        return [Request(ms, 0.01, i, i + 0.9) for i, ms in enumerate(latencies_ms)]

    held = requests([10.0, 11.0] * 50)
    going = requests([10.0, 10.0, 15.0, 10.0, 10.0, 15.0, 10.0, 10.0])
    found = worst_met(going, held, [(1.5, 2.5), (4.5, 5.5)])
    assert found["n_met"] == 2
    assert found["added_met"] == pytest.approx(15 / 11 - 1)
    assert worst_met(going, held, [])["added_met"] is None
