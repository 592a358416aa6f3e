"""Paths of a search space by cost: find the cheapest; count and index the paths near a cost."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from fxelastic.errors import UsageError
from fxelastic.spec.branch_spec import BranchSpec

# The counts in the table: at 8 to 50 bytes each, at most about 20 MB.
_MAX_CELLS = 500_000
_MIN_BINS, _MAX_BINS = 256, 16_384
_BINS_PER_WINDOW_AND_BLOCK = 2


def check_costs(specs: Iterable[BranchSpec], costs: Mapping[str, float]) -> None:
    """Check that each branch has a usable cost.

    Raises:
        UsageError: A cost is missing, negative, infinite, NaN or not a number.
    """
    for spec in specs:
        if spec.id not in costs:
            raise UsageError(
                f"branch {spec.id!r} has no cost",
                expected="a cost for each branch of the search space",
                got=f"costs of {len(costs)} branches",
            )
        cost = costs[spec.id]
        try:
            usable = not isinstance(cost, str) and 0 <= float(cost) < math.inf
        except (TypeError, ValueError, OverflowError):
            usable = False
        if not usable:
            raise UsageError(
                f"the cost of branch {spec.id!r} must be at least 0",
                expected="a finite number of at least 0",
                got=repr(cost),
            )


def exact_costs(specs: Iterable[BranchSpec], costs: Mapping[str, float]) -> Mapping[str, Fraction]:
    """The costs as exact rational numbers, so that sums are not rounded.

    Raises:
        UsageError: A cost is missing, negative, infinite, NaN or not a number.
    """
    specs = tuple(specs)
    check_costs(specs, costs)
    return {spec.id: Fraction(float(costs[spec.id])) for spec in specs}


def costs_to_end(
    starting_at: Sequence[Sequence[BranchSpec]], costs: Mapping[str, Fraction]
) -> tuple[Fraction, ...]:
    """For each cut, the lowest cost of a path from it to the end."""
    best = [Fraction(0)] * (len(starting_at) + 1)
    for position in reversed(range(len(starting_at))):
        best[position] = min(costs[s.id] + best[s.stop] for s in starting_at[position])
    return tuple(best)


def cheapest_path(
    starting_at: Sequence[Sequence[BranchSpec]], costs: Mapping[str, Fraction]
) -> tuple[str, ...]:
    """The ids of a path of the lowest cost; ties go to the first branch."""
    best = costs_to_end(starting_at, costs)
    ids: list[str] = []
    position = 0
    while position < len(starting_at):
        spec = min(starting_at[position], key=lambda s: costs[s.id] + best[s.stop])
        ids.append(spec.id)
        position = spec.stop
    return tuple(ids)


class QuantisedPaths:
    """Every path whose cost lies in ``[low, high]``, and a few others, each with an index.

    The reduced cost of a branch is ``r = cost + rest(stop) - rest(start) >= 0``, where ``rest`` is
    the lowest cost from a cut to the end; the sum of ``r`` along a path is the path's cost minus
    the lowest cost. ``k = floor(r / step)`` is an integer, so a dynamic programme over cuts and
    sums counts exactly how many paths have each sum of ``k``. The sum of the remainders along a
    path has exact bounds too, so the paths in the window have sums of ``k`` in an interval.

    Attributes:
        total: The number of paths with a sum in that interval; includes all paths in the window.
        lowest: The lowest cost of any path.
        highest: The highest cost of any path.
    """

    def __init__(
        self,
        starting_at: Sequence[Sequence[BranchSpec]],
        costs: Mapping[str, Fraction],
        low: Fraction | None,
        high: Fraction | None,
        n_paths: int,
    ) -> None:
        """Count the paths.

        Args:
            starting_at: For each block, the branches that begin there.
            costs: Exact cost of each branch.
            low: Lower end of the window, inclusive; None for no bound.
            high: Upper end, inclusive; None for no bound.
            n_paths: The total number of paths, which decides the dtype of the counts.
        """
        n_blocks = len(starting_at)
        rest = costs_to_end(starting_at, costs)
        above = {
            spec.id: costs[spec.id] + rest[spec.stop] - rest[spec.start]
            for specs in starting_at
            for spec in specs
        }
        self.lowest = rest[0]
        span = -costs_to_end(starting_at, {key: -value for key, value in above.items()})[0]
        self.highest = self.lowest + span
        low = Fraction(0) if low is None else max(low - self.lowest, Fraction(0))
        high = span if high is None else min(high - self.lowest, span)
        self._starting_at = starting_at
        self._sums = range(0)
        self._upto: list[int] = []
        if low > high:
            return
        step = _step(low, high, n_blocks, above.values())
        self._units = {key: int(value // step) for key, value in above.items()}
        left = {key: value - step * self._units[key] for key, value in above.items()}
        least = costs_to_end(starting_at, left)[0]
        most = -costs_to_end(starting_at, {key: -value for key, value in left.items()})[0]
        first = max(0, math.ceil((low - most) / step))
        last = math.floor((high - least) / step)
        if first > last:
            return
        self._ways = self._count(last + 1, np.int64 if n_paths < 2**62 else object)
        self._sums = range(first, last + 1)
        self._upto = list(accumulate(int(n) for n in self._ways[0][first : last + 1]))

    @property
    def total(self) -> int:
        """The number of paths that have an index."""
        return self._upto[-1] if self._upto else 0

    def _count(self, n_bins: int, dtype: Any) -> list[npt.NDArray[Any]]:
        """For each cut, the number of paths from it to the end by their sum."""
        end = np.zeros(n_bins, dtype)
        end[0] = 1
        ways: list[npt.NDArray[Any]] = [end] * (len(self._starting_at) + 1)
        for position in reversed(range(len(self._starting_at))):
            ways[position] = np.zeros(n_bins, dtype)
            for spec in self._starting_at[position]:
                units = self._units[spec.id]
                if units < n_bins:
                    ways[position][units:] += ways[spec.stop][: n_bins - units]
        return ways

    def path(self, index: int) -> tuple[str, ...]:
        """The ids of the path with an index, 0 ≤ index < total; a bijection."""
        at = bisect_right(self._upto, index)
        left = self._sums[at]
        index -= self._upto[at - 1] if at else 0
        ids: list[str] = []
        position = 0
        while position < len(self._starting_at):
            for spec in self._starting_at[position]:
                units = self._units[spec.id]
                n = int(self._ways[spec.stop][left - units]) if units <= left else 0
                if index < n:
                    break
                index -= n
            ids.append(spec.id)
            left -= units
            position = spec.stop
        return tuple(ids)


def _step(low: Fraction, high: Fraction, n_blocks: int, costs: Iterable[Fraction]) -> Fraction:
    """The step of quantisation: as fine as the window needs and the table allows."""
    n_bins = min(_MAX_BINS, max(_MIN_BINS, _MAX_CELLS // (n_blocks + 1)))
    step = max((high - low) / (_BINS_PER_WINDOW_AND_BLOCK * n_blocks), high / n_bins)
    if step:
        # Round down to a power of two, which keeps the fractions short.
        power = Fraction(2) ** (step.numerator.bit_length() - step.denominator.bit_length())
        return power if power <= step else power / 2
    return min((cost for cost in costs if cost), default=Fraction(1))
