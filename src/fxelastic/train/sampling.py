"""Which subnets a training step sees.

A policy is a function of the step and the seed alone: it keeps no state, so that a run that was
interrupted goes on with the same subnets, and every process of a distributed run draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from fxelastic.errors import UsageError
from fxelastic.spec import Arch, CostWindow, SearchSpace


class Sampling(Protocol):
    """Draws the subnets of a training step; a frozen dataclass whose fields are its options."""

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step.

        Args:
            space: What to draw from.
            step: The number of the step, from 0.
            seed: The run's seed; the same step and seed give the same subnets.
        """
        ...  # pragma: no cover


@dataclass(frozen=True)
class Uniform:
    """Each tiling with the same probability: no kind or length of branch is preferred.

    Attributes:
        n: Subnets a step.
    """

    n: int = 1

    def __post_init__(self) -> None:
        """Refuse a number that is none.

        Raises:
            UsageError: ``n`` is below 1.
        """
        _check_count("n", self.n)

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`."""
        return tuple(space.sample(self.n, derived_seed(seed, "uniform", step)))


@dataclass(frozen=True)
class Bucketed:
    """Every range of costs in turn, uniform in each.

    Uniform tilings crowd around the middle of the costs; this trains cheap and dear subnets as
    often as those. Ranges without a subnet are left out.

    Attributes:
        n_buckets: Ranges of equal width between the cheapest and the dearest subnet.
        n: Subnets a step, from one range after the other.
        costs: Cost of each branch by id, such as a latency in ms; its FLOPs where None.
    """

    n_buckets: int = 5
    n: int = 1
    costs: Mapping[str, float] | None = field(default=None, repr=False)
    # Windows count paths when they are first drawn from; they are kept by space.
    _windows: dict[int, tuple[SearchSpace, tuple[CostWindow, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse numbers that are none.

        Raises:
            UsageError: A number is below 1.
        """
        _check_count("n_buckets", self.n_buckets)
        _check_count("n", self.n)

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`."""
        windows = self._of(space)
        drawn = []
        for i in range(step * self.n, (step + 1) * self.n):
            window = windows[i % len(windows)]
            drawn += window.sample(1, derived_seed(seed, "bucketed", i))
        return tuple(drawn)

    def _of(self, space: SearchSpace) -> tuple[CostWindow, ...]:
        known = self._windows.get(id(space))
        if known is None or known[0] is not space:
            found = tuple(w for w in cost_windows(space, self.n_buckets, self.costs) if _any(w))
            known = self._windows[id(space)] = (space, found)
        return known[1]


@dataclass(frozen=True)
class Sandwich:
    """The dearest subnet of new branches, the cheapest, and random ones, in every step.

    Source: the sandwich rule of universally slimmable networks (Yu and Huang, 2019).

    Attributes:
        n_random: Random subnets besides the two.
        costs: Cost of each branch by id; its FLOPs where None.
    """

    n_random: int = 1
    costs: Mapping[str, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a number that is none.

        Raises:
            UsageError: ``n_random`` is below 0.
        """
        if isinstance(self.n_random, bool) or self.n_random < 0:
            raise UsageError(
                "n_random is no count", expected="an integer of at least 0", got=repr(self.n_random)
            )

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`."""
        costs = flops_of(space) if self.costs is None else self.costs
        random = space.sample(self.n_random, derived_seed(seed, "sandwich", step))
        # The dearest of all is often the model itself, which learns nothing: an original counts
        # as little as its interval leaves room for.
        largest = space.max_cost_arch(_without_originals(space, costs))
        return tuple(dict.fromkeys((largest, space.min_cost_arch(costs), *random)))


def cost_windows(
    space: SearchSpace, n: int, costs: Mapping[str, float] | None = None
) -> tuple[CostWindow, ...]:
    """Windows of equal width from the cheapest to the dearest subnet.

    Args:
        space: The subnets.
        n: How many windows; one where all subnets cost the same.
        costs: Cost of each branch by id; its FLOPs where None.
    """
    known = flops_of(space) if costs is None else costs
    low = space.cost(space.min_cost_arch(known), known)
    high = space.cost(space.max_cost_arch(known), known)
    if low == high:
        return (CostWindow(space, known, low, high),)
    edges = [low + (high - low) * i / n for i in range(n)] + [high]
    return tuple(CostWindow(space, known, a, b) for a, b in pairwise(edges))


def flops_of(space: SearchSpace) -> dict[str, float]:
    """FLOPs of each branch: they stand in for latency until a table is given."""
    return {spec.id: float(spec.flops) for spec in space.branches}


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one purpose of a run, in [0, 2^63), the same in every process."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _without_originals(space: SearchSpace, costs: Mapping[str, float]) -> dict[str, float]:
    return {spec.id: 0.0 if spec.kind == "original" else costs[spec.id] for spec in space.branches}


def _any(window: CostWindow) -> bool:
    try:
        return bool(window.sample(1))
    except UsageError:
        return False


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is no count", expected="an integer above 0", got=repr(value))
