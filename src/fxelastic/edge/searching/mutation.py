"""Change a subnet a little, and keep it in a window of latencies."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from fxelastic.errors import UsageError
from fxelastic.spec import Arch, BranchSpec, SearchSpace
from fxelastic.spec.cost_window import CostWindow


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
    _originals: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._originals = list(self.space.original.branches)
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
        changed = replaced(self.space, arch, spec)
        cost = self._cost(changed)
        return changed if self._inside(cost) else self._repaired(changed, spec, cost, rng)

    def with_branch(self, arch: Arch, spec: BranchSpec, rng: random.Random) -> Arch | None:
        """The subnet with this branch in it, in the window; None where none is."""
        changed = replaced(self.space, arch, spec)
        cost = self._cost(changed)
        if self._inside(cost):
            return changed
        repaired = self._repaired(changed, spec, cost, rng)
        return repaired if repaired is not None else self._redrawn(spec, rng)

    def _repaired(
        self, arch: Arch, kept: BranchSpec, cost: float, rng: random.Random
    ) -> Arch | None:
        """The single swap for a branch of the same blocks that brings the cost into the window."""
        best: tuple[float, float, int, str] | None = None
        for i, branch in enumerate(arch):
            if branch == kept.id:
                continue
            own = self.space.by_id[branch]
            for other in self._by_span[own.start, own.stop]:
                change = self.costs[other.id] - self.costs[branch]
                if other.id != branch and self._inside(cost + change):
                    option = (abs(change), rng.random(), i, other.id)
                    best = option if best is None else min(best, option)
        if best is None:
            return None
        branches = list(arch.branches)
        branches[best[2]] = best[3]
        result = Arch(tuple(branches))
        return result if self._inside(self._cost(result)) else None

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

    def _cost(self, arch: Arch) -> float:
        return math.fsum(self.costs[branch] for branch in arch)

    def _inside(self, cost: float) -> bool:
        return self.low <= cost <= self.high


def replaced(space: SearchSpace, arch: Arch, spec: BranchSpec) -> Arch:
    """A subnet with a branch put in: what it overlaps goes, originals fill what is uncovered."""
    originals = space.original.branches
    before, after = [], []
    for other in space.specs(arch):
        if other.stop <= spec.start:
            before.append(other.id)
        elif other.start >= spec.stop:
            after.append(other.id)
    covered = sum(space.by_id[b].stop - space.by_id[b].start for b in before)
    first = space.n_blocks - sum(space.by_id[b].stop - space.by_id[b].start for b in after)
    fill_before = originals[covered : spec.start]
    fill_after = originals[spec.stop : first]
    return Arch((*before, *fill_before, spec.id, *fill_after, *after))
