"""Change a subnet a little, and keep it in a window of latencies."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from fxelastic.errors import UsageError
from fxelastic.spec import Arch, BranchSpec, SearchSpace
from fxelastic.spec.cost_window import CostWindow

#: A subnet as its branches, in execution order.
Tiling: TypeAlias = tuple[BranchSpec, ...]


@dataclass
class Mutations:
    """Neighbours of subnets in a window of costs (``nearby_mutate`` of AdaptiveNet §5.1).

    A mutation puts in one branch that the subnet does not have; what it overlaps goes, and what
    is then uncovered is filled with originals. Where the costs are out of the window, one other
    branch is replaced so that they are in it again, the change that alters them least. Where no
    single one does, the rest of the subnet is drawn anew, uniformly over what fits the window
    with this branch. So a mutation is in the window whenever any subnet with the branch is.

    Attributes:
        space: The subnets.
        costs: Cost of each branch, by id.
        low: Least cost of a subnet.
        high: Largest cost of a subnet.
    """

    space: SearchSpace
    costs: Mapping[str, float]
    low: float
    high: float
    _originals: Tiling = field(init=False, repr=False)
    _tilings: dict[Arch, Tiling] = field(init=False, repr=False, default_factory=dict)
    _swaps: dict[str, tuple[list[float], list[BranchSpec]]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._originals = self.space.specs(self.space.original)
        self._by_span: dict[tuple[int, int], list[BranchSpec]] = {}
        for spec in self.space.branches:
            self._by_span.setdefault((spec.start, spec.stop), []).append(spec)

    def mutate(self, arch: Arch, rng: random.Random) -> Arch | None:
        """A neighbour in the window; None where no subnet but this one is."""
        options = [spec for spec in self.space.branches if spec.id not in set(arch.branches)]
        rng.shuffle(options)
        for spec in options:
            found = self.with_branch(arch, spec, rng)
            if found is not None:
                return found
        return None

    def nearby(self, arch: Arch, rng: random.Random) -> Arch | None:
        """A neighbour in the window by one branch put in, and at most one swap; None for bad luck.

        Much quicker than `mutate`, and never far from the subnet.
        """
        spec = rng.choice(self.space.branches)
        if spec.id in arch.branches:
            return None
        changed = self._replaced(arch, spec)
        cost = self._cost(changed)
        return _arch(changed) if self._inside(cost) else self._repaired(changed, spec, cost, rng)

    def with_branch(self, arch: Arch, spec: BranchSpec, rng: random.Random) -> Arch | None:
        """The subnet with this branch in it, in the window; None where none is."""
        changed = self._replaced(arch, spec)
        cost = self._cost(changed)
        if self._inside(cost):
            return _arch(changed)
        repaired = self._repaired(changed, spec, cost, rng)
        return repaired if repaired is not None else self._redrawn(spec, rng)

    def _replaced(self, arch: Arch, spec: BranchSpec) -> Tiling:
        tiling = self._tilings.get(arch)
        if tiling is None:
            tiling = self._tilings[arch] = self.space.specs(arch)
        return _put_in(tiling, spec, self._originals)

    def _repaired(
        self, tiling: Tiling, kept: BranchSpec, cost: float, rng: random.Random
    ) -> Arch | None:
        """The single swap for a branch of the same blocks that brings the cost into the window."""
        least, most = self.low - cost, self.high - cost
        best: tuple[float, float, int, BranchSpec] | None = None
        for i, spec in enumerate(tiling):
            if spec is kept:
                continue
            changes, others = self._swaps_of(spec)
            # Of those that suffice, the change nearest to zero: the window is above or below.
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

    def _swaps_of(self, spec: BranchSpec) -> tuple[list[float], list[BranchSpec]]:
        """The branches of the same blocks and what they change in cost, the least first."""
        if spec.id not in self._swaps:
            own = self.costs[spec.id]
            others = [other for other in self._by_span[spec.start, spec.stop] if other != spec]
            others.sort(key=lambda other: self.costs[other.id])
            self._swaps[spec.id] = [self.costs[other.id] - own for other in others], others
        return self._swaps[spec.id]

    def _redrawn(self, kept: BranchSpec, rng: random.Random) -> Arch | None:
        """A uniform draw from the subnets of the window that have a branch."""
        rest = tuple(
            spec
            for spec in self.space.branches
            if spec.id == kept.id
            or spec.stop <= kept.start
            or spec.start >= kept.stop
            or (spec.kind == "original" and spec.stop - spec.start == 1)
        )
        # Every space has originals: those under the branch are made too dear to be drawn.
        under = {
            spec.id
            for spec in rest
            if spec.id != kept.id and spec.start < kept.stop and spec.stop > kept.start
        }
        dear = 2 * abs(self.high) + 2 * math.fsum(self.costs.values()) + 1.0
        costs = {s.id: dear if s.id in under else self.costs[s.id] for s in rest}
        window = CostWindow(SearchSpace(self.space.n_blocks, rest), costs, self.low, self.high)
        try:
            return window.sample(1, rng.getrandbits(32))[0]
        except UsageError:
            return None

    def _cost(self, tiling: Tiling) -> float:
        return math.fsum([self.costs[spec.id] for spec in tiling])

    def _inside(self, cost: float) -> bool:
        return self.low <= cost <= self.high


def replaced(space: SearchSpace, arch: Arch, spec: BranchSpec) -> Arch:
    """A subnet with a branch put in: what it overlaps goes, originals fill what is uncovered."""
    return _arch(_put_in(space.specs(arch), spec, space.specs(space.original)))


def _put_in(tiling: Tiling, spec: BranchSpec, originals: Tiling) -> Tiling:
    before = [other for other in tiling if other.stop <= spec.start]
    after = [other for other in tiling if other.start >= spec.stop]
    begin = before[-1].stop if before else 0
    end = after[0].start if after else len(originals)
    return (*before, *originals[begin : spec.start], spec, *originals[spec.stop : end], *after)


def _arch(tiling: Tiling) -> Arch:
    return Arch(tuple([spec.id for spec in tiling]))
