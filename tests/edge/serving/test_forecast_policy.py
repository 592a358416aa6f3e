"""Decisions ahead of a load, and the distance between demands and what the device has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.lookahead import Outlook
from fxelastic.edge.monitoring.matching import closest
from fxelastic.edge.monitoring.resource_monitor import Resources
from fxelastic.edge.serving.forecast_policy import ForecastPolicy
from fxelastic.edge.serving.monitor import Load
from fxelastic.edge.serving.policy import PastSwitch, RatioPolicy, Situation
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.pareto import ParetoTable
from tests.edge.serving.simulation import entry, table_of

TABLE = table_of(4, 8, 12, 16, 20)


def situation(high: float | None, ratio: float = 1.0, **changes: Any) -> Situation:
    load = Load(ratio, ratio, 9, ((90.0, ratio),), begin_s=50.0, median=ratio)
    usual = Situation(100.0, 21.0, load, entry(20, 0.52), TABLE)
    return replace(usual, outlook=Outlook(1.0, 0.5, high, "trend", high), **changes)


def test_a_rise_that_is_expected_is_met_before_it_comes() -> None:
    rising = situation(1.5)
    assert RatioPolicy().decide(rising).target.ms == 20
    decision = ForecastPolicy().decide(rising)
    assert decision.target.ms == 12
    assert decision.limit_ms == pytest.approx(21 * 0.97 / 1.5)
    assert "r 1.50 is expected" in decision.reason


@pytest.mark.parametrize("high", [None, 0.9, 1.0, 1.04])
def test_without_an_expected_excess_decisions_are_those_of_the_rule(high: float | None) -> None:
    for ratio in (1.0, 1.5):
        given = situation(high, ratio)
        assert ForecastPolicy().decide(given) == RatioPolicy().decide(given)
    assert ForecastPolicy().decide(replace(given, outlook=None)) == RatioPolicy().decide(given)


def test_no_climb_into_a_load_that_is_expected() -> None:
    low = {"current": entry(8, 0.508), "switches": (PastSwitch(50.0, False),)}
    assert ForecastPolicy().decide(situation(1.0, **low)).target.ms == 20
    assert ForecastPolicy().decide(situation(1.6, **low)).target.ms == 12
    assert ForecastPolicy().decide(situation(2.5, **low)).target.ms == 8


def test_a_switch_ahead_waits_for_the_last_one_and_the_first_requests() -> None:
    just = situation(2.0, switches=(PastSwitch(99.9, False),))
    assert ForecastPolicy().decide(just).target.ms == 20
    begun = situation(2.0)
    begun = replace(begun, load=replace(begun.load, begin_s=99.9))
    assert ForecastPolicy().decide(begun).target.ms == 20


def test_the_quickest_serves_where_nothing_keeps_what_is_expected() -> None:
    assert ForecastPolicy().decide(situation(9.0)).target.ms == 4
    alone = situation(9.0, table=table_of(20))
    assert ForecastPolicy().decide(alone) == RatioPolicy().decide(alone)


def costly(ms: float, accuracy: float, **others: float) -> Candidate:
    return Candidate(Arch((f"s{ms:g}",)), ms, accuracy, others)


LIGHT = costly(8, 0.7, weight_bytes=10.0, energy_mj=2.0)
HEAVY = costly(16, 0.8, weight_bytes=100.0, energy_mj=4.0)
MIDDLE = costly(12, 0.75, weight_bytes=50.0, energy_mj=3.0)


@pytest.mark.parametrize(
    ("resources", "limit_ms", "expected"),
    [
        # Everything is free: the demands of the largest subnet.
        (Resources(0.0, cpu=0.0, memory=0.0), 20.0, HEAVY),
        # The memory is nearly full, or the processor, and there is time for half of the latency.
        (Resources(0.0, cpu=0.0, memory=0.9), 8.0, LIGHT),
        (Resources(0.0, cpu=0.5, memory=0.5), 12.0, MIDDLE),
        # Without a reading, only the time counts.
        (None, 12.5, MIDDLE),
        (Resources(0.0, cpu=0.0, memory=0.0), 5.0, None),
    ],
)
def test_the_closest_demands(
    resources: Resources | None, limit_ms: float, expected: Candidate | None
) -> None:
    table = ParetoTable([LIGHT, MIDDLE, HEAVY])
    assert closest(table, entry(99, 0.9), resources, limit_ms) == expected


def test_readings_that_vary_a_little_change_nothing() -> None:
    table = ParetoTable([LIGHT, MIDDLE, HEAVY])
    between = Resources(0.0, cpu=0.18, memory=0.3)
    for current in (MIDDLE, HEAVY):
        assert closest(table, current, between, 16.0) == current


def test_the_objective_of_a_policy() -> None:
    table = ParetoTable([LIGHT, MIDDLE, HEAVY])
    full = Resources(0.0, cpu=0.9, memory=0.95)
    given = situation(None, current=HEAVY, table=table, resources=full)
    assert RatioPolicy().decide(given).target == HEAVY
    decision = RatioPolicy(objective="distance").decide(given)
    assert decision.target == LIGHT
    assert "closer to what the device has" in decision.reason
    with pytest.raises(UsageError, match="objective"):
        RatioPolicy(objective="speed")
