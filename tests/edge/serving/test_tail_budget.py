"""Budgets that most requests keep, not only half of them."""

from __future__ import annotations

import random

import pytest

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.slow_requests import SlowRequests
from fxelastic.edge.serving.events import EventLog
from fxelastic.edge.serving.monitor import Monitor, Observation
from tests.edge.serving.simulation import Simulation, entry, table_of

STEP = entry(10.0, 0.5)


def preempted(start_s: float, stop_s: float, run: list[Simulation]) -> object:
    """Requests beside more processes than cores: short ones pass, some wait for their turn.

    A request that runs through the end of its slice of 3 ms waits for 28 ms, so that 17 % of the
    requests of 0.5 ms are slow, and 3 % of those of 0.1 ms.
    """
    rng = random.Random(0)

    def request(step: Candidate) -> tuple[float, float]:
        loaded = start_s <= run[0].now_s < stop_s
        waits = loaded and rng.random() < step.ms / 3
        return (1.08 * step.ms + 28.0 * waits) / step.ms, 1.0

    return request


def simulated(percentile: float, until_s: float, load_s: float = 20.0) -> Simulation:
    runs: list[Simulation] = []
    table = table_of(0.1, 0.2, 0.3, 0.4, 0.5)
    found = Simulation(table, 0.98, lambda _: 1.0, monitor=Monitor(percentile=percentile))
    runs.append(found)
    found.request = preempted(5.0, 5.0 + load_s, runs)  # type: ignore[assignment]
    return found.run(until_s)


def test_a_median_does_not_see_that_a_sixth_of_the_requests_is_slow() -> None:
    found = simulated(50.0, 20.0)
    assert found.switches == []
    late = [ms for time, _, ms in found.requests if time > 8]
    assert sum(ms > 0.98 for ms in late) / len(late) == pytest.approx(0.17, abs=0.03)


def test_a_tail_budget_switches_to_what_keeps_it() -> None:
    found = simulated(95.0, 20.0)
    assert found.switches[0].time_s < 6.5
    late = [ms for time, _, ms in found.requests if time > 8]
    assert sum(ms > 0.98 for ms in late) / len(late) < 0.06
    assert len(found.switches) <= 5


def test_the_best_subnet_returns_after_the_tail_has_gone() -> None:
    found = simulated(95.0, 50.0, load_s=4.0)
    assert found.current.ms == 0.5


def test_the_percentile_needs_more_requests_than_a_median() -> None:
    monitor = Monitor(percentile=95.0)
    for i in range(39):
        monitor.record(Observation(0.01 * i, STEP, 10.0))
    assert monitor.read(0.4).ratio is None
    for i in range(39, 60):
        monitor.record(Observation(0.01 * i, STEP, 40.0 if i > 50 else 10.0))
    load = monitor.read(0.6)
    assert (load.ratio, load.high, load.median) == (4.0, 4.0, 1.0)


def test_slow_requests_are_one_line_with_a_count() -> None:
    events = EventLog(lambda: 0.0)
    slow = SlowRequests(events.add, 4.0)
    for i in range(400):  # twenty seconds of readings
        slow.add(i % 2, 10, 0.05 * i)
    slow.add(0, 0, 20.0, last=True)
    counts = [event.details["n"] for event in events.snapshot()]
    assert len(counts) == 3
    assert counts[0] == 1
    assert sum(counts) == 200
    slow.add(0, 0, 20.0, last=True)
    assert len(events.snapshot()) == 3
