"""Additive costs of branches, and the tiling with the lowest sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from fxelastic.errors import UsageError
from fxelastic.spec.branch_spec import BranchSpec


def check_costs(specs: Iterable[BranchSpec], costs: Mapping[str, float]) -> None:
    """Refuse costs that leave a branch out or are no costs.

    Raises:
        UsageError: A cost is missing, negative, infinite, NaN or no number.
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
                f"branch {spec.id!r} has an unusable cost",
                expected="a finite number of at least 0",
                got=repr(cost),
            )


def exact_costs(specs: Iterable[BranchSpec], costs: Mapping[str, float]) -> Mapping[str, Fraction]:
    """The costs as the rational numbers that the floats are, so that sums have no rounding.

    Raises:
        UsageError: A cost is missing, negative, infinite, NaN or no number.
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
    """Ids of a path of the lowest cost; the first branch of those that are equal."""
    best = costs_to_end(starting_at, costs)
    ids: list[str] = []
    position = 0
    while position < len(starting_at):
        spec = min(starting_at[position], key=lambda s: costs[s.id] + best[s.stop])
        ids.append(spec.id)
        position = spec.stop
    return tuple(ids)
