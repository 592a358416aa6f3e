"""The subnet of the highest total value under a latency, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fxelastic.spec import Arch, SearchSpace

_LEVELS = 400


def most_valuable(
    space: SearchSpace,
    costs: Mapping[str, float],
    values: Mapping[str, float],
    high: float,
    levels: int = _LEVELS,
) -> Arch | None:
    """The subnet of at most a cost whose branches' values add up to the most.

    Costs are rounded up to a fraction of the bound, so that the bound is kept, and what is found is
    the best of all but those that come within the rounding of it.

    Args:
        space: The subnets.
        costs: Cost of each branch, of at least 0.
        values: Value of each branch; 0 where it has none.
        high: The largest cost.
        levels: Costs are rounded up to multiples of the bound divided by it.

    Returns:
        The subnet; None where none is found to fit.
    """
    if not high > 0:
        return None
    steps = {b: math.ceil(costs[b] * levels / high - 1e-9) for b in space.by_id}
    best = np.full((space.n_blocks + 1, levels + 1), -np.inf)
    best[space.n_blocks] = 0.0
    for position in range(space.n_blocks - 1, -1, -1):
        row = best[position]
        for spec in space.starting_at[position]:
            step = steps[spec.id]
            if step <= levels:
                rest = best[spec.stop, : levels + 1 - step]
                np.maximum(row[step:], rest + values.get(spec.id, 0.0), out=row[step:])
    if not np.isfinite(best[0, levels]):
        return None
    position, left, branches = 0, levels, []
    while position < space.n_blocks:
        options = [s for s in space.starting_at[position] if steps[s.id] <= left]
        chosen = max(
            options,
            key=lambda s: values.get(s.id, 0.0) + best[s.stop, left - steps[s.id]],
        )
        branches.append(chosen.id)
        position, left = chosen.stop, left - steps[chosen.id]
    return Arch(tuple(branches))
