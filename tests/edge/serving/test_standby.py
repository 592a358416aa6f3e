"""What is in memory before it is needed."""

from __future__ import annotations

from fxelastic.edge.serving.ladder import Ladder
from fxelastic.edge.serving.standby import Standby
from fxelastic.spec import Arch
from tests.edge.serving.simulation import ladder

LADDER = ladder(2, 4, 6, 8, 10, 12, 16, 20)


def latencies(standby: Standby, current: int, budget_ms: float, limit_ms: float) -> list[float]:
    steps = standby.steps(LADDER, LADDER.steps[current], budget_ms, limit_ms)
    return [step.latency_ms for step in steps]


def test_the_quickest_comes_first_then_more_load_and_the_neighbours() -> None:
    assert latencies(Standby(limit=9), 7, 20, 20) == [2, 16, 12, 10, 6]


def test_under_load_what_serves_without_it_comes_next() -> None:
    assert latencies(Standby(limit=9), 4, 20, 10)[:4] == [2, 20, 8, 6]


def test_there_are_at_most_so_many() -> None:
    assert latencies(Standby(limit=2), 7, 20, 20) == [2, 16]
    assert latencies(Standby(limit=0), 7, 20, 20) == []


def in_memory(*latencies_ms: float) -> set[Arch]:
    return {step.arch for step in ladder(*latencies_ms).steps}


def test_what_is_in_memory_stays_while_it_serves_the_purpose() -> None:
    standby = Standby(ratios=(1.5,), limit=3, slack=0.2)

    def under_load(limit_ms: float, here: set[Arch]) -> float:
        return standby.steps(LADDER, LADDER.steps[-1], 16, limit_ms, here)[-1].latency_ms

    assert under_load(18.5, set()) == 12
    assert under_load(18.5, in_memory(10, 12)) == 12
    assert under_load(18.5, in_memory(2, 10)) == 10
    assert under_load(17.5, in_memory(2, 10)) == 10
    assert under_load(18.5, in_memory(2, 8)) == 12


def test_what_is_in_memory_fills_the_places_left() -> None:
    standby = Standby(ratios=(), limit=9)
    steps = standby.steps(LADDER, LADDER.steps[-1], 20, 20, in_memory(4, 20))
    assert [step.latency_ms for step in steps] == [2, 16, 4]


def test_an_empty_ladder_has_none() -> None:
    assert Standby().steps(Ladder(()), LADDER.steps[0], 20, 20) == ()
