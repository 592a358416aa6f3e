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


def requests(latencies_ms: list[float], arch: str = "a") -> list[Request]:
    return [Request(arch, ms, i, i + 0.9) for i, ms in enumerate(latencies_ms)]


def test_more_than_a_percent_of_slow_requests_misses_the_bar() -> None:
    warm = requests([10.0] * 1000)
    for n, met in ((5, True), (20, False)):
        cold = requests([10.0] * (1000 - n) + [13.0] * n)
        found = slower([(cold, warm)] * 3)
        assert found["added"] == 0
        assert found["added_p999"] == pytest.approx(0.3 if n > 1 else 0.0)
        assert (found["added_p99"] > 0.05) is not met
        assert found["met"] is met


def test_a_slow_subnet_is_compared_with_itself() -> None:
    warm = [*requests([10.0] * 50), *requests([40.0] * 50, "b")]
    cold = [*requests([10.0] * 20), *requests([40.0] * 80, "b")]
    assert slower([(cold, warm)])["added_p99"] == 0


def test_seconds_in_which_the_machine_is_slow_do_not_decide() -> None:
    usual = (requests([10.0] * 100), requests([10.0] * 100))
    disturbed = (requests([20.0] * 100), requests([10.0] * 100))
    found = slower([usual, usual, disturbed])
    assert found["met"]
    assert found["all_added_p99"] == pytest.approx(1.0)


def test_a_request_that_meets_the_making_of_a_session_is_shown() -> None:
    warm = requests([10.0] * 8)
    cold = requests([10.0, 10.0, 15.0, 10.0, 20.0, 12.0, 10.0, 10.0])
    assert worst_met([(cold, warm)], [(1.5, 2.5), (5.1, 5.2)])["added_met"] == pytest.approx(0.5)
    assert worst_met([(cold, warm)], [])["added_met"] is None
