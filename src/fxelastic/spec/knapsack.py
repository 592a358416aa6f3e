"""Find the most valuable subnets within limits, by a dynamic programme with bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxelastic.spec.arch import Arch
from fxelastic.spec.costs import Costs
from fxelastic.spec.limits import Limits
from fxelastic.spec.resources import PEAK, resource
from fxelastic.spec.search_space import SearchSpace

_SPARE = 8  # extra solutions to check: rounding may put some of them over a limit
_MOST_PARTS = 63  # shared parts that are tracked; a mask has 64 bits
_ROUNDING = 1e-9
_ROUNDS = 12  # iterations for each resource to find the prices


def most_valuable(
    space: SearchSpace,
    costs: Costs,
    limits: Limits,
    values: Mapping[str, float],
    n: int = 1,
    most: int = 400,
) -> list[Arch]:
    """The subnets within limits whose branches have the highest total value, best first.

    The programme visits the cuts from last to first. At each cut it keeps the Pareto-optimal
    suffixes: those that no other suffix beats in value and in every limited resource. A
    Lagrangian relaxation bounds the value of the subnets that end in a suffix. The first subnet
    is optimal if no cut has more than ``most`` suffixes; otherwise only the suffixes with the
    highest bounds are kept. The other subnets have the next best first branches and suffixes.

    Args:
        space: The search space.
        costs: The costs of its branches.
        limits: Absolute bounds.
        values: Value of each branch by id; 0 if missing; minus infinity excludes the branch.
        n: The number of subnets to return, at most.
        most: The number of suffixes to keep at a cut.

    Returns:
        The subnets; an empty list if the programme finds none within the limits.
    """
    programme = _Programme(space, costs, limits, values, prune=n == 1)
    ends = [_Suffixes.end(programme.n_costs)]
    for position in range(space.n_blocks - 1, -1, -1):
        suffixes = programme.starting_at(position, ends)
        if position:
            suffixes = programme.thinned(suffixes, position, most)
        ends.insert(0, suffixes)
    found: list[Arch] = []
    first = ends[0]
    for i in np.lexsort((first.costs[:, 0], -first.values))[: n + _SPARE].tolist():
        arch = programme.arch(ends, i)
        if len(found) < n and all(costs.total(name, arch) <= limits.bound(name) for name in limits):
            found.append(arch)
    return found


@dataclass
class _Suffixes:
    """Sequences of branches from a cut to the end.

    Attributes:
        costs: Cost in each limited resource that adds up, ``(suffixes, resources)``.
        values: Total value, ``(suffixes,)``.
        parts: The shared parts that each contains, as a bit mask, ``(suffixes,)``.
        branch: Index of the first branch in the space, ``(suffixes,)``.
        rest: Index of the remaining suffix among those at the branch's end, ``(suffixes,)``.
    """

    costs: NDArray[np.float64]
    values: NDArray[np.float64]
    parts: NDArray[np.uint64]
    branch: NDArray[np.int64]
    rest: NDArray[np.int64]

    @classmethod
    def end(cls, n_costs: int) -> _Suffixes:
        none = np.zeros(1, np.int64)
        return cls(np.zeros((1, n_costs)), np.zeros(1), np.zeros(1, np.uint64), none, none)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> _Suffixes:
        return _Suffixes(*(array[index] for array in vars(self).values()))

    def undominated(self) -> _Suffixes:
        """The suffixes that no other one matches or beats in everything, cheapest first."""
        kept = self.take(np.lexsort((-self.values, self.costs[:, 0])))
        values = kept.values
        if kept.costs.shape[1] == 1 and not kept.parts.any():
            before = np.maximum.accumulate(np.concatenate([[-np.inf], values[:-1]]))
            return kept.take(values > before + 1e-12)
        beats = values[:, None] >= values - 1e-12
        for column in kept.costs.T:
            beats &= column[:, None] <= column
        beats &= kept.parts[:, None] & kept.parts == kept.parts
        # Of equal suffixes the first is kept: only the lower triangle would drop it.
        return kept.take(np.logical_not(np.triu(beats, 1).any(axis=0)))


class _Programme:
    """The transitions from the suffixes of later cuts to those of an earlier one."""

    def __init__(
        self,
        space: SearchSpace,
        costs: Costs,
        limits: Limits,
        values: Mapping[str, float],
        *,
        prune: bool,
    ) -> None:
        bounds = {name: limits.bound(name) - costs[name].overhead for name in limits}
        peaks = [name for name in limits if resource(name).rule == PEAK]
        sums = [name for name in limits if name not in peaks]
        specs = self._specs = space.branches
        # If no limited resource adds up, a single cost of 0 gives the arrays a column.
        self.n_costs = max(1, len(sums))
        self._bound = np.array([bounds[name] for name in sums] or [0.0])
        self._own = np.array(
            [[costs[name].costs[spec.id] for name in sums] or [0.0] for spec in specs]
        )
        self._value = np.array([values.get(spec.id, 0.0) for spec in specs])
        # For each cut, the index and the end of each branch that begins there.
        self._edges: list[list[tuple[int, int]]] = [[] for _ in range(space.n_blocks)]
        for i, spec in enumerate(specs):
            kept = all(costs[name].costs[spec.id] <= bounds[name] for name in peaks)
            if kept and self._value[i] > -math.inf:
                self._edges[spec.start].append((i, spec.stop))
        self._first: dict[int, int] = {}
        self._shared: dict[int, list[tuple[int, int, float]]] = {}
        # The least cost that a branch can add: without its shared parts.
        self._least = self._own.copy()
        self._number_shared_parts(costs, sums)
        self._before = np.full((space.n_blocks + 1, self.n_costs), np.inf)
        self._before[0] = 0.0
        for position, edges in enumerate(self._edges):
            for i, stop in edges:
                least = self._before[position] + self._least[i]
                np.minimum(self._before[stop], least, out=self._before[stop])
        self._prices = np.zeros(self.n_costs)
        self._reached = -math.inf  # the value of the best subnet known to be within the limits
        self._find_prices()
        if not prune:
            self._reached = -math.inf
        self._ahead = self._best_before(self._prices)[0]

    def starting_at(self, position: int, ends: Sequence[_Suffixes]) -> _Suffixes:
        """The suffixes of a cut that may be part of a subnet within the limits.

        Args:
            position: The cut.
            ends: The suffixes of the later cuts, the next one first.
        """
        none = _Suffixes.end(self.n_costs).take(np.zeros(0, np.int64))
        lists: list[list[NDArray[Any]]] = [[array] for array in vars(none).values()]
        for i, stop in self._edges[position]:
            rest = ends[stop - position - 1]
            costs, parts = rest.costs + self._own[i], rest.parts
            for column, bit, size in self._shared.get(i, ()):
                mask = np.uint64(1 << bit)
                costs[:, column] -= np.where(rest.parts & mask, size, 0.0)
                parts = parts | mask
            n = len(costs)
            arrays = (costs, rest.values + self._value[i], parts, np.full(n, i), np.arange(n))
            for one, array in zip(lists, arrays, strict=True):
                one.append(array)
        found = _Suffixes(*[np.concatenate(arrays) for arrays in lists])
        # A part that no branch before the cut shares can be forgotten.
        used = sum(1 << bit for bit, first in self._first.items() if first < position)
        found.parts &= np.uint64(used)
        bound = self._bound + _ROUNDING * np.abs(self._bound)
        fits = (found.costs + self._before[position] <= bound).all(axis=1)
        return found.take(fits & (self._highest(found, position) >= self._reached))

    def thinned(self, suffixes: _Suffixes, position: int, most: int) -> _Suffixes:
        """The suffixes that no other one beats; if there are too many, the most promising."""
        for limit in (4 * most, most):
            if len(suffixes.values) > limit:
                order = np.argsort(-self._highest(suffixes, position), kind="stable")
                # Keep the cheapest in each resource: otherwise no subnet might be within limits.
                cheapest = suffixes.costs.argmin(axis=0)
                suffixes = suffixes.take(np.union1d(order[:limit], cheapest))
            if limit != most:
                suffixes = suffixes.undominated()
        return suffixes

    def arch(self, suffixes: Sequence[_Suffixes], index: int) -> Arch:
        """The subnet that a suffix of the first cut stands for."""
        position, ids = 0, []
        while position < len(self._edges):
            here = suffixes[position]
            spec = self._specs[int(here.branch[index])]
            ids.append(spec.id)
            position, index = spec.stop, int(here.rest[index])
        return Arch(tuple(ids))

    def _highest(self, suffixes: _Suffixes, position: int) -> NDArray[np.float64]:
        """For each suffix, an upper bound on the value of the subnets within the limits."""
        left = (self._bound - suffixes.costs) @ self._prices
        return suffixes.values + left + self._ahead[position] + _ROUNDING

    def _number_shared_parts(self, costs: Costs, sums: Sequence[str]) -> None:
        users: dict[tuple[int, str], list[tuple[int, float]]] = {}
        for column, name in enumerate(sums):
            for i, spec in enumerate(self._specs):
                for key, size in costs[name].shared.get(spec.id, {}).items():
                    users.setdefault((column, key), []).append((i, size))
        several = [item for item in users.items() if len(item[1]) > 1]
        for bit, ((column, _), found) in enumerate(several[:_MOST_PARTS]):
            self._first[bit] = min(self._specs[i].start for i, _ in found)
            for i, size in found:
                self._shared.setdefault(i, []).append((column, bit, size))
                self._least[i, column] -= size

    def _best_before(self, prices: NDArray[np.float64]) -> tuple[list[float], list[int]]:
        """For each cut, the highest value of the branches before it, minus their price.

        Returns:
            The values by cut, and the indices of the best subnet's branches; empty if there is no
            subnet.
        """
        reduced = (self._value - self._least @ prices).tolist()
        best = [0.0] + [-math.inf] * len(self._edges)
        came = [(0, 0)] * len(best)
        for position, edges in enumerate(self._edges):
            for i, stop in edges:
                if best[position] + reduced[i] > best[stop]:
                    best[stop] = best[position] + reduced[i]
                    came[stop] = position, i
        position, path = len(self._edges), []
        while position and best[position] > -math.inf:
            position, i = came[position]
            path.append(i)
        return best, path

    def _find_prices(self) -> None:
        """Find prices of the resources that make the bound tight (Held and Karp, 1971)."""
        scale = np.where(self._bound > 0, self._bound, 1.0)
        prices, lowest = self._prices, math.inf
        for i in range(_ROUNDS * self.n_costs):
            best, path = self._best_before(prices)
            if not path:
                return
            cost, value = self._own[path].sum(axis=0), float(self._value[path].sum())
            highest = best[-1] + float(self._bound @ prices)
            if highest < lowest:
                lowest, self._prices = highest, prices
            over = (cost - self._bound) / scale
            if (over <= 0).all():
                self._reached = max(self._reached, value)
            size = float(over @ over)
            goal = self._reached if self._reached > -math.inf else highest - abs(highest) - 1.0
            if size < 1e-18 or highest - goal < 1e-9:
                return
            step = 0.9**i * (highest - goal) / size
            prices = np.maximum(0.0, prices * scale + step * over) / scale
