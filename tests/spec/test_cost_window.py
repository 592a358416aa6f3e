"""The window sampler draws every subnet of the window, equally often, and no other."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxelastic import UsageError
from fxelastic.spec import Arch, CostWindow, SearchSpace, cost_window
from tests.spec.spaces import (
    assert_uniform,
    chain,
    chi_square,
    chi_square_limit,
    enumerate_paths,
    spaces,
)


def random_costs(space: SearchSpace, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    return {b.id: rng.uniform(0.3, 2.0) * (b.stop - b.start) ** 0.5 for b in space.branches}


def inside(space: SearchSpace, costs: dict[str, float], low: float, high: float) -> list[Arch]:
    return [arch for arch in enumerate_paths(space) if low <= space.cost(arch, costs) <= high]


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "drawn"])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.4), (0.45, 0.5), (-1, 0.3), (0.7, 2)])
def test_samples_are_uniform(
    low: float, high: float, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not listed:
        monkeypatch.setattr(cost_window, "_MAX_LISTED", 0)
    space = chain(6, variants=1)
    costs = random_costs(space, 11)
    sums = [space.cost(arch, costs) for arch in enumerate_paths(space)]
    low, high = (min(sums) + share * (max(sums) - min(sums)) for share in (low, high))
    expected = inside(space, costs, low, high)
    assert 10 < len(expected) < len(sums)
    drawn = space.sample_within(30 * len(expected), costs, low, high, seed=2)
    assert_uniform(drawn, expected)


def test_keeping_the_nearest_is_noticed_as_not_uniform() -> None:
    # A sampler that takes any subnet and walks into the window favours the window's edges.
    space = chain(4, variants=1)
    costs = random_costs(space, 3)
    paths = enumerate_paths(space)
    rng = random.Random(0)
    drawn = [min(rng.sample(paths, 4), key=lambda a: space.cost(a, costs)) for _ in range(4000)]
    assert chi_square(drawn, paths) > chi_square_limit(len(paths) - 1)


def test_a_large_window_is_sampled_uniformly_branch_by_branch() -> None:
    # Too many subnets to list. With equal costs for all variants of a block, each variant of each
    # block is drawn equally often, whatever the window.
    space = chain(20, spans=(), variants=2)
    costs = {b.id: 1.0 + b.start / 7 for b in space.branches}
    total = space.cost(space.original, costs)
    drawn = space.sample_within(3000, costs, total - 1e-9, total + 1e-9, seed=1)
    for i in range(20):
        share = sum(arch.branches[i] == f"original@{i}" for arch in drawn) / 3000
        assert abs(share - 1 / 3) < 0.05


def test_a_large_window_holds_what_its_neighbours_leave() -> None:
    # Counts by an independent programme over integer costs, against shares of the draws.
    space = chain(14)
    costs = {b.id: float((b.start * 7 + len(b.id) * 5) % 11 + 1) for b in space.branches}
    ways: list[dict[int, int]] = [{} for _ in range(15)]
    ways[14] = {0: 1}
    for position in reversed(range(14)):
        for branch in space.starting_at[position]:
            for cost, n in ways[branch.stop].items():
                key = cost + int(costs[branch.id])
                ways[position][key] = ways[position].get(key, 0) + n
    low, high = 60, 70
    wanted = {cost: n for cost, n in ways[0].items() if low <= cost <= high}
    assert sum(wanted.values()) > 10**6
    drawn = space.sample_within(6000, costs, low, high, seed=4)
    found = [space.cost(arch, costs) for arch in drawn]
    expected = {cost: 6000 * n / sum(wanted.values()) for cost, n in wanted.items()}
    statistic = sum((found.count(c) - mean) ** 2 / mean for c, mean in expected.items())
    assert statistic < chi_square_limit(len(expected) - 1)


@given(spaces(), st.data())
@settings(deadline=None)
def test_window_holds_what_enumeration_finds(space: SearchSpace, data: st.DataObject) -> None:
    price = (
        st.floats(0, 100, allow_subnormal=False)
        | st.integers(0, 8).map(lambda n: n / 4)
        | st.sampled_from([0.1, 0.2, 0.3, 1e-12, 1e9])
    )
    costs = {branch.id: data.draw(price) for branch in space.branches}
    sums = sorted({space.cost(arch, costs) for arch in enumerate_paths(space)})
    bound = st.sampled_from(sums) | st.floats(-1, 400)
    low, high = sorted((data.draw(bound), data.draw(bound)))
    expected = inside(space, costs, low, high)
    window = CostWindow(space, costs, low, high)
    assert window._candidates.total >= len(expected)
    assert window._listed is not None
    assert len(window._listed) == len(expected)
    assert set(map(Arch, window._listed)) == set(expected)
    if expected:
        assert set(window.sample(3)) <= set(expected)
        assert window.sample_up_to(3, seed=1) == window.sample(3, seed=1)
        return
    assert window.sample_up_to(3) == []
    nearest = [cost for cost in sums if cost < low][-1:] + [c for c in sums if c > high][:1]
    with pytest.raises(UsageError, match="no subnet has such a cost") as caught:
        window.sample(1)
    assert str(caught.value.fix).endswith(" or ".join(map(repr, nearest)))


def test_without_bounds_it_is_the_whole_space() -> None:
    space = chain(4, variants=1)
    costs = random_costs(space, 5)
    assert_uniform(space.sample_within(3000, costs, seed=1), enumerate_paths(space))


def test_a_single_cost_is_a_window() -> None:
    space = chain(30)
    costs = random_costs(space, 5)
    cheapest = space.min_cost_arch(costs)
    cost = space.cost(cheapest, costs)
    assert space.sample_within(2, costs, cost, cost) == [cheapest, cheapest]
    assert space.sample_within(1, costs, high=cost) == [cheapest]


def test_samples_follow_from_the_seed() -> None:
    space = chain(30)
    costs = random_costs(space, 5)
    middle = space.cost(space.original, costs)
    window = CostWindow(space, costs, middle * 0.95, middle * 1.05)
    assert window.sample(10, seed=3) == space.sample_within(
        10, costs, middle * 0.95, middle * 1.05, seed=3
    )
    assert window.sample(10, seed=3) != window.sample(10, seed=4)
    assert window.sample(0) == []
    assert len(set(window.sample(50))) > 40
    for arch in window.sample(50):
        assert middle * 0.95 <= space.cost(arch, costs) <= middle * 1.05


def test_empty_window_names_the_nearest_costs() -> None:
    space = chain(3, spans=(), variants=0)
    costs = {"original@0": 1.0, "original@1": 2.0, "original@2": 4.0}
    for low, high in ((0, 6.5), (7.5, 9)):
        with pytest.raises(UsageError, match=r"the nearest costs: 7\.0$"):
            space.sample_within(1, costs, low, high)
    space = chain(2, spans=(), variants=1)
    costs = {"original@0": 1.0, "pruned0@0": 0.0, "original@1": 5.0, "pruned0@1": 0.5}
    with pytest.raises(UsageError, match=r"the nearest costs: 1\.5 or 5\.0$"):
        space.sample_within(1, costs, 2, 4)


def test_gap_in_a_large_space_names_the_nearest_costs() -> None:
    # One branch costs more than all the others together: nothing lies between.
    space = chain(30, variants=1)
    costs = random_costs(space, 5) | {"original@0": 1000.0}
    with pytest.raises(UsageError, match="no subnet has such a cost") as caught:
        space.sample_within(1, costs, 400, 600)
    below, above = map(float, str(caught.value.fix).rpartition(": ")[2].split(" or "))
    without = space.max_cost_arch(costs | {"original@0": 0.0})
    others = {branch.id: 1e6 for branch in space.starting_at[0] if branch.id != "original@0"}
    with_it = space.min_cost_arch(costs | others)
    assert without.branches[0] != "original@0" == with_it.branches[0]
    assert (below, above) == (space.cost(without, costs), space.cost(with_it, costs))


def test_window_too_narrow_to_be_found_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_window, "_DRAWS", 50)
    space = chain(30)
    costs = random_costs(space, 5)
    middle = space.cost(space.original, costs) * (1 + 1e-13)
    with pytest.raises(UsageError, match="draws near the window found 0 of 1; it is too narrow"):
        space.sample_within(1, costs, middle, middle)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (2, 1, "must have low <= high"),
        (math.nan, 1, "must have low <= high"),
        ("1", 2, "low must be a number"),
        (1, None, "high must be a number"),
    ],
)
def test_bounds_are_checked(low: Any, high: Any, message: str) -> None:
    space = chain(2)
    with pytest.raises(UsageError, match=message):
        space.sample_within(1, random_costs(space, 1), low, high)


def test_costs_are_checked() -> None:
    with pytest.raises(UsageError, match="has no cost"):
        chain(2).sample_within(1, {}, 0, 1)
