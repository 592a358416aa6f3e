"""The expected costs of a cascade, from those of its branches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.resources import SUM, resource


def expected_costs(costs: Costs, cascade: Cascade, coverage: Sequence[float]) -> dict[str, float]:
    """The costs of a cascade in each resource, by the resource's name.

    Args:
        costs: The costs of the branches.
        cascade: The cascade.
        coverage: For each of its subnets, the share of the samples that leave there.

    Returns:
        The mean over samples if the costs of branches add up; otherwise, as for memory, the cost of
        a sample that runs all branches.
    """
    gone = [0.0, *accumulate(coverage)]
    reached = [max(0.0, 1.0 - share) for share in gone[: len(cascade.archs)]]
    return {
        name: cascade.expected_cost(own, reached)
        if resource(name).rule == SUM
        else costs.total(name, cascade)
        for name, own in costs.items()
    }


def costs_of_leaving(costs: BranchCosts, cascade: Cascade) -> tuple[float, ...]:
    """For each subnet of a cascade, the cost of a sample that leaves there.

    Such a sample has run the exits before, too, each with a decision.

    Args:
        costs: The costs of the branches in a resource whose costs add up.
        cascade: The cascade.
    """
    segments = [sum(costs.costs[branch] for branch in segment) for segment in cascade.segments]
    decisions = [costs.per_decision] * len(cascade.thresholds) + [0.0]
    each = (cost + decision for cost, decision in zip(segments, decisions, strict=True))
    return tuple(costs.overhead + cost for cost in accumulate(each))
