"""Estimate the quality lost by each branch, and find the subnets that lose the least in total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.edge.searching.proposals import replaced
from fxelastic.edge.searching.study import Study
from fxelastic.edge.searching.surrogates import Prior
from fxelastic.spec import Arch, SearchSpace

_RIDGE = 0.1
_SUFFIXES = 4000  # suffixes kept at a cut of the dynamic programme
_LEAST = 0.02  # the cost of a new branch that saves no work, as a share of a block's work


@dataclass(frozen=True)
class Additive:
    """Measures the drop in score of each branch alone, and adds up the drops.

    First, every subnet with a single new branch is evaluated. A dynamic programme then finds the
    subnets with the least total drop within the limits, which are evaluated too.

    Attributes:
        candidates: The number of subnets that each run of the dynamic programme proposes.
    """

    candidates: int = 20

    def run(self, study: Study) -> None:
        """Search; see `Strategy`."""
        original = study.space.original
        singles = {
            spec.id: replaced(study.space, original, spec)
            for spec in study.space.branches
            if spec.id not in original.branches
        }
        scores = study.learn([original, *singles.values()])
        values = {spec.id: -math.inf for spec in study.space.branches}
        values.update(dict.fromkeys(original.branches, 0.0))
        for branch, arch in singles.items():
            if arch in scores and original in scores:
                values[branch] = scores[arch] - scores[original]
        while True:
            archs = study.most_valuable(values, self.candidates, _SUFFIXES)
            tried = study.tried
            study.score(archs)
            if study.tried == tried:
                return
            # The subnets' own scores correct the drops of their branches.
            drops = {branch: -value for branch, value in values.items() if value > -math.inf}
            values = {branch: -drop for branch, drop in _estimated(study, drops).items()}


def _estimated(study: Study, prior: Mapping[str, float]) -> dict[str, float]:
    """The drop of each branch, by ridge regression on all subnets evaluated so far."""
    names = [spec.id for spec in study.space.branches]
    original = set(study.space.original.branches)
    place = {name: i for i, name in enumerate(names)}
    archs = list(study.evaluator.known)
    design = np.zeros((len(archs), len(names)))
    for i, arch in enumerate(archs):
        for branch in arch:
            if branch not in original:
                design[i, place[branch]] = 1.0
    scores = np.array([study.evaluator.known[arch] for arch in archs])
    top = float(scores.max())
    used = design.any(axis=0)
    typical = float(np.mean((top - scores) / np.maximum(design.sum(1), 1.0)))
    before = np.array([prior.get(name, typical) for name in names])
    residual = (top - scores) - design @ before
    if len(archs) < len(names):
        gram = design @ design.T + _RIDGE * np.eye(len(archs))
        drops = before + design.T @ np.linalg.solve(gram, residual)
    else:
        gram = design.T @ design + _RIDGE * np.eye(len(names))
        drops = before + np.linalg.solve(gram, design.T @ residual)
    # A branch not yet in any subnet gets a little less than its prior drop, so that it is tried.
    drops = np.where(used, drops, before - 0.2 * abs(typical))
    return {name: 0.0 if name in original else float(drops[place[name]]) for name in names}


def unmeasured_costs(space: SearchSpace) -> dict[str, float]:
    """Estimate the quality lost by each new branch, before anything is measured.

    A branch loses the share of its blocks' work that it omits, times the number of its blocks that
    compute. On a MiniLM supernet, the measured error of a branch on the original's features grows
    about as much.

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
    """The quality lost by each new branch: its measured error if there is one.

    For a branch without a measurement, the estimate of `unmeasured_costs` is scaled to the errors
    of the others.

    Args:
        space: The branches.
        distortion: Their measured errors; None if there are none.
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
        study: The search.
        costs: The quality lost by each new branch, by id.

    Returns:
        The subnet; None if no subnet within the limits is known.
    """

    def value(arch: Arch) -> float:
        return -math.fsum(costs.get(branch, 0.0) for branch in arch)

    found = study.most_valuable({b: -cost for b, cost in costs.items()}, most=_SUFFIXES)
    candidates = (*found, *study.anchors)
    return max(candidates, key=lambda a: (value(a), -study.cost(a), a.branches), default=None)
