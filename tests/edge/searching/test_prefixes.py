"""What subnets share with those chosen is told by their prefixes."""

from __future__ import annotations

import random

import pytest

from fxelastic.edge.searching.prefixes import Prefixes
from tests.spec.spaces import random_space


@pytest.mark.parametrize("seed", range(20))
def test_own_costs_are_those_behind_the_longest_shared_prefix(seed: int) -> None:
    rng = random.Random(seed)
    space = random_space(rng)
    costs = {spec.id: rng.uniform(0.1, 5) for spec in space.branches}
    pool = space.sample(12, seed)  # Some are equal: they share all.
    prefixes = Prefixes(pool, costs)
    known: set[tuple[str, ...]] = set()
    for i in (None, *rng.sample(range(len(pool)), 6)):
        if i is not None:
            prefixes.add(i)
            known |= {pool[i].branches[:k] for k in range(1, len(pool[i]) + 1)}
        for arch, own in zip(pool, prefixes.own, strict=True):
            missing = [branch for k, branch in enumerate(arch, 1) if arch.branches[:k] not in known]
            assert own == pytest.approx(sum(costs[branch] for branch in missing), abs=1e-9)
