"""All subnets: the tilings of ``[0, N)`` by a set of branches."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fxelastic.errors import UsageError
from fxelastic.spec.arch import Arch
from fxelastic.spec.branch_spec import ORIGINAL, BranchSpec
from fxelastic.spec.cache import KeptCache
from fxelastic.spec.cost_window import CostWindow
from fxelastic.spec.options import check_count
from fxelastic.spec.paths import cheapest_path, check_costs, exact_costs


@dataclass(frozen=True)
class SearchSpace:
    """All subnets of N blocks and a set of branches.

    A subnet is a path from 0 to N in a graph whose nodes are the cuts between blocks and whose
    edges are the branches. Dynamic programmes over that graph count subnets, sample them uniformly
    and find the cheapest one, in exact arithmetic; no method enumerates the subnets.

    The blocks include those of contexts and glue, which have only their original branch.

    Attributes:
        n_blocks: N.
        branches: Sorted by interval, a block's original first, then by id, regardless of the order
            given: samples depend only on the branches and the seed.
    """

    n_blocks: int
    branches: tuple[BranchSpec, ...]

    def __post_init__(self) -> None:
        """Sort and check the branches.

        Raises:
            UsageError: Two branches have the same id, an interval exceeds the blocks, or a block
                does not have exactly one original.
        """
        if isinstance(self.n_blocks, bool) or not isinstance(self.n_blocks, int):
            raise UsageError("n_blocks must be an int", expected="an int", got=repr(self.n_blocks))
        if self.n_blocks < 1:
            raise UsageError(
                "n_blocks must be at least 1",
                expected="an int of at least 1",
                got=str(self.n_blocks),
            )
        seen: dict[str, BranchSpec] = {}
        originals: dict[int, BranchSpec] = {}
        for spec in self.branches:
            if not isinstance(spec, BranchSpec):
                raise UsageError(
                    "branches must be BranchSpec objects", expected="BranchSpec", got=repr(spec)
                )
            if spec.id in seen:
                raise UsageError(
                    f"two branches have the id {spec.id!r}",
                    expected="a different id for each branch",
                    got=f"{seen[spec.id]} and {spec}",
                )
            seen[spec.id] = spec
            if spec.stop > self.n_blocks:
                raise UsageError(
                    f"branch {spec.id!r} extends beyond the last block",
                    expected=f"an interval inside [0, {self.n_blocks})",
                    got=f"[{spec.start}, {spec.stop})",
                )
            if spec.kind == ORIGINAL:
                _check_original(spec, originals)
                originals[spec.start] = spec
        missing = [i for i in range(self.n_blocks) if i not in originals]
        if missing:
            raise UsageError(
                f"block {missing[0]} has no original branch",
                expected=f"one branch of kind {ORIGINAL!r} for each of {self.n_blocks} blocks",
                got=f"none for {len(missing)} of them",
            )
        object.__setattr__(self, "branches", tuple(sorted(self.branches, key=_order)))

    @cached_property
    def by_id(self) -> Mapping[str, BranchSpec]:
        """The branches by id."""
        return {spec.id: spec for spec in self.branches}

    @cached_property
    def starting_at(self) -> tuple[tuple[BranchSpec, ...], ...]:
        """For each block, the branches whose interval begins there."""
        found: list[list[BranchSpec]] = [[] for _ in range(self.n_blocks)]
        for spec in self.branches:
            found[spec.start].append(spec)
        return tuple(tuple(specs) for specs in found)

    @cached_property
    def original(self) -> Arch:
        """The subnet that is the model itself."""
        return Arch(tuple(spec.id for spec in self.branches if spec.kind == ORIGINAL))

    def count(self) -> int:
        """The exact number of subnets."""
        return self._ways[0]

    @cached_property
    def _ways(self) -> tuple[int, ...]:
        """For each cut, the number of paths from it to the end."""
        ways = [0] * self.n_blocks + [1]
        for position in reversed(range(self.n_blocks)):
            ways[position] = sum(ways[spec.stop] for spec in self.starting_at[position])
        return tuple(ways)

    def sample(self, n: int, seed: int = 0) -> list[Arch]:
        """Draw subnets, each with the same probability.

        Args:
            n: The number of subnets; draws are independent, so a subnet may be drawn twice.
            seed: The same seed gives the same subnets, in every process.

        Returns:
            The subnets drawn.

        Raises:
            UsageError: ``n`` is negative or not an integer.
        """
        check_count("n", n, 0)
        rng = random.Random(seed)
        return [self._path(rng.randrange(self.count())) for _ in range(n)]

    def _path(self, index: int) -> Arch:
        """The subnet with an index, 0 ≤ index < count(): a bijection."""
        ids: list[str] = []
        position = 0
        while position < self.n_blocks:
            for spec in self.starting_at[position]:
                if index < self._ways[spec.stop]:
                    break
                index -= self._ways[spec.stop]
            ids.append(spec.id)
            position = spec.stop
        return Arch(tuple(ids))

    def sample_within(
        self,
        n: int,
        costs: Mapping[str, float],
        low: float = -math.inf,
        high: float = math.inf,
        seed: int = 0,
    ) -> list[Arch]:
        """Draw subnets whose cost lies in a window, each with the same probability.

        Args:
            n: The number of subnets; draws are independent.
            costs: Cost of each branch by id, at least 0, in any unit, such as ms or FLOPs; the
                cost of a subnet is their sum.
            low: The lowest cost of a subnet, inclusive.
            high: The highest cost of a subnet, inclusive.
            seed: The same seed gives the same subnets.

        Returns:
            The subnets drawn; for each, ``low <= self.cost(arch, costs) <= high``.

        Raises:
            UsageError: The window contains no subnets (the message names the nearest costs), or a
                cost or bound is invalid. See `CostWindow` for very narrow windows.
        """
        return CostWindow(self, costs, low, high).sample(n, seed)

    def cost(self, arch: Arch, costs: Mapping[str, float]) -> float:
        """The correctly rounded sum of the branches' costs; it does not depend on their order.

        Raises:
            UsageError: The arch is not in this space, or a cost is missing or invalid.
        """
        specs = self.specs(arch)
        check_costs(specs, costs)
        return math.fsum(costs[spec.id] for spec in specs)

    def min_cost_arch(self, costs: Mapping[str, float]) -> Arch:
        """A subnet of the lowest cost; ties go to the first branch.

        Raises:
            UsageError: A cost is missing or invalid.
        """
        return Arch(cheapest_path(self.starting_at, exact_costs(self.branches, costs)))

    def max_cost_arch(self, costs: Mapping[str, float]) -> Arch:
        """A subnet of the highest cost; ties go to the first branch.

        Raises:
            UsageError: A cost is missing or invalid.
        """
        exact = exact_costs(self.branches, costs)
        return Arch(cheapest_path(self.starting_at, {k: -cost for k, cost in exact.items()}))

    def cache_of(self, arch: Arch) -> tuple[KeptCache, ...]:
        """The caches of which a subnet keeps a part; it takes all others whole.

        Two subnets can work on the same sequence, one after the other, only if these are equal.

        Raises:
            UsageError: The arch is not in this space.
        """
        return tuple(kept for spec in self.specs(arch) for kept in spec.cache)

    def same_cache(self, one: Arch, other: Arch) -> bool:
        """Whether the past that one subnet returns is the past that the other one takes.

        Raises:
            UsageError: An arch is not in this space.
        """
        return set(self.cache_of(one)) == set(self.cache_of(other))

    def validate(self, arch: Arch) -> None:
        """Check that an arch tiles ``[0, N)`` by branches of this space.

        Raises:
            UsageError: The arch does not; the message names the position and the blocks.
        """
        self.specs(arch)

    def specs(self, arch: Arch) -> tuple[BranchSpec, ...]:
        """The branches of an arch.

        Raises:
            UsageError: The arch does not tile ``[0, N)`` by branches of this space.
        """
        if not isinstance(arch, Arch):
            raise UsageError(
                "arch must be an Arch",
                expected="an Arch of this search space",
                got=f"a {type(arch).__name__}",
                fix="draw one with space.sample(n), or parse its text with Arch.parse",
            )
        specs: list[BranchSpec] = []
        reached = 0
        for position, name in enumerate(arch.branches):
            where = f"position {position} of the arch"
            spec = self.by_id.get(name)
            if spec is None:
                raise UsageError(
                    f"{where}: there is no branch {name!r}", expected=self._next(reached), got=name
                )
            if spec.start > reached:
                raise UsageError(
                    f"{where}: {_blocks(reached, spec.start)} not covered before {name!r}",
                    expected=self._next(reached),
                    got=str(spec),
                )
            if spec.start < reached:
                raise UsageError(
                    f"{where}: {_blocks(spec.start, min(reached, spec.stop))} covered twice, "
                    f"by {name!r} and by an earlier branch",
                    expected=self._next(reached),
                    got=str(spec),
                )
            specs.append(spec)
            reached = spec.stop
        if reached != self.n_blocks:
            raise UsageError(
                f"the arch ends at position {len(specs)}: "
                f"{_blocks(reached, self.n_blocks)} not covered",
                expected=self._next(reached),
                got="the end of the arch",
            )
        return tuple(specs)

    def _next(self, position: int) -> str:
        """The branches that may come next if the blocks before ``position`` are covered."""
        if position == self.n_blocks:
            return "the end"
        ids = [spec.id for spec in self.starting_at[position]]
        more = f" or {len(ids) - 5} more" if len(ids) > 6 else ""
        return f"a branch that begins at block {position}: " + (
            ", ".join(ids[:5] if more else ids) + more
        )

    def __str__(self) -> str:
        return f"{self.n_blocks} blocks, {len(self.branches)} branches, {self.count():,} subnets"


def _order(spec: BranchSpec) -> tuple[int, int, bool, str]:
    return spec.start, spec.stop, spec.kind != ORIGINAL, spec.id


def _check_original(spec: BranchSpec, originals: Mapping[int, BranchSpec]) -> None:
    if spec.stop != spec.start + 1:
        raise UsageError(
            f"branch {spec.id!r} is an original, so it must replace exactly one block",
            expected="an interval of one block",
            got=f"[{spec.start}, {spec.stop})",
        )
    if spec.start in originals:
        raise UsageError(
            f"block {spec.start} has two originals",
            expected=f"one branch of kind {ORIGINAL!r} for each block",
            got=f"{originals[spec.start].id!r} and {spec.id!r}",
        )


def _blocks(start: int, stop: int) -> str:
    return f"block {start} is" if stop == start + 1 else f"blocks {start} to {stop - 1} are"
