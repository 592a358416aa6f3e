"""The most valuable subnets within limits, against enumeration."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.knapsack import most_valuable
from fxelastic.spec.limits import Limits
from tests.spec.spaces import chain, enumerate_paths, random_space

SPACES = {
    **{f"random {seed}": random_space(random.Random(seed)) for seed in range(25)},
    "chain 4": chain(4),
    "chain 5": chain(5, spans=(1, 2, 3), variants=1),
    "alone": SearchSpace(3, chain(3, spans=(), variants=0).branches),
}
SUMS, LIMITED = ("latency_ms", "energy_mj"), ("latency_ms", "weight_bytes", "peak_memory_bytes")


def random_costs(space: SearchSpace, rng: random.Random, *, shared: bool) -> Costs:
    """Costs with many ties; some branches share parts of their weights."""
    ids = [spec.id for spec in space.branches]
    found = {
        name: {i: float(rng.randint(0, 6)) for i in ids} for name in (*SUMS, "peak_memory_bytes")
    }
    own = {i: float(rng.randint(1, 4)) for i in ids}
    parts = {key: float(rng.randint(1, 5)) for key in "uvw"}
    users = {i: {k: v for k, v in parts.items() if rng.random() < 0.4} for i in ids}
    weights = BranchCosts(
        {i: own[i] + sum(users[i].values()) for i in ids}, shared=users if shared else {}
    )
    costs = {name: BranchCosts(c, rng.choice((0.0, 0.5, -0.25))) for name, c in found.items()}
    return Costs({**costs, "weight_bytes": weights})


def taken(costs: Costs, name: str, arch: Arch) -> float:
    """What a subnet takes of a resource, by its definition."""
    found = costs[name]
    if name == "peak_memory_bytes":
        return found.overhead + max(found.costs[branch] for branch in arch)
    if not found.shared:
        return found.overhead + sum(found.costs[branch] for branch in arch)
    parts = {key: size for branch in arch for key, size in found.shared.get(branch, {}).items()}
    alone = (found.costs[branch] - sum(found.shared.get(branch, {}).values()) for branch in arch)
    return found.overhead + sum(alone) + sum(parts.values())


def bounds_of(
    costs: Costs, archs: list[Arch], names: tuple[str, ...], rng: random.Random
) -> Limits:
    """Bounds at or near what some subnet takes."""
    bounds: dict[str, float] = {}
    for name in names:
        bound = taken(costs, name, rng.choice(archs)) + rng.choice((0.0, 0.3))
        bounds[name] = max(bound, 0.1)
    return Limits(bounds)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("names", [SUMS[:1], SUMS, LIMITED[:2], LIMITED, LIMITED[2:]])
@pytest.mark.parametrize("shared", [False, True])
def test_the_first_is_the_best_of_all(
    space: SearchSpace, names: tuple[str, ...], shared: bool
) -> None:
    rng = random.Random(f"{names} {shared}")
    archs = enumerate_paths(space)
    for _ in range(6):
        costs = random_costs(space, rng, shared=shared)
        limits = bounds_of(costs, archs, names, rng)
        values = {spec.id: float(rng.randint(-5, 5)) for spec in space.branches}
        fitting = [
            arch for arch in archs if all(taken(costs, n, arch) <= limits.bound(n) for n in limits)
        ]
        found = most_valuable(space, costs, limits, values, n=3)
        assert bool(found) == bool(fitting)
        assert set(found) <= set(fitting)
        if found:
            assert total(values, found[0]) == max(total(values, arch) for arch in fitting)
            in_order = [total(values, arch) for arch in found]
            assert in_order == sorted(in_order, reverse=True)
            assert len(set(found)) == len(found)


def total(values: Mapping[str, float], arch: Arch) -> float:
    return sum(values[branch] for branch in arch)


def test_branches_can_be_excluded() -> None:
    space = chain(3)
    costs = random_costs(space, random.Random(0), shared=False)
    values = {b: float("-inf") if b.startswith("merged") else 0.0 for b in space.by_id}
    (found,) = most_valuable(space, costs, Limits({"latency_ms": 99.0}), values)
    assert not any(branch.startswith("merged") for branch in found)


def test_thinned_suffixes_keep_the_limits_and_come_near_the_best() -> None:
    """A deep space has far more suffixes that no other beats than are kept."""
    rng = random.Random(0)
    space = chain(40)
    latency = {spec.id: rng.uniform(0.2, 1.0) * (spec.stop - spec.start) for spec in space.branches}
    weights = {spec.id: rng.uniform(0.2, 1.0) * (spec.stop - spec.start) for spec in space.branches}
    values = {spec.id: rng.uniform(-1.0, 0.0) for spec in space.branches}
    costs = Costs({"latency_ms": BranchCosts(latency), "weight_bytes": BranchCosts(weights)})
    exact = None
    for bounds in ({"latency_ms": 18.0}, {"latency_ms": 18.0, "weight_bytes": 22.0}):
        limits = Limits(bounds)
        few = most_valuable(space, costs, limits, values, most=40)
        many = most_valuable(space, costs, limits, values, most=400)
        assert all(limits.keeps(costs.predict(arch)) for arch in (*few, *many))
        gap = total(values, many[0]) - total(values, few[0])
        assert -1e-9 <= gap < 0.2
        exact = many if exact is None else exact
    assert exact is not None
