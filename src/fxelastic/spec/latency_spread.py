"""Latencies at a percentile of runs, from the spread of each branch's measurements."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import LatencyTable

_UPPER = NormalDist().inv_cdf(0.75)


def at_latency_percentile(table: LatencyTable, percentile: float) -> LatencyTable:
    """The table with latencies that this percentile of the runs keeps, instead of usual ones.

    A table has the quartiles of each branch's times. The upper half of them is taken as the half of
    a normal distribution with the same median and upper quartile. The percentiles of branches add
    up in a subnet, as if all of them were slow in the same runs; so the sum errs on the safe side.

    Args:
        table: The latency table.
        percentile: The percentile, from 50 to below 100.
    """
    z = NormalDist().inv_cdf(percentile / 100)
    factors = {branch: _slower(row, z) for branch, row in table.rows.items()}

    def slowed(found: BranchCosts) -> BranchCosts:
        costs = {branch: cost * factors.get(branch, 1.0) for branch, cost in found.costs.items()}
        return replace(found, costs=costs)

    return table.mapped(slowed)


def _slower(row: BranchLatency, z: float) -> float:
    """How many times its usual latency a branch takes at a normal deviate."""
    if row.ms <= 0:
        return 1.0
    slow_ms = row.median_ms + max(0.0, row.high_ms - row.median_ms) * z / _UPPER
    return max(1.0, slow_ms / row.ms)
