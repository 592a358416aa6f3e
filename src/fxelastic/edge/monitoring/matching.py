"""The distance between what a subnet demands and what the device has (AdaScale, Eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.resource_monitor import Resources
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.resources import LATENCY, WEIGHTS

ENERGY = "energy_mj"
# A subnet must be closer by so much to replace the one in use: readings of the device vary.
_CLOSER = 0.05


def supply(resources: Resources | None, limit_ms: float, most_ms: float) -> dict[str, float]:
    """What the device has, as shares from 0 to 1, by the resource that demands it.

    Args:
        resources: The latest reading; None if there is none.
        limit_ms: The highest estimated latency that keeps the budget at the current load, in ms.
        most_ms: The highest latency of a subnet, in ms.

    Returns:
        The time for a request, in units of the slowest subnet's; the memory that is free; and for
        the energy, the share of the processor or graphics processor that is free. What the system
        does not report is left out.
    """
    found = {LATENCY: min(1.0, limit_ms / most_ms)}
    if resources is None:
        return found
    if resources.memory is not None:
        found[WEIGHTS] = 1 - resources.memory
    busy = [use for use in (resources.cpu, resources.gpu) if use is not None]
    if busy:
        found[ENERGY] = 1 - max(busy)
    return found


def closest(
    table: ParetoTable[Candidate],
    current: Candidate,
    resources: Resources | None,
    limit_ms: float,
) -> Candidate | None:
    """The subnet within the budget whose demands are closest to what the device has.

    Demands are a subnet's costs as shares of the largest cost of the table. Resources that only one
    side knows are left out. Ties go to the more accurate subnet, and the one in use stays unless
    another is clearly closer.

    Args:
        table: The subnets.
        current: The subnet in use.
        resources: The latest reading; None if there is none.
        limit_ms: The highest estimated latency that keeps the budget at the current load, in ms.

    Returns:
        The subnet; None if none is within the budget.
    """
    frontier = table.frontier
    fitting = [candidate for candidate in frontier if candidate.ms <= limit_ms]
    if not fitting:
        return None
    most = _most(frontier)
    has = {
        name: share
        for name, share in supply(resources, limit_ms, most[LATENCY]).items()
        if most.get(name, 0.0) > 0
    }

    def distance(candidate: Candidate) -> float:
        costs = candidate.costs
        return math.dist([costs[name] / most[name] for name in has], list(has.values()))

    best = min(fitting, key=lambda candidate: (distance(candidate), -candidate.accuracy))
    for candidate in fitting:
        if candidate.arch == current.arch and distance(candidate) <= distance(best) + _CLOSER:
            return candidate
    return best


def _most(candidates: Iterable[Candidate]) -> Mapping[str, float]:
    """The largest cost in each resource that is known of all candidates."""
    costs = [candidate.costs for candidate in candidates]
    names = [name for name in costs[0] if all(name in found for found in costs)]
    return {name: max(found[name] for found in costs) for name in names}
