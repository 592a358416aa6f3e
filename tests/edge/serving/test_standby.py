"""What is in memory before it is needed."""

from __future__ import annotations

from fxelastic.edge.serving.ladder import Ladder
from fxelastic.edge.serving.standby import Standby
from tests.edge.serving.simulation import ladder

LADDER = ladder(2, 4, 6, 8, 10, 12, 16, 20)


def latencies(standby: Standby, current: int, budget_ms: float, limit_ms: float) -> list[float]:
    steps = standby.steps(LADDER, LADDER.steps[current], budget_ms, limit_ms)
    return [step.latency_ms for step in steps]


def test_more_load_comes_first_then_the_quickest_and_the_neighbours() -> None:
    assert latencies(Standby(limit=9), 7, 20, 20) == [16, 12, 10, 6, 2]


def test_under_load_what_serves_without_it_comes_first() -> None:
    assert latencies(Standby(limit=9), 4, 20, 10)[:3] == [20, 8, 6]


def test_there_are_at_most_so_many() -> None:
    assert latencies(Standby(limit=2), 7, 20, 20) == [16, 12]
    assert latencies(Standby(limit=0), 7, 20, 20) == []


def test_an_empty_ladder_has_none() -> None:
    assert Standby().steps(Ladder(()), LADDER.steps[0], 20, 20) == ()
