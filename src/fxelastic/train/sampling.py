"""Which branches and subnets learn in a training step.

A policy is a function of the step and the seed alone and keeps no state: an interrupted run goes
on with the same subnets, and every process of a distributed run draws the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from fxelastic.errors import UsageError
from fxelastic.randomness import derived_seed
from fxelastic.spec import Arch, CostWindow, SearchSpace
from fxelastic.spec.options import check_count
from fxelastic.train.learners import Learners

_DRAWS = 100

#: Prices between which a subnet's is found, and rounds of bisection.
_PRICES, _ROUNDS = (1e-6, 1e6), 24
_WIDEST, _TINY = 10.0, 1e-30


class Sampling(Protocol):
    """Draws the subnets of a training step; a frozen dataclass whose fields are its options."""

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step.

        Args:
            space: The search space.
            step: The number of the step, from 0.
            seed: The run's seed; the same step and seed give the same subnets.
        """
        ...  # pragma: no cover


@dataclass(frozen=True)
class Turns:
    """No subnets: branches learn alone, some of them in each step, in turn.

    Attributes:
        n: Branches a step; all where None.
    """

    n: int | None = None

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            UsageError: ``n`` is below 1.
        """
        if self.n is not None:
            check_count("branches_per_step", self.n)

    def branches(self, names: tuple[str, ...], step: int, seed: int) -> tuple[str, ...]:
        """The branches of a step; over any number of steps, their counts differ by one at most."""
        n = min(self.n or len(names), len(names))
        if n == len(names):
            return names
        chosen: list[str] = []
        for i in range(step * n, (step + 1) * n):
            turn, place = divmod(i, len(names))
            order = list(names)
            random.Random(derived_seed(seed, "turn", turn)).shuffle(order)
            chosen.append(order[place])
        return tuple(name for name in names if name in chosen)


@dataclass(frozen=True)
class Uniform:
    """Each tiling with the same probability: no kind or length of branch is preferred.

    Attributes:
        n: Subnets a step.
    """

    n: int = 1

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            UsageError: ``n`` is below 1.
        """
        check_count("n", self.n)

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`."""
        return tuple(space.sample(self.n, derived_seed(seed, "uniform", step)))


@dataclass(frozen=True)
class Fixed:
    """The same subnets in each step.

    Attributes:
        subnets: The subnets.
    """

    subnets: tuple[Arch, ...]

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`."""
        return self.subnets


@dataclass(frozen=True)
class Bucketed:
    """Every range of costs in turn, uniform in each.

    The costs of uniform tilings crowd around the middle; this policy trains cheap and expensive
    subnets as often as those. Ranges without a subnet are left out.

    Attributes:
        n_buckets: Ranges of equal width between the cheapest and the most expensive subnet.
        n: Subnets a step, from one range after the other.
        costs: Cost of each branch by id, such as a latency in ms; its FLOPs where None.
    """

    n_buckets: int = 5
    n: int = 1
    costs: Mapping[str, float] | None = field(default=None, repr=False)
    # Windows count paths when they are first drawn from, so they are kept for each space.
    _windows: dict[int, tuple[SearchSpace, tuple[CostWindow, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: A number is below 1.
        """
        check_count("n_buckets", self.n_buckets)
        check_count("n", self.n)

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
            windows = cost_windows(space, self.n_buckets, self.costs)
            found = tuple(window for window in windows if window.sample_up_to(1))
            known = self._windows[id(space)] = (space, found)
        return known[1]


@dataclass(frozen=True)
class Sandwich:
    """The most expensive subnet of new branches, the cheapest, and random ones, in every step.

    Source: the sandwich rule of universally slimmable networks (Yu and Huang, 2019).

    Attributes:
        n_random: Random subnets besides the two.
        costs: Cost of each branch by id; its FLOPs where None.
    """

    n_random: int = 1
    costs: Mapping[str, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            UsageError: ``n_random`` is below 0.
        """
        check_count("n_random", self.n_random, least=0)

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`."""
        costs = flops_of(space) if self.costs is None else self.costs
        drawn = space.sample(self.n_random, derived_seed(seed, "sandwich", step))
        # The most expensive subnet is often the model itself, which has nothing to learn:
        # originals count as free here.
        new = {b.id: 0.0 if b.kind == "original" else costs[b.id] for b in space.branches}
        return tuple(dict.fromkeys((space.max_cost_arch(new), space.min_cost_arch(costs), *drawn)))


@dataclass(frozen=True)
class Plan:
    """What learns in a step; the same for all of its batches and in all processes.

    Attributes:
        branches: Ids of the new branches that learn.
        archs: The subnets that they are in; empty where branches learn alone.
        start: The first block that runs, on the values before it.
    """

    branches: tuple[str, ...]
    archs: tuple[Arch, ...] = ()
    start: int = 0


def plan_of(
    space: SearchSpace,
    learners: Learners,
    sampling: Sampling | Turns,
    step: int,
    seed: int,
    start: int = 0,
) -> Plan:
    """Choose what learns in a step; subnets without a branch that learns are drawn again.

    Args:
        space: The search space.
        learners: The branches that can learn.
        sampling: The policy.
        step: The number of the step, from 0.
        seed: The stage's seed.
        start: The first block that runs.
    """
    names = tuple(learners.branches)
    if isinstance(sampling, Turns):
        return Plan(sampling.branches(names, step, seed), start=start)
    archs: tuple[Arch, ...] = ()
    for attempt in range(_DRAWS):
        drawn = sampling.archs(space, step, derived_seed(seed, "attempt", attempt))
        archs = tuple(arch for arch in drawn if any(name in learners.branches for name in arch))
        if archs:
            break
    else:
        # Nearly every subnet of this space has nothing to learn: one branch alone, in turn.
        archs = (_around(space, names[step % len(names)]),)
    chosen = {name for arch in archs for name in arch}
    return Plan(tuple(name for name in names if name in chosen), archs, start)


def _around(space: SearchSpace, branch: str) -> Arch:
    """The subnet of one new branch and originals."""
    spec = space.by_id[branch]
    ids = [s.id for s in space.branches if s.id in space.original.branches]
    before = [name for name in ids if space.by_id[name].stop <= spec.start]
    after = [name for name in ids if space.by_id[name].start >= spec.stop]
    return Arch((*before, branch, *after))


@dataclass(frozen=True)
class Attentive:
    """Subnets like those that a search chooses: with low errors for their cost.

    Most subnets of a large space are poor. If all are trained alike, the few that a device will
    run get worse. Each draw takes the subnet that minimises the sum of its branches' errors within
    a random cost, with every error multiplied by random noise, so that branches that are nearly as
    good take part, too.

    Attributes:
        errors: Error of each branch by id, such as ``history.held_out.best`` of a teacher-forced
            distillation. An original's is 0 by default. Another branch without a finite error
            counts as the worst one that has one.
        low: Lowest cost of a subnet, as a share of the original's.
        high: Highest cost, likewise.
        spread: Standard deviation of the noise's logarithm.
        n: Subnets a step.
        costs: Cost of each branch by id, such as a latency in ms; its FLOPs where None.

    Source: attentive sampling (Wang et al., AttentiveNAS, CVPR 2021), which draws some subnets of
    each cost and trains the one that a predictor says to be best.
    """

    errors: Mapping[str, float] = field(repr=False)
    low: float = 0.5
    high: float = 0.95
    spread: float = 0.7
    n: int = 1
    costs: Mapping[str, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UsageError: An option is out of range.
        """
        check_count("n", self.n)
        if not 0 <= self.low < self.high:
            raise UsageError(
                "low must be less than high",
                expected="0 <= low < high, shares of the original's cost",
                got=f"low={self.low!r}, high={self.high!r}",
            )
        if not 0 <= self.spread <= _WIDEST:
            raise UsageError(
                f"spread must be between 0 and {_WIDEST}, got {self.spread!r}",
                expected=f"0 to {_WIDEST}",
                got=repr(self.spread),
            )
        for name, error in self.errors.items():
            if error < 0:
                raise UsageError(
                    "errors must be at least 0", expected="0 or more", got=f"{error!r} for {name!r}"
                )

    def archs(self, space: SearchSpace, step: int, seed: int) -> tuple[Arch, ...]:
        """The subnets of a step; see `Sampling.archs`.

        Raises:
            UsageError: No branch of the space has an error.
        """
        costs = flops_of(space) if self.costs is None else self.costs
        known = {
            spec.id: self.errors[spec.id]
            for spec in space.branches
            if math.isfinite(self.errors.get(spec.id, math.inf))
        }
        if not known:
            raise UsageError(
                "errors must name branches of the supernet",
                expected="an error for each branch that learns, by its id",
                got=", ".join(self.errors) or "nothing",
                fix="pass history.held_out.best of a teacher-forced distillation",
            )
        worst = max(known.values())
        errors = {
            spec.id: known.get(spec.id, 0.0 if spec.kind == "original" else worst)
            for spec in space.branches
        }
        return tuple(
            self._draw(
                space, errors, costs, random.Random(derived_seed(seed, "attentive", step, i))
            )
            for i in range(self.n)
        )

    def _draw(
        self,
        space: SearchSpace,
        errors: Mapping[str, float],
        costs: Mapping[str, float],
        rng: random.Random,
    ) -> Arch:
        noisy = {
            name: error * math.exp(rng.gauss(0, self.spread)) for name, error in errors.items()
        }
        original = space.cost(space.original, costs)
        limit = rng.uniform(self.low, self.high) * original
        # A price of cost, in units of error, makes this a shortest path; the price is bisected.
        unit = max(max(noisy.values()), _TINY) / max(original, _TINY)
        lower, upper = _PRICES
        chosen = space.min_cost_arch(costs)
        for _ in range(_ROUNDS):
            price = math.sqrt(lower * upper)
            priced = {name: noisy[name] + price * unit * costs[name] for name in noisy}
            arch = space.min_cost_arch(priced)
            if space.cost(arch, costs) <= limit:
                chosen, upper = arch, price
            else:
                lower = price
        return chosen


def cost_windows(
    space: SearchSpace, n: int, costs: Mapping[str, float] | None = None
) -> tuple[CostWindow, ...]:
    """Windows of equal width from the cheapest to the most expensive subnet.

    Args:
        space: The search space.
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
    """FLOPs of each branch, which stand in for latency until there is a table."""
    return {spec.id: float(spec.flops) for spec in space.branches}
