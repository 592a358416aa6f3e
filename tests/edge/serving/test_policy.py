"""When a subnet is changed, on a clock that only the test moves."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from fxelastic.edge.serving.monitor import Load, Monitor
from fxelastic.edge.serving.policy import Decision, PastSwitch, RatioPolicy, Situation
from fxelastic.spec.pareto import ParetoTable
from tests.edge.serving.simulation import Simulation, entry, steps, table_of

TABLE = table_of(4, 6, 8, 10, 12, 16, 20)


def test_a_step_up_of_the_load_costs_one_switch_within_a_second() -> None:
    run = Simulation(TABLE, 21, steps((0, 1.0), (5, 1.75))).run(15)
    assert run.current.latency_ms == 10  # 12 * 1.75 = 21 leaves no room
    (switch,) = run.switches
    assert 5 < switch.time_s < 5.7
    late = [actual for time, _, actual in run.requests if time > 6]
    assert max(late) <= 21


def test_the_best_subnet_returns_after_the_load() -> None:
    run = Simulation(TABLE, 21, steps((0, 1.0), (5, 1.7), (15, 1.0))).run(30)
    assert run.current.latency_ms == 20
    assert [past.up for past in run.switches] == [False, True]
    assert 15 < run.switches[1].time_s < 15 + 5 + 0.6


def test_the_paper_s_scenario_takes_at_most_two_switches_a_step() -> None:
    levels = [(0.0, 1.0), (15.0, 1.6), (30.0, 2.5), (45.0, 1.0)]
    rng = random.Random(0)
    level = steps(*levels)
    run = Simulation(TABLE, 21, lambda now_s: level(now_s) * rng.lognormvariate(0, 0.05)).run(60)
    for start_s, _ in levels:
        assert len(run.switches_between(start_s, start_s + 15)) <= 2
    assert run.current.latency_ms == 20


def test_nothing_happens_without_a_load() -> None:
    rng = random.Random(1)
    run = Simulation(TABLE, 21, lambda _: rng.lognormvariate(0, 0.05)).run(60)
    assert run.switches == []


@pytest.mark.parametrize("n", [1, 2])
def test_single_spikes_are_ignored(n: int) -> None:
    count = iter(range(1_000_000))
    run = Simulation(TABLE, 21, lambda _: 30.0 if next(count) % 50 < n else 1.0).run(60)
    assert run.switches == []


@pytest.mark.parametrize("ratio", [1.5, 6.0])
def test_bursts_of_a_third_of_a_second_are_ignored(ratio: float) -> None:
    def load(now_s: float) -> float:
        return ratio if now_s % 4 < 0.35 else 1.0

    # Quick requests: slow ones are half of the window as soon as they take half of its time.
    quick = table_of(*(ms / 5 for ms in (4, 6, 8, 10, 12, 16, 20)))
    assert Simulation(quick, 4.2, load).run(60).switches == []
    narrow = Monitor(window_s=0.3)
    assert Simulation(quick, 4.2, load, monitor=narrow).run(60).switches


def test_a_step_down_is_to_what_keeps_the_budget_at_the_load_s_upper_level() -> None:
    load = replace(loaded_by(1.3), high=1.9)
    usual = situation(load=load, budget_ms=20.0, current=entry(20, 0.6), table=TABLE)
    decision = RatioPolicy().decide(usual)
    assert decision.limit_ms == pytest.approx(20.0 * 0.97 / 1.9)
    assert decision.target.latency_ms == 10
    assert decision.met


def test_what_keeps_the_budget_most_of_the_time_is_told_as_met() -> None:
    load = replace(loaded_by(1.5), high=9.0)
    decision = RatioPolicy().decide(situation(load=load))
    assert decision.target.latency_ms == 5
    assert decision.met


def test_the_very_first_requests_do_not_count() -> None:
    def at(begin_s: float) -> float:
        load = replace(loaded_by(3.0), begin_s=begin_s)
        return RatioPolicy(settle_s=0.4).decide(situation(load=load)).target.latency_ms

    assert at(99.8) == 10
    assert at(99.5) == 5


def test_requests_that_are_far_apart_need_one_more() -> None:
    count = iter(range(1_000_000))
    run = Simulation(table_of(400, 600, 800), 900, lambda _: 1.0 if next(count) < 20 else 2.0)
    run.run(60)
    assert run.current.latency_ms == 400
    assert run.switches[0].time_s < 20 * 0.8 + 5 * 1.6


def test_a_lasting_spike_is_not_ignored() -> None:
    count = iter(range(1_000_000))
    run = Simulation(TABLE, 21, lambda _: 3.0 if next(count) % 50 >= 20 else 1.0).run(60)
    assert run.switches


@pytest.mark.parametrize("period_s", [0.2, 1.0, 3.0])
def test_a_load_that_oscillates_faster_than_the_wait_does_not_flap(period_s: float) -> None:
    def load(now_s: float) -> float:
        return 2.0 if now_s % period_s < period_s / 2 else 1.0

    run = Simulation(TABLE, 21, load).run(120)
    assert len(run.switches) <= 2
    assert run.current.latency_ms <= 20


def test_a_load_that_oscillates_slowly_costs_fewer_and_fewer_switches() -> None:
    def load(now_s: float) -> float:
        return 2.0 if now_s % 16 < 8 else 1.0

    run = Simulation(TABLE, 21, load).run(240)
    assert len(run.switches_between(0, 40)) >= 3
    # The wait has grown beyond the calm half of a period: no climb any more.
    assert len(run.switches_between(120, 240)) == 0


def test_without_backing_off_the_slow_oscillation_flaps() -> None:
    def load(now_s: float) -> float:
        return 2.0 if now_s % 8 < 4 else 1.0

    run = Simulation(TABLE, 21, load, policy=RatioPolicy(max_calm_s=2.0)).run(240)
    assert len(run.switches_between(120, 240)) > 10


def test_a_slow_drift_is_followed_step_by_step() -> None:
    run = Simulation(TABLE, 21, lambda now_s: 1 + now_s / 60).run(120)
    assert all(not past.up for past in run.switches)
    assert 3 <= len(run.switches) <= len(TABLE) - 1
    assert run.current.latency_ms * 3 <= 21
    over = [actual for _, _, actual in run.requests if actual > 21]
    assert len(over) / len(run.requests) < 0.05


def test_a_lower_budget_at_run_time_steps_down_and_a_higher_one_climbs() -> None:
    run = Simulation(TABLE, 21, steps((0, 1.0))).run(5)
    run.budget_ms = 9
    run.run(10)
    assert run.current.latency_ms == 8
    assert len(run.switches) == 1
    assert run.switches[0].time_s < 5.2
    run.budget_ms = 13
    run.run(15)
    assert run.current.latency_ms == 12
    assert len(run.switches) == 2


def test_a_budget_that_nothing_keeps_serves_the_quickest_and_says_so() -> None:
    run = Simulation(TABLE, 21, steps((0, 1.0), (5, 9.0))).run(20)
    assert run.current.latency_ms == 4
    assert not run.decisions[-1][1].met
    assert len(run.switches) == 1
    assert run.switches[0].time_s < 6.5


def test_one_subnet_is_kept_and_told_when_it_is_too_slow() -> None:
    run = Simulation(table_of(10), 12, steps((0, 1.0), (5, 2.0), (10, 1.0))).run(5)
    assert run.decisions[-1][1].met
    run.run(8)
    assert not run.decisions[-1][1].met
    run.run(15)
    assert run.decisions[-1][1].met
    assert run.switches == []


def loaded_by(ratio: float) -> Load:
    """A load that has been there for some time."""
    return Load(ratio, ratio, 9, ((90.0, ratio),), begin_s=90.0)


def situation(**changes: object) -> Situation:
    current = entry(10, 0.6)
    usual = Situation(100.0, 12.0, Load(1.0, 1.0, 9, ((10.0, 1.0),)), current, table_of(5, 10, 20))
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_an_empty_table_keeps_the_subnet_in_use() -> None:
    calm = situation(table=ParetoTable(()))
    assert RatioPolicy().decide(calm).target is calm.current
    loaded = situation(table=ParetoTable(()), load=loaded_by(3.0))
    decision = RatioPolicy().decide(loaded)
    assert decision.target is loaded.current
    assert not decision.met


def test_before_the_first_request_the_estimate_counts() -> None:
    decision = RatioPolicy().decide(situation(load=Load(), budget_ms=9.0))
    assert decision.target.latency_ms == 5


def test_the_limit_is_the_budget_over_r() -> None:
    policy = RatioPolicy(room_down=0.0)
    decision = policy.decide(situation(load=loaded_by(2.0)))
    assert decision.limit_ms == pytest.approx(12.0 / 2.0)
    assert decision.target.latency_ms == 5


def test_no_second_step_down_before_the_first_can_be_seen() -> None:
    loaded = situation(load=loaded_by(2.0), switches=(PastSwitch(99.9, False),))
    assert RatioPolicy().decide(loaded).target is loaded.current
    assert RatioPolicy(dwell_s=0.05).decide(loaded).target.latency_ms == 5


def test_a_clock_set_back_does_not_stop_the_policy() -> None:
    later = situation(load=loaded_by(2.0), switches=(PastSwitch(5000.0, False),))
    assert RatioPolicy().decide(later).target.latency_ms == 5


def test_deciding_is_pure() -> None:
    policy = RatioPolicy()
    loaded = situation(load=loaded_by(2.0))
    first: Decision = policy.decide(loaded)
    assert all(policy.decide(loaded) == first for _ in range(5))


def test_one_switch_up_is_enough_when_a_load_has_gone() -> None:
    steps = table_of(2, 4, 6, 10)

    def at(*peaks: tuple[float, float]) -> float:
        load = Load(1.0, 1.0, 9, peaks)
        usual = Situation(100.0, 10.5, load, steps.frontier[0], steps, [PastSwitch(90.0, False)])
        return RatioPolicy(calm_rise=0.0).decide(usual).target.latency_ms

    assert at((98.2, 2.0), (99.5, 1.0)) == 2  # What is old of these two seconds leaves them soon.
    assert at((99.2, 2.0), (99.5, 1.0)) == 4
    assert at((99.5, 1.0)) == 10


class TestClimbsUnderLoad:
    """A load that lets go for a moment has not gone, and next to nothing is not worth a switch."""

    def decide(self, peaks: list[tuple[float, float]], ratio: float, policy: RatioPolicy) -> Any:
        steps = table_of(2, 4, 6, 10)
        load = Load(ratio, ratio, 9, peaks)
        situation = Situation(
            100.0, 10.0, load, steps.frontier[0], steps, [PastSwitch(95.0, False)]
        )
        return policy.decide(situation).target.latency_ms

    def test_the_wait_is_longer(self) -> None:
        policy = RatioPolicy()
        quiet = [(90.0, 1.0)]
        assert self.decide([(97.0, 1.0), *quiet], 1.0, policy) == 6
        assert self.decide([(99.0, 1.5)], 1.5, policy) == 2
        assert self.decide([(99.0, 1.5)], 1.5, RatioPolicy(calm_rise=0.0)) == 6

    def test_a_moment_without_load_changes_nothing(self) -> None:
        assert self.decide([(98.5, 1.5), (99.9, 1.0)], 1.0, RatioPolicy()) == 2

    def test_next_to_nothing_is_left(self) -> None:
        steps = ParetoTable([entry(2, 0.5), entry(4, 0.51), entry(20, 0.9)])
        load = Load(1.0, 1.0, 9, [(50.0, 1.0)])
        situation = Situation(100.0, 10.0, load, steps.frontier[0], steps, [])
        assert RatioPolicy().decide(situation).target is steps.frontier[0]
        assert RatioPolicy(worth=0.0).decide(situation).target is steps.frontier[1]
        top = Situation(100.0, 25.0, load, steps.frontier[1], steps, [])
        assert RatioPolicy(worth=1.0).decide(top).target is steps.frontier[2]
