"""Mutations stay in their window whenever a subnet with the branch is in it."""

from __future__ import annotations

import random

import pytest

from fxelastic.edge.searching.proposals import Mutations, replaced
from tests.spec.spaces import enumerate_paths, random_space


@pytest.mark.parametrize("seed", range(120))
def test_mutations_are_in_the_window_whenever_one_can_be(seed: int) -> None:
    rng = random.Random(seed)
    space = random_space(rng)
    costs = {s.id: rng.choice((0.0, 1.0, rng.uniform(0, 5))) for s in space.branches}
    every = enumerate_paths(space)
    sums = sorted(space.cost(arch, costs) for arch in every)
    low = rng.choice(sums)
    high = low + rng.choice((0.0, 0.5, 2.0))
    mutations = Mutations(space, costs, low, high)
    inside = [arch for arch in every if low <= space.cost(arch, costs) <= high]
    arch = rng.choice(inside or every)
    for branch in space.branches:
        if branch.id in arch.branches:
            continue
        found = mutations.with_branch(arch, branch, rng)
        possible = [a for a in inside if branch.id in a.branches]
        assert (found is not None) == bool(possible), (branch, possible)
        if found is not None:
            assert found in possible
    found = mutations.mutate(arch, rng)
    others = [a for a in inside if set(a.branches) - set(arch.branches)]
    assert (found is not None) == bool(others)
    assert found is None or found in others


@pytest.mark.parametrize("seed", range(30))
def test_a_branch_put_in_changes_what_it_overlaps_alone(seed: int) -> None:
    rng = random.Random(seed)
    space = random_space(rng)
    arch = rng.choice(enumerate_paths(space))
    for branch in space.branches:
        changed = replaced(space, arch, branch)
        space.validate(changed)
        assert branch.id in changed.branches
        for kept in space.specs(arch):
            if kept.stop <= branch.start or kept.start >= branch.stop:
                assert kept.id in changed.branches
