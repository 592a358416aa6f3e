"""The subnets that a profile times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.int8_branches import in_runs
from fxelastic.errors import UsageError
from fxelastic.spec import Arch

T = TypeVar("T")


def split(subnets: Sequence[T], n_held_out: int) -> tuple[list[T], list[T]]:
    """Split ordered subnets into those to compute the error on and those to fit to, evenly."""
    n_held_out = min(n_held_out, len(subnets))
    held = {int(i * len(subnets) / n_held_out) for i in range(n_held_out)}
    return (
        [m for i, m in enumerate(subnets) if i in held],
        [m for i, m in enumerate(subnets) if i not in held],
    )


def n_to_hold_out(n: int, n_fitted: int, n_held_out: int) -> int:
    """How many of n subnets to compute the error on.

    Args:
        n: The number of subnets that there are.
        n_fitted: How many were requested to fit to.
        n_held_out: How many were requested to compute the error on. If there are fewer than
            requested, at least half of them are for the fit.
    """
    return min(n_held_out, n // 2) if n < n_fitted + n_held_out and n_fitted else n_held_out


def distinct_subnets(bundle: Bundle, n: int, seed: int) -> list[Arch]:
    """Different subnets, spread evenly over the range of latencies, without the original.

    Uniform draws have latencies near their mean. Subnets far from it are more informative, and
    searches with small budgets choose them.
    """
    space = bundle.space
    costs = {spec.id: float(spec.flops) for spec in space.branches}
    low = space.cost(space.min_cost_arch(costs), costs)
    high = space.cost(space.max_cost_arch(costs), costs)
    found: dict[Arch, None] = {}
    if n and high > low:
        for i in range(n):
            window = (low + i * (high - low) / n, low + (i + 1) * (high - low) / n)
            try:
                arch = space.sample_within(1, costs, *window, seed=seed + i)[0]
            except UsageError:
                continue  # no subnet has such a cost
            if arch != space.original:
                found[arch] = None
    for arch in space.sample(20 * n, seed) if n else ():
        if len(found) >= n:
            break
        if arch != space.original:
            found[arch] = None
    return in_runs(bundle, list(found)[:n], seed)[:n]
