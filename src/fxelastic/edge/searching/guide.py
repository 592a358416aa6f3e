"""Proposes subnets to a study by what it has evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxelastic.edge.execution import Array
from fxelastic.edge.searching.additive_best import additive_best, quality_costs
from fxelastic.edge.searching.knapsack import most_valuable
from fxelastic.edge.searching.margin_model import MarginModel
from fxelastic.edge.searching.prefixes import Prefixes
from fxelastic.edge.searching.prior import Prior
from fxelastic.edge.searching.score_model import ScoreModel
from fxelastic.edge.searching.study import Study
from fxelastic.spec import Arch

_ATTEMPTS = 4
_CURIOSITY = 0.002  # standard deviation of the promise of a subnet of which nothing is known
_WORTH = 0.002  # of the score, for an expected improvement that is e times as large
_LEAST_DEVIATION = 1e-5
_FEW = 5


class Guide:
    """What is known of a study's subnets, and what follows for others."""

    def __init__(self, study: Study) -> None:
        """Know the branches' distortions.

        Args:
            study: The search.
        """
        self._study = study
        self._distortion = study.evaluator.distortion(study.is_over)
        self._prior = Prior(self._distortion)
        self._scores = ScoreModel(self._prior, study.evaluator.metric.most)
        self._margins: MarginModel | None = None
        self._best = 0.0  # of those that fit, on the samples that margins are kept of
        self._estimates: dict[Arch, float] = {}

    def learn(self) -> None:
        """Take in what was evaluated."""
        evaluator = self._study.evaluator
        margins = evaluator.margins.by_arch
        early = [arch for arch in margins if arch not in evaluator.known]
        self._margins, self._estimates = None, evaluator.estimates()
        longest = max(map(len, margins.values()), default=0)
        evaluator.make_room(MarginModel.needed_bytes(len(margins), longest))
        if len(margins) >= _FEW:
            self._margins = MarginModel(self._prior, margins, self._study.fits)
            estimates = self._margins.completed({arch: margins[arch] for arch in early})
            # Of larger data, the samples that margins are kept of may be easier than the rest.
            whole = [arch for arch in margins if arch in evaluator.known]
            easier = [float((margins[a] > 0).mean()) - evaluator.known[a] for a in whole]
            bias = math.fsum(easier) / max(len(easier), 1)
            self._estimates = {arch: score - bias for arch, score in estimates.items()}
            self._best = max(self._study.scores.values(), default=0.0) + bias
        scores = evaluator.known | self._estimates
        if scores:
            self._scores.fit(scores)

    def best(self, n: int) -> list[Arch]:
        """The best subnets so far, best first; of equal ones the quicker first.

        Those that ended early are among them by their estimated scores.
        """
        study = self._study
        early = {arch: score for arch, score in self._estimates.items() if study.fits(arch)}
        scores = early | study.scores
        return sorted(scores, key=lambda a: (-scores[a], study.cost(a), a.branches))[:n]

    def additive_best(self) -> list[Arch]:
        """The subnet of the least total distortion under the budget, if it is new."""
        study = self._study
        found = additive_best(study, quality_costs(study.space, self._distortion))
        return [] if found is None or study.has_tried(found) else [found]

    def solutions(self, n: int, scale: float = 1.0) -> list[Arch]:
        """New subnets, each the best under the budget by one draw of what branches cost.

        Args:
            n: How many, at most.
            scale: How far draws are from what is likely.
        """
        study, found = self._study, dict[Arch, None]()
        for _ in range(_ATTEMPTS * n):
            if len(found) >= n or study.is_over():
                break
            values = self._scores.draw(study.rng, scale)
            arch = most_valuable(study.space, study.costs, values, study.high)
            if arch is not None and study.fits(arch) and not study.has_tried(arch):
                found[arch] = None
        return list(found)

    def chosen(self, pool: Sequence[Arch], n: int, thrift: float) -> list[Arch]:
        """Those of a pool that promise most.

        Args:
            pool: Subnets to choose from.
            n: How many, at most.
            thrift: What a subnet must promise more than another one to be worth the time of a
                whole run, in units of the score; what it shares with those chosen takes none.
        """
        if not pool or n < 1:
            return []
        study = self._study
        prefixes = Prefixes(pool, study.costs)
        promise = self._promise(pool)
        chosen: list[Arch] = []
        for _ in range(min(n, len(pool))):
            i = int(np.argmax(promise - thrift / study.high * prefixes.own))
            chosen.append(pool[i])
            promise[i] = -math.inf
            prefixes.add(i)
        return chosen

    def _promise(self, pool: Sequence[Arch]) -> Array:
        study = self._study
        if self._margins is None:
            draws = [self._scores.draw(study.rng) for _ in range(8)]
            values = [
                sum(draws[i % len(draws)].get(branch, 0.0) for branch in arch)
                for i, arch in enumerate(pool)
            ]
            return np.array(values)
        accuracy, deviation, unknown = self._margins.predict(pool)
        chance = np.array([study.rng.gauss(0.0, _CURIOSITY) for _ in pool])
        promise: Array = (
            _WORTH * log_improvement(accuracy - self._best, deviation) + unknown * chance
        )
        return promise


def log_improvement(ahead: Array, deviation: Array) -> Array:
    """The logarithm of the improvement to be expected (Mockus, 1974), under normal distributions.

    Args:
        ahead: How far the expected scores are above the best so far.
        deviation: Their standard deviations.
    """
    deviation = np.maximum(deviation, _LEAST_DEVIATION)
    improvement = np.array([_log_unit_improvement(z) for z in (ahead / deviation).tolist()])
    return np.asarray(np.log(deviation) + improvement)


def _log_unit_improvement(z: float) -> float:
    """Of a standard deviation of 1."""
    log_density = -0.5 * (z * z + math.log(2 * math.pi))
    if z < -3:
        # The difference of two almost equal numbers; within 4 % from here on.
        return log_density - math.log(z * z + 3)
    return math.log(math.exp(log_density) + 0.5 * z * math.erfc(-z / math.sqrt(2)))
