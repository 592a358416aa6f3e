"""Subnets are counted exactly, drawn uniformly, priced and checked."""

from __future__ import annotations

import itertools
import math
import pickle
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxelastic import UsageError
from fxelastic.spec import Arch, BranchSpec, SearchSpace
from tests.spec.spaces import (
    assert_uniform,
    chain,
    chi_square,
    chi_square_limit,
    enumerate_paths,
    originals,
    spaces,
    spec,
)


@given(spaces())
def test_count_is_that_of_enumeration(space: SearchSpace) -> None:
    assert space.count() == len(enumerate_paths(space))


def test_count_is_that_of_enumeration_in_every_space_of_three_blocks() -> None:
    cuts = [(i, j) for i in range(3) for j in range(i + 1, 4)]
    for times in itertools.product(range(3), repeat=len(cuts)):
        extra = [spec(f"x{k}", *cut) for cut, n in zip(cuts, times, strict=True) for k in range(n)]
        space = SearchSpace(3, (*originals(3), *extra))
        assert space.count() == len(enumerate_paths(space))


def test_count_of_a_large_space_is_exact_and_does_not_enumerate() -> None:
    # ResNet-101: 33 bottlenecks, stem and head. Without merging, a product; with merged runs of
    # two and nothing else, the Fibonacci numbers.
    assert chain(35, spans=(), variants=4).count() == 5**35 > 10**17
    fibonacci = [1, 1]
    for _ in range(299):
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert chain(300, spans=(1,), variants=0).count() == fibonacci[300] > 10**17
    assert chain(35).count() > 10**17


def test_original_is_the_originals_in_order() -> None:
    space = chain(4)
    assert space.original == Arch(("original@0", "original@1", "original@2", "original@3"))
    space.validate(space.original)
    assert SearchSpace(1, tuple(originals(1))).count() == 1


@given(spaces(max_blocks=5, max_extra=5))
def test_numbers_and_subnets_correspond(space: SearchSpace) -> None:
    # What makes a uniform number a uniform subnet.
    numbered = [space._path(i) for i in range(space.count())]
    assert len(set(numbered)) == len(numbered)
    assert set(numbered) == set(enumerate_paths(space))


@pytest.mark.parametrize("n_blocks", [3, 4, 5])
def test_samples_are_uniform(n_blocks: int) -> None:
    space = chain(n_blocks, variants=1)
    paths = enumerate_paths(space)
    assert_uniform(space.sample(60 * len(paths), seed=n_blocks), paths)


def test_a_choice_per_position_is_noticed_as_not_uniform() -> None:
    space = chain(4, variants=1)
    rng = random.Random(0)
    drawn = []
    paths = enumerate_paths(space)
    for _ in range(60 * len(paths)):
        ids: list[str] = []
        position = 0
        while position < space.n_blocks:
            branch = rng.choice(space.starting_at[position])
            ids.append(branch.id)
            position = branch.stop
        drawn.append(Arch(tuple(ids)))
    assert chi_square(drawn, paths) > chi_square_limit(len(paths) - 1)


def test_samples_follow_from_the_seed() -> None:
    space = chain(35)
    assert space.sample(20, seed=3) == space.sample(20, seed=3)
    assert space.sample(20, seed=3) != space.sample(20, seed=4)
    assert space.sample(5, 3) == space.sample(20, 3)[:5]
    assert space.sample(0) == []
    for arch in space.sample(20):
        space.validate(arch)


def test_samples_do_not_follow_from_the_branches_order() -> None:
    space = chain(6)
    branches = list(space.branches)
    random.Random(1).shuffle(branches)
    again = SearchSpace(6, tuple(branches))
    assert again == space
    assert again.sample(10, seed=1) == space.sample(10, seed=1)


SAMPLES = "from tests.spec.spaces import chain; print(*chain(20).sample(9, seed=5))"


def test_samples_are_the_same_in_every_process() -> None:
    texts = {
        subprocess.run(
            [sys.executable, "-c", SAMPLES],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


@pytest.mark.parametrize("n", [-1, 1.5, True, "3"])
def test_number_of_samples_is_checked(n: Any) -> None:
    with pytest.raises(UsageError, match="n must be at least 0"):
        chain(2).sample(n)


@given(spaces(), st.data())
def test_extreme_costs_are_those_of_enumeration(space: SearchSpace, data: st.DataObject) -> None:
    price = st.floats(0, 1e6, allow_subnormal=False) | st.integers(0, 10).map(float)
    costs = {branch.id: data.draw(price) for branch in space.branches}
    sums = [math.fsum(costs[name] for name in arch) for arch in enumerate_paths(space)]
    assert space.cost(space.min_cost_arch(costs), costs) == min(sums)
    assert space.cost(space.max_cost_arch(costs), costs) == max(sums)


def test_cost_is_the_exact_sum_rounded_once() -> None:
    space = SearchSpace(3, tuple(originals(3)))
    costs = {"original@0": 1e16, "original@1": 1.0, "original@2": 1.0}
    assert (1e16 + 1.0) + 1.0 != 1e16 + 2.0
    assert space.cost(space.original, costs) == 1e16 + 2.0


def test_first_of_equal_costs_wins() -> None:
    space = chain(3)
    costs = dict.fromkeys((b.id for b in space.branches), 0.0)
    assert space.min_cost_arch(costs) == space.max_cost_arch(costs) == space.original


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf, "1", None, 1j])
def test_unusable_costs_are_refused(cost: Any) -> None:
    space = SearchSpace(2, tuple(originals(2)))
    with pytest.raises(UsageError, match="the cost of branch 'original@1' must be at least 0"):
        space.min_cost_arch({"original@0": 1.0, "original@1": cost})


def test_missing_costs_are_refused() -> None:
    space = chain(2)
    with pytest.raises(UsageError, match="branch 'pruned0@0' has no cost"):
        space.max_cost_arch({"original@0": 1.0, "original@1": 2.0})
    assert space.cost(space.original, {"original@0": 1.0, "original@1": 2.0}) == 3.0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("original@0,nonsense,original@2", "position 1 of the arch: there is no branch 'nonsense'"),
        ("original@0,original@2", "position 1 of the arch: block 1 is not covered before"),
        ("original@0,original@3", "position 1 of the arch: blocks 1 to 2 are not covered before"),
        ("merged@0-2,original@1", "position 1 of the arch: block 1 is covered twice"),
        ("merged@0-3,merged@1-4", "position 1 of the arch: blocks 1 to 2 are covered twice"),
        ("merged@1-3", "position 0 of the arch: block 0 is not covered before 'merged@1-3'"),
        ("original@0,original@1,original@2", "ends at position 3: block 3 is not covered"),
        ("merged@0-2", "ends at position 1: blocks 2 to 3 are not covered"),
        (
            "merged@0-2,original@2,original@3,original@1",
            "position 3 of the arch: block 1 is covered twice",
        ),
    ],
)
def test_arch_that_is_no_tiling_is_refused(ids: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        chain(4).validate(Arch.parse(ids))
    assert caught.value.expected is not None


def test_what_could_stand_there_is_named() -> None:
    space = chain(4)
    with pytest.raises(UsageError, match="begins at block 1: original@1, pruned0@1, pruned1@1, "):
        space.validate(Arch.parse("original@0,original@3"))
    with pytest.raises(UsageError, match="an Arch of this search space"):
        space.validate("original@0")  # type: ignore[arg-type]


@given(spaces(max_blocks=4, max_extra=3), st.data())
def test_exactly_the_enumerated_archs_are_valid(space: SearchSpace, data: st.DataObject) -> None:
    names = [branch.id for branch in space.branches]
    arch = Arch(tuple(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))))
    if arch in enumerate_paths(space):
        space.validate(arch)
    else:
        with pytest.raises(UsageError, match="position"):
            space.validate(arch)


def _branches(*extra: BranchSpec) -> tuple[BranchSpec, ...]:
    return (*originals(3), *extra)


@pytest.mark.parametrize(
    ("n_blocks", "branches", "message"),
    [
        (0, (), "n_blocks must be at least 1"),
        (True, (), "n_blocks must be an int"),
        (3, originals(2), "block 2 has no original branch"),
        (3, originals(4), "branch 'original@3' extends beyond the last block"),
        (3, _branches(spec("merged", 2, 4)), "branch 'merged@2-4' extends beyond the last block"),
        (3, _branches(spec("a", 0, 1), spec("a", 0, 1)), "two branches have the id 'a@0'"),
        (
            3,
            _branches(spec("original", 0, 2)),
            "is an original, so it must replace exactly one block",
        ),
        (3, _branches(BranchSpec("o", "original", 1, 2, 1, 1)), "block 1 has two originals"),
        (3, ("original@0",), "must be BranchSpec objects"),
    ],
)
def test_malformed_space_is_refused(n_blocks: Any, branches: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchSpace(n_blocks, tuple(branches))


def test_is_a_value() -> None:
    space = chain(3)
    assert space.count() == 34
    assert pickle.loads(pickle.dumps(space)) == space
    assert str(space) == "3 blocks, 12 branches, 34 subnets"
