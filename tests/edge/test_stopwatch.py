"""Times on a busy machine, from made-up clocks and recorded shapes of noise."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from fxelastic.edge.stopwatch import (
    LEAST_NOISE,
    Stopwatch,
    low_quartile,
    processor_time_is_exact,
)
from fxelastic.edge.subnet_timing import sample_by_turns, sample_groups


@dataclass
class Machine:
    """Clocks of a machine on which a share of the runs is preempted, for 3 ms or many."""

    preempted: float = 0.0
    wall: float = 0.0
    used: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, ms: float) -> None:
        """Compute for so many ms, which vary by 2 %."""
        seconds = 1e-3 * ms * (1 + abs(self.random.gauss(0, 0.02)))
        self.used += seconds
        self.wall += seconds
        while self.random.random() < self.preempted:
            self.wall += 3e-3

    def watch(self, *, processor: bool) -> Stopwatch:
        """A stopwatch that reads these clocks."""
        return Stopwatch(processor, lambda: self.wall, lambda: self.used, lambda: self.used)


def sampled(machine: Machine, truth: list[float], *, processor: bool) -> list[float]:
    """What calls of these times are found to take."""
    runs: list[Callable[[], None]] = [lambda ms=ms: machine.run(ms) for ms in truth]
    samples = sample_by_turns(runs, 12, machine.watch(processor=processor))
    return [low_quartile(times)[0] for times in samples]


@pytest.mark.parametrize("preempted", [0.0, 0.5, 0.8, 0.95])
def test_shares_are_right_however_often_a_thread_is_preempted(preempted: float) -> None:
    truth = [10.0, 9.0, 5.0, 1.0, 0.2]
    found = sampled(Machine(preempted), truth, processor=True)
    for ms, expected in zip(found, truth, strict=True):
        assert ms / found[0] == pytest.approx(expected / truth[0], rel=0.03)


def test_the_clock_on_the_wall_is_wrong_there() -> None:
    """Otherwise the test above would show nothing."""
    found = sampled(Machine(0.8), [10.0, 1.0], processor=False)
    assert found[1] / found[0] > 0.15


@pytest.mark.parametrize("preempted", [0.2, 0.5])
def test_low_quartiles_leave_out_few_disturbed_samples(preempted: float) -> None:
    found = sampled(Machine(preempted), [10.0, 5.0], processor=False)
    assert found == pytest.approx([10.0, 5.0], rel=0.05)


def test_sampling_goes_on_where_samples_were_disturbed() -> None:
    calm, disturbed = Machine(0.0), Machine(0.7)
    for machine, least, most in ((calm, 12, 12), (disturbed, 13, 48)):
        runs = [lambda m=machine: m.run(2.0)] * 3
        _, first, second = sample_by_turns(runs, 12, machine.watch(processor=False))
        assert len(first) == len(second)
        assert least <= len(first) <= most


def test_all_calls_are_sampled_equally_often_and_in_no_fixed_order() -> None:
    machine = Machine()
    order: list[int] = []

    def call(i: int) -> None:
        order.append(i)
        machine.run(1.0)

    sample_by_turns([partial(call, i) for i in range(9)], 4, machine.watch(processor=True))
    rounds = [order[i : i + 9] for i in range(0, len(order), 9)]
    assert all(sorted(one) == list(range(9)) for one in rounds)
    assert rounds[0] != rounds[1]


def test_sampling_ends_when_the_time_is_over() -> None:
    machine = Machine()
    runs = [lambda: machine.run(100.0)] * 2
    samples = sample_by_turns(runs, 60, machine.watch(processor=True), until_s=0.5)
    assert [len(times) for times in samples] == [5, 5]


def test_groups_are_compared_on_a_machine_that_slows_down() -> None:
    machine, slow = Machine(), 1.0

    def call(ms: float) -> None:
        nonlocal slow
        slow = 1.0 if machine.wall < 0.4 else 1.6
        machine.run(slow * ms)

    groups = [[partial(call, ms)] * 3 for ms in (1.0, 4.0, 10.0)]
    samples = sample_groups(groups, [40, 20, 8], machine.watch(processor=True), most=1)
    assert slow > 1.0
    assert [len(found[0]) for found in samples] == [40, 20, 8]
    quick, middle, long = (low_quartile(found[0])[0] for found in samples)
    assert middle / quick == pytest.approx(4.0, rel=0.03)
    assert long / quick == pytest.approx(10.0, rel=0.03)


def test_each_group_is_sampled_before_time_is_over() -> None:
    machine = Machine()
    groups = [[lambda: machine.run(1.0)], [lambda: machine.run(100.0)]]
    samples = sample_groups(groups, [40, 8], machine.watch(processor=True), until_s=0.1)
    assert [len(found[0]) for found in samples] == [25, 5]


def test_other_threads_of_the_process_do_not_count() -> None:
    machine = Machine()
    watch = machine.watch(processor=True)
    begin = watch.begin()
    machine.run(2.0)
    machine.used += 5.0
    assert watch.ms_since(begin) == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize(("preempted", "disturbed"), [(0.0, False), (0.1, False), (0.9, True)])
def test_a_busy_machine_is_recognised(preempted: float, disturbed: bool) -> None:
    machine = Machine(preempted)
    watch = machine.watch(processor=False)
    assert watch.is_disturbed(lambda: machine.run(5.0)) == disturbed


def test_noise_is_stated() -> None:
    steady = [1.0] * 20
    assert low_quartile(steady) == (1.0, LEAST_NOISE)
    wild = [1.0 + (i * 7 % 20) / 5 for i in range(20)]
    assert low_quartile(wild)[1] > 0.1


def test_accelerators_are_timed_by_the_clock_on_the_wall() -> None:
    assert not processor_time_is_exact(("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.parametrize(("step_s", "exact"), [(1e-7, True), (0.016, False), (100.0, False)])
def test_a_clock_that_goes_in_steps_does_not_time_calls(step_s: float, exact: bool) -> None:
    """With such a clock, calls once took 0 ms, and a profile ended with a division by it."""
    turns = itertools.count()

    def clock() -> float:
        # A large step takes many readings.
        return next(turns) // max(1, round(step_s / 1e-5)) * step_s

    assert processor_time_is_exact(("CPUExecutionProvider",), clock) == exact
