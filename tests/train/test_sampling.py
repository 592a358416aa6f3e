"""Which subnets a step sees."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from fxelastic import UsageError
from fxelastic.randomness import derived_seed
from fxelastic.spec import BranchSpec, SearchSpace, branch_id
from fxelastic.train import Attentive, Bucketed, Sandwich, Uniform
from fxelastic.train.sampling import cost_windows, flops_of

N = 6


def space() -> SearchSpace:
    specs = [
        BranchSpec(branch_id("original", i, i + 1), "original", i, i + 1, 1, 10 + i)
        for i in range(N)
    ]
    specs += [BranchSpec(branch_id("new", i, i + 2), "new", i, i + 2, 1, 8) for i in range(N - 1)]
    specs += [BranchSpec(branch_id("new", i, i + 1), "new", i, i + 1, 1, 5) for i in range(N)]
    return SearchSpace(N, tuple(specs))


SPACE = space()
ALL = sorted(set(SPACE.sample(5000)), key=str)
#: Branches that are good at the beginning and bad at the end.
ERRORS = {spec.id: 0.05 * 2**spec.start for spec in SPACE.branches if spec.kind == "new"}
POLICIES: tuple[Any, ...] = (Uniform(3), Bucketed(4, n=3), Sandwich(2), Attentive(ERRORS, n=3))


@pytest.mark.parametrize("policy", POLICIES)
def test_subnets_depend_on_step_and_seed_alone(policy: Any) -> None:
    first = [policy.archs(SPACE, step, 7) for step in range(20)]
    again = [type(policy)(**_options(policy)).archs(space(), step, 7) for step in range(20)]
    assert first == again
    assert [policy.archs(SPACE, step, 7) for step in reversed(range(20))] == first[::-1]
    assert [policy.archs(SPACE, step, 8) for step in range(20)] != first
    assert len(set(first)) > 10


def _options(policy: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(policy).items() if not name.startswith("_")}


def test_uniform_draws_every_tiling_as_often() -> None:
    few = SearchSpace(2, tuple(s for s in SPACE.branches if s.stop <= 2))
    counts = Counter(Uniform().archs(few, step, 0)[0] for step in range(1000))
    assert len(counts) == few.count() == 5
    assert all(abs(n - 200) < 60 for n in counts.values())


def test_buckets_take_turns() -> None:
    policy = Bucketed(4)
    windows = cost_windows(SPACE, 4)
    costs = flops_of(SPACE)
    for step in range(12):
        (arch,) = policy.archs(SPACE, step, 0)
        window = windows[step % 4]
        assert window.low <= SPACE.cost(arch, costs) <= window.high


def test_buckets_without_a_subnet_are_left_out() -> None:
    costs = dict.fromkeys(flops_of(SPACE), 0.0)
    costs["original@0"] = 1.0
    found = [SPACE.cost(Bucketed(5, costs=costs).archs(SPACE, i, 0)[0], costs) for i in range(6)]
    assert found == [0, 1] * 3


def test_all_costs_may_be_equal() -> None:
    costs = dict.fromkeys(flops_of(SPACE), 0.0)
    assert len(cost_windows(SPACE, 5, costs)) == 1
    assert Bucketed(5, costs=costs).archs(SPACE, 0, 0)


def test_a_sandwich_has_both_ends() -> None:
    costs = flops_of(SPACE)
    cheapest = SPACE.min_cost_arch(costs)
    for step in range(5):
        archs = Sandwich(2).archs(SPACE, step, 0)
        assert 2 <= len(archs) == len(set(archs)) <= 4
        assert archs[1] == cheapest
        dearest = archs[0]
        assert all("original" not in name for name in dearest)
        assert SPACE.cost(dearest, costs) == N * 5


def test_attentive_subnets_are_of_little_error_for_their_cost() -> None:
    costs = flops_of(SPACE)
    original = SPACE.cost(SPACE.original, costs)
    error = {name: ERRORS.get(name, 0.0) for name in costs}
    policy = Attentive(ERRORS, spread=0.3)
    drawn = [policy.archs(SPACE, step, 0)[0] for step in range(60)]
    for arch in drawn:
        cost = SPACE.cost(arch, costs)
        assert cost <= 0.95 * original
        # Among all subnets of at most this cost, few have less error.
        others = [other for other in ALL if SPACE.cost(other, costs) <= cost]
        better = sum(SPACE.cost(other, error) < SPACE.cost(arch, error) for other in others)
        assert better <= 0.05 * len(others)
    assert len({SPACE.cost(arch, costs) for arch in drawn}) > 4


def test_attentive_draws_the_cheapest_where_none_is_cheap_enough() -> None:
    costs = {**flops_of(SPACE), "original@0": 1e6}
    (arch,) = Attentive(ERRORS, low=0, high=1e-9, costs=costs).archs(SPACE, 0, 0)
    assert arch == SPACE.min_cost_arch(costs)


def test_an_error_that_is_not_finite_counts_as_the_worst() -> None:
    worst = max(ERRORS.values())
    name = min(ERRORS)
    found = [
        [Attentive({**ERRORS, name: error}).archs(SPACE, step, 0) for step in range(20)]
        for error in (worst, math.inf, math.nan)
    ]
    assert found[0] == found[1] == found[2]


def test_attentive_sampling_wants_errors_of_branches() -> None:
    for errors in ({}, {"subnets": 0.1}, {"new@0": math.nan}):
        with pytest.raises(UsageError, match="errors must name branches of the supernet"):
            Attentive(errors).archs(SPACE, 0, 0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Attentive(ERRORS, low=0.9, high=0.5), "low must be less than high"),
        (lambda: Attentive(ERRORS, spread=-1), "spread must be between 0"),
        (lambda: Attentive({"new@0": -1.0}), "errors must be at least 0"),
        (lambda: Attentive(ERRORS, n=0), "n must be at least 1, got 0"),
        (lambda: Uniform(0), "n must be at least 1, got 0"),
        (lambda: Bucketed(0), "n_buckets must be at least 1, got 0"),
        (lambda: Bucketed(n=True), "n must be at least 1, got True"),
        (lambda: Sandwich(-1), "n_random must be at least 0, got -1"),
    ],
)
def test_numbers_are_checked(make: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make()


def test_seeds_for_different_purposes_differ() -> None:
    seeds = {derived_seed(s, part, i) for s in (0, 1) for part in "ab" for i in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
