"""What each branch costs in accuracy, and the subnets that are best if that adds up."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fxelastic.edge.searching.mutation import replaced
from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch, SearchSpace

_RIDGE = 0.1

#: Cost, drop and branches of a suffix.
_Option: TypeAlias = tuple[float, float, tuple[str, ...]]


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
        scores = study.learn([original, *singles.values()])
        drops = {
            branch: scores[original] - scores[arch]
            for branch, arch in singles.items()
            if arch in scores and original in scores
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


def least_drop(
    space: SearchSpace,
    costs: Mapping[str, float],
    drops: Mapping[str, float],
    high: float,
    n: int,
    front: int = 4000,
) -> list[Arch]:
    """Subnets of at most a cost with the least total drop, best first.

    The first one is exact as long as no suffix has more pairs of cost and drop that no other pair
    beats than ``front``; then they are thinned evenly. The others are the last step's next best.

    Args:
        space: The subnets.
        costs: Cost of each branch.
        drops: Drop of each branch; one that is missing is not used.
        high: The largest cost.
        n: How many.
        front: The most pairs to keep of a suffix.
    """
    fronts: list[list[_Option]] = [[] for _ in range(space.n_blocks)]
    fronts.append([(0.0, 0.0, ())])
    for position in range(space.n_blocks - 1, -1, -1):
        options = [
            (cost + costs[spec.id], drop + drops[spec.id], (spec.id, *rest))
            for spec in space.starting_at[position]
            if spec.id in drops
            for cost, drop, rest in fronts[spec.stop]
            if cost + costs[spec.id] <= high
        ]
        fronts[position] = options if position == 0 else _front(options, front)
    return [
        Arch(branches) for _, _, branches in heapq.nsmallest(n, fronts[0], key=lambda o: o[1::-1])
    ]


def _front(options: list[_Option], most: int) -> list[_Option]:
    """Those that no other one beats in both, thinned evenly where they are too many."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda option: option[:2]):
        if not kept or option[1] < kept[-1][1] - 1e-12:
            kept.append(option)
    if len(kept) > most:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, most).astype(int)]
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
    residual = (top - scores) - design @ before
    if len(archs) < len(names):
        gram = design @ design.T + _RIDGE * np.eye(len(archs))
        drops = before + design.T @ np.linalg.solve(gram, residual)
    else:
        gram = design.T @ design + _RIDGE * np.eye(len(names))
        drops = before + np.linalg.solve(gram, design.T @ residual)
    # A branch that was never seen costs what is typical, and a little less for being new.
    drops = np.where(used, drops, before - 0.2 * abs(typical))
    return {name: 0.0 if name in original else float(drops[place[name]]) for name in names}
