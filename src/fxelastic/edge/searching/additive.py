"""What each branch costs in accuracy, and the subnets that are best if that adds up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fxelastic.edge.searching.mutation import replaced
from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch, SearchSpace


@dataclass(frozen=True)
class Additive:
    """Measures the drop of each branch by itself, and adds the drops up.

    First every subnet with a single new branch is evaluated. A dynamic programme, exact over the
    pairs of latency and drop that no other pair beats, then gives the subnets of the least total
    drop under the budget; these are evaluated, too.

    Attributes:
        candidates: How many of them.
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
        # Evaluated though they may be slower than the budget: for what they tell.
        scores = study.evaluator.scores([original, *singles.values()])
        drops = {
            branch: scores[original] - scores[arch]
            for branch, arch in singles.items()
            if arch in scores
        }
        drops.update(dict.fromkeys(original.branches, 0.0))
        while True:
            archs = least_drop(study.space, study.costs, drops, study.high, self.candidates)
            tried = study.tried
            study.score(archs)
            if study.tried == tried:
                return
            # What they really have corrects the drops of their branches.
            drops = _estimated(study, drops)


def predicted_best(study: Study, n: int) -> list[Arch]:
    """Subnets not tried yet that seem the best by what is known of all that were."""
    if len(study.scores) < 5 or n < 1:
        return []
    drops = _estimated(study, {})
    found = least_drop(study.space, study.costs, drops, study.high, 3 * n)
    return [arch for arch in found if arch not in study.scores][:n]


def least_drop(
    space: SearchSpace,
    costs: Mapping[str, float],
    drops: Mapping[str, float],
    high: float,
    n: int,
) -> list[Arch]:
    """Subnets of at most a cost with the least total drop, best first.

    The first one is exact; the others are those of the last step's best pairs.

    Args:
        space: The subnets.
        costs: Cost of each branch.
        drops: Drop of each branch; one that is missing is not used.
        high: The largest cost.
        n: How many.
    """
    fronts: list[list[tuple[float, float, tuple[str, ...]]]] = [[] for _ in range(space.n_blocks)]
    fronts.append([(0.0, 0.0, ())])
    for position in range(space.n_blocks - 1, -1, -1):
        options = [
            (cost + costs[spec.id], drop + drops[spec.id], (spec.id, *rest))
            for spec in space.starting_at[position]
            if spec.id in drops
            for cost, drop, rest in fronts[spec.stop]
            if cost + costs[spec.id] <= high
        ]
        fronts[position] = _front(options, n if position == 0 else 1)
    return [Arch(branches) for _, _, branches in sorted(fronts[0], key=lambda o: o[1])[:n]]


def _front(
    options: list[tuple[float, float, tuple[str, ...]]], extra: int
) -> list[tuple[float, float, tuple[str, ...]]]:
    """Those that no other one beats in both; at the last step some more of the best."""
    if extra > 1:
        return sorted(options, key=lambda option: (option[1], option[0]))[: 4 * extra]
    kept: list[tuple[float, float, tuple[str, ...]]] = []
    for option in sorted(options, key=lambda option: option[:2]):
        if not kept or option[1] < kept[-1][1] - 1e-12:
            kept.append(option)
    # A bound for spaces whose drops have very many values; the front is thinned evenly.
    if len(kept) > 2000:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, 2000).astype(int)]
    return kept


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
    gram = design @ design.T + 0.1 * np.eye(len(archs))
    residual = (top - scores) - design @ before
    drops = before + design.T @ np.linalg.solve(gram, residual)
    # A branch that was never seen costs what is typical, and a little less for being new.
    drops = np.where(used, drops, before - 0.2 * abs(typical))
    return {
        name: 0.0 if name in original else float(max(drops[place[name]], -math.inf))
        for name in names
    }
