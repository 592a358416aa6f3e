"""Subnets to try next: neighbours of known ones, and draws from just below the limit."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch, BranchSpec, SearchSpace
from fxelastic.spec.cost_window import CostWindow

#: Attempts to find a new subnet before giving up.
ATTEMPTS = 200
#: Generations without a new subnet after which a search ends.
FRUITLESS = 20
# Swaps that bring a mutation back into several limits, and draws where they do not.
_SWAPS, _REDRAWN = 3, 16
# Windows of subnets with one branch that are kept for further draws, at up to 4 MB each.
_KEPT = 64

#: A subnet as its branches, in execution order.
Tiling: TypeAlias = tuple[BranchSpec, ...]


@dataclass
class Mutations:
    """Neighbours of subnets in a window of costs (``nearby_mutate`` of AdaptiveNet §5.1).

    A mutation adds one branch that the subnet does not have, in place of those it overlaps;
    originals fill the gaps. If the costs are then out of the window, one other branch is replaced
    so that they are in it again, by the change that alters them least. Where no
    single one suffices, the rest of the subnet is drawn anew, uniformly over what fits the window
    with this branch. So a mutation is in the window whenever any subnet with the branch is.

    If other resources are limited, too, the swap must keep these limits; where no single one does,
    up to three swaps lower the excess over all limits step by step.

    Attributes:
        space: The subnets.
        costs: Cost of each branch, by id.
        low: Least cost of a subnet.
        high: Largest cost of a subnet.
        others: Further costs of each branch that add up, each with the largest sum.
    """

    space: SearchSpace
    costs: Mapping[str, float]
    low: float
    high: float
    others: Sequence[tuple[Mapping[str, float], float]] = ()
    _originals: Tiling = field(init=False, repr=False)
    _tilings: dict[Arch, Tiling] = field(init=False, repr=False, default_factory=dict)
    _swaps: dict[str, tuple[list[float], list[BranchSpec]]] = field(
        init=False, repr=False, default_factory=dict
    )
    _windows: dict[str, CostWindow] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._originals = self.space.specs(self.space.original)
        self._by_span: dict[tuple[int, int], list[BranchSpec]] = {}
        for spec in self.space.branches:
            self._by_span.setdefault((spec.start, spec.stop), []).append(spec)

    @classmethod
    def of(cls, study: Study, low: float = 0.0) -> Mutations:
        """The mutations that keep a study's limits, and cost at least ``low``."""
        return cls(study.space, study.costs, low, study.high, study.other_costs)

    def mutate(self, arch: Arch, rng: random.Random) -> Arch | None:
        """A neighbour in the window; None if the window holds no other subnet."""
        options = [spec for spec in self.space.branches if spec.id not in set(arch.branches)]
        rng.shuffle(options)
        for spec in options:
            found = self.with_branch(arch, spec, rng)
            if found is not None:
                return found
        return None

    def nearby(self, arch: Arch, rng: random.Random) -> Arch | None:
        """A neighbour by one new branch and at most one swap; None where that misses the window.

        It is much quicker than `mutate`, and stays near the subnet.
        """
        spec = rng.choice(self.space.branches)
        if spec.id in arch.branches:
            return None
        changed = self._replaced(arch, spec)
        return self._repaired(changed, spec, rng)

    def with_branch(self, arch: Arch, spec: BranchSpec, rng: random.Random) -> Arch | None:
        """A subnet of the window that has this branch; None where there is none."""
        changed = self._replaced(arch, spec)
        repaired = self._repaired(changed, spec, rng)
        return repaired if repaired is not None else self._redrawn(spec, rng)

    def _replaced(self, arch: Arch, spec: BranchSpec) -> Tiling:
        tiling = self._tilings.get(arch)
        if tiling is None:
            tiling = self._tilings[arch] = self.space.specs(arch)
        return _put_in(tiling, spec, self._originals)

    def _repaired(self, tiling: Tiling, kept: BranchSpec, rng: random.Random) -> Arch | None:
        """The subnet, after the least swaps that bring its costs into the window."""
        if self.others:
            return self._repaired_for_all(tiling, kept, rng)
        cost = self._cost(tiling)
        if self._inside(cost):
            return _arch(tiling)
        least, most = self.low - cost, self.high - cost
        best: tuple[float, float, int, BranchSpec] | None = None
        for i, spec in enumerate(tiling):
            if spec is kept:
                continue
            changes, others = self._swaps_of(spec)
            # Of the sufficient changes, the one nearest to zero.
            k = bisect_right(changes, most) - 1 if most < 0 else bisect_left(changes, least)
            if 0 <= k < len(changes) and least <= changes[k] <= most:
                size = abs(changes[k])
                if best is None or size <= best[0]:
                    option = (size, rng.random(), i, others[k])
                    if best is None or option[:2] < best[:2]:
                        best = option
        if best is None:
            return None
        _, _, i, other = best
        result = (*tiling[:i], other, *tiling[i + 1 :])
        return _arch(result) if self._inside(self._cost(result)) else None

    def _repaired_for_all(
        self, tiling: Tiling, kept: BranchSpec, rng: random.Random
    ) -> Arch | None:
        """The subnet, after at most three swaps that bring all of its costs into their limits."""
        columns = (self.costs, *(costs for costs, _ in self.others))
        totals = [math.fsum([costs[spec.id] for spec in tiling]) for costs in columns]
        excess = self._excess(totals)
        for _ in range(_SWAPS):
            if not excess:
                break
            best: tuple[float, float, float] | None = None
            swapped, changed = tiling, totals
            for i, spec in enumerate(tiling):
                for other in self._by_span[spec.start, spec.stop]:
                    if spec is kept or other is spec:
                        continue
                    after = [
                        total + costs[other.id] - costs[spec.id]
                        for total, costs in zip(totals, columns, strict=True)
                    ]
                    option = (self._excess(after), abs(after[0] - totals[0]), rng.random())
                    if best is None or option < best:
                        best, changed = option, after
                        swapped = (*tiling[:i], other, *tiling[i + 1 :])
            if best is None or best[0] >= excess:
                return None
            tiling, totals, excess = swapped, changed, best[0]
        # Sums that were updated step by step may be off by a rounding.
        exact = [math.fsum([costs[spec.id] for spec in tiling]) for costs in columns]
        return None if self._excess(exact) else _arch(tiling)

    def _excess(self, totals: Sequence[float]) -> float:
        """How far costs are out of their limits, each as a share of the limit; 0 if within all."""
        first, *rest = totals
        most = abs(self.high) or 1.0
        found = (max(0.0, first - self.high) + max(0.0, self.low - first)) / most
        for total, (_, high) in zip(rest, self.others, strict=True):
            found += max(0.0, total - high) / (abs(high) or 1.0)
        return found

    def _swaps_of(self, spec: BranchSpec) -> tuple[list[float], list[BranchSpec]]:
        """The branches of the same blocks and their changes of the cost, the least first."""
        if spec.id not in self._swaps:
            own = self.costs[spec.id]
            others = [other for other in self._by_span[spec.start, spec.stop] if other != spec]
            others.sort(key=lambda other: self.costs[other.id])
            self._swaps[spec.id] = [self.costs[other.id] - own for other in others], others
        return self._swaps[spec.id]

    def _redrawn(self, kept: BranchSpec, rng: random.Random) -> Arch | None:
        """A uniform draw from the subnets of the window that have a branch."""
        window = self._windows.get(kept.id)
        if window is None:
            if len(self._windows) >= _KEPT:
                del self._windows[next(iter(self._windows))]
            window = self._windows[kept.id] = self._window_with(kept)
        n = _REDRAWN if self.others else 1
        for arch in window.sample_up_to(n, rng.getrandbits(32)):
            tiling = self.space.specs(arch)
            rest_costs = (
                math.fsum([costs[spec.id] for spec in tiling]) <= high
                for costs, high in self.others
            )
            if all(rest_costs):
                return arch
        return None

    def _window_with(self, kept: BranchSpec) -> CostWindow:
        """The subnets of the window that have a branch."""
        rest = tuple(
            spec
            for spec in self.space.branches
            if spec.id == kept.id
            or spec.stop <= kept.start
            or spec.start >= kept.stop
            or (spec.kind == "original" and spec.stop - spec.start == 1)
        )
        # Every space has originals: those under the branch cost too much to be drawn.
        under = {
            spec.id
            for spec in rest
            if spec.id != kept.id and spec.start < kept.stop and spec.stop > kept.start
        }
        dear = 2 * abs(self.high) + 2 * math.fsum(self.costs.values()) + 1.0
        costs = {s.id: dear if s.id in under else self.costs[s.id] for s in rest}
        return CostWindow(SearchSpace(self.space.n_blocks, rest), costs, self.low, self.high)

    def _cost(self, tiling: Tiling) -> float:
        return math.fsum([self.costs[spec.id] for spec in tiling])

    def _inside(self, cost: float) -> bool:
        return self.low <= cost <= self.high


def replaced(space: SearchSpace, arch: Arch, spec: BranchSpec) -> Arch:
    """The subnet with a branch in place of those it overlaps; originals fill the gaps."""
    return _arch(_put_in(space.specs(arch), spec, space.specs(space.original)))


def _put_in(tiling: Tiling, spec: BranchSpec, originals: Tiling) -> Tiling:
    before = [other for other in tiling if other.stop <= spec.start]
    after = [other for other in tiling if other.start >= spec.stop]
    begin = before[-1].stop if before else 0
    end = after[0].start if after else len(originals)
    return (*before, *originals[begin : spec.start], spec, *originals[spec.stop : end], *after)


def _arch(tiling: Tiling) -> Arch:
    return Arch(tuple([spec.id for spec in tiling]))


def few_fitting(study: Study) -> list[Arch] | None:
    """The subnets that fit, those with common branches beside each other; None where too many."""
    if study.space.count() > max(10_000, 4 * study.max_subnets):
        return None
    fitting = [arch for arch in all_subnets(study.space) if study.fits(arch)]
    if len(fitting) > study.max_subnets:
        return None
    return fitting


def window_below(study: Study, width: float) -> tuple[CostWindow, float]:
    """The window below the limit and its lower end; everything below, where it is empty.

    Args:
        study: The search.
        width: The width of the window, as a share of the limit.
    """
    low = study.high * (1 - width)
    window = CostWindow(study.space, study.costs, low, study.high)
    if not window.sample_up_to(1):
        return CostWindow(study.space, study.costs, high=study.high), 0.0
    return window, low


def seeds(study: Study, n: int) -> list[Arch]:
    """Up to n subnets that fit and are new, from just below the limit where there are some.

    Where hardly any fits, the cheapest in each resource are among them.
    """
    if n < 1 or study.is_over():
        return []
    found = dict[Arch, None]()
    for window in (
        window_below(study, 0.1)[0],
        CostWindow(study.space, study.costs, 0, study.high),
    ):
        drawn = window.sample(n + ATTEMPTS, study.rng.getrandbits(32))
        for arch in (*drawn, *study.anchors):
            if len(found) < n and study.fits(arch) and not study.has_tried(arch):
                found[arch] = None
    return list(found)


def best_of(study: Study, n: int) -> list[Arch]:
    """The best subnets so far, best first; of equal ones the cheaper first."""
    order = sorted(study.scores, key=lambda a: (-study.scores[a], study.cost(a), a.branches))
    return order[:n]


def new_ones(
    study: Study,
    child: Callable[[], Arch | None],
    n: int,
    known: Sequence[Arch] = (),
    attempts: int = ATTEMPTS,
) -> list[Arch]:
    """Up to n different subnets that the study has not tried, in a bounded number of attempts."""
    found: dict[Arch, None] = {}
    for _ in range(attempts):
        if len(found) >= n or study.is_over():
            break
        arch = child()
        if arch is not None and not study.has_tried(arch) and arch not in known:
            found[arch] = None
    return list(found)


def plain_mutation(study: Study, arch: Arch) -> Arch:
    """A subnet with one random branch added."""
    others = [spec for spec in study.space.branches if spec.id not in set(arch.branches)]
    return replaced(study.space, arch, study.rng.choice(others)) if others else arch


def fitting(study: Study, n: int) -> list[Arch]:
    """Random subnets that fit; one of the cheapest where no other is found."""
    found: list[Arch] = []
    for _ in range(ATTEMPTS):
        if study.is_over():
            break
        found += filter(study.fits, study.space.sample(n, study.rng.getrandbits(32)))
        if len(found) >= n:
            break
    return found[:n] or list(study.anchors[:1])


def all_subnets(space: SearchSpace) -> Iterator[Arch]:
    """Every subnet of a space, in the order of its branches."""

    def tilings(position: int) -> Iterator[tuple[str, ...]]:
        if position == space.n_blocks:
            yield ()
            return
        for spec in space.starting_at[position]:
            for rest in tilings(spec.stop):
                yield (spec.id, *rest)

    return map(Arch, tilings(0))
