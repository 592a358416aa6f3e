"""The latency model finds the corrections that subnets were made with."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fxelastic.edge import latency_model
from fxelastic.edge.latency_model import Measured, fit_mode, model_error, work_bounds
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts
from tests.spec.spaces import chain

SPACE = chain(12)


def rows(space: SearchSpace) -> dict[str, BranchLatency]:
    rng = random.Random(0)
    return {
        spec.id: BranchLatency(ms, ms, ms, 20, 0, rng.choice((1000, 50_000)))
        for spec in space.branches
        for ms in [rng.uniform(0.2, 2.0)]
    }


def true_model(space: SearchSpace) -> BranchCosts:
    """What runs take: 10 % quicker than the sum, less 0.05 ms a branch, and 0.3 ms."""
    return BranchCosts({name: 0.9 * row.ms - 0.05 for name, row in rows(space).items()}, 0.3)


def measured(n: int, seed: int, noise: float = 0.0) -> list[Measured]:
    rng = random.Random(seed)
    model = true_model(SPACE)
    return [
        Measured(
            arch,
            (model.overhead + sum(model.costs[b] for b in arch)) * (1 + rng.gauss(0, noise)),
        )
        for arch in SPACE.sample(n, seed)
    ]


def test_corrections_are_found() -> None:
    held_out = measured(40, seed=9)
    plain = fit_mode(SPACE, rows(SPACE), [], held_out)
    fitted = fit_mode(SPACE, rows(SPACE), measured(24, seed=1), held_out)
    assert plain.error is not None
    assert fitted.error is not None
    assert plain.error.median > 0.05
    assert fitted.error.median < 0.01
    assert fitted.error.p90 < 0.02


def test_what_takes_a_call_alone_may_take_nothing_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a skip does: its time by itself is a call's. The others' costs are not bent for it."""
    free = {spec.id for spec in SPACE.branches if spec.stop - spec.start == 1 and spec.start % 2}
    times = rows(SPACE)

    def ms(arch: Arch) -> float:
        return sum(0.8 * times[branch].ms for branch in arch if branch not in free)

    subnets = [Measured(arch, ms(arch)) for arch in SPACE.sample(60, 3) if ms(arch)]

    def fitted_error() -> float:
        model = fit_mode(SPACE, times, subnets[:20], subnets[20:])
        assert min(model.costs.values()) > 0
        assert model.error is not None
        return model.error.p90

    bounded = fitted_error()
    monkeypatch.setattr(latency_model, "_ROUNDS", 1)
    assert bounded < 0.8 * fitted_error()


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_that_was_never_seen_is_no_cheaper_than_those_that_were(seed: int) -> None:
    """Also where it has many times their operations."""
    wide = "merged@2-4"
    branches = tuple(
        replace(spec, flops=1000) if spec.id == wide else spec for spec in SPACE.branches
    )
    space = SearchSpace(SPACE.n_blocks, branches)
    times = rows(space)
    noisy = [m for m in measured(80, seed, noise=0.02) if wide not in m.arch.branches][:20]
    assert len(noisy) == 20
    cost = fit_mode(space, times, noisy).costs[wide]
    assert 0.5 < cost / times[wide].ms < 1.3


def test_noise_is_not_fitted() -> None:
    held_out = measured(40, seed=9)
    fitted = fit_mode(SPACE, rows(SPACE), measured(24, seed=1, noise=0.02), held_out)
    assert fitted.error is not None
    assert fitted.error.median < 0.02


def test_without_subnets_the_sum_is_the_model() -> None:
    model = fit_mode(SPACE, rows(SPACE), [])
    assert model.overhead == 0
    assert model.costs == {name: row.ms for name, row in rows(SPACE).items()}
    assert model.error is None


def test_costs_are_above_zero() -> None:
    quick = [Measured(m.arch, 0.01) for m in measured(24, seed=1)]
    assert min(fit_mode(SPACE, rows(SPACE), quick).costs.values()) > 0


def test_the_quickest_subnet_takes_time() -> None:
    """Also where a load made slow subnets so much slower that a line through all begins below 0."""
    times = rows(SPACE)
    sums = [(m.arch, sum(times[b].ms for b in m.arch)) for m in measured(6, seed=1)]
    least = min(total for _, total in sums)
    disturbed = [Measured(arch, 4 * total - 3.7 * least) for arch, total in sums]

    model = fit_mode(SPACE, times, disturbed)
    quickest = SPACE.cost(SPACE.min_cost_arch(model.costs), model.costs)
    assert model.overhead + quickest > 0.25 * quickest


def test_errors_are_relative() -> None:
    (arch,) = SPACE.sample(1, 0)
    model = BranchCosts(dict.fromkeys((s.id for s in SPACE.branches), 0.0), 1.0)
    error = model_error(model, [Measured(arch, 2.0), Measured(arch, 1.0), Measured(arch, 0.5)])
    assert error.median == pytest.approx(0.5)
    assert error.n_held_out == 3


def test_errors_are_of_shares_of_the_original() -> None:
    """A model that is off by the same factor everywhere gives the shares exactly."""
    actual = measured(20, seed=3)
    (original,) = [Measured(SPACE.original, true_ms(SPACE.original))]
    model = true_model(SPACE)
    scaled = BranchCosts({b: 2 * c for b, c in model.costs.items()}, 2 * model.overhead)
    assert model_error(scaled, actual, original).p90 < 1e-6
    assert model_error(scaled, actual).median > 0.9


def true_ms(arch: Arch) -> float:
    model = true_model(SPACE)
    return model.overhead + sum(model.costs[b] for b in arch)


def preempted(n: int, seed: int, share: float) -> list[Measured]:
    """Subnets of which a share was found to take up to ten times as long, or next to nothing."""
    rng = random.Random(seed)
    return [
        replace(m, ms=m.ms * rng.choice((0.01, 2.0, 5.0, 10.0))) if rng.random() < share else m
        for m in measured(n, seed)
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_no_subnet_is_predicted_below_what_its_work_takes(share: float, seed: int) -> None:
    """A table once gave 0.1 % of the original's latency for a subnet that computes."""
    times = rows(SPACE)
    bounds = work_bounds(SPACE, times)
    assert all(0 < bounds[name] <= 0.5 * row.ms for name, row in times.items())
    model = fit_mode(SPACE, times, preempted(24, seed, share))
    assert all(model.costs[name] >= bounds[name] for name in times)
    for arch in (*SPACE.sample(200, seed), SPACE.min_cost_arch(model.costs)):
        least = sum(bounds[b] for b in arch)
        assert model.overhead + sum(model.costs[b] for b in arch) >= least


def test_in_a_small_network_the_call_bounds_no_branch() -> None:
    """By itself, a branch takes a call of 0.04 ms, and 0.001 to 0.02 ms in addition."""
    inside = {name: 0.02 * row.ms for name, row in rows(SPACE).items()}
    times = {name: replace(row, ms=0.04 + inside[name]) for name, row in rows(SPACE).items()}
    subnets = [Measured(arch, SPACE.cost(arch, inside)) for arch in SPACE.sample(100, 3)]
    whole = Measured(SPACE.original, SPACE.cost(SPACE.original, inside))
    model = fit_mode(SPACE, times, subnets[:40], subnets[40:], whole)
    assert model.error is not None
    assert model.error.median < 0.05
    assert model.error.p90 < 0.15


def test_branches_without_operations_may_cost_nothing() -> None:
    branches = tuple(
        replace(spec, flops=0 if spec.start == 3 else spec.flops) for spec in SPACE.branches
    )
    space = SearchSpace(SPACE.n_blocks, branches)
    bounds = work_bounds(space, rows(space))
    assert {name for name, ms in bounds.items() if not ms} == {
        spec.id for spec in branches if spec.start == 3
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_few_disturbed_subnets_do_not_bend_the_fit(seed: int) -> None:
    held_out = measured(40, seed=99)
    fitted = fit_mode(SPACE, rows(SPACE), preempted(24, seed, 0.15), held_out)
    assert fitted.error is not None
    assert fitted.error.median < 0.05
    assert fitted.error.p90 < 0.15


def test_8_bit_branches_have_corrections_of_their_own() -> None:
    """A float branch takes half as long inside a model as alone, an 8-bit branch 0.9 times."""
    kinds = {spec.id: spec.kind for spec in SPACE.branches}
    eight = {name for name, kind in kinds.items() if kind != "original"}
    times = rows(SPACE)

    def fitted_error(kind: str) -> float:
        specs = [replace(s, kind=kind) if s.id in eight else s for s in SPACE.branches]
        space = SearchSpace(SPACE.n_blocks, tuple(specs))
        subnets = [
            Measured(arch, sum((0.9 if b in eight else 0.5) * times[b].ms for b in arch))
            for arch in space.sample(40, 5)
        ]
        model = fit_mode(space, times, subnets[:12], subnets[12:])
        assert model.error is not None
        return model.error.median

    assert fitted_error("int8") < 0.5 * fitted_error("pruned")
