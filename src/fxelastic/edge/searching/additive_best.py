"""The subnet that is best under a budget if what branches cost in quality adds up."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.edge.searching.knapsack import most_valuable
from fxelastic.edge.searching.prior import Prior
from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch, SearchSpace

# The rounding of the knapsack leaves at most a 4000th of the budget unused for each block.
_LEVELS = 4000
_LEAST = 0.02  # of a block's work: what a new branch costs that saves none
_STEPS = 12


def unmeasured_costs(space: SearchSpace) -> dict[str, float]:
    """What new branches cost in quality, before anything is measured.

    The share of its blocks' work that a branch leaves out, in blocks that compute. Measured on a
    MiniLM supernet, a branch's error on the original's features grows about as much.

    Args:
        space: The branches, with their FLOPs.
    """
    own = [space.by_id[branch].flops for branch in space.original]
    found = {}
    for spec in space.branches:
        if spec.kind == "original":
            continue
        blocks = own[spec.start : spec.stop]
        n_blocks = max(1, sum(flops > 0 for flops in blocks))
        kept = min(1.0, spec.flops / sum(blocks)) if any(blocks) else 0.0
        found[spec.id] = n_blocks * (_LEAST + 1.0 - kept)
    return found


def quality_costs(space: SearchSpace, distortion: Distortion | None) -> dict[str, float]:
    """What new branches cost in quality: their measured errors, where there are any.

    A branch of which nothing was measured has its cost before measurement, in units of the others'
    errors.

    Args:
        space: The branches.
        distortion: What was measured of them; None for nothing.
    """
    found = unmeasured_costs(space)
    if distortion is None or distortion.unknown.all():
        return found
    errors = dict(zip(distortion.branches, Prior(distortion).errors.tolist(), strict=True))
    unknown = dict(zip(distortion.branches, distortion.unknown.tolist(), strict=True))
    ratios = sorted(errors[b] / cost for b, cost in found.items() if not unknown[b])
    unit = ratios[len(ratios) // 2]
    return {b: unit * cost if unknown[b] else errors[b] for b, cost in found.items()}


def additive_best(study: Study, costs: Mapping[str, float]) -> Arch | None:
    """The subnet within a study's limits whose branches cost the least quality.

    Args:
        study: The budget and the other limits.
        costs: What new branches cost in quality, by id.

    Returns:
        The subnet. Where the best under the budget breaks another limit, one between it and a
        subnet that keeps all limits. None where no such subnet is known.
    """
    space = study.space

    def value(arch: Arch) -> float:
        return -math.fsum(costs.get(branch, 0.0) for branch in arch)

    def solved(values: Mapping[str, float]) -> list[Arch]:
        found = most_valuable(space, study.costs, values, study.high, _LEVELS)
        return [] if found is None or not study.fits(found) else [found]

    values = {branch: -cost for branch, cost in costs.items()}
    sure = (space.original, space.min_cost_arch(study.costs), *study.anchors)
    ends = [arch for arch in sure if study.fits(arch)]
    candidates = [*solved(values), *ends]
    if len(candidates) == len(ends):
        # The budget's best breaks another limit: it is drawn towards what keeps all of them.
        for end in ends:
            weight = math.fsum(costs.values()) + 1.0
            for _ in range(_STEPS):
                weight /= 2
                drawn = {b: values.get(b, 0.0) + weight * (b in end.branches) for b in space.by_id}
                candidates += solved(drawn)
    return max(candidates, key=lambda a: (value(a), -study.cost(a), a.branches), default=None)
