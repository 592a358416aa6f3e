"""Searches within limits on latency and energy that disagree, and their weighted mean."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.evolutionary import Evolutionary
from fxelastic.edge.searching.options import SearchOptions
from fxelastic.edge.searching.proposals import Mutations
from fxelastic.edge.searching.schedule import Schedule, answer
from fxelastic.edge.searching.study import Study
from fxelastic.edge.searching.weighted import Weighted
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cost_weights import CostWeights
from fxelastic.spec.limits import Limits
from tests.edge.fake_executor import dataset
from tests.edge.searching.timed_executor import (
    METRIC,
    Clock,
    TimedExecutor,
    costs_of,
    true_score,
)
from tests.lanes import EXHAUSTIVE
from tests.spec.spaces import chain, costs_by_resource, enumerate_paths

SPACE = chain(4, spans=(1, 2), variants=2)
EVERY = enumerate_paths(SPACE)
LATENCY = costs_of(SPACE)
N_TRIED = 24


def energy_of(seed: int) -> dict[str, float]:
    """What is quick need not be thrifty: the more a branch saves of one, the less of the other."""
    rng = random.Random(f"energy {seed}")
    found = {}
    for spec in SPACE.branches:
        length = spec.stop - spec.start
        saved = 1 - LATENCY[spec.id] / length
        share = min(1.0, max(0.1, 0.1 + saved + rng.uniform(-0.3, 0.3)))
        found[spec.id] = 1.0 if spec.kind == "original" else share * length
    return found


def total(costs: Mapping[str, float], arch: Arch) -> float:
    return sum(costs[branch] for branch in arch)


def study_of(bounds: Mapping[str, float], energy: dict[str, float], seed: int) -> Study:
    clock = Clock()
    evaluator = Evaluator(
        TimedExecutor(SPACE, clock),  # type: ignore[arg-type]
        dataset(20),
        METRIC,
        batch_size=20,
        costs=LATENCY,
        first=1,
        clock=clock,
    )
    resources = costs_by_resource(LATENCY, energy_mj=energy)
    rng = random.Random(seed)
    return Study(SPACE, resources, Limits(bounds), evaluator, N_TRIED, rng, clock=clock)


def bounds_of(energy: dict[str, float]) -> dict[str, float]:
    """Limits that leave room for subnets, and exclude the quickest and the thriftiest."""
    original = SPACE.original
    return {
        "latency_ms": 0.7 * total(LATENCY, original) * (1 + 1e-9),
        "energy_mj": 0.75 * total(energy, original) * (1 + 1e-9),
    }


def fitting(bounds: Mapping[str, float], energy: dict[str, float]) -> list[Arch]:
    costs = {"latency_ms": LATENCY, "energy_mj": energy}
    return [a for a in EVERY if all(total(costs[n], a) <= b for n, b in bounds.items())]


def test_the_optimum_of_two_limits_is_found_in_nearly_every_seed() -> None:
    """Far fewer subnets are tried than fit, and no more than with one limit."""
    hits, tried, tried_for_one, saved, saved_for_one = 0, 0, 0, 0.0, 0.0
    n_seeds, n_compared = (40, 10) if EXHAUSTIVE else (10, 4)
    for seed in range(n_seeds):
        energy = energy_of(seed)
        bounds = bounds_of(energy)
        study = study_of(bounds, energy, seed)
        Schedule([study]).run(Evolutionary())
        found, possible = answer(study), fitting(bounds, energy)
        assert found in possible
        best = max(map(true_score, possible))
        hits += true_score(found) >= best - 1e-9  # type: ignore[arg-type]
        tried, saved = tried + study.tried, saved + study.evaluator.counts.saved
        if seed < n_compared:
            one = study_of({"latency_ms": bounds["latency_ms"]}, energy, seed)
            Schedule([one]).run(Evolutionary())
            tried_for_one += one.tried
            saved_for_one += one.evaluator.counts.saved
    assert hits >= 0.95 * n_seeds
    assert tried / n_seeds <= tried_for_one / n_compared
    assert saved / n_seeds >= 0.8 * saved_for_one / n_compared


@pytest.mark.parametrize("seed", range(8))
def test_mutations_keep_all_limits(seed: int) -> None:
    energy = energy_of(seed)
    bounds = bounds_of(energy)
    possible = fitting(bounds, energy)
    study = study_of(bounds, energy, seed)
    mutations, rng = Mutations.of(study), random.Random(seed)
    found = [mutations.nearby(rng.choice(possible), rng) for _ in range(60)]
    made = [arch for arch in found if arch is not None]
    assert set(made) <= set(possible)
    # Repairs that see one limit keep both for far fewer.
    plain = Mutations(SPACE, study.costs, 0.0, study.high)
    other = [plain.nearby(rng.choice(possible), rng) for _ in range(60)]
    assert len(made) > sum(arch in possible for arch in other if arch is not None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_of_nearly_equal_subnets_the_cheapest_by_weights(seed: int, weight: float) -> None:
    energy = energy_of(seed)
    bounds = {name: 1.2 * bound for name, bound in bounds_of(energy).items()}
    weights = CostWeights({"latency_ms": 1 - weight, "energy_mj": weight})
    study = study_of(bounds, energy, seed)
    study.max_subnets = len(EVERY)
    strategy = Weighted(Evolutionary(), weights, 0.03)
    Schedule([study]).run(strategy)
    found = strategy.best(study)
    possible = fitting(bounds, energy)
    best = max(map(true_score, possible))
    original = {"latency_ms": total(LATENCY, SPACE.original), "energy_mj": 1.0}
    original["energy_mj"] = total(energy, SPACE.original)

    def cost(arch: Arch) -> float:
        costs = {"latency_ms": total(LATENCY, arch), "energy_mj": total(energy, arch)}
        return weights.cost(costs, original)

    assert found is not None
    near = [arch for arch in possible if true_score(arch) >= best - 0.03 - 1e-12]
    assert cost(found) == pytest.approx(min(map(cost, near)))
    if weight in (0.0, 1.0):
        costs = energy if weight else LATENCY
        assert total(costs, found) == pytest.approx(min(total(costs, arch) for arch in near))


@pytest.mark.parametrize("seed", range(2))
def test_weights_find_cheaper_subnets_among_few_tries(seed: int) -> None:
    energy = energy_of(seed)
    weights = CostWeights({"latency_ms": 0.5, "energy_mj": 0.5})
    bounds = {name: 2.0 * bound for name, bound in bounds_of(energy).items()}
    study, plain = study_of(bounds, energy, seed), study_of(bounds, energy, seed)
    strategy = Weighted(Evolutionary(), weights, 0.05)
    Schedule([study]).run(strategy)
    Schedule([plain]).run(Evolutionary())
    found, other = strategy.best(study), answer(plain)
    assert study.tried <= N_TRIED
    assert found is not None
    assert other is not None
    original = study.resources.predict(SPACE.original)
    cost = [weights.cost(study.resources.predict(arch), original) for arch in (found, other)]
    assert cost[0] < cost[1]
    assert study.scores[found] >= max(study.scores.values()) - 0.05


def test_weights_are_scaled_and_checked() -> None:
    assert dict(CostWeights({"latency_ms": 7, "energy_mj": 3})) == {
        "latency_ms": pytest.approx(0.7),
        "energy_mj": pytest.approx(0.3),
    }
    whole = {"latency_ms": 2.0, "energy_mj": 8.0}
    assert CostWeights({"latency_ms": 1, "energy_mj": 3}).cost(whole, whole) == pytest.approx(1)
    for wrong in ({}, {"latency_ms": 0}, {"latency_ms": -1}, {"watts": 1}, 3, {"flops": math.inf}):
        with pytest.raises(UsageError):
            SearchOptions(weights=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tolerance"):
        SearchOptions(tolerance=-1.0)


def test_more_subnets_fit_than_are_tried() -> None:
    assert min(len(fitting(bounds_of(energy_of(s)), energy_of(s))) for s in range(40)) > N_TRIED
